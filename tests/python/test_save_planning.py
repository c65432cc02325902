"""Planning a save over many ranks, in one process, against torch's own planner."""

import dataclasses
import io
import itertools
import pickle
import re
from types import SimpleNamespace
from typing import Any

import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from shardwright import _core
from shardwright.dcp import save_planner
from shardwright.dcp.flat_state import flatten
from shardwright.dcp.planned_metadata import PlannedMetadata
from shardwright.dcp.save_description import holding_of_items
from torch.distributed.checkpoint._dedup_save_plans import dedup_save_plans
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.default_planner import (
    _validate_global_plan,
    create_default_global_save_plan,
)
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset


def coordinates(mesh: list[int]) -> list[list[int]]:
    return [list(index) for index in itertools.product(*map(range, mesh))]


def item(fqn: str, kind: WriteItemType, dtype: torch.dtype, shape, offset, size) -> WriteItem:
    chunk = ChunkStorageMetadata(torch.Size(offset), torch.Size(size))
    data = TensorWriteData(chunk, TensorProperties(dtype), torch.Size(shape))
    return WriteItem(MetadataIndex(fqn, offset), kind, tensor_data=data)


class Job:
    """A random state dict on a random mesh: for each rank its WriteItems as torch makes them, and its description."""

    def __init__(self, draw) -> None:
        self.mesh = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
        self.ranks = torch.Size(self.mesh).numel()
        sizes = st.lists(st.integers(1, 9), max_size=3)
        dtypes = st.sampled_from([torch.bfloat16, torch.float32, torch.float8_e5m2fnuz])
        self.on_mesh, self.values = [], []
        for number in range(draw(st.integers(1, 4))):
            shape, dtype = draw(sizes), draw(dtypes)
            dimensions = st.none() | st.integers(0, len(shape) - 1) if shape else st.none()
            cuts = draw(st.lists(dimensions, min_size=len(self.mesh), max_size=len(self.mesh)))
            placements = [Replicate() if cut is None else Shard(cut) for cut in cuts]
            core = [
                _core.Placement.replicate() if cut is None else _core.Placement.shard(cut) for cut in cuts
            ]
            self.on_mesh.append((f"mesh.{number}", dtype, shape, placements))
            name = str(dtype).removeprefix("torch.")
            self.values.append((f"mesh.{number}", 0, name, "strided", dtype.itemsize, 0, shape, core, []))
        self.held: list[list[WriteItem]] = [[] for _ in range(self.ranks)]
        for number in range(draw(st.integers(0, 3))):
            owners = draw(st.sets(st.integers(0, self.ranks - 1), min_size=1))
            shape, dtype = draw(sizes), draw(dtypes)
            for rank in owners:
                plain = item(f"plain.{number}", WriteItemType.TENSOR, dtype, shape, [0] * len(shape), shape)
                self.held[rank].append(plain)
                self.held[rank].append(WriteItem(MetadataIndex(f"object.{number}"), WriteItemType.BYTE_IO))

    def items(self, rank: int) -> list[WriteItem]:
        """As DTensors and plain tensors give them to torch's planner."""
        coordinate = coordinates(self.mesh)[rank]
        items = []
        for fqn, dtype, shape, placements in self.on_mesh:
            size, offset = _compute_local_shape_and_global_offset(shape, self.mesh, coordinate, placements)
            items.append(item(fqn, WriteItemType.SHARD, dtype, shape, offset, size))
        return items + self.held[rank]

    def described(self) -> list[bytes]:
        values = _core.encode_values(self.values, self.mesh, list(range(self.ranks)))
        states = []
        for rank, held in enumerate(self.held):
            own = holding_of_items(held, {})
            states.append(_core.encode_state(rank, [(values, None), (own.values, own.boxes)]))
        return states

    def enumerated(self) -> list[bytes]:
        return [enumerated(rank, self.items(rank)) for rank in range(self.ranks)]


def enumerated(rank: int, items: list[WriteItem]) -> bytes:
    holding = holding_of_items(items, {})
    return _core.encode_state(rank, [(holding.values, holding.boxes)])


def planned(states: list[bytes]) -> Any:
    """The cache of the coordinator that has planned a save of these states, which bring all their descriptions."""
    cache = _core.SavePlanCache()
    _core.answer([_core.tell(_core.told_state(state), _core.SavePlanCache()) for state in states], cache)
    return cache


