"""LoRA adapters that do not fit: one error that names tensors, file, expected and found; nothing is written."""

import json
import os
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import shardwright as sw
import torch
from lora_reference import Sizes, file_tensors, nan_like, trainers, write_adapter
from reference import differing

EXPERTS = "base_model.model.language_model.model.layers.1.block_sparse_moe.experts"
FILE = "adapter_model.safetensors"


def refused(
    path: Path, like: dict[str, torch.Tensor], *words: str, error: type[Exception] = sw.PlanError, **options
):
    state_dict = nan_like(like)
    with pytest.raises(error) as raised:
        sw.load_lora(state_dict, path, **options)
    message = str(raised.value)
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in: {message}"
    assert all(tensor.isnan().all() for tensor in state_dict.values())
    return message


@pytest.fixture
def per_expert() -> dict[str, torch.Tensor]:
    return file_tensors(trainers(), "huggingface")


def test_ranks_that_differ_between_experts(tmp_path: Path, per_expert: dict[str, torch.Tensor]):
    per_expert[f"{EXPERTS}.2.w2.lora_A.weight"] = torch.zeros(1, 6)
    per_expert[f"{EXPERTS}.2.w2.lora_B.weight"] = torch.zeros(10, 1)
    refused(
        write_adapter(tmp_path, per_expert),
        trainers(),
        "model.layers.1.mlp.experts.lora_down_A",
        "expected one rank for all modules, 2, found ranks 1, 2",
        f"{EXPERTS}.2.w2.lora_A.weight",
        "expected shape [2, 6]",
        "found [1, 6]",
        FILE,
        "train with one rank",
    )


@pytest.mark.parametrize(
    "name", ["w1.lora_A", "w1.lora_B", "w3.lora_A", "w3.lora_B", "w2.lora_A", "w2.lora_B"]
)
def test_half_of_an_experts_projections(tmp_path: Path, per_expert: dict[str, torch.Tensor], name: str):
    del per_expert[f"{EXPERTS}.1.{name}.weight"]
    refused(
        write_adapter(tmp_path, per_expert),
        trainers(),
        "expected 3 experts",
        f"lacks {EXPERTS}.1.{name}.weight",
        FILE,
    )


def test_an_expert_that_is_missing(tmp_path: Path, per_expert: dict[str, torch.Tensor]):
    left = {name: tensor for name, tensor in per_expert.items() if not name.startswith(f"{EXPERTS}.0.")}
    refused(
        write_adapter(tmp_path, left),
        trainers(),
        f"{EXPERTS}.0.w1.lora_A.weight",
        f"{EXPERTS}.0.w2.lora_B.weight",
    )


def test_only_the_gate_and_up_projections_in_the_file(tmp_path: Path, per_expert: dict[str, torch.Tensor]):
    left = {name: tensor for name, tensor in per_expert.items() if ".w2." not in name}
    refused(
        write_adapter(tmp_path, left), trainers(), "model.layers.1.mlp.experts.lora_down_A", "holds nothing"
    )


def test_more_in_the_file_than_the_trainer_has(tmp_path: Path, per_expert: dict[str, torch.Tensor]):
    less = {name: tensor for name, tensor in trainers().items() if ".lora_down_" not in name}
    path = write_adapter(tmp_path, per_expert)
    refused(path, less, "w2.lora_A.weight", FILE, "strict=False")
    sw.load_lora(less, path, strict=False)


def test_experts_beyond_the_trainers(tmp_path: Path, per_expert: dict[str, torch.Tensor]):
    path = write_adapter(tmp_path, per_expert)
    for strict in (True, False):
        refused(
            path,
            trainers(Sizes(experts=2)),
            "model.layers.1.mlp.experts.lora_down_A: expected as many experts as the trainer's shape [2, 6, 2]",
            "has experts 2 as well",
            FILE,
            strict=strict,
        )


def test_gate_and_up_with_an_a_each_where_the_trainer_has_one(
    tmp_path: Path, per_expert: dict[str, torch.Tensor]
):
    name = f"{EXPERTS}.1.w3.lora_A.weight"
    per_expert[name] = per_expert[name] + 1
    refused(
        write_adapter(tmp_path, per_expert),
        trainers(),
        name,
        f"{EXPERTS}.1.w1.lora_A.weight",
        "differ",
        "rank 4",
    )


def test_a_joined_module_that_is_not_block_diagonal(tmp_path: Path):
    tensors = file_tensors(trainers(), "transformers")
    name = "base_model.model.model.language_model.layers.0.mlp.gate_up_proj.lora_B.weight"
    tensors[name][0, -1] = 1
    refused(write_adapter(tmp_path, tensors), trainers(), name, "not block-diagonal", "rank 4")


