"""Functions that the command line runs on several ranks."""

import atexit
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from shardwright.ranks.run import run_on_ranks

pytestmark = pytest.mark.ranks


def one_fails_and_is_the_last_to_end(rank: int) -> None:
    if rank == 1:
        atexit.register(time.sleep, 5)  # by then the other one has missed it
        raise OSError(5, "the disk is gone")
    dist.barrier()


def test_the_rank_that_failed_is_named_and_not_one_that_missed_it():
    with pytest.raises(ValueError, match="^rank 1: the disk is gone$"):
        run_on_ranks(2, one_fails_and_is_the_last_to_end)


def one_ends(rank: int, how: str) -> None:
    if rank == 1 and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 1:
        raise RuntimeError("two lines\nof it")
    time.sleep(300)


@pytest.mark.parametrize("how, why", [("killed", "SIGKILL"), ("raised", "of it")])
def test_a_rank_that_could_not_say_why_is_named_in_one_line(how: str, why: str):
    with pytest.raises(RuntimeError, match=f"^rank 1 has ended: .*{why}$"):
        run_on_ranks(2, one_ends, how)


def one_is_waited_for(rank: int, folder: Path) -> None:
    (folder / f"{rank}").touch()
    if rank == 1:
        time.sleep(300)
    dist.barrier()


def test_ctrl_c_leaves_no_rank_behind(tmp_path: Path):
    def stop() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    others = multiprocessing.active_children()  # torch keeps a process for saves in the background
    stopping = threading.Thread(target=stop, daemon=True)
    stopping.start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_on_ranks(2, one_is_waited_for, tmp_path)
    assert set(multiprocessing.active_children()) <= set(others)
    assert time.monotonic() - begin < 100
