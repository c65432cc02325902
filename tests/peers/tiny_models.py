"""Tiny random models of transformers' families, and the checkpoints that transformers stores of them.

No two sizes of a model are equal that a mix-up of dimensions could hide behind: 2 x intermediate is not hidden.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

Config = dict[str, Any]
Tensors = dict[str, torch.Tensor]

TEXT: Config = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXTURE = TEXT | {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
LOCAL = TEXT | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 16}
ROUTED: Config = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
LATENT = (
    {name: value for name, value in TEXT.items() if name != "head_dim"}
    | ROUTED
    | {
        "num_key_value_heads": 4,
        "q_lora_rank": 12,
        "kv_lora_rank": 20,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
    }
)
INDEXER: Config = {"index_topk": 8, "index_head_dim": 6, "index_n_heads": 2}
LINEAR: Config = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 6,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
SHARED: Config = {"shared_expert_intermediate_size": 20}
VISION: Config = {
    "depth": 2,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_heads": 2,
    "in_channels": 3,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 24,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}


def unchanged(tensors: Tensors) -> Tensors:
    return tensors


@dataclass(frozen=True)
class Tiny:
    """A tiny model."""

    model_type: str
    config: Config
    name: str = ""
    is_vision_model: bool = False
    released: Callable[[Tensors], Tensors] = unchanged
    """What a release holds, of what transformers stores: where its own way back is wrong."""

    @property
    def id(self) -> str:
        return self.name or self.model_type

    def make(self, seed: int = 0) -> PreTrainedModel:
        """A model all of whose tensors are random: buffers, norms and biases, too."""
        config = AutoConfig.for_model(self.model_type, **self.config)
        auto = AutoModelForImageTextToText if self.is_vision_model else AutoModelForCausalLM
        model = auto.from_config(config, dtype=torch.bfloat16)
        fill(model.state_dict(), seed)
        return model

    def write(self, path: Path, seed: int = 0) -> PreTrainedModel:
        """Stores such a model as it would be released."""
        model = self.make(seed)
        model.save_pretrained(path)
        if self.released is not unchanged:
            save_file(self.released(held(path)), path / "model.safetensors", metadata={"format": "pt"})
        return model


def fill(tensors: Tensors, seed: int) -> None:
    """Random numbers for every tensor, those of tied tensors the same."""
    generator = torch.Generator().manual_seed(seed)
    for _, tensor in sorted(tensors.items()):
        if tensor.dtype.is_floating_point:
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        else:
            tensor.copy_(torch.randint(0, 3, tensor.shape, generator=generator))


def held(path: Path) -> Tensors:
    """What the files of a checkpoint hold, read by safetensors."""
    tensors = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return tensors


def renamed(*pairs: tuple[str, str]) -> Callable[[Tensors], Tensors]:
    def rename(tensors: Tensors) -> Tensors:
        result = {}
        for name, tensor in tensors.items():
            for pattern, replacement in pairs:
                name = re.sub(pattern, replacement, name)
            result[name] = tensor
        return result

    return rename


def with_experts_turned(tensors: Tensors) -> Tensors:
    return {
        name: tensor.transpose(1, 2).contiguous() if ".mlp.experts." in name else tensor
        for name, tensor in tensors.items()
    }


SQUARE = MIXTURE | {"hidden_size": 32}
KIMI_K25 = {
    "text_config": LATENT | {"model_type": "deepseek_v3"},
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 4,
        "pos_emb_height": 4,
        "pos_emb_width": 4,
    },
    "projection_hidden_size": 16,
    "tie_word_embeddings": False,
}
PIXTRAL = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 8,
    "patch_size": 4,
    "image_size": 16,
}
MINISTRAL = {
    "text_config": TEXT | {"model_type": "ministral3", "tie_word_embeddings": False},
    "vision_config": PIXTRAL | {"model_type": "pixtral"},
    "tie_word_embeddings": False,
}
GEMMA4 = TEXT | {
    "hidden_size_per_layer_input": 0,
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
}

GEMMA4_UNIFIED = TEXT | {
    "layer_types": ["sliding_attention", "full_attention"],
    "global_head_dim": 12,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
}
KIMI_LINEAR = LATENT | {
    "num_experts": 4,
    "linear_attn_config": {
        "full_attn_layers": [2],
        "kda_layers": [1],
        "head_dim": 8,
        "num_heads": 3,
        "short_conv_kernel_size": 4,
    },
}
DEEPSEEK_V4 = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 16,
    "q_lora_rank": 12,
    "o_lora_rank": 10,
    "o_groups": 2,
    "qk_rope_head_dim": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "index_head_dim": 6,
    "index_n_heads": 2,
}

TINY = [
    Tiny("qwen3_moe", MIXTURE),
    Tiny("qwen3_moe", MIXTURE | {"mlp_only_layers": [0]}, "qwen3_moe, a dense layer"),
    Tiny("qwen2", TEXT | {"tie_word_embeddings": True}, "qwen2, tied"),
    Tiny("qwen2", TEXT | {"tie_word_embeddings": False}),
    Tiny("qwen3", TEXT | {"tie_word_embeddings": True}, "qwen3, tied"),
    Tiny("qwen3", TEXT | {"tie_word_embeddings": False}),
    Tiny("qwen3_5_text", TEXT | LINEAR),
    Tiny("qwen3_5", {"text_config": TEXT | LINEAR, "vision_config": VISION}, is_vision_model=True),
    Tiny("qwen3_5_moe_text", MIXTURE | LINEAR | SHARED),
    Tiny(
        "qwen3_5_moe",
        {"text_config": MIXTURE | LINEAR | SHARED, "vision_config": VISION},
        is_vision_model=True,
    ),
    Tiny("glm4_moe", TEXT | ROUTED | {"use_qk_norm": True, "attention_bias": True}),
    Tiny("glm4_moe_lite", LATENT),
    Tiny("glm_moe_dsa", LATENT | INDEXER),
    Tiny(
        "glm5_next",
        {
            "text_config": LATENT
            | INDEXER
            | {
                "qk_rope_head_dim": 0,
                "layer_types": ["linear_attention", "indexed_attention"],
                "mlp_layer_types": ["dense", "sparse"],
                "indexer_types": ["full", "full"],
                "linear_head_dim": 8,
                "linear_num_heads": 3,
                "index_kpool": 4,
                "hc_mult": 2,
            },
            "vision_config": VISION | {"depth": 1, "projection_intermediate_size": 28},
        },
        is_vision_model=True,
    ),
    Tiny("gpt_oss", LOCAL),
    Tiny("deepseek_v3", LATENT),
    Tiny("deepseek_v3", LATENT | {"q_lora_rank": None}, "deepseek_v3, queries of full rank"),
    Tiny("deepseek_v32", LATENT | INDEXER),
    Tiny("kimi_k25", KIMI_K25, "kimi_k25, as transformers stores it", is_vision_model=True),
    Tiny(
        "kimi_k25",
        KIMI_K25,
        is_vision_model=True,
        released=renamed(
            (r"^language_model\.model\.blocks\.", "language_model.model.layers."),
            (r"^vision_tower\.encoder\.patch_embed\.", "vision_tower.patch_embed."),
            (r"^model\.mm_projector\.", "mm_projector."),
        ),
    ),
    Tiny("llama", TEXT),
    Tiny("mistral", TEXT),
    Tiny("ministral3", TEXT),
    Tiny(
        "nemotron_h",
        TEXT
        | {
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "moe", "attention", "moe"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 6,
            "ssm_state_size": 8,
            "n_groups": 2,
            "conv_kernel": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "moe_shared_expert_intermediate_size": 20,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    Tiny("gemma4_text", GEMMA4),
    Tiny(
        "gemma4",
        {
            "text_config": GEMMA4,
            "vision_config": {
                "hidden_size": 12,
                "intermediate_size": 20,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 6,
                "patch_size": 4,
                "position_embedding_size": 16,
            },
            "audio_config": None,
        },
        is_vision_model=True,
    ),
    Tiny("gemma4_unified_text", GEMMA4_UNIFIED),
    Tiny(
        "gemma4_unified",
        {
            "text_config": GEMMA4_UNIFIED,
            "vision_config": {
                "patch_size": 2,
                "pooling_kernel_size": 3,
                "mm_embed_dim": 14,
                "mm_posemb_size": 9,
                "output_proj_dims": 14,
            },
            "audio_config": {"audio_embed_dim": 10},
        },
        is_vision_model=True,
    ),
    Tiny("minimax_m2", LOCAL),
    Tiny("mixtral", LOCAL),
    Tiny(
        "mistral3",
        {
            "text_config": LATENT | {"model_type": "mistral4"},
            "vision_config": PIXTRAL | {"model_type": "pixtral"},
        },
        is_vision_model=True,
    ),
    Tiny("mistral3", MINISTRAL, "mistral3, dense", is_vision_model=True),
    Tiny(
        "mistral3",
        MINISTRAL,
        "mistral3, dense, names of the modules",
        is_vision_model=True,
        released=renamed(
            (r"^language_model\.model\.", "model.language_model."),
            (r"^language_model\.lm_head\.", "lm_head."),
            (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
        ),
    ),
    Tiny("qwen3_next", MIXTURE | LINEAR | SHARED),
    Tiny("qwen3_vl_moe", {"text_config": MIXTURE, "vision_config": VISION}, is_vision_model=True),
    Tiny(
        "qwen3_vl_moe",
        {"text_config": MIXTURE, "vision_config": VISION},
        "qwen3_vl_moe, as released",
        is_vision_model=True,
        released=with_experts_turned,
    ),
    Tiny(
        "qwen3_vl_moe",
        {"text_config": SQUARE, "vision_config": VISION | {"out_hidden_size": 32}},
        "qwen3_vl_moe, 2 intermediate is hidden",
        is_vision_model=True,
    ),
    Tiny("qwen3_vl", {"text_config": TEXT, "vision_config": VISION}, is_vision_model=True),
    Tiny("ernie4_5", TEXT),
    Tiny(
        "ernie4_5_moe",
        TEXT
        | {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 16,
            "moe_num_shared_experts": 1,
            "moe_layer_start_index": 1,
        },
    ),
    Tiny(
        "step3p7",
        {
            "text_config": TEXT
            | {
                "moe_intermediate_size": 16,
                "n_routed_experts": 4,
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "share_expert_dim": 20,
                "mlp_layer_types": ["dense", "sparse"],
                "layer_types": ["full_attention", "full_attention"],
            },
            "vision_config": {
                "hidden_size": 12,
                "intermediate_size": 20,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "patch_size": 4,
                "image_size": 16,
            },
        },
        is_vision_model=True,
    ),
    Tiny("hunyuan_v1_dense", TEXT),
    Tiny("hunyuan_v1_moe", TEXT | {"num_experts": 4, "moe_topk": 2, "intermediate_size": 16}),
    Tiny("hy_v3", MIXTURE | {"num_shared_experts": 1, "first_k_dense_replace": 1}),
    Tiny("kimi_linear", KIMI_LINEAR, "kimi_linear, as transformers stores it"),
    Tiny(
        "kimi_linear",
        KIMI_LINEAR,
        released=renamed((r"block_sparse_moe\.(gate|up|down)_proj", r"mlp.\1_proj")),
    ),
    Tiny("laguna", MIXTURE | SHARED | {"num_attention_heads_per_layer": [4, 6]}),
    Tiny(
        "mimo_v2_flash",
        TEXT
        | {
            "moe_intermediate_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "v_head_dim": 6,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    Tiny("deepseek_v4", DEEPSEEK_V4, "deepseek_v4, as transformers stores it"),
    Tiny(
        "deepseek_v4",
        DEEPSEEK_V4,
        released=renamed(
            (r"^model\.embed_tokens\.", "embed."),
            (r"^model\.hc_head\.hc_", "hc_head_"),
            (r"^model\.", ""),
        ),
    ),
]
