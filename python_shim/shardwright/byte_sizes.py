"""How users spell a number of bytes. Needs no torch."""

from __future__ import annotations

import re

_UNITS = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
}


def bytes_of_size(size: int | str, name: str = "max_shard_size") -> int:
    """A number of bytes, or text such as "5GB" or "512MiB", as transformers reads it. ``name``: of the argument."""
    if isinstance(size, int) and size > 0:
        return size
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]I?B)?", str(size).upper())
    if (
        match is None
        or (match[2] or "") not in _UNITS
        or (found := int(float(match[1]) * _UNITS[match[2] or ""])) < 1
    ):
        raise ValueError(f'{name} is {size!r}; expected bytes, or text such as "5GB" or "512MiB"')
    return found
