"""Loads a generated checkpoint into the memory of a GPU, beside what the bus can do at best, all in one run.

    python bench/device_load.py [--preset bench] [--threads 2] [--runs 5] [--checkpoint DIR] [--json]

Warm files, one process, the destination allocated beforehand. Measured in turns, medians are quoted:
  shardwright   sw.load into native BF16 tensors on the device, which decodes and regroups
  bus limit     as many bytes as the files have, copied from pinned memory to the device
  read limit    every file read into a small buffer
Prints one line where there is no device. None was at hand when this was written: no figures are quoted anywhere.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import shardwright as sw
import torch
from options import checkpoint, options
from shardwright.cli.table import table
from turns import seconds_in_turns
from ways import read_limit, safetensors_files, touched_native

BUFFER_BYTES = 64 << 20


def bus_limit(device: torch.device, count: int) -> None:
    pinned = torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(BUFFER_BYTES, dtype=torch.uint8, device=device)
    for begin in range(0, count, BUFFER_BYTES):
        size = min(BUFFER_BYTES, count - begin)
        there[:size].copy_(pinned[:size], non_blocking=True)
    torch.cuda.synchronize(device)


def measure(path: Path, threads: int, runs: int) -> dict[str, Any]:
    device = torch.device("cuda", torch.cuda.current_device())
    state_dict = {fqn: tensor.to(device) for fqn, tensor in touched_native(path).items()}
    size = sum(file.stat().st_size for file in safetensors_files(path))
    reports: list[sw.LoadReport | None] = []
    works = {
        "shardwright": lambda: reports.append(sw.load(state_dict, path, threads=threads)),
        "bus limit": lambda: bus_limit(device, size),
        "read limit": read_limit(path, threads),
    }
    seconds = seconds_in_turns(works, runs)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    report = reports[-1]
    assert report is not None
    return {
        "card": torch.cuda.get_device_name(device),
        "checkpoint_bytes": size,
        "threads": threads,
        "runs": runs,
        "gigabytes_per_second": {name: size / value / 1e9 for name, value in medians.items()},
        "of_the_bus": medians["bus limit"] / medians["shardwright"],
        "peak_device_bytes": report.peak_device_bytes,
        "peak_staging_bytes": report.peak_staging_bytes,
        "device_batches": report.device_batches,
    }


def main() -> None:
    chosen = options(__doc__, "fail below 80 % of the bus")
    if not torch.cuda.is_available():
        print("skipped: no CUDA device")
        return
    with checkpoint(chosen) as path:
        result = measure(path, chosen.threads, chosen.runs)
    if chosen.json:
        print(json.dumps(result, indent=1))
    else:
        print_result(result)
    if chosen.check and result["of_the_bus"] < 0.8:
        raise SystemExit("below 80 % of what the bus can do")


def print_result(result: dict[str, Any]) -> None:
    rows = [("card", result["card"]), ("checkpoint bytes", f"{result['checkpoint_bytes']:,}")]
    rows += [(f"{name}, GB/s", f"{value:.2f}") for name, value in result["gigabytes_per_second"].items()]
    rows += [
        ("shardwright / bus", f"{result['of_the_bus']:.2f}"),
        ("pinned, device bytes", f"{result['peak_staging_bytes']:,}, {result['peak_device_bytes']:,}"),
        ("batches", f"{result['device_batches']:,}"),
    ]
    print(table(rows))


if __name__ == "__main__":
    main()
