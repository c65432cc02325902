"""Runs on ranks: loads and resumes from the address in REMOTE_ADDRESS, each compared with that of the files."""

import os
from pathlib import Path

import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checks import run_checks
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

ADDRESS = os.environ["REMOTE_ADDRESS"]


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def differing(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    return [
        name
        for name in expected
        if not torch.equal(
            local_of(state[name]).contiguous().view(torch.uint8),
            local_of(expected[name]).contiguous().view(torch.uint8),
        )
    ]


def empty(path: str) -> dict[str, torch.Tensor]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("shard",))
    state = sw.empty_state_dict(path, mesh)
    for tensor in state.values():
        local_of(tensor).fill_(7)
    return state


def loads(path: str, uneven: str) -> None:
    expected, state = empty(path), empty(path)
    sw.load(expected, path)
    report = sw.load(state, f"{ADDRESS}/checkpoint")
    assert differing(state, expected) == [] and report.files_remote > 0


def loads_through_dcp(path: str, uneven: str) -> None:
    expected, state = empty(path), empty(path)
    sw.load(expected, path)
    reader = sw.HuggingFaceStorageReader(f"{ADDRESS}/checkpoint")
    dcp.load(state, storage_reader=reader, planner=sw.LoadPlanner())
    assert differing(state, expected) == []


def loads_together(path: str, uneven: str) -> None:
    expected, state = empty(path), empty(path)
    sw.load(expected, path)
    sw.load(state, f"{ADDRESS}/checkpoint", cooperative=True)
    assert differing(state, expected) == []


def replicas_load_together(path: str, uneven: str) -> None:
    expected = sw.empty_state_dict(path)
    sw.load(expected, path)
    state = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    report = sw.load(state, f"{ADDRESS}/checkpoint", cooperative=True)
    assert differing(state, expected) == []
    assert report.cooperation == "through shared memory"


def resumes(path: str, uneven: str) -> None:
    """What one process has saved, on all ranks."""
    folder = Path(os.environ["REMOTE_FOLDER"], "run")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    whole = torch.arange(97 * 13, dtype=torch.float32).reshape(97, 13)
    if dist.get_rank() == 0:
        dcp.save({"w": whole, "step": 5}, storage_writer=sw.ShardedStorageWriter(folder), no_dist=True)
    dist.barrier()
    state = {"w": distribute_tensor(torch.zeros(97, 13), mesh, [Shard(0)]), "step": 0}
    reader = sw.ShardedStorageReader(f"{ADDRESS}/run")
    dcp.load(state, storage_reader=reader)
    same = torch.equal(state["w"].full_tensor(), whole)
    assert same and state["step"] == 5


def one_message_on_every_rank(path: str, uneven: str) -> None:
    """An object is missing that all ranks need."""
    state = empty(path)
    reader = sw.HuggingFaceStorageReader(f"{ADDRESS}/broken")
    caught = None
    try:
        dcp.load(state, storage_reader=reader, planner=sw.LoadPlanner())
    except CheckpointException as error:
        caught = error
    failed = [caught is not None and "s3://" in str(caught)]
    everywhere: list[bool] = [False] * dist.get_world_size()
    dist.all_gather_object(everywhere, failed[0])
    assert all(everywhere), caught


CHECKS = [
    loads,
    loads_through_dcp,
    loads_together,
    replicas_load_together,
    resumes,
    one_message_on_every_rank,
]

if __name__ == "__main__":
    run_checks([check for check in CHECKS if check.__name__ in os.environ["REMOTE_CHECKS"].split(",")])
