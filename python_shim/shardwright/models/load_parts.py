"""A quantized checkpoint through a state-dict adapter in bounded parts, as nemo-automodel takes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from nemo_automodel.components.checkpoint.state_dict_adapter import CheckpointLoadPart

from shardwright.sharding import local_part

#: What begins the names of a layer.
_LAYER = re.compile(r".*?\.\d+\.")


def load_parts(
    adapter: Any, model_state_dict: dict[str, Any], checkpoint: Any
) -> Iterator[CheckpointLoadPart]:
    """A quantized checkpoint in parts, each of one layer, or of all that is of no layer.

    What is stored as the model has it is read into the model's memory. What is decoded needs room for the layer as it
    is stored, on each rank for what it holds, until the part is finished.

    Args:
        checkpoint: a directory or a storage reader, which says what is quantized; None: the adapter's rule of names.
    """
    by_layer: dict[str, dict[str, Any]] = {}
    for name, value in model_state_dict.items():
        layer = _LAYER.match(name)
        by_layer.setdefault(layer.group() if layer else "", {})[name] = value
    for natives in by_layer.values():
        yield _part(adapter, natives, checkpoint)


def _part(adapter: Any, natives: dict[str, Any], checkpoint: Any) -> CheckpointLoadPart:
    stored = adapter.to_hf(natives, quantization=True, for_checkpoint_load=True, checkpoint=checkpoint)
    memory = {_memory_of(value) for value in natives.values()}

    def finish() -> None:
        for name, value in adapter.from_hf(stored).items():
            if value is not natives[name]:
                local_part(natives[name]).copy_(local_part(value))
        stored.clear()

    return CheckpointLoadPart(
        stored,
        frozenset(natives),
        frozenset(name for name, value in stored.items() if _memory_of(value) not in memory),
        finish,
    )


def _memory_of(tensor: torch.Tensor) -> int:
    return int(local_part(tensor).untyped_storage().data_ptr())
