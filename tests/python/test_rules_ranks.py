"""Exports by named rules, and conversions, on several ranks. The checks are in workers/rules.py."""

from pathlib import Path

import pytest
from outcomes import outcome_of

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module", params=[1, 2, 4], ids=["1_rank", "2_ranks", "4_ranks"])
def outcome(request, tiny: Path, tmp_path_factory) -> dict[str, str]:
    """What each check of the worker found wrong, from one run for all tests."""
    return outcome_of("rules.py", request.param, tiny, tmp_path_factory.mktemp("rules"))


@pytest.mark.parametrize("check", ["any_shards", "converted", "one_rank_finds_a_nan"])
def test_on_every_rank(outcome: dict[str, str], check: str):
    assert not outcome[check], outcome[check]
