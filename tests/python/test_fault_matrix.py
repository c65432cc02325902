"""A few hundred faults of the matrix, the same each time; `python tests/python/fault_matrix.py --all` is the whole."""

import tempfile
from pathlib import Path

import pytest
from fault_matrix import folder_in_memory, run

pytestmark = pytest.mark.ranks


@pytest.mark.parametrize(("ranks", "faults"), [(1, 20), (2, 8)])
def test_a_call_that_fails_is_told_and_nothing_is_lost(ranks: int, faults: int):
    with tempfile.TemporaryDirectory(dir=folder_in_memory()) as folder:
        outcomes, wrong = run(ranks, faults, 0, None, Path(folder), False)
    assert wrong == []
    assert sum(count for (_, _, outcome), count in outcomes.items() if outcome.startswith("refused")) > 20
    assert sum(outcomes.values()) > 60
