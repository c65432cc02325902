"""Ranks that are killed while all work together; `python tests/python/kill_ranks.py` tries more moments."""

import subprocess
import sys

import pytest
from outcomes import HERE

pytestmark = pytest.mark.ranks


def test_the_others_are_told_which_rank_is_gone():
    command = [sys.executable, "-W", "ignore", HERE / "kill_ranks.py", "--moments", "3"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
