"""LoRA tensors of state dicts in memory, between the trainer's names and shapes and Hugging Face's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from shardwright import _core
from shardwright.adapters.hf_to_native import on_expert_mesh
from shardwright.lora.config import LoraConfig
from shardwright.lora.reading import Reading, check_sense
from shardwright.lora.windows import (
    PEFT_PREFIX,
    Pair,
    Spelling,
    Window,
    families,
    projection_names,
    weight_of,
)
from shardwright.models.minimax_m3_vl.mxfp8 import FAMILY
from shardwright.sharding import Sharding, local_part, sharding_of_part, sharding_of_whole

_M3 = families(FAMILY)[0]
_TEXTS = _M3.texts

_FACTOR = re.compile(r"(.*)\.lora_([AB])\.weight")
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)")
_WRAPPER = re.compile(r"(.*\.experts)(\.base_layer)?")


# --- to HF -----------------------------------------------------------------------------------------------------------


def lora_to_hf(key: str, tensor: torch.Tensor, text: str) -> Iterator[tuple[str, torch.Tensor]]:
    """(HF name, tensor) of a LoRA tensor of the trainer: itself, or for a stack, a contiguous [r, in] or [out, r] for
    each expert and projection that this rank holds, where gate and up repeat their A.

    What stands before the model's own names (``base_model.model.``) is kept; ``text`` is how HF's names of the text
    part begin. Nothing if no rule knows the module.
    """
    found = weight_of(key)
    assert found is not None
    prefix, weight, letter = found
    pair = Pair.of_one(weight, letter, key, tuple(tensor.shape))
    place = Spelling(_M3, "automodel", text, prefix).place_of(pair)
    if place is None:
        return
    sharding, local = Sharding.of(key, tensor), local_part(tensor)
    if not pair.stacked:
        yield f"{place.modules(0)[0]}.lora_{letter}.weight", tensor
        return
    if fault := pair.fault():
        raise ValueError(fault)
    index_of = dict(sharding.held(0))
    for window in place.windows(index_of, spread=False):
        if window.key != key:
            continue
        lies = sharding_of_part(key, sharding, window.native_size, window.axes, window.shape)
        view = window.view(sharding, local, index_of)
        yield window.name, lies.wrap(view.contiguous())


# --- from HF ---------------------------------------------------------------------------------------------------------


@dataclass
class _Source:
    """An HF state dict, as :class:`shardwright.lora.load.Reading` sees an adapter file."""

    tensors: Mapping[str, torch.Tensor]
    path: str = "in HF's names"
    where: str = "the state dict"
    config: LoraConfig = field(default_factory=lambda: LoraConfig(r=1, lora_alpha=1))

    def shape(self, name: str) -> list[int] | None:
        return list(self.tensors[name].shape) if name in self.tensors else None

    def raw(self, name: str) -> torch.Tensor:
        return local_part(self.tensors[name])


@dataclass
class _Brought:
    """What an HF state dict brings for one weight of the trainer."""

    prefix: str
    stacked: bool = False
    parts: int = 1  #: that the weight joins
    of: int = 1  #: weights of the trainer that one HF tensor joins
    names: dict[str, str] = field(default_factory=dict)  #: the HF tensors that tell the shapes of A and B
    experts: set[int] = field(default_factory=set)  #: of which there is something; empty for ParamWrappers


def lora_from_hf(
    hf_state_dict: Mapping[str, torch.Tensor],
    *,
    experts: int,
    intermediate: int | None,
    sense: str,
    device_mesh: DeviceMesh | None,
) -> dict[str, torch.Tensor]:
    """The trainer's LoRA tensors of HF's: module by module, or ParamWrappers, in any of the spellings that
    ``shardwright.load_lora`` reads. ``base_model.model.`` is kept. Tensors are new, but for those that only get another
    name.

    All experts of a stack give plain tensors of all of them; only those that ``device_mesh`` gives this rank, DTensors.

    Args:
        experts: over all ranks; -1: as many as there are.
        intermediate: width of an expert, None if it is not known.
        sense: "modern", "legacy" or "auto", as in ``shardwright.load_lora``.

    Raises:
        PlanError: ranks or shapes do not fit together, or tensors of experts that this rank holds are missing.
    """
    check_sense(sense)
    brought: dict[str, _Brought] = {}
    native: dict[str, torch.Tensor] = {}
    for name, tensor in hf_state_dict.items():
        for weight, letter, one in _what_is(name, hf_state_dict, intermediate):
            mine = brought.setdefault(weight, one)
            mine.names.setdefault(letter, name)
            mine.experts |= one.experts
            if not one.stacked and one.of == 1:
                native[one.prefix + _native_key(weight, letter)] = tensor
    joined = {weight: one for weight, one in brought.items() if one.stacked or one.of > 1}
    sense = _sense_of(joined, hf_state_dict, intermediate, sense)
    pairs: list[Pair] = []
    shardings: dict[str, Sharding] = {}
    problems: list[str] = []
    like: dict[str, torch.Tensor] = {}
    for weight, one in joined.items():
        if lacking := set("AB") - one.names.keys():
            name = next(iter(one.names.values()))
            problems.append(f"{weight}: {name}: expected lora_{lacking.pop()} beside it, found none")
            continue
        pair = _pair_of(weight, one, hf_state_dict, experts, sense)
        pairs.append(pair)
        for letter, key in pair.keys.items():
            shardings[key] = _sharding_of(pair, letter, one, hf_state_dict, device_mesh)
            like[key] = local_part(hf_state_dict[one.names[letter]])
    reading = Reading(_Source(hf_state_dict), shardings, (_M3,), prefixes=("", PEFT_PREFIX))
    reading.plan(pairs, sense, strict=False)
    reading.refuse_if(problems + reading.problems)
    for key, sharding in shardings.items():
        native[key] = sharding.empty(like[key].dtype, like[key].device)
    for window in reading.windows:
        if not window.repeats:
            _copy(window, hf_state_dict[window.name], native[window.key], shardings[window.key])
    return native


def _copy(window: Window, source: torch.Tensor, target: torch.Tensor, sharding: Sharding) -> None:
    if isinstance(source, DTensor):  # lies as its part of the target does
        held = window.view(sharding, local_part(target), dict(sharding.held(0)))
        held.copy_(local_part(source))
        return
    seen = source.reshape(window.seen)
    for offset, view in window.parts(sharding, local_part(target)):
        box = tuple(slice(at, at + count) for at, count in zip(offset, view.shape, strict=True))
        view.copy_(seen[box])


def _native_key(weight: str, letter: str) -> str:
    if weight.endswith(".weight"):
        return f"{weight.removesuffix('.weight')}.lora_{letter}.weight"
    path, _, projections = weight.rpartition(".")
    return f"{path}.lora_{projections.removesuffix('_projs')}_{letter}"


def _is_down(shapes: list[tuple[int, ...]], intermediate: int | None) -> bool:
    """True if a lone wrapper's features are those of down projections, to or from an expert's width."""
    if intermediate is None or len(shapes) < 2:
        raise _core.PlanError(
            "a ParamWrapper of the experts without an inner one may be of gate_up_proj or of down_proj; expected "
            "a model whose config tells the width of its experts (moe_config.moe_inter_dim)"
        )
    return intermediate in (shapes[0][-1], shapes[1][0])


def _what_is(
    name: str, tensors: Mapping[str, Any], intermediate: int | None
) -> Iterator[tuple[str, str, _Brought]]:
    """(weight of the trainer, "A" or "B", what of it) for each weight that an HF tensor is for."""
    factor = _FACTOR.fullmatch(name)
    if factor is None:
        return
    module, letter = factor.groups()
    prefix = PEFT_PREFIX if module.startswith(PEFT_PREFIX) else ""
    module = module.removeprefix(prefix)
    if wrapper := _WRAPPER.fullmatch(module):
        stack = "gate_and_up_projs"
        if not wrapper[2]:  # the outer one: of the second parameter, or of the only one that has a wrapper
            names = [
                f"{prefix}{module}{inner}.lora_{x}.weight" for inner in (".base_layer", "") for x in "AB"
            ]
            shapes = [tuple(tensors[other].shape) for other in names[2:] if other in tensors]
            if any(other in tensors for other in names[:2]) or _is_down(shapes, intermediate):
                stack = "down_projs"
        yield f"{_native_path(wrapper[1])}.{stack}", letter, _Brought(prefix, True)
    elif single := _EXPERT.fullmatch(module):
        weight, parts = _of_expert(*single.groups())
        yield weight, letter, _Brought(prefix, True, parts, experts={int(single[2])})
    else:
        weights = _of_module(module + ".weight")
        for weight in weights:
            yield weight, letter, _Brought(prefix, of=len(weights))


def _native_path(module: str) -> str:
    """The trainer's name of a module that HF or transformers have under the same name after that of the text part."""
    for text in ("model.language_model.", *_TEXTS):
        if module.startswith(text):
            return "model." + module.removeprefix(text)
    raise AssertionError(module)


