"""Memory that buckets of pieces are handed over in, used again once nobody has a piece of it any more."""

from __future__ import annotations

import mmap
import sys

import torch

#: References that a bucket's memory has while no tensor is in it, as free() counts them.
_OWN = 2


class Bucket:
    """Memory for one bucket, without gaps between its pages and zero at first."""

    def __init__(self, size: int) -> None:
        try:
            self._memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:  # as of a process that may take no more
            raise MemoryError(
                f"cannot take {size} bytes for pieces ({error}); pass a smaller bucket_bytes"
            ) from error

    def tensor(self) -> torch.Tensor:
        """The memory as bytes. It is there as long as this tensor or a view of it is."""
        return torch.frombuffer(self._memory, dtype=torch.uint8)

    def is_free(self) -> bool:
        """Whether all tensors in it are gone."""
        return sys.getrefcount(self._memory) <= _OWN


class Buckets:
    """Two buckets, one to be filled while pieces of the other are in use. A caller that keeps pieces keeps their
    memory: then another bucket takes the place."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._buckets: list[Bucket | None] = [None, None]
        self._turn = 0

    def next(self) -> Bucket:
        """The bucket to fill next."""
        self._turn = 1 - self._turn
        bucket = self._buckets[self._turn]
        if bucket is None or not bucket.is_free():
            bucket = self._buckets[self._turn] = Bucket(self._size)
        return bucket
