"""Plans a save of the native MiniMax M3, all tensors sharded on dimension 0, for many ranks in one process.

    python bench/planning.py --ranks 1024 [--json] [--no-torch] [--growth] [--out build/bench]

What is measured on the coordinator, one thread; each in a process of its own, so that its peak memory is seen:
  enumerated    every rank names each of its shards: decode, dedup, create and validate
  described     ranks refer to one description of the mesh, which one of them sends
  unchanged     a second save of the same state: what a rank does, and what is exchanged
  torch         the same shards through torch's planner: unpickle, dedup, create, validate (at most 1,024 ranks)
Bytes exchanged are all that ranks send and get. --growth repeats the first two up to 16,384 ranks and draws a picture.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shardwright import _core
from shardwright.table import print_table

GROWTH = [64, 256, 1024, 4096, 16384]


def native_tensors() -> list[tuple[str, list[int]]]:
    """Names and shapes of the released model's tensors as a trainer holds them."""
    from shardwright.catalog import generate, read_catalog

    with tempfile.TemporaryDirectory() as folder:
        generate(folder, "full", layout_only=True)
        catalog = read_catalog(folder)
        tensors = _core.native_tensors(catalog, _core.weight_map(catalog))
    return [(tensor.fqn, tensor.shape) for tensor in tensors]


def description(ranks: int) -> bytes:
    values = [
        (fqn, 0, "bfloat16", "strided", 2, 0, shape, [_core.Placement.shard(0)], [])
        for fqn, shape in native_tensors()
    ]
    encoded: bytes = _core.encode_values(values, [ranks], list(range(ranks)))
    return encoded


def exchange(states: list[bytes], caches: list[Any]) -> tuple[int, float, float]:
    """Plans with all ranks in turn. Returns bytes exchanged, the coordinator's seconds, and a rank's."""
    moved, on_rank = 0, 0.0

    def on_each(work: Any, *arguments: list[Any]) -> list[Any]:
        nonlocal on_rank
        start = time.perf_counter()
        results = [work(*of_rank) for of_rank in zip(*arguments, strict=True)]
        on_rank += time.perf_counter() - start
        return results

    introductions = on_each(_core.introduce, states, caches)
    start = time.perf_counter()
    answers = _core.ask(introductions, caches[0])
    on_coordinator = time.perf_counter() - start
    moved += sum(map(len, introductions)) + sum(map(len, answers))
    if not _core.is_plan(answers[0]):
        sent = on_each(_core.state_for, answers, states)
        start = time.perf_counter()
        answers = _core.plan_for_all(sent, caches[0])
        on_coordinator += time.perf_counter() - start
        moved += sum(map(len, sent)) + sum(map(len, answers))
    on_each(_core.understand, answers, states, caches)
    return moved, on_coordinator, on_rank / len(states)


def measure_ours(ranks: int, described: bool) -> dict[str, Any]:
    values = description(ranks)
    if described:
        states = [_core.encode_state(rank, [(values, None)], [True]) for rank in range(ranks)]
    else:
        states = _core.enumerate_states(values)
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
    from shardwright.save_planning import WRITES, SavePlanner
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
    seconds, on_coordinator, moved = [], [], []
    for _ in range(5):
        start = time.perf_counter()
        planner.set_up_planner(state, is_coordinator=True)
        plans = [planner.create_local_plan()]
        on_rank = time.perf_counter() - start
        for rank, other in enumerate(others, start=1):  # their tensors' description is that of rank 0
            other.state_dict = {}
            other._signature = ([], {})
            other._state = _core.encode_state(rank, [(planner.description.parts[0].values, None)], [False])
            plans.append(other.create_local_plan())
        gathered = [pickle.dumps(plan) for plan in plans]
        start = time.perf_counter()
        plans, _ = planner.create_global_plan([pickle.loads(plan) for plan in gathered])
        on_coordinator.append(time.perf_counter() - start)
        scattered = [pickle.dumps(plan) for plan in plans]
        start = time.perf_counter()
        planner.finish_plan(pickle.loads(scattered[0]))
        seconds.append(on_rank + time.perf_counter() - start)
        for other, plan in zip(others, scattered[1:], strict=True):
            what, data = (items := pickle.loads(plan).items).what, items.data
            other._last = (other._state_hash, *data) if what == WRITES else other._last
        moved.append(sum(map(len, gathered)) + sum(map(len, scattered)))
    return {
        "first": seconds[0],
        "unchanged": min(seconds[1:]),
        "coordinator_first": on_coordinator[0],
        "coordinator_unchanged": min(on_coordinator[1:]),
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
    start = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        seconds[name] = time.perf_counter() - start
        start = time.perf_counter()

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
        "bytes_gathered": sum(map(len, pickles)),
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


MEASURES = {
    "enumerated": lambda ranks: measure_ours(ranks, False),
    "described": lambda ranks: measure_ours(ranks, True),
    "planner": measure_planner,
    "torch": measure_torch,
}


def measure(what: str, ranks: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", what, "--ranks", str(ranks)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def picture(growth: dict[str, list[dict[str, Any]]]) -> str:
    """Seconds over ranks as an SVG, both logarithmic; a straight line of slope 1 is linear growth."""
    width, height, left, bottom = 640, 420, 70, 50
    rows = [row for found in growth.values() for row in found]
    ranks = sorted({row["ranks"] for row in rows})
    low = math.floor(math.log10(min(row["seconds"] for row in rows)))
    high = math.ceil(math.log10(max(row["seconds"] for row in rows)))

    def x(value: float) -> float:
        span = math.log(ranks[-1] / ranks[0]) or 1
        return left + 20 + (width - left - 150) * math.log(value / ranks[0]) / span

    def y(value: float) -> float:
        return height - bottom - (height - bottom - 30) * (math.log10(value) - low) / (high - low)

    shapes = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for power in range(low, high + 1):
        at = y(10.0**power)
        shapes.append(f'<path d="M{left} {at:.1f}H{width - 120}" stroke="#e2e8f0"/>')
        shapes.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g} s</text>')
    for value in ranks:
        shapes.append(
            f'<text x="{x(value):.1f}" y="{height - bottom + 18}" text-anchor="middle">{value:,}</text>'
        )
    shapes.append(f'<text x="{(width - 50) / 2}" y="{height - 10}" text-anchor="middle">ranks</text>')
    for (name, found), colour in zip(growth.items(), ["#c2410c", "#0369a1", "#64748b"], strict=False):
        points = [(x(row["ranks"]), y(row["seconds"])) for row in found]
        shapes.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="'
            + " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
            + '"/>'
        )
        shapes += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in points]
        a, b = points[-1]
        shapes.append(f'<text x="{a + 8:.1f}" y="{b + 4:.1f}" fill="{colour}">{name}</text>')
    first = growth["enumerated"][0]
    linear = [(value, first["seconds"] * value / first["ranks"]) for value in ranks]
    path = " ".join(f"{x(value):.1f},{y(min(seconds, 10.0**high)):.1f}" for value, seconds in linear)
    shapes.append(f'<polyline fill="none" stroke="#94a3b8" stroke-dasharray="4 4" points="{path}"/>')
    shapes.append("</svg>\n")
    return "\n".join(shapes)


