"""The planner half of a save: DefaultSavePlanner in behaviour, planned in C++ over bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

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
    is_derived,
    part_of_items,
    write_item,
)
from shardwright.objects.safe_objects import warn_of_refused_objects

STATE, AS_BEFORE, WRITES, LOST = range(4)


class PackedItems(Sequence[WriteItem]):
    """The items of a plan. Travels as a few bytes, and becomes WriteItems only where someone looks at them.

    What travels is one of: STATE, a rank's state; AS_BEFORE, the hashes of a state sent before and of the job whose
    plan the rank has; WRITES, the hash of the job and the items that a rank leaves to others; LOST, why no rank goes
    on, and descriptions to compare one's own with.
    """

    def __init__(self, what: int, data: Any, unpack: Callable[[], list[WriteItem]] | None = None) -> None:
        self.what = what
        self.data = data
        self.unpack = unpack  #: makes the items; where it is None they are not known
        self._items: list[WriteItem] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedItems, (self.what, self.data)

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

    What ``dcp.save`` gathers and scatters are a few bytes: DTensors are described once, by the first rank of their
    mesh; a planner that is used again sends one hash as long as the state is the same. Replicas are written by the rank
    that has least to write, counted in bytes. A strided shard with gaps is saved as the boxes that it consists of.

    Keep one planner for each process group that saves.

    Args:
        flatten_state_dict: whether nested dicts are flattened to dotted names, as DCP does.
        flatten_sharded_tensors: as DefaultSavePlanner has it.

    Raises:
        PlanError: ranks that do not hold one state between them; names tensors and ranks. Nothing has been written.
    """

    def __init__(self, flatten_state_dict: bool = True, flatten_sharded_tensors: bool = True) -> None:
        super().__init__(flatten_state_dict, flatten_sharded_tensors)
        self.description = SaveDescription(0)
        self._state = b""  #: this rank's state, encoded
        self._signature: Any = None
        self._state_hash = b""
        #: Of the last plan: the hash of this rank's state, of all ranks' states, and what it leaves to others.
        self._last: tuple[bytes, bytes, bytes] | None = None
        self._items_to_write: list[WriteItem] = []
        # On the coordinator, of the last plan: the states by their hashes, which they were, and what came of them.
        self._states: dict[bytes, bytes] = {}
        self._job: list[bytes] = []
        self._global: Any = None

    # --- each rank ------------------------------------------------------------------------------------------------

    def set_up_planner(
        self,
        state_dict: STATE_DICT_TYPE,
        storage_meta: StorageMeta | None = None,
        is_coordinator: bool = False,
    ) -> None:
        if self.flatten_state_dict:
            state_dict, self.mappings = flatten(state_dict)
        self.state_dict = flatten_sharded_tensors(state_dict) if self.flatten_sharded_tensors else state_dict
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> SavePlan:
        self._describe()
        self._state_hash = _core.hash_of(self._state)
        what, data = STATE, cast(Any, self._state)
        if self._last is not None and self._last[0] == self._state_hash:
            what, data = AS_BEFORE, self._last[:2]
        self.plan = SavePlan(PackedItems(what, data, self._held_items))
        return self.plan

    def _describe(self) -> None:
        """Describes the state, unless every value is described as it was before."""
        signature = [_signature_of(fqn, value) for fqn, value in self.state_dict.items()], self.mappings
        if self._state and None not in signature[0] and signature == self._signature:
            return
        self._signature = signature
        self.description = describe_save(self.state_dict, self.mappings)
        self._state = self.description.encode()

    def _held_items(self) -> list[WriteItem]:
        return [item for part in self.description.items() for item in part]

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        packed = new_plan.items
        if isinstance(packed, PackedItems):
            if packed.what == LOST:
                self._last = None
                self._refuse(*packed.data)
            if packed.what == WRITES:
                self._last = (self._state_hash, *packed.data)
                left = _core.read_writes(self._last[2], self.description.encode(whole=True))
                self._items_to_write = items_to_write(self.description, left)
            new_plan = dataclasses.replace(new_plan, items=list(self._items_to_write))
            objects = [item.index.fqn for item in new_plan.items if item.type == WriteItemType.BYTE_IO]
            warn_of_refused_objects({fqn: self.state_dict[fqn] for fqn in objects})
        self.plan = new_plan
        return self.plan

    def _refuse(self, notice: str, expected: list[bytes]) -> None:
        lines = [
            line
            for values in expected
            for part in self.description.parts
            for line in _core.description_differences(values, part.values, self.description.rank)
        ]
        raise _core.PlanError("\n  ".join([notice, *lines]))

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
        states, lost = self._states_of(all_plans)
        if lost:
            notice = (
                f"the coordinator of this save has made no plan with ranks {lost} yet, which have sent the hash of an "
                "earlier one; keep a SavePlanner for each process group, and save again"
            )
            return self._give_up(all_plans, {}, notice)
        job = [_core.hash_of(state) for state in states]
        if self._global is None or job != self._job:
            self._global = None
            differing = _core.lost_descriptions(states)
            if differing:
                ranks = ", ".join(str(rank) for _, rank, _ in differing)
                notice = (
                    f"the ranks do not hold one state: ranks {ranks} differ from the first of their mesh:"
                )
                self._states = {}
                return self._give_up(all_plans, {at: expected for at, _, expected in differing}, notice)
            self._global = _core.plan_save(states)
            self._states = dict(zip(job, states, strict=True))
            self._job = job
        self.metadata = PlannedMetadata.of(self._global.metadata, self.flatten_state_dict)
        token = _core.hash_of(b"".join(job))
        self.global_plan = []
        for at, plan in enumerate(all_plans):
            items = partial(self._items_of, at)
            if isinstance(plan.items, PackedItems) and plan.items.data == (job[at], token):
                packed = PackedItems(AS_BEFORE, None, items)
            else:
                packed = PackedItems(WRITES, (token, self._global.writes(at)), items)
            self.global_plan.append(SavePlan(packed, plan.storage_data))
        return self.global_plan, self.metadata

    def _states_of(self, all_plans: list[SavePlan]) -> tuple[list[bytes], list[int]]:
        """The states of all ranks, and the positions of those that are not known."""
        states, lost = [], []
        for at, plan in enumerate(all_plans):
            items = plan.items
            if not isinstance(items, PackedItems):  # a storage writer has made the plan anew
                part = part_of_items(items, self.mappings)
                states.append(SaveDescription(at, [part]).encode())
            elif items.what == STATE:
                states.append(items.data)
            elif items.data[0] in self._states:
                states.append(self._states[items.data[0]])
            else:
                lost.append(at)
        return states, lost

    def _give_up(
        self, all_plans: list[SavePlan], expected: dict[int, list[bytes]], notice: str
    ) -> tuple[list[SavePlan], Metadata]:
        """Plans that every rank refuses to finish, so that each can say what it knows."""
        plans = [
            dataclasses.replace(plan, items=PackedItems(LOST, (notice, expected.get(at, [])), list))
            for at, plan in enumerate(all_plans)
        ]
        return plans, Metadata({})

    def _items_of(self, position: int) -> list[WriteItem]:
        """What a rank writes, for a storage writer that looks at it on the coordinator."""
        state = self._states[self._job[position]]
        return [write_item(*item) for item in self._global.items(position, state)]


def is_given_up(plans: Sequence[SavePlan]) -> bool:
    """True where the planner has made no plan, so that every rank will refuse to go on."""
    return any(isinstance(plan.items, PackedItems) and plan.items.what == LOST for plan in plans)


def _signature_of(fqn: str, value: Any) -> Any:
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


def items_to_write(description: SaveDescription, left_to_others: Sequence[Sequence[int]]) -> list[WriteItem]:
    """What is left of a rank's items, part by part, if others write some."""
    kept: list[WriteItem] = []
    for part, left in zip(description.items(), left_to_others, strict=True):
        others = set(left)
        kept += [item for number, item in enumerate(part) if number not in others]
    return kept
