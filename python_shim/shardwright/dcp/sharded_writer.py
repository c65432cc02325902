"""The storage half of a save through torch.distributed.checkpoint: each rank its shards, published in one step."""

from __future__ import annotations

import dataclasses
import io
import os
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.distributed.checkpoint.metadata import (
    Metadata,
    MetadataIndex,
    StorageMeta,
)
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from shardwright import _core
from shardwright.bounded_staging import BoundedStaging
from shardwright.checkpoints import next_order, remove_all_but
from shardwright.dcp.planned_metadata import PlannedMetadata
from shardwright.dcp.save_planning import is_given_up
from shardwright.dcp.storage_reader import _whole_number, default_threads
from shardwright.describe import DTYPE_NAMES, current_streams, is_reached
from shardwright.device_copies import memory_of, shows_its_memory
from shardwright.local_path import expect_overwrite, lasting_path, whole_number
from shardwright.ranks.rank_outcome import RankOutcome, expect_collectives, expect_success, failed_outcomes
from shardwright.report import SaveReport
from shardwright.system_calls import is_folder

_SAFETENSORS_DTYPES = {str(dtype).removeprefix("torch."): name for dtype, name in DTYPE_NAMES.items()}

#: Files that are open at a time, written and on their way to the device.
_OPEN_FILES = 32

#: What gathering a strided shard takes, for each thread (storage/format/checksum.h).
_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class StoredPart:
    """Where a chunk or an object lies, as DCP's metadata has it, and the checksums of its blocks."""

    relative_path: str
    offset: int
    length: int
    checksums: bytes


@dataclass(frozen=True)
class _Share:
    """What the coordinator tells a rank."""

    directory: Path
    rank: int