def facts(metadata: Metadata) -> dict[str, object]:
    """Chunks as sets; those without elements, which torch lists and which hold nothing, left out."""
    return {
        fqn: None
        if isinstance(stored, BytesStorageMetadata)
        else (
            stored.size,
            stored.properties.dtype,
            sorted((tuple(c.offsets), tuple(c.sizes)) for c in stored.chunks if 0 not in c.sizes),
        )
        for fqn, stored in metadata.state_dict_metadata.items()
    }


def torchs_plan(items: list[list[WriteItem]]) -> tuple[list[SavePlan], Metadata]:
    return create_default_global_save_plan(dedup_save_plans([SavePlan(of_rank) for of_rank in items]))


@given(st.data())
def test_the_metadata_equals_that_of_torchs_planner(data):
    job = Job(data.draw)
    plans, expected = torchs_plan([job.items(rank) for rank in range(job.ranks)])
    assert _validate_global_plan(plans, expected) == []
    for states in (job.described(), job.enumerated()):
        cache = planned(states)
        assert facts(PlannedMetadata(cache.plan.metadata, True)) == facts(expected)
        written = [cache.items(rank) for rank in range(len(states))]
        names = sorted((value[0], offset) for of_rank in written for value, offset, _ in of_rank)
        expected_names = sorted(
            (item.index.fqn, tuple(item.index.offset or ()))
            for plan in plans
            for item in plan.items
            if not (item.tensor_data and 0 in item.tensor_data.chunk.sizes)
        )
        assert names == expected_names


@given(st.data())
def test_every_fault_that_torch_finds_is_found(data):
    """A shard moved, made longer or shorter, or dropped: on one rank or on all that hold it."""
    job = Job(data.draw)
    items = [job.items(rank) for rank in range(job.ranks)]
    candidates = [
        item
        for of_rank in items
        for item in of_rank
        if item.tensor_data and item.tensor_data.size and 0 not in item.tensor_data.chunk.sizes
    ]
    if not candidates:
        return
    victim = data.draw(st.sampled_from(candidates))
    everywhere = data.draw(st.booleans())
    chunk, shape = victim.tensor_data.chunk, victim.tensor_data.size
    dimension = data.draw(st.integers(0, len(shape) - 1))
    offset, size = list(chunk.offsets), list(chunk.sizes)
    what = data.draw(st.sampled_from(["moved", "longer", "shorter", "dropped"]))
    offset[dimension] += {"moved": -1}.get(what, 0)
    size[dimension] += {"longer": 1, "shorter": -1}.get(what, 0)
    if offset[dimension] < 0 or size[dimension] < 0 or offset[dimension] + size[dimension] > shape[dimension]:
        return
    if 0 in size and not everywhere:
        return  # one replica less, which torch takes for a hole if it has chosen that replica
    kind, properties = victim.type, victim.tensor_data.properties
    changed = item(victim.index.fqn, kind, properties.dtype, shape, offset, size)
    for of_rank in items:
        for at, held in enumerate(of_rank):
            if held is victim or (everywhere and held == victim):
                of_rank[at : at + 1] = [] if what == "dropped" else [changed]
                break
    try:
        faults = _validate_global_plan(*torchs_plan(items))
    except AssertionError:  # torch stops at a plain tensor that two ranks hold with other boxes
        faults = [f"key:{victim.index.fqn} "]
    if not faults:
        return
    with pytest.raises(sw.PlanError) as refused:
        planned([enumerated(rank, of_rank) for rank, of_rank in enumerate(items)])
    assert victim.index.fqn in str(refused.value)


def nested_state(zero: bool = False) -> dict[str, object]:
    def values(*shape: int) -> torch.Tensor:
        return torch.zeros(shape) if zero else torch.arange(float(torch.Size(shape).numel())).reshape(shape)

    return {
        "model": {"a.weight": values(3, 4), "b": values(5), "empty": torch.zeros(0, 3)},
        "optimizer": {"state": [{"step": values()}, 0 if zero else 7]},
    }


def test_one_process_saves_and_torch_loads(tmp_path):
    planner = sw.SavePlanner()
    dcp.save(nested_state(), checkpoint_id=tmp_path / "ours", planner=planner, no_dist=True)
    dcp.save(nested_state(), checkpoint_id=tmp_path / "torch", no_dist=True)
    ours, theirs = (dcp.FileSystemReader(tmp_path / who).read_metadata() for who in ("ours", "torch"))
    assert facts(ours) == facts(theirs)
    assert ours.planner_data == theirs.planner_data
    found = nested_state(zero=True)
    dcp.load(found, checkpoint_id=tmp_path / "ours", no_dist=True)
    expected = nested_state()
    assert torch.equal(found["model"]["a.weight"], expected["model"]["a.weight"])
    assert torch.equal(found["optimizer"]["state"][0]["step"], expected["optimizer"]["state"][0]["step"])
    assert found["optimizer"]["state"][1] == 7


