"""`sw.pieces` in one process: its pieces, put together, are the tensors of the files that `sw.export` writes."""

import random
import zlib
from pathlib import Path
from unittest import mock

import pytest
import shardwright as sw
import torch
from handed_over import exported, of_all_ranks, put_together, wrong_tensors
from shardwright import _core
from shardwright.handover import buckets
from shardwright.handover.buckets import Bucket
from shardwright.peak_memory import measure_peak_memory
from torch.distributed.tensor import Replicate, Shard

FAMILIES = {one.name: one for one in _core.families()}
FORMS = [(name, form) for name in FAMILIES for form in _core.sample_forms(name)]
MESHES = [(1,), (2,), (4,), (2, 2)]


def loaded(path: Path, layout: str = "automodel") -> dict[str, torch.Tensor]:
    state = sw.empty_state_dict(path, layout=layout)
    sw.load(state, path, layout=layout, strict=False)
    return state


@pytest.fixture(scope="module")
def state(small: Path) -> dict[str, torch.Tensor]:
    return loaded(small)


@pytest.mark.parametrize("quantization", [None, "mxfp8", "template"])
def test_they_are_the_files_of_an_export(state, small: Path, tmp_path: Path, quantization: str | None):
    found = put_together(sw.pieces(state, quantization=quantization, template=small, bucket_bytes="2MiB"))
    sw.export(state, tmp_path / "to", quantization=quantization, template=small)
    assert wrong_tensors(found, exported(tmp_path / "to")) == []


@pytest.mark.families
@pytest.mark.parametrize("family, form", FORMS, ids=[f"{name}, {form}" for name, form in FORMS])
def test_of_any_family_on_any_mesh_in_any_encoding(family: str, form: str, tmp_path: Path):
    """Shards of every rank, one rank after the other; what an export refuses, so do they, in the same words."""
    chosen = random.Random(zlib.crc32(f"{family} {form}".encode()))
    source = tmp_path / "from"
    sw.generate(source, family=family, form=form)
    layout = chosen.choice([*FAMILIES[family].layouts, "huggingface"])
    state = loaded(source, layout)
    compared = 0
    for quantization in [None, "template", *chosen.sample(sw.quantizations(), 3)]:
        options = {"quantization": quantization, "template": source, "layout": layout, "strict": False}
        mesh = chosen.choice(MESHES)
        placements = {
            name: [chosen.choice([Replicate(), *map(Shard, range(tensor.dim()))]) for _ in mesh]
            for name, tensor in state.items()
        }
        bucket = chosen.choice(["128KiB", "1MiB"])
        try:
            sw.export(state, tmp_path / f"{quantization}", **options)
        except sw.PlanError as error:
            with pytest.raises(sw.PlanError) as refused:
                put_together(sw.pieces(state, **options))
            assert lines(refused.value) == lines(error), quantization
            continue
        try:
            found = put_together(of_all_ranks(state, mesh, placements, bucket_bytes=bucket, **options))
        except sw.PlanError as error:
            assert quantization == "template" and "shares a byte" in str(error)  # cut in the middle of a byte
            continue
        assert wrong_tensors(found, exported(tmp_path / f"{quantization}")) == [], (
            quantization,
            mesh,
            bucket,
        )
        compared += 1
    assert compared >= 1


def lines(error: Exception) -> list[str]:
    """What it says of tensors, without what an export says of files."""
    return sorted(
        line.removeprefix("rank 0: ").split("; nothing")[0] for line in str(error).split("\n  ")[1:]
    )


def test_layers_come_in_order_and_scales_right_behind_their_weights(state, small: Path):
    pieces = list(sw.pieces(state, quantization="mxfp8", template=small, bucket_bytes="128KiB"))
    places = [piece.place for piece in pieces]
    assert places == sorted(places)
    layers = list(dict.fromkeys(piece.layer for piece in pieces))
    numbers = [int(name.rpartition(".")[2]) for name in layers if ".language_model.layers." in f".{name}"]
    assert numbers == sorted(numbers) and len(set(layers)) == len(layers)
    for before, piece in zip(pieces, pieces[1:], strict=False):
        if piece.name.endswith("_scale_inv"):
            assert before.name == piece.name.removesuffix("_scale_inv")
            assert before.box[0] == piece.box[0]


