"""How weights are to be encoded, as callers say it."""

from __future__ import annotations

from collections.abc import Sequence

from shardwright import _core


def checked_quantization(
    quantization: str | None, weights: Sequence[str] | None = None, *, has_template: bool = True
) -> tuple[str, list[str]]:
    """The name of a quantization, "template" or "none", and patterns of the weights that it is for. Raises ValueError,
    with the names that there are, for another name; for "template" where there is none; and for patterns without a
    quantization."""
    name = "none" if quantization is None else quantization
    if name not in ("none", "template", *_core.quantizations()):
        raise ValueError(
            f"quantization is {quantization!r}; expected one of {', '.join(_core.quantizations())}, template, or None"
        )
    is_list = isinstance(weights, Sequence) and not isinstance(weights, str)
    if weights is not None and not (is_list and all(isinstance(one, str) for one in weights)):
        raise ValueError(f"quantized_weights is {weights!r}; expected a list of patterns of names")
    if weights is not None and name in ("none", "template"):
        raise ValueError("quantized_weights: expected a quantization= by which to encode them")
    if weights is not None and len(weights) == 0:
        raise ValueError("quantized_weights is empty; expected patterns of names, or None for the default")
    if name == "template" and not has_template:
        raise ValueError('quantization="template": expected template=, whose encodings and scales are meant')
    return name, list(weights or [])
