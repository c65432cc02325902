"""``shardwright simulate``."""

from __future__ import annotations

import argparse
import dataclasses

from shardwright import _core
from shardwright.catalog import read_catalog
from shardwright.cli.answer import Answer
from shardwright.cli.named_output import PAGE, expect_replaceable
from shardwright.cli.options import (
    add_mesh,
    add_rules,
    number_of_layers,
    number_of_threads,
    number_on_cluster,
    positive_number,
)
from shardwright.cli.simulate import Speeds, simulate, text_of
from shardwright.cli.simulate_page import page

HELP = "plan a load on every rank of a cluster without one, and say what each would do"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="?", help="a checkpoint; or give --preset")
    parser.add_argument(
        "--preset", choices=["tiny", "small", "bench", "full"], help="as generate would write it"
    )
    parser.add_argument(
        "--layers", type=number_of_layers, default=0, help="instead of the preset's number of them"
    )
    add_mesh(parser)
    parser.add_argument("--ranks-per-node", type=number_on_cluster, default=8, metavar="N")
    parser.add_argument(
        "--sample",
        type=number_on_cluster,
        default=0,
        metavar="N",
        help="about N ranks, on whole nodes spread over the mesh",
    )
    parser.add_argument(
        "--threads", type=number_of_threads, default=0, help="default: one for each processor"
    )
    _add_speeds(parser)
    parser.add_argument("--html", metavar="FILE", help="write a page with pictures, which needs no network")
    add_rules(parser)


def _add_speeds(parser: argparse.ArgumentParser) -> None:
    speeds = Speeds()
    for name, unit, what in (
        ("read_bandwidth", "GB/s", "that a node reads"),
        ("storage_bandwidth", "GB/s", "that all nodes read together; default: no limit"),
        ("node_bandwidth", "GB/s", "that the ranks of a node hand to each other"),
        ("connection_bandwidth", "GB/s", "that a node gets from other nodes"),
        ("decode_bandwidth", "GB/s", "that a rank decodes"),
        ("request_milliseconds", "MS", "that a request waits"),
        ("requests_in_flight", "N", "of a node"),
        ("exchange_milliseconds", "MS", "that a round between nodes takes beside its bytes"),
        ("exchange_megabytes", "MB", "that a node gets in a round"),
    ):
        default = getattr(speeds, name)
        names = [f"--{name.replace('_', '-')}"]
        if name == "storage_bandwidth":
            names.append("--storage-rate")
        parser.add_argument(
            *names,
            type=positive_number,
            default=default,
            metavar=unit,
            help=what if default is None else f"{what}; default: {default:g}",
        )


def run(options: argparse.Namespace) -> Answer:
    if (options.path is None) == (options.preset is None):
        raise ValueError("expected a checkpoint's path or --preset, and not both")
    if options.layers and options.preset is None:
        raise ValueError("--layers goes with --preset")
    expect_replaceable("--html", options.html, PAGE)
    if options.preset is None:
        catalog = read_catalog(options.path)
    else:
        catalog = _core.generated_catalog(options.preset, options.layers)
    facts = simulate(
        catalog,
        options.mesh,
        model=options.model,
        layout=options.layout,
        dense=options.dense,
        ranks_per_node=options.ranks_per_node,
        sample=options.sample,
        threads=options.threads,
        strict=not options.not_strict,
        speeds=Speeds(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Speeds)}),
    )
    if options.html:
        _core.write_named_file(options.html, page(facts).encode())
    return Answer(facts, text_of(facts))
