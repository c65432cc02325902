"""Loads a checkpoint with torch alone: run it where importing shardwright raises.

    python tests/python/workers/torch_alone.py PATH EXPECTED RANKS [PLACEMENT]

EXPECTED is what torch.save wrote of the state, whole. The tensors of the state are loaded as DTensors, sharded along
PLACEMENT, where they have such a dimension; with one rank as plain tensors.
"""

import os
import sys
import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from nested_states import differing, filled
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor


def load(rank: int, ranks: int, path: str, expected_path: str, dimension: int, folder: str) -> None:
    torch.set_num_threads(1)
    expected = torch.load(expected_path, weights_only=False)
    if ranks == 1:
        state = filled(expected, lambda v: torch.zeros_like(v) if isinstance(v, torch.Tensor) else None)
        dcp.load(state, checkpoint_id=path)
        assert differing(state, expected) == []
        return
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))

    def empty(value):
        if not isinstance(value, torch.Tensor):
            return None
        whole = torch.zeros_like(value)
        can = value.dim() > dimension and value.dtype in (torch.float32, torch.bfloat16)  # that Gloo sends
        return distribute_tensor(whole, mesh, [Shard(dimension)]) if can else whole

    state = filled(expected, empty)
    dcp.load(state, checkpoint_id=path)
    assert differing(state, expected) == []
    dist.destroy_process_group()
    os._exit(0)  # Gloo's thread may abort an interpreter that ends


if __name__ == "__main__":
    path, expected, ranks, dimension = *sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4])
    with tempfile.TemporaryDirectory() as folder:
        if ranks == 1:
            load(0, 1, path, expected, dimension, folder)
        else:
            arguments = (ranks, path, expected, dimension, folder)
            mp.start_processes(load, arguments, nprocs=ranks, start_method="fork")  # torch is imported once
    sys.stdout.flush()
    os._exit(0)  # Gloo's thread may abort an interpreter that ends
