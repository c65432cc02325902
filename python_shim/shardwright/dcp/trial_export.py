"""``shardwright export``: loads a checkpoint and writes it as another, on one or several ranks, and reports."""

from __future__ import annotations

import argparse
import sys

import torch.distributed as dist

from shardwright.cli.table import print_table
from shardwright.exporting import export
from shardwright.loading import is_of_trainer
from shardwright.ranks.run import run_on_ranks


def trial_export(options: argparse.Namespace) -> None:
    """Runs the command. Raises what the load or the export raised, in one process or on the rank that failed first."""
    if options.ranks > 1:
        run_on_ranks(options.ranks, _export_and_report, options)
    else:
        _export_and_report(0, options)


def _export_and_report(rank: int, options: argparse.Namespace) -> None:
    template = options.template or (None if is_of_trainer(options.source) else options.source)
    report = export(
        options.source,
        options.destination,
        quantization=options.quantization,
        quantized_weights=options.quantized_weights,
        max_shard_size=options.max_shard_size,
        template=template,
        model=options.model,
        layout=options.layout,
        strict=not options.not_strict,
        threads=options.threads,
        key=options.key,
        overwrite=options.overwrite,
        strict_dtypes=options.strict_dtypes,
    )
    for turn in range(options.ranks):
        if turn == rank:
            print(f"rank {rank} of {options.ranks}")
            print_table(report.rows())
            sys.stdout.flush()
        if options.ranks > 1:
            dist.barrier()
