"""Small checkpoints of more families, and what trainers hold of them, by torch's own operations.

Names and operations are written down from transformers 5.23, nemo-automodel 0.7.0 and torchtitan 0.3.0; tests/peers
compares with those themselves.
"""

import torch
from families import (
    EXPERTS,
    FAMILIES,
    HIDDEN,
    INTER,
    Family,
    Tensors,
    attention,
    fused,
    grouped,
    mlp,
    named,
    norms,
    others,
    outside_layers,
    prefixes_of_experts,
    random_tensor,
    renamed,
    split_experts,
    stack,
)
from families_with_other_names import WITH_OTHER_NAMES

DENSE_INTER = 28
MTP_LAYER = 2


def dense_layers(generator: torch.Generator) -> Tensors:
    tensors = outside_layers(generator)
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        tensors |= attention(generator, prefix) | norms(generator, prefix)
        tensors |= mlp(generator, prefix + "mlp.", DENSE_INTER)
    return tensors


TORCHTITAN = (
    (r"^model\.embed_tokens\.", "tok_embeddings."),
    (r"^model\.", ""),
    (r"\.input_layernorm\.", ".attention_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
    (r"\.self_attn\.([qkv])_proj\.", r".attention.qkv_linear.w\1."),
    (r"\.self_attn\.o_proj\.", ".attention.wo."),
    (r"\.self_attn\.", ".attention."),
    (r"\.mlp\.shared_experts\.", ".moe.shared_experts."),
    (r"\.mlp\.(gate|router)\.(weight|bias)$", r".moe.router.gate.\2"),
    (r"\.mlp\.gate\.e_score_correction_bias$", ".moe.expert_bias_E"),
    (r"\.mlp\.(?=(gate|up|down)_proj)", ".feed_forward."),
    (r"\.gate_proj\.", ".w1."),
    (r"\.up_proj\.", ".w3."),
    (r"\.down_proj\.", ".w2."),
)


def of_torchtitan(tensors: Tensors) -> Tensors:
    """Renamed, with experts stacked as they are."""
    result = renamed(others(tensors), *TORCHTITAN)
    for prefix in prefixes_of_experts(tensors):
        native = renamed(
            {prefix: torch.empty(0)}, (r"^model\.", ""), (r"\.mlp\.experts\.", ".moe.routed_experts.")
        )
        inner = next(iter(native)) + "inner_experts."
        for name, part in (("w1_EFD", "gate"), ("w3_EFD", "up"), ("w2_EDF", "down")):
            result[inner + name] = stack(tensors, prefix, part)
    return result


# --- dense: Qwen3 with a tied head, Llama 3 --------------------------------------------------------------------------


def qwen3_tied(generator: torch.Generator) -> Tensors:
    tensors = dense_layers(generator)
    del tensors["lm_head.weight"]
    return tensors


def with_head(tensors: Tensors) -> Tensors:
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}


def llama(generator: torch.Generator) -> Tensors:
    return {name: tensor for name, tensor in dense_layers(generator).items() if "_norm." not in name}


