"""Saves and exports to a store: what is written, when it is there, what is replaced, and what a failure leaves."""

import functools
import gc
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from fsspec.spec import AbstractBufferedFile
from shardwright.remote import object_store
from shardwright.remote.open_stores import open_store
from shardwright.remote.sending import Sending
from shardwright.remote.store import ChangedObjectError
from writing_server import WriteFault, WrittenServer, answering, hanging_up, serving_writes

PARTS = (2 << 20) + 4000  # elements of F32: a little more than a part of an upload, which has 8 MiB


@dataclass
class Place:
    """A folder of a store, and the same as the server has it."""

    server: WrittenServer
    bucket: str

    def address(self, name: str = "run") -> str:
        return f"s3://{self.bucket}/{name}"

    def folder(self, name: str = "run") -> Path:
        return self.server.folder / self.bucket / name

    def names(self, name: str = "run") -> list[str]:
        return self.server.names(f"{self.bucket}/{name}")

    def put(self, name: str, content: bytes = b"somebody's") -> None:
        file = self.server.folder / self.bucket / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with serving_writes(tmp_path / "store") as server:
        bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        (server.folder / bucket).mkdir(parents=True)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield Place(server, bucket)
        assert server.uploads == {}, "multipart uploads were begun and neither finished nor aborted"


@pytest.fixture
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "WRITING_RETRIES", 1)


def state(value: float = 1.0) -> dict:
    return {
        "w": torch.arange(PARTS, dtype=torch.float32) * value,
        "turned": (torch.arange(6000, dtype=torch.bfloat16) * value).view(60, 100).t(),
        "empty": torch.empty(0, 4),
        "complex": torch.full((3, 5), value + 2j),
        "step": {"number": 7, "value": value},
    }


def blank() -> dict:
    tensors = {name: torch.zeros_like(held) for name, held in state().items() if torch.is_tensor(held)}
    return tensors | {"step": {"number": 0, "value": 0.0}}


def expect_saved(folder: Path | str, value: float = 1.0) -> None:
    """What the server has is a checkpoint that is whole, and holds the state of that value."""
    assert sw.verify(folder).problems == []
    loaded = blank()
    sw.load(loaded, folder)
    for name, held in state(value).items():
        same = torch.equal(loaded[name], held) if torch.is_tensor(held) else loaded[name] == held
        assert same, name


@functools.cache
def drawn() -> dict[str, torch.Tensor]:
    """Two layers, which share a file, and the embedding have a little more than a part of an upload."""
    layers = {f"model.layers.{n}.weight": torch.randn(520 + n, 2048) for n in range(6)}
    return {"model.embed.weight": torch.randn(1040, 2048)} | layers


def weights(value: float = 1.0) -> dict[str, torch.Tensor]:
    """Others at each call: drawing all anew would take most of a test's time."""
    return {name: tensor * value + torch.rand(()) for name, tensor in drawn().items()}


def export(held: dict, path: str | Path, **more) -> sw.SaveReport:
    return sw.export(held, path, layout="huggingface", max_shard_size="9MB", **more)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


# --- saves -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["torch", "safetensors"])
def test_a_save_is_bit_for_bit_what_a_folder_gets(place: Place, tmp_path: Path, format: str):
    report = sw.save(state(), place.address(), format=format)
    local = sw.save(state(), tmp_path / "local", format=format)
    expect_saved(place.folder())
    kinds = {name.partition("-")[0] + Path(name).suffix for name in place.names()}
    assert kinds == {name.partition("-")[0] + Path(name).suffix for name in os.listdir(tmp_path / "local")}
    of_tensors = [name for name in place.names() if name.startswith("rank-00000-00000")]
    local_one = next((tmp_path / "local").glob("rank-00000-00000*"))
    assert place.folder().joinpath(*of_tensors).read_bytes() == local_one.read_bytes()
    assert (report.bytes_written, report.files) == (local.bytes_written, local.files)
    assert report.tensors == local.tensors and report.objects == local.objects


