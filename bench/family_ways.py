"""Checkpoints of other families, large enough to be timed, and nemo-automodel's ways to load them.

Ways are as in ways.py. Which family a checkpoint is of, its config.json says.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from ways import Load, touched_native


@dataclass(frozen=True)
class TimedFamily:
    """What is generated of a family, and nemo-automodel's adapter for it."""

    form: str
    config: dict[
        str, Any
    ]  #: values of config.json: between 2 and 3 GB in BF16, and runs of 4 KiB where ranks cut rows
    module: str  #: of nemo_automodel.components.models
    adapter: str
    quantization: bool
    of_adapter: dict[str, Any] = field(default_factory=dict)
    always: dict[str, Any] = field(
        default_factory=dict
    )  #: values of config.json for the small checkpoint, too


TIMED = {
    "qwen3_5_moe": TimedFamily(
        "bf16",
        {
            "vocab_size": 16000,
            "hidden_size": 4096,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_experts": 32,
            "num_hidden_layers": 4,
            "layer_types": [*["linear_attention"] * 3, "full_attention"],
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "linear_num_key_heads": 8,
            "linear_num_value_heads": 16,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
        },
        "qwen3_5_moe",
        "Qwen3_5MoeStateDictAdapter",
        quantization=False,
        of_adapter={"mtp_expert_hf_layout": "grouped"},
    ),
    "deepseek_v3": TimedFamily(
        "fp8",
        {
            "vocab_size": 4000,
            "hidden_size": 8192,
            "intermediate_size": 8192,
            "moe_intermediate_size": 512,
            "n_routed_experts": 16,
            "num_hidden_layers": 6,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "q_lora_rank": 1536,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
        },
        "deepseek_v3",
        "DeepSeekV3StateDictAdapter",
        quantization=True,
        # nemo-automodel's model has no multi-token prediction, and its adapter asks for scales of eh_proj.
        always={"num_nextn_predict_layers": 0},
    ),
}


def family_of(path: Path) -> tuple[TimedFamily, dict[str, Any]]:
    """The family of a checkpoint, and its text model's config."""
    config = json.loads((path / "config.json").read_text())
    return TIMED[config["model_type"]], config.get("text_config", config)


def adapter_of(path: Path) -> Any:
    family, text = family_of(path)
    module = importlib.import_module(f"nemo_automodel.components.models.{family.module}.state_dict_adapter")
    experts = SimpleNamespace(
        n_routed_experts=text.get("n_routed_experts", text.get("num_experts")),
        moe_inter_dim=text["moe_intermediate_size"],
        dim=text["hidden_size"],
        expert_bias=False,
        expert_activation="swiglu",
    )
    made = getattr(module, family.adapter)
    backend = SimpleNamespace(dispatcher="torch")
    return made(SimpleNamespace(**text), experts, backend, torch.bfloat16, **family.of_adapter)


def into(model: dict[str, torch.Tensor], native: dict[str, torch.Tensor]) -> None:
    for name, tensor in model.items():
        loaded = native.pop(name)
        if loaded.data_ptr() != tensor.data_ptr():
            tensor.copy_(loaded)


def nemo_automodel_dcp(path: Path, threads: int) -> Load:
    """As its Checkpointer.load_model does on several ranks: ask, dcp.load, convert, copy into the model."""
    from nemo_automodel.components.checkpoint._backports.hf_storage import _HuggingFaceStorageReader

    model, adapter = touched_native(path), adapter_of(path)
    quantization = family_of(path)[0].quantization

    def load() -> None:
        wanted = adapter.to_hf(dict(model), quantization=quantization, for_checkpoint_load=True)
        dcp.load(wanted, storage_reader=_HuggingFaceStorageReader(str(path)))
        into(model, adapter.from_hf(wanted))

    return load


def nemo_automodel_whole(path: Path, threads: int) -> Load:
    """As its Checkpointer.load_model does in one process: all of it, mapped; convert, copy into the model."""
    from nemo_automodel.components.checkpoint import checkpointing

    model, adapter = touched_native(path), adapter_of(path)

    def load() -> None:
        stored = checkpointing._load_hf_checkpoint_preserving_dtype(str(path))
        into(model, adapter.from_hf(stored))

    return load


FAMILY_WAYS: dict[str, Callable[[Path, int], Load]] = {
    "nemo-automodel, dcp.load": nemo_automodel_dcp,
    "nemo-automodel, whole state": nemo_automodel_whole,
}
