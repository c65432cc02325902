"""``shardwright convert``."""

from __future__ import annotations

import argparse
import dataclasses

from shardwright.cli.answer import Answer
from shardwright.cli.options import whole_number

HELP = "a checkpoint of torch's FileSystemWriter to one of ours, and ours to another format"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source")
    parser.add_argument("destination")
    parser.add_argument(
        "--format", choices=["torch", "safetensors"], help="torch: torch alone reads it as well"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace another kind of checkpoint")
    parser.add_argument("--threads", type=whole_number)


def run(options: argparse.Namespace) -> Answer:
    from shardwright.converting import convert

    report = convert(
        options.source,
        options.destination,
        format=options.format,
        threads=options.threads or None,
        overwrite=options.overwrite or None,
    )
    return Answer(dataclasses.asdict(report), str(report))
