"""Loads and saves on a cluster that is not there: figures of ``shardwright simulate``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from shardwright import _core
from shardwright.cli.table import amount, columns, table
from shardwright.progress import counters_of
from shardwright.weight_maps import weight_map_for

GIGA = 1e9

#: What is counted for each rank, and how it is called.
RANK_FIGURES = {
    "planning_seconds": "planning (processor time)",
    "tensors": "HF tensors needed",
    "files": "files read",
    "bytes_needed": "bytes needed",
    "bytes_read": "bytes read",
    "requests": "read requests",
    "extents": "extents",
    "bytes_held": "bytes held",
    "bytes_saved": "written by a save",
    "bytes_exported": "written by an export",
}
NODE_FIGURES = (
    "bytes_needed",
    "bytes_read",
    "requests",
    "bytes_distinct",
    "bytes_read_together",
    "requests_together",
)
SAVE_FIGURES = (
    "bytes_exchanged",
    "bytes_unchanged",
    "most_bytes_of_rank",
    "seconds",
    "seconds_unchanged",
    "chunks",
    "bytes_metadata",
)


@dataclass(frozen=True)
class Speeds:
    """What the machines are taken to do; everything else in a simulation is counted or measured."""

    read_bandwidth: float = 10.0  #: GB/s that a node reads
    storage_bandwidth: float | None = (
        None  #: GB/s that the file system gives all nodes together; None: no limit
    )
    node_bandwidth: float = 100.0  #: GB/s that the ranks of a node hand to each other
    decode_bandwidth: float = 5.0  #: GB/s that a rank decodes, counted in what it holds afterwards
    request_milliseconds: float = 0.5  #: that a request waits before its bytes come
    requests_in_flight: int = 32  #: of a node


def simulate(
    catalog: Any,
    mesh: str,
    *,
    model: Any = "auto",
    layout: str = "automodel",
    dense: str = "auto",
    ranks_per_node: int = 8,
    sample: int = 0,
    threads: int = 0,
    strict: bool = True,
    speeds: Speeds = Speeds(),
) -> dict[str, Any]:
    """Plans a load of ``catalog`` on every rank of ``mesh`` and returns what was counted, as plain data.

    ``catalog`` comes from ``read_catalog`` or ``_core.generated_catalog``; no tensor data is read. ``mesh`` is such as
    "pp=8,ep=64,ep_shard=2" (``shardwright simulate --help`` has the names). ``sample`` simulates only so many ranks, as
    whole nodes spread over the mesh. Raises ValueError for options that make no sense and PlanError where a load would.
    """
    dimensions = _core.parse_mesh(mesh)
    weight_map = weight_map_for(catalog, model, layout)
    progress = counters_of("simulating", "ranks")
    run = _core.simulate(
        catalog, weight_map, dimensions, dense, ranks_per_node, sample, threads, strict, progress
    )
    ranks = [_rank_facts(rank) for rank in run.ranks]
    nodes = [{name: getattr(node, name) for name in ("node", *NODE_FIGURES)} for node in run.nodes]
    facts: dict[str, Any] = {
        "source": str(catalog.directory),
        "mesh": {dimension.name: dimension.size for dimension in dimensions},
        "dense": dense,
        "layout": layout,
        "ranks": run.world,
        "simulated_ranks": len(ranks),
        "ranks_per_node": ranks_per_node,
        "simulated_nodes": len(nodes),
        "stages": [
            _stage_facts(stage, [rank for rank in ranks if rank["stage"] == stage])
            for stage in _stages_of(ranks)
        ],
        "checkpoint_tensors": len(catalog.tensors),
        "checkpoint_files": len(catalog.files),
        "checkpoint_bytes": run.bytes_checkpoint,
        "native_tensors": run.native_tensors,
        "native_bytes": run.bytes_native,
        "distinct_bytes": run.bytes_distinct,
        "bytes_exchanged_by_load": 0,  # every rank plans for itself from the headers
        "save": _save_facts(run.save),
        "simulation_seconds": run.seconds,
        "per_rank": _spreads(ranks, RANK_FIGURES),
        "per_node": _spreads(nodes, NODE_FIGURES),
    }
    distinct = max(sum(node["bytes_distinct"] for node in nodes), 1)
    facts["amplification"] = {
        "alone": sum(node["bytes_read"] for node in nodes) / distinct,
        "together": sum(node["bytes_read_together"] for node in nodes) / distinct,
    }
    facts["seconds"] = _seconds(facts, nodes, speeds)
    facts["speeds"] = vars(speeds).copy()
    facts["files"] = _file_facts(catalog, run.ranks)
    facts["rank_list"] = ranks
    facts["node_list"] = nodes
    return facts


def _save_facts(save: Any) -> dict[str, Any] | None:
    """What planning a save takes, over all ranks of the mesh, sampled or not; None on a mesh too large for that."""
    return None if save is None else {name: getattr(save, name) for name in SAVE_FIGURES}


def _rank_facts(rank: Any) -> dict[str, Any]:
    facts = {name: getattr(rank, name) for name in ("rank", "stage", *RANK_FIGURES)}
    facts["file_bytes"] = {str(file): count for file, count in rank.files}
    facts["files"] = len(rank.files)
    return facts


def _stages_of(ranks: Sequence[dict[str, Any]]) -> list[int]:
    return sorted({rank["stage"] for rank in ranks})


def _spread(values: Iterable[float]) -> dict[str, float]:
    numbers = list(values)
    return {"min": min(numbers), "mean": sum(numbers) / len(numbers), "max": max(numbers)}


def _spreads(items: Sequence[dict[str, Any]], figures: Iterable[str]) -> dict[str, dict[str, float]]:
    return {name: _spread(item[name] for item in items) for name in figures}


def _stage_facts(stage: int, ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "stage": stage,
        "simulated_ranks": len(ranks),
        "per_rank": _spreads(ranks, RANK_FIGURES),
    }
    read = facts["per_rank"]["bytes_read"]
    facts["read_max_over_mean"] = read["max"] / read["mean"] if read["mean"] else 1.0
    return facts


def _file_facts(catalog: Any, ranks: Sequence[Any]) -> list[dict[str, Any]]:
    files = [{"name": file.name, "bytes": file.size, "ranks": 0, "bytes_read": 0} for file in catalog.files]
    for rank in ranks:
        for file, count in rank.files:
            files[file]["ranks"] += 1
            files[file]["bytes_read"] += count
    return files


def _seconds(
    facts: dict[str, Any], nodes: Sequence[dict[str, Any]], speeds: Speeds
) -> dict[str, dict[str, float]]:
    """Where the time would go, one phase after the other, on the rank or node that takes longest in each."""
    ranks = facts["per_rank"]
    everything = facts["ranks"] / facts["simulated_ranks"]  # a sample stands for all

    def reading(name: str) -> float:
        slowest: float = max(node[name] for node in nodes) / (speeds.read_bandwidth * GIGA)
        if speeds.storage_bandwidth is None:
            return slowest
        total = everything * sum(node[name] for node in nodes)
        return max(slowest, float(total / (speeds.storage_bandwidth * GIGA)))

    def waiting(name: str) -> float:
        requests: int = max(node[name] for node in nodes)
        return requests * speeds.request_milliseconds / 1000 / speeds.requests_in_flight

    handed = max(node["bytes_needed"] - node["bytes_distinct"] for node in nodes)
    decoding = ranks["bytes_held"]["max"] / (speeds.decode_bandwidth * GIGA)
    planning = ranks["planning_seconds"]["max"]
    return {
        "alone": {
            "planning": planning,
            "requests": waiting("requests"),
            "reading": reading("bytes_read"),
            "handing around": 0.0,
            "decoding": decoding,
        },
        "together": {
            "planning": planning,
            "requests": waiting("requests_together"),
            "reading": reading("bytes_read_together"),
            "handing around": handed / (speeds.node_bandwidth * GIGA),
            "decoding": decoding,
        },
    }


def mesh_text(facts: dict[str, Any]) -> str:
    """The mesh in words."""
    sizes = " × ".join(f"{name} {size}" for name, size in facts["mesh"].items())
    return f"{sizes} = {facts['ranks']:,} ranks" if sizes else "1 rank"


def whole_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """(what, figure) of the cluster as a whole."""
    simulated = "all"
    if facts["simulated_ranks"] < facts["ranks"]:
        simulated = f"{facts['simulated_ranks']:,} of {facts['ranks']:,}, on whole nodes spread over the mesh"
    amplification = facts["amplification"]
    return [
        (
            "checkpoint",
            f"{facts['source']}: {facts['checkpoint_tensors']:,} tensors in {facts['checkpoint_files']} files",
        ),
        ("mesh", mesh_text(facts)),
        ("ranks simulated", simulated),
        ("checkpoint bytes", amount("bytes", facts["checkpoint_bytes"])),
        ("of these needed by some rank", amount("bytes", facts["distinct_bytes"])),
        ("native tensors", f"{facts['native_tensors']:,}, {amount('bytes', facts['native_bytes'])}"),
        ("exchanged between ranks to plan a load", "0 B"),
        *save_rows(facts["save"]),
        ("a node's reads / distinct bytes, each rank for itself", f"{amplification['alone']:.3f}"),
        ("a node's reads / distinct bytes, read together", f"{amplification['together']:.3f}"),
        ("the simulation took", amount("seconds", facts["simulation_seconds"])),
    ]


def save_rows(save: dict[str, Any] | None) -> list[tuple[str, str]]:
    """(what, figure) of planning a save."""
    if save is None:
        return [("exchanged to plan a save", "not simulated: more ranks than 65,536")]
    first = (
        f"{amount('bytes', save['bytes_exchanged'])} in all, {amount('bytes', save['most_bytes_of_rank'])} by a rank;"
        f" {amount('seconds', save['seconds'])} on the coordinator"
    )
    again = (
        f"{amount('bytes', save['bytes_unchanged'])} in all; {amount('seconds', save['seconds_unchanged'])}"
    )
    return [
        ("exchanged to plan a save", first),
        ("exchanged to plan the next one, unchanged", again),
        (
            "chunks of a saved checkpoint",
            f"{save['chunks']:,}, described in {amount('bytes', save['bytes_metadata'])}",
        ),
    ]


def text_of(facts: dict[str, Any]) -> str:
    """The figures for people, the estimated time first."""
    parts = [_time_table(facts), table(whole_rows(facts)), _rank_table(facts), _stage_table(facts)]
    return "\n\n".join(parts)


def _time_table(facts: dict[str, Any]) -> str:
    phases = list(facts["seconds"]["alone"])
    return columns(
        ["estimated time", "sum", *phases],
        [
            [label, amount("seconds", sum(facts["seconds"][way].values())),
             *(amount("seconds", facts["seconds"][way][phase]) for phase in phases)]
            for way, label in (("alone", "each rank for itself"), ("together", "a node's ranks together"))
        ],
    )  # fmt: skip


def _rank_table(facts: dict[str, Any]) -> str:
    return columns(
        ["per rank", "minimum", "mean", "maximum"],
        [
            [label, *(amount(name, facts["per_rank"][name][which]) for which in ("min", "mean", "max"))]
            for name, label in RANK_FIGURES.items()
        ],
    )


def _stage_table(facts: dict[str, Any]) -> str:
    return columns(
        ["stage", "ranks", "read min", "read mean", "read max", "max / mean", "files", "requests", "held"],
        [
            [
                str(stage["stage"]),
                f"{stage['simulated_ranks']:,}",
                *(
                    amount("bytes", stage["per_rank"]["bytes_read"][which])
                    for which in ("min", "mean", "max")
                ),
                f"{stage['read_max_over_mean']:.4f}",
                amount("files", stage["per_rank"]["files"]["max"]),
                amount("requests", stage["per_rank"]["requests"]["mean"]),
                amount("bytes", stage["per_rank"]["bytes_held"]["mean"]),
            ]
            for stage in facts["stages"]
        ],
    )
