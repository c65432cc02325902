"""Describes the tensors of a state dict to the planner, as TensorSpecs: names, shapes, boxes and addresses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from shardwright import _core

#: torch dtypes by the names that safetensors gives them.
DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
}

DTYPES: dict[str, torch.dtype] = {name: dtype for dtype, name in DTYPE_NAMES.items()}


@dataclass
class Description:
    """A state dict as the planner sees it."""

    #: a TensorSpec for each tensor (or chunk) that this rank holds
    specs: list[Any] = field(default_factory=list)
    #: whose memory the specs point to, one for one
    local_tensors: list[torch.Tensor] = field(default_factory=list)
    #: the values of the state dict that will be written
    tensors: list[torch.Tensor] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)  #: names of values that are no tensors
    problems: list[str] = field(default_factory=list)  #: what cannot be loaded into, and why

    def add(self, other: Description) -> None:
        for field_of in dataclasses.fields(self):
            getattr(self, field_of.name).extend(getattr(other, field_of.name))

    def mark_written(self) -> None:
        """Tells autograd that the tensors have changed behind its back."""
        torch.autograd.graph.increment_version([*self.local_tensors, *self.tensors])


def is_reached(tensor: torch.Tensor) -> bool:
    """Whether the engine reads and writes the tensor where it is: in CPU memory, or on a CUDA device that it has
    kernels for."""
    return tensor.is_cpu or (tensor.is_cuda and bool(_core.has_cuda()))


def current_streams(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Of each CUDA device that holds one of the tensors: torch's current stream, as a cudaStream_t."""
    devices = {tensor.device for tensor in tensors if tensor.is_cuda}
    return {device.index: torch.cuda.current_stream(device).cuda_stream for device in devices}


def describe(state_dict: Mapping[str, Any]) -> Description:
    """The TensorSpecs of a flat state dict.

    Raises nothing: what cannot be written in place (partial sums, sparse tensors, unknown dtypes) is among the
    problems, which the planner tells together with its own.
    """
    description = Description()
    for fqn, value in state_dict.items():
        if not isinstance(value, (torch.Tensor, ShardedTensor)):
            description.passed_over.append(fqn)
            continue
        try:
            for spec, local in _specs_of(fqn, value):
                description.specs.append(spec)
                description.local_tensors.append(local)
        except ValueError as problem:
            description.problems.append(f"{fqn}: {problem}")
        if isinstance(value, torch.Tensor):
            description.tensors.append(value)
    return description


