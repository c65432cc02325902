"""Plans a save of the native MiniMax M3, all tensors sharded on dimension 0, for many ranks in one process.

    python bench/planning.py [--ranks 1024] [--json] [--no-torch] [--no-growth] [--out build/bench]

What is measured is processor time of the coordinator, one thread; each in a process of its own, so that its peak
memory is seen:
  enumerated    every rank names each of its shards: decode, dedup, create and validate
  described     ranks refer to one description of the mesh, which one of them sends
  planner       sw.SavePlanner as dcp.save calls it, with the pickles that dcp.save makes of what it gives
  unchanged     a second save of the same state: what a rank does, and what is exchanged
  resume        a load of 100,000 chunks under the trainer's own names, on one rank, by our planner and by torch's
  torch         the same shards through torch's planner: unpickle, dedup, create, validate (at most 1,024 ranks)
Bytes exchanged are all that ranks send and get. The first two are repeated up to 16,384 ranks, with a picture of how
they grow (planning.png, where matplotlib is there: .venv-peers has it).
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shardwright import _core
from shardwright.cli.table import columns

GROWTH = [64, 256, 1024, 4096, 16384]
SAVES = 21  #: of which the first plans and the others repeat it

#: One thread: what it takes with a core of its own, whatever else the machine does.
clock = time.process_time


def native_tensors() -> list[tuple[str, list[int]]]:
    """Names and shapes of the released model's tensors as a trainer holds them."""
    from shardwright.catalog import generate, read_catalog

    with tempfile.TemporaryDirectory() as folder:
        generate(folder, "full", layout_only=True)
        catalog = read_catalog(folder)
        tensors = _core.native_tensors(catalog, _core.weight_map(catalog))
    return [(tensor.fqn, tensor.shape) for tensor in tensors]


def values_of(placements: list[Any]) -> list[Any]:
    return [(fqn, 0, "bfloat16", "strided", 2, 0, shape, placements, []) for fqn, shape in native_tensors()]


def exchange(states: list[bytes], caches: list[Any]) -> tuple[int, float, float]:
    """The protocol of a save, with all ranks in turn. Returns bytes exchanged, the coordinator's seconds, and a
    rank's."""
    start = clock()
    told = [_core.tell(_core.told_state(state), cache) for state, cache in zip(states, caches, strict=True)]
    on_rank = clock() - start
    start = clock()
    answers = _core.answer(told, caches[0])
    on_coordinator = clock() - start
    start = clock()
    for answer, state, cache in zip(answers, states, caches, strict=True):
        _core.understand(answer, state, cache)
    on_rank += clock() - start
    return sum(map(len, told)) + sum(map(len, answers)), on_coordinator, on_rank / len(states)


def enumerated(values: list[Any], rank: int, ranks: int, encoded: bytes) -> bytes:
    """What a rank has to save, each of its shards named."""
    boxes = []
    for number, value in enumerate(values):
        shape = value[6]
        step = math.ceil(shape[0] / ranks)
        begin = min(step * rank, shape[0])
        length = min(step * (rank + 1), shape[0]) - begin
        if length > 0:
            boxes.append((number, [begin, *[0] * (len(shape) - 1)], [length, *shape[1:]]))
    state: bytes = _core.encode_state(rank, [(encoded, boxes)])
    return state


