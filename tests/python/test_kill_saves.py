"""kill -9 in the middle of saves; `python tests/python/kill_saves.py` tries more moments."""

import subprocess
import sys

from torchrun import HERE


def test_a_killed_save_leaves_a_whole_checkpoint_and_the_next_one_works():
    command = [sys.executable, HERE / "kill_saves.py", "--moments", "10"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stdout + run.stderr
