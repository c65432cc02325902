"""A pipe, a socket, a directory or a device among a checkpoint's files is refused by its name at once."""

import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from shardwright import _core


def pipe(path: Path) -> None:
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.mkdir()


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:  # the name of a socket must be short
        socket_file = Path(folder, "s")
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(os.fspath(socket_file))
        socket_file.rename(path)


KINDS = pytest.mark.parametrize("make", [pipe, directory, device, listening], ids=lambda make: make.__name__)


def replaced(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)


@KINDS
@pytest.mark.parametrize("pattern", ["shardwright.manifest", "*.safetensors", "*.bin"])
def test_of_a_sharded_checkpoint(tmp_path: Path, make, pattern: str):
    state = {"w": torch.ones(100), "notes": {"epoch": 3}}
    sw.save(state, tmp_path / "c", format="safetensors")
    (file,) = (tmp_path / "c").glob(pattern)
    replaced(file, make)
    loaded = {"w": torch.zeros(100), "notes": {"epoch": 0}}
    with pytest.raises((OSError, sw.CheckpointFormatError), match=f"{file.name}.*expected a regular file"):
        sw.load(loaded, tmp_path / "c")
    assert (loaded["w"] == 0).all()
    assert loaded["notes"] == {"epoch": 0}


@KINDS
def test_of_torchs_metadata(tmp_path: Path, make):
    dcp.save({"w": torch.ones(100)}, checkpoint_id=tmp_path / "c")
    replaced(tmp_path / "c" / ".metadata", make)
    with pytest.raises(OSError, match=r"\.metadata: expected a regular file"):
        sw.load({"w": torch.zeros(100)}, tmp_path / "c")


@KINDS
def test_of_torchs_shards(tmp_path: Path, make):
    dcp.save({"w": torch.ones(100)}, checkpoint_id=tmp_path / "c")
    (file,) = (tmp_path / "c").glob("*.distcp")
    replaced(file, make)
    loaded = {"w": torch.zeros(100)}
    with pytest.raises((OSError, sw.CheckpointFormatError), match=file.name):
        sw.load(loaded, tmp_path / "c")
    assert (loaded["w"] == 0).all()


@KINDS
def test_verify_of_torchs_shards(tmp_path: Path, make):
    dcp.save({"w": torch.ones(100)}, checkpoint_id=tmp_path / "c")
    (file,) = (tmp_path / "c").glob("*.distcp")
    replaced(file, make)
    (problem,) = sw.verify(tmp_path / "c").problems
    assert "expected a regular file" in problem
    assert file.name in problem


@KINDS
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_of_an_adapter(tmp_path: Path, make, name: str):
    (tmp_path / "adapter_config.json").write_text('{"r": 8, "lora_alpha": 16}')
    make(tmp_path / name) if name != "adapter_config.json" else replaced(tmp_path / name, make)
    with pytest.raises(OSError, match=f"{name}: expected a regular file"):
        _core.read_adapter(tmp_path)


@KINDS
def test_of_what_nemo_automodel_puts_beside_an_adapter(tmp_path: Path, make):
    (tmp_path / "adapter_config.json").write_text('{"r": 8, "lora_alpha": 16}')
    make(tmp_path / "automodel_peft_config.json")
    with pytest.raises(OSError, match=r"automodel_peft_config\.json: expected a regular file"):
        _core.read_adapter(tmp_path)


def test_links_to_regular_files_are_read(tmp_path: Path):
    sw.save({"w": torch.ones(100), "notes": {"epoch": 3}}, tmp_path / "c")
    shutil.copytree(tmp_path / "c", tmp_path / "stored")
    for file in (tmp_path / "c").iterdir():
        file.unlink()
        file.symlink_to(tmp_path / "stored" / file.name)
    loaded = {"w": torch.zeros(100), "notes": {"epoch": 0}}
    sw.load(loaded, tmp_path / "c")
    assert (loaded["w"] == 1).all()
    assert loaded["notes"] == {"epoch": 3}