def test_memory_is_two_buckets_whatever_the_state_is(state, small: Path, monkeypatch):
    made = []

    class Counted(Bucket):
        def __init__(self, size: int) -> None:
            made.append(size)
            super().__init__(size)

    monkeypatch.setattr("shardwright.handover.buckets.Bucket", Counted)
    options = {"quantization": "mxfp8", "template": small, "bucket_bytes": "256KiB"}
    sizes = [piece.tensor.nbytes for piece in sw.pieces(state, **options)]
    assert len(made) == 2 and sum(made) <= 256 << 10
    assert sum(sizes) > 4 * sum(made) and 32 << 10 <= max(sizes) <= 128 << 10
    kept = list(sw.pieces(state, **options))  # whose memory is not used again
    assert wrong_tensors(put_together(kept), put_together(sw.pieces(state, **options))) == []


def test_resident_memory_stays_within_buckets_and_staging(capsys):
    weights = {f"model.layers.{n}.weight": torch.randn(2048, 4096).bfloat16() for n in range(8)}
    options = {"quantization": "mxfp8", "layout": "huggingface", "quantized_weights": ["*.weight"]}
    options |= {"bucket_bytes": "16MiB", "threads": 2, "staging_bytes": 2 << 20}
    for _ in sw.pieces({"a.weight": torch.randn(64, 64)}, **options):
        pass  # so that what libraries take once is there
    with measure_peak_memory() as peak:
        handed = sum(piece.tensor.nbytes for piece in sw.pieces(weights, **options))
    with capsys.disabled():
        print(
            f"\n{handed >> 20} MiB of pieces in 16 MiB of buckets and 2 of staging: {peak.bytes / 2**20:.1f} MiB",
            end=" ",
        )
    assert handed > 64 << 20
    assert peak.bytes <= (16 + 2 + 4) << 20


def test_a_run_that_is_left_early_ends(state, small: Path):
    pieces = sw.pieces(state, template=small, bucket_bytes="128KiB")
    next(pieces)
    pieces.close()
    assert list(pieces) == []
    sw.pieces(state, template=small)  # and one that is never begun


@pytest.mark.parametrize(
    "options, message",
    [
        ({"quantization": "fp9"}, "quantization is 'fp9'"),
        ({"quantization": "template"}, "expected template="),
        ({"bucket_bytes": 1000}, "bucket_bytes is 1000"),
        ({"bucket_bytes": "much"}, "bucket_bytes is 'much'"),
        ({"threads": 0}, "threads is 0"),
        ({"changed_since": {}}, "changed_since: expected"),
    ],
)
def test_wrong_arguments_are_refused_at_once(state, options, message: str):
    with pytest.raises(ValueError, match=message):
        sw.pieces(state, **options)


def test_a_state_that_does_not_fit_its_template_is_refused_before_the_first_piece(state, small: Path):
    other = dict(state)
    name = next(name for name in other if name.endswith("norm.weight"))
    other[name] = torch.zeros(3)
    with pytest.raises(sw.PlanError, match=name.replace(".", r"\.")):
        sw.pieces(other, template=small)
    with pytest.raises(sw.PlanError, match="an HF checkpoint holds no others, found int"):
        sw.pieces({**state, "step": 7}, template=small)


def test_values_that_cannot_be_encoded_are_refused_by_name(tmp_path: Path):
    weights = {"a.weight": torch.ones(64, 64), "b.weight": torch.ones(64, 64)}
    weights["b.weight"][5, 7] = float("inf")
    options = {"layout": "huggingface", "quantized_weights": ["*.weight"]}
    with pytest.raises(sw.PlanError, match="b.weight: expected finite values"):
        sw.pieces(weights, quantization="nvfp4-modelopt", **options)  # the ranks tell each other the largest
    with pytest.raises(sw.PlanError, match=r"b.weight: is infinite at b.weight \[5, 7\]"):
        list(sw.pieces(weights, quantization="block_fp8", **options))


def test_memory_that_the_system_refuses_is_told_by_the_option_that_asks_for_less(monkeypatch):
    state = {f"model.layers.{number}.w.weight": torch.ones(64, 512) for number in range(40)}
    monkeypatch.setattr(buckets.mmap, "mmap", mock.Mock(side_effect=OSError(12, "Cannot allocate memory")))
    with pytest.raises(
        MemoryError, match=r"cannot take \d+ bytes for pieces .*; pass a smaller bucket_bytes"
    ):
        list(sw.pieces(state, layout="huggingface"))
