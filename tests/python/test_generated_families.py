"""The small checkpoint that the generator makes of each family, in each form, goes through everything in each layout.

That each is what the release is like, and that its bits become what trainers hold, is asked of transformers and
nemo-automodel themselves in tests/peers/test_generated_families.py.
"""

import json
from pathlib import Path

import pytest
import shardwright as sw
import torch
from families import Tensors, held
from reference import differing
from shardwright import _core

FAMILIES = {one.name: one for one in _core.families()}
FORMS = [(name, form) for name in FAMILIES for form in _core.sample_forms(name)]
CASES = [(name, form, layout) for name, form in FORMS for layout in [*FAMILIES[name].layouts, "huggingface"]]

each_form = pytest.mark.parametrize("family, form", FORMS, ids=[f"{name}, {form}" for name, form in FORMS])
each = pytest.mark.parametrize(
    "family, form, layout", CASES, ids=[f"{name}, {form}, {layout}" for name, form, layout in CASES]
)


#: Layouts whose tables need sizes of config.json, which an export has by its template alone.
NEEDS_CONFIG = {
    (name, "torchtitan") for name in ("llama", "deepseek_v3", "qwen3_5", "qwen3_5_moe", "kimi_k25")
} | {
    ("step3p7", "transformers"),
    ("step3p7", "automodel"),
    ("kimi_k25", "transformers"),
    ("bailing_moe_v2", "automodel"),
}


def filled(state: Tensors) -> Tensors:
    return {name: torch.full_like(tensor, 7) for name, tensor in state.items()}


def is_of_mtp(name: str) -> bool:
    """Whether layouts of trainers without multi-token prediction have no place for it, or training no use."""
    return "mtp" in name or "layers.2." in name or name.endswith("activation_scale")


def is_scale(name: str) -> bool:
    """Or another companion of an encoded weight."""
    return name.endswith(("_scale_inv", "_scale", "_scales", "_scale_2", "_shape", ".scale"))


def is_packed(stored: Tensors) -> bool:
    """Whether elements share bytes, so that files of BF16 have other names and shapes."""
    integers = (torch.uint8, torch.int8, torch.int32)
    return any(tensor.dtype in integers and not is_scale(name) for name, tensor in stored.items())


@pytest.mark.families
@each
def test_it_loads_exports_and_resumes(family: str, form: str, layout: str, tmp_path: Path):
    source = tmp_path / "from"
    sw.generate(source, family=family, form=form, values="any")
    state = filled(sw.empty_state_dict(source, layout=layout))
    report = sw.load(state, source, layout=layout)
    assert report.unknown == [] and report.not_loaded == []
    assert [name for name in report.unused if not is_of_mtp(name)] == []
    stored = held(source)
    if layout == "huggingface":
        plain = {
            name: tensor for name, tensor in stored.items() if name in state and tensor.dtype.itemsize > 1
        }
        assert differing({name: state[name] for name in plain}, plain) == []

    quantization = "template" if is_packed(stored) else None
    sw.export(state, tmp_path / "templated", template=source, quantization=quantization, layout=layout)
    exported = held(tmp_path / "templated")
    assert exported.keys() <= stored.keys()
    assert all(is_of_mtp(name) or is_scale(name) for name in stored.keys() - exported.keys())
    if is_packed(stored) or not any(is_scale(name) for name in stored):
        written = multiplied(stored) if (family, layout) == ("gemma4", "automodel") else stored
        assert differing(exported, {name: written[name] for name in exported}) == []
    back = filled(state)
    sw.load(back, tmp_path / "templated", layout=layout)
    assert differing(back, state) == []

    if (family, layout) in NEEDS_CONFIG and form != "kimi_k2_int4":  # has no multi-token prediction
        with pytest.raises(sw.PlanError, match="template=|no rule of"):
            sw.export(state, tmp_path / "plain", model=family, layout=layout)
    else:
        report = sw.export(state, tmp_path / "plain", model=family, layout=layout)
        config = json.loads((source / "config.json").read_text())
        config.pop("quantization_config", None)  # the export is in BF16
        (tmp_path / "plain" / "config.json").write_text(json.dumps(config))
        back = filled(state)
        sw.load(back, tmp_path / "plain", layout=layout)
        assert differing(back, state) == sorted(report.rounded)

    sw.save(state, tmp_path / "saved")
    back = filled(state)
    sw.load(back, tmp_path / "saved")
    assert differing(back, state) == []


