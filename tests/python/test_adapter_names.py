"""The adapter's names, one by one, held against the reference's."""

from pathlib import Path

import pytest
import reference
import torch
from hf_state import text, vl
from shardwright.models.minimax_m3_vl.state_dict_adapter import (
    MiniMaxM3VLStateDictAdapter,
    _should_quantize_mxfp8_key,
)


@pytest.mark.parametrize("prefix", ["model.", "", "language_model.model.", "any.other."])
def test_text_names_keep_their_prefix_both_ways(tiny: Path, prefix: str):
    adapter = text()
    projections = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
    for hf in reference.read_checkpoint(tiny):
        if hf.endswith("_scale_inv") or not hf.startswith("language_model.model."):
            continue
        rest = hf.removeprefix("language_model.model.")
        native, which, expert = reference.native_name("model." + rest, "")
        native = native.removeprefix("model.")
        if which:
            native = f"{native.rpartition('.')[0]}.{expert}.{projections[which]}.weight"
        assert adapter._hf_key_to_native(prefix + rest) == prefix + native
        assert adapter._native_key_to_hf(prefix + native) == prefix + rest


def test_non_text_names_map_both_ways(tiny: Path):
    for hf in reference.read_checkpoint(tiny):
        if not hf.startswith("language_model."):
            native, _, _ = reference.native_name(hf, "language_model.")
            assert MiniMaxM3VLStateDictAdapter._map_non_text_from_hf(hf) == native
            assert MiniMaxM3VLStateDictAdapter._map_non_text_to_hf(native) == hf
    assert MiniMaxM3VLStateDictAdapter._map_non_text_from_hf("model.mtp.layers.0.enorm.weight") is None


def test_the_names_counted_as_quantized_are_those_with_scales(tiny: Path):
    stored = reference.read_checkpoint(tiny)
    for name in stored:
        if not name.endswith("_scale_inv") and not name.endswith("eh_proj.weight"):
            assert _should_quantize_mxfp8_key(name) == (name + "_scale_inv" in stored), name


def test_scales_are_named_as_their_weights_are():
    for hf, native in (
        ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.weight"),
        ("layers.3.block_sparse_moe.experts.12.w1.weight", "layers.3.mlp.experts.12.gate_proj.weight"),
        (
            "model.layers.3.self_attn.index_q_proj.weight",
            "model.layers.3.self_attn.indexer.index_q_proj.weight",
        ),
    ):
        assert text()._hf_key_to_native(hf + "_scale_inv") == native + "_scale_inv"
        assert text()._native_key_to_hf(native + "_scale_inv") == hf + "_scale_inv"


def test_all_of_the_shared_experts_moves_with_them():
    """`block_sparse_moe.shared_experts.*` is `shared_experts.*`, also where no released model has the tensor."""
    for module in ("model.layers.3.", "model.mtp.layers.0.transformer_layer."):
        hf = module + "block_sparse_moe.shared_experts.up_proj.bias"
        native = module + "shared_experts.up_proj.bias"
        assert text()._hf_key_to_native(hf) == native
        assert text()._native_key_to_hf(native) == hf
        tensor = torch.ones(3)
        assert vl().to_hf({native: tensor})["language_model." + hf] is tensor
        assert vl().from_hf({"language_model." + hf: tensor})[native] is tensor


def test_a_stack_of_experts_has_no_hf_name_of_its_own():
    for key in ("model.layers.3.mlp.experts.gate_and_up_projs", "model.layers.3.mlp.experts.down_projs"):
        assert text()._native_key_to_hf(key) == key
