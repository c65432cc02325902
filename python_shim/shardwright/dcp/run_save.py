"""``dcp.save``, whose failure is one ordinary exception, the same on all ranks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from shardwright.ranks.gone_ranks import naming_gone_ranks
from shardwright.ranks.rank_outcome import told
from shardwright.ranks.together import wait_until_all_know


def run_save(
    state_dict: dict[str, Any],
    writer: Any,
    planner: Any,
    process_group: dist.ProcessGroup | None,
    doing: str = "saving",
) -> Any:
    """Saves with one of our storage writers, and returns its report. All ranks of the group call it together.

    Raises:
        PlanError, OSError, ValueError: what went wrong on any rank, naming it. Nothing has been published.
        ConnectionResetError: a rank has ended meanwhile, which is named.
    """
    try:
        with quietly_alone(), naming_gone_ranks(process_group, doing):
            dcp.save(state_dict, storage_writer=writer, planner=planner, process_group=process_group)
    except CheckpointException as failure:
        wait_until_all_know(process_group)
        raise told(failure, process_group) from failure
    finally:
        writer.abandon()  # by now no rank writes any more
    assert writer.report is not None
    return writer.report


@contextmanager
def quietly_alone() -> Iterator[None]:
    """Without torch's warning that a save without a process group is one. What a planner warns of is to be heard."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
