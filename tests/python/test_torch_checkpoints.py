"""Checkpoints of torch's own FileSystemWriter: loaded without running code, and verified."""

import os
import pickle
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from shardwright.command_line import main


@dataclass
class Position:
    """An object that weights_only does not know."""

    epoch: int


def state(value: float) -> dict:
    return {"model": {"w": torch.full((40, 3), value), "b": torch.full((7,), value)}, "notes": {"lr": value}}


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("torchs") / "checkpoint"
    dcp.save(state(2.0) | {"position": Position(3)}, checkpoint_id=path)
    return path


def test_tensors_and_objects_are_loaded(path: Path):
    loaded = state(0.0)
    sw.load(loaded, path)
    assert loaded["notes"] == {"lr": 2.0}
    assert (loaded["model"]["w"] == 2).all() and (loaded["model"]["b"] == 2).all()


def test_objects_that_run_code_are_refused_unless_the_caller_says_otherwise(path: Path):
    loaded = {"position": Position(0)}
    with pytest.raises(ValueError, match=r"(?s)position .*weights_only=False"):
        sw.load(loaded, path)
    assert loaded["position"] == Position(0)
    sw.load(loaded, path, weights_only=False)
    assert loaded["position"] == Position(3)


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm done",)


def test_metadata_that_runs_code_is_refused(path: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(path, tmp_path / "copy")
    (tmp_path / "copy" / ".metadata").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(sw.CheckpointFormatError, match=r"\.metadata: .*mkdir"):
        sw.load(state(0.0), tmp_path / "copy")
    assert sw.verify(tmp_path / "copy").problems
    assert not (tmp_path / "harm done").exists()


def test_metadata_that_names_files_elsewhere_is_refused(path: Path, tmp_path: Path):
    shutil.copytree(path, tmp_path / "copy")
    file = tmp_path / "copy" / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    for place in metadata.storage_data.values():
        place.relative_path = "../checkpoint/__0_0.distcp"
    file.write_bytes(pickle.dumps(metadata))
    with pytest.raises(sw.CheckpointFormatError, match="expected a file of this directory"):
        sw.load(state(0.0), tmp_path / "copy")


def test_verify_finds_flipped_bits_missing_files_and_missing_chunks(path: Path, tmp_path: Path, capsys):
    report = sw.verify(path)
    assert (report.kind, report.tensors, report.objects, report.problems) == ("torch", 2, 2, [])
    places = dcp.FileSystemReader(path).read_metadata().storage_data
    for index, place in places.items():
        shutil.copytree(path, tmp_path / "copy")
        file = tmp_path / "copy" / place.relative_path
        data = bytearray(file.read_bytes())
        name, extra = struct.unpack_from("<HH", data, place.offset + 26)  # of a zip archive's first record
        data[place.offset + 30 + name + extra] ^= 4
        file.write_bytes(data)
        assert sw.verify(tmp_path / "copy").damaged == [index.fqn]
        assert main(["verify", str(tmp_path / "copy")]) == 1
        assert index.fqn in capsys.readouterr().out
        shutil.rmtree(tmp_path / "copy")
    shutil.copytree(path, tmp_path / "copy")
    metadata = pickle.loads((path / ".metadata").read_bytes())
    metadata.state_dict_metadata["model.w"].chunks.clear()
    (tmp_path / "copy" / ".metadata").write_bytes(pickle.dumps(metadata))
    assert sw.verify(tmp_path / "copy").damaged == ["model.w"]
    for file in (tmp_path / "copy").glob("*.distcp"):
        file.unlink()
    assert set(sw.verify(tmp_path / "copy").damaged) == {index.fqn for index in places}
