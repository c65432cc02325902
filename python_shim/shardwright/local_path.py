"""Paths as callers give them, and numbers."""

from __future__ import annotations

import os
from pathlib import Path

from shardwright import _core
from shardwright.remote.address import address_of, is_address, unmangled, without_secrets


def local_path(path: str | os.PathLike[str]) -> str:
    """The path as text.

    Raises:
        TypeError: it is no path.
        ValueError: it is the address of something elsewhere, such as s3://bucket/x, with what to do instead.
    """
    text = os.fsdecode(path)
    if "\0" in text:
        raise ValueError(f"{text!r}: expected a path, found a text with a NUL in it")
    _core.expect_local_path(text)
    return text


def location(path: str | os.PathLike[str]) -> str:
    """Where a checkpoint is read from: a path of this machine, or an address such as s3://bucket/run, in one form.

    Raises:
        TypeError: it is neither.
        ValueError: it is a text that is not meant, such as file:///x, with what to do instead.
    """
    if not is_address(path):
        return local_path(path)
    from shardwright.remote.reading import connect

    connect()
    return address_of(path)


def shown(path: str | os.PathLike[str]) -> str:
    """The path or address as messages and reports name it: without a password or a query."""
    text = os.fsdecode(path)
    # In a name of a file, a question mark asks for nothing.
    return without_secrets(unmangled(text)) if is_address(text) else text


def beside(folder: str | os.PathLike[str], name: str) -> str:
    """The path or address of what has that name in a folder. pathlib would make s3:/bucket of s3://bucket."""
    return os.path.join(address_of(folder) if is_address(folder) else os.fspath(folder), name)


def lasting_path(path: str | os.PathLike[str]) -> str:
    """The path as it is meant now, whatever becomes of the working directory: absolute, and the folder that it lies in
    with links resolved. Its last name may be of a link.

    Raises:
        TypeError, ValueError: as :func:`local_path`.
    """
    text = local_path(path)
    folder, name = os.path.split(text.rstrip("/") or text)
    if name in ("", os.curdir, os.pardir):
        return resolved(text)
    return os.path.join(resolved(folder or os.curdir), name)


def lasting_place(path: str | os.PathLike[str]) -> Path | str:
    """As :func:`lasting_path`; of an address such as s3://bucket/run, its text.

    Raises:
        TypeError, ValueError: as :func:`local_path`; for an address to which nothing is written.
    """
    if not is_address(path):
        return Path(lasting_path(path))
    address = location(path)
    if address.startswith(("hf://", "http://", "https://")):
        raise ValueError(
            f"{without_secrets(address)}: expected a directory or a store such as s3://bucket/run, found an address "
            "that is only read; write to a directory and upload that, to the Hub with hf upload"
        )
    return address


def resolved(path: str | os.PathLike[str]) -> str:
    """The path with links resolved. Raises OSError where that cannot be said, unlike os.path.realpath."""
    whole: str = os.fspath(_core.resolved_path(os.fspath(path)))
    return whole


def whole_number(name: str, value: int, least: int = 0, most: int | None = None) -> int:
    """``value``, which is a whole number from ``least`` to ``most``; None: no upper bound.

    Raises:
        ValueError: it is something else, such as 2.0 or True.
    """
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if not is_number or value < least or (most is not None and value > most):
        bounds = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} is {value!r}; expected a whole number {bounds}")
    return value


def bytes_or_none(name: str, value: int | None) -> int | None:
    """``value``, which is None or a number of bytes, from 1 on."""
    return None if value is None else whole_number(name, value, 1, 1 << 48)


def expect_flags(**flags: bool) -> None:
    """Raises ValueError for anything but True and False, naming it."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}: expected True or False, found {value!r}")


def expect_text(name: str, value: str) -> None:
    """Raises ValueError for anything but text."""
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected text, found {value!r}")


def expect_overwrite(overwrite: bool | None) -> None:
    """Raises ValueError for anything but True, False and None."""
    if overwrite is not None and not isinstance(overwrite, bool):
        raise ValueError(f"overwrite is {overwrite!r}; expected True, False or None")
