"""Runs on ranks: `dcp.load` of every kind of sharding, each compared with the reference on every rank.

    torchrun --nproc-per-node N dcp_load.py CHECKPOINT UNEVEN_CHECKPOINT RESULT.json

RESULT.json gets, for each check below, what went wrong on which rank; an empty text if nothing did.
"""

import reference
import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checks import run_checks
from destinations import Destination
from placements import bytes_held, experts_and_fsdp, held_indices, take
from torch import nn
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement


def dcp_load(state: dict[str, torch.Tensor], path: str, **options) -> "sw.LoadReport":
    reader = sw.HuggingFaceStorageReader(path, **options)
    dcp.load(state, storage_reader=reader, planner=sw.LoadPlanner())
    return reader.report


def check_sharded(path: str, sharding_of, **options) -> "sw.LoadReport":
    """`sharding_of(fqn, tensor)` is the mesh and the placements of a tensor, or None for a plain one."""
    expected = reference.native(path)
    checkpoint = reference.read_checkpoint(path)
    parts = reference.native_parts(checkpoint)
    destinations, slices, state, needed = {}, {}, {}, 0
    for fqn, whole in expected.items():
        mesh, placements = sharding_of(fqn, whole) or (None, [])
        held = held_indices(
            whole.shape, mesh.shape if mesh else (), mesh.get_coordinate() if mesh else (), placements
        )
        slices[fqn] = take(whole, held)
        destinations[fqn] = Destination(slices[fqn].shape, whole.dtype)
        state[fqn] = destinations[fqn].tensor
        if mesh:
            state[fqn] = DTensor.from_local(
                state[fqn], mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
            )
        needed += bytes_held(parts[fqn], checkpoint, held)
    report = dcp_load(state, path, **options)
    assert [fqn for fqn in slices if not destinations[fqn].holds(slices[fqn])] == []
    assert report.bytes_needed == needed
    return report


def expert_parallel(path: str, uneven: str) -> None:
    """Experts and matrices on dimension 0, vectors replicated, what has no dimension and the biases plain."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("ep",))

    def sharding(fqn: str, tensor: torch.Tensor) -> tuple[DeviceMesh, list[Placement]] | None:
        if tensor.dim() >= 2:
            return mesh, [Shard(0)]
        return None if fqn.endswith("bias") else (mesh, [Replicate()])

    check_sharded(path, sharding)
    check_sharded(uneven, sharding)


def expert_parallel_with_fsdp(path: str, uneven: str) -> None:
    """Experts on dimension 0 over `ep` and on dimension 1 over `ep_shard`, all else over all ranks."""
    for ep in (1, 2, dist.get_world_size()):
        for checkpoint in (path, uneven):
            check_sharded(checkpoint, experts_and_fsdp(ep))


class Part(nn.Module):
    """A module for the sake of its parameters' names."""


def module_of(tensors: dict[str, torch.Tensor]) -> nn.Module:
    root = Part()
    for fqn, tensor in tensors.items():
        module = root
        *parents, leaf = fqn.split(".")
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, Part())
            module = module._modules[parent]
        if leaf == "e_score_correction_bias":
            module.register_buffer(leaf, torch.zeros_like(tensor))
        else:
            module.register_parameter(leaf, nn.Parameter(torch.zeros_like(tensor)))
    return root


def fsdp2(path: str, uneven: str) -> None:
    """`fully_shard` of each layer and of the rest: loading its state dict fills the module's parameters."""
    for checkpoint in (path, uneven):
        expected = reference.native(checkpoint)
        model = module_of(expected)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layers in ("model.layers", "model.mtp.layers"):
            for layer in model.get_submodule(layers).children():
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        dcp_load(model.state_dict(), checkpoint)
        found = dict(model.named_parameters()) | dict(model.named_buffers())
        assert found.keys() == expected.keys()
        for fqn, tensor in found.items():
            whole = expected[fqn]
            if isinstance(tensor, DTensor):
                held = held_indices(whole.shape, mesh.shape, mesh.get_coordinate(), list(tensor.placements))
                assert reference.same(tensor.to_local().detach(), take(whole, held)), fqn
            else:
                assert reference.same(tensor, whole), fqn


def pipeline(path: str, uneven: str) -> None:
    """Each rank holds other tensors than the next."""
    expected = reference.native(path)
    mine = {fqn: expected[fqn] for fqn in sorted(expected)[dist.get_rank() :: dist.get_world_size()]}
    destinations = {fqn: Destination(whole.shape, whole.dtype) for fqn, whole in mine.items()}
    dcp_load({fqn: destinations[fqn].tensor for fqn in mine}, path)
    assert [fqn for fqn in mine if not destinations[fqn].holds(mine[fqn])] == []


def one_rank_asks_for_a_wrong_shape(path: str, uneven: str) -> None:
    """All ranks get the exception, which names the rank, and nobody's memory has changed."""
    expected = reference.native(path)
    destinations = {fqn: Destination(whole.shape, whole.dtype) for fqn, whole in expected.items()}
    last = dist.get_world_size() - 1
    if dist.get_rank() == last:
        destinations["model.norm.weight"] = Destination((3,), torch.float32)
    try:
        dcp_load({fqn: destination.tensor for fqn, destination in destinations.items()}, path)
    except CheckpointException as refused:
        assert list(refused.failures) == [last], refused
        error = refused.failures[last][0]
        assert isinstance(error, sw.PlanError) and "model.norm.weight" in str(error), error
    else:
        raise AssertionError("not refused")
    assert [fqn for fqn in destinations if not destinations[fqn].untouched()] == []


CHECKS = [
    expert_parallel,
    expert_parallel_with_fsdp,
    fsdp2,
    pipeline,
    one_rank_asks_for_a_wrong_shape,
]


if __name__ == "__main__":
    run_checks(CHECKS)
