"""What is generated of a family is what transformers 5.23 loads as its model, and runs. Run by `make compare`."""

import json
import math
import warnings
from pathlib import Path

import pytest
import shardwright as sw
import torch
from shardwright import _core
from test_families_transformers import differing
from tiny_models import Tensors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    CompressedTensorsConfig,
    FineGrainedFP8Config,
    Mxfp4Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

#: What transformers 5.23 does not read: NVFP4 at all, and Kimi K2, which has no model of its own there.
UNREAD = {("minimax_m3", "nvfp4"), ("qwen3_5_moe", "nvfp4"), ("deepseek_v3", "kimi_k2_int4")}

FORMS = [
    (one.name, form)
    for one in _core.families()
    for form in _core.sample_forms(one.name)
    if "transformers" in one.layouts and (one.name, form) not in UNREAD
]
each = pytest.mark.parametrize("family, form", FORMS, ids=[f"{name}, {form}" for name, form in FORMS])


#: How transformers is told to dequantize, by the "quant_method" of config.json.
DEQUANTIZING = {
    "fp8": lambda config: FineGrainedFP8Config(**config | {"dequantize": True}),
    "mxfp8": lambda config: FineGrainedFP8Config(dequantize=True),
    "mxfp4": lambda config: Mxfp4Config(dequantize=True),
    "compressed-tensors": lambda config: CompressedTensorsConfig(**config | {"dequantize": True}),
}


def model_of_transformers(path: Path) -> tuple[torch.nn.Module, dict]:
    config = AutoConfig.from_pretrained(path)
    is_text = not hasattr(config, "vision_config") and config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    auto = AutoModelForCausalLM if is_text else AutoModelForImageTextToText
    quantization = json.loads((path / "config.json").read_text()).get("quantization_config")
    more = {}
    if quantization is not None:
        method = quantization.pop("quant_method")
        more = {"quantization_config": DEQUANTIZING[method](quantization)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = auto.from_pretrained(path, dtype="auto", output_loading_info=True, **more)
    return model, info


def loaded_by_transformers(path: Path) -> tuple[Tensors, dict]:
    model, info = model_of_transformers(path)
    return model.state_dict(), info


@each
def test_transformers_loads_it_as_we_do(family: str, form: str, tmp_path: Path):
    sw.generate(tmp_path, family=family, form=form, values="any")
    expected, info = loaded_by_transformers(tmp_path)
    state = {name: torch.full_like(tensor, 7) for name, tensor in expected.items()}
    report = sw.load(state, tmp_path, layout="transformers")
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    # transformers' models have no layers of multi-token prediction.
    assert all("mtp" in name or "layers.2." in name for name in info["unexpected_keys"])
    if (family, form) == ("deepseek_v4", "fp4"):
        # Code 8 is -0 for transformers, and +0 for DeepSeek's own inference/convert.py, which we follow.
        others = differing(state, expected)
        assert others and all(".experts." in name for name in others)
        expected = {name: torch.where(tensor == 0, tensor.abs(), tensor) for name, tensor in expected.items()}
        state = {name: torch.where(tensor == 0, tensor.abs(), tensor) for name, tensor in state.items()}
    assert differing(state, expected) == []
    assert report.unknown == [] and report.not_loaded == []
    empty = sw.empty_state_dict(tmp_path, layout="transformers")
    assert {name: tensor.shape for name, tensor in empty.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }


@each
def test_transformers_runs_it_on_its_own_tokens(family: str, form: str, tmp_path: Path):
    """A model whose weights are small and random knows nothing: its loss is ln(vocabulary), nearly."""
    sw.generate(tmp_path, family=family, form=form)
    model, _ = model_of_transformers(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "Every byte is a token."
    tokens = tokenizer(text, return_tensors="pt").input_ids
    assert tokenizer.decode(tokens[0]) == text and tokens.shape == (1, len(text))
    with torch.no_grad():
        output = model.eval()(input_ids=tokens, labels=tokens)
    vocabulary = model.config.get_text_config().vocab_size
    assert output.logits.shape[-1] == vocabulary and output.logits.isfinite().all()
    assert abs(output.loss.item() - math.log(vocabulary)) < 0.3
    assert output.logits.float().std() > 0.05  # which says something of each token
