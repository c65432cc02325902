"""Runs a worker of workers/ on several ranks, once for all tests that look at what its checks found."""

import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import torch.multiprocessing
from checkpoints import Sizes, write_m3

HERE = Path(__file__).parent
SECONDS = 600


def _path() -> str:
    return os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])


def run_forked(ranks: int, work: Any, *arguments: Any) -> None:
    """Calls `work(rank, *arguments)` in forks of a process that has imported preloaded.py; if one fails, all are ended.

    There is one such process for each of pytest's, from its first ranks on.
    """
    multiprocessing.set_forkserver_preload(["preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", _path())
        patch.setenv("OMP_NUM_THREADS", "1")  # read when torch is loaded
        forkserver.ensure_running()
    limit = time.monotonic() + SECONDS
    running: Any = torch.multiprocessing.start_processes(
        work, arguments, nprocs=ranks, join=False, start_method="forkserver"
    )
    try:
        while not running.join(timeout=1):
            assert time.monotonic() < limit, f"ranks still run after {SECONDS} s"
    finally:
        for process in running.processes:
            process.kill()
            process.join()


def _rank(rank: int, environment: dict[str, str], output: Path, worker: Path, arguments: list[str]) -> None:
    """The process as torchrun would have started it."""
    assert "preloaded" in sys.modules, "multiprocessing passes over what it cannot import"
    told = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(told, 1)
    os.dup2(told, 2)
    os.environ.clear()
    os.environ.update(environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
    sys.argv = [str(worker), *arguments]
    sys.path.insert(0, str(worker.parent))
    runpy.run_path(str(worker), run_name="__main__")


def _run_in_forks(worker: Path, ranks: int, arguments: list[str], output: Path) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    of_torchrun = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | of_torchrun
    try:
        run_forked(ranks, _rank, environment, output, worker, arguments)
    except Exception as failure:
        raise AssertionError(
            f"{worker.name}: {failure}\n{output.read_text() if output.exists() else ''}"
        ) from failure


def _run_under_torchrun(worker: Path, ranks: int, arguments: list[str], preloaded: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    with subprocess.Popen(
        [*command, worker, *arguments],
        env=os.environ | {"PYTHONPATH": _path(), "OMP_NUM_THREADS": "1", "LD_PRELOAD": str(preloaded)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as run:
        try:
            output, _ = run.communicate(timeout=SECONDS)
        except BaseException:
            run.terminate()  # torchrun ends its workers; killed, it would leave them behind
            raise
    assert run.returncode == 0, output


def outcome_of(
    worker: str, ranks: int, checkpoint: Path, directory: Path, preloaded: Path | None = None
) -> dict[str, str]:
    """What each check of the worker found wrong on any rank; empty where nothing was.

    The worker gets the paths of `checkpoint`, of one with odd sizes, and of the file for its result. A library that is
    `preloaded` needs new processes: torchrun starts them.
    """
    uneven = write_m3(directory / "uneven", Sizes(hidden=35, inter=21, experts=5, vocab=13, vision_hidden=7))
    result = directory / "result.json"
    path, arguments = HERE / "workers" / worker, [str(checkpoint), str(uneven), str(result)]
    if preloaded:
        _run_under_torchrun(path, ranks, arguments, preloaded)
    else:
        _run_in_forks(path, ranks, arguments, directory / "output")
    return json.loads(result.read_text())
