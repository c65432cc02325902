"""Ctrl-C while ranks tell each other how something went."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def held_interrupt() -> Iterator[list[FrameType | None]]:
    """Holds a first Ctrl-C back to the end of the block: no rank leaves a round that the others are in. A second
    one, of a user who does not wait for a rank that is gone, is KeyboardInterrupt at once.

    Yields what is held: where the block raises, its caller has to look.
    """
    held: list[FrameType | None] = []
    if threading.current_thread() is not threading.main_thread():  # interrupts come to that one alone
        yield held
        return

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(frame)
        if len(held) > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, hold)
    try:
        yield held
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
    if held:
        raise KeyboardInterrupt
