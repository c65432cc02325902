"""Loads a checkpoint through a state-dict adapter, ours and nemo-automodel's, both with torch's reader, in one run.

    .venv-peers/bin/python bench/adapter.py [--preset bench] [--runs 5] [--threads 2] [--checkpoint DIR] [--check]

What is timed: `to_hf(quantization=True)`, `dcp.load` with torch's reader, `from_hf`, until the trainer's own tensors
hold the weights. Files warm, each measurement in a process of its own, taken in turns; medians are quoted.

What the memory is held against: half of the checkpoint's bytes, plus the FP8 tensors and scales that were asked for.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

from options import checkpoint, options
from peers import bytes_of, machine, measure_apart
from ways import ADAPTERS

OURS, THEIRS = ADAPTERS


def scaled_bytes(path: Path) -> int:
    """Of the tensors that have scales, and of the scales."""
    import shardwright as sw
    from shardwright.describe import DTYPES

    sizes = {t.name: math.prod(t.shape) * DTYPES[t.dtype].itemsize for t in sw.read_catalog(path).tensors}
    suffix = "_scale_inv"
    return sum(sizes[name] + sizes[name + suffix] for name in sizes if name + suffix in sizes)


def measure_both(path: Path, warm_up: Path, threads: int, runs: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, Any]]] = {OURS: [], THEIRS: []}
    for _ in range(runs):
        for way, measured in found.items():
            measured.append(measure_apart(way, warm_up, path, threads))
    seconds = {way: sorted(one["seconds"] for one in measured) for way, measured in found.items()}
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    steps = {
        step: statistics.median(one["steps"][step] for one in found[OURS]) for step in found[OURS][0]["steps"]
    }
    return {
        "machine": machine(),
        "threads": threads,
        "runs": runs,
        "checkpoint_bytes": bytes_of(path),
        "requested_fp8_bytes": scaled_bytes(path),
        "seconds": seconds,
        "medians": medians,
        "our_steps": steps,
        "times_faster": medians[THEIRS] / medians[OURS],
        "memory_above_destination": {
            way: max(one["memory_above_destination"] for one in measured) for way, measured in found.items()
        },
    }


def memory_limit(result: dict[str, Any]) -> int:
    return result["checkpoint_bytes"] // 2 + result["requested_fp8_bytes"]


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['machine']}; {result['threads']} threads; medians of {result['runs']}; "
        f"{result['checkpoint_bytes']:,} bytes of files, warm",
        "",
        "| way to load | seconds | MB above the destination |",
        "| --- | --- | --- |",
    ]
    for way, seconds in result["medians"].items():
        lines.append(f"| {way} | {seconds:.3f} | {result['memory_above_destination'][way] / 1e6:,.0f} |")
    steps = ", ".join(f"{step} {seconds:.3f}" for step, seconds in result["our_steps"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"{result['times_faster']:.1f} times faster (steps of ours: {steps} s); allowed "
            f"{memory_limit(result) / 1e6:,.0f} MB, {result['requested_fp8_bytes'] / 1e6:,.0f} of them for FP8 tensors",
        ]
    )


def main() -> None:
    chosen = options(__doc__, "fail below 8 times faster or above the memory")
    import shardwright as sw

    with checkpoint(chosen) as path, tempfile.TemporaryDirectory() as folder:
        warm_up = Path(folder, "tiny")
        sw.generate(warm_up, "tiny")
        result = measure_both(path, warm_up, chosen.threads, chosen.runs)
    print(json.dumps(result, indent=1) if chosen.json else table(result))
    if chosen.check and (
        result["times_faster"] < 8 or result["memory_above_destination"][OURS] > memory_limit(result)
    ):
        raise SystemExit(
            "less than 8 times faster, or more memory than half the checkpoint and the FP8 tensors"
        )


if __name__ == "__main__":
    main()
