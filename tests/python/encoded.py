"""Weights in the encodings of released checkpoints, and what they mean: tables of numbers and torch's exact float64."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

Tensors = dict[str, torch.Tensor]


def ceil_div(size: int, block: int) -> int:
    return -(-size // block)


def random_bytes(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def random_fp8(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Any code but the two that are NaN."""
    codes = random_bytes(generator, *shape)
    return torch.where(codes & 127 == 127, codes - 1, codes).view(torch.float8_e4m3fn)


def random_scales(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return (torch.rand(shape, generator=generator) * 0.05 + 0.001).to(dtype)


def random_e8m0(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randint(100, 140, shape, dtype=torch.uint8, generator=generator)


def power_of(scales: torch.Tensor) -> torch.Tensor:
    return torch.exp2(scales.view(torch.uint8).double() - 127)


def over_blocks(scales: torch.Tensor, shape: tuple[int, ...], rows: int, columns: int) -> torch.Tensor:
    """A scale for each element of a weight of that shape; blocks are of its last two dimensions."""
    spread = scales.repeat_interleave(rows, -2).repeat_interleave(columns, -1)
    return spread[..., : shape[-2], : shape[-1]]


def times(elements: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rounded to float32, then to ``dtype``. Where the product is a float32 number this rounds once."""
    return (elements.float() * scales.float()).to(dtype)


@dataclass(frozen=True)
class Weight:
    """A weight as files hold it, and its values."""

    name: str  #: without the ending of its packing
    stored: Tensors
    decoded: Callable[[torch.dtype], torch.Tensor]


def scaled_fp8(
    generator: torch.Generator,
    name: str,
    shape: tuple[int, ...],
    scales: torch.Tensor,
    block: tuple[int, int],
    suffix: str = "_scale_inv",
) -> Weight:
    """FP8 with scales of the weight's own number of dimensions, or that broadcast to them once they are spread."""
    elements = random_fp8(generator, *shape)
    values = power_of(scales) if scales.dtype in (torch.uint8, torch.float8_e8m0fnu) else scales.double()
    spread = over_blocks(values, shape, *block)
    return Weight(
        name,
        {name: elements, name + suffix: scales},
        lambda dtype: times(elements, spread, dtype),
    )


def in_blocks(generator: torch.Generator, name: str, shape: tuple[int, ...], more_rows: int = 0) -> Weight:
    grid = (*shape[:-2], ceil_div(shape[-2], 128) + more_rows, ceil_div(shape[-1], 128))
    return scaled_fp8(generator, name, shape, random_scales(generator, torch.float32, *grid), (128, 128))


def in_blocks_of_e8m0(generator: torch.Generator, name: str, shape: tuple[int, ...], block: int) -> Weight:
    grid = (*shape[:-2], ceil_div(shape[-2], block), ceil_div(shape[-1], block))
    scales = random_e8m0(generator, *grid).view(torch.float8_e8m0fnu)
    return scaled_fp8(generator, name, shape, scales, (block, block))


def mxfp8(generator: torch.Generator, name: str, shape: tuple[int, ...]) -> Weight:
    scales = random_e8m0(generator, *shape[:-1], ceil_div(shape[-1], 32))
    return scaled_fp8(generator, name, shape, scales, (1, 32))


def each_matrix(
    generator: torch.Generator, name: str, shape: tuple[int, ...], grid: tuple[int, ...], dtype: torch.dtype
) -> Weight:
    """One scale for each matrix of a stack; ``grid`` is how their tensor is shaped."""
    elements = random_fp8(generator, *shape)
    scales = random_scales(generator, dtype, *grid)
    spread = scales.double().reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    return Weight(name, {name: elements, name + "_scale_inv": scales}, lambda to: times(elements, spread, to))


def each_row(
    generator: torch.Generator, name: str, shape: tuple[int, ...], dtype: torch.dtype, keeps_dimension: bool
) -> Weight:
    """One scale for each row, as compressed-tensors has them."""
    elements = random_fp8(generator, *shape)
    scales = random_scales(generator, dtype, *shape[:-1], 1)
    stored = scales if keeps_dimension else scales.squeeze(-1)
    return Weight(
        name,
        {name: elements, name + "_scale": stored},
        lambda to: times(elements, scales.double().expand(shape), to),
    )


def fp8_weights(generator: torch.Generator) -> list[Weight]:
    """Of every kind of grid, none a multiple of its blocks."""
    g, bf16, f32 = generator, torch.bfloat16, torch.float32
    return [
        in_blocks(g, "blocks.weight", (300, 200)),
        in_blocks(g, "more_rows.weight", (293, 200), more_rows=1),
        in_blocks(g, "stacked_blocks", (3, 150, 140)),
        in_blocks_of_e8m0(g, "e8m0.weight", (300, 200), 128),
        in_blocks_of_e8m0(g, "e8m0_32.weight", (70, 100), 32),
        in_blocks_of_e8m0(g, "stacked_e8m0", (2, 150, 140), 128),
        mxfp8(g, "stacked_mxfp8", (3, 10, 72)),
        each_matrix(g, "whole.weight", (20, 30), (), bf16),
        each_matrix(g, "whole_1.weight", (20, 30), (1,), f32),
        each_matrix(g, "experts_1_1", (5, 20, 30), (5, 1, 1), bf16),
        each_matrix(g, "experts", (5, 20, 30), (5,), f32),
        each_row(g, "rows.weight", (20, 30), bf16, True),
        each_row(g, "flat_rows.weight", (20, 30), f32, False),
        each_row(g, "stacked_rows.weight", (3, 20, 30), bf16, True),
    ]


# --- two elements in a byte -------------------------------------------------------------------------------------------

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
E2M1 = torch.cat([E2M1, -E2M1])  # code 8 is -0


def nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The codes of bytes, the low half of each first."""
    return torch.stack([packed & 15, packed >> 4], -1).flatten(-2)


def e2m1(packed: torch.Tensor, zero_of_code_eight: float = -0.0) -> torch.Tensor:
    codes = nibbles(packed).long()
    return torch.where(codes == 8, torch.tensor(zero_of_code_eight, dtype=torch.float64), E2M1[codes])


def mxfp4_packed(generator: torch.Generator, module: str, shape: tuple[int, ...]) -> Weight:
    """As compressed-tensors stores it."""
    packed = random_bytes(generator, *shape[:-1], shape[-1] // 2)
    scales = random_e8m0(generator, *shape[:-1], ceil_div(shape[-1], 32))
    spread = over_blocks(power_of(scales), shape, 1, 32)
    name = f"{module}.weight"
    return Weight(
        name, {f"{name}_packed": packed, f"{name}_scale": scales}, lambda to: times(e2m1(packed), spread, to)
    )


def mxfp4_blocks(generator: torch.Generator, name: str, shape: tuple[int, ...]) -> Weight:
    """As gpt-oss stores it: [..., rows, columns / 32, 16]."""
    groups = shape[-1] // 32
    blocks = random_bytes(generator, *shape[:-1], groups, 16)
    scales = random_e8m0(generator, *shape[:-1], groups)
    packed, spread = blocks.flatten(-2), over_blocks(power_of(scales), shape, 1, 32)
    return Weight(
        name, {f"{name}_blocks": blocks, f"{name}_scales": scales}, lambda to: times(e2m1(packed), spread, to)
    )


def fp4_deepseek(generator: torch.Generator, module: str, shape: tuple[int, ...]) -> Weight:
    packed = random_bytes(generator, *shape[:-1], shape[-1] // 2)
    scales = random_e8m0(generator, *shape[:-1], ceil_div(shape[-1], 32))
    spread = over_blocks(power_of(scales), shape, 1, 32)
    return Weight(
        f"{module}.weight",
        {f"{module}.weight": packed.view(torch.int8), f"{module}.scale": scales.view(torch.float8_e8m0fnu)},
        lambda to: times(e2m1(packed, 0.0), spread, to),
    )


def fp8_deepseek(generator: torch.Generator, module: str, shape: tuple[int, ...]) -> Weight:
    weight = in_blocks_of_e8m0(generator, f"{module}.weight", shape, 128)
    scales = weight.stored.pop(f"{module}.weight_scale_inv")
    return Weight(weight.name, weight.stored | {f"{module}.scale": scales}, weight.decoded)


def nvfp4_scales(generator: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    codes = torch.randint(
        1, 127, (*shape[:-1], ceil_div(shape[-1], 16)), dtype=torch.uint8, generator=generator
    )
    return codes.view(torch.float8_e4m3fn)


def nvfp4_modelopt(generator: torch.Generator, module: str, shape: tuple[int, ...]) -> Weight:
    packed = random_bytes(generator, *shape[:-1], shape[-1] // 2)
    scales = nvfp4_scales(generator, shape)
    whole = torch.rand((), generator=generator) * 1e-3 + 1e-5
    factors = over_blocks(scales.float() * whole, shape, 1, 16)  # rounded to float32
    name = f"{module}.weight"
    stored = {
        name: packed,
        f"{name}_scale": scales,
        f"{name}_scale_2": whole,
        f"{module}.input_scale": whole * 3,
    }
    return Weight(name, stored, lambda to: (e2m1(packed, 0.0).float() * factors).to(to))


def nvfp4_compressed_tensors(generator: torch.Generator, module: str, shape: tuple[int, ...]) -> Weight:
    packed = random_bytes(generator, *shape[:-1], shape[-1] // 2)
    scales = nvfp4_scales(generator, shape)
    whole = torch.rand(1, generator=generator) * 1e3 + 100
    factors = over_blocks(scales.float() / whole, shape, 1, 16)
    name = f"{module}.weight"
    stored = {
        f"{name}_packed": packed,
        f"{name}_scale": scales,
        f"{name}_global_scale": whole,
        f"{module}.input_global_scale": whole * 3,
    }
    return Weight(name, stored, lambda to: (e2m1(packed).float() * factors).to(to))


def int4(
    generator: torch.Generator, module: str, shape: tuple[int, ...], group: int, is_long: bool
) -> Weight:
    """As compressed-tensors stores it: eight in a word, each 8 more than it is."""
    packed = random_bytes(generator, *shape[:-1], shape[-1] // 2)
    scales = random_scales(generator, torch.bfloat16, *shape[:-1], ceil_div(shape[-1], group))
    spread = over_blocks(scales.double(), shape, 1, group)
    name = f"{module}.weight"
    stored = {
        f"{name}_packed": packed.view(torch.int32),
        f"{name}_scale": scales,
        f"{name}_shape": torch.tensor(shape, dtype=torch.int64 if is_long else torch.int32),
    }
    return Weight(name, stored, lambda to: times(nibbles(packed).double() - 8, spread, to))


def packed_weights(generator: torch.Generator) -> list[Weight]:
    g = generator
    return [
        mxfp4_packed(g, "mxfp4", (20, 80)),
        mxfp4_blocks(g, "mxfp4_stack", (3, 10, 64)),
        fp4_deepseek(g, "fp4", (20, 96)),
        fp8_deepseek(g, "fp8", (200, 150)),
        nvfp4_modelopt(g, "nvfp4", (20, 88)),
        nvfp4_compressed_tensors(g, "nvfp4_packed", (20, 88)),
        int4(g, "int4", (20, 96), 32, False),
        int4(g, "int4_128", (10, 264), 128, True),
    ]