def multiplied(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What nemo-automodel makes of Gemma 4, which holds weights multiplied by their factors."""
    written = dict(stored)
    for name, factor in stored.items():
        if name.endswith(".router.per_expert_scale"):
            down = name.replace(".router.per_expert_scale", ".experts.down_proj")
            written[down] = stored[down] * factor[:, None, None]
            written[name] = torch.ones_like(factor)
    return written


def test_every_family_has_forms_and_a_config_that_tells_it():
    for name, form in FORMS:
        catalog = _core.generated_catalog(family=name, form=form)
        assert json.loads(catalog.config)["model_type"] in FAMILIES[name].model_types
        assert catalog.tensors


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_seed_encoding_and_size_of_files_are_as_with_presets(tmp_path: Path):
    sw.generate(tmp_path / "one", family="qwen3_moe", seed=3)
    sw.generate(tmp_path / "two", family="qwen3_moe", seed=3, threads=1)
    sw.generate(tmp_path / "other", family="qwen3_moe", seed=4)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") != contents(tmp_path / "other")
    report = sw.generate(tmp_path / "small", family="qwen3_moe", max_shard_size="20KB")
    sizes = [tensor.nbytes for tensor in held(tmp_path / "small").values()]
    assert report.files > 4 and report.bytes == sum(sizes)
    for encoding in _core.generated_encodings():
        sizes = {"hidden_size": 64, "moe_intermediate_size": 96}  # whole blocks, which gpt-oss's need
        sw.generate(tmp_path / encoding, family="qwen3_moe", encoding=encoding, config=sizes)
        (kind,) = _core.scaled_weights(sw.read_catalog(tmp_path / encoding))
        assert encoding.startswith(kind)


@pytest.mark.parametrize(
    "generated",
    [
        {"family": "kimi_k2", "form": "kimi_k2_int4"},
        {"family": "kimi_k25", "form": "int4"},
        {"family": "gpt_oss", "form": "mxfp4"},
        {"family": "deepseek_v4", "form": "fp4"},
        {"family": "glm4_moe", "form": "fp8"},
        {"family": "qwen3_moe", "form": "fp8"},
        {"family": "qwen3_5_moe", "form": "nvfp4"},
        {"encoding": "nvfp4_modelopt"},
    ],
    ids=lambda options: options.get("family", "minimax_m3"),
)
def test_small_releases_of_each_encoding_load_and_resume(generated: dict, tmp_path: Path):
    source = tmp_path / "from"
    sw.generate(source, "small", **generated)
    state = filled(sw.empty_state_dict(source))
    report = sw.load(state, source)
    assert report.unknown == [] and report.not_loaded == []
    assert [name for name in report.unused if not is_of_mtp(name)] == []
    sw.export(state, tmp_path / "to", quantization="template", template=source)
    exported, stored = held(tmp_path / "to"), held(source)
    assert all(is_of_mtp(name) for name in stored.keys() - exported.keys())
    assert differing(exported, {name: stored[name] for name in exported}) == []
    sw.save(state, tmp_path / "saved")
    back = filled(state)
    sw.load(back, tmp_path / "saved")
    assert differing(back, state) == []


def test_nvidias_mixed_release_of_qwen_says_what_is_stored_how(tmp_path: Path):
    sw.generate(tmp_path, family="qwen3_5_moe", form="nvfp4")
    told = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert told["quant_algo"] == "MIXED_PRECISION"
    algorithms = {layer["quant_algo"] for layer in told["quantized_layers"].values()}
    assert algorithms == {"FP8", "W4A16_NVFP4"}
    stored = {tensor.name: tensor for tensor in sw.read_catalog(tmp_path).as_stored().tensors}
    layer = "model.language_model.layers.1."
    for module in ("mlp.experts.3.up_proj", "mlp.shared_expert.down_proj"):
        assert stored[f"{layer}{module}.weight"].dtype == "U8"
        assert f"{layer}{module}.weight_scale_2" in stored and f"{layer}{module}.input_scale" not in stored
    assert stored["lm_head.weight"].dtype == "U8"
    attention = stored[f"{layer}self_attn.q_proj.weight"], stored[f"{layer}self_attn.q_proj.weight_scale"]
    assert [(of.dtype, len(of.shape)) for of in attention] == [("F8_E4M3", 2), ("F32", 0)]
    assert stored["model.language_model.layers.0.linear_attn.in_proj_qkv.weight"].dtype == "F8_E4M3"
    assert stored["mtp.layers.0.mlp.experts.gate_up_proj"].dtype == "BF16"


def test_scales_are_of_the_dtype_that_releases_have(tmp_path: Path):
    for family, dtype in (("qwen3_moe", torch.bfloat16), ("deepseek_v3", torch.float32)):
        sw.generate(tmp_path / family, family=family, form="fp8")
        stored = held(tmp_path / family)
        assert {t.dtype for name, t in stored.items() if name.endswith("_scale_inv")} == {dtype}
        assert stored["model.layers.0.self_attn.o_proj.weight"].dtype == torch.float8_e4m3fn
        assert stored["model.norm.weight"].dtype == torch.bfloat16


def test_the_config_decides_all_sizes(tmp_path: Path):
    config = {"hidden_size": 40, "num_experts": 3, "num_hidden_layers": 3}
    sw.generate(tmp_path, family="qwen3_moe", config=config)
    stored = held(tmp_path)
    assert stored["model.layers.2.mlp.experts.2.down_proj.weight"].shape == (40, 40)
    assert "model.layers.2.mlp.experts.3.down_proj.weight" not in stored
    assert json.loads((tmp_path / "config.json").read_text())["hidden_size"] == 40
    nested = {
        "num_hidden_layers": 1,
        "layer_types": ["full_attention"],
        "vision_config": {"depth": 1},
    }
    sw.generate(tmp_path / "nested", family="qwen3_5_moe", config=nested)
    stored = held(tmp_path / "nested")
    assert not any(".layers.1." in name or ".blocks.1." in name for name in stored)
    written = json.loads((tmp_path / "nested" / "config.json").read_text())
    assert written["text_config"]["num_hidden_layers"] == written["vision_config"]["depth"] == 1
    assert written["vision_config"]["hidden_size"] == 12


@pytest.mark.parametrize(
    "options, words",
    [
        ({"family": "bert"}, "bert.*qwen3_moe"),
        ({"family": "qwen3_moe", "form": "fp4"}, "fp4.*bf16, fp8"),
        ({"family": "qwen3_moe", "encoding": "fp3"}, "fp3.*mxfp8, block_fp8, tensor_fp8"),
        ({"family": "qwen3_moe", "preset": "full"}, "preset.*small or bench"),
        ({"family": "qwen3_moe", "encoding": "int4_group32", "config": {"hidden_size": 36}}, "multiple of 8"),
        ({"family": "qwen3_moe", "encoding": "mxfp4_gpt_oss"}, "multiple of 32.*found 48"),
        ({"family": "qwen3_moe", "layers": 3}, "layers.*num_hidden_layers"),
        ({"form": "fp8"}, "form.*expected family"),
        ({"config": {"hidden_size": 8}}, "config.*expected family"),
        ({"family": "qwen3_moe", "config": {"hidden_size": -1}}, "hidden_size.*found -1"),
        ({"family": "qwen3_moe", "config": {"hidden_size": 0}}, "hidden.*found 0"),
        ({"family": "qwen3_moe", "config": {"hidden_size": "8"}}, 'hidden_size.*found "8"'),
        ({"family": "qwen3_moe", "config": {"hidden_size": 2**31}}, "hidden_size.*found 2147483648"),
        ({"family": "qwen3_moe", "config": {"num_experts": 2**31 - 1}}, "at most.*tensors"),
        ({"family": "qwen3_moe", "config": {"hidden_size": 2**31 - 1, "head_dim": 2**31 - 1}}, "too large"),
        ({"family": "qwen3_5", "config": {"num_hidden_layers": 3}}, "layer_types.*each of 3 layers, found"),
        ({"family": "qwen3_5", "config": {"layer_types": None}}, "layer_types.*found null"),
        ({"family": "qwen3_5", "config": {"num_hidden_layers": "2"}}, "layer_types|num_hidden_layers"),
        ({"family": "qwen3_5", "config": {"text_config": 5}}, "text_config: expected an object"),
        ({"family": "qwen3_5", "config": {"vision_config": 5}}, "expected a number"),
        ({"family": "step3p7", "config": {"vision_config": {"patch_size": 0}}}, "patch_size.*found 0"),
        ({"family": "step3p7", "config": {"vision_config": {"image_size": 1}}}, "side of 0"),
        ({"family": "deepseek_v3", "config": {"quantization_config": {}}}, "form and the encoding"),
        ({"family": "minimax_m3", "config": {"num_hidden_layers": 2**31 - 1}}, "layer|at most"),
        ({"family": "minimax_m3", "config": {"num_local_experts": 2**31 - 1}}, "at most"),
        ({"family": "qwen3_moe", "config": {"rope_theta": float("nan")}}, "JSON object"),
        ({"family": "qwen3_moe", "max_shard_size": "big"}, "max_shard_size"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_refused(options: dict, words: str, tmp_path: Path):
    with pytest.raises(ValueError, match=f"(?s){words}"):
        sw.generate(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_a_directory_that_holds_a_checkpoint_is_refused(tmp_path: Path):
    sw.generate(tmp_path, family="llama")
    before = contents(tmp_path)
    with pytest.raises((FileExistsError, ValueError), match=str(tmp_path)):
        sw.generate(tmp_path, family="qwen3")
    assert contents(tmp_path) == before
