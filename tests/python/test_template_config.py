"""What an export makes of its template's config.json, against Python's own json."""

from __future__ import annotations

import json
from typing import Any

import pytest
import shardwright as sw
from hypothesis import given, settings
from hypothesis import strategies as st
from shardwright import _core

MXFP8 = {
    "quant_method": "mxfp8",
    "fmt": "e4m3",
    "scale_fmt": "ue8m0",
    "weight_block_size": [1, 32],
    "activation_scheme": "dynamic",
}

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.sampled_from([0.5, 1e-06, 1e20, 10000.0, float("inf"), float("-inf")])
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\x01")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(['a"', "b\\", "c", "ü"]), inner)
    ),
    max_leaves=8,
)
quantization = st.sampled_from([None, MXFP8, {"weight_block_size": [128, 128]}, {"quant_method": "fp8"}])


def expected(config: dict[str, Any], text: bytes, quantized: bool) -> bytes:
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
    having = [part for part in parts if "quantization_config" in part]
    tells = bool(having) and having[0]["quantization_config"].get("weight_block_size") == [1, 32]
    if quantized == tells and quantized == bool(having):
        return text
    for part in having:
        del part["quantization_config"]
    if quantized:
        config["quantization_config"] = MXFP8
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


@settings(max_examples=3 * settings().max_examples)
@given(st.dictionaries(st.text("abc", min_size=1), values), values, quantization, quantization, st.booleans())
def test_a_config_tells_the_truth_about_the_weights(config, text_part, outer, inner, quantized):
    config["text_config"] = text_part
    if outer is not None:
        config["quantization_config"] = outer
    if inner is not None and isinstance(text_part, dict):
        text_part["quantization_config"] = inner
    for ensure_ascii in (True, False):
        text = json.dumps(config, ensure_ascii=ensure_ascii).encode()
        found = _core.config_of(text, "mxfp8" if quantized else "none", [], "config.json")
        assert found == expected(json.loads(text), text, quantized)


def test_a_nan_stays_what_it_is():
    text = b'{"limit": [0.0, NaN, "NaN \\" Infinity"], "quantization_config": {}}'
    found = _core.config_of(text, "none", [], "config.json")
    assert found == b'{\n  "limit": [\n    0.0,\n    NaN,\n    "NaN \\" Infinity"\n  ]\n}\n'


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"{}x", b"\xff{}", b'{"a": nan}'])
def test_text_that_is_no_object_is_refused(text):
    with pytest.raises(sw.CheckpointFormatError, match=r"config\.json: expected a JSON object"):
        _core.config_of(text, "mxfp8", [], "config.json")
