"""Adapters where an HF tensor is no box of one native tensor: rows in another order, several tensors joined in one."""

import json
from pathlib import Path

import pytest
import shardwright as sw
import torch
from decoder_families import ALL
from families import Tensors, native, random_tensor, write
from reference import differing
from safetensors.torch import save_file
from shardwright.adapters import StateDictAdapter
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

QUERY, KEY = 8, 4  # rows


def ling(path: Path) -> tuple[Tensors, Tensors]:
    """A checkpoint with [Q | K | V] in one matrix, and what the trainer holds of it."""
    generator = torch.Generator().manual_seed(1)
    fused = random_tensor(generator, QUERY + 2 * KEY, 6)
    outside = {"model.norm.weight": random_tensor(generator, 6)}
    hf = {"model.layers.0.attention.query_key_value.weight": fused} | outside
    q, k, v = fused.split([QUERY, KEY, KEY])
    names = {"q_proj": q, "k_proj": k, "v_proj": v}
    natives = {f"model.layers.0.self_attn.{name}.weight": part.contiguous() for name, part in names.items()}
    path.mkdir(exist_ok=True)
    save_file(hf, path / "model.safetensors")
    config = {
        "model_type": "bailing_moe_v2",
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
    }
    (path / "config.json").write_text(json.dumps(config))
    return hf, natives | outside


def test_parts_of_one_hf_tensor_are_joined(tmp_path: Path):
    hf, natives = ling(tmp_path)
    adapter = StateDictAdapter("bailing_moe_v2", checkpoint=tmp_path)
    found = adapter.to_hf(natives)
    assert differing(found, hf) == []
    assert adapter.get_hf_state_dict_keys(natives) == list(found)
    assert differing(adapter.from_hf(found), natives) == []


def test_a_request_is_loaded_into_the_trainers_own_tensors(tmp_path: Path):
    hf, natives = ling(tmp_path)
    state = {name: torch.zeros_like(tensor) for name, tensor in natives.items()}
    adapter = StateDictAdapter("bailing_moe_v2", checkpoint=tmp_path)
    asked = adapter.to_hf(state, for_checkpoint_load=True)
    for name, tensor in asked.items():
        tensor.copy_(hf[name])
    found = adapter.from_hf(asked)
    assert all(found[name] is state[name] for name in state if "_proj" in name)
    assert differing(state, natives) == []


def test_a_part_alone_is_refused_by_name(tmp_path: Path):
    _, natives = ling(tmp_path)
    adapter = StateDictAdapter("bailing_moe_v2", checkpoint=tmp_path)
    name = "model.layers.0.self_attn.k_proj.weight"
    with pytest.raises(sw.PlanError, match=r"query_key_value.*none of .*q_proj.*v_proj.*to_hf"):
        adapter.convert_single_tensor_to_hf(name, natives[name])
    del natives[name]
    with pytest.raises(sw.PlanError, match=r"query_key_value.*none of .*k_proj"):
        adapter.to_hf(natives)


def test_parts_of_several_dtypes_are_refused_by_name(tmp_path: Path):
    _, natives = ling(tmp_path)
    name = "model.layers.0.self_attn.k_proj.weight"
    adapter = StateDictAdapter("bailing_moe_v2", checkpoint=tmp_path)
    with pytest.raises(sw.PlanError, match=r"query_key_value.*one dtype.*bfloat16.*float32"):
        adapter.to_hf(natives | {name: natives[name].float()})


@pytest.fixture
def rope(tmp_path: Path) -> tuple[Tensors, Tensors, StateDictAdapter]:
    """A checkpoint's tensors, torchtitan's of them, and an adapter that knows the number of heads."""
    family = next(family for family in ALL if family.name == "llama")
    stored = write(family, tmp_path)
    adapter = StateDictAdapter("llama", layout="torchtitan", checkpoint=tmp_path)
    return stored, native(family, "torchtitan", stored), adapter


def test_one_tensor_with_its_rows_in_another_order_is_converted_alone(rope):
    stored, natives, adapter = rope
    name = "layers.1.attention.qkv_linear.wq.weight"
    ((hf_name, tensor),) = adapter.convert_single_tensor_to_hf(name, natives[name])
    assert hf_name == "model.layers.1.self_attn.q_proj.weight"
    assert tensor.is_contiguous() and torch.equal(tensor, stored[hf_name])


def test_a_tensor_that_is_not_contiguous_is_converted(rope):
    stored, natives, adapter = rope
    turned = {
        name: tensor.T.contiguous().T if tensor.dim() == 2 else tensor for name, tensor in natives.items()
    }
    assert differing(adapter.to_hf(turned), stored) == []


def on_a_mesh(tensor: torch.Tensor, ranks: int, rank: int, dimension: int) -> DTensor:
    """The shard of a rank of a mesh, of which this process is rank 0."""
    part = tensor.chunk(ranks, dimension)[rank].contiguous()
    mesh = DeviceMesh("cpu", list(range(ranks)), mesh_dim_names=("x",), _init_backend=False, _rank=rank)
    return DTensor.from_local(
        part, mesh, [Shard(dimension)], run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


@pytest.mark.parametrize("dimension", [0, 1])
@pytest.mark.parametrize("rank", [0, 1])
def test_shards_of_whole_heads_and_of_columns_are_converted(rope, dimension: int, rank: int):
    stored, natives, adapter = rope
    name = "layers.0.attention.qkv_linear.wq.weight"
    ((hf_name, tensor),) = adapter.convert_single_tensor_to_hf(
        name, on_a_mesh(natives[name], 2, rank, dimension)
    )
    assert isinstance(tensor, DTensor) and tensor.placements == (Shard(dimension),)
    assert torch.equal(tensor.to_local(), stored[hf_name].chunk(2, dimension)[rank])


def test_shards_that_end_within_a_head_are_refused_by_name(rope):
    _, natives, adapter = rope
    name = "layers.0.attention.qkv_linear.wq.weight"
    with pytest.raises(sw.PlanError, match=r"q_proj.weight.*between heads.*shardwright.export"):
        adapter.convert_single_tensor_to_hf(name, on_a_mesh(natives[name], 8, 0, 0))


def test_parts_are_joined_where_they_are_sharded_otherwise(tmp_path: Path):
    hf, natives = ling(tmp_path)
    adapter = StateDictAdapter("bailing_moe_v2", checkpoint=tmp_path)
    fused = "model.layers.0.attention.query_key_value.weight"
    columns = {name: on_a_mesh(tensor, 2, 1, 1) for name, tensor in natives.items() if "_proj" in name}
    found = adapter.to_hf(columns)[fused]
    assert found.placements == (Shard(1),) and torch.equal(found.to_local(), hf[fused][:, 3:])
    rows = {name: on_a_mesh(tensor, 2, 1, 0) for name, tensor in natives.items() if "_proj" in name}
    with pytest.raises(sw.PlanError, match="query_key_value.*shardwright.export"):
        adapter.to_hf(rows)
    rows["model.layers.0.self_attn.k_proj.weight"] = columns["model.layers.0.self_attn.k_proj.weight"]
    with pytest.raises(sw.PlanError, match="query_key_value.*sharded alike"):
        adapter.to_hf(rows)


def test_replicas_are_joined(tmp_path: Path):
    hf, natives = ling(tmp_path)
    mesh = DeviceMesh("cpu", [0, 1], mesh_dim_names=("x",), _init_backend=False, _rank=0)
    state = {
        name: DTensor.from_local(tensor, mesh, [Replicate()], run_check=False)
        for name, tensor in natives.items()
        if "_proj" in name
    }
    fused = "model.layers.0.attention.query_key_value.weight"
    found = StateDictAdapter("bailing_moe_v2", checkpoint=tmp_path).to_hf(state)[fused]
    assert torch.equal(found.to_local(), hf[fused])
