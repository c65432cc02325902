"""The planning half of a save through torch.distributed.checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.distributed.checkpoint.metadata import STATE_DICT_TYPE, Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan

from shardwright.dcp.save_planning import SavePlanner as SharedPlanner


@dataclass
class ExportMeta(StorageMeta):
    """What an exporting writer tells the planner: itself, to whom the tensors are described."""

    writer: Any = None


class SavePlanner(SharedPlanner):
    """Plans a save with any storage writer; with ``HuggingFaceStorageWriter``, by describing the tensors to it.

    With other writers it does what torch's ``DefaultSavePlanner`` does, planned in C++ (see ``save_planning``). An
    export needs no write items: a rank tells what it holds, and hears what to write, and where. Strided shards and
    block scales that ranks share are beyond torch's planner; for all else either will do.
    """

    _export: Any = None

    def set_up_planner(
        self,
        state_dict: STATE_DICT_TYPE,
        storage_meta: StorageMeta | None = None,
        is_coordinator: bool = False,
    ) -> None:
        self._export = storage_meta.writer if isinstance(storage_meta, ExportMeta) else None
        super().set_up_planner(state_dict, storage_meta, is_coordinator)

    def create_local_plan(self) -> SavePlan:
        if self._export is None:
            return super().create_local_plan()
        self._describe()
        state = self.description.encode()
        self.plan = SavePlan([], storage_data=self._export.describe_state_dict(self.state_dict, state))
        return self.plan

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        if self._export is None:
            planned: tuple[list[SavePlan], Metadata] = super().create_global_plan(all_plans)
            return planned
        self.global_plan, self.metadata = all_plans, Metadata({})
        return self.global_plan, self.metadata

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        if self._export is None:
            return super().finish_plan(new_plan)
        self.plan = new_plan
        return new_plan
