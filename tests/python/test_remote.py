"""Checkpoints at addresses: loaded, resumed, verified and inspected from servers on this machine, which also fail."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import object_server
import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from command import output_of
from hub_server import hub
from object_server import (
    Fault,
    Handler,
    answering_short,
    answering_whole,
    breaking_off,
    refusing,
    sending_elsewhere,
)
from safetensors.torch import save_file
from shardwright.remote import reading
from shardwright.remote.address import address_of, is_address, root_and_key, without_secrets
from shardwright.remote.object_store import ObjectStore
from shardwright.remote.open_stores import open_store


@pytest.fixture
def by_obstore(monkeypatch) -> None:
    """Has nothing received by the engine itself."""
    monkeypatch.setattr(ObjectStore, "plain_url", lambda self, name: ("", 0))


@pytest.fixture(params=["engine", "obstore"])
def by_either(request) -> None:
    if request.param == "obstore":
        request.getfixturevalue("by_obstore")


def loaded(path: object, like: Path) -> tuple[dict[str, torch.Tensor], sw.LoadReport]:
    state = {name: torch.full_like(tensor, 7) for name, tensor in sw.empty_state_dict(like).items()}
    return state, sw.load(state, path)


def differing(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    assert state.keys() == expected.keys()
    return [n for n in state if not torch.equal(state[n].view(torch.uint8), expected[n].view(torch.uint8))]


def bytes_of_tensors(path: Path) -> int:
    return sum(tensor.end - tensor.begin for tensor in sw.read_catalog(path).tensors)


# --- what arrives ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_a_load_from_an_address_equals_that_of_the_files(scheme, server, bucket, tiny):
    url = f"s3://{bucket}/tiny" if scheme == "s3" else f"{server.http}/{bucket}/tiny"
    expected, _ = loaded(tiny, tiny)
    state, report = loaded(url, tiny)
    assert differing(state, expected) == []
    assert report.files_remote == report.files == len(sw.read_catalog(tiny).files)


@pytest.fixture
def agents(monkeypatch) -> list[str]:
    """Who has asked for ranges of tensors, by the names that they give themselves."""
    found: list[str] = []
    answer = Handler.send_bytes

    def noting(self: Handler, file: Path, begin: int, *rest: object, **more: object) -> None:
        if begin >= object_server.header_bytes(file) > 0:
            found.append(self.headers.get("User-Agent", ""))
        answer(self, file, begin, *rest, **more)

    monkeypatch.setattr(Handler, "send_bytes", noting)
    return found


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_what_is_had_by_plain_http_is_received_by_the_engine(scheme, server, bucket, tiny, agents):
    loaded(f"s3://{bucket}/tiny" if scheme == "s3" else f"{server.http}/{bucket}/tiny", tiny)
    assert agents and set(agents) == {"shardwright"}


def test_a_public_bucket_is_left_to_obstore(server, bucket, tiny, agents, monkeypatch):
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    state, _ = loaded(f"s3://{bucket}/tiny", tiny)
    assert differing(state, loaded(tiny, tiny)[0]) == []
    assert agents and "shardwright" not in agents


def test_what_a_proxy_of_the_environment_is_for_is_left_to_obstore(server, bucket, monkeypatch):
    address = f"s3://{bucket}/tiny/model.safetensors"
    url, seconds, stall = reading._plain_url(address)
    assert url.startswith(f"{server.http}/{bucket}/tiny/model.safetensors?") and seconds > 0 and stall > 0
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        with monkeypatch.context() as changed:
            changed.setenv(name, "http://proxy.invalid:1")
            assert reading._plain_url(address) == ("", 0, 0)
            for exempt in ("127.0.0.1", "example.com, 127.0.0.0/8", "::1/128,127.0.0.9/24"):
                changed.setenv("no_proxy", exempt)
                assert reading._plain_url(address)[0].startswith(f"{server.http}/"), exempt
            for other in ("10.0.0.0/8", "127.0.0.0/33", "example.com,::/0"):
                changed.setenv("no_proxy", other)
                assert reading._plain_url(address) == ("", 0, 0), other


@pytest.mark.parametrize(
    "address",
    [
        "https://example.com/x",
        "hf://a/b/x",
        "memory://x/y",
        "http://example.com/a%20b",
        "http://a:b@example.com/x",
    ],
)
def test_other_addresses_have_no_plain_url(address):
    assert reading._plain_url(address) == ("", 0, 0)


def test_a_public_bucket_that_denies_what_is_not_there_is_loaded(server, bucket, tiny, monkeypatch):
    """Amazon's do, to those who may not list them."""
    answer = Handler.answer

    def denying(self: Handler, status: int, *body: bytes, **headers: str) -> None:
        answer(self, 403 if status == 404 else status, *body, **headers)

    monkeypatch.setattr(Handler, "answer", denying)
    expected, _ = loaded(tiny, tiny)
    state, _ = loaded(f"{server.http}/{bucket}/tiny", tiny)
    assert differing(state, expected) == []
    with pytest.raises(PermissionError, match="denied"):
        loaded(f"{server.http}/{bucket}/another", tiny)