def test_a_joined_module_of_which_the_trainer_has_one_part(tmp_path: Path):
    tensors = file_tensors(trainers(), "transformers")
    gate = {name: tensor for name, tensor in trainers().items() if "layers.0.mlp.gate_proj" in name}
    path = write_adapter(tmp_path, {name: t for name, t in tensors.items() if "layers.0.mlp.gate_up" in name})
    refused(path, gate, "gate_up_proj.lora_B.weight in " + FILE, "another of the 2 weights", "strict=False")
    sw.load_lora(gate, path, strict=False)
    sw.save_lora(gate, tmp_path / "gate", alpha=8, model="minimax_m3")
    again = nan_like(gate)
    sw.load_lora(again, tmp_path / "gate")
    assert differing(again, gate) == []


def test_pairs_of_two_ranks_that_the_file_joins(tmp_path: Path):
    lora = {name: tensor for name, tensor in trainers().items() if "layers.0.mlp.gate_proj" in name}
    up = "model.layers.0.mlp.up_proj.lora_"
    lora |= {up + "A.weight": torch.zeros(3, 10), up + "B.weight": torch.zeros(8, 3)}
    with pytest.raises(
        sw.PlanError, match=r"up_proj\.lora_A.*part of .*gate_up_proj\.lora_A\.weight of shape \[4, 10\]"
    ):
        sw.save_lora(lora, tmp_path / "new", alpha=1, model="minimax_m3")
    assert not (tmp_path / "new").exists()


def test_wrappers_that_fit_neither_sense(tmp_path: Path):
    tensors = file_tensors(trainers(), "transformers")
    name = "base_model.model.model.language_model.layers.1.mlp.experts.lora_A.weight"
    tensors[name] = torch.zeros(6, 7)
    refused(
        write_adapter(tmp_path, tensors),
        trainers(),
        name,
        "neither sense",
        "[10, r * 3]",
        "found [6, 7]",
        FILE,
    )


def test_wrappers_of_both_senses_in_one_file(tmp_path: Path):
    lora = trainers()
    tensors = file_tensors(lora, "transformers")
    legacy = file_tensors(lora, "transformers", legacy=True)
    tensors |= {name: tensor for name, tensor in legacy.items() if ".layers.2.mlp.experts." in name}
    refused(
        write_adapter(tmp_path, tensors),
        lora,
        "not of one sense",
        "layers.1.mlp.experts",
        "layers.2.mlp.experts",
    )


def test_wrappers_that_fit_both_senses(tmp_path: Path):
    lora = trainers(Sizes(hidden=6, inter=6))
    lora = {name: tensor for name, tensor in lora.items() if ".lora_down_" in name}
    path = write_adapter(tmp_path, file_tensors_of_down(lora))
    refused(path, lora, "layers.1.mlp.experts", FILE, 'param_wrapper="modern"', 'param_wrapper="legacy"')
    sw.load_lora(nan_like(lora), path, param_wrapper="legacy")


def file_tensors_of_down(lora: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    whole = trainers(Sizes(hidden=6, inter=6)) | lora
    tensors = file_tensors(whole, "transformers")
    return {name: tensor for name, tensor in tensors.items() if ".experts.lora_" in name}


def test_the_wrong_sense_given(tmp_path: Path):
    path = write_adapter(tmp_path, file_tensors(trainers(), "transformers"))
    refused(path, trainers(), "param_wrapper='legacy'", "'modern'", FILE, param_wrapper="legacy")
    refused(path, trainers(), "auto, modern, legacy", error=ValueError, param_wrapper="new")


def test_a_wrapper_of_other_experts(tmp_path: Path):
    path = write_adapter(tmp_path, file_tensors(trainers(), "transformers"))
    refused(path, trainers(Sizes(experts=4)), "expected shape [8, 6]", "found [6, 6]", FILE)


def test_another_rank(tmp_path: Path):
    path = write_adapter(tmp_path, file_tensors(trainers(), "huggingface"))
    refused(
        path,
        trainers(Sizes(rank=3)),
        "model.layers.1.mlp.experts.lora_gate_and_up_A: ",
        "expected shape [3, 10]",
        "found [2, 10]",
        "and 32 more",
    )


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("peft_type", "LOHA"),
        ("use_dora", True),
        ("bias", "all"),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [1, 2]),
        ("layer_replication", [[0, 2]]),
        ("use_qalora", True),
        ("fan_in_fan_out", True),
        ("init_lora_weights", "pissa_niter_16"),
    ],
)
def test_other_kinds_of_adapters(tmp_path: Path, setting: str, value: object):
    path = write_adapter(tmp_path, file_tensors(trainers(), "transformers"), **{setting: value})
    refused(path, trainers(), "adapter_config.json", f'"{setting}"', "expected")


