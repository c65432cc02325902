"""DCP's metadata of a checkpoint that the planner has planned."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import WriteItemType

from shardwright import _core
from shardwright.dcp.save_description import KINDS, properties_from


class PlannedMetadata(Metadata):
    """What ``dcp.save`` hands to every rank in the end: a million chunks at 1,024 ranks, which hardly anybody looks at.

    It travels as the planner's bytes and becomes objects when first looked at. From then on, or once a storage writer
    has added to it, it is pickled as torch's own Metadata: that is what torch's writers put on disk.
    """

    _planned: Any = None
    _flattened = False

    @classmethod
    def of(cls, planned: Any, flattened: bool) -> PlannedMetadata:
        """From the planner's GlobalMetadata. ``flattened``: whether names are made of nested keys, to be told."""
        metadata = cls.__new__(cls)
        metadata._planned = planned
        metadata._flattened = flattened
        return metadata

    @property
    def names(self) -> list[str]:
        if self._planned is None or "state_dict_metadata" in vars(self):
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
        if set(vars(self)) <= {"_planned", "_flattened"} and self._planned is not None:
            return _decoded, (self._planned.encode(), self._flattened)
        return Metadata, (
            self.state_dict_metadata,
            self.planner_data,
            self.storage_data,
            self.storage_meta,
            self.version,
        )


def _decoded(planned: bytes, flattened: bool) -> PlannedMetadata:
    return PlannedMetadata.of(_core.decode_metadata(planned), flattened)
