"""Nested state dicts: others of the same keys, and how two of them differ."""

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import DTensor


def filled(value: Any, make: Callable[[Any], Any]) -> Any:
    """The same nested state, of other leaves."""
    if isinstance(value, dict):
        return {key: filled(part, make) for key, part in value.items()}
    if isinstance(value, list):
        return [filled(part, make) for part in value]
    return make(value)


def same_bits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    flat = [t.detach().contiguous().reshape(-1) for t in (found, expected)]
    return not len(flat[0]) or torch.equal(*(t.view(torch.uint8) for t in flat))


def differing(found: Any, expected: Any, name: str = "") -> list[str]:
    """Where the bits are not the same."""
    if isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            return [name or "the keys"]
        return [d for key in expected for d in differing(found[key], expected[key], f"{name}.{key}")]
    if isinstance(expected, list):
        if len(found) != len(expected):
            return [name]
        return [d for i in range(len(expected)) for d in differing(found[i], expected[i], f"{name}.{i}")]
    if isinstance(expected, torch.Tensor):
        whole = found.full_tensor() if isinstance(found, DTensor) else found
        return [] if same_bits(whole, expected) else [name]
    return [] if found == expected else [name]
