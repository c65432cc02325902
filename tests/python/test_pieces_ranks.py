"""`sw.pieces` and its doorways with Gloo ranks. The checks are in workers/pieces.py."""

from pathlib import Path

import pytest
from outcomes import outcome_of

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module", params=[2, 4], ids=["2_ranks", "4_ranks"])
def outcome(request, small: Path, tmp_path_factory) -> dict[str, str]:
    """What each check of the worker found wrong, from one run for all tests."""
    return outcome_of("pieces.py", request.param, small, tmp_path_factory.mktemp("pieces"))


@pytest.mark.parametrize(
    "check",
    [
        "pieces_of_all_ranks_are_an_export",
        "whole_tensors_are_an_export",
        "one_error_for_all",
        "sglang_gets_an_export",
        "a_failure_of_one_rank_is_told_to_all",
        "who_has_the_last_tensor_has_all",
        "vllm_gets_an_export",
    ],
)
def test_pieces(outcome: dict[str, str], check: str):
    assert not outcome[check], outcome[check]
