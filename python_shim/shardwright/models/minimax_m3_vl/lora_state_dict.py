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
from shardwright.lora.load import check_sense
from shardwright.models.minimax_m3_vl.mxfp8 import FAMILY
from shardwright.sharding import Sharding, local_part


def lora_to_hf(lora: Mapping[str, torch.Tensor], text: str) -> Iterator[tuple[str, torch.Tensor]]:
    """(HF name, tensor) of LoRA tensors of the trainer: themselves, or for a stack, a contiguous [r, in] or [out, r]
    for each expert and projection that this rank holds, where gate and up repeat their A.

    What stands before the model's own names (``base_model.model.``) is kept; ``text`` is how HF's names of the text
    part begin. Nothing for modules that no rule knows.
    """
    weight_map = _core.lora_map_of_names(list(lora), FAMILY, text)
    natives = [Native(key, tensor, Sharding.of(key, tensor)) for key, tensor in lora.items()]
    for _, name, tensor in hf_tensors(natives, weight_map):
        yield name, tensor


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
        PlanError: ranks or shapes do not fit together.
        RuntimeError: tensors of experts that this rank holds are missing.
    """
    check_sense(sense)

    def bytes_of(name: str) -> bytes:
        local = local_part(hf_state_dict[name])
        if local.is_meta:
            return b""
        data: bytes = local.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return data

    def weight_map_of(memory: Any) -> Any:
        return memory.lora_map(FAMILY, experts, intermediate, sense, bytes_of)

    return native_tensors(
        dict(hf_state_dict),
        dtype=None,
        weight_map_of=weight_map_of,
        experts=experts,
        device_mesh=device_mesh,
    ).tensors
