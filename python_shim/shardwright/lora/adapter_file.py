"""The directories that peft saves adapters in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardwright import _core
from shardwright.lora.config import LoraConfig, read_config
from shardwright.system_calls import has_entry

WEIGHTS = "adapter_model.safetensors"

#: Of the models that adapters are for.
LAYOUTS = ("transformers", "huggingface", "automodel")


@dataclass
class AdapterFile:
    """A directory that peft saved an adapter in."""

    path: Path
    config: LoraConfig
    catalog: Any

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
        return cls(path, config, catalog)
