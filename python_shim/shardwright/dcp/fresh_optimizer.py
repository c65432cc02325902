"""Optimizers that have taken no step yet: their state is made as the checkpoint has it, to be loaded into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor import zeros as zeros_on_mesh

from shardwright import _core
from shardwright.dcp.state_shapes import shapes_to_have


def has_optimizer_form(value: Any) -> bool:
    """True for what ``torch.optim.Optimizer.state_dict`` gives, or torch's ``get_optimizer_state_dict``."""
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("state"), Mapping)
        and isinstance(value.get("param_groups"), list)
        and all(isinstance(group, Mapping) and "params" in group for group in value["param_groups"])
    )


def parameters_named_in(state: Mapping[str, Any]) -> list[Any]:
    """The numbers, or names, that an optimizer's state dict has for its parameters."""
    return [parameter for group in state["param_groups"] for parameter in group["params"]]


def stored_states(metadata: Metadata, prefix: str) -> dict[str, dict[str, tuple[Any, ...]]]:
    """By parameter, as the checkpoint names it: FQN → keys below the parameter, of an optimizer saved at ``prefix``."""
    paths = getattr(metadata, "planner_data", None) or {}
    found: dict[str, dict[str, tuple[Any, ...]]] = {}
    start = f"{prefix}state."
    for fqn in metadata.state_dict_metadata:
        if not fqn.startswith(start):
            continue
        parameter, *keys = _below(paths.get(fqn, ()), start) or fqn[len(start) :].rsplit(".", 1)
        if keys:
            found.setdefault(str(parameter), {})[fqn] = tuple(keys)
    return found


def _below(path: tuple[Any, ...], start: str) -> tuple[Any, ...]:
    """The keys of a path that come after those that make up ``start``."""
    name = ""
    for depth, key in enumerate(path):
        if name == start:
            return path[depth:]
        name += f"{key}."
    return ()


def make_missing_state(optimizer: torch.optim.Optimizer, state: Any, metadata: Metadata, key: str) -> None:
    """Adds to an optimizer's state dict what the checkpoint has of its parameters and it has not: what an optimizer
    first makes when it takes a step. Neither the optimizer nor its parameters change; ``load_state_dict`` will take it.

    What is made has the shape that the optimizer would give it, whatever the checkpoint has: those two are compared
    with everything else, before anything is read.

    Args:
        state: what ``optimizer.state_dict()`` gave.
        key: under which the optimizer is in the state dict to load.
    """
    if not has_optimizer_form(state):
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = parameters_named_in(state)
    stored = stored_states(metadata, f"{key}.")
    if len(numbers) != len(parameters) or not all(type(number) is int for number in numbers):
        return  # a wrapper with a form of its own, which is to make its state itself
    described = metadata.state_dict_metadata
    of_parameters = [stored.get(str(number), {}) for number in numbers]
    shapes = shapes_to_have(
        optimizer,
        [
            {
                path: value.size
                for fqn, path in paths.items()
                if isinstance(value := described[fqn], TensorStorageMetadata)
            }
            for paths in of_parameters
        ],
    )
    for number, parameter, paths, wanted in zip(numbers, parameters, of_parameters, shapes, strict=True):
        own = _copied(state["state"].get(number, {}))
        for fqn, path in paths.items():
            if _add(own, path, _empty(described[fqn], parameter, wanted.get(path))):
                state["state"][number] = own


def _copied(value: Any) -> Any:
    """Containers of their own for what a state dict shares with its optimizer."""
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _add(into: Any, path: tuple[Any, ...], value: Any) -> bool:
    """Puts a value where the keys say, unless there is one; True if it has."""
    for key, following in zip(path, path[1:], strict=False):
        if isinstance(into, list):
            into += [None] * (key + 1 - len(into))
            into[key] = into[key] if into[key] is not None else [] if type(following) is int else {}
            into = into[key]
        else:
            into = into.setdefault(key, [] if type(following) is int else {})
    last = path[-1]
    if isinstance(into, list):
        into += [None] * (last + 1 - len(into))
        if into[last] is not None:
            return False
    elif last in into:
        return False
    into[last] = value
    return True


