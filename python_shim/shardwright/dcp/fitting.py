"""Whether a state dict and a checkpoint of the trainer's own tensors fit, and what to do where they do not."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from shardwright import _core
from shardwright.dcp.fresh_optimizer import faults_of_optimizers
from shardwright.local_path import shown

#: Lines of a message that concern one kind of misfit; more would hide the cause.
_TOLD = 50


def expect_fit(
    flat: Mapping[str, Any], nested: Mapping[str, Any], metadata: Metadata, allow_partial_load: bool
) -> None:
    """Compares names, shapes, dtypes and kinds of a flattened state dict with what a checkpoint has.

    Raises:
        PlanError: lists what does not fit, with what was expected and found.
    """
    stored = metadata.state_dict_metadata
    problems = [
        fault
        for fqn, value in flat.items()
        if fqn in stored and (fault := _fault_of(fqn, value, stored[fqn]))
    ]
    kinds = ["Size mismatch"] if any(": expected shape" in problem for problem in problems) else []
    if len(problems) > _TOLD:
        problems[_TOLD:] = [f"and {len(problems) - _TOLD} more that differ in shape, dtype or kind"]
    if not allow_partial_load:
        missing = [fqn for fqn in flat if fqn not in stored]
        modules = [fqn for fqn in missing if hasattr(flat[fqn], "state_dict")]
        problems += [
            f"{fqn}: found a {type(flat[fqn]).__name__} in place of its state dict; pass its state_dict(), or the "
            "object itself at the top of the state dict"
            for fqn in modules
        ]
        names = [fqn for fqn in missing if fqn not in modules]
        groups = _core.grouped_names(names)
        kinds += ["Missing key in checkpoint state_dict"] if groups else []
        problems += [
            f"{group}: expected in the checkpoint, found nothing of that name" for group in groups[:_TOLD]
        ]
        if len(groups) > _TOLD:
            problems.append(f"and {len(names)} missing names in all")
        problems += faults_of_optimizers(nested, metadata)
        unasked = [fqn for fqn in stored if fqn not in flat]
        problems += _core.hints_at_names(names, unasked)
        if names and not any(fqn in stored for fqn in flat) and unasked:
            others = _core.grouped_names(unasked)
            more = ", …" if len(others) > 3 else ""
            problems.append(f"no name is in the checkpoint, which has {', '.join(others[:3])}{more}")
    if problems:
        where = getattr(metadata, "where", None)
        headline = f"{shown(where)}: " if where else ""
        words = f" ({', '.join(kinds)})" if kinds else ""  # torch's, for who looks for them
        raise _core.PlanError(
            "\n  ".join([f"{headline}the state dict and the checkpoint do not fit{words}:", *problems])
        )


def is_tensor(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, ShardedTensor)) or hasattr(value, "__create_chunk_list__")


def _fault_of(fqn: str, value: Any, stored: Any) -> str:
    """What is wrong with one value; empty if it fits."""
    if not isinstance(stored, TensorStorageMetadata):
        if is_tensor(value):
            return (
                f"{fqn}: expected a tensor in the checkpoint, for the trainer's {_text(value.dtype)} "
                f"{list(value.size())}, found an object that is none; pass any object there, or save a tensor"
            )
        return ""
    dtype = stored.properties.dtype
    if not is_tensor(value):
        return (
            f"{fqn}: the checkpoint has a tensor, {_text(dtype)} {list(stored.size)}, found {_kind(value)} in the "
            "state dict; pass a tensor to load into"
        )
    if tuple(stored.size) != tuple(value.size()):
        return f"{fqn}: expected shape {list(value.size())}, as the trainer has it, found {list(stored.size)}"
    if not _casts(dtype, value.dtype):
        return f"{fqn}: expected a dtype that can be cast to the trainer's {_text(value.dtype)}, found {_text(dtype)}"
    return ""


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


@cache
def _casts(dtype: torch.dtype, to: torch.dtype) -> bool:
    """Whether torch casts so, and to what means the same: a complex number is no real one."""
    if dtype == to:
        return True
    if dtype.is_complex and not to.is_complex:
        return False
    try:
        torch.zeros(1, dtype=torch.uint8).expand(dtype.itemsize).contiguous().view(dtype).to(to)
    except (RuntimeError, TypeError):  # which is how torch says that it has none
        return False
    return True


def with_hints(error: Exception, hints: list[str]) -> Exception:
    """A PlanError that says more; the same one where there is no more to say."""
    return _core.PlanError(_core.in_lines(str(error), hints)) if hints else error
