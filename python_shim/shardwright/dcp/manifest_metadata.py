"""What the storage half tells a planner about a sharded checkpoint: DCP's metadata, made from a manifest."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
)

from shardwright import _core
from shardwright.dcp.lazy_metadata import LazyMetadata, StoredTensor
from shardwright.dcp.torch_metadata import fault_of_planner_data
from shardwright.describe import DTYPE_NAMES


class ShardedMetadata(LazyMetadata):
    """DCP's metadata from a manifest. Read when first asked for, and so in the planner: what ``read_metadata`` itself
    raises, ``dcp.load`` turns into an AssertionError."""

    trainers_names = True
    version = CURRENT_DCP_VERSION  # torch's word for how names are made of nested keys

    def __init__(
        self, read: Callable[[], tuple[Any, Any]], load_id: str | None = None, where: Any = None
    ) -> None:
        """``read`` returns the manifest and its catalog; ``where`` is the checkpoint, for messages."""
        self._read = read
        self.where = where
        self.storage_meta = StorageMeta(checkpoint_id=where, load_id=load_id)

    @cached_property
    def _manifest_and_catalog(self) -> tuple[Any, Any]:
        return self._read()

    @property
    def manifest(self) -> Any:
        return self._manifest_and_catalog[0]

    @property
    def catalog(self) -> Any:
        return self._manifest_and_catalog[1]

    @cached_property
    def planner_data(self) -> Any:
        data = self.manifest.planner_data
        try:
            planner_data = torch.load(io.BytesIO(data), weights_only=True) if data else None
            fault = fault_of_planner_data(planner_data)
        except Exception as error:  # damaged pickles raise anything
            fault = str(error) or type(error).__name__
        if fault:
            raise _core.CheckpointFormatError(
                f"shardwright.manifest: the planner's data cannot be read: {fault}"
            )
        return planner_data

    @cached_property
    def state_dict_metadata(self) -> dict[str, Any]:
        stored: dict[str, Any] = {}
        for number, tensor in enumerate(self.manifest.tensors):
            name, dtype, stored_as, shape, requires_grad, pin_memory, element_bytes = tensor
            properties = TensorProperties(
                dtype=_dtype_named(name, dtype, stored_as, element_bytes),
                requires_grad=requires_grad,
                pin_memory=pin_memory,
            )
            chunks_of = partial(self.manifest.chunks, number)
            stored[name] = StoredTensor(properties, torch.Size(shape), chunks_of)
        stored.update({name: BytesStorageMetadata() for name, *_ in self.manifest.objects})
        return stored

    @cached_property
    def stored_dtypes(self) -> dict[str, tuple[torch.dtype, bool]]:
        """The dtype of each tensor, and whether safetensors has it."""
        return {
            name: (_dtype_named(name, dtype, known, element_bytes), bool(known))
            for name, dtype, known, *_, element_bytes in self.manifest.tensors
        }

    @cached_property
    def objects(self) -> dict[str, tuple[str, int, int]]:
        """By name: the file that a pickle is in, where it begins and ends."""
        return {name: (file, begin, end) for name, file, begin, end in self.manifest.objects}

    @cached_property
    def storage_data(self) -> dict[MetadataIndex, _StorageInfo]:
        """Where each chunk and object lies, as torch's FileSystemReader has it."""
        data = {
            MetadataIndex(name, torch.Size(offset)): _StorageInfo(file, begin, end - begin)
            for number, (name, *_) in enumerate(self.manifest.tensors)
            for offset, _, file, begin, end in self.manifest.chunks(number)
        }
        for name, file, begin, end in self.manifest.objects:
            data[MetadataIndex(name)] = _StorageInfo(file, begin, end - begin)
        return data


def _dtype_named(tensor: str, name: str, stored_as: str, element_bytes: int) -> torch.dtype:
    """The dtype that the manifest names. It has to be the one that the file has, where safetensors has it, and of as
    many bytes as the manifest says, by which the chunks have been checked."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise _core.CheckpointFormatError(f"{tensor}: this torch has no dtype {name!r}")
    if DTYPE_NAMES.get(dtype, "") != stored_as:
        raise _core.CheckpointFormatError(
            f"{tensor}: the manifest says {name}, stored as {stored_as or 'bytes'}; expected "
            f"{DTYPE_NAMES.get(dtype, 'bytes')} for that dtype: the manifest is damaged"
        )
    if dtype.itemsize != element_bytes:
        raise _core.CheckpointFormatError(
            f"{tensor}: expected {dtype.itemsize} bytes for an element of {dtype}, found {element_bytes}; the manifest "
            "is damaged: save the checkpoint again"
        )
    return dtype
