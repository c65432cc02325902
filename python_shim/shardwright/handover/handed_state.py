"""What a trainer's rank has for a hand-over: the same for pieces and for an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shardwright.dcp.flat_state import expect_state_dict, flatten, flatten_sharded_tensors
from shardwright.dcp.save_description import describe_save
from shardwright.describe import Description, describe_weights, tied_heads


@dataclass
class HandedState:
    """A state dict, described to the planner."""

    description: Description
    copied_bytes: int  #: of tensors on devices without kernels, copied to CPU memory
    state: bytes  #: as ranks plan by it


def handed_state(state_dict: dict[str, Any], has_template: bool) -> HandedState:
    """Of a nested state dict. Without a template, a head that is the embedding's memory is left out.

    Raises:
        PlanError: values that are no tensors, or that cannot be described; lists them.
    """
    expect_state_dict(state_dict)
    flat, paths = flatten(state_dict)
    heads = [] if has_template else tied_heads(flat)
    flat = flatten_sharded_tensors({name: value for name, value in flat.items() if name not in heads})
    description, copied_bytes = describe_weights(flat, "cannot hand over these values:")
    return HandedState(description, copied_bytes, describe_save(flat, paths).encode())
