"""The storage half of an export through torch.distributed.checkpoint."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter as TorchHuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner import SavePlanner as TorchSavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from shardwright import _core
from shardwright.bounded_staging import BoundedStaging
from shardwright.byte_sizes import bytes_of_size
from shardwright.dcp.checkpoint_ids import OfAnyPlace
from shardwright.dcp.save_planner import ExportMeta, is_given_up, share_of
from shardwright.dcp.sharded_writer import ShardedStorageWriter
from shardwright.dcp.storage_reader import threads_of
from shardwright.describe import (
    Description,
    copy_to_cpu,
    current_streams,
    describe_weights,
    spec_of_part,
    spec_without_memory,
    tied_heads,
    whole_box,
)
from shardwright.export_request import AskedExport
from shardwright.local_path import (
    bytes_or_none,
    expect_overwrite,
    lasting_place,
    shown,
)
from shardwright.progress import counters_of
from shardwright.ranks.gone_ranks import rank_among
from shardwright.ranks.rank_outcome import expect_collectives, expect_success, told_failure
from shardwright.remote.address import address_of, is_address
from shardwright.remote.sending import Sending
from shardwright.remote.sent_export import send_export
from shardwright.report import SaveReport
from shardwright.system_calls import is_there


@dataclasses.dataclass(frozen=True)
class _Share:
    """From the coordinator to a rank: what it writes, and where. ``ranks`` is how many do."""

    rank: int
    told: bytes
    ranks: int = 1


#: As torch names shards; another tag follows where the name is taken.
_NAME_OF_SHARDS = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}.*\.safetensors")


class _TorchNamedShards(ShardedStorageWriter):
    """Shards of each rank under the names that torch's HuggingFaceStorageWriter gives them."""

    file_numbers: dict[str, int] | None = None

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        if self.overwrite is None and not is_given_up(plans):
            self._expect_no_training()
        return super().prepare_global_plan(plans)

    def _expect_no_training(self) -> None:
        """What a training needs is not all in shards of weights, whose checkpoint is of the same kind."""
        kind = _core.kind_of(self.path)
        files = [_core.torch_metadata_name] if kind == "torch" else []
        if kind == "sharded":
            with suppress(_core.CheckpointFormatError):  # which the save itself refuses to replace
                files = [file for file, _ in _core.read_manifest(self.path).files]
        if not all(map(_NAME_OF_SHARDS.fullmatch, files)):
            raise FileExistsError(
                errno.EEXIST,
                f"{shown(self.path)}: holds a checkpoint of training ({files[0]!r} and others), with more than these "
                "weights, such as the optimizer; nothing was written. Give another path, or pass overwrite=True to "
                "replace it and keep all other files",
            )

    def _file_name_on(self, place: Any) -> Callable[[str, int], str]:
        rank, tag = place.rank, place.tag or uuid.uuid4().hex[:12]

        def name_of(fqn: str, number: int) -> str:
            numbers = self.file_numbers or {fqn: 1}
            name = f"shard-{rank + 1:05d}-model-{numbers[fqn]:05d}-of-{max(numbers.values()):05d}"
            if number:
                name += f"-{number + 1}"  # a further chunk of a tensor that the first file has a chunk of
            is_taken = place.tag or is_there(Path(self.path, name + ".safetensors"))
            return f"{name}-{tag}.safetensors" if is_taken else f"{name}.safetensors"

        return name_of


