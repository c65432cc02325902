"""What a rank of an inference engine holds, in words of the checkpoint that the trainer would export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from shardwright import _core
from shardwright.describe import DTYPE_NAMES
from shardwright.handover.apply_pieces import expect_memory_for_each


@dataclass(frozen=True)
class EnginePart:
    """A box of a tensor of the checkpoint, and where it lies in the engine's tensor.

    ``EnginePart("model.layers.0.self_attn.k_proj.weight", (slice(16, 32), slice(0, 64)), at=(64, 0))`` are rows 16 to
    31 of k_proj, behind 64 rows of something else.
    """

    name: str  #: as files hold it: codes and scales are two tensors
    box: Sequence[slice] | None = None  #: a slice for each dimension, with both ends; None: all of it
    at: Sequence[int] | None = None  #: index of its first element in the engine's tensor; None: the first one

    #: The engine's dimension along which each one of the box runs, -1 for one of a single index; (1, 0) transposes.
    #: None: the last dimensions of the engine's tensor, in order.
    axes: Sequence[int] | None = None
    steps: Sequence[int] | None = (
        None  #: from one index to the next along it; None: 1. 2 leaves every other one out
    )
    view: Sequence[int] | None = None  #: the tensor's dimensions, factored; ``box`` is then a box of that

    def __post_init__(self) -> None:  # a part is kept from one hand-over to the next, and stays what it was
        for field_ in ("box", "at", "axes", "steps", "view"):
            if (value := getattr(self, field_)) is not None:
                object.__setattr__(self, field_, tuple(value))

    def described(self) -> Any:
        offset: list[int] = []
        size: list[int] = []
        for one in self.box or ():
            if one.start is None or one.stop is None or one.step not in (None, 1) or one.stop < one.start:
                raise ValueError(f"{self.name}: expected slices with a start and a stop, found {one}")
            offset.append(one.start)
            size.append(one.stop - one.start)
        return _core.EnginePart(
            self.name,
            offset,
            size,
            list(self.at or ()),
            list(self.axes or ()),
            list(self.steps or ()),
            list(self.view or ()),
        )


@dataclass(frozen=True)
class EngineTensor:
    """A tensor of one rank of an engine, which :func:`shardwright.refit` writes in place. CPU memory, of any strides.

    Each of its elements must be in one of the parts. Its dtype must be that of the checkpoint: BF16, or the codes or
    scales of the ``quantization`` that is asked for. float8_e8m0fnu and uint8 are taken for
    each other.
    """

    name: str
    tensor: torch.Tensor
    parts: Sequence[EnginePart | str] = field(default_factory=list)  #: a name alone: all of that tensor

    def add_to(self, side: Any) -> None:
        tensor = self.tensor
        if type(tensor) is not torch.Tensor and not isinstance(tensor, torch.nn.Parameter):
            raise ValueError(f"{self.name}: expected this rank's own tensor, found {type(tensor).__name__}")
        if not tensor.is_cpu:
            raise ValueError(f"{self.name}: expected CPU memory, found it on {tensor.device}")
        if tensor.dtype not in DTYPE_NAMES or tensor.layout != torch.strided:
            raise ValueError(f"{self.name}: expected a strided tensor of a dtype that safetensors has")
        expect_memory_for_each(self.name, tensor)
        if isinstance(self.parts, str) or not all(isinstance(part, (str, EnginePart)) for part in self.parts):
            raise ValueError(
                f"{self.name}: expected a list of shardwright.EnginePart and names as parts, found {self.parts!r}"
            )
        parts = [EnginePart(part) if isinstance(part, str) else part for part in self.parts]
        side.add_engine_tensor(
            self.name,
            DTYPE_NAMES[tensor.dtype],
            list(tensor.shape),
            [part.described() for part in parts],
            tensor.data_ptr(),
            list(tensor.stride()),
        )
