"""What was loaded from a template is exported as it was, byte for byte; what has changed gets the nearest codes."""

import json
from pathlib import Path

import pytest
import shardwright as sw
import torch
from encoded import Weight, fp8_weights, mxfp4_packed, nvfp4_modelopt, packed_weights
from safetensors.torch import load_file
from test_stored_weights import write

GENERATOR = torch.Generator().manual_seed(7)
WEIGHTS = fp8_weights(GENERATOR) + packed_weights(GENERATOR)


def differing(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    assert found.keys() == expected.keys()
    return [
        name
        for name, tensor in expected.items()
        if found[name].dtype != tensor.dtype
        or found[name].shape != tensor.shape
        or not found[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))
    ]


def held(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "f32"])
def test_every_encoding_comes_back_as_it_was(dtype: torch.dtype, tmp_path: Path):
    path = write(tmp_path / "from", *WEIGHTS)
    (path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "made up"}}))
    state = {weight.name: torch.zeros(weight.decoded(dtype).shape, dtype=dtype) for weight in WEIGHTS}
    sw.load(state, path, layout="huggingface")
    sw.export(state, tmp_path / "to", quantization="template", template=path, layout="huggingface")
    assert differing(held(tmp_path / "to"), held(path)) == []
    assert (tmp_path / "to" / "config.json").read_bytes() == (path / "config.json").read_bytes()
    again = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    sw.load(again, tmp_path / "to", layout="huggingface")
    assert all(again[name].equal(state[name]) or weight_has_nan(state[name]) for name in state)


def weight_has_nan(tensor: torch.Tensor) -> bool:
    return bool(tensor.isnan().any())


@pytest.mark.parametrize("make", [mxfp4_packed, nvfp4_modelopt])
def test_a_changed_weight_gets_the_nearest_code_and_the_others_keep_theirs(make, tmp_path: Path):
    weight: Weight = make(torch.Generator().manual_seed(3), "a", (8, 64))
    path = write(tmp_path / "from", weight)
    state = {weight.name: torch.zeros(8, 64)}
    sw.load(state, path, layout="huggingface")
    before = state[weight.name].clone()
    changed = torch.rand(8, 64, generator=torch.Generator().manual_seed(4)) < 0.3
    state[weight.name][changed] *= 0.9
    sw.export(state, tmp_path / "to", quantization="template", template=path, layout="huggingface")
    after = torch.zeros(8, 64)
    sw.load({weight.name: after}, tmp_path / "to", layout="huggingface")
    assert after[~changed].equal(before[~changed])
    # Nearest of the codes that each block's scale gives: none is nearer.
    magnitudes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    stored = weight.stored[f"{weight.name}_scale"]
    factors = torch.exp2(stored.double() - 127) if stored.dtype == torch.uint8 else stored.float()
    if f"{weight.name}_scale_2" in weight.stored:
        factors = factors * weight.stored[f"{weight.name}_scale_2"]
    factors = factors.repeat_interleave(64 // stored.shape[1], 1)
    codes = (torch.cat([magnitudes, -magnitudes])[:, None, None] * factors).float()
    nearest = (codes - state[weight.name]).abs().min(0).values
    error = (after - state[weight.name]).abs()
    assert torch.allclose(error, nearest, rtol=1e-5, atol=0)


def test_a_weight_that_is_too_large_for_its_scale_is_named_and_nothing_is_published(tmp_path: Path):
    weight = mxfp4_packed(torch.Generator().manual_seed(3), "a", (8, 64))
    path = write(tmp_path / "from", weight)
    state = {weight.name: weight.decoded(torch.bfloat16)}
    state[weight.name][5, 40] = 1e30
    with pytest.raises(ValueError, match=r"a.weight_packed at \[5, 40\]: is too large for the scale"):
        sw.export(state, tmp_path / "to", quantization="template", template=path, layout="huggingface")
    assert not list((tmp_path / "to").glob("*.safetensors"))


def test_a_template_is_needed(tmp_path: Path):
    with pytest.raises(ValueError, match="expected template="):
        sw.export({"a.weight": torch.zeros(2, 2)}, tmp_path, quantization="template")
