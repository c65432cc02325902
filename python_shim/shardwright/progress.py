"""How far work is: told to whoever asked for it, and to the command line, which shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from shardwright import _core


@dataclass
class Watched:
    """The piece of work that goes on now."""

    what: str = ""  #: such as "reading"; empty: none has begun
    unit: str = "B"
    counters: Any = field(default_factory=_core.Progress)  #: which the engine moves
    begun: float = 0.0


_watched: ContextVar[Watched | None] = ContextVar("watched", default=None)


@contextmanager
def watched() -> Iterator[Watched]:
    """Has the work inside the ``with`` block counted."""
    watch = Watched()
    token = _watched.set(watch)
    try:
        yield watch
    finally:
        _watched.reset(token)


def is_watched() -> bool:
    return _watched.get() is not None


def counters_of(what: str, unit: str = "B") -> Any:
    """Counters (``_core.Progress``) for work that begins now; None where nobody looks."""
    watch = _watched.get()
    if watch is None:
        return None
    watch.what, watch.unit, watch.counters, watch.begun = what, unit, _core.Progress(), time.monotonic()
    return watch.counters


@contextmanager
def progress_callback(
    wanted: bool | Callable[[int, int], None],
) -> Iterator[Callable[[int, int], None] | None]:
    """What the engine calls with (bytes done, bytes in all): the caller's own, one that moves a bar, or nothing."""
    if callable(wanted):
        yield wanted
        return
    if not wanted:
        counters = counters_of("reading")
        yield None if counters is None else counters.set
        return
    from tqdm import tqdm

    with tqdm(unit="B", unit_scale=True, desc="loading") as bar:

        def move(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield move