KEYS = st.text("ab.1", min_size=1, max_size=3) | st.integers(0, 3)
LEAVES = st.sampled_from(
    [torch.zeros(2), 3, "text", None, (1, torch.ones(1)), torch.nn.Parameter(torch.ones(1))]
)
NESTED = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, NESTED, max_size=4))
def test_nested_state_dicts_are_flattened_as_torch_flattens_them(state):
    try:
        expected = flatten_state_dict(state)
    except ValueError as refused:
        with pytest.raises(ValueError, match=re.escape(str(refused))):
            flatten(state)
        return
    values, paths = flatten(state)
    assert list(values) == list(expected[0]) and all(values[name] is expected[0][name] for name in values)
    assert paths == expected[1]


def test_planned_metadata_travels_as_bytes_until_a_storage_writer_adds_to_it():
    planner = sw.SavePlanner()
    planner.set_up_planner(nested_state(), is_coordinator=True)
    _, metadata = planner.create_global_plan([planner.create_local_plan()])
    travelled = pickle.loads(pickle.dumps(metadata))
    assert isinstance(travelled, PlannedMetadata) and travelled.names == metadata.names
    assert facts(travelled) == facts(metadata) and travelled.planner_data == metadata.planner_data
    metadata.storage_data = {"where": "it lies"}
    stored = pickle.loads(pickle.dumps(metadata))
    assert type(stored) is Metadata and stored.storage_data == metadata.storage_data
    assert facts(stored) == facts(travelled) and stored.planner_data == travelled.planner_data
    assert dataclasses.replace(metadata, version="7").state_dict_metadata == metadata.state_dict_metadata


@pytest.mark.parametrize("change", ["dtype", "shape", "placement", "requires_grad", "local"])
def test_a_state_that_has_changed_is_described_anew(change: str, monkeypatch):
    """Facts of a DTensor, each of which makes another state of it."""
    spec = SimpleNamespace(
        mesh="mesh", placements=(Shard(0),), tensor_meta=SimpleNamespace(shape=torch.Size([4]))
    )

    class Stand(SimpleNamespace):
        pass

    monkeypatch.setattr(save_planner, "DTensor", Stand)
    local = torch.zeros(2)
    before = save_planner.signature_of(
        "w", Stand(_spec=spec, dtype=torch.float32, _local_tensor=local, requires_grad=False)
    )
    assert before == save_planner.signature_of(
        "w", Stand(_spec=spec, dtype=torch.float32, _local_tensor=torch.ones(2), requires_grad=False)
    )
    other = Stand(
        _spec=SimpleNamespace(**vars(spec)), dtype=torch.float32, _local_tensor=local, requires_grad=False
    )
    if change == "dtype":
        other.dtype = torch.bfloat16
    elif change == "shape":
        other._spec.tensor_meta = SimpleNamespace(shape=torch.Size([5]))
    elif change == "placement":
        other._spec.placements = (Replicate(),)
    elif change == "requires_grad":
        other.requires_grad = True
    else:
        other._local_tensor = torch.zeros(3)
    assert save_planner.signature_of("w", other) != before


def plan_once(planner: sw.SavePlanner, state: dict[str, object]) -> tuple[SavePlan, int]:
    """The finished plan of a job of one rank, and the bytes that dcp.save would gather."""
    planner.set_up_planner(state, is_coordinator=True)
    sent = pickle.dumps(planner.create_local_plan())
    plans, _ = planner.create_global_plan([pickle.loads(sent)])
    return planner.finish_plan(pickle.loads(pickle.dumps(plans[0]))), len(sent)


def test_an_unchanged_state_is_a_hash_and_a_changed_one_is_planned_anew():
    planner = sw.SavePlanner()
    many = {f"layers.{i}.weight": torch.zeros(4, 4) for i in range(200)}
    first, sent = plan_once(planner, many)
    second, sent_again = plan_once(planner, {name: tensor.clone() for name, tensor in many.items()})
    assert sorted(item.index.fqn for item in first.items) == sorted(many)
    assert second.items == first.items
    assert sent > 2000 and sent_again < 400
    changed, _ = plan_once(planner, many | {"layers.7.weight": torch.zeros(5, 4)})
    sizes = {item.index.fqn: item.tensor_data.size for item in changed.items}
    assert sizes["layers.7.weight"] == torch.Size([5, 4])
    fewer, _ = plan_once(planner, {"layers.0.weight": torch.zeros(4, 4)})
    assert [item.index.fqn for item in fewer.items] == ["layers.0.weight"]


