"""Loads and saves on a cluster that is not there: figures of ``shardwright simulate``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from shardwright import _core
from shardwright.cli.table import amount, columns, table
from shardwright.local_path import shown
from shardwright.progress import counters_of
from shardwright.weight_maps import weight_map_for

GIGA = 1e9

#: Heads, and rows of as many cells, to be shown as text or on a page.
Table = tuple[list[str], list[list[str]]]

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
#: Ways to read, and how they are called.
WAYS = {
    "alone": "each rank for itself",
    "together": "a node's ranks together",
    "job": "the job's ranks together",
}


@dataclass(frozen=True)
class Speeds:
    """What the machines are taken to do; everything else in a simulation is counted or measured."""

    read_bandwidth: float = 10.0  #: GB/s that a node reads
    #: GB/s that the file system gives all nodes together; None: no limit
    storage_bandwidth: float | None = None
    node_bandwidth: float = 100.0  #: GB/s that the ranks of a node hand to each other
    connection_bandwidth: float = 50.0  #: GB/s that a node gets from other nodes, and sends them meanwhile
    decode_bandwidth: float = 5.0  #: GB/s that a rank decodes, counted in what it holds afterwards
    request_milliseconds: float = 0.5  #: that a request waits before its bytes come
    requests_in_flight: int = 32  #: of a node
    exchange_milliseconds: float = 0.1  #: that a round between nodes takes beside its bytes
    exchange_megabytes: float = 64.0  #: MB that a node gets in a round


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
    counted = _core.simulate(
        catalog,
        weight_map,
        dimensions,
        _rates(speeds),
        dense,
        ranks_per_node,
        sample,
        threads,
        strict,
        counters_of("simulating", "ranks"),
    )
    return {
        "source": shown(catalog.directory),
        "mesh": {dimension.name: dimension.size for dimension in dimensions},
        "dense": dense,
        "layout": layout,
        "ranks_per_node": ranks_per_node,
        "speeds": vars(speeds).copy(),
        **json.loads(counted),
    }


def _rates(speeds: Speeds) -> Any:
    """In bytes a second, and seconds."""
    return _core.SimulatedRates(
        storage=(speeds.storage_bandwidth or 0.0) * GIGA,
        node_reading=speeds.read_bandwidth * GIGA,
        node_memory=speeds.node_bandwidth * GIGA,
        connection=speeds.connection_bandwidth * GIGA,
        decoding=speeds.decode_bandwidth * GIGA,
        request_wait=speeds.request_milliseconds / 1000,
        requests_in_flight=speeds.requests_in_flight,
        exchange_wait=speeds.exchange_milliseconds / 1000,
        exchange_bytes=speeds.exchange_megabytes * 1e6,
    )


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
        ("of these needed by some rank", amount("bytes", facts["job_bytes"])),
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
    rates = f"taken for granted: {rates_text(facts['speeds'])}"
    parts = [columns(*_time_table(facts)), columns(*way_table(facts)), rates]
    parts += [table(whole_rows(facts)), columns(*rank_table(facts)), columns(*stage_table(facts))]
    return "\n\n".join(parts)


def rates_text(speeds: dict[str, Any]) -> str:
    """What the machines are taken to do."""
    total = speeds["storage_bandwidth"]
    return (
        (f"the storage gives all nodes {total:g} GB/s, a node" if total else "a node")
        + f" reads {speeds['read_bandwidth']:g} GB/s, a request waits {speeds['request_milliseconds']:g} ms with"
        f" {speeds['requests_in_flight']:g} in flight on a node; a node gets"
        f" {speeds['connection_bandwidth']:g} GB/s from others in rounds of {speeds['exchange_megabytes']:g} MB"
        f" that take {speeds['exchange_milliseconds']:g} ms more; the ranks of a node hand each other"
        f" {speeds['node_bandwidth']:g} GB/s, and each decodes {speeds['decode_bandwidth']:g} GB/s"
    )


def _time_table(facts: dict[str, Any]) -> Table:
    rows = []
    for way, label in WAYS.items():
        phases = facts["seconds"][way].values()
        rows.append([label, *(amount("seconds", value) for value in (sum(phases), *phases))])
    return ["estimated time", "sum", *facts["seconds"]["alone"]], rows


def way_table(facts: dict[str, Any]) -> Table:
    """Of each way to read: the time in all, and what it moves."""
    heads = [
        "way to read",
        "time",
        "from storage",
        "x the bytes needed",
        "between nodes",
        "in nodes",
        "requests",
    ]
    rows = []
    for way, label in WAYS.items():
        figures = facts["ways"][way]
        rows.append(
            [
                label + (" (best)" if way == facts["best"] else ""),
                amount("seconds", sum(facts["seconds"][way].values())),
                amount("bytes", figures["bytes_from_storage"]),
                f"{figures['bytes_from_storage'] / max(facts['job_bytes'], 1):.3f}",
                amount("bytes", figures["bytes_on_wire"]),
                amount("bytes", figures["bytes_in_nodes"]),
                amount("requests", figures["requests"]),
            ]
        )
    return heads, rows


def rank_table(facts: dict[str, Any]) -> Table:
    """Of each figure: what it is on the ranks."""
    rows = [
        [label, *(amount(name, facts["per_rank"][name][which]) for which in ("min", "mean", "max"))]
        for name, label in RANK_FIGURES.items()
    ]
    return ["per rank", "minimum", "mean", "maximum"], rows


def stage_table(facts: dict[str, Any]) -> Table:
    """Of each pipeline stage: what its ranks read, and the means of what else they do."""
    others = {"bytes_held": "held", "requests": "requests", "extents": "extents", "files": "files"}
    others |= {"bytes_saved": "saved", "bytes_exported": "exported"}
    rows = []
    for stage in facts["stages"]:
        ranks = stage["per_rank"]
        rows.append(
            [
                str(stage["stage"]),
                f"{stage['simulated_ranks']:,}",
                *(amount("bytes", ranks["bytes_read"][which]) for which in ("min", "mean", "max")),
                f"{stage['read_max_over_mean']:.4f}",
                *(amount(name, ranks[name]["mean"]) for name in others),
            ]
        )
    return ["stage", "ranks", "read min", "read mean", "read max", "max / mean", *others.values()], rows
