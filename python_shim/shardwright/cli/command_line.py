"""The command ``shardwright``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from shardwright import _core
from shardwright.catalog import generate, read_catalog
from shardwright.checkpoints import verify
from shardwright.cli.families import families, print_families
from shardwright.cli.simulate import Speeds, print_simulation, simulate
from shardwright.cli.simulate_page import page
from shardwright.cli.table import print_table
from shardwright.local_path import local_path
from shardwright.weight_maps import weight_map_for


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status. What is wrong with either is one message on stderr."""
    options = _parser().parse_args(arguments)
    try:
        status = options.command(options)
    except (OSError, ValueError) as error:
        message = str(error)
        if isinstance(error, OSError) and error.strerror:
            message = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
        print(f"shardwright: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("shardwright: stopped", file=sys.stderr)
        return 130
    return int(status or 0)


def _whole_number(text: str) -> int:
    """An argument that counts something; kept to 63 bits, which the library can take."""
    number = int(text)
    if not 0 <= number < 1 << 63:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to 2^63 - 1")
    return number


def _positive_number(text: str) -> float:
    """A finite argument above 0."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"expected a JSON object: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError("expected a JSON object")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shardwright",
        description="Loads released checkpoints into sharded tensors, and saves and exports these.",
    )
    parser.add_argument("--version", action="version", version=f"shardwright {_core.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    generating = commands.add_parser(
        "generate", help="write a checkpoint of a released model's names and shapes with random values"
    )
    generating.add_argument("directory")
    generating.add_argument(
        "--preset", choices=["tiny", "small", "bench", "full"], help="of MiniMax M3; without --family: tiny"
    )
    generating.add_argument(
        "--family", help="a small checkpoint of this family, one of those that `shardwright families` lists"
    )
    generating.add_argument("--form", help="in which the family is released, such as bf16, fp8 or tied")
    generating.add_argument(
        "--config",
        type=_json_object,
        metavar="JSON",
        help="values for the family's config.json, which decides all sizes",
    )
    generating.add_argument(
        "--encoding",
        choices=_core.generated_encodings(),
        help="of what releases quantise; default: as released",
    )
    generating.add_argument("--max-shard-size", metavar="SIZE", help="of tensors in a file, such as 5GB")
    generating.add_argument("--layout-only", action="store_true", help="true headers and index, sparse files")
    generating.add_argument("--seed", type=_whole_number, default=0)
    generating.add_argument(
        "--layers", type=_whole_number, default=0, help="instead of the preset's number of them"
    )
    generating.set_defaults(command=_generate)

    inspecting = commands.add_parser("inspect", help="say what a checkpoint holds, from headers and index")
    inspecting.add_argument("path")
    inspecting.add_argument("--json", action="store_true")
    inspecting.set_defaults(command=_inspect)

    listing = commands.add_parser(
        "families",
        help="list the model families that have tables, their layouts and what these are checked against",
    )
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(command=_families)

    planning = commands.add_parser("plan", help="say what one rank of a mesh would read, without reading it")
    planning.add_argument("path")
    _add_mesh_options(planning)
    planning.add_argument("--rank", type=_whole_number, default=0)
    planning.add_argument("--json", action="store_true", help="every transfer, as JSON")
    planning.add_argument(
        "--save", metavar="FILE", help="keep the plan, as protobuf bytes (planner/wire/plan.proto)"
    )
    planning.add_argument(
        "--compare", metavar="FILE", help="fail if the plan is not the one kept in this file"
    )
    planning.add_argument(
        "--explain",
        metavar="TENSOR",
        help="say what becomes of one tensor, by its native name or the checkpoint's",
    )
    _add_map_options(planning)
    planning.set_defaults(command=_plan)

    _add_simulate_parser(commands)

    loading = commands.add_parser("load", help="load a checkpoint into new tensors and report")
    loading.add_argument("path")
    loading.add_argument(
        "--ranks", type=_whole_number, default=1, help="Gloo ranks on this machine, sharding dimension 0"
    )
    loading.add_argument("--threads", type=_whole_number, default=None, help="per rank")
    loading.add_argument("--staging-bytes", type=_whole_number, default=None, help="per rank")
    loading.add_argument("--progress", action="store_true")
    loading.add_argument("--reads", choices=["auto", "io_uring", "pread"], default="auto")
    loading.add_argument(
        "--direct-io", choices=["auto", "yes", "no"], default="auto", help="past the page cache"
    )
    loading.add_argument("--huge-pages", action="store_true", help="for staging")
    loading.add_argument(
        "--trace", metavar="FILE", help="write what each thread did when, for chrome://tracing or Perfetto"
    )
    loading.add_argument(
        "--plan", metavar="FILE", help="replay a plan that was kept; for several ranks, FILE holds {rank}"
    )
    _add_map_options(loading)
    loading.set_defaults(command=_load)

    verifying = commands.add_parser(
        "verify", help="check headers, index, coverage and checksums; exit status 1 if something is wrong"
    )
    verifying.add_argument("path")
    verifying.add_argument("--threads", type=_whole_number, default=None)
    verifying.add_argument("--json", action="store_true")
    verifying.set_defaults(command=_verify)

    converting = commands.add_parser(
        "convert", help="a checkpoint of torch's FileSystemWriter to one of ours, and ours to another format"
    )
    converting.add_argument("source")
    converting.add_argument("destination")
    converting.add_argument(
        "--format", choices=["torch", "safetensors"], help="torch: torch alone reads it as well"
    )
    converting.add_argument("--overwrite", action="store_true", help="replace another kind of checkpoint")
    converting.add_argument("--threads", type=_whole_number, default=None)
    converting.set_defaults(command=_convert)

    exporting = commands.add_parser("export", help="load a checkpoint and write it as another")
    exporting.add_argument("source", help="a checkpoint: Hugging Face, or of training (sharded, .distcp)")
    exporting.add_argument("destination", help="the directory that it goes into, beside what is there")
    exporting.add_argument(
        "--quantization",
        choices=["mxfp8", "template", "none"],
        default="none",
        help="mxfp8, the template's encodings and scales, or BF16 (default)",
    )
    exporting.add_argument(
        "--template",
        metavar="DIR",
        help="a checkpoint whose names, dtypes and other files the result gets; default: source, if it is Hugging Face",
    )
    exporting.add_argument(
        "--key",
        help='of training: where the saved state dict has the weights, such as app.model; default: "model"',
    )
    exporting.add_argument("--max-shard-size", default="5GB", help="of tensors in a file; default: 5GB")
    exporting.add_argument(
        "--ranks", type=_whole_number, default=1, help="Gloo ranks on this machine, sharding dimension 0"
    )
    exporting.add_argument("--threads", type=_whole_number, default=None, help="per rank")
    exporting.add_argument(
        "--overwrite",
        action="store_true",
        default=None,
        help="replace whatever checkpoint is in the destination; default: only one that an export has written",
    )
    exporting.add_argument(
        "--strict-dtypes", action="store_true", help="refuse to round, such as F32 to a template's BF16"
    )
    _add_map_options(exporting)
    exporting.set_defaults(command=_export)
    return parser


def _add_simulate_parser(commands: Any) -> None:
    simulating = commands.add_parser(
        "simulate", help="plan a load on every rank of a cluster without one, and say what each would do"
    )
    simulating.add_argument("path", nargs="?", help="a checkpoint; or give --preset")
    simulating.add_argument(
        "--preset", choices=["tiny", "small", "bench", "full"], help="as generate would write it"
    )
    simulating.add_argument(
        "--layers", type=_whole_number, default=0, help="instead of the preset's number of them"
    )
    _add_mesh_options(simulating)
    simulating.add_argument("--ranks-per-node", type=_whole_number, default=8, metavar="N")
    simulating.add_argument(
        "--sample",
        type=_whole_number,
        default=0,
        metavar="N",
        help="about N ranks, on whole nodes spread over the mesh",
    )
    simulating.add_argument(
        "--threads", type=_whole_number, default=0, help="default: one for each processor"
    )
    speeds = Speeds()
    for name, unit, what in (
        ("read_bandwidth", "GB/s", "that a node reads"),
        ("storage_bandwidth", "GB/s", "that all nodes read together; default: no limit"),
        ("node_bandwidth", "GB/s", "that the ranks of a node hand to each other"),
        ("decode_bandwidth", "GB/s", "that a rank decodes"),
        ("request_milliseconds", "MS", "that a request waits"),
    ):
        default = getattr(speeds, name)
        simulating.add_argument(
            f"--{name.replace('_', '-')}",
            type=_positive_number,
            default=default,
            metavar=unit,
            help=what if default is None else f"{what}; default: {default:g}",
        )
    simulating.add_argument(
        "--requests-in-flight",
        type=_positive_number,
        default=speeds.requests_in_flight,
        metavar="N",
        help=f"of a node; default: {speeds.requests_in_flight}",
    )
    simulating.add_argument("--json", action="store_true", help="every rank, as JSON")
    simulating.add_argument(
        "--html", metavar="FILE", help="write a page with pictures, which needs no network"
    )
    _add_map_options(simulating)
    simulating.set_defaults(command=_simulate)


def _add_mesh_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mesh",
        default="",
        metavar="NAME=SIZE,…",
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


def _add_map_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="auto")
    parser.add_argument(
        "--layout",
        default="automodel",
        help="native names and shapes: automodel, transformers, torchtitan or huggingface; default: automodel",
    )
    parser.add_argument("--not-strict", action="store_true", help="leave out tensors that no rule knows")


def _generate(options: argparse.Namespace) -> None:
    report = generate(
        options.directory,
        options.preset,
        family=options.family,
        form=options.form,
        config=options.config,
        encoding=options.encoding,
        max_shard_size=options.max_shard_size,
        seed=options.seed,
        layout_only=options.layout_only,
        layers=options.layers,
    )
    print(f"{options.directory}: {report.tensors:,} tensors in {report.files} files, {report.bytes:,} bytes")


def _inspect(options: argparse.Namespace) -> None:
    catalog = read_catalog(options.path)
    tensors = catalog.tensors
    dtypes = Counter(tensor.dtype for tensor in tensors)
    encodings = _core.scaled_weights(catalog)
    facts: dict[str, Any] = {
        "directory": str(catalog.directory),
        "tensors": len(tensors),
        "block_scaled_weights": sum(encodings.values()),
        "encodings": encodings,
        "bytes": sum(tensor.end - tensor.begin for tensor in tensors),
        "files": len(catalog.files),
        "dtypes": dict(dtypes.most_common()),
        "stored": {
            name: {"weights": weights, "parameters": parameters, "bytes": size}
            for name, (weights, parameters, size) in _core.stored_alike(catalog).items()
        },
    }
    try:
        weight_map = _any_weight_map(catalog)
        native = _core.native_tensors(catalog, weight_map)
        facts["model"] = weight_map.family
        facts["native_tensors"] = len(native)
    except ValueError as error:
        facts["model"] = f"not recognised ({error})"
    if options.json:
        facts["names"] = {t.name: [t.dtype, t.shape, catalog.files[t.file].name] for t in tensors}
        print(json.dumps(facts, indent=1))
        return
    for name, alike in facts.pop("stored").items():
        each = alike["bytes"] / max(1, alike["parameters"])
        facts[f"stored as {name}"] = (
            f"{alike['weights']:,} weights, {alike['parameters']:,} parameters, {each:.3f} bytes each"
        )
    for what in ("encodings", "dtypes"):
        facts[what] = ", ".join(f"{count:,} {name}" for name, count in facts[what].items()) or "none"
    print_table(
        [
            (what.replace("_", " "), f"{fact:,}" if isinstance(fact, int) else fact)
            for what, fact in facts.items()
        ]
    )


def _families(options: argparse.Namespace) -> None:
    facts = families()
    if options.json:
        print(json.dumps(facts, indent=1))
    else:
        print_families(facts)


def _any_weight_map(catalog: Any) -> Any:
    """In the first layout that says which model it is."""
    try:
        return weight_map_for(catalog)
    except ValueError as error:
        try:
            return weight_map_for(catalog, layout="transformers")
        except ValueError:
            raise error from None


def _plan(options: argparse.Namespace) -> None:
    catalog = read_catalog(options.path)
    weight_map = weight_map_for(catalog, options.model, options.layout)
    mesh = _core.parse_mesh(options.mesh)
    native = _core.native_tensors(catalog, weight_map)
    specs = _core.specs_on_mesh(native, mesh, options.rank, options.dense)
    plan = _core.plan_load(specs, catalog, weight_map, strict=not options.not_strict)
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
    tensors = catalog.tensors
    transfers = plan.transfers
    if options.explain:
        _explain(options.explain, plan, catalog, specs)
        return
    reading = _core.reading_figures(plan, catalog)
    mesh_text = " x ".join(f"{dimension.name} {dimension.size}" for dimension in mesh) or "one rank"
    if options.json:
        document = {
            "mesh": {dimension.name: dimension.size for dimension in mesh},
            "rank": options.rank,
            "catalog_tensors": len(tensors),
            "tensors": plan.tensors,
            "bytes_needed": plan.bytes_needed,
            "bytes_written": plan.bytes_written,
            "bytes_read": reading.bytes,
            "boxes_with_gaps": reading.boxes_with_gaps,
            "boxes_in_pieces": reading.boxes_in_pieces,
            "transfers": [_transfer_facts(transfer, tensors, catalog.files, specs) for transfer in transfers],
        }
        print(json.dumps(document, indent=1))
        return
    files = {tensors[transfer.source].file for transfer in transfers}
    print_table(
        [
            ("mesh", f"{mesh_text}, rank {options.rank}"),
            ("tensors in the checkpoint", f"{len(tensors):,}"),
            ("tensors this rank needs", f"{plan.tensors:,} in {len(files)} files"),
            ("native tensors", f"{len(native):,}"),
            ("transfers", f"{len(transfers):,}"),
            ("bytes needed", f"{plan.bytes_needed:,}"),
            ("bytes written", f"{plan.bytes_written:,}"),
            ("bytes read from cached files", f"{reading.bytes:,}"),
            ("boxes read with their gaps", f"{reading.boxes_with_gaps:,}"),
            ("boxes read in pieces", f"{reading.boxes_in_pieces:,}"),
        ]
    )


def _explain(name: str, plan: Any, catalog: Any, specs: list[Any]) -> None:
    """What a rank reads of a tensor, from where, and where it goes."""
    tensors = catalog.tensors
    sources = {tensor.name for tensor in tensors}
    spec = next((spec for spec in specs if spec.fqn == name), None)
    if spec is None and name not in sources:
        raise ValueError(
            f"--explain {name}: expected a tensor of the trainer or of the checkpoint, found neither"
        )
    if spec is not None:
        print(f"{name}: {spec.dtype} {spec.local_shape} of {spec.global_shape}")
        for box in spec.boxes:
            print(f"  this rank holds {_box(box.offset, box.size)}, at {box.local_offset} of its own")
    elif name in plan.unused or name in plan.unknown:
        print(
            f"{name}: not loaded; " + ("no rule knows it" if name in plan.unknown else "the trainer lacks it")
        )
    concerned = [
        transfer
        for transfer in plan.transfers
        if name in (specs[transfer.destination].fqn, tensors[transfer.source].name)
        or (transfer.scales >= 0 and name == tensors[transfer.scales].name)
    ]
    for transfer in concerned:
        source = tensors[transfer.source]
        size = [1] * len(transfer.destination_offset)
        for axis, length in zip(transfer.axes, transfer.source_size, strict=True):
            size[axis] = length
        turned = "" if transfer.axes == sorted(transfer.axes) else ", transposed"
        print(
            f"{source.dtype} {source.name} {_box(transfer.source_offset, transfer.source_size)} "
            f"in {catalog.files[source.file].name}"
        )
        if transfer.scales >= 0:
            print(
                f"  scaled by {tensors[transfer.scales].name} {_box(transfer.scale_offset, transfer.scale_size)}"
            )
        print(f"  to {specs[transfer.destination].fqn} {_box(transfer.destination_offset, size)}{turned}")
    if not concerned:
        print("this rank reads nothing of it")


def _box(offset: list[int], size: list[int]) -> str:
    bounds = (f"{begin}:{begin + length}" for begin, length in zip(offset, size, strict=True))
    return f"[{', '.join(bounds)}]"


def _transfer_facts(transfer: Any, tensors: list[Any], files: list[Any], specs: list[Any]) -> dict[str, Any]:
    source = tensors[transfer.source]
    facts: dict[str, Any] = {
        "source": source.name,
        "file": files[source.file].name,
        "source_offset": transfer.source_offset,
        "size": transfer.source_size,
        "destination": specs[transfer.destination].fqn,
        "destination_offset": transfer.destination_offset,
        "axes": transfer.axes,
    }
    if transfer.scales >= 0:
        facts["scales"] = tensors[transfer.scales].name
        facts["scale_offset"] = transfer.scale_offset
        facts["scale_size"] = transfer.scale_size
    return facts


def _simulate(options: argparse.Namespace) -> None:
    if (options.path is None) == (options.preset is None):
        raise ValueError("simulate: expected a checkpoint's path or --preset, and not both")
    if options.layers and options.preset is None:
        raise ValueError("simulate: --layers goes with --preset")
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
    if options.json:
        print(json.dumps(facts, indent=1))
    else:
        print_simulation(facts)


def _verify(options: argparse.Namespace) -> int:
    report = verify(options.path, options.threads)
    facts = {
        "kind": report.kind,
        "files": report.files,
        "tensors": report.tensors,
        "objects": report.objects,
        "bytes_hashed": report.bytes_hashed,
    }
    if options.json:
        print(json.dumps(facts | {"damaged": report.damaged, "problems": report.problems}, indent=1))
        return 1 if report.problems else 0
    print_table(
        [
            (what.replace("_", " "), f"{fact:,}" if isinstance(fact, int) else fact)
            for what, fact in facts.items()
        ]
    )
    for problem in report.problems:
        print(problem)
    for name in report.damaged:
        print(f"damaged: {name}")
    if not report.problems:
        print(
            "nothing wrong was found"
            if report.bytes_hashed
            else "nothing wrong was found; no checksums to check"
        )
    return 1 if report.problems else 0


def _convert(options: argparse.Namespace) -> None:
    from shardwright.converting import convert

    print(
        convert(
            options.source,
            options.destination,
            format=options.format,
            threads=options.threads or None,
            overwrite=options.overwrite or None,
        )
    )


def _load(options: argparse.Namespace) -> None:
    if options.ranks < 1:
        raise ValueError(f"--ranks is {options.ranks}; expected 1 or more")
    if options.plan and options.ranks > 1 and "{rank}" not in options.plan:
        raise ValueError(
            f"--plan {options.plan}: a plan is for one rank; expected {{rank}} in the name of the file"
        )
    read_catalog(
        options.path
    )  # so that a bad checkpoint is refused before torch is imported and ranks are started
    from shardwright.dcp.trial_load import trial_load

    trial_load(options)


def _export(options: argparse.Namespace) -> None:
    if options.ranks < 1:
        raise ValueError(f"--ranks is {options.ranks}; expected 1 or more")
    local_path(options.destination)
    if not _core.has_manifest(options.source) and not Path(options.source, ".metadata").exists():
        read_catalog(options.source)  # see _load
    from shardwright.dcp.trial_export import trial_export

    trial_export(options)
