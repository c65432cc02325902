"""A resume that does not fit is one error with all names, for every kind of checkpoint, before a byte is written."""

from pathlib import Path

import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp


def save_ours(state: dict, path: Path) -> None:
    sw.save(state, path)


def save_torchs(state: dict, path: Path) -> None:
    dcp.save(state, checkpoint_id=path)


SAVES = (save_ours, save_torchs)


def refusal(state: dict, path: Path, **options) -> str:
    """The message of the load that is refused; no tensor and no object of the state has changed."""
    before = {
        name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in state.items()
    }
    with pytest.raises(sw.PlanError) as refused:
        sw.load(state, path, **options)
    assert not hasattr(refused.value, "partly_written")
    for name, value in before.items():
        same = torch.equal(state[name], value) if isinstance(value, torch.Tensor) else state[name] is value
        assert same, name
    return str(refused.value)


@pytest.mark.parametrize("save", SAVES)
def test_all_that_does_not_fit_is_told_at_once(save, tmp_path: Path):
    stored = {
        "good": torch.ones(3),
        "short": torch.ones(3, 4),
        "object": {"a": [1, 2]}["a"],
        "tensor": torch.ones(2, dtype=torch.bfloat16),
        "complex": torch.ones(2, dtype=torch.complex64),
        "unasked": 1,
    }
    save(stored, tmp_path / "saved")
    asked = {
        "good": torch.zeros(3),
        "short": torch.zeros(4, 3),
        "object": torch.zeros(2),
        "tensor": 7,
        "complex": torch.zeros(2),
        "lost": torch.zeros(1),
        "lost_too": "text",
    }
    message = refusal(asked, tmp_path / "saved")
    for line in (
        f"{tmp_path / 'saved'}: the state dict and the checkpoint do not fit (Size mismatch, Missing key in "
        "checkpoint state_dict):",
        "short: expected shape [4, 3], as the trainer has it, found [3, 4]",
        "object: expected a tensor in the checkpoint, for the trainer's float32 [2], found an object that is none",
        "tensor: the checkpoint has a tensor, bfloat16 [2], found a int in the state dict",
        "complex: expected a dtype that can be cast to the trainer's float32, found complex64",
        "lost: expected in the checkpoint, found nothing of that name",
        "lost_too: expected in the checkpoint, found nothing of that name",
    ):
        assert line in message, message
    assert "good" not in message
    partial = refusal(asked, tmp_path / "saved", allow_partial_load=True)
    assert "short: expected shape" in partial and "lost" not in partial


def test_through_dcp_load_as_well(tmp_path: Path):
    sw.save({"a": torch.ones(3), "b": torch.ones(2)}, tmp_path / "saved")
    for planner in (sw.LoadPlanner(), sw.LoadPlanner(flatten_state_dict=False)):
        state = {"a": torch.zeros(4), "b": torch.zeros(2), "c": torch.zeros(1)}
        with pytest.raises(dcp.api.CheckpointException) as refused:
            dcp.load(state, storage_reader=sw.ShardedStorageReader(tmp_path / "saved"), planner=planner)
        assert "a: expected shape [4]" in str(refused.value) and "c: expected in the" in str(refused.value)
        assert not state["b"].any()


def test_shards_of_torchs_hf_writer_are_compared_too(tmp_path: Path):
    writer = dcp.HuggingFaceStorageWriter(str(tmp_path / "saved"), save_distributed=True)
    dcp.save({"a": torch.ones(3), "b": torch.ones(2)}, storage_writer=writer)
    message = refusal({"a": torch.zeros(4), "b": 3, "c": torch.zeros(1)}, tmp_path / "saved")
    for line in ("a: expected shape [4]", "b: the checkpoint has a tensor", "c: expected in the checkpoint"):
        assert line in message


def test_many_missing_names_are_ranges(tmp_path: Path):
    sw.save({f"layers.{i}.w": torch.ones(1) for i in range(50)}, tmp_path / "saved")
    message = refusal({f"layers.{i}.w": torch.zeros(1) for i in range(100)}, tmp_path / "saved")
    assert "layers.{50-99}.w: expected in the checkpoint" in message and len(message) < 400


WEIGHTS = {
    "embed.weight": torch.ones(2),
    "layers.0.up.weight": torch.ones(3),
    "layers.1.up.weight": torch.ones(3),
}


def renamed(rename) -> dict[str, torch.Tensor]:
    return {rename(name): torch.zeros_like(value) for name, value in WEIGHTS.items()}


@pytest.mark.parametrize("save", SAVES)
def test_prefixes_of_wrappers_are_counted_and_the_way_out_is_said(save, tmp_path: Path):
    save(WEIGHTS, tmp_path / "plain")
    message = refusal(renamed(lambda name: "module." + name), tmp_path / "plain")
    assert "3 names of the state dict have the prefix module. of DistributedDataParallel" in message
    assert 'name.replace("module.", "")' in message
    message = refusal(renamed(lambda name: name.replace("up.", "_orig_mod.up.")), tmp_path / "plain")
    assert "2 names of the state dict have the prefix _orig_mod. of torch.compile" in message
    message = refusal(renamed(lambda name: "module._orig_mod." + name), tmp_path / "plain")
    assert "3 names fit but for prefixes of wrappers (module., _orig_mod." in message

    save(renamed(lambda name: "module." + name), tmp_path / "wrapped")
    message = refusal(renamed(str), tmp_path / "wrapped")
    assert "3 names are in the checkpoint with the prefix module. of DistributedDataParallel" in message

    save({"model": renamed(str)}, tmp_path / "nested")
    message = refusal(renamed(str), tmp_path / "nested")
    assert '3 names are in the checkpoint under "model.": pass {"model": state_dict}' in message
    message = refusal(renamed(lambda name: f"app.model.{name}"), tmp_path / "plain")
    assert '3 names are in the checkpoint without "app.model."' in message


def test_a_module_or_an_optimizer_in_place_of_its_state_dict(tmp_path: Path):
    module = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    sw.save({"app": {"model": module.state_dict()}}, tmp_path / "saved")
    for value, advice in (
        (module, r"module\.state_dict\(\)"),
        (optimizer, '{"optimizer": optimizer}'),
        (3, "a dict"),
    ):
        with pytest.raises(
            TypeError, match=f"expected a state dict, found {type(value).__name__}; pass {advice}"
        ):
            sw.load(value, tmp_path / "saved")
        with pytest.raises(TypeError, match=f"expected a state dict, found {type(value).__name__}; pass "):
            sw.save(value, tmp_path / "other")
        with pytest.raises(TypeError, match=f"found {type(value).__name__}; pass "):
            sw.export(value, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(sw.PlanError, match=r"app.model: found a Linear in place of its state dict"):
        sw.load({"app": {"model": module}}, tmp_path / "saved")
