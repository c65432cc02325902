"""How the state-dict adapters treat LoRA tensors: HF's names and shapes as documented, and back from every spelling."""

from types import SimpleNamespace

import pytest
import shardwright as sw
import torch
from lora_reference import Sizes, file_tensors, trainers
from reference import differing
from shardwright.models.minimax_m3_vl.state_dict_adapter import (
    MiniMaxM3StateDictAdapter,
    MiniMaxM3VLStateDictAdapter,
)

SIZES = Sizes()
TEXT = SimpleNamespace(num_mtp_modules=1)


def vl(sizes: Sizes = SIZES, **moe) -> MiniMaxM3VLStateDictAdapter:
    moe_config = SimpleNamespace(n_routed_experts=sizes.experts, **{"moe_inter_dim": sizes.inter} | moe)
    return MiniMaxM3VLStateDictAdapter(SimpleNamespace(text_config=TEXT), moe_config, None)


def prefixed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"base_model.model." + name: tensor for name, tensor in tensors.items()}


def experts(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if ".experts." in name}


def test_to_hf_has_a_module_for_each_expert_and_keeps_the_prefix():
    lora = trainers()
    expected = file_tensors(lora, "automodel")
    assert differing(vl().to_hf(prefixed(lora)), expected) == []
    without = {name.removeprefix("base_model.model."): tensor for name, tensor in expected.items()}
    assert differing(vl().to_hf(lora), without) == []


def test_the_text_adapters_names_have_no_language_model_before_them():
    lora = trainers()
    expected = file_tensors(lora, "automodel", text_only=True)
    adapter = MiniMaxM3StateDictAdapter(TEXT, SimpleNamespace(n_routed_experts=SIZES.experts), None)
    assert differing(adapter.to_hf(prefixed(lora)), expected) == []
    bare = {name.removeprefix("model."): tensor for name, tensor in lora.items()}
    hf = adapter.to_hf(bare)
    wanted = {name.removeprefix("base_model.model.model."): tensor for name, tensor in expected.items()}
    assert differing(hf, wanted) == []
    assert differing(adapter.from_hf(dict(hf)), bare) == []


def test_a_single_tensor_and_exclusion():
    key = "model.layers.1.mlp.experts.lora_gate_and_up_B"
    pairs = vl().convert_single_tensor_to_hf(key, trainers()[key])
    expected = file_tensors(trainers(), "automodel")
    assert len(pairs) == 2 * SIZES.experts
    assert all(torch.equal(tensor, expected["base_model.model." + name]) for name, tensor in pairs)
    assert all(tensor.is_contiguous() for _, tensor in pairs)
    left = vl().to_hf({key: trainers()[key]}, exclude_key_regex=r".*\.up_proj\.")
    assert len(left) == SIZES.experts


def test_lora_tensors_are_not_quantized():
    lora = trainers()
    assert differing(vl().to_hf(prefixed(lora), quantization=True), file_tensors(lora, "automodel")) == []


@pytest.mark.parametrize("layout", ["transformers", "huggingface", "automodel"])
@pytest.mark.parametrize("legacy", [False, True])
def test_from_hf_reads_every_spelling(layout: str, legacy: bool):
    lora = trainers()
    if layout == "transformers":  # there gate and up are one module, of which both get the one A
        lora = {
            name: tensor
            for name, tensor in lora.items()
            if ".gate_proj." not in name and ".up_proj." not in name
        }
    hf = file_tensors(lora, layout, legacy=legacy)
    assert differing(vl().from_hf(hf), prefixed(lora)) == []


def test_a_joined_module_becomes_two_with_the_same_a():
    a, b = torch.randn(2, 10), torch.randn(16, 2)
    module = "base_model.model.model.language_model.layers.0.mlp"
    native = vl().from_hf(
        {f"{module}.gate_up_proj.lora_A.weight": a, f"{module}.gate_up_proj.lora_B.weight": b}
    )
    path = "base_model.model.model.layers.0.mlp"
    expected = {
        f"{path}.gate_proj.lora_A.weight": a,
        f"{path}.up_proj.lora_A.weight": a,
        f"{path}.gate_proj.lora_B.weight": b[:8],
        f"{path}.up_proj.lora_B.weight": b[8:],
    }
    assert differing(native, expected) == []


