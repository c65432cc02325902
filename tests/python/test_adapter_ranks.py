"""The adapter on several ranks. What is compared with what stands in workers/adapter.py."""

from pathlib import Path

import pytest
from checkpoints import Sizes, write_m3
from outcomes import outcome_of

pytestmark = pytest.mark.ranks

# Of several 128 × 128 blocks, which shards on two ranks cut.
SEVERAL_BLOCKS = Sizes(hidden=300, inter=150, experts=4)


@pytest.fixture(
    scope="module",
    params=[(2, "mxfp8"), (4, "mxfp8"), (2, "block_fp8")],
    ids=["2_ranks", "4_ranks", "2_ranks_block_fp8"],
)
def outcome(request, tiny: Path, tmp_path_factory) -> dict[str, str]:
    """What each check of the worker found wrong, from one run for all tests."""
    ranks, encoding = request.param
    directory = tmp_path_factory.mktemp("adapter")
    if encoding != "mxfp8":
        tiny = write_m3(directory / encoding, SEVERAL_BLOCKS, encoding=encoding)
    return outcome_of("adapter.py", ranks, tiny, directory)


@pytest.mark.parametrize(
    "check",
    [
        "expert_parallel",
        "expert_parallel_with_fsdp",
        "matrices_on_dimension_1",
        "experts_over_a_mesh_that_replicates",
        "plain_tensors_and_a_mesh",
        "every_layout_comes_back",
        "a_rank_misses_only_its_own_experts",
        "views_for_a_load_are_not_given_back",
        "single_weights",
        "meshes_that_do_not_fit_are_named",
    ],
)
def test_on_every_rank(outcome: dict[str, str], check: str):
    assert not outcome[check], outcome[check]
