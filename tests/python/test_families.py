"""Families beside MiniMax M3, in one process. What several ranks do is in workers/each_family.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from decoder_families import ALL
from families import FAMILIES, Family, expected_adapter, held, lora_of, native
from reference import differing
from shardwright.adapters import StateDictAdapter


def each(families: list[Family]) -> pytest.MarkDecorator:
    """Each layout of each family."""
    cases = [(family, layout) for family in families for layout in family.layouts]
    return pytest.mark.parametrize(
        "family, layout", cases, ids=[f"{family.name}, {layout}" for family, layout in cases]
    )


MARKED = ("qwen3_5_moe", "gpt_oss", "nemotron_h")  # have names that no other family has
PLAIN = [family for family in ALL if not family.is_quantized]
each_family = pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)


@each(ALL)
def test_a_load_gives_what_the_trainers_own_code_makes(family: Family, layout: str, tmp_path: Path):
    expected = native(family, layout, families.write(family, tmp_path))
    state = {name: torch.full_like(tensor, 7) for name, tensor in expected.items()}
    report = sw.load(state, tmp_path, layout=layout)
    assert differing(state, expected) == []
    assert report.unknown == [] and report.not_loaded == []
    assert all(family.without_place(layout, name) for name in report.unused)


@each(ALL)
def test_an_empty_state_dict_has_the_trainers_names_and_shapes(family: Family, layout: str, tmp_path: Path):
    expected = native(family, layout, families.write(family, tmp_path))
    state = sw.empty_state_dict(tmp_path, layout=layout)
    assert {name: tensor.shape for name, tensor in state.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }


@each(PLAIN)
def test_an_export_with_its_template_is_what_was_loaded(family: Family, layout: str, tmp_path: Path):
    tensors = families.write(family, tmp_path / "from")
    state = native(family, layout, tensors)
    report = sw.export(state, tmp_path / "to", template=tmp_path / "from", layout=layout)
    head = {name for name in state if name == "lm_head.weight" and name not in tensors}  # a tied one
    assert set(report.left_out) == head | {name for name in tensors if family.without_place(layout, name)}
    assert differing(held(tmp_path / "to"), family.kept(layout, tensors)) == []


@each_family
def test_an_export_without_a_template_asks_which_family_it_is(family: Family, tmp_path: Path):
    tensors = families.write(family, tmp_path / "from")
    layout = next(iter(family.natives))
    state = native(family, layout, tensors)
    if family.model == "qwen3_moe":  # has no name that no other family has
        with pytest.raises(ValueError, match=r"deepseek_v3, .* more families.*model=.*template="):
            sw.export(state, tmp_path / "to")
        assert not (tmp_path / "to").exists()
    sw.export(
        state,
        tmp_path / "to",
        model="auto" if family.model in MARKED else family.model,
        layout=layout,
    )
    stored = held(tmp_path / "to")
    back = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    sw.load(back, tmp_path / "to", model=family.model, layout=layout)
    assert differing(back, state) == []
    # Without a template, experts are stored as the first released form has them, and heads apart.
    if "apart" not in family.name and "tied" not in family.name:
        assert set(stored) == {name for name in family.kept(layout, tensors) if "_scale_inv" not in name}


@each_family
def test_a_training_goes_on_where_it_was_saved(family: Family, tmp_path: Path):
    state = native(family, next(iter(family.natives)), families.write(family, tmp_path / "from"))
    sw.save(state, tmp_path / "saved")
    back = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    sw.load(back, tmp_path / "saved")
    assert differing(back, state) == []


def test_a_tied_head_is_read_from_the_embedding_and_not_stored_twice(tmp_path: Path):
    family = FAMILIES[0]
    tensors = families.write(family, tmp_path / "whole")
    tied = Family(
        family.name,
        family.model,
        family.config,
        lambda _: {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"},
        family.natives,
    )
    families.write(tied, tmp_path / "tied")
    state = {name: torch.zeros_like(tensor) for name, tensor in native(family, "automodel", tensors).items()}
    sw.load(state, tmp_path / "tied")
    assert torch.equal(state["lm_head.weight"], tensors["model.embed_tokens.weight"])
    assert not torch.equal(state["lm_head.weight"], tensors["lm_head.weight"])
    report = sw.export(state, tmp_path / "to", template=tmp_path / "tied")
    assert report.left_out == ["lm_head.weight"]
    assert differing(held(tmp_path / "to"), held(tmp_path / "tied")) == []


def test_any_checkpoint_loads_under_its_own_names(tmp_path: Path):
    """A family that nobody has written a table for, with and without a config."""
    bert = Family(
        "bert",
        "bert",
        {"model_type": "bert"},
        lambda generator: {
            "bert.encoder.layer.0.attention.self.query.weight": families.random_tensor(generator, 6, 6),
            "bert.embeddings.position_ids": torch.arange(9)[None],
        },
        {},
    )
    tensors = families.write(bert, tmp_path)
    for has_config in (True, False):
        state = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        sw.load(state, tmp_path, layout="huggingface")
        assert differing(state, tensors) == []
        assert set(sw.empty_state_dict(tmp_path, layout="huggingface")) == set(tensors)
        sw.export(state, tmp_path / "to", template=tmp_path, layout="huggingface", overwrite=True)
        assert differing(held(tmp_path / "to"), tensors) == []
        if has_config:  # of a family that nobody knows
            with pytest.raises(ValueError, match="layout=.huggingface"):
                sw.load(state, tmp_path)
            (tmp_path / "config.json").unlink()
        else:  # then the names are all that there is to go by
            state = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
            sw.load(state, tmp_path)
            assert differing(state, tensors) == []


# --- adapters --------------------------------------------------------------------------------------------------------


@each(PLAIN)
def test_state_dicts_are_converted_in_memory(family: Family, layout: str, tmp_path: Path):
    tensors = families.write(family, tmp_path)
    expected = native(family, layout, tensors)
    needs_config = family.needs_config and layout == "torchtitan"
    adapter = StateDictAdapter(family.model, layout=layout, checkpoint=tmp_path if needs_config else None)
    used = family.kept(layout, tensors)
    found = adapter.from_hf(dict(used))
    found = {name: tensor.float() if "_fp32_params" in name else tensor for name, tensor in found.items()}
    assert differing(found, expected) == []
    back = adapter.to_hf(expected, checkpoint=tmp_path)
    if "apart" not in family.name:  # only a request is for this very checkpoint
        back = adapter.to_hf(expected)
    assert differing({name: back[name].to(used[name].dtype) for name in used if name in back}, used) == []


@each(ALL)
def test_the_three_step_way_fills_the_trainers_own_tensors(family: Family, layout: str, tmp_path: Path):
    expected = native(family, layout, families.write(family, tmp_path))
    state = {name: torch.full_like(tensor, 7) for name, tensor in expected.items()}
    needs_config = family.needs_config and layout == "torchtitan"
    adapter = StateDictAdapter(family.model, layout=layout, checkpoint=tmp_path if needs_config else None)
    hf = adapter.to_hf(state, quantization=True, checkpoint=tmp_path)
    dcp.load(hf, storage_reader=sw.HuggingFaceStorageReader(tmp_path), no_dist=True)
    found = adapter.from_hf(hf)
    assert differing(found, expected) == []
    in_place = [name for name in state if not ("tied" in family.name and name == "lm_head.weight")]
    assert all(found[name] is state[name] for name in in_place)


# --- LoRA ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family",
    [*FAMILIES, *(family for family in ALL if family.name == "glm4_moe")],
    ids=lambda family: family.name,
)
@pytest.mark.parametrize("layout", ["transformers", "huggingface"])
def test_adapters_are_those_of_peft(family: Family, layout: str, tmp_path: Path):
    if "apart" in family.name:
        pytest.skip("an adapter knows no checkpoint")
    is_stacked = family.model == "qwen3_5_moe"
    prefix = "model.language_model.layers.1." if is_stacked else "model.layers.1."
    lora = lora_of(prefix, torch.Generator().manual_seed(5))
    sw.save_lora(lora, tmp_path, alpha=8.0, model=family.model, layout=layout)
    assert differing(held(tmp_path), expected_adapter(lora, prefix, layout, is_stacked)) == []
    for model in ("auto", family.model):
        back = {name: torch.zeros_like(tensor) for name, tensor in lora.items()}
        sw.load_lora(back, tmp_path, model=model)
        assert differing(back, lora) == []


def test_an_adapter_of_names_that_several_families_have_is_asked_about(tmp_path: Path):
    lora = lora_of("model.layers.1.", torch.Generator().manual_seed(5))
    with pytest.raises(ValueError, match=r"deepseek_v3.*more families.*model=.*qwen3_moe"):
        sw.save_lora(lora, tmp_path, alpha=8.0, layout="huggingface")
    attention = {name: tensor for name, tensor in lora.items() if "self_attn" in name}
    with pytest.raises(ValueError, match="any family.*model="):
        sw.save_lora(attention, tmp_path, alpha=8.0)
    assert list(tmp_path.iterdir()) == []


# --- names that may mislead ------------------------------------------------------------------------------------------


def test_names_of_another_family_are_stored_as_they_are(tmp_path: Path):
    """DeepSeek V3.2 has an indexer, too."""
    state = {
        "model.layers.0.self_attn.indexer.wq_b.weight": torch.randn(4, 4),
        "model.embed_tokens.weight": torch.randn(5, 4),
    }
    sw.export(state, tmp_path / "to")
    assert differing(held(tmp_path / "to"), state) == []


@pytest.mark.parametrize("model", ["auto", "qwen3_moe"])
def test_experts_of_another_layout_are_not_stored_as_they_are(model: str, tmp_path: Path):
    family = FAMILIES[0]
    state = native(family, "transformers", families.write(family, tmp_path / "from"))
    with pytest.raises(ValueError, match="gate_up_proj.*layout=.transformers"):
        sw.export(state, tmp_path / "to", model=model)
    with pytest.raises(ValueError, match="layout 'transformer' is not known"):
        sw.export(state, tmp_path / "to", model=model, layout="transformer")
    assert not (tmp_path / "to").exists()
    sw.export(state, tmp_path / "to", layout="huggingface")
    assert differing(held(tmp_path / "to"), state) == []


def changed(family: Family, change: Callable[[families.Tensors], families.Tensors], **config: Any) -> Family:
    made = lambda generator: change(family.make(generator))  # noqa: E731
    return Family(family.name, family.model, family.config | config, made, family.natives)


@pytest.mark.parametrize("has_config", [True, False])
def test_own_names_load_whatever_else_a_checkpoint_has(has_config: bool, tmp_path: Path):
    more = {"model.language_model.layers.0.mlp.something.new": torch.ones(3)}
    family = changed(FAMILIES[1], lambda tensors: tensors | more)
    tensors = families.write(family, tmp_path)
    if not has_config:
        (tmp_path / "config.json").unlink()
    state = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    sw.load(state, tmp_path, layout="huggingface")
    assert differing(state, tensors) == []


def test_a_dense_relative_is_not_taken_for_one_with_experts(tmp_path: Path):
    def dense(tensors: families.Tensors) -> families.Tensors:
        kept = {name: tensor for name, tensor in tensors.items() if ".mlp." not in name}
        return kept | {f"{families.TEXT}layers.0.mlp.gate_proj.weight": torch.ones(4, families.HIDDEN)}

    tensors = families.write(changed(FAMILIES[1], dense), tmp_path / "from")
    (tmp_path / "from" / "config.json").unlink()
    state = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    sw.load(state, tmp_path / "from", layout="huggingface")
    assert differing(state, tensors) == []
    sw.export(state, tmp_path / "to")
    assert differing(held(tmp_path / "to"), tensors) == []


def test_a_text_only_model_has_its_names_on_both_sides(tmp_path: Path):
    def text_only(tensors: families.Tensors) -> families.Tensors:
        return {
            name.replace("model.language_model.", "model."): tensor
            for name, tensor in tensors.items()
            if ".visual." not in name
        }

    family = changed(FAMILIES[1], text_only, model_type="qwen3_5_moe_text")
    tensors = families.write(family, tmp_path)
    expected = native(family, "automodel", tensors)
    state = sw.empty_state_dict(tmp_path)
    assert state.keys() == expected.keys()
    state = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    sw.load(state, tmp_path)
    assert differing(state, expected) == []


@pytest.mark.parametrize("numbers", [{"o": 5}, {"i": 7}, {"{expert}": 2}, {"{expert}": 0}])
def test_a_config_says_nothing_that_the_tables_do_not_ask_for(numbers: dict[str, int], tmp_path: Path):
    family = changed(FAMILIES[0], lambda tensors: tensors, **numbers)
    expected = native(family, "automodel", families.write(family, tmp_path))
    state = sw.empty_state_dict(tmp_path)
    sw.load(state, tmp_path)
    assert differing(state, expected) == []


# --- what does not fit -----------------------------------------------------------------------------------------------

BY_NAME = {family.name: family for family in ALL}


def state_of(family: Family, layout: str, path: Path) -> families.Tensors:
    """A trainer's tensors of zeros for a checkpoint that is written to `path`."""
    made = native(family, layout, families.write(family, path))
    return {name: torch.zeros_like(tensor) for name, tensor in made.items()}


