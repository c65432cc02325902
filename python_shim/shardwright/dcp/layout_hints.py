"""Which layout a state dict looks like, where it is not the one that was asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from shardwright import _core
from shardwright.weight_maps import weight_map_for

#: Native layouts, as callers spell them.
LAYOUTS = ("automodel", "transformers", "torchtitan", "huggingface")


def hints_at_layout(names: Iterable[str], catalog: Any, model: Any, layout: str) -> list[str]:
    """What would make a state dict fit a Hugging Face checkpoint: another layout, or names without a prefix."""
    asked = set(names)
    known: dict[str, set[str]] = {}
    for one in (layout, *LAYOUTS):
        try:
            weight_map = weight_map_for(catalog, model, one)
            known[one] = {tensor.fqn for tensor in _core.native_tensors(catalog, weight_map)}
        except ValueError:  # a family without this layout, or a checkpoint that no family knows
            continue
    if not known or asked <= known.get(layout, set()):  # names are not what is wrong
        return []
    fitting = {one: len(asked & of_layout) for one, of_layout in known.items()}
    best = max(fitting, key=lambda one: fitting[one])  # the one asked for where several fit alike
    is_nearly_all = 10 * fitting[best] >= 9 * len(asked)
    if best != layout and fitting[best] > fitting.get(layout, 0) and is_nearly_all:
        return [
            f"{fitting[best]} of {len(asked)} names are those of layout={best!r}, {fitting.get(layout, 0)} those of "
            f"layout={layout!r}: pass layout={best!r}"
        ]
    # Where most names fit, others are missing for another reason than a key or a layout that all would share.
    mostly_fits = 2 * fitting.get(layout, 0) >= len(asked)
    for one, of_layout in ({layout: known[layout]} if mostly_fits else known).items():
        if one == "torchtitan" != layout:  # whose short names are the ends of many others
            continue
        missing = [name for name in asked if name not in of_layout]
        if hints := _core.hints_at_names(missing, list(of_layout)):
            return list(hints) if one == layout else [*hints, f"and pass layout={one!r}"]
    return []
