"""What Python leaves out around system calls: trying again, and naming the file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from shardwright import _core
from shardwright.remote.address import address_of, is_address

T = TypeVar("T")
F = TypeVar("F", bound=IO[Any])


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
def opened(path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
    """The file, open; all errors name it."""
    with naming(path), closed_at_the_end(open(path, mode)) as file:  # noqa: SIM115
        yield file
        file.flush()


@contextmanager
def closed_at_the_end(file: F) -> Iterator[F]:
    """Closes it. A signal that comes meanwhile is no error: it is closed then."""
    try:
        yield file
    finally:
        with suppress(InterruptedError):
            file.close()


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Puts a path into the errors that have none: reading, writing, flushing and mapping do not say of what."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise
