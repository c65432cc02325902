"""A directory that is there as a whole or not at all: written under another name, flushed, renamed."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def temporary_of(destination: Path) -> Path:
    """The sibling that a save to ``destination`` is written to."""
    return destination.parent / f".{destination.name}.incomplete"


def prepare(destination: Path) -> Path:
    """Makes the temporary directory, empty, and returns it. What a dead save left there is removed.

    Raises NotADirectoryError or FileExistsError for a destination that is no checkpoint.
    """
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        raise NotADirectoryError(
            errno.ENOTDIR,
            f"{destination}: expected a directory or nothing of that name, found a file or a link",
        )
    if destination.is_dir() and not _may_be_replaced(destination):
        raise FileExistsError(
            errno.EEXIST,
            f"{destination}: expected a new name, an empty directory or a checkpoint to replace, found a directory of "
            "other things; give another name",
        )
    temporary = temporary_of(destination)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir()
    except OSError as error:
        raise OSError(
            error.errno,
            f"{temporary}: cannot make this directory, which a save is written to: {error.strerror}",
        ) from None
    return temporary


def _may_be_replaced(directory: Path) -> bool:
    names = [entry.name for entry in directory.iterdir()]
    return not names or any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names)


def publish(temporary: Path, destination: Path) -> None:
    """Gives the finished directory its name, in one step, and removes what had that name before."""
    _flush_directory(temporary)
    if destination.is_dir():
        _exchange(temporary, destination)
        _flush_directory(destination.parent)
        shutil.rmtree(temporary)
    else:
        os.rename(temporary, destination)
    _flush_directory(destination.parent)


def _exchange(a: Path, b: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{b}: cannot be replaced by the finished {a}: {os.strerror(number)}")


def discard(destination: Path) -> None:
    """Removes the temporary of a save that failed, if there is one."""
    shutil.rmtree(temporary_of(destination), ignore_errors=True)


def write_text(path: Path, text: bytes) -> None:
    """A small file, flushed to the device."""
    with open(path, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