@pytest.mark.parametrize(
    "name, layout, asked",
    [
        ("qwen3, tied", "torchtitan", "automodel"),
        ("deepseek_v3, FP8", "transformers", "torchtitan"),
        ("glm4_moe", "automodel", "transformers"),
        ("nemotron_h", "transformers", "automodel"),
    ],
)
def test_a_state_dict_of_another_trainer_is_told_its_layout(
    name: str, layout: str, asked: str, tmp_path: Path
):
    state = state_of(BY_NAME[name], layout, tmp_path / "from")
    with pytest.raises(sw.PlanError, match=f"pass layout=.{layout}"):
        sw.load(state, tmp_path / "from", layout=asked)
    assert not any(tensor.any() for tensor in state.values())
    with pytest.raises(sw.PlanError, match=f"pass layout=.{layout}"):
        sw.export(state, tmp_path / "to", model=BY_NAME[name].model, layout=asked)
    assert not (tmp_path / "to").exists()


def test_names_of_torchtitan_are_never_stored_as_they_are(tmp_path: Path):
    state = state_of(BY_NAME["qwen3, tied"], "torchtitan", tmp_path / "from")
    with pytest.raises(sw.PlanError, match="pass layout=.torchtitan"):
        sw.export(state, tmp_path / "to")
    with pytest.raises(sw.PlanError, match="more families.*model="):
        sw.export(state, tmp_path / "to", layout="torchtitan")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("of, into", [("qwen3_moe", "glm4_moe"), ("glm4_moe", "qwen3_moe")])
