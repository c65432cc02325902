"""Saves a native state with Shardwright, beside torch's own FileSystemWriter, all in one run and one process.

    python bench/save.py [--preset bench] [--threads 2] [--runs 3] [--folder DIR] [--json] [--check]

Both save the same state by dcp.save, flushed, with as many threads; ours with checksums, in both of its formats. How it
is measured: writes.py.
"""

from __future__ import annotations

from pathlib import Path

import shardwright as sw
import torch.distributed.checkpoint as dcp
from options import options
from torch.distributed.checkpoint import FileSystemWriter
from writes import LIMIT, State, Way, bytes_of, loaded, measure, tell, write_limit

OURS = "sw.ShardedStorageWriter"
OURS_FOR_TORCH = 'the same, format="torch"'
TORCHS = "torch's FileSystemWriter"


def ways(state: State, threads: int) -> dict[str, Way]:
    def save(path: Path, format: str) -> None:
        writer = sw.ShardedStorageWriter(path, thread_count=threads, format=format)
        dcp.save(state, storage_writer=writer, planner=sw.SavePlanner(), no_dist=True)

    return {
        OURS: lambda path: save(path, "safetensors"),
        OURS_FOR_TORCH: lambda path: save(path, "torch"),
        TORCHS: lambda path: dcp.save(
            state, storage_writer=FileSystemWriter(path, thread_count=threads), no_dist=True
        ),
        LIMIT: write_limit(state, threads),
    }


def main() -> None:
    chosen = options(
        __doc__,
        "fail if slower than torch's, more than 256 MB of memory, or more bytes than the state and 1 %",
        writes=True,
    )
    with loaded(chosen, "automodel") as (folder, _, state):
        taken = measure(ways(state, chosen.threads), folder, chosen.runs)
    ours, torchs, limit = taken[OURS], taken[TORCHS], taken[LIMIT]
    ratios = {
        "ours / torch's": ours["median"] / torchs["median"],
        'format="torch" / "safetensors"': taken[OURS_FOR_TORCH]["median"] / ours["median"],
        "ours / write limit": ours["median"] / limit["median"],
    }
    bounds = {
        "at most torch's time": ratios["ours / torch's"] <= 1,
        "at most 1 % more bytes than the state": ours["bytes_written"] <= 1.01 * bytes_of(state),
        "at most 256 MB above the state": ours["memory"] <= 256e6,
    }
    tell(chosen, state, taken, ratios, bounds)


if __name__ == "__main__":
    main()