def _in_vl_checkpoint(name: str) -> str:
    """An HF name as a VL checkpoint has it."""
    if name.startswith(("language_model.", "vision_tower.", "multi_modal_projector.", "patch_merge_mlp.")):
        return name
    return _TEXTS[0] + name.removeprefix("model.")


def _of_expert(path: str, expert: str, projection: str) -> tuple[str, int]:
    """(weight of the trainer, how many HF tensors it joins) of an expert's projection, in HF's words or ours."""
    for stack in ("gate_and_up_projs", "down_projs"):
        if projection in projection_names(stack):
            return f"{_native_path(path)}.{stack}", len(projection_names(stack))
    name = f"{path}.{expert}.{projection}.weight"
    place = _core.native_place(_M3.names, _in_vl_checkpoint(name))
    if place is None or place[1] < 0:
        raise _core.PlanError(f"{name}: no rule knows this expert's projection; expected one of M3's")
    return place[0], len(_core.hf_names_of(_M3.names, place[0]))


def _of_module(name: str) -> list[str]:
    """The weights of the trainer that a module's weight is, as HF or transformers name it."""
    names = []
    if not name.startswith(_TEXTS[0]):
        text = _TEXTS[0] if name.startswith("model.language_model.") else _TEXTS[1]
        names = _core.hf_names_of(Spelling(_M3, "transformers", text).weight_map, name)
    places = [_core.native_place(_M3.names, _in_vl_checkpoint(hf)) for hf in names or [name]]
    return [place[0] for place in places if place] or [name]


