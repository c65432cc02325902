"""Plans a load of the trainer's own tensors, under the names that it gave them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.tensor import DTensor

from shardwright.describe import boxes_of_dtensor
from shardwright.rounding import refuse_roundings, roundings_of


def part_of_dtensor(tensor: DTensor, offset: Sequence[int]) -> torch.Tensor:
    """The box of this rank's part that begins at ``offset`` of the whole tensor."""
    with torch.no_grad():
        local = tensor.to_local()
    boxes = boxes_of_dtensor(tensor)
    if len(boxes) == 1:
        return local
    box = next(box for box in boxes if box.offset == list(offset))
    for dimension, (begin, length) in enumerate(zip(box.local_offset, box.size, strict=True)):
        local = local.narrow(dimension, begin, length)
    return local


def has_gaps(value: Any) -> bool:
    """True for a strided shard of which this rank holds several boxes; torch's planners take them for one."""
    return (
        isinstance(value, DTensor)
        and value.device_mesh.get_coordinate() is not None
        and not any(placement.is_partial() for placement in value.placements)
        and len(boxes_of_dtensor(value)) > 1
    )


class ResumePlanner(DefaultLoadPlanner):
    """DefaultLoadPlanner, and any placement: it reads each box of a strided shard to where it belongs.

    Args:
        strict_dtypes: see :class:`shardwright.HuggingFaceStorageReader`.
    """

    def __init__(
        self,
        flatten_state_dict: bool = True,
        flatten_sharded_tensors: bool = True,
        allow_partial_load: bool = False,
        *,
        strict_dtypes: bool = False,
    ) -> None:
        super().__init__(flatten_state_dict, flatten_sharded_tensors, allow_partial_load)
        self.strict_dtypes = strict_dtypes

    def create_local_plan(self) -> LoadPlan:
        plan = super().create_local_plan()
        assert self.metadata is not None
        in_boxes = {fqn: value for fqn, value in self.state_dict.items() if has_gaps(value)}
        items = [item for item in plan.items if item.dest_index.fqn not in in_boxes]
        for fqn, value in in_boxes.items():
            stored = self.metadata.state_dict_metadata.get(fqn)
            if not isinstance(stored, TensorStorageMetadata):
                continue  # super() has seen to it
            boxes = [
                ChunkStorageMetadata(torch.Size(box.offset), torch.Size(box.size))
                for box in boxes_of_dtensor(value)
            ]
            items += create_read_items_for_chunk_list(fqn, stored, boxes)
        if self.strict_dtypes:
            self._expect_no_rounding(items)
        return LoadPlan(items)

    def _expect_no_rounding(self, items: list[ReadItem]) -> None:
        assert self.metadata is not None
        stored = self.metadata.state_dict_metadata
        names = {item.storage_index.fqn: item.dest_index.fqn for item in items}
        casts = [
            (name, described.properties.dtype, self.state_dict[own].dtype)
            for name, own in names.items()
            if isinstance(described := stored[name], TensorStorageMetadata)
        ]
        refuse_roundings(roundings_of(casts), "the checkpoint")

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        value = self.state_dict[index.fqn]
        if has_gaps(value):
            return part_of_dtensor(value, tuple(index.offset or ()))
        return super().lookup_tensor(index)
