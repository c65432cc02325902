"""LoRA adapters that a nemo-automodel run has saved, back into its model."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from nemo_automodel.components.checkpoint import checkpointing
from nemo_automodel.components.checkpoint.stateful_wrappers import (
    _drop_outer_prefix,
    _rename_dora_keys_from_hf,
)
from nemo_automodel.shared.parameter_names import canonical_parameter_fqn

from shardwright import _core
from shardwright.lora.load import LoraReport, load_lora
from shardwright.ranks.together import together
from shardwright.weight_maps import model_name

logger = logging.getLogger(__name__)


def load_trained_lora(checkpointer: Any, parts: list[torch.nn.Module], path: str) -> bool:
    """Loads ``adapter_model.safetensors`` into the LoRA parameters of a model's parts, each rank what it holds.

    Returns:
        False where this is left to nemo-automodel: DoRA, or a family whose adapters no table of ours has. That every
        parameter has a value in the file has been made sure of.

    Raises:
        PlanError: the adapter lacks parameters, has others, or has another rank or alpha than the model.
    """
    if checkpointing.is_cloud_path(path):
        return False
    parameters = _lora_parameters(parts)

    def run() -> bool:
        family = _family_of(parts[0])
        if family is None or _is_dora(path):
            _expect_all(checkpointer, parts[0], path, parameters)
            return False
        report = load_lora(parameters, path, model=family, strict=checkpointer.pp_group is None)
        _expect_same_scaling(parts, report, path)
        logger.info("%s: %s", path, " ".join(str(report.load).split()))
        return True

    return together(checkpointer.process_group, f"loading {path}", run)


def _lora_parameters(parts: list[torch.nn.Module]) -> dict[str, torch.Tensor]:
    return {
        canonical_parameter_fqn(name): parameter.detach()
        for part in parts
        for name, parameter in checkpointing._unwrap_ddp_model(part).named_parameters()
        if "lora_" in name and parameter.requires_grad
    }


def _family_of(part: torch.nn.Module) -> str | None:
    """The model_type, if a table has its adapters in nemo-automodel's names."""
    model = checkpointing._unwrap_ddp_model(part)
    if getattr(model, "state_dict_adapter", None) is None:
        return None
    name = model_name(model)
    try:
        _core.weight_map(_core.catalog_of_tensors([]), name, "automodel")
    except (ValueError, _core.PlanError):
        return None
    return name


def _is_dora(path: str) -> bool:
    try:
        return bool(json.loads(Path(path, "adapter_config.json").read_bytes()).get("use_dora"))
    except (FileNotFoundError, ValueError, AttributeError):
        return False  # what reads it next says what is wrong


def _expect_all(
    checkpointer: Any, part: torch.nn.Module, path: str, parameters: dict[str, torch.Tensor]
) -> None:
    """Raises unless nemo-automodel's own load would fill every parameter."""
    found = checkpointing._maybe_adapt_state_dict_from_hf(
        part,
        checkpointing._load_safetensors(checkpointing._adapter_path(path)),
        moe_mesh=checkpointer.moe_mesh,
        paramwrapper_layout_hint=checkpointing._read_paramwrapper_layout_metadata(path),
    )
    _drop_outer_prefix(found, "base_model.model.")
    _rename_dora_keys_from_hf(found)
    missing = sorted(set(parameters) - set(found))
    unexpected = [] if checkpointer.pp_group is not None else sorted(set(found) - set(parameters))
    lines = [f"{name}: the model trains it, the adapter lacks it" for name in _core.grouped_names(missing)]
    lines += [f"{name}: the adapter has it, the model does not" for name in _core.grouped_names(unexpected)]
    if lines:
        raise _core.PlanError(
            _core.in_lines(f"{path}: adapter and model do not fit; nothing has been loaded:", lines)
        )


def _expect_same_scaling(parts: list[torch.nn.Module], report: LoraReport, path: str) -> None:
    """The file's r and alpha are those that the model trains with, or it would go on with another adapter."""
    for part in parts:
        model = checkpointing._unwrap_ddp_model(part)
        for name, module in model.named_modules():
            scale = getattr(module, "scale", None)
            expected = report.scaling.get(f"{canonical_parameter_fqn(name)}.weight")
            if expected is None or not isinstance(scale, (int, float)):
                continue
            if not math.isclose(scale, expected, rel_tol=1e-9):
                raise _core.PlanError(
                    f"{path}: {name}: expected an adapter with alpha / r = {scale:g}, as the model trains with, found "
                    f"{expected:g}; set the peft config's alpha and dim to {report.config.lora_alpha:g} and "
                    f"{report.config.r}"
                )
