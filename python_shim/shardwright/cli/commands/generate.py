"""``shardwright generate``."""

from __future__ import annotations

import argparse

from shardwright import _core
from shardwright.catalog import generate
from shardwright.cli.answer import Answer
from shardwright.cli.options import add_choice, json_object, number_of_layers, whole_number

HELP = "write a checkpoint of a released model's names and shapes with random values"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory")
    parser.add_argument(
        "--preset",
        choices=["tiny", "small", "bench", "full"],
        help="how large; default: tiny; full is of MiniMax M3 alone",
    )
    parser.add_argument(
        "--family",
        help="instead of MiniMax M3: a checkpoint of this family, one of those that `shardwright families` lists",
    )
    parser.add_argument("--form", help="in which the family is released, such as bf16, fp8 or tied")
    parser.add_argument(
        "--config",
        type=json_object,
        metavar="JSON",
        help="values for the family's config.json, which decides all sizes",
    )
    add_choice(
        parser,
        "--encoding",
        _core.generated_encodings(),
        "of what releases quantize, one of four bits of their experts; default: as released",
    )
    parser.add_argument(
        "--values",
        choices=["trained", "any"],
        default="trained",
        help="of the size that a trained model has (default), or all that the formats can hold",
    )
    parser.add_argument("--max-shard-size", metavar="SIZE", help="of tensors in a file, such as 5GB")
    parser.add_argument("--layout-only", action="store_true", help="true headers and index, sparse files")
    parser.add_argument("--seed", type=whole_number, default=0)
    parser.add_argument(
        "--layers", type=number_of_layers, default=0, help="instead of the preset's number of them"
    )


def run(options: argparse.Namespace) -> Answer:
    report = generate(
        options.directory,
        options.preset,
        family=options.family,
        form=options.form,
        config=options.config,
        encoding=options.encoding,
        values=options.values,
        max_shard_size=options.max_shard_size,
        seed=options.seed,
        layout_only=options.layout_only,
        layers=options.layers,
    )
    return Answer(
        {
            "directory": options.directory,
            "tensors": report.tensors,
            "files": report.files,
            "bytes": report.bytes,
        },
        f"{options.directory}: {report.tensors:,} tensors in {report.files} files, {report.bytes:,} bytes",
    )
