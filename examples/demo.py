"""The demo of `make demo`: a small MXFP8 checkpoint, loaded with dcp.load on two Gloo ranks into sharded BF16 tensors.

Each rank holds its half of the experts and of every matrix, as DTensors. What arrives is compared, bit for bit, with
the plain reference of the tests, which shares no code with Shardwright.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from shardwright.cli.table import table
from shardwright.peak_memory import measure_peak_memory
from shardwright.ranks.run import run_on_ranks
from torch.distributed.device_mesh import init_device_mesh

RANKS = 2

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "python"))


def load_and_check(rank: int, path: str) -> None:
    mesh = init_device_mesh("cpu", (RANKS,), mesh_dim_names=("shard",))
    state_dict = sw.empty_state_dict(path, mesh)
    reader = sw.HuggingFaceStorageReader(path)
    with measure_peak_memory() as peak:
        dcp.load(state_dict, storage_reader=reader, planner=sw.LoadPlanner())
    assert reader.report is not None
    wrong = differences(rank, state_dict, path)
    rows = [*reader.report.rows(), ("bytes above destination", f"{peak.bytes:,}")]
    rows.append(("equal to the reference", f"{len(state_dict) - len(wrong)} of {len(state_dict)} tensors"))
    both: list[list[tuple[str, str]] | None] = [None] * RANKS
    dist.all_gather_object(both, rows)
    if rank == 0:
        first, second = (table or [] for table in both)
        print(table([("", f"{'rank 0':>14}{'rank 1':>26}")]))
        print(
            table(
                [
                    (what, f"{figure:>14}{other:>26}")
                    for (what, figure), (_, other) in zip(first, second, strict=True)
                ]
            )
        )
    if wrong:
        raise SystemExit(f"rank {rank}: these tensors differ from the reference: {', '.join(wrong)}")


def differences(rank: int, state_dict: dict[str, torch.Tensor], path: str) -> list[str]:
    """The names of the tensors whose local part is not the slice of the reference, bit for bit."""
    import reference

    wrong = []
    for fqn, expected in reference.native(path).items():
        local = state_dict[fqn].to_local()
        part = expected.chunk(RANKS)[rank] if rank < len(expected.chunk(RANKS)) else expected[:0]
        same_bits = torch.equal(
            local.contiguous().view(torch.uint8), part.to(local.dtype).contiguous().view(torch.uint8)
        )
        if not same_bits:
            wrong.append(fqn)
    return wrong


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "small")
        made = sw.generate(path, "small")
        print(
            f"generated: {made.tensors} tensors in {made.files} files, {made.bytes:,} bytes of MXFP8 and BF16"
        )
        print(
            f"loading with dcp.load on {RANKS} Gloo ranks, experts and matrices sharded on dimension 0\n",
            flush=True,
        )
        run_on_ranks(RANKS, load_and_check, path)


if __name__ == "__main__":
    main()