def test_a_state_dict_of_another_family_does_not_load(of: str, into: str, tmp_path: Path):
    families.write(BY_NAME[of], tmp_path / "from")
    state = state_of(BY_NAME[into], "automodel", tmp_path / "other")
    with pytest.raises(sw.PlanError, match="the checkpoint lacks"):
        sw.load(state, tmp_path / "from")
    assert not any(tensor.any() for tensor in state.values())


def test_half_of_the_stacked_experts_is_not_taken_for_experts_apart(tmp_path: Path):
    family = BY_NAME["qwen3_5_moe"]
    state = state_of(family, "automodel", tmp_path / "whole")
    missing = "model.language_model.layers.0.mlp.experts.down_proj"
    half = changed(family, lambda tensors: {k: t for k, t in tensors.items() if k != missing})
    families.write(half, tmp_path / "half")
    with pytest.raises(sw.PlanError, match=f"the checkpoint lacks {missing}"):
        sw.load(state, tmp_path / "half")


def test_a_head_that_is_not_tied_is_not_read_from_the_embedding(tmp_path: Path):
    untied = changed(BY_NAME["qwen3, tied"], lambda tensors: tensors, tie_word_embeddings=False)
    state = state_of(untied, "automodel", tmp_path)
    with pytest.raises(sw.PlanError, match="the checkpoint lacks lm_head.weight"):
        sw.load(state, tmp_path)


