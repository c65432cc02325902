"""The adapter's names, one by one, held against the reference's."""

from pathlib import Path

import pytest
import reference
from hf_state import text
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


def test_the_names_counted_as_quantised_are_those_with_scales(tiny: Path):
    stored = reference.read_checkpoint(tiny)
    for name in stored:
        if not name.endswith("_scale_inv") and not name.endswith("eh_proj.weight"):
            assert _should_quantize_mxfp8_key(name) == (name + "_scale_inv" in stored), name
