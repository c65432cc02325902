"""Ranks of a node that load together, against the same ranks apart, and against reading the bytes once, in one run.

    python bench/node.py [--preset bench] [--ranks 2] [--runs 5] [--checkpoint DIR] [--json] [--check]

Each rank has its share of the processors. In turns, medians are quoted, with the least and the most, with the files in
the page cache (warm) and dropped from it before each load (cold):
  apart      each rank by itself
  together   cooperative=True
  forced     cooperative="node", warm: through shared memory all the same
  alone      the first rank, of which each holds all, on all processors, cold; the others wait
  straight   the files read by dd past the page cache, as many at a time as there are processors, cold
Ranks hold all of it, or their shard of experts' input dimension, which is transposed (as ep_shard gives it).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from options import checkpoint
from peers import HELD, dd, drop_from_page_cache, sharded
from ways import read_limit

ALL, TRANSPOSED = "all", "of experts its shard of the input dimension"
LIMITS = {  # of times: (row, against, at most)
    "warm, all": ("together", "apart", 1.1),
    "cold, all": ("together", "alone", 1.15),
    "cold, experts' input dimension": ("together", "straight", 1.1),
}


COOPERATIVE = {"apart": False, "together": True, "forced": "node", "alone": False}


def load_as_rank(
    rank: int, ranks: int, path: str, held: str, cold: bool, ways: list[str], runs: int, out: str
) -> None:
    """Loads what this rank holds in each of the ways, in turns; rank 0 writes seconds, and bytes of all, to `out`."""
    import shardwright as sw
    import torch
    import torch.distributed as dist

    processors = len(os.sched_getaffinity(0))
    threads = max(1, processors // ranks)
    torch.set_num_threads(1)
    state_dict = sw.empty_state_dict(path)
    on_dimension_1 = HELD[held]
    if on_dimension_1 is not None:
        state_dict = sharded(state_dict, ranks, on_dimension_1)
    for tensor in state_dict.values():
        (tensor if on_dimension_1 is None else tensor.to_local()).fill_(1)
    if rank == 0 and not cold:
        read_limit(Path(path), threads)()  # into the page cache, from which others may have dropped them

    def run(way: str) -> tuple[int, str]:
        """The bytes that this rank reads, and how, where ranks read together."""
        if way in ("alone", "straight") and rank > 0:
            return 0, ""
        if way == "straight":
            dd(Path(path), processors, ["iflag=direct"], "16M")
            return distinct_bytes(Path(path)), ""
        on = processors if way == "alone" else threads
        report = sw.load(state_dict, path, threads=on, cooperative=COOPERATIVE[way])
        return report.bytes_read, report.cooperation

    found: dict[str, dict[str, Any]] = {way: {"seconds": []} for way in ways}
    for turn in range(runs + 1):  # the first warms the code
        for way in ways:
            if cold and rank == 0:
                drop_from_page_cache(Path(path))
            dist.barrier()
            start, of_processor = time.perf_counter(), time.process_time()
            read, how = run(way)
            dist.barrier()
            if turn > 0:
                found[way]["seconds"].append(time.perf_counter() - start)
            of_processor = time.process_time() - of_processor
            figures: list[Any] = [None] * ranks
            dist.all_gather_object(figures, (of_processor, read))
            worked, read_by = zip(*figures, strict=True)
            found[way] |= {"processor_seconds": sum(worked), "bytes_read": sum(read_by), "how": how}
    if rank == 0:
        Path(out).write_text(json.dumps(found))


def distinct_bytes(path: Path) -> int:
    import shardwright as sw

    return sum(stored.end - stored.begin for stored in sw.read_catalog(path).tensors)


def measure_ranks(
    path: Path, ranks: int, held: str, cold: bool, ways: list[str], runs: int
) -> dict[str, Any]:
    from shardwright.ranks.run import run_on_ranks

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "figures.json")
        run_on_ranks(ranks, load_as_rank, ranks, str(path), held, cold, ways, runs, str(out))
        found: dict[str, Any] = json.loads(out.read_text())
    for figures in found.values():
        figures["median"] = statistics.median(figures["seconds"])
    return found


def measure(path: Path, ranks: int, runs: int) -> dict[str, Any]:
    warm, cold = ["apart", "together", "forced"], ["apart", "together", "straight"]
    return {
        "ranks": ranks,
        "distinct_bytes": distinct_bytes(path),
        "rows": {
            "warm, all": measure_ranks(path, ranks, ALL, False, warm, runs),
            "cold, all": measure_ranks(path, ranks, ALL, True, [*cold, "alone"], runs),
            "warm, experts' input dimension": measure_ranks(path, ranks, TRANSPOSED, False, warm, runs),
            "cold, experts' input dimension": measure_ranks(path, ranks, TRANSPOSED, True, cold, runs),
        },
    }


def print_result(result: dict[str, Any]) -> None:
    print(f"{result['ranks']} ranks of a node, {result['distinct_bytes']:,} distinct bytes")
    for held, ways in result["rows"].items():
        for way, figures in ways.items():
            times = figures["bytes_read"] / result["distinct_bytes"]
            how = f"  {figures['how']}" if figures["how"] else ""
            spread = f"{min(figures['seconds']):.3f} to {max(figures['seconds']):.3f}"
            worked = f"{figures['processor_seconds']:.3f} s of processors" if way != "straight" else ""
            print(
                f"  {held:<31} {way:<9} {figures['median']:.3f} s ({spread})  {worked:<24}"
                f"  read by the node {times:.3f} x distinct{how}"
            )
    for held, (row, against, most) in LIMITS.items():
        ways = result["rows"][held]
        times = ways[row]["median"] / ways[against]["median"]
        print(f"  {held}: {row} / {against} {times:.3f}, at most {most} is wanted")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="bench")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint that is there already")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="fail above the times that are wanted")
    chosen = parser.parse_args()
    with checkpoint(chosen) as path:
        result = measure(path, chosen.ranks, chosen.runs)
    if chosen.json:
        print(json.dumps(result, indent=1))
    else:
        print_result(result)
    rows = result["rows"]
    slow = [
        held
        for held, (row, against, most) in LIMITS.items()
        if rows[held][row]["median"] > most * rows[held][against]["median"]
    ]
    read = rows["cold, experts' input dimension"]["together"]["bytes_read"]
    if chosen.check and (slow or read > 1.01 * result["distinct_bytes"]):
        raise SystemExit(f"slower than wanted, or more read: {slow}, {read:,} bytes")


if __name__ == "__main__":
    main()
