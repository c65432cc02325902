"""Looking at checkpoints, and making them. Needs no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from shardwright import _core
from shardwright.byte_sizes import bytes_of_size
from shardwright.local_path import local_path, location
from shardwright.progress import counters_of
from shardwright.weight_maps import weight_map_for


def read_catalog(path: str | os.PathLike[str], threads: int = 0) -> Any:
    """What a checkpoint directory holds: ``.tensors`` (name, dtype, shape, file, begin, end), ``.files``, ``.config``.

    Reads and checks the headers and the index, no tensor data. Raises FileNotFoundError or CheckpointFormatError.
    """
    return _core.read_catalog(location(path), threads)


def catalog_of(source: Any) -> Any:
    """The catalog of a directory, or the catalog that is given."""
    return source if isinstance(source, _core.Catalog) else read_catalog(source)


def generate(
    path: str | os.PathLike[str],
    preset: str | None = None,
    *,
    family: str | None = None,
    form: str | None = None,
    config: Mapping[str, Any] | None = None,
    encoding: str | None = None,
    values: str = "trained",
    max_shard_size: int | str | None = None,
    seed: int = 0,
    layout_only: bool = False,
    threads: int = 0,
    layers: int = 0,
) -> Any:
    """Writes a checkpoint with a released model's names, shapes and formats and random values, and what a trainer needs
    to begin: config.json, generation_config.json and a tokenizer whose tokens are bytes.

    ``family`` is one of those that ``shardwright families`` lists, in the ``form`` in which it is released, such as
    "bf16", "fp8" or "int4"; no form means the usual one. ``preset`` says how large: "tiny" (the default), "small" or
    "bench", of which experts make a few gigabytes. ``config`` has values for its config.json, which decides all sizes:
    ``{"num_hidden_layers": 8}``.

    Without a family: MiniMax M3 in a ``preset``, also "full"; ``layers`` replaces the preset's number of layers.

    ``encoding`` is how weights are stored that releases quantize, one of those that the command line lists, such as
    "block_fp8" or "nvfp4_modelopt"; four bits are of routed experts alone, where there are any. The default is as
    released. ``max_shard_size`` bounds the files, in bytes or as "5GB". Equal seeds give equal bytes.

    ``values="trained"`` are of the size that a trained model has: weights of deviation 0.02, norms near 1; a forward
    pass is finite. ``"any"`` are all that the formats can hold, huge and tiny, to test what reads them.

    Returns a report with ``tensors``, ``files`` and ``bytes``. Raises ValueError for options that are unknown or
    contradict each other, FileExistsError or ValueError for a directory that holds a checkpoint.
    """
    return _core.generate(
        local_path(path),
        preset or "",
        encoding or "",
        layout_only,
        seed,
        threads,
        layers,
        family or "",
        form or "",
        json.dumps(dict(config)) if config is not None else "",
        bytes_of_size(max_shard_size) if max_shard_size is not None else 0,
        values,
        counters_of("generating"),
    )


def request_list(
    source: Any,
    state_dict: Mapping[str, Any] | None = None,
    *,
    model: Any = "auto",
    layout: str = "automodel",
    dtype: str = "BF16",
) -> list[tuple[str, str, list[int]]]:
    """The HF tensors that a load asks for, as (name, dtype, global shape), scales included.

    This is what ``to_hf(quantization=True)`` stands for, as data: nothing is allocated. ``source`` is a checkpoint
    directory or a catalog, whose scales decide what is block-scaled. Without a state dict: all that the checkpoint
    fills, block-scaled weights becoming ``dtype``; with one: what this rank's parts touch. ``dtype="packed"`` is for
    state dicts whose weights stay encoded: see :func:`shardwright.load`.
    """
    catalog = catalog_of(source)
    weight_map = weight_map_for(catalog, model, layout)
    is_packed = dtype == "packed"
    if state_dict is None:
        if is_packed:
            catalog, weight_map, _ = _core.as_packed(catalog, weight_map)
        tensors = _core.native_tensors(catalog, weight_map, "BF16" if is_packed else dtype)
        specs = _core.specs_on_mesh(tensors, [], 0)
    else:
        from shardwright.describe import describe

        specs = describe(state_dict).specs
        if is_packed:
            catalog, weight_map, problems = _core.as_packed(catalog, weight_map, specs)
            if problems:
                raise _core.PlanError(_core.in_lines("the state dict holds no packed weights:", problems))
    requests: list[tuple[str, str, list[int]]] = _core.request_list(specs, weight_map, catalog)
    return requests