def measure_ours(ranks: int, described: bool) -> dict[str, Any]:
    values = values_of([_core.Placement.shard(0)] if described else [])
    encoded = (
        _core.encode_values(values, [ranks], list(range(ranks))) if described else _core.encode_values(values)
    )
    if described:
        states = [_core.encode_state(rank, [(encoded, None)]) for rank in range(ranks)]
    else:
        states = [enumerated(values, rank, ranks, encoded) for rank in range(ranks)]
    caches = [_core.SavePlanCache() for _ in states]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    moved, on_coordinator, on_rank = exchange(states, caches)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    moved_again, coordinator_again, rank_again = exchange(states, caches)
    plan = caches[0].plan
    mean = sum(plan.bytes_of_rank) / ranks
    return {
        "ranks": ranks,
        "shards": plan.chunks,
        "seconds": on_coordinator,
        "seconds_on_a_rank": on_rank,
        "bytes_exchanged": moved,
        "peak_memory": peak * 1024,
        "peak_memory_of_planning": (peak - before) * 1024,
        "busiest_over_mean": max(plan.bytes_of_rank) / mean,
        "metadata_bytes": len(plan.metadata.encode()),
        "unchanged": {
            "seconds": coordinator_again,
            "seconds_on_a_rank": rank_again,
            "bytes_exchanged": moved_again,
        },
    }


def measure_planner(ranks: int) -> dict[str, Any]:
    """sw.SavePlanner on rank 0 of a process group of that size that moves nothing."""
    import torch
    import torch.distributed as dist
    from shardwright.dcp.save_planner import SavePlanner
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    mesh = init_device_mesh("cpu", (ranks,))
    state = {}
    for fqn, shape in native_tensors():
        local = torch.empty([math.ceil(shape[0] / ranks), *shape[1:]], dtype=torch.bfloat16, device="meta")
        stride = torch.empty(shape, device="meta").stride()
        state[fqn] = DTensor.from_local(
            local, mesh, [Shard(0)], run_check=False, shape=torch.Size(shape), stride=stride
        )
    planner = SavePlanner()
    others = [SavePlanner() for _ in range(ranks - 1)]
    whole_states = [b""] * (ranks - 1)
    seconds, processor, on_coordinator, moved = [], [], [], []
    for _ in range(SAVES):
        start, begin = time.perf_counter(), time.thread_time()
        planner.set_up_planner(state, is_coordinator=True)
        plans = [planner.create_local_plan()]
        on_rank, work = time.perf_counter() - start, time.thread_time() - begin
        for rank, other in enumerate(others, start=1):  # their tensors' description is that of rank 0
            other.state_dict = {}
            other._signature = ([], {})
            of_rank = _core.encode_state(rank, [(planner.description.holdings[0].values, None)])
            whole_states[rank - 1], other._told_state = of_rank, _core.told_state(of_rank)
            plans.append(other.create_local_plan())
        gathered = [pickle.dumps(plan) for plan in plans]
        start = clock()
        plans, _ = planner.create_global_plan([pickle.loads(plan) for plan in gathered])
        on_coordinator.append(clock() - start)
        scattered = [pickle.dumps(plan) for plan in plans]
        mine = pickle.loads(scattered[0])
        start, begin = time.perf_counter(), time.thread_time()
        planner.finish_plan(mine)
        seconds.append(on_rank + time.perf_counter() - start)
        processor.append(work + time.thread_time() - begin)
        for other, plan, of_rank in zip(others, scattered[1:], whole_states, strict=True):
            _core.understand(pickle.loads(plan).items.message, of_rank, other._cache)
        moved.append(sum(map(len, gathered)) + sum(map(len, scattered)))
    return {
        "ranks": ranks,
        "first": seconds[0],
        "unchanged": statistics.median(seconds[1:]),
        "unchanged_most": max(seconds[1:]),
        "unchanged_processor": statistics.median(processor[1:]),
        "coordinator_first": on_coordinator[0],
        "coordinator_unchanged": statistics.median(on_coordinator[1:]),
        "bytes_first": moved[0],
        "bytes_unchanged": moved[1],
    }


