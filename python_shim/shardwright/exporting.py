"""Exporting in one call."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from shardwright import _core
from shardwright._core import PlanError
from shardwright.catalog import catalog_of
from shardwright.dcp.fitting import with_hints
from shardwright.dcp.flat_state import expect_state_dict, flatten
from shardwright.dcp.layout_hints import hints_at_layout
from shardwright.dcp.refused_save import RefusedSave
from shardwright.dcp.save_planner import SavePlanner
from shardwright.dcp.saved_weights import content_of, load_weights
from shardwright.dcp.storage_writer import HuggingFaceStorageWriter
from shardwright.local_path import lasting_path
from shardwright.ranks.gone_ranks import has_others, naming_gone_ranks
from shardwright.ranks.rank_outcome import RankOutcome, expect_success, told
from shardwright.remote.address import address_of, is_address
from shardwright.report import SaveReport


def quantizations() -> list[str]:
    """The names that ``quantization=`` may have beside "template": each a rule for scales and codes, and the tool whose
    bits and names it gives."""
    names: list[str] = _core.quantizations()
    return names


def export(
    state_dict: dict[str, Any] | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    quantization: str | None = None,
    max_shard_size: int | str = "5GB",
    template: Any = None,
    model: Any = "auto",
    layout: str = "automodel",
    strict: bool = True,
    threads: int | None = None,
    staging_bytes: int | None = None,
    device_memory: int | None = None,
    process_group: dist.ProcessGroup | None = None,
    key: str | None = None,
    overwrite: bool | None = None,
    strict_dtypes: bool = False,
    quantized_weights: Sequence[str] | None = None,
) -> SaveReport:
    """Writes a native state dict as a Hugging Face checkpoint: ``dcp.save`` with our writer and planner.

    All ranks of the process group call this together, each with its shards; without a process group, one does.

    Args:
        state_dict: FQN → tensor (plain, DTensor or ShardedTensor) in CPU memory or on CUDA devices; nested dicts are
            flattened. Without a template, a head that is the embedding's memory is not stored, as transformers stores
            none. Or the path of a checkpoint, Hugging Face or of training, which is then loaded, each rank a part.
        path: the directory that the checkpoint goes into, beside all else that is there; or an address, such as
            s3://bucket/model.
        quantization, max_shard_size, template, model, layout, strict, staging_bytes, device_memory, overwrite,
            strict_dtypes, quantized_weights: see
            :class:`HuggingFaceStorageWriter`. ``threads`` is its ``thread_count``.
        key: of the path of a saved training: where its state dict has the weights, as dotted keys; None: "model".

    Raises, the same on every rank, naming the rank concerned:
        PlanError: state dict and template do not fit, or ranks disagree; lists all that is wrong.
        FileExistsError: a checkpoint is there that may not be replaced, or a file of a name that is needed.
        OSError: the destination is a file, the disk is full, permission is denied, ...
        ValueError: an argument, or a CUDA device that refuses: out of memory, a driver that is too old, ...

    Nothing has been published then.
    """
    alone = not (dist.is_available() and dist.is_initialized())
    source = state_dict if isinstance(state_dict, (str, os.PathLike)) else None
    weights: Any = state_dict
    refusal: Exception | None = None
    writer: HuggingFaceStorageWriter | RefusedSave
    try:
        if source is None:
            expect_state_dict(state_dict)
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
            device_memory=device_memory,
            overwrite=overwrite,
            strict_dtypes=strict_dtypes,
            quantized_weights=quantized_weights,
            process_group=process_group,
        )
        if source is not None:
            writer.sources.append(address_of(source) if is_address(source) else lasting_path(source))
    except Exception as error:
        if not has_others(process_group):
            raise
        writer, refusal = RefusedSave(error), error
    if source is not None:
        options = {"key": key, "model": model, "layout": layout, "strict": strict, "threads": threads}
        weights = _loaded(source, alone, process_group, options, refusal)
    if refusal is not None:
        weights = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that a save without a process group is one
            with naming_gone_ranks(process_group, "exporting"):
                dcp.save(
                    weights,
                    storage_writer=writer,
                    planner=SavePlanner(),
                    process_group=process_group,
                    no_dist=alone,
                )
    except CheckpointException as wrapped:
        writer.abandon()  # by now no rank writes any more
        failure = told(wrapped, process_group)
        # Of ranks that were given different templates each would see hints of its own.
        ranks_differ = "the ranks have been given different arguments" in str(failure)
        if isinstance(failure, PlanError) and template is not None and not ranks_differ:
            names = flatten(weights)[0]
            failure = with_hints(failure, lambda: hints_at_layout(names, catalog_of(template), model, layout))
        raise failure from wrapped
    assert writer.report is not None
    return writer.report


def _loaded(
    source: str | os.PathLike[str],
    alone: bool,
    process_group: dist.ProcessGroup | None,
    options: dict[str, Any],
    refusal: Exception | None,
) -> dict[str, Any]:
    """The weights of a checkpoint, of which each rank has a part. Raises the same on every rank, and that of a rank
    that has refused its arguments."""
    if alone:
        return load_weights(source, **options)
    mesh = (
        DeviceMesh.from_group(process_group, "cpu", mesh_dim_names=("shard",))
        if process_group is not None
        else init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("shard",))
    )
    weights: dict[str, Any] = {}
    words: list[str] = []
    outcome = RankOutcome(dist.get_rank(process_group))
    try:
        if refusal is not None:
            raise refusal
        weights = load_weights(source, mesh, **options)
        words = content_of(source)
    except Exception as error:
        outcome.fail(error)
    outcomes = [(outcome, words)] * mesh.size()
    dist.all_gather_object(outcomes, (outcome, words), process_group)
    expect_success(of_rank for of_rank, _ in outcomes)
    _core.expect_one_checkpoint([told_words for _, told_words in outcomes])
    return weights
