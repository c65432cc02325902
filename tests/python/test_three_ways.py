"""The ways of loading give the same bits on 1, 2 and 4 ranks. The checks themselves are in workers/three_ways.py."""

from pathlib import Path

import pytest
from outcomes import outcome_of

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module", params=[1, 2, 4], ids=["1_rank", "2_ranks", "4_ranks"])
def outcome(request, small: Path, tmp_path_factory) -> dict[str, str]:
    """What each check of the worker found wrong, from one run for all tests."""
    return outcome_of("three_ways.py", request.param, small, tmp_path_factory.mktemp("three_ways"))


@pytest.mark.parametrize(
    "check", ["expert_parallel", "expert_parallel_with_fsdp_on_dimension_1", "uneven_shards"]
)
def test_every_way_loads_the_same_bits(outcome: dict[str, str], check: str):
    assert not outcome[check], outcome[check]
