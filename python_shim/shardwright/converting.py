"""Checkpoints of one format made to those of another, a part at a time: of training, and between encodings."""

from __future__ import annotations

import io
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, BinaryIO

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from shardwright import _core
from shardwright.byte_sizes import bytes_of_size
from shardwright.catalog import catalog_of
from shardwright.dcp.saved_weights import names_of_weights
from shardwright.dcp.sharded_reader import ShardedStorageReader
from shardwright.dcp.sharded_writer import ShardedStorageWriter
from shardwright.dcp.storage_reader import threads_of
from shardwright.dcp.torch_catalog import read_torch_catalog
from shardwright.dcp.torch_checkpoint import (
    damaged_archive,
    fault_of_archive,
    fault_of_chunks,
    is_stream_of_ours,
    part_of_file,
)
from shardwright.dcp.torch_metadata import read_torch_metadata
from shardwright.loading import is_of_trainer
from shardwright.local_path import (
    beside,
    bytes_or_none,
    expect_overwrite,
    expect_text,
    lasting_path,
    location,
    shown,
)
from shardwright.progress import counters_of
from shardwright.quantization import checked_quantization
from shardwright.ranks.gone_ranks import rank_among
from shardwright.ranks.rank_outcome import NOT_PUBLISHED
from shardwright.ranks.together import round_of_ranks, together, words_of
from shardwright.regular_file import open_regular
from shardwright.remote.address import is_address
from shardwright.report import SaveReport
from shardwright.weight_maps import imported_map, model_name


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    format: str | None = None,
    threads: int | None = None,
    overwrite: bool | None = None,
    quantization: str | None = None,
    quantized_weights: Sequence[str] | None = None,
    model: Any = "auto",
    template: Any = None,
    layout: str | None = None,
    key: str | None = None,
    max_shard_size: int | str = "5GB",
    buffer_bytes: int | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> SaveReport:
    """Writes a sharded checkpoint, ours or one of torch's FileSystemWriter, as one of ours; or, with
    ``quantization``, a Hugging Face checkpoint in another encoding.

    In ``format="torch"``, torch reads it as well. Chunks, objects and the names of nested state dicts stay as they
    are; there is a file of shards for each of the source. No object is unpickled. It takes memory for the largest
    chunk, or for 64 MiB of smaller ones, and for all objects of a file.

    Args:
        source: the checkpoint directory. Its checksums are checked, where it has some.
        destination: the directory that the new one goes into; made if need be.
        format, threads: see :class:`ShardedStorageWriter`.
        overwrite: likewise. With ``quantization``, True lets the new checkpoint take the place of its source, where the
            destination is the same directory or a link to it. The source is whole until all of the new one is written,
            and stays if something fails or the process is killed; its files are then removed. A checkpoint of training
            as source is never replaced, as it holds more than weights. Without True, and in the other conversions
            always, the source as destination is an error.
        quantization: one of :func:`shardwright.quantizations`, or "none" or "bf16": how the weights are stored that the
            source has encoded, under the names of the tool that has the rule; decoded first, to BF16. All ranks of the
            process group call this together then, and each holds ``buffer_bytes`` of values at a time (128 MiB), and
            some staging. Whatever else the source has is taken over, and config.json tells of the new encoding. Of a
            checkpoint of training the weights are exported, as by :func:`export` of its path: a matrix, one of a stack
            as well, is then held as a whole.
        quantized_weights: patterns of HF names: exactly these matrices are quantized. Of a source without encoded
            weights, the default is those that releases of its family (``model``) quantize, if it has any.
        model, template, layout, key: see :func:`export`; all but ``model`` are of checkpoints of training, with
            ``quantization``, which may then be "template" as well.
        max_shard_size: bytes of tensors in a file, or text such as "5GB"; with ``quantization``.

    Raises:
        FileExistsError: something is in the place of the new one; see ``overwrite``.
        ValueError: the source is damaged, of another kind, or encoded by an extension of torch's writer; a quantization
            that there is not, or weights that cannot be stored so, by name.
        OSError: a file cannot be read or written. Nothing has then been published.
    """
    if quantization is not None:
        return _convert_encoding(
            source,
            destination,
            quantization="none" if quantization == "bf16" else quantization,
            quantized_weights=quantized_weights,
            model=model,
            template=template,
            layout=layout,
            key=key,
            max_shard_size=max_shard_size,
            buffer_bytes=buffer_bytes,
            threads=threads,
            format=format,
            overwrite=overwrite,
            process_group=process_group,
        )
    of_encodings = {
        "quantized_weights": quantized_weights,
        "template": template,
        "layout": layout,
        "key": key,
    }
    if given := [name for name, value in of_encodings.items() if value is not None]:
        raise ValueError(f"{', '.join(given)}: expected a quantization= with it, by which weights are stored")
    start = time.perf_counter()
    chunks = _StoredChunks(location(source))
    writer = _ConvertingWriter(destination, thread_count=threads, overwrite=overwrite, format=format)
    places = [path if is_address(path) else os.path.realpath(path) for path in (writer.path, chunks.path)]
    if places[0] == places[1]:
        raise ValueError(f"{writer.path}: expected another directory than that of the source")
    writer.sources.append(chunks.path if is_address(source) else lasting_path(source))
    total = SaveReport(threads=writer.thread_count)
    try:
        writer.set_up_storage_writer(True)
        results = []
        for plan in writer.prepare_global_plan(chunks.plans()):
            results.append(writer.write_data(plan, chunks).wait())  # which asks for no more
            if writer.report is None:
                break  # this has failed, and finish() says how
            total.tensors += writer.report.tensors
            total.objects += writer.report.objects
            total.files += writer.report.files
            total.bytes_written += writer.report.bytes_written
            total.peak_staging_bytes = max(total.peak_staging_bytes, writer.report.peak_staging_bytes)
            writer.report = None
        writer.finish(chunks.metadata, results)
    finally:
        writer.abandon()
    total.seconds["total"] = time.perf_counter() - start
    return total