class HuggingFaceStorageWriter(OfAnyPlace, BoundedStaging, TorchHuggingFaceStorageWriter):
    """Writes a sharded native state dict as a Hugging Face checkpoint.

    Each rank writes its bytes to their final place in the final files: no tensor is gathered, and nothing is written
    twice. The files are a checkpoint from the moment on that the index gets its name, once all ranks have succeeded. A
    checkpoint that was there stays until then; its files are removed after it, and all else in ``path`` is left alone.
    CUDA tensors are encoded and regrouped on their device, after the work of its current stream, and come
    from there in bounded pieces. In a build without kernels for GPUs, and from other devices, they are copied to CPU
    memory first, all that this rank holds, which ``report`` counts.

    Args:
        path: the directory that the checkpoint goes into, made if need be; or an address, such as s3://bucket/model:
            then each file is uploaded by one rank, to which the others give their bytes of it.
        fqn_to_index_mapping: HF name → number of the file (from 1); by default files are filled up to max_shard_size.
        thread_count: threads of each rank that encode and write; None: this process's share of the processors.
        save_distributed, enable_consolidation, thread_count_consolidation: as torch's class of this name has them.
            ``save_distributed`` without consolidation writes a file of shards for each rank, under torch's names, and
            the manifest of a sharded checkpoint beside them; with it the same full tensors are written as without
            either, only at once, with no folder of shards beside them.
        quantization: "template": every weight in the template's encoding, with the template's scales. What was loaded
            from it is written as it was; a weight that is too large for its scale is an error. A name of
            :func:`shardwright.quantizations`, such as "mxfp8" or "nvfp4-modelopt": codes, scales and names as that
            tool makes them, for the weights that the template (where it has no scales, or there is
            none: the model's rule of names) has quantized; None: BF16 for these. Other tensors get the template's
            dtypes. Without a template, a known model's floats become BF16 and all else stays as it is. On CUDA devices
            MXFP8 is encoded there; for all other rules and a template values are brought to the CPU in bounded pieces.
        quantized_weights: patterns of HF names, such as "model.layers.*.mlp.*": exactly the matrices, and stacks of
            them, that fit one are quantized. A "*" stands for any characters, a "?" for one. None: as above.
        max_shard_size: bytes of tensors in a file, or text such as "5GB".
        template: a checkpoint directory, or its catalog: its names, dtypes, order and non-weight files are taken over.
        model, layout: whose tables relate native to HF names; see LoadPlanner. "auto": by the template, else by the
            names; names that no family knows stay as they are.
        strict: a tensor that the template has and the state dict lacks is an error.
        staging_bytes: memory between shards and files, all threads together; None: 4 MiB a thread, and for the tensors
            of a CUDA device 8 MiB more, which is pinned, up to 128 MiB in all.
        device_memory: bytes of each CUDA device that the export may take beside the tensors; None: 256 MiB.
        async_staging_bytes: the most memory that an asynchronous save may take for its copy of this rank's state; a
            save that needs more fails and names the figure. None: what it takes.
        overwrite: None replaces a checkpoint that an export has written, and refuses where another checkpoint is in
            ``path``, or the template (FileExistsError). True replaces any. False replaces none.
        strict_dtypes: a tensor that would be stored in a dtype that cannot hold all of its numbers, such as F32 as BF16
            because the template has that, is an error; otherwise it is rounded, which ``report.rounded`` lists. What
            ``quantization`` encodes is no such cast.
        process_group: of the ranks that save to an address, which takes CPU tensors; in the background, one that nobody
            else uses meanwhile. None: all ranks.

    After a save, ``report`` is this rank's :class:`SaveReport`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fqn_to_index_mapping: dict[str, int] | None = None,
        thread_count: int | None = None,
        save_distributed: bool = False,
        enable_consolidation: bool = False,
        thread_count_consolidation: int = 1,
        *,
        quantization: str | None = None,
        max_shard_size: int | str = "5GB",
        template: Any = None,
        model: Any = "auto",
        layout: str = "automodel",
        strict: bool = True,
        staging_bytes: int | None = None,
        device_memory: int | None = None,
        async_staging_bytes: int | None = None,
        overwrite: bool | None = None,
        strict_dtypes: bool = False,
        quantized_weights: Sequence[str] | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        path = os.fspath(lasting_place(path))
        expect_overwrite(overwrite)
        self.asked = AskedExport(
            quantization, template, model, layout, strict, strict_dtypes, quantized_weights
        )
        is_encoded = self.asked.checked_quantization()[0] != "none"
        threads = threads_of(thread_count)
        is_export = enable_consolidation or not save_distributed
        if not is_export and (is_encoded or self.asked.has_template):
            raise ValueError(
                "shards of each rank, as save_distributed writes them, take no quantization or template"
            )
        # Not with consolidation: that would make torch's class write to a folder below the path.
        # And not with an address, which torch's class would open itself.
        super().__init__(
            os.curdir if is_address(path) else path,
            fqn_to_index_mapping,
            threads,
            save_distributed,
            False,
            thread_count_consolidation,
        )
        self.path = address_of(path) if is_address(path) else path
        self._shards = (
            None
            if is_export
            else _TorchNamedShards(path, thread_count=threads, overwrite=overwrite, format="safetensors")
        )
        self.overwrite = overwrite
        self.max_file_bytes = bytes_of_size(max_shard_size)
        self.sources: list[str] = []  #: directories that the tensors come from; the template is another
        self.staging_bytes = bytes_or_none("staging_bytes", staging_bytes) or 0
        self.device_memory = bytes_or_none("device_memory", device_memory)
        self.async_staging_bytes = bytes_or_none("async_staging_bytes", async_staging_bytes)
        self.process_group = process_group
        self.report: SaveReport | None = None
        self._request: Any = None
        self._description: Description | None = None
        self._state = b""  # what this rank holds, as ranks plan by it
        self._items: list[WriteItem] = []
        self._tied: list[str] = []  # heads that are not stored
        self._copied_bytes = 0
        self._publication: Any = None  # on the coordinator, from planning to publishing
        self._start = 0.0

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        super().reset()
        if checkpoint_id:
            self.path = os.fspath(lasting_place(checkpoint_id))

    # --- what each rank holds ------------------------------------------------------------------------------------

    def storage_meta(self) -> StorageMeta | None:
        if self._shards is not None:
            return self._shards.storage_meta()
        return ExportMeta(checkpoint_id=self.checkpoint_id, save_id=self.save_id, writer=self)

    def without_tied_heads(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """For ``SavePlanner``: without a template, a head that is the memory of an embedding is not stored, as
        transformers stores none; the report has it as left out."""
        self._tied = []
        if not self.asked.has_template:
            self._tied = tied_heads(state_dict)
        return {name: value for name, value in state_dict.items() if name not in self._tied}

    def describe_state_dict(self, state_dict: Mapping[str, Any], state: bytes) -> bytes:
        """For ``SavePlanner``, which gives the state as ranks plan by it: what this rank holds, as bytes for the
        coordinator."""
        headline = "cannot export these values; nothing has been written:"
        description, self._copied_bytes = describe_weights(state_dict, headline)
        self._description, self._state = description, state
        holdings: bytes = _core.describe_export(
            description.specs, state, self._request, self._devices(description)
        )
        return holdings

    def _devices(self, description: Description) -> Any:
        return _core.DeviceOptions(self.device_memory, current_streams(description.local_tensors))

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        if self._shards is not None:
            return self._shards.prepare_local_plan(plan)
        if isinstance(plan.storage_data, bytes):
            return plan  # SavePlanner's: it has described the tensors
        # Another planner's items: what they say of shapes is enough to plan by. The values come with write_data.
        self._items = plan.items
        specs = []
        for item in plan.items:
            data = item.tensor_data
            if item.type == WriteItemType.BYTE_IO or data is None:
                raise _core.PlanError(
                    f"{item.index.fqn}: expected a tensor, since an HF checkpoint holds no others"
                )
            specs.append(_spec_without_memory(item))
        self._state = _core.state_of(specs, rank_among(None)[0])
        holdings = _core.describe_export(specs, self._state, self._request)
        return dataclasses.replace(plan, storage_data=holdings)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.expect_staged()
        if self._shards is not None:
            self._shards.path = lasting_place(os.fspath(self.path))
            self._shards.file_numbers = self.fqn_to_index_mapping
            self._shards.set_up_storage_writer(is_coordinator, *args, **kwargs)
            return
        super().set_up_storage_writer(is_coordinator, *args, **kwargs)
        expect_collectives(kwargs)
        self.abandon()
        self._start = time.perf_counter()
        self._description, self._items, self.report = None, [], None
        self._request = self._make_request()

    def _make_request(self) -> Any:
        """What is planned by; a writer of adapters asks for another."""
        return self.asked.request(self.max_file_bytes, self.fqn_to_index_mapping)

    # --- the coordinator -----------------------------------------------------------------------------------------

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        if self._shards is not None:
            return self._shards.prepare_global_plan(plans)
        self.abandon()
        holdings = [plan.storage_data for plan in plans]
        self._publication = _core.Publication(self.path, self._request, self.overwrite, self.sources)
        try:
            told = self._publication.plan(holdings)
        except BaseException:
            self.abandon()
            raise
        return [
            dataclasses.replace(plan, storage_data=_Share(rank, share, len(plans)))
            for rank, (plan, share) in enumerate(zip(plans, told, strict=True))
        ]

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        if self._shards is not None:
            self._shards.finish(metadata, results)
            return
        try:
            told: list[tuple[bytes, bytes]] = [of_rank[-1].storage_data for of_rank in results]
            expect_success([failure for failure, _ in told if failure])
            self._publication.publish([sums for _, sums in told])
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Removes what an unfinished export has written, if this rank is its coordinator. Safe to call at any time."""
        if self._shards is not None:
            self._shards.abandon()
        publication, self._publication = self._publication, None
        if publication is not None:
            publication.abandon()

    # --- each rank's writing -------------------------------------------------------------------------------------

    def write_data(self, plan: SavePlan, planner: TorchSavePlanner) -> Future[list[WriteResult]]:
        if self._shards is not None:
            written = self._shards.write_data(plan, planner)
            self.report = self._shards.report
            return written
        share = share_of(plan, _Share, self)
        failure, row_sums = b"", b""
        try:
            self.report, row_sums = self._write_share(share, planner)
        except Exception as error:
            failure = told_failure(share.rank, error)
        self._description, self._items = None, []  # which hold on to the state, and to copies of it
        self._tied = []
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(MetadataIndex(""), 0, (failure, row_sums))])
        return done

    def _write_share(self, share: _Share, planner: TorchSavePlanner) -> tuple[SaveReport, bytes]:
        """What was done, and checksums of what was written."""
        if is_address(self.path):
            core, sent_bytes = self._send_share(share, planner)
        else:
            core, sent_bytes = _core.write_share(**self._what_to_write(share, planner)), 0
        report = SaveReport.of(core, time.perf_counter() - self._start)
        report.left_out = [*report.left_out, *self._tied]
        report.peak_staging_bytes += self.staged_bytes + self._copied_bytes + sent_bytes
        return report, core.row_sums

    def _send_share(self, share: _Share, planner: TorchSavePlanner) -> tuple[Any, int]:
        """Uploads it. Returns the core's report, and the most bytes that were on their way."""
        with ExitStack() as until_sent:

            def begin() -> tuple[Any, Sending]:
                what = self._what_to_write(share, planner)
                sending = until_sent.enter_context(Sending(self.path))
                export = _core.SentExport(**what, rank=share.rank, ranks=share.ranks, send=sending.send)
                return export, sending

            return send_export(begin, share.ranks, self.process_group)

    def _what_to_write(self, share: _Share, planner: TorchSavePlanner) -> dict[str, Any]:
        description = self._description or self._resolved(planner)
        return {
            "told": share.told,
            "specs": description.specs,
            "state": self._state,
            "request": self._request,
            "threads": self.thread_count,
            "staging_bytes": self.staging_bytes,
            "devices": self._devices(description),
            "progress": counters_of("writing"),
        }

    def _resolved(self, planner: TorchSavePlanner) -> Description:
        """The tensors of another planner's items."""
        description = Description()
        for item in self._items:
            data = item.tensor_data
            local = planner.resolve_data(item)
            assert data is not None and isinstance(local, torch.Tensor)
            local = local.detach()
            box = whole_box(data.chunk.offsets, data.chunk.sizes)
            description.specs.append(spec_of_part(item.index.fqn, local, data.size, [box]))
            description.local_tensors.append(local)
        self._copied_bytes = copy_to_cpu(description)
        return description


def _spec_without_memory(item: WriteItem) -> Any:
    data = item.tensor_data
    assert data is not None
    chunk = data.chunk
    try:
        return spec_without_memory(
            item.index.fqn,
            data.properties.dtype,
            data.size,
            chunk.sizes,
            [whole_box(chunk.offsets, chunk.sizes)],
        )
    except ValueError as problem:
        raise _core.PlanError(f"{item.index.fqn}: {problem}") from None
