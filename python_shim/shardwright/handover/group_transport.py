"""The way of bytes between ranks: point to point, over a process group."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.distributed as dist

from shardwright.ranks.gone_ranks import has_others

_TAG = 7252  #: any number that other messages of the job do not use


def store_of(group: dist.ProcessGroup | None) -> dist.Store:
    """That the group's ranks met over."""
    store: dist.Store = dist.distributed_c10d._get_process_group_store(group or dist.group.WORLD)
    return store


class GroupTransport:
    """See `Transport` in planner/job.h. Called from several threads, which Python lets in one by one."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self._store = store_of(group) if has_others(group) else dist.HashStore()
        self._begun: dict[int, Any] = {}
        self._numbers = itertools.count()

    def send(self, rank: int, memory: memoryview) -> int:
        tensor = torch.frombuffer(memory, dtype=torch.uint8)
        return self._begin(dist.isend(tensor, group=self._group, tag=_TAG, group_dst=rank), tensor)

    def receive(self, rank: int, memory: memoryview) -> int:
        tensor = torch.frombuffer(memory, dtype=torch.uint8)
        return self._begin(dist.irecv(tensor, group=self._group, tag=_TAG, group_src=rank), tensor)

    def wait(self, number: int) -> None:
        work, _ = self._begun.pop(number)
        work.wait()

    def post(self, key: str, text: str) -> None:
        self._store.set(key, text)

    def look(self, key: str) -> str | None:
        return self._store.get(key).decode() if self._store.check([key]) else None

    def _begin(self, work: Any, tensor: torch.Tensor) -> int:
        number = next(self._numbers)
        self._begun[number] = work, tensor
        return number
