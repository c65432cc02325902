"""The directories that peft saves adapters in."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from shardwright import _core
from shardwright.describe import DTYPES
from shardwright.lora.config import LoraConfig, read_config
from shardwright.system_calls import has_entry, opened

WEIGHTS = "adapter_model.safetensors"


@dataclass
class AdapterFile:
    """A directory that peft saved an adapter in."""

    path: Path
    config: LoraConfig
    catalog: Any
    tensors: dict[str, Any]  #: name → SourceTensor

    @classmethod
    def open(cls, directory: Path) -> AdapterFile:
        if not has_entry(directory):
            _core.read_catalog(os.fspath(directory))  # raises, and says what the path may be
        config = read_config(directory)
        path = directory / WEIGHTS
        if not has_entry(path):
            others = [name for name in ("adapter_model.bin",) if (directory / name).is_file()]
            hint = (
                f"; {others[0]} is a pickle, which is not read: save with safe_serialization=True"
                if others
                else ""
            )
            raise FileNotFoundError(f"{path}: no such file{hint}")
        catalog = _core.read_file_catalog(os.fspath(path))
        return cls(path, config, catalog, {tensor.name: tensor for tensor in catalog.tensors})

    @property
    def where(self) -> str:
        return self.path.name

    def shape(self, name: str) -> list[int] | None:
        return list(self.tensors[name].shape) if name in self.tensors else None

    @cached_property
    def _mapped(self) -> torch.Tensor:
        size = self.catalog.files[0].size
        with opened(self.path, "rb") as file:
            return torch.frombuffer(
                mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY), dtype=torch.uint8
            )

    def raw(self, name: str) -> torch.Tensor:
        """A tensor as it is stored, of which only what is looked at is read."""
        tensor = self.tensors[name]
        size = tensor.end - tensor.begin
        if size == 0:
            return torch.empty(tensor.shape, dtype=DTYPES[tensor.dtype])
        stored = self._mapped[tensor.begin : tensor.end]
        if tensor.begin % DTYPES[tensor.dtype].itemsize:
            stored = stored.clone()
        return stored.view(DTYPES[tensor.dtype]).view(tensor.shape)
