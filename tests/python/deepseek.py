"""Checkpoints of a family that no table of ours knows: names, dtypes and blocks of DeepSeek V3 as it was released."""

import math
from pathlib import Path

import numpy as np
from checkpoints import Tensor, Tensors, random_tensor, write_checkpoint


def finite_fp8(rng: np.random.Generator, rows: int, columns: int) -> Tensor:
    """FP8 numbers without NaN."""
    codes = rng.integers(0, 256, (rows, columns), dtype=np.uint8)
    return Tensor("F8_E4M3", (rows, columns), np.where(codes & 0x7F == 0x7F, 0, codes).tobytes())


def made_up_deepseek(
    *, hidden: int = 200, inter: int = 136, rank: int = 150, experts: int = 2, seed: int = 0
) -> Tensors:
    rng = np.random.default_rng(seed)
    tensors: Tensors = {}

    def scaled(name: str, rows: int, columns: int) -> None:
        tensors[name] = finite_fp8(rng, rows, columns)
        blocks = math.ceil(rows / 128), math.ceil(columns / 128)
        scales = np.exp(rng.normal(-3, 1, blocks)).astype(np.float32)
        tensors[name + "_scale_inv"] = Tensor("F32", blocks, scales.tobytes())

    tensors["model.embed_tokens.weight"] = random_tensor(rng, "BF16", (64, hidden))
    for layer in range(2):
        at = f"model.layers.{layer}"
        tensors[f"{at}.input_layernorm.weight"] = random_tensor(rng, "BF16", (hidden,))
        scaled(f"{at}.self_attn.q_a_proj.weight", rank, hidden)
        tensors[f"{at}.self_attn.q_a_layernorm.weight"] = random_tensor(rng, "BF16", (rank,))
        scaled(f"{at}.self_attn.q_b_proj.weight", hidden, rank)
        scaled(f"{at}.self_attn.kv_a_proj_with_mqa.weight", 80, hidden)
        if layer == 0:
            for name, shape in (
                ("gate_proj", (inter, hidden)),
                ("up_proj", (inter, hidden)),
                ("down_proj", (hidden, inter)),
            ):
                scaled(f"{at}.mlp.{name}.weight", *shape)
            continue
        tensors[f"{at}.mlp.gate.weight"] = random_tensor(rng, "BF16", (experts, hidden))
        tensors[f"{at}.mlp.gate.e_score_correction_bias"] = random_tensor(rng, "F32", (experts,))
        for expert in range(experts):
            scaled(f"{at}.mlp.experts.{expert}.gate_proj.weight", inter, hidden)
            scaled(f"{at}.mlp.experts.{expert}.down_proj.weight", hidden, inter)
    tensors["lm_head.weight"] = random_tensor(rng, "BF16", (64, hidden))
    return tensors


CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "quantization_config": {"fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]},
}


def write_deepseek(directory: Path, **sizes: int) -> Path:
    return write_checkpoint(directory, made_up_deepseek(**sizes), config=CONFIG)
