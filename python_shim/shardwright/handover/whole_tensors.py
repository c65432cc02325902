"""Pieces of all ranks put together to whole tensors, for engines that take no less."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from itertools import chain, groupby
from operator import attrgetter
from typing import Any

import torch
import torch.distributed as dist

from shardwright.batches import in_batches
from shardwright.describe import DTYPES
from shardwright.handover.piece import Piece
from shardwright.ranks.gone_ranks import has_others, naming_gone_ranks
from shardwright.ranks.together import told_by_all

_DOING = "putting pieces together"


def whole_tensors(
    source: Any,
    pieces: Iterator[Piece],
    group: dist.ProcessGroup | None,
    *,
    everywhere: bool,
    batch_bytes: int,
) -> Generator[tuple[str, torch.Tensor], None, None]:
    """The checkpoint's tensors, each whole, scales right behind their weights.

    All ranks of the group iterate together. The first rank gets the tensors, with ``everywhere`` each does; the others
    get none. Ranks exchange tensors of up to ``batch_bytes`` at once, or one that is larger, which is the memory that
    this takes.

    Args:
        source: the core's Pieces, which ``pieces`` are made of on this rank.

    Raises, the same on every rank:
        PlanError, OSError, ValueError: what handing over raises on any of them; what is thrown into this generator by
            who takes the tensors; and that a rank has closed it before its end.
    """
    here = everywhere or not has_others(group) or dist.get_rank(group) == 0
    upcoming = _Upcoming(pieces)
    left = len(source.tensors())
    of_weights = [list(weight) for _, weight in groupby(source.tensors(), attrgetter("weight"))]
    for weights in in_batches(of_weights, lambda weight: sum(map(_bytes_of, weight)), batch_bytes):
        batch = list(chain.from_iterable(weights))
        names = {tensor.name for tensor in batch}
        wholes = {
            tensor.name: torch.empty(tensor.shape, dtype=DTYPES.get(tensor.dtype, torch.uint8))
            for tensor in batch
            if here
        }
        for piece in _exchanged(upcoming, names, group, everywhere):
            if here:
                piece.put_into(wholes[piece.name])
        try:
            for name_and_tensor in wholes.items():
                left -= 1
                yield name_and_tensor
        except GeneratorExit:  # the others, who would wait, hear of it; but who has the last tensor has all
            with suppress(Exception):
                _told_by_all(group, [], ValueError("has stopped taking tensors") if left > 0 else None)
            raise
        except Exception as error:  # thrown in by who takes them
            _told_by_all(group, [], error)
            raise
    _told_by_all(group, [], None)
    if upcoming.next is not None:
        raise RuntimeError(f"{upcoming.next.name}: a piece has come in another order than its tensor")


class _Upcoming:
    """Pieces, of which one can be looked at before it is taken."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self._pieces = pieces
        self._has_begun = False
        self.next: Piece | None = None

    def of(self, names: set[str]) -> list[Piece]:
        """Takes all that come before a piece of another tensor; the bytes are copied."""
        taken = []
        if not self._has_begun:  # not before: it may fail, which the others have to be told
            self._has_begun = True
            self.next = next(self._pieces, None)
        while self.next is not None and self.next.name in names:
            taken.append(self.next._replace(tensor=self.next.tensor.clone()))
            self.next = next(self._pieces, None)
        return taken


def _bytes_of(tensor: Any) -> int:
    return _nbytes(DTYPES.get(tensor.dtype, torch.uint8), torch.Size(tensor.shape))


def _exchanged(
    upcoming: _Upcoming, names: set[str], group: dist.ProcessGroup | None, everywhere: bool
) -> Iterator[Piece]:
    """The pieces of these tensors that ranks have, where they are to be put together."""
    failure: Exception | None = None
    mine: list[Piece] = []
    try:
        mine = upcoming.of(names)
    except Exception as error:
        if not has_others(group):
            raise
        failure = error
    if not has_others(group):
        yield from mine
        return
    facts = [piece._replace(tensor=(piece.tensor.dtype, piece.tensor.shape)) for piece in mine]
    told = _told_by_all(group, facts, failure)
    yield from mine
    with naming_gone_ranks(group, _DOING):
        own = dist.get_rank(group)
        for rank, of_rank in enumerate(told):
            size = sum(_nbytes(*fact.tensor) for fact in of_rank)
            if size == 0 or (not everywhere and own not in (0, rank)) or (not everywhere and rank == 0):
                continue
            flat = (
                torch.cat([piece.tensor.reshape(-1).view(torch.uint8) for piece in mine])
                if rank == own
                else torch.empty(size, dtype=torch.uint8)
            )
            _send(flat, rank, own, group, everywhere)
            if rank == own:
                continue
            at = 0
            for fact in of_rank:
                dtype, shape = fact.tensor
                end = at + _nbytes(dtype, shape)
                yield fact._replace(tensor=_aligned(flat[at:end], dtype).view(shape))
                at = end


def _told_by_all(group: dist.ProcessGroup | None, facts: list[Any], failure: Exception | None) -> list[Any]:
    """What each rank has; raises on all of them what one says has failed."""
    if not has_others(group):
        return [facts]
    with naming_gone_ranks(group, _DOING):
        return told_by_all(group, _DOING, facts, failure)


def _send(flat: torch.Tensor, rank: int, own: int, group: dist.ProcessGroup | None, everywhere: bool) -> None:
    """Brings the bytes of a rank to the first one, or to all."""
    world = group or dist.group.WORLD
    of_job = dist.get_global_rank(world, rank)
    if everywhere:
        dist.broadcast(flat, of_job, group)
    elif own == rank:
        dist.send(flat, dist.get_global_rank(world, 0), group)
    else:
        dist.recv(flat, of_job, group)


def _nbytes(dtype: torch.dtype, shape: torch.Size) -> int:
    return int(dtype.itemsize * shape.numel())


def _aligned(flat: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Bytes as elements; copied where they begin between two of them."""
    if flat.storage_offset() % dtype.itemsize:
        flat = flat.clone()
    return flat.view(dtype)
