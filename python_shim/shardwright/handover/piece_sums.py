"""What has been handed over before."""

from __future__ import annotations

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

    @property
    def blocks(self) -> int:
        """How many checksums it has."""
        return super().blocks

    def forget(self) -> None:
        """Makes the next time hand over everything, as to a receiver that has been started anew."""
        super().forget()
