"""DCP's metadata of a checkpoint that the planner has planned."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import WriteItemType

from shardwright import _core
from shardwright.dcp.lazy_metadata import LazyMetadata
from shardwright.dcp.save_description import KINDS, properties_from


class PlannedMetadata(LazyMetadata):
    """What ``dcp.save`` hands to every rank in the end: a million chunks at 1,024 ranks, which hardly anybody looks at.

    It travels as the planner's bytes, with what our writers add of the checkpoint, and becomes objects when first
    looked at. From then on, or once another storage writer has added to it, it is pickled as torch's own Metadata: that
    is what torch's writers put on disk.
    """

    _published = False  #: whether storage_meta and version are those that our writers give it

    def __init__(self, planned: Any, flattened: bool) -> None:
        """From the planner's GlobalMetadata. ``flattened``: whether names are made of nested keys, to be told."""
        self._planned = planned
        self._flattened = flattened

    @property
    def names(self) -> list[str]:
        if "state_dict_metadata" in vars(self):
            return list(self.state_dict_metadata)
        names: list[str] = self._planned.names
        return names

    @cached_property
    def state_dict_metadata(self) -> dict[str, Any]:
        """Tensors that are cut alike share their chunks' descriptions."""
        chunkings = [
            [ChunkStorageMetadata(torch.Size(offset), torch.Size(size)) for offset, size in chunks]
            for chunks in self._planned.chunkings
        ]
        stored: dict[str, Any] = {}
        for (fqn, kind, dtype, layout, flags, shape, _), number in self._planned.values:
            if KINDS[kind] == WriteItemType.BYTE_IO:
                stored[fqn] = BytesStorageMetadata()
            else:
                properties = properties_from(dtype, layout, flags)
                stored[fqn] = TensorStorageMetadata(properties, torch.Size(shape), list(chunkings[number]))
        return stored

    @cached_property
    def planner_data(self) -> Any:
        return {fqn: path for (fqn, *_, path), _ in self._planned.values} if self._flattened else None

    def __reduce__(self) -> tuple[Any, ...]:
        told = {"_planned", "_flattened"} | (
            {"_published", "storage_meta", "version"} if self._published else set()
        )
        if set(vars(self)) <= told:
            return _decoded, (self._planned.encode(), self._flattened, self.storage_meta, self.version)
        return super().__reduce__()


def _decoded(
    planned: bytes, flattened: bool, storage_meta: StorageMeta | None, version: str | None
) -> Metadata:
    metadata = PlannedMetadata(_core.decode_metadata(planned), flattened)
    tell_published(metadata, storage_meta, version)
    return metadata


def tell_published(metadata: Metadata, storage_meta: StorageMeta | None, version: str | None) -> None:
    """Adds to what ``dcp.save`` returns which checkpoint it is of, as torch's writers do."""
    if storage_meta is None and version is None:
        return
    metadata.storage_meta, metadata.version = storage_meta, version
    if isinstance(metadata, PlannedMetadata):
        metadata._published = True
