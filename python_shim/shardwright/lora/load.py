"""Loading the LoRA adapters that peft saves, straight into a trainer's tensors."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from shardwright import _core
from shardwright.dcp.storage_reader import default_threads
from shardwright.describe import DTYPE_NAMES, current_streams
from shardwright.local_path import local_path
from shardwright.lora.config import LoraConfig
from shardwright.report import LoadReport
from shardwright.sharding import Sharding, local_part

#: What may be said of the sense of ParamWrappers.
SENSES = ("auto", "modern", "legacy")


@dataclass(frozen=True)
class LoraReport:
    """What an adapter was, and what loading it did on this rank."""

    config: LoraConfig
    scaling: Mapping[str, float]  #: weight of the trainer → what B A is multiplied by
    layout: str  #: of the model that the file is for
    param_wrapper: str | None  #: the sense of the file's ParamWrappers, None where it has none
    load: LoadReport


def check_sense(param_wrapper: str) -> None:
    if param_wrapper not in SENSES:
        raise ValueError(f"param_wrapper: expected one of {', '.join(SENSES)}, found {param_wrapper!r}")


def lora_tensors(state_dict: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The LoRA tensors among a trainer's."""
    return {
        key: value
        for key, value in state_dict.items()
        if isinstance(value, torch.Tensor) and _core.is_lora_name(key)
    }


def load_lora(
    state_dict: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    model: str = "auto",
    param_wrapper: str = "auto",
    strict: bool = True,
    threads: int | None = None,
) -> LoraReport:
    """Loads ``adapter_model.safetensors`` in the directory ``path`` into the LoRA tensors of a state dict, in place.

    Takes what peft saves for a model in transformers (experts as ParamWrappers), and adapters with a module for each
    expert, under HF's names or nemo-automodel's. Each rank calls this for itself and reads what it holds: its experts,
    its part of each tensor. Keys of the state dict that are no LoRA tensors are left alone.

    Args:
        state_dict: the trainer's names → plain tensors or DTensors in CPU memory, with or without "base_model.model."
            before them. Gate and up projections that have an A each in the file but share one here (or the other way
            round) fit a tensor of twice the rank here (there), which has both.
        model: the model family, such as "minimax_m3", or "auto": whichever one's names the file has.
        param_wrapper: the sense of ParamWrappers: "modern" (peft 0.19.1 and later), "legacy" (earlier), or "auto": by
            the shapes, and where they fit both, by the version that the adapter says it was written for.
        strict: what the file has and the state dict has no place for is an error. Experts beyond the state dict's
            always are.

    Raises:
        FileNotFoundError, CheckpointFormatError: there is no adapter, or it breaks its format.
        PlanError: adapter and state dict do not fit; lists what is wrong. Nothing has been written.
    """
    check_sense(param_wrapper)
    start = time.perf_counter()
    directory = local_path(path)
    stored = _core.read_adapter(directory)
    config, catalog = LoraConfig.of(stored, directory), stored.catalog
    catalog_seconds = time.perf_counter() - start
    start = time.perf_counter()
    tensors = lora_tensors(state_dict)
    facts, specs, locals_ = [], [], {}
    for key, tensor in tensors.items():
        sharding, local = Sharding.of(key, tensor), local_part(tensor)
        if not sharding.boxes:  # this rank holds nothing of it
            local = local.new_empty(sharding.local_shape)
        specs.append(sharding.spec(key, local))
        facts.append((key, DTYPE_NAMES[tensor.dtype], list(tensor.shape)))
        locals_[key] = local
    adapter = _core.plan_adapter(facts, specs, stored, model, param_wrapper, strict)
    plan = adapter.plan
    plan_seconds = time.perf_counter() - start
    options = _core.LoadOptions(threads or default_threads()).after(current_streams(locals_.values()))
    for key in adapter.zeroed:
        locals_[key].zero_()
    try:
        report = _core.run_load(plan, catalog, specs, options, None)
    except (OSError, ValueError, RuntimeError) as error:
        vars(error)["partly_written"] = sorted({*getattr(error, "partly_written", []), *adapter.zeroed})
        raise
    torch.autograd.graph.increment_version([*locals_.values(), *tensors.values()])
    return LoraReport(
        config,
        {weight: config.scaling_of(module, rank) for weight, module, rank in adapter.scaled},
        adapter.layout,
        adapter.sense,
        LoadReport.of(report, catalog_seconds, plan_seconds, dict(_core.roundings_of(plan, specs, catalog))),
    )
