"""Casts that lose bits."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import torch

from shardwright import _core
from shardwright.describe import DTYPE_NAMES
from shardwright.local_path import shown


def holds_all(to: torch.dtype, source: torch.dtype) -> bool:
    """Whether every number of one dtype is one of the other. Of what safetensors has no name for, little is known."""
    if to == source or (to == torch.complex128 and source in (torch.complex64, torch.complex32)):
        return True
    if to == torch.complex64 and source == torch.complex32:
        return True
    name = DTYPE_NAMES.get(torch.float64 if to == torch.complex128 else to)
    return name is not None and source in DTYPE_NAMES and bool(_core.holds_all(name, DTYPE_NAMES[source]))


def roundings_of(casts: Iterable[tuple[str, torch.dtype, torch.dtype]]) -> dict[str, str]:
    """Of these (tensor, dtype that it has, dtype that it gets): {tensor: "F32 -> BF16"} where bits may be lost."""
    return {
        tensor: f"{_name(source)} -> {_name(to)}" for tensor, source, to in casts if not holds_all(to, source)
    }


def _name(dtype: torch.dtype) -> str:
    return DTYPE_NAMES.get(dtype) or str(dtype).removeprefix("torch.")


def refuse_roundings(rounded: Mapping[str, str], where: str | os.PathLike[str]) -> None:
    """Raises a PlanError that lists it, if there are any."""
    lines = _core.grouped_names(sorted(f"{name}: {cast}" for name, cast in rounded.items()))
    if lines:
        raise _core.PlanError(
            _core.in_lines(
                f"cannot load {shown(where)} into tensors of these dtypes without loss; nothing has been written "
                "(strict_dtypes=False rounds):",
                lines,
            )
        )
