"""Parts of objects in memory, for code that reads files one after the other: torch's own reader."""

from __future__ import annotations

import io
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, NamedTuple

from shardwright.local_path import beside
from shardwright.remote.reading import arriving, connect, look_at

_RANGE_BYTES = 8 << 20  # of a request
_RANGES_AT_ONCE = 16
_MOST_BYTES = _RANGES_AT_ONCE * _RANGE_BYTES
_FEWEST_RUNS = 4  # that little memory has room for


class Part(NamedTuple):
    """Bytes [begin, end) of an object."""

    address: str
    begin: int
    end: int


@dataclass
class _Run:
    """Parts of one object that lie side by side, and the memory that they are read into."""

    parts: deque[Part]
    whole: Part
    memory: io.BytesIO
    ranges: list[Future[None]]


class _Threads:
    """Up to ``count`` threads that run what they are given, in that order. Python waits for none of them when it exits,
    as it would for those of a ThreadPoolExecutor."""

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name = count, name
        self._waiting: queue.SimpleQueue[tuple[Callable[[], None], Future[None]] | None] = queue.SimpleQueue()
        self._begun: list[threading.Thread] = []

    def run(self, act: Callable[[], None]) -> Future[None]:
        done: Future[None] = Future()
        self._waiting.put((act, done))
        if len(self._begun) < self._count:
            name = f"{self._name} {len(self._begun)}"
            self._begun.append(threading.Thread(target=self._run, name=name, daemon=True))
            self._begun[-1].start()
        return done

    def _run(self) -> None:
        while taken := self._waiting.get():
            act, done = taken
            try:
                act()
                done.set_result(None)
            except BaseException as error:
                done.set_exception(error)
            del taken, act, done  # and with them memory that has been taken meanwhile

    def end(self, wait: bool) -> None:
        """Begins nothing more; what waits then is never done. ``wait``: for what has been begun."""
        with suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()
        for _ in self._begun:
            self._waiting.put(None)
        for thread in self._begun if wait else ():
            thread.join()


class PartsAhead:
    """Reads parts before they are taken, in the order in which they are going to be: several requests at a time, of one
    part or of many, and one for neighbours that are small. Objects are as they were when their first part was begun;
    if one changes, taking raises.

    At most ``most_bytes`` are in memory, or one part which alone is larger; those of a request until the next part is
    taken that is not of it.
    """

    def __init__(self, parts: Iterable[Part], most_bytes: int | None = None) -> None:
        connect()
        self._most_bytes = _MOST_BYTES if most_bytes is None else most_bytes
        self._waiting = _side_by_side(parts, min(_RANGE_BYTES, self._most_bytes // _FEWEST_RUNS))
        self._begun: deque[_Run] = deque()
        self._taken: Part | None = None
        self._versions: dict[str, str] = {}
        self._held = self.peak_bytes = self.requests = 0
        self._stopped = threading.Event()
        self._threads = _Threads(_RANGES_AT_ONCE, "reading parts")

    def __enter__(self) -> PartsAhead:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        """Ends what is under way. Ctrl-C is an error at once while a store stalls: nobody waits for its request, which
        ends by itself or with the process."""
        self._stopped.set()
        self._threads.end(wait=error is None or issubclass(error, Exception))
        self._begun.clear()

    def take(self, part: Part) -> io.BytesIO:
        """The next part, or the last one again. Raises what its store does."""
        if part == self._taken:
            return _part_of(self._begun[0], part)
        if self._begun and not self._begun[0].parts:
            self._held -= _length(self._begun.popleft().whole)
        self._begin_some()
        run = self._begun[0]
        expected = run.parts.popleft()
        if expected != part:
            raise RuntimeError(f"expected {expected} to be taken, as was said, found that {part} is wanted")
        for one in run.ranges:
            one.result()
        self._taken = part
        return run.memory if part == run.whole else _part_of(run, part)

    def _begin_some(self) -> None:
        while self._waiting:
            parts = self._waiting[0]
            whole = Part(parts[0].address, parts[0].begin, parts[-1].end)
            if self._begun and self._held + _length(whole) > self._most_bytes:
                return
            self._held += _length(whole)
            self.peak_bytes = max(self.peak_bytes, self._held)
            self._begun.append(self._run_of(self._waiting.popleft(), whole))

    def _run_of(self, parts: deque[Part], whole: Part) -> _Run:
        if whole.address not in self._versions:
            self._versions[whole.address] = look_at(whole.address).version
        memory = io.BytesIO(bytes(_length(whole)))
        ranges = [
            self._threads.run(partial(self._fill, whole, memory, begin, min(begin + _RANGE_BYTES, whole.end)))
            for begin in range(whole.begin, whole.end, _RANGE_BYTES)
        ]
        self.requests += len(ranges)
        return _Run(parts, whole, memory, ranges)

    def _fill(self, whole: Part, memory: io.BytesIO, begin: int, end: int) -> None:
        with memory.getbuffer() as all_of_it:
            at = begin - whole.begin
            version = self._versions[whole.address]
            for buffer in arriving(whole.address, version, begin, end - begin, in_pieces=True):
                if self._stopped.is_set():
                    return
                all_of_it[at : at + len(buffer)] = buffer
                at += len(buffer)


def _part_of(run: _Run, part: Part) -> io.BytesIO:
    with run.memory.getbuffer() as memory:
        return io.BytesIO(memory[part.begin - run.whole.begin : part.end - run.whole.begin])


def _length(part: Part) -> int:
    return part.end - part.begin


def _side_by_side(parts: Iterable[Part], most_bytes: int) -> deque[deque[Part]]:
    """The parts, in their order; in one deque those that one request brings, of at most so many bytes."""
    runs: deque[deque[Part]] = deque()
    for part in parts:
        if runs:
            first, last = runs[-1][0], runs[-1][-1]
            follows = part.address == last.address and part.begin == last.end
            if follows and part.end - first.begin <= most_bytes:
                runs[-1].append(part)
                continue
        runs.append(deque([part]))
    return runs


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
