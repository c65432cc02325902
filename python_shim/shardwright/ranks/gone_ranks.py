"""Ranks that end in the middle of what all do together: who it was, in place of a transport's words alone."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from shardwright import _core

#: Seconds that a rank which ends may take to be seen ending, after its connections have closed.
_PATIENCE = 5.0


@dataclass(frozen=True)
class Peer:
    """A rank's process."""

    rank: int  #: of all
    host: str
    process: int
    started: str  #: which tells it from a later process of that number

    @classmethod
    def own(cls, rank: int) -> Peer:
        return cls(rank, socket.gethostname(), os.getpid(), _state_of(os.getpid())[1])

    def is_gone(self) -> bool | None:
        """None where this cannot be known: it is on another machine."""
        if self.host != socket.gethostname():
            return None
        state, started = _state_of(self.process)
        return state in ("", "Z", "X") or started != self.started

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.process} on {self.host})"


def _state_of(process: int) -> tuple[str, str]:
    """The state of a process and when it was started, as Linux tells; empty where it is gone."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return "", ""
    return fields[0].decode(), fields[19].decode()


def has_others(group: dist.ProcessGroup | None) -> bool:
    """Whether further ranks take part, which would wait for one that raises by itself."""
    return bool(dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1)


def rank_among(group: dist.ProcessGroup | None) -> tuple[int, int]:
    """This rank's number in the group, and how many there are; (0, 1) where no others take part."""
    return (dist.get_rank(group), dist.get_world_size(group)) if has_others(group) else (0, 1)


def expect_member(name: str, group: Any) -> None:
    """Raises ValueError, naming the argument, for what torch gives a rank for a group that it is none of.

    The others talk without it.
    """
    if isinstance(group, int) and group == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            f"{name}: this rank is none of that group's; expected only those to call this, together"
        )


def group_to_tell(group: Any) -> tuple[dist.ProcessGroup | None, ValueError | None]:
    """The group itself; or, for what is none, that of all ranks, which are to hear of it, and what to tell them.

    Raises:
        ValueError: this rank is none of the group's, which then talk without it.
    """
    if group is None or isinstance(group, dist.ProcessGroup):
        return group, None
    expect_member("process_group", group)
    return None, ValueError(
        f"process_group: expected a process group of torch.distributed or None, found {group!r}"
    )


def timeout_of(group: dist.ProcessGroup) -> timedelta | None:
    """How long a group's ranks wait for each other; None where its transports do not tell. A group that is made of its
    ranks needs to be told: it waits half an hour otherwise, whatever the job's timeout is."""
    for device in group._device_types:
        timeout = getattr(getattr(group._get_backend(device), "options", None), "_timeout", None)
        if isinstance(timeout, timedelta):
            return timeout
    return None


_peers_of: dict[int, tuple[Any, list[Peer]]] = {}  # by id of the group, which is kept


def peers_of(group: dist.ProcessGroup | None) -> list[Peer]:
    """The processes of a group's ranks. All of them call this; they talk the first time only."""
    world = dist.group.WORLD
    group = group or world
    of_all = _peers_of.get(id(world))
    if of_all is not None and of_all[0] is world and of_all[1][dist.get_rank()].process == os.getpid():
        return [of_all[1][rank] for rank in dist.get_process_group_ranks(group)]
    known = _peers_of.get(id(group))
    if known is None or known[0] is not group or known[1][dist.get_rank(group)].process != os.getpid():
        peers: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(peers, Peer.own(dist.get_rank()), group)
        known = _peers_of[id(group)] = group, peers
    return known[1]


@contextmanager
def naming_gone_ranks(
    group: dist.ProcessGroup | None, doing: str, partly_written: Callable[[], list[str]] = list
) -> Iterator[None]:
    """Turns what a transport says of a rank that is gone into an error that names the rank.

    All ranks of the group enter it together. Without a process group of several ranks it does nothing.

    Raises:
        ConnectionResetError: ranks are gone, or one cannot be reached; ``partly_written`` names the tensors that may be
            neither whole nor as they were.
    """
    if not has_others(group):
        yield
        return
    peers: list[Peer] = []
    try:
        peers = peers_of(group)
        yield
    except Exception as failure:
        words = _words_of_transport(failure)
        if words is None or hasattr(failure, "partly_written"):
            raise
        names = sorted(set(partly_written()))
        text = _text(peers, dist.get_process_group_ranks(group or dist.group.WORLD), doing, words)
        if names:
            text += f"; partly written on this rank: {', '.join(_core.grouped_names(names))}"
        error = ConnectionResetError(errno.ECONNRESET, text)
        vars(error)["partly_written"] = names
        raise error from failure


def _words_of_transport(failure: BaseException) -> str | None:
    """What a transport said; None for a failure of another kind."""
    if isinstance(failure, CheckpointException):
        of_ranks = [_words_of_transport(cause) for cause, _ in failure.failures.values()]
        return next((words for words in of_ranks if words), None)
    if isinstance(failure, (dist.DistError, ConnectionError)):
        return str(failure)
    known = ("gloo", "onnection", "imed out", "imeout", "Broken pipe", "Socket")
    if type(failure) is RuntimeError and any(word in str(failure) for word in known):
        return str(failure)
    return None


def _text(peers: list[Peer], ranks: list[int], doing: str, words: str) -> str:
    own = socket.gethostname()
    limit = time.monotonic() + _PATIENCE
    gone: list[Peer] = []
    while peers and not gone and time.monotonic() < limit:
        gone = [peer for peer in peers if peer.is_gone()]
        time.sleep(0.01 if not gone else 0)
    first = " ".join(words.split("\n")[0].split())[:300]
    if gone:
        return f"{', '.join(map(str, gone))} ended while the ranks were {doing} together; the transport says: {first}"
    if not peers and len(ranks) == 2:  # it ended before the two had told each other their processes
        other = next(rank for rank in ranks if rank != dist.get_rank())
        return f"rank {other} cannot be reached while the ranks are {doing} together; the transport says: {first}"
    elsewhere = [peer for peer in peers if peer.host != own]
    who = (
        f"one of {', '.join(map(str, elsewhere[:8]))}{' ...' if elsewhere[8:] else ''}"
        if elsewhere
        else "a rank"
    )
    return f"{who} cannot be reached while the ranks are {doing} together, or has failed; the transport says: {first}"
