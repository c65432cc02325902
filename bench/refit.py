"""Hands the weights of four trainer ranks to an engine of two and of four other ranks, over Gloo on this machine.

    python bench/refit.py [--layers 8] [--hidden 2048] [--engines 2 4] [--quantization mxfp8] [--turns 3] [--json]
    python bench/refit.py --preset bench

The model is a dense one in BF16, or a generated MiniMax M3 as nemo-automodel trains it, sharded on dimension 0; the
engine is tensor parallel, with fused qkv_proj, gate_up_proj and experts, and gets it encoded. In one run, in turns:

  refit     sw.refit with a plan that is kept, the whole call: through memory that the ranks share
  c10d      the same over the process group alone (transport="c10d")
  by hand   each tensor gathered by the trainer's ranks, encoded by torch, broadcast, and sliced by each engine's rank
  limit     the same bytes between the same ranks, as isend and irecv of messages that large
  encoding  what the trainer's ranks encode, sw.pieces of it, which go nowhere: ranks that share processors take this
            time beside the limit's

Times are the slowest rank's, the least of the turns. Memory is what a rank's peak (VmHWM) is above both sides, planning
included; what ranks share counts on the rank of the engine that has made it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shardwright as sw
import torch
import torch.distributed as dist
from refit_models import Model, dense, encode, engine_of, minimax_m3
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

TRAINERS = 4


def by_hand(
    model: Model,
    state: dict[str, Any] | None,
    engine: list[sw.EngineTensor],
    group: dist.ProcessGroup,
    encoded: bool,
) -> None:
    """A native tensor at a time, through whole ones."""
    wanted: dict[str, list[tuple[torch.Tensor, sw.EnginePart]]] = {}
    for tensor in engine:
        for part in tensor.parts:
            assert isinstance(part, sw.EnginePart)
            wanted.setdefault(part.name, []).append((tensor.tensor, part))
    for name, native in model.natives.items():
        gathered = torch.empty_like(native, device="cpu")
        if state is not None:
            dist.all_gather_into_tensor(gathered, state[name].to_local(), group=group)
        for hf, view in model.hf_of(name, gathered):
            whole = view.contiguous()
            values = {"": whole}
            if encoded and model.is_quantized(hf):
                codes = torch.empty(whole.shape, dtype=torch.float8_e4m3fn)
                scales = torch.empty(whole.shape[0], whole.shape[1] // 32, dtype=torch.uint8)
                if dist.get_rank() == 0:
                    codes, scales = encode(whole)
                values = {"": codes, "_scale_inv": scales}
            for ending, value in values.items():
                dist.broadcast(value.view(torch.uint8), 0)
                for target, part in wanted.get(hf + ending, []):
                    assert part.box is not None and part.at is not None
                    box = value[tuple(part.box)]
                    place = target[part.at[0]] if target.dim() > box.dim() else target
                    begin = part.at[-box.dim()]
                    place[begin : begin + box.shape[0]] = box


def overwrite(engine: list[sw.EngineTensor], byte: int) -> None:
    for one in engine:
        one.tensor.view(torch.uint8).fill_(byte)


def differing(a: torch.Tensor, b: torch.Tensor) -> int:
    return int((a.view(torch.uint8) != b.view(torch.uint8)).sum())


def raw(plan: sw.RefitPlan, landing: torch.Tensor) -> None:
    """The same bytes between the same ranks: out of one message's memory, as what is encoded is sent while a cache has
    it, into places of their own, which have been touched before."""
    message = torch.zeros(4 << 20, dtype=torch.uint8)
    works, begin = [], 0
    for rank, count in plan.bytes_from.items():
        for place in landing[begin : begin + count].split(len(message)):
            works.append(dist.irecv(place, group_src=rank))
        begin += count
    for rank, count in plan.bytes_to.items():
        for done in range(0, count, len(message)):
            works.append(dist.isend(message[: count - done], group_dst=rank))
    for work in works:
        work.wait()


def encode_alone(state: dict[str, Any] | None, group: dist.ProcessGroup, arguments: dict[str, Any]) -> None:
    """Of a trainer's rank."""
    if state is not None:
        for _ in sw.pieces(state, process_group=group, bucket_bytes="16MiB", **arguments):
            pass


