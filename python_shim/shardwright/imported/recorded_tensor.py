"""Tensors without elements that know, through what is done to them, which elements of which sources they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from shardwright._core import NoBox, RecordedPart


class RecordedTensor(torch.Tensor):
    """A tensor on the meta device, and the parts of sources that it is made of (planner/geometry/recorded_part.h).

    It goes through torch's functions that cut, join and regroup. Any other one raises NoBox, saying its name: what it
    makes is no part of anything.
    """

    parts: list[RecordedPart]

    @staticmethod
    def of_source(name: str, shape: Sequence[int]) -> RecordedTensor:
        return _made_of([] if 0 in shape else [RecordedPart.whole(name, list(shape))], shape)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            name = {torch.Tensor.T.__get__: "t", torch.Tensor.mT.__get__: "mT"}.get(func, name)
        with torch._C.DisableTorchFunctionSubclass():
            meta = func(*args, **(kwargs or {}))
        if name in ("__setitem__", "__set__"):
            raise NoBox(f"changes a tensor in place, by torch's {name}")
        results = meta if isinstance(meta, (tuple, list)) else [meta]
        if not any(isinstance(result, torch.Tensor) for result in results):
            return meta  # a shape, a size, a dtype
        record = _RECORDS.get(name)
        if record is None:
            raise NoBox(f"calls torch's {name}")
        recorded = record(*args, **(kwargs or {}))
        found = recorded if isinstance(recorded, tuple) else (recorded,)
        if [result.shape for result in results] != [result.shape for result in found]:
            raise NoBox(f"calls torch's {name} in a way that is not known")
        return recorded


def _made_of(parts: list[RecordedPart], shape: Sequence[int]) -> RecordedTensor:
    made: RecordedTensor = torch.empty(tuple(shape), device="meta").as_subclass(RecordedTensor)
    made.parts = parts
    return made


def _dimension(tensor: torch.Tensor, dimension: int, more: int = 0) -> int:
    return int(dimension % (tensor.ndim + more))


def _numbers(numbers: tuple[Any, ...]) -> list[int]:
    """Given one by one, or as one sequence."""
    return list(numbers[0]) if len(numbers) == 1 and not isinstance(numbers[0], int) else list(numbers)


def _same(input: RecordedTensor, **kwargs: Any) -> RecordedTensor:
    return _made_of(input.parts, input.shape)


def _permute(input: RecordedTensor, *dims: Any) -> RecordedTensor:
    order = [_dimension(input, d) for d in _numbers(dims)]
    return _made_of([part.permuted(order) for part in input.parts], [input.shape[d] for d in order])


def _transpose(input: RecordedTensor, dim0: int, dim1: int) -> RecordedTensor:
    order = list(range(input.ndim))
    first, second = _dimension(input, dim0), _dimension(input, dim1)
    order[first], order[second] = order[second], order[first]
    return _permute(input, order)


def _reverse(input: RecordedTensor) -> RecordedTensor:
    return _permute(input, list(range(input.ndim))[::-1])


def _matrix_transpose(input: RecordedTensor) -> RecordedTensor:
    return _transpose(input, -2, -1)


def _reshape(input: RecordedTensor, *shape: Any) -> RecordedTensor:
    sizes = _numbers(shape)
    if -1 in sizes:
        rest = -math.prod(sizes)
        sizes[sizes.index(-1)] = input.numel() // rest if rest else 0
    return _made_of([part.reshaped(sizes) for part in input.parts], sizes)


def _flatten(input: RecordedTensor, start_dim: int = 0, end_dim: int = -1) -> RecordedTensor:
    first, last = _dimension(input, start_dim), _dimension(input, end_dim)
    sizes = list(input.shape)
    return _reshape(input, [*sizes[:first], math.prod(sizes[first : last + 1]), *sizes[last + 1 :]])


def _unflatten(input: RecordedTensor, dim: int, sizes: Sequence[int]) -> RecordedTensor:
    at = _dimension(input, dim)
    shape = list(input.shape)
    inner = [input.shape[at] // -math.prod(sizes) if size == -1 else size for size in sizes]
    return _reshape(input, [*shape[:at], *inner, *shape[at + 1 :]])


def _unsqueeze(input: RecordedTensor, dim: int) -> RecordedTensor:
    at = _dimension(input, dim, 1)
    return _reshape(input, [*input.shape[:at], 1, *input.shape[at:]])


def _squeeze(input: RecordedTensor, dim: Any = None) -> RecordedTensor:
    given = range(input.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    dims = {_dimension(input, d) for d in given}
    return _reshape(input, [size for d, size in enumerate(input.shape) if size != 1 or d not in dims])


def _narrow(input: RecordedTensor, dim: int, start: int, length: int) -> RecordedTensor:
    at = _dimension(input, dim)
    found = [part.narrowed(at, start, start + length) for part in input.parts]
    shape = [*input.shape[:at], length, *input.shape[at + 1 :]]
    return _made_of([part for part in found if part is not None], shape)


def _select(input: RecordedTensor, dim: int, index: int) -> RecordedTensor:
    at = _dimension(input, dim)
    one = _narrow(input, at, index % input.shape[at], 1)
    return _reshape(one, [*input.shape[:at], *input.shape[at + 1 :]])


def _split(tensor: RecordedTensor, split_size: Any, dim: int = 0) -> tuple[RecordedTensor, ...]:
    total = tensor.shape[dim]
    sizes = split_size
    if isinstance(split_size, int):
        sizes = [min(split_size, total - start) for start in range(0, total, split_size)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(_narrow(tensor, dim, start, size) for start, size in zip(starts, sizes, strict=True))


def _chunk(input: RecordedTensor, chunks: int, dim: int = 0) -> tuple[RecordedTensor, ...]:
    return _split(input, -(-input.shape[dim] // chunks), dim)


def _unbind(input: RecordedTensor, dim: int = 0) -> tuple[RecordedTensor, ...]:
    return tuple(_select(input, dim, index) for index in range(input.shape[dim]))


def _cat(tensors: Sequence[RecordedTensor], dim: int = 0) -> RecordedTensor:
    at = _dimension(tensors[0], dim)
    total = sum(tensor.shape[at] for tensor in tensors)
    parts, begin = [], 0
    for tensor in tensors:
        parts += [part.joined(at, begin, total) for part in tensor.parts]
        begin += tensor.shape[at]
    first = tensors[0].shape
    return _made_of(parts, [*first[:at], total, *first[at + 1 :]])


def _stack(tensors: Sequence[RecordedTensor], dim: int = 0) -> RecordedTensor:
    at = _dimension(tensors[0], dim, 1)
    return _cat([_unsqueeze(tensor, at) for tensor in tensors], at)


def _getitem(input: RecordedTensor, index: Any) -> RecordedTensor:
    taken = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in taken:
        at = taken.index(Ellipsis)
        missing = input.ndim - sum(one is not None for one in taken) + 1
        taken[at : at + 1] = [slice(None)] * missing
    result, at = input, 0
    for one in taken:
        if one is None:
            result = _unsqueeze(result, at)
            at += 1
        elif isinstance(one, int):
            result = _select(result, at, one)
        elif isinstance(one, slice):
            result = _slice(result, at, *one.indices(result.shape[at]))
            at += 1
        else:
            raise NoBox(f"takes elements by {type(one).__name__}")
    return result


def _slice(input: RecordedTensor, dim: int, start: int, stop: int, step: int) -> RecordedTensor:
    if step == 1:
        return _narrow(input, dim, start, max(0, stop - start))
    total = input.shape[dim]
    if step < 0 or total % step or start >= step or stop != total:
        raise NoBox(f"takes every {step}th element from {start} to {stop} of {total}")
    shape = list(input.shape)
    return _select(_reshape(input, [*shape[:dim], total // step, step, *shape[dim + 1 :]]), dim + 1, start)


#: By the names that torch's functions and methods have.
_RECORDS: dict[str, Callable[..., Any]] = {
    "contiguous": _same,
    "clone": _same,
    "detach": _same,
    "permute": _permute,
    "transpose": _transpose,
    "swapaxes": _transpose,
    "swapdims": _transpose,
    "t": _reverse,
    "mT": _matrix_transpose,
    "reshape": _reshape,
    "view": _reshape,
    "flatten": _flatten,
    "unflatten": _unflatten,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "narrow": _narrow,
    "select": _select,
    "split": _split,
    "chunk": _chunk,
    "unbind": _unbind,
    "cat": _cat,
    "concat": _cat,
    "stack": _stack,
    "__getitem__": _getitem,
}
