"""The planner half of a load through torch.distributed.checkpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from threading import Lock
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from shardwright import _core
from shardwright.dcp.catalog_metadata import CatalogMetadata
from shardwright.dcp.fitting import with_hints
from shardwright.dcp.layout_hints import hints_at_layout
from shardwright.dcp.resume_planner import ResumePlanner
from shardwright.describe import DTYPE_NAMES, DTYPES, Description, describe
from shardwright.rounding import refuse_roundings
from shardwright.weight_maps import weight_map_for


class LoadPlanner(ResumePlanner):
    """Plans the load of a Hugging Face checkpoint into native tensors, on each rank for itself.

    With :class:`shardwright.HuggingFaceStorageReader` the plans stay on their ranks, and what ``dcp.load`` gathers is
    empty. With another reader of HF checkpoints, torch's own say, the plans are ordinary ReadItems, and what is read is
    decoded when it is committed. Where neither config.json nor the names say which family a checkpoint is of, it is
    loaded under its own names, if the state dict has these.

    With any other reader, :class:`shardwright.ShardedStorageReader` or torch's FileSystemReader say, the names are the
    trainer's own: It does what torch's DefaultLoadPlanner does, and takes strided shards, too.

    Args:
        model: the model family ("minimax_m3"), or "auto": by config.json, or by the names where that is missing. Or a
            config or a model class of transformers: see :func:`shardwright.weight_maps.weight_map_for`.
        layout: the trainer's names and shapes: "automodel", "transformers" (5.23; where no table has
            the family, the installed transformers' own mapping), "torchtitan" or "huggingface", which is the
            checkpoint's own names and shapes. What has no place in a layout (MTP in "transformers") is unused.
        strict: whether a tensor of the checkpoint that no rule knows is an error.
        flatten_state_dict: whether nested dicts are flattened to dotted names, as DCP does.
        flatten_sharded_tensors: whether a ShardedTensor inside of another becomes one, as DCP does.
        allow_partial_load: whether tensors that the checkpoint lacks altogether are left as they are.
        strict_dtypes: see :class:`shardwright.HuggingFaceStorageReader`, of which either may say it.
        plan: a plan of this rank that was kept (``shardwright plan --save``), to be replayed instead of planning anew.
            It is checked against tensors and checkpoint, and has to fill every tensor once.

    Raises:
        PlanError: lists everything that does not fit, before anything is written.
    """

    def __init__(
        self,
        model: Any = "auto",
        layout: str = "automodel",
        strict: bool = True,
        *,
        flatten_state_dict: bool = True,
        flatten_sharded_tensors: bool = True,
        allow_partial_load: bool = False,
        plan: bytes | None = None,
        strict_dtypes: bool = False,
    ) -> None:
        if isinstance(model, bool) or not isinstance(layout, str):
            raise TypeError(
                f"LoadPlanner({model!r}, {layout!r}, ...): expected model and layout; pass flatten_state_dict, "
                "flatten_sharded_tensors and allow_partial_load, which come first in torch's planner, by their names"
            )
        super().__init__(
            flatten_state_dict, flatten_sharded_tensors, allow_partial_load, strict_dtypes=strict_dtypes
        )
        self.model = model
        self.layout = layout
        self.strict = strict
        self.plan = plan
        self.plan_seconds = 0.0
        self.catalog: Any = None
        self.core_plan: Any = None  #: the rank's transfers, once planned
        self.description = Description()
        #: True if the storage reader is not Shardwright's: it is given ordinary ReadItems, and what they bring is
        #: decoded when it is committed.
        self.by_items = False
        self.resumes = False  #: True for a checkpoint of the trainer's own tensors
        self._transfers: list[Any] = []
        self._arrived: dict[int, torch.Tensor] = {}  # by number of the ReadItem
        self._awaited: dict[int, torch.Tensor] = {}
        self._lock = Lock()  # torch's reader may commit from several threads

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        if metadata is None:
            raise ValueError("LoadPlanner needs the metadata of a storage reader, found none")
        told = getattr(metadata, "trainers_names", None)
        self.resumes = not _is_of_safetensors(metadata) if told is None else told
        if self.resumes:
            super().set_up_planner(state_dict, metadata, is_coordinator)
            return
        self.by_items = not isinstance(metadata, CatalogMetadata)
        self.catalog = catalog_of_metadata(metadata) if self.by_items else metadata.catalog
        self._take(state_dict, metadata, is_coordinator)

    def create_local_plan(self) -> LoadPlan:
        if self.resumes:
            return super().create_local_plan()
        start = time.perf_counter()
        self.description = describe(self.state_dict)
        problems = self._problems()
        if self.plan is None:
            layout, weight_map = self._layout()
            try:
                self.core_plan = _core.plan_load(
                    self.description.specs,
                    self.catalog,
                    weight_map,
                    self.strict,
                    self.allow_partial_load,
                    problems,
                )
            except _core.PlanError as error:
                raise with_hints(
                    error, lambda: hints_at_layout(self.state_dict, self.catalog, self.model, layout)
                ) from None
        elif problems:
            raise _core.PlanError("\n  ".join(["the plan does not fit these tensors:", *problems]))
        else:
            self.core_plan = _core.decode_plan(self.plan, self.catalog, self.description.specs)
        if self.strict_dtypes:
            rounded = _core.roundings_of(self.core_plan, self.description.specs, self.catalog)
            refuse_roundings(rounded, self.catalog.directory)
        items = self._read_items() if self.by_items else []
        self.plan_seconds = time.perf_counter() - start
        return LoadPlan(items)

    def _layout(self) -> tuple[str, Any]:
        """The layout, and its rules: the checkpoint's own names where nobody knows the family and the trainer has
        them."""
        try:
            return self.layout, weight_map_for(self.catalog, self.model, self.layout)
        except _core.PlanError as unknown:
            own = {name for name, *_ in self.catalog.whole_tensors}
            lacking = [name for name in self.state_dict if name not in own]
            is_asked_for = (self.model, self.layout) != ("auto", "automodel")
            is_told = '"model_type"' in self.catalog.config or _core.has_table(
                self.catalog, "auto", self.layout
            )
            if is_asked_for or is_told or len(lacking) == len(self.state_dict):
                raise
            if lacking and not self.allow_partial_load:
                names = ", ".join(_core.grouped_names(lacking))
                raise with_hints(
                    unknown, lambda: [f"{names}: not in the checkpoint, which has all others by these names"]
                ) from None
            return "huggingface", weight_map_for(self.catalog, "auto", "huggingface")

    def _problems(self) -> list[str]:
        values = [] if self.allow_partial_load else self.description.passed_over
        no_tensors = [
            f"{fqn}: expected a tensor, since an HF checkpoint holds no others, found "
            + type(self.state_dict[fqn]).__name__
            for fqn in values
        ]
        return no_tensors + self.description.problems

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, new_plan: LoadPlan) -> LoadPlan:
        return new_plan

    # --- with another storage reader ---------------------------------------------------------------------------
    # Transfer t is read by items 2t (its elements) and 2t + 1 (its scales); the number travels as the index hint of
    # the item's destination. Scales are asked for first: whatever has to wait for its other half is then small.

    def _read_items(self) -> list[ReadItem]:
        tensors = self.catalog.tensors
        self._transfers = self.core_plan.transfers
        for zero in self.core_plan.zeros:
            self.description.local_tensors[zero].detach().zero_()
        items = []
        for number, transfer in enumerate(self._transfers):
            fqn = self.description.specs[transfer.destination].fqn
            boxes = [(transfer.source, transfer.source_offset, transfer.source_size)]
            if transfer.scales >= 0:
                boxes.append((transfer.scales, transfer.scale_offset, transfer.scale_size))
            for part, (source, offset, size) in enumerate(boxes):
                tensor = tensors[source]
                items.append(
                    ReadItem(
                        LoadItemType.TENSOR,
                        MetadataIndex(fqn, index=2 * number + part),
                        torch.Size([0] * len(size)),
                        MetadataIndex(tensor.name, tensor.offset),
                        torch.Size(offset),
                        torch.Size(size),
                    )
                )
        self._dtypes = [DTYPES[tensor.dtype] for tensor in tensors]
        return sorted(items, key=lambda item: item.dest_index.index % 2 == 0)

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        """A buffer for what is stored; it is decoded into the destination by ``commit_tensor``."""
        number = read_item.dest_index.index
        if self.resumes or number is None:  # which no item of this planner's own has
            return super().resolve_tensor(read_item)
        transfer = self._transfers[number // 2]
        source = transfer.source if number % 2 == 0 else transfer.scales
        buffer = torch.empty(read_item.lengths, dtype=self._dtypes[source])
        with self._lock:
            self._awaited[number] = buffer
        stored = buffer.as_subclass(_Stored)
        stored.fqn = read_item.storage_index.fqn
        return stored

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        """Decodes a transfer once its elements and its scales are there."""
        number = read_item.dest_index.index
        if self.resumes or number is None:
            return
        which = number // 2
        transfer = self._transfers[which]
        with self._lock:
            self._arrived[number] = self._awaited.pop(number)
            numbers = [2 * which, 2 * which + 1] if transfer.scales >= 0 else [2 * which]
            if not all(part in self._arrived for part in numbers):
                return
            parts = [self._arrived.pop(part) for part in numbers]
        addresses = [part.data_ptr() for part in parts]
        scales = addresses[1] if len(addresses) > 1 else 0
        _core.place_transfer(
            self.core_plan, which, self.catalog, addresses[0], scales, self.description.specs
        )
        torch.autograd.graph.increment_version(self.description.local_tensors[transfer.destination])


class _Stored(torch.Tensor):
    """Where a reader puts elements as they are stored, and nothing else."""

    fqn: str

    def detach(self) -> _Stored:
        return self

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> _Stored:
        if source.dtype != self.dtype:
            raise _core.PlanError(
                f"{self.fqn}: expected elements as they are stored, {self.dtype}, found {source.dtype} from the "
                "storage reader: one that decodes by itself, as torch's QuantizedHuggingFaceStorageReader does, would "
                "have them decoded twice; use shardwright.HuggingFaceStorageReader, or torch's of that name"
            )
        super().copy_(source, non_blocking)
        return self


def _is_of_safetensors(metadata: Metadata) -> bool:
    """Whether another storage reader's metadata is that of a Hugging Face checkpoint, by where its tensors are."""
    places = metadata.storage_data.values() if isinstance(metadata.storage_data, Mapping) else []
    file = getattr(next(iter(places), None), "relative_path", "")
    return os.fspath(file).endswith(".safetensors")


def catalog_of_metadata(metadata: Metadata) -> Any:
    """The catalog that another storage reader's metadata amounts to."""
    tensors: list[tuple[str, str, list[int], list[int]]] = [
        (name, DTYPE_NAMES[stored.properties.dtype], list(chunk.sizes), list(chunk.offsets))
        for name, stored in metadata.state_dict_metadata.items()
        if isinstance(stored, TensorStorageMetadata)
        for chunk in stored.chunks
    ]
    tensors.sort(key=lambda tensor: (tensor[0].encode(), tensor[3]))  # as the catalog orders them
    return _core.catalog_of_tensors(tensors)
