"""``shardwright load``."""

from __future__ import annotations

import argparse

from shardwright.catalog import read_catalog
from shardwright.cli.answer import Answer
from shardwright.cli.options import add_ranks, add_rules, number_of_bytes

HELP = "load a checkpoint into new tensors and report"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path")
    add_ranks(parser)
    parser.add_argument("--staging-bytes", type=number_of_bytes, help="per rank")
    parser.add_argument("--reads", choices=["auto", "io_uring", "pread"], default="auto")
    parser.add_argument(
        "--direct-io", choices=["auto", "yes", "no"], default="auto", help="past the page cache"
    )
    parser.add_argument("--huge-pages", action="store_true", help="for staging")
    parser.add_argument(
        "--trace", metavar="FILE", help="write what each thread did when, for chrome://tracing or Perfetto"
    )
    parser.add_argument(
        "--plan", metavar="FILE", help="replay a plan that was kept; for several ranks, FILE holds {rank}"
    )
    add_rules(parser)


def run(options: argparse.Namespace) -> Answer:
    if options.plan and options.ranks > 1 and "{rank}" not in options.plan:
        raise ValueError(
            f"--plan {options.plan}: a plan is for one rank; expected {{rank}} in the name of the file"
        )
    read_catalog(options.path)  # a bad checkpoint is refused before torch is imported and ranks are started
    from shardwright.cli.trial_load import trial_load

    return trial_load(options)
