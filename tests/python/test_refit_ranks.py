"""Handing weights to an engine on Gloo ranks. The checks are in workers/refit.py."""

from pathlib import Path

import pytest
from torchrun import outcome_of

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module", params=[2, 4], ids=["2_ranks", "4_ranks"])
def outcome(request, small: Path, tmp_path_factory) -> dict[str, str]:
    return outcome_of("refit.py", request.param, small, tmp_path_factory.mktemp("refit"))


@pytest.mark.parametrize(
    "check",
    [
        "bf16_to_other_ranks",
        "mxfp8_to_other_ranks",
        "mxfp8_to_the_same_ranks",
        "block_fp8_of_odd_sizes_to_some_of_the_ranks",
        "one_error_for_all",
        "a_value_that_cannot_be_encoded",
    ],
)
def test_refit(outcome: dict[str, str], check: str):
    assert not outcome[check], outcome[check]
