"""`dcp.save` to Hugging Face files with 2 and 4 Gloo ranks. The checks themselves are in workers/export.py."""

from pathlib import Path

import pytest
from torchrun import outcome_of


@pytest.fixture(scope="module", params=[2, 4], ids=["2_ranks", "4_ranks"])
def outcome(request, small: Path, tmp_path_factory) -> dict[str, str]:
    """What each check of the worker found wrong, from one run for all tests."""
    return outcome_of("export.py", request.param, small, tmp_path_factory.mktemp("export"))


@pytest.mark.parametrize(
    "check",
    [
        "mxfp8_with_rows_over_ranks",
        "mxfp8_with_boundaries_inside_blocks",
        "bf16",
        "torchs_planner",
        "replicas",
        "asynchronous",
        "fsdp2",
        "from_a_sharded_save",
        "under_another_name",
        "a_failure_in_the_background",
        "one_rank_fails_while_it_writes",
        "one_rank_has_another_shape",
        "a_part_that_no_rank_has",
    ],
)
def test_export(outcome: dict[str, str], check: str):
    assert not outcome[check], outcome[check]
