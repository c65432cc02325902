"""Checkpoints as directories: which one is the latest, which ones go, and whether one is whole."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from shardwright import _core
from shardwright.local_path import local_path

_STEP = re.compile(r"step-(\d+)")


def step_path(root: str | os.PathLike[str], step: int) -> Path:
    """Where the checkpoint of a training step goes."""
    if step < 0:
        raise ValueError(f"step is {step}; expected 0 or more")
    return Path(root) / f"step-{step:08d}"


def _checkpoints(root: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    """(step, path) of the published checkpoints of a root, oldest first."""
    found = []
    for path in Path(root).iterdir():
        match = _STEP.fullmatch(path.name)
        if match and _core.has_manifest(path):
            found.append((int(match[1]), path))
    return sorted(found)


def latest(root: str | os.PathLike[str]) -> Path | None:
    """The checkpoint of the highest step under ``root``, as ``save(..., step=...)`` writes them; None if there is
    none. What is found has been published: it is whole."""
    if not Path(local_path(root)).is_dir():
        return None
    found = _checkpoints(root)
    return found[-1][1] if found else None


def remove_all_but(root: str | os.PathLike[str], keep_last: int) -> list[Path]:
    """Deletes all but the newest ``keep_last`` checkpoints of a root, and says which those were."""
    old = [path for _, path in _checkpoints(root)[:-keep_last]]
    for path in old:
        _core.remove_checkpoint(path)
    return old


def verify(path: str | os.PathLike[str], threads: int | None = None) -> Any:
    """Checks headers, index, coverage and, where the format has them, checksums of a checkpoint.

    Returns a report: ``problems`` has a line for each thing that is wrong (none: nothing was found), ``damaged`` the
    names of the tensors and objects concerned; ``kind``, ``files``, ``tensors``, ``objects`` and ``bytes_hashed`` say
    what was looked at. A Hugging Face checkpoint has no checksums: ``bytes_hashed`` is 0. Checkpoints of torch's
    FileSystemWriter are checked by the sums of the archives that they consist of.
    """
    path = local_path(path)
    if Path(path, ".metadata").is_file() and not _core.has_manifest(os.fspath(path)):
        from shardwright.torch_checkpoint import verify_torch_checkpoint

        return verify_torch_checkpoint(Path(path))
    return _core.verify_checkpoint(os.fspath(path), threads or 0)
