"""The storage half of a load through torch.distributed.checkpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader as TorchHuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner import LoadPlanner as TorchLoadPlanner
from torch.futures import Future

from shardwright import _core
from shardwright.dcp.catalog_metadata import CatalogMetadata
from shardwright.dcp.checkpoint_ids import OfAnyPlace
from shardwright.dcp.load_planner import LoadPlanner
from shardwright.dcp.one_checkpoint import expect_one_checkpoint, telling_content
from shardwright.describe import DTYPE_NAMES, Description, current_streams, describe
from shardwright.local_path import beside, bytes_or_none, expect_flags, location, shown, whole_number
from shardwright.progress import progress_callback
from shardwright.ranks.cooperation import Cooperative, Readers, read_together, reading_group
from shardwright.ranks.gone_ranks import rank_among
from shardwright.ranks.together import failing_together
from shardwright.remote.address import is_address
from shardwright.remote.reading import looking_once
from shardwright.report import LoadReport
from shardwright.rounding import refuse_roundings, roundings_of
from shardwright.system_calls import is_file


def default_threads() -> int:
    """This process's share of the processors: those it may use, divided among the ranks that torchrun started here."""
    ranks_here = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return max(1, len(os.sched_getaffinity(0)) // ranks_here)


def threads_of(threads: int | None, name: str = "thread_count") -> int:
    """A number of threads as callers give it."""
    return default_threads() if threads is None else whole_number(name, threads, 1, 1024)


def trace_of_rank(path: str | os.PathLike[str] | None) -> tuple[Path | None, int]:
    """Where this rank's trace goes, and its rank."""
    rank, ranks = rank_among(None)
    if path is not None and (is_address(path) or not Path(path).name):
        raise ValueError(f"trace: expected a file of this machine to write to, found {os.fspath(path)!r}")
    if path is None or ranks == 1:
        return (None if path is None else Path(path)), rank
    if _core.is_written_into(path):  # a terminal or pipe, which takes one text
        return (Path(path) if rank == 0 else None), rank
    return Path(path).with_suffix(f".rank{rank}{Path(path).suffix}"), rank


@dataclass
class Reading:
    """What is to be read, and for which of a plan's items."""

    core_plan: Any
    catalog: Any
    description: Description  #: of the buffers that are read into
    plan_seconds: float = 0.0
    #: the tensor that each is for, and its buffer, which may be the tensor itself
    items: list[tuple[ReadItem, torch.Tensor, torch.Tensor]] = field(default_factory=list)
    #: see LoadReport; of what copies from buffers round
    rounded: dict[str, str] = field(default_factory=dict)

    def all_rounded(self) -> dict[str, str]:
        """What reading and copying round."""
        return dict(_core.roundings_of(self.core_plan, self.description.specs, self.catalog)) | self.rounded

    def hand_over(self, planner: TorchLoadPlanner) -> None:
        """Gives the planner what has been read."""
        for item, target, buffer in self.items:
            if buffer is not target:
                target.copy_(buffer)
            planner.commit_tensor(item, target)


def request_of(
    item: ReadItem, element_bytes: int | None = None
) -> tuple[str, list[int], list[int], list[int]]:
    """(name, chunk, offset in it, size) as _core.plan_reads takes them; with a last dimension of bytes where the dtype
    is not safetensors'."""
    index = item.storage_index
    chunk = [0] * len(item.lengths) if index.offset is None else list(index.offset)
    if element_bytes is None:
        return index.fqn, chunk, list(item.storage_offsets), list(item.lengths)
    return index.fqn, [*chunk, 0], [*item.storage_offsets, 0], [*item.lengths, element_bytes]


def expect_whole(path: str | os.PathLike[str], threads: int) -> None:
    """Raises if a Hugging Face checkpoint is not as it was exported, or has no checksums to tell."""
    if not is_file(beside(path, _core.checksums_name)):
        raise ValueError(f"{shown(path)}: verify=True, but this checkpoint has no checksums to check")
    report = _core.verify_checkpoint(os.fspath(path), threads)
    if report.problems:
        raise _core.CheckpointFormatError(_core.in_lines("the checkpoint is damaged", report.problems))


class HuggingFaceStorageReader(OfAnyPlace, TorchHuggingFaceStorageReader):
    """Reads a Hugging Face safetensors checkpoint into preallocated shards, decoding and regrouping on the way.

    Shards on CUDA devices are decoded there: the bytes of the files cross the bus as they are. The load comes after
    what torch's current stream of each device has been given, and is done when it returns.

    With another planner than :class:`LoadPlanner`, torch's say, the tensors keep their HF names. One that has scales is
    decoded into a destination of BF16, F16, F32 or F64, whatever the model; a destination of the stored dtype gets what
    is stored; any other is refused.

    Args:
        path: the checkpoint directory.
        thread_count: threads that read and decode; None: this process's share of the processors.
        staging_bytes: memory between files and shards, all threads together; None: 1 MiB a thread, up to 64 MiB in all
            where files are not in the page cache; 3 MiB a thread, or 64 MiB if that is more, where tensors are on CUDA
            devices, for which all of it is pinned; and never more than 128 MiB. Ranks that read together hand each
            other up to 16 MiB at a time, which takes 64 MiB more; of staging_bytes it takes half.
        device_memory: bytes of each CUDA device that the load may take beside the tensors; None: 256 MiB.
        progress: True shows a progress bar on stderr; a callable gets (bytes done, bytes in all) now and then.
        reads: "io_uring" reads ahead in the background, "pread" does not; "auto" does where files are not in the page
            cache and the kernel allows it.
        direct_io: read past the page cache (O_DIRECT): True, False, or "auto", which does so for files that are not in
            it, so that a large load does not evict everything else. What is for CUDA tensors then goes from the disk
            straight into their device where NVIDIA's GPUDirect Storage (libcufile) is installed and works for the file.
        huge_pages: ask for staging in huge pages, 2 MiB a thread.
        trace: a file to write what each thread did when, in Chrome's trace format; where there are several ranks,
            ".rank<N>" goes before its suffix. A file that is there is replaced if it is empty or a trace, else a
            ValueError. What is no regular file, such as a pipe, is written into, by rank 0.
        cooperative: True: the ranks of a node read together what several of them need, or what one would read over for
            another: each byte once, handed on in shared memory, but what lies in the page cache, which each rank reads
            for itself, as that is faster. "node": that, too. "job": all ranks of the job do, so that each byte leaves
            the storage once, and is handed on over c10d where they are of several nodes. A process group (with CPU
            tensors): its ranks do. All of them must load at the same time. The report says how they did.
        verify: None compares blocks that are read whole with the checkpoint's checksums, if it has some, where that
            costs next to nothing: of files that are not in the page cache, and in loads of up to 64 MiB. True compares
            all that is read, and the whole checkpoint before anything is written. False compares nothing.
        strict_dtypes: a destination whose dtype cannot hold all numbers of the stored one, such as BF16 for F32, is an
            error; otherwise it is rounded, which the report lists. Decoding what has scales is no such cast.

    After a load, ``report`` is its :class:`LoadReport`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        thread_count: int | None = None,
        *,
        staging_bytes: int | None = None,
        device_memory: int | None = None,
        progress: bool | Callable[[int, int], None] = False,
        reads: str = "auto",
        direct_io: bool | str = "auto",
        huge_pages: bool = False,
        trace: str | os.PathLike[str] | None = None,
        cooperative: Cooperative = False,
        verify: bool | None = None,
        strict_dtypes: bool = False,
    ) -> None:
        threads = threads_of(thread_count)
        expect_flags(strict_dtypes=strict_dtypes)
        if verify is not None:
            expect_flags(verify=verify)
        if not callable(progress):
            expect_flags(progress=progress)
        super().__init__(location(path), threads)
        self.path: Any = self._place_of(path)
        self.progress = progress
        self.cooperative = cooperative
        self.strict_dtypes = strict_dtypes
        self.staging_bytes = bytes_or_none("staging_bytes", staging_bytes)
        self.core_options = _core.LoadOptions(
            threads,
            self.staging_bytes or 0,
            reads,
            direct_io,
            huge_pages,
            *trace_of_rank(trace),
            bytes_or_none("device_memory", device_memory),
            verify,
        )
        self.verify = verify
        self.compares_ranks = True  #: as dcp.load can, and a rank that loads for itself cannot
        self.report: LoadReport | None = None
        self._catalog_seconds = 0.0

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        super().reset(checkpoint_id)
        if checkpoint_id:
            self.path = self._place_of(checkpoint_id)

    def _place_of(self, path: str | os.PathLike[str]) -> Any:
        """As torch has it, but an address stays one: pathlib takes the two slashes of s3:// for one."""
        return location(path) if is_address(path) else self.path

    def read_metadata(self) -> Metadata:
        return CatalogMetadata(self._read_catalog, self.load_id)

    def _read_catalog(self) -> Any:
        start = time.perf_counter()
        with looking_once(self.path):
            catalog = _core.read_catalog(os.fspath(self.path), self.thread_count)
        self._catalog_seconds = time.perf_counter() - start
        return catalog

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        # Not super(): it would build the storage data of every tensor, which nobody here asks for. The metadata may
        # have come from another reader, or been changed by one that derives from this; where things lie in the files,
        # this one looks up by itself.
        own = isinstance(metadata, CatalogMetadata)
        self._metadata = metadata if own else HuggingFaceStorageReader.read_metadata(self)

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Adds which checkpoint this is, for the coordinator of ``dcp.load``."""
        if not self.compares_ranks:
            return plan
        return telling_content(plan, self.path, self._metadata, self.thread_count)

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Raises a PlanError that names the ranks which were given another checkpoint."""
        return expect_one_checkpoint(plans)

    def read_data(self, plan: LoadPlan, planner: TorchLoadPlanner) -> Future[None]:
        """Runs the planner's transfers if it is Shardwright's, else the plan's items, decoding what has scales."""
        with reading_group(self.cooperative) as readers:
            with failing_together(readers and readers.group):
                if self.verify:
                    expect_whole(self.path, self.thread_count)
                reading = self._reading_for(plan, planner)
                if self.strict_dtypes:
                    refuse_roundings(reading.all_rounded(), self.path)
            self.report = self._run(reading, readers, self.core_options)
        if isinstance(planner, LoadPlanner):
            self.report = replace(self.report, codes_alone=planner.codes_alone)
        reading.hand_over(planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _reading_for(self, plan: LoadPlan, planner: TorchLoadPlanner) -> Reading:
        if isinstance(planner, LoadPlanner) and not planner.by_items:
            return Reading(planner.core_plan, planner.catalog, planner.description, planner.plan_seconds)
        start = time.perf_counter()
        catalog = self._metadata.stored
        targets = [planner.resolve_tensor(item).detach() for item in plan.items]
        buffers = [self._buffer_for(item, target) for item, target in zip(plan.items, targets, strict=True)]
        description = Description()
        for item, buffer in zip(plan.items, buffers, strict=True):
            description.add(describe({item.storage_index.fqn: buffer}))
        if description.problems:
            raise _core.PlanError(_core.in_lines(f"cannot read {shown(self.path)}:", description.problems))
        core_plan = _core.plan_reads([request_of(item) for item in plan.items], description.specs, catalog)
        items = list(zip(plan.items, targets, buffers, strict=True))
        rounded = roundings_of((item.storage_index.fqn, buffer.dtype, to.dtype) for item, to, buffer in items)
        return Reading(core_plan, catalog, description, time.perf_counter() - start, items, rounded)

    def _buffer_for(self, item: ReadItem, target: torch.Tensor) -> torch.Tensor:
        """What to read into: the target, unless its dtype takes a cast that only torch has, such as to integers."""
        name = item.storage_index.fqn
        stored = self._metadata.state_dict_metadata.get(name)
        if stored is None or target.is_meta:
            return target  # which is refused, with its name
        dtype = stored.properties.dtype
        wanted = DTYPE_NAMES.get(target.dtype)
        is_ours = wanted is not None and _core.can_convert(DTYPE_NAMES[dtype], wanted)
        if is_ours or _core.needs_scales(self._metadata.stored, name):
            return target  # decoded, or refused: what has scales is nothing to cast
        return torch.empty_like(target, dtype=dtype)

    def _run(self, reading: Reading, readers: Readers | None, core_options: Any) -> LoadReport:
        description = reading.description
        options = core_options.after(current_streams(description.local_tensors))
        arguments = reading.core_plan, reading.catalog, description.specs, options
        with progress_callback(self.progress) as callback:
            core, way = (
                (_core.run_load(*arguments, callback), "")
                if readers is None
                else read_together(*arguments, readers, callback)
            )
        description.mark_written()
        return LoadReport.of(core, self._catalog_seconds, reading.plan_seconds, reading.all_rounded(), way)