class ShardedStorageWriter(BoundedStaging, StorageWriter, BlockingAsyncStager):
    """Writes each rank's shards as safetensors files, with a manifest of sizes and checksums beside them.

    It stands where torch's FileSystemWriter does and takes its arguments. A checkpoint is there or it is not: its files
    are written to a hidden folder of ``path`` and flushed to the device, and are the checkpoint from the moment on that
    the manifest gets its name, when every rank has written its part. A sharded checkpoint that is in ``path`` already
    stays whole until then; after it, the files that its manifest names are removed. All else that is in ``path`` is
    left alone. torch's HuggingFaceStorageReader reads the tensors; :class:`ShardedStorageReader` reads all.

    Args:
        path: the directory that the checkpoint goes into; made if need be.
        single_file_per_rank: False gives every tensor a file of its own.
        sync_files: whether to flush to the device. Without, a crash of the machine can cost the checkpoint.
        thread_count: threads that write; None: this process's share of the processors.
        per_thread_copy_ahead: bytes that are copied at a time from devices that the engine does not reach, and of
            conjugated or negated views. What is on CUDA devices takes 8 MiB of pinned memory for each thread.
        cache_staged_state_dict: keep the memory of an asynchronous save for the next one.
        overwrite: None replaces a sharded checkpoint, and refuses where another kind of checkpoint is in ``path``
            (FileExistsError). True replaces any. False replaces none.
        async_staging_bytes: the most memory that an asynchronous save may take for its copy of this rank's state; a
            save that needs more fails and names the figure. None: what it takes.
        device_memory: bytes of each CUDA device that the save may take beside the tensors, which only what is not
            contiguous there needs; None: 256 MiB.
        keep_last: after publishing, delete all but so many checkpoints ``step-…`` beside ``path``, those that were
            saved last.

    After a save, ``report`` is this rank's :class:`SaveReport`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        single_file_per_rank: bool = True,
        sync_files: bool = True,
        thread_count: int | None = None,
        per_thread_copy_ahead: int = 64 << 20,
        cache_staged_state_dict: bool = False,
        overwrite: bool | None = None,
        _extensions: Sequence[Any] | None = None,
        serialization_format: SerializationFormat = SerializationFormat.SAFETENSORS,
        *,
        async_staging_bytes: int | None = None,
        device_memory: int | None = None,
        keep_last: int | None = None,
    ) -> None:
        BlockingAsyncStager.__init__(self, cache_staged_state_dict=cache_staged_state_dict)
        if _extensions:
            raise ValueError(
                "ShardedStorageWriter writes tensors as they lie in memory; expected no _extensions"
            )
        if keep_last is not None:
            whole_number("keep_last", keep_last, 1)
        expect_overwrite(overwrite)
        self.path = Path(lasting_path(path))
        self.single_file_per_rank = single_file_per_rank
        self.sync_files = sync_files
        self.thread_count = default_threads() if thread_count is None else thread_count
        self.per_thread_copy_ahead = per_thread_copy_ahead
        self.overwrite = overwrite
        self.async_staging_bytes = async_staging_bytes
        self.device_memory = (
            None if device_memory is None else _whole_number("device_memory", device_memory, 1 << 48)
        )
        self.keep_last = keep_last
        self.save_id = str(uuid.uuid4())
        self.report: SaveReport | None = None
        self._pending: Any = None  # on the coordinator, from planning to publishing

    # --- planning ----------------------------------------------------------------------------------------------

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        self.abandon()
        if checkpoint_id:
            self.path = Path(lasting_path(checkpoint_id))
        self.save_id = str(uuid.uuid4())

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.abandon()
        self.expect_staged()
        expect_collectives(kwargs)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        if is_given_up(plans):
            return plans  # the planner of every rank will say why; nothing is to be written
        self._pending = _core.PendingCheckpoint(self.path, "sharded", self.overwrite)
        try:
            self._pending.expect_free([_core.manifest_name])
        except OSError:
            self.abandon()
            raise
        directory = self._pending.path
        return [
            dataclasses.replace(plan, storage_data=_Share(directory, rank)) for rank, plan in enumerate(plans)
        ]

    # --- writing -----------------------------------------------------------------------------------------------

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        share: _Share = plan.storage_data
        outcome = RankOutcome(share.rank)
        try:
            directory = self._directory(share)
            self._write(plan.items, planner, directory, outcome)
        except Exception as error:
            outcome = RankOutcome(share.rank)
            outcome.fail(error)
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(MetadataIndex(""), 0, outcome.encode())])
        return done

    def _directory(self, share: _Share) -> Path:
        """Where to write. A planner that caches its plans hands back that of an earlier save: then it is the one that
        is being written now, of which there is one."""
        if is_folder(share.directory):
            return share.directory
        directory = Path(os.path.realpath(self.path), _core.saving_name, "files")
        if not is_folder(directory):
            raise FileNotFoundError(2, f"{directory}: the directory of this save is not there")
        return directory

    def _write(
        self, items: Sequence[WriteItem], planner: SavePlanner, directory: Path, outcome: RankOutcome
    ) -> None:
        start = time.perf_counter()
        report = SaveReport(threads=self.thread_count, peak_staging_bytes=self.staged_bytes)
        tensors = [item for item in items if item.type != WriteItemType.BYTE_IO]
        objects = [item for item in items if item.type == WriteItemType.BYTE_IO]
        files = []
        # Files keep clear of those of the checkpoint that this one replaces, which stay until it is published.
        tag = uuid.uuid4().hex[:12]
        for name, chunks in self._files_of(tensors, outcome.rank, tag).items():
            file = _core.ShardFile(
                directory / name,
                [
                    (item.index.fqn, DTYPE_NAMES[dtype], list(chunk.sizes), list(chunk.offsets))
                    for item, dtype, chunk in map(_tensor_facts, chunks)
                ],
                self.sync_files,
            )
            self._fill(file, chunks, planner, report)
            files.append((name, file, chunks))
            if len(files) > _OPEN_FILES:
                files[-1 - _OPEN_FILES][1].finish()
        raw = [item for item in tensors if _tensor_facts(item)[1] not in DTYPE_NAMES]
        if raw or objects:
            name = f"rank-{outcome.rank:05d}-{tag}.bin"
            files.append(
                (name, self._write_others(directory / name, raw, objects, planner, report), [*raw, *objects])
            )
        report.seconds["write"] = time.perf_counter() - start
        for number, (name, file, written) in enumerate(files):
            file.finish()
            outcome.files.append((name, file.size, file.header_bytes, file.header_checksum))
            report.bytes_written += file.size
            outcome.items += [
                (item, (number, *place)) for item, place in zip(written, file.items, strict=True)
            ]
        report.tensors, report.objects, report.files = len(tensors), len(objects), len(files)
        report.seconds["total"] = time.perf_counter() - start
        report.seconds["flush"] = report.seconds["total"] - report.seconds["write"]
        self.report = report

    def _files_of(self, items: list[WriteItem], rank: int, tag: str) -> dict[str, list[WriteItem]]:
        """The tensors of each safetensors file, by its name: one file, and more for further chunks of one tensor, whose
        name a file can have only once."""
        files: dict[str, list[WriteItem]] = {}
        seen: dict[str, int] = {}
        for item in items:
            if _tensor_facts(item)[1] not in DTYPE_NAMES:
                continue
            again = seen.get(item.index.fqn, 0)
            seen[item.index.fqn] = again + 1
            number = again if self.single_file_per_rank else len(files)
            files.setdefault(self._file_name(item.index.fqn, rank, number, tag), []).append(item)
        return files

    def _file_name(self, fqn: str, rank: int, number: int, tag: str) -> str:
        return f"rank-{rank:05d}-{number:05d}-{tag}.safetensors"

    def _fill(self, file: Any, items: list[WriteItem], planner: SavePlanner, report: SaveReport) -> None:
        """Writes the tensors from where they are; those that the engine does not reach by way of bounded copies."""
        for first, tensors, copies in self._batches(items, planner):
            self._write_tensors(file, first, tensors, copies, report)

    def _write_tensors(
        self, file: Any, first: int, tensors: list[torch.Tensor], copies: int, report: SaveReport
    ) -> None:
        """Writes the file's tensors from number ``first`` on; ``copies``: bytes of those that are."""
        done = file.write(
            [(first + i, *memory_of(tensor)) for i, tensor in enumerate(tensors)],
            self.thread_count,
            _core.DeviceOptions(self.device_memory, current_streams(tensors)),
        )
        strided = any(tensor.is_cpu and not tensor.is_contiguous() for tensor in tensors)
        staging = copies + done.pinned_bytes + (self.thread_count * _BLOCK_BYTES if strided else 0)
        report.peak_staging_bytes = max(report.peak_staging_bytes, self.staged_bytes + staging)
        report.devices = max(report.devices, len({tensor.device for tensor in tensors if tensor.is_cuda}))
        report.peak_device_bytes = max(report.peak_device_bytes, done.peak_device_bytes)
        report.bytes_from_devices += done.bytes_copied
        report.device_batches += done.batches

    def _batches(
        self, items: list[WriteItem], planner: SavePlanner
    ) -> Iterator[tuple[int, list[torch.Tensor], int]]:
        """(number of the first item, tensors to read where they are, bytes of the copies among them), so many that the
        copies stay within per_thread_copy_ahead, or are one."""
        first, copied = 0, 0
        tensors: list[torch.Tensor] = []
        for number, item in enumerate(items):
            tensor, is_copy = _in_reach(item.index.fqn, _resolved(planner, item))
            if is_copy and tensors and copied + tensor.nbytes > self.per_thread_copy_ahead:
                yield first, tensors, copied
                first, tensors, copied = number, [], 0
            tensors.append(tensor)
            copied += tensor.nbytes if is_copy else 0
        if tensors:
            yield first, tensors, copied

    def _write_others(
        self,
        path: Path,
        raw: list[WriteItem],
        objects: list[WriteItem],
        planner: SavePlanner,
        report: SaveReport,
    ) -> Any:
        """The file of what safetensors cannot hold: tensors of other dtypes as they lie in memory, and pickles."""
        in_reach = [_in_reach(item.index.fqn, _resolved(planner, item)) for item in raw]
        tensors = [tensor for tensor, _ in in_reach]
        pickles = []
        for item in objects:
            data = planner.resolve_data(item)
            assert isinstance(data, io.BytesIO)
            pickles.append(data.getbuffer())
        names = [item.index.fqn for item in [*raw, *objects]]
        tensors += [torch.frombuffer(pickle, dtype=torch.uint8) for pickle in pickles]
        sizes = [tensor.nbytes for tensor in tensors]
        file = _core.ShardFile.of_bytes(path, sizes, names, self.sync_files)
        copies = sum(tensor.nbytes for tensor, is_copy in in_reach if is_copy)
        self._write_tensors(file, 0, tensors, copies, report)
        return file

    # --- publishing --------------------------------------------------------------------------------------------

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator, when every rank has told its outcome: publishes, or removes everything and raises."""
        pending = self._pending
        try:
            told: list[bytes] = [of_rank[-1].storage_data for of_rank in results]
            expect_success(failed_outcomes(told))
            names = metadata.names if isinstance(metadata, PlannedMetadata) else metadata.state_dict_metadata
            planner_data = io.BytesIO()
            if metadata.planner_data is not None:
                torch.save(metadata.planner_data, planner_data)
            _core.write_manifest(
                pending.path,
                told,
                _SAFETENSORS_DTYPES,
                list(names),
                planner_data.getvalue(),
                next_order(self.path),
                self.sync_files,
            )
            pending.publish(_core.manifest_name)
        finally:
            self.abandon()
        if self.keep_last is not None:
            self._keep_last(self.keep_last)

    def _keep_last(self, count: int) -> None:
        """The save has succeeded by now, whatever becomes of those before it."""
        root = self.path.parent
        try:
            remove_all_but(root, count)
        except (OSError, ValueError) as error:
            warnings.warn(f"keep_last={count}: not all of {root} was looked at: {error}", stacklevel=2)

    def abandon(self) -> None:
        """Removes what an unfinished save has written, if this rank is its coordinator. Safe to call at any time."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.abandon()

    def storage_meta(self) -> StorageMeta | None:
        return StorageMeta(checkpoint_id=self.path, save_id=self.save_id)

    @property
    def checkpoint_id(self) -> str | os.PathLike[str]:
        return self.path

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return "://" not in os.fspath(checkpoint_id)


def _tensor_facts(item: WriteItem) -> tuple[WriteItem, torch.dtype, Any]:
    assert item.tensor_data is not None
    return item, item.tensor_data.properties.dtype, item.tensor_data.chunk


def _resolved(planner: SavePlanner, item: WriteItem) -> torch.Tensor:
    tensor = planner.resolve_data(item)
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(
            f"{item.index.fqn}: expected a tensor from the planner, found {type(tensor).__name__}"
        )
    return tensor


def _in_reach(fqn: str, tensor: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """A tensor whose memory the engine reaches and shows its values, and whether that is a copy, in CPU memory."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided or tensor.is_meta:
        raise ValueError(
            f"{fqn}: expected a strided tensor with memory, found {tensor.layout} on {tensor.device}"
        )
    if is_reached(tensor) and shows_its_memory(tensor):
        return tensor, False
    return tensor.cpu().resolve_conj().resolve_neg(), True
