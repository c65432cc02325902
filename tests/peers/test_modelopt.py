"""What nvidia-modelopt 0.47 writes on the CPU is loaded as it dequantizes it, bit for bit. Run by `make compare`."""

import json
from pathlib import Path

import pytest
import shardwright as sw
import torch
from modelopt.torch.quantization.qtensor import FP8QTensor, MXFP4QTensor, NVFP4QTensor
from quantizers import decoded_by_modelopt, dense_model, exported_as, written_by_modelopt
from safetensors.torch import save_file
from test_families_transformers import differing
from tiny_models import held

#: Its configurations, and what we call what they write.
CONFIGS = {
    "NVFP4_DEFAULT_CFG": "nvfp4_modelopt",
    "MXFP4_DEFAULT_CFG": "mxfp4",
    "MXFP8_DEFAULT_CFG": "mxfp8",
    "FP8_DEFAULT_CFG": "tensor_fp8",
    "FP8_PER_CHANNEL_PER_TOKEN_CFG": "channel_fp8",
}
each = pytest.mark.parametrize("config", CONFIGS)


@each
def test_what_modelopt_writes_loads_as_it_dequantizes_it(config: str, tmp_path: Path):
    written_by_modelopt(dense_model(), config, tmp_path / "theirs")
    stored = held(tmp_path / "theirs")
    for dtype in (torch.bfloat16, torch.float32):
        # ModelOpt rounds FP8's scales to BF16 before it multiplies; we multiply in F32: see below.
        if dtype == torch.bfloat16 and "fp8" in CONFIGS[config] and CONFIGS[config] != "mxfp8":
            continue
        expected = decoded_by_modelopt(stored, dtype)
        state = {name: torch.full_like(tensor, 7) for name, tensor in expected.items()}
        report = sw.load(state, tmp_path / "theirs", layout="transformers")
        assert report.unused == [] and report.unknown == [] and report.not_loaded == []
        assert differing(state, expected) == []
    kinds = sw._core.scaled_weights(sw.read_catalog(tmp_path / "theirs"))
    assert set(kinds) == {CONFIGS[config]}


@each
def test_an_export_with_its_checkpoint_as_template_is_that_checkpoint(config: str, tmp_path: Path):
    written_by_modelopt(dense_model(), config, tmp_path / "theirs")
    exported_as(tmp_path / "theirs", tmp_path / "ours")
    assert differing(held(tmp_path / "ours"), held(tmp_path / "theirs")) == []
    theirs = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert json.loads((tmp_path / "ours" / "config.json").read_text()) == theirs


def exported_by_rule(rule: str, path: Path) -> dict[str, torch.Tensor]:
    """The weights of the model by one of our rules, as files hold them."""
    model = dense_model()
    model.save_pretrained(path / "plain")
    state = dict(model.state_dict())
    sw.export(
        state,
        path / "ours",
        quantization=rule,
        quantized_weights=["*_proj.weight"],
        template=path / "plain",
        layout="transformers",
    )
    return held(path / "ours")


def test_an_export_by_rule_is_what_modelopt_exports_in_nvfp4_but_for_scales_of_activations(tmp_path: Path):
    found = exported_by_rule("nvfp4-modelopt", tmp_path)
    written_by_modelopt(dense_model(), "NVFP4_DEFAULT_CFG", tmp_path / "theirs")
    theirs = {
        name: tensor
        for name, tensor in held(tmp_path / "theirs").items()
        if not name.endswith(".input_scale")
    }
    assert differing(found, theirs) == []
    # One global scale for those that engines run as one matrix; others have that of their own values.
    shared = {name: tensor.item() for name, tensor in found.items() if name.endswith(".weight_scale_2")}
    layer = "model.layers.0."
    for group in (
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        ["mlp.gate_proj", "mlp.up_proj"],
    ):
        assert len({shared[f"{layer}{module}.weight_scale_2"] for module in group}) == 1
    own = dense_model().state_dict()
    for module in ("self_attn.o_proj", "mlp.down_proj"):
        _, _, whole = NVFP4QTensor.quantize(own[f"{layer}{module}.weight"].clone(), 16)
        assert shared[f"{layer}{module}.weight_scale_2"] == whole.item()
    told = json.loads((tmp_path / "ours" / "config.json").read_text())["quantization_config"]
    assert told["quant_algo"] == "W4A16_NVFP4"
    decoded = decoded_by_modelopt(found, torch.bfloat16)
    state = {name: torch.full_like(tensor, 7) for name, tensor in decoded.items()}
    sw.load(state, tmp_path / "ours", layout="transformers")
    assert differing(state, decoded) == []


