"""Runs on ranks: saves planned by sw.SavePlanner under `dcp.save`.

    torchrun --nproc-per-node N save_planning.py CHECKPOINT UNEVEN_CHECKPOINT RESULT.json

RESULT.json gets, for each check below, what went wrong on which rank; an empty text if nothing did.
"""

import pickle
import shutil
import tempfile
from pathlib import Path

import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checks import run_checks
from placements import held_indices, take
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

SHAPES = {"matrix": (23, 10), "cube": (5, 6, 7), "vector": (9,), "one": (1, 3)}


def shared_folder() -> Path:
    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(folder)
    return Path(folder[0])


def remove(folder: Path) -> None:
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(folder)


def whole(name: str) -> torch.Tensor:
    return torch.arange(float(torch.Size(SHAPES[name]).numel())).reshape(SHAPES[name]) + len(name)


def shardings(strided: bool = True):
    """Meshes of one and two dimensions with all kinds of placements for each tensor."""
    world = dist.get_world_size()
    flat = init_device_mesh("cpu", (world,))
    square = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("a", "b"))
    yield flat, dict.fromkeys(SHAPES, [Shard(0)])
    yield flat, dict.fromkeys(SHAPES, [Replicate()])
    yield (
        square,
        {
            "matrix": [Shard(0), Shard(1)],
            "cube": [Shard(1), Shard(1)],
            "vector": [Replicate(), Shard(0)],
            "one": [Shard(1), Replicate()],
        },
    )
    if strided:  # in pieces with gaps: two strips, of each a part
        yield (
            square,
            {
                "matrix": [Replicate(), _StridedShard(0, split_factor=2)],
                "cube": [_StridedShard(2, split_factor=3), Shard(0)],
                "vector": [_StridedShard(0, split_factor=2), Replicate()],
                "one": [Replicate(), Replicate()],
            },
        )


def state_of(mesh, placements, zero: bool = False) -> dict:
    tensors = {}
    for name, placement in placements.items():
        held = held_indices(SHAPES[name], tuple(mesh.shape), tuple(mesh.get_coordinate()), placement)
        local = take(whole(name), held).contiguous()
        tensors[name] = DTensor.from_local(
            torch.zeros_like(local) if zero else local,
            mesh,
            placement,
            run_check=False,
            shape=torch.Size(SHAPES[name]),
            stride=whole(name).stride(),
        )
    plain = torch.zeros(3) if zero else torch.ones(3)
    return {"model": tensors, "plain": plain, "step": 0 if zero else 11}


def facts(metadata) -> dict:
    return {
        fqn: None
        if isinstance(stored, BytesStorageMetadata)
        else (
            stored.size,
            stored.properties,
            sorted((tuple(c.offsets), tuple(c.sizes)) for c in stored.chunks if 0 not in c.sizes),
        )
        for fqn, stored in metadata.state_dict_metadata.items()
    }


def torch_loads_what_was_planned(path: str, uneven: str) -> None:
    """Saved with one planner for all, loaded whole by torch's own planner and reader."""
    folder = shared_folder()
    planner = sw.SavePlanner()
    for number, (mesh, placements) in enumerate(shardings()):
        for again in range(2):
            where = folder / f"{number}.{again}"
            dcp.save(state_of(mesh, placements), checkpoint_id=where, planner=planner)
            found = {"model": {name: torch.zeros(SHAPES[name]) for name in SHAPES}, "step": 0}
            dcp.load(found, checkpoint_id=where)
            assert all(torch.equal(found["model"][name], whole(name)) for name in SHAPES), (number, again)
            assert found["step"] == 11
    remove(folder)


def metadata_equals_torchs(path: str, uneven: str) -> None:
    folder = shared_folder()
    for number, (mesh, placements) in enumerate(shardings(strided=False)):
        state = state_of(mesh, placements)
        dcp.save(state, checkpoint_id=folder / f"ours.{number}", planner=sw.SavePlanner())
        dcp.save(state, checkpoint_id=folder / f"torch.{number}")
        ours, theirs = (
            dcp.FileSystemReader(folder / f"{who}.{number}").read_metadata() for who in ("ours", "torch")
        )
        assert facts(ours) == facts(theirs), number
        assert ours.planner_data == theirs.planner_data
    remove(folder)


