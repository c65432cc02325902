"""Loading without torch.distributed.checkpoint's own collectives."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlanner as TorchLoadPlanner
from torch.distributed.checkpoint.stateful import Stateful

from shardwright import _core
from shardwright.checkpoints import expect_no_steps
from shardwright.dcp.flat_state import expect_state_dict
from shardwright.dcp.fresh_optimizer import make_missing_state
from shardwright.dcp.load_planner import LoadPlanner
from shardwright.dcp.resume_planner import ResumePlanner
from shardwright.dcp.sharded_reader import ShardedStorageReader
from shardwright.dcp.storage_reader import HuggingFaceStorageReader
from shardwright.dcp.torch_checkpoint import metadata_name
from shardwright.local_path import location
from shardwright.ranks.cooperation import Cooperative, naming_gone_readers, reading_group
from shardwright.ranks.together import raise_if_any_failed
from shardwright.remote.reading import looking_once
from shardwright.report import LoadReport
from shardwright.system_calls import is_folder


def load(
    state_dict: dict[str, Any],
    path: str | os.PathLike[str],
    *,
    model: Any = "auto",
    layout: str = "automodel",
    strict: bool = True,
    allow_partial_load: bool = False,
    threads: int | None = None,
    staging_bytes: int | None = None,
    device_memory: int | None = None,
    progress: bool | Callable[[int, int], None] = False,
    reads: str = "auto",
    direct_io: bool | str = "auto",
    huge_pages: bool = False,
    trace: str | os.PathLike[str] | None = None,
    cooperative: Cooperative = False,
    plan: bytes | None = None,
    verify: bool | None = None,
    weights_only: bool = True,
    strict_dtypes: bool = False,
    dtype: str | None = None,
) -> LoadReport:
    """Loads a checkpoint into the tensors of a state dict, in place.

    What is at ``path`` is recognised: a Hugging Face checkpoint, which is loaded into native tensors; a sharded one, of
    ``shardwright.save`` or of torch's ``HuggingFaceStorageWriter(save_distributed=True)``; or one of torch's
    FileSystemWriter, which torch's own reader reads. The latter two hold the trainer's own names, and any objects.

    Each rank calls this for itself; ranks do not talk to each other, unless ``cooperative``. Values with ``state_dict``
    and ``load_state_dict`` (modules, say) are asked for their state and given it back, as ``dcp.load`` does.
    An optimizer need not have taken a step: what it lacks is made as the checkpoint has it.

    A head that the files have is loaded, whatever config.json says of ties, as transformers loads it. One that they
    lack is read from the embedding, unless config.json says that they are not tied.

    With ``dtype="packed"`` encoded weights (FP8, MXFP4, NVFP4, INT4) are regrouped as they are stored and not decoded:
    the state dict has a weight's codes under its native name, and what decodes them beside it, each under that name
    and its own ending, such as "_scale_inv", "_scale", "_global_scale" or "_scale_2". Rules stack, join and transpose
    all of them in their own units: experts' codes of [out, in / 2] bytes become [experts, in / 2, out], their scales
    [experts, in / 32, out]. Each is sharded as its own tensor says; what decodes a shard of codes is on the same rank
    where cuts fall between blocks; the report lists in ``codes_alone`` those of which it is not. A weight that the
    state dict has in BF16, F16, F32 or F64 is decoded nonetheless.
    :func:`shardwright.empty_state_dict` makes such a state dict, and :func:`shardwright.export`, given the checkpoint
    as template, writes it back byte for byte.

    Args:
        state_dict: FQN → tensor (plain, DTensor or ShardedTensor) in CPU memory or on CUDA devices; nested dicts are
            flattened.
        path: the checkpoint directory.
        dtype: None, or "packed" as above; for a Hugging Face checkpoint. A checkpoint of training holds packed tensors
            as it holds any.
        model, layout, strict, plan: see :class:`LoadPlanner`; for a Hugging Face checkpoint.
        allow_partial_load: whether what the checkpoint lacks is left as it is.
        threads, staging_bytes, device_memory, progress, reads, direct_io, huge_pages, trace, cooperative,
            strict_dtypes: see :class:`HuggingFaceStorageReader`.
        verify: None checks blocks of the checkpoint that are read whole against its checksums, if it has some, where
            that costs next to nothing; True checks all that is needed before anything is written; False nothing. See
            :class:`HuggingFaceStorageReader`.
        weights_only: see :class:`ShardedStorageReader`.

    Returns:
        What the load did; where torch's reader did it, as far as that shows.

    Raises:
        FileNotFoundError: the directory is missing or holds no safetensors.
        CheckpointFormatError: a header or the index breaks its format.
        PlanError: checkpoint and state dict do not fit; lists what is wrong. Nothing has been written.
        OSError: a file cannot be read or has been cut short.
        RuntimeError: a CUDA device refuses: out of memory, a driver that is too old, no kernels for the card, ...

    Where the load had begun to write, the latter two have ``partly_written``, the names of the tensors that may be
    neither whole nor as they were.
    """
    options: dict[str, Any] = {
        "thread_count": threads,
        "staging_bytes": staging_bytes,
        "device_memory": device_memory,
        "progress": progress,
        "reads": reads,
        "direct_io": direct_io,
        "huge_pages": huge_pages,
        "trace": trace,
    }
    hugging_face = {"model": model, "layout": layout, "strict": strict, "plan": plan, "dtype": dtype}
    either = {"allow_partial_load": allow_partial_load, "strict_dtypes": strict_dtypes}
    with reading_group(cooperative) as readers, naming_gone_readers(readers):
        own_plan, failure = None, None
        try:
            expect_state_dict(state_dict)
            path = location(path)
            with looking_once(path):
                reader, planner = _reader_and_planner(
                    path, verify, weights_only, options, hugging_face, either
                )
                reader.compares_ranks = False
                metadata = reader.read_metadata()
                states = {key: _state_of(key, value, metadata) for key, value in state_dict.items()}
                planner.set_up_planner(states, metadata, is_coordinator=True)
                reader.set_up_storage_reader(metadata, is_coordinator=True)
                local_plan = reader.prepare_local_plan(planner.create_local_plan())
                own_plan = planner.finish_plan(planner.create_global_plan([local_plan])[0])
        except Exception as error:
            if readers is None:
                raise
            failure = error
        if readers is not None:  # or the others would wait for this rank
            raise_if_any_failed(readers.group, failure)
            reader.cooperative = readers
        assert own_plan is not None
        reader.read_data(own_plan, planner).wait()
    for key, value in state_dict.items():
        if isinstance(value, Stateful):
            value.load_state_dict(states[key])
        else:
            state_dict[key] = states[key]  # an object that is no tensor has been replaced
    report: LoadReport | None = reader.report
    assert report is not None
    return report


def _reader_and_planner(
    path: str | os.PathLike[str],
    verify: bool | None,
    weights_only: bool,
    options: dict[str, Any],
    hugging_face: dict[str, Any],
    either: dict[str, Any],
) -> tuple[HuggingFaceStorageReader, TorchLoadPlanner]:
    """For what is at ``path``. Of the options, ``options`` are the reader's, ``hugging_face`` those of the planner for
    such a checkpoint, ``either`` those of both planners."""
    if verify and not is_folder(path):
        _core.read_catalog(path)  # which says what is there
    if is_of_trainer(path):
        reader = ShardedStorageReader(path, verify=verify, weights_only=weights_only, **options)
        return reader, ResumePlanner(**either)
    expect_no_steps(path)
    return HuggingFaceStorageReader(path, verify=verify, **options), LoadPlanner(**hugging_face, **either)


def _state_of(key: str, value: Any, metadata: Metadata) -> Any:
    """What a value of the state dict asks for; an optimizer that has taken no step, for what the checkpoint has."""
    if not isinstance(value, Stateful):
        return value
    state = value.state_dict()
    if isinstance(value, torch.optim.Optimizer) and getattr(metadata, "trainers_names", True):
        make_missing_state(value, state, metadata, key)
    return state


def is_of_trainer(path: str | os.PathLike[str]) -> bool:
    """True for a checkpoint of the trainer's own tensors: sharded, or of torch's FileSystemWriter.

    Raises:
        CheckpointFormatError: each rank has saved metadata of its own (use_collectives=False).
    """
    kind = _core.kind_of(location(path))
    if kind == "torch_of_ranks":
        metadata_name(path)  # which says what to do
    return kind in ("sharded", "torch", "torch_safetensors")
