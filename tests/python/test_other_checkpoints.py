"""Ranks that were given different checkpoints are told so, and nothing is written: see workers/other_checkpoints.py."""

from pathlib import Path

import pytest
from checkpoints import write_m3
from outcomes import outcome_of

pytestmark = pytest.mark.ranks

CHECKS = (
    "loads_by_dcp",
    "loads_together",
    "resumes",
    "resumes_from_torchs",
    "exports_a_path",
    "exports_with_a_template",
    "converts",
)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory: Path = tmp_path_factory.mktemp("others")
    return outcome_of("other_checkpoints.py", 2, write_m3(directory / "m3"), directory)


@pytest.mark.parametrize("check", CHECKS)
def test_on_two_ranks(outcome: dict[str, str], check: str) -> None:
    assert outcome[check] == ""
