"""Models of transformers in training with FSDP2 on two ranks: begun from a release, killed, resumed, stored; peft."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from on_ranks import run_badly, run_well
from peft import PeftModel
from tiny_models import TEXT, Tiny, held
from transformers import AutoModelForCausalLM

WORKER = "transformers_training.py"
Losses = dict[str, str]


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("released") / "qwen3"
    Tiny("qwen3", TEXT | {"tie_word_embeddings": True}).write(path)
    return path


def train(folder: Path, released: Path, steps: int = 4, ranks: int = 2, **options: Any) -> Losses:
    folder.mkdir(exist_ok=True)
    options = {"by": "sw", "released": str(released), "steps": steps} | options
    if "killed_at" in options:
        run_badly(WORKER, folder, options, ranks=ranks)
    else:
        run_well(WORKER, folder, options, ranks=ranks)
    return json.loads((folder / "losses.json").read_text())


def whole(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "whole-0.pt")


def stored_as(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def uninterrupted(released: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert len(set(train(folder, released).values())) == 4
    return folder


@pytest.mark.parametrize("by", ["sw", "accelerate"])
def test_killed_and_resumed_it_has_the_losses_of_an_uninterrupted_run(
    uninterrupted: Path, released: Path, tmp_path: Path, by: str
):
    train(tmp_path, released, by=by, killed_at=3)
    (tmp_path / "losses.json").unlink()
    assert list(train(tmp_path, released, by=by)) == ["3", "4"]
    expected = json.loads((uninterrupted / "losses.json").read_text())
    assert json.loads((tmp_path / "losses.json").read_text()) == {step: expected[step] for step in "34"}


def test_the_first_loss_is_that_of_from_pretrained(uninterrupted: Path, released: Path):
    """On one process, both batches: the mean of what the ranks have found."""
    model = AutoModelForCausalLM.from_pretrained(released, dtype=torch.bfloat16)
    losses = []
    for rank in range(2):
        tokens = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(10 + rank))
        losses.append(model(input_ids=tokens, labels=tokens).loss.detach())
    found = float.fromhex(json.loads((uninterrupted / "losses.json").read_text())["1"])
    assert found == float(sum(losses))


def test_what_is_stored_is_what_from_pretrained_reads(uninterrupted: Path):
    expected = whole(uninterrupted)
    found = AutoModelForCausalLM.from_pretrained(uninterrupted / "stored", dtype=torch.bfloat16).state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert "lm_head.weight" not in held(uninterrupted / "stored")


def test_accelerate_alone_reads_what_ours_has_saved_and_the_other_way_round(released: Path, tmp_path: Path):
    expected = train(tmp_path / "plain", released, by="plain accelerate")
    ours = train(tmp_path / "ours", released, by="accelerate")
    assert ours == expected
    for saved_by, by in (("plain", "accelerate"), ("ours", "plain accelerate")):
        folder = tmp_path / f"{saved_by} then {by}"
        shutil.copytree(tmp_path / saved_by / "states" / "2", folder / "states" / "2")
        assert train(folder, released, by=by) == {step: expected[step] for step in "34"}


def test_a_state_whose_optimizer_was_not_finished_is_refused(released: Path, tmp_path: Path):
    train(tmp_path, released, 2, by="accelerate")
    shutil.rmtree(tmp_path / "states" / "2" / "optimizer_0")
    options = {"by": "accelerate", "released": str(released), "steps": 4}
    output = run_badly(WORKER, tmp_path, options)
    assert "optimizer_0" in output and "the save of 2 has not ended" in output


@pytest.mark.parametrize(
    ("case", "folder", "expected"),
    [
        ("more layers", "pytorch_model_fsdp_0", "model.layers.2."),
        ("optimizer of others", "optimizer_0", "optimizer.state.layers.2."),
    ],
)
def test_a_state_of_another_model_is_refused(tmp_path: Path, case: str, folder: str, expected: str):
    output = run_badly("accelerate_states.py", tmp_path, case, ranks=1)
    assert f"{folder} holds what no rank has a place for" in output and expected in output


def test_a_state_of_two_saves_is_refused(tmp_path: Path):
    assert "loaded True" in run_well("accelerate_states.py", tmp_path / "well", "twice")
    output = run_badly("accelerate_states.py", tmp_path / "killed", "killed between", ranks=1)
    assert "ended between model and optimizer" in output
    assert "optimizer_0 in " in output and "was saved with another model than pytorch_model_fsdp_0" in output


def test_transformers_own_trainer_is_killed_and_resumed(released: Path, tmp_path: Path):
    options: dict[str, Any] = {"released": str(released), "by": "theirs"}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    run_well("trainer_on_ranks.py", tmp_path / "whole", options)
    whole = json.loads((tmp_path / "whole" / "losses.json").read_text())
    assert len(set(whole.values())) == 4
    folder, options = tmp_path / "killed", options | {"by": "ours"}
    run_badly("trainer_on_ranks.py", folder, options | {"killed_at": 3})
    checkpoint = folder / "training" / "checkpoint-2"
    assert (checkpoint / "pytorch_model_fsdp_0" / "shardwright.manifest").exists()
    run_well("trainer_on_ranks.py", folder, options | {"resume": True})
    assert json.loads((folder / "losses.json").read_text()) == {step: whole[step] for step in "34"}

    shutil.rmtree(folder / "training" / "checkpoint-4" / "optimizer_0")  # Trainer would begin with a new one
    output = run_badly("trainer_on_ranks.py", folder, options | {"resume": True})
    assert "the save of checkpoint-4 has not ended" in output


def test_adapters_are_resumed_and_stored_for_peft_and_in_the_weights(released: Path, tmp_path: Path):
    expected = train(tmp_path / "whole", released, lora=True)
    folder = tmp_path / "killed"
    train(folder, released, lora=True, killed_at=3)
    (folder / "losses.json").unlink()
    assert train(folder, released, lora=True) == {step: expected[step] for step in "34"}

    tensors = whole(folder)
    base = AutoModelForCausalLM.from_pretrained(released, dtype=torch.bfloat16)
    loaded = PeftModel.from_pretrained(base, folder / "adapter", autocast_adapter_dtype=False)
    adapters = {name: t for name, t in loaded.state_dict().items() if ".lora_" in name}
    assert len(adapters) == 8
    assert [
        name for name, t in adapters.items() if not torch.equal(t.to(torch.bfloat16), tensors[name])
    ] == []
    assert any(t.abs().max() > 0 for name, t in adapters.items() if "lora_B" in name)

    merged = loaded.merge_and_unload().state_dict()
    stored = AutoModelForCausalLM.from_pretrained(folder / "stored", dtype=torch.bfloat16).state_dict()
    assert stored.keys() == merged.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(stored[name], tensor, rtol=2**-7, atol=1e-6)
    changed = [name for name in merged if not torch.equal(stored[name], base_of(released)[name])]
    assert sorted({name.split(".")[-2] for name in changed}) == ["down_proj", "q_proj"]


def base_of(released: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(released, dtype=torch.bfloat16).state_dict()


def test_the_functions_of_accelerate_are_its_own_again():
    import accelerate.accelerator
    import accelerate.utils
    import transformers.trainer
    from shardwright.integrations import accelerate as ours

    modules = [accelerate.accelerator, accelerate.utils, accelerate.utils.fsdp_utils, transformers.trainer]
    before = [module.save_fsdp_model for module in modules]
    ours.install()
    ours.install()
    assert {module.load_fsdp_optimizer.__module__ for module in modules} == {ours.__name__}
    ours.uninstall()
    assert [module.save_fsdp_model for module in modules] == before
    assert all(function.__module__ == "accelerate.utils.fsdp_utils" for function in before)


def test_an_unknown_version_is_refused_by_name(monkeypatch: pytest.MonkeyPatch):
    import importlib.metadata

    monkeypatch.delitem(sys.modules, "shardwright.integrations.accelerate", raising=False)
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "99.0")
    with pytest.raises(ImportError, match=r"expected accelerate 1\.15\.0, found 99\.0"):
        importlib.import_module("shardwright.integrations.accelerate")
