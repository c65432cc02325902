"""Paths as callers give them."""

from __future__ import annotations

import os

from shardwright import _core


def local_path(path: str | os.PathLike[str]) -> str:
    """The path as text.

    Raises:
        TypeError: it is no path.
        ValueError: it is the address of something elsewhere, such as s3://bucket/x, with what to do instead.
    """
    text = os.fspath(path)
    _core.expect_local_path(text)
    return text
