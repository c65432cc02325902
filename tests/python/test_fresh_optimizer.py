"""Training that resumes into an optimizer that has taken no step goes on as if it had never stopped, in one process."""

import copy
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from shardwright.dcp.resume_planner import ResumePlanner
from shardwright.dcp.torch_reading import TorchStorageReader
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim.optimizer import register_optimizer_step_pre_hook

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


def refused(optimizer: torch.optim.Optimizer, path: Path, **others) -> str:
    """The message of a load that changes nothing of the optimizer, which is still without state, nor of the others."""
    before = copy.deepcopy((optimizer.state_dict(), others))
    with pytest.raises(sw.PlanError) as error:
        sw.load({"optim": optimizer, **others}, path)
    assert not hasattr(error.value, "partly_written")
    assert bits(optimizer.state_dict()) == bits(before[0]) and bits(others) == bits(before[1])
    return str(error.value)


def of_shapes(make: Callable[..., torch.optim.Optimizer], *shapes: tuple[int, ...]) -> torch.optim.Optimizer:
    return make([nn.Parameter(torch.ones(shape)) for shape in shapes])


def stepped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for parameter in optimizer.param_groups[0]["params"]:
        sparse = isinstance(optimizer, torch.optim.SparseAdam)
        parameter.grad = torch.ones_like(parameter).to_sparse() if sparse else torch.ones_like(parameter)
    optimizer.step()
    return optimizer


#: Name → states of a parameter [5, 7] that has taken a step, and their shapes.
STATES: dict[str, dict[str, tuple[int, ...]]] = {
    "adam": {"exp_avg": (5, 7), "exp_avg_sq": (5, 7), "step": ()},
    "adamw_fused": {"exp_avg": (5, 7), "exp_avg_sq": (5, 7), "step": ()},
    "adamw_lr_tensor": {"exp_avg": (5, 7), "exp_avg_sq": (5, 7), "step": ()},
    "adam_amsgrad": {"exp_avg": (5, 7), "exp_avg_sq": (5, 7), "max_exp_avg_sq": (5, 7), "step": ()},
    "adamax": {"exp_avg": (5, 7), "exp_inf": (5, 7), "step": ()},
    "sgd_momentum": {"momentum_buffer": (5, 7)},
    "nadam": {"exp_avg": (5, 7), "exp_avg_sq": (5, 7), "mu_product": (), "step": ()},
    "radam": {"exp_avg": (5, 7), "exp_avg_sq": (5, 7), "step": ()},
    "asgd": {"ax": (5, 7), "eta": (), "mu": (), "step": ()},
    "adadelta": {"acc_delta": (5, 7), "square_avg": (5, 7), "step": ()},
    "adafactor": {"col_var": (1, 7), "row_var": (5, 1), "step": ()},
    "rmsprop": {
        "grad_avg": (5, 7),
        "momentum_buffer": (5, 7),
        "square_avg": (5, 7),
        "step": (),
    },
    "rprop": {"prev": (5, 7), "step": (), "step_size": (5, 7)},
    "sparse_adam": {"exp_avg": (5, 7), "exp_avg_sq": (5, 7)},
    "muon": {"momentum_buffer": (5, 7)},
}
OTHERS = {"adamax": torch.optim.Adamax, "sparse_adam": torch.optim.SparseAdam, "muon": torch.optim.Muon}


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("name", STATES)
def test_states_of_another_shape_are_all_refused_by_name(name: str, save, tmp_path: Path):
    make = OPTIMIZERS.get(name) or OTHERS[name]
    saved = stepped(of_shapes(make, (5, 7)))
    tensors = {
        key: tuple(value.shape)
        for key, value in saved.state_dict()["state"][0].items()
        if hasattr(value, "shape")
    }
    assert tensors == STATES[name]
    save({"optim": saved}, tmp_path / "saved")

    same = of_shapes(make, (5, 7))
    sw.load({"optim": same}, tmp_path / "saved")
    assert bits(same.state_dict()) == bits(saved.state_dict())

    transposed = of_shapes(make, (7, 5))
    message = refused(transposed, tmp_path / "saved")
    turned = {(5, 7): [7, 5], (5, 1): [7, 1], (1, 7): [1, 5]}
    lines = [
        f"  optim.state.0.{key}: expected shape {turned[shape]}, as the trainer has it, found {list(shape)}"
        for key, shape in STATES[name].items()
        if shape
    ]
    assert sorted(message.splitlines()[1:]) == sorted(lines)
    assert not transposed.state
    stepped(transposed)


