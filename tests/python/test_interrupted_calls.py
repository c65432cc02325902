"""System calls that a signal interrupts are made again, in the flows of workers/interrupted_calls.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from outcomes import HERE


@pytest.mark.process
def test_every_flow_goes_on_though_half_of_its_calls_are_interrupted(tiny: Path, tmp_path: Path):
    library = tmp_path / "interrupted_calls.so"
    source = HERE.parent / "data" / "interrupted_calls.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    count = tmp_path / "count"
    preloaded = os.environ | {"LD_PRELOAD": str(library), "SHARDWRIGHT_TEST_INTERRUPTED": str(count)}
    worker = HERE / "workers" / "interrupted_calls.py"
    run = subprocess.run(
        [sys.executable, worker, tiny, tmp_path], env=preloaded, capture_output=True, text=True, timeout=800
    )
    assert run.returncode == 0, run.stderr
    assert int(count.read_text()) > 200
