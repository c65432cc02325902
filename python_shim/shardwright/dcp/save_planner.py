"""The planner half of a save: DefaultSavePlanner in behaviour, planned in C++ over bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import STATE_DICT_TYPE, Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor

from shardwright import _core
from shardwright.dcp.flat_state import flatten, flatten_sharded_tensors
from shardwright.dcp.planned_metadata import PlannedMetadata
from shardwright.dcp.resume_planner import part_of_dtensor
from shardwright.dcp.save_description import (
    SaveDescription,
    describe_save,
    holding_of_items,
    is_derived,
    write_item,
)
from shardwright.objects.safe_objects import warn_of_refused_objects

T = TypeVar("T")


@dataclass
class ExportMeta(StorageMeta):
    """What an exporting writer tells the planner: itself, to whom the tensors are described."""

    writer: Any = None


class PackedItems(Sequence[WriteItem]):
    """The items of a plan. Travels as the bytes of the planner's protocol (planner/save/plan_together.h), and becomes
    WriteItems only where someone looks at them."""

    __slots__ = ("_items", "message", "unpack")

    def __init__(self, message: bytes, unpack: Callable[[], list[WriteItem]] | None = None) -> None:
        self.message = message
        self.unpack = unpack  #: makes the items; where it is None they are not known
        self._items: list[WriteItem] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedItems, (self.message,)

    @property
    def items(self) -> list[WriteItem]:
        if self._items is None:
            if self.unpack is None:
                raise RuntimeError("these items are those of another rank; only the planner knows them")
            self._items = self.unpack()
        return self._items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]

    def __iter__(self) -> Iterator[WriteItem]:
        return iter(self.items)


class SavePlanner(DefaultSavePlanner):
    """Plans a save over all ranks: for any storage writer, in place of torch's DefaultSavePlanner.

    With :class:`shardwright.HuggingFaceStorageWriter` it describes the tensors to the writer: An export needs no write
    items, as a rank tells what it holds, and hears what to write, and where. Strided shards, and block scales that
    ranks share, are beyond torch's planner; for all else either will do.

    What ``dcp.save`` gathers and scatters are a few bytes: DTensors are described once, by the first rank of their
    mesh; a planner that is used again sends one hash as long as the state is the same. Replicas are written by the rank
    that has least to write, counted in bytes. A strided shard with gaps is saved as the boxes that it consists of.

    Keep one planner for each process group that saves.

    Args:
        flatten_state_dict: whether nested dicts are flattened to dotted names, as DCP does.
        flatten_sharded_tensors: as DefaultSavePlanner has it.
        dedup_replicated_tensors: without effect, as in DefaultSavePlanner, which warns of it.
        dedup_save_to_lowest_rank: replicas are written by the lowest rank that holds them instead.
        enable_plan_caching: without effect: what this planner has planned it keeps, and plans of other planners it
            never takes, as those of torch's that are cached under the name of their class.

    Raises:
        PlanError: ranks that do not hold one state between them; names tensors and ranks. Nothing has been written.
    """

    def __init__(
        self,
        flatten_state_dict: bool = True,
        flatten_sharded_tensors: bool = True,
        dedup_replicated_tensors: bool | None = None,
        dedup_save_to_lowest_rank: bool = False,
        enable_plan_caching: bool = False,
    ) -> None:
        super().__init__(
            flatten_state_dict,
            flatten_sharded_tensors,
            dedup_replicated_tensors,
            dedup_save_to_lowest_rank,
            enable_plan_caching,
        )
        self.description = SaveDescription(0)
        self._signature: Any = None
        self._told_state = b""  #: what goes to the coordinator of this rank's state
        self._items_to_write: list[WriteItem] = []
        self._cache = _core.SavePlanCache()
        self._export: Any = None  #: the writer that the tensors are described to

    # --- each rank ------------------------------------------------------------------------------------------------

    def set_up_planner(
        self,
        state_dict: STATE_DICT_TYPE,
        storage_meta: StorageMeta | None = None,
        is_coordinator: bool = False,
    ) -> None:
        self._export = storage_meta.writer if isinstance(storage_meta, ExportMeta) else None
        if self.flatten_state_dict:
            state_dict, self.mappings = flatten(state_dict)
        self.state_dict = flatten_sharded_tensors(state_dict) if self.flatten_sharded_tensors else state_dict
        if self._export is not None:
            self.state_dict = self._export.without_tied_heads(self.state_dict)
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> SavePlan:
        self._describe()
        if self._export is not None:
            state = self.description.encode()
            self.plan = SavePlan([], storage_data=self._export.describe_state_dict(self.state_dict, state))
            return self.plan
        self.plan = SavePlan(PackedItems(_core.tell(self._told_state, self._cache), self.description.items))
        return self.plan

    def _describe(self) -> None:
        """Describes the state, unless every value is described as it was before."""
        signature = [signature_of(fqn, value) for fqn, value in self.state_dict.items()], self.mappings
        if self._told_state and None not in signature[0] and signature == self._signature:
            return
        self.description = describe_save(self.state_dict, self.mappings)
        self._told_state = _core.told_state(self.description.encode())
        self._signature = signature  # last: a state that cannot be described is looked at again

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        packed = new_plan.items
        if isinstance(packed, PackedItems):
            left, unchanged = _core.understand(packed.message, self.description.encode(), self._cache)
            if not unchanged:
                self._items_to_write = self.description.items(left)
            new_plan = dataclasses.replace(new_plan, items=list(self._items_to_write))
            objects = [item.index.fqn for item in new_plan.items if item.type == WriteItemType.BYTE_IO]
            warn_of_refused_objects({fqn: self.state_dict[fqn] for fqn in objects})
        self.plan = new_plan
        return self.plan

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:  # noqa: A002 - torch's word
        try:
            return super().transform_object(write_item, object)
        except Exception as error:
            raise ValueError(
                f"{write_item.index.fqn}: a {type(object).__name__} that cannot be saved ({error}); save plain data in "
                "its place"
            ) from error

    def lookup_object(self, index: MetadataIndex) -> Any:
        value = self.state_dict[index.fqn]
        if not is_derived(value):
            return super().lookup_object(index)
        return part_of_dtensor(value, tuple(index.offset or ()))

    # --- the coordinator ------------------------------------------------------------------------------------------

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        if self._export is not None:
            self.global_plan, self.metadata = all_plans, Metadata({})
            return self.global_plan, self.metadata
        told = [
            plan.items.message if isinstance(plan.items, PackedItems) else self._told(at, plan)
            for at, plan in enumerate(all_plans)
        ]
        answers = _core.answer(told, self._cache, self.dedup_save_to_lowest_rank)
        self.metadata = Metadata({})
        if not _core.is_refused(answers):
            self.metadata = PlannedMetadata(self._cache.plan.metadata, self.flatten_state_dict)
        self.global_plan = [
            SavePlan(PackedItems(message, partial(self._items_of, at)), plan.storage_data)
            for at, (message, plan) in enumerate(zip(answers, all_plans, strict=True))
        ]
        return self.global_plan, self.metadata

    def _told(self, position: int, plan: SavePlan) -> bytes:
        """What a rank tells whose plan a storage writer has made anew."""
        state = SaveDescription(position, [holding_of_items(plan.items, self.mappings)]).encode()
        told: bytes = _core.tell(_core.told_state(state), _core.SavePlanCache())
        return told

    def _items_of(self, position: int) -> list[WriteItem]:
        """What a rank writes, for a storage writer that looks at it on the coordinator."""
        return [write_item(*item) for item in self._cache.items(position)]


def is_given_up(plans: Sequence[SavePlan]) -> bool:
    """True where the planner has made no plan, so that every rank will refuse to go on."""
    return _core.is_refused([plan.items.message for plan in plans if isinstance(plan.items, PackedItems)])


def share_of(plan: SavePlan, share: type[T], writer: Any) -> T:
    """What a writer of ours has told this rank by the plan.

    Raises:
        ValueError: something else has been put into the plan since.
    """
    if not isinstance(plan.storage_data, share):
        raise ValueError(
            f"expected the plan as {type(writer).__name__}'s prepare_global_plan made it, found one with a "
            f"{type(plan.storage_data).__name__} as its storage_data; hand that on as it is"
        )
    return plan.storage_data


def signature_of(fqn: str, value: Any) -> Any:
    """Equal for values that are described alike; None where only describing can tell."""
    if isinstance(value, DTensor):
        spec = value._spec
        return (
            fqn,
            spec.mesh,
            spec.placements,
            spec.tensor_meta and spec.tensor_meta.shape,
            value.dtype,
            value._local_tensor.shape,
            value.requires_grad,
        )
    if type(value) in (torch.Tensor, torch.nn.Parameter):
        return fqn, value.shape, value.dtype, value.requires_grad, value.layout, value.is_pinned()
    return None if isinstance(value, torch.Tensor) or hasattr(value, "local_shards") else (fqn,)
