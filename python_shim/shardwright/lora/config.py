"""adapter_config.json, as peft writes it."""

from __future__ import annotations

import json
import math
import numbers
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardwright._core import CheckpointFormatError, PlanError
from shardwright.regular_file import read_regular
from shardwright.system_calls import has_entry

CONFIG = "adapter_config.json"

#: Far above what any has.
_MOST_BYTES = 100_000_000

#: Settings of peft that make an adapter more, or something other, than scaling · B A beside each weight; with the
#: values that leave it one.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "use_qalora": (False, None),
    "use_bdlora": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "layer_replication": (None, []),
    "megatron_config": (None,),
    "alora_invocation_tokens": (None, []),
    "velora_config": (None, {}),
    "kasa_config": (None, {}),
    "monteclora_config": (None, {}),
    "arrow_config": (None, {}),
}

#: Initialisations that change the weights beside the adapter: it fits those only, not the released ones.
_CHANGES_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class LoraConfig:
    """What of adapter_config.json decides what a LoRA adapter adds to the weights."""

    r: int
    lora_alpha: float
    use_rslora: bool = False
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    target_parameters: tuple[str, ...] = ()
    #: the sense of ParamWrappers that the writer says it has used; empty if it says nothing
    param_wrapper: str = ""

    def scaling_of(self, module: str, rank: int) -> float:
        """What B A is multiplied by at a module of that rank, named as in the model (without ``base_model.model.``)."""
        alpha = self.alpha_pattern.get(_key_for(self.alpha_pattern, module), self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def _key_for(patterns: Mapping[str, Any], module: str) -> str:
    """The first pattern that fits the end of the module's name, as peft looks for it."""
    return next((key for key in patterns if re.fullmatch(rf"(.*\.)?({key})", module)), module)


def finite_number(name: str, value: Any) -> float:
    """An int or a float, as JSON has them."""
    try:
        if isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value):
            return int(value) if isinstance(value, numbers.Integral) else float(value)
    except OverflowError:  # an int beyond all floats
        pass
    raise ValueError(f"{name}: expected a finite number, found {value!r}")


def _rank(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or value < 1:
        raise ValueError(f"r: expected a whole number above 0, found {value!r}")
    return int(value)


def _flag(name: str, value: Any) -> bool:
    if value not in (True, False, None):
        raise ValueError(f"{name}: expected true or false, found {value!r}")
    return bool(value)


def read_config(directory: Path) -> LoraConfig:
    """Raises FileNotFoundError; CheckpointFormatError for no JSON of the kind; PlanError for other than plain LoRA."""
    path = directory / CONFIG
    if not has_entry(path):
        raise FileNotFoundError(f"{path}: no such file; expected the directory that peft saved an adapter in")
    try:
        config = json.loads(_text_of(path))
        found = LoraConfig(
            r=_rank(config["r"]),
            lora_alpha=finite_number("lora_alpha", config["lora_alpha"]),
            use_rslora=_flag("use_rslora", config.get("use_rslora")),
            alpha_pattern={
                re.compile(key).pattern: finite_number(f"alpha_pattern {key}", alpha)
                for key, alpha in (config.get("alpha_pattern") or {}).items()
            },
            target_parameters=tuple(map(str, config.get("target_parameters") or ())),
            param_wrapper=_sense_written(directory, str(config.get("peft_version") or "")),
        )
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        re.error,
    ) as problem:
        if isinstance(config := _json_or_none(path), dict) and config.get("peft_type", "LORA") != "LORA":
            raise _refusal(path, "peft_type", config["peft_type"], ("LORA",)) from None
        raise CheckpointFormatError(
            f"{path}: expected a JSON object with numbers r and lora_alpha as peft writes it, found {problem!r}"
        ) from None
    for name, plain in _PLAIN.items():
        if config.get(name, plain[0]) not in plain:
            raise _refusal(path, name, config[name], plain)
    initial = config.get("init_lora_weights")
    if isinstance(initial, str) and initial.lower().startswith(_CHANGES_WEIGHTS):
        raise PlanError(
            f'{path}: "init_lora_weights" is {initial!r}, which changes the weights that the adapter is added to; '
            "expected an adapter for the released weights: save it with peft's path_initial_model_for_weight_conversion"
        )
    return found


def _sense_written(directory: Path, peft_version: str) -> str:
    """By nemo-automodel's note, or peft's."""
    stamp = _json_or_none(directory / "automodel_peft_config.json")
    layout = stamp.get("paramwrapper_layout") if isinstance(stamp, dict) else None
    if layout in ("peft-0.19.1", "peft-0.18"):
        return "modern" if layout == "peft-0.19.1" else "legacy"
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", peft_version)
    if not numbers:
        return ""
    return "modern" if tuple(int(n or 0) for n in numbers.groups()) >= (0, 19, 1) else "legacy"


def _text_of(path: Path) -> str:
    return read_regular(path, _MOST_BYTES).decode()


def _json_or_none(path: Path) -> Any:
    try:
        return json.loads(_text_of(path))
    except (FileNotFoundError, ValueError, RecursionError):  # not every error: it says how tensors lie
        return None


def _refusal(path: Path, name: str, found: Any, plain: tuple[Any, ...]) -> PlanError:
    return PlanError(
        f'{path}: "{name}" is {json.dumps(found)}; expected {json.dumps(plain[0])}, a plain LoRA adapter, as other '
        "kinds of adapters are not converted; merge it into the weights with peft, or train without it"
    )
