"""Parts of tensors as the axis expressions of rules (planner/names/axis_expression.h)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from shardwright.imported.geometry import Axis, Factor, Part, Side


@dataclass
class AxisText:
    text: str  #: empty: the source is the tensor
    sizes: dict[str, int] = field(default_factory=dict)  #: of the axes that have neither number nor shape


def axis_text(part: Part) -> AxisText:
    """The axis expression of a part whose source is the HF tensor."""
    part = _simplified(part)
    if _is_identity(part):
        return AxisText("")
    names, sizes = _names_of(part)
    return AxisText(f"{_side_text(part.there, names)} -> {_side_text(part.here, names)}", sizes)


def _is_whole(factor: Factor) -> bool:
    return factor.begin == 0 and factor.extent == factor.size


def _is_identity(part: Part) -> bool:
    """Whether each dimension is one axis, all of it, at the same place on both sides."""
    return part.there == part.here and all(
        len(factors) == 1 and factors[0].axis is not None and _is_whole(factors[0]) for factors in part.here
    )


def _simplified(part: Part) -> Part:
    """The same part in as few factors as can be."""
    there, here = part.there, part.here
    for outer, inner in _neighbours(there):
        if (outer, inner) in _neighbours(here):
            both = Axis(outer.size * inner.size)
            there, here = _joined(there, inner, both), _joined(here, inner, both)
            return _simplified(Part(part.source, there, here))
    lone = {side[0].axis for factors in (there, here) for side in factors if len(side) == 1}
    for factors in (*there, *here):
        for factor in factors:
            # Where a dimension is all there is to an axis of size 1, another model may have more of it.
            if factor.axis is not None and factor.size == 1 and factor.axis not in lone:
                return _simplified(Part(part.source, _fixed(there, factor.axis), _fixed(here, factor.axis)))
    return Part(part.source, _without_ones(there), _without_ones(here))


def _neighbours(side: Side) -> list[tuple[Axis, Axis]]:
    """Axes of which one runs directly within the other, over all of its factor."""
    return [
        (outer.axis, inner.axis)
        for factors in side
        for outer, inner in zip(factors, factors[1:], strict=False)
        if outer.axis is not None and inner.axis is not None and _is_whole(inner)
    ]


def _joined(side: Side, inner: Axis, both: Axis) -> Side:
    """With one axis in place of an inner one and the one before it."""
    joined = []
    for factors in side:
        kept: list[Factor] = []
        for factor in factors:
            if factor.axis is inner:
                before = kept.pop()
                factor = Factor(both, before.begin * inner.size, before.extent * inner.size)
            kept.append(factor)
        joined.append(tuple(kept))
    return tuple(joined)


def _fixed(side: Side, axis: Axis) -> Side:
    return tuple(
        tuple(
            Factor(None, factor.begin, factor.extent) if factor.axis is axis else factor for factor in factors
        )
        for factors in side
    )


def _without_ones(side: Side) -> Side:
    return tuple(
        tuple(factor for factor in factors if factor.axis is not None or factor.extent > 1)
        for factors in side
    )


def _names_of(part: Part) -> tuple[dict[Axis, str], dict[str, int]]:
    """A letter for each HF dimension; where several axes share one, numbers behind it. Of the axes of a dimension, one
    may be of unknown size: the others are numbers."""
    letters = {1: "o", 2: "oi", 3: "eoi"}.get(len(part.there), "abcdefghijklmnopqrstuvwxyz")
    names: dict[Axis, str] = {}
    for letter, factors in zip(letters, part.there, strict=False):
        axes = [factor.axis for factor in factors if factor.axis is not None]
        for number, axis in enumerate(axes, 1):
            names[axis] = letter if len(axes) == 1 else f"{letter}{number}"
    numbered: set[Axis] = set()
    for factors in (*part.there, *part.here):
        unknown = [factor.axis for factor in factors if factor.axis and factor.axis not in numbered]
        if len(unknown) > 1:
            longest = max(unknown, key=lambda axis: axis.size)
            numbered |= {axis for axis in unknown if axis is not longest}
    sizes: dict[str, int] = {}
    for axis in numbered:
        others = {other for other in numbered if other.size == axis.size}
        if _order(part.there, others) == _order(part.here, others):
            names[axis] = str(axis.size)  # of equal numbers, the first is the other side's first
        else:
            names[axis] = f"{names[axis]}_{axis.size}"
            sizes[names[axis]] = axis.size
    return names, sizes


def _order(side: Side, among: set[Axis]) -> list[Axis]:
    return [factor.axis for factors in side for factor in factors if factor.axis in among and factor.axis]


def _side_text(side: Side, names: dict[Axis, str]) -> str:
    return " ".join(_dimension_text(factors, names) for factors in side)


def _dimension_text(factors: Sequence[Factor], names: dict[Axis, str]) -> str:
    words = [word for factor in factors for word in _words(factor, names)]
    if not words:
        return "1"
    return words[0] if len(words) == 1 and "|" not in words[0] else f"({' '.join(words)})"


def _words(factor: Factor, names: dict[Axis, str]) -> list[str]:
    if factor.axis is None:
        return [f"{factor.begin}/{factor.extent}"]
    name, size = names[factor.axis], factor.size
    if _is_whole(factor):
        return [name]
    if size and factor.begin % size == 0 and factor.extent % size == 0:
        return [f"{factor.begin // size}/{factor.extent // size}", name]
    after = factor.extent - factor.begin - size
    before = [str(factor.begin)] if factor.begin else []
    return ["|".join([*before, f"[{name}]", *([str(after)] if after else [])])]
