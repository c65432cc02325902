"""Damage is noticed by default: blocks that a load reads whole are compared with the checksums of the save."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import shardwright as sw
import torch
import xxhash
from safetensors import safe_open

BLOCK, CELL = 4 << 20, 64 << 10


def sums_by_definition(data: bytes, row_bytes: int, cuts: list[int]) -> list[int]:
    """storage/format/row_checksums.h, cell by cell."""
    sums = [0] * -(-len(data) // BLOCK)
    at = 0
    while at < len(data):
        row = at // row_bytes * row_bytes
        ends = [row + cut for cut in [*cuts, row_bytes]]
        ends += [row + (at - row) // CELL * CELL + CELL, at // BLOCK * BLOCK + BLOCK]
        end = min(end for end in ends if end > at)
        sums[at // BLOCK] += xxhash.xxh3_64_intdigest(data[at:end], seed=at)
        at = end
    return [total % (1 << 64) for total in sums]


@pytest.fixture
def state() -> dict:
    draw = torch.Generator().manual_seed(3)
    return {
        "matrix": torch.randn(1100, 2100, generator=draw),  # 9 MB, rows across the ends of blocks
        "wide": torch.randn(2, 70_001, generator=draw).to(torch.bfloat16),
        "flat": torch.randn(1_300_000, generator=draw),
        "stack": torch.randn(3, 5, 40, generator=draw),
        "number": torch.tensor(7.0),
        "complex": torch.randn(5, 3, dtype=torch.complex128, generator=draw),
        "object": "some text" * 9,
    }


def blank(state: dict) -> dict:
    return {
        name: torch.zeros_like(value) if isinstance(value, torch.Tensor) else ""
        for name, value in state.items()
    }


def flip(file: Path, offset: int) -> None:
    with open(file, "r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ 0x10]))


def test_the_sums_of_an_export_are_those_of_the_definition(state: dict, tmp_path: Path):
    from shardwright import _core

    del state["object"], state["complex"]
    sw.export(state, tmp_path, max_shard_size="4MB")
    listed = _core.checksums_of(tmp_path)
    assert listed.keys() == state.keys()
    for file in tmp_path.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                tensor = opened.get_tensor(name)
                data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                row = tensor.shape[-1] * tensor.itemsize if tensor.dim() else tensor.itemsize
                cuts, sums = listed[name]
                assert cuts[-1] == row and sums == sums_by_definition(data, row, cuts[:-1]), name


@pytest.mark.parametrize("kind", ["sharded", "exported"])
def test_a_flipped_byte_anywhere_is_noticed_by_a_load_that_says_nothing(
    kind: str, state: dict, tmp_path: Path
):
    path = tmp_path / "checkpoint"
    if kind == "exported":
        del state["object"], state["complex"]
        sw.export(state, path)
    else:
        sw.save(state, path, format="safetensors")
    options = {} if kind == "sharded" else {"layout": "huggingface", "strict": False}
    names = blank(state)
    choose = random.Random(5)
    refused = 0
    for file in sorted(file for file in path.iterdir() if file.suffix != ".json"):
        size = file.stat().st_size
        offsets = {0, size - 1, *(choose.randrange(size) for _ in range(20))}
        for offset in offsets:
            copy = tmp_path / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(path, copy)
            flip(copy / file.name, offset)
            with pytest.raises((sw.CheckpointFormatError, OSError, sw.PlanError, ValueError)) as error:
                sw.load(blank(names), copy, **options)
            refused += 1
            assert sw.verify(copy).problems, (file, offset)
            assert str(error.value)
    assert refused > 40


def test_what_was_written_before_the_damage_was_noticed_is_named(state: dict, tmp_path: Path):
    sw.save(state, tmp_path, format="safetensors")
    (file,) = tmp_path.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        names = set(opened.keys())
    data = file.read_bytes()
    at = data.index(state["matrix"].numpy().tobytes()) + (BLOCK + 17)
    flip(file, at)
    loaded = blank(state)
    with pytest.raises(sw.CheckpointFormatError, match=r'"matrix" is damaged: bytes \d+ to \d+') as error:
        sw.load(loaded, tmp_path)
    assert "matrix" in error.value.partly_written and set(error.value.partly_written) <= names
    for name in names - set(error.value.partly_written):
        assert torch.equal(loaded[name], state[name]) or not loaded[name].any()
    loaded = blank(state)
    sw.load(loaded, tmp_path, verify=False)
    assert (loaded["matrix"] != state["matrix"]).sum() == 1
    loaded = blank(state)
    with pytest.raises(sw.CheckpointFormatError, match="matrix"):
        sw.load(loaded, tmp_path, verify=True)
    assert not any(tensor.any() for name, tensor in loaded.items() if name != "object")


def test_a_load_says_how_much_it_has_checked(state: dict, tmp_path: Path):
    sw.save(state, tmp_path, format="safetensors")
    report = sw.load(blank(state), tmp_path)
    plain = sum(value.nbytes for name, value in state.items() if name not in ("object", "complex"))
    assert report.bytes_checked == plain
    assert sw.load(blank(state), tmp_path, verify=False).bytes_checked == 0


def test_an_exported_file_that_was_changed_says_what_to_do(tmp_path: Path):
    sw.export({"a": torch.ones(3, 5)}, tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3, 5)}, file)
    with pytest.raises(sw.CheckpointFormatError, match=r"delete shardwright\.checksums"):
        sw.read_catalog(tmp_path)
    (tmp_path / "shardwright.checksums").unlink()
    sw.read_catalog(tmp_path)