@pytest.mark.parametrize("name", ["adam", "counting"])
def test_parameters_in_another_order_are_refused(name: str, tmp_path: Path):
    sw.save({"optim": stepped(of_shapes(OPTIMIZERS[name], (3, 4), (2,), (5, 2)))}, tmp_path / "saved")
    reordered = of_shapes(OPTIMIZERS[name], (5, 2), (2,), (3, 4))
    message = refused(reordered, tmp_path / "saved", model=torch.ones(2), lost=torch.ones(1))
    key = "exp_avg" if name == "adam" else "history.0"
    assert f"optim.state.0.{key}: expected shape [5, 2], as the trainer has it, found [3, 4]" in message
    assert f"optim.state.2.{key}: expected shape [3, 4], as the trainer has it, found [5, 2]" in message
    assert f"optim.state.1.{key}" not in message
    assert "lost: expected in the checkpoint" in message  # with all else that does not fit
    assert not reordered.state


def test_states_are_compared_where_the_parameter_is_a_number_or_the_checkpoints_was(tmp_path: Path):
    for saved, fresh in (((), (3,)), ((3,), ())):
        sw.save({"optim": stepped(of_shapes(torch.optim.Adam, saved))}, tmp_path / "saved")
        message = refused(of_shapes(torch.optim.Adam, fresh), tmp_path / "saved")
        assert (
            f"state.0.exp_avg: expected shape {list(fresh)}, as the trainer has it, found {list(saved)}"
            in message
        )
        assert "state.0.step" not in message


def test_states_of_a_wrapped_optimizer_are_compared(tmp_path: Path):
    sw.save({"optim": stepped(of_shapes(torch.optim.Adam, (3, 4)))}, tmp_path / "saved")
    message = refused(Wrapper(of_shapes(torch.optim.Adam, (4, 3))), tmp_path / "saved")
    assert "state.0.exp_avg: expected shape [4, 3], as the trainer has it, found [3, 4]" in message


def test_states_that_the_optimizer_is_not_set_to_have_are_compared(tmp_path: Path):
    sw.save({"optim": stepped(of_shapes(OPTIMIZERS["sgd_momentum"], (3, 4)))}, tmp_path / "saved")
    message = refused(of_shapes(OPTIMIZERS["sgd"], (4, 3)), tmp_path / "saved")
    assert "state.0.momentum_buffer: expected shape [4, 3], as the trainer has it, found [3, 4]" in message


def lbfgs(steps: int, *shapes: tuple[int, ...]) -> torch.optim.Optimizer:
    optimizer = of_shapes(lambda parameters: torch.optim.LBFGS(parameters, max_iter=3), *shapes)
    parameters = optimizer.param_groups[0]["params"]

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum((value**4).sum() for value in parameters)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return optimizer


@pytest.mark.parametrize("save", SAVES)
def test_lbfgs_has_vectors_of_all_parameters(save, tmp_path: Path):
    saved = lbfgs(2, (3, 4), (2,))
    save({"optim": saved}, tmp_path / "saved")
    fresh = lbfgs(0, (3, 4), (2,))
    sw.load({"optim": fresh}, tmp_path / "saved")
    assert bits(fresh.state_dict()) == bits(saved.state_dict())
    other = lbfgs(0, (3, 4), (5,))
    message = refused(other, tmp_path / "saved")
    for key in ("d", "prev_flat_grad", "old_dirs.0", "old_stps.1"):
        assert f"optim.state.0.{key}: expected shape [17], as the trainer has it, found [14]" in message
    assert "H_diag" not in message and "state.0.ro" not in message and not other.state


def test_states_of_other_optimizers_than_torchs_are_taken_in_the_shapes_that_they_have(tmp_path: Path):
    class Factored(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self, closure=None):
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter]["rows"] = parameter.grad.sum(-1)

    def make(parameters):
        return Factored(parameters, {"lr": 0.01})

    saved = stepped(of_shapes(make, (3, 4), (4, 5)))
    sw.save({"optim": saved}, tmp_path / "saved")
    fresh = of_shapes(make, (3, 4), (4, 5))
    sw.load({"optim": fresh}, tmp_path / "saved")
    assert bits(fresh.state_dict()) == bits(saved.state_dict())


def test_a_failed_load_adds_nothing_to_states_that_are_there(tmp_path: Path):
    sw.save({"optim": stepped(of_shapes(OPTIMIZERS["adam_amsgrad"], (3, 4)))}, tmp_path / "saved")
    partly = stepped(of_shapes(OPTIMIZERS["adam"], (3, 4)))
    refused(partly, tmp_path / "saved", lost=torch.ones(1))
    assert sorted(partly.state[partly.param_groups[0]["params"][0]]) == ["exp_avg", "exp_avg_sq", "step"]


def test_asking_for_shapes_runs_no_hooks_of_all_optimizers(tmp_path: Path):
    sw.save({"optim": stepped(of_shapes(torch.optim.Adam, (3, 4)))}, tmp_path / "saved")
    hook = register_optimizer_step_pre_hook(lambda *_: pytest.fail("a step was taken"))
    try:
        sw.load({"optim": of_shapes(torch.optim.Adam, (3, 4))}, tmp_path / "saved")
    finally:
        hook.remove()
