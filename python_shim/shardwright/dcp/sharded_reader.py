"""The storage half of loading a checkpoint of the trainer's own tensors through torch.distributed.checkpoint."""

from __future__ import annotations

import io
import os
import time
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem
from torch.distributed.checkpoint.planner import LoadPlanner as TorchLoadPlanner
from torch.futures import Future

from shardwright import _core
from shardwright.batches import in_batches
from shardwright.dcp.catalog_metadata import CatalogMetadata
from shardwright.dcp.manifest_metadata import ShardedMetadata
from shardwright.dcp.resume_planner import ResumePlanner, has_gaps, teller_of
from shardwright.dcp.storage_reader import HuggingFaceStorageReader, Reading, request_of
from shardwright.dcp.torch_checkpoint import metadata_name
from shardwright.dcp.torch_reading import TorchStorageReader
from shardwright.describe import Description, describe, is_reached
from shardwright.local_path import beside, expect_flags, shown
from shardwright.objects.safe_objects import safe_pickles
from shardwright.ranks.cooperation import reading_group
from shardwright.ranks.together import failing_together
from shardwright.report import with_what_was_left_out
from shardwright.rounding import refuse_roundings, roundings_of

#: The most memory, beside the destinations, for tensors that cannot be read straight into them.
_BUFFER_BYTES = 64 << 20


