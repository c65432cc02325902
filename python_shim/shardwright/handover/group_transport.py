"""The way of bytes between ranks: point to point, over a process group."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.distributed as dist

_TAG = 7252  #: any number that other messages of the job do not use


class GroupTransport:
    """See storage/handover/transport.h. Called from several threads, which Python lets in one by one."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
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

    def _begin(self, work: Any, tensor: torch.Tensor) -> int:
        number = next(self._numbers)
        self._begun[number] = work, tensor
        return number
