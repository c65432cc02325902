"""What a rank has described for a hand-over, kept for the next one: describing thousands of tensors takes ten times as
long as finding that they are what they were."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from shardwright import _core
from shardwright.dcp.flat_state import flatten
from shardwright.export_request import AskedExport
from shardwright.handover.engine import EngineTensor


class _UnlikeAll:
    """Stands for what is described anew each time."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return False


@dataclass
class KeptSide:
    """What was described, and the facts that it was described from. Owns no tensor's memory."""

    facts: Any
    side: Any  #: a RefitSide
    request: Any  #: an ExportRequest


def facts_of_side(
    state_dict: Mapping[str, Any] | None,
    engine: Sequence[EngineTensor],
    asked: AskedExport,
) -> Any:
    """Equal facts have equal descriptions, as far as a hand-over is planned and run by them."""
    weights = asked.quantized_weights
    return (
        None if state_dict is None else _facts_of_state(state_dict),
        [_facts_of_engine_tensor(tensor) for tensor in engine],
        replace(
            asked,
            template=_facts_of_template(asked.template),
            model=_facts_of_model(asked.model),
            quantized_weights=tuple(weights) if isinstance(weights, list) else weights,
        ),
    )


def _facts_of_state(state_dict: Mapping[str, Any]) -> Any:
    if not isinstance(state_dict, Mapping):
        return _UnlikeAll()
    return [(name, _facts_of_value(value)) for name, value in flatten(state_dict)[0].items()]


def _facts_of_value(value: Any) -> Any:
    """Of a tensor in CPU memory, plain or a DTensor."""
    if type(value) is DTensor:
        local = value._local_tensor
        return value._spec, value.requires_grad, _facts_of_memory(local)
    return value.requires_grad if type(value) is torch.nn.Parameter else None, _facts_of_memory(value)


def _facts_of_memory(tensor: Any) -> Any:
    is_plain = type(tensor) is torch.Tensor or type(tensor) is torch.nn.Parameter
    if (
        not is_plain
        or not tensor.is_cpu
        or tensor.layout != torch.strided
        or tensor.is_neg()
        or tensor.is_conj()
    ):
        return _UnlikeAll()
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.requires_grad


def _facts_of_engine_tensor(one: EngineTensor) -> Any:
    return one.name, tuple(one.parts), _facts_of_memory(one.tensor)


def _facts_of_template(template: Any) -> Any:
    """Of a directory the names, sizes and times of its files."""
    if template is None or isinstance(template, _core.Catalog):
        return template
    try:
        path = os.fspath(template)
        with os.scandir(path) as entries:
            files = [(entry.name, entry.stat()) for entry in entries]
    except (OSError, TypeError):  # an address, or nothing that could be told again
        return _UnlikeAll()
    return path, sorted((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in files)


def _facts_of_model(model: Any) -> Any:
    """Of a config or a model of transformers what its config says now: both can be changed in place."""
    if isinstance(model, (str, type)):
        return model, getattr(getattr(model, "config_class", None), "model_type", None)
    config = getattr(model, "config", model)
    to_dict = getattr(config, "to_dict", None)
    return (
        (type(model), type(config), getattr(config, "model_type", None), to_dict())
        if callable(to_dict)
        else _UnlikeAll()
    )