def _conversion(
    source: str | os.PathLike[str],
    rank: int,
    ranks: int,
    *,
    quantization: str,
    quantized_weights: Sequence[str] | None,
    model: Any,
    template: Any,
    layout: str | None,
    key: str | None,
    max_shard_size: int | str,
    buffer_bytes: int | None,
    threads: int | None,
    format: str | None,
) -> Any:
    """What this rank has of the work, of arguments that are looked at here."""
    if format is not None:
        raise ValueError("format is of checkpoints of training; expected none together with quantization")
    name, weights = checked_quantization(quantization, quantized_weights)
    if layout is not None:
        expect_text("layout", layout)
    thread_count = threads_of(threads, "threads")
    saved, catalog = _saved_weights(source, key, thread_count, rank, ranks)
    of_training = {"template": template, "layout": layout, "key": key}
    if saved is None and (given := [option for option, value in of_training.items() if value is not None]):
        raise ValueError(
            f"{', '.join(given)}: expected none for {shown(source)}, which is no checkpoint of training"
        )
    of_template: Any = None if template is None else catalog_of(template)
    layout_of_trainer = layout or "automodel"
    rules: Any = None if saved is None else imported_map(of_template, model, layout_of_trainer)
    return _core.Conversion(
        location(source),
        name,
        weights,
        model_name(model),
        layout_of_trainer,
        bytes_of_size(max_shard_size),
        thread_count,
        bytes_or_none("buffer_bytes", buffer_bytes) or 0,
        rank,
        ranks,
        saved,
        catalog,
        of_template,
        rules,
    )


def _convert_encoding(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    overwrite: bool | None,
    process_group: dist.ProcessGroup | None,
    **options: Any,
) -> SaveReport:
    """All ranks call it together, with the options of `_conversion`; what one is given wrongly, all are told."""
    start = time.perf_counter()
    alike = words_of(destination=destination, overwrite=overwrite)

    def rank_of_expected() -> tuple[int, int]:
        expect_overwrite(overwrite)
        return rank_among(process_group)

    rank, ranks = together(process_group, "converting", rank_of_expected, alike)
    report = _core.convert_together(
        rank,
        ranks,
        lambda mine, answers: round_of_ranks(process_group, "converting", mine, answers, NOT_PUBLISHED),
        lambda: _conversion(source, rank, ranks, **options),
        lambda: (lasting_path(destination), [] if is_address(source) else [lasting_path(source)]),
        overwrite,
    )
    return replace(SaveReport.of(report, time.perf_counter() - start), left_out=list(report.left_out))


def _saved_weights(
    source: str | os.PathLike[str], key: str | None, threads: int, rank: int, ranks: int
) -> tuple[dict[str, str] | None, Any]:
    """Of a checkpoint of training: for each weight of the model its name in the checkpoint, and a catalog of what
    torch's own writer has written, which is read here."""
    if not is_of_trainer(source):
        if _core.kind_of(location(source)) == "adapter":
            raise ValueError(
                f"{shown(source)}: holds a LoRA adapter, whose encoding is not changed; expected a model or a "
                "checkpoint of training"
            )
        return None, None
    metadata = ShardedStorageReader(source).read_metadata()
    saved = names_of_weights(metadata, os.fspath(source), key)[1]
    if _core.kind_of(location(source)) != "torch":
        return saved, None
    return saved, read_torch_catalog(location(source), metadata, saved.values(), threads, rank, ranks)


class _ConvertingWriter(ShardedStorageWriter):
    """Takes what it is given for copies, of which it holds only some at a time."""

    def _in_reach(self, fqn: str, planner: Any, item: WriteItem) -> tuple[torch.Tensor, bool]:
        return super()._in_reach(fqn, planner, item)[0], True


