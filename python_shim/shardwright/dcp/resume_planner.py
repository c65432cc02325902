"""Plans a load of the trainer's own tensors, under the names that it gave them."""

from __future__ import annotations

import io
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint import DefaultLoadPlanner, _version
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.default_planner import create_default_local_load_plan
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.tensor import DTensor

from shardwright import _core
from shardwright.dcp.fitting import expect_fit, is_tensor
from shardwright.dcp.flat_state import flatten_sharded_tensors
from shardwright.describe import Description, boxes_of_dtensor, describe, is_reached
from shardwright.local_path import expect_flags
from shardwright.rounding import refuse_roundings, roundings_of

#: Modules whose planners know what becomes of items.
_OURS = ("shardwright.", "torch.")


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


def _is_meta(value: Any) -> bool:
    # A ShardedTensor of several shards is none, and cannot be asked.
    return isinstance(value, torch.Tensor) and not isinstance(value, ShardedTensor) and value.is_meta


def _key_of(container: Any, name: Any) -> Any:
    """The key that was made a name of."""
    if not isinstance(container, Mapping) or name in container:
        return name
    return next((key for key in container if str(key) == name), name)


#: Planners whose transfers stand for items that their plans lack, by what the plans say in ``planner_data``: a plan
#: passes through other ranks, and the planner itself may be hidden in another one.
_TELLERS: WeakValueDictionary[str, ResumePlanner] = WeakValueDictionary()


def _told(planner: ResumePlanner) -> str:
    token = f"shardwright transfers {uuid.uuid4()}"
    _TELLERS[token] = planner
    return token


def teller_of(plan: LoadPlan) -> ResumePlanner | None:
    """The planner whose transfers are a part of this plan; None: all of it is items."""
    return _TELLERS.get(plan.planner_data) if isinstance(plan.planner_data, str) else None


def _has_own_ways(planner: ResumePlanner) -> bool:
    """True for a class of the caller's that wants to see each item."""
    of_items = ["resolve_tensor", "commit_tensor", "lookup_tensor", "transform_tensor"]
    hooks = [*of_items, "create_local_plan", "create_global_plan", "finish_plan"]
    return any(not getattr(type(planner), hook).__module__.startswith(_OURS) for hook in hooks)


class ResumePlanner(DefaultLoadPlanner):
    """Plans the tensors that the engine reaches as transfers, under their own names; DefaultLoadPlanner plans the
    rest, and each box of a strided shard is read to where it belongs.

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
        expect_flags(allow_partial_load=allow_partial_load, strict_dtypes=strict_dtypes)
        super().__init__(flatten_state_dict, flatten_sharded_tensors, allow_partial_load)
        self.strict_dtypes = strict_dtypes
        self.plan_seconds = 0.0
        self.core_plan: Any = None  #: the rank's transfers, once planned; None where all is planned as items
        self.description = Description()  #: of the tensors that these write
        self._planned: set[str] = set()  #: their names

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        flat = flatten_state_dict(state_dict)[0]
        if any(_is_meta(value) for value in flat.values()):
            super().set_up_planner(state_dict, metadata, is_coordinator)  # which gives them memory
            return
        self._take(state_dict, metadata, is_coordinator)

    def _take(self, state_dict: dict[str, Any], metadata: Metadata | None, is_coordinator: bool) -> None:
        """What DefaultLoadPlanner's set_up_planner keeps, without what it does to the caller's dict: it replaces
        objects by None, before anything is known to fit, and meta tensors by new ones that a model would not see."""
        self.original_state_dict = state_dict
        if self.flatten_state_dict:
            state_dict, self.mappings = flatten_state_dict(state_dict)
        if self.flatten_sharded_tensors:  # of the flat dict, as it looks at values and not inside of dicts
            state_dict = flatten_sharded_tensors(state_dict)
        self.state_dict = state_dict
        self.metadata = metadata
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        if self.flatten_state_dict:
            self._take_names_of_old_torch()
        expect_fit(self.state_dict, self.original_state_dict, self.metadata, self.allow_partial_load)
        start = time.perf_counter()
        planned = self._plan_transfers(getattr(self.metadata, "catalog", None))
        items = self._items_of({fqn: value for fqn, value in self.state_dict.items() if fqn not in planned})
        self.plan_seconds = time.perf_counter() - start
        self._planned = planned
        token = _told(self) if planned else None
        if token:
            self.metadata.transfers_told = token  # which the reader looks for
        return LoadPlan(items, planner_data=token)

    def items_of_transfers(self) -> list[ReadItem]:
        """What is planned as transfers, as items: for whoever stands before this planner and wants to see them."""
        return self._items_of({fqn: self.state_dict[fqn] for fqn in self.state_dict if fqn in self._planned})

    def _plan_transfers(self, catalog: Any) -> set[str]:
        """Plans what is read straight into its destination, as that is of the stored dtype or takes what is decoded,
        in CPU memory or on a CUDA device. Returns its names; none without the catalog of a reader of ours."""
        assert self.metadata is not None
        planned: set[str] = set()
        self.core_plan, self.description = None, Description()
        if catalog is None or _has_own_ways(self):
            return planned
        for fqn, value in self.state_dict.items():
            stored = self.metadata.state_dict_metadata.get(fqn)
            if not isinstance(stored, TensorStorageMetadata) or not is_tensor(value):
                continue
            one = describe({fqn: value})
            is_decoded = value.dtype != stored.properties.dtype and _core.needs_scales(catalog, fqn)
            if one.problems or not all(is_reached(local) for local in one.local_tensors):
                continue
            if is_decoded or value.dtype == stored.properties.dtype:
                planned.add(fqn)
                self.description.add(one)
        self.core_plan = _core.plan_resume(self.description.specs, catalog)
        return planned

    def _items_of(self, state_dict: dict[str, Any]) -> list[ReadItem]:
        assert self.metadata is not None
        plan = create_default_local_load_plan(state_dict, self.metadata, not self.allow_partial_load)
        in_boxes = {fqn: value for fqn, value in state_dict.items() if has_gaps(value)}
        items = [item for item in plan.items if item.dest_index.fqn not in in_boxes]
        for fqn, value in in_boxes.items():
            stored = self.metadata.state_dict_metadata.get(fqn)
            if not isinstance(stored, TensorStorageMetadata):
                continue  # which is an item by now
            boxes = [
                ChunkStorageMetadata(torch.Size(box.offset), torch.Size(box.size))
                for box in boxes_of_dtensor(value)
            ]
            items += create_read_items_for_chunk_list(fqn, stored, boxes)
        if self.strict_dtypes:
            self._expect_no_rounding(items)
        return items

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
            # The caller's dict too, which is another one where ShardedTensors are flattened.
            self.state_dict[fqn] = self.original_state_dict[fqn] = loaded
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
