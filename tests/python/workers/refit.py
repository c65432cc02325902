"""Runs on ranks: a trainer's weights go to an engine whose ranks are others, the same, or some of both.

    torchrun --nproc-per-node N refit.py CHECKPOINT UNEVEN_CHECKPOINT RESULT.json

What arrives is compared with slices, by plain torch, of what `sw.export` writes and safetensors reads.
"""

import resource
import warnings
from collections.abc import Callable
from typing import Literal
from unittest import mock

import pytest
import shardwright as sw
import torch
import torch.distributed as dist
from checks import run_checks
from export import inside_blocks, shared_folder
from handed_over import exported
from placements import held_indices, take
from refit_ranks import Expected, bits, random_engine
from shardwright import _core
from shardwright.handover.engine import EnginePart, EngineTensor
from shardwright.handover.refit import RefitPlan, RefitReport, refit, refit_plan
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

State = dict[str, torch.Tensor]


def trainers_of(count: int, path: str) -> tuple[State | None, dist.ProcessGroup]:
    """The state of the first ranks, whose shards begin inside of blocks; and their group."""
    group = dist.new_group(list(range(count)))
    tensors = sw.empty_state_dict(path)
    sw.load(tensors, path)
    for tensor in tensors.values():
        tensor.nan_to_num_(0.0, 0.0, 0.0)
    if dist.get_rank() >= count:
        return None, group
    mesh = DeviceMesh.from_group(group, "cpu")
    state: State = {}
    for fqn, whole in tensors.items():
        placement = inside_blocks(fqn, whole)
        held = held_indices(tuple(whole.shape), tuple(mesh.shape), tuple(mesh.get_coordinate()), [placement])
        part = take(whole, held).clone()
        state[fqn] = DTensor.from_local(
            part, mesh, [placement], run_check=False, shape=whole.shape, stride=whole.stride()
        )
    return state, group


def engines(files: State, count: int) -> Expected:
    """This rank's part of an engine of the last ranks."""
    rank = dist.get_rank() - (dist.get_world_size() - count)
    return random_engine(files, count, seed=3)[rank] if rank >= 0 else Expected()


def arrives(
    path: str,
    trainers: int,
    engine_ranks: int,
    quantization: str | None,
    transport: Literal["auto", "c10d"] = "auto",
) -> list[RefitReport]:
    """The reports of all ranks, of the last hand-over."""
    state, group = trainers_of(trainers, path)
    with shared_folder() as folder:
        if state is not None:
            sw.export(state, folder / "to", quantization=quantization, template=path, process_group=group)
        dist.barrier()
        expected = engines(exported(folder / "to"), engine_ranks)
        dist.barrier()
    plan = RefitPlan()
    problems: list[str] = []
    report = RefitReport()
    for turn in range(2):
        expected.clear()
        report = refit(
            state, expected.engine, plan=plan, quantization=quantization, template=path, transport=transport
        )
        problems += [f"turn {turn}: {name} differs" for name in expected.wrong()[:4]]
        if bool(report.layers) != bool(expected.engine):
            problems.append(f"turn {turn}: layers {report.layers}")
        if report.peak_staging_bytes > 128 << 20:
            problems.append(f"turn {turn}: {report.peak_staging_bytes} bytes of staging")
    with mock.patch.object(dist, "gather_object", wraps=dist.gather_object) as rounds:
        kept = refit_plan(
            state, expected.engine, plan=plan, quantization=quantization, template=path, transport=transport
        )
    if kept.is_new:
        problems.append("planned anew, though nothing has changed")
    if quantization is None and rounds.called:
        problems.append("told in a round, though nothing has changed and no values have a say")
    expect_none_anywhere(problems)
    reports: list[RefitReport] = [report] * dist.get_world_size()
    dist.all_gather_object(reports, report)
    return reports


def beside_an_asynchronous_save(path: str, uneven: str) -> None:
    """Both have a group of their own; over that of the save nothing is handed over before its wait()."""
    state, _ = trainers_of(dist.get_world_size(), path)
    assert state is not None
    group = dist.new_group(list(range(dist.get_world_size())))
    problems: list[str] = []
    with shared_folder() as folder:
        sw.export(state, folder / "to", template=path)
        expected = engines(exported(folder / "to"), dist.get_world_size())
        for turn in range(4):
            expected.clear()
            own = group if turn % 2 else None
            pending = sw.save(state, folder / "saved", step=turn, asynchronous=True, process_group=own)
            assert isinstance(pending, sw.PendingSave)
            refit(state, expected.engine, template=path, transport="c10d")
            if own is not None:
                with pytest.raises(ValueError, match=r"asynchronous save to .* has it until its wait\(\)"):
                    refit(state, expected.engine, template=path, process_group=own)
            pending.wait()
            refit(state, expected.engine, template=path, transport="c10d", process_group=group)
            problems += [f"turn {turn}: {name} differs" for name in expected.wrong()[:4]]
        problems += sw.verify(sw.latest(folder / "saved")).problems
        dist.barrier()
    expect_none_anywhere(problems)


