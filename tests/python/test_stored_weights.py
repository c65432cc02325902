"""Weights in the encodings of released checkpoints, loaded by any shard into any dtype. See encoded.py for what they are."""

import itertools
from pathlib import Path

import pytest
import reference
import shardwright as sw
import torch
from encoded import Weight, fp8_weights, int4, mxfp4_packed, nvfp4_modelopt, packed_weights
from placements import held_indices, take
from safetensors.torch import save_file
from test_property import fake_mesh, sharded
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

GENERATOR = torch.Generator().manual_seed(1)
WEIGHTS = fp8_weights(GENERATOR) + packed_weights(GENERATOR)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
each = pytest.mark.parametrize("weight", WEIGHTS, ids=lambda weight: weight.name)


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
