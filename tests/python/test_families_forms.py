"""Checkpoints of one family in several forms: text alone, experts stacked or apart from layer to layer, tied heads."""

from collections.abc import Callable
from pathlib import Path

import families
import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from decoder_families import ALL
from families import EXPERTS, INTER, TEXT, Family, Tensors, held, native
from reference import differing
from shardwright.adapters import StateDictAdapter

BY_NAME = {family.name: family for family in ALL}
STACKED = BY_NAME["qwen3_5_moe"]


def changed(family: Family, change: Callable[[Tensors], Tensors], **config) -> Family:
    made = lambda generator: change(family.make(generator))  # noqa: E731
    return Family(family.name, family.model, family.config | config, made, family.natives)


def zeros_like(tensors: Tensors) -> Tensors:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


# --- text alone ------------------------------------------------------------------------------------------------------


def text_only(tensors: Tensors) -> Tensors:
    return {
        name.replace(TEXT, "model."): tensor for name, tensor in tensors.items() if ".visual." not in name
    }


@pytest.mark.parametrize("layout", ["automodel", "transformers"])
def test_a_text_model_is_exported_under_its_own_names_without_a_template(layout: str, tmp_path: Path):
    family = changed(STACKED, text_only, model_type="qwen3_5_moe_text")
    tensors = families.write(family, tmp_path / "from")
    state = native(family, layout, tensors)
    sw.export(state, tmp_path / "to", model="qwen3_5_moe", layout=layout)
    assert set(held(tmp_path / "to")) == set(family.kept(layout, tensors))
    kept = {name: t for name, t in tensors.items() if not name.startswith("mtp.") or layout == "automodel"}
    adapter = StateDictAdapter("qwen3_5_moe", layout=layout)
    assert set(adapter.to_hf(state)) == set(kept)


# --- experts stacked in one layer, apart in another -------------------------------------------------------------------


