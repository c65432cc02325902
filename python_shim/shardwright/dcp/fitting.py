"""Whether a state dict and a checkpoint of the trainer's own tensors fit, and what to do where they do not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from shardwright import _core
from shardwright.dcp.fresh_optimizer import faults_of_optimizers

#: What wrappers of a module put into the names of its parameters, and whose doing that is.
_WRAPPERS = {
    "module": "DistributedDataParallel",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}

#: Lines of a message that concern one kind of misfit; more would hide the cause.
_TOLD = 50


def expect_fit(
    flat: Mapping[str, Any], nested: Mapping[str, Any], metadata: Metadata, allow_partial_load: bool
) -> None:
    """Compares names, shapes, dtypes and kinds of a flattened state dict with what a checkpoint has.

    Raises:
        PlanError: lists all that does not fit, with what was expected and found.
    """
    stored = metadata.state_dict_metadata
    problems = [
        fault
        for fqn, value in flat.items()
        if fqn in stored and (fault := _fault_of(fqn, value, stored[fqn]))
    ]
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
        problems += [
            f"{group}: expected in the checkpoint, found nothing of that name" for group in groups[:_TOLD]
        ]
        if len(groups) > _TOLD:
            problems.append(f"and {len(names)} missing names in all")
        problems += faults_of_optimizers(nested, metadata)
        unasked = [fqn for fqn in stored if fqn not in flat]
        problems += hints_at_names(names, unasked)
        if names and not any(fqn in stored for fqn in flat) and unasked:
            shown = _core.grouped_names(unasked)
            more = ", …" if len(shown) > 3 else ""
            problems.append(f"no name is in the checkpoint, which has {', '.join(shown[:3])}{more}")
    if problems:
        where = getattr(metadata, "where", None)
        headline = f"{where}: " if where else ""
        raise _core.PlanError(
            "\n  ".join([f"{headline}the state dict and the checkpoint do not fit:", *problems])
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


# --- names ---------------------------------------------------------------------------------------------------------


def hints_at_names(missing: Collection[str], available: Iterable[str]) -> list[str]:
    """What would make names fit that do not: the prefixes of wrappers, or of where a state dict stands in another."""
    available = set(available)
    if not missing or not available:
        return []
    hints = []
    for wrapper, maker in _WRAPPERS.items():
        concerned = [name for name in missing if name != _without(name, wrapper) in available]
        if concerned:
            hints.append(
                f"{len(concerned)} names of the state dict have the prefix {wrapper}. of {maker}, and are in the "
                f"checkpoint without it: {_advice(wrapper, 'in the state dict')}"
            )
        there = {_without(name, wrapper) for name in available if _without(name, wrapper) != name}
        concerned = [name for name in missing if name in there]
        if concerned:
            hints.append(
                f"{len(concerned)} names are in the checkpoint with the prefix {wrapper}. of {maker}, which the state "
                f"dict lacks: it was saved from the wrapped module; {_advice(wrapper, 'in the checkpoint')}"
            )
    if hints:
        return hints
    all_of = [_all_stripped(name) for name in missing]
    stripped = {_all_stripped(name) for name in available}
    count = sum(name in stripped for name in all_of)
    if count and count > sum(name in available for name in missing):
        return [
            f"{count} names fit but for prefixes of wrappers ({', '.join(f'{wrapper}.' for wrapper in _WRAPPERS)}): "
            "take the state dict of the innermost module on both sides"
        ]
    return _hints_at_nesting(missing, available)


def _advice(wrapper: str, where: str) -> str:
    if where == "in the state dict":
        return (
            f"load into the wrapped module's own state dict (wrapper.{wrapper}.state_dict()), or strip it: "
            f'{{name.replace("{wrapper}.", ""): value for name, value in state_dict.items()}}'
        )
    return (
        f"load into the wrapper's state dict, or add it: "
        f'{{"{wrapper}." + name: value for name, value in state_dict.items()}}'
    )


def _without(name: str, wrapper: str) -> str:
    return ".".join(part for part in name.split(".") if part != wrapper)


def _all_stripped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _hints_at_nesting(missing: Collection[str], available: set[str]) -> list[str]:
    """Names that are there under another key, or without one: model.w for w."""
    by_depth: dict[str, int] = {}
    for name in missing:
        parts = name.split(".")
        for depth in range(1, min(len(parts), 4)):
            if ".".join(parts[depth:]) in available:
                prefix = ".".join(parts[:depth])
                by_depth[prefix] = by_depth.get(prefix, 0) + 1
    if by_depth:
        prefix, count = max(by_depth.items(), key=lambda item: item[1])
        return [
            f'{count} names are in the checkpoint without "{prefix}.": pass what is under that key, not the dict that '
            "holds it"
        ]
    under: dict[str, int] = {}
    wanted = set(missing)
    for name in available:
        parts = name.split(".")
        for depth in range(1, min(len(parts), 4)):
            if ".".join(parts[depth:]) in wanted:
                prefix = ".".join(parts[:depth])
                under[prefix] = under.get(prefix, 0) + 1
    if not under:
        return []
    prefix, count = max(under.items(), key=lambda item: item[1])
    nested = "state_dict"
    for key in reversed(prefix.split(".")):
        nested = f'{{"{key}": {nested}}}'
    return [f'{count} names are in the checkpoint under "{prefix}.": pass {nested}']


def with_hints(error: Exception, hints: Callable[[], list[str]]) -> Exception:
    """A PlanError that says more; the same one where there is no more to say."""
    lines = hints()
    return _core.PlanError("\n  ".join([str(error), *lines])) if lines else error