def no_tensors(state_dict: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """A line for each of these values, which are no tensors."""
    return [
        f"{fqn}: expected a tensor, since an HF checkpoint holds no others, found {type(state_dict[fqn]).__name__}"
        for fqn in names
    ]


def describe_weights(state_dict: Mapping[str, Any], headline: str) -> tuple[Description, int]:
    """The TensorSpecs of a flat state dict to be stored, in memory that the engine reaches, and bytes copied for that.

    Raises:
        PlanError: values that are no tensors, or that cannot be described; lists them below the headline.
    """
    description = describe(state_dict)
    if problems := description.problems + no_tensors(state_dict, description.passed_over):
        raise _core.PlanError(_core.in_lines(headline, problems))
    return description, copy_to_cpu(description)


def copy_to_cpu(description: Description) -> int:
    """Replaces what is on devices that this build does not reach by copies. Returns their bytes."""
    copied = 0
    for number, local in enumerate(description.local_tensors):
        if local.is_meta or is_reached(local):
            continue
        spec = description.specs[number]
        copy = local.detach().cpu().contiguous()
        description.local_tensors[number] = copy
        description.specs[number] = spec_of_part(spec.fqn, copy, spec.global_shape, spec.boxes)
        copied += copy.nbytes
    return copied


def tied_heads(state_dict: Mapping[str, Any]) -> list[str]:
    """Names of heads that are the memory of an embedding, which files do not store."""
    either = {name: value for name, value in state_dict.items() if _core.may_be_tied(name)}
    heads: list[str] = _core.tied_heads(describe(either).specs)
    return heads


def _specs_of(fqn: str, value: Any) -> Iterator[tuple[Any, torch.Tensor]]:
    """One spec, or one for each local chunk of a tensor that has several."""
    if isinstance(value, DTensor) and value.device_mesh.get_coordinate() is None:
        return  # this rank is not on the tensor's mesh and holds nothing of it
    if isinstance(value, DTensor) and not hasattr(value._local_tensor, "__create_chunk_list__"):
        with torch.no_grad():
            local = value.to_local()
        yield spec_of_part(fqn, local, value.shape, boxes_of_dtensor(value)), local
    elif isinstance(value, ShardedTensor):
        for shard in value.local_shards():
            offset, size = shard.metadata.shard_offsets, shard.metadata.shard_sizes
            yield spec_of_part(fqn, shard.tensor, value.size(), [whole_box(offset, size)]), shard.tensor
    elif hasattr(value, "__create_chunk_list__"):
        for chunk in value.__create_chunk_list__():
            local = value.__get_tensor_shard__(MetadataIndex(fqn, chunk.offsets))
            yield spec_of_part(fqn, local, value.size(), [whole_box(chunk.offsets, chunk.sizes)]), local
    else:
        shape = list(value.shape)
        boxes = [whole_box([0] * len(shape), shape)] if 0 not in shape else []
        yield spec_of_part(fqn, value, value.shape, boxes), value


def whole_box(offset: Sequence[int], size: Sequence[int]) -> Any:
    """The box of a global tensor that is all of a local one."""
    return _core.LocalBox(list(offset), list(size), [0] * len(size))


def contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(torch.empty(tuple(shape), device="meta").stride())


def spec_without_memory(
    fqn: str, dtype: torch.dtype, shape: Sequence[int], local_shape: Sequence[int], boxes: list[Any]
) -> Any:
    """The TensorSpec of a tensor that is only planned for."""
    if dtype not in DTYPE_NAMES:
        raise ValueError(f"{dtype} is a dtype that safetensors does not have")
    stride = list(contiguous_stride(local_shape))
    return _core.TensorSpec(fqn, DTYPE_NAMES[dtype], list(shape), list(local_shape), stride, 0, "cpu", boxes)


def spec_of_part(fqn: str, local: torch.Tensor, global_shape: Sequence[int], boxes: list[Any]) -> Any:
    """The TensorSpec of a local tensor that holds these boxes of a tensor of that global shape."""
    if local.dtype not in DTYPE_NAMES:
        raise ValueError(f"{local.dtype} is a dtype that safetensors does not have")
    if local.layout != torch.strided:
        raise ValueError(f"expected a strided tensor, found {local.layout}")
    if local.is_neg() or local.is_conj():
        raise ValueError(
            "expected a tensor that shows its memory as it is, found a negated or conjugated view"
        )
    address = 0 if local.is_meta else local.data_ptr()
    if address == 0 and local.numel() > 0 and not local.is_meta:
        raise ValueError(f"{type(local).__name__} has no memory of its own that could be written")
    return _core.TensorSpec(
        fqn,
        DTYPE_NAMES[local.dtype],
        list(global_shape),
        list(local.shape),
        list(local.stride()),
        address,
        "meta" if local.is_meta else str(local.device),
        boxes,
    )


def boxes_of_dtensor(tensor: DTensor) -> list[Any]:
    """The parts of the global tensor that this rank holds."""
    mesh = tensor.device_mesh
    coordinate = mesh.get_coordinate()
    placements = [core_placement(placement) for placement in tensor.placements]
    boxes: list[Any] = _core.local_boxes(
        list(tensor.shape), list(mesh.shape), list(coordinate or []), placements
    )
    return boxes


def core_placement(placement: Placement) -> Any:
    """The planner's word for a DTensor's placement on one mesh dimension."""
    # _StridedShard first: in some releases of torch it is a Shard as well.
    if isinstance(placement, _StridedShard):
        return _core.Placement.strided_shard(placement.dim, placement.split_factor)
    if isinstance(placement, Shard):
        return _core.Placement.shard(placement.dim)
    if isinstance(placement, Replicate):
        return _core.Placement.replicate()
    raise ValueError(
        f"placement {placement} cannot be loaded into; expected Shard or Replicate on each mesh dimension"
    )
