"""What the integrations write beside weights replaces no file of others. One process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from on_ranks import run_badly, run_well
from peft import LoraConfig, get_peft_model
from shardwright.integrations.transformers import save_adapter, save_pretrained
from tiny_models import held
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM


@pytest.fixture
def model() -> Qwen3ForCausalLM:
    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), 32)
    return Qwen3ForCausalLM(
        Qwen3Config(**sizes, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=16)
    )


def with_adapter(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "adapter_config.json", "adapter_model.safetensors"]
)
def test_a_file_of_others_stays_unless_it_may_be_overwritten(model: Any, tmp_path: Path, name: str):
    save = save_pretrained
    if name.startswith("adapter_"):
        model, save = with_adapter(model), save_adapter
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=rf"{name} in .*nothing was written.*overwrite=True"):
        save(model, tmp_path)
    assert contents(tmp_path) == {name: b"mine"}
    save(model, tmp_path, overwrite=True)
    assert (tmp_path / name).read_bytes() != b"mine"
    assert not [file for file in contents(tmp_path) if file.startswith(".")]


def test_what_we_have_written_is_replaced_until_somebody_edits_it(model: Any, tmp_path: Path):
    save_pretrained(model, tmp_path)
    model.config.rope_parameters["rope_theta"] = 5.0
    save_pretrained(model, tmp_path)
    found = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert found.config.rope_parameters["rope_theta"] == 5.0
    edited = (tmp_path / "config.json").read_text().replace("5.0", "7.0")
    (tmp_path / "config.json").write_text(edited)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"config\.json in "):
        save_pretrained(model, tmp_path)
    assert contents(tmp_path) == before


def test_an_adapter_that_we_have_written_is_replaced(model: Any, tmp_path: Path):
    wrapped = with_adapter(model)
    save_adapter(wrapped, tmp_path)
    with torch.no_grad():
        wrapped.get_parameter("base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight").fill_(
            3
        )
    save_adapter(wrapped, tmp_path)
    stored = held(tmp_path)
    assert [bool((tensor == 3).all()) for name, tensor in stored.items() if "lora_B" in name] == [True]
    with pytest.raises(FileExistsError):
        save_adapter(wrapped, tmp_path, overwrite=False)


def test_an_export_of_torchtitan_replaces_no_config_of_others(model: Any, tmp_path: Path):
    assets = tmp_path / "assets"
    assets.mkdir()
    (assets / "config.json").write_text('{"model_type": "llama"}')
    step = tmp_path / "training" / "checkpoint" / "step-1"
    step.mkdir(parents=True)
    (step / "config.json").write_text("mine")
    last = {"last_save_model_only": True, "last_save_in_hf": True, "export_dtype": "bfloat16"}
    options = {"manager": "ours", "steps": 1, "assets": str(assets), "checkpoint": last}
    output = run_badly("titan_training.py", tmp_path / "training", options, ranks=1)
    assert f"config.json in {step}" in output and f"Move {step} away" in output
    assert contents(step) == {"config.json": b"mine"}
    (step / "config.json").unlink()
    run_well("titan_training.py", tmp_path / "training", options, ranks=1)
    assert contents(step)["config.json"] == (assets / "config.json").read_bytes()