class ShardedStorageReader(HuggingFaceStorageReader):
    """Reads what :class:`ShardedStorageWriter` wrote, or torch's ``HuggingFaceStorageWriter(save_distributed=True)``,
    straight into the shards: any number of ranks and any placement, whatever they were when it was saved.

    It stands where torch's FileSystemReader does, with any DCP load planner. Strided shards with gaps need
    :class:`LoadPlanner`, as torch's would read them wrongly.

    What torch's FileSystemWriter wrote (``.distcp``) it reads by torch's own reader, held to what is safe: of the
    options ``weights_only`` holds, ``verify=True``, which compares what is read with the sums of its zip archives, and
    ``staging_bytes`` at an address.

    Args:
        path: the checkpoint directory.
        _extension_registry: of extensions that torch's FileSystemWriter had; see torch's FileSystemReader.
        verify: True checks the checksums of what this rank reads before anything is written to a tensor; None and False
            as in :class:`HuggingFaceStorageReader`, but that None checks all objects.
        weights_only: False lets pickled objects run whatever code they name. True takes tensors, numpy arrays, numbers,
            text, times, paths, containers of them, and classes allowed by torch.serialization.add_safe_globals; what
            holds anything else is refused, on all ranks, before anything is written to a tensor.
        thread_count, staging_bytes, device_memory, progress, reads, direct_io, huge_pages, trace, cooperative,
            strict_dtypes: see :class:`HuggingFaceStorageReader`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        _extension_registry: Any = None,
        *,
        verify: bool | None = None,
        weights_only: bool = True,
        thread_count: int | None = None,
        **options: Any,
    ) -> None:
        expect_flags(weights_only=weights_only)
        super().__init__(path, thread_count, verify=verify, **options)
        self.weights_only = weights_only
        self._extension_registry = _extension_registry
        self._torchs: TorchStorageReader | None = None  #: that reads in place of this one
        self._ready: dict[str, io.BytesIO] = {}  #: objects that have been read for the load to come

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """``rank``: whose metadata is wanted, of a checkpoint of ``dcp.save(use_collectives=False)``."""
        self._torchs = None
        rank = kwargs.get("rank")
        if rank is None and _core.has_manifest(os.fspath(self.path)):
            return ShardedMetadata(self._read_manifest, self.load_id, self.path)
        if name := metadata_name(self.path, rank):
            self._torchs = TorchStorageReader(
                self.path,
                self.weights_only,
                self._extension_registry,
                self.verify,
                self.staging_bytes,
            )
            self._torchs.load_id = self.load_id
            return self._torchs.read_metadata(name)
        return CatalogMetadata(lambda: self._read_catalog().as_stored(), self.load_id, trainers_names=True)

    def _read_manifest(self) -> tuple[Any, Any]:
        start = time.perf_counter()
        manifest = _core.read_manifest(os.fspath(self.path))
        catalog = manifest.catalog(os.fspath(self.path))
        self._catalog_seconds = time.perf_counter() - start
        return manifest, catalog

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        if isinstance(metadata, (CatalogMetadata, ShardedMetadata)):
            self._torchs = None
        elif self._torchs is None:
            # It comes from another reader, or was changed: this one looks up for itself.
            metadata = ShardedStorageReader.read_metadata(self)  # not what a derived class makes of it
        self._metadata: Any = metadata
        if self.verify and self._torchs is None and not isinstance(metadata, ShardedMetadata):
            raise ValueError(
                f"{shown(self.path)}: verify=True, but this checkpoint has no checksums to check; see sw.verify"
            )
        if self._torchs is not None:
            self._torchs.set_up_storage_reader(metadata, is_coordinator, *args, **kwargs)
        else:
            self._metadata.transfers_told = None

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Reads the objects, as long as ``dcp.load`` can still tell all ranks that one of them is refused."""
        plan = super().prepare_local_plan(plan)
        if self._torchs is not None:
            return self._torchs.prepare_local_plan(plan)
        names = [item.storage_index.fqn for item in plan.items if item.type == LoadItemType.BYTE_IO]
        self._ready = self._read_objects(names)
        return plan

    def read_data(self, plan: LoadPlan, planner: TorchLoadPlanner) -> Future[None]:
        if self._torchs is not None:
            done = self._torchs.read_data(plan, planner)
            self.report = self._torchs.report
            return done
        items = list(plan.items)
        teller = teller_of(plan)
        if teller is None and getattr(self._metadata, "transfers_told", None):
            raise _core.PlanError(
                f"{type(planner).__name__}: expected the plan of shardwright.LoadPlanner as that made it, found one "
                "without its planner_data; hand the plan on, or derive from the planner and override what is to differ"
            )
        if teller is not None and teller is not planner:
            items += teller.items_of_transfers()
        tensors = [item for item in items if item.type == LoadItemType.TENSOR]
        objects = [item for item in plan.items if item.type == LoadItemType.BYTE_IO]
        ready, self._ready = self._ready, {}
        with reading_group(self.cooperative) as readers:
            with failing_together(readers and readers.group):
                _expect_that_it_knows_gaps(planner)
                planned = self._planned_reading(teller) if teller and teller is planner else None
                if isinstance(self._metadata, ShardedMetadata):
                    self._expect_told_alike(tensors, planned)
                names = [item.storage_index.fqn for item in objects]
                ready |= self._read_objects([name for name in names if name not in ready])
                reading, others = self._straight_reading_of(tensors, planner)
                stored = self._metadata.stored_dtypes
                reading.rounded = roundings_of(
                    (item.storage_index.fqn, stored[item.storage_index.fqn][0], target.dtype)
                    for item, target in others
                )
                if self.strict_dtypes:
                    refuse_roundings(reading.all_rounded(), self.path)
            if planned is None:
                report = self._run(reading, readers, self.core_options)
            else:
                # Figures and trace are those of what the planner has planned, which is all but a few.
                planned.rounded = reading.all_rounded()
                report = self._run(planned, readers, self.core_options)
                if reading.items:
                    self._run(reading, None, self.core_options.without_trace())
        self.report = with_what_was_left_out(report, self._metadata, plan, planner)
        reading.hand_over(planner)
        for batch in in_batches(others, lambda one: self._stored_bytes(one[0]), _BUFFER_BYTES):
            self._read_by_buffers(batch, planner)
        for item in objects:
            planner.load_bytes(item, _from_its_begin(ready[item.storage_index.fqn]))
        done = Future()
        done.set_result(None)
        return done

    def _planned_reading(self, planner: ResumePlanner) -> Reading:
        """What a planner of ours has planned by itself."""
        return Reading(planner.core_plan, self._metadata.catalog, planner.description, planner.plan_seconds)

    def _expect_told_alike(self, tensors: list[ReadItem], planned: Reading | None) -> None:
        """Compares manifest and files, and checks first what the engine does not check as it reads; all of it if the
        caller wants that."""
        stored = self._metadata.stored_dtypes
        read = _chunks_of(tensors) | self._scales_of(tensors)
        if planned is not None:
            chunks = _core.chunks_read(planned.core_plan, planned.catalog)
            read |= {(name, tuple(offset)) for name, offset in chunks}
        self._metadata.manifest.expect_told_alike(os.fspath(self.path), sorted(read), self.thread_count)
        if self.verify is not False:
            unread = [item for item in tensors if not stored[item.storage_index.fqn][1]]
            self._expect_undamaged(read if self.verify else _chunks_of(unread), [])

    def _scales_of(self, tensors: list[ReadItem]) -> set[tuple[str, tuple[int, ...]]]:
        """The chunks of the scales that decoding these tensors takes."""
        stored = self._metadata.state_dict_metadata
        weights = {item.storage_index.fqn for item in tensors}
        names = {name for weight in weights for name in _core.scale_names_of(weight)}
        return {
            (name, tuple(chunk.offsets))
            for name in names
            if isinstance(described := stored.get(name), TensorStorageMetadata)
            for chunk in described.chunks
        }

    def _expect_undamaged(self, chunks: set[tuple[str, tuple[int, ...]]], objects: list[str]) -> None:
        self._metadata.manifest.expect_undamaged(
            os.fspath(self.path),
            sorted(chunks),
            objects,
            self.thread_count,
        )

    # --- objects -----------------------------------------------------------------------------------------------

    def _read_objects(self, names: list[str]) -> dict[str, io.BytesIO]:
        """Pickles that the planner may load: it loads without restraint."""
        if names and self.verify is not False:
            self._expect_undamaged(set(), names)
        if self.weights_only:
            return safe_pickles(names, self._object)
        return {name: self._object(name)[1] for name in names}

    def _object(self, fqn: str) -> tuple[str, io.BytesIO]:
        """The file that a pickle is in, and the pickle."""
        name, begin, end = self._metadata.objects[fqn]
        file = beside(self.path, name)
        return file, io.BytesIO(_core.read_bytes(file, begin, end))

    # --- tensors -----------------------------------------------------------------------------------------------

    def _straight_reading_of(
        self, items: list[ReadItem], planner: TorchLoadPlanner
    ) -> tuple[Reading, list[tuple[ReadItem, torch.Tensor]]]:
        """What is read straight into its destination, as that is of the stored dtype or takes what is decoded, in CPU
        memory or on a CUDA device; and the others, which take the way of bounded buffers."""
        start = time.perf_counter()
        catalog = self._metadata.catalog
        stored = self._metadata.stored_dtypes
        requests = []
        description = Description()
        straight = []
        others = []
        for item in items:
            target = planner.resolve_tensor(item).detach()
            if tuple(target.shape) != tuple(item.lengths):
                raise _core.PlanError(
                    f"{item.storage_index.fqn}: expected a destination of {list(item.lengths)}, found "
                    f"{list(target.shape)}"
                )
            name = item.storage_index.fqn
            dtype, known = stored[name]
            decoded = known and target.dtype != dtype and _core.needs_scales(catalog, name)
            buffer = target
            if decoded and not is_reached(target):
                buffer = torch.empty(item.lengths, dtype=target.dtype)
            elif not is_reached(target) or not (decoded or (known and target.dtype == dtype)):
                others.append((item, target))
                continue
            one = describe({name: buffer})
            if one.problems and decoded:
                raise _core.PlanError(one.problems[0])
            if one.problems:
                others.append((item, target))
                continue
            requests.append(request_of(item))
            description.add(one)
            straight.append((item, target, buffer))
        plan = _core.plan_reads(requests, description.specs, catalog)
        return Reading(plan, catalog, description, time.perf_counter() - start, straight), others

    def _stored_bytes(self, item: ReadItem) -> int:
        dtype, _ = self._metadata.stored_dtypes[item.storage_index.fqn]
        return int(item.lengths.numel() * dtype.itemsize)

    def _read_by_buffers(self, batch: list[tuple[ReadItem, torch.Tensor]], planner: TorchLoadPlanner) -> None:
        requests = []
        description = Description()
        filled = []
        for item, target in batch:
            dtype, known = self._metadata.stored_dtypes[item.storage_index.fqn]
            if known:
                buffer = torch.empty(item.lengths, dtype=dtype)
            else:
                buffer = torch.empty([*item.lengths, dtype.itemsize], dtype=torch.uint8)
            requests.append(request_of(item, None if known else dtype.itemsize))
            description.add(describe({item.storage_index.fqn: buffer}))
            filled.append((item, target, buffer if known else buffer.view(dtype).squeeze(-1)))
        catalog = self._metadata.catalog
        reading = Reading(
            _core.plan_reads(requests, description.specs, catalog), catalog, description, items=filled
        )
        # Figures and trace stay those of what was read straight, which is all but a few; and each rank reads for
        # itself, as others may have no such tensors.
        self._run(reading, None, self.core_options.without_trace())
        reading.hand_over(planner)


def _expect_that_it_knows_gaps(planner: TorchLoadPlanner) -> None:
    if isinstance(planner, ResumePlanner):
        return
    beyond_it = [fqn for fqn, value in getattr(planner, "state_dict", {}).items() if has_gaps(value)]
    if beyond_it:
        raise _core.PlanError(
            f"{', '.join(_core.grouped_names(beyond_it))}: of these strided shards a rank holds several parts with "
            f"gaps between them, which {type(planner).__name__} cannot plan; pass planner=shardwright.LoadPlanner()"
        )


def _from_its_begin(data: io.BytesIO) -> io.BytesIO:
    """Several items may be of one object."""
    data.seek(0)
    return data


def _chunks_of(items: list[ReadItem]) -> set[tuple[str, tuple[int, ...]]]:
    return {(item.storage_index.fqn, tuple(item.storage_index.offset or ())) for item in items}