@pytest.mark.parametrize(
    "host", ["bucket.s3.us-east-1.amazonaws.com", "account.blob.core.windows.net", "example.com"]
)
def test_an_address_of_http_is_read_by_http_whoever_serves_it(host):
    """obstore's from_url would take the first for a bucket that needs credentials, and refuse the second."""
    from obstore.store import HTTPStore

    assert isinstance(open_store(f"https://{host}")._store, HTTPStore)


def test_an_address_that_pathlib_has_mangled_is_understood(server, bucket, tiny):
    expected, _ = loaded(tiny, tiny)
    state, _ = loaded(Path(f"s3://{bucket}/tiny"), tiny)
    assert differing(state, expected) == []


def test_what_fsspec_opens_is_loaded(tiny, bucket):
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    for file in tiny.iterdir():
        files.pipe_file(f"/{bucket}/{file.name}", file.read_bytes())
    expected, _ = loaded(tiny, tiny)
    state, _ = loaded(f"memory://{bucket}", tiny)
    assert differing(state, expected) == []


def test_dcp_loads_through_the_reader(server, bucket, tiny):
    expected, _ = loaded(tiny, tiny)
    state = {name: torch.full_like(tensor, 7) for name, tensor in expected.items()}
    reader = sw.HuggingFaceStorageReader(f"s3://{bucket}/tiny")
    dcp.load(state, storage_reader=reader, planner=sw.LoadPlanner(), no_dist=True)
    assert differing(state, expected) == []


def test_catalogs_and_request_lists_are_those_of_the_files(server, bucket, tiny):
    url = f"s3://{bucket}/tiny"
    there, here = sw.read_catalog(url), sw.read_catalog(tiny)
    facts = [[(t.name, t.dtype, t.shape, t.begin, t.end) for t in c.tensors] for c in (there, here)]
    assert facts[0] == facts[1] and there.config == here.config
    assert sw.request_list(url) == sw.request_list(tiny)


def trained() -> dict[str, object]:
    torch.manual_seed(0)
    weights = {f"layer.{n}.weight": torch.randn(33, 17) for n in range(5)}
    return {**weights, "half": torch.randn(300).bfloat16(), "lr": 0.25, "names": ["a", "b"]}


@pytest.mark.parametrize("format", ["safetensors", "torch"])
def test_training_is_resumed_found_and_verified(format, server, bucket, tmp_path):
    root = server.folder / bucket / "run"
    for step in (3, 12):
        writer = sw.ShardedStorageWriter(root / f"step-{step:08d}", format=format)
        dcp.save(trained() | {"step": step}, storage_writer=writer, no_dist=True)
    newest = sw.latest(f"s3://{bucket}/run")
    assert newest == f"s3://{bucket}/run/step-00000012"
    state = {n: torch.zeros_like(v) if isinstance(v, torch.Tensor) else None for n, v in trained().items()}
    state["step"] = None
    sw.load(state, newest)
    for name, value in (trained() | {"step": 12}).items():
        same = torch.equal(state[name], value) if isinstance(value, torch.Tensor) else state[name] == value
        assert same, name
    report = sw.verify(newest)
    assert report.problems == [] and report.bytes_hashed > 0 and report.tensors == 6


