"""``shardwright load``: loads a checkpoint into new tensors, on one or several ranks, and reports."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh

from shardwright.cli.table import print_table
from shardwright.dcp.load_planner import LoadPlanner
from shardwright.dcp.storage_reader import HuggingFaceStorageReader
from shardwright.native import empty_state_dict
from shardwright.peak_memory import measure_peak_memory
from shardwright.ranks.run import run_on_ranks


def trial_load(options: argparse.Namespace) -> None:
    """Runs the command. Raises what the load raised, in one process or on the rank that failed first."""
    if options.ranks > 1:
        run_on_ranks(options.ranks, _load_and_report, options)
        return
    try:
        _load_and_report(0, options)
    except CheckpointException as wrapped:  # dcp's account of what happened on each rank
        raise wrapped.failures[0][0] from None


def _load_and_report(rank: int, options: argparse.Namespace) -> None:
    alone = options.ranks == 1
    mesh = init_device_mesh("cpu", (options.ranks,), mesh_dim_names=("shard",)) if options.ranks > 1 else None
    state_dict = empty_state_dict(options.path, mesh, model=options.model, layout=options.layout)
    reader = HuggingFaceStorageReader(
        options.path,
        options.threads,
        staging_bytes=options.staging_bytes,
        progress=options.progress and rank == 0,
        reads=options.reads,
        direct_io={"yes": True, "no": False}.get(options.direct_io, "auto"),
        huge_pages=options.huge_pages,
        trace=options.trace,
    )
    plan = Path(options.plan.replace("{rank}", str(rank))).read_bytes() if options.plan else None
    planner = LoadPlanner(options.model, options.layout, not options.not_strict, plan=plan)
    with measure_peak_memory() as peak, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that a load without a process group is one
        dcp.load(state_dict, storage_reader=reader, planner=planner, no_dist=alone)
    assert reader.report is not None
    rows = [*reader.report.rows(), ("bytes above destination", f"{peak.bytes:,}")]
    for turn in range(options.ranks):
        if turn == rank:
            print(f"rank {rank} of {options.ranks}")
            print_table(rows)
            sys.stdout.flush()
        if options.ranks > 1:
            dist.barrier()
