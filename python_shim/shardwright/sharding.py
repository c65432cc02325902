"""How a tensor lies over the ranks, apart from its memory; and how a part of it, an HF tensor, then lies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from shardwright import _core
from shardwright.describe import contiguous_stride, core_placement, spec_of_part, spec_without_memory


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds: a plain tensor, sharing the tensor's memory."""
    with torch.no_grad():
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


@dataclass(frozen=True)
class Sharding:
    """A global shape and how it is split: not at all (no mesh), or by a DTensor's placements.

    ``experts``, if given, is the range of dimension 0 that this rank holds, where that is not what torch.chunk deals
    out.
    """

    shape: tuple[int, ...]
    mesh: DeviceMesh | None = None
    placements: tuple[Placement, ...] = ()
    experts: range | None = None

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> Sharding:
        """Raises ValueError, which names the tensor, for placements other than Shard and Replicate."""
        if not isinstance(tensor, DTensor):
            return cls(tuple(tensor.shape))
        with _naming(name):
            for placement in tensor.placements:
                core_placement(placement)
        return cls(tuple(tensor.shape), tensor.device_mesh, tuple(tensor.placements))

    @cached_property
    def boxes(self) -> list[Any]:
        """The parts of the global tensor that this rank holds."""
        mesh_shape, coordinate, placements = self._on_mesh
        if coordinate is None:
            return []
        boxes: list[Any] = _core.local_boxes(list(self.shape), mesh_shape, coordinate, placements)
        if self.experts is None:
            return boxes
        start, count = self.experts.start, len(self.experts)
        return [
            _core.LocalBox([start, *box.offset[1:]], [count, *box.size[1:]], box.local_offset)
            for box in boxes
            if count > 0
        ]

    @cached_property
    def local_shape(self) -> tuple[int, ...]:
        mesh_shape, coordinate, placements = self._on_mesh
        if coordinate is None:
            return (0,) * len(self.shape)
        local = _core.local_shape(list(self.shape), mesh_shape, coordinate, placements)
        return tuple(local) if self.experts is None else (len(self.experts), *local[1:])

    @property
    def _on_mesh(self) -> tuple[list[int], list[int] | None, list[Any]]:
        """Mesh shape, this rank's coordinate (None: not on the mesh) and placements, dimension 0 left whole if
        ``experts`` says how it is split."""
        if self.mesh is None:
            return [], [], []
        coordinate = self.mesh.get_coordinate()
        placements = [
            Replicate() if self.experts is not None and is_shard(placement, 0) else placement
            for placement in self.placements
        ]
        return (
            list(self.mesh.shape),
            None if coordinate is None else list(coordinate),
            [core_placement(placement) for placement in placements],
        )

    def held(self, dimension: int) -> Iterator[tuple[int, int]]:
        """(global index, local index) of what this rank holds along a dimension, in global order."""
        seen = {
            box.offset[dimension] + i: box.local_offset[dimension] + i
            for box in self.boxes
            for i in range(box.size[dimension])
        }
        return iter(sorted(seen.items()))

    def spec(self, fqn: str, local: torch.Tensor) -> Any:
        """Raises ValueError, which names the tensor, for one whose memory is not plain."""
        with _naming(fqn):
            return spec_of_part(fqn, local, self.shape, self.boxes)

    def planning_spec(self, fqn: str, dtype: torch.dtype) -> Any:
        """The spec of a tensor that lies so and is only planned for."""
        return spec_without_memory(fqn, dtype, self.shape, self.local_shape, self.boxes)

    def empty(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A tensor that lies so, its memory not initialised."""
        return self.wrap(torch.empty(self.local_shape, dtype=dtype, device=device))

    def zeros(self, dtype: torch.dtype) -> torch.Tensor:
        """A tensor in CPU memory that lies so."""
        return self.wrap(torch.zeros(self.local_shape, dtype=dtype))

    def wrap(self, local: torch.Tensor, stride: Sequence[int] | None = None) -> torch.Tensor:
        """The tensor of which this is the local part. ``stride`` is the whole tensor's; None: contiguous."""
        if self.mesh is None:
            return local
        stride = contiguous_stride(self.shape) if stride is None else stride
        shape = torch.Size(self.shape)
        return DTensor.from_local(
            local, self.mesh, self.placements, run_check=False, shape=shape, stride=tuple(stride)
        )


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as problem:
        raise ValueError(f"{name}: {problem}") from None


def is_shard(placement: Placement, dimension: int | None = None) -> bool:
    """True for Shard and _StridedShard, of this dimension or of any."""
    sharded = getattr(placement, "dim", None)
    return sharded is not None and (dimension is None or sharded == dimension)


def on_dimension(placement: Placement, dimension: int) -> Placement:
    """The same placement for a tensor whose dimension is numbered otherwise."""
    if isinstance(placement, _StridedShard):
        return _StridedShard(dimension, split_factor=placement.split_factor)
    return Shard(dimension)


def sharding_of_part(
    fqn: str, native: Sharding, size: Sequence[int], axes: Sequence[int], shape: Sequence[int]
) -> Sharding:
    """How an HF tensor lies that is a part of a native tensor.

    The part is ``size`` large in the native tensor, and its dimension i runs along native dimension axes[i]. Mesh
    dimensions that split a stack into experts say which experts a rank holds, and nothing about how one lies: they
    fall away.
    """
    if native.mesh is None:
        return Sharding(tuple(shape))
    kept: list[int] = []
    placements: list[Placement] = []
    for number, placement in enumerate(native.placements):
        if not is_shard(placement):
            kept.append(number)
            placements.append(placement)
            continue
        dimension = placement.dim
        if dimension not in axes:
            continue
        if size[dimension] != native.shape[dimension] and native.mesh.size(number) > 1:
            raise ValueError(
                f"{fqn} is sharded on dimension {dimension}, along which it joins several HF tensors: no placement "
                f"says how each of them lies. Expected another dimension, found {placement} on mesh dimension "
                f"{number}; shardwright.load() and LoadPlanner load such a tensor without the adapter"
            )
        kept.append(number)
        placements.append(on_dimension(placement, list(axes).index(dimension)))
    if len(kept) == len(native.placements):
        return Sharding(tuple(shape), native.mesh, tuple(placements))
    if all(native.mesh.size(number) == 1 for number in kept):
        return Sharding(tuple(shape))
    return Sharding(tuple(shape), submesh(native.mesh, kept, fqn), tuple(placements))


def sharding_in_file(elements: Sharding, shape: Sequence[int]) -> Sharding:
    """How a tensor lies that holds those elements as a file does: of ``shape``, several in each index of the last
    dimension, or of the last but one where blocks are a dimension of their own.

    Mesh dimensions that would cut inside such an index replicate the tensor: a rank then holds more than its elements
    need.
    """
    if tuple(shape) == elements.shape or elements.mesh is None:
        return Sharding(tuple(shape), elements.mesh, elements.placements)
    last = len(elements.shape) - 1
    parts = 1
    for number, placement in enumerate(elements.placements):
        if is_shard(placement, last):
            parts *= elements.mesh.size(number) * getattr(placement, "split_factor", 1)
    if shape[last] % parts == 0:
        return Sharding(tuple(shape), elements.mesh, elements.placements)
    placements = tuple(Replicate() if is_shard(one, last) else one for one in elements.placements)
    return Sharding(tuple(shape), elements.mesh, placements)


def submesh(mesh: DeviceMesh, dimensions: Sequence[int], what: str) -> DeviceMesh:
    """The mesh of these dimensions alone; they must have names."""
    names = mesh.mesh_dim_names
    if names is None:
        raise ValueError(
            f"{what}: its mesh of shape {tuple(mesh.shape)} has no names for its dimensions; expected names, such as "
            'init_device_mesh(..., mesh_dim_names=("ep", "ep_shard"))'
        )
    return mesh[tuple(names[number] for number in dimensions)]


def sharding_of_whole(
    fqn: str, shape: Sequence[int], part: Sharding, axes: Sequence[int], joined: int
) -> Sharding:
    """How the native tensor lies of which each rank holds all parts, the parts lying as ``part`` does."""
    if part.mesh is None:
        return Sharding(tuple(shape))
    placements = []
    for number, placement in enumerate(part.placements):
        if is_shard(placement):
            dimension = axes[placement.dim]
            if dimension == joined and part.mesh.size(number) > 1:
                raise ValueError(
                    f"{fqn}: its HF tensors are sharded along the dimension on which they are joined; expected "
                    f"them whole or sharded on the other, found {placement}"
                )
            placement = on_dimension(placement, dimension)
        placements.append(placement)
    return Sharding(tuple(shape), part.mesh, tuple(placements))
