"""The examples of the trainers run, and end with what from_pretrained reads."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["transformers_training", "torchtitan_training"])
def test_an_example_runs_to_its_end(name: str):
    run = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"], capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "from_pretrained reads" in run.stdout.splitlines()[-1], run.stdout
