"""Runs a function on several Gloo ranks of this machine, for the command line and the demo."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def _run_rank(rank: int, world_size: int, rendezvous: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ["LOCAL_WORLD_SIZE"] = str(world_size)
    store = dist.FileStore(rendezvous, world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(minutes=10))
    try:
        work(rank, *arguments)
    finally:
        dist.destroy_process_group()


def run_on_ranks(world_size: int, work: Callable[..., Any], *arguments: Any) -> None:
    """Calls ``work(rank, *arguments)`` in ``world_size`` new processes that form a Gloo process group."""
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = os.path.join(folder, "store")
        multiprocessing.spawn(_run_rank, (world_size, rendezvous, work, arguments), nprocs=world_size, join=True)