def test_an_adapter_of_another_kind_without_lora_settings(tmp_path: Path):
    path = write_adapter(tmp_path, file_tensors(trainers(), "transformers"))
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    refused(path, trainers(), '"peft_type" is "IA3"', "LORA")


def test_vectors_of_dora_in_the_file(tmp_path: Path):
    tensors = file_tensors(trainers(), "transformers")
    name = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_magnitude_vector"
    refused(write_adapter(tmp_path, tensors | {name: torch.zeros(14)}), trainers(), name)


def test_no_adapter_there(tmp_path: Path):
    refused(tmp_path, trainers(), "adapter_config.json", error=FileNotFoundError)
    write_adapter(tmp_path, {})
    (tmp_path / FILE).rename(tmp_path / "adapter_model.bin")
    refused(tmp_path, trainers(), FILE, "adapter_model.bin", "safe_serialization", error=FileNotFoundError)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"r": "many", "lora_alpha": 1}',
        '{"r": 2, "lora_alpha": 1, "alpha_pattern": {"(": 1}}',
        '{"lora_alpha": 1}',
        "\xff",
    ],
)
def test_a_config_that_is_none(tmp_path: Path, text: str):
    path = write_adapter(tmp_path, file_tensors(trainers(), "transformers"))
    (path / "adapter_config.json").write_bytes(text.encode("latin-1"))
    refused(path, trainers(), "adapter_config.json", error=sw.CheckpointFormatError)


def test_a_file_that_is_cut_short(tmp_path: Path):
    path = write_adapter(tmp_path, file_tensors(trainers(), "transformers"))
    (path / FILE).write_bytes((path / FILE).read_bytes()[:-1])
    refused(path, trainers(), FILE, error=sw.CheckpointFormatError)


def test_half_a_pair_in_the_trainer(tmp_path: Path):
    lora = trainers()
    path = write_adapter(tmp_path, file_tensors(lora, "huggingface"))
    del lora["model.layers.1.mlp.experts.lora_gate_and_up_B"]
    refused(path, lora, "model.layers.1.mlp.experts.lora_gate_and_up_A", "lora_B")
    with pytest.raises(sw.PlanError, match=r"lora_gate_and_up_A: expected lora_B"):
        sw.save_lora(lora, tmp_path / "new", alpha=1)
    assert not (tmp_path / "new").exists()


def test_shapes_of_a_pair_that_do_not_fit_each_other(tmp_path: Path):
    lora = trainers()
    lora["model.layers.1.mlp.experts.lora_down_B"] = torch.zeros(3, 5, 10)
    with pytest.raises(sw.PlanError, match=r"lora_down_A and .*lora_down_B: .*\[3, 6, 2\] and \[3, 5, 10\]"):
        sw.save_lora(lora, tmp_path, alpha=1)


def test_two_tensors_for_one_weight(tmp_path: Path):
    lora = trainers()
    key = "model.layers.0.self_attn.q_proj.lora_A.weight"
    lora["base_model.model." + key] = lora[key]
    with pytest.raises(
        sw.PlanError, match=rf"expected one lora_A for .*q_proj\.weight, found {re.escape(key)}"
    ):
        sw.save_lora(lora, tmp_path / "new", alpha=1)
    assert not (tmp_path / "new").exists()


def test_a_rank_of_zero(tmp_path: Path):
    with pytest.raises(sw.PlanError, match=r"lora_down_A and .*lora_down_B: expected A"):
        sw.save_lora(trainers(Sizes(rank=0)), tmp_path, alpha=1)


def test_nothing_to_save_or_load(tmp_path: Path):
    with pytest.raises(sw.PlanError, match="no LoRA tensors"):
        sw.save_lora({"model.norm.weight": torch.zeros(3)}, tmp_path, alpha=1)
    path = write_adapter(tmp_path, file_tensors(trainers(), "huggingface"))
    refused(path, {"model.norm.weight": torch.full((3,), torch.nan)}, "no LoRA tensors")


def test_mtp_has_no_place_in_transformers(tmp_path: Path):
    name = "model.mtp.layers.0.transformer_layer.self_attn.q_proj"
    lora = {f"{name}.lora_A.weight": torch.zeros(2, 10), f"{name}.lora_B.weight": torch.zeros(14, 2)}
    with pytest.raises(sw.PlanError, match=r'mtp.*layout="huggingface"'):
        sw.save_lora(lora, tmp_path, alpha=1)
    sw.save_lora(lora, tmp_path, alpha=1, layout="huggingface")
    sw.load_lora(nan_like(lora), tmp_path)


