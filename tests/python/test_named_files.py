"""Files that a user names to be written: a node that is no regular file is written into, and links stay links."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import shardwright as sw
import torch
from safetensors.torch import save_file
from shardwright.cli.command_line import main


def load_trace(tiny: Path, name: Path | str) -> None:
    sw.load(sw.empty_state_dict(tiny), tiny, trace=name)


def command(*arguments: str | Path) -> Callable[[Path, Path], None]:
    def run(tiny: Path, name: Path) -> None:
        line = [str(name if argument == "NAME" else argument) for argument in arguments]
        if main([line[0], str(tiny), *line[1:]]) != 0:
            raise OSError

    return run


class Reader:
    """Reads all that comes through a pipe."""

    def __init__(self, pipe: Path) -> None:
        self._found = b""
        # A daemon: where the pipe is not opened for writing, it would wait for ever.
        self._thread = threading.Thread(target=self._read, args=[pipe], daemon=True)
        self._thread.start()

    def _read(self, pipe: Path) -> None:
        self._found = pipe.read_bytes()

    def all(self) -> bytes:
        self._thread.join(120)
        assert not self._thread.is_alive(), "nobody has written into the pipe"
        return self._found


WRITERS = {
    "load(trace=)": load_trace,
    "load --trace": command("load", "--trace", "NAME"),
    "plan --save": command("plan", "--mesh", "dp=2", "--save", "NAME"),
    "simulate --html": command("simulate", "--mesh", "dp=2", "--html", "NAME"),
}

each_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())


def text_of(write: Callable[[Path, Path], None], tiny: Path, tmp_path: Path) -> bytes:
    write(tiny, tmp_path / "plain")
    return (tmp_path / "plain").read_bytes()


def alike(name: str, found: bytes, expected: bytes) -> bool:
    """Whether they are the same, but for the times in a trace and a simulation."""
    if "trace" in name:
        return len(json.loads(found)["traceEvents"]) > 3
    if "simulate" in name:
        whole = found.startswith(expected[:300]) and found.endswith(expected[-30:])
        return whole and abs(len(found) - len(expected)) < 1000
    return found == expected


@pytest.mark.parametrize("name", WRITERS)
def test_a_pipe_gets_the_text_and_stays(name: str, tiny: Path, tmp_path: Path):
    expected = text_of(WRITERS[name], tiny, tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = Reader(pipe)
    WRITERS[name](tiny, pipe)
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert alike(name, reader.all(), expected)
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "pipe"}


@each_writer
def test_a_device_stays_a_device(write: Callable[[Path, Path], None], tiny: Path, tmp_path: Path):
    device = tmp_path / "null"  # never the machine's own
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.write_bytes(b"")
    except OSError:
        pytest.skip("no devices may be made here")
    write(tiny, device)
    assert stat.S_ISCHR(device.lstat().st_mode)
    assert device.lstat().st_rdev == os.makedev(1, 3)
    assert os.listdir(tmp_path) == ["null"]


@pytest.mark.parametrize("name", WRITERS)
def test_what_a_link_points_to_is_replaced_and_the_link_stays(name: str, tiny: Path, tmp_path: Path):
    expected = text_of(WRITERS[name], tiny, tmp_path)
    for target in ("there", "new"):
        (tmp_path / f"to {target}").symlink_to(tmp_path / "elsewhere" / target)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/there").write_bytes(expected + b"old")
    for target in ("there", "new"):
        WRITERS[name](tiny, tmp_path / f"to {target}")
        assert (tmp_path / f"to {target}").is_symlink()
        assert alike(name, (tmp_path / "elsewhere" / target).read_bytes(), expected)
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == {"there", "new"}


@each_writer
def test_strangers_files_beside_stay(write: Callable[[Path, Path], None], tiny: Path, tmp_path: Path):
    (tmp_path / "name.partial").write_bytes(b"mine")
    write(tiny, tmp_path / "name")
    assert (tmp_path / "name.partial").read_bytes() == b"mine"
    assert {path.name for path in tmp_path.iterdir()} == {"name", "name.partial"}


@each_writer
def test_a_socket_is_refused_and_stays(write: Callable[[Path, Path], None], tiny: Path, tmp_path: Path):
    name = tmp_path / "socket"
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        socket_file = Path(folder, "s")  # the name of a socket must be short
        listening.bind(os.fspath(socket_file))
        socket_file.rename(name)
        with pytest.raises(OSError):
            write(tiny, name)
        assert stat.S_ISSOCK(name.lstat().st_mode)


@pytest.mark.process
@pytest.mark.parametrize(
    "arguments",
    [("load", "--trace"), ("plan", "--mesh", "dp=2", "--save"), ("simulate", "--mesh", "dp=2", "--html")],
    ids=lambda arguments: arguments[0],
)
def test_dev_stdout_is_where_the_standard_output_goes(arguments: tuple[str, ...], tiny: Path, tmp_path: Path):
    log = tmp_path / "log"
    log.write_bytes(b"before\n")
    line = [sys.executable, "-m", "shardwright", arguments[0], tiny, *arguments[1:], "/dev/stdout"]
    with log.open("ab") as appended:
        subprocess.run(line, check=True, stdout=appended)
    with_file = log.read_bytes()
    through_a_pipe = subprocess.run(line, check=True, capture_output=True).stdout
    assert with_file.startswith(b"before\n")
    assert abs(len(with_file) - len(b"before\n") - len(through_a_pipe)) < 2000  # figures of time differ
    assert os.listdir(tmp_path) == ["log"]
    assert Path("/dev/stdout").is_symlink()


def test_a_load_that_waits_for_a_reader_of_its_trace_can_be_interrupted(tiny: Path, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    state = sw.empty_state_dict(tiny)
    this = threading.get_ident()
    timer = threading.Timer(0.3, lambda: signal.pthread_kill(this, signal.SIGINT))
    timer.start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        sw.load(state, tiny, trace=tmp_path / "pipe")
    assert time.monotonic() - begin < 120
    timer.join()


@pytest.mark.ranks
def test_ranks_that_name_a_pipe_write_one_text(tiny: Path, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    reader = Reader(tmp_path / "pipe")
    line = [sys.executable, "-m", "shardwright", "load", tiny, "--ranks", "2", "--trace", tmp_path / "pipe"]
    subprocess.run(line, check=True, capture_output=True)
    assert {event["pid"] for event in json.loads(reader.all())["traceEvents"]} == {0}
    assert os.listdir(tmp_path) == ["pipe"]


@pytest.mark.process
def test_a_plan_that_cannot_be_written_leaves_the_one_of_before(tiny: Path, tmp_path: Path):
    plan = tmp_path / "plan"
    plan.write_bytes(b"\x08\x03\x12old")
    small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # noqa: E731
    line = [sys.executable, "-m", "shardwright", "plan", tiny, "--mesh", "dp=2", "--save", plan]
    failed = subprocess.run(line, capture_output=True, text=True, preexec_fn=small)
    assert failed.returncode != 0
    assert f"{plan}: cannot write: File too large" in failed.stderr
    assert plan.read_bytes() == b"\x08\x03\x12old"
    assert os.listdir(tmp_path) == ["plan"]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("there", ["model.safetensors", "config.json", ".metadata", "notes"])
def test_what_is_replaced_was_written_so(name: str, there: str, tiny: Path, tmp_path: Path, capsys):
    """A mistyped name may be that of a weight. What the command wrote itself is replaced, and an empty file."""
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    (tmp_path / ".metadata").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "notes").write_text("mine")
    before = (tmp_path / there).read_bytes()
    with pytest.raises((OSError, ValueError)) as refused:
        WRITERS[name](tiny, tmp_path / there)
    told = capsys.readouterr().err + str(refused.value)
    assert f"{there}: is there and was not written by this option" in told
    assert (tmp_path / there).read_bytes() == before
    (tmp_path / there).write_bytes(b"")
    for _ in range(2):
        WRITERS[name](tiny, tmp_path / there)
        assert (tmp_path / there).read_bytes()


@pytest.mark.parametrize("address", ["s3://", "s3://bucket/trace.json"])
def test_a_trace_goes_to_no_address(address: str, tiny: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"trace: expected a file of this machine .* found '{address}'"):
        load_trace(tiny, address)
    assert list(tmp_path.iterdir()) == []
