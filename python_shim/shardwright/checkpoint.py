"""Looking at checkpoints, and making them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from shardwright import _core
from shardwright.describe import DTYPES, describe


def read_catalog(path: str | os.PathLike[str], threads: int = 0) -> Any:
    """What a checkpoint directory holds: ``.tensors`` (name, dtype, shape, file, begin, end), ``.files``, ``.config``.

    Reads and checks the headers and the index, no tensor data. Raises FileNotFoundError or CheckpointFormatError.
    """
    return _core.read_catalog(os.fspath(path), threads)


def _catalog(source: Any) -> Any:
    return source if isinstance(source, _core.Catalog) else read_catalog(source)


def generate(
    path: str | os.PathLike[str], preset: str = "tiny", *, seed: int = 0, layout_only: bool = False, threads: int = 0
) -> Any:
    """Writes an MXFP8 checkpoint with MiniMax M3's names and shapes and random values; see ``shardwright generate``.

    Equal seeds give equal bytes. Returns a report with ``tensors``, ``files`` and ``bytes``.
    """
    return _core.generate(os.fspath(path), preset, layout_only, seed, threads)


def request_list(
    source: Any,
    state_dict: Mapping[str, Any] | None = None,
    *,
    model: str = "auto",
    layout: str = "automodel",
    dtype: torch.dtype = torch.bfloat16,
) -> list[tuple[str, str, list[int]]]:
    """The HF tensors that a load asks for, as (name, dtype, global shape), scales included.

    This is what ``to_hf(quantization=True)`` stands for, as data: nothing is allocated. ``source`` is a checkpoint
    directory or a catalog, whose scales decide what is block-scaled. Without a state dict: all that the checkpoint
    fills; with one: what this rank's parts touch.
    """
    catalog = _catalog(source)
    weight_map = _core.weight_map(catalog, model, layout)
    if state_dict is None:
        tensors = _core.native_tensors(catalog, weight_map, _core_dtype(dtype))
        specs = _core.specs_on_mesh(tensors, [], 0)
    else:
        specs, _ = describe(dict(state_dict))
    requests: list[tuple[str, str, list[int]]] = _core.request_list(specs, weight_map, catalog)
    return requests


def empty_state_dict(
    source: Any,
    mesh: DeviceMesh | None = None,
    *,
    model: str = "auto",
    layout: str = "automodel",
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, torch.Tensor]:
    """The native tensors that a checkpoint fills, allocated (and zeroed) but not loaded.

    For tools and tests that have no trainer. Block-scaled weights get ``dtype``, the others keep theirs. On a mesh, its
    dimensions named "ep" and "ep_shard" shard dimensions 0 and 1 of the expert tensors, "fsdp" dimension 0 of all
    others, "shard" dimension 0 of both; the result then holds DTensors.
    """
    catalog = _catalog(source)
    weight_map = _core.weight_map(catalog, model, layout)
    tensors = _core.native_tensors(catalog, weight_map, _core_dtype(dtype))
    if mesh is None:
        return {tensor.fqn: torch.zeros(tensor.shape, dtype=DTYPES[tensor.dtype]) for tensor in tensors}
    return {tensor.fqn: _empty_dtensor(tensor, mesh) for tensor in tensors}


def _core_dtype(dtype: torch.dtype) -> str:
    return next(name for name, known in DTYPES.items() if known == dtype)


def _empty_dtensor(tensor: Any, mesh: DeviceMesh) -> DTensor:
    dimensions = _core.parse_mesh(
        ",".join(f"{name}={size}" for name, size in zip(mesh.mesh_dim_names or (), mesh.shape, strict=True))
    )
    placements: list[Placement] = [
        Shard(placement.dimension) if placement.is_shard else Replicate()
        for placement in _core.placements_on_mesh(tensor, dimensions)
    ]
    core_placements = _core.placements_on_mesh(tensor, dimensions)
    local_shape = _core.local_shape(tensor.shape, list(mesh.shape), list(mesh.get_coordinate() or []), core_placements)
    local = torch.zeros(local_shape, dtype=DTYPES[tensor.dtype])
    shape = torch.Size(tensor.shape)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)
