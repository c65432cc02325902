"""Saving a trainer's LoRA tensors as an adapter that peft loads."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Mapping
from types import NoneType
from typing import Any

import torch.distributed as dist

from shardwright import _core
from shardwright.dcp.flat_state import expect_state_dict
from shardwright.dcp.run_save import run_save
from shardwright.dcp.save_planner import SavePlanner
from shardwright.dcp.storage_writer import HuggingFaceStorageWriter
from shardwright.local_path import expect_flags, local_path
from shardwright.lora.load import SENSES, lora_tensors
from shardwright.ranks.together import together, words_of

#: Of the models that adapters are for.
LAYOUTS = ("transformers", "huggingface", "automodel")


class _AdapterWriter(HuggingFaceStorageWriter):
    """Writes LoRA tensors as an export, but in an adapter's two files."""

    def __init__(
        self, path: str | os.PathLike[str], adapter: Mapping[str, Any], overwrite: bool | None
    ) -> None:
        super().__init__(path, overwrite=overwrite)
        self._adapter = adapter

    def _make_request(self) -> Any:
        return _core.adapter_request(**self._adapter)


def _finite_number(name: str, value: Any) -> float:
    """An int or a float, as JSON has them."""
    try:
        if isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an int beyond all floats
        pass
    raise ValueError(f"{name}: expected a finite number, found {value!r}")


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

    All ranks of the process group call it; pipeline stages may have different tensors. It is an export: each rank
    writes its part to its place in the file, and the two files get their names when all have succeeded.

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

    Raises, the same on every rank:
        ValueError: an argument; alpha has to be a finite number.
        FileExistsError: an adapter is there that may not be replaced.
        PlanError: the tensors do not make an adapter of that layout; lists what is wrong. Nothing has been written.
        OSError: the system refuses. What was there before is still there.
    """

    def begin() -> tuple[dict[str, Any], Any]:
        expect_state_dict(state_dict)
        expect_flags(text_only=text_only, use_rslora=use_rslora)
        for name, value, values in (
            ("layout", layout, LAYOUTS),
            ("param_wrapper", param_wrapper, SENSES[1:]),
        ):
            if value not in values:
                raise ValueError(f"{name}: expected one of {', '.join(values)}, found {value!r}")
        options: tuple[tuple[str, Any, Any, str], ...] = (
            ("model", model, str, "a str"),
            ("base_model", base_model, str, "a str"),
            ("task_type", task_type, (str, NoneType), "a str or None"),
        )
        for name, given, types, expected in options:
            if not isinstance(given, types):
                raise ValueError(f"{name}: expected {expected}, found {given!r}")
        adapter = {
            "model": model,
            "layout": layout,
            "text_only": text_only,
            "sense": param_wrapper,
            "alpha": _finite_number("alpha", alpha),
            "use_rslora": use_rslora,
            "base_model": base_model,
            "task_type": task_type,
        }
        return lora_tensors(state_dict), _AdapterWriter(local_path(path), adapter, overwrite)

    alike = words_of(path=path, overwrite=overwrite)
    tensors, writer = together(process_group, "saving an adapter", begin, alike)
    run_save(tensors, writer, SavePlanner(), process_group, "saving an adapter")
