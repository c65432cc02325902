"""Encoded weights by ordinary ReadItems: torch's reader under our planner, torch's planner over our reader."""

from pathlib import Path

import pytest
import reference
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from encoded import Weight, fp8_weights, nvfp4_compressed_tensors, packed_weights
from packed_models import MODELS, PackedModel, Tensors, differing, gpt_oss
from placements import held_indices, take
from test_packed import filled, loaded, native_of
from test_property import fake_mesh, sharded
from test_stored_weights import placements_of, write
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader as TorchReader

GENERATOR = torch.Generator().manual_seed(8)
WEIGHTS = fp8_weights(GENERATOR) + packed_weights(GENERATOR)


def torch_reads(weight: Weight) -> bool:
    """Its reader knows no F8_E8M0."""
    return all(tensor.dtype != torch.float8_e8m0fnu for tensor in weight.stored.values())


READ_BY_TORCH = [weight for weight in WEIGHTS if torch_reads(weight)]
each = pytest.mark.parametrize("weight", READ_BY_TORCH, ids=lambda weight: weight.name)
#: With factored views among them: the rope permutation of torchtitan.
LAYOUTS = [
    (model, layout)
    for model in MODELS
    for layout in model.natives
    if model.name not in ("deepseek_v4", "m3_block_fp8", "kimi_mxfp4")
]
models = pytest.mark.parametrize("model, layout", LAYOUTS, ids=[f"{m.name}-{one}" for m, one in LAYOUTS])


def by_items(state: Tensors, path: Path, **how) -> None:
    dcp.load(state, storage_reader=TorchReader(str(path)), planner=sw.LoadPlanner(**how), no_dist=True)


@each
def test_torchs_reader_brings_what_we_decode(weight: Weight, tmp_path: Path):
    path = write(tmp_path, weight)
    for dtype in (torch.bfloat16, torch.float32):
        expected = weight.decoded(dtype)
        state = {weight.name: torch.full_like(expected, 7)}
        by_items(state, path, layout="huggingface")
        assert reference.same(state[weight.name], expected)


@each
def test_any_shard_of_it(weight: Weight, tmp_path: Path):
    path = write(tmp_path, weight)
    whole = weight.decoded(torch.bfloat16)
    for placements in placements_of(whole.dim()):
        shape = {1: (3,), 2: (2, 2)}[len(placements)]
        for rank in range(4 if len(placements) == 2 else 3):
            with fake_mesh(shape, rank) as mesh:
                held = held_indices(whole.shape, shape, tuple(mesh.get_coordinate()), placements)
                expected = take(whole, held)
                local = torch.full(expected.shape, 7, dtype=torch.bfloat16)
                by_items({weight.name: sharded(local, whole, mesh, placements)}, path, layout="huggingface")
            assert reference.same(local, expected), (placements, rank)


@each
def test_and_what_we_leave_packed(weight: Weight, tmp_path: Path):
    path = write(tmp_path, weight)
    state = filled(sw.empty_state_dict(path, dtype="packed", layout="huggingface"))
    by_items(state, path, layout="huggingface", dtype="packed")
    assert differing(state, native_of(weight)) == []


@models
def test_whole_models_decoded_and_packed(model: PackedModel, layout: str, tmp_path: Path):
    model.write(tmp_path)
    state = filled(sw.empty_state_dict(tmp_path, dtype="packed", layout=layout))
    by_items(state, tmp_path, dtype="packed", layout=layout)
    assert differing(state, loaded(tmp_path, layout=layout)) == []
    expected = sw.empty_state_dict(tmp_path, layout=layout)
    sw.load(expected, tmp_path, layout=layout)
    state = filled(sw.empty_state_dict(tmp_path, layout=layout))
    by_items(state, tmp_path, layout=layout)
    assert differing(state, expected) == []


@pytest.mark.parametrize("layout", ["automodel", "torchtitan"])
def test_blocks_of_gpt_oss(layout: str, tmp_path: Path):
    gpt_oss(tmp_path)
    for how in ({}, {"dtype": "packed"}):
        expected = sw.empty_state_dict(tmp_path, layout=layout, **how)
        sw.load(expected, tmp_path, layout=layout, **how)
        state = filled(sw.empty_state_dict(tmp_path, layout=layout, **how))
        by_items(state, tmp_path, layout=layout, **how)
        assert differing(state, expected) == []


@pytest.mark.parametrize(
    "weight",
    [w for w in WEIGHTS if next(iter(w.stored.values())).dtype != torch.float8_e4m3fn],
    ids=lambda w: w.name,
)
def test_torchs_planner_gets_codes_as_they_are_and_never_as_numbers(weight: Weight, tmp_path: Path):
    """A byte of two elements, cast to BF16, would be a number that nobody stored."""
    path = write(tmp_path, weight)
    reader = sw.HuggingFaceStorageReader(path)
    codes = next(iter(weight.stored))  # the first tensor is that of the codes
    for dtype in (torch.bfloat16, torch.int64):
        state = {codes: torch.full(weight.stored[codes].shape, 7, dtype=dtype)}
        with pytest.raises(CheckpointException, match=codes) as error:
            dcp.load(state, storage_reader=reader, no_dist=True)
        assert f"LoadPlanner decodes it as {weight.name}" in str(error.value)
        assert (state[codes] == 7).all()


def test_a_global_scale_that_is_none(tmp_path: Path):
    weight = nvfp4_compressed_tensors(torch.Generator().manual_seed(9), "m", (4, 32))
    weight.stored["m.weight_global_scale"].fill_(float("nan"))
    path = write(tmp_path, weight)
    state = {"m.weight": torch.full((4, 32), 7, dtype=torch.bfloat16)}
    with pytest.raises(CheckpointException, match="m.weight_global_scale.*expected a positive number"):
        by_items(state, path, layout="huggingface")
    assert (state["m.weight"] == 7).all()


def test_a_scale_that_no_encoder_writes(tmp_path: Path):
    weight = next(weight for weight in WEIGHTS if weight.name == "mxfp4.weight")
    stored = dict(weight.stored) | {"mxfp4.weight_scale": torch.full((20, 3), 255, dtype=torch.uint8)}
    path = write(tmp_path, Weight(weight.name, stored, weight.decoded))
    state = {"mxfp4.weight": torch.full((20, 80), 7, dtype=torch.bfloat16)}
    with pytest.raises(CheckpointException, match="mxfp4.weight_scale.* is the byte 255, which is no number"):
        by_items(state, path, layout="huggingface")
