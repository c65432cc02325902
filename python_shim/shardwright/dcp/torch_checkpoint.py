"""Checkpoints of torch's FileSystemWriter (.distcp): read by torch's own reader without running code, and verified."""

from __future__ import annotations

import io
import math
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint._extension import ExtensionRegistry, StreamTransformExtension
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from shardwright import _core
from shardwright.dcp.torch_metadata import METADATA_NAME, read_torch_metadata
from shardwright.dcp.torch_reading import CheckedFileSystemReader
from shardwright.local_path import beside, location, shown
from shardwright.objects.safe_objects import safe_pickles
from shardwright.progress import counters_of
from shardwright.regular_file import GIT_LFS, IS_POINTER, open_regular
from shardwright.remote.address import is_address
from shardwright.remote.opened import ObjectFileSystem
from shardwright.report import LoadReport, with_what_was_left_out
from shardwright.rounding import roundings_of
from shardwright.system_calls import has_entry, is_there

__all__ = ["METADATA_NAME", "TorchStorageReader", "read_torch_metadata", "verify_torch_checkpoint"]


def metadata_name(directory: str | os.PathLike[str], rank: int | None = None) -> str | None:
    """The file of torch's metadata in a checkpoint, of all ranks or of one; None where it is no such checkpoint.

    Raises:
        CheckpointFormatError: there is none of all ranks, as each has saved for itself.
    """
    name = METADATA_NAME if rank is None else f"__{rank}{METADATA_NAME}"
    if is_there(beside(directory, name)):
        return name
    if rank is not None or not is_there(beside(directory, f"__0{METADATA_NAME}")):
        return None
    raise _core.CheckpointFormatError(
        f"{shown(directory)}: was saved with use_collectives=False, so that each rank's metadata is its own; load "
        "it with dcp.load, on the ranks that saved it"
    )