def test_an_export_by_rule_is_what_modelopt_exports_in_mxfp4(tmp_path: Path):
    found = exported_by_rule("mxfp4-modelopt", tmp_path)
    written_by_modelopt(dense_model(), "MXFP4_DEFAULT_CFG", tmp_path / "theirs")
    assert differing(found, held(tmp_path / "theirs")) == []
    decoded = decoded_by_modelopt(found, torch.bfloat16)
    state = {name: torch.full_like(tensor, 7) for name, tensor in decoded.items()}
    sw.load(state, tmp_path / "ours", layout="transformers")
    assert differing(state, decoded) == []


def test_statically_calibrated_scales_are_kept(tmp_path: Path):
    """Scales that no rule of the weights finds again, as MSE calibration leaves them; only GPUs run ModelOpt's own."""
    written_by_modelopt(dense_model(), "NVFP4_DEFAULT_CFG", tmp_path / "theirs")
    stored = held(tmp_path / "theirs")
    weights = dense_model().state_dict()
    generator = torch.Generator().manual_seed(1)
    for name in [name for name in stored if f"{name}_scale_2" in stored]:
        scales = stored[f"{name}_scale"].float()
        less = torch.rand(scales.shape, generator=generator) * 0.5 + 0.5
        scales = (scales * less).clamp(min=2**-9).to(torch.float8_e4m3fn)
        whole = stored[f"{name}_scale_2"]
        made, _, _ = NVFP4QTensor.quantize(weights[name].clone(), 16, scales, whole)
        stored |= {name: made._quantized_data, f"{name}_scale": scales}
    for file in (tmp_path / "theirs").glob("*.safetensors"):
        save_file(stored, file, metadata={"format": "pt"})
    expected = decoded_by_modelopt(stored, torch.bfloat16)
    state = {name: torch.full_like(tensor, 7) for name, tensor in expected.items()}
    sw.load(state, tmp_path / "theirs", layout="transformers")
    assert differing(state, expected) == []
    sw.export(
        state,
        tmp_path / "ours",
        quantization="template",
        template=tmp_path / "theirs",
        layout="transformers",
    )
    assert differing(held(tmp_path / "ours"), stored) == []


# --- where tools disagree ---------------------------------------------------------------------------------------------


def one_weight(path: Path, stored: dict[str, torch.Tensor], dtype: torch.dtype, columns: int) -> torch.Tensor:
    """The weight "m.weight" of a checkpoint of these tensors, as we load it."""
    path.mkdir()
    save_file(stored, path / "model.safetensors")
    rows = stored["m.weight_packed" if "m.weight_packed" in stored else "m.weight"].shape[0]
    state = {"m.weight": torch.full((rows, columns), 7, dtype=dtype)}
    sw.load(state, path, layout="huggingface")
    return state["m.weight"]


