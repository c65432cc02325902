"""``shardwright inspect``. Files, tensors and objects are counted as ``verify`` counts them."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from typing import Any

from shardwright import _core
from shardwright.catalog import read_catalog
from shardwright.checkpoints import expect_no_steps
from shardwright.cli.answer import Answer
from shardwright.cli.table import table
from shardwright.local_path import location, shown
from shardwright.weight_maps import weight_map_for

HELP = "say what a checkpoint holds, from headers, index and metadata"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="a checkpoint: Hugging Face, or of training (sharded, .distcp)")


def run(options: argparse.Namespace) -> Answer:
    options.path = location(options.path)
    expect_no_steps(options.path)
    kind = _core.kind_of(options.path)
    if kind == "sharded":
        facts = _of_sharded(options.path)
    elif kind == "torch":
        facts = _of_torch(options.path)
    else:
        facts = _of_hugging_face(options.path)
    return Answer(facts, _text_of(facts))


def _of_hugging_face(path: str) -> dict[str, Any]:
    catalog = read_catalog(path)
    tensors = catalog.tensors
    encodings = _core.scaled_weights(catalog)
    facts = {
        "directory": shown(catalog.directory),
        "kind": "Hugging Face",
        "files": len(catalog.files),
        "tensors": len({tensor.name for tensor in tensors}),
        "objects": 0,
        "bytes": sum(tensor.end - tensor.begin for tensor in tensors),
        "dtypes": dict(Counter(tensor.dtype for tensor in tensors).most_common()),
        "block_scaled_weights": sum(encodings.values()),
        "encodings": encodings,
        "stored": {
            name: {"weights": weights, "parameters": parameters, "bytes": size}
            for name, (weights, parameters, size) in _core.stored_alike(catalog).items()
        },
    }
    try:
        weight_map = _any_weight_map(catalog)
        native = _core.native_tensors(catalog, weight_map)
        facts |= {"model": weight_map.family, "native_tensors": len(native)}
    except ValueError as error:
        facts["model"] = f"not recognised ({error})"
    return facts | {"names": {t.name: [t.dtype, t.shape, catalog.files[t.file].name] for t in tensors}}


def _any_weight_map(catalog: Any) -> Any:
    """In the first layout that says which model it is."""
    try:
        return weight_map_for(catalog)
    except ValueError as error:
        try:
            return weight_map_for(catalog, layout="transformers")
        except ValueError:
            raise error from None


def _of_sharded(path: str) -> dict[str, Any]:
    """Of a checkpoint of ``shardwright.save``."""
    manifest = _core.read_manifest(path)
    names, dtypes, chunks, size = {}, Counter[str](), 0, 0
    for number, (name, dtype, _, shape, *_) in enumerate(manifest.tensors):
        dtype = dtype.removeprefix("torch.")
        names[name] = [dtype, shape]
        dtypes[dtype] += 1
        for _, _, _, begin, end in manifest.chunks(number):
            chunks, size = chunks + 1, size + end - begin
    objects = [name for name, *_ in manifest.objects]
    return _of_training(path, "sharded", manifest.file_count, names, dtypes, chunks, size, objects)


def _of_torch(path: str) -> dict[str, Any]:
    """Of a checkpoint of torch's FileSystemWriter."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    from shardwright.dcp.torch_metadata import read_torch_metadata

    metadata = read_torch_metadata(path)
    names, dtypes, chunks, size, objects = {}, Counter[str](), 0, 0, []
    for name, stored in metadata.state_dict_metadata.items():
        if not isinstance(stored, TensorStorageMetadata):
            objects.append(name)
            continue
        dtype = str(stored.properties.dtype).removeprefix("torch.")
        names[name] = [dtype, list(stored.size)]
        dtypes[dtype] += 1
        chunks += len(stored.chunks)
        size += sum(math.prod(chunk.sizes) for chunk in stored.chunks) * stored.properties.dtype.itemsize
    files = len({place.relative_path for place in metadata.storage_data.values()})
    return _of_training(path, "torch", files, names, dtypes, chunks, size, objects)


def _of_training(
    path: str,
    kind: str,
    files: int,
    names: dict[str, Any],
    dtypes: Counter[str],
    chunks: int,
    size: int,
    objects: list[str],
) -> dict[str, Any]:
    return {
        "directory": shown(path),
        "kind": kind,
        "files": files,
        "tensors": len(names),
        "objects": len(objects),
        "chunks": chunks,
        "bytes": size,
        "dtypes": dict(dtypes.most_common()),
        "parts": dict(Counter(name.split(".")[0] for name in [*names, *objects]).most_common()),
        "names": names,
        "names_of_objects": objects,
    }


def _text_of(facts: dict[str, Any]) -> str:
    rows: list[tuple[str, object]] = []
    for what, fact in facts.items():
        if what.startswith("names"):
            continue
        if what == "stored":
            rows += [(f"stored as {name}", _text_of_alike(alike)) for name, alike in fact.items()]
        elif isinstance(fact, dict):
            some = [f"{count:,} {name}" for name, count in list(fact.items())[:12]]
            more = f", and {len(fact) - 12} others" if len(fact) > 12 else ""
            rows.append((what.replace("_", " "), ", ".join(some) + more or "none"))
        else:
            rows.append((what.replace("_", " "), fact))
    return table(rows)


def _text_of_alike(alike: dict[str, int]) -> str:
    each = alike["bytes"] / max(1, alike["parameters"])
    return f"{alike['weights']:,} weights, {alike['parameters']:,} parameters, {each:.3f} bytes each"
