"""torch's FileSystemReader of ``.distcp``, held to what is safe."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from shardwright import _core
from shardwright.dcp.torch_checkpoint import (
    REGISTER,
    are_unknown,
    damaged_archive,
    fault_of_archive,
    is_stream_of_ours,
    unknown_extensions,
)
from shardwright.dcp.torch_metadata import METADATA_NAME, read_torch_metadata
from shardwright.local_path import beside, location, shown
from shardwright.objects.safe_objects import safe_pickles
from shardwright.regular_file import GIT_LFS, IS_POINTER, open_regular
from shardwright.remote.address import is_address
from shardwright.remote.parts import Part, PartsAhead, PartsFileSystem
from shardwright.report import LoadReport, with_what_was_left_out
from shardwright.rounding import roundings_of
from shardwright.system_calls import has_entry


class TorchStorageReader(FileSystemReader):
    """torch's FileSystemReader, of regular files alone, which runs no code that a checkpoint names.

    What goes wrong once a tensor has been written is an error with ``partly_written``, the names of the tensors that
    may be neither whole nor as they were.

    Args:
        path: the checkpoint directory.
        weights_only: False lets the pickled objects run whatever code they name; see ShardedStorageReader.
        extension_registry: see torch's FileSystemReader.
        staging_bytes: of parts of objects at an address that are read ahead; None: 128 MiB. One part may take more.
        verify: True compares all that this rank reads with the sums of the zip archives, before anything is written to
            a tensor; that is slower than reading it. Otherwise nothing is compared.

    After a load, ``report`` is its :class:`LoadReport`, as far as torch's reader shows what it does.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        weights_only: bool = True,
        extension_registry: Any = None,
        verify: bool | None = None,
        staging_bytes: int | None = None,
    ) -> None:
        super().__init__(location(path), extension_registry)
        self.verify = verify
        self._staging_bytes = staging_bytes
        self._ahead: PartsAhead | None = None  #: at an address, what is being read
        self._read_ahead: list[PartsAhead] = []  #: and what has been, for the load to come
        if is_address(path):
            self.path: Any = location(path)
            self.fs: Any = PartsFileSystem()
        self.weights_only = weights_only
        self.report: LoadReport | None = None
        self._ready: dict[str, io.BytesIO] = {}  #: objects that have been read for the load to come
        self._place: Any = None  #: that is being read

    def read_metadata(self, name: str = METADATA_NAME, *args: Any, **kwargs: Any) -> Metadata:
        metadata = read_torch_metadata(self.path, name)
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        vars(metadata)["where"] = self.path  # for messages
        return metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        super().set_up_storage_reader(metadata, is_coordinator, *args, **kwargs)
        self._metadata = metadata

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Reads the objects, as long as ``dcp.load`` can still tell all ranks that one of them is refused."""
        self._expect_known_extensions(plan)
        self._expect_whole_files(plan)
        if self.verify:
            self._expect_undamaged(plan)
        self._read_ahead = []
        self._ready = self._read_objects(plan) if self.weights_only else {}
        return super().prepare_local_plan(plan)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        start = time.perf_counter()
        self._expect_known_extensions(plan)
        self._expect_whole_files(plan)
        rounded = roundings_of(self._casts(plan, planner))
        ready, self._ready = self._ready, {}
        if self.weights_only:
            ready |= self._read_objects(plan, ready)
        self._place = None
        held = _HeldPlanner(planner)
        by_torch = self._as_they_lie(item for item in plan.items if item.storage_index.fqn not in ready)
        try:
            with self._reading_ahead(by_torch):
                done = super().read_data(replace(plan, items=by_torch), held)
            for item in plan.items:
                if item.storage_index.fqn in ready:
                    self._place = self.storage_data[item.storage_index]
                    ready[item.storage_index.fqn].seek(0)
                    held.load_bytes(item, ready[item.storage_index.fqn])
        except Exception as error:
            failure = self._failure_of(error, plan)
            vars(failure)["partly_written"] = list(held.written)
            if failure is error:
                raise
            raise failure from error
        report = self._report(plan, planner, rounded, time.perf_counter() - start)
        read_ahead, self._read_ahead = self._read_ahead, []
        if is_address(self.path):
            report = replace(
                report,
                files_remote=report.files,
                read_requests=sum(ahead.requests for ahead in read_ahead),
                peak_staging_bytes=max((ahead.peak_bytes for ahead in read_ahead), default=0),
            )
        self.report = report
        return done

    @contextmanager
    def _reading_ahead(self, items: Iterable[ReadItem]) -> Iterator[None]:
        """Meanwhile `_slice_file` gives parts of objects at an address, of these items in their order, which are read
        before they are asked for. An archive is gone through forth and back, which would be a request each time."""
        if not is_address(self.path):
            yield
            return
        named = (self._part(self.storage_data[item.storage_index]) for item in items)
        parts = [part for part, _ in groupby(named)]  # a part of which several boxes are wanted is read once
        with PartsAhead(parts, self._staging_bytes) as self._ahead:
            self._read_ahead.append(self._ahead)
            try:
                yield
            finally:
                self._ahead = None

    def _as_they_lie(self, items: Iterable[ReadItem]) -> list[ReadItem]:
        def place_of(item: ReadItem) -> tuple[str, int]:
            place = self.storage_data[item.storage_index]
            return place.relative_path, place.offset

        return sorted(items, key=place_of)

    def _part(self, place: Any) -> Part:
        return Part(beside(self.path, place.relative_path), place.offset, place.offset + place.length)

    def _slice_file(self, file: Any, sinfo: Any) -> Any:
        self._place = sinfo
        return (
            super()._slice_file(file, sinfo) if self._ahead is None else self._ahead.take(self._part(sinfo))
        )

    def _failure_of(self, error: Exception, plan: LoadPlan) -> Exception:
        """The error itself, or for what damaged archives raise, which is anything, one that names the file."""
        if isinstance(error, (OSError, _core.CheckpointFormatError, _core.PlanError)):
            return error
        concerned: Any = self.path
        for item in plan.items:
            if self.storage_data[item.storage_index] is self._place:
                concerned = f"{beside(self.path, self._place.relative_path)}: {item.storage_index.fqn}"
        return damaged_archive(shown(concerned), error)

    def _casts(self, plan: LoadPlan, planner: LoadPlanner) -> list[tuple[str, torch.dtype, torch.dtype]]:
        """(name, stored dtype, destination's dtype) of the tensors. Raises a PlanError for what is stored with scales
        and asked for without, which torch's reader would cast as if there were none."""
        stored = self._metadata.state_dict_metadata
        casts, problems = {}, {}
        for item in plan.items:
            if item.type != LoadItemType.TENSOR:
                continue
            name = item.storage_index.fqn
            dtype, wanted = stored[name].properties.dtype, planner.resolve_tensor(item).dtype
            casts[name] = (name, dtype, wanted)
            scales = [scale for scale in _core.scale_names_of(name) if scale in stored]
            if dtype != wanted and dtype.itemsize == 1 and dtype.is_floating_point and scales:
                problems[name] = (
                    f"{name}: is stored as {dtype} with scales, {scales[0]}, and asked for as {wanted}, but torch's "
                    "checkpoints are not decoded; load both as they are stored"
                )
        if problems:
            raise _core.PlanError(_core.in_lines(f"cannot load {shown(self.path)}:", list(problems.values())))
        return list(casts.values())

    def _expect_known_extensions(self, plan: LoadPlan) -> None:
        places = (self.storage_data.get(item.storage_index) for item in plan.items)
        used = {name for place in places if place for name in place.transform_descriptors or ()}
        if unknown := unknown_extensions(self.transforms.extension_registry, used):
            raise ValueError(f"{are_unknown(self.path, unknown)}; {REGISTER}")

    def _expect_whole_files(self, plan: LoadPlan) -> None:
        ends: dict[str, int] = {}
        for item in plan.items:
            place = self.storage_data.get(item.storage_index)
            if place is None:
                raise _core.CheckpointFormatError(
                    f"{shown(self.path)}: {item.storage_index.fqn}: the metadata does not say where it is"
                )
            ends[place.relative_path] = max(place.offset + place.length, ends.get(place.relative_path, 0))
        problems = []
        for name, end in ends.items():
            file = beside(self.path, name)
            if not has_entry(file):
                problems.append(
                    f"{shown(file)}: expected a file of {end} bytes or more, found none; copy it again"
                )
            elif (size := _core.size_of_file(file)) < end:
                with open_regular(file) as stream:
                    is_pointer = stream.read(len(GIT_LFS)) == GIT_LFS
                what = (
                    IS_POINTER if is_pointer else f"expected {end} bytes or more, found {size}; copy it again"
                )
                problems.append(f"{shown(file)}: {what}")
        if problems:
            raise _core.CheckpointFormatError(_core.in_lines(problems[0], problems[1:]))

    def _expect_undamaged(self, plan: LoadPlan) -> None:
        problems = []
        for index in dict.fromkeys(item.storage_index for item in plan.items):
            place = self.storage_data[index]
            path = beside(self.path, place.relative_path)
            if place.transform_descriptors or is_stream_of_ours(path, place, index, self._metadata):
                raise ValueError(
                    f"{shown(path)}: {index.fqn}: verify=True, but there are no checksums to check: it is "
                    + (
                        "encoded by an extension of torch's writer"
                        if place.transform_descriptors
                        else f"Shardwright's, of which {_core.manifest_name} has them, and is gone"
                    )
                )
            if fault := fault_of_archive(path, place.offset, place.length):
                problems.append(f'{shown(path)}: "{index.fqn}" is damaged: {fault}')
        if problems:
            raise _core.CheckpointFormatError(_core.in_lines("the checkpoint is damaged", problems))

    def _read_objects(self, plan: LoadPlan, but: Container[str] = ()) -> dict[str, io.BytesIO]:
        """What the planner may unpickle: it does so without restraint."""
        wanted = {
            item.storage_index.fqn: item
            for item in plan.items
            if item.type == LoadItemType.BYTE_IO and item.storage_index.fqn not in but
        }
        items = {item.storage_index.fqn: item for item in self._as_they_lie(wanted.values())}

        def read(name: str) -> tuple[str, io.BytesIO]:
            place = self.storage_data[items[name].storage_index]
            file = beside(self.path, place.relative_path)
            with self._opened(file) as stream:
                part = self._slice_file(stream, place)
                descriptors = place.transform_descriptors or ()
                data = self.transforms.transform_load_stream(items[name], descriptors, part).read(-1)
            return file, io.BytesIO(data)

        with self._reading_ahead(items.values()):
            return safe_pickles(items, read)

    def _opened(self, file: str) -> BinaryIO:
        return open_regular(file) if self._ahead is None else self.fs.create_stream(file, "rb")

    def _report(
        self, plan: LoadPlan, planner: LoadPlanner, rounded: dict[str, str], seconds: float
    ) -> LoadReport:
        """torch's reader reads each stored chunk as a whole, in one thread."""
        places = {item.storage_index: self.storage_data[item.storage_index] for item in plan.items}
        tensors = [item for item in plan.items if item.type == LoadItemType.TENSOR]
        sizes = self._metadata.state_dict_metadata
        bytes_read = sum(place.length for place in places.values())
        report = LoadReport(
            tensors=len({item.storage_index.fqn for item in tensors}),
            bytes_needed=bytes_read,
            bytes_read=bytes_read,
            bytes_written=sum(
                item.lengths.numel() * sizes[item.storage_index.fqn].properties.dtype.itemsize
                for item in tensors
            ),
            files=len({place.relative_path for place in places.values()}),
            threads=1,
            instruction_set="torch",
            seconds={"total": seconds},
            rounded=rounded,
        )
        return with_what_was_left_out(report, self._metadata, plan, planner)


class _HeldPlanner:
    """The planner, as a reader sees it, with a note of what has been written."""

    def __init__(self, planner: LoadPlanner) -> None:
        self._planner = planner
        self.written: dict[str, None] = {}

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        self.written[read_item.dest_index.fqn] = None
        self._planner.commit_tensor(read_item, tensor)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._planner, name)
