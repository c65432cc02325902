"""What a stranger with the wrong family, or none, is told, and that no trainer's names get into a checkpoint."""

import json
from pathlib import Path

import pytest
import shardwright as sw
import torch
from safetensors.torch import load_file, save_file
from shardwright.cli.command_line import main


def tensors(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.ones(4, 4, dtype=torch.bfloat16) for name in names}


def test_an_unknown_family_is_told_the_layouts_that_need_none(tmp_path: Path):
    state = tensors("model.norm.weight")
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard_of"}))
    advice = r'layout="transformers" \(of any model .*layout="huggingface"'
    for layout in ("automodel", "torchtitan"):
        for model in ("auto", "unheard_of"):
            with pytest.raises(ValueError, match=rf"unheard_of.* not known.*{advice}"):
                sw.load(state, tmp_path, model=model, layout=layout)
    assert sw.load(state, tmp_path, layout="huggingface").tensors == 1


@pytest.mark.parametrize(
    ("layout", "name", "family"),
    [
        ("automodel", "model.language_model.layers.0.linear_attn._fp32_params.A_log", "qwen3_5"),
        ("automodel", "model.layers.0.self_attn._fp32_params.dt_bias", "kimi_linear"),
        ("transformers", "model.multi_modal_projector.linear_1.weight", "mistral3"),
    ],
)
def test_a_trainers_own_name_is_not_exported_as_it_is(layout: str, name: str, family: str, tmp_path: Path):
    with pytest.raises(sw.PlanError, match=rf"{family}.*model="):
        sw.export(tensors(name), tmp_path / "out", layout=layout)
    assert not (tmp_path / "out").exists()


def test_names_that_files_have_are_exported_as_they_are(tmp_path: Path):
    state = tensors("model.language_model.layers.0.self_attn.q_proj.weight", "model.visual.pos_embed.weight")
    sw.export(state, tmp_path, layout="transformers")
    assert set(json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]) == set(
        state
    )


def test_families_are_listed_with_layouts_and_what_these_are_checked_against(capsys):
    assert main(["families"]) == 0
    text = capsys.readouterr().out
    assert "deepseek_v3 (also kimi_k2)\n  automodel     checked against nemo-automodel 0.7.0\n" in text
    assert "refused: nemo-automodel trains transformers' own model of it" in text
    assert "block_fp8" in text and "huggingface" in text
    assert main(["families", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["families"]
    assert len({one["family"] for one in listed}) == len(listed) >= 30
    llama = next(one for one in listed if one["family"] == "llama")
    assert llama["layouts"] == {
        "automodel": "transformers 5.23",
        "transformers": "transformers 5.23",
        "torchtitan": "torchtitan 0.3.0",
    }


def test_a_layout_is_advised_only_where_it_helps(tmp_path: Path):
    save_file(
        tensors("model.layers.0.self_attn.o_proj.weight", "model.norm.weight"), tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(sw.PlanError) as told:  # one of the three is a name of torchtitan's
        sw.load(tensors("norm.weight", "stray.weight", "other.weight"), tmp_path)
    assert "pass layout=" not in str(told.value)


@pytest.mark.parametrize("layout", ["automodel", "transformers", "huggingface"])
def test_one_absent_weight_is_not_advised_to_be_another_layout(layout: str, tiny: Path, tmp_path: Path):
    """Names of one layout of M3 are ends of those of another: most of them would be found below a key there."""
    state = sw.empty_state_dict(tiny, layout=layout)
    tiny_files = {
        name: tensor for file in tiny.glob("*.safetensors") for name, tensor in load_file(file).items()
    }
    absent = "language_model.model.layers.1.self_attn.v_proj.weight"
    del tiny_files[absent], tiny_files[f"{absent}_scale_inv"]
    save_file(tiny_files, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    with pytest.raises(sw.PlanError, match=rf"the checkpoint lacks {absent}") as told:
        sw.load(state, tmp_path, layout=layout)
    assert "layout=" not in str(told.value).replace("(layout ", "") and "pass" not in str(told.value)
