"""The planner half of a load through torch.distributed.checkpoint."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan

from shardwright import _core
from shardwright.catalog_metadata import CatalogMetadata
from shardwright.describe import describe


class LoadPlanner(DefaultLoadPlanner):
    """Plans the load of a Hugging Face checkpoint into native tensors, on each rank for itself.

    Used with :class:`shardwright.HuggingFaceStorageReader`: the plans stay on their ranks, and what ``dcp.load``
    gathers is empty.

    Args:
        model: the model family ("minimax_m3"), or "auto": by config.json, or by the names where that is missing.
        layout: the trainer's names and shapes: "automodel".
        strict: whether a tensor of the checkpoint that no rule knows is an error.
        flatten_state_dict: whether nested dicts are flattened to dotted names, as DCP does.
        allow_partial_load: whether tensors that the checkpoint lacks altogether are left as they are.

    Raises:
        PlanError: lists everything that does not fit, before anything is written.
    """

    def __init__(
        self,
        model: str = "auto",
        layout: str = "automodel",
        strict: bool = True,
        *,
        flatten_state_dict: bool = True,
        flatten_sharded_tensors: bool = True,
        allow_partial_load: bool = False,
    ) -> None:
        super().__init__(flatten_state_dict, flatten_sharded_tensors, allow_partial_load)
        self.model = model
        self.layout = layout
        self.strict = strict
        self.plan_seconds = 0.0
        self.core_plan: Any = None
        self.specs: list[Any] = []
        self.local_tensors: list[torch.Tensor] = []
        self._catalog: Any = None

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        if not isinstance(metadata, CatalogMetadata):
            raise ValueError(
                "shardwright.LoadPlanner plans from a catalog; use it with shardwright.HuggingFaceStorageReader"
            )
        self._catalog = metadata.catalog
        # Not super(): it would replace meta tensors by new ones that the caller's model knows nothing of.
        self.original_state_dict = state_dict
        if self.flatten_state_dict:
            state_dict, self.mappings = flatten_state_dict(state_dict)
        self.state_dict = state_dict
        self.metadata = metadata
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> LoadPlan:
        start = time.perf_counter()
        self.specs, self.local_tensors = describe(self.state_dict, tensors_only=not self.allow_partial_load)
        weight_map = _core.weight_map(self._catalog, self.model, self.layout)
        self.core_plan = _core.plan_load(self.specs, self._catalog, weight_map, self.strict, self.allow_partial_load)
        self.plan_seconds = time.perf_counter() - start
        return LoadPlan([])

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, new_plan: LoadPlan) -> LoadPlan:
        return new_plan
