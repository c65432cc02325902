"""The storage half of a save through torch.distributed.checkpoint: each rank its shards, published in one step."""

from __future__ import annotations

import dataclasses
import io
import os
import time
import uuid
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, SerializationFormat
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
from shardwright.batches import in_batches
from shardwright.bounded_staging import BoundedStaging
from shardwright.checkpoints import keep_last_steps, next_order
from shardwright.dcp.checkpoint_ids import OfAnyPlace
from shardwright.dcp.extended_writing import (
    expect_extensions,
    files_of_torchs,
    remove_replaced,
    write_extended,
    write_metadata,
)
from shardwright.dcp.planned_metadata import PlannedMetadata, tell_published
from shardwright.dcp.save_description import number_values
from shardwright.dcp.save_planner import is_given_up, share_of
from shardwright.dcp.storage_reader import threads_of
from shardwright.dcp.torch_metadata import fault_of_planner_data
from shardwright.describe import current_streams, is_reached
from shardwright.device_copies import memory_of, shows_its_memory
from shardwright.local_path import bytes_or_none, expect_overwrite, lasting_place, whole_number
from shardwright.ranks.rank_outcome import expect_collectives, expect_success, told_failure
from shardwright.remote.address import without_secrets
from shardwright.remote.sending import Sending
from shardwright.report import SaveReport
from shardwright.system_calls import is_folder

#: Of the files of a save that is not told another one.
DEFAULT_FORMAT = "torch"

#: What gathering a strided shard takes, for each thread (storage/format/checksum.h).
_BLOCK_BYTES = 4 << 20

#: The number of an item, its tensor, to be read where it is, and whether that is a copy.
_InReach = tuple[int, torch.Tensor, bool]


@dataclass(frozen=True)
class _Share:
    """What the coordinator tells a rank: the folder that it writes in, or the address that it uploads to, and the tag
    that names then end in."""

    directory: Path | str
    rank: int
    tag: str = ""