def test_a_save_of_many_files_and_of_nothing(place: Place):
    dcp.save(
        {f"t{n}": torch.full((n, 3), float(n)) for n in range(40)},
        storage_writer=sw.ShardedStorageWriter(place.address(), single_file_per_rank=False),
        planner=sw.SavePlanner(),
    )
    assert sw.verify(place.folder()).problems == [] and len(place.names()) == 42
    sw.save({}, place.address("nothing"))
    assert sw.verify(place.folder("nothing")).problems == []


def test_torch_reads_what_was_uploaded(place: Place):
    sw.save(state(3.0), place.address())
    loaded = {"w": torch.zeros(PARTS)}
    dcp.load(loaded, storage_reader=dcp.FileSystemReader(place.folder()))
    assert torch.equal(loaded["w"], state(3.0)["w"])


def test_what_torchs_writers_take_goes_to_an_address_too(place: Place):
    writer = sw.ShardedStorageWriter("elsewhere")
    dcp.save(state(), checkpoint_id=place.address(), storage_writer=writer, planner=sw.SavePlanner())
    expect_saved(place.folder())
    shards = sw.HuggingFaceStorageWriter(place.address("shards"), save_distributed=True)
    dcp.save({"w": torch.ones(5)}, storage_writer=shards, planner=sw.SavePlanner())
    assert sw.verify(place.folder("shards")).problems == []


def test_a_planner_that_keeps_its_plans_saves_again(place: Place):
    planner = dcp.DefaultSavePlanner(enable_plan_caching=True)
    writer = sw.ShardedStorageWriter(place.address())
    for value in (1.0, 2.0, 3.0):
        dcp.save(state(value), storage_writer=writer, planner=planner)
        expect_saved(place.folder(), value)
    assert len(place.names()) == 3


def test_a_path_of_pathlib_means_the_address(place: Place):
    sw.save(state(), Path(place.address()))
    expect_saved(place.folder())


def test_an_asynchronous_save_is_uploaded(place: Place):
    held = state(2.0)
    pending = sw.save(held, place.address(), asynchronous=True)
    held["w"].zero_()
    pending.wait()
    expect_saved(place.folder(), 2.0)


def test_memory_is_bounded_and_told(place: Place):
    report = sw.save(
        {"w": torch.zeros(60 << 20, dtype=torch.uint8).view(6 << 10, -1)}, place.address(), threads=2
    )
    whole = sw.save({"w": torch.zeros(300 << 20, dtype=torch.uint8)}, place.address("larger"), threads=2)
    assert 0 < report.peak_staging_bytes <= 160 << 20
    assert whole.peak_staging_bytes <= 160 << 20


def test_the_next_save_replaces_and_leaves_others_alone(place: Place):
    for name in ("notes.txt", "rank-of-mine.bin", "logs/a.txt", "model.pt"):
        place.put(f"run/{name}")
    sw.save(state(1.0), place.address())
    first = set(place.names())
    sw.save(state(2.0), place.address())
    expect_saved(place.folder(), 2.0)
    second = set(place.names())
    assert len(first) == len(second) == 7
    assert first & second == {
        "notes.txt", "rank-of-mine.bin", "logs/a.txt", "model.pt", ".metadata", "shardwright.manifest"
    }  # fmt: skip


