"""Planners of a caller's, before ours or derived from it, still see to their tensors when training resumes."""

from pathlib import Path
from typing import Any

import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from reference import differing
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner


class Timing(LoadPlanner):
    """Hands everything on."""

    def __init__(self, inner: LoadPlanner) -> None:
        self.inner = inner
        self.committed: list[str] = []

    def set_up_planner(self, *arguments: Any, **options: Any) -> None:
        self.inner.set_up_planner(*arguments, **options)

    def create_local_plan(self) -> Any:
        return self.inner.create_local_plan()

    def create_global_plan(self, plans: Any) -> Any:
        return self.inner.create_global_plan(plans)

    def finish_plan(self, plan: Any) -> Any:
        return self.inner.finish_plan(plan)

    def load_bytes(self, *arguments: Any) -> None:
        self.inner.load_bytes(*arguments)

    def resolve_bytes(self, *arguments: Any) -> Any:
        return self.inner.resolve_bytes(*arguments)

    def resolve_tensor(self, item: Any) -> torch.Tensor:
        return self.inner.resolve_tensor(item)

    def commit_tensor(self, item: Any, tensor: torch.Tensor) -> None:
        self.committed.append(item.dest_index.fqn)
        self.inner.commit_tensor(item, tensor)


class Counting(sw.LoadPlanner):
    committed: list[str]

    def commit_tensor(self, read_item: Any, tensor: torch.Tensor) -> None:
        self.committed.append(read_item.dest_index.fqn)
        super().commit_tensor(read_item, tensor)


def counting() -> Counting:
    planner = Counting()
    planner.committed = []
    return planner


class Dropping(Timing):
    """Makes a plan of its own of the items that it sees."""

    def create_local_plan(self) -> Any:
        return LoadPlan(self.inner.create_local_plan().items)


class Choosing(sw.LoadPlanner):
    def create_local_plan(self) -> LoadPlan:
        return LoadPlan([item for item in super().create_local_plan().items if item.dest_index.fqn != "b"])


STATE = {"a": torch.randn(6, 10), "b": torch.randn(3).to(torch.bfloat16), "complex": torch.full((2,), 1 + 2j)}


@pytest.mark.parametrize("make", [lambda: Timing(sw.LoadPlanner()), counting], ids=["wrapped", "derived"])
def test_every_tensor_is_loaded_and_seen(make: Any, tmp_path: Path):
    sw.save({**STATE, "step": 3}, tmp_path)
    state: dict[str, Any] = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()} | {"step": 0}
    planner = make()
    dcp.load(state, storage_reader=sw.ShardedStorageReader(tmp_path), planner=planner, no_dist=True)
    assert state.pop("step") == 3
    assert differing(state, STATE) == []
    assert sorted(planner.committed) == sorted(STATE)


def test_a_plan_that_lost_its_transfers_is_refused(tmp_path: Path):
    sw.save(STATE, tmp_path)
    state = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}
    with pytest.raises(CheckpointException, match="Dropping.*planner_data"):
        dcp.load(
            state,
            storage_reader=sw.ShardedStorageReader(tmp_path),
            planner=Dropping(sw.LoadPlanner()),
            no_dist=True,
        )
    assert all(bool((tensor == 0).all()) for tensor in state.values())


def test_a_planner_may_choose_items(tmp_path: Path):
    sw.save(STATE, tmp_path)
    state = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}
    dcp.load(state, storage_reader=sw.ShardedStorageReader(tmp_path), planner=Choosing(), no_dist=True)
    assert differing(state, STATE | {"b": torch.zeros_like(STATE["b"])}) == []
