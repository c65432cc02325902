"""`shardwright convert`: from torch's checkpoints to ours and between our formats, bits unchanged."""

from __future__ import annotations

import io
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from nested_states import differing, filled
from shardwright.cli.command_line import main


def state() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(4)
    raw = torch.randint(0, 256, (6, 16), dtype=torch.uint8, generator=draw)
    dtypes = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.complex128, torch.uint16, torch.int64]
    return {
        "model": {str(dtype): raw.clone().view(dtype) for dtype in dtypes},
        "scalar": torch.tensor(2.0),
        "flags": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "large": torch.randn(1_300_000, generator=draw),
        "notes": {"text": "words", "list": [1, {"x": None}]},
        "step": 3,
    }


def loaded_by_us(path: Path) -> dict[str, Any]:
    found = filled(state(), lambda v: torch.zeros_like(v) if isinstance(v, torch.Tensor) else None)
    sw.load(found, path, verify=True)
    return found


def loaded_by_torch(path: Path) -> dict[str, Any]:
    found = filled(state(), lambda v: torch.zeros_like(v) if isinstance(v, torch.Tensor) else None)
    dcp.load(found, storage_reader=dcp.FileSystemReader(path), no_dist=True)
    return found


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    dcp.save(state(), storage_writer=dcp.FileSystemWriter(folder / "torchs", thread_count=2), no_dist=True)
    for format in ("torch", "safetensors"):
        sw.save(state(), folder / format, format=format)
    return folder


@pytest.mark.parametrize("to", ["torch", "safetensors"])
@pytest.mark.parametrize("source", ["torchs", "torch", "safetensors"])
def test_what_is_converted_has_the_same_bits(sources: Path, tmp_path: Path, source: str, to: str):
    report = sw.convert(sources / source, tmp_path / "out", format=to)
    assert (report.tensors, report.objects) == (10, 4)
    assert not sw.verify(tmp_path / "out").problems
    assert differing(loaded_by_us(tmp_path / "out"), state()) == []
    if to == "torch":
        assert differing(loaded_by_torch(tmp_path / "out"), state()) == []
        names = {path.name for path in (tmp_path / "out").glob("*.distcp")}
        assert len(names) == (len(list((sources / source).glob("*.distcp"))) or 2)


def test_the_command_converts(sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["convert", str(sources / "torchs"), str(tmp_path / "out"), "--format", "torch"]) == 0
    assert "bytes written" in capsys.readouterr().out
    assert differing(loaded_by_torch(tmp_path / "out"), state()) == []
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "out")]) == 1
    assert "expected another directory" in capsys.readouterr().err
    sw.export({"a.weight": torch.zeros(3)}, tmp_path / "exported")
    assert main(["convert", str(tmp_path / "exported"), str(tmp_path / "other")]) == 1
    assert "found another kind" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["torchs", "torch", "safetensors"])
def test_a_damaged_source_is_refused_and_nothing_is_published(sources: Path, tmp_path: Path, source: str):
    shutil.copytree(sources / source, tmp_path / "copy")
    largest = max((tmp_path / "copy").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    if source == "torchs":
        place = next(
            place
            for index, place in pickle.loads((tmp_path / "copy/.metadata").read_bytes()).storage_data.items()
            if index.fqn == "large"
        )
        data[place.offset : place.offset + 64] = bytes(64)
        largest = tmp_path / "copy" / place.relative_path
    else:
        data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(ValueError, match="large"):
        sw.convert(tmp_path / "copy", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["large", "notes.text"])
def test_a_source_whose_values_alone_are_damaged_is_refused(sources: Path, tmp_path: Path, name: str):
    """The archive is whole but for a bit of its data, which torch.load does not compare with the archive's sums."""
    shutil.copytree(sources / "torchs", tmp_path / "copy")
    places = pickle.loads((tmp_path / "copy/.metadata").read_bytes()).storage_data
    place = next(place for index, place in places.items() if index.fqn == name)
    file = tmp_path / "copy" / place.relative_path
    data = bytearray(file.read_bytes())
    part = bytes(data[place.offset : place.offset + place.length])
    at = place.length // 2 if name == "large" else part.index(b"words")
    data[place.offset + at] ^= 1
    file.write_bytes(data)
    damaged = data[place.offset : place.offset + place.length]
    torch.load(io.BytesIO(damaged), weights_only=True)  # finds nothing wrong
    with pytest.raises(ValueError, match=rf"{place.relative_path}: {name}.*checksum"):
        sw.convert(tmp_path / "copy", tmp_path / "out")
    assert not (tmp_path / "out").exists()