def _sense_of(
    brought: Mapping[str, _Brought], tensors: Mapping[str, Any], intermediate: int | None, sense: str
) -> str:
    """The sense of the ParamWrappers, by what they say of the width of an expert."""
    fits = {"modern", "legacy"}
    wrapped = {
        weight: (tensors[one.names["A"]].shape[1], tensors[one.names["B"]].shape[0])
        for weight, one in brought.items()
        if one.stacked and not one.experts and len(one.names) == 2
    }
    for weight, (of_a, of_b) in wrapped.items():
        width, modern, legacy = intermediate, of_a, of_b
        if weight.endswith(".gate_and_up_projs"):
            width, modern, legacy = width and 2 * width, of_b, of_a
        elif width is None:
            other = wrapped.get(weight.removesuffix("down_projs") + "gate_and_up_projs")
            if other:
                fits &= {
                    s
                    for s, w, both in (("modern", of_a, other[1]), ("legacy", of_b, other[0]))
                    if 2 * w == both
                }
        if width is not None:
            fits &= {s for s, found in (("modern", modern), ("legacy", legacy)) if found == width}
    if not wrapped or (sense != "auto" and sense in fits):
        return sense
    names = " and ".join(brought[next(iter(wrapped))].names.values())
    shapes = list(next(iter(wrapped.values())))
    if len(fits) == 1 and sense == "auto":
        return next(iter(fits))
    if len(fits) == 2:
        raise _core.PlanError(
            f"{names}: the shapes, of {shapes} features, fit both senses of a ParamWrapper; pass "
            'param_wrapper="modern" if peft 0.19.1 or later wrote them, param_wrapper="legacy" if an earlier one did'
        )
    raise _core.PlanError(
        f"{names}: expected ParamWrappers in the sense {sense!r} for experts of width {intermediate}, found {shapes} "
        f"features, which fit {' '.join(fits) or 'none'}"
    )


def _pair_of(weight: str, one: _Brought, tensors: Mapping[str, Any], experts: int, sense: str) -> Pair:
    a, b = (tuple(tensors[one.names[letter]].shape) for letter in "AB")
    if len(a) != 2 or len(b) != 2:
        raise _core.PlanError(
            f"{' and '.join(one.names.values())}: expected matrices, found shapes {list(a)} and {list(b)}"
        )
    keys = {letter: one.prefix + _native_key(weight, letter) for letter in "AB"}
    if not one.stacked:
        return Pair(weight, keys, {"A": a, "B": (b[0] // one.of, b[1])})
    if one.experts:
        count = experts if experts >= 0 else max(one.experts) + 1
        return Pair(weight, keys, {"A": (count, a[1], a[0]), "B": (count, a[0], one.parts * b[0])})
    if experts <= 0 or a[0] % experts:
        raise _core.PlanError(
            f"{one.names['A']}: expected a multiple of the model's {experts} experts as its rows, found {list(a)}"
        )
    inputs, outputs = (b[0], a[1]) if sense == "legacy" else (a[1], b[0])
    return Pair(
        weight, keys, {"A": (experts, inputs, a[0] // experts), "B": (experts, a[0] // experts, outputs)}
    )


def _sharding_of(
    pair: Pair, letter: str, one: _Brought, tensors: Mapping[str, Any], device_mesh: DeviceMesh | None
) -> Sharding:
    shape, source = pair.shapes[letter], Sharding.of(one.names[letter], tensors[one.names[letter]])
    if not one.experts:
        return Sharding(shape)
    everything = len(one.experts) == pair.experts and source.mesh is None
    if device_mesh is not None and not everything:
        held = SimpleNamespace(fqn=pair.keys[letter], shape=shape, experts=sorted(one.experts), axes=(2, 1))
        return on_expert_mesh(held, source, device_mesh, pair.experts)
    joined = 2 if letter == "B" and one.parts > 1 else -1
    return sharding_of_whole(pair.keys[letter], shape, source, (2, 1), joined)