def measure_torch(ranks: int) -> dict[str, Any]:
    import torch
    from torch.distributed.checkpoint._dedup_save_plans import dedup_save_plans
    from torch.distributed.checkpoint.default_planner import (
        _validate_global_plan,
        create_default_global_save_plan,
    )
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
    from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

    tensors = native_tensors()
    pickles = []
    for rank in range(ranks):
        items = []
        for fqn, shape in tensors:
            step = math.ceil(shape[0] / ranks)
            begin = min(step * rank, shape[0])
            length = min(step * (rank + 1), shape[0]) - begin
            if length == 0:
                continue
            offset = torch.Size([begin, *[0] * (len(shape) - 1)])
            chunk = ChunkStorageMetadata(offset, torch.Size([length, *shape[1:]]))
            data = TensorWriteData(chunk, TensorProperties(torch.bfloat16), torch.Size(shape))
            items.append(WriteItem(MetadataIndex(fqn, offset), WriteItemType.SHARD, tensor_data=data))
        pickles.append(pickle.dumps(SavePlan(items)))
    seconds = {}
    start = clock()

    def lap(name: str) -> None:
        nonlocal start
        seconds[name] = clock() - start
        start = clock()

    plans = [pickle.loads(plan) for plan in pickles]
    lap("unpickle")
    plans = dedup_save_plans(plans)
    lap("dedup")
    plans, metadata = create_default_global_save_plan(plans)
    lap("create")
    assert _validate_global_plan(plans, metadata) == []
    lap("validate")
    return {
        "ranks": ranks,
        "shards": sum(len(plan.items) for plan in plans),
        "seconds": sum(seconds.values()),
        "seconds_by_step": seconds,
        "bytes_exchanged": sum(
            map(len, pickles)
        ),  # the plans back are as much again, less what was dealt out
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def measure_resume(chunks: int) -> dict[str, Any]:
    """A resume of 1,000 tensors in so many chunks, planned on one rank that holds them whole: the planners call, on
    metadata that has just been read."""
    import torch
    from shardwright.dcp.catalog_metadata import CatalogMetadata
    from shardwright.dcp.resume_planner import ResumePlanner
    from torch.distributed.checkpoint import DefaultLoadPlanner

    each = chunks // 1000
    catalog = _core.catalog_of_tensors(
        [(f"t{number:04}", "BF16", [8, 64], [8 * c, 0]) for number in range(1000) for c in range(each)]
    )
    state = {f"t{number:04}": torch.empty(8 * each, 64, dtype=torch.bfloat16) for number in range(1000)}
    seconds = {}
    for name, planner_of in (("ours", ResumePlanner), ("torch", DefaultLoadPlanner)):
        times = []
        for _ in range(3):
            metadata = CatalogMetadata(lambda: catalog, trainers_names=True)
            if name == "torch":  # which a reader of its own has by then
                [stored.chunks for stored in metadata.state_dict_metadata.values()]
            planner = planner_of()
            start = clock()
            planner.set_up_planner(dict(state), metadata, True)
            planner.create_local_plan()
            times.append(clock() - start)
        seconds[name] = statistics.median(times)
    return {"chunks": chunks, "seconds": seconds["ours"], "torch_seconds": seconds["torch"]}


def specs_of(values: list[Any], rank: int, ranks: int) -> list[Any]:
    """What a rank holds, sharded on dimension 0, without memory."""
    specs = []
    for fqn, *_, shape, _, _ in values:
        step = math.ceil(shape[0] / ranks)
        begin = min(step * rank, shape[0])
        size = [min(step * (rank + 1), shape[0]) - begin, *shape[1:]]
        strides = [math.prod(size[d + 1 :]) for d in range(len(size))]
        box = _core.LocalBox([begin, *[0] * (len(shape) - 1)], size, [0] * len(size))
        specs.append(_core.TensorSpec(fqn, "BF16", shape, size, strides, 0, "cpu", [box] if size[0] else []))
    return specs


def measure_export(ranks: int) -> dict[str, Any]:
    """An export of the native M3 with itself as template: what ranks tell, and the coordinator's plan."""
    from shardwright.catalog import generate, read_catalog

    with tempfile.TemporaryDirectory() as folder:
        generate(folder, "full", layout_only=True)
        catalog = read_catalog(folder)
        values = values_of([_core.Placement.shard(0)])
        encoded = _core.encode_values(values, [ranks], list(range(ranks)))
        request = _core.ExportRequest(catalog, "auto", "automodel", "none", [], True, 5_000_000_000, {})
        start = clock()
        told = []
        for rank in range(ranks):
            state = _core.encode_state(rank, [(encoded, None)])
            told.append(_core.describe_export(specs_of(values, rank, ranks), state, request))
        on_rank = clock() - start
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = clock()
        shares = _core.plan_export(told, request, folder)
        seconds = clock() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "ranks": ranks,
        "seconds": seconds,
        "seconds_on_a_rank": on_rank / ranks,
        "bytes_exchanged": sum(map(len, told)) + sum(map(len, shares)),
        "peak_memory_of_planning": (peak - before) * 1024,
    }


