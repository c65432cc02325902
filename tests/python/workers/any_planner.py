"""Runs on ranks: torch's planner and our reader, for shards of a checkpoint of an unknown family.

    torchrun --nproc-per-node N any_planner.py CHECKPOINT IGNORED RESULT.json

What torchtitan does for DeepSeek V3: its adapter gives HF names to DTensors of the trainer's dtypes, and ``dcp.load``
fills them with its default planner.
"""

import reference
import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checks import run_checks
from destinations import Destination
from placements import held_indices, take
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard


def check(path: str, **options) -> None:
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    stored = reference.read_checkpoint(path)
    names = [name for name in stored if not name.endswith("_scale_inv")]
    for dtype in (torch.bfloat16, torch.float32):
        state, destinations, expected = {}, {}, {}
        for number, name in enumerate(names):
            whole = reference.decode(stored, name, dtype)
            placement = Replicate() if whole.dim() < 2 else [Shard(0), Shard(1), Replicate()][number % 3]
            held = held_indices(whole.shape, (world,), mesh.get_coordinate(), [placement])
            expected[name] = take(whole, held)
            destinations[name] = Destination(expected[name].shape, dtype)
            state[name] = DTensor.from_local(
                destinations[name].tensor,
                mesh,
                [placement],
                run_check=False,
                shape=whole.shape,
                stride=whole.stride(),
            )
        dcp.load(state, storage_reader=sw.HuggingFaceStorageReader(path, **options))
        assert [name for name in names if not destinations[name].holds(expected[name])] == []


def sharded(path: str, ignored: str) -> None:
    check(path)


def together(path: str, ignored: str) -> None:
    check(path, cooperative=True)


if __name__ == "__main__":
    run_checks([sharded, together])
