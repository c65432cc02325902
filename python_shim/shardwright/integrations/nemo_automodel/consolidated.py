"""A training's weights as a Hugging Face checkpoint, written once, from the ranks' tensors."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from nemo_automodel.components.checkpoint import checkpointing
from nemo_automodel.components.checkpoint.stateful_wrappers import ModelState

from shardwright import _core
from shardwright.dcp.run_save import run_save
from shardwright.dcp.save_planner import SavePlanner
from shardwright.dcp.storage_writer import HuggingFaceStorageWriter
from shardwright.describe import DTYPES

logger = logging.getLogger(__name__)


def save_with_consolidated(
    checkpointer: Any, model: Any, weights_path: str, tokenizer: Any, is_final_checkpoint: bool
) -> None:
    """Saves shards in ``weights_path/model``, as without consolidation, and the same weights in ``model/consolidated``.

    nemo-automodel reads its shards again for that. Here each rank writes its bytes to their place in the final files,
    which are published in one step. Names, files and dtypes are those that nemo-automodel chooses: the base
    checkpoint's, but that what this has quantized stays as it was trained.
    """
    config, group = checkpointer.config, checkpointer.process_group
    model_dir = os.path.join(weights_path, "model")
    consolidated = os.path.join(model_dir, "consolidated")
    metadata = os.path.join(model_dir, ".hf_metadata")
    checkpointing._ensure_shared_dirs(model_dir, consolidated, metadata, process_group=group)
    state = ModelState(model, cpu_offload=config.cpu_offload, pp_group=checkpointer.pp_group)
    weights = checkpointing._maybe_adapt_state_dict_to_hf(
        state.model[0],
        state.state_dict(),
        device_mesh=checkpointer.moe_mesh,
        v4_compatible=config.v4_compatible,
        legacy_paramwrapper_layout=config.legacy_paramwrapper_layout,
    )
    weights = {name: value for name, value in weights.items() if not name.endswith("_extra_state")}
    files = checkpointer._maybe_build_consolidated_index(state, weights)
    dtypes = checkpointer._maybe_build_original_dtype_mapping(state, weights)
    checkpointing._warn_if_large_inline_consolidation(config, weights, files, is_final_checkpoint)
    addon_group = checkpointer._consolidation_process_group or group
    for addon in checkpointer._addons:
        addon.pre_save(
            model_state=state,
            model_path=model_dir,
            consolidated_path=consolidated,
            hf_metadata_dir=metadata,
            tokenizer=tokenizer,
            peft_config=None,
            fqn_to_file_index_mapping=files,
            fqn_to_dtype_mapping=dtypes,
            original_model_path=checkpointer._get_original_model_path(state),
            v4_compatible=config.v4_compatible,
            legacy_paramwrapper_layout=config.legacy_paramwrapper_layout,
            process_group=addon_group,
        )
    checkpointer._maybe_write_offline_consolidation_script(model_dir)
    writer = checkpointer._get_storage_writer(None, files, dtypes, model_dir, True)
    checkpointer._do_save(weights, model_dir, writer)
    export = HuggingFaceStorageWriter(consolidated, files, layout="huggingface")
    run_save(_in_dtypes(weights, dtypes or {}), export, SavePlanner(), group, f"exporting {consolidated}")
    for addon in checkpointer._addons:
        addon.post_save(consolidated_path=consolidated, hf_metadata_path=metadata, process_group=addon_group)
    if config.diffusers_compatible and checkpointing.is_rank_0():
        checkpointing._maybe_rename_index_for_diffusers(consolidated)


def _in_dtypes(weights: dict[str, torch.Tensor], dtypes: dict[str, str]) -> dict[str, torch.Tensor]:
    """What is to be stored otherwise than it is trained, cast; to whole floats only, not to what needs scales."""
    wanted = {name: DTYPES.get(dtypes.get(name, "")) for name in weights}
    cast = {
        name: value.to(wanted[name])
        for name, value in weights.items()
        if wanted[name] in (torch.float32, torch.bfloat16, torch.float16) and value.dtype != wanted[name]
    }
    if cast and checkpointing.is_rank_0():
        kinds = sorted(f"{name}: {weights[name].dtype} -> {value.dtype}" for name, value in cast.items())
        logger.info("consolidated in the base checkpoint's dtypes: %s", "; ".join(_core.grouped_names(kinds)))
    return weights | cast
