"""What is asked for of a hand-over, and what a trainer's rank has for it: the same for pieces and for an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shardwright.dcp.flat_state import expect_state_dict, flatten, flatten_sharded_tensors
from shardwright.dcp.save_description import describe_save
from shardwright.describe import Description, describe_weights, tied_heads
from shardwright.export_request import export_request
from shardwright.local_path import expect_flags, expect_text
from shardwright.quantization import checked_quantization


def request_of(
    quantization: str | None,
    template: Any,
    model: Any,
    layout: str,
    strict: bool,
    strict_dtypes: bool,
    quantized_weights: Sequence[str] | None,
) -> Any:
    """The export whose bits are handed over, as ``shardwright.export`` takes these arguments.

    Raises:
        ValueError: a quantization that is not known, or "template" without one.
    """
    expect_flags(strict=strict, strict_dtypes=strict_dtypes)
    expect_text("layout", layout)
    name, weights = checked_quantization(quantization, quantized_weights, has_template=template is not None)
    return export_request(template, model, layout, name, weights, strict=strict, strict_dtypes=strict_dtypes)


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
