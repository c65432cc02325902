"""Adapters ask for packed weights as files hold them, each with all that belongs to it, and decode what is loaded."""

from pathlib import Path

import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from packed_models import MODELS, PackedModel, Tensors, differing, gpt_oss, same_bytes
from placements import held_indices, take
from shardwright.adapters import StateDictAdapter
from shardwright.sharding import Sharding, sharding_in_file
from test_property import fake_mesh
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

FAMILIES = {"m3": "minimax_m3", "kimi": "kimi_k25", "deepseek_v4": "deepseek_v4", "": "deepseek_v3"}
CASES = [(model, layout) for model in MODELS for layout in model.natives if model.name != "m3_block_fp8"]
each = pytest.mark.parametrize("model, layout", CASES, ids=[f"{m.name}-{one}" for m, one in CASES])


def adapter_of(model: PackedModel, layout: str, path: Path) -> StateDictAdapter:
    family = next(family for start, family in FAMILIES.items() if model.name.startswith(start))
    return StateDictAdapter(family, layout=layout, checkpoint=path)


def decoded(path: Path, layout: str) -> Tensors:
    state = sw.empty_state_dict(path, layout=layout)
    sw.load(state, path, layout=layout)
    return state


def load_into(hf: Tensors, path: Path) -> None:
    dcp.load(hf, storage_reader=sw.HuggingFaceStorageReader(path), no_dist=True)


@each
def test_what_is_asked_for_is_what_files_hold(model: PackedModel, layout: str, tmp_path: Path):
    stored = model.write(tmp_path)
    expected = decoded(tmp_path, layout)
    adapter = adapter_of(model, layout, tmp_path)
    state = sw.empty_state_dict(tmp_path, layout=layout)
    hf = adapter.to_hf(state, quantization=True, checkpoint=tmp_path)
    assert {name: (t.dtype, t.shape) for name, t in hf.items()} == {
        name: (stored[name].dtype, stored[name].shape) for name in hf
    }
    weights = {name.rsplit(".", 1)[0] for name in hf}
    assert all(name in hf for name in stored if name.rsplit(".", 1)[0] in weights)  # every companion
    load_into(hf, tmp_path)
    assert differing(hf, {name: stored[name] for name in hf}) == []
    assert differing(adapter.from_hf(hf), expected) == []
    asked = {name: (dtype, tuple(shape)) for name, dtype, shape in sw.request_list(tmp_path, layout=layout)}
    assert asked.keys() == hf.keys()


@pytest.mark.parametrize("layout", ["automodel", "transformers", "torchtitan"])
def test_blocks_of_gpt_oss(layout: str, tmp_path: Path):
    stored = gpt_oss(tmp_path)
    adapter = StateDictAdapter("gpt_oss", layout=layout)
    hf = adapter.to_hf(sw.empty_state_dict(tmp_path, layout=layout), quantization=True, checkpoint=tmp_path)
    assert {name: (t.dtype, t.shape) for name, t in hf.items()} == {
        name: (t.dtype, t.shape) for name, t in stored.items()
    }
    load_into(hf, tmp_path)
    assert differing(adapter.from_hf(hf), decoded(tmp_path, layout)) == []


def test_nothing_loaded_into_packed_tensors_is_refused(tmp_path: Path):
    model = next(model for model in MODELS if model.name == "kimi_mxfp4")
    model.write(tmp_path)
    adapter = adapter_of(model, "automodel", tmp_path)
    hf = adapter.to_hf(sw.empty_state_dict(tmp_path), quantization=True, checkpoint=tmp_path)
    with pytest.raises(sw.PlanError, match=r"nothing has been loaded.*\n.*experts.*weight_packed"):
        adapter.from_hf(hf)


#: Sharded on experts, along HF's rows, along HF's columns (evenly in bytes, and not), on both.
MESHES = [
    (("ep",), (2,)),
    (("ep_shard",), (2,)),
    (("ep_shard",), (4,)),
    (("ep_shard",), (5,)),
    (("ep", "ep_shard"), (2, 2)),
]


#: Others are packed as one of these.
PACKINGS = [
    m for m in MODELS if m.name in ("kimi_k2_int4", "kimi_mxfp4", "m3_nvfp4", "nvfp4_of_compressed_tensors")
]


