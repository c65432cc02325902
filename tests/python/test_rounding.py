"""Casts that lose bits are listed in reports, and refused where the caller says so."""

import json
from pathlib import Path

import pytest
import reference
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from checkpoints import Sizes, Tensor, write_checkpoint, write_m3
from destinations import destinations_like, state_of
from outcomes import outcome_of
from shardwright import _core
from shardwright.cli.command_line import main
from shardwright.describe import DTYPES
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter as TorchWriter

pytestmark = pytest.mark.ranks

GATE = "model.layers.1.mlp.gate.weight"
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"


def every_number(dtype: torch.dtype) -> torch.Tensor:
    """All numbers of a dtype of up to 16 bits; of a wider one those that another may lack."""
    if dtype == torch.bool:
        return torch.tensor([False, True])
    if dtype.itemsize <= 2:
        integers = torch.uint8 if dtype.itemsize == 1 else torch.int16
        codes = torch.arange(1 << 8 * dtype.itemsize, dtype=torch.int32)
        codes = codes.to(torch.uint8) if dtype.itemsize == 1 else (codes - (1 << 15)).to(integers)
        return codes.view(dtype)
    if dtype.is_complex:
        parts = every_number(torch.float32)
        return torch.complex(torch.cat([parts, 0 * parts]), torch.cat([0 * parts, parts]))
    if dtype.is_floating_point:
        info, digits = torch.finfo(dtype), {4: 23, 8: 52}[dtype.itemsize]
        one = 1 + 2.0**-digits
        tiny = 2.0 ** (-149 if digits == 23 else -1074)
        numbers = [0, one, 2 - 2.0**-digits, info.max, info.tiny, tiny, float("inf")]
        return torch.tensor([*numbers, *(-number for number in numbers)], dtype=dtype)
    info = torch.iinfo(dtype)
    numbers = {info.min, info.max, info.max - 1, 0, 1, info.max // 2 + 1}
    return torch.tensor(sorted(numbers), dtype=dtype)


def as_numbers(values: torch.Tensor) -> list[complex | int | None]:
    """Exactly, and None for what is not a number."""
    if values.dtype.itemsize == 1 and values.dtype.is_floating_point:
        values = values.float()
    numbers = [complex(v) if isinstance(v, (float, complex)) else int(v) for v in values.tolist()]
    return [None if isinstance(n, complex) and n != n else n for n in numbers]


def keeps_all(to: torch.dtype, source: torch.dtype) -> bool:
    """What torch's own casts say."""
    values = every_number(source)
    values = values[torch.tensor([number is not None for number in as_numbers(values)])]
    through = values.float() if source.itemsize == 1 and source.is_floating_point else values
    there = through.to(to)
    return as_numbers(there) == as_numbers(values)


@pytest.mark.parametrize("source", DTYPES)
def test_which_dtypes_hold_all_numbers_of_another(source: str):
    """E8M0 as a destination has no zero, which torch's cast does not say; integers are compared as integers."""
    for to in DTYPES:
        if "F8_E8M0" in (source, to):
            continue
        if DTYPES[source].is_complex and not DTYPES[to].is_complex:
            expected = False
        else:
            expected = keeps_all(DTYPES[to], DTYPES[source])
        assert _core.holds_all(to, source) == expected, f"{source} -> {to}"


def test_powers_of_two():
    held = [name for name in DTYPES if _core.holds_all(name, "F8_E8M0")]
    assert held == ["F8_E8M0", "BF16", "F32", "F64", "C64"]
    assert [name for name in DTYPES if _core.holds_all("F8_E8M0", name)] == ["F8_E8M0"]


# --- exports ---------------------------------------------------------------------------------------------------


def trained(path: Path, *wide: str) -> dict[str, torch.Tensor]:
    """What a trainer has of the checkpoint; these tensors in F32."""
    state = reference.native(path)
    return state | {name: state[name].float() for name in wide}


def test_an_export_to_a_template_lists_what_it_rounds(tmp_path: Path):
    template = write_m3(tmp_path / "template")
    state = trained(template, GATE, "model.norm.weight", BIAS)  # the bias is F32 in the template, too
    report = sw.export(state, tmp_path / "to", template=template, quantization="mxfp8")
    assert report.rounded == {GATE: "F32 -> BF16", "model.norm.weight": "F32 -> BF16"}
    assert "rounded" in str(report) and f"{GATE}: F32 -> BF16" in str(report)
    assert sw.export(trained(template), tmp_path / "alike", template=template).rounded == {}
    wide = write_m3(tmp_path / "wide", plain_dtype="F32")
    assert sw.export(state, tmp_path / "widened", template=wide, quantization="mxfp8").rounded == {}


def test_weights_that_quantization_encodes_are_not_rounded_but_those_of_a_plain_export_are(tmp_path: Path):
    template = write_m3(tmp_path / "template")
    q_proj = "model.layers.0.self_attn.q_proj.weight"
    state = trained(template, q_proj)
    assert sw.export(state, tmp_path / "fp8", template=template, quantization="mxfp8").rounded == {}
    assert sw.export(state, tmp_path / "bf16", template=template).rounded == {q_proj: "F32 -> BF16"}


def test_an_export_without_a_template_lists_what_it_rounds(tmp_path: Path):
    template = write_m3(tmp_path / "template")
    report = sw.export(trained(template, GATE), tmp_path / "to")
    wide = {name for name, tensor in trained(template, GATE).items() if tensor.dtype != torch.bfloat16}
    assert GATE in wide and BIAS in wide
    assert report.rounded == {
        name: f"{'F32' if trained(template, GATE)[name].dtype == torch.float32 else 'F16'} -> BF16"
        for name in wide
    }
    unknown = {"a": torch.ones(3), "b": torch.ones(3, dtype=torch.float16)}
    assert sw.export(unknown, tmp_path / "unknown").rounded == {}  # which keeps its dtypes


def test_strict_dtypes_refuses_an_export_with_all_names_and_writes_nothing(tmp_path: Path):
    template = write_m3(tmp_path / "template")
    state = trained(template, GATE, "model.norm.weight", "model.layers.0.input_layernorm.weight")
    with pytest.raises(sw.PlanError) as refused:
        sw.export(state, tmp_path / "to", template=template, strict_dtypes=True)
    for name in (GATE, "model.norm.weight", "model.layers.0.input_layernorm.weight"):
        assert f"{name}: F32 -> BF16" in str(refused.value)
    assert "strict_dtypes=False" in str(refused.value) and "q_proj" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["template"]
    assert sw.export(trained(template), tmp_path / "to", template=template, strict_dtypes=True).rounded == {}


def test_the_writer_refuses_as_well(tmp_path: Path):
    template = write_m3(tmp_path / "template")
    writer = sw.HuggingFaceStorageWriter(tmp_path / "to", template=template, strict_dtypes=True)
    with pytest.raises(CheckpointException, match="F32 -> BF16"):
        dcp.save(trained(template, GATE), storage_writer=writer, planner=sw.SavePlanner(), no_dist=True)
    assert not (tmp_path / "to").exists()


def test_the_command_line_refuses_and_shows(tmp_path: Path, capsys):
    wide = write_m3(tmp_path / "wide", Sizes(vision_layers=0), plain_dtype="F32")
    template = write_m3(tmp_path / "template", Sizes(vision_layers=0))
    command = ["export", str(wide), str(tmp_path / "to"), "--template", str(template)]
    assert main([*command, "--strict-dtypes"]) != 0
    assert "lm_head.weight: F32 -> BF16" in capsys.readouterr().err and not (tmp_path / "to").exists()
    assert main(command) == 0
    assert "F32 -> BF16" in capsys.readouterr().out


# --- loads -----------------------------------------------------------------------------------------------------


def test_a_load_lists_what_it_rounds(tmp_path: Path):
    path = write_m3(tmp_path / "from")
    state = {name: torch.empty_like(tensor) for name, tensor in reference.native(path).items()}
    assert sw.load(state, path).rounded == {}
    state[BIAS] = state[BIAS].bfloat16()
    state[GATE] = state[GATE].to(torch.float16)
    state["model.norm.weight"] = state["model.norm.weight"].double()
    state["model.layers.0.self_attn.q_proj.weight"] = torch.empty(20, 40, dtype=torch.float16)  # decoded
    report = sw.load(state, path)
    assert report.rounded == {BIAS: "F32 -> BF16", GATE: "BF16 -> F16"}
    assert f"{BIAS}: F32 -> BF16" in str(report)


@pytest.mark.parametrize("by", ["load", "planner", "reader"])
def test_strict_dtypes_refuses_a_load_before_anything_is_written(by: str, tmp_path: Path):
    path = write_m3(tmp_path / "from")
    expected = reference.native(path)
    expected |= {BIAS: expected[BIAS].bfloat16(), GATE: expected[GATE].half()}
    destinations = destinations_like(expected)
    state = state_of(destinations)
    with pytest.raises((sw.PlanError, CheckpointException)) as refused:
        if by == "load":
            sw.load(state, path, strict_dtypes=True)
        else:
            reader = sw.HuggingFaceStorageReader(path, strict_dtypes=by == "reader")
            planner = sw.LoadPlanner(strict_dtypes=by == "planner")
            dcp.load(state, storage_reader=reader, planner=planner, no_dist=True)
    assert f"{BIAS}: F32 -> BF16" in str(refused.value) and f"{GATE}: BF16 -> F16" in str(refused.value)
    assert [name for name in destinations if not destinations[name].untouched()] == []
    state = {name: torch.empty_like(tensor) for name, tensor in reference.native(path).items()}
    assert sw.load(state, path, strict_dtypes=True).rounded == {}


def write_plain(path: Path, writer: str) -> dict[str, str]:
    """A checkpoint of tensors that a load may round, and how."""
    tensors = {
        "wide": torch.ones(3),
        "double": torch.ones(3, dtype=torch.float64),
        "steps": torch.arange(3),
        "small": torch.arange(3, dtype=torch.int16),
        "half": torch.ones(3, dtype=torch.bfloat16),
    }
    if writer == "hf":
        names = {dtype: name for name, dtype in DTYPES.items()}
        stored = {
            n: Tensor(names[t.dtype], (3,), t.view(torch.uint8).numpy().tobytes()) for n, t in tensors.items()
        }
        write_checkpoint(path, stored)
    elif writer == "shardwright":
        sw.save(tensors, path)
    elif writer == "torch":
        dcp.save(tensors, checkpoint_id=path, no_dist=True)
    else:
        dcp.save(tensors, storage_writer=TorchWriter(str(path), save_distributed=True), no_dist=True)
    return {
        "wide": "F32 -> BF16",
        "double": "F64 -> F32",
        "steps": "I64 -> I32",
    }


def narrower() -> dict[str, torch.Tensor]:
    return {
        "wide": torch.full((3,), 7, dtype=torch.bfloat16),
        "double": torch.full((3,), 7.0),
        "steps": torch.full((3,), 7, dtype=torch.int32),
        "small": torch.full((3,), 7.0),
        "half": torch.full((3,), 7.0),
    }


@pytest.mark.parametrize("writer", ["hf", "shardwright", "torch_distributed"])
def test_torchs_planner_rounds_what_is_listed(writer: str, tmp_path: Path):
    rounded = write_plain(tmp_path / "from", writer)
    reader_of = sw.HuggingFaceStorageReader if writer == "hf" else sw.ShardedStorageReader
    state, reader = narrower(), reader_of(tmp_path / "from")
    dcp.load(state, storage_reader=reader, no_dist=True)
    assert reader.report.rounded == rounded
    assert state["wide"].tolist() == [1, 1, 1] and state["steps"].tolist() == [0, 1, 2]
    state = narrower()
    with pytest.raises(CheckpointException) as refused:
        dcp.load(state, storage_reader=reader_of(tmp_path / "from", strict_dtypes=True), no_dist=True)
    assert [name for name in rounded if f"{name}: {rounded[name]}" not in str(refused.value)] == []
    assert all(tensor.eq(7).all() for tensor in state.values())


@pytest.mark.parametrize("writer", ["shardwright", "torch", "torch_distributed"])
def test_strict_dtypes_refuses_to_resume(writer: str, tmp_path: Path):
    rounded = write_plain(tmp_path / "from", writer)
    state = narrower()
    with pytest.raises(sw.PlanError) as refused:
        sw.load(state, tmp_path / "from", strict_dtypes=True)
    assert [name for name in rounded if f"{name}: {rounded[name]}" not in str(refused.value)] == []
    assert "small" not in str(refused.value) and "half" not in str(refused.value)
    assert all(tensor.eq(7).all() for tensor in state.values())
    report = sw.load(narrower(), tmp_path / "from")
    assert report.rounded == rounded


# --- ranks -----------------------------------------------------------------------------------------------------


def test_all_ranks_of_an_export_tell_the_same(tmp_path: Path):
    outcome = outcome_of("rounding.py", 2, write_m3(tmp_path / "template"), tmp_path)
    assert not outcome["listed"], outcome["listed"]
    assert not outcome["refused"], outcome["refused"]
    assert json.dumps(sorted(outcome)) == '["listed", "refused"]'
