"""Encoded weights that are not what they should be: named, and nothing is written."""

import json
import re
from pathlib import Path

import pytest
import shardwright as sw
import torch
from destinations import Destination
from encoded import (
    Tensors,
    each_matrix,
    each_row,
    in_blocks,
    int4,
    mxfp4_blocks,
    mxfp4_packed,
    mxfp8,
    nvfp4_compressed_tensors,
    nvfp4_modelopt,
)
from safetensors.torch import save_file


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


MODELOPT = nvfp4_modelopt(generator(), "a", (20, 64)).stored
NVFP4 = nvfp4_compressed_tensors(generator(), "a", (20, 64)).stored
MXFP4 = mxfp4_packed(generator(), "a", (20, 64)).stored
BLOCKS = mxfp4_blocks(generator(), "a.weight", (3, 10, 64)).stored
INT4 = int4(generator(), "a", (20, 64), 32, False).stored
MXFP8 = mxfp8(generator(), "a.weight", (20, 64)).stored
BLOCK_FP8 = in_blocks(generator(), "a.weight", (20, 64)).stored
CHANNEL_FP8 = each_row(generator(), "a.weight", (20, 64), torch.bfloat16, True).stored
ROW_FP8 = each_row(generator(), "a.weight", (20, 64), torch.bfloat16, False).stored
TENSOR_FP8 = each_matrix(generator(), "a.weight", (20, 64), (), torch.float32).stored


def without(tensors: Tensors, *names: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


CASES = [
    ("no scales", without(MXFP4, "a.weight_scale"), ["a.weight", "needs its scales", "a.weight_scale"]),
    ("no scales of blocks", without(BLOCKS, "a.weight_scales"), ["lacks a.weight"]),
    (
        "no global scale",
        without(MODELOPT, "a.weight_scale_2"),
        ["a.weight", "global scale", "a.weight_scale_2"],
    ),
    ("no global divisor", without(NVFP4, "a.weight_global_scale"), ["a.weight", "a.weight_global_scale"]),
    (
        "two global scales",
        MODELOPT | {"a.weight_global_scale": torch.ones(1)},
        ["a.weight_scale_2", "a.weight_global_scale", "found both"],
    ),
    (
        "global scale of two numbers",
        MODELOPT | {"a.weight_scale_2": torch.ones(2)},
        ["a.weight_scale_2", "one F32 number", "[2]"],
    ),
    ("a grid too small", MXFP4 | {"a.weight_scale": MXFP4["a.weight_scale"][:, :1]}, ["[20, 1]", "[20, 2]"]),
    (
        "a grid too large",
        MXFP4 | {"a.weight_scale": MXFP4["a.weight_scale"].repeat(1, 2)},
        ["[20, 4]", "[20, 2]"],
    ),
    ("a grid of other rows", INT4 | {"a.weight_scale": INT4["a.weight_scale"][:19]}, ["[19, 2]", "[20, 2]"]),
    (
        "zero points",
        INT4 | {"a.weight_zero_point": torch.zeros(3, 2, dtype=torch.int32)},
        ["a.weight_zero_point", "not supported"],
    ),
    (
        "a shape that is another's",
        INT4 | {"a.weight_shape": torch.tensor([20, 60], dtype=torch.int32)},
        ["a.weight_shape", "[20, 64]", "[20, 60]"],
    ),
    (
        "a shape of floats",
        INT4 | {"a.weight_shape": torch.tensor([20.0, 64.0])},
        ["a.weight_shape", "[20, 64]", "F32"],
    ),
    *(
        (
            f"a global scale of {value}",
            MODELOPT | {"a.weight_scale_2": torch.tensor(value)},
            ["a.weight_scale_2"],
        )
        for value in (-1.0, float("inf"), float("nan"))
    ),
    *(
        (
            f"a divisor of {value}",
            NVFP4 | {"a.weight_global_scale": torch.tensor([value])},
            ["a.weight_global_scale"],
        )
        for value in (0.0, -1.0, float("inf"), float("nan"))
    ),
    (
        "AWQ or GPTQ",
        {
            "a.qweight": torch.zeros(64, 3, dtype=torch.int32),
            "a.qzeros": torch.zeros(1, 3, dtype=torch.int32),
            "a.scales": torch.ones(1, 24).half(),
        },
        ["a.qweight", "AWQ or GPTQ", "known by name only", "zero points"],
    ),
]


@pytest.mark.parametrize("tensors, words", [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_does_not_fit_is_named_and_nothing_is_written(
    tensors: Tensors, words: list[str], tmp_path: Path
):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    shape = (3, 10, 64) if "a.weight_blocks" in tensors else (20, 64)
    destination = Destination(shape, torch.bfloat16)
    with pytest.raises(sw.PlanError) as refused:
        sw.load({"a.weight": destination.tensor}, tmp_path, layout="huggingface")
    assert [word for word in words if word not in str(refused.value)] == [], str(refused.value)
    assert destination.untouched()


@pytest.mark.parametrize(
    "told, tensors, is_refused",
    [
        ({"quant_method": "mxfp4"}, MXFP4, False),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, INT4, False),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, MODELOPT, False),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, INT4, True),
        ({"quant_method": "mxfp4"}, INT4, True),
        ({"config_groups": {"0": {"format": "nvfp4-pack-quantized"}}}, INT4, True),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, {"a.weight": torch.ones(20, 64)}, True),
        ({"quant_method": "awq"}, {"a.weight": torch.ones(20, 64)}, True),
        ({"quant_method": "gptq"}, INT4, True),
        ({"quant_method": "something else"}, INT4, False),
    ],
)  # fmt: skip
def test_a_config_that_speaks_of_other_weights_is_refused(
    told, tensors: Tensors, is_refused: bool, tmp_path: Path
):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": told}))
    destination = Destination((20, 64), torch.bfloat16)
    state = {"a.weight": destination.tensor}
    if not is_refused:
        sw.load(state, tmp_path, layout="huggingface")
        return
    with pytest.raises(sw.PlanError, match="config.json: expected weights of"):
        sw.load(state, tmp_path, layout="huggingface")
    assert destination.untouched()


