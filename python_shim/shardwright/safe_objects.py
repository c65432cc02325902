"""Pickled objects of a checkpoint, which may run any code that they name unless they are held to what is safe."""

from __future__ import annotations

import io
from pathlib import Path

import torch


def safe_pickle(fqn: str, file: str | Path, data: io.BytesIO) -> io.BytesIO:
    """The same object, pickled anew, so that who loads it without restraint meets nothing but what has been found safe.

    Raises:
        ValueError: it holds more than tensors, numbers, text, containers of them, and classes that
            torch.serialization.add_safe_globals allows.
    """
    try:
        value = torch.load(data, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{fqn} in {file}: this object cannot be loaded safely ({error}); if you trust the checkpoint, pass "
            "weights_only=False, or name its classes to torch.serialization.add_safe_globals"
        ) from error
    safe = io.BytesIO()
    torch.save(value, safe)
    safe.seek(0)
    return safe
