"""Runs on ranks: weights in the encodings of released checkpoints, each sharded in every way.

    torchrun --nproc-per-node N stored_weights.py CHECKPOINT UNEVEN_CHECKPOINT RESULT.json

The checkpoints are not used.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import reference
import shardwright as sw
import torch
import torch.distributed as dist
from checks import run_checks
from encoded import fp8_weights, packed_weights
from placements import held_indices, take
from safetensors.torch import load_file, save_file
from shared_folder import shared_folder
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard

GENERATOR = torch.Generator().manual_seed(2)
WEIGHTS = fp8_weights(GENERATOR) + packed_weights(GENERATOR)


@contextlib.contextmanager
def checkpoint() -> Iterator[Path]:
    """A folder that all ranks see, with all of the weights."""
    with shared_folder() as folder:
        if dist.get_rank() == 0:
            stored = {name: tensor for weight in WEIGHTS for name, tensor in weight.stored.items()}
            save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        dist.barrier()
        yield folder


def meshes() -> list[tuple[int, ...]]:
    world = dist.get_world_size()
    return [(world,)] + ([(2, 2)] if world == 4 else [])


def placements_of(mesh: tuple[int, ...], number: int, dims: int) -> list[Placement]:
    """Over one dimension or two; the number chooses."""
    if len(mesh) == 2:
        return [Shard(number % 3 % dims), Shard(number // 3 % dims)]
    last = dims - 1
    return [[Shard(0), Shard(last), _StridedShard(last, split_factor=3), Replicate()][number]]


def check_all(path: Path, cooperative: bool) -> None:
    for shape in meshes():
        mesh = init_device_mesh("cpu", shape)
        for number in range(4 if len(shape) == 1 else 9):
            expected, state = {}, {}
            for weight in WEIGHTS:
                whole = weight.decoded(torch.bfloat16)
                placements = placements_of(shape, number, whole.dim())
                held = held_indices(whole.shape, shape, tuple(mesh.get_coordinate()), placements)
                expected[weight.name] = take(whole, held)
                local = torch.full(expected[weight.name].shape, 7, dtype=torch.bfloat16)
                state[weight.name] = DTensor.from_local(
                    local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
                )
            sw.load(state, path, layout="huggingface", cooperative=cooperative)
            wrong = [name for name in state if not reference.same(state[name].to_local(), expected[name])]
            assert wrong == [], (shape, number, wrong)


def alone(*_: str) -> None:
    with checkpoint() as path:
        check_all(path, cooperative=False)


def together(*_: str) -> None:
    with checkpoint() as path:
        check_all(path, cooperative=True)


def exported(*_: str) -> None:
    """Loaded and written again, byte for byte, by parts that begin and end inside blocks, bytes and words."""
    with checkpoint() as path:
        for shape in meshes():
            mesh = init_device_mesh("cpu", shape)
            for number in range(4 if len(shape) == 1 else 9):
                state = {}
                for weight in WEIGHTS:
                    whole = weight.decoded(torch.bfloat16)
                    placements = placements_of(shape, number, whole.dim())
                    held = held_indices(whole.shape, shape, tuple(mesh.get_coordinate()), placements)
                    state[weight.name] = DTensor.from_local(
                        torch.zeros([len(indices) for indices in held], dtype=torch.bfloat16),
                        mesh,
                        placements,
                        run_check=False,
                        shape=whole.shape,
                        stride=whole.stride(),
                    )
                sw.load(state, path, layout="huggingface")
                to = path / f"to-{len(shape)}-{number}"
                sw.export(state, to, quantization="template", template=path, layout="huggingface")
                wrong = []
                if dist.get_rank() == 0:
                    stored = {
                        name: tensor
                        for file in to.glob("*.safetensors")
                        for name, tensor in load_file(file).items()
                    }
                    before = load_file(path / "model.safetensors")
                    assert stored.keys() == before.keys()
                    wrong = [
                        name
                        for name, tensor in before.items()
                        if not stored[name]
                        .reshape(-1)
                        .view(torch.uint8)
                        .equal(tensor.reshape(-1).view(torch.uint8))
                    ]
                assert wrong == [], (shape, number, wrong)
                dist.barrier()


if __name__ == "__main__":
    run_checks([alone, together, exported])
