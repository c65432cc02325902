"""Runs on ranks: encoded weights that stay packed, loaded and written back by several ranks.

    torchrun --nproc-per-node N packed.py CHECKPOINT UNEVEN_CHECKPOINT RESULT.json

CHECKPOINT is a folder with a checkpoint for each of `MODELS`, and one of gpt-oss. The other is not used.
"""

from collections.abc import Iterator
from pathlib import Path

import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checks import run_checks
from packed_models import MODELS, PackedModel, Tensors, differing, held, packed_gpt_oss
from placements import held_indices, take
from shared_folder import shared_folder
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor


def expected_of(path: Path, model: PackedModel | None) -> Tensors:
    stored = held(path)
    return packed_gpt_oss(stored, "automodel") if model is None else model.packed(stored, "automodel")


def meshes() -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    world = dist.get_world_size()
    both = [(("ep", "ep_shard"), (2, 2))] if world == 4 else []
    return [(("shard",), (world,)), (("ep_shard",), (world,)), *both]


def check_parts(state: Tensors, expected: Tensors) -> None:
    wrong = []
    for name, whole in expected.items():
        tensor = state[name]
        assert isinstance(tensor, DTensor)
        mesh = tensor.device_mesh
        part = held_indices(
            whole.shape, tuple(mesh.shape), tuple(mesh.get_coordinate()), list(tensor.placements)
        )
        seen = whole.view(torch.uint8) if whole.dtype.itemsize == 1 else whole
        if differing({name: tensor.to_local()}, {name: take(seen, part).view(whole.dtype)}):
            wrong.append(name)
    assert wrong == [], wrong


def each_model(folder: str) -> Iterator[tuple[Path, Tensors]]:
    for model in [*MODELS, None]:
        path = Path(folder, "gpt_oss" if model is None else model.name)
        yield path, expected_of(path, model)


def load_all(folder: str, **how) -> None:
    for path, expected in each_model(folder):
        for names, shape in meshes():
            mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
            state = sw.empty_state_dict(path, mesh, dtype="packed")
            sw.load(state, path, dtype="packed", **how)
            check_parts(state, expected)


def alone(folder: str, _: str) -> None:
    load_all(folder)


def together(folder: str, _: str) -> None:
    load_all(folder, cooperative=True)


def by_dcp(folder: str, _: str) -> None:
    for path, expected in each_model(folder):
        mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("shard",))
        state = sw.empty_state_dict(path, mesh, dtype="packed")
        dcp.load(
            state,
            storage_reader=sw.HuggingFaceStorageReader(path),
            planner=sw.LoadPlanner(dtype="packed"),
        )
        check_parts(state, expected)


def exported(folder: str, _: str) -> None:
    """What was loaded is written as it was, byte for byte."""
    with shared_folder() as written:
        for path, _expected in each_model(folder):
            for number, (names, shape) in enumerate(meshes()):
                mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
                state = sw.empty_state_dict(path, mesh, dtype="packed")
                sw.load(state, path, dtype="packed")
                to = written / f"{path.name}-{number}"
                sw.export(state, to, template=path)
                if dist.get_rank() == 0:
                    before, after = held(path), held(to)
                    assert after.keys() == before.keys()
                    assert differing(after, before) == [], path.name
                dist.barrier()


def resumed(folder: str, _: str) -> None:
    """Saved by shards of one dimension, resumed by shards of the other."""
    with shared_folder() as written:
        for path, expected in each_model(folder):
            world = dist.get_world_size()
            state = sw.empty_state_dict(
                path, init_device_mesh("cpu", (world,), mesh_dim_names=("shard",)), dtype="packed"
            )
            sw.load(state, path, dtype="packed")
            sw.save(state, written / f"{path.name}-saved")
            other = sw.empty_state_dict(
                path, init_device_mesh("cpu", (world,), mesh_dim_names=("ep_shard",)), dtype="packed"
            )
            sw.load(other, written / f"{path.name}-saved")
            check_parts(other, expected)


if __name__ == "__main__":
    run_checks([alone, together, by_dcp, exported, resumed])
