"""``shardwright load``."""

from __future__ import annotations

import argparse
import dataclasses
import warnings
from pathlib import Path
from typing import Any

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
    from torch.distributed.checkpoint.api import CheckpointException

    from shardwright.cli.of_ranks import answer_of, on_each_rank

    try:
        return answer_of(on_each_rank(options.ranks, _load, options))
    except CheckpointException as wrapped:  # dcp's account of what happened on each rank
        raise wrapped.failures[0][0] from None


def _load(rank: int, options: argparse.Namespace) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh

    from shardwright.dcp.load_planner import LoadPlanner
    from shardwright.dcp.storage_reader import HuggingFaceStorageReader
    from shardwright.native import empty_state_dict
    from shardwright.peak_memory import measure_peak_memory

    alone = options.ranks == 1
    mesh = None if alone else init_device_mesh("cpu", (options.ranks,), mesh_dim_names=("shard",))
    state_dict = empty_state_dict(options.path, mesh, model=options.model, layout=options.layout)
    reader = HuggingFaceStorageReader(
        options.path,
        options.threads,
        staging_bytes=options.staging_bytes,
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
    facts = dataclasses.asdict(reader.report) | {"bytes_above_destination": peak.bytes}
    return facts, [*reader.report.rows(), ("bytes above destination", f"{peak.bytes:,}")]
