"""Loading the LoRA adapters that peft saves, straight into a trainer's tensors."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shardwright import _core
from shardwright.dcp.storage_reader import default_threads
from shardwright.describe import current_streams, spec_of_part
from shardwright.local_path import local_path
from shardwright.lora.adapter_file import AdapterFile
from shardwright.lora.config import LoraConfig
from shardwright.lora.reading import Reading, check_sense
from shardwright.lora.windows import Pair, families, weight_of
from shardwright.report import LoadReport
from shardwright.sharding import Sharding, local_part


@dataclass(frozen=True)
class LoraReport:
    """What an adapter was, and what loading it did on this rank."""

    config: LoraConfig
    scaling: Mapping[str, float]  #: weight of the trainer → what B A is multiplied by
    layout: str  #: of the model that the file is for
    param_wrapper: str | None  #: the sense of the file's ParamWrappers, None where it has none
    load: LoadReport


def pairs_of(state_dict: Mapping[str, Any], problems: list[str]) -> dict[str, Pair]:
    """The LoRA pairs among the tensors of a trainer, by the weight that they belong to."""
    found: dict[str, dict[str, str]] = {}
    for key, tensor in state_dict.items():
        place = weight_of(key) if isinstance(tensor, torch.Tensor) else None
        if place is not None:
            found.setdefault(place[1], {})[place[2]] = key
    pairs = {}
    for weight, keys in found.items():
        if len(keys) < 2:
            (letter, key), other = next(iter(keys.items())), "AB".replace(next(iter(keys)), "")
            problems.append(
                f"{key}: expected lora_{other} beside it in the state dict, found lora_{letter} only"
            )
            continue
        pair = Pair(weight, keys, {letter: tuple(state_dict[key].shape) for letter, key in keys.items()})
        if fault := pair.fault():
            problems.append(fault)
        else:
            pairs[weight] = pair
    return pairs


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
        strict: tensors of the file that the state dict has no place for are an error.

    Raises:
        FileNotFoundError, CheckpointFormatError: there is no adapter, or it breaks its format.
        PlanError: adapter and state dict do not fit; lists all that is wrong. Nothing has been written.
    """
    check_sense(param_wrapper)
    start = time.perf_counter()
    file = AdapterFile.open(Path(local_path(path)))
    catalog_seconds = time.perf_counter() - start
    start = time.perf_counter()
    problems: list[str] = []
    pairs = pairs_of(state_dict, problems)
    if not pairs and not problems:
        problems.append("the state dict has no LoRA tensors: expected names such as *.lora_A.weight")
    reading = Reading(
        file,
        {key: Sharding.of(key, state_dict[key]) for p in pairs.values() for key in p.keys.values()},
        families(model),
    )
    reading.plan(list(pairs.values()), param_wrapper, strict)
    problems += reading.problems
    specs, locals_, seen = [], [], {}
    keys_of: dict[str, set[str]] = {}  # of a tensor of the file: those of the state dict that it goes to
    for window in reading.windows:
        if window.repeats:
            continue
        seen[window.name] = list(window.seen)
        keys_of.setdefault(window.name, set()).add(window.key)
        local = local_part(state_dict[window.key])
        for offset, view in window.parts(reading.shardings[window.key], local):
            box = _core.LocalBox(offset, list(view.shape), [0] * view.dim())
            specs.append(spec_of_part(window.name, view, window.seen, [box]))
            locals_.append(view)
    reading.refuse_if(problems)
    catalog = _core.with_shapes(file.catalog, seen)
    plan = _core.plan_load(specs, catalog, _core.unchanged_names(), False, False, [])
    scaling = reading.scaling()
    plan_seconds = time.perf_counter() - start
    options = _core.LoadOptions(threads or default_threads()).after(current_streams(locals_))
    spread = [pair.keys["B"] for pair in reading.spread]
    for key in spread:
        local_part(state_dict[key]).zero_()  # off the diagonal
    try:
        report = _core.run_load(plan, catalog, specs, options, None)
    except (OSError, ValueError, RuntimeError) as error:
        names = getattr(error, "partly_written", [])
        written_to = {key for name in names for key in keys_of.get(name, ())}
        vars(error)["partly_written"] = sorted(written_to.union(spread))
        raise
    written = [state_dict[key] for pair in pairs.values() for key in pair.keys.values()]
    torch.autograd.graph.increment_version([*locals_, *written])
    return LoraReport(
        file.config,
        scaling,
        reading.layout,
        reading.sense,
        LoadReport.of(report, catalog_seconds, plan_seconds, dict(_core.roundings_of(plan, specs, catalog))),
    )
