"""DCP's metadata, made when first asked for: our planners take catalogs, and a checkpoint may hold a million chunks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)


class LazyMetadata(Metadata):
    """Metadata whose fields may be cached properties of a subclass.

    It equals, and is copied, pickled and replaced as, the Metadata of the same fields.
    """

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        """``dataclasses.replace`` calls the class with all fields: what has changed has no checkpoint behind it."""
        return Metadata(**named) if "state_dict_metadata" in named else super().__new__(cls)

    def __eq__(self, other: object) -> bool:
        return fields_of(self) == fields_of(other) if isinstance(other, Metadata) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as that of any dataclass

    def __reduce__(self) -> tuple[Any, ...]:
        return Metadata, fields_of(self)


def fields_of(metadata: Metadata) -> tuple[Any, ...]:
    return tuple(getattr(metadata, field.name) for field in dataclasses.fields(Metadata))


class StoredTensor(TensorStorageMetadata):
    """A tensor's metadata whose chunks are made when first asked for.

    Args:
        chunks_of: returns (offset, size, ...) of each chunk.
    """

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        """As that of LazyMetadata."""
        return TensorStorageMetadata(**named) if "chunks" in named else super().__new__(cls)

    def __init__(
        self, properties: TensorProperties, size: torch.Size, chunks_of: Callable[[], list[tuple[Any, ...]]]
    ) -> None:
        self.properties = properties
        self.size = size
        self._chunks_of = chunks_of

    @cached_property
    def chunks(self) -> list[ChunkStorageMetadata]:
        return [
            ChunkStorageMetadata(torch.Size(offset), torch.Size(size))
            for offset, size, *_ in self._chunks_of()
        ]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorStorageMetadata):
            return NotImplemented
        return (self.properties, self.size, self.chunks) == (other.properties, other.size, other.chunks)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return TensorStorageMetadata, (self.properties, self.size, self.chunks)
