"""Checkpoints as directories: which one is the latest, which ones go, and whether one is whole."""

from __future__ import annotations

import os
import re
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from shardwright import _core
from shardwright.local_path import local_path, resolved, whole_number
from shardwright.system_calls import is_file, uninterrupted

_STEP = re.compile(r"step-(\d+)")


def step_path(root: str | os.PathLike[str], step: int) -> Path:
    """Where the checkpoint of a training step goes: ``step-00000007``, or as a folder of that number is called."""
    whole_number("step", step)
    usual = Path(root) / f"step-{step:08d}"
    there = [path for number, path in _steps(root) if number == step]
    if len(there) > 1:
        raise _step_twice(step, there)
    return there[0] if there else usual


def step_of(path: str | os.PathLike[str]) -> int | None:
    """The step of a folder that is called as those of steps are."""
    match = _STEP.fullmatch(Path(path).name)
    return int(match[1]) if match else None


def _step_twice(step: int, paths: list[Path]) -> ValueError:
    return ValueError(
        f"step {step} is there twice: {', '.join(map(str, sorted(paths)))}; expected one folder for a step. Rename or "
        "remove one of them"
    )


def _steps(root: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    """(step, path) of the folders of a root that are called as those of steps are."""
    paths = uninterrupted(lambda: list(Path(root).iterdir()) if Path(root).is_dir() else [])
    named = [(step_of(path), path) for path in paths]
    return [(step, path) for step, path in named if step is not None]


def _checkpoints(root: str | os.PathLike[str]) -> list[tuple[int, int, Path]]:
    """(order of saving, step, path) of the published checkpoints of a root, oldest first."""
    return [(order, step, Path(path)) for order, step, path in _core.saved_steps(os.fspath(root))]


def _is_link(path: Path) -> bool:
    return uninterrupted(path.is_symlink)


def next_order(path: str | os.PathLike[str]) -> int:
    """The order of a save to ``path`` among those of its training: one more than any other step's; 0 for a folder that
    is not called as those of steps are. Warns of steps whose place in it is not known."""
    order, unread = _core.next_order(os.fspath(path))
    for line in unread:
        warnings.warn(line, stacklevel=2)
    return int(order)


def latest(root: str | os.PathLike[str]) -> Path | None:
    """The checkpoint under ``root`` that was saved last, as ``save(..., step=...)`` writes them; None if there is none.

    After a training has been rolled back to an earlier step and saved anew, that is its newest save, though folders of
    higher steps may still be there. What is found has been published: it is whole.

    Raises:
        ValueError: two folders are of one step, such as ``step-7`` and ``step-00000007``.
    """
    local_path(root)
    found = _checkpoints(root)
    return found[-1][2] if found else None


def remove_all_but(root: str | os.PathLike[str], keep_last: int) -> list[Path]:
    """Deletes all but the ``keep_last`` checkpoints of a root that were saved last, and says which those were.

    Other people's files in the folders of steps stay, and so do the folders then. Of a step that is a symbolic link,
    the link is removed. What saves to these steps that died have left goes, too.
    """
    removed = []
    links = []
    for _, path in _steps(root):
        with suppress(OSError):  # it leads in a circle
            links += [(path, resolved(path))] if _is_link(path) else []
    for _, _, path in _checkpoints(root)[:-keep_last]:
        try:
            _core.remove_checkpoint(path)
            removed.append(path)
            for link, target in links:
                if target == resolved(path) and link != path:
                    _core.remove_checkpoint(link)  # which removes the link
        except (OSError, _core.CheckpointFormatError) as error:  # the save itself has succeeded
            warnings.warn(f"keep_last={keep_last}: {path} was not removed: {error}", stacklevel=2)
    for _, path in _steps(root):
        if not _is_link(path):
            _core.clean_up_after_dead_save(path)
    return removed


def verify(path: str | os.PathLike[str], threads: int | None = None) -> Any:
    """Checks headers, index, coverage and, where the format has them, checksums of a checkpoint.

    Returns a report: ``problems`` has a line for each thing that is wrong (none: nothing was found), ``damaged`` the
    names of the tensors and objects concerned; ``kind``, ``files``, ``tensors``, ``objects`` and ``bytes_hashed`` say
    what was looked at. Of a Hugging Face checkpoint that another program wrote there are no checksums:
    ``bytes_hashed`` is 0. Checkpoints of torch's FileSystemWriter are checked by the sums of the archives that they
    consist of.
    """
    path = local_path(path)
    if is_file(Path(path, ".metadata")) and not _core.has_manifest(os.fspath(path)):
        from shardwright.dcp.torch_checkpoint import verify_torch_checkpoint

        return verify_torch_checkpoint(Path(path))
    return _core.verify_checkpoint(os.fspath(path), threads or 0)
