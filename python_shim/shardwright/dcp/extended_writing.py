"""A rank's part of a save with torch's extensions, such as compression: torch's own ``.distcp`` files.

An extension changes the bytes of each tensor and object, so that no rank reads a part of one, and there are no blocks
to keep checksums of: these checkpoints have torch's ``.metadata`` and no manifest.
"""

from __future__ import annotations

import os
import pickle
import uuid
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint._extension import StreamTransformExtension
from torch.distributed.checkpoint.filesystem import (
    CURRENT_DCP_VERSION,
    _split_by_size_and_type,
    _StoragePrefix,
)
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from shardwright import _core
from shardwright.dcp.torch_metadata import read_torch_metadata
from shardwright.report import SaveReport


def expect_extensions(extensions: Sequence[Any] | None, file_format: str) -> list[StreamTransformExtension]:
    """The extensions of a writer of that format. Raises a ValueError for what torch's writer would not run."""
    found = list(extensions or ())
    strange = [type(one).__name__ for one in found if not isinstance(one, StreamTransformExtension)]
    if strange:
        raise ValueError(f"_extensions: expected StreamTransformExtensions of torch's, found {strange}")
    if found and file_format != "torch":
        raise ValueError(
            f"_extensions: found {[type(one).__name__ for one in found]} and format={file_format!r}; they change the "
            'bytes of files, which then are no safetensors: pass format="torch", or no extensions'
        )
    return found


def write_extended(
    plan: SavePlan,
    planner: SavePlanner,
    directory: Path,
    rank: int,
    threads: int,
    options: dict[str, Any],
) -> tuple[list[WriteResult], SaveReport]:
    """Writes this rank's items into ``directory``, to files of names that no other save has. ``options``: of torch's
    FileSystemWriter.

    Each thread has a writer of its own: of the threads that torch's makes, an error is lost with what it was to write.
    """

    def write(number: int, items: list[WriteItem]) -> list[WriteResult]:
        writer = FileSystemWriter(directory, thread_count=1, **options)
        part = replace(plan, items=items, storage_data=_StoragePrefix(f"__{rank}_{number}_{save}_"))
        written: list[WriteResult] = writer.write_data(part, planner).wait()
        return written

    save = uuid.uuid4().hex[:12]
    shares = [share for share in _split_by_size_and_type(threads, list(plan.items)) if share]
    with ThreadPoolExecutor(max(1, len(shares))) as pool:
        results = list(chain.from_iterable(pool.map(write, range(len(shares)), shares)))
    objects = sum(item.type == WriteItemType.BYTE_IO for item in plan.items)
    report = SaveReport(
        tensors=len(plan.items) - objects,
        objects=objects,
        files=len({result.storage_data.relative_path for result in results}),
        bytes_written=sum(result.storage_data.length for result in results),
        threads=threads,
    )
    return results, report


def write_metadata(
    directory: Path,
    metadata: Metadata,
    results: list[list[WriteResult]],
    meta: StorageMeta | None,
    flush: bool,
) -> None:
    """Writes torch's ``.metadata`` of what the ranks have written, and adds to ``metadata`` what it tells."""
    metadata.storage_data = {result.index: result.storage_data for of_rank in results for result in of_rank}
    metadata.storage_meta, metadata.version = meta, CURRENT_DCP_VERSION
    with open(directory / _core.torch_metadata_name, "xb") as file:
        pickle.dump(metadata, file)
        if flush:
            file.flush()
            os.fsync(file.fileno())


def files_of_torchs(directory: Path) -> set[str]:
    """The files in a directory that its ``.metadata`` names, itself not among them; none where it cannot be read."""
    try:
        places = read_torch_metadata(directory).storage_data
    except (OSError, _core.CheckpointFormatError):
        return set()
    return {place.relative_path for place in places.values() if "/" not in place.relative_path}


def remove_replaced(directory: Path, replaced: set[str], metadata: Metadata) -> None:
    """Removes files of a checkpoint that another one has replaced. What cannot be removed stays, with a warning."""
    for name in sorted(replaced - {place.relative_path for place in metadata.storage_data.values()}):
        try:
            Path(directory, name).unlink(missing_ok=True)
        except OSError as error:
            warnings.warn(
                f"{error.filename}: of a replaced checkpoint, and stays: {error.strerror}", stacklevel=2
            )
