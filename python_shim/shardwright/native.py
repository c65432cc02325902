"""Native tensors for a checkpoint, for tools and tests that have no trainer."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard

from shardwright import _core
from shardwright.catalog import catalog_of
from shardwright.describe import DTYPE_NAMES, DTYPES
from shardwright.sharding import Sharding
from shardwright.weight_maps import weight_map_for


def empty_state_dict(
    source: Any,
    mesh: DeviceMesh | None = None,
    *,
    model: Any = "auto",
    layout: str = "automodel",
    dtype: torch.dtype | Literal["packed"] = torch.bfloat16,
) -> dict[str, torch.Tensor]:
    """The native tensors that a checkpoint fills, allocated (and zeroed) but not loaded.

    For tools and tests that have no trainer. Block-scaled weights get ``dtype``, the others keep theirs. On a mesh, its
    dimensions named "ep" and "ep_shard" shard dimensions 0 and 1 of the expert tensors, "fsdp" dimension 0 of all
    others, "shard" dimension 0 of both, "dp" dimension 0 and of experts dimension 1; the result then holds DTensors.

    With ``dtype="packed"`` encoded weights stay as files hold them: codes under the weight's name, and beside them
    their scales and other companions, each under that name and its own ending, stacked and transposed as the weight
    would be: see :func:`shardwright.load`. On a mesh a companion lies as its codes do; it is whole along dimensions in
    which it has one entry.

    Raises:
        PlanError: some weight cannot be held packed in this layout; says why.
    """
    decoded = DTYPE_NAMES[decoded_dtype(dtype)]
    catalog = catalog_of(source)
    weight_map = weight_map_for(catalog, model, layout)
    if dtype == "packed":
        catalog, weight_map, _ = _core.as_packed(catalog, weight_map)
    tensors = _core.native_tensors(catalog, weight_map, decoded)
    if mesh is not None and "pp" in (mesh.mesh_dim_names or ()):
        raise ValueError(
            "mesh: expected the mesh of one pipeline stage, found a dimension pp; give the submesh of the others"
        )
    if mesh is None:
        return {tensor.fqn: torch.zeros(tensor.shape, dtype=DTYPES[tensor.dtype]) for tensor in tensors}
    return {tensor.fqn: _empty_dtensor(tensor, mesh) for tensor in tensors}


def decoded_dtype(dtype: Any) -> torch.dtype:
    """What encoded weights become where they do not stay packed. Raises ValueError for what is no dtype."""
    if dtype == "packed":
        return torch.bfloat16
    if dtype not in DTYPE_NAMES:
        raise ValueError(
            f'dtype: expected a dtype of torch that safetensors has, or "packed", found {dtype!r}'
        )
    return cast(torch.dtype, dtype)


def _empty_dtensor(tensor: Any, mesh: DeviceMesh) -> torch.Tensor:
    dimensions = _core.parse_mesh(
        ",".join(f"{name}={size}" for name, size in zip(mesh.mesh_dim_names or (), mesh.shape, strict=True))
    )
    placements = tuple(
        Shard(placement.dimension) if placement.is_shard else Replicate()
        for placement in _core.placements_on_mesh(tensor, dimensions)
    )
    return Sharding(tuple(tensor.shape), mesh, placements).zeros(DTYPES[tensor.dtype])
