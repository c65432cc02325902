"""Planners of a caller's, before ours or derived from it, still see to their tensors when training resumes."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from reference import differing
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint import HuggingFaceStorageReader as TorchReader
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


# --- readers that derive from ours ---------------------------------------------------------------------------------


class Hiding(sw.ShardedStorageReader):
    def read_metadata(self, *arguments: Any, **options: Any) -> Any:
        found = super().read_metadata(*arguments, **options)
        shown = {name: stored for name, stored in found.state_dict_metadata.items() if name != "b"}
        return dataclasses.replace(found, state_dict_metadata=shown)


class Copying(sw.HuggingFaceStorageReader):
    def read_metadata(self) -> Any:
        return dataclasses.replace(super().read_metadata())


def test_a_derived_reader_may_hide_tensors(tmp_path: Path):
    sw.save(STATE, tmp_path)
    state = {name: torch.zeros_like(tensor) for name, tensor in STATE.items() if name != "b"}
    dcp.load(state, storage_reader=Hiding(tmp_path), no_dist=True)
    assert differing(state, {name: STATE[name] for name in state}) == []
    with pytest.raises(CheckpointException, match="b"):
        dcp.load({"b": torch.zeros_like(STATE["b"])}, storage_reader=Hiding(tmp_path), no_dist=True)


def test_a_derived_reader_may_hand_over_a_copy(tiny: Path):
    whole, found = sw.empty_state_dict(tiny), sw.empty_state_dict(tiny)
    sw.load(whole, tiny)
    dcp.load(found, storage_reader=Copying(tiny), planner=sw.LoadPlanner(), no_dist=True)
    assert differing(found, whole) == []


# --- a planner that is used again ----------------------------------------------------------------------------------


class ScalesFirst(TorchReader):
    def read_data(self, plan: LoadPlan, planner: Any) -> Any:
        items = sorted(plan.items, key=lambda item: item.dest_index.index % 3, reverse=True)
        return super().read_data(dataclasses.replace(plan, items=items), planner)


class FailingBeforeScales(TorchReader):
    def read_data(self, plan: LoadPlan, planner: Any) -> Any:
        super().read_data(LoadPlan([item for item in plan.items if item.dest_index.index % 3 == 0]), planner)
        raise OSError(5, "Input/output error")


def test_a_planner_forgets_the_parts_of_a_load_that_failed(tmp_path: Path):
    """Else the elements of the first checkpoint would be decoded with the scales of the second."""
    for seed in (1, 2):
        sw.generate(tmp_path / str(seed), "tiny", seed=seed)
    planner = sw.LoadPlanner()
    whole, found = (sw.empty_state_dict(tmp_path / "2") for _ in range(2))
    sw.load(whole, tmp_path / "2")
    with pytest.raises(CheckpointException, match="Input/output error"):
        dcp.load(found, storage_reader=FailingBeforeScales(tmp_path / "1"), planner=planner, no_dist=True)
    dcp.load(found, storage_reader=ScalesFirst(tmp_path / "2"), planner=planner, no_dist=True)
    assert differing(found, whole) == []
