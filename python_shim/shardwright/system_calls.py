"""What Python leaves out around system calls: trying again, and naming the file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

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
    return uninterrupted(Path(path).is_file)


def is_folder(path: str | os.PathLike[str]) -> bool:
    return uninterrupted(Path(path).is_dir)


def is_there(path: str | os.PathLike[str]) -> bool:
    return uninterrupted(Path(path).exists)


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Puts a path into the errors that have none: reading, writing, flushing and mapping do not say of what."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise
