"""LoRA tensors through our text adapter are those of nemo-automodel's, both ways. Run by `make compare`."""

from types import SimpleNamespace

import pytest
import torch
from nemo_automodel.components.models.minimax_m2.state_dict_adapter import MiniMaxM2StateDictAdapter
from nemo_automodel.components.models.minimax_m3_vl.state_dict_adapter import (
    MiniMaxM3StateDictAdapter as Theirs,
)
from nemo_automodel.components.models.qwen3_moe.state_dict_adapter import Qwen3MoeStateDictAdapter
from shardwright import PlanError
from shardwright.adapters import StateDictAdapter
from shardwright.models.minimax_m3_vl.state_dict_adapter import MiniMaxM3StateDictAdapter as Ours

EXPERTS, HIDDEN, INTER, RANK = 3, 10, 6, 2


def adapters() -> tuple[Theirs, Ours]:
    text, moe, backend = facts()
    return Theirs(text, moe, backend), Ours(text, moe, backend)


def facts() -> tuple[SimpleNamespace, SimpleNamespace, SimpleNamespace]:
    """What nemo-automodel's adapters are made from."""
    text = SimpleNamespace(num_mtp_modules=0)
    moe = SimpleNamespace(
        n_routed_experts=EXPERTS,
        moe_inter_dim=INTER,
        dim=HIDDEN,
        expert_activation="swiglu",
        expert_bias=False,
    )
    return text, moe, SimpleNamespace(dispatcher="torch", experts="torch")


def trainers_tensors(prefix: str) -> dict[str, torch.Tensor]:
    stack, layer = "model.layers.1.mlp.experts.lora_", "model.layers.1."
    shapes = {
        stack + "gate_and_up_A": (EXPERTS, HIDDEN, RANK),
        stack + "gate_and_up_B": (EXPERTS, RANK, 2 * INTER),
        stack + "down_A": (EXPERTS, INTER, RANK),
        stack + "down_B": (EXPERTS, RANK, HIDDEN),
        layer + "self_attn.q_proj.lora_A.weight": (RANK, HIDDEN),
        layer + "self_attn.q_proj.lora_B.weight": (14, RANK),
        layer + "self_attn.indexer.index_q_proj.lora_A.weight": (RANK, HIDDEN),
        layer + "self_attn.indexer.index_q_proj.lora_B.weight": (4, RANK),
        layer + "shared_experts.down_proj.lora_A.weight": (RANK, INTER),
        layer + "shared_experts.down_proj.lora_B.weight": (HIDDEN, RANK),
    }
    return {prefix + name: torch.randn(shape) for name, shape in shapes.items()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_lora_tensors_are_the_same_both_ways(prefix: str):
    theirs, ours = adapters()
    lora = trainers_tensors(prefix)
    in_hf = theirs.to_hf(dict(lora))
    assert_same(ours.to_hf(dict(lora)), in_hf)
    assert_same(ours.from_hf(dict(in_hf)), theirs.from_hf(dict(in_hf)))
    assert_same(ours.from_hf(dict(in_hf)), lora)


def tensors_of_a_layer(prefix: str) -> dict[str, torch.Tensor]:
    return {
        name: value
        for name, value in trainers_tensors(prefix).items()
        if "index" not in name and "shared" not in name
    }


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
@pytest.mark.parametrize(
    ("family", "their_adapter"),
    [("qwen3_moe", Qwen3MoeStateDictAdapter), ("minimax_m2", MiniMaxM2StateDictAdapter)],
)
def test_an_adapter_of_any_family_reads_what_theirs_saves(family: str, their_adapter: type, prefix: str):
    """Module by module, and as ParamWrappers in both senses."""
    theirs, ours = their_adapter(*facts()), StateDictAdapter(family, experts=EXPERTS)
    lora = tensors_of_a_layer(prefix)
    of_modules = theirs.to_hf(dict(lora), v4_compatible=True)
    assert_same(ours.to_hf(dict(lora)), of_modules)
    assert_same(ours.from_hf(dict(of_modules)), lora)
    for is_legacy, hint in ((False, "peft-0.19.1"), (True, "peft-0.18")):
        wrapped = theirs.to_hf(dict(lora), legacy_paramwrapper_layout=is_legacy)
        assert len(wrapped) == len(lora)
        ours._paramwrapper_layout_hint = hint
        assert_same(ours.from_hf(dict(wrapped)), lora)
    with pytest.raises(PlanError, match="pass experts= to the adapter"):
        StateDictAdapter(family).from_hf(dict(wrapped))
