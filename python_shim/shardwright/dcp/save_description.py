"""Describes what a rank has to save, as bytes for the planner.

DTensors are described once for all ranks of their mesh: shape, mesh and placements say what each of them holds. What
cannot be derived (plain tensors, ShardedTensors, other objects) is enumerated, box by box.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import _create_write_items
from torch.distributed.tensor import DTensor

from shardwright import _core
from shardwright.describe import core_placement
from shardwright.ranks.gone_ranks import rank_among

KINDS = [WriteItemType.SHARD, WriteItemType.TENSOR, WriteItemType.BYTE_IO]
_MEMORY_FORMATS = [torch.contiguous_format, torch.channels_last, torch.preserve_format]

_SHAPE = 6  #: where `_facts` has the shape

#: torch keeps their scales and zero points outside of their memory, where no box of a file could hold them.
_QUANTIZED = {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4}

#: Where a value stood in a nested state dict: (key, whether it is a number), …
Path = Sequence[Any]


def properties_from(dtype: str, layout: str, flags: int) -> TensorProperties:
    return TensorProperties(
        dtype=getattr(torch, dtype),
        layout=getattr(torch, layout),
        requires_grad=bool(flags & 1),
        memory_format=_MEMORY_FORMATS[flags >> 2],
        pin_memory=bool(flags & 2),
    )


def _facts(
    fqn: str,
    kind: WriteItemType,
    properties: TensorProperties | None,
    shape: Sequence[int],
    placements: list[Any],
    path: Path | None,
) -> tuple[Any, ...]:
    """A value as the planner takes it. Raises ValueError where its memory does not say its numbers."""
    keys = [] if path is None or tuple(path) == (fqn,) else [(str(key), type(key) is int) for key in path]
    if properties is None:
        return fqn, KINDS.index(kind), "", "", 0, 0, [], placements, keys
    if properties.dtype in _QUANTIZED:
        raise ValueError(
            f"expected a tensor that holds its numbers, found {properties.dtype}, whose scale and zero point lie "
            "apart; save int_repr() and these, or dequantize()"
        )
    flags = (
        int(properties.requires_grad)
        | int(properties.pin_memory) << 1
        | _MEMORY_FORMATS.index(properties.memory_format) << 2
    )
    dtype = str(properties.dtype).removeprefix("torch.")
    layout = str(properties.layout).removeprefix("torch.")
    element_bytes = properties.dtype.itemsize
    return fqn, KINDS.index(kind), dtype, layout, element_bytes, flags, list(shape), placements, keys


@dataclass
class Holding:
    """Values with one description."""

    values: bytes  #: the description
    boxes: list[Any] | None  #: (index of the value, offset, size); None: the mesh says it


@dataclass
class SaveDescription:
    """What one rank has to save."""

    rank: int
    holdings: list[Holding] = field(default_factory=list)

    def encode(self) -> bytes:
        encoded: bytes = _core.encode_state(self.rank, [(held.values, held.boxes) for held in self.holdings])
        return encoded

    def items(self, left_to_others: Sequence[Sequence[int]] | None = None) -> list[WriteItem]:
        """What this rank holds, but for what others write: the numbers of items of each holding."""
        return [write_item(*item) for item in _core.items_of_state(self.encode(), left_to_others)]


def write_item(facts: tuple[Any, ...], offset: tuple[int, ...], size: tuple[int, ...]) -> WriteItem:
    """From the facts of a value as the core gives them."""
    fqn, kind, dtype, layout, flags, shape = facts[:6]
    if KINDS[kind] == WriteItemType.BYTE_IO:
        return WriteItem(MetadataIndex(fqn), WriteItemType.BYTE_IO)
    chunk = ChunkStorageMetadata(torch.Size(offset), torch.Size(size))
    data = TensorWriteData(chunk, properties_from(dtype, layout, flags), torch.Size(shape))
    return WriteItem(MetadataIndex(fqn, offset), KINDS[kind], tensor_data=data)


def is_derived(value: Any) -> bool:
    """Whether mesh and placements say what each rank holds of a value, which must be something."""
    return (
        isinstance(value, DTensor)
        and not hasattr(value._local_tensor, "__create_write_items__")
        and value.numel() > 0
    )


def describe_save(state_dict: Mapping[str, Any], paths: Mapping[str, Path]) -> SaveDescription:
    """What this rank has to save of a flat state dict. ``paths``: of the names that nested keys make up.

    Raises:
        PlanError: tells of tensors that cannot be saved as they are: DTensors of partial sums, torch's quantized ones.
    """
    description = SaveDescription(rank_among(None)[0])
    by_mesh: dict[Any, tuple[Any, list[tuple[Any, ...]]]] = {}
    enumerated: list[WriteItem] = []
    problems = []
    for fqn, value in state_dict.items():
        if not is_derived(value):
            enumerated += _create_write_items(fqn, value)
        elif value.device_mesh.get_coordinate() is not None:
            mesh = value.device_mesh
            try:
                facts = _facts_of_dtensor(fqn, value, paths.get(fqn))
            except ValueError as problem:
                problems.append(f"{fqn}: {problem}")
            else:
                by_mesh.setdefault(mesh, (mesh, []))[1].append(facts)
    _refuse(problems)
    for mesh, values in by_mesh.values():
        ranks = mesh.mesh.flatten().tolist()
        encoded = _core.encode_values(values, list(mesh.shape), ranks)
        description.holdings.append(Holding(encoded, None))
    if enumerated:
        description.holdings.append(holding_of_items(enumerated, paths))
    return description


def _facts_of_dtensor(fqn: str, tensor: DTensor, path: Path | None) -> tuple[Any, ...]:
    local = tensor._local_tensor
    mesh = tensor.device_mesh
    for placement in tensor.placements:
        if placement.is_partial():
            raise ValueError(
                f"placement {placement} is that of a sum still to be made; expected Shard or Replicate"
            )
    placements = [core_placement(placement) for placement in tensor.placements]
    expected = _core.local_shape(list(tensor.shape), list(mesh.shape), mesh.get_coordinate(), placements)
    if list(local.shape) != expected:
        raise ValueError(
            f"expected a local tensor of shape {expected}, as {tensor.placements} of {list(tensor.shape)} on a mesh of "
            f"{list(mesh.shape)} has it, found {list(local.shape)}"
        )
    properties = TensorProperties(
        local.dtype, local.layout, tensor.requires_grad, torch.contiguous_format, local.is_pinned()
    )
    return _facts(fqn, WriteItemType.SHARD, properties, tensor.shape, placements, path)


def number_values(
    items: Iterable[WriteItem], paths: Mapping[str, Path]
) -> tuple[list[tuple[Any, ...]], list[tuple[int, list[int], list[int]]]]:
    """The values that the items are of, each once, and each item as (index of its value, offset, size).

    Raises:
        PlanError: lists the values that cannot be saved as they are (torch's quantized tensors).
    """
    number: dict[str, int] = {}
    facts: list[tuple[Any, ...]] = []
    boxes: list[tuple[int, list[int], list[int]]] = []
    problems = []
    for item in items:
        fqn, data = item.index.fqn, item.tensor_data
        if fqn not in number:
            number[fqn] = len(facts)
            shape = data.size if data else ()
            properties = data.properties if data else None
            try:
                facts.append(_facts(fqn, item.type, properties, shape, [], paths.get(fqn)))
            except ValueError as problem:
                problems.append(f"{fqn}: {problem}")
        chunk = data.chunk if data else None
        boxes.append((number[fqn], list(chunk.offsets) if chunk else [], list(chunk.sizes) if chunk else []))
    _refuse(problems)
    return facts, boxes


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise _core.PlanError(_core.in_lines("this state cannot be saved:", problems))


def holding_of_items(items: Iterable[WriteItem], paths: Mapping[str, Path]) -> Holding:
    """Values of which each box is named. Empty shards are left out, unless the tensor is empty."""
    facts, boxes = number_values(items, paths)
    held = [box for box in boxes if 0 not in box[2] or 0 in facts[box[0]][_SHAPE]]
    held.sort(key=lambda box: box[0])
    return Holding(_core.encode_values(facts), held)
