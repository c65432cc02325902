"""The weights of any checkpoint as a native state dict, for who has no trainer: the command line, exports of a path."""

from __future__ import annotations

import os
from typing import Any, cast

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard

from shardwright import _core
from shardwright.dcp.one_checkpoint import words_of
from shardwright.dcp.sharded_reader import ShardedStorageReader
from shardwright.dcp.storage_reader import HuggingFaceStorageReader
from shardwright.loading import is_of_trainer, load
from shardwright.local_path import expect_text, shown
from shardwright.native import empty_state_dict
from shardwright.sharding import Sharding

#: Keys of a saved state under which the weights are, if the caller does not say.
_USUAL_KEY = "model"


def load_weights(
    source: str | os.PathLike[str],
    mesh: DeviceMesh | None = None,
    *,
    key: str | None = None,
    model: Any = "auto",
    layout: str = "automodel",
    strict: bool = True,
    threads: int | None = None,
) -> dict[str, torch.Tensor]:
    """Loads the weights of a checkpoint into new tensors, on a mesh of one dimension "shard" in shards of dimension 0.

    Args:
        source: a Hugging Face checkpoint, one of :func:`shardwright.save`, or one of torch's (``.distcp``, or
            ``save_distributed``).
        key: of a saved training: where its state dict has the weights, as dotted keys ("app.model"). None: under
            "model", or all of it where the state dict was one of tensors alone.
        model, layout, strict, threads: see :func:`shardwright.load`; ``model`` and ``layout`` for a Hugging Face
            checkpoint.
    """
    if not is_of_trainer(source):
        if key is not None:
            raise ValueError(f"key: expected none for {shown(source)}, which is no checkpoint of training")
        state_dict = empty_state_dict(source, mesh, model=model, layout=layout)
        load(state_dict, source, model=model, layout=layout, strict=strict, threads=threads)
        return state_dict
    metadata = ShardedStorageReader(source).read_metadata()
    path, stored = names_of_weights(metadata, os.fspath(source), key)
    weights = {
        name: _empty(cast(TensorStorageMetadata, metadata.state_dict_metadata[fqn]), mesh)
        for name, fqn in stored.items()
    }
    nested: dict[str, Any] = weights
    for part in reversed(path):
        nested = {part: nested}
    load(nested, source, threads=threads)
    return weights


def content_of(source: str | os.PathLike[str]) -> list[str]:
    """What a checkpoint of any kind holds, in words to be compared between ranks."""
    reader = (ShardedStorageReader if is_of_trainer(source) else HuggingFaceStorageReader)(source)
    return words_of(source, reader.read_metadata(), reader.thread_count)


def names_of_weights(
    metadata: Metadata, source: str, key: str | None
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Where the weights are in the saved state dict; and for each, by its name there, that in the checkpoint."""
    paths = {
        fqn: tuple(str(part) for part in (metadata.planner_data or {}).get(fqn, (fqn,)))
        for fqn in metadata.state_dict_metadata
    }
    if key is not None:
        expect_text("key", key)
    where = tuple(key.split(".")) if key is not None else _usual_place(paths, source)
    weights = {
        ".".join(path[len(where) :]): fqn
        for fqn, path in paths.items()
        if path[: len(where)] == where
        and len(path) > len(where)
        and isinstance(metadata.state_dict_metadata[fqn], TensorStorageMetadata)
    }
    if not weights:
        raise _core.PlanError(
            f"{shown(source)}: expected weights under the key {'.'.join(where)!r} of the saved state dict, found none; "
            f"it has {_keys(paths)}"
        )
    return where, weights


def _usual_place(paths: dict[str, tuple[str, ...]], source: str) -> tuple[str, ...]:
    if all(len(path) == 1 for path in paths.values()):
        return ()
    places = {path[: path.index(_USUAL_KEY) + 1] for path in paths.values() if _USUAL_KEY in path[:-1]}
    if len(places) != 1:
        raise _core.PlanError(
            f"{shown(source)}: expected the key {_USUAL_KEY!r} in the saved state dict, found {_keys(paths)}; say "
            "under which key the weights are: key="
        )
    return places.pop()


def _keys(paths: dict[str, tuple[str, ...]]) -> str:
    return ", ".join(sorted({repr(path[0]) for path in paths.values()})[:20])


def _empty(stored: TensorStorageMetadata, mesh: DeviceMesh | None) -> torch.Tensor:
    is_cut = mesh is not None and len(stored.size) > 0
    sharding = Sharding(tuple(stored.size), mesh, (Shard(0),)) if is_cut else Sharding(tuple(stored.size))
    return sharding.zeros(stored.properties.dtype)