def apart_in_layer(tensors: Tensors, layer: int) -> Tensors:
    """The experts of a layer as FP8 releases have them, of the same values."""
    result = dict(tensors)
    prefix = f"{TEXT}layers.{layer}.mlp.experts."
    gate_up, down = result.pop(prefix + "gate_up_proj"), result.pop(prefix + "down_proj")
    for expert in range(EXPERTS):
        result[f"{prefix}{expert}.gate_proj.weight"] = gate_up[expert, :INTER].clone()
        result[f"{prefix}{expert}.up_proj.weight"] = gate_up[expert, INTER:].clone()
        result[f"{prefix}{expert}.down_proj.weight"] = down[expert].clone()
    return result


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("layout", ["automodel", "transformers"])
def test_layers_may_have_experts_stacked_or_apart(layout: str, layer: int, tmp_path: Path):
    expected = native(STACKED, layout, families.write(STACKED, tmp_path / "stacked"))
    mixed = changed(STACKED, lambda tensors: apart_in_layer(tensors, layer))
    stored = families.write(mixed, tmp_path / "mixed")
    state = zeros_like(expected)
    report = sw.load(state, tmp_path / "mixed", layout=layout)
    assert differing(state, expected) == [] and report.unknown == []
    empty = sw.empty_state_dict(tmp_path / "mixed", layout=layout)
    assert {name: tensor.shape for name, tensor in empty.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    sw.export(state, tmp_path / "to", template=tmp_path / "mixed", layout=layout)
    assert differing(held(tmp_path / "to"), STACKED.kept(layout, stored)) == []


def test_half_of_the_experts_apart_is_told_by_the_names_that_are_missing(tmp_path: Path):
    expected = native(STACKED, "automodel", families.write(STACKED, tmp_path / "stacked"))

    def without_ups(tensors: Tensors) -> Tensors:
        apart = apart_in_layer(tensors, 1)
        return {
            name: tensor for name, tensor in apart.items() if ".up_proj" not in name or "experts" not in name
        }

    families.write(changed(STACKED, without_ups), tmp_path / "half")
    state = zeros_like(expected)
    with pytest.raises(sw.PlanError, match=r"layers\.1\.mlp\.experts\.\{0-3\}\.up_proj\.weight") as told:
        sw.load(state, tmp_path / "half")
    assert "gate_up_proj" not in str(told.value)
    assert not any(tensor.any() for tensor in state.values())


def test_experts_that_a_layer_has_in_both_forms_are_told(tmp_path: Path):
    expected = native(STACKED, "automodel", families.write(STACKED, tmp_path / "stacked"))
    both = changed(STACKED, lambda tensors: apart_in_layer(tensors, 1) | tensors)
    families.write(both, tmp_path / "both")
    state = zeros_like(expected)
    with pytest.raises(sw.PlanError, match=r"layers\.1\.mlp\.experts\.\{?0.*gate_proj"):
        sw.load(state, tmp_path / "both")
    assert not any(tensor.any() for tensor in state.values())


# --- advice ----------------------------------------------------------------------------------------------------------


def test_advice_does_not_contradict_itself(tmp_path: Path):
    """Some names of nemo-automodel's, without "model.", are torchtitan's."""
    family = BY_NAME["glm4_moe"]
    of_llama = BY_NAME["llama"]
    families.write(of_llama, tmp_path / "llama")
    state = zeros_like(native(of_llama, "automodel", held(tmp_path / "llama")))
    with pytest.raises(sw.PlanError, match="pass layout=.automodel") as told:
        sw.load(state, tmp_path / "llama", layout="torchtitan")
    assert "inner dict" not in str(told.value)
    families.write(family, tmp_path / "glm")
    nested = {"model": zeros_like(native(family, "automodel", held(tmp_path / "glm")))}
    with pytest.raises(sw.PlanError, match=r"inner dict, state_dict\['model'\]") as told:
        sw.load(nested, tmp_path / "glm")
    assert "pass layout=" not in str(told.value)


def test_names_of_another_layout_are_not_taken_for_those_of_a_wrapped_module(tmp_path: Path):
    """Mixtral's experts in transformers are GLM's, too; none of the names has a wrapper's prefix."""
    families.write(BY_NAME["glm4_moe"], tmp_path / "glm")
    families.write(BY_NAME["mixtral"], tmp_path / "mixtral")
    state = zeros_like(native(BY_NAME["mixtral"], "transformers", held(tmp_path / "mixtral")))
    with pytest.raises(sw.PlanError, match="the checkpoint lacks") as told:
        sw.load(state, tmp_path / "glm")
    assert "module." not in str(told.value) and "DistributedDataParallel" not in str(told.value)
    assert not any(tensor.any() for tensor in state.values())


# --- heads -----------------------------------------------------------------------------------------------------------

TIED = BY_NAME["qwen3, tied"]


def head_apart(tensors: Tensors) -> Tensors:
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}


def test_a_head_of_its_own_is_loaded_though_the_config_ties_it(tmp_path: Path):
    """As transformers does: tests/peers/test_families_forms.py."""
    stored = families.write(changed(TIED, head_apart), tmp_path)
    state = zeros_like(native(TIED, "automodel", stored))
    sw.load(state, tmp_path)
    assert torch.equal(state["lm_head.weight"], stored["lm_head.weight"])
    assert torch.equal(state["model.embed_tokens.weight"], stored["model.embed_tokens.weight"])


@pytest.mark.parametrize("layout", ["automodel", "transformers", "torchtitan"])
def test_a_tied_head_is_not_stored_twice_without_a_template(layout: str, tmp_path: Path):
    stored = families.write(TIED, tmp_path / "from")
    state = native(TIED, layout, stored)
    embedding = "tok_embeddings.weight" if layout == "torchtitan" else "model.embed_tokens.weight"
    state["lm_head.weight"] = state[embedding]
    report = sw.export(state, tmp_path / "to", model="qwen3", layout=layout)
    assert differing(held(tmp_path / "to"), stored) == []
    assert report.left_out == ["lm_head.weight"]
    writer = sw.HuggingFaceStorageWriter(tmp_path / "by_dcp", model="qwen3", layout=layout)
    dcp.save(state, storage_writer=writer, planner=sw.SavePlanner(), no_dist=True)
    assert differing(held(tmp_path / "by_dcp"), stored) == []
    assert writer.report is not None and writer.report.left_out == ["lm_head.weight"]
    apart = state | {"lm_head.weight": state[embedding].clone()}
    sw.export(apart, tmp_path / "apart", model="qwen3", layout=layout)
    assert set(held(tmp_path / "apart")) == {*stored, "lm_head.weight"}