def with_last(scales: torch.Tensor, value: int | float) -> torch.Tensor:
    """The scales, the last of which has this value; of a whole number, these bits."""
    changed = scales.clone()
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[scales.itemsize]
    last = changed if isinstance(value, float) else changed.view(bits)
    last[(-1,) * changed.dim()] = value
    return changed


MINUS, INFINITE, NOT_A_NUMBER = -0.5, float("inf"), float("nan")


@pytest.mark.parametrize(
    "tensors, value, at",
    [
        *[
            (MXFP4, 255, [19, 1]),
            (MODELOPT, 0x7F, [19, 3]),
            (MODELOPT, 0x81, [19, 3]),
            (NVFP4, 0xFF, [19, 3]),
        ],
        *[(INT4, 0x7F80, [19, 1]), (INT4, 0x7FC0, [19, 1]), (INT4, -0x4080, [19, 1])],
        (MXFP8, 255, [19, 1]),
        *[(BLOCK_FP8, value, [0, 0]) for value in (MINUS, INFINITE, NOT_A_NUMBER)],
        *[(CHANNEL_FP8, value, [19, 0]) for value in (MINUS, INFINITE, NOT_A_NUMBER)],
        *[(ROW_FP8, value, [19]) for value in (MINUS, INFINITE, NOT_A_NUMBER)],
        *[(TENSOR_FP8, value, []) for value in (MINUS, INFINITE, NOT_A_NUMBER)],
    ],
)
def test_a_scale_that_no_encoder_writes_is_named(
    tensors: Tensors, value: int | float, at: list[int], tmp_path: Path
):
    name = next(name for name in ("a.weight_scale", "a.weight_scale_inv") if name in tensors)
    tensors = tensors | {name: with_last(tensors[name], value)}
    save_file(tensors, tmp_path / "model.safetensors")
    destination = Destination((20, 64), torch.bfloat16)
    found = re.escape(f"{name} in model.safetensors: the scale at {at}")
    with pytest.raises(sw.CheckpointFormatError, match=found):
        sw.load({"a.weight": destination.tensor}, tmp_path, layout="huggingface")
    assert destination.untouched()


@pytest.mark.parametrize("tensors", [BLOCK_FP8, CHANNEL_FP8, ROW_FP8, TENSOR_FP8, MODELOPT, NVFP4, INT4])
def test_a_scale_of_zero_is_that_of_zeros(tensors: Tensors, tmp_path: Path):
    name = next(name for name in ("a.weight_scale", "a.weight_scale_inv") if name in tensors)
    zeros = torch.zeros_like(tensors[name])
    for zero in (zeros, with_last(zeros, -0.0)):
        save_file(tensors | {name: zero}, tmp_path / "model.safetensors")
        loaded = torch.ones(20, 64, dtype=torch.bfloat16)
        sw.load({"a.weight": loaded}, tmp_path, layout="huggingface")
        assert not loaded.any()
