"""What became of a save on each rank, and the one error that all of them get."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from shardwright import _core
from shardwright._core import PlanError
from shardwright.ranks.gone_ranks import has_others, rank_among

#: What an error of ranks that save ends in.
NOT_PUBLISHED = ". Nothing was published, and what had been written is removed"

#: Ranks whose failures a message tells; more would hide the cause.
_TOLD = 8


def told_failure(rank: int, error: Exception) -> bytes:
    """What a rank tells the coordinator that has not written its part (planner/save/write_results.h).

    It is not raised at once, so that the coordinator removes what has been written.
    """
    text = text_of(error) or type(error).__name__
    text = text.encode(errors="backslashreplace").decode()  # a file's name may be no UTF-8
    encoded: bytes = _core.encode_failure(rank, text, _errno_of(error), isinstance(error, PlanError))
    return encoded


def expect_collectives(options: Mapping[str, Any]) -> None:
    """Refuses dcp.save(use_collectives=False) of several ranks; ``options``: what dcp sets a storage writer up with."""
    if not options.get("use_collectives", True) and has_others(None):
        raise ValueError(
            "use_collectives=False: a checkpoint is published when all ranks have written their part, which they have "
            "to tell each other; expected use_collectives=True"
        )


def expect_success(told: list[bytes]) -> None:
    """Raises what went wrong, by what ranks tell, naming them."""
    failed = _core.failures_of_results(told)
    if failed:
        text = _lines({rank: failure for rank, failure, *_ in failed})
        _, _, number, is_misfit = failed[0]
        raise _error(number, is_misfit, text + NOT_PUBLISHED)


def told(failure: CheckpointException, group: dist.ProcessGroup | None = None) -> Exception:
    """dcp's account of what happened on each rank of the group as one ordinary exception, the same on all of them.

    Raises:
        KeyboardInterrupt, SystemExit: what has ended this rank's part, which dcp takes for a failure like others.
    """
    causes = {rank: cause for rank, (cause, _) in sorted(failure.failures.items())}
    here, _ = rank_among(group)
    if isinstance(causes.get(here), (KeyboardInterrupt, SystemExit)):
        raise causes[here] from failure
    first = next(iter(causes.values()))
    text = _lines({rank: text_of(cause) or type(cause).__name__ for rank, cause in causes.items()})
    return _error(_errno_of(first), isinstance(first, PlanError), text)


def as_sent(error: BaseException, ending: str = "") -> Exception:
    """What others are told of a failure, as one that can be pickled there and back: classes of callers' own may not.
    ``ending`` is said after it."""
    text = text_of(error) or type(error).__name__
    return _error(_errno_of(error), isinstance(error, PlanError), text + ending)


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
