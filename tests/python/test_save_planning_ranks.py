"""Saves planned by 2, 4 and 8 real processes. The checks themselves are in workers/save_planning.py."""

from pathlib import Path

import pytest
from outcomes import outcome_of

pytestmark = pytest.mark.ranks

CHECKS = [
    "torch_loads_what_was_planned",
    "metadata_equals_torchs",
    "what_is_gathered_is_bytes",
    "a_rank_that_differs_is_named_on_all",
    "a_hole_is_refused_on_all",
    "a_rank_of_another_version_is_named_on_all",
]


@pytest.fixture(scope="module", params=[2, 4, 8], ids=["2_ranks", "4_ranks", "8_ranks"])
def outcome(request, tiny: Path, tmp_path_factory) -> dict[str, str]:
    """What each check of the worker found wrong, from one run for all tests."""
    return outcome_of("save_planning.py", request.param, tiny, tmp_path_factory.mktemp("save_planning"))


@pytest.mark.parametrize("check", CHECKS)
def test_on_real_processes(outcome: dict[str, str], check: str):
    assert not outcome[check], outcome[check]