@pytest.mark.parametrize("names, shape", MESHES, ids=[f"{n}-{s}" for n, s in MESHES])
@pytest.mark.parametrize("model", PACKINGS, ids=lambda model: model.name)
def test_shards_of_experts_are_asked_for_and_decoded(
    model: PackedModel, names: tuple[str, ...], shape: tuple[int, ...], tmp_path: Path
):
    layout = "automodel"
    model.write(tmp_path)
    whole = decoded(tmp_path, layout)
    for rank in range(torch.Size(shape).numel()):
        with fake_mesh(shape, rank):
            mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
            adapter = adapter_of(model, layout, tmp_path)
            state = {
                name: tensor
                for name, tensor in sw.empty_state_dict(tmp_path, mesh, layout=layout).items()
                if ".experts." in name
            }
            hf = adapter.to_hf(state, quantization=True, checkpoint=tmp_path)
            load_into(hf, tmp_path)
            found = adapter.from_hf(hf)
            for name in state:
                tensor = found[name]
                assert isinstance(tensor, DTensor)
                part = held_indices(
                    whole[name].shape, shape, tuple(mesh.get_coordinate()), list(tensor.placements)
                )
                assert same_bytes(tensor.to_local(), take(whole[name], part)), (name, rank)


@pytest.mark.parametrize("name", ["gate_up_proj", "down_proj"])
def test_shards_of_blocks(name: str, tmp_path: Path):
    """Stored [E, OUT, G, 16], held [E, IN, OUT] and cut along each dimension."""
    gpt_oss(tmp_path)
    layout, fqn = "transformers", f"model.layers.0.mlp.experts.{name}"
    whole = decoded(tmp_path, layout)[fqn]
    for placements in ([Shard(0)], [Shard(1)], [Shard(2)], [Replicate()]):
        for rank in range(3):
            with fake_mesh((3,), rank) as mesh:
                part = held_indices(whole.shape, (3,), (rank,), placements)
                local = torch.zeros([len(indices) for indices in part], dtype=torch.bfloat16)
                tensor = DTensor.from_local(
                    local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
                )
                adapter = StateDictAdapter("gpt_oss", layout=layout, checkpoint=tmp_path)
                state = {fqn: tensor, "model.norm.weight": torch.zeros(96, dtype=torch.bfloat16)}
                hf = adapter.to_hf(state, quantization=True, checkpoint=tmp_path)
                load_into(hf, tmp_path)
                found = adapter.from_hf(hf)[fqn]
                assert same_bytes(found.to_local(), take(whole, part)), (placements, rank)


def test_a_strided_shard_which_torchs_planners_take_for_one_box(tmp_path: Path):
    gpt_oss(tmp_path)
    fqn = "model.layers.0.mlp.experts.down_proj"
    with fake_mesh((2,), 0) as mesh:
        local = torch.zeros(4, 64, 48, dtype=torch.bfloat16)
        tensor = DTensor.from_local(
            local,
            mesh,
            [_StridedShard(2, split_factor=2)],
            run_check=False,
            shape=(4, 64, 96),
            stride=(6144, 96, 1),
        )
        adapter = StateDictAdapter("gpt_oss", layout="transformers", checkpoint=tmp_path)
        with pytest.raises(ValueError, match=f"{fqn}: expected a shard that is one box, found 2"):
            adapter.to_hf({fqn: tensor}, quantization=True, checkpoint=tmp_path)


def test_a_cut_inside_a_word_gives_each_rank_all_words():
    with fake_mesh((2, 2), 0) as mesh:
        elements = Sharding((8, 48), mesh, (Shard(0), Shard(1)))
        assert sharding_in_file(elements, (8, 6)).placements == (
            Shard(0),
            Shard(1),
        )  # 24 elements are 3 words
        odd = Sharding((8, 40), mesh, (Shard(0), Shard(1)))
        assert sharding_in_file(odd, (8, 5)).placements == (Shard(0), Replicate())
        assert sharding_in_file(odd, (8, 20)).placements == (Shard(0), Shard(1))
        both = Sharding((8, 48), mesh, (Shard(1), Shard(1)))
        assert sharding_in_file(both, (8, 6)).placements == (Replicate(), Replicate())
        blocks = Sharding((8, 4, 64), mesh, (Shard(0), Shard(2)))
        assert sharding_in_file(blocks, (8, 4, 2, 16)).placements == (Shard(0), Shard(2))
