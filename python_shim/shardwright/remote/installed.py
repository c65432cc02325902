"""Libraries that only remote addresses need."""

from __future__ import annotations

import importlib
from typing import Any


def imported(library: str, what: str) -> Any:
    """The library. Raises ImportError that says what it was needed for, and how to install it."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ImportError(
            f"{what} needs {library}, which cannot be imported ({error}); "
            "install it: pip install 'shardwright[remote]'",
            name=library,
        ) from error
