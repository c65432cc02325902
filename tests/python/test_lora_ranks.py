"""LoRA adapters on several ranks. What is compared with what stands in workers/lora.py."""

from pathlib import Path

import pytest
from outcomes import outcome_of

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module", params=[2, 4], ids=["2_ranks", "4_ranks"])
def outcome(request, tiny: Path, tmp_path_factory) -> dict[str, str]:
    """What each check of the worker found wrong, from one run for all tests."""
    return outcome_of("lora.py", request.param, tiny, tmp_path_factory.mktemp("lora"))


@pytest.mark.parametrize(
    "check",
    [
        "saves_what_one_rank_would",
        "loads_its_part",
        "reads_its_experts_only",
        "needs_its_experts_only",
        "pipeline_stages_have_different_tensors",
        "failures_of_rank_0_are_everyones",
        "failures_of_another_rank_are_everyones",
        "a_part_that_no_rank_has_is_named",
        "the_adapter_goes_both_ways",
    ],
)
def test_on_every_rank(outcome: dict[str, str], check: str):
    assert not outcome[check], outcome[check]
