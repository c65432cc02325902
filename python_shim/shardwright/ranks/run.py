"""Runs a function on several Gloo ranks of this machine, for the command line and the demo."""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.distributed.checkpoint.api import CheckpointException

from shardwright.ranks.rank_outcome import text_of, told


def _run_rank(
    rank: int, world_size: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ["LOCAL_WORLD_SIZE"] = str(world_size)
    store = dist.FileStore(os.path.join(folder, "store"), world_size)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(minutes=10)
    )
    try:
        answer = work(rank, *arguments)
        if rank == 0:
            Path(folder, "answer").write_bytes(pickle.dumps(answer))
    except CheckpointException as wrapped:  # dcp's account of all ranks, the same on each
        _tell_failure(folder, rank, told(wrapped))
    except (OSError, ValueError) as error:
        _tell_failure(folder, rank, error)
    finally:
        dist.destroy_process_group()
    # Gloo's thread may drop the last reference to a tensor while the interpreter ends, which aborts it (torch 2.13).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _tell_failure(folder: str, rank: int, error: Exception) -> NoReturn:
    pending = Path(folder, f"failure_of_rank_{rank}.partial")
    pending.write_text(text_of(error))
    pending.replace(_failure_file(folder, rank))  # at once: this rank is ended when another one has
    raise SystemExit(1) from None


def _failure_file(folder: str, rank: int) -> Path:
    return Path(folder, f"failure_of_rank_{rank}")


def _run_all(world_size: int, arguments: tuple[Any, ...]) -> None:
    """Starts the ranks and waits for all. None of them outlives this call, whatever ends it."""
    others = set(multiprocessing.active_children())
    try:
        context: Any = multiprocessing.spawn(_run_rank, arguments, nprocs=world_size, join=False, daemon=True)
        while not context.join():
            pass
    except BaseException:
        # Ctrl-C reaches the ranks too, but one that waits for another in Gloo hears it only when that ends.
        ranks = set(multiprocessing.active_children()) - others
        for rank in ranks:
            rank.kill()
        for rank in ranks:
            rank.join()
        raise


def run_on_ranks(world_size: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """Calls ``work(rank, *arguments)`` in ``world_size`` new processes that form a Gloo process group.

    Returns what rank 0 returns.

    Raises ValueError with the message of the first rank that says what went wrong; RuntimeError if none has said it.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            _run_all(world_size, (world_size, folder, work, arguments))
        except (multiprocessing.ProcessExitedException, multiprocessing.ProcessRaisedException) as ended:
            # Of the latter, too: a rank that is left by another one may be the first to end.
            for rank in range(world_size):
                if _failure_file(folder, rank).exists():
                    message = _failure_file(folder, rank).read_text()
                    if not message.startswith("rank "):
                        message = f"rank {rank}: {message}"
                    raise ValueError(message) from None
            *_, why = ended.msg.strip().splitlines()  # what ended the process, or the last line of its trace
            raise RuntimeError(f"rank {ended.error_index} has ended: {why}") from ended
        return pickle.loads(Path(folder, "answer").read_bytes())
