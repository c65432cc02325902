"""Fills tensors from tensors in memory, through the kernels of the main path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from shardwright import _core
from shardwright.dcp.storage_reader import default_threads
from shardwright.sharding import Sharding, local_part

#: The formats that come with scales.
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)

#: The device whose memory the kernels read and write. Tests name another to send everything through buffers.
KERNEL_DEVICE = "cpu"


@dataclass(frozen=True)
class Part:
    """What this rank holds of a tensor: how that lies, and the memory."""

    sharding: Sharding
    local: torch.Tensor

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> Part:
        return cls(Sharding.of(name, tensor), local_part(tensor))

    def spec(self, name: str) -> Any:
        return self.sharding.spec(name, self.local)

    def on_cpu(self, name: str) -> Part:
        """The same in CPU memory, the scaled formats with the elements of a row side by side, as the kernels want."""
        local = self.local
        if local.device.type != KERNEL_DEVICE:
            local = local.cpu()
        packed = local.dtype in (torch.uint8, torch.int8, torch.int32)
        scaled = _core.is_scale_name(name) or local.dtype in FLOAT8 or packed
        if scaled and local.dim() > 0 and local.stride(-1) != 1:
            local = local.contiguous()
        return Part(self.sharding, local)


def fill(
    destinations: Mapping[str, Part],
    sources: Mapping[str, Part],
    weight_map: Any,
    *,
    mxfp8_block: int | None = None,
) -> None:
    """Decodes and places ``sources`` (HF tensors, scales included) in ``destinations`` (native tensors), in place.

    Straight from memory to memory where both are the CPU's; for tensors of another device through buffers of the size
    of these sources and destinations. Meta tensors are left as they are. ``mxfp8_block`` says that all scales are e8m0,
    one for so many elements of a row.
    """
    parts = list(destinations.values()) + list(sources.values())
    if any(part.local.is_meta for part in parts):
        return
    staged = {name: part.on_cpu(name) for name, part in sources.items()}
    targets = {
        name: part
        if part.local.device.type == KERNEL_DEVICE
        else Part(part.sharding, _buffer_for(part.local))
        for name, part in destinations.items()
    }
    memory = _core.StateDictMemory([part.spec(name) for name, part in staged.items()])
    specs = [part.spec(name) for name, part in targets.items()]
    plan = memory.plan(specs, weight_map, mxfp8_block)
    memory.place(plan, specs, default_threads())
    for name, part in destinations.items():
        if targets[name] is not part:
            part.local.copy_(targets[name].local)
    # Autograd must know that the tensors changed behind its back.
    torch.autograd.graph.increment_version([part.local for part in destinations.values()])


def _buffer_for(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)
