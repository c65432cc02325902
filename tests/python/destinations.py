"""Memory to load into: filled with a pattern, of any layout, with room around it that nothing may touch."""

from collections.abc import Iterable
from dataclasses import dataclass

import reference
import torch

PATTERN = 0x5A


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in its buffer. `order` are the dimensions, outermost first; None means row-major."""

    order: tuple[int, ...] | None = None
    margin: int = 0  # elements left free on both sides of each dimension
    step: int = 1  # of each dimension

    def view(self, buffer: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        order = self.order or tuple(range(len(shape)))
        view = buffer.view(self._buffer_shape(shape))
        for at, dim in enumerate(order):
            view = view.narrow(at, self.margin, shape[dim] * self.step)
            view = view[(slice(None),) * at + (slice(None, None, self.step),)]
        return view.permute([order.index(dim) for dim in range(len(shape))])

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        count = torch.Size(self._buffer_shape(shape)).numel()
        return torch.full((count * dtype.itemsize,), PATTERN, dtype=torch.uint8).view(dtype)

    def _buffer_shape(self, shape: tuple[int, ...]) -> list[int]:
        order = self.order or tuple(range(len(shape)))
        return [shape[dim] * self.step + 2 * self.margin for dim in order]


class Destination:
    def __init__(self, shape: Iterable[int], dtype: torch.dtype, layout: Layout = Layout()):
        self.shape, self.dtype, self.layout = tuple(shape), dtype, layout
        self.buffer = layout.buffer(self.shape, dtype)
        self.tensor = layout.view(self.buffer, self.shape)

    def holds(self, expected: torch.Tensor) -> bool:
        """True if the tensor has these bits, and all memory around it still the pattern."""
        wanted = self.layout.buffer(self.shape, self.dtype)
        self.layout.view(wanted, self.shape).copy_(expected)
        return self.dtype == expected.dtype and reference.same(self.buffer, wanted)

    def untouched(self) -> bool:
        return bool((self.buffer.view(torch.uint8) == PATTERN).all())


def destinations_like(tensors: dict[str, torch.Tensor]) -> dict[str, Destination]:
    return {name: Destination(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def state_of(destinations: dict[str, Destination]) -> dict[str, torch.Tensor]:
    return {name: destination.tensor for name, destination in destinations.items()}


def wrong(destinations: dict[str, Destination], expected: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that do not hold what is expected."""
    assert destinations.keys() == expected.keys()
    return [name for name in expected if not destinations[name].holds(expected[name])]
