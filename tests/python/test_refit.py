"""Handing weights to an engine: what arrives are the slices of the files that `sw.export` writes, bit for bit.

The ranks are threads of one process here; test_refit_ranks.py has real ones.
"""

import queue
import threading
import time
from pathlib import Path

import pytest
import refit_ranks
import shardwright as sw
import torch
from handed_over import exported
from refit_ranks import Ranks, Side, hand_over, on_ranks, random_engine, request_of
from shardwright import _core
from test_property import fake_mesh
from test_refit_property import on_mesh
from torch.distributed.tensor import Shard


@pytest.mark.parametrize("quantization", [None, "mxfp8", "template"])
def test_an_engine_gets_slices_of_the_files_of_an_export(
    small: Path, tmp_path: Path, quantization: str | None
):
    state = sw.empty_state_dict(small)
    sw.load(state, small)
    sw.export(state, tmp_path / "to", quantization=quantization, template=small)
    engine = random_engine(exported(tmp_path / "to"), 3, seed=1)
    trainer = Side(state)
    trainer.describe()
    sides = [trainer, *[Side(None, rank.engine) for rank in engine]]
    outcomes = hand_over(sides, request_of(small, quantization or "none"))
    for outcome, rank in zip(outcomes[1:], engine, strict=True):
        outcome.expect_success()
        assert rank.wrong() == []
        assert outcome.left == [] and outcome.bytes_received > 0


