"""Training that resumes into an optimizer that has taken no step goes on as if it had never stopped, in one process."""

import copy
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from shardwright.resume_planner import ResumePlanner
from shardwright.torch_checkpoint import TorchStorageReader
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.01, foreach=False),
    "adam_foreach": lambda groups: torch.optim.Adam(groups, lr=0.01, foreach=True),
    "adam_amsgrad": lambda groups: torch.optim.Adam(groups, lr=0.01, amsgrad=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01, foreach=False),
    "adamw_foreach": lambda groups: torch.optim.AdamW(groups, lr=0.01, foreach=True),
    "adamw_fused": lambda groups: torch.optim.AdamW(groups, lr=0.01, fused=True),
    "adamw_lr_tensor": lambda groups: torch.optim.AdamW(groups, lr=torch.tensor(0.01), foreach=False),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.01),
    "sgd_momentum": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True),
    "nadam": lambda groups: torch.optim.NAdam(groups, lr=0.01),
    "radam": lambda groups: torch.optim.RAdam(groups, lr=0.01),
    "asgd": lambda groups: torch.optim.ASGD(groups, lr=0.01),
    "adagrad": lambda groups: torch.optim.Adagrad(groups, lr=0.01),
    "adadelta": lambda groups: torch.optim.Adadelta(groups, lr=0.01),
    "adafactor": lambda groups: torch.optim.Adafactor(groups, lr=0.01),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01, momentum=0.5, centered=True),
    "rprop": lambda groups: torch.optim.Rprop(groups, lr=0.01),
    "counting": lambda groups: Counting(groups, {"lr": 0.01}),
}