class ShardedStorageWriter(OfAnyPlace, BoundedStaging, StorageWriter, BlockingAsyncStager):
    """Writes each rank's shards, with a manifest of sizes and checksums beside them.

    It stands where torch's FileSystemWriter does and takes its arguments. A checkpoint is there or it is not: its files
    are written to a hidden folder of ``path`` and flushed to the device, and are the checkpoint from the moment on that
    the manifest gets its name, when every rank has written its part. A sharded checkpoint that is in ``path`` already
    stays whole until then; after it, the files that its manifest names are removed. All else that is in ``path`` is
    left alone. :class:`ShardedStorageReader` reads it, and so does torch without Shardwright: see ``format``.

    Args:
        path: the directory that the checkpoint goes into, made if need be; or an address, such as s3://bucket/run, to
            which each rank uploads its part while it writes it.
        single_file_per_rank: False gives every tensor a file of its own.
        sync_files: whether to flush to the device. Without, a crash of the machine can cost the checkpoint.
        thread_count: threads that write; None: this process's share of the processors.
        per_thread_copy_ahead: bytes that are copied at a time from devices that the engine does not reach, and of
            conjugated or negated views. What is on CUDA devices takes 8 MiB of pinned memory for each thread.
        cache_staged_state_dict: keep the memory of an asynchronous save for the next one.
        _extensions: of torch's, such as compression. They change the bytes of each tensor, so that the files are
            torch's own (``.distcp``), published in one step as well, with no checksums: ``format`` has to be "torch".
        format: "torch" writes torch's ``.metadata``, too, and files that its FileSystemReader reads: torch alone loads
            and converts the checkpoint, and trainers that look for ``.metadata`` find it. "safetensors" writes
            safetensors files, of which torch's HuggingFaceStorageReader reads the tensors, and what these cannot
            hold beside them. None: "torch".
        serialization_format: the same as torch's writers are told it.
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
        serialization_format: SerializationFormat | None = None,
        *,
        format: str | None = None,
        async_staging_bytes: int | None = None,
        device_memory: int | None = None,
        keep_last: int | None = None,
    ) -> None:
        BlockingAsyncStager.__init__(self, cache_staged_state_dict=cache_staged_state_dict)
        if keep_last is not None:
            whole_number("keep_last", keep_last, 1, 1 << 48)
        expect_overwrite(overwrite)
        self.path = lasting_place(path)
        self.format = _format_of(format, serialization_format)
        self.extensions = expect_extensions(_extensions, self.format)
        self._expect_no_extensions_at_address()
        self.single_file_per_rank = single_file_per_rank
        self.sync_files = sync_files
        self.thread_count = threads_of(thread_count)
        self.per_thread_copy_ahead = whole_number("per_thread_copy_ahead", per_thread_copy_ahead)
        self.overwrite = overwrite
        self.async_staging_bytes = bytes_or_none("async_staging_bytes", async_staging_bytes)
        self.device_memory = bytes_or_none("device_memory", device_memory)
        self.keep_last = keep_last
        self.save_id = str(uuid.uuid4())
        self.report: SaveReport | None = None
        self.sources: list[str] = []  #: directories that the tensors come from
        self._pending: Any = None  # on the coordinator, from planning to publishing
        self._used_tags: set[str] = set()  # of saves to an address

    # --- planning ----------------------------------------------------------------------------------------------

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        self.abandon()
        if checkpoint_id:
            self.path = lasting_place(checkpoint_id)
            self._expect_no_extensions_at_address()
        self.save_id = str(uuid.uuid4())

    def _expect_no_extensions_at_address(self) -> None:
        if self.extensions and isinstance(self.path, str):
            raise ValueError(
                f"_extensions: found {[type(extension).__name__ for extension in self.extensions]} and the address "
                f"{without_secrets(self.path)}; torch's extensions write to folders of this machine alone: pass none, "
                "or a path"
            )

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.abandon()
        self.expect_staged()
        expect_collectives(kwargs)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        if is_given_up(plans):
            return plans  # the planner of every rank will say why; nothing is to be written
        names = [_core.manifest_name, *([_core.torch_metadata_name] if self.format == "torch" else [])]
        self._pending = _core.PendingCheckpoint(self.path, "sharded", self.overwrite, self.sources)
        try:
            self._pending.expect_free(names)
            self._pending.announce()
        except BaseException:
            self.abandon()
            raise
        place = self.path if isinstance(self.path, str) else self._pending.path
        return [
            dataclasses.replace(plan, storage_data=_Share(place, rank, self._pending.tag))
            for rank, plan in enumerate(plans)
        ]

    # --- writing -----------------------------------------------------------------------------------------------

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        share = share_of(plan, _Share, self)
        results: list[WriteResult] = []
        told = b""
        try:
            place = self._place(share)
            if self.extensions:
                assert isinstance(place.directory, Path)  # refused at an address
                results = self._write_extended(plan, planner, place.directory, place.rank)
            else:
                told = self._write(plan.items, planner, place)
        except Exception as error:
            told = told_failure(share.rank, error)
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(MetadataIndex(""), 0, told)] if told else results)
        return done

    def _place(self, share: _Share) -> _Share:
        """Where to write. A planner that caches its plans hands back that of an earlier save: then it is the one that
        is being written now, of which there is one."""
        if isinstance(self.path, str):
            tag = share.tag
            if share.directory != self.path or tag in self._used_tags:
                tag = _core.tag_of_save_under_way(self.path)
            self._used_tags.add(tag)
            return _Share(self.path, share.rank, tag)
        if is_folder(share.directory):
            return share
        directory = Path(os.path.realpath(self.path), _core.saving_name, "files")
        if not is_folder(directory):
            raise FileNotFoundError(2, f"{directory}: the directory of this save is not there")
        return _Share(directory, share.rank)

    def _write(self, items: Sequence[WriteItem], planner: SavePlanner, place: _Share) -> bytes:
        """Writes this rank's files. Returns what the coordinator is to be told."""
        if not isinstance(place.directory, str):
            return self._write_files(items, planner, place, None)
        with Sending(place.directory) as sending:
            return self._write_files(items, planner, place, sending)

    def _write_files(
        self, items: Sequence[WriteItem], planner: SavePlanner, place: _Share, sending: Sending | None
    ) -> bytes:
        start = time.perf_counter()
        facts, boxes = number_values(items, {})
        order = sorted(range(len(items)), key=lambda number: boxes[number][0])
        pickles = {
            at: _resolved_object(planner, items[number])
            for at, number in enumerate(order)
            if items[number].type == WriteItemType.BYTE_IO
        }
        files = _core.RankFiles(
            "" if sending else place.directory,
            place.rank,
            _core.encode_values(facts),
            [boxes[number] for number in order],
            [pickles[at].nbytes if at in pickles else 0 for at in range(len(order))],
            self.single_file_per_rank,
            self.sync_files,
            self._file_name_on(place),
            self.format,
            place.tag,
            sending.send if sending else None,
        )
        report = SaveReport(threads=self.thread_count, peak_staging_bytes=self.staged_bytes)
        # Objects lie behind tensors in their file, and what is sent goes from its beginning to its end.
        in_reach = chain(
            (
                (at, *self._in_reach(items[number].index.fqn, planner, items[number]))
                for at, number in enumerate(order)
                if at not in pickles
            ),
            ((at, pickle, False) for at, pickle in pickles.items()),
        )
        for batch in in_batches(in_reach, _copied_bytes, self.per_thread_copy_ahead):
            self._write_tensors(files, batch, report)
        report.seconds["write"] = time.perf_counter() - start
        told: bytes
        told, report.files, report.bytes_written = files.finish()
        if sending:
            sending.finish()
            report.peak_staging_bytes += files.peak_bytes_to_send + sending.peak_bytes
        report.tensors, report.objects = len(items) - len(pickles), len(pickles)
        report.seconds["total"] = time.perf_counter() - start
        report.seconds["flush"] = report.seconds["total"] - report.seconds["write"]
        self.report = report
        return told

    def _write_extended(
        self, plan: SavePlan, planner: SavePlanner, directory: Path, rank: int
    ) -> list[WriteResult]:
        start = time.perf_counter()
        options = {
            "single_file_per_rank": self.single_file_per_rank,
            "sync_files": self.sync_files,
            "per_thread_copy_ahead": self.per_thread_copy_ahead,
            "_extensions": self.extensions,
        }
        results, report = write_extended(plan, planner, directory, rank, self.thread_count, options)
        report.peak_staging_bytes = self.staged_bytes
        report.seconds["write"] = report.seconds["total"] = time.perf_counter() - start
        self.report = report
        return results

    def _file_name_on(self, place: _Share) -> Any:
        """The name of this rank's file number so many, which begins with a tensor of that name; None: ours."""
        return None

    def _write_tensors(self, files: Any, batch: list[_InReach], report: SaveReport) -> None:
        tensors = [tensor for _, tensor, _ in batch]
        done = files.write(
            [(at, *memory_of(tensor)) for at, tensor, _ in batch],
            self.thread_count,
            _core.DeviceOptions(self.device_memory, current_streams(tensors)),
        )
        strided = any(tensor.is_cpu and not tensor.is_contiguous() for tensor in tensors)
        gathered = self.thread_count * _BLOCK_BYTES if strided else 0
        staging = sum(map(_copied_bytes, batch)) + done.pinned_bytes + gathered
        report.peak_staging_bytes = max(report.peak_staging_bytes, self.staged_bytes + staging)
        report.devices = max(report.devices, len({tensor.device for tensor in tensors if tensor.is_cuda}))
        report.peak_device_bytes = max(report.peak_device_bytes, done.peak_device_bytes)
        report.bytes_from_devices += done.bytes_copied
        report.device_batches += done.batches

    def _in_reach(self, fqn: str, planner: SavePlanner, item: WriteItem) -> tuple[torch.Tensor, bool]:
        """A tensor whose memory the engine reaches and shows its values, and whether that is a copy, in CPU memory."""
        tensor = planner.resolve_data(item)
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{fqn}: expected a tensor from the planner, found {type(tensor).__name__}")
        tensor = tensor.detach()
        if tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(
                f"{fqn}: expected a strided tensor with memory, found {tensor.layout} on {tensor.device}"
            )
        if is_reached(tensor) and shows_its_memory(tensor):
            return tensor, False
        return tensor.cpu().resolve_conj().resolve_neg(), True

    # --- publishing --------------------------------------------------------------------------------------------

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator, when every rank has told its outcome: publishes, or removes everything and raises."""
        pending = self._pending
        try:
            last = [of_rank[-1].storage_data for of_rank in results if of_rank]
            told: list[bytes] = [one for one in last if isinstance(one, bytes)]
            expect_success(told)
            if self.extensions:
                assert isinstance(self.path, Path)  # refused at an address
                replaced = files_of_torchs(self.path)
                write_metadata(pending.path, metadata, results, self.storage_meta(), self.sync_files)
                pending.publish(_core.torch_metadata_name)
                remove_replaced(self.path, replaced, metadata)
            else:
                self._write_manifest(pending, metadata, told)
                pending.publish(_core.manifest_name)
                tell_published(metadata, self.storage_meta(), CURRENT_DCP_VERSION)
        finally:
            self.abandon()
        if self.keep_last is not None:  # the save has succeeded by now, whatever becomes of those before it
            for line in keep_last_steps(self.path, self.keep_last):
                warnings.warn(line, stacklevel=2)

    def _write_manifest(self, pending: Any, metadata: Metadata, told: list[bytes]) -> None:
        names = metadata.names if isinstance(metadata, PlannedMetadata) else metadata.state_dict_metadata
        planner_data = io.BytesIO()
        if metadata.planner_data is not None:
            torch.save(metadata.planner_data, planner_data)
        _core.write_manifest(
            pending.path,
            told,
            list(names),
            planner_data.getvalue(),
            next_order(self.path),
            self.sync_files,
            self._torch_save(metadata.planner_data) if self.format == "torch" else None,
        )

    def _torch_save(self, planner_data: Any) -> Any:
        """What torch's metadata is to tell beside what the manifest tells."""
        if fault := fault_of_planner_data(planner_data):
            raise ValueError(
                f"the planner's data: {fault}; torch's metadata can hold no others: pass format=\"safetensors\""
            )
        paths = None
        if planner_data is not None:
            paths = [
                (name, [(str(key), type(key) is int) for key in keys]) for name, keys in planner_data.items()
            ]
        return _core.TorchSave(_name_of_place(self.path), self.save_id, paths)

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


