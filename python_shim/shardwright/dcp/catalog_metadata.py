"""What the storage half tells a planner about a Hugging Face checkpoint: DCP's metadata, made from a catalog."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
from torch.distributed.checkpoint._hf_utils import _HFStorageInfo
from torch.distributed.checkpoint.metadata import (
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from shardwright.dcp.lazy_metadata import LazyMetadata, StoredTensor
from shardwright.describe import DTYPES
from shardwright.local_path import beside


class CatalogMetadata(LazyMetadata):
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
        self.storage_meta = StorageMeta(load_id=load_id)

    @cached_property
    def catalog(self) -> Any:
        return self._read_catalog()

    @cached_property
    def stored(self) -> Any:
        """The catalog under the files' own names: packed weights are bytes there, as for anybody else's planner."""
        return self.catalog.as_stored()

    @property
    def where(self) -> Any:
        return self.catalog.directory

    @cached_property
    def state_dict_metadata(self) -> dict[str, TensorStorageMetadata]:
        return {
            name: StoredTensor(
                TensorProperties(dtype=_torch_dtype(name, dtype)),
                torch.Size(shape),
                partial(self.stored.chunks, name),
            )
            for name, dtype, shape in self.stored.whole_tensors
        }

    @cached_property
    def stored_dtypes(self) -> dict[str, tuple[torch.dtype, bool]]:
        """The dtype of each tensor, which safetensors has."""
        return {name: (DTYPES[dtype], True) for name, dtype, _ in self.catalog.whole_tensors}

    @cached_property
    def storage_data(self) -> dict[MetadataIndex, _HFStorageInfo]:
        files = [beside(self.stored.directory, file.name) for file in self.stored.files]
        return {
            MetadataIndex(tensor.name, torch.Size(tensor.offset)): _HFStorageInfo(
                files[tensor.file], torch.Size(tensor.shape), _torch_dtype(tensor.name, tensor.dtype)
            )
            for tensor in self.stored.tensors
        }


def _torch_dtype(name: str, dtype: str) -> torch.dtype:
    if dtype not in DTYPES:
        raise ValueError(f"{name}: torch has no dtype for {dtype}")
    return DTYPES[dtype]
