"""Checkpoints of torch's FileSystemWriter (.distcp): read by torch's own reader without running code, and verified."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from shardwright import _core
from shardwright.regular_file import open_regular
from shardwright.safe_objects import safe_pickle
from shardwright.torch_metadata import METADATA_NAME, read_torch_metadata
from shardwright.torch_reading import CheckedFileSystemReader

__all__ = ["METADATA_NAME", "TorchStorageReader", "read_torch_metadata", "verify_torch_checkpoint"]


class TorchStorageReader(CheckedFileSystemReader):
    """torch's FileSystemReader, held to what is safe.

    Args:
        path: the checkpoint directory.
        weights_only: False lets the pickled objects run whatever code they name; see ShardedStorageReader.
    """

    def __init__(self, path: str | os.PathLike[str], weights_only: bool = True) -> None:
        super().__init__(path)
        self.weights_only = weights_only

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = read_torch_metadata(self.path)
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        safe = _SafePlanner(planner, self.path) if self.weights_only else planner
        return super().read_data(plan, safe)


class _SafePlanner:
    """The planner, as a reader sees it; what it is told to unpickle has been found safe."""

    def __init__(self, planner: LoadPlanner, path: Any) -> None:
        self._planner, self._path = planner, path

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        self._planner.load_bytes(read_item, safe_pickle(read_item.storage_index.fqn, self._path, value))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._planner, name)


def verify_torch_checkpoint(directory: Path) -> Any:
    """A VerifyReport: coverage, and the sums of the zip archive that every tensor and object is."""
    problems: list[str] = []
    damaged: set[str] = set()
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
                problems.append(f'{directory}: "{fqn}": its chunks do not make up the whole: {fault}')
                damaged.add(fqn)
    for index, place in metadata.storage_data.items():
        files.add(place.relative_path)
        fault = _fault_of_archive(directory / place.relative_path, place.offset, place.length)
        hashed += place.length
        if fault:
            problems.append(f'{directory / place.relative_path}: "{index.fqn}" is damaged: {fault}')
            damaged.add(index.fqn)
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


def _fault_of_archive(path: Path, offset: int, length: int) -> str:
    try:
        if path.stat().st_size < offset + length:
            return f"expected {offset + length} bytes or more, found {path.stat().st_size}"
        with open_regular(path) as file, zipfile.ZipFile(_Part(file, offset, length)) as archive:
            record = archive.testzip()
    except OSError as error:
        return str(error)
    except Exception as error:  # damaged archives raise anything
        return f"bytes {offset} to {offset + length} are no archive: {error}"
    return f"{record} does not have the checksum that it was saved with" if record else ""
