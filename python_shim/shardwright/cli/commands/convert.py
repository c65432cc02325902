"""``shardwright convert``."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from shardwright import _core
from shardwright.cli.answer import Answer
from shardwright.cli.options import add_quantization, number_of_ranks, number_of_threads

HELP = (
    "a checkpoint of torch's FileSystemWriter to one of ours, ours to another format, or a Hugging Face checkpoint to "
    "another encoding"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source")
    parser.add_argument("destination")
    parser.add_argument(
        "--format", choices=["torch", "safetensors"], help="torch: torch alone reads it as well"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace another kind of checkpoint, or with --quantization the source itself",
    )
    parser.add_argument("--threads", type=number_of_threads, help="per rank")
    add_quantization(
        parser,
        [*_core.quantizations(), "bf16", "none", "template"],
        None,
        "of the weights of a Hugging Face checkpoint, or of one of training, which becomes one",
    )
    parser.add_argument(
        "--template",
        metavar="DIR",
        help="of training: a checkpoint whose names, dtypes and other files the result gets",
    )
    parser.add_argument("--model", default="auto", help="the family; default: by config.json or the names")
    parser.add_argument(
        "--layout", help="of a checkpoint of training: whose names it has; default: automodel"
    )
    parser.add_argument(
        "--key",
        help='of training: where the saved state dict has the weights, such as app.model; default: "model"',
    )
    parser.add_argument("--max-shard-size", default="5GB", help="of tensors in a file; default: 5GB")
    parser.add_argument(
        "--ranks",
        type=number_of_ranks,
        default=1,
        help="with --quantization: Gloo ranks on this machine",
    )


def run(options: argparse.Namespace) -> Answer:
    if options.ranks > 1 and options.quantization is None:
        raise ValueError("--ranks: expected --quantization with it; other conversions run in one process")
    from shardwright.cli.of_ranks import answer_of, on_each_rank

    return answer_of(on_each_rank(options.ranks, _convert, options))


def _convert(rank: int, options: argparse.Namespace) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    from shardwright.converting import convert

    report = convert(
        options.source,
        options.destination,
        format=options.format,
        threads=options.threads,
        overwrite=options.overwrite or None,
        quantization=options.quantization,
        quantized_weights=options.quantized_weights,
        model=options.model,
        template=options.template,
        layout=options.layout,
        key=options.key,
        max_shard_size=options.max_shard_size,
    )
    return dataclasses.asdict(report), report.rows()
