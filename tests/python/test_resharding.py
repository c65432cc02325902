"""Sharded checkpoints of 2 and 4 ranks from any placement into any other. The checks are in workers/resharding.py."""

from pathlib import Path

import pytest
from outcomes import outcome_of

pytestmark = pytest.mark.ranks

CHECKS = (
    "any_placement_into_any_other",
    "torchs_checkpoints_into_any_placement",
    "torchs_planner_is_told_what_is_beyond_it",
    "training_goes_on_during_a_save",
    "a_planner_that_is_used_again",
    "a_plan_that_the_ranks_refuse_leaves_nothing",
    "every_rank_writes_its_part_and_no_more",
)


@pytest.fixture(scope="module", params=[2, 4], ids=["2_ranks", "4_ranks"])
def outcome(request, tiny: Path, tmp_path_factory) -> dict[str, str]:
    """What each check of the worker found wrong, from one run for all tests."""
    return outcome_of("resharding.py", request.param, tiny, tmp_path_factory.mktemp("resharding"))


@pytest.mark.parametrize("check", CHECKS)
def test_resharding(outcome: dict[str, str], check: str):
    assert not outcome[check], outcome[check]


def test_every_check_of_the_worker_is_looked_at(outcome: dict[str, str]):
    assert set(outcome) == set(CHECKS)
