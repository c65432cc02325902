"""A load into new tensors, on one or several ranks."""

from __future__ import annotations

import argparse
import dataclasses
import warnings
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh

from shardwright.cli.answer import Answer
from shardwright.cli.of_ranks import answer_of, on_each_rank
from shardwright.dcp.load_planner import LoadPlanner
from shardwright.dcp.storage_reader import HuggingFaceStorageReader
from shardwright.native import empty_state_dict
from shardwright.peak_memory import measure_peak_memory


def trial_load(options: argparse.Namespace) -> Answer:
    """Raises what the load raised, in one process or on the rank that failed first."""
    try:
        return answer_of(on_each_rank(options.ranks, _load, options))
    except CheckpointException as wrapped:  # dcp's account of what happened on each rank
        raise wrapped.failures[0][0] from None


def _load(rank: int, options: argparse.Namespace) -> tuple[dict[str, Any], list[tuple[str, str]]]:
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