def test_the_scales_of_fp8_are_not_rounded_to_bf16_before_they_multiply(tmp_path: Path):
    """As transformers, vLLM and compressed-tensors do it; ModelOpt's FP8QTensor rounds them first."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)[None]
    codes = torch.where(codes.isnan(), torch.zeros_like(codes.float()), codes.float()).to(torch.float8_e4m3fn)
    scales = torch.tensor([0.0123456])
    found = one_weight(
        tmp_path / "one", {"m.weight": codes, "m.weight_scale": scales}, torch.bfloat16, codes.shape[1]
    )
    assert torch.equal(found, (codes.float() * scales).to(torch.bfloat16))
    theirs = FP8QTensor(codes.shape, torch.bfloat16, codes).dequantize(scale=scales)
    assert 0 < (found != theirs).sum() < codes.numel()


def test_code_eight_of_nvfp4_is_plus_zero_for_modelopt_and_minus_zero_for_compressed_tensors(tmp_path: Path):
    packed = torch.full((1, 8), 0x88, dtype=torch.uint8)
    scales = torch.ones(1, 1).to(torch.float8_e4m3fn)
    modelopts = {"m.weight": packed, "m.weight_scale": scales, "m.weight_scale_2": torch.tensor(0.5)}
    compressed = {
        "m.weight_packed": packed,
        "m.weight_scale": scales,
        "m.weight_global_scale": torch.tensor([2.0]),
    }
    theirs = NVFP4QTensor(torch.Size((1, 16)), torch.bfloat16, packed).dequantize(
        scale=scales, double_scale=torch.tensor(0.5), block_sizes={-1: 16}
    )
    assert not theirs.signbit().any()
    assert not one_weight(tmp_path / "modelopt", modelopts, torch.bfloat16, 16).signbit().any()
    assert one_weight(tmp_path / "compressed_tensors", compressed, torch.bfloat16, 16).signbit().all()


def test_one_set_of_bytes_means_two_things_under_the_names_of_the_two_tools(tmp_path: Path):
    """(scale * global) and (scale / (1 / global)) are rounded differently: each checkpoint as its own tool has it."""
    generator = torch.Generator().manual_seed(3)
    rows = 4096
    packed = torch.randint(0, 256, (rows, 8), dtype=torch.uint8, generator=generator)
    scales = torch.randint(1, 127, (rows, 1), dtype=torch.uint8, generator=generator).view(
        torch.float8_e4m3fn
    )
    whole = torch.tensor(0.00123456)
    modelopts = {"m.weight": packed, "m.weight_scale": scales, "m.weight_scale_2": whole}
    compressed = {
        "m.weight_packed": packed,
        "m.weight_scale": scales,
        "m.weight_global_scale": (1 / whole).reshape(1),
    }
    first = one_weight(tmp_path / "modelopt", modelopts, torch.float32, 16)
    second = one_weight(tmp_path / "compressed_tensors", compressed, torch.float32, 16)
    theirs = NVFP4QTensor(torch.Size((rows, 16)), torch.float32, packed).dequantize(
        scale=scales, double_scale=whole, block_sizes={-1: 16}
    )
    assert torch.equal(first, theirs)
    assert (first != second).any() and torch.allclose(first, second, rtol=1e-6)


@pytest.mark.parametrize("byte", [0, 1, 127, 251, 252, 253, 254])
def test_mxfp4_equals_modelopt_at_every_end_of_its_scales(byte: int, tmp_path: Path):
    packed = torch.arange(0, 256, dtype=torch.uint8).view(16, 16)
    scales = torch.full((16, 1), byte, dtype=torch.uint8)
    found = one_weight(tmp_path / "one", {"m.weight": packed, "m.weight_scale": scales}, torch.bfloat16, 32)
    theirs = MXFP4QTensor(torch.Size((16, 32)), torch.bfloat16, packed).dequantize(
        scale=scales, block_sizes={-1: 32}
    )
    # From 2^128 on numbers are infinite in F32, in which ModelOpt computes, and so is their exact value in BF16.
    assert differing({"m": found}, {"m": theirs}) == []


def test_the_scale_byte_255_is_refused_where_modelopt_makes_infinities_of_it(tmp_path: Path):
    packed = torch.full((1, 16), 0x21, dtype=torch.uint8)
    scales = torch.full((1, 1), 255, dtype=torch.uint8)
    theirs = MXFP4QTensor(torch.Size((1, 32)), torch.bfloat16, packed).dequantize(
        scale=scales, block_sizes={-1: 32}
    )
    assert theirs.isinf().all()
    with pytest.raises(sw.CheckpointFormatError, match="m.weight_scale.*no number"):
        one_weight(tmp_path / "one", {"m.weight": packed, "m.weight_scale": scales}, torch.bfloat16, 32)
