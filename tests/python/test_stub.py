"""The stub that mypy knows the compiled module by."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.process
def test_the_stub_is_what_the_module_says_of_itself():
    command = [sys.executable, ROOT / ".ci" / "core_stub.py", "--check"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