def lone(lora: dict[str, torch.Tensor], legacy: bool) -> dict[str, torch.Tensor]:
    inner = {
        n: t for n, t in file_tensors(lora, "transformers", legacy=legacy).items() if ".base_layer." in n
    }
    return {name.replace(".base_layer", ""): tensor for name, tensor in inner.items()}


def test_wrappers_of_which_shapes_do_not_tell_the_sense_need_to_be_told():
    sizes = Sizes(hidden=12, inter=6)
    mine = {name: tensor for name, tensor in trainers(sizes).items() if ".lora_gate_and_up_" in name}
    for sense, hint in (("modern", "peft-0.19.1"), ("legacy", "peft-0.18")):
        hf = lone(trainers(sizes), sense == "legacy")
        with pytest.raises(sw.PlanError, match=r'layers\.1\.mlp\.experts.*pass param_wrapper="modern"'):
            vl(sizes).from_hf(hf)
        assert differing(vl(sizes).from_hf(hf, param_wrapper=sense), prefixed(mine)) == []
        adapter = vl(sizes)
        adapter._paramwrapper_layout_hint = (
            hint  # as nemo-automodel's checkpointer does, on the model's own adapter
        )
        assert differing(adapter.from_hf(hf), prefixed(mine)) == []


def test_senses_that_nobody_knows_are_refused():
    hf = file_tensors(trainers(), "transformers")
    with pytest.raises(ValueError, match=r"param_wrapper: expected one of auto, modern, legacy, found 'new'"):
        vl().from_hf(dict(hf), param_wrapper="new")
    adapter = vl()
    adapter._paramwrapper_layout_hint = "peft-7"
    with pytest.raises(ValueError, match=r"expected peft-0\.19\.1 or peft-0\.18, found 'peft-7'"):
        adapter.from_hf(dict(hf))


def test_both_wrappers_tell_the_sense_without_a_config():
    for legacy in (False, True):
        hf = experts(file_tensors(trainers(), "transformers", legacy=legacy))
        assert differing(vl(moe_inter_dim=None).from_hf(hf), prefixed(experts(trainers()))) == []


def test_ranks_that_differ_between_experts_are_refused():
    hf = experts(file_tensors(trainers(), "automodel"))
    path = "base_model.model.language_model.model.layers.1.mlp.experts.2.down_proj"
    hf[f"{path}.lora_A.weight"], hf[f"{path}.lora_B.weight"] = torch.zeros(1, 6), torch.zeros(10, 1)
    with pytest.raises(sw.PlanError, match=r"expected one rank for all modules, 2, found ranks 1, 2"):
        vl().from_hf(hf)


@pytest.mark.parametrize("factor", ["gate_proj.lora_A", "up_proj.lora_B", "down_proj.lora_B"])
def test_half_an_experts_projections_are_refused(factor: str):
    hf = experts(file_tensors(trainers(), "automodel"))
    name = f"base_model.model.language_model.model.layers.1.mlp.experts.1.{factor}.weight"
    del hf[name]
    with pytest.raises(RuntimeError, match="lacks weights of experts.*\n *" + name.replace(".", r"\.")):
        vl().from_hf(hf)


def test_gate_and_up_with_an_a_each_are_refused():
    hf = experts(file_tensors(trainers(), "automodel"))
    name = "base_model.model.language_model.model.layers.1.mlp.experts.1.up_proj.lora_A.weight"
    hf[name] = hf[name] + 1
    with pytest.raises(sw.PlanError, match=r"up_proj\.lora_A\.weight in the state dict differ"):
        vl().from_hf(hf)


def test_weights_and_lora_tensors_in_one_state_dict():
    norm = torch.ones(3, dtype=torch.bfloat16)
    hf = file_tensors(trainers(), "automodel") | {"language_model.model.norm.weight": norm}
    assert differing(vl().from_hf(hf), prefixed(trainers()) | {"model.norm.weight": norm}) == []


def test_mtp_is_left_out_of_models_without_it():
    name = "language_model.model.mtp.layers.0.transformer_layer.self_attn.q_proj"
    hf = {f"{name}.lora_A.weight": torch.zeros(2, 10), f"{name}.lora_B.weight": torch.zeros(14, 2)}
    assert set(vl().from_hf(dict(hf))) == {key.removeprefix("language_model.") for key in hf}
    without = MiniMaxM3VLStateDictAdapter(
        SimpleNamespace(text_config=SimpleNamespace(num_mtp_modules=0)),
        SimpleNamespace(n_routed_experts=3),
        None,
    )
    assert without.from_hf(hf) == {}
