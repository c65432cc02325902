"""Checkpoints in each encoding, large enough to be timed, and how the tools that made the encodings decode them.

Ways are as in ways.py. A tool reads each encoded weight with safetensors, out of mapped files, and decodes it to BF16;
what it makes is dropped. It neither regroups, as ours does, nor reads what the checkpoint has in other encodings.
A tool that takes too long stops, and says how much of it it has done: its seconds are then those of all, by the bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ways import Load, safetensors_files

Parts = dict[str, torch.Tensor]

#: After so many seconds a tool stops.
MOST_SECONDS = 20.0


@dataclass(frozen=True)
class Sample:
    """A tool decoded this share of the bytes of all modules that it decodes."""

    fraction: float


def modules(path: Path) -> Iterator[Parts]:
    """What belongs to each module, and to each tensor of gpt-oss's experts, without their common beginning."""
    from safetensors import safe_open

    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(file, "pt")) for file in safetensors_files(path)]
        places: dict[str, dict[str, Any]] = {}
        for file in files:
            for name in file.keys():  # noqa: SIM118
                stem, dot, part = name.rpartition(".")
                for ending in ("_blocks", "_scales"):
                    if part.endswith(ending):
                        stem, part = name.removesuffix(ending), ending
                places.setdefault(stem, {})[part] = (file, name)
        for parts in places.values():
            yield {part: file.get_tensor(name) for part, (file, name) in parts.items()}


def convert_moe_packed_tensors(parts: Parts) -> Any:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    if "_blocks" in parts:
        return convert_moe_packed_tensors(parts["_blocks"], parts["_scales"], dtype=torch.bfloat16)
    return None


def fp8_dequantize(parts: Parts) -> Any:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    for scales in ("weight_scale_inv", "scale"):
        if scales in parts and parts["weight"].itemsize == 1:
            return Fp8Dequantize(None)._dequantize_one(parts["weight"], parts[scales], torch.bfloat16)
    return None


def modelopt_dequantize(parts: Parts) -> Any:
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    if "weight_scale_2" not in parts:
        return None
    packed = parts["weight"]
    made = NVFP4QTensor(torch.Size((*packed.shape[:-1], 2 * packed.shape[-1])), torch.bfloat16, packed)
    return made.dequantize(
        scale=parts["weight_scale"], double_scale=parts["weight_scale_2"], block_sizes={-1: 16}
    )


def compressed_tensors_decompress(parts: Parts) -> Any:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    if "weight_scale" not in parts:
        return None
    scales = parts["weight_scale"]
    rest: dict[str, Any]
    if "weight_shape" in parts:
        group = int(parts["weight_shape"][1]) // scales.shape[1]
        name, rest = (
            "pack-quantized",
            {"num_bits": 4, "type": "int", "strategy": "group", "group_size": group},
        )
    elif "weight_global_scale" in parts:
        rest = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
        name = "nvfp4-pack-quantized"
    elif "weight_packed" in parts:
        rest = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}
        name = "mxfp4-pack-quantized"
    else:
        name, rest = "float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}
    rest["scale_dtype"] = scales.dtype if name != "pack-quantized" else None
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**rest))
    return BaseCompressor.get_value_from_registry(name).decompress(parts, scheme)["weight"].to(torch.bfloat16)


def bytes_of(parts: Parts) -> int:
    return sum(part.nbytes for part in parts.values())


def way_of(decode: Callable[[Parts], Any]) -> Callable[[Path, int], Load]:
    def prepare(path: Path, threads: int) -> Load:
        def load() -> Sample:
            end = float("inf")  # until the first is decoded, which imports the tool
            left = modules(path)
            kinds, decoded = set(), 0
            for parts in left:
                if decode(parts) is not None:
                    kinds.add(frozenset(parts))
                    decoded += bytes_of(parts)
                    end = min(end, time.perf_counter() + MOST_SECONDS)
                if time.perf_counter() > end:
                    break
            assert decoded > 0
            # Nothing is read of the others: files are mapped.
            rest = sum(bytes_of(parts) for parts in left if frozenset(parts) in kinds)
            return Sample(decoded / (decoded + rest))

        return load

    return prepare


ENCODING_WAYS: dict[str, Callable[[Path, int], Load]] = {
    "transformers, convert_moe_packed_tensors": way_of(convert_moe_packed_tensors),
    "transformers, Fp8Dequantize": way_of(fp8_dequantize),
    "nvidia-modelopt, dequantize": way_of(modelopt_dequantize),
    "compressed-tensors, decompress": way_of(compressed_tensors_decompress),
}


@dataclass(frozen=True)
class TimedEncoding:
    """What is generated, by options of ``sw.generate`` beside the preset, and whose decoding ours is held against."""

    generated: dict[str, str]
    tool: str


TIMED_ENCODINGS = {
    "mxfp8": TimedEncoding({}, "transformers, Fp8Dequantize"),
    "block_fp8": TimedEncoding({"family": "deepseek_v3", "form": "fp8"}, "transformers, Fp8Dequantize"),
    "channel_fp8": TimedEncoding({"family": "glm4_moe", "form": "fp8"}, "compressed-tensors, decompress"),
    "mxfp4_gpt_oss": TimedEncoding(
        {"family": "gpt_oss", "form": "mxfp4"}, "transformers, convert_moe_packed_tensors"
    ),
    "mxfp4_deepseek": TimedEncoding({"family": "deepseek_v4", "form": "fp4"}, "transformers, Fp8Dequantize"),
    "mxfp4": TimedEncoding({"encoding": "mxfp4"}, "compressed-tensors, decompress"),
    "nvfp4_modelopt": TimedEncoding({"encoding": "nvfp4_modelopt"}, "nvidia-modelopt, dequantize"),
    "nvfp4_compressed_tensors": TimedEncoding(
        {"encoding": "nvfp4_compressed_tensors"}, "compressed-tensors, decompress"
    ),
    "int4_group32": TimedEncoding(
        {"family": "deepseek_v3", "form": "kimi_k2_int4"}, "compressed-tensors, decompress"
    ),
}
