"""Writes checkpoints for the tests: any safetensors file, right or wrong, and made-up models of M3's kind."""

import json
import math
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from reference import ITEM_BYTES

INDEX = "model.safetensors.index.json"


@dataclass
class Tensor:
    """A tensor to write: its bytes need not fit its shape, a test may want them not to."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


Tensors = dict[str, Tensor]


def random_tensor(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """Any bits at all, so that subnormals, infinities and NaN come up."""
    return Tensor(dtype, shape, rng.bytes(math.prod(shape) * ITEM_BYTES[dtype]))


def random_scales(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """Any bits of those that loads take: not the byte 255 of e8m0, nor a negative number, an infinity or a NaN."""
    scales = random_tensor(rng, dtype, shape)
    if dtype in ("U8", "F8_E8M0"):
        return replace(scales, data=scales.data.replace(b"\xff", b"\xfe"))
    kind, most = {"BF16": (np.uint16, 0x7F7F), "F32": (np.uint32, 0x7F7FFFFF)}[dtype]
    bits = np.frombuffer(scales.data, kind) & (np.iinfo(kind).max >> 1)
    return replace(scales, data=np.minimum(bits, most).astype(kind).tobytes())


def header_of(tensors: Tensors) -> dict[str, dict]:
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + len(tensor.data)
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    return header


def file_of(header: dict | str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header, as it is given, and this length field."""
    text = json.dumps(header) if isinstance(header, dict) else header
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def write_safetensors(path: Path, tensors: Tensors) -> None:
    path.write_bytes(file_of(header_of(tensors), b"".join(tensor.data for tensor in tensors.values())))


def write_checkpoint(
    directory: Path, tensors: Tensors, *, files: int = 2, index: bool = True, config: dict | None = None
) -> Path:
    """Deals the tensors out to `files` files."""
    directory.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    weight_map = {}
    for number in range(files):
        file = f"model-{number + 1:05}-of-{files:05}.safetensors"
        part = {name: tensors[name] for name in names[number::files]}
        write_safetensors(directory / file, part)
        weight_map.update(dict.fromkeys(part, file))
    if index:
        total = sum(len(tensor.data) for tensor in tensors.values())
        (directory / INDEX).write_text(
            json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
        )
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    return directory


@dataclass(frozen=True)
class Sizes:
    """Of a made-up model; none need be a multiple of anything."""

    hidden: int = 40
    inter: int = 24
    dense_inter: int = 36
    experts: int = 3
    layers: int = 2
    dense_layers: int = 1
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 10
    index_heads: int = 1
    vocab: int = 30
    mtp: int = 1
    vision_layers: int = 1
    vision_hidden: int = 12


SCALE_DTYPES = {"mxfp8": "U8", "block_fp8": "F32", "tensor_fp8": "F32"}


def scale_shape(encoding: str, rows: int, columns: int) -> tuple[int, ...]:
    if encoding == "tensor_fp8":
        return ()
    down, across = (1, 32) if encoding == "mxfp8" else (128, 128)
    return math.ceil(rows / down), math.ceil(columns / across)