def test_unknown_modules_and_options(tmp_path: Path):
    lora = {
        "decoder.nonsense.lora_A.weight": torch.zeros(2, 3),
        "decoder.nonsense.lora_B.weight": torch.zeros(4, 2),
    }
    with pytest.raises(sw.PlanError, match="any family.*model="):
        sw.save_lora(lora, tmp_path, alpha=1)
    with pytest.raises(sw.PlanError, match="nonsense"):
        sw.save_lora(lora, tmp_path, alpha=1, model="minimax_m3")
    with pytest.raises(ValueError, match="layout"):
        sw.save_lora(trainers(), tmp_path, alpha=1, layout="other")


def test_a_failed_save_leaves_what_was_there(tmp_path: Path):
    sw.save_lora(trainers(seed=1), tmp_path, alpha=8)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    (tmp_path / ".shardwright.saving").write_text("in the way")
    before[".shardwright.saving"] = b"in the way"
    with pytest.raises(OSError):
        sw.save_lora(trainers(seed=2), tmp_path, alpha=8)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"r": Infinity, "lora_alpha": 8}', "but found a parse error at line 1"),
        (
            '{"r": 2, "lora_alpha": ' + "[" * 5000 + "1" + "]" * 5000 + "}",
            "lora_alpha: expected a finite number, found a list",
        ),
    ],
    ids=["infinity", "lists"],
)
def test_a_config_with_numbers_that_are_none(
    tmp_path: Path, per_expert: dict[str, torch.Tensor], text: str, words: str
):
    path = write_adapter(tmp_path, per_expert)
    (path / "adapter_config.json").write_text(text)
    refused(path, trainers(), "adapter_config.json", words, error=sw.CheckpointFormatError)


def test_a_config_far_too_long_is_not_read(tmp_path: Path, per_expert: dict[str, torch.Tensor]):
    path = write_adapter(tmp_path, per_expert)
    os.truncate(path / "adapter_config.json", 1 << 42)
    refused(path, trainers(), "adapter_config.json", "at most", str(1 << 42), error=sw.CheckpointFormatError)


@pytest.mark.parametrize(
    "alpha", [float("nan"), float("inf"), -float("inf"), 10**400, "4", True, None, 2j, torch.tensor(4.0)]
)
def test_an_alpha_that_is_no_finite_number(tmp_path: Path, alpha):
    with pytest.raises(ValueError) as raised:
        sw.save_lora(trainers(), tmp_path / "adapter", alpha=alpha)
    assert str(raised.value) == f"alpha: expected a finite number, found {alpha!r}"
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("alpha", [8, 0.5, np.float32(0.5), np.int64(8), Fraction(1, 2)])
def test_any_finite_number_is_an_alpha(tmp_path: Path, alpha):
    sw.save_lora(trainers(), tmp_path, alpha=alpha)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"] == alpha


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("use_rslora", "no", "True or False"),
        ("text_only", 1, "True or False"),
        ("base_model", Path("/models/m3"), "a str"),
        ("task_type", 3, "a str or None"),
    ],
)
def test_options_of_other_types(tmp_path: Path, option: str, value, expected: str):
    with pytest.raises(ValueError) as raised:
        sw.save_lora(trainers(), tmp_path / "adapter", alpha=8, **{option: value})
    assert str(raised.value) == f"{option}: expected {expected}, found {value!r}"
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"r": 2, "lora_alpha": NaN}', "parsing value"),
        ('{"r": 2, "lora_alpha": -Infinity}', "parsing value"),
        ('{"r": 2, "lora_alpha": 1e999}', "1e999"),
        ('{"r": 2, "lora_alpha": "4"}', 'lora_alpha: expected a finite number, found "4"'),
        ('{"r": 2, "lora_alpha": true}', "lora_alpha: expected a finite number, found true"),
        ('{"r": true, "lora_alpha": 4}', "r: expected a whole number above 0, found true"),
        ('{"r": 2.5, "lora_alpha": 4}', "r: expected a whole number above 0, found 2.5"),
        ('{"r": 0, "lora_alpha": 4}', "r: expected a whole number above 0, found 0"),
        (
            '{"r": 2, "lora_alpha": 4, "alpha_pattern": {"o_proj": NaN}}',
            "parsing value",
        ),
        ('{"r": 2, "lora_alpha": 4, "use_rslora": "no"}', 'use_rslora: expected true or false, found "no"'),
    ],
)
def test_a_config_with_numbers_that_no_alpha_or_rank_is(
    tmp_path: Path, per_expert: dict[str, torch.Tensor], text: str, words: str
):
    path = write_adapter(tmp_path, per_expert)
    (path / "adapter_config.json").write_text(text)
    refused(path, trainers(), "adapter_config.json", words, error=sw.CheckpointFormatError)
