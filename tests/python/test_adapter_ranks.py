"""The adapter on several ranks. What is compared with what stands in workers/adapter.py."""

from pathlib import Path

import pytest
from torchrun import outcome_of


@pytest.fixture(scope="module", params=[2, 4], ids=["2_ranks", "4_ranks"])
def outcome(request, tiny: Path, tmp_path_factory) -> dict[str, str]:
    """What each check of the worker found wrong, from one run for all tests."""
    return outcome_of("adapter.py", request.param, tiny, tmp_path_factory.mktemp("adapter"))


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
