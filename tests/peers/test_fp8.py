"""Scaled FP8 becomes what transformers makes of it. Run by `make compare`, which sets up what this needs."""

from pathlib import Path

import pytest
import shardwright as sw
import torch
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

NAME = "language_model.model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("element", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize(
    "scale_dtype, shape",
    [(torch.uint8, (256, 12)), (torch.float32, (2, 3)), (torch.bfloat16, (2, 3)), (torch.float32, ())],
    ids=["mxfp8", "block_fp8", "block_fp8_bf16", "tensor_fp8"],
)
def test_decoding_equals_transformers_dequantization(
    dtype: torch.dtype, element: torch.dtype, scale_dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path
):
    generator = torch.Generator().manual_seed(0)

    def random(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        size = torch.Size(shape).numel() * dtype.itemsize
        return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator).view(dtype).view(shape)

    weight, scales = random((256, 384), element), random(shape, scale_dtype)
    # 255 is NaN in e8m0, which transformers reads as 2^128; loads refuse it, and what is no magnitude.
    scales = scales.clamp(max=254) if scale_dtype == torch.uint8 else scales.abs().nan_to_num(1, 1)
    save_file({NAME: weight, NAME + "_scale_inv": scales}, tmp_path / "model.safetensors")
    state = {"model.layers.0.self_attn.q_proj.weight": torch.zeros(256, 384, dtype=dtype)}
    sw.load(state, tmp_path, model="minimax_m3")
    expected = Fp8Dequantize(None)._dequantize_one(weight, scales, dtype)
    (found,) = state.values()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(
        found.nan_to_num(0, torch.inf, -torch.inf), expected.nan_to_num(0, torch.inf, -torch.inf)
    )
