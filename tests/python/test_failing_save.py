"""Saves and exports that fail, under torchrun. The checks are in workers/failing_save.py and failing_export.py."""

import errno
import os
import subprocess
from pathlib import Path

import pytest
from outcomes import HERE, outcome_of
from shardwright.ranks.rank_outcome import expect_success, told_failure

pytestmark = pytest.mark.ranks

CHECKS = (
    "input_output_error_in_the_middle",
    "input_output_error_at_the_end",
    "no_space_left",
    "a_file_system_without_links",
    "a_disk_that_fills_up",
    "a_directory_that_cannot_be_written",
    "a_directory_that_is_a_file",
    "a_directory_of_other_things",
    "a_rank_whose_state_cannot_be_saved",
    "two_saves_at_once",
)


EXPORT_CHECKS = (
    "input_output_error_in_the_middle",
    "input_output_error_at_the_end",
    "no_space_left_while_writing",
    "a_disk_that_fills_up",
    "a_directory_that_cannot_be_written",
    "a_directory_that_is_a_file",
    "a_directory_of_other_things",
    "a_template_whose_names_do_not_match",
    "a_template_that_one_rank_cannot_see",
    "a_value_that_is_no_tensor",
    "two_exports_at_once",
    "staging_beyond_its_bound",
)


@pytest.fixture(scope="module")
def failing_writes(tmp_path_factory) -> Path:
    """A library that makes system calls fail when it is told to."""
    library: Path = tmp_path_factory.mktemp("failing_writes") / "failing_writes.so"
    source = HERE.parent / "data" / "failing_writes.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture(scope="module")
def outcome(failing_writes: Path, tmp_path_factory) -> dict[str, str]:
    checkpoint, directory = (
        tmp_path_factory.mktemp(name) for name in ("failing_save", "failing_save_result")
    )
    return outcome_of("failing_save.py", 2, checkpoint, directory, failing_writes)


@pytest.fixture(scope="module")
def outcome_of_exports(failing_writes: Path, tiny: Path, tmp_path_factory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("failing_export")
    return outcome_of("failing_export.py", 2, tiny, directory, failing_writes)


@pytest.mark.parametrize("check", CHECKS)
def test_a_save_that_fails(outcome: dict[str, str], check: str):
    assert not outcome[check], outcome[check]


@pytest.mark.parametrize("check", EXPORT_CHECKS)
def test_an_export_that_fails(outcome_of_exports: dict[str, str], check: str):
    assert not outcome_of_exports[check], outcome_of_exports[check]


def test_a_failure_that_names_a_file_in_no_utf8_is_told_as_what_it_is():
    odd = os.fsdecode(b"model-\xff")
    with pytest.raises(FileNotFoundError, match=r"rank 3: model-\\udcff: no such file; rank 5: full"):
        expect_success(
            [
                told_failure(3, FileNotFoundError(errno.ENOENT, "no such file", odd)),
                told_failure(5, OSError(errno.ENOSPC, "full")),
            ]
        )
    expect_success([])


def test_every_check_of_the_workers_is_looked_at(outcome: dict[str, str], outcome_of_exports: dict[str, str]):
    assert set(outcome) == set(CHECKS)
    assert set(outcome_of_exports) == set(EXPORT_CHECKS)
