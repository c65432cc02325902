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

_LAYERS = re.compile(
    r"(n|num|encoder|decoder|.*_num|num_hidden|.*encoder|.*decoder)_?(hidden_)?layers?$|^depth$|^n_layer$"
)
_EXPERTS = re.compile(
    r"(n|num)_(routed_|local_)?experts$|moe_num_experts$|^n_routed_experts$|^num_real_experts$"
)
_SIZE = re.compile(
    r"hidden|intermediate|ffn|dim|d_model|d_ff|d_kv|embd|width|rank|channels|inner|mlp|n_inner|_size$"
)
_NO_SIZE = re.compile(
    r"num_|^n_|image|patch|kernel|vocab|window|chunk|crop|stride|position|group|token|max|sample|ratio|act|dropout|prob"
    r"|scale|factor|conv_size|grid|pool|batch|merge|downsample|dims$|block_size|^input_size|queries|temporal|type"
)


_RESNET = {
    "backbone_config": {
        "model_type": "resnet",
        "embedding_size": 16,
        "hidden_sizes": [16, 16, 32, 32],
        "depths": [1, 1, 1, 1],
        "out_features": ["stage2", "stage3", "stage4"],
    }
}
_STAGES = {"out_features": None, "out_indices": [1, 2, 3, 4]}
_INDEXER = {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 64}

#: By model_type, what a config needs beside its defaults, or that cannot be scaled with the rest.
SETTINGS: dict[str, dict[str, Any]] = {
    "aya_vision": {"vision_config": {"num_attention_heads": 4}},
    "beit": _STAGES,
    "conditional_detr": _RESNET,
    "cosmos3_edge": {"text_config": {"head_dim": 128}},
    "dinov2": {"use_swiglu_ffn": True},
    "dinov2_with_registers": {"use_swiglu_ffn": True},
    "tipsv2_vision_model": {"use_swiglu_ffn": True},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}},
    "deformable_detr": _RESNET,
    "detr": _RESNET,
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {
        "text_config": {"per_layer_config": {}, "head_dim": 12},
        "vision_config": {"per_layer_config": {}, "mlp_layer_types": ["dense", "sparse"]},
    },
    "dots3_note_text": {"per_layer_config": {}},
    "emu3": {"vq_config": {"base_channels": 32, "hidden_size": 64}, "vocabulary_map": {"<image>": 1}},
    "ernie4_5_vl_moe": {
        "text_config": {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2}
    },
    "esm": {"vocab_size": 33},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 64},
    "hunyuan_v1_moe": {"head_dim": 16},
    "hunyuan_vl": {"text_config": {"head_dim": 16}},
    "inkling_mm_model": {
        "text_config": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
        "vision_config": {"n_layers": 8, "patch_size": 8},
    },
    "kimi_k25": {"vision_config": {"hidden_size": 128, "num_attention_heads": 4}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "mimi": {"upsample_groups": 32},
    "qwen3_omni_moe": {
        "talker_config": {"spatial_merge_size": 2, "text_config": {"shared_expert_intermediate_size": 48}}
    },
    "qwen4_exp_text": {
        **_INDEXER,
        "indexer_compress_ratio": 4,
        "ple_layer_ids": [1],
        "ngram_vocab_size_base": 64,
        "split_ngram_parts": 8,
        "ple_embed_dim": 128,
        "eos_token_id": 1,
    },
    "sapiens2": {
        "out_features": None,
        "out_indices": [4],
        "head_config": {
            "upsample_out_channels": [32, 32],
            "conv_out_channels": [16],
            "scale_conv_out_channels": [8],
            "scale_final_hidden_sizes": [8, 1],
        },
    },
    "vibevoice_asr": {
        key: {"num_filters": 4, "depths": [1, 1, 1, 1, 1, 1, 1]}
        for key in ("acoustic_tokenizer_encoder_config", "semantic_tokenizer_encoder_config")
    },
}

#: Parts of models that cannot be made alone, and models that have them.
WITHIN = {
    "MaskFormerDetrDecoder": "MaskFormerModel",
    "UnlimitedOcrSamVisionEncoder": "unlimited_ocr",
    "UnlimitedOcrVisionEncoder": "unlimited_ocr",
    "dots3_note_audio_encoder": "Dots3NoteForConditionalGeneration",
    "dots3_note_vision_encoder": "Dots3NoteForConditionalGeneration",
    "qwen3_omni_moe_text": "qwen3_omni_moe_thinker",
    "step3p5_vision": "step3p7",
    "t5gemma2_encoder": "T5Gemma2ForConditionalGeneration",
}


def classes_of(name: str) -> list[Any]:
    """The classes that a key of the mapping stands for: that class, or those of the model_type."""
    name = WITHIN.get(name, name)
    found = getattr(transformers, name, None)
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return [found]
    if name not in CONFIG_MAPPING:
        return []
    tables = [table for key, table in vars(modeling_auto).items() if key.endswith("_NAMES")]
    named = []
    for table in (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        modeling_auto.MODEL_MAPPING_NAMES,
        *tables,
    ):
        entry = table.get(name, ())
        named += [entry] if isinstance(entry, str) else list(entry)
    classes = [getattr(transformers, one, None) for one in dict.fromkeys(named)]
    return [one for one in classes if isinstance(one, type) and issubclass(one, transformers.PreTrainedModel)]


def tiny_config(config_class: Any, factor: int, layers: int) -> Any:
    """The default config with sizes divided by ``factor``, that many layers and four experts."""
    small = _shrunken(config_class().to_dict(), factor, layers)
    return config_class.from_dict(_merged(small, SETTINGS.get(config_class.model_type, {})))


def _merged(settings: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(settings)
    for key, value in over.items():
        old = merged.get(key)
        goes_in = isinstance(value, dict) and isinstance(old, dict) and key != "backbone_config" and value
        merged[key] = _merged(old, value) if goes_in else value
    return merged


def _shrunken(settings: dict[str, Any], factor: int, layers: int) -> dict[str, Any]:
    counts = {value for key, value in settings.items() if _LAYERS.search(key) and isinstance(value, int)}
    small: dict[str, Any] = {}
    for key, value in settings.items():
        small[key] = _small(key, value, factor, layers, counts)
    return small


def _small(key: str, value: Any, factor: int, layers: int, counts: set[int]) -> Any:
    if isinstance(value, dict):
        return _shrunken(value, factor, layers) if "config" in key or key in ("encoder", "decoder") else value
    if isinstance(value, list) and len(value) in counts and len(value) > layers:
        return value[:layers]
    if isinstance(value, list) and _is_size(key) and all(isinstance(one, int) for one in value):
        return [_divided(one, factor) for one in value]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if key in ("pad_token_id", "blank_token_id"):
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
