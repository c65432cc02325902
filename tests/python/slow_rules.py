"""The named rules of quantization written plainly, and the tensors that each tool stores: nothing of ours is called.

Each step is one torch operation in the dtype in which the tool computes, so that it rounds as the tool does. A code is
found by looking for the nearest of all values in float64. kernels/encode.h says whose each rule is.
"""

from collections.abc import Callable

import torch
from encoded import E2M1, Tensors, ceil_div, e2m1, nibbles, over_blocks, times

E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()[:127]


def blocks_of(weight: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The largest magnitude of each block, [..., R, C]."""
    r, c = ceil_div(weight.shape[-2], rows), ceil_div(weight.shape[-1], columns)
    padded = torch.zeros(*weight.shape[:-2], r * rows, c * columns, dtype=weight.dtype)
    padded[..., : weight.shape[-2], : weight.shape[-1]] = weight.abs()
    return padded.unflatten(-1, (c, columns)).unflatten(-3, (r, rows)).amax((-1, -3))


def nearest(values: torch.Tensor, table: torch.Tensor, tie: str) -> torch.Tensor:
    """The code, of a rising table, nearest to each magnitude. Ties: "even" codes, "smaller" or "larger" ones."""
    magnitudes = values.double().abs().clamp(max=float(table[-1]))
    above = torch.searchsorted(table, magnitudes).clamp(max=len(table) - 1)
    below = (above - 1).clamp(min=0)
    to_above, to_below = table[above] - magnitudes, magnitudes - table[below]
    takes_above = {"even": above % 2 == 0, "smaller": above < 0, "larger": above >= 0}[tie]
    codes = torch.where((to_above < to_below) | ((to_above == to_below) & takes_above), above, below)
    return codes.to(torch.uint8)


def e4m3(values: torch.Tensor) -> torch.Tensor:
    codes = nearest(values, E4M3, "even")
    return codes | (values.signbit().to(torch.uint8) << 7)


def packed(codes: torch.Tensor) -> torch.Tensor:
    """Two in a byte, the low half first."""
    return codes[..., 0::2] | codes[..., 1::2] << 4


def power(exponents: torch.Tensor) -> torch.Tensor:
    return torch.exp2(exponents.double())


def power_not_below(numbers: torch.Tensor, least: int) -> torch.Tensor:
    """The exponent of the smallest power of two that is not below, from 2^least on."""
    mantissa, exponent = torch.frexp(numbers.double())
    return torch.where(mantissa == 0.5, exponent - 1, exponent).masked_fill(numbers == 0, least).clamp(least)


def e8m0(exponents: torch.Tensor) -> torch.Tensor:
    return (exponents + 127).to(torch.uint8)


def fp4(quotients: torch.Tensor, negative: torch.Tensor, tie: str) -> torch.Tensor:
    return packed(nearest(quotients, E2M1[:8], tie) | negative.to(torch.uint8) << 3)


def divided(weight: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    return (weight.double() / over_blocks(power(exponents), tuple(weight.shape), 1, 32)).float()


def mxfp8(name: str, weight: torch.Tensor) -> Tensors:
    largest = blocks_of(weight.float(), 1, 32)
    exponents = power_not_below(largest.double() / 448, -127)
    quotients = weight.double() / over_blocks(power(exponents), tuple(weight.shape), 1, 32)
    return {name: e4m3(quotients).view(torch.float8_e4m3fn), name + "_scale_inv": e8m0(exponents)}


def block_fp8(name: str, weight: torch.Tensor) -> Tensors:
    largest = blocks_of(weight.float(), 128, 128)
    factors = torch.where(largest > 0, 1 / largest * 448, torch.ones(()))
    products = weight.float() * over_blocks(factors, tuple(weight.shape), 128, 128)
    return {name: e4m3(products).view(torch.float8_e4m3fn), name + "_scale_inv": 1 / factors}


def mxfp4_modelopt(name: str, weight: torch.Tensor) -> Tensors:
    exponents = power_not_below(blocks_of(weight.float(), 1, 32) / 6, -127)
    quotients = divided(weight, exponents)
    return {name: fp4(quotients, ~(quotients > 0), "smaller"), name + "_scale": e8m0(exponents)}


def mxfp4_ocp(name: str, weight: torch.Tensor) -> Tensors:
    mantissa, exponent = torch.frexp(blocks_of(weight.float(), 1, 32))
    exponents = (exponent - 1 - torch.where(mantissa >= 0.875, 1, 2)).masked_fill(mantissa == 0, -127)
    exponents = exponents.clamp(-127)
    quotients = divided(weight, exponents)
    return {name + "_packed": fp4(quotients, quotients < 0, "even"), name + "_scale": e8m0(exponents)}


def mxfp4_gpt_oss(name: str, weight: torch.Tensor) -> Tensors:
    largest = blocks_of(weight.float(), 1, 32)
    exponents = power_not_below(largest / 6, -126).masked_fill(largest == 0, -127)
    codes = fp4(divided(weight, exponents), weight.signbit(), "larger")
    return {name + "_blocks": codes.unflatten(-1, (-1, 16)), name + "_scales": e8m0(exponents)}


def nvfp4_modelopt(name: str, weight: torch.Tensor) -> Tensors:
    whole = weight.abs().max().float() / 2688
    largest = blocks_of(weight.float(), 1, 16)
    wanted = torch.where(largest == 0, torch.ones(()), largest / (6 * whole))
    scales = e4m3(wanted.clamp(2.0**-9, 448)).view(torch.float8_e4m3fn)
    factors = over_blocks(scales.float() * whole, tuple(weight.shape), 1, 16)
    quotients = (weight.float() / factors).nan_to_num(0)
    codes = fp4(quotients, quotients < 0, "even")
    return {name: codes, name + "_scale": scales, name + "_scale_2": whole}


def nvfp4_compressed_tensors(name: str, weight: torch.Tensor) -> Tensors:
    tiny = torch.finfo(weight.dtype).tiny
    whole = (1 / weight.abs().max().clamp(min=tiny)) * 2688  # each rounded to the weight's dtype
    whole = whole.float()
    whole = whole if whole.isfinite() else torch.ones(())
    largest = blocks_of(weight, 1, 16)
    codes = e4m3((whole * (largest / 6).float()).clamp(max=448))
    scales = torch.where(codes == 0, e4m3(torch.tensor(0.125)), codes).view(torch.float8_e4m3fn)
    quotients = weight.float() / over_blocks(scales.float() / whole, tuple(weight.shape), 1, 16)
    return {
        name + "_packed": fp4(quotients, quotients < 0, "even"),
        name + "_scale": scales,
        name + "_global_scale": whole.reshape(1),
    }


def int4(columns: int | None) -> Callable[[str, torch.Tensor], Tensors]:
    def encoded(name: str, weight: torch.Tensor) -> Tensors:
        group = columns or weight.shape[-1]
        scales = blocks_of(weight, 1, group) / 7.5
        scales = torch.where(scales == 0, torch.finfo(weight.dtype).eps, scales).to(torch.bfloat16)
        spread = over_blocks(scales, tuple(weight.shape), 1, group)
        dtype = torch.bfloat16 if weight.dtype == torch.bfloat16 else torch.float32
        codes = (weight.float() / spread.float()).to(dtype).double().round().clamp(-8, 7) + 8
        return {
            name + "_packed": packed(codes.to(torch.uint8)).view(torch.int32),
            name + "_scale": scales,
            name + "_shape": torch.tensor(weight.shape),
        }

    return encoded


RULES: dict[str, Callable[[str, torch.Tensor], Tensors]] = {
    "mxfp8": mxfp8,
    "block_fp8": block_fp8,
    "mxfp4-modelopt": mxfp4_modelopt,
    "mxfp4-ocp": mxfp4_ocp,
    "mxfp4-gpt-oss": mxfp4_gpt_oss,
    "nvfp4-modelopt": nvfp4_modelopt,
    "nvfp4-compressed-tensors": nvfp4_compressed_tensors,
    "int4-compressed-tensors": int4(32),
    "int4-compressed-tensors-group128": int4(128),
    "int4-compressed-tensors-channel": int4(None),
}


def decoded(rule: str, name: str, stored: Tensors, dtype: torch.dtype) -> torch.Tensor:
    """The values of a matrix that was stored so, as the tool computes them."""
    scales = next(stored[name + end] for end in ("_scale", "_scale_inv", "_scales") if name + end in stored)
    elements = next(stored[name + end] for end in ("", "_packed", "_blocks") if name + end in stored)
    if "fp8" in rule:
        shape, block = tuple(elements.shape), (128, 128) if rule == "block_fp8" else (1, 32)
        factors = scales.double() if rule == "block_fp8" else power(scales.double() - 127)
        return times(elements, over_blocks(factors, shape, *block), dtype)
    raw = elements.flatten(1).view(torch.uint8)
    shape = (raw.shape[0], 2 * raw.shape[1])
    if rule == "nvfp4-modelopt":
        return (
            e2m1(raw, 0.0).float() * over_blocks(scales.float() * stored[name + "_scale_2"], shape, 1, 16)
        ).to(dtype)
    if rule == "nvfp4-compressed-tensors":
        factors = over_blocks(scales.float() / stored[name + "_global_scale"], shape, 1, 16)
        return (e2m1(raw).float() * factors).to(dtype)
    group = ceil_div(shape[1], scales.shape[1])
    if "int4" in rule:
        group = 32 if group <= 32 else 128 if rule.endswith("128") else shape[1]
        return times(nibbles(raw).double() - 8, over_blocks(scales.double(), shape, 1, group), dtype)
    return times(e2m1(raw), over_blocks(power(scales.double() - 127), shape, 1, 32), dtype)
