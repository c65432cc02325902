"""Objects as files, for code that reads files, such as zipfile."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

from shardwright.remote.reading import arriving, connect, look_at

_BUFFER_BYTES = 1 << 20


class _ObjectFile(io.RawIOBase):
    """An object as it was when this was made; if it changes, reading raises."""

    def __init__(self, address: str) -> None:
        connect()
        self._address, self._object, self._at = address, look_at(address), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._object.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._object.size - self._at))
        done = 0
        for part in arriving(self._address, self._object.version, self._at, count):
            buffer[done : done + len(part)] = part
            done += len(part)
        self._at += done
        return done


def open_object(address: str) -> BinaryIO:
    """The object, open for reading. Raises FileNotFoundError and OSError as its store does."""
    return io.BufferedReader(_ObjectFile(address), _BUFFER_BYTES)
