"""The planner half of a load through torch.distributed.checkpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
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
from shardwright.dcp.twin_chunks import Twin, once
from shardwright.describe import DTYPE_NAMES, DTYPES, describe, no_tensors
from shardwright.local_path import expect_flags
from shardwright.regular_file import read_regular
from shardwright.rounding import refuse_roundings
from shardwright.system_calls import is_file
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
        strict: whether a tensor of the checkpoint that no rule knows is an error, and so is a model that lacks the last
            layers of the checkpoint's.
        flatten_state_dict: whether nested dicts are flattened to dotted names, as DCP does.
        flatten_sharded_tensors: whether a ShardedTensor inside of another becomes one, as DCP does.
        allow_partial_load: whether tensors that the checkpoint lacks altogether are left as they are.
        strict_dtypes: see :class:`shardwright.HuggingFaceStorageReader`, of which either may say it.
        plan: a plan of this rank that was kept (``shardwright plan --save``), to be replayed instead of planning anew.
            It is checked against tensors and checkpoint, and has to fill every tensor once.
        dtype: "packed": encoded weights are loaded as they are stored, codes and companions, but for those that the
            state dict has in BF16, F16, F32 or F64: see :func:`shardwright.load`.

    Raises:
        PlanError: lists what does not fit, before anything is written.
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
        dtype: str | None = None,
    ) -> None:
        if isinstance(model, bool) or not isinstance(layout, str):
            raise TypeError(
                f"LoadPlanner({model!r}, {layout!r}, ...): expected model and layout; pass flatten_state_dict, "
                "flatten_sharded_tensors and allow_partial_load, which come first in torch's planner, by their names"
            )
        super().__init__(
            flatten_state_dict, flatten_sharded_tensors, allow_partial_load, strict_dtypes=strict_dtypes
        )
        expect_flags(strict=strict)
        if plan is not None and not isinstance(plan, bytes):
            raise ValueError(f"plan: expected the bytes of a kept plan, or None, found {type(plan).__name__}")
        if dtype not in (None, "packed"):
            raise ValueError(
                f'dtype: expected "packed" or None, since tensors have dtypes of their own, found {dtype!r}'
            )
        self.dtype = dtype
        self.model = model
        self.layout = layout
        self.strict = strict
        self.plan = plan
        self.catalog: Any = None
        self.codes_alone: list[str] = []  #: see LoadReport
        #: True if the storage reader is not Shardwright's: it is given ordinary ReadItems, and what they bring is
        #: decoded when it is committed.
        self.by_items = False
        self.resumes = False  #: True for a checkpoint of the trainer's own tensors
        self._transfers: list[Any] = []
        self._dtypes: dict[int, torch.dtype] = {}  # by number of the ReadItem
        self._parts: dict[int, list[int]] = {}  # numbers of the ReadItems of each transfer
        self._arrived: dict[int, torch.Tensor] = {}  # by number of the ReadItem
        self._awaited: dict[int, torch.Tensor] = {}
        self._twins: list[Twin] = []
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
        self._twins = []
        if self.by_items:
            self.catalog, twins = catalog_of_metadata(metadata)
            self._twins = twins if is_coordinator else []  # one rank that looks is enough
        else:
            self.catalog = metadata.catalog
        self._take(state_dict, metadata, is_coordinator)

    def create_local_plan(self) -> LoadPlan:
        if self.resumes:
            return super().create_local_plan()
        start = time.perf_counter()
        self.description = describe(self.state_dict)
        problems = self._problems()
        layout = self.layout
        weight_map: Any = None
        if self.plan is None or self.dtype == "packed":
            layout, weight_map = self._layout()
        stored = self.catalog
        if self.dtype == "packed":
            self.catalog, weight_map, more = _core.as_packed(self.catalog, weight_map, self.description.specs)
            problems += more
        if self.plan is None:
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
                hints = hints_at_layout(self.state_dict, self.catalog, self.model, layout)
                raise with_hints(error, hints) from None
        elif problems:
            raise _core.PlanError(_core.in_lines("the plan does not fit these tensors:", problems))
        else:
            self.core_plan = _core.decode_plan(self.plan, self.catalog, self.description.specs)
        self.codes_alone = []
        if self.dtype == "packed":
            self.codes_alone = _core.codes_alone(self.core_plan, self.description.specs, stored, self.catalog)
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
                hint = f"{names}: not in the checkpoint, which has all others by these names"
                raise with_hints(unknown, [hint]) from None
            return "huggingface", weight_map_for(self.catalog, "auto", "huggingface")

    def _problems(self) -> list[str]:
        values = [] if self.allow_partial_load else self.description.passed_over
        return no_tensors(self.state_dict, values) + self.description.problems

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, new_plan: LoadPlan) -> LoadPlan:
        return new_plan

    # --- with another storage reader ---------------------------------------------------------------------------
    # Part p of transfer t (its elements, its scales, its global scale) is read by an item; 3 t + p travels as the index
    # hint of the item's destination. The two items of twin t have -1 - 2 t and -2 - 2 t.

    def _read_items(self) -> list[ReadItem]:
        self._transfers = self.core_plan.transfers
        for zero in self.core_plan.zeros:
            self.description.local_tensors[zero].detach().zero_()
        items, self._dtypes, self._parts = [], {}, {}
        # A load that failed leaves parts of another checkpoint's tensors.
        self._arrived, self._awaited = {}, {}
        for transfer, part, name, dtype, chunk, offset, size in _core.read_items(
            self.core_plan, self.catalog
        ):
            number = 3 * transfer + part
            self._dtypes[number] = DTYPES[dtype]
            self._parts.setdefault(transfer, []).append(number)
            fqn = self.description.specs[self._transfers[transfer].destination].fqn
            items.append(
                ReadItem(
                    LoadItemType.TENSOR,
                    MetadataIndex(fqn, index=number),
                    torch.Size([0] * len(size)),
                    MetadataIndex(name, chunk),
                    torch.Size(offset),
                    torch.Size(size),
                )
            )
        for at, twin in enumerate(self._twins):
            for of_other, number in ((False, -1 - 2 * at), (True, -2 - 2 * at)):
                self._dtypes[number] = twin.dtype
                items.append(twin.item(of_other, number))
        return items

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        """A buffer for what is stored; it is decoded into the destination by ``commit_tensor``."""
        number = read_item.dest_index.index
        if self.resumes or number is None:  # which no item of this planner's own has
            return super().resolve_tensor(read_item)
        buffer = torch.empty(read_item.lengths, dtype=self._dtypes[number])
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
        if number < 0:
            self._expect_alike(number)
            return
        which = number // 3
        with self._lock:
            self._arrived[number] = self._awaited.pop(number)
            if not all(part in self._arrived for part in self._parts[which]):
                return
            parts = {part % 3: self._arrived.pop(part) for part in self._parts[which]}
        elements, scales, factor = (parts[part].data_ptr() if part in parts else 0 for part in range(3))
        _core.place_items(
            self.core_plan, which, self.catalog, elements, scales, factor, self.description.specs
        )
        torch.autograd.graph.increment_version(
            self.description.local_tensors[self._transfers[which].destination]
        )

    def _expect_alike(self, number: int) -> None:
        """Compares the two boxes of a twin, once both are there."""
        at, sibling = (-1 - number) // 2, number - 1 if number % 2 else number + 1
        with self._lock:
            mine = self._awaited.pop(number)
            if sibling not in self._arrived:
                self._arrived[number] = mine
                return
            other = self._arrived.pop(sibling)
        if not torch.equal(mine.view(-1).view(torch.uint8), other.view(-1).view(torch.uint8)):
            raise _core.PlanError(
                f"{self._twins[at]}, which differ; remove the files of the save that is not wanted: torch's writer "
                "leaves those of earlier saves in the folder"
            )


#: Far more than any model's configuration has.
_MOST_CONFIG_BYTES = 1 << 26


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


def catalog_of_metadata(metadata: Metadata) -> tuple[Any, list[Twin]]:
    """The catalog that another storage reader's metadata amounts to, and what is there twice."""
    tensors: list[tuple[str, str, list[int], list[int]]] = []
    twins: list[Twin] = []
    for name, stored in metadata.state_dict_metadata.items():
        if not isinstance(stored, TensorStorageMetadata):
            continue
        chunks, twice = once(name, stored)
        twins += twice
        dtype = DTYPE_NAMES[stored.properties.dtype]
        tensors += [(name, dtype, list(chunk.sizes), list(chunk.offsets)) for chunk in chunks]
    tensors.sort(key=lambda tensor: (tensor[0].encode(), tensor[3]))  # as the catalog orders them
    return _core.catalog_of_tensors(tensors, _config_beside(metadata)), twins


def _config_beside(metadata: Metadata) -> str:
    """The config.json beside the files that torch's reader tells of; empty where these are not on this machine."""
    for info in (metadata.storage_data or {}).values():
        file = Path(getattr(info, "relative_path", ""))
        config = file.parent / "config.json"
        is_here = file.suffix == ".safetensors" and is_file(file) and is_file(config)
        return read_regular(config, _MOST_CONFIG_BYTES).decode() if is_here else ""
    return ""
