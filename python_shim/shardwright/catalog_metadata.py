"""What the storage half tells a planner about a Hugging Face checkpoint: DCP's metadata, made from a catalog."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from torch.distributed.checkpoint._hf_utils import _HFStorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from shardwright.describe import DTYPES


class CatalogMetadata(Metadata):
    """DCP metadata of safetensors files, with the catalog that Shardwright's planner plans from.

    Everything is read and built when first asked for: Shardwright's planner needs the catalog alone. A checkpoint that
    cannot be read raises at that moment, which is in the planner or in ``set_up_storage_reader``: what
    ``read_metadata`` itself raises, ``dcp.load`` turns into an AssertionError.
    """

    def __init__(
        self, read_catalog: Callable[[], Any], load_id: str | None = None, trainers_names: bool = False
    ) -> None:
        self._read_catalog = read_catalog
        self.trainers_names = trainers_names  #: rather than HF names
        self.planner_data = None
        self.storage_meta = StorageMeta(load_id=load_id)

    @cached_property
    def catalog(self) -> Any:
        return self._read_catalog()

    @property
    def where(self) -> Any:
        return self.catalog.directory

    @cached_property
    def state_dict_metadata(self) -> dict[str, TensorStorageMetadata]:
        metadata = {}
        for name, group in groupby(self.catalog.tensors, key=lambda tensor: tensor.name):
            chunks = list(group)
            size = [
                max(chunk.offset[d] + chunk.shape[d] for chunk in chunks) for d in range(len(chunks[0].shape))
            ]
            metadata[name] = TensorStorageMetadata(
                TensorProperties(dtype=_torch_dtype(chunks[0])),
                torch.Size(size),
                [ChunkStorageMetadata(torch.Size(chunk.offset), torch.Size(chunk.shape)) for chunk in chunks],
            )
        return metadata

    @cached_property
    def storage_data(self) -> dict[MetadataIndex, _HFStorageInfo]:
        files = [str(self.catalog.directory / file.name) for file in self.catalog.files]
        return {
            MetadataIndex(tensor.name, torch.Size(tensor.offset)): _HFStorageInfo(
                files[tensor.file], torch.Size(tensor.shape), _torch_dtype(tensor)
            )
            for tensor in self.catalog.tensors
        }


def _torch_dtype(tensor: Any) -> torch.dtype:
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{tensor.name}: torch has no dtype for {tensor.dtype}")
    return DTYPES[tensor.dtype]
