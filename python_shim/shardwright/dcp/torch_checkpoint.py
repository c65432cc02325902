"""Checkpoints of torch's FileSystemWriter (.distcp): how one is known, and what of it is damaged."""

from __future__ import annotations

import io
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

from torch.distributed.checkpoint._extension import ExtensionRegistry, StreamTransformExtension
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from shardwright import _core
from shardwright.dcp.torch_metadata import METADATA_NAME, read_torch_metadata
from shardwright.local_path import beside, shown
from shardwright.progress import counters_of
from shardwright.regular_file import open_regular
from shardwright.system_calls import is_there


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


def damaged_archive(where: str, error: Exception) -> Exception:
    """What torch's own archives raise when they are damaged is anything: this names the file, as ``where`` does."""
    text = str(error) or type(error).__name__
    return _core.CheckpointFormatError(
        f"{where}: cannot be read: {text}; the file is damaged: copy or save it again"
    )


def fault_of_chunks(directory: str | os.PathLike[str], fqn: str, stored: TensorStorageMetadata) -> str:
    """What hinders the chunks of a tensor to be all of it, each element once; empty: nothing does."""
    boxes = [(list(chunk.offsets), list(chunk.sizes)) for chunk in stored.chunks]
    fault = _core.tiling_fault(list(stored.size), boxes)
    return fault and f'{shown(directory)}: "{fqn}": its chunks do not make up the whole: {fault}'


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
            if fault := fault_of_chunks(directory, fqn, stored):
                problems.append(fault)
                damaged.add(fqn)
    progress, total = counters_of("verifying"), sum(place.length for place in metadata.storage_data.values())
    for index, place in metadata.storage_data.items():
        if progress is not None:
            progress.set(hashed, total)
        files.add(place.relative_path)
        path = beside(directory, place.relative_path)
        descriptors = list(place.transform_descriptors or ())
        if lacking := unknown_extensions(ExtensionRegistry(), descriptors):
            unknown.update(lacking)
            continue
        if not descriptors and is_stream_of_ours(path, place, index, metadata):
            continue  # whose checksums only the manifest has, which is not there
        extensions = ExtensionRegistry().from_descriptor_list(descriptors)
        hashed += place.length
        if fault := fault_of_archive(path, place.offset, place.length, extensions):
            problems.append(f'{shown(path)}: "{index.fqn}" is damaged: {fault}')
            damaged.add(index.fqn)
    if unknown:
        problems.append(
            f"{are_unknown(directory, unknown)}: what they have changed is not checked; {REGISTER}"
        )
    objects = len(metadata.state_dict_metadata) - tensors
    return _core.VerifyReport("torch", len(files), tensors, objects, hashed, problems, sorted(damaged))


#: What to do about extensions that are not known.
REGISTER = "load it with ShardedStorageReader(path, registry), of a registry that has them"


def unknown_extensions(registry: ExtensionRegistry, descriptors: Iterable[str]) -> set[str]:
    """Those of the descriptors that are of no extension of the registry."""
    unknown = set()
    for descriptor in descriptors:
        try:
            registry.from_descriptor_list([descriptor])
        except ValueError:
            unknown.add(descriptor)
    return unknown


def are_unknown(directory: str | os.PathLike[str], unknown: Iterable[str]) -> str:
    """Says so of extensions."""
    return f"{shown(directory)}: was written with extensions, {', '.join(sorted(unknown))}, which are not known here"


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
        if _core.size_of_file(path) < place.offset + place.length:
            return False
        found: bytes = _core.read_bytes(path, place.offset, place.offset + len(header))
        return found == header
    except OSError:
        return False


def fault_of_archive(
    path: str, offset: int, length: int, extensions: Sequence[StreamTransformExtension] = ()
) -> str:
    """What is wrong with the zip archive in those bytes, by its checksums too; empty if nothing is.

    What ``extensions`` have changed, the last of them first, goes to a temporary file, as an archive's index is at its
    end.
    """
    try:
        if (size := _core.size_of_file(path)) < offset + length:
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
