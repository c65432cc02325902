"""Weights in the encodings of released checkpoints, loaded by any shard into any dtype: see encoded.py."""

import itertools
import json
from pathlib import Path

import pytest
import reference
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from encoded import (
    Tensors,
    Weight,
    e2m1,
    fp8_weights,
    int4,
    mxfp4_packed,
    nvfp4_modelopt,
    over_blocks,
    packed_weights,
)
from placements import held_indices, take
from safetensors.torch import load_file, save_file
from shardwright.cli.command_line import main
from test_property import fake_mesh, sharded
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

GENERATOR = torch.Generator().manual_seed(1)
WEIGHTS = fp8_weights(GENERATOR) + packed_weights(GENERATOR)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
each = pytest.mark.parametrize("weight", WEIGHTS, ids=lambda weight: weight.name)


def held(path: Path) -> Tensors:
    return {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}


def write(path: Path, *weights: Weight) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    stored = {name: tensor for weight in weights for name, tensor in weight.stored.items()}
    save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    return path


@each
def test_a_whole_weight_is_decoded_as_the_definition_says(weight: Weight, tmp_path: Path):
    path = write(tmp_path, weight)
    for dtype in DTYPES:
        expected = weight.decoded(dtype)
        state = {weight.name: torch.full_like(expected, 7)}
        sw.load(state, path, layout="huggingface")
        assert reference.same(state[weight.name], expected), dtype


def placements_of(rank: int) -> list:
    """Every way to shard it over a mesh of one dimension or two."""
    dims = range(rank)
    one = [[Shard(d)] for d in dims] + [[_StridedShard(d, split_factor=3)] for d in dims] + [[Replicate()]]
    two = [[a, b] for a, b in itertools.product([Shard(d) for d in dims], repeat=2)]
    return one + two


@each
def test_every_shard_is_that_part_of_the_whole(weight: Weight, tmp_path: Path):
    path = write(tmp_path, weight)
    whole = weight.decoded(torch.bfloat16)
    for placements in placements_of(whole.dim()):
        shape = {1: (3,), 2: (2, 2)}[len(placements)]
        for rank in range(len(placements) * 2 if len(placements) == 2 else 3):
            with fake_mesh(shape, rank) as mesh:
                held = held_indices(whole.shape, shape, tuple(mesh.get_coordinate()), placements)
                expected = take(whole, held)
                local = torch.full(expected.shape, 7, dtype=torch.bfloat16)
                sw.load(
                    {weight.name: sharded(local, whole, mesh, placements)},
                    path,
                    layout="huggingface",
                    staging_bytes=1 << 16,
                    threads=1,
                )
            assert reference.same(local, expected), (placements, rank)


def test_long_rows_are_staged_in_pieces_that_begin_inside_a_byte(tmp_path: Path):
    """Of 4 KiB each, which cuts rows; the shard's first column is the upper half of its byte."""
    generator = torch.Generator().manual_seed(3)
    for weight in (
        mxfp4_packed(generator, "long", (3, 40_000)),
        int4(generator, "long", (3, 40_000), 32, False),
        nvfp4_modelopt(generator, "long", (3, 40_000)),
    ):
        path = write(tmp_path / str(len(weight.stored)), weight)
        whole = weight.decoded(torch.bfloat16)
        for rank in (1, 6):  # begins with column 5,715, and with column 34,290
            with fake_mesh((7,), rank) as mesh:
                held = held_indices(whole.shape, (7,), (rank,), [Shard(1)])
                local = torch.full((3, len(held[1])), 7, dtype=torch.bfloat16)
                state = {weight.name: sharded(local, whole, mesh, [Shard(1)])}
                sw.load(state, path, layout="huggingface", staging_bytes=4096, threads=1)
            assert reference.same(local, take(whole, held))


@each
def test_what_a_load_needs_is_what_the_file_has_for_the_weight(weight: Weight, tmp_path: Path):
    path = write(tmp_path, weight)
    ignored = ("input_scale", "input_global_scale", "weight_shape")  # which decoding takes nothing of
    needed = sum(t.nbytes for name, t in weight.stored.items() if not name.endswith(ignored))
    state = {weight.name: torch.zeros(weight.decoded(torch.bfloat16).shape, dtype=torch.bfloat16)}
    report = sw.load(state, path, layout="huggingface")
    scales = next(t for name, t in weight.stored.items() if "_scale" in name or name.endswith(".scale"))
    spare = scales[-1].nbytes if weight.name == "more_rows.weight" else 0
    assert report.bytes_needed == needed - spare
    assert report.unused == [] and report.unknown == []


@each
def test_anybody_elses_planner_gets_what_is_stored(weight: Weight, tmp_path: Path):
    path = write(tmp_path, weight)
    raw = {name: torch.zeros_like(tensor) for name, tensor in weight.stored.items()}
    dcp.load(raw, storage_reader=sw.HuggingFaceStorageReader(path), no_dist=True)
    for name, tensor in weight.stored.items():
        assert raw[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8)), name


def test_inspect_says_what_is_stored_how(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    stored = [weight for weight in WEIGHTS if weight.name in ("mxfp4.weight", "nvfp4.weight", "int4.weight")]
    path = write(tmp_path, *stored)
    main(["inspect", str(path), "--json"])
    facts = json.loads(capsys.readouterr().out)["stored"]
    assert set(facts) == {"mxfp4", "nvfp4_modelopt", "int4_group32"}
    for weight in stored:
        alike = [
            fact for fact in facts.values() if fact["parameters"] == weight.decoded(torch.bfloat16).numel()
        ]
        assert any(fact["bytes"] == sum(t.nbytes for t in weight.stored.values()) for fact in alike)
    main(["inspect", str(path)])
    assert "stored as mxfp4" in capsys.readouterr().out


def test_minimax_m3s_third_release_loads_and_goes_back_as_it_was(tmp_path: Path):
    """Experts in NVFP4, the rest in MXFP8."""
    sw.generate(tmp_path / "m3", "tiny", encoding="nvfp4_modelopt", values="any")
    state = sw.empty_state_dict(tmp_path / "m3")
    report = sw.load(state, tmp_path / "m3")
    assert report.unused == [] and report.unknown == []
    stored = held(tmp_path / "m3")
    experts = [name for name in stored if ".experts." in name and name.endswith(".weight")]
    assert len(experts) > 10
    for name in experts:
        scales = stored[f"{name}_scale"].float() * stored[f"{name}_scale_2"]
        elements = e2m1(stored[name], 0.0).float()
        values = elements * over_blocks(scales, elements.shape, 1, 16)
        plain = {name: torch.zeros(values.shape, dtype=torch.bfloat16)}
        sw.load(plain, tmp_path / "m3", layout="huggingface", strict=False)
        assert reference.same(plain[name], values.to(torch.bfloat16)), name
    sw.export(state, tmp_path / "to", quantization="template", template=tmp_path / "m3")
    back = held(tmp_path / "to")
    assert back.keys() == stored.keys()
    for name, tensor in stored.items():
        assert back[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8)), name
