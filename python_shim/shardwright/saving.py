"""Saving the state of a training run, on all ranks together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.futures import Future

from shardwright import _core
from shardwright.checkpoints import step_path
from shardwright.dcp.flat_state import expect_state_dict
from shardwright.dcp.run_save import quietly_alone, run_save
from shardwright.dcp.save_planner import SavePlanner
from shardwright.dcp.sharded_writer import ShardedStorageWriter
from shardwright.local_path import expect_flags, lasting_place, shown
from shardwright.ranks.gone_ranks import naming_gone_ranks, timeout_of
from shardwright.ranks.rank_outcome import told
from shardwright.ranks.together import together, words_of
from shardwright.report import SaveReport


@dataclass(repr=False)
class PendingSave:
    """A save in the background."""

    path: Path | str
    _future: Future[Any]
    _writer: ShardedStorageWriter
    _group: Any = None
    _seen: bool = False

    def __repr__(self) -> str:
        return f"PendingSave({shown(self.path)!r}, done={self.done()})"

    def done(self) -> bool:
        return bool(self._future.done())

    @property
    def future(self) -> Any:
        """torch's future of the save, for those who wait for that. ``wait()`` says what went wrong."""
        return self._future

    def wait(self) -> SaveReport:
        """Waits until it has been published. Raises what went wrong, the same on all ranks."""
        self._seen = True
        try:
            with naming_gone_ranks(self._group, "saving"):
                self._future.result()
        except CheckpointException as failure:
            raise told(failure, self._group) from failure
        finally:
            # A wait that was interrupted leaves the save to its thread, which publishes it or removes what it wrote.
            if self._future.done():
                self._writer.abandon()
        assert self._writer.report is not None
        return self._writer.report


_running: PendingSave | None = None


def _wait_for_the_earlier() -> None:
    """Raises the failure of a save in the background that nobody has asked for yet."""
    global _running
    earlier = _running
    try:
        if earlier is not None and not earlier._seen:
            earlier.wait()
    except Exception:
        _running = None
        raise
    _running = None


def expect_no_save_over(group: dist.ProcessGroup | None) -> None:
    """Raises ValueError where a save in the background has the group.

    What one of two threads sends over it may meet what the other one waits for on another rank, at which Gloo ends the
    process. It has the group until wait(), which all ranks call at the same point: when each finds it done differs.
    """
    if _running is None or _running._seen or _running._group is None:
        return
    if _running._group is (group or dist.group.WORLD):
        raise ValueError(
            f"process_group: an asynchronous save to {shown(_running.path)} has it until its wait(); expected another "
            "group for one of the two, or none for the save, which then makes its own"
        )


def save(
    state_dict: dict[str, Any],
    path: str | os.PathLike[str],
    *,
    step: int | None = None,
    keep_last: int | None = None,
    asynchronous: bool = False,
    planner: Any = None,
    process_group: Any = None,
    threads: int | None = None,
    async_staging_bytes: int | None = None,
    device_memory: int | None = None,
    overwrite: bool | None = None,
    format: str | None = None,
) -> SaveReport | PendingSave:
    """Saves a state dict (tensors, DTensors, objects with state_dict(), anything that pickles) as a sharded checkpoint.

    All ranks of the process group call this. The checkpoint is there when it returns, or an earlier one in that place
    still is; see :class:`ShardedStorageWriter`. Other files in ``path`` are left alone.

    Args:
        path: the directory that the checkpoint goes into; with ``step``, the directory that holds the checkpoints of
            all steps, where :func:`latest` finds the one that was saved last. Or an address, such as s3://bucket/run.
        step: which training step this is; the checkpoint goes into ``path/step-<step>``.
        keep_last: once this one is there, delete all but so many steps, those that were saved last. Needs ``step``, or
            a ``path`` that is called as a step.
        asynchronous: return a :class:`PendingSave` as soon as this rank's state has been copied; training may go on and
            change it. One save runs at a time: the next one waits for it, and raises its failure, on all ranks, if one
            of them has not asked for it yet. Arguments that are refused, or not the same on all ranks, are raised by
            the call itself.
        planner: a DCP save planner; None: a new :class:`SavePlanner`.
        process_group: of the ranks that save; in the background, one that nobody else uses meanwhile. None: all ranks.
        threads, async_staging_bytes, device_memory, overwrite, format: see :class:`ShardedStorageWriter`.

    Raises:
        FileExistsError: another kind of checkpoint is in the place; see ``overwrite``.
        ConnectionResetError: a rank has ended meanwhile, which is named.
        OSError, ValueError: what went wrong, the same on all ranks, naming rank, file (or tensor and CUDA call) and
            cause. Nothing has then been published.
    """
    global _running

    def begin() -> ShardedStorageWriter:
        _wait_for_the_earlier()
        expect_state_dict(state_dict)
        expect_flags(asynchronous=asynchronous)
        if planner is not None and not hasattr(planner, "set_up_planner"):
            raise ValueError(f"planner is {planner!r}; expected a save planner of DCP, or None")
        place = lasting_place(path)
        if keep_last is not None and step is None and _core.step_of(place) is None:
            raise ValueError(
                "keep_last says how many steps to keep: expected step as well, or a path such as training/step-7, "
                f"found {place}"
            )
        return ShardedStorageWriter(
            place if step is None else step_path(place, step),
            thread_count=threads,
            overwrite=overwrite,
            format=format,
            async_staging_bytes=async_staging_bytes,
            device_memory=device_memory,
            keep_last=keep_last,
        )

    alike = words_of(
        path=path,
        step=step,
        keep_last=keep_last,
        asynchronous=asynchronous,
        overwrite=overwrite,
        format=format,
    )
    writer = together(process_group, "saving", begin, alike)
    planner = planner or SavePlanner()
    if asynchronous:
        group = process_group or background_group()
        _running = begin_save(state_dict, writer, planner, group, writer.path)
        return _running
    report: SaveReport = run_save(state_dict, writer, planner, process_group)
    return report


def begin_save(
    state_dict: dict[str, Any], writer: Any, planner: Any, process_group: Any, path: Any
) -> PendingSave:
    """``dcp.async_save`` with one of our storage writers, to ``path``. All ranks of the group call it together."""
    with quietly_alone(), naming_gone_ranks(process_group, "saving"):
        future: Any = dcp.async_save(
            state_dict, storage_writer=writer, planner=planner, process_group=process_group
        )
    return PendingSave(path, future, writer, process_group)


@cache
def _group_of(world: Any) -> Any:
    return dist.new_group(timeout=timeout_of(world), backend="gloo")


def background_group() -> Any:
    """A group of all ranks whose collectives do not mix with training's; None without a process group."""
    return _group_of(dist.group.WORLD) if dist.is_initialized() else None
