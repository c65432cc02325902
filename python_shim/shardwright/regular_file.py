"""Opening what a checkpoint names: regular files, and links to them, and nothing that never ends."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

from shardwright import _core
from shardwright._core import CheckpointFormatError
from shardwright.remote.address import address_of, is_address, without_secrets
from shardwright.system_calls import naming, uninterrupted

#: How a pointer of Git LFS begins, which lies where a file should.
GIT_LFS = b"version https://git-lfs.github.com/spec/"
IS_POINTER = (
    "this is a Git LFS pointer, which stands for the file; get the file itself: run git lfs pull in the repository, or "
    "hf download"
)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """The file, or the object at an address, open for reading.

    Raises:
        OSError: it is a pipe, a device or a directory; or cannot be opened.
    """
    if is_address(path):
        from shardwright.remote.opened import open_object

        return open_object(address_of(path))
    # O_NONBLOCK: opening a named pipe without a writer would otherwise wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with naming(path):
            mode = uninterrupted(lambda: os.fstat(descriptor)).st_mode
        if not stat.S_ISREG(mode):
            what = "a directory" if stat.S_ISDIR(mode) else "something else"
            number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            raise OSError(number, f"expected a regular file, found {what}", os.fspath(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | os.PathLike[str], most: int) -> bytes:
    """All that is in the file.

    Raises:
        OSError: as `open_regular`.
        CheckpointFormatError: it has more than ``most`` bytes, which is far above what any such file has.
    """
    size = _core.size_of_file(os.fspath(path))
    if size > most:
        raise CheckpointFormatError(
            f"{without_secrets(os.fspath(path))}: expected at most {most} bytes, found {size}"
        )
    content: bytes = _core.read_bytes(os.fspath(path), 0, size)
    return content
