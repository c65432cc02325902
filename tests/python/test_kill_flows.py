"""Processes that end in the middle of saves, exports and loads; `python tests/python/kill_flows.py` tries more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kill_flows import leftovers, prepared
from outcomes import HERE

pytestmark = pytest.mark.ranks


def test_what_a_dead_save_leaves_beside_a_whole_checkpoint_is_noticed(tmp_path: Path):
    prepared(tmp_path)
    assert leftovers(tmp_path) == []
    for folder in ("checkpoint", "runs/step-00000000"):
        shard = next((tmp_path / folder).glob("rank-*"))
        left = shard.with_name("rank-00000-00000-0123456789ab.safetensors")
        os.link(shard, left)
        assert leftovers(tmp_path) == [f"{folder}/{left.name}"]
        left.unlink()
    (tmp_path / "export" / ".shardwright.saving").mkdir()
    assert leftovers(tmp_path) == ["export/.shardwright.saving"]


@pytest.mark.parametrize(
    "options",
    [
        ["--moments", "6", "--ranks", "1"],
        [
            "--moments",
            "4",
            "--ranks",
            "2",
            "--flows",
            "save",
            "steps",
            "formats",
            "--signals",
            "KILL",
            "TERM",
        ],
        ["--moments", "4", "--ranks", "2", "--flows", "async", "export", "--signals", "KILL"],
    ],
    ids=["alone", "two_ranks", "two_ranks_in_the_background"],
)
def test_a_process_that_ends_leaves_a_whole_checkpoint_and_the_next_one_works(options: list[str]):
    command = [sys.executable, "-W", "ignore", HERE / "kill_flows.py", *options]
    run = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "in the middle" in run.stdout, run.stdout
