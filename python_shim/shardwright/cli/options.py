"""Types of arguments, and options that several commands have."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from typing import Any


def _number_from(least: int, most: int, bound: str = "") -> Callable[[str], int]:
    """The type of an argument that is a whole number from ``least`` to ``most``."""

    def number(text: str) -> int:
        try:
            found = int(text)
        except ValueError:  # which int() raises for too many digits as well
            found = -1
        if not least <= found <= most:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {least} to {bound or f'{most:,}'}, found {text[:40]!r}"
            )
        return found

    return number


#: What counts bytes, or is a seed: 63 bits, which the library can take.
whole_number = _number_from(0, (1 << 63) - 1, "2^63 - 1")
#: What counts ranks of a cluster, or numbers one.
number_on_cluster = _number_from(0, (1 << 31) - 1, "2^31 - 1")
number_of_threads = _number_from(1, 1024)
number_of_ranks = _number_from(1, 1024)  #: on this machine
number_of_layers = _number_from(1, 10_000)
number_of_bytes = _number_from(1, 1 << 48, "2^48")


def positive_number(text: str) -> float:
    """A finite argument above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text[:40]!r}")
    return number


def json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"expected a JSON object: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError("expected a JSON object")
    return found


def add_mesh(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mesh",
        default="",
        metavar="NAME=SIZE,...",
        help="in any order; sizes multiply to the ranks. pp: pipeline stages; dp: data parallel, sharding "
        "dimension 0, and dimension 1 of experts; ep, ep_shard: dimensions 0 and 1 of experts; fsdp: "
        "dimension 0 of all others; shard: of both; ep_replicate, replicate: copies of experts, of everything",
    )
    parser.add_argument(
        "--dense",
        choices=["auto", "named", "stage"],
        default="auto",
        help="which ranks share what is no expert: those along dp, fsdp and shard (named), or all of a stage "
        "but the copies of replicate (stage); default: stage on a mesh with pp or dp, otherwise named",
    )


def add_rules(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="auto", help="the family; default: as config.json says")
    parser.add_argument(
        "--layout",
        default="automodel",
        help="native names and shapes: automodel, transformers, torchtitan or huggingface; default: automodel",
    )
    parser.add_argument("--not-strict", action="store_true", help="leave out tensors that no rule knows")


def add_ranks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ranks", type=number_of_ranks, default=1, help="Gloo ranks on this machine, sharding dimension 0"
    )
    parser.add_argument("--threads", type=number_of_threads, help="per rank")


def add_choice(
    parser: argparse.ArgumentParser, option: str, names: list[str], help_text: str, default: str | None = None
) -> None:
    """An option that is one of many names, which the help has as words: in braces they would be one long line."""
    text = f"{help_text}. One of: {', '.join(names)}"
    parser.add_argument(option, choices=names, default=default, metavar="NAME", help=text)


def add_quantization(
    parser: argparse.ArgumentParser, names: list[str], default: str | None, help_text: str
) -> None:
    add_choice(parser, "--quantization", names, help_text, default=default)
    parser.add_argument(
        "--quantized-weights",
        nargs="+",
        metavar="PATTERN",
        help='exactly these matrices, by patterns of HF names such as "*.mlp.*"; default: those that the template, or '
        "source, has encoded, else those that releases of the family have",
    )