def test_a_rank_alone_is_told_what_is_wrong_and_nothing_has_been_written():
    names = ["model.layers.0.w.weight", "model.layers.1.w.weight"]
    state = {name: torch.ones(8, 16).bfloat16() for name in names}
    first = torch.zeros(8, 16).bfloat16()
    whole = sw.EngineTensor("first", first, names[:1])
    on_meta = sw.EngineTensor("second", torch.zeros(8, 16, device="meta").bfloat16(), names[1:])
    wrong = [
        ({"engine": [whole, on_meta]}, "second: expected CPU memory, found it on meta"),
        ({"engine": [whole, first]}, "expected a list of shardwright.EngineTensor, found Tensor"),
        ({"engine": first}, "expected a list of shardwright.EngineTensor, found Tensor"),
        ({"engine": [whole], "staging_bytes": 0}, "staging_bytes is 0"),
        ({"engine": [whole], "plan": 3}, "plan: expected a shardwright.RefitPlan or None, found 3"),
        ({"engine": [sw.EngineTensor("e", first, names[0])]}, f"e: expected a list .* found '{names[0]}'"),
        ({"engine": [sw.EngineTensor("e", first, [3])]}, r"e: expected a list .* found \[3\]"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            sw.refit(state, layout="huggingface", **arguments)
    assert not first.any()
    sw.refit(state, [whole], layout="huggingface")
    assert (first == 1).all()


NAME = "model.layers.0.w.weight"


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape).bfloat16()


def into(*tensors: torch.Tensor) -> list[sw.EngineTensor]:
    """The first rows of the weight, and those behind them."""
    begin, engine = 0, []
    for tensor in tensors:
        rows, columns = tensor.shape
        part = sw.EnginePart(NAME, (slice(begin, begin + rows), slice(0, columns)))
        engine.append(sw.EngineTensor(f"rows from {begin}", tensor, [part]))
        begin += rows
    return engine


def test_what_is_as_it_was_is_not_described_again(monkeypatch: pytest.MonkeyPatch):
    state, first, plan = {NAME: numbers(8, 16)}, torch.zeros(8, 16).bfloat16(), sw.RefitPlan()
    sw.refit(state, into(first), plan=plan, layout="huggingface")
    monkeypatch.setattr("shardwright.handover.refit.handed_state", None)
    monkeypatch.setattr("shardwright.export_request.AskedExport.request", None)
    state[NAME].mul_(2)
    sw.refit({NAME: state[NAME].detach()}, into(first), plan=plan, layout="huggingface")
    assert torch.equal(first, state[NAME])
    assert not sw.refit_plan(state, into(first), plan=plan, layout="huggingface").is_new


@pytest.mark.parametrize(
    ("second", "engine", "is_new"),
    [
        (lambda first: first.clone().add_(1), lambda: into(torch.zeros(8, 16).bfloat16()), False),
        (lambda first: numbers(16, 8).T, lambda: into(torch.zeros(8, 16).bfloat16()), True),
        (
            lambda first: first,
            lambda: into(torch.zeros(3, 16).bfloat16(), torch.zeros(5, 16).bfloat16()),
            True,
        ),
        (lambda first: first, lambda: into(torch.zeros(16, 8).bfloat16().T), False),
        (lambda first: numbers(6, 16), lambda: into(torch.zeros(6, 16).bfloat16()), True),
        (lambda first: first.float(), lambda: into(torch.zeros(8, 16)), True),
    ],
    ids=["memory", "strides", "parts", "memory of the engine", "shape", "dtype"],
)
def test_what_has_changed_since_the_last_time_is_seen(second, engine, is_new: bool):
    first, plan = numbers(8, 16), sw.RefitPlan()
    sw.refit({NAME: first}, into(torch.zeros(8, 16).bfloat16()), plan=plan, layout="huggingface")
    state, tensors = {NAME: second(first)}, engine()
    assert sw.refit_plan(state, tensors, plan=plan, layout="huggingface").is_new == is_new
    sw.refit(state, tensors, plan=plan, layout="huggingface")
    assert torch.equal(torch.cat([tensor.tensor for tensor in tensors]), state[NAME])


class Config:
    """Of a model, as transformers' are: it can be changed in place."""

    def __init__(self, model_type: str) -> None:
        self.model_type = model_type

    def to_dict(self) -> dict[str, str]:
        return dict(vars(self))


def test_a_config_that_was_changed_in_place_is_seen():
    config, plan, state = Config("llama"), sw.RefitPlan(), {NAME: numbers(8, 16)}
    for _ in range(2):
        sw.refit_plan(state, into(torch.zeros(8, 16).bfloat16()), plan=plan, model=config)
    assert not plan.is_new
    config.model_type = "unheard of"
    with pytest.raises(ValueError, match="unheard of"):
        sw.refit_plan(state, into(torch.zeros(8, 16).bfloat16()), plan=plan, model=config)


def test_a_trainer_that_shards_otherwise_is_planned_anew():
    whole = numbers(8, 16)
    plans = [_core.PlannedRefit() for _ in range(3)]
    for placements in ([Shard(0)], [Shard(1)]):
        sides = []
        for rank in range(2):
            with fake_mesh((2,), rank) as mesh:
                sides.append(Side(on_mesh({NAME: whole}, mesh, (2,), {NAME: placements})))
                sides[-1].describe()
        came = torch.zeros(8, 16).bfloat16()
        request = request_of(layout="huggingface")
        for outcome in hand_over([*sides, Side(None, into(came))], request, plans):
            outcome.expect_success()
        assert torch.equal(came, whole)


@pytest.mark.parametrize(
    "tensors, message",
    [
        (lambda whole: (whole[:8], whole[4:12]), "first and second share memory"),
        (
            lambda whole: (whole.view(-1).as_strided((8, 16), (8, 1)), whole[8:]),
            "first: several of its elements",
        ),
    ],
    ids=["two tensors", "a tensor and itself"],
)
def test_an_engines_elements_that_share_memory_are_refused(tensors, message: str):
    """Of what is written to one place, the last would stay."""
    names = ["model.layers.0.w.weight", "model.layers.1.w.weight"]
    state = {name: torch.full((8, 16), number + 1.0) for number, name in enumerate(names)}
    whole = torch.zeros(16, 16)
    first, second = tensors(whole)
    engine = [sw.EngineTensor("first", first, names[:1]), sw.EngineTensor("second", second, names[1:])]
    with pytest.raises(sw.PlanError, match=message):
        sw.refit(state, engine, layout="huggingface")
    assert not whole.any()
    halves = [slice(0, 8), slice(8, 16)]
    columns = [
        sw.EngineTensor(name, whole[:8, half], [sw.EnginePart(name, (slice(0, 8), half))])
        for name, half in zip(names, halves, strict=True)
    ]
    sw.refit(state, columns, layout="huggingface")
    assert (whole[:8, :8] == 1).all() and (whole[:8, 8:] == 2).all() and not whole[8:].any()


def test_a_kept_plan_asks_for_memory_of_their_own_as_well():
    names = ["model.layers.0.w.weight", "model.layers.1.w.weight"]
    state, plan = {name: torch.ones(8, 16) for name in names}, sw.RefitPlan()
    apart, shared = torch.zeros(16, 16), torch.zeros(12, 16)
    for first, second in ((apart[:8], apart[8:]), (shared[:8], shared[4:])):
        engine = [sw.EngineTensor("first", first, names[:1]), sw.EngineTensor("second", second, names[1:])]
        if first.data_ptr() == shared.data_ptr():
            with pytest.raises(sw.PlanError, match="first and second share memory"):
                sw.refit(state, engine, plan=plan, layout="huggingface")
        else:
            sw.refit(state, engine, plan=plan, layout="huggingface")
    assert (apart == 1).all() and not shared.any()


def test_a_sender_and_a_receiver_that_meet_have_the_same_queue(monkeypatch: pytest.MonkeyPatch):
    """Of the ranks that are threads: queues that each of them made for itself lost messages, once in a long while."""

    class SlowQueue(queue.Queue):
        def __init__(self) -> None:
            time.sleep(0.05)
            super().__init__()

    monkeypatch.setattr(refit_ranks.queue, "Queue", SlowQueue)
    ranks = Ranks(2)
    met = threading.Barrier(2)
    came = bytearray(7)

    def run(rank: int) -> None:
        transport = ranks.transport_of(rank)
        met.wait()
        if rank == 0:
            transport.wait(transport.send(1, memoryview(b"message")))
        else:
            transport.wait(transport.receive(0, memoryview(came)))

    assert on_ranks(2, run) == [None, None]
    assert came == b"message"
