"""Exports a generated checkpoint's tensors with Shardwright and with torch, in one run and one process.

    python bench/export.py [--preset bench] [--threads 2] [--runs 3] [--folder DIR] [--json] [--check]

The state dict holds the HF names and shapes in BF16, so that both write the same tensors; torch's writer is
HuggingFaceStorageWriter(save_distributed=True, enable_consolidation=True). How it is measured: writes.py.
"""

from __future__ import annotations

from pathlib import Path

import shardwright as sw
import torch.distributed.checkpoint as dcp
from options import options
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter as TorchWriter
from writes import LIMIT, State, Way, loaded, measure, tell, write_limit

BF16 = "sw.HuggingFaceStorageWriter, BF16"
MXFP8 = "sw.HuggingFaceStorageWriter, MXFP8"
TORCHS = "torch's HuggingFaceStorageWriter, BF16"


def ways(state: State, source: Path, threads: int) -> dict[str, Way]:
    def ours(path: Path, quantization: str | None) -> None:
        writer = sw.HuggingFaceStorageWriter(
            path, thread_count=threads, quantization=quantization, template=source, layout="huggingface"
        )
        dcp.save(state, storage_writer=writer, planner=sw.SavePlanner(), no_dist=True)

    def torchs(path: Path) -> None:
        writer = TorchWriter(
            str(path),
            thread_count=threads,
            save_distributed=True,
            enable_consolidation=True,
            thread_count_consolidation=threads,
        )
        dcp.save(state, storage_writer=writer, no_dist=True)

    return {
        BF16: lambda path: ours(path, None),
        MXFP8: lambda path: ours(path, "mxfp8"),
        TORCHS: torchs,
        LIMIT: write_limit(state, threads),
    }


def main() -> None:
    chosen = options(
        __doc__,
        "fail above a third of torch's time or 256 MB of memory, or more bytes than the result and 1 %",
        writes=True,
    )
    with loaded(chosen, "huggingface") as (folder, source, state):
        taken = measure(ways(state, source, chosen.threads), folder, chosen.runs)
    ratios = {
        "BF16, ours / torch's": taken[BF16]["median"] / taken[TORCHS]["median"],
        "BF16, ours / write limit": taken[BF16]["median"] / taken[LIMIT]["median"],
        "MXFP8 / BF16": taken[MXFP8]["median"] / taken[BF16]["median"],
    }
    of_ours = [taken[BF16], taken[MXFP8]]
    bounds = {
        "BF16 in at most a third of torch's time": ratios["BF16, ours / torch's"] <= 1 / 3,
        "at most 1 % more bytes than are kept": all(
            figures["bytes_written"] <= 1.01 * figures["bytes_kept"] for figures in of_ours
        ),
        "at most 256 MB above the state": all(figures["memory"] <= 256e6 for figures in of_ours),
    }
    tell(chosen, state, taken, ratios, bounds)


if __name__ == "__main__":
    main()
