"""Which shapes the states of an optimizer have, told without taking a step."""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

#: Keys below a parameter in an optimizer's state.
Path = tuple[Any, ...]

#: Settings of torch's optimizers under which a step makes all of the states that it can make, on any device.
_ALL_STATES = {
    "lr": 0.01,
    "momentum": 0.9,
    "amsgrad": True,
    "centered": True,
    "foreach": False,
    "fused": None,
    "capturable": False,
    "differentiable": False,
}


def shapes_to_have(
    optimizer: torch.optim.Optimizer, stored: Sequence[Mapping[Path, torch.Size]]
) -> list[dict[Path, torch.Size]]:
    """By parameter, in the order of the groups: the shapes that the optimizer would give to those states that a
    checkpoint has tensors for (``stored``). Without those of which that cannot be told.

    torch's optimizers are asked, on the meta device. The code of others is not run here: of them it is only seen when
    a checkpoint has states for the parameters in another order.
    """
    optimizer = _innermost(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if isinstance(optimizer, torch.optim.LBFGS):  # which has vectors of all parameters, and numbers
        vector = torch.Size([optimizer._numel()])
        return [{path: vector for path, shape in states.items() if shape} for states in stored]
    wanted = _shapes_in_order(parameters, stored)
    if _steps_as_torchs(optimizer):
        for states, made, shapes in zip(stored, _shapes_of_first_step(optimizer), wanted, strict=True):
            shapes.update({path: made[path[0]] for path in states if len(path) == 1 and path[0] in made})
    return wanted


def _innermost(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer that a wrapper such as accelerate's has the parameters of."""
    inner = getattr(optimizer, "optimizer", None)
    if isinstance(inner, torch.optim.Optimizer) and inner.param_groups is optimizer.param_groups:
        return _innermost(inner)
    return optimizer


def _steps_as_torchs(optimizer: torch.optim.Optimizer) -> bool:
    """True where a step is code of torch's alone, whatever class is derived from its optimizer."""
    found = [getattr(type(optimizer), name, None) for name in ("step", "_init_group", "__setstate__")]
    return all(getattr(code, "__module__", "").startswith("torch.optim.") for code in found if code)


def _shapes_of_first_step(optimizer: torch.optim.Optimizer) -> list[dict[str, torch.Size]]:
    """By parameter, what a step makes. It is taken by another optimizer of the class, with one parameter on the meta
    device for each shape of a group: no memory, no hooks, and nothing of the optimizer's own is touched."""
    kind: Any = type(optimizer)
    groups, stand_ins = [], []
    for group in optimizer.param_groups:
        of_shape = {
            parameter.shape: torch.zeros(parameter.shape, dtype=parameter.dtype, device="meta")
            for parameter in group["params"]
        }
        for shape, stand_in in of_shape.items():
            stand_in.grad = (
                torch.sparse_coo_tensor(
                    size=shape, dtype=stand_in.dtype, device="meta", check_invariants=False
                )
                if issubclass(kind, torch.optim.SparseAdam)
                else torch.zeros_like(stand_in)
            )
        groups.append(
            {**group, **{name: value for name, value in _ALL_STATES.items() if name in group}}
            | {"params": list(of_shape.values())}
        )
        stand_ins += [of_shape[parameter.shape] for parameter in group["params"]]
    states: defaultdict[torch.Tensor, dict[str, Any]] = defaultdict(dict)
    other = kind.__new__(kind)
    try:
        other.__setstate__({"defaults": dict(optimizer.defaults), "state": states, "param_groups": groups})
        with torch.no_grad():
            inspect.unwrap(kind.step)(other)
    except Exception:  # meta tensors have no values to go on with; by then the states have been made
        pass
    return [
        {name: value.shape for name, value in states[stand_in].items() if isinstance(value, torch.Tensor)}
        for stand_in in stand_ins
    ]


def _shapes_in_order(
    parameters: list[torch.Tensor], stored: Sequence[Mapping[Path, torch.Size]]
) -> list[dict[Path, torch.Size]]:
    """The parameters' shapes, for states that have exactly these, but in another order."""
    wanted: list[dict[Path, torch.Size]] = [{} for _ in parameters]
    for path in {path for states in stored for path in states}:
        having = [number for number, states in enumerate(stored) if path in states]
        if Counter(stored[n][path] for n in having) == Counter(parameters[n].shape for n in having):
            for number in having:
                wanted[number][path] = parameters[number].shape
    return wanted
