"""Checkpoints of torch's FileSystemWriter (.distcp): read by torch's own reader without running code, and verified."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from shardwright import _core
from shardwright.safe_objects import safe_pickle

METADATA_NAME = ".metadata"

#: What torch's ``.metadata`` is pickled of, beside the dtypes.
_NAMES = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "MetadataIndex",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed._shard.sharded_tensor.metadata": {"TensorProperties", "MEM_FORMAT_ENCODING"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "device"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "PurePath"},
}


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _NAMES.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of DCP's metadata")


def read_torch_metadata(directory: str | os.PathLike[str]) -> Metadata:
    """The ``.metadata`` of a checkpoint of torch's FileSystemWriter.

    Raises:
        CheckpointFormatError: it is damaged, or names code that DCP's metadata does not consist of.
    """
    file = Path(directory, METADATA_NAME)
    data = _core.read_bytes(os.fspath(file))
    try:
        metadata = _MetadataUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # damaged pickles raise anything
        raise _core.CheckpointFormatError(f"{file}: cannot be read safely: {error}") from error
    if not isinstance(metadata, Metadata):
        raise _core.CheckpointFormatError(f"{file}: expected DCP's Metadata, found {type(metadata).__name__}")
    for index, place in (metadata.storage_data or {}).items():
        path = PurePath(place.relative_path)
        if path.is_absolute() or ".." in path.parts:
            raise _core.CheckpointFormatError(
                f"{file}: {index.fqn}: expected a file of this directory, found {place.relative_path!r}"
            )
    return metadata


class TorchStorageReader(FileSystemReader):
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

    def __init__(self, file: io.BufferedReader, offset: int, length: int) -> None:
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
        if (size := _core.size_of_file(os.fspath(path))) < offset + length:
            return f"expected {offset + length} bytes or more, found {size}"
        with open(path, "rb") as file, zipfile.ZipFile(_Part(file, offset, length)) as archive:
            record = archive.testzip()
    except OSError as error:
        return str(error)
    except Exception as error:  # damaged archives raise anything
        return f"bytes {offset} to {offset + length} are no archive: {error}"
    return f"{record} does not have the checksum that it was saved with" if record else ""