class _StoredChunks:
    """What is in a checkpoint, read when a writer asks for it: in place of a planner and of a state."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.manifest: Any = None
        self.metadata: Metadata
        kind = _core.kind_of(path)
        if kind == "sharded":
            of_ours: Any = ShardedStorageReader(path).read_metadata()
            self.manifest = of_ours.manifest
            assert of_ours.catalog  # which looks at the sizes of the files
            self.metadata = of_ours
        elif kind == "torch":
            self.metadata = read_torch_metadata(path)
        else:
            _core.read_catalog(path)  # which says what is there
            raise ValueError(
                f"{shown(path)}: expected a sharded checkpoint or one of torch's FileSystemWriter, found another kind; "
                'pass quantization= (--quantization) for a Hugging Face checkpoint in another encoding, "bf16" for none'
            )

        self._bytes = sum(place.length for place in self.metadata.storage_data.values())
        self._progress = counters_of("converting")

    def plans(self) -> list[SavePlan]:
        """For each file what is in it."""
        by_file: dict[str, list[WriteItem]] = {}
        for fqn, stored in self.metadata.state_dict_metadata.items():
            items = [WriteItem(MetadataIndex(fqn), WriteItemType.BYTE_IO)]
            if isinstance(stored, TensorStorageMetadata):
                if fault := fault_of_chunks(self.path, fqn, stored):
                    raise _core.CheckpointFormatError(f"{fault}; copy or save it again")
                items = [
                    WriteItem(
                        MetadataIndex(fqn, chunk.offsets),
                        WriteItemType.SHARD,
                        tensor_data=TensorWriteData(chunk, stored.properties, stored.size),
                    )
                    for chunk in stored.chunks
                ]
            for item in items:
                by_file.setdefault(self._place(item.index).relative_path, []).append(item)
        return [SavePlan(by_file[name]) for name in sorted(by_file)]

    def _place(self, index: MetadataIndex) -> Any:
        place = self.metadata.storage_data.get(index)
        if place is None:
            raise _core.CheckpointFormatError(
                f"{shown(self.path)}: {index.fqn}: the metadata does not say where it is"
            )
        if getattr(place, "transform_descriptors", None):
            raise _core.CheckpointFormatError(
                f"{shown(self.path)}: {index.fqn}: is encoded by an extension of torch's writer "
                f"({', '.join(place.transform_descriptors)}), which is not undone here; expected none"
            )
        return place

    def resolve_data(self, item: WriteItem) -> torch.Tensor | io.BytesIO:
        """The chunk or object itself, checked against its checksums."""
        place = self._place(item.index)
        path = beside(self.path, place.relative_path)
        if self._progress is not None:
            self._progress.set(self._progress.done + place.length, self._bytes)
        self._expect_undamaged(item, path, place)
        with open_regular(path) as file:
            if item.type == WriteItemType.BYTE_IO:
                return io.BytesIO(_bytes_of(file, path, place))
            assert item.tensor_data is not None
            shape, dtype = item.tensor_data.chunk.sizes, item.tensor_data.properties.dtype
            if self.manifest is not None:
                raw = _bytes_of(file, path, place)
                bytes_of_tensor = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0)
                return bytes_of_tensor.view(dtype).reshape(shape) if raw else torch.empty(shape, dtype=dtype)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of dtypes that are experimental
                    tensor = torch.load(
                        part_of_file(file, place.offset, place.length), "cpu", weights_only=True
                    )
            except OSError:
                raise
            except Exception as error:
                raise damaged_archive(f"{shown(path)}: {item.index.fqn}", error) from error
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != dtype or tensor.shape != shape:
            found = (
                f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, torch.Tensor) else "no tensor"
            )
            raise _core.CheckpointFormatError(
                f"{shown(path)}: {item.index.fqn}: expected {dtype} {list(shape)}, as the metadata says, found {found}"
            )
        return tensor

    def _expect_undamaged(self, item: WriteItem, path: str, place: Any) -> None:
        fqn = item.index.fqn
        if self.manifest is None:
            if is_stream_of_ours(path, place, item.index, self.metadata):
                return  # whose checksums only the manifest had
            if fault := fault_of_archive(path, place.offset, place.length):
                raise _core.CheckpointFormatError(
                    f"{shown(path)}: {fqn}: is damaged: {fault}; copy or save it again"
                )
        elif item.type == WriteItemType.BYTE_IO:
            self.manifest.expect_undamaged(self.path, [], [fqn], 1)
        else:
            offset = list(item.index.offset or ())
            self.manifest.expect_undamaged(self.path, [(fqn, offset)], [], 1)


def _bytes_of(file: BinaryIO, path: str, place: Any) -> bytearray:
    data = bytearray(place.length)
    file.seek(place.offset)
    found = file.readinto(data)  # type: ignore[attr-defined]
    if found != place.length:
        raise _core.CheckpointFormatError(
            f"{shown(path)}: expected {place.length} bytes at byte {place.offset}, found {found}; copy it again"
        )
    return data
