"""Exporting in one call."""

from __future__ import annotations

import os
import warnings
from typing import Any, NoReturn

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from shardwright.report import SaveReport
from shardwright.save_planner import SavePlanner
from shardwright.storage_writer import HuggingFaceStorageWriter


def export(
    state_dict: dict[str, Any],
    path: str | os.PathLike[str],
    *,
    quantization: str | None = None,
    max_shard_size: int | str = "5GB",
    template: Any = None,
    model: str = "auto",
    layout: str = "automodel",
    strict: bool = True,
    threads: int | None = None,
    staging_bytes: int | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> SaveReport:
    """Writes a native state dict as a Hugging Face checkpoint: ``dcp.save`` with our writer and planner.

    All ranks of the process group call this together, each with its shards; without a process group, one does.

    Args:
        state_dict: FQN → tensor (plain, DTensor or ShardedTensor); nested dicts are flattened. What is on CUDA devices
            is copied to CPU memory first, all that this rank holds of it.
        path: the directory to be; an existing checkpoint of that name is replaced once the new one is whole.
        quantization, max_shard_size, template, model, layout, strict, staging_bytes: see
            :class:`HuggingFaceStorageWriter`. ``threads`` is its ``thread_count``.

    Raises, the same on every rank, naming the rank concerned:
        PlanError: state dict and template do not fit, or ranks disagree; lists all that is wrong.
        OSError: the destination is a file, the disk is full, permission is denied, ... Nothing has been published.
    """
    writer = HuggingFaceStorageWriter(
        path,
        thread_count=threads,
        quantization=quantization,
        max_shard_size=max_shard_size,
        template=template,
        model=model,
        layout=layout,
        strict=strict,
        staging_bytes=staging_bytes,
    )
    alone = not (dist.is_available() and dist.is_initialized())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that a save without a process group is one
            dcp.save(
                state_dict,
                storage_writer=writer,
                planner=SavePlanner(),
                process_group=process_group,
                no_dist=alone,
            )
    except CheckpointException as wrapped:
        writer.abandon()  # by now no rank writes any more
        _raise_first(wrapped, alone)
    assert writer.report is not None
    return writer.report


def _raise_first(wrapped: CheckpointException, alone: bool) -> NoReturn:
    """The error of the first rank that failed, with the rank in its message."""
    rank = min(wrapped.failures)
    error = wrapped.failures[rank][0]
    if alone:
        raise error from None
    if isinstance(error, OSError) and error.errno is not None:
        raise type(error)(error.errno, f"rank {rank}: {error.strerror}") from None
    if isinstance(error, ValueError):
        raise type(error)(f"rank {rank}: {error}") from None
    raise wrapped