def _copied_bytes(one: _InReach) -> int:
    _, tensor, is_copy = one
    return int(tensor.nbytes) if is_copy else 0


def _name_of_place(path: Path | str) -> str:
    """What others may read of where a save went: no secret of an address, and no byte that is not of UTF-8."""
    return (
        without_secrets(path)
        if isinstance(path, str)
        else os.fsencode(path).decode(errors="backslashreplace")
    )


def _format_of(name: str | None, torchs_word: SerializationFormat | None) -> str:
    """The format by its name here, or as torch's writers are told it."""
    words = {SerializationFormat.TORCH_SAVE: "torch", SerializationFormat.SAFETENSORS: "safetensors"}
    if name not in (None, *words.values()):
        raise ValueError(f'format is {name!r}; expected "torch" or "safetensors"')
    if torchs_word is None:
        return name or DEFAULT_FORMAT
    told = words.get(torchs_word)
    if told is None or (name or told) != told:
        raise ValueError(f"serialization_format is {torchs_word!r} and format {name!r}; expected one format")
    return told


def _resolved_object(planner: SavePlanner, item: WriteItem) -> torch.Tensor:
    """The bytes of a pickled object."""
    data = planner.resolve_data(item)
    assert isinstance(data, io.BytesIO)
    return torch.frombuffer(data.getbuffer(), dtype=torch.uint8)
