"""Exports a generated checkpoint's tensors with Shardwright and with torch, in one run and one process.

    python bench/export.py [--preset bench] [--threads 2] [--runs 3] [--json] [--check]

The state dict holds the HF names and shapes in BF16, so that both write the same tensors. Measured in turns, medians
are quoted:
  shardwright BF16   dcp.save with sw.HuggingFaceStorageWriter
  shardwright MXFP8  the same with quantization="mxfp8"
  torch BF16         dcp.save with torch's HuggingFaceStorageWriter(save_distributed=True, enable_consolidation=True)
  write limit        as many bytes written to one file and flushed
Bytes written are the kernel's own account of this process (/proc/self/io); memory is VmHWM above the state.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
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
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter as TorchWriter


def bytes_given_to_the_system() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("wchar:"):
            return int(line.split()[1])
    raise RuntimeError("/proc/self/io has no wchar")


def write_limit(path: Path, count: int) -> None:
    path.mkdir()
    block = os.urandom(1 << 20) * 4
    with open(path / "file", "wb", buffering=0) as file:
        for _ in range(-(-count // len(block))):
            file.write(block)
        os.fsync(file.fileno())


def ways(state: dict[str, torch.Tensor], source: Path, threads: int) -> dict[str, Callable[[Path], object]]:
    def ours(path: Path, quantization: str | None) -> None:
        writer = sw.HuggingFaceStorageWriter(
            path, thread_count=threads, quantization=quantization, template=source, layout="huggingface"
        )
        dcp.save(state, storage_writer=writer, planner=sw.SavePlanner(), no_dist=True)

    def theirs(path: Path) -> None:
        writer = TorchWriter(
            str(path),
            thread_count=threads,
            save_distributed=True,
            enable_consolidation=True,
            thread_count_consolidation=threads,
        )
        dcp.save(state, storage_writer=writer, no_dist=True)

    total = sum(tensor.nbytes for tensor in state.values())
    return {
        "shardwright BF16": lambda path: ours(path, None),
        "shardwright MXFP8": lambda path: ours(path, "mxfp8"),
        "torch BF16": theirs,
        "write limit": lambda path: write_limit(path, total),
    }


def measure(source: Path, folder: Path, threads: int, runs: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    state = sw.empty_state_dict(source, layout="huggingface")
    sw.load(state, source, layout="huggingface")
    seconds: dict[str, list[float]] = {}
    written: dict[str, int] = {}
    kept: dict[str, int] = {}
    memory: dict[str, int] = {}
    for _ in range(runs):
        for name, work in ways(state, source, threads).items():
            path = folder / "out"
            before = bytes_given_to_the_system()
            start = time.perf_counter()
            with measure_peak_memory() as peak:
                work(path)
            seconds.setdefault(name, []).append(time.perf_counter() - start)
            written[name] = bytes_given_to_the_system() - before
            kept[name] = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
            memory[name] = max(peak.bytes, memory.get(name, 0))
            shutil.rmtree(path)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "state_bytes": sum(tensor.nbytes for tensor in state.values()),
        "threads": threads,
        "runs": runs,
        "seconds": {name: sorted(values) for name, values in seconds.items()},
        "medians": medians,
        "bytes_written": written,
        "bytes_of_result": kept,
        "memory_above_state": memory,
        "of_torch": medians["shardwright BF16"] / medians["torch BF16"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="bench")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint that is there already")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--check", action="store_true", help="fail above a third of torch's time or 256 MB of memory"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        source = options.checkpoint or Path(name, options.preset)
        if options.checkpoint is None:
            sw.generate(source, options.preset)
        result = measure(source, Path(name), options.threads, options.runs)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        print_table(
            [("state, threads, runs", f"{result['state_bytes']:,}, {options.threads}, {options.runs}")]
        )
        for way, median in result["medians"].items():
            figures = [
                result[what][way] for what in ("bytes_written", "bytes_of_result", "memory_above_state")
            ]
            print_table(
                [
                    (
                        f"{way}: seconds, bytes written, kept, memory",
                        f"{median:.2f}, " + ", ".join(f"{f:,}" for f in figures),
                    )
                ]
            )
        print_table([("shardwright BF16 / torch BF16", f"{result['of_torch']:.2f}")])
    excess = (
        max(result["memory_above_state"][way] for way in ("shardwright BF16", "shardwright MXFP8")) > 256e6
    )
    too_many = any(
        result["bytes_written"][way] > 1.01 * result["bytes_of_result"][way]
        for way in ("shardwright BF16", "shardwright MXFP8")
    )
    if options.check and (result["of_torch"] > 1 / 3 or excess or too_many):
        raise SystemExit(
            "slower than a third of torch's time, more than 256 MB of memory, or more than 1 % too many bytes"
        )


if __name__ == "__main__":
    main()