@pytest.mark.parametrize("format", ["torch", "safetensors"])
def test_a_sharded_checkpoint_is_converted_from_and_to_addresses(format, server, bucket, tmp_path):
    other = {"torch": "safetensors", "safetensors": "torch"}[format]
    sw.save(trained(), server.folder / bucket / "run", format=other)
    sw.convert(f"s3://{bucket}/run", tmp_path / "converted", format=format)
    sw.convert(f"s3://{bucket}/run", f"s3://{bucket}/converted", format=format)
    for place in (tmp_path / "converted", server.folder / bucket / "converted"):
        assert sw.verify(place).problems == []
        state = {
            n: torch.zeros_like(v) if isinstance(v, torch.Tensor) else None for n, v in trained().items()
        }
        sw.load(state, place)
        assert all(
            torch.equal(v, state[n]) if isinstance(v, torch.Tensor) else v == state[n]
            for n, v in trained().items()
        )
    with pytest.raises(ValueError, match="another directory"):
        sw.convert(f"s3://{bucket}/run", f"s3://{bucket}/run/", format=format)


def test_damage_is_found(server, bucket):
    folder = server.folder / bucket / "run"
    sw.save(trained(), folder)
    file = next(folder.glob("rank-*"))
    content = bytearray(file.read_bytes())
    content[-8] ^= 1
    file.write_bytes(content)
    report = sw.verify(f"s3://{bucket}/run")
    assert len(report.problems) == 1 and f"s3://{bucket}/run/{file.name}" in report.problems[0]


@pytest.mark.parametrize("command", [["inspect"], ["plan"], ["load"], ["verify"]])
def test_commands_take_addresses(command, server, bucket, tiny):
    answers = []
    for path in (f"s3://{bucket}/tiny", str(tiny)):
        answers.append(json.loads(output_of(*command, path, "--json")))
    for fact in ("tensors", "bytes", "bytes_needed", "bytes_written", "kind"):
        assert answers[0].get(fact) == answers[1].get(fact)


def test_a_checkpoint_of_training_is_converted_from_an_address(server, bucket, tmp_path):
    state = trained()
    dcp.save(state, checkpoint_id=server.folder / bucket / "torchs", no_dist=True)
    sw.convert(f"s3://{bucket}/torchs", tmp_path / "converted")
    found = {n: torch.zeros_like(v) if isinstance(v, torch.Tensor) else None for n, v in state.items()}
    sw.load(found, tmp_path / "converted")
    assert all(torch.equal(found[n], v) for n, v in state.items() if isinstance(v, torch.Tensor))


# --- what is asked for -----------------------------------------------------------------------------------------


def test_each_byte_is_asked_for_once(server, bucket, small):
    shutil.copytree(small, server.folder / bucket / "small")
    loaded(f"s3://{bucket}/small", small)
    needed = bytes_of_tensors(small)
    asked = server.bytes_asked(r"\.safetensors$")
    assert needed * 0.5 < asked <= 1.02 * needed, (asked, needed)


@pytest.fixture
def many_small(server, bucket) -> dict[str, torch.Tensor]:
    """600 tensors of 16 KB, in one object that lies at s3://bucket/many."""
    held = {f"t{n:03}": torch.randn(64, 64) for n in range(600)}
    (server.folder / bucket / "many").mkdir()
    save_file(held, server.folder / bucket / "many" / "model.safetensors")
    return held


