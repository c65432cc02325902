"""MXFP8 weights as MiniMax M3 stores them: decoding single tensors, and which weights are stored so."""

from __future__ import annotations

import re

import torch
from torch.distributed.tensor import DTensor

from shardwright import _core
from shardwright.adapters.decoding import Part, fill
from shardwright.adapters.native_to_hf import IDENTITY_SCALE
from shardwright.sharding import Sharding, local_part

MXFP8_BLOCK_SIZE = 32  #: input elements of a row that share a scale
_MXFP8_SCALE_INV_IDENTITY = IDENTITY_SCALE

FAMILY = "minimax_m3"


def _quantized_names() -> re.Pattern[str]:
    """The rule of names in the form of a regular expression for the ends of HF names, made from the table."""
    patterns = _core.quantized_patterns(_core.weight_map_for_names(["language_model."], FAMILY))
    endings = dict.fromkeys(pattern.partition("layers.{layer}.")[2] for pattern in patterns)
    choices = "|".join(re.escape(ending).replace(re.escape("{expert}"), r"\d+") for ending in endings)
    # The vision tower has layers with projections of the same names, none of which is quantized.
    return re.compile(rf"^(?!(?:.*\.)?vision_tower\.)(?:.*\.)?layers\.\d+\.(?:{choices})$")


_MXFP8_QUANT_KEY_RE = _quantized_names()


def _should_quantize_mxfp8_key(key: str) -> bool:
    """Whether the rule of names counts an HF weight as MXFP8. A checkpoint's own scales know better."""
    return _MXFP8_QUANT_KEY_RE.search(key) is not None


def create_mxfp8_scale_inv(weight: torch.Tensor, block_size: int = MXFP8_BLOCK_SIZE) -> torch.Tensor:
    """Scales to load into: a plain uint8 tensor for the whole weight, on the device of its local part, all of them 1.

    ``weight`` is ``[out, in]``, the result ``[out, ceil(in / block_size)]``, both global, whatever the placement.
    """
    _check_block_size(block_size)
    if weight.dim() < 2:
        raise ValueError(f"weight of shape {tuple(weight.shape)}: expected [out, in]")
    rows, columns = weight.shape[-2:]
    shape = (rows, -(-columns // block_size))
    device = local_part(weight).device
    return torch.full(shape, _MXFP8_SCALE_INV_IDENTITY, dtype=torch.uint8, device=device)


def dequantize_mxfp8(
    weight: torch.Tensor,
    scale_inv: torch.Tensor,
    block_size: int = MXFP8_BLOCK_SIZE,
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """An MXFP8 weight ``[out, in]`` in ``dtype``: element × 2^(scale − 127), rounded once.

    A DTensor gives a DTensor that lies alike, each rank decoding its part with the scales that belong to it.
    ``scale_inv`` is ``[out, ceil(in / block_size)]``, uint8 or e8m0: plain and of global shape, or a DTensor. Scales of
    the shape of the local part, as ``_slice_mxfp8_scale_for_dtensor`` cuts them, do if the part begins with a block.

    Raises:
        PlanError: weight and scales do not fit together.
    """
    _check_block_size(block_size)
    part, scales = Part.of("weight", weight), Part.of("scale_inv", scale_inv)
    if part.sharding.mesh is not None and _are_local(part, scales, block_size):
        return part.sharding.wrap(_dequantize_mxfp8_local(part.local, scales.local, block_size, dtype))
    result = part.sharding.empty(dtype, part.local.device)
    decoded = Part(part.sharding, local_part(result))
    sources = {"weight": part, "weight_scale_inv": scales}
    fill({"weight": decoded}, sources, _core.unchanged_names(), mxfp8_block=block_size)
    return result


def _dequantize_mxfp8_local(
    w_local: torch.Tensor, scale_local: torch.Tensor, block_size: int, dtype: torch.dtype
) -> torch.Tensor:
    """The same for plain tensors. Scales beyond the weight's last column are left aside."""
    blocks = -(-w_local.shape[-1] // block_size)
    return dequantize_mxfp8(w_local, scale_local[:, :blocks], block_size, dtype)


def _slice_mxfp8_scale_for_dtensor(
    scale_inv: torch.Tensor, weight_dtensor: DTensor, weight_local: torch.Tensor, block_size: int
) -> torch.Tensor:
    """Those of the global scales that this rank's part of the weight needs, in the order of the part.

    Along the input dimension a part may begin and end inside a block: the scales are those of all blocks that it
    touches.
    """
    sharding = Sharding.of("weight_dtensor", weight_dtensor)
    rows = [index for index, _ in sharding.held(0)]
    blocks = sorted({index // block_size for index, _ in sharding.held(1)})
    if not sharding.boxes:
        rows, blocks = [], []
    device = scale_inv.device
    by_row = scale_inv.index_select(0, torch.tensor(rows, dtype=torch.int64, device=device))
    return by_row.index_select(1, torch.tensor(blocks, dtype=torch.int64, device=device))


def _are_local(weight: Part, scales: Part, block_size: int) -> bool:
    """True for plain scales of the local part alone."""
    if scales.sharding.mesh is not None or len(weight.sharding.boxes) != 1 or scales.local.dim() != 2:
        return False
    whole, part = weight.sharding.shape, weight.sharding.local_shape
    shape = (part[0], -(-part[1] // block_size))
    begins_with_block: bool = weight.sharding.boxes[0].offset[1] % block_size == 0
    is_whole = tuple(scales.local.shape) == (whole[0], -(-whole[1] // block_size))
    return not is_whole and begins_with_block and tuple(scales.local.shape) == shape


def _check_block_size(block_size: int) -> None:
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; expected 1 or more")
