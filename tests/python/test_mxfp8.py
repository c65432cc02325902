"""The documented functions for single MXFP8 tensors, held against the reference."""

import numpy as np
import pytest
import reference
import shardwright as sw
import torch
from shardwright.models.minimax_m3_vl.state_dict_adapter import (
    MXFP8_BLOCK_SIZE,
    _dequantize_mxfp8_local,
    create_mxfp8_scale_inv,
    dequantize_mxfp8,
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(5, 64), (3, 33), (7, 1), (1, 95), (0, 32), (4, 0)])
def test_dequantize_mxfp8_is_exact(shape: tuple[int, int], dtype: torch.dtype):
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 256, shape, dtype=np.uint8)
    scales = rng.integers(0, 256, (shape[0], -(-shape[1] // 32)), dtype=np.uint8)
    expected = reference.decode_mxfp8(codes, scales, dtype)
    weight = torch.from_numpy(codes).view(torch.float8_e4m3fn)
    scale_inv = torch.from_numpy(scales)
    assert reference.same(dequantize_mxfp8(weight, scale_inv, dtype=dtype), expected)
    assert reference.same(
        dequantize_mxfp8(weight, scale_inv.view(torch.float8_e8m0fnu), MXFP8_BLOCK_SIZE, dtype), expected
    )
    transposed = weight.view(torch.uint8).T.contiguous().T.view(torch.float8_e4m3fn)
    assert reference.same(_dequantize_mxfp8_local(transposed, scale_inv, 32, dtype), expected)


@pytest.mark.parametrize("block", [1, 16, 128])
def test_dequantize_mxfp8_takes_other_block_sizes(block: int):
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 256, (3, 150), dtype=np.uint8)
    scales = rng.integers(100, 150, (3, -(-150 // block)), dtype=np.uint8)
    expected = reference.decode_mxfp8(codes, scales, torch.bfloat16, block)
    weight = torch.from_numpy(codes).view(torch.float8_e4m3fn)
    assert reference.same(dequantize_mxfp8(weight, torch.from_numpy(scales), block_size=block), expected)


def test_create_mxfp8_scale_inv_rounds_up_and_is_all_ones():
    scales = create_mxfp8_scale_inv(torch.empty(5, 65))
    assert (scales.shape, scales.dtype, scales.unique().tolist()) == ((5, 3), torch.uint8, [127])
    assert create_mxfp8_scale_inv(torch.empty(5, 65, device="meta"), 16).shape == (5, 5)


def test_weights_and_scales_of_different_sizes_are_refused():
    weight = torch.zeros(4, 64, dtype=torch.float8_e4m3fn)
    with pytest.raises(sw.PlanError, match=r"\[4, 2\]"):
        dequantize_mxfp8(weight, torch.zeros(4, 1, dtype=torch.uint8))
    with pytest.raises(ValueError, match="block_size is 0"):
        dequantize_mxfp8(weight, torch.zeros(4, 2, dtype=torch.uint8), block_size=0)