def test_other_checkpoints_are_refused_as_in_a_folder(place: Place, tmp_path: Path):
    for name in ("run/model.safetensors.index.json", "run/model-00001-of-00002.safetensors"):
        place.put(name, b"{}")
    before = place.names()
    (tmp_path / "local").mkdir()
    for file in place.folder().iterdir():
        (tmp_path / "local" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(FileExistsError) as local:
        sw.save(state(), tmp_path / "local")
    with pytest.raises(FileExistsError) as remote:
        sw.save(state(), place.address())
    assert str(remote.value) == str(local.value).replace(str(tmp_path / "local"), place.address())
    with pytest.raises(FileExistsError, match="already exists and overwrite=False"):
        sw.save(state(), place.address(), overwrite=False)
    assert place.names() == before
    sw.save(state(), place.address("own"))
    with pytest.raises(FileExistsError, match="already exists and overwrite=False"):
        sw.save(state(2.0), place.address("own"), overwrite=False)
    expect_saved(place.folder("own"))


def test_an_objects_name_that_no_file_can_have_is_left_alone(place: Place):
    place.put("run/" + "n" * 200)
    sw.save(state(), place.address())
    expect_saved(place.folder())


def test_steps_are_kept_and_the_latest_is_that_saved_last(place: Place):
    assert sw.latest(place.address()) is None
    for step in (1, 5, 9):
        sw.save({"t": torch.tensor(step)}, place.address(), step=step)
    place.put("run/step-00000001/notes.txt")
    assert sw.latest(place.address()) == place.address("run/step-00000009")
    sw.save({"t": torch.tensor(50)}, place.address(), step=5, keep_last=2)  # the training was rolled back
    assert sw.latest(place.address()) == place.address("run/step-00000005")
    assert place.names("run/step-00000001") == ["notes.txt"]
    assert len(place.names("run/step-00000009")) == 3
    sw.save({"t": torch.tensor(6)}, place.address(), step=6, keep_last=1)
    assert place.names("run/step-00000009") == [] == place.names("run/step-00000005")
    with pytest.raises(ValueError, match="keep_last says how many steps"):
        sw.save({}, place.address("run/x"), keep_last=1)


@pytest.mark.parametrize("format", ["torch", "safetensors"])
def test_what_was_uploaded_is_verified_and_resumed_at_its_address(place: Place, format: str):
    sw.save(state(2.0), place.address(), step=4, format=format)
    expect_saved(sw.latest(place.address()), 2.0)
    export(weights(), place.address("model"))
    assert sw.verify(place.address("model")).bytes_hashed > 0
    loaded = {name: torch.zeros_like(tensor) for name, tensor in weights().items()}
    sw.load(loaded, place.address("model"), layout="huggingface")
    assert all(tensor.abs().sum() > 0 for tensor in loaded.values())


# --- exports ---------------------------------------------------------------------------------------------------------


def test_an_export_is_bit_for_bit_what_a_folder_gets(place: Place, tmp_path: Path):
    held = weights()
    report = export(held, place.address())
    local = export(held, tmp_path / "local")
    assert contents(place.folder()) == contents(tmp_path / "local")
    assert place.names() == sorted(os.listdir(tmp_path / "local"))
    assert sw.verify(place.folder()).problems == []
    assert (report.tensors, report.files, report.bytes_written) == (
        local.tensors,
        local.files,
        local.bytes_written,
    )


@pytest.mark.parametrize("spelled", [lambda address: address + "/", Path], ids=["slash", "path"])
def test_an_address_is_found_however_it_is_written(place: Place, spelled):
    path = spelled(place.address())
    writer = sw.HuggingFaceStorageWriter(path, max_shard_size="9MB")
    assert writer.path == place.address()
    export(weights(), place.address())
    kinds = {name.rpartition("-")[2] for name in place.names()}
    for act in (
        lambda: export(weights(2.0), path),
        lambda: dcp.save(weights(3.0), storage_writer=writer, planner=sw.SavePlanner()),
    ):
        act()
        assert {name.rpartition("-")[2] for name in place.names()} == kinds
        assert sw.verify(place.folder()).problems == []
    before = contents(place.folder())
    with pytest.raises(FileExistsError, match="made from"):
        export(weights(4.0), path, template=place.address() + "/")
    assert contents(place.folder()) == before


@pytest.mark.parametrize("spelled", ["s3a://{}/run", "s3://{}//run", "S3://{}/run/"])
def test_a_training_is_known_by_each_address_that_a_store_takes_for_its_own(place: Place, spelled: str):
    """Those who read the same folder must not be told two."""
    sw.save({"model": weights(), "moment": torch.ones(3)}, place.address())
    other, before = spelled.format(place.bucket), contents(place.folder())
    options = {"layout": "huggingface", "key": "model", "overwrite": True}
    for source, to in ((other, place.address()), (place.address(), other)):
        with pytest.raises(FileExistsError, match="holds the checkpoint of training that this is made from"):
            sw.export(source, to, **options)
        with pytest.raises((FileExistsError, ValueError), match=r"made from|expected another directory"):
            sw.convert(source, to, format="safetensors")
    assert contents(place.folder()) == before


def test_an_export_with_a_template_and_quantized(place: Place, tmp_path: Path, tiny: Path):
    held = sw.empty_state_dict(tiny, layout="huggingface")
    held = {name: torch.randn(tensor.shape).to(tensor.dtype) for name, tensor in held.items()}
    for quantization in (None, "mxfp8"):
        folder = f"as-{quantization}"
        for path in (place.address(folder), tmp_path / folder):
            export(held, path, template=tiny, quantization=quantization)
        assert contents(place.folder(folder)) == contents(tmp_path / folder)
        assert "config.json" in place.names(folder)


def test_an_export_replaces_its_own_and_refuses_others(place: Place):
    export(weights(), place.address())
    place.put("run/notes.txt")
    export(weights(2.0), place.address())
    assert sw.verify(place.folder()).problems == []
    assert sum(name.startswith("model-2-") for name in place.names()) == 4 and "notes.txt" in place.names()
    assert not any(name.startswith("model-0") for name in place.names())
    sw.save(state(), place.address("training"))
    with pytest.raises(FileExistsError, match="holds a sharded checkpoint"):
        export(weights(), place.address("training"))
    place.put("other/model.safetensors")
    with pytest.raises(FileExistsError, match="this library has not written"):
        export(weights(), place.address("other"))
    export(weights(), place.address("other"), overwrite=True)
    assert "model.safetensors" not in place.names("other")


# --- faults ----------------------------------------------------------------------------------------------------------


FAULTS = {
    "unavailable": lambda: answering(503, times=3),
    "too many": lambda: answering(429, times=3),
    "part unavailable": lambda: answering(503, times=2, where="partNumber=1"),
    "reset": lambda: hanging_up(times=3),
    "commit unavailable": lambda: answering(503, times=2, where="manifest|index"),
    "commit's answer is lost": lambda: hanging_up(times=1, written=True, where="manifest|index"),
    "end of an upload unavailable": lambda: answering(503, where="uploadId", methods=("POST",)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_passes_is_tried_again(place: Place, fault: str):
    sw.save(state(1.0), place.address())
    export(weights(), place.address("model"))
    for act, folder in ((lambda: sw.save(state(2.0), place.address()), "run"),
                        (lambda: export(weights(2.0), place.address("model")), "model")):  # fmt: skip
        place.server.write_faults = [FAULTS[fault]()]
        act()
        assert place.server.write_faults[0].times == 0, "the fault has not happened"
        assert sw.verify(place.folder(folder)).problems == []
        assert not any(".shardwright.saving" in name for name in place.names(folder))
    expect_saved(place.folder(), 2.0)


LASTING = {
    "denied": (lambda: answering(403, times=1000), PermissionError, "access was denied"),
    "unavailable": (lambda: answering(503, times=1000), OSError, "503"),
    "part denied": (
        lambda: answering(403, times=1000, where="partNumber=1"),
        PermissionError,
        "access was denied",
    ),
    "end of an upload refused": (
        lambda: answering(400, times=9, where="uploadId", methods=("POST",)),
        OSError,
        "400",
    ),
    "commit denied": (lambda: answering(403, times=1000, where="manifest|index"), PermissionError, "denied"),
    "commit unavailable": (lambda: answering(503, times=1000, where="manifest|index"), OSError, "503"),
    "reset": (lambda: hanging_up(times=1000), OSError, "rank-|model-"),
}


@pytest.mark.parametrize("fault", LASTING)
def test_what_lasts_publishes_nothing_and_leaves_nothing(place: Place, fault: str, little_patience: None):
    sw.save(state(1.0), place.address())
    export(weights(), place.address("model"))
    before = {name: contents(place.folder(name)) for name in ("run", "model")}
    make, kind, match = LASTING[fault]
    for act in (lambda: sw.save(state(2.0), place.address()), lambda: export(weights(2.0), place.address("model")),
                lambda: sw.save(state(2.0), place.address("new"))):  # fmt: skip
        place.server.write_faults = [make()]
        with pytest.raises(OSError, match=match) as failure:
            act()
        assert isinstance(failure.value, kind)
        assert place.bucket in str(failure.value) and "secret" not in str(failure.value)
    assert {name: contents(place.folder(name)) for name in ("run", "model")} == before
    assert place.names("new") == [] and place.server.uploads == {}
    place.server.write_faults = []
    sw.save(state(3.0), place.address())
    expect_saved(place.folder(), 3.0)


def test_a_bucket_that_is_not_there_is_named(place: Place):
    (place.server.folder / place.bucket).rmdir()
    place.server.write_faults = [answering(404, times=1000, where="")]
    with pytest.raises(FileNotFoundError, match=place.bucket):
        sw.save(state(), place.address())
    (place.server.folder / place.bucket).mkdir()


@pytest.mark.parametrize("exported", [False, True])
def test_of_two_saves_at_once_the_first_to_publish_succeeds(place: Place, exported: bool):
    act = (lambda value: export(weights(value), place.address())) if exported else (
        lambda value: sw.save(state(value), place.address()))  # fmt: skip
    act(1.0)
    inner: list[bool] = []

    def save_another(method: str, path: str) -> None:
        if not inner and ("manifest" in path or "index" in path) and method == "PUT":
            inner.append(True)
            act(2.0)

    place.server.before = save_another
    with pytest.raises(OSError, match="another save|Did another"):
        act(3.0)
    assert sw.verify(place.folder()).problems == []
    if not exported:
        expect_saved(place.folder(), 2.0)
    assert not any(".shardwright.saving" in name for name in place.names())


def test_an_interrupt_leaves_nothing(place: Place):
    sw.save(state(1.0), place.address())
    before = contents(place.folder())

    def interrupt(method: str, path: str) -> None:
        if "partNumber=2" in path:
            place.server.before = lambda *_: None
            os.kill(os.getpid(), signal.SIGINT)

    place.server.before = interrupt
    with pytest.raises(BaseException, match="KeyboardInterrupt|") as failure:
        sw.save(state(2.0), place.address())
    assert isinstance(failure.value, KeyboardInterrupt) or "KeyboardInterrupt" in repr(
        failure.value.__cause__
    )
    assert contents(place.folder()) == before
    assert not any(".shardwright.saving" in name for name in place.names())


@pytest.mark.parametrize("moment", ["as the manifest is written", "as the earlier one goes"])
def test_an_interrupt_after_publishing_leaves_what_is_published_whole(
    place: Place, moment: str, monkeypatch: pytest.MonkeyPatch
):
    """The handler of a signal runs when the store has answered, so that the manifest is there already."""
    sw.save(state(1.0), place.address())
    act = "put" if moment == "as the manifest is written" else "delete"
    doing = getattr(object_store.ObjectStore, act)

    def interrupted(self: object, name: str, *arguments: object, **more: object) -> object:
        done = doing(self, name, *arguments, **more)
        if name.endswith("shardwright.manifest" if act == "put" else ".distcp"):
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as while_saving, pytest.raises((KeyboardInterrupt, ValueError)):
        while_saving.setattr(object_store.ObjectStore, act, interrupted)
        sw.save(state(2.0), place.address())
    expect_saved(place.address(), 2.0)
    sw.save(state(3.0), place.address())
    expect_saved(place.address(), 3.0)
    assert len(place.names()) == 3 and not any(".shardwright.saving" in name for name in place.names())


def test_what_a_dead_export_leaves_is_told_from_files_of_others(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    """Its names begin with "model", with which those of others may end."""

    def die(self: object, name: str, *arguments: object, **more: object) -> None:
        raise OSError("the rank is dead")

    with monkeypatch.context() as while_dying, pytest.raises(OSError, match="dead"):
        while_dying.setattr(object_store.ObjectStore, "delete", die)
        putting = object_store.ObjectStore.put
        while_dying.setattr(
            object_store.ObjectStore,
            "put",
            lambda self, name, *given, **more: (die if name.endswith("index.json") else putting)(
                self, name, *given, **more
            ),
        )
        export(weights(1.0), place.address())
    assert ".shardwright.saving/model" in place.names()
    others = ["reward-model.bin", "my-model.json", "vae-model.pt.md"]
    for name in others:
        place.put(f"run/{name}")
    export(weights(2.0), place.address())
    assert sw.verify(place.folder()).problems == []
    assert set(others) <= set(place.names())
    assert not any(name.startswith((".shardwright.saving", "model-0")) for name in place.names())


def test_saves_that_died_one_after_the_other_are_undone_in_whatever_order(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    """Each has replaced torch's metadata and not the manifest. Tags are random: until they have come in both orders."""
    putting = object_store.ObjectStore.put

    def put(self: object, name: str, *given: object, **more: object) -> object:
        if name.endswith("shardwright.manifest"):
            raise KeyboardInterrupt
        return putting(self, name, *given, **more)

    orders: set[bool] = set()
    while orders != {True, False}:
        place.server.folder.joinpath(place.bucket, "run").mkdir(exist_ok=True)
        tags: list[str] = []
        for _ in range(2):
            with monkeypatch.context() as dying, pytest.raises((KeyboardInterrupt, ValueError)):
                dying.setattr(object_store.ObjectStore, "put", put)
                sw.save(state(1.0), place.address())
            markers = [Path(name).name for name in place.names() if ".shardwright.saving" in name]
            tags += [tag for tag in markers if tag not in tags]
        assert len(tags) == 2
        orders.add(tags[0] < tags[1])
        sw.save(state(3.0), place.address())
        expect_saved(place.address(), 3.0)
        assert len(place.names()) == 3
        shutil.rmtree(place.folder())


def wire_field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message, of fewer than 128 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content


HOSTILE_MAPS = {  # fields of storage/format/save_marker.proto: name → 7, or as bytes
    "writes": (3, b"\x10\x07"),
    "publishes": (4, b"\x11\x07" + bytes(7)),
    "previous": (5, wire_field(2, b"?")),
    "removes": (6, wire_field(2, b"?")),
}


@pytest.mark.parametrize(
    "content", ["", "[]", "no message", "[" * 100_000, "cut", "no commit", *HOSTILE_MAPS]
)
def test_a_marker_that_no_save_has_written_does_no_harm(place: Place, content: str):
    sw.save(state(1.0), place.address())
    place.put("run/notes.txt", b"hello")
    over = open_store(f"s3://{place.bucket}").head("run/shardwright.manifest").version
    told = wire_field(1, b"shardwright.manifest") + wire_field(2, over.encode())
    marker = {"cut": told[:-1], "no commit": wire_field(2, over.encode())}.get(content, content.encode())
    if content in HOSTILE_MAPS:
        number, value = HOSTILE_MAPS[content]
        names = (b"notes.txt", b"../../elsewhere")
        marker = told + b"".join(wire_field(number, wire_field(1, name) + value) for name in names)
    for tag in ("cccccccccccc", "model", "dddddddddddd"):
        place.put(f"run/.shardwright.saving/{tag}", marker)
    sw.save(state(2.0), place.address())
    expect_saved(place.address(), 2.0)
    assert (place.folder() / "notes.txt").read_bytes() == b"hello"


class GooglesServer(BaseHTTPRequestHandler):
    """Has one object of generation 17; conditions are on generations."""

    conditions: ClassVar[list[str | None]] = []

    def do_HEAD(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.conditions.append(self.headers["x-goog-if-generation-match"])
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        self.send_response(200)
        for key, value in {"ETag": '"one"', "x-goog-generation": "17", "Content-Length": "0"}.items():
            self.send_header(key, value)
        self.send_header("Last-Modified", self.date_time_string())
        self.end_headers()


def test_googles_store_replaces_an_object_on_condition_of_its_generation(monkeypatch: pytest.MonkeyPatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), GooglesServer)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    account = {"gcs_base_url": f"http://127.0.0.1:{server.server_port}", "disable_oauth": True}
    account |= {"client_email": "", "private_key": "", "private_key_id": ""}
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account))
    try:
        store = object_store.ObjectStore("gs://bucket")
        assert store.put("run/shardwright.manifest", b"new", only_over='"one"').version == '"one"'
        assert GooglesServer.conditions == ["17"]
        with pytest.raises(ChangedObjectError, match="run/shardwright.manifest"):
            store.put("run/shardwright.manifest", b"new", only_over='"another"')
        assert GooglesServer.conditions == ["17"]
    finally:
        server.shutdown()
        server.server_close()


class Buffered(MemoryFileSystem):
    """Shows a file once it is closed, and closes it when nobody holds it any more, as most of fsspec's do."""

    protocol = "buffered"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    def open(self, path: str, mode: str = "rb", block_size: int | None = None, **more: object) -> object:
        if mode != "wb":
            return super().open(path, mode, **more)
        return BufferedFile(self, self._strip_protocol(path), mode, block_size=block_size)

    def pipe_file(self, path: str, value: bytes, **more: object) -> None:
        path = self._strip_protocol(path)
        self.store[path] = MemoryFile(self, path, value)


class BufferedFile(AbstractBufferedFile):
    def _initiate_upload(self) -> None:
        self.sent = b""

    def _upload_chunk(self, final: bool = False) -> bool:
        self.sent += self.buffer.getvalue()
        if final:
            self.fs.pipe_file(self.path, self.sent)
        return True


@pytest.mark.parametrize("scheme", ["memory", "buffered"])
def test_what_fsspec_opens_is_written_and_an_abandoned_file_leaves_nothing(
    scheme: str, monkeypatch: pytest.MonkeyPatch
):
    fsspec.register_implementation("buffered", Buffered, clobber=True)
    root = f"{scheme}://{uuid.uuid4().hex[:12]}"
    files = fsspec.filesystem(scheme)
    sw.save(state(1.0), f"{root}/run")
    sw.save(state(2.0), f"{root}/run")
    expect_saved(f"{root}/run", 2.0)
    export(weights(1.0), f"{root}/model")
    assert sw.verify(f"{root}/model").problems == []
    before = files.find(root)
    assert len(before) == 3 + 6
    sending = Sending.send

    def failing(self: Sending, name: str, size: int, begin: int, part: object) -> None:
        if begin > 0:
            raise OSError("the line is cut")
        sending(self, name, size, begin, part)

    monkeypatch.setattr(Sending, "send", failing)
    for act in (lambda: sw.save(state(3.0), f"{root}/run"), lambda: export(weights(3.0), f"{root}/model")):
        with pytest.raises(OSError, match="the line is cut"):
            act()
    gc.collect()
    assert files.find(root) == before
    expect_saved(f"{root}/run", 2.0)


def test_no_file_of_a_save_holds_a_password_of_its_address():
    """Whoever reads the bucket may read the file, and torch's metadata tells where it was saved to."""
    address = f"memory://user:word@host/{uuid.uuid4().hex}"
    sw.save({"w": torch.ones(3), "n": 1}, address, format="torch")
    files = [
        data.getvalue() for name, data in MemoryFileSystem.store.items() if address.rpartition("/")[2] in name
    ]
    assert len(files) == 3 and any(b"memory://***@host" in data for data in files)
    assert not any(b"word@" in data for data in files)


KILLED = """
import os, pickle, sys, torch
import shardwright as sw
sys.path.insert(0, sys.argv[2])
from test_uploads import state, weights, export
if sys.argv[3] == "save":
    sw.save(state(2.0), sys.argv[1])
else:
    export(weights(2.0), sys.argv[1])
"""


@pytest.mark.ranks
@pytest.mark.parametrize("flow", ["save", "export"])
@pytest.mark.parametrize("moment", ["partNumber=1|rank-|model-", "uploadId", "manifest|index"])
def test_a_kill_leaves_the_earlier_one_whole_and_the_next_save_tidies(
    place: Place, flow: str, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The process is killed when the server gets that request, before it does anything about it."""
    import re

    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)

    def act(value: float) -> None:
        if flow == "save":
            sw.save(state(value), place.address())
        else:
            export(weights(value), place.address())

    act(1.0)
    before = contents(place.folder())
    killed: list[int] = []

    def kill(method: str, path: str) -> None:
        if re.search(moment, path) and method in ("PUT", "POST") and not killed:
            killed.append(child.pid)
            child.kill()
            child.wait()

    place.server.before = kill
    here = str(Path(__file__).parent)
    child = subprocess.Popen([sys.executable, "-c", KILLED, place.address(), here, flow])
    child.wait(timeout=300)
    place.server.before = lambda *_: None
    assert child.returncode == -signal.SIGKILL
    after = contents(place.folder())
    if "manifest" not in moment:  # the server may still do what it was asked for
        assert {name: after[name] for name in before} == before
    problems = sw.verify(place.folder()).problems
    if "manifest" in moment:  # torch's metadata is there before the manifest, which may not have come
        problems = [line for line in problems if "is of a save that has not ended" not in line]
    assert problems == []
    assert any(".shardwright.saving" in name for name in place.names())
    place.server.uploads.clear()  # as the rule of a bucket's life cycle does
    assert len(os.listdir(temporary)) == 1
    act(3.0)
    assert os.listdir(temporary) == []
    assert sw.verify(place.folder()).problems == []
    assert not any(".shardwright.saving" in name for name in place.names())
    if flow == "save":
        expect_saved(place.folder(), 3.0)
        assert len(place.names()) == 3


@pytest.mark.ranks
@pytest.mark.parametrize("flow", ["save", "export"])
def test_what_a_killed_first_save_leaves_is_no_checkpoint(place: Place, flow: str):
    def kill(method: str, path: str) -> None:
        if "manifest" in path or "index" in path:
            child.kill()
            child.wait()
            place.server.write_faults = [hanging_up(times=1000, where="")]

    place.server.before = kill
    here = str(Path(__file__).parent)
    child = subprocess.Popen([sys.executable, "-c", KILLED, place.address(), here, flow])
    child.wait(timeout=300)
    place.server.before, place.server.write_faults = lambda *_: None, []
    assert any(name.startswith(("rank-", "model-")) for name in place.names())
    for look in (sw.read_catalog, sw.verify, lambda path: sw.load({"w": torch.zeros(3)}, path)):
        with pytest.raises((OSError, ValueError), match="not been published|unfinished save|expected"):
            look(place.address())
    if flow == "save":
        sw.save(state(3.0), place.address())
        expect_saved(place.folder(), 3.0)
        assert len(place.names()) == 3
    else:
        export(weights(3.0), place.address())
        assert sw.verify(place.folder()).problems == []
        assert not any(name.startswith("model-0") for name in place.names())


def test_no_message_holds_a_secret_and_states_pickle(place: Place):
    report = sw.save(state(), place.address())
    assert pickle.loads(pickle.dumps(report)) == report
    assert WriteFault
