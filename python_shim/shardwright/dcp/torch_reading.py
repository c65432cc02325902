"""torch's FileSystemReader, of which every failure is an error that says which file and what has been written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from shardwright import _core
from shardwright.local_path import beside, shown


class CheckedFileSystemReader(FileSystemReader):
    """Reads as torch's does, from regular files alone.

    What goes wrong after a tensor has been written is an error with ``partly_written``, the names of the tensors that
    may be neither whole nor as they were.
    """

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        names = self._expect_places(plan)
        self._place: Any = None  # that is being read
        watched = _WatchedPlanner(planner)
        try:
            return super().read_data(plan, watched)
        except (OSError, _core.CheckpointFormatError, _core.PlanError) as error:
            _note(error, watched.written)
            raise
        except Exception as error:  # damaged archives raise anything
            text = str(error) or type(error).__name__
            wrapped = _core.CheckpointFormatError(
                f"{names.get(id(self._place), shown(self.path))}: cannot be read: {text}; the file is damaged: copy or "
                "save it again"
            )
            _note(wrapped, watched.written)
            raise wrapped from error

    def _slice_file(self, file: Any, sinfo: Any) -> Any:
        self._place = sinfo
        return super()._slice_file(file, sinfo)

    def _expect_places(self, plan: LoadPlan) -> dict[int, str]:
        """Regular files, as long as they have to be. Returns what to call the place of each item."""
        sizes: dict[str, int] = {}
        names: dict[int, str] = {}
        for item in plan.items:
            place = self.storage_data.get(item.storage_index)
            name = item.storage_index.fqn
            if place is None:
                raise _core.CheckpointFormatError(
                    f"{shown(self.path)}: {name}: the metadata does not say where it is"
                )
            path = beside(self.path, place.relative_path)
            if place.relative_path not in sizes:
                sizes[place.relative_path] = _core.size_of_file(path)
            if place.offset + place.length > sizes[place.relative_path]:
                raise _core.CheckpointFormatError(
                    f"{shown(path)}: {name}: expected {place.offset + place.length} bytes or more, found "
                    f"{sizes[place.relative_path]}; the file has been cut short: copy or save it again"
                )
            names[id(place)] = f"{shown(path)}: {name}"
        return names


def _note(error: Any, written: Iterable[str]) -> None:
    error.partly_written = list(written)


class _WatchedPlanner:
    """The planner, as a reader sees it, with a note of what has been written."""

    def __init__(self, planner: Any) -> None:
        self._planner = planner
        self.written: dict[str, None] = {}

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        self.written[read_item.dest_index.fqn] = None
        self._planner.commit_tensor(read_item, tensor)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._planner, name)
