"""The measurements of bench/, as small as they go: that each still runs, not what it measures."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"

SMALL = {
    "export.py": ["--preset", "tiny", "--runs", "1"],
    "load.py": ["--preset", "tiny", "--runs", "1"],
    "node.py": ["--preset", "tiny", "--runs", "1"],
    "planning.py": ["--ranks", "4", "--no-torch", "--no-growth"],
    "refit.py": ["--layers", "1", "--hidden", "256", "--engines", "2", "--turns", "1"],
    "refit_planning.py": ["--preset", "tiny", "--experts-over", "2", "--cut-over", "2", "--tensor-parallel", "2",
                          "--expert-parallel", "2", "--every", "1"],
    "remote.py": ["--preset", "tiny", "--runs", "1"],
    "save.py": ["--preset", "tiny", "--runs", "1"],
}  # fmt: skip

ELSEWHERE = {
    "adapter.py": "needs .venv-peers",
    "device_export.py": "needs a GPU",
    "device_load.py": "needs a GPU",
    "peers.py": "needs .venv-peers",
    "shaping_proxy.py": "is run by remote.py",
}


def test_each_measurement_is_run_or_is_said_not_to_be():
    programs = {path.name for path in BENCH.glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    assert programs == {*SMALL, *ELSEWHERE}


@pytest.mark.ranks
@pytest.mark.parametrize("program", SMALL)
def test_a_measurement_runs(program: str, tmp_path: Path):
    command = [sys.executable, str(BENCH / program), *SMALL[program]]
    here = os.environ | {"TMPDIR": str(tmp_path)}
    run = subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    assert run.stdout.strip()
