"""What has been handed over before."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from shardwright import _core
from shardwright.local_path import whole_number


class PieceSums(_core.PieceSums):
    """Checksums of what a rank has handed over, for the next time to hand over what has changed.

    One for each rank and receiver, which the caller keeps. :func:`pieces` compares with it, and renews it when its
    pieces have been asked for to the last one.

    Args:
        block_bytes: encoded bytes, scales included, that share a checksum (XXH3, 64 bits), which takes 8 bytes of
            memory. A block is a run of a row, several rows where they are short, or blocks of the encoding where these
            are larger. Fewer bytes find scattered changes more closely.
    """

    def __init__(self, block_bytes: int = 4096) -> None:
        super().__init__(whole_number("block_bytes", block_bytes, 32, 1 << 30))
        self._lock = threading.Lock()
        self._run = 0  # number of the one that compares with it
        self._filling: Future[Any] | None = None

    @property
    def blocks(self) -> int:
        """How many checksums it has."""
        return super().blocks

    def forget(self) -> None:
        """Makes the next time hand over everything, as to a receiver that has been started anew."""
        super().forget()

    def begin_run(self) -> int:
        """Its number. What has begun before with these sums is at its end, wherever it was."""
        with self._lock:
            self._run += 1
            if self._filling is not None:
                wait([self._filling])
            return self._run

    def begin_filling(self, run: int, begin: Callable[[], Future[Any]]) -> Future[Any]:
        """Begins what reads and writes these sums meanwhile.

        Raises:
            ValueError: another run has begun with them.
        """
        with self._lock:
            self._expect(run)
            self._filling = begin()
            return self._filling

    def keep(self, run: int, source: Any) -> None:
        """Says that all pieces have arrived. Raises as begin_filling()."""
        with self._lock:
            self._expect(run)
            source.keep_sums()

    def _expect(self, run: int) -> None:
        if run != self._run:
            raise ValueError(
                "changed_since: another handing over has begun with these PieceSums, and this one cannot go on; "
                "expected one of its own for each receiver"
            )
