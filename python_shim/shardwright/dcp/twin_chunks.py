"""Elements that another reader's checkpoint holds twice, as where an earlier save has left its shards in the folder.

A load may take either where both are the same bits. That they are is for the planner to see, as it is told of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

Box = tuple[Sequence[int], Sequence[int]]  #: offset and size


@dataclass(frozen=True)
class Twin:
    """A box that two chunks of a tensor hold, of which a load reads the first."""

    name: str
    dtype: torch.dtype
    read: Sequence[int]  #: offset of the chunk that is read
    other: Sequence[int]  #: offset of the other one
    offset: Sequence[int]  #: of the box, in the tensor
    size: Sequence[int]

    def item(self, of_other: bool, number: int) -> ReadItem:
        """Reads the box out of one of the chunks; ``number``: the index hint of its destination."""
        chunk = self.other if of_other else self.read
        return ReadItem(
            LoadItemType.TENSOR,
            MetadataIndex(self.name, index=number),
            torch.Size([0] * len(self.size)),
            MetadataIndex(self.name, torch.Size(chunk)),
            torch.Size(begin - chunk_begin for begin, chunk_begin in zip(self.offset, chunk, strict=True)),
            torch.Size(self.size),
        )

    def __str__(self) -> str:
        return (
            f"{self.name}: {list(self.size)} at {list(self.offset)} is in the chunk at {list(self.read)} and in that "
            f"at {list(self.other)}"
        )


def once(name: str, stored: TensorStorageMetadata) -> tuple[list[ChunkStorageMetadata], list[Twin]]:
    """Chunks that hold every element once, the largest first choice, and what the others hold of these.

    All chunks and no twins where each element is there once, where no such chunks make up the tensor, and where two
    begin at one place, so that readers take them for one.
    """
    chunks = list(stored.chunks)
    if sum(math.prod(chunk.sizes) for chunk in chunks) <= math.prod(stored.size):
        return chunks, []
    if len({tuple(chunk.offsets) for chunk in chunks}) < len(chunks):
        return chunks, []
    kept: list[ChunkStorageMetadata] = []
    twins: list[Twin] = []
    for chunk in sorted(chunks, key=lambda chunk: -math.prod(chunk.sizes)):
        shared = [(of, box) for of in kept if (box := _shared(of, chunk)) is not None]
        if not shared:
            kept.append(chunk)
        twins += [Twin(name, stored.properties.dtype, of.offsets, chunk.offsets, *box) for of, box in shared]
    is_whole = sum(math.prod(chunk.sizes) for chunk in kept) == math.prod(stored.size)
    return (kept, twins) if is_whole else (chunks, [])


def _shared(one: ChunkStorageMetadata, other: ChunkStorageMetadata) -> Box | None:
    begins = [max(pair) for pair in zip(one.offsets, other.offsets, strict=True)]
    ends = [
        min(a + length, b + other_length)
        for a, length, b, other_length in zip(one.offsets, one.sizes, other.offsets, other.sizes, strict=True)
    ]
    sizes = [end - begin for begin, end in zip(begins, ends, strict=True)]
    return (begins, sizes) if all(size > 0 for size in sizes) else None
