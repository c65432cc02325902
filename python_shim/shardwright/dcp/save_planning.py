"""What ranks that plan a save tell each other, and which states are described alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.tensor import DTensor

from shardwright import _core

T = TypeVar("T")


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
