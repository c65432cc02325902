"""Runs a script of this folder under torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def run(script: str | Path, *arguments: Any, ranks: int = 2) -> tuple[int, str]:
    """The exit status of torchrun and all that the ranks wrote. Arguments that are no paths or texts go as JSON."""
    texts = [str(a) if isinstance(a, (str, Path)) else json.dumps(a) for a in arguments]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(ranks), str(HERE / script), *texts]
    with subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=600)
        except BaseException:
            process.terminate()  # torchrun ends its workers; killed, it would leave them behind
            raise
    return process.returncode, output


def run_well(script: str | Path, *arguments: Any, ranks: int = 2) -> str:
    status, output = run(script, *arguments, ranks=ranks)
    assert status == 0, output[-6000:]
    return output


def run_badly(script: str | Path, *arguments: Any, ranks: int = 2) -> str:
    status, output = run(script, *arguments, ranks=ranks)
    assert status != 0, output[-6000:]
    return output
