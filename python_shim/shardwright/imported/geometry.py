"""Where the elements of a regrouped tensor came from.

A tensor that was cut, joined and reshaped out of others consists of parts. A part is a box of one source, in a view of
it, which is a box of a view of the tensor: axes that both have, each along some dimension of either, and indices that
stay fixed. Sizes and positions count elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace


class NoBox(Exception):
    """What was done to a tensor makes no boxes of views of it; says what."""


@dataclass(frozen=True, eq=False)
class Axis:
    """Runs along a part in its source and in the tensor. Two axes are the same if they are one object."""

    size: int


@dataclass(frozen=True)
class Factor:
    """A factor of a dimension, of ``extent`` indices, of which the part has those from ``begin`` on: as many as its
    axis, or one."""

    axis: Axis | None
    begin: int
    extent: int

    @property
    def size(self) -> int:
        return 1 if self.axis is None else self.axis.size


#: The factors of each dimension, outermost first. None: a dimension of size 1.
Side = tuple[tuple[Factor, ...], ...]


@dataclass(frozen=True)
class Part:
    source: str  #: the name of the source
    there: Side  #: in the source
    here: Side  #: in the tensor


def whole(source: str, shape: Sequence[int]) -> Part:
    """The part that is all of a source."""
    side = tuple((Factor(Axis(size), 0, size),) for size in shape)
    return Part(source, side, side)


def extent(factors: Sequence[Factor]) -> int:
    return math.prod(factor.extent for factor in factors)


def _with_dimension(side: Side, dimension: int, factors: tuple[Factor, ...]) -> Side:
    return (*side[:dimension], factors, *side[dimension + 1 :])


def _with_axis(side: Side, axis: Axis, factors_of: Callable[[Factor], tuple[Factor, ...]]) -> Side:
    """The side with other factors in place of the one that runs along an axis."""
    return tuple(
        tuple(new for old in factors for new in (factors_of(old) if old.axis is axis else (old,)))
        for factors in side
    )


def joined(part: Part, dimension: int, begin: int, total: int) -> Part:
    """The part, once its dimension is the range from ``begin`` on of one of size ``total``."""
    factors = part.here[dimension]
    if not factors:
        return replace(part, here=_with_dimension(part.here, dimension, (Factor(None, begin, total),)))
    first, rest = factors[0], factors[1:]
    inner = extent(rest)
    if begin % inner or total % inner:
        raise NoBox(f"joins parts at {begin} of {total}, across factors of {inner}")
    outer = Factor(first.axis, first.begin + begin // inner, total // inner)
    return replace(part, here=_with_dimension(part.here, dimension, (outer, *rest)))


def narrowed(part: Part, dimension: int, begin: int, end: int) -> Part | None:
    """What of the part lies in a range of a dimension, once that range is all of the dimension. None: nothing."""
    left = _narrowed(part.there, part.here[dimension], begin, end)
    if left is None:
        return None
    there, factors = left
    return Part(part.source, there, _with_dimension(part.here, dimension, factors))


def _narrowed(
    there: Side, factors: tuple[Factor, ...], begin: int, end: int
) -> tuple[Side, tuple[Factor, ...]] | None:
    if not factors:
        return there, factors
    first, rest = factors[0], factors[1:]
    inner = extent(rest)
    if begin % inner == 0 and end % inner == 0:
        low, high = begin // inner, end // inner
        start, stop = max(low, first.begin), min(high, first.begin + first.size)
        if start >= stop:
            return None
        axis = first.axis
        if axis is not None and stop - start != axis.size:
            shorter = Axis(stop - start)
            there = _with_axis(
                there,
                axis,
                lambda old: (Factor(shorter, old.begin + start - first.begin, old.extent),),
            )
            axis = shorter
        return there, (Factor(axis, start - low, high - low), *rest)
    index = begin // inner
    if (end - 1) // inner != index:
        raise NoBox(f"cuts {begin} to {end} of a dimension across factors of {inner}")
    if not first.begin <= index < first.begin + first.size:
        return None
    there = _fixed(there, first, index)
    return _narrowed(there, rest, begin - index * inner, end - index * inner)


def _fixed(there: Side, factor: Factor, index: int) -> Side:
    """The source's side, once only one index of a factor is taken."""
    if factor.axis is None:
        return there
    return _with_axis(
        there, factor.axis, lambda old: (Factor(None, old.begin + index - factor.begin, old.extent),)
    )


def permuted(part: Part, order: Sequence[int]) -> Part:
    return replace(part, here=tuple(part.here[dimension] for dimension in order))


def reshaped(part: Part, shape: Sequence[int]) -> Part:
    """The part, once the tensor is seen, row-major, in another shape."""
    there = part.there
    queue = [factor for factors in part.here for factor in factors]
    here = []
    for size in shape:
        taken: list[Factor] = []
        while extent(taken) < size:
            if not queue:
                raise NoBox(f"reshapes to {list(shape)}, which has other elements")
            factor = queue.pop(0)
            wanted = size // extent(taken)
            if size % extent(taken) or (factor.extent > wanted and factor.extent % wanted):
                raise NoBox(f"reshapes to {list(shape)}, across a factor of {factor.extent}")
            if factor.extent <= wanted:
                taken.append(factor)
                continue
            there, outer, inner = _split(there, factor, wanted)
            taken.append(outer)
            queue.insert(0, inner)
        here.append(tuple(taken))
    for factor in queue:  # of extent 1
        there = _fixed(there, factor, 0)
    return Part(part.source, there, tuple(here))


def _split(there: Side, factor: Factor, outer_extent: int) -> tuple[Side, Factor, Factor]:
    """A factor as two: one of ``outer_extent`` indices, and within it the rest."""
    inner_extent = factor.extent // outer_extent
    index, start = divmod(factor.begin, inner_extent)
    if factor.axis is None:
        return there, Factor(None, index, outer_extent), Factor(None, start, inner_extent)
    size = factor.axis.size
    if start + size <= inner_extent:  # within one index of the outer factor
        return there, Factor(None, index, outer_extent), Factor(factor.axis, start, inner_extent)
    if start or size % inner_extent:
        raise NoBox(f"reshapes a part of a dimension into factors of {inner_extent}, which it does not fill")
    outer, inner = Axis(size // inner_extent), Axis(inner_extent)

    def split_there(old: Factor) -> tuple[Factor, ...]:
        if old.begin % inner_extent or old.extent % inner_extent:
            raise NoBox(f"reshapes a part of a dimension at {old.begin} of {old.extent} by {inner_extent}")
        return (
            Factor(outer, old.begin // inner_extent, old.extent // inner_extent),
            Factor(inner, 0, inner_extent),
        )

    there = _with_axis(there, factor.axis, split_there)
    return there, Factor(outer, index, outer_extent), Factor(inner, 0, inner_extent)


def elements(part: Part) -> int:
    return math.prod(factor.size for factors in part.here for factor in factors)
