"""How trainers shard, and by index arithmetic, which elements a rank holds and how many bytes that takes."""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from reference import ITEM_BYTES, Stored, scale_index, scales_of
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard


def is_grouped(fqn: str) -> bool:
    return ".mlp.experts." in fqn


def experts_and_fsdp(ep: int) -> Callable[[str, torch.Tensor], tuple[DeviceMesh, list[Placement]]]:
    """Experts on dimension 0 over `ep` ranks and on dimension 1 over the rest, all else over all ranks.

    All ranks call this together.
    """
    world = dist.get_world_size()
    everyone = init_device_mesh("cpu", (world,), mesh_dim_names=("fsdp",))
    experts = init_device_mesh("cpu", (ep, world // ep), mesh_dim_names=("ep", "ep_shard"))
    return lambda fqn, tensor: (experts, [Shard(0), Shard(1)]) if is_grouped(fqn) else (everyone, [Shard(0)])


def chunk(indices: np.ndarray, count: int, which: int) -> np.ndarray:
    """What `torch.chunk` cuts, with empty chunks for the ranks that it leaves without one."""
    size = math.ceil(len(indices) / count)
    return indices[size * which : size * (which + 1)]


def held_indices(
    shape: tuple[int, ...], mesh: tuple[int, ...], coordinate: tuple[int, ...], placements: list[Placement]
) -> list[np.ndarray]:
    """For each tensor dimension, the global indices that the local shard holds, in its order."""
    held = [np.arange(size) for size in shape]
    for ranks, rank, placement in zip(mesh, coordinate, placements, strict=True):
        if isinstance(placement, _StridedShard):
            pieces = [
                chunk(held[placement.dim], placement.split_factor, i) for i in range(placement.split_factor)
            ]
            held[placement.dim] = np.concatenate([chunk(piece, ranks, rank) for piece in pieces])
        elif isinstance(placement, Shard):
            held[placement.dim] = chunk(held[placement.dim], ranks, rank)
    return held


def take(tensor: torch.Tensor, held: list[np.ndarray]) -> torch.Tensor:
    for dim, indices in enumerate(held):
        tensor = tensor.index_select(dim, torch.from_numpy(indices))
    return tensor


def bytes_held(
    parts: list[tuple[str, str | None, int | None]],
    checkpoint: dict[str, Stored],
    held: list[np.ndarray],
    transposed: bool = True,
) -> int:
    """Bytes that a rank needs of a native tensor made of `parts`: its elements and their scales.

    `transposed` says how stacked experts lie: [expert, in, out], or else [expert, out, in].
    """
    total = 0
    for hf, which, expert in parts:
        weight, scales = checkpoint[hf], scales_of(checkpoint, hf)
        if which is None:
            in_weight = held
        elif expert is not None and expert not in held[0]:
            continue
        else:
            rows, columns = held if expert is None else held[:0:-1] if transposed else held[1:]
            rows = rows - (weight.shape[0] if which in ("w3", "up") else 0)  # it lies behind w1, or the gate
            in_weight = [rows[(rows >= 0) & (rows < weight.shape[0])], columns]
        counts = [len(np.unique(indices)) for indices in in_weight]
        total += math.prod(counts) * weight.nbytes // max(1, math.prod(weight.shape))
        if scales and math.prod(counts):
            grid = np.zeros(scales.shape, dtype=bool)
            grid[scale_index(scales, *in_weight)] = True
            total += int(grid.sum()) * ITEM_BYTES[scales.dtype]
    return total
