"""Work that is cut so that its memory stays within bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def in_batches(items: Iterable[T], size_of: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """The items in their order, neighbours together, so many that their sizes come to ``most``, or are those of one."""
    batch: list[T] = []
    filled = 0
    for item in items:
        size = size_of(item)
        if batch and size and filled + size > most:
            yield batch
            batch, filled = [], 0
        batch.append(item)
        filled += size
    if batch:
        yield batch
