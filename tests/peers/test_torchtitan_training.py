"""torchtitan's own Trainer saves, is killed, resumes, begins from released checkpoints and exports by Shardwright.

Two ranks with Gloo. What is expected is what torchtitan's own manager does in a run that nothing interrupts.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from on_ranks import run_badly, run_well
from safetensors.torch import save_file
from tiny_models import held
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

WORKER = "titan_training.py"
FULL = {"last_save_model_only": False}
Losses = dict[str, str]


def train(folder: Path, steps: int = 6, manager: str = "ours", ranks: int = 2, **options: Any) -> Losses:
    run_well(WORKER, folder, options | {"manager": manager, "steps": steps}, ranks=ranks)
    return losses_in(folder)


def fail(folder: Path, steps: int = 6, manager: str = "ours", ranks: int = 2, **options: Any) -> str:
    return run_badly(WORKER, folder, options | {"manager": manager, "steps": steps}, ranks=ranks)


def losses_in(folder: Path) -> Losses:
    return json.loads((folder / "losses.json").read_text())


def steps_in(folder: Path) -> set[str]:
    return {entry.name for entry in (folder / "checkpoint").iterdir()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    """Six steps with torchtitan's own manager, which is in it as torchtitan has it."""
    folder = tmp_path_factory.mktemp("theirs")
    losses = train(folder, manager="theirs", checkpoint=FULL)
    assert len(set(losses.values())) == 6
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Six steps with ours."""
    folder = tmp_path_factory.mktemp("ours")
    train(folder, manager="config", checkpoint=FULL)
    return folder


@pytest.mark.parametrize("mode", ["disabled", "async", "async_with_pinned_mem"])
def test_killed_and_resumed_it_has_the_losses_of_an_uninterrupted_run(
    uninterrupted: Path, tmp_path: Path, mode: str
):
    checkpoint = FULL | {"async_mode": mode, "keep_latest_k": 2}
    fail(tmp_path, killed_at=5, checkpoint=checkpoint)
    before = losses_in(tmp_path)
    assert list(before) == ["1", "2", "3", "4", "5"]
    (tmp_path / "losses.json").unlink()
    after = train(tmp_path, checkpoint=checkpoint)
    whole = losses_in(uninterrupted)
    # In the background, step 4 may have been killed before it was there.
    assert list(after) in ([["5", "6"]] if mode == "disabled" else [["5", "6"], ["3", "4", "5", "6"]])
    assert before | after == whole
    assert steps_in(tmp_path) == {"step-4", "step-6"}


def test_killed_in_a_save_it_resumes_the_one_before_and_says_so(uninterrupted: Path, tmp_path: Path):
    fail(tmp_path, killed_saving=4, checkpoint=FULL)
    (tmp_path / "losses.json").unlink()
    output = run_well(WORKER, tmp_path, {"manager": "ours", "steps": 6, "checkpoint": FULL})
    assert "passed over, without a whole checkpoint: step-4" in output
    assert "fresh start" not in output
    whole = losses_in(uninterrupted)
    assert losses_in(tmp_path) == {step: whole[step] for step in "3456"}


def test_each_manager_resumes_what_the_other_has_saved(uninterrupted: Path, saved: Path, tmp_path: Path):
    whole = losses_in(uninterrupted)
    for manager, folder in (("ours", uninterrupted), ("theirs", saved)):
        copy = tmp_path / manager
        (copy / "checkpoint").mkdir(parents=True)
        shutil.copytree(folder / "checkpoint" / "step-4", copy / "checkpoint" / "step-4")
        assert train(copy, manager=manager, checkpoint=FULL) == {step: whole[step] for step in "56"}


def test_after_a_roll_back_the_newest_save_is_resumed_and_the_oldest_go(saved: Path, tmp_path: Path):
    shutil.copytree(saved / "checkpoint", tmp_path / "checkpoint")
    kept = FULL | {"keep_latest_k": 2}
    fail(tmp_path, steps=9, killed_at=5, checkpoint=kept | {"load_step": 2})  # saves step 4 anew
    assert steps_in(tmp_path) == {"step-4", "step-6"}
    (tmp_path / "losses.json").unlink()
    assert list(train(tmp_path, checkpoint=kept)) == ["5", "6"]


# --- released checkpoints ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    path = tmp_path_factory.mktemp("released") / "llama"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    (path / "tokenizer.json").write_text("{}")
    return path


def in_fp8(path: Path, into: Path) -> dict[str, torch.Tensor]:
    """The same with its matrices in FP8, an F32 scale for each 128 × 128 block. Returns what that means."""
    shutil.copytree(path, into)
    stored, meant = {}, {}
    for name, tensor in held(path).items():
        if "_proj" not in name:
            stored[name], meant[name] = tensor, tensor.float()
            continue
        scale = (tensor.float().abs().max() / 448).reshape(1, 1)
        stored[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        stored[name + "_scale_inv"] = scale
        meant[name] = stored[name].float() * scale
    save_file(stored, into / "model.safetensors", metadata={"format": "pt"})
    return meant


def begin_from(path: Path) -> dict[str, Any]:
    return FULL | {"initial_load_path": str(path), "initial_load_in_hf": True}


def test_it_begins_with_a_released_checkpoint_as_torchtitan_does(released: Path, tmp_path: Path):
    theirs = train(tmp_path / "theirs", 2, "theirs", checkpoint=begin_from(released))
    assert train(tmp_path / "ours", 2, checkpoint=begin_from(released)) == theirs


def test_a_quantized_one_trains_as_its_decoded_values_do(released: Path, tmp_path: Path):
    meant = in_fp8(released, tmp_path / "fp8")
    shutil.copytree(released, tmp_path / "decoded")
    save_file(meant, tmp_path / "decoded" / "model.safetensors", metadata={"format": "pt"})
    decoded = train(tmp_path / "theirs", 2, "theirs", checkpoint=begin_from(tmp_path / "decoded"))
    for flag in (False, True):
        checkpoint = begin_from(tmp_path / "fp8") | {"initial_load_in_hf_quantized": flag}
        assert train(tmp_path / str(flag), 2, checkpoint=checkpoint) == decoded


def exported(folder: Path, manager: str, released: Path, **options: Any) -> Path:
    checkpoint = begin_from(released) | {
        "last_save_model_only": True,
        "last_save_in_hf": True,
        "export_dtype": "bfloat16",
    }
    train(folder, 3, manager, assets=str(released), checkpoint=checkpoint, **options)
    return folder / "checkpoint" / "step-3"


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def test_the_last_step_is_exported_as_torchtitan_exports_it(released: Path, tmp_path: Path):
    theirs = held(exported(tmp_path / "theirs", "theirs", released))
    path = exported(tmp_path / "ours", "ours", released)
    ours = held(path)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not same(ours[name], theirs[name])] == []
    assert (path / "tokenizer.json").read_text() == "{}"
    state = AutoModelForCausalLM.from_pretrained(path).state_dict()
    assert [name for name in theirs if not same(state[name], theirs[name])] == []


def test_without_weights_in_the_assets_an_export_is_in_bf16_and_has_their_config(
    released: Path, tmp_path: Path
):
    assets = tmp_path / "assets"
    shutil.copytree(released, assets, ignore=shutil.ignore_patterns("*.safetensors"))
    last = {"last_save_model_only": True, "last_save_in_hf": True}
    output = fail(tmp_path / "a", 1, assets=str(assets), checkpoint=last)
    assert 'expected export_dtype="bfloat16"' in output and not (tmp_path / "a" / "losses.json").exists()
    train(tmp_path / "b", 1, assets=str(assets), checkpoint=last | {"export_dtype": "bfloat16"})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "b" / "checkpoint" / "step-1")
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}


def test_a_seed_checkpoint_is_what_ranks_begin_with(tmp_path: Path):
    """Of one process; two train on from it."""
    seed = FULL | {"create_seed_checkpoint": True}
    run_well(WORKER, tmp_path, {"manager": "ours", "steps": 2, "checkpoint": seed}, ranks=1)
    assert steps_in(tmp_path) == {"step-0"}
    assert list(train(tmp_path, 2, checkpoint=FULL)) == ["1", "2"]


# --- LoRA ----------------------------------------------------------------------------------------------------------


def test_adapters_are_trained_on_a_released_checkpoint_resumed_and_exported_in_their_weights(
    released: Path, tmp_path: Path
):
    begins = begin_from(released)
    whole = train(tmp_path / "theirs", 4, "theirs", lora=True, checkpoint=begins)
    folder = tmp_path / "ours"
    fail(folder, 4, lora=True, killed_at=3, checkpoint=begins)
    assert train(folder, 4, lora=True, checkpoint=begins) == whole

    path = exported(tmp_path / "exported", "ours", released, lora=True)
    train(tmp_path / "three", 3, "theirs", lora=True, checkpoint=begins)
    metadata = dcp.FileSystemReader(tmp_path / "three" / "checkpoint" / "step-3").read_metadata()
    state = {
        name: torch.empty(stored.size, dtype=stored.properties.dtype)
        for name, stored in metadata.state_dict_metadata.items()
        if name.startswith(("layers.", "norm.", "tok_", "lm_head."))
    }
    dcp.load(state, checkpoint_id=tmp_path / "three" / "checkpoint" / "step-3", no_dist=True)
    ours = held(path)
    assert not any("lora" in name for name in ours)
    base = held(released)
    for layer in range(2):
        for native, name in (
            ("attention.wo", "self_attn.o_proj"),
            ("feed_forward.w1", "mlp.gate_proj"),
        ):
            prefix = f"layers.{layer}.{native}."
            a, b = state[prefix + "lora_a.weight"], state[prefix + "lora_b.weight"]
            assert b.abs().max() > 0
            merged = (base[f"model.layers.{layer}.{name}.weight"].float() + b @ a * 4.0).to(torch.bfloat16)
            found = ours[f"model.layers.{layer}.{name}.weight"]
            # A rank's part of a product may be summed in another order.
            torch.testing.assert_close(found, merged, rtol=2**-7, atol=1e-6)
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        assert same(ours[name], base[name])
    fused = "model.layers.0.self_attn.q_proj.weight"
    assert not same(ours[fused], base[fused])


# --- strangers -----------------------------------------------------------------------------------------------------


def test_other_folders_and_other_models_are_refused_by_name(saved: Path, released: Path, tmp_path: Path):
    (tmp_path / "a").mkdir()
    shutil.copytree(saved / "checkpoint" / "step-6", tmp_path / "a" / "checkpoint")
    assert "is a checkpoint itself; expected the folder" in fail(tmp_path / "a")

    assert "is a Hugging Face checkpoint" in fail(
        tmp_path / "b", checkpoint=FULL | {"initial_load_path": str(released)}
    )
    shutil.copytree(saved / "checkpoint", tmp_path / "c" / "checkpoint")
    output = fail(tmp_path / "c", 8, layers=1, checkpoint=FULL)
    assert "it is the checkpoint of another model" in output and "layers.1." in output
    output = fail(tmp_path / "c", 8, layers=3, checkpoint=FULL)
    assert "layers.2." in output and "found nothing of that name" in output


def test_another_number_of_ranks_says_what_to_do_about_the_data(saved: Path, tmp_path: Path):
    shutil.copytree(saved / "checkpoint", tmp_path / "checkpoint")
    output = fail(tmp_path, 8, ranks=3, checkpoint=FULL)
    assert 'checkpoint.exclude_from_loading=["dataloader"]' in output
    alone = FULL | {"exclude_from_loading": ["dataloader"]}
    assert list(train(tmp_path, 8, ranks=1, checkpoint=alone)) == ["7", "8"]


def test_what_holds_the_model_alone_is_passed_over_and_files_of_others_stay(saved: Path, tmp_path: Path):
    shutil.copytree(saved / "checkpoint", tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "step-3").mkdir()
    (tmp_path / "checkpoint" / "step-3" / "notes.txt").write_text("mine")
    (tmp_path / "checkpoint" / "old-step-900").mkdir()
    kept = {"keep_latest_k": 2, "load_step": -1}
    run_well(
        WORKER, tmp_path, {"manager": "ours", "steps": 7, "checkpoint": kept}
    )  # ends with the model alone
    output = run_well(WORKER, tmp_path, {"manager": "ours", "steps": 8, "checkpoint": kept | FULL})
    assert "passed over, with the model alone: step-7; training goes on from step-6" in output
    assert (tmp_path / "checkpoint" / "step-3" / "notes.txt").read_text() == "mine"
    assert {"old-step-900", "step-3", "step-8"} <= steps_in(tmp_path)
    output = fail(tmp_path, 9, checkpoint=FULL | {"load_step": 7})
    assert "a checkpoint of the model alone" in output
    assert sw.latest(tmp_path / "checkpoint").name == "step-8"


def test_training_does_not_begin_where_a_save_would_be_refused(saved: Path, released: Path, tmp_path: Path):
    """An export of an earlier end, or a checkpoint of torch's, in the folder of a step that is still to come."""
    steps = tmp_path / "checkpoint"
    shutil.copytree(saved / "checkpoint" / "step-4", steps / "step-4")
    shutil.copytree(released, steps / "step-6")
    for checkpoint in (FULL, FULL | {"load_step": 4}):
        output = fail(tmp_path, 8, ranks=1, checkpoint=checkpoint)
        assert "training goes on from step-4, and its saves do not replace what is in step-6" in output
        assert "Move these folders away" in output and not (tmp_path / "losses.json").exists()
    shutil.rmtree(steps / "step-6")
    dcp.save({"layers.0.w": torch.zeros(2)}, checkpoint_id=steps / "step-6", no_dist=True)
    assert "is in step-6" in fail(tmp_path, 8, ranks=1, checkpoint=FULL)
    (steps / "step-6").rename(tmp_path / "away")
    assert list(train(tmp_path, 6, checkpoint=FULL)) == ["5", "6"]
