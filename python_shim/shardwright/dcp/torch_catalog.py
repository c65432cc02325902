"""Where the tensors of a ``.distcp`` checkpoint lie in its files, so that the engine reads them as any others."""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from shardwright import _core
from shardwright.dcp.torch_checkpoint import (
    damaged_archive,
    fault_of_archive,
    fault_of_chunks,
    is_stream_of_ours,
    part_of_file,
)
from shardwright.describe import DTYPE_NAMES
from shardwright.local_path import beside, shown
from shardwright.regular_file import open_regular

#: Of a record of a zip archive: the bytes of its header before its name, and where in them the lengths of name and
#: extra field are.
_HEADER_BYTES, _LENGTHS_AT = 30, 26


def read_torch_catalog(
    directory: str | os.PathLike[str],
    metadata: Metadata,
    names: Iterable[str],
    threads: int,
    rank: int = 0,
    ranks: int = 1,
) -> Any:
    """The catalog of these tensors, as far as they have a dtype of safetensors. The sums of every archive are compared
    by one of the ranks.

    Raises:
        CheckpointFormatError: an archive is damaged, or holds another tensor than the metadata says.
        ValueError: a tensor is not there row by row: it has been changed by an extension of torch's writer, or is
            stored transposed.
    """
    chunks = []
    for name in names:
        stored = metadata.state_dict_metadata[name]
        assert isinstance(stored, TensorStorageMetadata)
        if stored.properties.dtype not in DTYPE_NAMES:
            continue
        if fault := fault_of_chunks(directory, name, stored):
            raise _core.CheckpointFormatError(f"{fault}; copy or save it again")
        for chunk in stored.chunks:
            index = MetadataIndex(name, chunk.offsets)
            place = metadata.storage_data.get(index)
            if place is None:
                raise _core.CheckpointFormatError(
                    f"{shown(directory)}: {name}: the metadata does not say where it is; copy or save it again"
                )
            chunks.append(_Chunk(index, stored.properties.dtype, list(chunk.sizes), place))

    def begin_of(number: int) -> int:
        return _first_byte(directory, metadata, chunks[number], is_compared=number % ranks == rank)

    with ThreadPoolExecutor(threads) as pool:
        begins = list(pool.map(begin_of, range(len(chunks))))
    files = sorted({chunk.place.relative_path for chunk in chunks})
    numbers = {file: number for number, file in enumerate(files)}
    return _core.catalog_of_chunks(
        os.fspath(directory),
        [(file, _core.size_of_file(beside(directory, file))) for file in files],
        [
            (
                chunk.index.fqn,
                DTYPE_NAMES[chunk.dtype],
                chunk.sizes,
                list(chunk.index.offset or ()),
                numbers[chunk.place.relative_path],
                begin,
            )
            for chunk, begin in zip(chunks, begins, strict=True)
        ],
    )


@dataclass
class _Chunk:
    index: MetadataIndex
    dtype: torch.dtype
    sizes: list[int]
    place: Any


def _first_byte(
    directory: str | os.PathLike[str], metadata: Metadata, chunk: _Chunk, is_compared: bool
) -> int:
    index, dtype, place = chunk.index, chunk.dtype, chunk.place
    path = beside(directory, place.relative_path)
    size = math.prod(chunk.sizes) * dtype.itemsize
    if place.transform_descriptors:
        raise ValueError(
            f"{shown(path)}: {index.fqn}: expected a tensor as it is in memory, found it changed by extensions of "
            f"torch's writer ({', '.join(place.transform_descriptors)}); load it by shardwright.ShardedStorageReader "
            "with a registry of them, and save it again without"
        )
    if is_stream_of_ours(path, place, index, metadata):
        return int(place.offset + place.length - size)
    if is_compared and (fault := fault_of_archive(path, place.offset, place.length)):
        raise _core.CheckpointFormatError(
            f"{shown(path)}: {index.fqn}: is damaged: {fault}; copy or save it again"
        )
    try:
        with open_regular(path) as file:
            part = part_of_file(file, place.offset, place.length)
            begin, length = _record_of_bytes(part)
            part.seek(0)
            tensor = torch.load(part, "meta", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise damaged_archive(f"{shown(path)}: {index.fqn}", error) from error
    is_tensor = isinstance(tensor, torch.Tensor)
    if (
        not is_tensor
        or tensor.dtype != dtype
        or list(tensor.shape) != chunk.sizes
        or tensor.layout != torch.strided
    ):
        raise _core.CheckpointFormatError(
            f"{shown(path)}: {index.fqn}: expected {dtype} {chunk.sizes}, as the metadata says, found "
            + (f"{tensor.dtype} {list(tensor.shape)}" if is_tensor else "no tensor")
            + "; copy or save it again"
        )
    if not tensor.is_contiguous():
        raise _not_row_by_row(path, index.fqn, f"stored with strides {list(tensor.stride())}")
    skipped = int(tensor.storage_offset()) * dtype.itemsize
    if skipped + size > length:
        raise _core.CheckpointFormatError(
            f"{shown(path)}: {index.fqn}: expected {skipped + size} bytes in its archive, found {length}; copy it again"
        )
    return int(place.offset + begin + skipped)


def _record_of_bytes(archive: BinaryIO) -> tuple[int, int]:
    """Where in an archive of ``torch.save`` the one storage lies that a tensor has, and its bytes."""
    with zipfile.ZipFile(archive) as opened:
        records = [record for record in opened.infolist() if "/data/" in record.filename]
        orders = [record for record in opened.infolist() if record.filename.endswith("/byteorder")]
        if any(opened.read(record) != b"little" for record in orders):
            raise ValueError("expected little-endian values")
    if len(records) != 1 or records[0].compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"expected one storage, as it is in memory, found {len(records)} records")
    archive.seek(records[0].header_offset)
    header = archive.read(_HEADER_BYTES)
    name_bytes, extra_bytes = struct.unpack_from("<HH", header, _LENGTHS_AT)
    return records[0].header_offset + _HEADER_BYTES + name_bytes + extra_bytes, records[0].file_size


def _not_row_by_row(path: str, name: str, how: str) -> ValueError:
    return ValueError(
        f"{shown(path)}: {name}: expected a tensor row by row, to convert it in place, found it {how}; "
        "shardwright.export() takes the checkpoint's path as well, and holds all weights in memory"
    )