def expect_none_anywhere(problems: list[str]) -> None:
    """Raises on all ranks what any has found, so that none waits for another."""
    everywhere: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(everywhere, problems)
    assert not any(everywhere), everywhere


def bf16_to_other_ranks(path: str, uneven: str) -> None:
    arrives(path, dist.get_world_size() // 2, dist.get_world_size() - dist.get_world_size() // 2, None)


def mxfp8_to_other_ranks(path: str, uneven: str) -> None:
    half = dist.get_world_size() // 2
    for report in arrives(path, half, dist.get_world_size() - half, "mxfp8"):
        assert report.bytes_in_memory == report.bytes_sent + report.bytes_received, report
        assert not report.not_shared, report


def mxfp8_over_c10d(path: str, uneven: str) -> None:
    half = dist.get_world_size() // 2
    for report in arrives(path, half, dist.get_world_size() - half, "mxfp8", "c10d"):
        assert report.bytes_in_memory == 0 and not report.not_shared, report


def mxfp8_between_nodes(path: str, uneven: str) -> None:
    """Ranks 1 and 2 are of one node, each of the others of its own: some goes through memory, some does not."""
    half, rank = dist.get_world_size() // 2, dist.get_rank()
    with mock.patch.object(_core, "this_node", lambda: ("first", "second", "second", "third")[rank]):
        reports = arrives(path, half, dist.get_world_size() - half, "mxfp8")
    through_memory = [report.bytes_in_memory > 0 for report in reports]
    assert through_memory == ([False] * 2 if half == 1 else [False, True, True, False]), reports


def memory_that_is_refused(path: str, uneven: str) -> None:
    """To one rank: all go over c10d, and are told why."""
    half = dist.get_world_size() // 2
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == dist.get_world_size() - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        reports = arrives(path, half, dist.get_world_size() - half, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    for report in reports:
        assert report.bytes_in_memory == 0, report
        assert f"rank {len(reports) - 1}: shared memory" in report.not_shared, report


def one_plan_over_two_groups(path: str, uneven: str) -> None:
    """A trainer hands to two replicas of an engine in turns, by one plan: what each shares with it is its own."""
    name = "model.layers.0.mlp.down_proj.weight"
    rank, others = dist.get_rank(), (1, 2) if dist.get_world_size() > 2 else (1, 1)
    groups = [dist.new_group([0, other]) for other in others]
    state, plan = {name: torch.zeros(6, 8)}, RefitPlan()
    engine = [EngineTensor("replica", torch.zeros(6, 8), [name])]
    problems = []
    for turn in range(1, 4):
        state[name].fill_(turn)
        for group, other in zip(groups, others, strict=True):
            if rank == 0:
                refit(state, plan=plan, layout="huggingface", process_group=group)
            elif rank == other:
                refit(None, engine, plan=plan, layout="huggingface", process_group=group)
                if not torch.equal(engine[0].tensor, torch.full((6, 8), float(turn))):
                    problems.append(f"turn {turn}: {engine[0].tensor.flatten()[:3]}")
    expect_none_anywhere(problems)


def mxfp8_to_the_same_ranks(path: str, uneven: str) -> None:
    arrives(path, dist.get_world_size(), dist.get_world_size(), "mxfp8")


def block_fp8_of_odd_sizes_to_some_of_the_ranks(path: str, uneven: str) -> None:
    arrives(uneven, dist.get_world_size() - 1, dist.get_world_size() - 1, "block_fp8")


def refused(run: Callable[[], object]) -> str:
    """What all ranks are told, which must be the same."""
    try:
        run()
        text = ""
    except sw.PlanError as error:
        text = str(error)
    texts = [""] * dist.get_world_size()
    dist.all_gather_object(texts, text)
    assert text and len(set(texts)) == 1, texts
    return text


def one_error_for_all(path: str, uneven: str) -> None:
    """Of an engine that does not fit, on its rank alone."""
    state, _ = trainers_of(dist.get_world_size(), path)
    is_last = dist.get_rank() == dist.get_world_size() - 1
    norm = "language_model.model.norm.weight"
    gate = "language_model.model.layers.0.mlp.gate_proj.weight"

    def with_engine(*tensors: EngineTensor) -> str:
        return refused(lambda: refit(state, list(tensors) if is_last else None, template=path))

    nobody = EngineTensor("engine.norm", torch.zeros(512, dtype=torch.bfloat16), ["model.no_such.weight"])
    assert "engine.norm: model.no_such.weight: nobody can supply it" in with_engine(nobody)
    shape = EngineTensor("engine.norm", torch.zeros(3, dtype=torch.bfloat16), [norm])
    assert "engine.norm" in with_engine(shape) and norm in with_engine(shape)
    half = EngineTensor(
        "engine.half", torch.zeros(8, 4, dtype=torch.bfloat16), [EnginePart(gate, (slice(0, 4), slice(0, 4)))]
    )
    assert "engine.half: its parts do not write each element once" in with_engine(half)
    codes = EngineTensor(
        "engine.codes",
        torch.zeros(4, 4, dtype=torch.float8_e4m3fn),
        [EnginePart(gate, (slice(0, 4), slice(0, 4)))],
    )
    assert "expected F8_E4M3, as the engine's tensor is, found BF16" in with_engine(codes)
    scales = EngineTensor("engine.scales", torch.zeros(4, 1, dtype=torch.uint8), [gate + "_scale_inv"])
    assert "without such scales" in with_engine(scales)
    asked = refused(
        lambda: refit(
            state,
            [EngineTensor("engine.norm", torch.zeros(4, dtype=torch.bfloat16), [norm])],
            template=path,
            quantization="mxfp8" if is_last else None,
        )
    )
    assert "different arguments" in asked


def a_value_that_cannot_be_encoded(path: str, uneven: str) -> None:
    """A NaN in the last layer: layers before it are new, it and those behind it are as they were, on all ranks."""
    state, group = trainers_of(dist.get_world_size(), path)
    with shared_folder() as folder:
        sw.export(state, folder / "to", quantization="block_fp8", template=path)
        files = exported(folder / "to")
        dist.barrier()
    expected = engines(files, dist.get_world_size())
    bad = "model.layers.3.self_attn.o_proj.weight"
    assert state is not None
    if dist.get_rank() == 0:
        state[bad].to_local().view(-1)[0] = float("nan")
    failure: Exception | None = None
    try:
        refit(state, expected.engine, template=path, quantization="block_fp8")
    except Exception as error:
        failure = error
    new, old = set(getattr(failure, "new_layers", [])), set(getattr(failure, "old_layers", []))
    problems = [] if bad in str(failure) else [f"told {failure!r}"]
    if "language_model.model.layers.3" not in old or not new or new & old:
        problems.append(f"new: {sorted(new)}, old: {sorted(old)}")
    expect_none_anywhere(problems + neither_new_nor_old(expected, new))


def neither_new_nor_old(expected: Expected, new: set[str]) -> list[str]:
    """Of tensors that are of one layer."""
    wrong = []
    for tensor, value in zip(expected.engine, expected.values, strict=True):
        layers = {layer_of(part if isinstance(part, str) else part.name) for part in tensor.parts}
        if len(layers) == 1:
            is_new = layers <= new
            there = bits(tensor.tensor)
            should = bits(value) if is_new else torch.zeros_like(there)
            if not torch.equal(there, should):
                wrong.append(f"{tensor.name}, {'new' if is_new else 'old'}")
    return wrong


def layer_of(name: str) -> str:
    parts = name.split(".")
    for n, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: n + 1])
    return ".".join(parts[:-1])


def main() -> None:
    warnings.simplefilter("ignore")
    checks = [
        bf16_to_other_ranks,
        mxfp8_to_other_ranks,
        mxfp8_over_c10d,
        mxfp8_between_nodes,
        memory_that_is_refused,
        beside_an_asynchronous_save,
        one_plan_over_two_groups,
        mxfp8_to_the_same_ranks,
        block_fp8_of_odd_sizes_to_some_of_the_ranks,
        one_error_for_all,
        a_value_that_cannot_be_encoded,
    ]
    run_checks(checks)


if __name__ == "__main__":
    main()
