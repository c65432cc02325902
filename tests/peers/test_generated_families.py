"""What is generated of a family is what transformers 5.23 loads as its model, and runs. Run by `make compare`."""

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
    FineGrainedFP8Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

FORMS = [
    (one.name, form)
    for one in _core.families()
    for form in _core.sample_forms(one.name)
    if "transformers" in one.layouts
]
each = pytest.mark.parametrize("family, form", FORMS, ids=[f"{name}, {form}" for name, form in FORMS])


def model_of_transformers(path: Path) -> tuple[torch.nn.Module, dict]:
    is_quantised = bool(_core.scaled_weights(sw.read_catalog(path)))
    config = AutoConfig.from_pretrained(path)
    is_text = not hasattr(config, "vision_config") and config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    auto = AutoModelForCausalLM if is_text else AutoModelForImageTextToText
    more = {"quantization_config": FineGrainedFP8Config(dequantize=True)} if is_quantised else {}
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