def of_status(word: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(word))


def memory_above(run: Callable[[], Any], is_engine: bool) -> tuple[Any, int]:
    """Also the bytes of this process's peak above what it had, without the pages of the library's own code, which
    lie in the page cache for all. What ranks share is the engine's."""
    Path("/proc/self/clear_refs").write_text("5")
    before, code, shared = of_status("VmHWM"), of_status("RssFile"), of_status("RssShmem")
    result = run()
    of_others = of_status("RssFile") - code + (0 if is_engine else of_status("RssShmem") - shared)
    return result, of_status("VmHWM") - before - of_others


def slowest(run: Callable[[], Any], processor: list[float] | None = None) -> float:
    """Seconds of the slowest rank; adds those of processors, of all ranks together."""
    dist.barrier()
    begin, begin_of_processor = time.perf_counter(), time.process_time()
    run()
    seconds = torch.tensor(time.perf_counter() - begin)
    of_processor = torch.tensor(time.process_time() - begin_of_processor)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    dist.all_reduce(of_processor)
    if processor is not None:
        processor.append(float(of_processor))
    return float(seconds)


def worker(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, engines = dist.get_rank(), dist.get_world_size() - TRAINERS
    model = minimax_m3(options.preset) if options.preset else dense(options.layers, options.hidden)
    encoded = options.quantization != "none"
    group = dist.new_group(list(range(TRAINERS)))
    state: dict[str, Any] | None = None
    engine: list[sw.EngineTensor] = []
    if rank < TRAINERS:
        mesh = DeviceMesh.from_group(group, "cpu")
        torch.manual_seed(rank)
        state = {
            name: DTensor.from_local(
                torch.randn(native.shape[0] // TRAINERS, *native.shape[1:]).to(native.dtype),
                mesh,
                [Shard(0)],
                run_check=False,
            )
            for name, native in model.natives.items()
        }
    else:
        engine = engine_of(model, rank - TRAINERS, engines, encoded)
    arguments: dict[str, Any] = {"layout": model.layout, "threads": 1}
    if encoded:
        arguments |= {"quantization": options.quantization, "quantized_weights": model.quantized_weights}
    plan = sw.RefitPlan()
    reports: list[sw.RefitReport] = []

    def plan_and_refit() -> float:
        seconds = slowest(lambda: sw.refit_plan(state, engine, plan=plan, **arguments))
        reports.append(sw.refit(state, engine, plan=plan, **arguments))
        return seconds

    planning, above = memory_above(plan_and_refit, bool(engine))
    again: list[float] = []
    unchanged = min(
        slowest(lambda: sw.refit_plan(state, engine, plan=plan, **arguments), again) for _ in range(5)
    )
    over_c10d = arguments | {"plan": sw.RefitPlan(), "transport": "c10d"}
    sw.refit(state, engine, **over_c10d)
    landing = torch.zeros(sum(plan.bytes_from.values()), dtype=torch.uint8)
    runs: dict[str, Callable[[], Any]] = {
        "refit": lambda: reports.append(sw.refit(state, engine, plan=plan, **arguments)),
        "c10d": lambda: sw.refit(state, engine, **over_c10d),
        "limit": lambda: raw(plan, landing),
        "encoding": lambda: encode_alone(state, group, arguments),
        "by hand": lambda: by_hand(model, state, engine, group, encoded),
    }
    times: dict[str, list[float]] = {name: [] for name in (*runs, "moving")}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.turns):
        for name, run in runs.items():
            if name == "by hand":
                overwrite(engine, 0x5A)
            times[name].append(slowest(run, processor[name]))
        moving = torch.tensor(reports[-1].seconds)
        dist.all_reduce(moving, dist.ReduceOp.MAX)
        times["moving"].append(float(moving))
    by_hands = [one.tensor.clone() for one in engine]
    overwrite(engine, 0xA5)
    sw.refit(state, engine, plan=plan, **arguments)
    differ = torch.tensor(sum(differing(a, b.tensor) for a, b in zip(by_hands, engine, strict=True)))
    dist.all_reduce(differ)
    figures = torch.tensor([above, reports[-1].peak_staging_bytes, -above], dtype=torch.int64)
    dist.all_reduce(figures, dist.ReduceOp.MAX)
    moved = torch.tensor(sum(plan.bytes_to.values()), dtype=torch.int64)
    busiest = moved.clone()
    dist.all_reduce(moved)
    dist.all_reduce(busiest, dist.ReduceOp.MAX)
    if rank == 0:
        best = {name: min(of_turns) for name, of_turns in times.items()}
        result = {
            "trainer_ranks": TRAINERS,
            "engine_ranks": engines,
            "parameters": model.parameters,
            "bytes_moved": int(moved),
            "busiest_over_mean": int(busiest) * TRAINERS / int(moved),
            "seconds": best,
            "processor_seconds": {name: min(of_turns) for name, of_turns in processor.items()},
            "by_hand_over_refit": best["by hand"] / best["refit"],
            "refit_over_limit": best["refit"] / best["limit"],
            "c10d_over_limit": best["c10d"] / best["limit"],
            "not_shared": reports[-1].not_shared,
            "moving_over_limit": best["moving"] / best["limit"],
            "moving_over_limit_and_encoding": best["moving"] / (best["limit"] + best["encoding"]),
            "bytes_that_by_hand_differ": int(differ),
            "memory_above_both_sides": int(figures[0]),
            "peak_staging_bytes": int(figures[1]),
            "planning_seconds": planning,
            "unchanged_seconds": unchanged,
            "unchanged_processor_seconds": min(again),
        }
        Path(options.worker).write_text(json.dumps(result))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", help="a generated MiniMax M3, such as bench, in place of the dense model")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--engines", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--quantization", default="mxfp8", help="or none: BF16 to BF16")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
    results = []
    for engines in options.engines:
        out = Path(f"build/bench/refit_{engines}.json")
        out.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        command += [str(TRAINERS + engines), __file__, "--worker", str(out), "--layers", str(options.layers)]
        command += ["--hidden", str(options.hidden), "--quantization", options.quantization]
        command += ["--turns", str(options.turns)]
        command += ["--preset", options.preset] if options.preset else []
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        results.append(json.loads(out.read_text()))
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for one in results:
        seconds = one["seconds"]
        print(
            f"{one['trainer_ranks']} trainer ranks to {one['engine_ranks']}: "
            f"{one['parameters'] / 1e6:.0f} M parameters, "
            f"{one['bytes_moved'] / 1e6:.0f} MB moved; busiest sender {one['busiest_over_mean']:.2f} x the mean"
        )
        print(
            f"  refit {seconds['refit']:.2f} s (of which moving {seconds['moving']:.2f}), "
            f"by hand {seconds['by hand']:.2f} s "
            f"({one['by_hand_over_refit']:.1f} x), limit {seconds['limit']:.2f} s (refit is "
            f"{one['refit_over_limit']:.2f} x, moving {one['moving_over_limit']:.2f} x), encoding alone "
            f"{seconds['encoding']:.2f} s (moving is {one['moving_over_limit_and_encoding']:.2f} x both)"
        )
        print(
            f"  over c10d {seconds['c10d']:.2f} s ({one['c10d_over_limit']:.2f} x)"
            + (f"; no memory was shared: {one['not_shared']}" if one["not_shared"] else "")
        )
        print(f"  bytes of the engine that are others by hand: {one['bytes_that_by_hand_differ']:,}")
        of_all = ", ".join(f"{name} {spent:.2f}" for name, spent in one["processor_seconds"].items())
        print(f"  seconds of processors, all ranks together: {of_all}")
        print(
            f"  memory above both sides {one['memory_above_both_sides'] / 1e6:.0f} MB, staging "
            f"{one['peak_staging_bytes'] / 1e6:.0f} MB; planning {one['planning_seconds']:.3f} s, unchanged "
            f"{one['unchanged_seconds'] * 1e3:.1f} ms ({one['unchanged_processor_seconds'] * 1e3:.1f} ms of processors)"
        )


if __name__ == "__main__":
    main()
