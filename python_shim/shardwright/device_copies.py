"""Copies in CPU memory of the CUDA tensors of a state, for an asynchronous save."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.tensor import DTensor

from shardwright import _core
from shardwright.describe import current_streams, is_reached


def memory_of(tensor: torch.Tensor) -> tuple[int, list[int], list[int], int, int]:
    """Where the engine finds a tensor: address, shape, strides, bytes of an element, CUDA device or -1."""
    device = tensor.device.index if tensor.is_cuda else -1
    return tensor.data_ptr(), list(tensor.shape), list(tensor.stride()), tensor.element_size(), device


def shows_its_memory(tensor: torch.Tensor) -> bool:
    """Whether the values of a strided tensor are what its memory holds: it has memory of its own, which tensors that
    wrap others have not, and is not conjugated or negated."""
    has_memory = tensor.numel() == 0 or tensor.data_ptr() != 0
    return has_memory and not tensor.is_conj() and not tensor.is_neg()


class DeviceCopies:
    """Takes the CUDA tensors of a state out of it, copies them by way of pinned memory, and puts the copies in.

    torch's stager would bring a DTensor from the device twice, through memory that is not pinned, and hand on one
    without dimensions as it is. What it copies well is left to it.
    """

    def __init__(self) -> None:
        #: copies of the last state, whose memory those of the next may take
        self._kept: list[torch.Tensor] = []

    def without(self, state: Any) -> tuple[Any, list[str]]:
        """The state with None in the place of what is copied here, and the names of that."""
        names: list[str] = []

        def left(name: str, tensor: torch.Tensor) -> torch.Tensor | None:
            if not _is_ours(tensor):
                return tensor
            names.append(name)
            return None

        return _mapped(state, left), names

    def put_into(self, staged: Any, state: Any, threads: int, device_memory: int | None, keep: bool) -> Any:
        """``staged``, which torch's stager has made of without(state), with copies of the rest.

        Comes after the work of the current streams; when it returns, all is done. ``keep``: the copies stay as they are
        only until the next call, which gives their memory to the next ones.
        """
        sources: list[tuple[str, torch.Tensor]] = []
        _mapped(
            state, lambda name, tensor: sources.append((name, _local(tensor))) if _is_ours(tensor) else None
        )
        facts = [(source.shape, source.dtype) for _, source in sources]
        if facts != [(kept.shape, kept.dtype) for kept in self._kept]:
            self._kept = []
        copies = self._kept or [torch.empty(shape, dtype=dtype) for shape, dtype in facts]
        self._kept = copies if keep else []
        _copy(sources, copies, threads, device_memory)
        return _with_copies(staged, state, iter(copies))


def _is_ours(tensor: torch.Tensor) -> bool:
    if isinstance(tensor, ShardedTensor):
        return False
    local = _local(tensor)
    if local.is_cuda:
        return is_reached(local) and local.layout == torch.strided and shows_its_memory(local)
    return isinstance(tensor, DTensor) and tensor.dim() == 0


def _local(tensor: torch.Tensor) -> torch.Tensor:
    local: torch.Tensor = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
    return local.detach()


def _copy(
    sources: list[tuple[str, torch.Tensor]],
    copies: list[torch.Tensor],
    threads: int,
    device_memory: int | None,
) -> None:
    parts, names, on_devices = [], [], []
    for (name, source), copy in zip(sources, copies, strict=True):
        if source.is_cuda:
            parts.append((copy.data_ptr(), *memory_of(source)))
            names.append(name)
            on_devices.append(source)
        else:
            copy.copy_(source)
    if parts:
        devices = _core.DeviceOptions(device_memory, current_streams(on_devices))
        _core.copy_out(parts, names, threads, devices)


def _mapped(value: Any, function: Callable[[str, torch.Tensor], Any], name: str = "") -> Any:
    """What torch's stager looks into (dicts, lists, tuples), with what becomes of its tensors."""
    if isinstance(value, torch.Tensor):
        return function(name, value)
    if isinstance(value, dict):
        return {
            key: _mapped(one, function, f"{name}.{key}" if name else str(key)) for key, one in value.items()
        }
    if isinstance(value, (list, tuple)):
        found = [_mapped(one, function, f"{name}.{number}") for number, one in enumerate(value)]
        return tuple(found) if isinstance(value, tuple) else found
    return value


def _with_copies(staged: Any, state: Any, copies: Iterator[torch.Tensor]) -> Any:
    if isinstance(state, torch.Tensor):
        return _like(state, next(copies)) if _is_ours(state) else staged
    if isinstance(state, dict):
        return {key: _with_copies(staged[key], value, copies) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        found = [_with_copies(one, value, copies) for one, value in zip(staged, state, strict=True)]
        return tuple(found) if isinstance(state, tuple) else found
    return staged


def _like(tensor: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, DTensor):
        return copy
    # DTensor.from_local would bring it to the device of the mesh.
    return DTensor(copy, tensor._spec, requires_grad=False)