def test_a_plan_that_failed_is_not_taken_for_the_one_before():
    planner = sw.SavePlanner()
    plan_once(planner, {"a": torch.zeros(3)})
    planner.set_up_planner({"a": torch.zeros(3), "b": torch.zeros(2)}, is_coordinator=True)
    plans, _ = planner.create_global_plan([planner.create_local_plan()])  # and the save stops here
    finished, _ = plan_once(planner, {"a": torch.zeros(3), "b": torch.zeros(2)})
    assert sorted(item.index.fqn for item in finished.items) == ["a", "b"]


def test_a_state_that_cannot_be_described_is_refused_every_time(monkeypatch):
    planner = sw.SavePlanner()
    plan_once(planner, {"a": torch.zeros(3)})

    def refuse(*_):
        raise sw.PlanError("this state cannot be saved")

    monkeypatch.setattr(save_planner, "describe_save", refuse)
    for _ in range(2):  # the second time, too, and not as the state of the save before
        planner.set_up_planner({"b": torch.zeros(2)}, is_coordinator=True)
        with pytest.raises(sw.PlanError, match="cannot be saved"):
            planner.create_local_plan()


def test_a_coordinator_that_knows_no_earlier_plan_says_so():
    planner = sw.SavePlanner()
    plan_once(planner, {"a": torch.zeros(3)})
    planner.set_up_planner({"a": torch.zeros(3)}, is_coordinator=False)
    sent = pickle.dumps(planner.create_local_plan())
    other = sw.SavePlanner()
    plans, _ = other.create_global_plan([pickle.loads(sent)])
    with pytest.raises(sw.PlanError, match="keep a planner of saves for each process group"):
        planner.finish_plan(pickle.loads(pickle.dumps(plans[0])))
    finished, _ = plan_once(planner, {"a": torch.zeros(3)})  # and the next save goes well
    assert [item.index.fqn for item in finished.items] == ["a"]


def test_a_storage_writer_may_look_at_the_items_on_the_coordinator():
    planner = sw.SavePlanner()
    planner.set_up_planner({"a": torch.zeros(3), "n": 3}, is_coordinator=True)
    local = planner.create_local_plan()
    assert [item.index.fqn for item in local.items] == ["a", "n"]
    plans, _ = planner.create_global_plan([pickle.loads(pickle.dumps(local))])
    assert [item.index.fqn for item in plans[0].items] == ["a", "n"]
    assert plans[0].items[0].tensor_data.properties == TensorProperties.create_from_tensor(torch.zeros(3))


def test_a_plan_that_a_storage_writer_made_anew_is_planned_as_it_is():
    planner = sw.SavePlanner()
    planner.set_up_planner({"a": torch.zeros(3), "b": torch.zeros(2)}, is_coordinator=True)
    local = planner.create_local_plan()
    plans, metadata = planner.create_global_plan([SavePlan([local.items[0]])])
    assert list(metadata.state_dict_metadata) == ["a"]
    assert [item.index.fqn for item in plans[0].items] == ["a"]


def test_a_state_of_another_version_is_refused_with_its_rank():
    states = [
        enumerated(rank, [item("a", WriteItemType.TENSOR, torch.float32, [3], [0], [3])]) for rank in range(3)
    ]
    told = [_core.tell(_core.told_state(state), _core.SavePlanCache()) for state in states]
    told[2] = told[2][:2] + bytes([told[2][2] + 1]) + told[2][3:]
    with pytest.raises(sw.CheckpointFormatError, match=r"rank 2: .*found version 2"):
        _core.answer(told, _core.SavePlanCache())


@pytest.mark.parametrize("cut", [0, 1, 10, -1])
def test_a_message_cut_short_is_refused(cut: int):
    state = enumerated(0, [item("a", WriteItemType.TENSOR, torch.float32, [3], [0], [3])])
    told = _core.tell(state, _core.SavePlanCache())
    with pytest.raises(sw.CheckpointFormatError, match="cut short|found version 0"):
        _core.answer([told[:cut]], _core.SavePlanCache())


def test_objects_are_saved_as_torch_saves_them():
    planner = sw.SavePlanner()
    finished, _ = plan_once(planner, {"settings": ("a", 3)})
    data = planner.resolve_data(finished.items[0])
    assert isinstance(data, io.BytesIO)
    data.seek(0)
    assert torch.load(data, weights_only=False) == ("a", 3)
