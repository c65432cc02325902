"""Released checkpoints, quantized ones too, straight into the tensors of nemo-automodel's models."""

from __future__ import annotations

import json
import logging
from typing import Any

import torch
from nemo_automodel.components.checkpoint import checkpointing
from nemo_automodel.components.checkpoint.stateful_wrappers import ModelState

from shardwright import _core
from shardwright.catalog import catalog_of
from shardwright.loading import is_of_trainer, load
from shardwright.ranks.together import together
from shardwright.weight_maps import weight_map_for

logger = logging.getLogger(__name__)


def load_released(checkpointer: Any, parts: list[torch.nn.Module], path: str, allow_subset: bool) -> bool:
    """Loads a Hugging Face checkpoint into the base weights of a model's parts.

    Returns:
        False where this is left to nemo-automodel: no safetensors, or a family that no table of ours has, which is
        logged.

    Raises:
        PlanError: model and checkpoint do not fit; lists what is wrong. No tensor has been changed.
    """
    if (
        checkpointing.is_cloud_path(path)
        or not checkpointing._is_safetensors_checkpoint(path)
        or is_of_trainer(path)
    ):
        return False
    layout = layout_of(parts[0])
    if reason := _reason_against(parts, catalog_of(path), layout):
        logger.warning("%s: loaded by nemo-automodel itself, since %s", path, reason)
        return False
    config = checkpointer.config
    state = ModelState(
        parts,
        is_peft=config.is_peft,
        is_init_step=True,
        skip_task_head_prefixes=config.skip_task_head_prefixes_for_base_model,
    )
    weights = {name: value for name, value in state.state_dict().items() if not name.endswith("_extra_state")}
    report = together(
        checkpointer.process_group,
        f"loading {path}",
        lambda: load(weights, path, layout=layout, allow_partial_load=allow_subset),
    )
    if state.uses_tied_lm_head:
        for part in parts:
            checkpointing.ensure_tied_lm_head(part)
    if report.not_loaded:
        logger.warning("%s lacks, and left as they were: %s", path, _core.grouped_names(report.not_loaded))
    logger.info("%s: %s", path, " ".join(str(report).split()))
    return True


def _reason_against(parts: list[torch.nn.Module], catalog: Any, layout: str) -> str:
    """Why no table of ours says how the checkpoint lies in the model; empty where one does."""
    stored = json.loads(catalog.config or "{}").get("model_type")
    held = getattr(getattr(checkpointing._unwrap_ddp_model(parts[0]), "config", None), "model_type", None)
    if stored != held:
        return f"it is a {stored}, and the model a {held}, which makes something else of it"
    if any(value.dtype in (torch.uint8, torch.int8) for part in parts for value in part.parameters()):
        return "the model holds packed weights"
    try:
        weight_map_for(catalog, "auto", layout)
    except (ValueError, _core.PlanError) as unknown:
        return str(unknown)
    return ""


def layout_of(part: torch.nn.Module) -> str:
    """Whose names and shapes a model has: those that an adapter converts, Hugging Face's own, or transformers'."""
    model = checkpointing._unwrap_ddp_model(part)
    if getattr(model, "state_dict_adapter", None) is not None:
        return "automodel"
    return "huggingface" if checkpointing._is_custom_model(model) else "transformers"
