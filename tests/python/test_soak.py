"""Nothing grows; `python tests/python/soak.py` goes 200 rounds."""

import subprocess
import sys

from torchrun import HERE


def test_memory_descriptors_and_threads_stay_as_they_are():
    command = [sys.executable, "-W", "ignore", HERE / "soak.py", "--rounds", "30"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
