"""Checkpoints of torch's own FileSystemWriter: loaded without running code, and verified."""

import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from nested_states import differing
from shardwright.cli.command_line import main
from torch.distributed.checkpoint.metadata import Metadata


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


#: What a list of allowed names lets through: it is in the opcodes.
HARMFUL = {
    "a_key_of_nested_tuples": b"\x80\x04})" + b"\x85" * 2_000_000 + b"K\x01s.",
    "a_far_place_of_the_memo": b"\x80\x04K\x01r\xff\xff\xff\x3f.",
    "a_class_that_is_given_a_state": b"\x80\x04cpathlib\nPath\n(N}X\x06\0\0\0existsctorch\nSize\nstb.",
    "an_index_that_is_not_whole": b"\x80\x04}ctorch.distributed.checkpoint.metadata\nMetadataIndex\n)\x81K\x01s.",
}


@pytest.mark.process
@pytest.mark.parametrize("data", HARMFUL.values(), ids=HARMFUL)
def test_metadata_that_harms_without_running_code_is_refused(data: bytes, path: Path, tmp_path: Path):
    """In a process of its own, with 4 GB: one ends the process, one takes 16 GB, one changes pathlib.Path."""
    shutil.copytree(path, tmp_path / "copy")
    (tmp_path / "copy" / ".metadata").write_bytes(data)
    program = """if True:
        import pathlib, resource, sys, shardwright as sw, torch
        exists = pathlib.Path.exists
        import shardwright.loading
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        try:
            sw.load({"model": {"w": torch.zeros(40, 3)}}, sys.argv[1])
        except sw.CheckpointFormatError as error:
            assert pathlib.Path.exists is exists
            assert ".metadata" in str(error) and not isinstance(error.__cause__, MemoryError), error
            sys.exit(7)"""
    run = subprocess.run([sys.executable, "-c", program, tmp_path / "copy"], capture_output=True, text=True)
    assert run.returncode == 7, run.stderr[-2000:]


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_a_pipe_in_a_files_place_is_refused(name: str, path: Path, tmp_path: Path):
    shutil.copytree(path, tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    os.mkfifo(tmp_path / "copy" / name)
    loaded = state(0.0)
    signal.alarm(60)  # or it would wait for ever
    try:
        with pytest.raises(OSError, match="expected a regular file") as raised:
            sw.load(loaded, tmp_path / "copy")
        assert name in str(raised.value)
        assert sw.verify(tmp_path / "copy").problems if name != ".metadata" else True
    finally:
        signal.alarm(0)
    assert not loaded["model"]["w"].any()


@pytest.mark.parametrize(
    "change", ["no places", "half a character", "negative", "too large", "path", "shape", "too long"]
)
def test_metadata_that_does_not_hold_together_is_refused(change: str, path: Path, tmp_path: Path):
    shutil.copytree(path, tmp_path / "copy")
    file = tmp_path / "copy" / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    index = next(index for index in metadata.storage_data if index.fqn == "model.w")
    place, stored = metadata.storage_data[index], metadata.state_dict_metadata["model.w"]
    if change == "no places":
        metadata.storage_data = None
    elif change == "half a character":
        place.relative_path = "\ud800"
    elif change == "negative":
        place.offset = -1
    elif change == "too large":
        place.length = 10**400
    elif change == "path":
        metadata.planner_data["model.w"] = ("model", ("w",))
    elif change == "shape":
        stored.size = torch.Size([2**62, 4])
    file.write_bytes(pickle.dumps(metadata))
    if change == "too long":
        os.truncate(file, 1 << 42)
    loaded = state(0.0)
    with pytest.raises(sw.CheckpointFormatError, match=r"\.metadata: .*expected"):
        sw.load(loaded, tmp_path / "copy")
    assert not loaded["model"]["w"].any() and not loaded["model"]["b"].any()
    assert sw.verify(tmp_path / "copy").problems


def test_a_damaged_archive_is_refused_and_what_is_written_is_said(path: Path, tmp_path: Path):
    shutil.copytree(path, tmp_path / "copy")
    places = dcp.FileSystemReader(path).read_metadata().storage_data
    place = next(place for index, place in places.items() if index.fqn == "model.b")
    file = tmp_path / "copy" / place.relative_path
    data = bytearray(file.read_bytes())
    data[place.offset : place.offset + place.length] = bytes(place.length)
    file.write_bytes(data)
    loaded = state(0.0)
    with pytest.raises(sw.CheckpointFormatError, match=r"__0_0\.distcp: model\.b: cannot be read") as raised:
        sw.load(loaded, tmp_path / "copy")
    assert not loaded["model"]["b"].any()
    assert raised.value.partly_written == (["model.w"] if loaded["model"]["w"].any() else [])


def test_a_file_that_has_been_cut_short_is_refused_before_anything_is_written(path: Path, tmp_path: Path):
    shutil.copytree(path, tmp_path / "copy")
    os.truncate(tmp_path / "copy" / "__0_0.distcp", (path / "__0_0.distcp").stat().st_size - 1)
    loaded = state(0.0)
    with pytest.raises(sw.CheckpointFormatError, match=r"__0_0\.distcp: expected \d+ bytes or more"):
        sw.load(loaded | {"position": Position(0)}, tmp_path / "copy", weights_only=False)
    assert not loaded["model"]["w"].any() and not loaded["model"]["b"].any()


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


def test_a_load_that_verifies_refuses_flipped_bits_of_what_it_reads_before_anything_is_written(
    path: Path, tmp_path: Path
):
    shutil.copytree(path, tmp_path / "copy")
    sw.load(state(7), tmp_path / "copy", verify=True)
    places = dcp.FileSystemReader(path).read_metadata().storage_data
    place = next(place for index, place in places.items() if index.fqn == "model.w")
    file = tmp_path / "copy" / place.relative_path
    data = bytearray(file.read_bytes())
    name, extra = struct.unpack_from("<HH", data, place.offset + 26)
    data[place.offset + 30 + name + extra] ^= 4
    file.write_bytes(data)
    found = state(7)
    with pytest.raises(sw.CheckpointFormatError, match=r'"model\.w" is damaged'):
        sw.load(found, tmp_path / "copy", verify=True)
    assert found["model"]["w"].eq(7).all()


def test_what_our_planner_saves_with_torchs_writer_is_read_by_all(tmp_path: Path):
    """Its metadata is made lazily, and pickled by the classes that it stands for, called with their fields."""
    dcp.save(
        state(2.0),
        storage_writer=dcp.FileSystemWriter(tmp_path / "it"),
        planner=sw.SavePlanner(),
        no_dist=True,
    )
    assert sw.verify(tmp_path / "it").problems == []
    sw.convert(tmp_path / "it", tmp_path / "ours")
    readers = [dcp.FileSystemReader(tmp_path / "it"), sw.ShardedStorageReader(tmp_path / "it")]
    for reader in [*readers, sw.ShardedStorageReader(tmp_path / "ours")]:
        found = state(0.0)
        dcp.load(found, storage_reader=reader, no_dist=True)
        assert differing(found, state(2.0)) == []
    found = state(0.0)
    sw.load(found, tmp_path / "it")
    assert differing(found, state(2.0)) == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ((), "of 0 fields"),
        (({}, None, {}, None), "of 4 fields"),
        (([], None, {}, None, "1.0"), "list for 'state_dict_metadata'"),
        (({}, None, {}, 7, "1.0"), "int for 'storage_meta'"),
    ],
)
def test_metadata_by_position_has_every_field_of_its_type(
    fields: tuple, words: str, path: Path, tmp_path: Path
):
    class Made:
        def __reduce__(self) -> tuple:
            return Metadata, fields

    shutil.copytree(path, tmp_path / "copy")
    (tmp_path / "copy/.metadata").write_bytes(pickle.dumps(Made()))
    with pytest.raises(ValueError, match=words):
        sw.load(state(0.0), tmp_path / "copy")
