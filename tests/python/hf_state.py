"""Adapters, and HF state dicts for their tests, read with the reference's own reader."""

from pathlib import Path
from types import SimpleNamespace

import reference
import torch
from reference import Stored
from shardwright.models.minimax_m3_vl.state_dict_adapter import (
    MiniMaxM3StateDictAdapter,
    MiniMaxM3VLStateDictAdapter,
)

RAW_DTYPES = reference.TORCH_DTYPES | {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}


def as_stored(stored: Stored) -> torch.Tensor:
    return reference.tensor_of(stored.raw(), RAW_DTYPES[stored.dtype])


def hf_state_dict(directory: str | Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, as it is stored."""
    return {name: as_stored(stored) for name, stored in reference.read_checkpoint(directory).items()}


def text_part(
    state_dict: dict[str, torch.Tensor], prefix: str = "language_model."
) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)
    }


def configs(experts: int = 4, mtp: int = 1) -> tuple[SimpleNamespace, SimpleNamespace]:
    """(config of the whole model, MoE config), with what the adapters look at and nothing else."""
    text = SimpleNamespace(num_mtp_modules=mtp, num_local_experts=experts)
    return SimpleNamespace(text_config=text), SimpleNamespace(n_routed_experts=experts)


def vl(experts: int = 4, mtp: int = 1, **options) -> MiniMaxM3VLStateDictAdapter:
    return MiniMaxM3VLStateDictAdapter(*configs(experts, mtp), None, **options)


def text(experts: int = 4, mtp: int = 1, **options) -> MiniMaxM3StateDictAdapter:
    config, moe_config = configs(experts, mtp)
    return MiniMaxM3StateDictAdapter(config.text_config, moe_config, None, **options)
