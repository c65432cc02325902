"""Exports by named rules: the tensors of the tool that has the rule, bit for bit, whatever shards they come from."""

import json
from pathlib import Path

import pytest
import reference
import shardwright as sw
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from slow_rules import RULES, decoded
from test_template_encodings import differing, held

#: Fits "a.weight" and "mlp.experts".
PATTERN = ["*.*e*t*"]


def weights(generator: torch.Generator, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Of every magnitude, with blocks of zeros, signed zeros and ties."""
    values = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    values *= torch.exp2(torch.randint(-12, 6, (rows, 1), generator=generator).double())
    values[torch.rand(rows, columns, generator=generator) < 0.1] = 0.0
    values[torch.rand(rows, columns, generator=generator) < 0.05] = -0.0
    halves = torch.randint(-16, 17, (rows, columns), generator=generator) * 0.25
    values = torch.where(torch.rand(rows, 1, generator=generator) < 0.3, halves, values)
    values[torch.rand(rows, generator=generator) < 0.1] = 0.0
    return values.to(dtype)


def exported(path: Path, state: dict[str, torch.Tensor], rule: str, **options) -> dict[str, torch.Tensor]:
    sw.export(state, path, quantization=rule, layout="huggingface", quantized_weights=PATTERN, **options)
    return held(path)


def test_there_is_a_plain_definition_of_every_rule():
    assert sw.quantizations() == list(RULES)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=-(-settings().max_examples * 15 // 100), suppress_health_check=list(HealthCheck))
@given(
    rows=st.integers(1, 300),
    groups=st.integers(1, 12),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    seed=st.integers(0, 2**32),
)
def test_bits_are_those_of_the_rule(rule, rows, groups, dtype, seed, tmp_path_factory):
    columns = groups * (32 if rule == "mxfp4-gpt-oss" else 8)
    weight = weights(torch.Generator().manual_seed(seed), rows, columns, dtype)
    bias = torch.ones(rows)
    path = tmp_path_factory.mktemp("export")
    found = exported(path, {"a.weight": weight, "a.bias": bias}, rule, max_shard_size="1KB")
    assert differing(found, RULES[rule]("a.weight", weight) | {"a.bias": bias}) == []


@pytest.mark.parametrize("rule", ["block_fp8", "mxfp4-gpt-oss", "mxfp8"])
def test_stacks_are_quantized_matrix_by_matrix(rule: str, tmp_path: Path):
    stack = torch.stack(
        [weights(torch.Generator().manual_seed(n), 140, 160, torch.bfloat16) for n in range(3)]
    )
    name = "experts.weight" if rule == "mxfp4-gpt-oss" else "mlp.experts"
    assert differing(exported(tmp_path, {name: stack}, rule), RULES[rule](name, stack)) == []


def test_a_stack_that_gpt_oss_would_have_transposed_is_refused(tmp_path: Path):
    with pytest.raises(sw.PlanError, match="mlp.experts: as mxfp4-gpt-oss a matrix is the transpose"):
        exported(tmp_path, {"mlp.experts": torch.ones(2, 64, 64)}, "mxfp4-gpt-oss")


def test_a_nan_has_no_say_in_the_scale_of_its_block_in_a_stack(tmp_path: Path):
    stack = torch.ones(2, 3, 32)
    stack[1, 2, 5] = float("nan")
    found = exported(tmp_path / "stack", {"mlp.experts": stack}, "mxfp8")
    for expert in range(2):
        alone = exported(tmp_path / str(expert), {"a.weight": stack[expert]}, "mxfp8")
        assert torch.equal(
            found["mlp.experts"][expert].view(torch.uint8), alone["a.weight"].view(torch.uint8)
        )
        assert torch.equal(found["mlp.experts_scale_inv"][expert], alone["a.weight_scale_inv"])


@pytest.mark.parametrize("method", ["awq", "bitsandbytes"])
def test_a_source_by_a_method_that_is_known_by_name_only_is_not_converted(method: str, tmp_path: Path):
    (tmp_path / "from").mkdir()
    save_file({"n.weight": torch.ones(64, 64)}, tmp_path / "from" / "model.safetensors")
    config = {"quantization_config": {"quant_method": method}}
    (tmp_path / "from" / "config.json").write_text(json.dumps(config))
    with pytest.raises(sw.PlanError, match=f"quant_method '{method}'"):
        sw.convert(tmp_path / "from", tmp_path / "to", quantization="bf16")
    assert not (tmp_path / "to" / "config.json").exists()


def test_two_tensors_of_one_stored_name_are_refused(tmp_path: Path):
    state = {"a.weight": torch.ones(128, 128), "a.weight_packed": torch.ones(128, 64, dtype=torch.uint8)}
    with pytest.raises(
        sw.PlanError, match="two tensors of the state dict would be stored as .a.weight_packed"
    ):
        sw.export(
            state,
            tmp_path,
            quantization="nvfp4-compressed-tensors",
            quantized_weights=["a.weight"],
            layout="huggingface",
        )


def test_values_too_small_for_a_scale_are_refused_where_zeros_would_become_nan(tmp_path: Path):
    small = torch.full((128, 128), 1e-37, dtype=torch.bfloat16)
    with pytest.raises(sw.PlanError, match="a.weight has values so small that block_fp8"):
        exported(tmp_path, {"a.weight": small}, "block_fp8")


@pytest.mark.parametrize("rule", RULES)
def test_what_was_written_is_loaded_as_the_tool_decodes_it(rule: str, tmp_path: Path):
    weight = weights(torch.Generator().manual_seed(3), 130, 256, torch.bfloat16)
    exported(tmp_path, {"a.weight": weight}, rule)
    for dtype in (torch.bfloat16, torch.float32):
        loaded = {"a.weight": torch.full((130, 256), 7, dtype=dtype)}
        sw.load(loaded, tmp_path, layout="huggingface")
        assert reference.same(
            loaded["a.weight"], decoded(rule, "a.weight", RULES[rule]("a.weight", weight), dtype)
        )


@pytest.mark.parametrize("rule", RULES)
def test_a_template_of_another_encoding_says_which_weights_and_config_tells_the_rule(
    rule: str, tmp_path: Path
):
    weight = weights(torch.Generator().manual_seed(4), 40, 64, torch.bfloat16)
    plain = torch.ones(40, 64, dtype=torch.bfloat16)
    source = tmp_path / "source"
    source.mkdir()
    save_file(RULES["mxfp8"]("a.weight", weight) | {"b.weight": plain}, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "mxfp8"}}))
    (source / "hf_quant_config.json").write_text("{}")
    state = {"a.weight": weight, "b.weight": plain}
    sw.export(state, tmp_path / "to", quantization=rule, template=source, layout="huggingface")
    assert differing(held(tmp_path / "to"), RULES[rule]("a.weight", weight) | {"b.weight": plain}) == []
    told = json.loads((tmp_path / "to" / "config.json").read_text())["quantization_config"]
    assert told["quant_method"] == {
        "mxfp8": "mxfp8",
        "block_fp8": "fp8",
        "mxfp4-gpt-oss": "mxfp4",
        "mxfp4-modelopt": "modelopt",
        "nvfp4-modelopt": "modelopt",
    }.get(rule, "compressed-tensors")
    if rule != "mxfp8":
        assert "b" in told.get("ignore", told.get("modules_to_not_convert"))
    assert not (tmp_path / "to" / "hf_quant_config.json").exists()
    assert sw.verify(tmp_path / "to").problems == []


def test_what_modelopt_says_again_of_the_weights_goes_with_them(tmp_path: Path):
    """Beside other weights, hf_quant_config.json would have an engine decode what is not encoded."""
    weight = weights(torch.Generator().manual_seed(5), 40, 64, torch.bfloat16)
    source, to = tmp_path / "source", tmp_path / "to"
    source.mkdir()
    save_file(RULES["nvfp4-modelopt"]("a.weight", weight), source / "model.safetensors")
    (source / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "modelopt"}}))
    (source / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    state = {"a.weight": torch.zeros(40, 64, dtype=torch.bfloat16)}
    sw.load(state, source, layout="huggingface")

    def written_in_nvfp4() -> None:
        sw.export(state, to, quantization="template", template=source, layout="huggingface")
        assert (to / "hf_quant_config.json").exists()

    plain = tmp_path / "plain"
    sw.export(state, plain, layout="huggingface")
    for template in (None, plain):
        written_in_nvfp4()
        sw.export(state, to, layout="huggingface", template=template)
        assert not (to / "hf_quant_config.json").exists()
        assert sw.verify(to).problems == []
    written_in_nvfp4()
    (to / "hf_quant_config.json").write_text("mine")
    with pytest.raises(FileExistsError, match=r"hf_quant_config\.json"):
        sw.export(state, to, layout="huggingface")
    assert (to / "hf_quant_config.json").read_text() == "mine"
    sw.export(state, to, layout="huggingface", overwrite=True)
    assert not (to / "hf_quant_config.json").exists()


@pytest.mark.parametrize("listed", ["modules_to_not_convert", "ignored_layers", None])
def test_a_list_of_plain_modules_is_that_of_the_weights_that_are_written(listed: str | None, tmp_path: Path):
    """Of a template in mxfp8 config.json stays as it is, as long as its list is true."""
    weight = weights(torch.Generator().manual_seed(6), 40, 64, torch.bfloat16)
    source = tmp_path / "source"
    source.mkdir()
    plain = torch.ones(40, 64, dtype=torch.bfloat16)
    stored = RULES["mxfp8"]("m.a.weight", weight) | {"m.b.weight": plain}
    save_file(stored, source / "model.safetensors")
    told = {"quant_method": "mxfp8", "weight_block_size": [1, 32]} | ({listed: ["m.b"]} if listed else {})
    text = json.dumps({"x": 1, "quantization_config": told})
    (source / "config.json").write_text(text)
    state = {"m.a.weight": weight, "m.b.weight": plain}

    def config_of(name: str, *patterns: str) -> dict:
        path = tmp_path / name
        options = {"quantized_weights": list(patterns)} if patterns else {}
        sw.export(state, path, quantization="mxfp8", template=source, layout="huggingface", **options)
        if name == "as before":
            assert (path / "config.json").read_text() == text
        config = json.loads((path / "config.json").read_text())
        assert config["x"] == 1
        return config["quantization_config"]

    assert config_of("as before") == told
    both = config_of("both", "m.*")
    assert both == (told | {listed: []} if listed else told)
    other = config_of("the other one", "m.b.*")
    assert other == told | {listed or "modules_to_not_convert": ["m.a"]}


# --- what is refused, with nothing published --------------------------------------------------------------------------


def refused(path: Path, message: str, state: dict[str, torch.Tensor], rule: str, **options) -> None:
    options = {"quantized_weights": PATTERN, "layout": "huggingface"} | options
    with pytest.raises(ValueError, match=message):
        sw.export(state, path, quantization=rule, **options)
    assert not list(path.glob("*.safetensors")) and not list(path.glob("*.json"))


@pytest.mark.parametrize("rule", [name for name in RULES if name != "mxfp8"])
@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("-inf"), "infini")])
def test_values_that_are_not_finite(rule: str, value: float, word: str, tmp_path: Path):
    weight = torch.ones(8, 64)
    weight[5, 33] = value
    refused(tmp_path, rf"a\.weight.*{word}", {"a.weight": weight}, rule)


@pytest.mark.parametrize("rule", RULES)
def test_a_dtype_that_cannot_be_encoded(rule: str, tmp_path: Path):
    state = {"a.weight": torch.ones(8, 64, dtype=torch.int32)}
    refused(tmp_path, rf"a\.weight: cannot store I32 as {rule}; expected BF16, F16 or F32", state, rule)


@pytest.mark.parametrize("rule", [name for name in RULES if "fp8" not in name])
def test_rows_of_an_odd_length(rule: str, tmp_path: Path):
    refused(
        tmp_path,
        r"a\.weight \[8, 33\]: cannot be stored as .* found 33",
        {"a.weight": torch.ones(8, 33)},
        rule,
    )


def test_rows_that_fill_no_word(tmp_path: Path):
    state = {"a.weight": torch.ones(8, 36)}
    refused(tmp_path, r"multiple of 8 elements", state, "int4-compressed-tensors")


def test_a_stack_that_the_tool_does_not_know(tmp_path: Path):
    state = {"mlp.experts": torch.ones(2, 8, 32)}
    refused(tmp_path, r"a name that ends in \.weight", state, "nvfp4-modelopt")


def test_an_unknown_rule_is_told_those_that_there_are(tmp_path: Path):
    refused(tmp_path, r"'nvfp4'; expected one of .*nvfp4-modelopt", {"a.weight": torch.ones(2, 32)}, "nvfp4")


def test_a_pattern_that_nothing_fits(tmp_path: Path):
    state = {"a.weight": torch.ones(2, 32)}
    refused(tmp_path, r"no matrix .* '\*\.up\.weight'", state, "mxfp8", quantized_weights=["*.up.weight"])


def test_patterns_without_a_rule(tmp_path: Path):
    with pytest.raises(ValueError, match="quantized_weights: expected a quantization="):
        sw.export({"a.weight": torch.ones(4, 32)}, tmp_path / "to", quantized_weights=["*"])