def what_is_gathered_is_bytes(path: str, uneven: str) -> None:
    """A description on the first rank of the mesh, a few bytes on the others, hashes the second time."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    local = torch.zeros(2, 4)
    state = {f"layers.{i}.weight": DTensor.from_local(local, mesh, [Shard(0)]) for i in range(300)}
    folder = shared_folder()
    planner, sent = sw.SavePlanner(), []
    make = planner.create_local_plan

    def create_local_plan():
        plan = make()
        sent.append(len(pickle.dumps(plan)))
        return plan

    planner.create_local_plan = create_local_plan
    for number in range(2):
        dcp.save(state, checkpoint_id=folder / str(number), planner=planner)
    default = dcp.DefaultSavePlanner()
    default.set_up_planner(state)
    of_torch = len(pickle.dumps(default.create_local_plan()))
    assert sent[0] < (of_torch / 5 if dist.get_rank() == 0 else 400), (sent, of_torch)
    assert sent[1] < 400, sent
    remove(folder)


def a_rank_that_differs_is_named_on_all(path: str, uneven: str) -> None:
    """Under dcp.save: the error on every rank names the tensor, and nothing is written."""
    mesh, placements = next(shardings())
    last = dist.get_world_size() - 1
    folder = shared_folder()
    planner = sw.SavePlanner()
    state = state_of(mesh, placements)
    if dist.get_rank() == last:
        bad = DTensor.from_local(
            torch.zeros(1, 4), mesh, [Replicate()], run_check=False, shape=torch.Size((1, 4)), stride=(4, 1)
        )
        state["model"]["one"] = bad
    try:
        dcp.save(state, checkpoint_id=folder / "bad", planner=planner)
    except CheckpointException as refused:
        text = str(refused)
        assert f"model.one: expected float32 [1, 3] as on rank 0, found float32 [1, 4] on rank {last}" in text
    else:
        raise AssertionError("not refused")
    assert not list(folder.rglob("*.distcp"))
    dcp.save(state_of(mesh, placements), checkpoint_id=folder / "good", planner=planner)
    remove(folder)


def a_hole_is_refused_on_all(path: str, uneven: str) -> None:
    state = {"plain": torch.zeros(3)}
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state["sharded"] = DTensor.from_local(torch.zeros(2, 3), mesh, [Shard(0)])
    if dist.get_rank() == 1:
        del state["sharded"]
    folder = shared_folder()
    try:
        dcp.save(state, checkpoint_id=folder, planner=sw.SavePlanner())
    except CheckpointException as refused:
        assert "sharded: " in str(refused) and "rank 1" in str(refused), refused
    else:
        raise AssertionError("not refused")
    remove(folder)


def a_rank_of_another_version_is_named_on_all(path: str, uneven: str) -> None:
    last = dist.get_world_size() - 1
    folder = shared_folder()
    planner = sw.SavePlanner()
    if dist.get_rank() == last:
        make = planner.create_local_plan

        def create_local_plan():
            plan = make()
            told = plan.items.message  # a letter, then the state, which begins with its version
            plan.items.message = told[:2] + bytes([told[2] + 1]) + told[3:]
            return plan

        planner.create_local_plan = create_local_plan
    try:
        dcp.save({"w": torch.zeros(3)}, checkpoint_id=folder, planner=planner)
    except CheckpointException as refused:
        assert f"rank {last}: " in str(refused) and "found version 2" in str(refused), refused
    else:
        raise AssertionError("not refused")
    remove(folder)


CHECKS = [
    torch_loads_what_was_planned,
    metadata_equals_torchs,
    what_is_gathered_is_bytes,
    a_rank_that_differs_is_named_on_all,
    a_hole_is_refused_on_all,
    a_rank_of_another_version_is_named_on_all,
]


if __name__ == "__main__":
    run_checks(CHECKS)
