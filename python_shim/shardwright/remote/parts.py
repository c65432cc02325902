"""Parts of objects in memory, for code that reads files one after the other: torch's own reader."""

from __future__ import annotations

import io
import os
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from shardwright.local_path import beside
from shardwright.remote.reading import arriving, connect, look_at

_RANGE_BYTES = 8 << 20  # of a request
_RANGES_AT_ONCE = 16
_MOST_BYTES = _RANGES_AT_ONCE * _RANGE_BYTES


class Part(NamedTuple):
    """Bytes of an object."""

    address: str
    begin: int
    length: int


@dataclass
class _BegunPart:
    part: Part
    memory: io.BytesIO
    ranges: list[Future[None]]


class PartsAhead:
    """Reads parts before they are taken, in the order in which they are going to be: several ranges at a time, of one
    part or of many. Objects are as they were when their first part was begun; if one changes, taking raises.

    Memory for at most ``most_bytes`` is in use, or that of one part which alone is larger; a part's until the next one
    is taken.
    """

    def __init__(self, parts: Iterable[Part], most_bytes: int | None = None) -> None:
        connect()
        self._waiting, self._most_bytes = deque(parts), _MOST_BYTES if most_bytes is None else most_bytes
        self._begun: deque[_BegunPart] = deque()
        self._versions: dict[str, str] = {}
        self._held = self._taken = self.peak_bytes = self.requests = 0
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(_RANGES_AT_ONCE, thread_name_prefix="reading parts")

    def __enter__(self) -> PartsAhead:
        return self

    def __exit__(self, *_: Any) -> None:
        """Ends what is under way."""
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)

    def take(self, part: Part) -> io.BytesIO:
        """The next part. Raises what its store does."""
        self._held -= self._taken
        self._begin_some()
        begun = self._begun.popleft()
        if begun.part != part:
            raise RuntimeError(f"expected {begun.part} to be taken, as was said, found that {part} is wanted")
        self._taken = part.length
        for one in begun.ranges:
            one.result()
        return begun.memory

    def _begin_some(self) -> None:
        while self._waiting and (not self._begun or self._held + self._waiting[0].length <= self._most_bytes):
            part = self._waiting.popleft()
            self._held += part.length
            self.peak_bytes = max(self.peak_bytes, self._held)
            self._begun.append(self._begin(part))

    def _begin(self, part: Part) -> _BegunPart:
        if part.address not in self._versions:
            self._versions[part.address] = look_at(part.address).version
        memory = io.BytesIO(bytes(part.length))
        ranges = [
            self._pool.submit(self._fill, part, memory, at, min(_RANGE_BYTES, part.length - at))
            for at in range(0, part.length, _RANGE_BYTES)
        ]
        self.requests += len(ranges)
        return _BegunPart(part, memory, ranges)

    def _fill(self, part: Part, memory: io.BytesIO, at: int, count: int) -> None:
        with memory.getbuffer() as whole, whole[at : at + count] as place:
            done = 0
            for buffer in arriving(part.address, self._versions[part.address], part.begin + at, count):
                if self._stopped.is_set():
                    return
                place[done : done + len(buffer)] = buffer
                done += len(buffer)


class PartsFileSystem:
    """As much of torch's FileSystemBase as reading takes where the parts are read by `PartsAhead`: what it opens is
    empty."""

    def init_path(self, path: str | os.PathLike[str]) -> str:
        return os.fspath(path)

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        return beside(path, suffix)

    def create_stream(self, path: str | os.PathLike[str], mode: str) -> BinaryIO:
        if mode != "rb":
            raise ValueError(f"{os.fspath(path)}: expected to be read, found mode {mode!r}")
        return io.BytesIO()
