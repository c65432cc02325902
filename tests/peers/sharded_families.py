"""Runs under torchrun: loads tiny checkpoints into sharded tensors, and says which differ from what transformers loads.

    torchrun --nproc-per-node N sharded_families.py FOLDER

FOLDER holds, for each checkpoint, a folder and beside it NAME.safetensors, transformers' state dict; RANK.txt gets the
names of tensors that are not the same.
"""

import os
import sys
from pathlib import Path

import shardwright as sw
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor


def differing(path: Path, whole: dict[str, torch.Tensor], dimension: int, mesh: DeviceMesh) -> list[str]:
    expected = {
        name: distribute_tensor(
            tensor,
            mesh,
            [Shard(dimension % tensor.dim()) if tensor.dim() else Replicate()],
            src_data_rank=None,
        )
        for name, tensor in whole.items()
    }
    state = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    sw.load(state, path, layout="transformers")
    return [
        f"{path.name}, dimension {dimension}: {name}"
        for name in expected
        if not torch.equal(
            state[name].to_local().contiguous().view(torch.uint8),
            expected[name].to_local().contiguous().view(torch.uint8),
        )
    ]


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    wrong = []
    for saved in sorted(folder.glob("*.safetensors")):
        for dimension in (0, -1):  # experts, and what a matrix takes in
            wrong += differing(saved.with_suffix(""), load_file(saved), dimension, mesh)
    (folder / f"{dist.get_rank()}.txt").write_text("\n".join(wrong))
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
