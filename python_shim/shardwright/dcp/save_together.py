"""Plans a save over all ranks without torch.distributed.checkpoint's collectives: over a process group or a store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import WriteItem

from shardwright import _core
from shardwright.dcp.planned_metadata import PlannedMetadata
from shardwright.dcp.save_description import Path, SaveDescription, describe_save
from shardwright.dcp.save_planning import items_to_write
from shardwright.ranks.gone_ranks import timeout_of

_cpu_groups: dict[Any, Any] = {}


def cpu_group(group: Any = None) -> Any:
    """A process group of the same ranks that moves CPU tensors: the group itself, or a Gloo group made once.

    All ranks of the group have to call this together the first time.
    """
    group = group or dist.distributed_c10d._get_default_group()
    if "cpu" in {device.type for device in group._device_types}:
        return group
    if group not in _cpu_groups:
        _cpu_groups[group] = dist.new_group(
            dist.get_process_group_ranks(group), timeout_of(group), backend="gloo"
        )
    return _cpu_groups[group]


@dataclass
class PlannedSave:
    """What one rank does in a save."""

    items: list[WriteItem]  #: what this rank writes
    metadata: Metadata | None  #: of the whole checkpoint; on rank 0
    unchanged: bool  #: the plan of the save before was used again


class SharedSavePlanner:
    """Plans the saves of a job. Keep one for each job: it remembers the last plan, and an unchanged save moves hashes.

    Args:
        over: what the ranks reach each other by: a process group (None: the default one), or a store that they share
            (TCPStore, FileStore). Over a group without a backend for CPU tensors a Gloo group is made, once.
        rank, ranks: of the job; only with a store.
        name: the same on all ranks, and another one for each planner over the same store.
        timeout: seconds until ranks that have not come are given up.
    """

    def __init__(
        self, over: Any = None, rank: int = 0, ranks: int = 1, name: str = "save plan", timeout: float = 300
    ) -> None:
        if not isinstance(over, dist.Store):
            over = cpu_group(over)
            rank, ranks = over.rank(), over.size()
        self.over, self.rank, self.ranks, self.name, self.timeout = over, rank, ranks, name, timeout
        self._cache = _core.SavePlanCache()
        self._saves = 0

    def plan(self, state_dict: Mapping[str, Any], paths: Mapping[str, Path] | None = None) -> PlannedSave:
        """Plans a save of a flat state dict; all ranks call this. ``paths``: the keys that names are made of.

        Raises:
            PlanError: on every rank, what is wrong on any; names ranks and tensors.
            TimeoutError: ranks that have not come in time; names them.
        """
        from shardwright import _exchange  # here, since it needs torch's libraries to be loaded

        problem = ""
        try:
            description = describe_save(state_dict, paths or {})
        except ValueError as error:
            problem = str(error)
            description = SaveDescription(self.rank)
        self._saves += 1
        numbers = count(1)

        def round_of_all(mine: bytes, answers: Callable[[list[bytes]], list[bytes]]) -> bytes:
            name = f"{self.name} {self._saves}.{next(numbers)}"
            answer: bytes = _exchange.exchange(
                self.over, self.rank, self.ranks, name, self.timeout, mine, problem, answers
            )
            return answer

        left_to_others, unchanged = _core.plan_save_together(
            description.encode(whole=True), self._cache, round_of_all
        )
        metadata = PlannedMetadata.of(self._cache.plan.metadata, True) if self.rank == 0 else None
        return PlannedSave(items_to_write(description, left_to_others), metadata, unchanged)
