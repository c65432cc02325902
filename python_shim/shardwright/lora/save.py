"""Saving a trainer's LoRA tensors as an adapter that peft loads."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import torch
import torch.distributed as dist

from shardwright import _core
from shardwright.local_path import local_path
from shardwright.lora.adapter_writing import AdapterBeingWritten, Part
from shardwright.lora.config import config_text, finite_number
from shardwright.lora.windows import LAYOUTS, Pair, Place, Spelling, Window, families, weight_of
from shardwright.ranks.gathering import Known, Ranks
from shardwright.ranks.gone_ranks import ending_together
from shardwright.ranks.rank_outcome import RankOutcome
from shardwright.sharding import Sharding, local_part

#: A version of peft that has ParamWrappers in that sense.
PEFT_VERSION = {"modern": "0.19.1", "legacy": "0.19.0"}


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


@ending_together("saving an adapter")
def save_lora(
    state_dict: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    alpha: float,
    model: str = "auto",
    layout: str = "transformers",
    text_only: bool = False,
    param_wrapper: str = "modern",
    base_model: str = "",
    task_type: str | None = "CAUSAL_LM",
    use_rslora: bool = False,
    process_group: dist.ProcessGroup | None = None,
    overwrite: bool | None = None,
) -> None:
    """Writes the LoRA tensors of a state dict as ``adapter_model.safetensors`` and ``adapter_config.json`` in ``path``.

    All ranks of the process group call it; pipeline stages may have different tensors. Rank 0 writes: it is sent one
    tensor of the trainer after another, by those ranks that hold a part of it, each part once. Its memory beyond the
    state dict is one such tensor; the file is mapped.

    Gate and up projections that are one module for the model of the file (its dense MLPs, in transformers) get a pair
    of twice the rank, B block-diagonal, and twice the alpha.

    Args:
        state_dict: the trainer's names → plain tensors or DTensors; keys that are no LoRA tensors are passed over.
        alpha: of the trainer: what it adds to a weight is alpha / r · B A (alpha / √r · B A with ``use_rslora``).
        model: the model family, such as "minimax_m3", or "auto": by the names of the weights, which is an error where
            they may be several families' or none's.
        layout: of the model that the adapter is for: "transformers" (experts as ParamWrappers), "huggingface" (a module
            for each expert, under the released names), or "automodel" (the same as nemo-automodel names them).
        text_only: the model is the text model alone.
        param_wrapper: "modern" is what peft 0.19.1 and later loads, "legacy" what earlier releases do.
        base_model, task_type: base_model_name_or_path and task_type of adapter_config.json.
        overwrite: None replaces an adapter that this function has written, and refuses where another adapter is in
            ``path``. True replaces any. False replaces none.

    Raises:
        ValueError: an argument; alpha has to be a finite number.
        FileExistsError: an adapter is there that may not be replaced.
        PlanError: the tensors do not make an adapter of that layout; lists all that is wrong. Nothing has been written.
        OSError: of rank 0, on all ranks. What was there before is still there.
    """
    for name, value, values in (
        ("layout", layout, LAYOUTS),
        ("param_wrapper", param_wrapper, tuple(PEFT_VERSION)),
    ):
        if value not in values:
            raise ValueError(f"{name}: expected one of {', '.join(values)}, found {value!r}")
    options: tuple[tuple[str, Any, Any, str], ...] = (
        ("text_only", text_only, bool, "True or False"),
        ("use_rslora", use_rslora, bool, "True or False"),
        ("base_model", base_model, str, "a str"),
        ("task_type", task_type, (str, NoneType), "a str or None"),
    )
    for name, given, types, expected in options:
        if not isinstance(given, types):
            raise ValueError(f"{name}: expected {expected}, found {given!r}")
    alpha = finite_number("alpha", alpha)
    ranks = Ranks.of(process_group)
    tensors = {key: value for key, value in state_dict.items() if isinstance(value, torch.Tensor)}
    everywhere = ranks.union({key: Known.of(value) for key, value in tensors.items() if ".lora_" in key})
    problems: list[str] = []
    pairs = pairs_of({key: known.like for key, known in everywhere.items()}, problems)
    if not pairs and not problems:
        problems.append("the state dict has no LoRA tensors: expected names such as *.lora_A.weight")
    places: list[Place] = []
    if pairs:
        family = families(_core.family_of_names(model, [pair.weight for pair in pairs.values()]))[0]
        spelling = Spelling(family, layout, family.texts[min(int(text_only), len(family.texts) - 1)])
        places = _places(list(pairs.values()), spelling, problems)
    problems += [
        f"{pair.keys['A']} and {pair.keys['B']}: expected one dtype, found {everywhere[pair.keys['A']].dtype} and "
        f"{everywhere[pair.keys['B']].dtype}"
        for pair in pairs.values()
        if everywhere[pair.keys["A"]].dtype != everywhere[pair.keys["B"]].dtype
    ]
    if problems:
        raise _core.PlanError(
            "the state dict makes no LoRA adapter; nothing has been written:\n  " + "\n  ".join(problems)
        )
    legacy = param_wrapper == "legacy"
    directory = Path(local_path(path))
    file = AdapterBeingWritten(directory, overwrite)
    config = _config(places, alpha, param_wrapper, base_model, task_type, use_rslora)
    if ranks.rank == 0:
        windows = [w for place in places for w in _windows(place, range(place.pair.experts), places, legacy)]
        dtypes = {key: known.dtype for key, known in everywhere.items()}
        file.attempt(file.begin, windows, dtypes, config)
    for place in places:
        for key in place.pair.keys.values():
            parts: list[Part] | RankOutcome = []
            try:
                if key in tensors and ranks.sends(tensors[key], everywhere[key]):
                    parts = list(_parts(place, key, tensors[key], places, legacy))
            except Exception as error:  # rank 0 hears of it: all ranks take all steps together
                parts = RankOutcome(ranks.rank)
                parts.fail(error)
            for sent in ranks.gather(parts):
                file.attempt(file.write, sent)
    if ranks.rank == 0:
        file.attempt(file.publish, config)
    failure = ranks.from_first(file.failure)
    if failure is not None:
        raise failure


def _places(pairs: list[Pair], spelling: Spelling, problems: list[str]) -> list[Place]:
    places = []
    for pair in pairs:
        place = spelling.place_of(pair)
        if place is None:
            problems.append(
                f"{' and '.join(pair.keys.values())}: layout {spelling.layout!r} has no place for "
                f"{pair.weight}; expected a weight of the model"
                + (', or layout="huggingface", which has MTP' if ".mtp." in pair.weight else "")
            )
        else:
            places.append(place)
    return places


def _windows(place: Place, experts: Any, places: list[Place], legacy: bool) -> Iterator[Window]:
    wrapper = ""
    if place.parameter:
        both = sum(other.stack == place.stack for other in places if other.parameter) > 1
        wrapper = place.stack + (".base_layer" if both and place.parts > 1 else "")
    return place.windows(experts, spread=place.of > 1, wrapper=wrapper, legacy=legacy)


def _parts(place: Place, key: str, tensor: torch.Tensor, places: list[Place], legacy: bool) -> Iterator[Part]:
    """What this rank holds of a tensor, as parts of the file's."""
    sharding, local = Sharding.of(key, tensor), local_part(tensor)
    experts = [index for index, _ in sharding.held(0)] if place.pair.stacked else [0]
    for window in _windows(place, experts, places, legacy):
        if window.key == key:
            for offset, view in window.parts(sharding, local):
                yield window.name, window.seen, offset, view.to("cpu").contiguous()


def _config(
    places: list[Place],
    alpha: float,
    param_wrapper: str,
    base_model: str,
    task_type: str | None,
    use_rslora: bool,
) -> str:
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    parameters = set()
    for place in places:
        names = [place.parameter] if place.parameter else []
        for expert in range(place.pair.experts if not names else 0):
            names += [module.removeprefix(place.spelling.prefix) for module in place.modules(expert)]
        if place.parameter:
            parameters.add(place.parameter)
        for name in names:
            ranks[name] = place.file_rank(place.of > 1)
            alphas[name] = alpha * (math.sqrt(place.of) if use_rslora else place.of)
    return config_text(
        ranks,
        alphas,
        r=Counter(ranks.values()).most_common(1)[0][0],
        alpha=alpha,
        parameters=parameters,
        base_model=base_model,
        task_type=task_type,
        use_rslora=use_rslora,
        peft_version=PEFT_VERSION[param_wrapper],
    )
