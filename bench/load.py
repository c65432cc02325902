"""Loads a generated checkpoint with Shardwright, beside what the machine can do at best, all in one run.

    python bench/load.py [--preset bench] [--threads 2] [--runs 5] [--checkpoint DIR] [--json]

Warm files, one process, the destination allocated and touched beforehand. Measured in turns, medians are quoted:
  shardwright   sw.load into native BF16 tensors: reads, decodes, regroups
  safetensors   load_file of every file and one copy of each tensor, raw: neither decodes nor regroups
  read limit    every file read into a small buffer
  fill limit    the destination tensors filled with a constant
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shardwright as sw
import torch
from options import checkpoint, options
from shardwright.cli.table import table
from shardwright.peak_memory import measure_peak_memory
from turns import seconds_in_turns
from ways import fill, read_limit, safetensors_copy, safetensors_files, touched_native


def measure(path: Path, threads: int, runs: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    state_dict = touched_native(path)
    # The first load of the process, so that what the allocator keeps from earlier ones does not hide what this takes.
    with measure_peak_memory() as peak:
        report = sw.load(state_dict, path, threads=threads)
    works: dict[str, Callable[[], object]] = {
        "shardwright": lambda: sw.load(state_dict, path, threads=threads),
        "safetensors raw copy": safetensors_copy(path, threads),
        "read limit": read_limit(path, threads),
        "fill limit": lambda: fill(state_dict),
    }
    seconds = seconds_in_turns(works, runs)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    limit = medians["read limit"] + medians["fill limit"]
    return {
        "checkpoint_bytes": sum(file.stat().st_size for file in safetensors_files(path)),
        "destination_bytes": sum(tensor.nbytes for tensor in state_dict.values()),
        "threads": threads,
        "runs": runs,
        "instruction_set": report.instruction_set,
        "seconds": seconds,
        "medians": medians,
        "times_safetensors": medians["shardwright"] / medians["safetensors raw copy"],
        "times_read_plus_fill": medians["shardwright"] / limit,
        "memory_above_destination": peak.bytes,
        "peak_staging_bytes": report.peak_staging_bytes,
        "bytes_needed": report.bytes_needed,
        "bytes_read": report.bytes_read,
        "phases": report.seconds,
    }


def main() -> None:
    chosen = options(__doc__, "fail above 4 x safetensors or 256 MB of memory")
    with checkpoint(chosen) as path:
        result = measure(path, chosen.threads, chosen.runs)
    if chosen.json:
        print(json.dumps(result, indent=1))
    else:
        print_result(result)
    if chosen.check and (result["times_safetensors"] > 4 or result["memory_above_destination"] > 256e6):
        raise SystemExit("slower than 4 x safetensors, or more than 256 MB above the destination")


def print_result(result: dict[str, Any]) -> None:
    medians = result["medians"]
    rows = [
        ("checkpoint, destination bytes", f"{result['checkpoint_bytes']:,}, {result['destination_bytes']:,}"),
        ("threads, kernels, runs", f"{result['threads']}, {result['instruction_set']}, {result['runs']}"),
    ]
    rows += [(f"{name}, median seconds", f"{value:.3f}") for name, value in medians.items()]
    rows += [
        ("shardwright / safetensors raw", f"{result['times_safetensors']:.2f}"),
        ("shardwright / (read + fill limit)", f"{result['times_read_plus_fill']:.2f}"),
        ("memory above destination, bytes", f"{result['memory_above_destination']:,}"),
        ("bytes needed, read", f"{result['bytes_needed']:,}, {result['bytes_read']:,}"),
    ]
    print(table(rows))


if __name__ == "__main__":
    main()
