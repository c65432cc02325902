"""What each rank does for itself, with one outcome for all: no rank goes on while another has failed."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from shardwright import _core
from shardwright.ranks.gone_ranks import group_to_tell, has_others, naming_gone_ranks, rank_among
from shardwright.ranks.rank_outcome import as_sent, text_of, told

T = TypeVar("T")

#: Seconds for which a rank that is about to raise waits, at most, until the others have heard what it has.
_HEARING_SECONDS = 5.0


def together(
    group: dist.ProcessGroup | None, doing: str, run: Callable[[], T], alike: Sequence[str] = ()
) -> T:
    """Runs a function on every rank of the group, and returns what it gives on this one.

    What begins something on all ranks calls this first, with what checks its arguments, and in ``alike`` with those
    that decide how ranks go on (see :func:`words_of`): one rank would wait for another that has refused, or that does
    something else.

    Raises:
        PlanError, OSError, ValueError: what it raised on any rank, naming the ranks, the same on all of them.
        PlanError: ranks differ in ``alike``; names them, with what each has.
        ConnectionResetError: a rank has ended meanwhile.
    """
    group, refusal = group_to_tell(group)
    if not has_others(group):
        if refusal is not None:
            raise refusal
        return run()
    words = [word.encode(errors="backslashreplace") for word in (f"call of {doing}", *alike)] if alike else []
    with naming_gone_ranks(group, doing):
        result: T | None = None
        failure: BaseException | None = refusal
        if failure is None:
            try:
                result = run()
            except BaseException as error:
                failure = error
        of_ranks = told_by_all(group, doing, _digest_of(words), failure)
        if len(set(of_ranks)) > 1:
            dist.all_gather_object(of_ranks, words, group)
            wait_until_all_know(group)
            _core.expect_asked_alike(of_ranks)
    return cast(T, result)


def wait_until_all_know(group: dist.ProcessGroup | None) -> None:
    """Waits, for a while, until the group's other ranks have heard what this one has. All of them call this before they
    raise: whoever catches that may end its process, and with it connections from which others still read."""
    if not has_others(group):
        return
    with suppress(Exception):  # what was heard counts
        here = torch.zeros(1, dtype=torch.int32, device="cpu")
        dist.all_reduce(here, group=group, async_op=True).wait(timedelta(seconds=_HEARING_SECONDS))


def told_by_all(
    group: dist.ProcessGroup | None, doing: str, mine: Any, failure: BaseException | None
) -> list[Any]:
    """What each rank of the group tells. Raises on all of them where some bring a failure, naming these ranks."""
    of_ranks: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(of_ranks, (mine, None if failure is None else as_sent(failure)), group)
    if failed := _failed_of(doing, [error for _, error in of_ranks]):
        wait_until_all_know(group)
        if isinstance(failure, (KeyboardInterrupt, SystemExit)):
            raise failure
        raise failed from failure
    return [one for one, _ in of_ranks]


def _failed_of(doing: str, errors: Sequence[Exception | None]) -> Exception | None:
    """One error for those of ranks, by number of the rank; None where there are none."""
    causes: dict[int, Any] = {rank: (error, None) for rank, error in enumerate(errors) if error is not None}
    return told(CheckpointException(doing, causes)) if causes else None


def round_of_ranks(
    group: dist.ProcessGroup | None,
    doing: str,
    mine: Callable[[], bytes],
    answers: Callable[[list[bytes]], list[bytes]],
    ending: str = "",
) -> bytes:
    """One round over all ranks: gives the first one the bytes of ``mine``, and returns what ``answers``, which that one
    alone calls, has for this rank.

    Raises, the same on all ranks:
        PlanError, OSError, ValueError: what one of the two has raised; of ``mine`` it names the ranks, and says
            ``ending`` after that.
        ConnectionResetError: a rank has ended meanwhile.
        KeyboardInterrupt, SystemExit: one of the two has raised it, on this rank; others have an error that says so.
    """
    rank, ranks = rank_among(group)
    if ranks == 1:
        return answers([mine()])[0]
    failure: BaseException | None = None
    told_here: tuple[bytes, Exception | None] = b"", None
    try:
        told_here = mine(), None
    except BaseException as error:
        failure, told_here = error, (b"", as_sent(error))
    first = dist.get_global_rank(group or dist.group.WORLD, 0)
    gathered: list[Any] = [None] * ranks
    reply: list[Any] = [None]
    with naming_gone_ranks(group, doing):
        dist.gather_object(told_here, gathered if rank == 0 else None, dst=first, group=group)
        replies = None
        if rank == 0:
            replies, of_answers = _answered(gathered, answers, doing, ending)
            failure = failure or of_answers
        dist.scatter_object_list(reply, replies, src=first, group=group)
    answer, failed = reply[0]
    if failed is not None:
        wait_until_all_know(group)
    if isinstance(failure, (KeyboardInterrupt, SystemExit)):
        raise failure
    if failed is not None:
        raise failed from failure
    return bytes(answer)


def _answered(
    told_by: list[tuple[bytes, Exception | None]],
    answers: Callable[[list[bytes]], list[bytes]],
    doing: str,
    ending: str,
) -> tuple[list[tuple[bytes, Exception | None]], BaseException | None]:
    """What the first rank answers each: bytes, or one error for all; and what ``answers`` has raised."""
    failed = _failed_of(doing, [error for _, error in told_by])
    if failed is not None:
        return [(b"", as_sent(failed, ending))] * len(told_by), None
    try:
        return [(answer, None) for answer in answers([one for one, _ in told_by])], None
    except BaseException as error:
        return [(b"", as_sent(error))] * len(told_by), error


def words_of(**arguments: Any) -> list[str]:
    """Arguments as ranks compare them: by what they say, not by which objects they are."""
    return [f"{name} {_text_of(value)}" for name, value in arguments.items()]


def _text_of(value: Any) -> str:
    try:
        return os.fsdecode(value)
    except Exception:  # it is no path, or one that whoever uses it is going to refuse
        return repr(value)


def _digest_of(words: list[bytes]) -> bytes:
    """A few bytes for what every rank would have to be sent by each."""
    return hashlib.blake2b(b"\0".join(words), digest_size=8).digest() if words else b""


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


def raise_if_any_failed(
    group: dist.ProcessGroup,
    failure: BaseException | None,
    partly_written: Callable[[], list[str]] = list,
) -> None:
    """Raises on all ranks if one brings a failure: its own where there is one, else one that names the others', and
    what they leave partly written here."""
    failed = torch.tensor([failure is not None], dtype=torch.int32, device="cpu")
    dist.all_reduce(failed, dist.ReduceOp.MAX, group)
    if not failed.item():
        return
    messages: list[str | None] = [None] * dist.get_world_size(group)
    mine = (
        None if failure is None else text_of(failure) or type(failure).__name__
    )  # an interrupt says nothing
    dist.all_gather_object(messages, mine, group)
    wait_until_all_know(group)
    if failure is not None:
        raise failure
    lines = [
        f"rank {dist.get_global_rank(group, rank)}: {text}"
        for rank, text in enumerate(messages)
        if text is not None
    ]
    names = partly_written()
    if names:
        lines += ["partly written on this rank:", *(f"  {line}" for line in _core.grouped_names(names))]
    of_others = OSError("a rank that this one reads together with has failed:\n" + "\n".join(lines))
    vars(of_others)["partly_written"] = names
    raise of_others


@contextmanager
def failing_together(
    group: dist.ProcessGroup | None, partly_written: Callable[[], list[str]] = list
) -> Iterator[None]:
    """Ends on all ranks together: well, or with the failure of each that has one, which the others name."""
    failure = None
    try:
        yield
    except BaseException as error:
        if group is None:
            raise
        failure = error
    if group is not None:
        raise_if_any_failed(group, failure, partly_written)


@contextmanager
def held_interrupt() -> Iterator[list[FrameType | None]]:
    """Holds a first Ctrl-C back to the end of the block: no rank leaves a round that the others are in. A second
    one, of a user who does not wait for a rank that is gone, is KeyboardInterrupt at once.

    Yields what is held: where the block raises, its caller has to look.
    """
    held: list[FrameType | None] = []
    if threading.current_thread() is not threading.main_thread():  # interrupts come to that one alone
        yield held
        return

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(frame)
        if len(held) > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, hold)
    try:
        yield held
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
    if held:
        raise KeyboardInterrupt