MEASURES = {
    "resume": measure_resume,
    "enumerated": lambda ranks: measure_ours(ranks, False),
    "described": lambda ranks: measure_ours(ranks, True),
    "planner": measure_planner,
    "export": measure_export,
    "torch": measure_torch,
}


def measure(what: str, ranks: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", what, "--ranks", str(ranks)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def picture(result: dict[str, Any], file: Path) -> str:
    """Draws how planning grows. Returns where, or why not."""
    try:
        import matplotlib
    except ImportError:
        return "no picture: matplotlib is not here (.venv-peers has it)"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for name, colour in (("enumerated", "#c2410c"), ("described", "#0369a1")):
        rows = result["growth"][name]
        millions = [row["shards"] / 1e6 for row in rows]
        seconds = [row["seconds"] for row in rows]
        slope = seconds[-1] / millions[-1]
        left.plot(millions, seconds, "o", color=colour, label=f"{name}: {slope:.2f} s a million shards")
        left.plot([0, millions[-1]], [0, seconds[-1]], "--", color=colour, alpha=0.4, linewidth=1)
    left.set(xlim=(0, None), ylim=(0, None), xlabel="million shards", ylabel="seconds on the coordinator")
    left.set_title(f"Planning a save of M3 on {ranks_of(rows)} ranks")
    left.legend(loc="upper left")
    for name, colour in (("enumerated", "#c2410c"), ("described", "#0369a1"), ("torch", "#64748b")):
        rows = result["growth"][name] if name != "torch" else [result[name]] if name in result else []
        if rows:
            ranks = [row["ranks"] for row in rows]
            right.plot(ranks, [row["bytes_exchanged"] / 1e6 for row in rows], "o-", color=colour, label=name)
    right.set(
        xscale="log", yscale="log", xlabel="ranks", ylabel="MB exchanged", title="What ranks send and get"
    )
    right.set_xticks(GROWTH, [f"{ranks:,}" for ranks in GROWTH])
    right.legend(loc="upper left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    return f"picture: {file}"


def ranks_of(rows: list[dict[str, Any]]) -> str:
    return ", ".join(f"{row['ranks']:,}" for row in rows)


def figures(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What issue 7 asks for: (what, how much it may be, ours, torch's)."""
    torch = result.get("torch", {})
    at = result["enumerated"]["ranks"]
    planner = result["planner"]
    rows = []

    def add(what: str, unit: str, most: float | None, ours: float, theirs: float | None = None) -> None:
        rows.append({"what": what, "unit": unit, "at_most": most, "ours": ours, "torch": theirs})

    for name, seconds, megabytes in (("enumerated", 1.5, 12), ("described", 0.3, 2)):
        found = result[name]
        bound = at <= 1024
        add(f"{name}, {at:,} ranks", "s", seconds if bound else None, found["seconds"], torch.get("seconds"))
        add(
            f"{name}, {at:,} ranks", "MB", megabytes if bound else None, found["bytes_exchanged"] / 1e6,
            torch["bytes_exchanged"] / 1e6 if torch else None,
        )  # fmt: skip
        add(
            f"{name}, {at:,} ranks",
            "GB",
            None,
            found["peak_memory"] / 1e9,
            torch and torch["peak_memory"] / 1e9,
        )
        for row in result.get("growth", {}).get(name, [])[-1:]:
            add(
                f"{name}, {row['ranks']:,} ranks",
                "s",
                {"enumerated": 30, "described": 3}[name],
                row["seconds"],
            )
            add(f"{name}, {row['ranks']:,} ranks", "MB", None, row["bytes_exchanged"] / 1e6)
            add(f"{name}, {row['ranks']:,} ranks", "GB", 4, row["peak_memory"] / 1e9)
    resume = result["resume"]
    add(f"resume of {resume['chunks']:,} chunks", "s", None, resume["seconds"], resume["torch_seconds"])
    add(f"SavePlanner, first save, {at:,} ranks: coordinator", "ms", None, planner["coordinator_first"] * 1e3)
    add(f"SavePlanner, first save, {at:,} ranks: a rank", "ms", None, planner["first"] * 1e3)
    add(f"SavePlanner, unchanged, {at:,} ranks: a rank", "ms", 5, planner["unchanged"] * 1e3)
    add(f"SavePlanner, unchanged, {at:,} ranks: its processor", "ms", 5, planner["unchanged_processor"] * 1e3)
    add(
        f"SavePlanner, unchanged, {at:,} ranks: coordinator",
        "ms",
        None,
        planner["coordinator_unchanged"] * 1e3,
    )
    add(f"SavePlanner, unchanged, {at:,} ranks: bytes a rank", "B", None, planner["bytes_unchanged"] / at)
    return rows


def print_report(result: dict[str, Any]) -> None:
    print(f"native M3, sharded on dimension 0: {result['enumerated']['shards']:,} shards")
    heads = ["", "unit", "ours", "at most", "torch"]

    def text(value: float | None) -> str:
        return "" if not value else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    rows = [
        [row["what"], row["unit"], text(row["ours"]), text(row["at_most"]), text(row["torch"])]
        for row in result["figures"]
    ]
    print("\n" + columns(heads, rows))
    for step, seconds in result.get("torch", {}).get("seconds_by_step", {}).items():
        print(f"torch: {step:<9} {seconds:8.2f} s")
    if "growth" not in result:
        return
    print("\n" + columns(
        ["growth", "ranks", "shards", "seconds", "seconds a million shards", "MB", "GB"],
        [
            [
                name, f"{row['ranks']:,}", f"{row['shards']:,}", f"{row['seconds']:.3f}",
                f"{row['seconds'] / row['shards'] * 1e6:.3f}", f"{row['bytes_exchanged'] / 1e6:.2f}",
                f"{row['peak_memory'] / 1e9:.2f}",
            ]
            for name, of_name in result["growth"].items()
            for row in of_name
        ],
    ))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-torch", action="store_true", help="leave torch's planner out; it takes minutes")
    parser.add_argument("--no-growth", action="store_true", help="only --ranks, and no picture")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="for planning.json and .png")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(MEASURES[options.measure](options.ranks)))
        return
    names = ["enumerated", "described", "planner"]
    if not options.no_torch and options.ranks <= 1024:
        names.append("torch")
    result: dict[str, Any] = {name: measure(name, options.ranks) for name in names}
    result["resume"] = measure("resume", 100_000)
    told = ""
    if not options.no_growth:
        result["growth"] = {
            name: [measure(name, ranks) for ranks in GROWTH] for name in ("enumerated", "described")
        }
        told = picture(result, options.out / "planning.png")
    result["figures"] = figures(result)
    text = json.dumps(result, indent=1)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "planning.json").write_text(text)
    if options.json:
        print(text)
    else:
        print_report(result)
        print(told)


if __name__ == "__main__":
    main()
