"""Loading without torch.distributed.checkpoint's own collectives."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.stateful import Stateful

from shardwright.cooperation import raise_if_any_failed, reading_group
from shardwright.load_planner import LoadPlanner
from shardwright.report import LoadReport
from shardwright.storage_reader import HuggingFaceStorageReader


def load(
    state_dict: dict[str, Any],
    path: str | os.PathLike[str],
    *,
    model: str = "auto",
    layout: str = "automodel",
    strict: bool = True,
    allow_partial_load: bool = False,
    threads: int | None = None,
    staging_bytes: int | None = None,
    progress: bool | Callable[[int, int], None] = False,
    reads: str = "auto",
    direct_io: bool | str = "auto",
    huge_pages: bool = False,
    trace: str | os.PathLike[str] | None = None,
    cooperative: bool | dist.ProcessGroup = False,
) -> LoadReport:
    """Loads a Hugging Face checkpoint into the tensors of a native state dict, in place.

    Each rank calls this for itself; ranks do not talk to each other, unless ``cooperative``. Values with ``state_dict``
    and ``load_state_dict`` (modules, say) are asked for their state and given it back, as ``dcp.load`` does.

    Args:
        state_dict: FQN → tensor (plain, DTensor or ShardedTensor) in CPU memory; nested dicts are flattened.
        path: the checkpoint directory.
        model, layout, strict, allow_partial_load: see :class:`LoadPlanner`.
        threads, staging_bytes, progress, reads, direct_io, huge_pages, trace, cooperative: see
            :class:`HuggingFaceStorageReader`.

    Raises:
        FileNotFoundError: the directory is missing or holds no safetensors.
        CheckpointFormatError: a header or the index breaks its format.
        PlanError: checkpoint and state dict do not fit; lists all that is wrong. Nothing has been written.
        OSError: a file cannot be read or has been cut short; the tensors are then partly written.
    """
    if not isinstance(state_dict, dict):
        raise TypeError(f"expected a state dict, found {type(state_dict).__name__}; pass module.state_dict()")
    reader = HuggingFaceStorageReader(
        path,
        threads,
        staging_bytes=staging_bytes,
        progress=progress,
        reads=reads,
        direct_io=direct_io,
        huge_pages=huge_pages,
        trace=trace,
    )
    planner = LoadPlanner(model, layout, strict, allow_partial_load=allow_partial_load)
    states = {
        key: value.state_dict() if isinstance(value, Stateful) else value for key, value in state_dict.items()
    }
    with reading_group(cooperative) as group:
        plan, failure = None, None
        try:
            metadata = reader.read_metadata()
            planner.set_up_planner(states, metadata, is_coordinator=True)
            reader.set_up_storage_reader(metadata, is_coordinator=True)
            plan = planner.create_local_plan()
        except Exception as error:
            if group is None:
                raise
            failure = error
        if group is not None:  # or the others would wait for this rank
            raise_if_any_failed(group, failure)
            reader.cooperative = group
        assert plan is not None
        reader.read_data(plan, planner).wait()
    for key, value in state_dict.items():
        if isinstance(value, Stateful):
            value.load_state_dict(states[key])
    assert reader.report is not None
    return reader.report