class TorchStorageReader(CheckedFileSystemReader):
    """torch's FileSystemReader, held to what is safe.

    Args:
        path: the checkpoint directory.
        weights_only: False lets the pickled objects run whatever code they name; see ShardedStorageReader.
        extension_registry: see torch's FileSystemReader.
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
    ) -> None:
        super().__init__(location(path), extension_registry)
        self.verify = verify
        if is_address(path):
            self.path: Any = location(path)
            self.fs: Any = ObjectFileSystem()
        self.weights_only = weights_only
        self.report: LoadReport | None = None
        self._ready: dict[str, io.BytesIO] = {}  #: objects that have been read for the load to come

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
        self._expect_whole_files(plan)
        if self.verify:
            self._expect_undamaged(plan)
        self._ready = self._read_objects(plan) if self.weights_only else {}
        return super().prepare_local_plan(plan)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        start = time.perf_counter()
        rounded = roundings_of(self._casts(plan, planner))
        ready, self._ready = self._ready, {}
        if self.weights_only:
            ready |= self._read_objects(plan, ready)
        done = super().read_data(plan, _SafePlanner(planner, ready) if self.weights_only else planner)
        self.report = replace(self._report(plan, planner, time.perf_counter() - start), rounded=rounded)
        return done

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
            raise _core.PlanError("\n  ".join([f"cannot load {shown(self.path)}:", *problems.values()]))
        return list(casts.values())

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
            raise _core.CheckpointFormatError("\n  ".join(problems))

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
            raise _core.CheckpointFormatError("\n  ".join(["the checkpoint is damaged", *problems]))

    def _read_objects(self, plan: LoadPlan, but: Container[str] = ()) -> dict[str, io.BytesIO]:
        """What the planner may unpickle: it does so without restraint."""
        items = {
            item.storage_index.fqn: item
            for item in plan.items
            if item.type == LoadItemType.BYTE_IO and item.storage_index.fqn not in but
        }

        def read(name: str) -> tuple[str, io.BytesIO]:
            place = self.storage_data[items[name].storage_index]
            file = beside(self.path, place.relative_path)
            with open_regular(file) as stream:
                part = self._slice_file(stream, place)
                descriptors = place.transform_descriptors or ()
                data = self.transforms.transform_load_stream(items[name], descriptors, part).read(-1)
            return file, io.BytesIO(data)

        return safe_pickles(items, read)

    def _report(self, plan: LoadPlan, planner: LoadPlanner, seconds: float) -> LoadReport:
        places = {item.storage_index: self.storage_data[item.storage_index] for item in plan.items}
        tensors = [item for item in plan.items if item.type == LoadItemType.TENSOR]
        sizes = self._metadata.state_dict_metadata
        report = LoadReport.of_torch(
            tensors=len({item.storage_index.fqn for item in tensors}),
            bytes_read=sum(place.length for place in places.values()),
            bytes_written=sum(
                item.lengths.numel() * sizes[item.storage_index.fqn].properties.dtype.itemsize
                for item in tensors
            ),
            files=len({place.relative_path for place in places.values()}),
            seconds=seconds,
        )
        return with_what_was_left_out(report, self._metadata, plan, planner)


class _SafePlanner:
    """The planner, as a reader sees it; what it is told to unpickle has been found safe."""

    def __init__(self, planner: LoadPlanner, objects: dict[str, io.BytesIO]) -> None:
        self._planner, self._objects = planner, objects

    def load_bytes(self, read_item: ReadItem, _: io.BytesIO) -> None:
        data = self._objects[read_item.storage_index.fqn]
        data.seek(0)
        self._planner.load_bytes(read_item, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._planner, name)


def verify_torch_checkpoint(directory: str) -> Any:
    """A VerifyReport: coverage, and the sums of the zip archive that every tensor and object is."""
    problems: list[str] = []
    damaged: set[str] = set()
    unknown: set[str] = set()
    hashed, files, tensors = 0, set(), 0
    try:
        metadata = read_torch_metadata(directory)
    except _core.CheckpointFormatError as error:
        return _core.VerifyReport("torch", 0, 0, 0, 0, [str(error)], [])
    for fqn, stored in metadata.state_dict_metadata.items():
        if isinstance(stored, TensorStorageMetadata):
            tensors += 1
            chunks = [(list(chunk.offsets), list(chunk.sizes)) for chunk in stored.chunks]
            if fault := _core.tiling_fault(list(stored.size), chunks):
                problems.append(f'{shown(directory)}: "{fqn}": its chunks do not make up the whole: {fault}')
                damaged.add(fqn)
    progress, total = counters_of("verifying"), sum(place.length for place in metadata.storage_data.values())
    for index, place in metadata.storage_data.items():
        if progress is not None:
            progress.set(hashed, total)
        files.add(place.relative_path)
        path = beside(directory, place.relative_path)
        descriptors = list(place.transform_descriptors or ())
        if descriptors:
            try:
                extensions = ExtensionRegistry().from_descriptor_list(descriptors)
            except ValueError:
                unknown.update(descriptors)
                continue
            fault = fault_of_extended_archive(path, place.offset, place.length, extensions)
        elif is_stream_of_ours(path, place, index, metadata):
            continue  # whose checksums only the manifest has, which is not there
        else:
            fault = fault_of_archive(path, place.offset, place.length)
        hashed += place.length
        if fault:
            problems.append(f'{shown(path)}: "{index.fqn}" is damaged: {fault}')
            damaged.add(index.fqn)
    if unknown:
        problems.append(
            f"{shown(directory)}: was written with extensions, {', '.join(sorted(unknown))}, which are not known here: "
            "what they have changed is not checked; load it with ShardedStorageReader(path, registry)"
        )
    objects = len(metadata.state_dict_metadata) - tensors
    return _core.VerifyReport("torch", len(files), tensors, objects, hashed, problems, sorted(damaged))


class _Part(io.RawIOBase):
    """Some bytes of a file as a file."""

    def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
        self.file, self.offset, self.length, self.at = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.length}[whence])
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        self.file.seek(self.offset + self.at)
        data = self.file.read(max(0, min(len(buffer), self.length - self.at)))
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def part_of_file(file: BinaryIO, offset: int, length: int) -> BinaryIO:
    """Those bytes of a file as a file, for as long as that is open."""
    return io.BufferedReader(_Part(file, offset, length))


def is_stream_of_ours(path: str, place: Any, index: MetadataIndex, metadata: Metadata) -> bool:
    """Whether a chunk is there as ShardedStorageWriter(format="torch") writes it, by its header and its length."""
    stored = metadata.state_dict_metadata.get(index.fqn)
    if not isinstance(stored, TensorStorageMetadata):
        return False
    dtype = stored.properties.dtype
    sizes = next((list(chunk.sizes) for chunk in stored.chunks if chunk.offsets == index.offset), [])
    name = str(dtype).removeprefix("torch.")
    header: bytes = _core.torch_stream_header(
        index.fqn, name, dtype.itemsize, list(index.offset or ()), sizes
    )
    if place.length != len(header) + math.prod(sizes) * dtype.itemsize:
        return False
    try:
        if _core.size_of_file(os.fspath(path)) < place.offset + place.length:
            return False
        found: bytes = _core.read_bytes(os.fspath(path), place.offset, place.offset + len(header))
        return found == header
    except OSError:
        return False


def fault_of_archive(path: str, offset: int, length: int) -> str:
    """What is wrong with the zip archive in those bytes, by its checksums too; empty if nothing is."""
    return fault_of_extended_archive(path, offset, length, ())


def fault_of_extended_archive(
    path: str, offset: int, length: int, extensions: Sequence[StreamTransformExtension]
) -> str:
    """The same of bytes that extensions have changed, the last of them first. The archive goes to a temporary file, as
    its index is at its end."""
    try:
        if (size := _core.size_of_file(os.fspath(path))) < offset + length:
            return f"expected {offset + length} bytes or more, found {size}"
        with open_regular(path) as file, tempfile.TemporaryFile() as undone:
            part: BinaryIO = part_of_file(file, offset, length)
            if extensions:
                for extension in extensions:
                    part = extension.transform_from(part)
                shutil.copyfileobj(part, undone)
                part = undone
            with zipfile.ZipFile(part) as archive:
                record = archive.testzip()
    except OSError as error:
        return str(error)
    except Exception as error:  # damaged archives raise anything
        return f"bytes {offset} to {offset + length} are no archive: {error}"
    if record is None:
        return ""
    return (
        f"{record} does not have the checksum that it was saved with, unless "
        "torch.serialization.set_crc32_options(False) kept torch from writing one"
    )
