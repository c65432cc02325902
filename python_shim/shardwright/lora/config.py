"""What of adapter_config.json, as peft writes it, decides what an adapter adds."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shardwright._core import CheckpointFormatError


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

    @classmethod
    def of(cls, adapter: Any, directory: str) -> LoraConfig:
        """Of what ``_core.read_adapter`` has read; CheckpointFormatError for patterns that are none."""
        r, alpha, use_rslora, alphas, parameters, sense = adapter.config
        for pattern, _ in alphas:
            try:
                re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as problem:
                raise CheckpointFormatError(
                    f"{os.path.join(directory, 'adapter_config.json')}: alpha_pattern {pattern!r}: expected a regular "
                    f"expression, as peft writes it, found {problem}"
                ) from None
        return cls(r, alpha, use_rslora, dict(alphas), tuple(parameters), sense or "")

    def scaling_of(self, module: str, rank: int) -> float:
        """What B A is multiplied by at a module of that rank, named as in the model (without ``base_model.model.``)."""
        alpha = self.alpha_pattern.get(_key_for(self.alpha_pattern, module), self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def _key_for(patterns: Mapping[str, Any], module: str) -> str:
    """The first pattern that fits the end of the module's name, as peft looks for it."""
    return next((key for key in patterns if re.fullmatch(rf"(.*\.)?({key})", module)), module)
