"""Pickled objects of a checkpoint, which may run any code that they name unless they are held to what is safe."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from shardwright import _core
from shardwright.objects.safe_unpickler import load_safely


def safe_pickle(fqn: str, file: str | Path, data: io.BytesIO) -> io.BytesIO:
    """The same object, pickled anew, so that who loads it without restraint meets nothing but what has been found safe.

    Raises:
        ValueError: it holds more than tensors, numpy arrays, numbers, text, times, paths, containers of them, and
            classes that torch.serialization.add_safe_globals allows.
    """
    try:
        safe = io.BytesIO()
        torch.save(load_safely(data), safe)
    except Exception as error:  # damaged pickles raise anything
        text = str(error) or type(error).__name__
        raise ValueError(
            f"{fqn} in {file}: this object cannot be loaded safely ({text}); if you trust the checkpoint, pass "
            "weights_only=False, or name its classes to torch.serialization.add_safe_globals"
        ) from error
    safe.seek(0)
    return safe


def safe_pickles(
    names: Iterable[str], read: Callable[[str], tuple[str | Path, io.BytesIO]]
) -> dict[str, io.BytesIO]:
    """`safe_pickle` of several objects, each as ``read`` gives it: the file that it is in, and its bytes.

    Raises:
        ValueError: names all that cannot be loaded safely.
    """
    safe, refused = {}, []
    for name in dict.fromkeys(names):
        file, data = read(name)
        try:
            safe[name] = safe_pickle(name, file, data)
        except ValueError as error:
            refused.append(error)
    if len(refused) == 1:
        raise refused[0]
    if refused:
        headline = "objects of this checkpoint cannot be loaded safely:"
        raise ValueError(_core.in_lines(headline, [str(error) for error in refused]))
    return safe


# --- when saving ---------------------------------------------------------------------------------------------------

_PLAIN = (int, float, str, bool, bytes, type(None))


def _is_plain(value: Any) -> bool:
    """Without looking far: whether it is of what every load takes."""
    if type(value) in (list, tuple):
        return all(type(element) in _PLAIN or _is_plain(element) for element in value)
    if type(value) is dict:
        return all(type(key) in _PLAIN for key in value) and _is_plain(list(value.values()))
    if type(value) is torch.Tensor:
        return True
    is_array = type(value).__module__ == "numpy" and type(value).__name__ == "ndarray"
    return type(value) in _PLAIN or (is_array and value.dtype.kind in "biufcSU")


def _refusal_of(value: Any) -> str:
    """Why a load would refuse the object; empty if it would not, or if it cannot be saved at all."""
    data = io.BytesIO()
    try:
        torch.save(value, data)
    except Exception:
        return ""  # the save itself says why
    data.seek(0)
    try:
        torch.save(load_safely(data), io.BytesIO())
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


def warn_of_refused_objects(objects: Mapping[str, Any]) -> None:
    """Warns, once, of objects about to be saved that a load refuses unless it is told to trust the checkpoint."""
    refused = []
    for fqn, value in objects.items():
        if _is_plain(value) or not (reason := _refusal_of(value)):
            continue
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        advice = "; pass its state_dict()" if hasattr(value, "state_dict") else ""
        refused.append(f"{fqn}: {kind} ({reason}{advice})")
    if not refused:
        return
    text = (
        "this save holds objects that a load refuses, since making them runs code; save plain data in their place, or "
        "load with weights_only=False, or after torch.serialization.add_safe_globals:"
    )
    warnings.warn(_core.in_lines(text, refused), UserWarning, stacklevel=2)
