"""``shardwright plan``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from shardwright import _core
from shardwright.catalog import read_catalog
from shardwright.cli.answer import Answer
from shardwright.cli.explain import explain, transfer_facts
from shardwright.cli.named_output import PLAN, expect_replaceable
from shardwright.cli.options import add_mesh, add_rules, number_on_cluster
from shardwright.cli.table import columns, table
from shardwright.weight_maps import weight_map_for

HELP = "say what one rank of a mesh would read, without reading it"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path")
    add_mesh(parser)
    parser.add_argument("--rank", type=number_on_cluster, default=0)
    parser.add_argument(
        "--save", metavar="FILE", help="keep the plan, as protobuf bytes (planner/wire/plan.proto)"
    )
    parser.add_argument("--compare", metavar="FILE", help="fail if the plan is not the one kept in this file")
    parser.add_argument(
        "--explain",
        metavar="TENSOR",
        help="say what becomes of one tensor, by its native name or the checkpoint's",
    )
    parser.add_argument(
        "--packed",
        action="store_true",
        help='the plan of a load with dtype="packed": encoded weights stay codes and scales',
    )
    add_rules(parser)


def run(options: argparse.Namespace) -> Answer:
    expect_replaceable("--save", options.save, PLAN)
    catalog = read_catalog(options.path)
    weight_map = weight_map_for(catalog, options.model, options.layout)
    if options.packed:
        catalog, weight_map, _ = _core.as_packed(catalog, weight_map)
    mesh = _core.parse_mesh(options.mesh)
    native = _core.native_tensors(catalog, weight_map)
    specs = _core.specs_on_mesh(native, mesh, options.rank, options.dense)
    plan = _core.plan_load(specs, catalog, weight_map, strict=not options.not_strict)
    _keep_or_compare(options, plan, catalog, specs)
    if options.explain:
        return explain(options.explain, plan, catalog, specs)
    reading = _core.reading_figures(plan, catalog)
    tensors, transfers = catalog.tensors, plan.transfers
    facts = {
        "mesh": {dimension.name: dimension.size for dimension in mesh},
        "rank": options.rank,
        "catalog_tensors": len(tensors),
        "native_tensors": len(native),
        "tensors": plan.tensors,
        "bytes_needed": plan.bytes_needed,
        "bytes_written": plan.bytes_written,
        "bytes_read": reading.bytes,
        "boxes_with_gaps": reading.boxes_with_gaps,
        "boxes_in_pieces": reading.boxes_in_pieces,
    }
    if options.packed:
        facts["packed"] = _held_packed(specs, weight_map.packed_weights)
    if options.json:  # every transfer, which may be many
        facts["transfers"] = [transfer_facts(one, tensors, catalog.files, specs) for one in transfers]
    sizes = " x ".join(f"{name} {size}" for name, size in facts["mesh"].items()) or "one rank"
    files = {tensors[transfer.source].file for transfer in transfers}
    rows = [
        ("mesh", f"{sizes}, rank {options.rank}"),
        ("tensors in the checkpoint", len(tensors)),
        ("tensors this rank needs", f"{plan.tensors:,} in {len(files)} files"),
        ("native tensors", len(native)),
        ("transfers", len(transfers)),
        ("bytes needed", plan.bytes_needed),
        ("bytes written", plan.bytes_written),
        ("bytes read from cached files", reading.bytes),
        ("boxes read with their gaps", reading.boxes_with_gaps),
        ("boxes read in pieces", reading.boxes_in_pieces),
    ]
    text = table(rows)
    if options.packed:
        heads = ["this rank holds", "dtype", "tensors", "bytes"]
        cells = [
            [of["holds"], of["dtype"], f"{of['tensors']:,}", f"{of['bytes']:,}"] for of in facts["packed"]
        ]
        text += "\n\n" + columns(heads, cells)
    return Answer(facts, text)


def _held_packed(specs: list[Any], weight_of: dict[str, str]) -> list[dict[str, Any]]:
    """What this rank holds of codes, of each kind of companion and of what is not packed."""
    held: dict[tuple[str, str], dict[str, Any]] = {}
    for spec in specs:
        weight = weight_of.get(spec.fqn)
        kind = "not packed"
        if weight is not None:  # "_scale_inv" of "projs_scale_inv", "input_scale" beside "proj.weight"
            kind = spec.fqn[len(os.path.commonprefix([spec.fqn, weight])) :] or "codes"
        of_kind = held.setdefault(
            (kind, spec.dtype), {"holds": kind, "dtype": spec.dtype, "tensors": 0, "bytes": 0}
        )
        of_kind["tensors"] += 1
        of_kind["bytes"] += spec.local_bytes
    return [held[key] for key in sorted(held)]


def _keep_or_compare(options: argparse.Namespace, plan: Any, catalog: Any, specs: list[Any]) -> None:
    if not options.save and not options.compare:
        return
    encoded = _core.encode_plan(plan, catalog, specs)
    if options.compare and Path(options.compare).read_bytes() != encoded:
        try:  # says what differs, if it is the tensors
            _core.decode_plan(Path(options.compare).read_bytes(), catalog, specs)
        except ValueError as error:
            raise type(error)(f"{options.compare}: {error}") from None
        raise ValueError(
            f"{options.compare}: expected the plan made here, found another one for the same tensors"
        )
    if options.save:
        _core.write_named_file(options.save, encoded)
