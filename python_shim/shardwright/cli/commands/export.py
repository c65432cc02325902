"""``shardwright export``."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from shardwright import _core
from shardwright.catalog import read_catalog
from shardwright.cli.answer import Answer
from shardwright.cli.options import add_quantization, add_ranks, add_rules
from shardwright.local_path import lasting_place, location

HELP = "load a checkpoint and write it as another"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a checkpoint: Hugging Face, or of training (sharded, .distcp)")
    parser.add_argument("destination", help="the directory that it goes into, beside what is there")
    add_quantization(
        parser,
        [*_core.quantizations(), "template", "none"],
        "none",
        "of the weights; template: its encodings and scales; none, the default: BF16",
    )
    parser.add_argument(
        "--template",
        metavar="DIR",
        help="a checkpoint whose names, dtypes and other files the result gets; default: source, if it is Hugging Face",
    )
    parser.add_argument(
        "--key",
        help='of training: where the saved state dict has the weights, such as app.model; default: "model"',
    )
    parser.add_argument("--max-shard-size", default="5GB", help="of tensors in a file; default: 5GB")
    add_ranks(parser)
    parser.add_argument(
        "--overwrite",
        action="store_true",
        default=None,
        help="replace whatever checkpoint is in the destination; default: only one that an export has written",
    )
    parser.add_argument(
        "--strict-dtypes", action="store_true", help="refuse to round, such as F32 to a template's BF16"
    )
    add_rules(parser)


def run(options: argparse.Namespace) -> Answer:
    lasting_place(options.destination)
    options.source = location(options.source)
    if _core.kind_of(options.source) in ("huggingface", "nothing", "adapter"):
        read_catalog(options.source)  # a bad checkpoint is refused before torch is imported
    from shardwright.cli.of_ranks import answer_of, on_each_rank

    return answer_of(on_each_rank(options.ranks, _export, options))


def _export(rank: int, options: argparse.Namespace) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    from shardwright.exporting import export
    from shardwright.loading import is_of_trainer

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
    return dataclasses.asdict(report), report.rows()
