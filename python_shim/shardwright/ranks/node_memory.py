"""Memory that the ranks of a group share where all of them are of one node."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout

from shardwright import _core
from shardwright.ranks.gone_ranks import timeout_of

_BYTES_TOLD = 128


def waiting_time(group: dist.ProcessGroup) -> float:
    """Seconds that the group's ranks wait for each other."""
    return (timeout_of(group) or default_pg_timeout).total_seconds()


def join_memory(group: dist.ProcessGroup, size: int, join: Callable[[Any], None]) -> str | None:
    """Makes the memory that the group's ranks share, and has each of them ``join`` it. Returns why that cannot be."""
    made: list[Any] = [None, None]
    memory = None
    if dist.get_rank(group) == 0:
        try:
            memory = _core.SharedMemory.create(size)
            made = [memory.path, None]
        except (OSError, MemoryError) as error:
            made = [None, str(error)]
    dist.broadcast_object_list(made, dist.get_global_rank(group, 0), group)
    path, failure = made
    if failure is None:
        try:
            join(memory or _core.SharedMemory.open(path, size))
        except (OSError, MemoryError) as error:
            failure = str(error)
    failures: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(failures, failure, group)
    return next((text for text in failures if text is not None), None)


class Board:
    """Where all ranks of a group tell each other a few bytes: see storage/handover/node_board.h."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._timeout = waiting_time(group)
        self._board: Any = None
        size = dist.get_world_size(group), dist.get_rank(group), _BYTES_TOLD

        def join(memory: Any) -> None:
            self._board = _core.NodeBoard(memory, *size)

        self.refusal = join_memory(group, _core.NodeBoard.bytes_of(size[0], size[2]), join)

    def gather(self, mine: bytes) -> list[bytes]:
        """What all ranks tell, in their order; as many bytes on each.

        Raises:
            ConnectionResetError: a rank has ended, or has not come within the group's timeout.
        """
        try:
            told: list[bytes] = self._board.gather(mine, self._timeout)
        except OSError as error:
            raise ConnectionResetError(errno.ECONNRESET, error.strerror or str(error)) from error
        return told


_boards: dict[int, tuple[Any, int, Board | None]] = {}  # by id of the group, which is kept


def board_of(group: dist.ProcessGroup | None) -> Board | None:
    """That of a group whose ranks are all of one node; None where they are not, or get no memory for it. All ranks call
    this; they talk the first time only."""
    group = group or dist.group.WORLD
    known = _boards.get(id(group))
    if known is None or known[0] is not group or known[1] != os.getpid():
        nodes: list[str] = [""] * dist.get_world_size(group)
        dist.all_gather_object(nodes, _core.this_node(), group)
        board = Board(group) if nodes[0] and len(set(nodes)) == 1 else None
        if board is not None and board.refusal is not None:
            board = None
        for gone in [
            key for key, one in _boards.items() if one[0] not in dist.distributed_c10d._world.pg_map
        ]:
            del _boards[gone]  # destroyed
        known = _boards[id(group)] = group, os.getpid(), board
    return known[2]