def test_small_tensors_that_lie_close_come_in_few_requests(server, bucket, many_small):
    state = {name: torch.zeros(64, 64) for name in many_small}
    report = sw.load(state, f"s3://{bucket}/many", layout="huggingface")
    assert differing(state, many_small) == []
    needed = sum(held.nbytes for held in many_small.values())
    assert report.bytes_read == needed and server.bytes_asked(r"\.safetensors$") <= 1.02 * needed
    # A header is two; each of the rest is half as long as 24 connections' shares, or longer.
    assert len(server.asked(r"\.safetensors$")) <= 2 + 2 * 24 + 12


def test_gaps_are_not_read_along_where_they_are_as_large_as_what_is_needed(server, bucket, many_small):
    """Half of the tensors is needed, and lies between the others."""
    state = {name: torch.zeros(64, 64) for name in list(many_small)[::2]}
    report = sw.load(state, f"s3://{bucket}/many", layout="huggingface", strict=False)
    assert differing(state, {name: many_small[name] for name in state}) == []
    needed = sum(tensor.nbytes for tensor in state.values())
    assert needed <= report.bytes_read <= 1.02 * needed


def test_nothing_is_asked_of_tensors_that_nobody_needs(server, bucket, tiny):
    sw.read_catalog(f"s3://{bucket}/tiny")
    headers = server.bytes_asked(r"\.safetensors$")
    expected = sum(int.from_bytes(f.read_bytes()[:8], "little") + 8 for f in tiny.glob("*.safetensors"))
    assert headers == expected
    state = {n: t[:0] for n, t in sw.empty_state_dict(tiny).items() if n.endswith("norm.weight")}
    with pytest.raises(sw.PlanError):  # which is found before anything is asked
        sw.load(state, f"s3://{bucket}/tiny")
    assert server.bytes_asked(r"\.safetensors$") == 2 * expected


def test_headers_are_asked_for_side_by_side(server, bucket, tiny):
    """Each request waits until another is there: one at a time would never end."""
    files = len(list(tiny.glob("*.safetensors")))
    if files < 2:
        pytest.skip("one file")
    gate = threading.Barrier(files, timeout=120)

    def act(handler, name, begin, end):
        gate.wait()
        return False

    server.fault = Fault(act, times=files, of_headers=True)
    sw.read_catalog(f"s3://{bucket}/tiny")


# --- faults ----------------------------------------------------------------------------------------------------

PASSING = {
    "429": lambda: refusing(429, times=3),
    "503": lambda: refusing(503, times=3),
    "500": lambda: refusing(500, times=1),
    "reset": lambda: breaking_off(1000, times=3, reset=True),
    "ends early": lambda: breaking_off(1000, times=3),
    "answers short": lambda: answering_short(times=3),
    "403 once": lambda: refusing(403, times=1),
}


@pytest.mark.parametrize("kind", PASSING)
def test_what_passes_is_tried_again(kind, server, bucket, tiny, by_either):
    expected, _ = loaded(tiny, tiny)
    server.fault = PASSING[kind]()
    state, _ = loaded(f"s3://{bucket}/tiny", tiny)
    assert server.fault.times == 0 and differing(state, expected) == []


def test_a_broken_answer_is_resumed_where_it_broke_off(server, bucket, by_either):
    tensor = torch.arange(1 << 23, dtype=torch.float32)
    writer = sw.ShardedStorageWriter(server.folder / bucket / "run", format="safetensors")
    dcp.save({"w": tensor}, storage_writer=writer, no_dist=True)
    server.fault = breaking_off(600_000)
    state = {"w": torch.zeros_like(tensor)}
    sw.load(state, f"s3://{bucket}/run")
    assert torch.equal(state["w"], tensor)
    asked = {one.begin: one.end for one in server.asked(r"\.safetensors$")}
    resumed = [(a, b) for a in asked for b in asked if a + 250_000 < b <= min(a + 600_000, asked[a])]
    assert len(resumed) == 1
    broken, at = resumed[0]
    while at < asked[broken]:  # at once, or in pieces: each goes on where the one before has ended
        at = asked[at]
    assert at == asked[broken]


