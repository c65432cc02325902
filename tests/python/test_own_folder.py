"""Folders for temporary files: gone with their process, however it ends, and nobody else's."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from shardwright.remote.own_folder import OwnFolder, remove_folders_of_dead_processes

MAKING = """
from shardwright.remote.own_folder import OwnFolder
folder = OwnFolder()
(folder.path / "file").write_text("x")
print(folder.path, flush=True)
input()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def making() -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", MAKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


@pytest.mark.ranks
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_stays(place: Path):
    dead, left = making()
    living, held = making()
    try:
        dead.kill()
        dead.wait()
        assert (left / "file").exists()
        own = OwnFolder()
        remove_folders_of_dead_processes()
        assert not left.parent.exists()
        assert (held / "file").exists() and own.path.exists()
        own.remove()
        own.remove()
        assert os.listdir(place) == [held.parent.name]
    finally:
        living.kill()
        living.wait()
    remove_folders_of_dead_processes()
    assert os.listdir(place) == []


def test_what_was_not_made_here_stays(place: Path):
    """A folder of somebody's with such a name, one that is being made, and a link to a dead one's elsewhere."""
    (place / "shardwright-notes").mkdir()
    (place / "shardwright-notes" / "lock").touch()
    (place / "shardwright-file").touch()
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".shardwright.process").touch()
    (place / "shardwright-link").symlink_to(elsewhere)
    (place / "shardwright-linked").mkdir()
    (place / "shardwright-linked" / ".shardwright.process").symlink_to(elsewhere / ".shardwright.process")
    before = sorted(str(path) for path in place.rglob("*"))
    remove_folders_of_dead_processes()
    assert sorted(str(path) for path in place.rglob("*")) == before
