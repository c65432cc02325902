"""`dcp.load` on 2 and 4 Gloo ranks. The checks themselves are in workers/dcp_load.py."""

from pathlib import Path

import pytest
from outcomes import outcome_of

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module", params=[2, 4], ids=["2_ranks", "4_ranks"])
def outcome(request, tiny: Path, tmp_path_factory) -> dict[str, str]:
    """What each check of the worker found wrong, from one run for all tests."""
    return outcome_of("dcp_load.py", request.param, tiny, tmp_path_factory.mktemp("dcp_load"))


def test_experts_on_dimension_0_over_ep(outcome: dict[str, str]):
    assert not outcome["expert_parallel"], outcome["expert_parallel"]


def test_experts_on_dimensions_0_and_1_over_ep_and_ep_shard(outcome: dict[str, str]):
    assert not outcome["expert_parallel_with_fsdp"], outcome["expert_parallel_with_fsdp"]


def test_fsdp2s_own_sharding_of_a_module(outcome: dict[str, str]):
    assert not outcome["fsdp2"], outcome["fsdp2"]


def test_ranks_that_hold_different_tensors(outcome: dict[str, str]):
    assert not outcome["pipeline"], outcome["pipeline"]


def test_what_one_rank_refuses_all_ranks_hear_of(outcome: dict[str, str]):
    assert not outcome["one_rank_asks_for_a_wrong_shape"], outcome["one_rank_asks_for_a_wrong_shape"]
