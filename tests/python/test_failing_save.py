"""Saves that fail, under torchrun. The checks are in workers/failing_save.py."""

import subprocess
from pathlib import Path

import pytest
from torchrun import HERE, outcome_of

CHECKS = (
    "input_output_error_in_the_middle",
    "input_output_error_at_the_end",
    "no_space_left",
    "a_file_system_that_cannot_exchange",
    "a_disk_that_fills_up",
    "a_directory_that_cannot_be_written",
    "a_directory_that_is_a_file",
    "a_directory_of_other_things",
    "a_rank_whose_state_cannot_be_saved",
    "two_saves_at_once",
)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> dict[str, str]:
    directory: Path = tmp_path_factory.mktemp("failing_save")
    shim = directory / "failing_writes.so"
    source = HERE.parent / "data" / "failing_writes.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(shim))
        return outcome_of("failing_save.py", 2, directory, tmp_path_factory.mktemp("failing_save_result"))


@pytest.mark.parametrize("check", CHECKS)
def test_a_save_that_fails(outcome: dict[str, str], check: str):
    assert not outcome[check], outcome[check]


def test_every_check_of_the_worker_is_looked_at(outcome: dict[str, str]):
    assert set(outcome) == set(CHECKS)
