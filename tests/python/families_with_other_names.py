"""Small checkpoints of families whose trainers call tensors otherwise than the files, by torch's own operations.

Names and operations are written down from transformers 5.23 and nemo-automodel 0.7.0; tests/peers compares with those
themselves.
"""

import torch
from families import (
    EXPERTS,
    HIDDEN,
    INTER,
    VOCABULARY,
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
    random_tensor,
    renamed,
    split_experts,
    stack,
)

# --- Mixtral, MiniMax M2 ---------------------------------------------------------------------------------------------

PROJECTIONS = (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2"))


def block_sparse(generator: torch.Generator, has_bias: bool) -> Tensors:
    tensors = outside_layers(generator)
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        tensors |= attention(generator, prefix) | norms(generator, prefix)
        tensors |= named(generator, prefix + "mlp.", gate__weight=(EXPERTS, HIDDEN))
        if has_bias:
            tensors |= named(generator, prefix + "mlp.", e_score_correction_bias=(EXPERTS,))
        tensors |= split_experts(generator, prefix)
    names = [(rf"(\.experts\.\d+)\.{usual}\.", rf"\1.{theirs}.") for usual, theirs in PROJECTIONS]
    return renamed(tensors, *names, (r"\.mlp\.", ".block_sparse_moe."))


def with_usual_names(tensors: Tensors) -> Tensors:
    names = [(rf"\.{theirs}\.", f".{usual}.") for usual, theirs in PROJECTIONS]
    return renamed(tensors, (r"\.block_sparse_moe\.", ".mlp."), *names)


def minimax_m2_automodel(tensors: Tensors) -> Tensors:
    usual = renamed(with_usual_names(tensors), (r"\.mlp\.e_score", ".mlp.gate.e_score"))
    return others(usual) | grouped(usual)


def block_sparse_transformers(tensors: Tensors) -> Tensors:
    usual = with_usual_names(tensors)
    return others(usual) | fused(usual)


# --- Gemma 4 without towers ------------------------------------------------------------------------------------------


def gemma4_unified(generator: torch.Generator) -> Tensors:
    text = outside_layers(generator)
    del text["lm_head.weight"]
    prefix = "model.layers.0."
    text |= attention(generator, prefix) | norms(generator, prefix) | mlp(generator, prefix + "mlp.", 28)
    text |= named(
        generator,
        prefix,
        pre_feedforward_layernorm__weight=(HIDDEN,),
        post_feedforward_layernorm__weight=(HIDDEN,),
        layer_scalar=(1,),
    )
    return renamed(text, (r"^model\.", "model.language_model.")) | named(
        generator,
        "model.",
        vision_embedder__patch_dense__weight=(14, 27),
        vision_embedder__patch_dense__bias=(14,),
        vision_embedder__pos_embedding=(9, 2, 14),
        embed_vision__embedding_projection__weight=(HIDDEN, 14),
        embed_audio__embedding_projection__weight=(HIDDEN, 10),
    )


def gemma4_unified_trained(tensors: Tensors) -> Tensors:
    names = renamed(
        tensors,
        (r"\.embed_vision\.", ".embed_vision.multimodal_embedder."),
        (r"\.vision_embedder\.", ".embed_vision."),
    )
    return names | {"lm_head.weight": tensors["model.language_model.embed_tokens.weight"]}


# --- GLM 5 Next ------------------------------------------------------------------------------------------------------

GLM5 = "model.language_model.layers."


def glm5_next(generator: torch.Generator) -> Tensors:
    """A layer of linear attention with experts, and what is left of one of multi-token prediction."""
    text = outside_layers(generator)
    head = text.pop("lm_head.weight")
    tensors = renamed(text, (r"^model\.", "model.language_model.")) | {"lm_head.weight": head}
    prefix = GLM5 + "0."
    tensors |= norms(generator, prefix) | named(generator, GLM5 + "1.", enorm__weight=(HIDDEN,))
    tensors |= named(
        generator,
        prefix + "self_attn.",
        f_a_proj__weight=(4, HIDDEN),
        f_b_proj__weight=(12, 4),
        q_conv1d__weight=(12, 1, 4),
        k_conv1d__weight=(12, 1, 4),
        v_conv1d__weight=(12, 1, 4),
        o_proj__weight=(HIDDEN, 12),
    )
    for name, shape in (("A_log", (3,)), ("dt_bias", (12,))):
        tensors[f"{prefix}self_attn.{name}"] = random_tensor(generator, *shape)
    for site in ("attn", "ffn"):
        for name, shape in (("fn", (8, 2 * HIDDEN)), ("base", (8,)), ("scale", (3,))):
            tensors[f"{prefix}hc_{site}_{name}"] = random_tensor(generator, *shape)
    tensors |= named(generator, prefix + "mlp.", gate__weight=(EXPERTS, HIDDEN))
    tensors |= mlp(generator, prefix + "mlp.shared_experts.", 14) | split_experts(generator, prefix)
    return tensors | named(generator, "model.visual.", post_layernorm__weight=(6,))


def is_of_glm5_mtp(layout: str, name: str) -> bool:
    return layout != "huggingface" and name.startswith(GLM5 + "1.")


def trained_of_glm5(tensors: Tensors) -> Tensors:
    kept = {name: tensor for name, tensor in tensors.items() if not is_of_glm5_mtp("automodel", name)}
    return renamed(kept, (r"\.hc_(attn|ffn)_", r".\1_hc."))


def glm5_automodel(tensors: Tensors) -> Tensors:
    made = renamed(
        others(trained_of_glm5(tensors)),
        (r"_hc\.(base|scale)$", r"_hc._fp32_params.\1"),
        (r"\.(A_log|dt_bias)$", r"._fp32_params.\1"),
    )
    made = {name: tensor.float() if "_fp32_params" in name else tensor for name, tensor in made.items()}
    return made | grouped(tensors)


def glm5_transformers(tensors: Tensors) -> Tensors:
    made = renamed(
        others(trained_of_glm5(tensors)),
        (r"\.self_attn\.(A_log|dt_bias|f_a_proj|f_b_proj)", r".self_attn.forget_gate.\1"),
    )
    convolutions = [made.pop(f"{GLM5}0.self_attn.{name}_conv1d.weight") for name in "qkv"]
    made[GLM5 + "0.self_attn.conv1d.weight"] = torch.cat(convolutions)
    return made | fused(tensors)


# --- Laguna ----------------------------------------------------------------------------------------------------------


def laguna(generator: torch.Generator) -> Tensors:
    """The second layer has more heads."""
    tensors = outside_layers(generator)
    for layer, rows in enumerate((16, 24)):
        prefix = f"model.layers.{layer}."
        tensors |= attention(generator, prefix) | norms(generator, prefix)
        tensors |= named(
            generator,
            prefix + "self_attn.",
            q_proj__weight=(rows, HIDDEN),
            o_proj__weight=(HIDDEN, rows),
            g_proj__weight=(rows // 4, HIDDEN),
        )
        if layer == 0:
            tensors |= mlp(generator, prefix + "mlp.", 28)
            continue
        tensors |= split_experts(generator, prefix)
        tensors |= named(generator, prefix + "mlp.", gate__weight=(EXPERTS, HIDDEN))
        tensors |= mlp(generator, prefix + "mlp.shared_expert.", 14)
        tensors[prefix + "mlp.experts.e_score_correction_bias"] = random_tensor(generator, EXPERTS)
    return tensors


def laguna_trained(tensors: Tensors) -> Tensors:
    return renamed(
        tensors,
        (r"\.mlp\.experts\.e_score", ".mlp.gate.e_score"),
        (r"\.mlp\.shared_expert\.", ".mlp.shared_experts."),
    )


# --- MiMo V2 Flash ---------------------------------------------------------------------------------------------------


def mimo_v2_flash(generator: torch.Generator) -> Tensors:
    """The second layer has a sliding window, with twice the heads of keys and values."""
    tensors = outside_layers(generator) | named(generator, "model.mtp.layers.0.", enorm__weight=(HIDDEN,))
    for layer, heads in enumerate((2, 4)):
        prefix = f"model.layers.{layer}."
        tensors |= norms(generator, prefix)
        tensors |= named(
            generator,
            prefix + "self_attn.",
            q_proj__weight=(16, HIDDEN),
            k_proj__weight=(4 * heads, HIDDEN),
            v_proj__weight=(3 * heads, HIDDEN),
            o_proj__weight=(HIDDEN, 12),
        )
        if layer == 0:
            tensors |= mlp(generator, prefix + "mlp.", 28)
            continue
        tensors |= split_experts(generator, prefix)
        tensors |= named(generator, prefix, self_attn__attention_sink_bias=(4,))
        tensors |= named(
            generator, prefix + "mlp.gate.", weight=(EXPERTS, HIDDEN), e_score_correction_bias=(EXPERTS,)
        )
    return tensors


def without_mtp(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("model.mtp.")}


def mimo_automodel(tensors: Tensors) -> Tensors:
    return others(without_mtp(tensors)) | grouped(tensors)


def mimo_transformers(tensors: Tensors) -> Tensors:
    sinks = (r"\.attention_sink_bias$", ".sinks")
    return renamed(others(without_mtp(tensors)), sinks) | fused(tensors)


# --- Nemotron 3 ------------------------------------------------------------------------------------------------------


def nemotron_h(generator: torch.Generator) -> Tensors:
    tensors = named(
        generator,
        "",
        backbone__embeddings__weight=(VOCABULARY, HIDDEN),
        backbone__norm_f__weight=(HIDDEN,),
        lm_head__weight=(VOCABULARY, HIDDEN),
        mtp__layers__0__enorm__weight=(HIDDEN,),
        mtp__layers__0__eh_proj__weight=(HIDDEN, 2 * HIDDEN),
    )
    mamba = {
        "in_proj.weight": (30, HIDDEN),
        "conv1d.weight": (12, 1, 4),
        "A_log": (3,),
        "D": (3,),
        "dt_bias": (3,),
    }
    for name, shape in mamba.items():
        tensors["backbone.layers.0.mixer." + name] = random_tensor(generator, *shape)
    for prefix in ("backbone.layers.1.", "mtp.layers.1."):
        tensors |= named(generator, prefix, norm__weight=(HIDDEN,), mixer__gate__weight=(EXPERTS, HIDDEN))
        for expert in range(EXPERTS):
            tensors |= named(
                generator,
                f"{prefix}mixer.experts.{expert}.",
                up_proj__weight=(INTER, HIDDEN),
                down_proj__weight=(HIDDEN, INTER),
            )
    return tensors


def without_gates(tensors: Tensors, up_name: str, down_name: str, is_transposed: bool) -> Tensors:
    result = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for prefix in ("backbone.layers.1.", "mtp.layers.1."):
        for name, native in (("up", up_name), ("down", down_name)):
            stacked = stack(tensors, prefix + "mixer.experts.", name)
            whole = prefix + "mixer.experts." + native
            result[whole] = stacked.transpose(1, 2) if is_transposed else stacked
    return result


def nemotron_automodel(tensors: Tensors) -> Tensors:
    result = renamed(
        without_gates(tensors, "gate_and_up_projs", "down_projs", True),
        (r"^backbone\.embeddings\.", "model.embed_tokens."),
        (r"^backbone\.norm_f\.", "model.norm."),
        (r"^backbone\.", "model."),
        (r"\.mixer\.(A_log|D|dt_bias)$", r".mixer._fp32_params.\1"),
    )
    return {name: tensor.float() if "_fp32_params" in name else tensor for name, tensor in result.items()}


def nemotron_transformers(tensors: Tensors) -> Tensors:
    made = renamed(without_gates(tensors, "up_proj", "down_proj", False), (r"^backbone\.", "model."))
    return {name: tensor for name, tensor in made.items() if not name.startswith("mtp.")}


# ---------------------------------------------------------------------------------------------------------------------

WITH_OTHER_NAMES = [
    Family(
        "mixtral",
        "mixtral",
        {"model_type": "mixtral"},
        lambda generator: block_sparse(generator, False),
        {"transformers": block_sparse_transformers},
    ),
    Family(
        "minimax_m2",
        "minimax_m2",
        {"model_type": "minimax_m2"},
        lambda generator: block_sparse(generator, True),
        {"automodel": minimax_m2_automodel, "transformers": block_sparse_transformers},
    ),
    Family(
        "gemma4_unified, tied",
        "gemma4_unified",
        {"model_type": "gemma4_unified", "tie_word_embeddings": True},
        gemma4_unified,
        {"automodel": gemma4_unified_trained, "transformers": gemma4_unified_trained},
    ),
    Family(
        "glm5_next",
        "glm5_next",
        {"model_type": "glm5_next", "text_config": {"num_hidden_layers": 1}},
        glm5_next,
        {"automodel": glm5_automodel, "transformers": glm5_transformers},
        is_of_glm5_mtp,
    ),
    Family(
        "laguna",
        "laguna",
        {"model_type": "laguna"},
        laguna,
        {
            "automodel": lambda tensors: others(laguna_trained(tensors)) | grouped(laguna_trained(tensors)),
            "transformers": lambda tensors: others(laguna_trained(tensors)) | fused(laguna_trained(tensors)),
        },
    ),
    Family(
        "mimo_v2_flash",
        "mimo_v2_flash",
        {"model_type": "mimo_v2_flash"},
        mimo_v2_flash,
        {"automodel": mimo_automodel, "transformers": mimo_transformers},
        lambda layout, name: layout != "huggingface" and name.startswith("model.mtp."),
    ),
    Family(
        "nemotron_h",
        "nemotron_h",
        {"model_type": "nemotron_h"},
        nemotron_h,
        {"automodel": nemotron_automodel, "transformers": nemotron_transformers},
    ),
]