def made_up_m3(
    sizes: Sizes = Sizes(),
    seed: int = 0,
    *,
    prefix: str = "language_model.",
    quantized: bool = True,
    encoding: str = "mxfp8",
    element_dtype: str = "F8_E4M3",
    scale_dtype: str | None = None,
    scale_suffix: str = "_scale_inv",
    plain_dtype: str = "BF16",
) -> Tensors:
    """All tensors of a model with M3's names. `prefix` "language_model." is VL's, "" and "bare" text-only."""
    rng = np.random.default_rng(seed)
    tensors: Tensors = {}
    h = sizes.hidden

    def plain(name: str, *shape: int, dtype: str = plain_dtype) -> None:
        tensors[name] = random_tensor(rng, dtype, shape)

    def scaled(name: str, rows: int, columns: int) -> None:
        if quantized:
            shape = scale_shape(encoding, rows, columns)
            tensors[name] = random_tensor(rng, element_dtype, (rows, columns))
            tensors[name + scale_suffix] = random_scales(rng, scale_dtype or SCALE_DTYPES[encoding], shape)
        else:
            plain(name, rows, columns)

    def layer(at: str, dense: bool) -> None:
        q, kv = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        plain(f"{at}.input_layernorm.weight", h)
        plain(f"{at}.post_attention_layernorm.weight", h)
        for name, rows, columns in (
            ("q_proj", q, h), ("k_proj", kv, h), ("v_proj", kv, h), ("o_proj", h, q)
        ):  # fmt: skip
            scaled(f"{at}.self_attn.{name}.weight", rows, columns)
        plain(f"{at}.self_attn.q_norm.weight", sizes.head_dim)
        plain(f"{at}.self_attn.k_norm.weight", sizes.head_dim)
        if dense:
            scaled(f"{at}.mlp.gate_proj.weight", sizes.dense_inter, h)
            scaled(f"{at}.mlp.up_proj.weight", sizes.dense_inter, h)
            scaled(f"{at}.mlp.down_proj.weight", h, sizes.dense_inter)
            return
        plain(f"{at}.self_attn.index_q_proj.weight", sizes.index_heads * sizes.head_dim, h)
        plain(f"{at}.self_attn.index_k_proj.weight", sizes.head_dim, h)
        plain(f"{at}.self_attn.index_q_norm.weight", sizes.head_dim)
        plain(f"{at}.self_attn.index_k_norm.weight", sizes.head_dim)
        moe = f"{at}.block_sparse_moe"
        plain(f"{moe}.gate.weight", sizes.experts, h)
        plain(f"{moe}.e_score_correction_bias", sizes.experts, dtype="F32")
        for expert in range(sizes.experts):
            scaled(f"{moe}.experts.{expert}.w1.weight", sizes.inter, h)
            scaled(f"{moe}.experts.{expert}.w3.weight", sizes.inter, h)
            scaled(f"{moe}.experts.{expert}.w2.weight", h, sizes.inter)
        scaled(f"{moe}.shared_experts.gate_proj.weight", sizes.inter, h)
        scaled(f"{moe}.shared_experts.up_proj.weight", sizes.inter, h)
        scaled(f"{moe}.shared_experts.down_proj.weight", h, sizes.inter)

    text = "" if prefix == "bare" else prefix + "model."
    plain(f"{text}embed_tokens.weight", sizes.vocab, h)
    for number in range(sizes.layers):
        layer(f"{text}layers.{number}", dense=number < sizes.dense_layers)
    plain(f"{text}norm.weight", h)
    for number in range(sizes.mtp):
        at = f"{text}mtp.layers.{number}"
        for norm in ("enorm", "hnorm", "final_layernorm"):
            plain(f"{at}.{norm}.weight", h)
        scaled(f"{at}.eh_proj.weight", h, 2 * h)
        layer(f"{at}.transformer_layer", dense=False)
    plain(("" if prefix == "bare" else prefix) + "lm_head.weight", sizes.vocab, h)
    if prefix == "language_model.":
        v = sizes.vision_hidden
        plain("vision_tower.vision_model.embeddings.patch_embedding.weight", v, 3, 2, 3, 3, dtype="F32")
        plain("vision_tower.vision_model.pre_layrnorm.weight", v)
        plain("vision_tower.vision_model.pre_layrnorm.bias", v, dtype="F16")
        for number in range(sizes.vision_layers):
            at = f"vision_tower.vision_model.encoder.layers.{number}"
            for norm in ("layer_norm1", "layer_norm2"):
                plain(f"{at}.{norm}.weight", v)
                plain(f"{at}.{norm}.bias", v)
            for name, rows, columns in (
                ("self_attn.q_proj", v, v), ("self_attn.k_proj", v, v), ("self_attn.v_proj", v, v),
                ("self_attn.out_proj", v, v), ("mlp.fc1", 4 * v, v), ("mlp.fc2", v, 4 * v),
            ):  # fmt: skip
                plain(f"{at}.{name}.weight", rows, columns)
                plain(f"{at}.{name}.bias", rows)
        for name, columns in (("multi_modal_projector", v), ("patch_merge_mlp", 4 * h)):
            plain(f"{name}.linear_1.weight", h, columns)
            plain(f"{name}.linear_1.bias", h)
            plain(f"{name}.linear_2.weight", h, h)
            plain(f"{name}.linear_2.bias", h)
    return tensors


def config_of(sizes: Sizes = Sizes(), *, quantized: bool = True) -> dict:
    """config.json of a made-up VL model."""
    config = {
        "model_type": "minimax_m3_vl",
        "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
        "text_config": {
            "model_type": "minimax_m3_vl_text",
            "hidden_size": sizes.hidden,
            "intermediate_size": sizes.inter,
            "dense_intermediate_size": sizes.dense_inter,
            "num_local_experts": sizes.experts,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads,
            "head_dim": sizes.head_dim,
            "vocab_size": sizes.vocab,
            "num_mtp_modules": sizes.mtp,
        },
        "vision_config": {
            "model_type": "minimax_m3_vl_vision",
            "hidden_size": sizes.vision_hidden,
            "num_hidden_layers": sizes.vision_layers,
        },
    }
    if quantized:
        config["quantization_config"] = {
            "quant_method": "mxfp8",
            "scale_fmt": "ue8m0",
            "weight_block_size": [1, 32],
        }
    return config


def allows_direct_reads(checkpoint: Path) -> bool:
    """Whether its file system knows reads past the page cache: some in memory do not."""
    try:
        os.close(os.open(next(checkpoint.glob("*.safetensors")), os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def write_m3(directory: Path, sizes: Sizes = Sizes(), seed: int = 0, *, files: int = 2, **how) -> Path:
    """A made-up VL checkpoint, whole: safetensors, index and config."""
    config = config_of(sizes, quantized=how.get("quantized", True))
    return write_checkpoint(directory, made_up_m3(sizes, seed, **how), files=files, config=config)


def without(tensors: Tensors, *endings: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(endings)}
