"""What Python leaves out around system calls: trying again, and naming the file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from shardwright import _core
from shardwright.remote.address import address_of, is_address

T = TypeVar("T")


def uninterrupted(look: Callable[[], T]) -> T:
    """What ``look`` finds, again where a signal interrupts it. Python itself tries reads and writes again, but not
    stat or listing a directory, which network file systems interrupt."""
    while True:
        try:
            return look()
        except InterruptedError:
            continue


def is_file(path: str | os.PathLike[str]) -> bool:
    """The same for an object at an address."""
    if is_address(path):
        return bool(_core.has_file(address_of(path)))
    return uninterrupted(Path(path).is_file)


def is_folder(path: str | os.PathLike[str]) -> bool:
    """At an address: whether something has names below it."""
    if is_address(path):
        return bool(_core.names_in(address_of(path)))
    return uninterrupted(Path(path).is_dir)


def is_there(path: str | os.PathLike[str]) -> bool:
    if is_address(path):
        return is_file(path) or is_folder(path)
    return uninterrupted(Path(path).exists)


def has_entry(path: str | os.PathLike[str]) -> bool:
    """Whether anything has that name, be it a link that leads nowhere. Raises OSError where that cannot be told."""
    if is_address(path):
        return is_there(path)
    try:
        uninterrupted(lambda: os.lstat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Puts a path into the errors that have none: reading, writing, flushing and mapping do not say of what."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise
