"""torch_checkpointing 0.1.1 with Shardwright's loads: a resharder that plans, decodes and places by itself.

::

    from shardwright.integrations.torch_checkpointing import AnyCheckpoint, Resharder
    from torch_checkpointing import CheckpointManager, ItemSpec

    manager = CheckpointManager(CheckpointManager.Config(items={"model": ItemSpec(resharder=Resharder())}))
    manager.load("released", into={"model": model.state_dict()}, metadata_format=AnyCheckpoint)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shardwright.integrations.known_versions import expect_version
from shardwright.integrations.resumable_steps import names_in
from shardwright.loading import is_of_trainer, load
from shardwright.report import LoadReport

expect_version("torch_checkpointing", ("0.1.1",))

from torch_checkpointing.default_resharder import DefaultResharder  # noqa: E402
from torch_checkpointing.distributed_metadata import (  # noqa: E402
    DistributedItemMetadata,
    DistributedMetadata,
)
from torch_checkpointing.hf.metadata import HuggingFaceSafetensorsItemMetadata  # noqa: E402
from torch_checkpointing.metadata_serialization import DistributedMetadataFormat  # noqa: E402
from torch_checkpointing.storage.filesystem import LocalFileSystemStorage  # noqa: E402

__all__ = ["AnyCheckpoint", "Resharder"]


@dataclass(frozen=True)
class _ForShardwright(DistributedItemMetadata):
    """An item that Shardwright loads. What it holds is read when it is planned, not here."""

    of_trainer: bool = False  #: under the trainer's own names, below the item's


class AnyCheckpoint(DistributedMetadataFormat):
    """What is passed as ``metadata_format`` to load what Shardwright loads: released checkpoints, quantized or not, as
    the item "model"; and those of ``shardwright.save`` and torch's FileSystemWriter, an item for each of their keys.

    Each item needs a ``Resharder``.
    """

    @classmethod
    def maybe_load(cls, checkpoint_dir: Path, storage: Any) -> DistributedMetadata | None:
        """None where there is no such checkpoint. Raises CheckpointFormatError for a damaged one."""
        _expect_local(storage)
        if not os.path.isdir(checkpoint_dir):
            return None
        if is_of_trainer(checkpoint_dir):
            items = {name.partition(".")[0] for name in names_in(Path(checkpoint_dir))}
            return _metadata_of(sorted(items), of_trainer=True)
        if not any(Path(checkpoint_dir).glob("*.safetensors*")):
            return None
        return _metadata_of(["model"], of_trainer=False)


def _metadata_of(items: list[str], of_trainer: bool) -> DistributedMetadata:
    return DistributedMetadata(
        metadata={item: _ForShardwright({}, {0: None}, of_trainer) for item in items}, world_size=1
    )


class Resharder(DefaultResharder):
    """Loads an item by Shardwright's plan: any placement, names and shapes of the trainer, weights decoded.

    It stands where DefaultResharder does, in an ItemSpec, and does the same as that for checkpoints that
    torch_checkpointing itself has written. It talks to no other rank. After a load, ``report`` is its LoadReport.

    Args:
        model, layout, strict: see :class:`shardwright.LoadPlanner`. The layout "huggingface" is the checkpoint's names.
        options: for DefaultResharder.

    What does not fit is one PlanError that lists it, before anything is written; no path is handed back unhandled.
    """

    def __init__(
        self, *, model: Any = "auto", layout: str = "huggingface", strict: bool = True, **options: Any
    ) -> None:
        super().__init__(**options)
        self.model, self.layout, self.strict = model, layout, strict
        self.report: LoadReport | None = None

    def should_reshard(self, source_metadata: Any, target_metadata: Any) -> bool:
        if isinstance(source_metadata, (_ForShardwright, HuggingFaceSafetensorsItemMetadata)):
            return True
        return bool(super().should_reshard(source_metadata, target_metadata))

    def load(
        self,
        source_path: Path,
        item_key: str,
        target_metadata: dict[Any, Any],
        source_metadata: Any,
        target: Any,
        storage: Any,
    ) -> list[Any]:
        ours = isinstance(source_metadata, _ForShardwright)
        if not ours and not isinstance(source_metadata, HuggingFaceSafetensorsItemMetadata):
            self.report = None
            unhandled: list[Any] = super().load(
                source_path, item_key, target_metadata, source_metadata, target, storage
            )
            return unhandled
        _expect_local(storage)
        if not isinstance(target, Mapping):
            raise ValueError(
                f"{item_key}: expected a dict to load into, found {type(target).__name__}; pass the item's state_dict()"
            )
        if ours and source_metadata.of_trainer:
            self.report = load({item_key: target}, source_path)
        else:
            tensors = {".".join(map(str, path)): _at(target, path) for path in target_metadata}
            self.report = load(tensors, source_path, model=self.model, layout=self.layout, strict=self.strict)
        return []


def _at(container: Any, path: tuple[Any, ...]) -> torch.Tensor:
    for key in path:
        container = container[key]
    assert isinstance(container, torch.Tensor)
    return container


def _expect_local(storage: Any) -> None:
    if not isinstance(storage, LocalFileSystemStorage):
        raise ValueError(
            f"Shardwright reads files of a mounted file system: expected LocalFileSystemStorage, found "
            f"{type(storage).__name__}"
        )
