"""Checkpoints as directories: which one is the latest, which ones go, and whether one is whole."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, overload

from shardwright import _core
from shardwright.local_path import location, shown, whole_number
from shardwright.progress import counters_of
from shardwright.remote.address import address_of, is_address


def step_path(root: str | os.PathLike[str], step: int) -> Path | str:
    """Where the checkpoint of a training step goes: ``step-00000007``, or as a folder of that number is called. Below
    an address, an address.

    Raises:
        ValueError: two folders are of that step.
    """
    whole_number("step", step, 0, (1 << 64) - 1)
    found = Path(_core.step_path(location(root), step))
    return f"{address_of(root)}/{found.name}" if is_address(root) else found


def next_order(path: str | os.PathLike[str]) -> int:
    """The order of a save to ``path`` among those of its training: one more than any other step's; 0 for a folder that
    is not called as those of steps are. Warns of steps whose place in it is not known."""
    order, unread = _core.next_order(location(path))
    for line in unread:
        warnings.warn(line, stacklevel=2)
    return int(order)


def keep_last_steps(path: Path | str, keep: int) -> list[str]:
    """Deletes all but so many of the steps beside ``path``, those that were saved last. Returns a line for each that
    was not deleted, and why."""
    root = path.rpartition("/")[0] if isinstance(path, str) else path.parent
    lines: list[str] = _core.keep_last_steps(root, keep)
    return lines


@overload
def latest(root: Path) -> Path | None: ...


@overload
def latest(root: str | os.PathLike[str]) -> Path | str | None: ...


def latest(root: str | os.PathLike[str]) -> Path | str | None:
    """The checkpoint under ``root`` that was saved last, as ``save(..., step=...)`` writes them; None if there is none.

    After a training has been rolled back to an earlier step and saved anew, that is its newest save, though folders of
    higher steps may still be there. What is found has been published: it is whole. Below an address, such as
    s3://bucket/run, it is an address, as a text.

    Raises:
        ValueError: two folders are of one step, such as ``step-7`` and ``step-00000007``.
    """
    found = _core.latest_checkpoint(location(root))
    return None if found is None else found if is_address(found) else Path(found)


def expect_no_steps(path: str | os.PathLike[str]) -> None:
    """Raises ValueError for a folder that holds the checkpoints of several steps, and names the latest."""
    newest = latest(path)
    if newest is not None:
        raise ValueError(
            f"{shown(path)} holds the checkpoints of several steps; expected one of them, such as the latest, "
            f"shardwright.latest(...): {newest}"
        )


def verify(path: str | os.PathLike[str], threads: int | None = None) -> Any:
    """Checks headers, index, coverage and, where the format has them, checksums of a checkpoint; of encoded weights in
    Hugging Face's format the scales, too, which loads refuse where no encoder writes them.

    Returns a report: ``problems`` has a line for each thing that is wrong (none: nothing was found), ``damaged`` the
    names of the tensors and objects concerned; ``kind``, ``files``, ``tensors``, ``objects`` and ``bytes_hashed`` say
    what was looked at. Of a Hugging Face checkpoint that another program wrote there are no checksums:
    ``bytes_hashed`` is 0. Checkpoints of torch's FileSystemWriter are checked by the sums of the archives that they
    consist of.
    """
    path = location(path)
    if _core.kind_of(path) == "torch":
        from shardwright.dcp.torch_checkpoint import verify_torch_checkpoint

        return verify_torch_checkpoint(path)
    return _core.verify_checkpoint(os.fspath(path), threads or 0, counters_of("verifying"))
