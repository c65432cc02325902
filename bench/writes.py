"""What bench/save.py and bench/export.py share: ways to write a state, measured in turns in one process.

A way is a function of a path that is free, and leaves there what it wrote. Seconds are medians. Bytes are what the
process gave the operating system to write (wchar of /proc/self/io). Memory is above the state, measured from outside
(VmHWM), the first time that a way runs.
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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import shardwright as sw
import torch
from options import checkpoint
from shardwright.cli.table import table
from shardwright.peak_memory import measure_peak_memory

Way = Callable[[Path], object]
State = dict[str, torch.Tensor]

#: As many bytes as the state has, written to one file by as many threads, and flushed.
LIMIT = "write limit"


def bytes_given_to_write() -> int:
    line = next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("wchar"))
    return int(line.split()[1])


def bytes_of(state: State) -> int:
    return sum(tensor.nbytes for tensor in state.values())


def write_limit(state: State, threads: int) -> Way:
    """The tensors' own memory, so that reading it counts, one after the other in a new file."""
    piece = 4 << 20
    jobs: list[tuple[memoryview, int]] = []
    size = 0
    for tensor in state.values():
        memory = memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
        jobs += [(memory[begin : begin + piece], size + begin) for begin in range(0, len(memory), piece)]
        size += len(memory)

    def write(path: Path) -> None:
        path.mkdir()
        descriptor = os.open(path / "file", os.O_WRONLY | os.O_CREAT)
        with ThreadPoolExecutor(threads) as pool:
            for written in pool.map(lambda job: os.pwrite(descriptor, *job), jobs):
                assert written > 0
        os.fsync(descriptor)
        os.close(descriptor)

    return write


def measure(ways: dict[str, Way], folder: Path, runs: int) -> dict[str, dict[str, Any]]:
    """Each way first once for bytes and memory, then in turns for seconds. What it leaves is deleted, untimed."""
    path = folder / "out"
    taken: dict[str, dict[str, Any]] = {}
    for name, work in ways.items():
        before = bytes_given_to_write()
        with measure_peak_memory() as peak:
            work(path)
        written = bytes_given_to_write() - before
        kept = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        taken[name] = {"bytes_written": written, "bytes_kept": kept, "memory": peak.bytes, "seconds": []}
        shutil.rmtree(path)
    for _ in range(runs):
        for name, work in ways.items():
            os.sync()  # so that nobody pays for what another has left to the kernel
            start = time.perf_counter()
            work(path)
            taken[name]["seconds"].append(time.perf_counter() - start)
            shutil.rmtree(path)
    for figures in taken.values():
        figures["seconds"].sort()
        figures["median"] = statistics.median(figures["seconds"])
    return taken


@contextmanager
def loaded(chosen: argparse.Namespace, layout: str) -> Iterator[tuple[Path, Path, State]]:
    """(folder to write in, checkpoint, its tensors in memory)."""
    warnings.simplefilter("ignore")  # torch warns that a save without a process group is one
    torch.set_num_threads(chosen.threads)
    with checkpoint(chosen) as source, tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        state = sw.empty_state_dict(source, layout=layout)
        sw.load(state, source, layout=layout)
        yield Path(folder), source, state


def tell(
    chosen: argparse.Namespace,
    state: State,
    taken: dict[str, dict[str, Any]],
    ratios: dict[str, float],
    bounds: dict[str, bool],
) -> None:
    """Prints it all; ``bounds`` says of each whether it is met."""
    if chosen.json:
        facts = {"state_bytes": bytes_of(state), "threads": chosen.threads, "runs": chosen.runs}
        print(json.dumps(facts | {"ways": taken, "ratios": ratios, "bounds": bounds}, indent=1))
    else:
        print(
            table(
                [
                    ("state bytes", f"{bytes_of(state):,}"),
                    ("threads, runs", f"{chosen.threads}, {chosen.runs}"),
                    ("way", "seconds, bytes written, bytes kept, bytes of memory above the state"),
                    *(
                        (
                            name,
                            f"{figures['median']:.3f}, "
                            + ", ".join(
                                f"{figures[what]:,}" for what in ("bytes_written", "bytes_kept", "memory")
                            ),
                        )
                        for name, figures in taken.items()
                    ),
                    *((what, f"{ratio:.2f}") for what, ratio in ratios.items()),
                    *((what, "yes" if met else "NO") for what, met in bounds.items()),
                ]
            )
        )
    if chosen.check and not all(bounds.values()):
        raise SystemExit(1)