def _empty(stored: Any, parameter: torch.Tensor, shape: torch.Size | None) -> Any:
    """What a stored value of a parameter's state is loaded into; of the given shape, where that is known."""
    if not isinstance(stored, TensorStorageMetadata):
        return None
    dtype = stored.properties.dtype
    if shape is not None and shape != stored.size:
        return torch.zeros((), dtype=dtype).expand(shape)  # never loaded into: it is found not to fit
    if stored.size == parameter.shape:
        return torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
    if not isinstance(parameter, DTensor) or not stored.size:
        device = parameter.device if stored.size else "cpu"  # a count of steps; load_state_dict moves it
        return torch.zeros(stored.size, dtype=dtype, device=device)
    # A row or a column of the parameter lies as that does.
    same_rank = len(stored.size) == parameter.dim()
    placements: list[Placement] = [
        Shard(place.dim)
        if isinstance(place, Shard) and same_rank and stored.size[place.dim] == parameter.shape[place.dim]
        else Replicate()
        for place in parameter.placements
    ]
    return zeros_on_mesh(*stored.size, dtype=dtype, device_mesh=parameter.device_mesh, placements=placements)


# --- state dicts of optimizers, which cannot be added to -----------------------------------------------------------


def faults_of_optimizers(state_dict: Mapping[str, Any], metadata: Metadata) -> Iterator[str]:
    """Of each optimizer's state dict in a nested one: what the checkpoint has for it and it has no place for."""
    for prefix, state in _optimizers_in(state_dict, ""):
        yield from _faults_of(prefix, state, metadata)


def _optimizers_in(value: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    if has_optimizer_form(value):
        yield prefix, value
        return
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _optimizers_in(inner, f"{prefix}{key}.")


def _faults_of(prefix: str, state: Mapping[str, Any], metadata: Metadata) -> Iterator[str]:
    stored = stored_states(metadata, prefix)
    name = prefix.removesuffix(".") or "the optimizer"
    numbers = parameters_named_in(state)
    by_number = all(type(number) is int for number in numbers)
    own = {str(number) for number in numbers}
    groups = {
        fqn[len(prefix) :].split(".")[1] for fqn in metadata.state_dict_metadata if _is_of_group(fqn, prefix)
    }
    if by_number and groups and len(groups) != len(state["param_groups"]):
        yield (
            f"{name}: expected the {len(groups)} parameter groups that the checkpoint has, found "
            f"{len(state['param_groups'])}; make the optimizer as it was when it was saved"
        )
    beyond = [parameter for parameter in stored if parameter not in own]
    if by_number and beyond and not all(parameter.isdigit() for parameter in beyond):
        yield (
            f"{name}: the checkpoint has the state of its parameters by name ({beyond[0]}, …), the optimizer by "
            "number; load what torch.distributed.checkpoint.state_dict.get_optimizer_state_dict(model, optimizer) "
            "gives, and give it back with set_optimizer_state_dict"
        )
    elif by_number and beyond:
        numbers_beyond = _core.grouped_names([f"{prefix}state.{parameter}" for parameter in beyond])
        yield f"{', '.join(numbers_beyond)}: the checkpoint has state of parameters that the optimizer does not have"
    lacking = [
        fqn
        for parameter in numbers
        for fqn, path in stored.get(str(parameter), {}).items()
        if not _has(state["state"].get(parameter), path)
    ]
    if lacking:
        concerned = len({fqn.rsplit(".", 1)[0] for fqn in lacking})
        yield (
            f"{name}: the optimizer has no state for {concerned} of its parameters, as it has taken no step with them, "
            f"and the checkpoint has: {'; '.join(_core.grouped_names(lacking))}. Pass the optimizer itself to "
            "shardwright.load, which makes it, or what torch.distributed.checkpoint.state_dict."
            "get_optimizer_state_dict(model, optimizer) gives"
        )


def _is_of_group(fqn: str, prefix: str) -> bool:
    return fqn.startswith(f"{prefix}param_groups.") and fqn[len(prefix) :].split(".")[1].isdigit()


def _has(value: Any, path: tuple[Any, ...]) -> bool:
    for key in path:
        if isinstance(value, Mapping):
            names = {str(name): name for name in value}
            if str(key) not in names:
                return False
            value = value[names[str(key)]]
        elif isinstance(value, list) and type(key) is int and key < len(value):
            value = value[key]
        else:
            return False
    return True
