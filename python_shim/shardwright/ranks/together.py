"""What each rank does for itself, with one outcome for all: no rank goes on while another has failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from shardwright.ranks.cooperation import failing_together
from shardwright.ranks.gone_ranks import has_others, naming_gone_ranks
from shardwright.ranks.rank_outcome import as_sent, told

T = TypeVar("T")


def together(group: dist.ProcessGroup | None, doing: str, run: Callable[[], T]) -> T:
    """Runs a function on every rank of the group, and returns what it gives on this one.

    Raises:
        PlanError, OSError, ValueError: what it raised on any rank, naming the ranks, the same on all of them.
        ConnectionResetError: a rank has ended meanwhile.
    """
    if not has_others(group):
        return run()
    with naming_gone_ranks(group, doing):
        result: T | None = None
        failure: Exception | None = None
        try:
            result = run()
        except Exception as error:
            failure = error
        failures: list[Exception | None] = [None] * dist.get_world_size(group)
        mine = None if failure is None else as_sent(failure)
        dist.all_gather_object(failures, mine, group)
    failed: dict[int, Any] = {rank: (error, None) for rank, error in enumerate(failures) if error is not None}
    if failed:
        raise told(CheckpointException(doing, failed)) from failure
    return cast(T, result)


def is_first(group: dist.ProcessGroup | None) -> bool:
    """Whether this rank does what one of a group does for all; the only one does where there is no group."""
    return group is None or dist.get_rank(group) == 0


def of_first(group: dist.ProcessGroup | None, find: Callable[[], T]) -> T:
    """What the first rank of the group finds, on all of them. Raises on all what it raises there."""
    found: list[Any] = [None]
    with failing_together(group):
        if is_first(group):
            found = [find()]
    if group is not None:
        dist.broadcast_object_list(found, dist.get_global_rank(group, 0), group)
    return cast(T, found[0])


def lacking_everywhere(group: dist.ProcessGroup | None, names: list[str]) -> list[str]:
    """Of names that this rank has no use for, those that no rank of the group has a use for.

    The first rank's names travel once; of the others, a bit for each of them.
    """
    if not has_others(group):
        return names
    first = [sorted(names)]
    dist.broadcast_object_list(first, dist.get_global_rank(group or dist.group.WORLD, 0), group)
    own = set(names)
    bits: list[bytes] = [b""] * dist.get_world_size(group)
    dist.all_gather_object(bits, bytes(name in own for name in first[0]), group)
    return [name for name, *lacked in zip(first[0], *bits, strict=True) if all(lacked)]