def test_a_head_in_the_embeddings_memory_is_loaded_with_it_where_the_file_has_one(tmp_path: Path):
    tied = BY_NAME["qwen3, tied"]
    state = state_of(tied, "automodel", tmp_path / "tied")
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    sw.load(state, tmp_path / "tied")
    assert differing(state, native(tied, "automodel", held(tmp_path / "tied"))) == []
    apart = changed(tied, lambda tensors: tensors | {"lm_head.weight": torch.ones(17, 20).bfloat16()})
    families.write(apart, tmp_path / "apart")
    with pytest.raises(sw.PlanError, match="share memory"):
        sw.load(state, tmp_path / "apart")


@pytest.mark.parametrize("model, reason", [("mixtral", "transformers' own")])
def test_a_layout_that_cannot_be_had_says_why(model: str, reason: str, tmp_path: Path):
    families.write(BY_NAME["qwen3_moe"], tmp_path)
    with pytest.raises(ValueError, match=reason):
        sw.load({}, tmp_path, model=model)


@pytest.mark.parametrize("layout", ["automodel", "transformers"])
def test_an_adapter_speaks_nemo_automodels_and_torchtitans_protocol(layout: str, tmp_path: Path):
    family = next(one for one in PLAIN if one.model == "qwen3_moe")
    expected = native(family, layout, families.write(family, tmp_path))
    state = {name: torch.full_like(tensor, 7) for name, tensor in expected.items()}
    adapter = StateDictAdapter(model="qwen3_moe", layout=layout)
    hf = adapter.to_hf(state)
    dcp.load(hf, storage_reader=adapter.get_hf_storage_reader(str(tmp_path)), no_dist=True)
    assert differing(hf, held(tmp_path)) == []
    assert differing(adapter.from_hf(hf), expected) == []
    single = [
        pair
        for name, tensor in expected.items()
        for pair in adapter.convert_single_tensor_to_hf(name, tensor)
    ]
    assert len(single) == len(hf) and differing(dict(single), held(tmp_path)) == []
    with pytest.raises(ValueError, match=r"from_quantized.*quantization=True"):
        adapter.get_hf_storage_reader(str(tmp_path), from_quantized=True)
