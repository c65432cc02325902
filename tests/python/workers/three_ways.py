"""Runs on ranks: every way of loading, compared with the reference on every rank.

    torchrun --nproc-per-node N three_ways.py CHECKPOINT UNEVEN_CHECKPOINT RESULT.json

The ways are `sw.LoadPlanner` with our reader, the same with torch's, and `to_hf(quantization=True)`, `dcp.load` with
either reader, `from_hf`. RESULT.json gets, for each check below, what went wrong on which rank; an empty text if
nothing did.
"""

import functools
from collections.abc import Callable

import reference
import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checks import run_checks
from destinations import Destination
from hf_state import configs
from placements import experts_and_fsdp, held_indices, is_grouped, take
from shardwright.models.minimax_m3_vl.state_dict_adapter import MiniMaxM3VLStateDictAdapter
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader as TorchReader
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

Sd = dict[str, torch.Tensor]
ShardingOf = Callable[[str, torch.Tensor], tuple[DeviceMesh, list[Placement]]]

whole_natives = functools.cache(reference.native)


def by_planner(reader) -> Callable[[Sd, str], None]:
    def load(state: Sd, path: str) -> None:
        dcp.load(state, storage_reader=reader(path), planner=sw.LoadPlanner())

    return load


def by_adapter(reader) -> Callable[[Sd, str], None]:
    def load(state: Sd, path: str) -> None:
        experts = next(tensor.shape[0] for fqn, tensor in state.items() if is_grouped(fqn))
        adapter = MiniMaxM3VLStateDictAdapter(*configs(experts), None)
        hf = adapter.to_hf(state, quantization=True, checkpoint=path)
        dcp.load(hf, storage_reader=reader(path))
        native = adapter.from_hf(hf)
        assert native.keys() == state.keys()
        assert [fqn for fqn in state if native[fqn] is not state[fqn]] == []

    return load


WAYS = {
    "LoadPlanner, our reader": by_planner(sw.HuggingFaceStorageReader),
    "LoadPlanner, torch's reader": by_planner(TorchReader),
    "adapter, our reader": by_adapter(sw.HuggingFaceStorageReader),
    "adapter, torch's reader": by_adapter(TorchReader),
}


def check_every_way(path: str, sharding_of: ShardingOf) -> None:
    parts = {}
    for fqn, whole in whole_natives(path).items():
        mesh, placements = sharding_of(fqn, whole)
        coordinate = mesh.get_coordinate()
        if coordinate is None:
            local = torch.empty(0, dtype=whole.dtype)  # of which DTensor wants as many dimensions as it has
            parts[fqn] = mesh, placements, local.reshape([0] * whole.dim())
        else:
            held = held_indices(whole.shape, mesh.shape, coordinate, placements)
            parts[fqn] = mesh, placements, take(whole, held)
    for way, load in WAYS.items():
        destinations, state = {}, {}
        for fqn, (mesh, placements, local) in parts.items():
            whole = whole_natives(path)[fqn]
            destinations[fqn] = Destination(local.shape, local.dtype)
            state[fqn] = DTensor.from_local(
                destinations[fqn].tensor, mesh, placements, run_check=False, shape=whole.shape,
                stride=whole.stride(),
            )  # fmt: skip
        load(state, path)
        wrong = [fqn for fqn, (_, _, local) in parts.items() if not destinations[fqn].holds(local)]
        assert wrong == [], (way, wrong)


def expert_parallel(path: str, uneven: str) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("ep",))
    for checkpoint in (path, uneven):
        check_every_way(checkpoint, lambda fqn, tensor: (mesh, [Shard(0)]))


def expert_parallel_with_fsdp_on_dimension_1(path: str, uneven: str) -> None:
    world = dist.get_world_size()
    for checkpoint in (path, uneven):
        check_every_way(checkpoint, experts_and_fsdp(world // min(world, 2)))


def uneven_shards(path: str, uneven: str) -> None:
    """Over the first three of four ranks: 16 experts as 6, 6 and 4, and only vectors on the last rank."""
    world = dist.get_world_size()
    everyone = init_device_mesh("cpu", (world,), mesh_dim_names=("fsdp",))
    three = DeviceMesh("cpu", list(range(min(3, world))), mesh_dim_names=("ep",))

    def sharding(fqn: str, tensor: torch.Tensor) -> tuple[DeviceMesh, list[Placement]]:
        if tensor.dim() == 1:
            return everyone, [Replicate()]
        return three, [Shard(1 if tensor.dim() == 2 else 0)]

    for checkpoint in (path, uneven):
        check_every_way(checkpoint, sharding)


CHECKS = [expert_parallel, expert_parallel_with_fsdp_on_dimension_1, uneven_shards]


if __name__ == "__main__":
    run_checks(CHECKS)
