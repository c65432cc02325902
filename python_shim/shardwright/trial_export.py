"""``shardwright export``: loads a checkpoint and writes it as another, on one or several ranks, and reports."""

from __future__ import annotations

import argparse
import sys

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from shardwright.exporting import export
from shardwright.loading import load
from shardwright.native import empty_state_dict
from shardwright.ranks import run_on_ranks
from shardwright.table import print_table


def trial_export(options: argparse.Namespace) -> None:
    """Runs the command. Raises what the load or the export raised, in one process or on the rank that failed first."""
    if options.ranks > 1:
        run_on_ranks(options.ranks, _export_and_report, options)
    else:
        _export_and_report(0, options)


def _export_and_report(rank: int, options: argparse.Namespace) -> None:
    mesh = init_device_mesh("cpu", (options.ranks,), mesh_dim_names=("shard",)) if options.ranks > 1 else None
    state_dict = empty_state_dict(options.source, mesh, model=options.model, layout=options.layout)
    load(
        state_dict,
        options.source,
        model=options.model,
        layout=options.layout,
        strict=not options.not_strict,
        threads=options.threads,
    )
    report = export(
        state_dict,
        options.destination,
        quantization=options.quantization,
        max_shard_size=options.max_shard_size,
        template=options.source,
        model=options.model,
        layout=options.layout,
        strict=not options.not_strict,
        threads=options.threads,
    )
    for turn in range(options.ranks):
        if turn == rank:
            print(f"rank {rank} of {options.ranks}")
            print_table(report.rows())
            sys.stdout.flush()
        if options.ranks > 1:
            dist.barrier()
