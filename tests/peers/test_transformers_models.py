"""Models of transformers that are made on meta and filled in one call are those of from_pretrained, buffers and all."""

import json
from pathlib import Path

import pytest
import shardwright as sw
import torch
from shardwright.integrations.transformers import load_pretrained, save_pretrained
from tiny_models import TEXT, TINY, Tiny, held
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

Tensors = dict[str, torch.Tensor]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(
        a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8)
    )


def all_tensors(model: PreTrainedModel) -> Tensors:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())


def on_meta(path: Path, auto: type = AutoModelForCausalLM) -> PreTrainedModel:
    with torch.device("meta"):
        return auto.from_config(AutoConfig.from_pretrained(path), dtype=torch.bfloat16)


@pytest.mark.parametrize("tiny", TINY, ids=lambda tiny: tiny.id)
def test_what_is_made_on_meta_becomes_what_from_pretrained_makes(tiny: Tiny, tmp_path: Path):
    tiny.write(tmp_path / "released")
    auto = AutoModelForImageTextToText if tiny.is_vision_model else AutoModelForCausalLM
    expected = all_tensors(auto.from_pretrained(tmp_path / "released", dtype=torch.bfloat16))
    model = on_meta(tmp_path / "released", auto)
    load_pretrained(model, tmp_path / "released")
    found = all_tensors(model)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not same(found[name], expected[name])] == []


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_one_and_are_stored_once(tied: bool, tmp_path: Path):
    Tiny("qwen3", TEXT | {"tie_word_embeddings": tied}).write(tmp_path / "released")
    model = on_meta(tmp_path / "released")
    load_pretrained(model, tmp_path / "released")
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    save_pretrained(model, tmp_path / "stored")
    assert ("lm_head.weight" in held(tmp_path / "stored")) == (not tied)
    again = all_tensors(AutoModelForCausalLM.from_pretrained(tmp_path / "stored"))
    expected = all_tensors(model)
    assert [name for name in expected if not same(again[name], expected[name])] == []


def test_what_was_quantized_is_stored_plain_and_said_to_be(tmp_path: Path):
    sw.generate(tmp_path / "released", family="qwen3", form="fp8")
    model = on_meta(tmp_path / "released")
    load_pretrained(model, tmp_path / "released")
    save_pretrained(model, tmp_path / "stored")
    assert "quantization_config" in json.loads((tmp_path / "released" / "config.json").read_text())
    config = json.loads((tmp_path / "stored" / "config.json").read_text())
    assert "quantization_config" not in config and config["architectures"] == ["Qwen3ForCausalLM"]
    again = all_tensors(AutoModelForCausalLM.from_pretrained(tmp_path / "stored"))
    assert [name for name, tensor in all_tensors(model).items() if not same(again[name], tensor)] == []


def test_a_buffer_that_nothing_computes_is_named(tmp_path: Path):
    Tiny("qwen3", TEXT).write(tmp_path)
    model = on_meta(tmp_path)
    model.model.layers[0].register_buffer("forgotten", torch.empty(3, device="meta"), persistent=False)
    with pytest.raises(ValueError, match=r"model\.layers\.0\.forgotten: no checkpoint has these buffers"):
        load_pretrained(model, tmp_path)


def test_models_of_others_and_other_folders_are_refused(tmp_path: Path):
    Tiny("qwen3", TEXT).write(tmp_path / "released")
    with pytest.raises(ValueError, match="expected a model of transformers"):
        load_pretrained(torch.nn.Linear(2, 2), tmp_path / "released")
    model = on_meta(tmp_path / "released")
    sw.save({"model": {"a": torch.zeros(1)}}, tmp_path / "trained")
    with pytest.raises(ValueError, match="is a checkpoint of a training"):
        load_pretrained(model, tmp_path / "trained")
    with pytest.raises(FileNotFoundError):
        load_pretrained(model, tmp_path / "nowhere")
    Tiny("qwen3", TEXT | {"num_hidden_layers": 1}).write(tmp_path / "shorter")
    with pytest.raises(sw.PlanError, match=r"model\.layers\.1\."):
        load_pretrained(on_meta(tmp_path / "released"), tmp_path / "shorter")