def test_a_quick_store_is_asked_again_for_what_broke_off(server, bucket, monkeypatch, by_obstore):
    tensor = torch.arange(1 << 23, dtype=torch.float32)
    writer = sw.ShardedStorageWriter(server.folder / bucket / "run", format="safetensors")
    dcp.save({"w": tensor}, storage_writer=writer, no_dist=True)
    monkeypatch.setattr(reading, "_quick", {f"s3://{bucket}"})
    server.fault = breaking_off(600_000)
    state = {"w": torch.zeros_like(tensor)}
    sw.load(state, f"s3://{bucket}/run")
    assert torch.equal(state["w"], tensor)
    asked = [(one.begin, one.end) for one in server.asked(r"\.safetensors$") if one.begin > 0]
    assert len(asked) == len(set(asked)) + 1, "one range was asked for twice"


def test_a_listed_checkpoint_is_asked_for_what_it_has_and_once_for_each_header(server, bucket):
    folder = server.folder / bucket / "two"
    folder.mkdir()
    for part in ("a", "b"):
        save_file({part: torch.zeros(1 << 20)}, folder / f"{part}.safetensors")
    sw.read_catalog(f"s3://{bucket}/two")
    assert sorted(one.name for one in server.asked()) == [f"{bucket}/two/{part}.safetensors" for part in "ab"]
    assert not [one for one in server.log if one.name.endswith((".json", "config"))]


LASTING = {
    "429": (lambda: refusing(429, times=10**6), "429"),
    "503": (lambda: refusing(503, times=10**6), "503"),
    "403": (lambda: refusing(403, times=10**6), "denied"),
    "404": (lambda: refusing(404, times=10**6), "no such object"),
    "wrong place": (lambda: sending_elsewhere(times=10**6), "Requested"),
    "never more": (lambda: breaking_off(0, times=10**6), "given up"),
}


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_a_server_that_takes_a_range_of_all_for_none_is_read(scheme, server, bucket, tiny):
    server.fault = answering_whole(r"\.(json|safetensors)$")
    state, _ = loaded(f"s3://{bucket}/tiny" if scheme == "s3" else f"{server.http}/{bucket}/tiny", tiny)
    assert differing(state, loaded(tiny, tiny)[0]) == []


def test_a_server_that_lists_etags_without_quotes_is_read(server, bucket, tiny):
    server.lists_bare_etags = True
    state, _ = loaded(f"s3://{bucket}/tiny", tiny)
    assert differing(state, loaded(tiny, tiny)[0]) == []


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_a_server_whose_etags_have_no_quotes_at_all_is_read(server, bucket, tiny, scheme):
    """They are no condition then, but compared."""
    for number, file in enumerate(sorted(tiny.iterdir())):
        server.etags[f"{bucket}/tiny/{file.name}"] = f"version{number}"
    address = f"s3://{bucket}/tiny" if scheme == "s3" else f"{server.http}/{bucket}/tiny"
    state, _ = loaded(address, tiny)
    assert differing(state, loaded(tiny, tiny)[0]) == []


def test_a_server_that_knows_no_ranges_is_refused_at_once(server, bucket, tiny, monkeypatch, by_either):
    monkeypatch.setenv("SHARDWRIGHT_REMOTE_PATIENCE", "60")
    server.fault = answering_whole(r"\.safetensors$", even_parts=True)
    with pytest.raises(OSError, match=r"safetensors.*does not know ranges"):
        loaded(f"s3://{bucket}/tiny", tiny)
    assert len(server.asked(r"\.safetensors$")) <= 20


def test_a_load_looks_at_the_folder_once(server, bucket, tiny):
    address = f"s3://{bucket}/tiny"
    loaded(address, tiny)
    with server.lock:
        looks = [one for one in server.log if one.end == 0]
    assert [(one.method, one.name) for one in looks] == [("GET", bucket)], looks
    # And the next load looks anew.
    (server.folder / bucket / "tiny" / "model.safetensors.index.json").unlink()
    (server.folder / bucket / "tiny" / "shardwright.manifest").write_bytes(b"")
    with pytest.raises(sw.CheckpointFormatError, match="manifest"):
        loaded(address, tiny)


