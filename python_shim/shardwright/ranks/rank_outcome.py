"""What became of a save on each rank, and the one error that all of them get."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from shardwright import _core
from shardwright._core import PlanError

#: Ranks whose failures a message tells; more would hide the cause.
_TOLD = 8


@dataclass
class RankOutcome:
    """What a rank tells the coordinator when it has written its part.

    A failure travels there and is not raised at once, so that the coordinator removes what has been written.
    """

    rank: int
    failure: str = ""
    errno: int = 0
    misfit: bool = False  #: the failure is a PlanError
    row_sums: bytes = b""  #: of an export: checksums of what was written

    def fail(self, error: Exception) -> None:
        self.failure = text_of(error) or type(error).__name__
        self.errno = _errno_of(error)
        self.misfit = isinstance(error, PlanError)

    def encode(self) -> bytes:
        """A failure as bytes for the coordinator (planner/save/write_results.h)."""
        encoded: bytes = _core.encode_failure(self.rank, self.failure, self.errno, self.misfit)
        return encoded


def failed_outcomes(told: list[bytes]) -> list[RankOutcome]:
    """Of the ranks that have not written their part."""
    return [
        RankOutcome(rank, failure=failure, errno=errno, misfit=misfit)
        for rank, failure, errno, misfit in _core.failures_of_results(told)
    ]


def expect_collectives(options: Mapping[str, Any]) -> None:
    """Refuses dcp.save(use_collectives=False) of several ranks; ``options``: what dcp sets a storage writer up with."""
    alone = not dist.is_initialized() or dist.get_world_size() == 1
    if not options.get("use_collectives", True) and not alone:
        raise ValueError(
            "use_collectives=False: a checkpoint is published when all ranks have written their part, which they have "
            "to tell each other; expected use_collectives=True"
        )


def expect_success(outcomes: Iterable[RankOutcome]) -> None:
    """Raises what went wrong, naming the ranks."""
    failed = [outcome for outcome in outcomes if outcome.failure]
    if not failed:
        return
    text = _lines({outcome.rank: outcome.failure for outcome in failed})
    text += ". Nothing was published, and what had been written is removed"
    raise _error(failed[0].errno, failed[0].misfit, text)


def round_of_ranks(
    rank: int,
    ranks: int,
    mine: Callable[[], bytes],
    answers: Callable[[list[bytes]], list[bytes]],
    process_group: dist.ProcessGroup | None = None,
) -> bytes:
    """One round over all ranks: gives rank 0 the bytes of ``mine``, and returns what ``answers``, which rank 0 alone
    calls, has for this rank. Where one of the two raises, all ranks raise an error that names the ranks."""
    if ranks == 1:
        return answers([mine()])[0]
    outcome = RankOutcome(rank)
    payload = b""
    try:
        payload = mine()
    except Exception as error:
        outcome.fail(error)
    gathered: list[Any] = [None] * ranks
    leader = dist.get_global_rank(process_group, 0) if process_group is not None else 0
    dist.gather_object((outcome, payload), gathered if rank == 0 else None, dst=leader, group=process_group)
    replies: list[Any] = [(outcome, b"")] * ranks
    if rank == 0:
        outcomes = [of_rank for of_rank, _ in gathered]
        try:
            expect_success(outcomes)
            replies = [(RankOutcome(0), reply) for reply in answers([told for _, told in gathered])]
        except Exception as error:
            failed = RankOutcome(0)
            failed.fail(error)
            replies = [(failed, b"")] * ranks
    reply: list[Any] = [None]
    dist.scatter_object_list(reply, replies if rank == 0 else None, src=leader, group=process_group)
    of_leader, answer = reply[0]
    if of_leader.failure:
        raise _error(of_leader.errno, of_leader.misfit, of_leader.failure)
    assert isinstance(answer, bytes)
    return answer


def told(failure: CheckpointException, group: dist.ProcessGroup | None = None) -> Exception:
    """dcp's account of what happened on each rank of the group as one ordinary exception, the same on all of them.

    Raises:
        KeyboardInterrupt, SystemExit: what has ended this rank's part, which dcp takes for a failure like others.
    """
    causes = {rank: cause for rank, (cause, _) in sorted(failure.failures.items())}
    here = dist.get_rank(group) if dist.is_available() and dist.is_initialized() else 0
    if isinstance(causes.get(here), (KeyboardInterrupt, SystemExit)):
        raise causes[here] from failure
    first = next(iter(causes.values()))
    text = _lines({rank: text_of(cause) or type(cause).__name__ for rank, cause in causes.items()})
    return _error(_errno_of(first), isinstance(first, PlanError), text)


def as_sent(error: BaseException) -> Exception:
    """What others are told of a failure, as one that can be pickled there and back: classes of callers' own may not."""
    return _error(_errno_of(error), isinstance(error, PlanError), text_of(error) or type(error).__name__)


def text_of(error: BaseException) -> str:
    """What an error says, without its number, with the file that it concerns."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def _lines(text_of_rank: dict[int, str]) -> str:
    """What each rank says, once where several say the same."""
    ranks_of: dict[str, list[int]] = {}
    for rank, text in text_of_rank.items():
        ranks_of.setdefault(text, []).append(rank)
    lines = []
    for text, ranks in list(ranks_of.items())[:_TOLD]:
        others = f" (the same on {len(ranks) - 1} more)" if len(ranks) > 1 else ""
        lines.append(text if text.startswith("rank ") else f"rank {ranks[0]}: {text}{others}")
    if len(ranks_of) > _TOLD:
        lines.append(f"and {len(ranks_of) - _TOLD} more")
    return "; ".join(lines)


def _errno_of(error: BaseException) -> int:
    """The number of an OSError, or of its class where it has none: stores give none. 0 for other errors."""
    if not isinstance(error, OSError):
        return 0
    classes = (
        (FileNotFoundError, errno.ENOENT),
        (FileExistsError, errno.EEXIST),
        (PermissionError, errno.EACCES),
    )
    return error.errno or next((number for kind, number in classes if isinstance(error, kind)), errno.EIO)


def _error(number: int, misfit: bool, text: str) -> Exception:
    if number:
        return OSError(number, text)
    return PlanError(text) if misfit else ValueError(text)
