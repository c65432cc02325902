"""Imported maps go wherever a table's do, and what cannot be said is refused with its name."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
import transformers
from mapped_models import classes_of, tiny_model
from safetensors.torch import save_file
from shardwright import _core
from shardwright.adapters import StateDictAdapter
from shardwright.describe import spec_of_part
from shardwright.imported import transformers_mapping
from shardwright.weight_maps import weight_map_for
from test_importer import bits, expect_same, loaded_by_transformers, saved, stored_in, unfilled
from tiny_models import TINY
from transformers import LlamaConfig, conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

#: A family with experts that has no table of ours, for tests of what is done without one.
FAMILY = transformers.OlmoeForCausalLM


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor], Any]:
    path = tmp_path_factory.mktemp("importer") / "saved"
    model, theirs = saved(tiny_model(FAMILY), path, with_prefixes=False)
    return path, theirs, model


def test_without_a_table_the_config_beside_the_weights_is_enough(checkpoint):
    path, theirs, _ = checkpoint
    ours = unfilled(theirs)
    sw.load(ours, path, layout="transformers")
    expect_same(ours, theirs)
    empty = sw.empty_state_dict(path, layout="transformers")
    assert {name: t.shape for name, t in empty.items()} == {name: t.shape for name, t in theirs.items()}
    asked = {name for name, _, _ in sw.request_list(path, layout="transformers")}
    assert asked == stored_in(path).keys()


@pytest.mark.parametrize("form", ["config", "class", "model", "model_type"])
def test_model_may_be_a_config_a_class_a_model_or_a_model_type(form: str, checkpoint, tmp_path: Path):
    path, theirs, model = checkpoint
    given = {"config": model.config, "class": FAMILY, "model": model, "model_type": "olmoe"}[form]
    ours = unfilled(theirs)
    sw.load(ours, path, layout="transformers", model=given)
    expect_same(ours, theirs)
    sw.export(ours, tmp_path / "to", layout="transformers", model=given, template=path)
    expect_same(stored_in(tmp_path / "to"), stored_in(path))


def test_planners_of_dcp_take_an_imported_map(checkpoint, tmp_path: Path):
    path, theirs, _ = checkpoint
    ours = unfilled(theirs)
    dcp.load(
        ours,
        storage_reader=sw.HuggingFaceStorageReader(path),
        planner=sw.LoadPlanner(model=FAMILY, layout="transformers"),
        no_dist=True,
    )
    expect_same(ours, theirs)
    dcp.save(
        ours,
        storage_writer=sw.HuggingFaceStorageWriter(
            tmp_path / "to", template=path, model=FAMILY, layout="transformers"
        ),
        planner=sw.SavePlanner(),
        no_dist=True,
    )
    expect_same(stored_in(tmp_path / "to"), stored_in(path))


def test_an_export_without_a_template_has_the_names_that_transformers_saves(checkpoint, tmp_path: Path):
    path, theirs, model = checkpoint
    ours = {name: tensor.bfloat16() for name, tensor in theirs.items()}
    sw.export(ours, tmp_path / "to", layout="transformers", model=model)
    expect_same(
        stored_in(tmp_path / "to"), {name: tensor.bfloat16() for name, tensor in stored_in(path).items()}
    )


def test_the_adapter_converts_in_memory_both_ways(checkpoint):
    path, theirs, model = checkpoint
    adapter = StateDictAdapter(model, layout="transformers", dtype=torch.float32)
    hf = dict(adapter.to_hf(dict(theirs)))
    expect_same(hf, stored_in(path))
    expect_same(adapter.from_hf(hf), theirs)


def test_pipeline_stages_follow_the_layers(checkpoint):
    path, theirs, model = checkpoint
    catalog = sw.read_catalog(path)
    natives = _core.native_tensors(catalog, weight_map_for(catalog, layout="transformers"))
    mesh = _core.parse_mesh("pp=2")
    first, second = ({spec.fqn for spec in _core.specs_on_mesh(natives, mesh, rank)} for rank in (0, 1))
    assert first | second == theirs.keys() and not first & second
    assert "model.embed_tokens.weight" in first and {"model.norm.weight", "lm_head.weight"} <= second
    last = model.config.num_hidden_layers - 1
    assert "model.layers.0.mlp.experts.down_proj" in first
    assert f"model.layers.{last}.mlp.experts.down_proj" in second


@pytest.mark.parametrize(
    "name", ["olmoe", "Dinov2Model", "qwen3_vl_moe", "inkling_mm_model", "ernie4_5_vl_moe", "kimi_k25"]
)
def test_halves_of_tensors_along_any_dimension_are_halves_of_what_transformers_loads(
    name: str, tmp_path: Path
):
    """As two ranks hold them; the first half is one longer where they are not equal."""
    model_class = classes_of(name)[0]
    _, theirs = saved(tiny_model(model_class), tmp_path / "saved", with_prefixes=False)
    catalog = sw.read_catalog(tmp_path / "saved")
    weight_map = weight_map_for(catalog, model_class, "transformers")
    for dim in (0, -1):
        for rank in (0, 1):
            expected, specs, locals_ = {}, [], {}
            for fqn, tensor in theirs.items():
                if tensor.ndim == 0:
                    continue
                half = -(-tensor.shape[dim] // 2)
                start, length = (0, half) if rank == 0 else (half, tensor.shape[dim] - half)
                expected[fqn] = tensor.narrow(dim, start, length)
                locals_[fqn] = torch.full_like(expected[fqn], -1, memory_format=torch.contiguous_format)
                offset = [0] * tensor.ndim
                offset[dim] = start
                boxes = (
                    [_core.LocalBox(offset, list(locals_[fqn].shape), [0] * tensor.ndim)] if length else []
                )
                specs.append(spec_of_part(fqn, locals_[fqn], tensor.shape, boxes))
            _core.run_load(_core.plan_load(specs, catalog, weight_map), catalog, specs)
            expect_same(locals_, expected)


def test_the_command_line_takes_a_family_without_a_table(checkpoint):
    from shardwright.cli.command_line import main

    path, _, _ = checkpoint
    for command in (["inspect", str(path)], ["plan", str(path), "--layout", "transformers"]):
        main(command)


@pytest.mark.parametrize(
    ("stored_as", "loaded_as"),
    [(transformers.OlmoeForCausalLM, transformers.OlmoeModel), (transformers.LlavaModel, None)],
)
def test_the_prefix_of_the_base_model_is_added_and_taken_away(stored_as: Any, loaded_as: Any, tmp_path: Path):
    saved(tiny_model(stored_as), tmp_path / "saved", with_prefixes=False)
    loaded_as = loaded_as or transformers.LlavaForConditionalGeneration
    theirs = loaded_as.from_pretrained(tmp_path / "saved").state_dict()
    ours = {
        name: t for name, t in unfilled(theirs).items() if name != "lm_head.weight" or loaded_as is stored_as
    }
    sw.load(ours, tmp_path / "saved", layout="transformers", model=loaded_as, strict=False)
    expect_same(ours, {name: theirs[name] for name in ours})


def test_a_text_model_is_filled_from_a_checkpoint_of_the_whole(tmp_path: Path):
    whole, part = transformers.Qwen3_5ForConditionalGeneration, transformers.Qwen3_5ForCausalLM
    saved(tiny_model(whole), tmp_path / "saved", with_prefixes=False)
    model, theirs = loaded_by_transformers(part, tmp_path / "saved")
    ours = unfilled(theirs)
    report = sw.load(ours, tmp_path / "saved", layout="transformers", model=part)
    expect_same(ours, theirs)
    assert report.unused and all("visual" in name for name in report.unused)


def test_a_head_that_the_checkpoint_lacks_is_told(tmp_path: Path):
    saved(tiny_model(transformers.OlmoeModel), tmp_path / "saved", with_prefixes=False)
    ours = unfilled(FAMILY(tiny_model(FAMILY).config).state_dict())
    with pytest.raises(sw.PlanError, match=r"lm_head\.weight: the checkpoint lacks lm_head\.weight"):
        sw.load(ours, tmp_path / "saved", layout="transformers", model=FAMILY)
    assert all(bool((bits(tensor) == 0x5A).all()) for tensor in ours.values())


def test_a_tied_head_is_read_from_the_embeddings_and_not_exported(tmp_path: Path):
    config = tiny_model(transformers.Qwen2ForCausalLM).config
    config.tie_word_embeddings = True
    small = transformers.Qwen2ForCausalLM(config)
    _, theirs = saved(small, tmp_path / "saved", with_prefixes=False)
    assert "lm_head.weight" in theirs and "lm_head.weight" not in stored_in(tmp_path / "saved")
    ours = unfilled(theirs)
    sw.load(ours, tmp_path / "saved", layout="transformers", model=type(small))
    expect_same(ours, theirs)
    sw.export(ours, tmp_path / "to", layout="transformers", model=type(small), template=tmp_path / "saved")
    expect_same(stored_in(tmp_path / "to"), stored_in(tmp_path / "saved"))


def rewrite(path: Path, into: Path, change: Any) -> Path:
    into.mkdir()
    tensors = {name: tensor.clone() for name, tensor in change(stored_in(path)).items()}
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    (into / "config.json").write_text((path / "config.json").read_text())
    return into


def test_block_scaled_weights_are_decoded_on_the_way(checkpoint, tmp_path: Path):
    path, theirs, _ = checkpoint
    scale = torch.tensor([[0.25]])

    def quantized(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        small = {name: t for name, t in stored.items() if ".experts." in name and max(t.shape) <= 128}
        assert small
        scales = {f"{name}_scale_inv": scale.clone() for name in small}
        return stored | {name: (t / 0.25).to(torch.float8_e4m3fn) for name, t in small.items()} | scales

    fp8 = rewrite(path, tmp_path / "fp8", quantized)
    decoded = rewrite(
        path,
        tmp_path / "decoded",
        lambda stored: {
            name: (t / 0.25).to(torch.float8_e4m3fn).float() * 0.25
            if ".experts." in name and max(t.shape) <= 128
            else t
            for name, t in stored.items()
        },
    )
    expected = FAMILY.from_pretrained(decoded).state_dict()
    ours = unfilled(theirs)
    sw.load(ours, fp8, layout="transformers")
    expect_same(ours, expected)


def test_what_transformers_finds_unexpected_is_an_error_by_name(checkpoint, tmp_path: Path):
    path, theirs, _ = checkpoint
    more = rewrite(
        path,
        tmp_path / "more",
        lambda stored: (
            stored
            | {
                name.replace("layers.0.", "layers.7."): t
                for name, t in stored.items()
                if ".layers.0." in name
            }
        ),
    )
    ours = unfilled(theirs)
    with pytest.raises(sw.PlanError, match=r"model\.layers\.7\.self_attn\.q_proj\.weight: no rule"):
        sw.load(ours, more, layout="transformers")
    report = sw.load(ours, more, layout="transformers", strict=False)
    expect_same(ours, theirs)
    assert any("layers.7" in name for name in report.unknown)


def test_layers_that_transformers_passes_over_are_unused(tmp_path: Path):
    model_class = transformers.DeepseekV3ForCausalLM
    model, theirs = saved(tiny_model(model_class), tmp_path / "saved", with_prefixes=False)
    layer = 61  # of MTP in the released model, which the class leaves out
    assert any(
        re.search(pattern, f"model.layers.{layer}.x") for pattern in model._keys_to_ignore_on_load_unexpected
    )
    more = rewrite(
        tmp_path / "saved",
        tmp_path / "more",
        lambda stored: (
            stored
            | {n.replace("layers.1.", f"layers.{layer}."): t for n, t in stored.items() if ".layers.1." in n}
        ),
    )
    ours = unfilled(theirs)
    report = sw.load(ours, more, layout="transformers", model=model_class)
    expect_same(ours, theirs)
    assert report.unused and all(f"layers.{layer}." in name for name in report.unused)
    assert sw.empty_state_dict(more, layout="transformers", model=model_class).keys() == theirs.keys()


def test_an_expert_that_is_missing_is_an_error_before_anything_is_written(checkpoint, tmp_path: Path):
    path, theirs, _ = checkpoint
    less = rewrite(
        path,
        tmp_path / "less",
        lambda stored: {n: t for n, t in stored.items() if ".0.mlp.experts.2.up" not in n},
    )
    ours = unfilled(theirs)
    with pytest.raises(
        sw.PlanError, match=r"model\.layers\.0\.mlp\.experts\.gate_up_proj.*experts\.0\.gate_proj"
    ):
        sw.load(ours, less, layout="transformers")
    assert all(bool((bits(tensor) == 0x5A).all()) for tensor in ours.values())


def test_experts_that_are_there_twice_stacked_and_one_by_one_are_an_error(checkpoint, tmp_path: Path):
    path, theirs, _ = checkpoint
    stack = "model.layers.0.mlp.experts.down_proj"
    twice = rewrite(path, tmp_path / "twice", lambda stored: stored | {stack: theirs[stack]})
    with pytest.raises(
        sw.PlanError,
        match=rf"{re.escape(stack)}: expected .* both .*experts\.0\.down_proj.* and {re.escape(stack)};",
    ):
        sw.load(unfilled(theirs), twice, layout="transformers")


def test_experts_that_are_stacked_already_are_taken_as_they_are(checkpoint, tmp_path: Path):
    path, theirs, _ = checkpoint

    def stacked(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        stacks = {name: tensor for name, tensor in theirs.items() if ".mlp.experts." in name}
        return {name: t for name, t in stored.items() if ".mlp.experts." not in name} | stacks

    ours = unfilled(theirs)
    sw.load(ours, rewrite(path, tmp_path / "stacked", stacked), layout="transformers")
    expect_same(ours, theirs)


class Doubled(ConversionOps):
    """Arithmetic, which no rule says."""

    def convert(self, input_dict, source_patterns, target_patterns, **kwargs):
        return {target_patterns[0]: 2 * next(iter(input_dict.values()))[0]}


class Reversed(ConversionOps):
    def convert(self, input_dict, source_patterns, target_patterns, **kwargs):
        return {target_patterns[0]: next(iter(input_dict.values()))[0].flip(0)}


@pytest.mark.parametrize(("operation", "says"), [(Doubled, "mul"), (Reversed, "flip")])
def test_an_operation_that_no_rule_says_is_named(operation: Any, says: str, checkpoint, monkeypatch):
    path, theirs, _ = checkpoint
    mapping = dict(conversion_mapping._build_checkpoint_conversion_mapping())
    mapping["olmoe"] = [*mapping["olmoe"], WeightConverter("q_norm.weight", "q_norm.weight", [operation()])]
    monkeypatch.setattr(conversion_mapping, "_checkpoint_conversion_mapping_cache", mapping)
    ours = unfilled(theirs)
    with pytest.raises(sw.PlanError) as error:
        sw.load(ours, path, layout="transformers")
    assert f"model.layers.0.self_attn.q_norm.weight: {operation.__name__} of transformers" in str(error.value)
    assert says in str(error.value)
    assert all(bool((bits(tensor) == 0x5A).all()) for tensor in ours.values())


def test_two_hf_tensors_for_one_are_an_error(checkpoint, tmp_path: Path, monkeypatch):
    path, theirs, _ = checkpoint
    mapping = dict(conversion_mapping._build_checkpoint_conversion_mapping())
    mapping["olmoe"] = [*mapping["olmoe"], WeightRenaming("other_norm.weight", "model.norm.weight")]
    monkeypatch.setattr(conversion_mapping, "_checkpoint_conversion_mapping_cache", mapping)
    twice = rewrite(
        path,
        tmp_path / "twice",
        lambda stored: stored | {"other_norm.weight": stored["model.norm.weight"] * 2},
    )
    with pytest.raises(sw.PlanError, match=r"model\.norm\.weight: expected one source.*other_norm\.weight"):
        sw.load(unfilled(theirs), twice, layout="transformers")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "unheard_of"}, "'unheard_of' is known neither"),
        ({"architectures": ["OlmoeOfMyOwn"]}, r"\['OlmoeOfMyOwn'\] are not transformers' own; pass model="),
        ({"architectures": None}, "has no architectures; pass model="),
        ({"num_attention_heads": "many"}, "cannot make a OlmoeConfig of config.json"),
        ({"hidden_size": -4}, "cannot make a OlmoeForCausalLM"),
    ],
)
def test_a_config_that_says_no_model_is_an_error_that_says_what_to_pass(
    change: dict[str, Any], says: str, checkpoint, tmp_path: Path
):
    path, theirs, _ = checkpoint
    other = rewrite(path, tmp_path / "other", lambda stored: stored)
    config = json.loads((path / "config.json").read_text()) | change
    (other / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(ValueError, match=says):
        sw.load(unfilled(theirs), other, layout="transformers")


def test_a_code_that_comes_with_a_checkpoint_is_never_run(checkpoint, tmp_path: Path):
    path, theirs, _ = checkpoint
    other = rewrite(path, tmp_path / "other", lambda stored: stored)
    config = json.loads((path / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (other / "config.json").write_text(json.dumps(config))
    (other / "evil.py").write_text("raise SystemExit('ran')")
    ours = unfilled(theirs)
    sw.load(ours, other, layout="transformers")
    expect_same(ours, theirs)


def test_a_config_is_for_the_layout_of_transformers(checkpoint):
    path, theirs, model = checkpoint
    with pytest.raises(ValueError, match="model 'olmoe' is not known"):
        sw.load(unfilled(theirs), path, model=model.config)


def test_two_families_of_tables_take_a_config_for_their_name(tmp_path: Path):
    """In another layout than transformers', a config says the family alone."""
    model_class = transformers.Qwen3MoeForCausalLM
    model, _ = saved(tiny_model(model_class), tmp_path / "saved", with_prefixes=False)
    by_config = sw.empty_state_dict(tmp_path / "saved", model=model.config)
    by_name = sw.empty_state_dict(tmp_path / "saved", model="qwen3_moe")
    assert by_config.keys() == by_name.keys()
    assert any(name.endswith("gate_and_up_projs") for name in by_config)


def test_a_configs_class_stands_for_its_model(tmp_path: Path):
    tiny = next(one for one in TINY if one.id == "llama")
    expected = dict(tiny.write(tmp_path).state_dict())
    state = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    sw.load(state, tmp_path, layout="transformers", model=LlamaConfig)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_5_moe", "nemotron_h", "mixtral", "minimax_m2"])
def test_groups_that_differ_in_names_alone_are_converted_once_and_say_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tiny = next(tiny for tiny in TINY if tiny.id == name)
    model = tiny.write(tmp_path)
    shapes = transformers_mapping.weight_shapes(sw.read_catalog(tmp_path))
    once = transformers_mapping.converted(model, shapes)
    monkeypatch.setattr(transformers_mapping.Group, "like", lambda self, shapes: None)
    each = transformers_mapping.converted(model, shapes)
    assert (once.rows, once.shapes, once.sizes) == (each.rows, each.shapes, each.sizes)
    assert any("experts" in row.hf for row in once.rows)
