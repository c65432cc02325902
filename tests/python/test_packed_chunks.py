"""Packed weights that files hold in chunks, and trainers' own checkpoints of packed tensors."""

import json
from pathlib import Path

import pytest
import reference
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from encoded import Weight, fp8_weights, packed_weights
from packed_models import MODELS, differing
from placements import held_indices, take
from safetensors.torch import save_file
from test_packed import filled, loaded, native_of
from test_property import fake_mesh, sharded
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader as TorchReader
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter as TorchWriter
from torch.distributed.tensor import Shard

GENERATOR = torch.Generator().manual_seed(10)
WEIGHTS = fp8_weights(GENERATOR) + packed_weights(GENERATOR)
each = pytest.mark.parametrize("weight", WEIGHTS, ids=lambda weight: weight.name)


def cut(size: int, pieces: int) -> list[tuple[int, int]]:
    """(begin, end) of uneven pieces, none empty."""
    pieces = min(size, pieces)
    ends = [size * (i + 1) ** 2 // pieces**2 for i in range(pieces)]
    begins = [0, *ends[:-1]]
    return [(begin, end) for begin, end in zip(begins, ends, strict=True) if end > begin]


def write_in_chunks(path: Path, weight: Weight, dimension: int) -> Path:
    """As torch's HuggingFaceStorageWriter(save_distributed=True) of three ranks, each tensor cut by itself."""
    path.mkdir()
    for rank in range(3):
        tensors, offsets = {}, {}
        for name, tensor in weight.stored.items():
            along = dimension if dimension < tensor.dim() else None
            pieces = [(0, 1)] if along is None else cut(tensor.shape[along], 3)
            if rank >= len(pieces):
                continue
            begin, end = pieces[rank]
            offset = [0] * tensor.dim()
            if along is not None:
                offset[along] = begin
                tensor = tensor.narrow(along, begin, end - begin).contiguous()
            tensors[name], offsets[name] = tensor, {"saved_offsets": offset}
        metadata = {"format": "pt", "DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0"}
        save_file(tensors, path / f"rank-{rank}.safetensors", metadata=metadata)
    return path


@pytest.mark.parametrize("dimension", [0, 1, 2])
@each
def test_chunks_are_decoded_and_left_packed_like_whole_tensors(
    weight: Weight, dimension: int, tmp_path: Path
):
    if any(t.dim() == 4 and dimension == 3 for t in weight.stored.values()):
        return
    path = write_in_chunks(tmp_path / "chunks", weight, dimension)
    expected = weight.decoded(torch.bfloat16)
    if dimension >= expected.dim():
        return
    load = {"storage_reader": sw.HuggingFaceStorageReader(path), "no_dist": True}
    state = {weight.name: torch.full_like(expected, 7)}
    dcp.load(state, planner=sw.LoadPlanner(layout="huggingface"), **load)
    assert reference.same(state[weight.name], expected)

    packed = filled({name: tensor.clone() for name, tensor in native_of(weight).items()})
    dcp.load(packed, planner=sw.LoadPlanner(layout="huggingface", dtype="packed"), **load)
    assert differing(packed, native_of(weight)) == []

    if all(tensor.dtype != torch.float8_e8m0fnu for tensor in weight.stored.values()):
        state = {weight.name: torch.full_like(expected, 7)}
        by_torch = TorchReader(str(path))
        dcp.load(state, storage_reader=by_torch, planner=sw.LoadPlanner(layout="huggingface"), no_dist=True)
        assert reference.same(state[weight.name], expected)


@each
def test_shards_of_chunks(weight: Weight, tmp_path: Path):
    whole = weight.decoded(torch.bfloat16)
    last = whole.dim() - 1
    path = write_in_chunks(tmp_path / "chunks", weight, last)
    for rank in range(3):
        with fake_mesh((3,), rank) as mesh:
            part = held_indices(whole.shape, (3,), (rank,), [Shard(last)])
            local = torch.full([len(indices) for indices in part], 7, dtype=torch.bfloat16)
            dcp.load(
                {weight.name: sharded(local, whole, mesh, [Shard(last)])},
                storage_reader=sw.HuggingFaceStorageReader(path),
                planner=sw.LoadPlanner(layout="huggingface"),
                no_dist=True,
            )
        assert reference.same(local, take(whole, part)), rank


@pytest.mark.parametrize("writer", ["shardwright", "safetensors", "torch"])
@each
def test_what_a_trainer_saves_under_the_files_names_is_resumed_as_it_is(
    writer: str, weight: Weight, tmp_path: Path
):
    if writer == "shardwright":
        sw.save(dict(weight.stored), tmp_path)
    elif writer == "safetensors":
        sw.save(dict(weight.stored), tmp_path, format="safetensors")
    else:
        torchs = TorchWriter(str(tmp_path), save_distributed=True)
        dcp.save(dict(weight.stored), storage_writer=torchs, no_dist=True)
    state = filled({name: tensor.clone() for name, tensor in weight.stored.items()})
    sw.load(state, tmp_path)
    assert differing(state, weight.stored) == []


@pytest.mark.parametrize("writer", ["shardwright", "safetensors"])
@pytest.mark.parametrize("layout", ["automodel", "transformers"])
@pytest.mark.parametrize("name", ["m3_nvfp4", "kimi_k2_int4", "kimi_mxfp4", "deepseek_v3_fp8"])
def test_a_packed_tensor_is_resumed_as_packed_and_as_nothing_else(
    name: str, layout: str, writer: str, tmp_path: Path
):
    model = next(model for model in MODELS if model.name == name)
    model.write(tmp_path / "from")
    expected = loaded(tmp_path / "from", layout=layout)
    sw.save(expected, tmp_path / "saved", **({} if writer == "shardwright" else {"format": "safetensors"}))
    state = filled({fqn: tensor.clone() for fqn, tensor in expected.items()})
    sw.load(state, tmp_path / "saved")
    assert differing(state, expected) == []

    if name == "deepseek_v3_fp8":
        return
    fqn = next(fqn for fqn in state if fqn.endswith("down_projs" if layout == "automodel" else "down_proj"))
    wide = {fqn: torch.full(expected[fqn].shape, 7, dtype=torch.bfloat16)}
    with pytest.raises(sw.PlanError, match=f"{fqn}.*holds packed codes"):
        sw.load(wide, tmp_path / "saved")
    assert (wide[fqn] == 7).all()


def test_codes_under_the_files_names_are_no_numbers(tmp_path: Path):
    for weight in WEIGHTS:
        codes = next(iter(weight.stored))
        if weight.stored[codes].dtype == torch.float8_e4m3fn:
            continue
        sw.save(dict(weight.stored), tmp_path / codes)
        state = {codes: torch.full(weight.stored[codes].shape, 7, dtype=torch.bfloat16)}
        with pytest.raises(sw.PlanError, match=f"{codes}.*holds packed codes"):
            sw.load(state, tmp_path / codes)
        assert (state[codes] == 7).all()
