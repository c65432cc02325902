"""LoRA of families whose adapters have forms of their own. On several ranks: workers/each_family.py."""

import json
from pathlib import Path

import pytest
import shardwright as sw
import torch
from lora_forms import (
    EXPERTS_OF_STEP,
    EXPERTS_OF_VISION_MODEL,
    FORMS,
    INTER,
    Form,
    minimax_m3_of_transformers,
    modules_of,
    stacks,
    wrapped,
)
from lora_reference import nan_like, read_adapter, write_adapter
from reference import differing

each = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.id)
BY_ID = {form.id: form for form in FORMS}


@each
def test_files_are_those_of_the_form_and_come_back(form: Form, tmp_path: Path):
    lora = form.trainers()
    sw.save_lora(lora, tmp_path, alpha=8.0, model=form.model, layout=form.layout)
    assert differing(read_adapter(tmp_path), form.in_file(lora)) == []
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert sorted(config["target_parameters"] or ()) == sorted(form.parameters)
    back = nan_like(lora)
    report = sw.load_lora(back, tmp_path, model=form.model)
    assert differing(back, lora) == []
    assert set(report.scaling.values()) == {8.0 / 3}


@each
def test_a_file_that_others_wrote_is_loaded(form: Form, tmp_path: Path):
    lora = form.trainers()
    write_adapter(tmp_path, form.in_file(lora), r=3, target_parameters=list(form.parameters) or None)
    back = nan_like(lora)
    sw.load_lora(back, tmp_path, model=form.model)
    assert differing(back, lora) == []


def test_a_trainer_of_all_parts_writes_for_the_text_model_alone(tmp_path: Path):
    """Of the text model alone no name has "language_model"."""
    lora = {name: t for name, t in minimax_m3_of_transformers().items() if "vision" not in name}
    sw.save_lora(lora, tmp_path, alpha=8.0, model="minimax_m3", text_only=True)
    alone = modules_of(lora, lambda name: name.replace("language_model.", ""))
    assert differing(read_adapter(tmp_path), alone) == []


def test_a_state_dict_of_peft_keeps_its_names(tmp_path: Path):
    lora = modules_of(minimax_m3_of_transformers())  # as peft's get_peft_model_state_dict has them
    sw.save_lora(lora, tmp_path, alpha=8.0, model="minimax_m3")
    assert differing(read_adapter(tmp_path), lora) == []


def test_stacks_under_a_name_of_all_parts_are_those_of_the_experts(tmp_path: Path):
    """nemo-automodel's stacks of experts, in a model that calls its text part as transformers does."""
    lora = stacks(EXPERTS_OF_VISION_MODEL, 2 * INTER)
    sw.save_lora(lora, tmp_path, alpha=8.0, model="minimax_m3")
    in_file = wrapped(lora, EXPERTS_OF_VISION_MODEL, EXPERTS_OF_VISION_MODEL) | modules_of(lora)
    assert differing(read_adapter(tmp_path), in_file) == []


def test_parameters_that_peft_never_turned_have_one_sense(tmp_path: Path):
    """gpt-oss has [experts, in, out]: what peft took every parameter for, before 0.19.1."""
    form = BY_ID["gpt_oss, transformers"]
    lora = form.trainers()
    for sense in ("modern", "legacy"):
        path = tmp_path / sense
        sw.save_lora(lora, path, alpha=8.0, model="gpt_oss", param_wrapper=sense)
        assert differing(read_adapter(path), form.in_file(lora)) == []
        for asked in ("auto", "modern", "legacy"):
            back = nan_like(lora)
            sw.load_lora(back, path, model="gpt_oss", param_wrapper=asked)
            assert differing(back, lora) == []


def test_projections_that_share_the_trainers_a_must_have_one(tmp_path: Path):
    form = BY_ID["step3p5, huggingface"]
    lora = form.trainers()
    stored = form.in_file(lora)
    name = "base_model.model.model.layers.1.moe.up_proj.lora_A.weight"
    stored[name] = stored[name] + 1
    write_adapter(tmp_path, stored, r=3)
    back = nan_like(lora)
    with pytest.raises(sw.PlanError, match=r"gate_proj.*up_proj.lora_A.weight.* differ; expected the same A"):
        sw.load_lora(back, tmp_path, model="step3p5")
    assert all(tensor.isnan().all() for tensor in back.values())
    assert f"{EXPERTS_OF_STEP}.lora_gate_and_up_A" in back


def test_a_fused_module_that_is_not_block_diagonal_is_refused(tmp_path: Path):
    form = BY_ID["bailing_moe_v2, huggingface"]
    lora = form.trainers()
    stored = form.in_file(lora)
    name = "base_model.model.model.layers.1.attention.query_key_value.lora_B.weight"
    stored[name][13, 0] = 1  # key's rows, query's ranks
    write_adapter(tmp_path, stored, r=3)
    back = nan_like(lora)
    with pytest.raises(sw.PlanError, match=r"k_proj.lora_B.weight.*query_key_value.*not block-diagonal"):
        sw.load_lora(back, tmp_path, model="bailing_moe_v2")
    assert all(tensor.isnan().all() for tensor in back.values())


def test_parts_of_a_fused_module_that_the_trainer_lacks_are_told(tmp_path: Path):
    form = BY_ID["bailing_moe_v2, huggingface"]
    lora = form.trainers()
    write_adapter(tmp_path, form.in_file(lora), r=3)
    some = nan_like({name: tensor for name, tensor in lora.items() if ".v_proj." not in name})
    with pytest.raises(sw.PlanError, match="query_key_value.*no LoRA tensors for row 18 of 24"):
        sw.load_lora(some, tmp_path, model="bailing_moe_v2")
    sw.load_lora(some, tmp_path, model="bailing_moe_v2", strict=False)
    assert differing(some, {name: lora[name] for name in some}) == []


@pytest.mark.parametrize("model, layout", [("bailing_moe_v2", "transformers"), ("mixtral", "automodel")])
def test_a_layout_that_a_family_lacks_is_told(model: str, layout: str, tmp_path: Path):
    lora = BY_ID["bailing_moe_v2, huggingface"].trainers()
    with pytest.raises(ValueError, match=f"layout '{layout}'.*{model}.*layout=.huggingface"):
        sw.save_lora(lora, tmp_path / "to", alpha=8.0, model=model, layout=layout)
    assert not (tmp_path / "to").exists()


def test_a_module_whose_rows_transformers_has_in_another_order_is_named(tmp_path: Path):
    """Kimi's vision tower: heads' rows are turned, and only a config says how many heads there are."""
    name = "model.vision_tower.encoder.blocks.0.wqkv"
    lora = {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(24, 2)}
    with pytest.raises(ValueError, match=rf"{name}.*transformers.*huggingface"):
        sw.save_lora(lora, tmp_path / "to", alpha=8.0, model="kimi_k25", layout="transformers")
    assert not (tmp_path / "to").exists()
    sw.save_lora(lora, tmp_path / "to", alpha=8.0, model="kimi_k25", layout="huggingface")
    back = nan_like(lora)
    sw.load_lora(back, tmp_path / "to", model="kimi_k25")
    assert differing(back, lora) == []
