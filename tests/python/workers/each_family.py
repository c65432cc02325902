"""Runs on ranks: loads, resumes, exports, LoRA and adapters of the families beside MiniMax M3.

    torchrun --nproc-per-node N each_family.py CHECKPOINT UNEVEN_CHECKPOINT RESULT.json

RESULT.json gets, for each check below, what went wrong on which rank; an empty text if nothing did. The checkpoints are
not used.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import families
import pytest
import reference
import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checks import run_checks
from decoder_families import ALL
from families import FAMILIES, Family, expected_adapter, held, lora_of, native
from lora_forms import FORMS
from placements import held_indices, take
from shardwright.adapters import StateDictAdapter
from shared_folder import shared_folder
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard


@contextlib.contextmanager
def checkpoint_of(family: Family) -> Iterator[tuple[Path, families.Tensors]]:
    """A folder that all ranks see, with the checkpoint in "from"."""
    with shared_folder() as folder:
        if dist.get_rank() == 0:
            families.write(family, folder / "from")
        dist.barrier()
        yield folder, family.make(torch.Generator().manual_seed(0))


def placements_of(tensor: torch.Tensor, variant: int) -> list[Placement]:
    """Rows, the last dimension in a strided way, or both; small ones are replicas."""
    if tensor.dim() == 0:
        return [Replicate()]
    if variant == 0:
        return [Shard(0)]
    return [_StridedShard(tensor.dim() - 1, split_factor=3)]


def sharded(whole: families.Tensors, variant: int) -> families.Tensors:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("x",))
    state = {}
    for name, tensor in whole.items():
        placements = placements_of(tensor, variant)
        indices = held_indices(tensor.shape, mesh.shape, mesh.get_coordinate(), placements)
        part = take(tensor, indices).contiguous()
        state[name] = DTensor.from_local(
            part, mesh, placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
        )
    return state


def emptied(state: families.Tensors) -> families.Tensors:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def differing(found: families.Tensors, expected: families.Tensors) -> list[str]:
    def local(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    return [name for name in expected if not reference.same(local(found[name]), local(expected[name]))]


def loads(path: str, uneven: str) -> None:
    for family in ALL:
        with checkpoint_of(family) as (folder, tensors):
            for layout in family.layouts:
                for variant in (0, 1):
                    expected = sharded(native(family, layout, tensors), variant)
                    state = emptied(expected)
                    sw.load(state, folder / "from", layout=layout)
                    assert differing(state, expected) == [], (family.name, layout)
                    state = emptied(expected)
                    reader = sw.HuggingFaceStorageReader(folder / "from", cooperative=True)
                    dcp.load(state, storage_reader=reader, planner=sw.LoadPlanner(layout=layout))
                    assert differing(state, expected) == [], (family.name, layout)


def resumes(path: str, uneven: str) -> None:
    for family in FAMILIES[:2]:
        with checkpoint_of(family) as (folder, tensors):
            whole = native(family, "automodel", tensors)
            sw.save(sharded(whole, 0), folder / "saved")
            expected = sharded(whole, 1)
            state = emptied(expected)
            sw.load(state, folder / "saved")
            assert differing(state, expected) == [], family.name


def exports(path: str, uneven: str) -> None:
    for family in (family for family in ALL if not family.is_quantized):
        with checkpoint_of(family) as (folder, tensors):
            for layout in family.layouts:
                for variant in (0, 1):
                    state = sharded(native(family, layout, tensors), variant)
                    to = folder / f"{layout} {variant}"
                    sw.export(state, to, template=folder / "from", layout=layout)
                    kept = family.kept(layout, tensors)
                    assert differing(held(to), kept) == [] and held(to).keys() == kept.keys(), (
                        family.name,
                        layout,
                    )
                    dist.barrier()


def lora(path: str, uneven: str) -> None:
    for family in FAMILIES[:2]:
        is_stacked = family.model == "qwen3_5_moe"
        prefix = "model.language_model.layers.1." if is_stacked else "model.layers.1."
        whole = lora_of(prefix, torch.Generator().manual_seed(5))
        with checkpoint_of(family) as (folder, _):
            for layout in ("transformers", "huggingface"):
                to = folder / layout
                sw.save_lora(sharded(whole, 0), to, alpha=8.0, model=family.model, layout=layout)
                dist.barrier()
                assert differing(held(to), expected_adapter(whole, prefix, layout, is_stacked)) == []
                expected = sharded(whole, 1)
                state = emptied(expected)
                sw.load_lora(state, to)
                assert differing(state, expected) == [], (family.name, layout)


def lora_forms(path: str, uneven: str) -> None:
    """Adapters that have forms of their own; the expected files are made by torch alone."""
    for form in FORMS:
        whole = form.trainers()
        with checkpoint_of(FAMILIES[0]) as (folder, _):
            to = folder / "adapter"
            for variant in (0, 1):
                sw.save_lora(
                    sharded(whole, variant),
                    to,
                    alpha=8.0,
                    model=form.model,
                    layout=form.layout,
                    overwrite=variant > 0,
                )
                dist.barrier()
                expected_file = form.in_file(whole)
                assert held(to).keys() == expected_file.keys(), form.id
                assert differing(held(to), expected_file) == [], form.id
                expected = sharded(whole, 1 - variant)
                state = emptied(expected)
                sw.load_lora(state, to, model=form.model)
                assert differing(state, expected) == [], form.id
                dist.barrier()


def adapters(path: str, uneven: str) -> None:
    for family in ALL:
        with checkpoint_of(family) as (folder, tensors):
            for layout in family.layouts:
                expected = sharded(native(family, layout, tensors), 0)
                state = emptied(expected)
                needs_config = family.needs_config and layout == "torchtitan"
                adapter = StateDictAdapter(
                    family.model, layout=layout, checkpoint=folder / "from" if needs_config else None
                )
                if layout == "torchtitan" and family.name == "llama" and dist.get_world_size() > 2:
                    with pytest.raises(sw.PlanError, match="between heads"):  # of which there are two
                        adapter.to_hf(state, quantization=True, checkpoint=folder / "from")
                    continue
                if layout == "transformers" and family.name == "glm5_next" and dist.get_world_size() > 1:
                    # Its convolution joins three tensors along the dimension that is sharded.
                    with pytest.raises(ValueError, match="joins several HF tensors"):
                        adapter.to_hf(state, quantization=True, checkpoint=folder / "from")
                    continue
                hf = adapter.to_hf(state, quantization=True, checkpoint=folder / "from")
                dcp.load(hf, storage_reader=sw.HuggingFaceStorageReader(folder / "from"))
                found = adapter.from_hf(hf)
                assert differing(found, expected) == [], (family.name, layout)


if __name__ == "__main__":
    run_checks([loads, resumes, exports, lora, lora_forms, adapters])