def report(result: dict[str, Any]) -> None:
    for name in ("enumerated", "described", "torch"):
        found = result.get(name)
        if not found:
            continue
        moved = found.get("bytes_exchanged", found.get("bytes_gathered", 0))
        print(f"{name}, {found['ranks']:,} ranks, {found['shards']:,} shards")
        rows = [
            ("seconds on the coordinator", f"{found['seconds']:.3f}"),
            ("bytes exchanged", f"{moved:,}"),
            ("peak memory", f"{found['peak_memory'] / 1e9:.2f} GB"),
        ]
        rows += [
            (f"  {step}", f"{seconds:.3f}") for step, seconds in found.get("seconds_by_step", {}).items()
        ]
        if "unchanged" in found:
            again = found["unchanged"]
            rows += [
                ("seconds on a rank", f"{found['seconds_on_a_rank']:.4f}"),
                ("busiest rank over mean, bytes", f"{found['busiest_over_mean']:.4f}"),
                ("unchanged save: on a rank", f"{again['seconds_on_a_rank']:.5f} s"),
                ("unchanged save: on the coordinator", f"{again['seconds']:.4f} s"),
                ("unchanged save: bytes exchanged", f"{again['bytes_exchanged']:,}"),
            ]
        print_table(rows)
    if "planner" in result:
        found = result["planner"]
        print("sw.SavePlanner under dcp.save, as pickled: on a rank, on the coordinator, in all")
        print_table(
            [
                (
                    f"{which} save",
                    f"{found[which] * 1000:.2f} ms, {found['coordinator_' + which] * 1000:.1f} ms, "
                    f"{found['bytes_' + which]:,} bytes",
                )
                for which in ("first", "unchanged")
            ]
        )
    for name, rows in result.get("growth", {}).items():
        for row in rows:
            print(
                f"{name:>10} {row['ranks']:>7,} ranks {row['shards']:>10,} shards {row['seconds']:8.3f} s "
                f"{row['bytes_exchanged'] / 1e6:8.2f} MB {row['peak_memory'] / 1e9:6.2f} GB"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-torch", action="store_true", help="leave torch's planner out; it takes minutes")
    parser.add_argument("--growth", action="store_true", help="up to 16,384 ranks, with a picture")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="where planning.svg goes")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(MEASURES[options.measure](options.ranks)))
        return
    names = ["enumerated", "described", "planner"]
    if not options.no_torch and options.ranks <= 1024:
        names.append("torch")
    result: dict[str, Any] = {name: measure(name, options.ranks) for name in names}
    if options.growth:
        result["growth"] = {
            name: [measure(name, ranks) for ranks in GROWTH] for name in ("enumerated", "described")
        }
        if "torch" in names:
            result["growth"]["torch"] = [
                result["torch"] | {"bytes_exchanged": result["torch"]["bytes_gathered"]}
            ]
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "planning.svg").write_text(picture(result["growth"]))
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        report(result)


if __name__ == "__main__":
    main()
