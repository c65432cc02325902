"""Saves a native state with Shardwright, beside torch's own FileSystemWriter, all in one run and one process.

    python bench/save.py [--preset bench] [--threads 2] [--runs 3] [--folder DIR] [--json] [--check]

Both save the same state by dcp.save, over the checkpoint of the run before, flushed, with as many threads.
Measured in turns, medians are quoted. Bytes are those that the process gave the operating system to write (wchar of
/proc/self/io); memory is above the state, measured from outside (VmHWM). "device limit" is the same number of bytes
written from one buffer, and flushed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from shardwright.peak_memory import measure_peak_memory
from shardwright.table import print_table
from torch.distributed.checkpoint import FileSystemWriter

OURS = "sw.ShardedStorageWriter"
TORCHS = "torch's FileSystemWriter"
LIMIT = "device limit"


def native_state(folder: Path, preset: str) -> dict[str, torch.Tensor]:
    """The native tensors of a generated checkpoint, loaded."""
    sw.generate(folder / preset, preset)
    state_dict = sw.empty_state_dict(folder / preset)
    sw.load(state_dict, folder / preset)
    return state_dict


def write_and_flush(path: Path, size: int) -> None:
    buffer = bytes(8 << 20)
    with open(path, "wb", buffering=0) as file:
        for begin in range(0, size, len(buffer)):
            file.write(buffer[: size - begin])
        os.fsync(file.fileno())


def bytes_given_to_write() -> int:
    line = next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("wchar"))
    return int(line.split()[1])


def measure(works: dict[str, Callable[[], object]], runs: int) -> dict[str, dict[str, Any]]:
    """Runs each in turns, after a first time that is not counted for seconds, and gives what it took."""
    taken: dict[str, dict[str, Any]] = {}
    for name, work in works.items():
        before = bytes_given_to_write()
        with measure_peak_memory() as peak:
            work()
        taken[name] = {"bytes": bytes_given_to_write() - before, "memory": peak.bytes, "seconds": []}
    for _ in range(runs):
        for name, work in works.items():
            os.sync()  # so that nobody pays for what another has left to the kernel
            start = time.perf_counter()
            work()
            taken[name]["seconds"].append(time.perf_counter() - start)
    for figures in taken.values():
        figures["median"] = statistics.median(figures["seconds"])
    return taken


def measure_saves(
    state_dict: dict[str, torch.Tensor], folder: Path, threads: int, runs: int
) -> dict[str, Any]:
    size = sum(tensor.nbytes for tensor in state_dict.values())
    works: dict[str, Callable[[], object]] = {
        OURS: lambda: dcp.save(
            state_dict, storage_writer=sw.ShardedStorageWriter(folder / "ours", thread_count=threads)
        ),
        TORCHS: lambda: dcp.save(
            state_dict, storage_writer=FileSystemWriter(folder / "torchs", thread_count=threads)
        ),
        LIMIT: lambda: write_and_flush(folder / "raw", size),
    }
    taken = measure(works, runs)
    return {
        "state_bytes": size,
        "threads": threads,
        "runs": runs,
        "works": taken,
        "times_torchs": taken[OURS]["median"] / taken[TORCHS]["median"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="bench")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write: the device that is measured")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--check", action="store_true", help="fail if slower than torch's, or 1 %% more bytes"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # torch warns that a save without a process group is one
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        state_dict = native_state(Path(name), options.preset)
        result = measure_saves(state_dict, Path(name), options.threads, options.runs)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        print_result(result)
    ours = result["works"][OURS]
    if options.check and (result["times_torchs"] > 1 or ours["bytes"] > 1.01 * result["state_bytes"]):
        raise SystemExit("slower than torch's FileSystemWriter, or more bytes than the state and 1 %")


def print_result(result: dict[str, Any]) -> None:
    rows = [
        ("state bytes", f"{result['state_bytes']:,}"),
        ("threads, runs", f"{result['threads']}, {result['runs']}"),
    ]
    for name, figures in result["works"].items():
        rows.append((f"{name}, median seconds", f"{figures['median']:.3f}"))
        rows.append((f"{name}, bytes written", f"{figures['bytes']:,}"))
        rows.append((f"{name}, memory above the state", f"{figures['memory']:,}"))
    rows.append(("ours / torch's", f"{result['times_torchs']:.2f}"))
    print_table(rows)


if __name__ == "__main__":
    main()
