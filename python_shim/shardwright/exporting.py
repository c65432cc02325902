"""Exporting in one call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from shardwright import _core
from shardwright._core import PlanError
from shardwright.catalog import catalog_of
from shardwright.dcp.fitting import with_hints
from shardwright.dcp.flat_state import expect_state_dict, flatten
from shardwright.dcp.layout_hints import hints_at_layout
from shardwright.dcp.run_save import run_save
from shardwright.dcp.save_planner import SavePlanner
from shardwright.dcp.saved_weights import content_of, load_weights
from shardwright.dcp.storage_writer import HuggingFaceStorageWriter
from shardwright.local_path import lasting_path
from shardwright.ranks.together import together, wait_until_all_know, words_of
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
        key: of the path of a saved training, and of nothing else: where its state dict has the weights, as dotted keys;
            None: "model".

    Raises, the same on every rank, naming the rank concerned:
        PlanError: state dict and template do not fit, or ranks disagree; lists what is wrong.
        FileExistsError: a checkpoint is there that may not be replaced, or a file of a name that is needed.
        OSError: the destination is a file, the disk is full, permission is denied, ...
        ValueError: an argument, or a CUDA device that refuses: out of memory, a driver that is too old, ...

    Nothing has been published then.
    """
    source = state_dict if isinstance(state_dict, (str, os.PathLike)) else None

    def begin() -> HuggingFaceStorageWriter:
        if source is None:
            expect_state_dict(state_dict)
            if key is not None:
                raise ValueError(
                    "key: expected none with a state dict; it is of the path of a saved training"
                )
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
        return writer

    alike = words_of(
        state_dict="of tensors" if source is None else "of a path", path=path, overwrite=overwrite
    )
    writer = together(process_group, "exporting", begin, alike)
    weights: Any = state_dict
    if source is not None:
        options = {"key": key, "model": model, "layout": layout, "strict": strict, "threads": threads}
        weights = _loaded(source, process_group, options)
    try:
        report: SaveReport = run_save(weights, writer, SavePlanner(), process_group, "exporting")
    except PlanError as failure:
        # Of ranks that were given different templates each would see hints of its own.
        ranks_differ = "the ranks have been given different arguments" in str(failure)
        if template is None or ranks_differ:
            raise
        names = flatten(weights)[0]
        hints = hints_at_layout(names, catalog_of(template), model, layout)
        raise with_hints(failure, hints) from failure.__cause__
    return report


def _loaded(
    source: str | os.PathLike[str], process_group: dist.ProcessGroup | None, options: dict[str, Any]
) -> dict[str, Any]:
    """The weights of a checkpoint, of which each rank has a part. Raises the same on every rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return load_weights(source, **options)
    mesh = (
        DeviceMesh.from_group(process_group, "cpu", mesh_dim_names=("shard",))
        if process_group is not None
        else init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("shard",))
    )

    def load_part() -> tuple[dict[str, Any], list[str]]:
        return load_weights(source, mesh, **options), content_of(source)

    weights, words = together(process_group, "exporting", load_part)
    of_ranks = [words] * mesh.size()
    dist.all_gather_object(of_ranks, words, process_group)
    if any(of_rank != words for of_rank in of_ranks):
        wait_until_all_know(process_group)
    _core.expect_one_checkpoint(of_ranks)
    return weights
