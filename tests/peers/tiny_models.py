"""Small models of transformers, of any class: its config's own defaults, scaled down."""

import contextlib
import re
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

#: Elements that a model may have at most.
LARGEST = 30_000_000

_LAYERS = re.compile(r"(n|num|encoder|decoder|.*_num|num_hidden|.*encoder|.*decoder)_?(hidden_)?layers?$|^depth$|^n_layer$")
_EXPERTS = re.compile(r"(n|num)_(routed_|local_)?experts$|moe_num_experts$|^n_routed_experts$|^num_real_experts$")
_SIZE = re.compile(
    r"hidden|intermediate|ffn|dim|d_model|d_ff|d_kv|embd|width|rank|channels|inner|mlp|n_inner|_size$"
)
_NO_SIZE = re.compile(
    r"num_|^n_|image|patch|kernel|vocab|window|chunk|crop|stride|position|group|token|max|sample|ratio|act|dropout|prob"
    r"|scale|factor|conv_size|grid|pool|batch|merge|downsample|dims$|block_size|input_size|queries|temporal|type"
)


def classes_of(name: str) -> list[Any]:
    """The classes that a key of the mapping stands for: that class, or those of the model_type, those with heads first."""
    found = getattr(transformers, name, None)
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return [found]
    if name not in CONFIG_MAPPING:
        return []
    tables = [table for key, table in vars(modeling_auto).items() if key.endswith("_NAMES")]
    named = []
    for table in (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
                  modeling_auto.MODEL_MAPPING_NAMES, *tables):
        entry = table.get(name, ())
        named += [entry] if isinstance(entry, str) else list(entry)
    classes = [getattr(transformers, one, None) for one in dict.fromkeys(named)]
    return [one for one in classes if isinstance(one, type) and issubclass(one, transformers.PreTrainedModel)]


def tiny_config(config_class: Any, factor: int, layers: int) -> Any:
    """The default config with sizes divided by ``factor``, that many layers and four experts."""
    return config_class.from_dict(_shrunken(config_class().to_dict(), factor, layers))


def _shrunken(settings: dict[str, Any], factor: int, layers: int) -> dict[str, Any]:
    counts = {value for key, value in settings.items() if _LAYERS.search(key) and isinstance(value, int)}
    small: dict[str, Any] = {}
    for key, value in settings.items():
        small[key] = _small(key, value, factor, layers, counts)
    return small


def _small(key: str, value: Any, factor: int, layers: int, counts: set[int]) -> Any:
    if isinstance(value, dict):
        return _shrunken(value, factor, layers) if "config" in key else value
    if isinstance(value, list) and len(value) in counts and len(value) > layers:
        return value[:layers]
    if isinstance(value, list) and _is_size(key) and all(isinstance(one, int) for one in value):
        return [_divided(one, factor) for one in value]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if key == "pad_token_id":
        return 0
    if "vocab_size" in key:
        return min(value, 320)
    if _LAYERS.search(key):
        return min(value, layers)
    if _EXPERTS.search(key):
        return min(value, 4)
    if key in ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"):
        return min(value, 2)
    if key in ("n_group", "topk_group", "num_expert_group", "first_k_dense_replace", "num_dense_layers"):
        return min(value, 1)
    return _divided(value, factor) if _is_size(key) else value


def _is_size(key: str) -> bool:
    return bool(_SIZE.search(key)) and not _NO_SIZE.search(key)


def _divided(value: int, factor: int) -> int:
    return value // factor if value % factor == 0 and value >= 2 * factor else value


def on_meta(model_class: Any, config: Any) -> Any:
    with contextlib.ExitStack() as contexts:
        for context in model_class.get_init_context(torch.float32, False, False, None):
            contexts.enter_context(context)
        return model_class(config)


def tiny_model(model_class: Any) -> Any:
    """The smallest model of the class, on the meta device, that its config can be shrunk to.

    Raises ValueError with the reasons where none can be made.
    """
    reasons = []
    for factor in (16, 8, 4, 32, 2, 1):
        for layers in (4, 2, 999):
            try:
                model = on_meta(model_class, tiny_config(model_class.config_class, factor, layers))
            except Exception as error:
                text = " ".join(str(error).split())
                reasons.append(f"1/{factor}, {layers} layers: {type(error).__name__}: {text[:160]}")
                continue
            elements = sum(tensor.numel() for tensor in model.state_dict().values())
            if elements <= LARGEST:
                return model
            reasons.append(f"1/{factor}, {layers} layers: {elements:,} elements, {LARGEST:,} are the most")
    raise ValueError("; ".join(reasons))