@pytest.mark.parametrize("kind", LASTING)
def test_what_lasts_is_one_error_that_names_object_and_tensor(kind, server, bucket, tiny, by_either):
    server.fault, words = LASTING[kind][0](), LASTING[kind][1]
    state = sw.empty_state_dict(tiny)
    began = time.monotonic()
    with pytest.raises((OSError, FileNotFoundError)) as caught:
        sw.load(state, f"s3://{bucket}/tiny")
    message = str(caught.value)
    assert f"s3://{bucket}/tiny/model" in message and words in message, message
    assert "for tensor " in message or "tensor" in message, message
    assert "secret" not in message and "Signature" not in message
    assert hasattr(caught.value, "partly_written")
    assert time.monotonic() - began < 120


def test_an_object_that_changes_is_an_error_that_names_it(server, bucket, tiny, by_either):
    catalog = sw.read_catalog(f"s3://{bucket}/tiny")
    assert all(file.version for file in catalog.files)
    name = catalog.files[0].name

    begins = []

    def act(handler, asked, begin, end):
        begins.append(begin)
        if len(begins) == 2:  # the header is there; now its tensors are asked for
            server.etags[f"{bucket}/tiny/{name}"] = '"another"'
        return False

    server.fault = Fault(act, times=2, where=name, of_headers=True)
    with pytest.raises(OSError, match="not the one that was looked at first|expected version") as caught:
        loaded(f"s3://{bucket}/tiny", tiny)
    assert name in str(caught.value)


def test_a_server_that_stalls_is_left(server, bucket, tiny, monkeypatch, by_either):
    from shardwright.remote import object_store

    monkeypatch.setattr(object_store, "STALL_SECONDS", 1)
    monkeypatch.setenv("SHARDWRIGHT_REMOTE_PATIENCE", "10")
    expected, _ = loaded(tiny, tiny)
    server.fault = breaking_off(1000, times=1, stall=600)
    began = time.monotonic()
    state, _ = loaded(f"s3://{bucket}/tiny", tiny)
    assert differing(state, expected) == [] and time.monotonic() - began < 120


def test_an_address_without_a_checkpoint_says_so(server, bucket):
    with pytest.raises(FileNotFoundError, match=f"s3://{bucket}/nothing"):
        sw.load({"a": torch.zeros(1)}, f"s3://{bucket}/nothing")


def test_ctrl_c_ends_a_load(server, bucket, tiny, monkeypatch, by_either):
    server.fault = refusing(503, times=10**6)
    monkeypatch.setenv("SHARDWRIGHT_REMOTE_PATIENCE", "600")
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        loaded(f"s3://{bucket}/tiny", tiny)
    assert time.monotonic() - began < 120


# --- addresses -------------------------------------------------------------------------------------------------


def test_addresses_are_told_from_paths():
    assert is_address("s3://b/x") and is_address(Path("s3://b/x")) and is_address("hf://a/b@main")
    assert not any(map(is_address, ["/s3/x", "x:y", "file:///x", "local:///x", "c:/x", "a/b", "s3"]))
    assert address_of(Path("s3://b/x/")) == address_of("s3://b/x//") == "s3://b/x"
    assert root_and_key("hf://a/b@main/c/d") == ("hf://a/b@main", "c/d")
    assert root_and_key("https://h:1/c/d/") == ("https://h:1", "c/d")


