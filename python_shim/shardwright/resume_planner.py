"""Plans a load of the trainer's own tensors, under the names that it gave them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, _version
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.tensor import DTensor

from shardwright.describe import boxes_of_dtensor
from shardwright.fitting import expect_fit
from shardwright.flat_state import flatten_sharded_tensors
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


def _key_of(container: Any, name: Any) -> Any:
    """The key that was made a name of."""
    if not isinstance(container, Mapping) or name in container:
        return name
    return next((key for key in container if str(key) == name), name)


class ResumePlanner(DefaultLoadPlanner):
    """DefaultLoadPlanner, and any placement: it reads each box of a strided shard to where it belongs.

    What does not fit is one PlanError, with all names, before anything is read.

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

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        flat = flatten_state_dict(state_dict)[0]
        if any(isinstance(value, torch.Tensor) and value.is_meta for value in flat.values()):
            super().set_up_planner(state_dict, metadata, is_coordinator)  # which gives them memory
            return
        # Not super(), which would replace objects of the caller's by None before anything is known to fit.
        self.original_state_dict = state_dict
        if self.flatten_sharded_tensors:
            state_dict = flatten_sharded_tensors(state_dict)
        if self.flatten_state_dict:
            state_dict, self.mappings = flatten_state_dict(state_dict)
        self.state_dict = state_dict
        self.metadata = metadata
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        if self.flatten_state_dict:
            self._take_names_of_old_torch()
        expect_fit(self.state_dict, self.original_state_dict, self.metadata, self.allow_partial_load)
        plan = super().create_local_plan()
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

    def _take_names_of_old_torch(self) -> None:
        """Before 2.4 torch flattened only what holds tensors; super() would find out after the names are compared."""
        assert self.metadata is not None
        lacking = set(self.metadata.state_dict_metadata) - set(self.state_dict)
        if not lacking:
            return
        _version._derived_version = "2_3"
        try:
            state_dict, mappings = flatten_state_dict(self.original_state_dict)
        finally:
            _version._derived_version = None
        if set(state_dict) & lacking:
            self.state_dict = state_dict
            self.mappings = mappings

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Puts an object where it belongs. super() would take an optimizer's parameter 0 for one of the name "0"."""
        fqn = read_item.dest_index.fqn
        loaded = torch.load(value, weights_only=False)
        if not self.flatten_state_dict:
            self.state_dict[fqn] = loaded
            return
        into: Any = self.original_state_dict
        *path, last = self.mappings[fqn]
        for key in path:
            into = into[_key_of(into, key)]
        into[_key_of(into, last)] = loaded

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        value = self.state_dict[index.fqn]
        if has_gaps(value):
            return part_of_dtensor(value, tuple(index.offset or ()))
        return super().lookup_tensor(index)
