"""`dcp.save` to Hugging Face files with Gloo ranks. The checks are in workers/export.py and round_trip.py."""

import os
from pathlib import Path

import pytest
import shardwright as sw
from outcomes import outcome_of

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module", params=[2, 4], ids=["2_ranks", "4_ranks"])
def outcome(request, small: Path, tmp_path_factory) -> dict[str, str]:
    """What each check of the worker found wrong, from one run for all tests."""
    return outcome_of("export.py", request.param, small, tmp_path_factory.mktemp("export"))


@pytest.mark.parametrize(
    "check",
    [
        "pipeline_stages",
        "some_of_the_ranks",
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
        "one_rank_has_other_arguments",
        "a_part_that_no_rank_has",
        "mxfp8_where_one_rank_alone_has_a_mark_of_the_family",
    ],
)
def test_export(outcome: dict[str, str], check: str):
    assert not outcome[check], outcome[check]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize(
    "preset",
    [
        "small",
        pytest.param(
            "bench",
            marks=pytest.mark.skipif(
                "SHARDWRIGHT_TEST_BENCH" not in os.environ, reason="takes minutes and 12 GB of memory"
            ),
        ),
    ],
)
def test_loaded_exported_and_loaded_again(preset: str, ranks: int, tmp_path: Path):
    sw.generate(tmp_path / preset, preset, values="any")
    outcome = outcome_of("round_trip.py", ranks, tmp_path / preset, tmp_path)
    assert outcome == {"every_bit_comes_back": ""}, outcome["every_bit_comes_back"]
