"""LoRA tensors of state dicts in memory, between the trainer's names and shapes and Hugging Face's.

Their rules are those of adapter files (planner/lora), their conversion that of any other state dict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from shardwright import _core
from shardwright.adapters.hf_to_native import native_tensors
from shardwright.adapters.native_to_hf import Native, hf_tensors
from shardwright.lora.load import check_sense, lora_tensors
from shardwright.sharding import Sharding, local_part


def lora_to_hf(
    lora: Mapping[str, torch.Tensor], family: str, text: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """(HF name, tensor) of LoRA tensors of the trainer: themselves, or for a stack, a contiguous [r, in] or [out, r]
    for each expert and projection that this rank holds, where gate and up repeat their A.

    What stands before the model's own names (``base_model.model.``) is kept; ``text`` is how HF's names of the text
    part begin. Nothing for modules that no rule knows.
    """
    if not lora:  # an imported family has none, and no table to ask for it
        return
    weight_map = _core.lora_map_of_names(list(lora), family, text)
    natives = [Native(key, tensor, Sharding.of(key, tensor)) for key, tensor in lora.items()]
    for _, name, tensor in hf_tensors(natives, weight_map):
        yield name, tensor


def lora_from_hf(
    hf_state_dict: Mapping[str, torch.Tensor],
    family: str,
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
        PlanError: ranks or shapes do not fit together.
        RuntimeError: tensors of experts that this rank holds are missing.
    """
    check_sense(sense)
    if not hf_state_dict:
        return {}

    def bytes_of(name: str) -> bytes:
        local = local_part(hf_state_dict[name])
        if local.is_meta:
            return b""
        data: bytes = local.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return data

    def weight_map_of(memory: Any) -> Any:
        return memory.lora_map(family, experts, intermediate, sense, bytes_of)

    return native_tensors(
        dict(hf_state_dict),
        dtype=None,
        weight_map_of=weight_map_of,
        experts=experts,
        device_mesh=device_mesh,
    ).tensors


#: nemo-automodel's names of the two senses of ParamWrappers.
_SENSE_OF_HINT = {"peft-0.19.1": "modern", "peft-0.18": "legacy"}


def sense_of(param_wrapper: str, hint: str | None) -> str:
    """The sense of ParamWrappers: as the caller says, else by the hint that a trainer has left on the adapter."""
    if hint is None or param_wrapper != "auto":
        return param_wrapper
    if hint not in _SENSE_OF_HINT:
        raise ValueError(f"_paramwrapper_layout_hint: expected {' or '.join(_SENSE_OF_HINT)}, found {hint!r}")
    return _SENSE_OF_HINT[hint]


def lora_in(state_dict: Mapping[str, Any], layout: str) -> dict[str, torch.Tensor]:
    """The LoRA tensors among these, HF's or the trainer's. In layouts but automodel's they are peft's own, and stay as
    they are."""
    return lora_tensors(state_dict) if layout == "automodel" else {}
