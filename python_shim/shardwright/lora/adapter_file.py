"""The directories that peft saves adapters in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from shardwright import _core
from shardwright.lora.config import LoraConfig, read_config
from shardwright.system_calls import has_entry

WEIGHTS = "adapter_model.safetensors"


def open_adapter(directory: Path) -> tuple[LoraConfig, Any]:
    """What an adapter's two files say: its config, and the catalog of its weights.

    Raises:
        FileNotFoundError, CheckpointFormatError: there is no adapter, or it breaks its format.
    """
    if not has_entry(directory):
        _core.read_catalog(os.fspath(directory))  # raises, and says what the path may be
    config = read_config(directory)
    path = directory / WEIGHTS
    if not has_entry(path):
        pickled = directory / "adapter_model.bin"
        hint = f"; {pickled.name} is a pickle, which is not read: save with safe_serialization=True"
        raise FileNotFoundError(f"{path}: no such file{hint if pickled.is_file() else ''}")
    return config, _core.read_file_catalog(os.fspath(path))
