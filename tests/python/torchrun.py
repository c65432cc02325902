"""Runs a worker of workers/ under torchrun, once for all tests that look at what its checks found."""

import json
import os
import subprocess
import sys
from pathlib import Path

from checkpoints import Sizes, write_m3

HERE = Path(__file__).parent


def outcome_of(worker: str, ranks: int, checkpoint: Path, directory: Path) -> dict[str, str]:
    """What each check of the worker found wrong on any rank; empty where nothing was.

    The worker gets the paths of `checkpoint`, of one with odd sizes, and of the file for its result.
    """
    uneven = write_m3(directory / "uneven", Sizes(hidden=35, inter=21, experts=5, vocab=13, vision_hidden=7))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(ranks), str(HERE / "workers" / worker)]
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(
        [*command, checkpoint, uneven, directory / "result.json"],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as run:
        try:
            output, _ = run.communicate(timeout=600)
        except BaseException:
            run.terminate()  # torchrun ends its workers; killed, it would leave them behind
            raise
    assert run.returncode == 0, output
    return json.loads((directory / "result.json").read_text())