class Counting(torch.optim.Optimizer):
    """State of other kinds than tensors of a parameter's shape: numbers, a list of tensors, None."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                state["steps"] = state.get("steps", 0) + 1
                state["nothing"] = None
                history = state.setdefault("history", [])
                history.append(parameter.grad.clone())
                del history[:-2]
                parameter -= group["lr"] / state["steps"] * sum(history)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.frozen = nn.Linear(7, 7).requires_grad_(False)
        self.idle = nn.Parameter(torch.ones(3))  # never gets a gradient
        self.last = nn.Linear(7, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.frozen(torch.tanh(self.first(x)))))


class Training:
    def __init__(self, make: Callable[..., torch.optim.Optimizer], seed: int) -> None:
        torch.manual_seed(seed)
        self.model = Model()
        bias = [p for name, p in self.model.named_parameters() if name.endswith("bias")]
        others = [p for name, p in self.model.named_parameters() if not name.endswith("bias")]
        self.optimizer = make([{"params": bias, "lr": 0.02}, {"params": others}])
        if not isinstance(self.optimizer.param_groups[1]["lr"], torch.Tensor):
            self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.5)
        else:
            self.scheduler = torch.optim.lr_scheduler.ConstantLR(self.optimizer)

    def step(self) -> float:
        self.optimizer.zero_grad()
        loss = self.model(torch.randn(4, 5)).square().mean()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return loss.item()

    def state(self) -> dict:
        return {
            "model": self.model,
            "optim": self.optimizer,
            "scheduler": self.scheduler,
            "rng": torch.get_rng_state(),
        }


def bits(value):
    """Nested values without tensors, so that == compares bits."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.device, value.tolist()
    if isinstance(value, dict):
        return {key: bits(inner) for key, inner in value.items()}
    return [bits(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def save_ours(state: dict, path: Path) -> None:
    sw.save(state, path)


def save_torchs(state: dict, path: Path) -> None:
    dcp.save(state, checkpoint_id=path)


SAVES = (save_ours, save_torchs)


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_losses_and_state_are_those_of_a_training_that_never_stopped(name: str, save, tmp_path: Path):
    never_stopped = Training(OPTIMIZERS[name], seed=0)
    for _ in range(3):
        never_stopped.step()
    save(never_stopped.state(), tmp_path / "saved")
    expected = [never_stopped.step() for _ in range(4)]

    resumed = Training(OPTIMIZERS[name], seed=99)
    state = resumed.state()
    report = sw.load(state, tmp_path / "saved")
    assert report.unused == [] and report.not_loaded == []
    torch.set_rng_state(state["rng"])
    assert [resumed.step() for _ in range(4)] == expected
    assert bits(resumed.model.state_dict()) == bits(never_stopped.model.state_dict())
    assert bits(resumed.optimizer.state_dict()) == bits(never_stopped.optimizer.state_dict())
    assert bits(resumed.scheduler.state_dict()) == bits(never_stopped.scheduler.state_dict())


def trained(name: str = "adamw", steps: int = 2) -> Training:
    training = Training(OPTIMIZERS[name], seed=0)
    for _ in range(steps):
        training.step()
    return training


def test_making_state_changes_neither_parameters_nor_random_numbers_nor_hooks_run(tmp_path: Path):
    sw.save({"optim": trained().optimizer}, tmp_path / "saved")
    fresh = Training(OPTIMIZERS["adamw"], seed=5)
    fresh.optimizer.register_step_pre_hook(lambda *_: pytest.fail("a step was taken"))
    fresh.model.first.weight.grad = torch.full((7, 5), 3.0)
    before = bits(fresh.model.state_dict()), torch.get_rng_state().tolist(), random.getstate()
    sw.load({"optim": fresh.optimizer}, tmp_path / "saved")
    assert (bits(fresh.model.state_dict()), torch.get_rng_state().tolist(), random.getstate()) == before
    assert (fresh.model.first.weight.grad == 3).all()


@pytest.mark.parametrize("save", SAVES)
def test_a_load_that_fails_leaves_the_optimizer_as_it_was(save, tmp_path: Path):
    save({"optim": trained().optimizer, "wide": torch.ones(2)}, tmp_path / "saved")
    fresh = Training(OPTIMIZERS["adamw"], seed=5)
    before = copy.deepcopy(fresh.optimizer.state_dict())
    with pytest.raises(sw.PlanError, match="wide"):
        sw.load({"optim": fresh.optimizer, "wide": torch.ones(3)}, tmp_path / "saved")
    assert bits(fresh.optimizer.state_dict()) == bits(before)


@pytest.mark.parametrize("save", SAVES)
def test_parameters_without_state_in_the_checkpoint_get_none(save, tmp_path: Path):
    saved = trained()
    save({"optim": saved.optimizer}, tmp_path / "saved")
    fresh = Training(OPTIMIZERS["adamw"], seed=5)
    sw.load({"optim": fresh.optimizer}, tmp_path / "saved")
    having = [name for name, value in fresh.model.named_parameters() if value in fresh.optimizer.state]
    assert having == ["first.weight", "first.bias", "last.weight", "last.bias"]


@pytest.mark.parametrize("save", SAVES)
def test_hyperparameters_are_the_checkpoints(save, tmp_path: Path):
    saved = trained()
    saved.optimizer.param_groups[0]["betas"] = (0.5, 0.6)
    save({"optim": saved.optimizer}, tmp_path / "saved")
    fresh = Training(OPTIMIZERS["adamw"], seed=5)
    sw.load({"optim": fresh.optimizer}, tmp_path / "saved")
    assert fresh.optimizer.param_groups[0]["betas"] == (0.5, 0.6)
    assert fresh.optimizer.param_groups[0]["lr"] == 0.01  # 0.02, halved after two steps by the scheduler
    assert fresh.optimizer.param_groups[1]["lr"] == 0.005


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("nested", [False, True])
def test_a_fresh_state_dict_in_place_of_the_optimizer_is_refused_by_name(save, nested: bool, tmp_path: Path):
    def at(value) -> dict:
        return {"train": {"optim": value}} if nested else {"optim": value}

    save(at(trained().optimizer.state_dict()), tmp_path / "saved")
    fresh = Training(OPTIMIZERS["adamw"], seed=5).optimizer.state_dict()
    key = "train.optim" if nested else "optim"
    expected = (
        rf"{key}: the optimizer has no state for 4 of .*{key}\.state\.{{0, 2, 4, 6}}\.exp_avg; .*itself"
    )
    with pytest.raises(sw.PlanError, match=expected):
        sw.load(at(fresh), tmp_path / "saved")
    with pytest.raises(dcp.api.CheckpointException, match="the optimizer has no state for 4"):
        reader = sw.ShardedStorageReader if save is save_ours else TorchStorageReader
        dcp.load(at(fresh), storage_reader=reader(tmp_path / "saved"), planner=ResumePlanner())
    report = sw.load(at(fresh), tmp_path / "saved", allow_partial_load=True)
    assert len([name for name in report.unused if name.startswith(f"{key}.state.")]) == 12


def test_a_bare_state_dict_of_an_optimizer_at_the_top(tmp_path: Path):
    sw.save(trained().optimizer.state_dict(), tmp_path / "saved")
    with pytest.raises(
        sw.PlanError, match="the optimizer: the optimizer has no state for 4 of its parameters"
    ):
        sw.load(Training(OPTIMIZERS["adamw"], seed=5).optimizer.state_dict(), tmp_path / "saved")
    stepped = trained(steps=1)
    state = stepped.optimizer.state_dict()
    sw.load(state, tmp_path / "saved")
    assert bits(state) == bits(trained().optimizer.state_dict())


@pytest.mark.parametrize("save", SAVES)
def test_parameters_by_name_in_the_checkpoint_and_by_number_in_the_optimizer(save, tmp_path: Path):
    saved = trained()
    save({"optim": get_optimizer_state_dict(saved.model, saved.optimizer)}, tmp_path / "saved")
    fresh = Training(OPTIMIZERS["adamw"], seed=5)
    with pytest.raises(
        sw.PlanError, match=r"by name \(first\.bias, …\), the optimizer by number.*get_optimizer_state_"
    ):
        sw.load({"optim": fresh.optimizer}, tmp_path / "saved")


@pytest.mark.parametrize("save", SAVES)
def test_an_optimizer_of_other_parameters_or_groups_is_refused(save, tmp_path: Path):
    save({"optim": trained().optimizer}, tmp_path / "saved")
    model = Model()
    one_group = torch.optim.AdamW(model.parameters())
    with pytest.raises(
        sw.PlanError, match="optim: expected the 2 parameter groups that the checkpoint has, found 1"
    ):
        sw.load({"optim": one_group}, tmp_path / "saved")
    fewer = torch.optim.AdamW([{"params": [model.idle]}, {"params": [model.first.weight]}])
    with pytest.raises(
        sw.PlanError, match=r"optim.state.\{.*\}: the checkpoint has state of parameters that the opt"
    ):
        sw.load({"optim": fewer}, tmp_path / "saved")
    assert not one_group.state and not fewer.state
    other = Training(OPTIMIZERS["sgd_momentum"], seed=1).optimizer
    with pytest.raises(
        sw.PlanError, match=r"optim.param_groups.\{0-1\}.momentum: expected in the checkpoint"
    ):
        sw.load({"optim": other}, tmp_path / "saved")


class AppState:
    """As torchtitan and torch's tutorials have it: get_state_dict takes the first step by itself."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def state_dict(self) -> dict:
        return {"optim": get_optimizer_state_dict(self.training.model, self.training.optimizer)}

    def load_state_dict(self, state: dict) -> None:
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        set_optimizer_state_dict(self.training.model, self.training.optimizer, state["optim"])


class Wrapper(torch.optim.Optimizer):
    """As accelerate wraps an optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def state(self):
        return self.optimizer.state

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def state_dict(self):
        return self.optimizer.state_dict()

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state)


@pytest.mark.parametrize("save", SAVES)
def test_wrappers_of_trainers(save, tmp_path: Path):
    saved = trained()
    saved.model.idle.grad = torch.zeros(3)  # AppState's first step makes state for it
    saved.optimizer.step()
    for wrap in (AppState, lambda training: Wrapper(training.optimizer)):
        save({"app": wrap(saved)}, tmp_path / "saved")
        fresh = Training(OPTIMIZERS["adamw"], seed=5)
        sw.load({"app": wrap(fresh)}, tmp_path / "saved")
        assert bits(fresh.optimizer.state_dict()) == bits(saved.optimizer.state_dict())


def test_what_nobody_asked_for_is_listed_for_every_kind_of_sharded_checkpoint(tmp_path: Path):
    saved = trained()
    tensors = {"model": saved.model.state_dict(), "extra": {"t": torch.ones(2)}}
    sw.save(tensors | {"note": "n"}, tmp_path / "ours")
    dcp.save(tensors | {"note": "n"}, checkpoint_id=tmp_path / "torchs")
    flat = {f"model.{name}": value for name, value in tensors["model"].items()} | {"extra.t": torch.ones(2)}
    dcp.save(flat, storage_writer=dcp.HuggingFaceStorageWriter(str(tmp_path / "hf"), save_distributed=True))
    for kind, unused in (("ours", ["extra.t", "note"]), ("torchs", ["extra.t", "note"]), ("hf", ["extra.t"])):
        model = Model()
        report = sw.load({"model": model}, tmp_path / kind)
        assert sorted(report.unused) == unused, kind
        assert bits(model.state_dict()) == bits(saved.model.state_dict())
        reader = sw.ShardedStorageReader(tmp_path / kind)
        if kind != "torchs":
            dcp.load({"model": Model().state_dict()}, storage_reader=reader)
            assert sorted(reader.report.unused) == unused, kind
        partial = {"extra": {"t": torch.zeros(2)}, "new": torch.zeros(1)}
        report = sw.load(partial, tmp_path / kind, allow_partial_load=True)
        assert report.not_loaded == ["new"] and partial["extra"]["t"].tolist() == [1, 1]


def test_the_report_of_torchs_reader_has_what_is_known(tmp_path: Path):
    dcp.save({"a": torch.ones(100), "b": torch.ones(50, dtype=torch.float64), "c": 3}, checkpoint_id=tmp_path)
    state = {"a": torch.zeros(100), "c": 0}
    report = sw.load(state, tmp_path)
    assert (report.tensors, report.bytes_written, report.files, report.unused) == (1, 400, 1, ["b"])
    assert report.bytes_read >= 400 and report.seconds["total"] > 0 and "b" in str(report)
