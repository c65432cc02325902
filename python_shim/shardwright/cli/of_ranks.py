"""What several ranks of this machine report of one command."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch.distributed as dist

from shardwright.cli.answer import Answer
from shardwright.cli.progress import shown
from shardwright.cli.table import table
from shardwright.ranks.run import run_on_ranks

#: Of a rank: facts for programs, and rows for people.
Report = tuple[dict[str, Any], list[tuple[str, str]]]


def on_each_rank(
    ranks: int, work: Callable[[int, argparse.Namespace], Report], options: argparse.Namespace
) -> list[Report]:
    """Calls ``work(rank, options)`` here, or in a process for each of several ranks. The first shows its progress."""
    if ranks == 1:
        return [work(0, options)]
    reports: list[Report] = run_on_ranks(ranks, _work_and_tell, work, options)
    return reports


def _work_and_tell(
    rank: int, work: Callable[[int, argparse.Namespace], Report], options: argparse.Namespace
) -> list[Report] | None:
    with shown() if rank == 0 else nullcontext():
        report = work(rank, options)
    reports: list[Any] | None = [None] * dist.get_world_size() if rank == 0 else None
    dist.gather_object(report, reports)
    return reports


def answer_of(reports: list[Report]) -> Answer:
    parts = [f"rank {rank} of {len(reports)}\n{table(rows)}" for rank, (_, rows) in enumerate(reports)]
    return Answer({"ranks": [facts for facts, _ in reports]}, "\n".join(parts))