def turned_by_neighbours(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """torchtitan's rotary embedding turns rows 2 i and 2 i + 1 of a head, the file's rows i and i + half."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def llama_torchtitan(tensors: Tensors) -> Tensors:
    result = of_torchtitan(tensors)
    for name, heads in (("wq", 4), ("wk", 2)):
        for layer in range(2):
            whole = f"layers.{layer}.attention.qkv_linear.{name}.weight"
            result[whole] = turned_by_neighbours(result[whole], heads)
    return result


# --- GLM-4.5 and DeepSeek V3: a layer of multi-token prediction after the last ----------------------------------------


def mtp(generator: torch.Generator) -> Tensors:
    return named(
        generator,
        f"model.layers.{MTP_LAYER}.",
        enorm__weight=(HIDDEN,),
        hnorm__weight=(HIDDEN,),
        eh_proj__weight=(HIDDEN, 2 * HIDDEN),
        shared_head__norm__weight=(HIDDEN,),
    )


def mixture(generator: torch.Generator, prefix: str) -> Tensors:
    tensors = named(generator, prefix + "mlp.gate.", weight=(EXPERTS, HIDDEN))
    bias = random_tensor(generator, EXPERTS, dtype=torch.float32)
    tensors[prefix + "mlp.gate.e_score_correction_bias"] = bias
    tensors |= mlp(generator, prefix + "mlp.shared_experts.", INTER)
    return tensors | split_experts(generator, prefix)


def glm4_moe(generator: torch.Generator) -> Tensors:
    tensors = outside_layers(generator) | mtp(generator)
    for layer in range(MTP_LAYER + 1):
        prefix = f"model.layers.{layer}."
        tensors |= attention(generator, prefix) | norms(generator, prefix)
        tensors |= mlp(generator, prefix + "mlp.", DENSE_INTER) if layer == 0 else mixture(generator, prefix)
    return tensors


def is_of_mtp_layer(layout: str, name: str) -> bool:
    return layout == "transformers" and name.startswith(f"model.layers.{MTP_LAYER}.")


def without_mtp_layer(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not is_of_mtp_layer("transformers", name)}


def as_fp8(tensors: Tensors, generator: torch.Generator) -> Tensors:
    """Matrices of the layers in blocks of 128 x 128, the last of which may be shorter."""
    result = dict(tensors)
    for name, tensor in tensors.items():
        is_matrix = (
            tensor.dim() == 2 and ".layers." in name and "mlp.gate." not in name and "eh_proj" not in name
        )
        if is_matrix:
            grid = [-(-size // 128) for size in tensor.shape]
            result[name] = tensor.to(torch.float8_e4m3fn)
            result[name + "_scale_inv"] = torch.rand(grid, generator=generator) + 0.5
    return result


def decoded(tensors: Tensors) -> Tensors:
    """In BF16: each element times the scale of its block, rounded once."""
    result = {}
    for name, tensor in tensors.items():
        if name.endswith("_scale_inv"):
            continue
        if name + "_scale_inv" in tensors:
            rows, columns = tensor.shape
            scales = tensors[name + "_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
            tensor = (tensor.float() * scales[:rows, :columns]).to(torch.bfloat16)
        result[name] = tensor
    return result


def deepseek_v3(generator: torch.Generator) -> Tensors:
    tensors = outside_layers(generator) | mtp(generator)
    for layer in range(MTP_LAYER + 1):
        prefix = f"model.layers.{layer}."
        tensors |= named(
            generator,
            prefix + "self_attn.",
            kv_a_proj_with_mqa__weight=(14, HIDDEN),
            kv_a_layernorm__weight=(10,),
            kv_b_proj__weight=(150, 10),
            q_a_proj__weight=(140, HIDDEN),
            q_a_layernorm__weight=(140,),
            q_b_proj__weight=(18, 140),
            o_proj__weight=(HIDDEN, 12),
        )
        tensors |= norms(generator, prefix)
        tensors |= mlp(generator, prefix + "mlp.", DENSE_INTER) if layer == 0 else mixture(generator, prefix)
    return as_fp8(tensors, generator)


LATENT = (
    ("kv_a_proj_with_mqa", "wkv_a"),
    ("kv_a_layernorm", "kv_norm"),
    ("kv_b_proj", "wkv_b"),
    ("q_a_proj", "wq_a"),
    ("q_a_layernorm", "q_norm"),
    ("q_b_proj", "wq_b"),
)


def deepseek_torchtitan(tensors: Tensors) -> Tensors:
    return renamed(
        of_torchtitan(decoded(tensors)),
        *LATENT,
        (rf"^layers\.{MTP_LAYER}\.shared_head\.norm\.", "mtp_layers.0.mtp_norm."),
        (rf"^layers\.{MTP_LAYER}\.", "mtp_layers.0."),
    )


# --- gpt-oss ---------------------------------------------------------------------------------------------------------


def gpt_oss(generator: torch.Generator) -> Tensors:
    tensors = outside_layers(generator)
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        tensors |= norms(generator, prefix)
        for name, rows in (("q", 16), ("k", 8), ("v", 8)):
            tensors |= named(
                generator, f"{prefix}self_attn.{name}_proj.", weight=(rows, HIDDEN), bias=(rows,)
            )
        tensors |= named(
            generator, prefix + "self_attn.", o_proj__weight=(HIDDEN, 16), o_proj__bias=(HIDDEN,), sinks=(4,)
        )
        tensors |= named(generator, prefix + "mlp.router.", weight=(EXPERTS, HIDDEN), bias=(EXPERTS,))
        tensors |= named(
            generator,
            prefix + "mlp.experts.",
            gate_up_proj=(EXPERTS, HIDDEN, 2 * INTER),
            gate_up_proj_bias=(EXPERTS, 2 * INTER),
            down_proj=(EXPERTS, INTER, HIDDEN),
            down_proj_bias=(EXPERTS, HIDDEN),
        )
    return tensors


def gpt_oss_automodel(tensors: Tensors) -> Tensors:
    return renamed(
        tensors,
        (r"\.mlp\.router\.", ".mlp.gate."),
        (r"\.experts\.gate_up_proj$", ".experts.gate_and_up_projs"),
        (r"\.experts\.down_proj$", ".experts.down_projs"),
    )


def gpt_oss_torchtitan(tensors: Tensors) -> Tensors:
    """Matrices are [out, in], as those of the MXFP4 release."""
    turned = {
        name: tensor.transpose(1, 2)
        if name.endswith(("experts.gate_up_proj", "experts.down_proj"))
        else tensor
        for name, tensor in tensors.items()
    }
    inner = ".moe.routed_experts.inner_experts."
    return renamed(
        turned,
        (r"\.mlp\.experts\.gate_up_proj_bias$", inner + "mlp1_bias"),
        (r"\.mlp\.experts\.down_proj_bias$", inner + "mlp2_bias"),
        (r"\.mlp\.experts\.gate_up_proj$", inner + "mlp1_weight"),
        (r"\.mlp\.experts\.down_proj$", inner + "mlp2_weight"),
        *TORCHTITAN,
    )


# ---------------------------------------------------------------------------------------------------------------------

ALL = [
    *FAMILIES,
    Family(
        "qwen3, tied",
        "qwen3",
        {"model_type": "qwen3", "tie_word_embeddings": True},
        qwen3_tied,
        {
            "automodel": with_head,
            "transformers": with_head,
            "torchtitan": lambda tensors: of_torchtitan(with_head(tensors)),
        },
    ),
    Family(
        "llama",
        "llama",
        {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2},
        llama,
        {"automodel": dict, "transformers": dict, "torchtitan": llama_torchtitan},
        needs_config=True,
    ),
    Family(
        "glm4_moe",
        "glm4_moe",
        {"model_type": "glm4_moe", "num_hidden_layers": MTP_LAYER},
        glm4_moe,
        {
            "automodel": lambda tensors: others(tensors) | grouped(tensors),
            "transformers": lambda tensors: (
                others(without_mtp_layer(tensors)) | fused(without_mtp_layer(tensors))
            ),
        },
        is_of_mtp_layer,
    ),
    Family(
        "deepseek_v3, FP8",
        "deepseek_v3",
        {"model_type": "deepseek_v3", "num_hidden_layers": MTP_LAYER},
        deepseek_v3,
        {
            "automodel": lambda tensors: others(decoded(tensors)) | grouped(decoded(tensors)),
            "transformers": lambda tensors: (
                others(without_mtp_layer(decoded(tensors))) | fused(without_mtp_layer(decoded(tensors)))
            ),
            "torchtitan": deepseek_torchtitan,
        },
        is_of_mtp_layer,
        is_quantized=True,
        own=decoded,
        needs_config=True,
    ),
    Family(
        "gpt_oss",
        "gpt_oss",
        {"model_type": "gpt_oss"},
        gpt_oss,
        {"automodel": gpt_oss_automodel, "transformers": dict, "torchtitan": gpt_oss_torchtitan},
    ),
    *WITH_OTHER_NAMES,
]
