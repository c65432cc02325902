"""Verify names the scales that loads refuse, before anything is loaded."""

from pathlib import Path

import pytest
import shardwright as sw
import torch
from encoded import Weight, fp8_weights, packed_weights
from test_stored_weights import write

GENERATOR = torch.Generator().manual_seed(11)
WEIGHTS = fp8_weights(GENERATOR) + packed_weights(GENERATOR)
each = pytest.mark.parametrize("weight", WEIGHTS, ids=lambda weight: weight.name)


def is_of_scales(name: str) -> bool:
    """Scales of activations are no matter of the weight's."""
    return "scale" in name and "input" not in name


def odd_values(scales: torch.Tensor) -> list[float]:
    """What no encoder writes there; of e8m0 the byte."""
    if scales.dtype in (torch.uint8, torch.float8_e8m0fnu):
        return [255]
    if scales.dtype == torch.float8_e4m3fn:
        return [float("nan"), -1.0]
    return [float("nan"), -1.0, float("inf")]


def with_one(scales: torch.Tensor, at: int, value: float) -> torch.Tensor:
    damaged = scales.clone()
    is_byte = scales.dtype in (torch.uint8, torch.float8_e8m0fnu)
    (damaged.view(torch.uint8) if is_byte else damaged).view(-1)[at] = value
    return damaged


@each
def test_what_is_right_is_no_finding(weight: Weight, tmp_path: Path):
    report = sw.verify(write(tmp_path, weight))
    assert report.problems == [] and report.damaged == []


@each
def test_one_odd_scale_is_named_by_verify_and_ends_a_load(weight: Weight, tmp_path: Path):
    for name in filter(is_of_scales, weight.stored):
        scales = weight.stored[name]
        at = int(torch.randint(0, scales.numel(), (), generator=GENERATOR))
        if weight.name.startswith("more_rows"):  # not one of those to spare
            at = 0
        for value in odd_values(scales):
            stored = dict(weight.stored) | {name: with_one(scales, at, value)}
            path = write(tmp_path, Weight(weight.name, stored, weight.decoded))
            report = sw.verify(path)
            (line,) = report.problems
            assert line.startswith(f"{name} in model"), line
            assert f"scale number {at} " in line or "global scale" in line, line
            assert report.damaged == [name]
            state = {weight.name: torch.zeros_like(weight.decoded(torch.bfloat16))}
            with pytest.raises((sw.PlanError, sw.CheckpointFormatError), match=name):
                sw.load(state, path, layout="huggingface")


def test_rows_to_spare_are_no_matter(tmp_path: Path):
    scales = torch.rand(3, 1) + 0.5
    scales[2] = float("nan")
    stored = {"m.weight": torch.ones(200, 64).to(torch.float8_e4m3fn), "m.weight_scale_inv": scales}
    path = write(tmp_path, Weight("m.weight", stored, torch.ones))
    assert sw.verify(path).problems == []
    state = {"m.weight": torch.zeros(200, 64)}
    sw.load(state, path, layout="huggingface")
    assert torch.equal(state["m.weight"], scales[:2].repeat_interleave(128, 0)[:200].expand(200, 64))


def test_rows_that_may_be_those_of_equal_parts_are_refused(tmp_path: Path):
    """Four heads of 192 rows have two blocks of 128 each; all together they have six."""
    stored = {"m.weight": torch.ones(768, 8).to(torch.float8_e4m3fn), "m.weight_scale_inv": torch.ones(8, 1)}
    path = write(tmp_path, Weight("m.weight", stored, torch.ones))
    state = {"m.weight": torch.zeros(768, 8)}
    with pytest.raises(sw.PlanError, match=r"m.weight_scale_inv in .*4 parts of 192 rows.*expected 6"):
        sw.load(state, path, layout="huggingface")
    assert not state["m.weight"].any()


def test_a_multiplier_of_plain_weights_may_be_any_number(tmp_path: Path):
    path = write(
        tmp_path,
        Weight("m.weight", {"m.weight": torch.ones(4), "m.weight_scale": -torch.ones(4)}, torch.ones),
    )
    assert sw.verify(path).problems == []
