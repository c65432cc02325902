"""How far a command is, on a terminal."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from shardwright.cli.table import amount
from shardwright.progress import Watched, is_watched, watched

QUIET_SECONDS = 2.0  #: what takes no longer shows nothing
STEP_SECONDS = 0.2
ERASE_LINE = "\r\x1b[K"


@contextmanager
def shown() -> Iterator[None]:
    """Shows on stderr, if that is a terminal, how far the work inside the ``with`` block is. Leaves nothing there."""
    if not sys.stderr.isatty() or is_watched():
        yield
        return
    with watched() as watch:
        done = threading.Event()
        thread = threading.Thread(target=_show, args=(watch, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _show(watch: Watched, done: threading.Event) -> None:
    if done.wait(QUIET_SECONDS):
        return
    while not done.wait(STEP_SECONDS):
        line = line_of(watch, time.monotonic())
        if line:
            sys.stderr.write(ERASE_LINE + line[: shutil.get_terminal_size().columns - 1])
            sys.stderr.flush()
    sys.stderr.write(ERASE_LINE)
    sys.stderr.flush()


def line_of(watch: Watched, now: float) -> str:
    """What is shown: "reading 1.20 GB of 4.50 GB, 27 %, 6 s, 16 s left". Empty where no work has begun."""
    done, total, seconds = watch.counters.done, watch.counters.total, now - watch.begun
    if not watch.what:
        return ""
    if total == 0:
        return f"{watch.what} …, {seconds:.0f} s"
    done = min(done, total)
    name = "bytes" if watch.unit == "B" else watch.unit
    text = f"{watch.what} {amount(name, done)} of {amount(name, total)}"
    text += "" if watch.unit == "B" else f" {watch.unit}"
    text += f", {100 * done // total} %, {seconds:.0f} s"
    return text + (f", {seconds * (total - done) / done:.0f} s left" if 0 < done < total else "")
