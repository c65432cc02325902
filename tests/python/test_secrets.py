"""Passwords in addresses: no error, report or output shows them, whatever fails."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from object_server import ObjectServer, serving
from shardwright import _core
from shardwright.cli.command_line import main
from shardwright.local_path import shown
from torch.distributed.checkpoint.api import CheckpointException

SECRET = "p4ssw0rd"


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory):
    """A released checkpoint, two of training, and what is wrong with each."""
    with serving(tmp_path_factory.mktemp("store")) as server:
        shutil.copytree(tiny, server.folder / "tiny")
        sw.save({"w": torch.arange(4.0)}, server.folder / "run")
        dcp.save({"w": torch.arange(4.0)}, checkpoint_id=server.folder / "torch", no_dist=True)
        for name in ("tiny", "run"):
            shutil.copytree(server.folder / name, server.folder / f"cut-{name}")
            for file in (server.folder / f"cut-{name}").glob("[rm]*-*"):
                file.write_bytes(file.read_bytes()[:-10])
        (server.folder / "alone").mkdir()
        shutil.copy(server.folder / "torch" / ".metadata", server.folder / "alone")
        (server.folder / "damaged").mkdir()
        (server.folder / "damaged" / ".metadata").write_bytes(b"\x80\x04cos\nsystem\n.")
        yield server


def calls(address: str, out: Path) -> dict[str, Callable[[], object]]:
    state = {"w": torch.zeros(5)}
    return {
        "load": lambda: sw.load(state, address),
        "load verified": lambda: sw.load(state, address, verify=True),
        "load the released names": lambda: sw.load(state, address, layout="huggingface"),
        "catalog": lambda: repr(sw.read_catalog(address)),
        "request list": lambda: sw.request_list(address, state),
        "verify": lambda: sw.verify(address),
        "latest": lambda: sw.latest(address),
        "save": lambda: sw.save(state, address),
        "export": lambda: sw.export(state, address),
        "export like it": lambda: sw.export(state, out, template=address),
        "convert": lambda: sw.convert(address, out),
        "convert in another encoding": lambda: sw.convert(address, out, quantization="bf16"),
        "pieces": lambda: list(sw.pieces(state, template=address)),
        "load_lora": lambda: sw.load_lora(state, address),
        "save_lora": lambda: sw.save_lora(state, address, alpha=1),
        "generate": lambda: sw.generate(address, "tiny"),
        "reader": lambda: dcp.load(state, storage_reader=sw.ShardedStorageReader(address), no_dist=True),
        "inspect": lambda: main(["inspect", address]),
        "inspect --json": lambda: main(["inspect", address, "--json"]),
        "plan": lambda: main(["plan", address]),
        "simulate": lambda: main(["simulate", address]),
        "verify by command": lambda: main(["verify", address, "--json"]),
        "export by command": lambda: main(["export", address, str(out)]),
    }


def told_by(act: Callable[[], object]) -> str:
    """All that somebody gets to see of it, but for what is printed."""
    try:
        result = act()
        return f"{result!r} {result}"
    except BaseException as error:
        assert isinstance(error, (OSError, ValueError, SystemExit, CheckpointException)), repr(error)
        told, next_error = "", error
        while next_error is not None:
            told += f"{next_error!r} {next_error} {vars(next_error)}\n"
            next_error = next_error.__cause__ or next_error.__context__
        return told


@pytest.mark.parametrize("call", calls("", Path()))
def test_no_password_is_shown(call: str, server: ObjectServer, tmp_path: Path, monkeypatch, capfd):
    monkeypatch.setenv("SHARDWRIGHT_REMOTE_PATIENCE", "0.1")
    for name in ("tiny", "run", "torch", "cut-tiny", "cut-run", "alone", "damaged", "absent"):
        address = f"http://user:{SECRET}@127.0.0.1:{server.port}/{name}"
        told = told_by(calls(address, tmp_path / name)[call])
        told += "".join(capfd.readouterr())
        assert SECRET not in told, (name, told)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (Path("/data/sweep?lr=1/run"), "/data/sweep?lr=1/run"),
        (Path(f"s3://user:{SECRET}@bucket/x"), "s3://***@bucket/x"),
        (f"s3://AKIA:ab/{SECRET}@bucket/x", "s3://***@bucket/x"),
        (f"s3://user:se?{SECRET}@bucket/x", "s3://***@bucket/x"),
        (f"https://{SECRET}@host/x?key={SECRET}", "https://***@host/x?***"),
        (f"http://user:'{SECRET})@host/x", "http://***@host/x"),
        ("http://host:8080/name@4", "http://host:8080/name@4"),
        ("hf://org/name@main", "hf://org/name@main"),
        ("abfss://container@account/x", "abfss://container@account/x"),
    ],
)
def test_what_is_shown_of_a_path(path: Path | str, expected: str):
    assert shown(path) == expected
    if not isinstance(path, Path):  # the same of messages that come from C++
        with pytest.raises(ValueError) as failure:
            _core.expect_one_checkpoint([[str(path)], ["another"]])
        assert f"expected a checkpoint's {expected} as on rank 0" in str(failure.value)
