"""Sending what the ranks hold of their tensors to the first of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from shardwright import _core
from shardwright.sharding import is_shard


@dataclass(frozen=True)
class Known:
    """What all ranks know of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    plain_on: int = -1  #: the first rank that has it as a plain tensor

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Known:
        return cls(tuple(tensor.shape), tensor.dtype, -1 if isinstance(tensor, DTensor) else 0)

    @property
    def like(self) -> torch.Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


class Ranks:
    """The ranks that save together; one, where there is no process group."""

    def __init__(self, group: dist.ProcessGroup | None, rank: int, count: int) -> None:
        self.group, self.rank, self.count = group, rank, count

    @classmethod
    def of(cls, group: dist.ProcessGroup | None) -> Ranks:
        if not dist.is_initialized():
            return cls(None, 0, 1)
        return cls(group, dist.get_rank(group), dist.get_world_size(group))

    def union(self, known: dict[str, Known]) -> dict[str, Known]:
        """What any rank knows, in the same order on all."""
        of_ranks: list[Any] = [known]
        if self.count > 1:
            of_ranks = [None] * self.count
            dist.all_gather_object(of_ranks, known, self.group)
        found: dict[str, Known] = {}
        for rank, one in enumerate(of_ranks):
            for key, tensor in one.items():
                if key not in found:
                    found[key] = Known(tensor.shape, tensor.dtype, rank if tensor.plain_on == 0 else -1)
                elif (found[key].shape, found[key].dtype) != (tensor.shape, tensor.dtype):
                    raise _core.PlanError(
                        f"{key}: expected {found[key].dtype} {list(found[key].shape)} on all ranks, found "
                        f"{tensor.dtype} {list(tensor.shape)} on rank {rank}"
                    )
        return dict(sorted(found.items()))

    def sends(self, tensor: torch.Tensor, known: Known) -> bool:
        """True if this rank is to send its part: of replicas, the first does."""
        if not isinstance(tensor, DTensor):
            return self.rank == known.plain_on
        coordinate = tensor.device_mesh.get_coordinate()
        return coordinate is not None and all(
            is_shard(placement) or at == 0
            for placement, at in zip(tensor.placements, coordinate, strict=True)
        )

    def gather(self, parts: Any) -> list[Any]:
        """What all ranks give, on rank 0; nothing on the others."""
        if self.count == 1:
            return [parts]
        sent: list[Any] | None = [None] * self.count if self.rank == 0 else None
        dist.gather_object(parts, sent, group=self.group, group_dst=0)
        return sent or []

    def from_first(self, value: Any) -> Any:
        """What rank 0 has as ``value``, on all ranks."""
        values = [value]
        if self.count > 1:
            dist.broadcast_object_list(values, group=self.group, group_src=0)
        return values[0]
