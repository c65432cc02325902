"""What compressed-tensors 0.20 writes on the CPU is loaded as it and transformers 5.23 decompress it, bit for bit.

What we export they read as what was exported. Run by `make compare`.
"""

from pathlib import Path
from typing import Any

import pytest
import shardwright as sw
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from quantizers import dense_model, exported_as, read_by_transformers, written_by_compressed_tensors
from test_families_transformers import differing
from tiny_models import Tensors, held


def int4(strategy: str, group_size: int | None) -> QuantizationScheme:
    arguments = QuantizationArgs(num_bits=4, type="int", strategy=strategy, group_size=group_size)
    return QuantizationScheme(targets=["Linear"], weights=arguments)


ATTENTION, MLP = ["re:.*self_attn.*"], ["re:.*mlp.*"]

#: Groups of its configurations, and what we call what it writes.
CONFIGS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "nvfp4": ({"NVFP4A16": ["Linear"]}, {"nvfp4_compressed_tensors"}),
    "mxfp4": ({"MXFP4A16": ["Linear"]}, {"mxfp4"}),
    "int4, groups of 32": ({"group_0": int4("group", 32)}, {"int4_group32"}),
    "int4, groups of 128": ({"W4A16": ["Linear"]}, {"int4_group128"}),
    "int4, rows": ({"group_0": int4("channel", None)}, {"int4_channel"}),
    "fp8, rows": ({"FP8_DYNAMIC": ["Linear"]}, {"channel_fp8"}),
    "fp8, blocks": ({"FP8_BLOCK": ["Linear"]}, {"block_fp8"}),
    "fp8, tensors": ({"FP8": ["Linear"]}, {"tensor_fp8"}),
    "mxfp8": ({"MXFP8A16": ["Linear"]}, {"mxfp8"}),
    "nvfp4 and fp8": (
        {"NVFP4A16": MLP, "FP8_DYNAMIC": ATTENTION},
        {"nvfp4_compressed_tensors", "channel_fp8"},
    ),
    "int4 and fp8": ({"W4A16": MLP, "FP8_DYNAMIC": ATTENTION}, {"int4_group128", "channel_fp8"}),
}
each = pytest.mark.parametrize("config", CONFIGS)

#: transformers decompresses all dense modules by one group of a configuration, and refuses those of others.
MIXED = ("nvfp4 and fp8", "int4 and fp8")


def scheme_of(stored: Tensors, module: str) -> tuple[str, QuantizationScheme]:
    """The format and the scheme by which compressed-tensors decompresses these tensors of a module."""
    scales = stored[f"{module}.weight_scale"]
    if f"{module}.weight_shape" in stored:
        columns = int(stored[f"{module}.weight_shape"][1])
        group = columns // scales.shape[-1]
        is_row = scales.shape[-1] == 1
        return "pack-quantized", int4("channel" if is_row else "group", None if is_row else group)
    if f"{module}.weight_packed" in stored:
        is_nvfp4 = f"{module}.weight_global_scale" in stored
        arguments = QuantizationArgs(
            num_bits=4,
            type="float",
            strategy="tensor_group" if is_nvfp4 else "group",
            group_size=16 if is_nvfp4 else 32,
            scale_dtype=scales.dtype,
        )
        name = "nvfp4-pack-quantized" if is_nvfp4 else "mxfp4-pack-quantized"
        return name, QuantizationScheme(targets=["Linear"], weights=arguments)
    rest: dict[str, Any] = {"strategy": "tensor"}
    if scales.dtype == torch.uint8:
        rest = {"strategy": "group", "group_size": 32, "scale_dtype": torch.uint8}
    elif scales.dim() == 2 and scales.shape[1] == 1:
        rest = {"strategy": "channel"}
    elif scales.numel() > 1:
        rest = {"strategy": "block", "block_structure": [128, 128]}
    arguments = QuantizationArgs(num_bits=8, type="float", **rest)
    name = "mxfp8-quantized" if scales.dtype == torch.uint8 else "float-quantized"
    return name, QuantizationScheme(targets=["Linear"], weights=arguments)


def decompressed(stored: Tensors) -> Tensors:
    """Every weight as compressed-tensors decompresses it; what it has no part in, as it is."""
    decoded = {name: tensor for name, tensor in stored.items() if name.endswith(".weight")}
    for name in [name for name in stored if name.endswith(".weight_scale")]:
        module = name.removesuffix(".weight_scale")
        parts = {
            key.removeprefix(f"{module}."): stored[key] for key in stored if key.startswith(f"{module}.")
        }
        form, scheme = scheme_of(stored, module)
        made = BaseCompressor.get_value_from_registry(form).decompress(parts, scheme)
        decoded[f"{module}.weight"] = made["weight"]
    return decoded


@each
def test_what_compressed_tensors_writes_loads_as_it_decompresses_it(config: str, tmp_path: Path):
    groups, kinds = CONFIGS[config]
    written_by_compressed_tensors(dense_model(), groups, tmp_path)
    stored = held(tmp_path)
    expected = {name: tensor.to(torch.bfloat16) for name, tensor in decompressed(stored).items()}
    state = {name: torch.full_like(tensor, 7) for name, tensor in expected.items()}
    report = sw.load(state, tmp_path, layout="transformers")
    assert report.unused == [] and report.unknown == [] and report.not_loaded == []
    assert differing(state, expected) == []
    assert set(sw._core.scaled_weights(sw.read_catalog(tmp_path))) == kinds
    if config not in MIXED:
        assert differing(read_by_transformers(tmp_path), expected) == []


@each
def test_an_export_with_its_checkpoint_as_template_is_that_checkpoint(config: str, tmp_path: Path):
    written_by_compressed_tensors(dense_model(), CONFIGS[config][0], tmp_path / "theirs")
    state = exported_as(tmp_path / "theirs", tmp_path / "ours")
    assert differing(held(tmp_path / "ours"), held(tmp_path / "theirs")) == []
    if config not in MIXED:
        assert differing(read_by_transformers(tmp_path / "ours"), state) == []


#: Our rules for what its configurations write.
RULES = {
    "nvfp4": "nvfp4-compressed-tensors",
    "mxfp4": "mxfp4-ocp",
    "int4, groups of 32": "int4-compressed-tensors",
    "int4, groups of 128": "int4-compressed-tensors-group128",
    "int4, rows": "int4-compressed-tensors-channel",
}


@pytest.mark.parametrize("config", RULES)
def test_an_export_by_rule_is_what_compressed_tensors_writes(config: str, tmp_path: Path):
    model = dense_model()
    model.save_pretrained(tmp_path / "plain")
    written_by_compressed_tensors(model, CONFIGS[config][0], tmp_path / "theirs")
    state = sw.empty_state_dict(tmp_path / "plain", layout="transformers")
    sw.load(state, tmp_path / "plain", layout="transformers")
    sw.export(
        state,
        tmp_path / "ours",
        quantization=RULES[config],
        quantized_weights=["*_proj.weight"],
        template=tmp_path / "plain",
        layout="transformers",
    )
    assert differing(held(tmp_path / "ours"), held(tmp_path / "theirs")) == []
    sw.load(state, tmp_path / "ours", layout="transformers")
    assert differing(read_by_transformers(tmp_path / "ours"), state) == []


@pytest.mark.parametrize("config", MIXED)
def test_transformers_does_not_load_what_has_two_encodings(config: str, tmp_path: Path):
    """Once it does, MIXED can go."""
    written_by_compressed_tensors(dense_model(), CONFIGS[config][0], tmp_path)
    with pytest.raises(RuntimeError, match="automatic conversion of the weights"):
        read_by_transformers(tmp_path)