def test_secrets_of_addresses_are_not_shown():
    assert (
        without_secrets("HTTPPool(host='h'): failed with url: /b/k?X-Amz-Signature=abc (cause)")
        == "HTTPPool(host='h'): failed with url: /b/k?*** (cause)"
    )
    assert without_secrets("what? a=b, \ud800") == "what? a=b, \ud800"
    text = "GET https://user:word@host/x?X-Amz-Signature=abc&y=1 failed"
    assert without_secrets(text) == "GET https://***@host/x?*** failed"
    assert (
        without_secrets("sftp://user:p@ss@host/x, http://token@host/x")
        == "sftp://***@host/x, http://***@host/x"
    )
    assert (
        without_secrets("abfss://container@account/x and s3://b/a@b")
        == "abfss://container@account/x and s3://b/a@b"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("https://host/x/model.safetensors?X-Amz-Signature=secret", "address of a folder"),
        ("hf://name", "hf://organisation/name@revision"),
        ("hf://datasets/name", "hf://organisation/name@revision"),
    ],
)
def test_addresses_of_no_folder_are_refused_before_anything_is_asked(text, words):
    for call in (sw.read_catalog, sw.verify, sw.latest, lambda path: sw.load({}, path)):
        with pytest.raises(ValueError, match=words) as caught:
            call(text)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["file:///x", "nosuchthing://x/y"])
def test_addresses_that_nothing_opens_are_refused(text, monkeypatch):
    with pytest.raises((ValueError, ImportError), match="file:|nosuchthing"):
        sw.read_catalog(text)


def test_a_library_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ImportError, match=r"pip install 'shardwright\[remote\]'"):
        sw.read_catalog("s3://never-opened-before/x")


# --- the Hub ---------------------------------------------------------------------------------------------------

FROM_HUB = """
import sys
import shardwright as sw
import torch
from shardwright.remote.open_stores import open_store

local = sys.argv[1]
expected, state = sw.empty_state_dict(local), sw.empty_state_dict(local)
sw.load(expected, local)
catalog = sw.read_catalog("hf://organisation/name@main")
open("signature", "w").close()  # now the addresses that were given out expire
while open("signature").read() != "expired":
    pass
sw.load(state, "hf://organisation/name@main")
assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
assert {file.version for file in catalog.files} == {"0123456789abcdef0123456789abcdef01234567"}
try:
    sw.read_catalog("hf://organisation/another")
except FileNotFoundError as error:
    assert "hf auth login" in str(error), error
print("done")
"""


@pytest.mark.process
def test_a_repository_of_the_hub_is_loaded_though_its_signed_addresses_expire(tiny, tmp_path):
    pytest.importorskip("huggingface_hub")
    shutil.copytree(tiny, tmp_path / "served" / "organisation" / "name")
    with hub(tmp_path / "served") as server:
        environment = os.environ | {"HF_ENDPOINT": server.http, "SHARDWRIGHT_REMOTE_PATIENCE": "5"}
        with subprocess.Popen(
            [sys.executable, "-c", FROM_HUB, str(tiny)], env=environment, cwd=tmp_path, stderr=subprocess.PIPE
        ) as run:
            while run.poll() is None:
                if (tmp_path / "signature").exists() and server.signature == 0:
                    server.signature = 1
                    (tmp_path / "signature").write_text("expired")
                time.sleep(0.02)
            assert run.returncode == 0, run.stderr.read().decode()
    assert server.bytes_asked("safetensors") > 0


# --- a server that others have written -------------------------------------------------------------------------


def test_moto_serves_what_is_loaded_resumed_and_verified(tiny, tmp_path, bucket, monkeypatch):
    """moto is what many test their programs for S3 with."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        urllib.request.urlopen(
            urllib.request.Request(f"http://{host}:{port}/{bucket}", method="PUT", data=b"")
        ).close()
        sw.save(trained(), tmp_path / "run")
        store = open_store(f"s3://{bucket}")
        for folder in (tiny, tmp_path / "run"):
            for file in folder.iterdir():
                store.put(f"{folder.name}/{file.name}", file.read_bytes())
        expected, _ = loaded(tiny, tiny)
        state, _ = loaded(f"s3://{bucket}/tiny", tiny)
        assert differing(state, expected) == []
        resumed = {
            n: torch.zeros_like(v) if isinstance(v, torch.Tensor) else None for n, v in trained().items()
        }
        sw.load(resumed, f"s3://{bucket}/run")
        assert all(torch.equal(resumed[n], v) for n, v in trained().items() if isinstance(v, torch.Tensor))
        assert sw.verify(f"s3://{bucket}/run").problems == []
    finally:
        server.stop()
