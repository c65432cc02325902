"""An allocation that the engine is refused is a MemoryError; tests/storage has more of them than these loads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from outcomes import HERE


@pytest.mark.process
@pytest.mark.parametrize("reads", ["pread", "io_uring"])
def test_each_allocation_of_a_load_that_fails_is_a_memory_error(tmp_path: Path, reads: str):
    library = tmp_path / "failing_allocations.so"
    source = HERE.parent / "data" / "failing_allocations.cpp"
    subprocess.run(["g++", "-std=c++20", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    worker = HERE / "workers" / "failing_allocations.py"
    run = subprocess.run(
        [sys.executable, worker, tmp_path, reads],
        env=os.environ | {"LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        timeout=800,
    )
    if "io_uring was asked for" in run.stderr:
        pytest.skip("no io_uring here")
    assert run.returncode == 0, run.stderr
    refused, named, whole = map(int, run.stdout.split())
    assert refused > 5
    assert 0 < named <= refused
    assert whole >= 1
