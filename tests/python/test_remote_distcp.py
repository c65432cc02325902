"""torch's own checkpoints, of ``.distcp`` files, at addresses."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from object_server import Fault, Handler, ObjectServer, breaking_off, refusing
from shardwright.remote.parts import Part, PartsAhead
from test_remote import differing, trained

ARCHIVES = r"\.distcp$"


def saved(server: ObjectServer, bucket: str, state: dict) -> tuple[str, int]:
    """Where the state lies as torch saves it, and the bytes of its archives."""
    folder = server.folder / bucket / "torchs"
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return f"s3://{bucket}/torchs", sum(file.stat().st_size for file in folder.glob("*.distcp"))


def empty(state: dict) -> dict:
    return {n: torch.zeros_like(v) if isinstance(v, torch.Tensor) else None for n, v in state.items()}


def reading_parts() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("reading parts")]


def test_torchs_own_checkpoint_is_read(server, bucket):
    state = trained()
    dcp.save(state, checkpoint_id=server.folder / bucket / "torchs", no_dist=True)
    found = {n: torch.zeros_like(v) if isinstance(v, torch.Tensor) else None for n, v in state.items()}
    sw.load(found, f"s3://{bucket}/torchs")
    assert all(torch.equal(found[n], v) for n, v in state.items() if isinstance(v, torch.Tensor))
    assert sw.verify(f"s3://{bucket}/torchs").problems == []


def test_chunks_of_torchs_archives_are_asked_for_once_and_neighbours_together(server, bucket):
    large = {name: torch.randn(2000, 700) for name in "abc"}  # of 5.6 MB: two are more than a request
    state = large | {f"small {n}": torch.randn(10 + n) for n in range(200)}
    address, stored = saved(server, bucket, state)
    found = empty(state)
    report = sw.load(found, address)
    assert differing(found, state) == []
    assert 3 <= len(server.asked(ARCHIVES)) == report.read_requests <= 4
    assert stored * 0.99 < server.bytes_asked(ARCHIVES) <= stored


def test_chunks_that_are_not_needed_are_not_asked_for(server, bucket):
    state = {f"t{n:02}": torch.randn(100, 100) for n in range(20)}
    address, stored = saved(server, bucket, state)
    found = {name: torch.zeros(100, 100) for name in state if int(name[1:]) % 3}
    sw.load(found, address)
    assert differing(found, {name: state[name] for name in found}) == []
    assert server.bytes_asked(ARCHIVES) <= stored * 13 / 20 * 1.01


@contextmanager
def counting_at_once(server: ObjectServer) -> Iterator[list[int]]:
    """How many requests for archives are being answered whenever one more is; each answer takes a while."""
    counts, under_way = [], threading.Semaphore(0)

    def act(handler: Handler, name: str, begin: int, end: int) -> bool:
        under_way.release()
        threading.Event().wait(0.05)
        counts.append(under_way._value)
        under_way.acquire()
        return False

    server.fault = Fault(act, times=10**6, where=ARCHIVES)
    yield counts
    server.fault = None


@pytest.mark.parametrize("staging", [None, 5_000_000])
def test_chunks_come_several_at_a_time_in_bounded_memory(staging, server, bucket):
    state = {f"t{n:02}": torch.randn(600, 700) for n in range(12)}  # of 1.7 MB
    address, stored = saved(server, bucket, state)
    found = empty(state)
    with counting_at_once(server) as counts:
        report = sw.load(found, address, staging_bytes=staging)
    assert differing(found, state) == []
    assert server.bytes_asked(ARCHIVES) <= stored
    if staging is None:
        assert max(counts) >= 2 and stored * 0.9 < report.peak_staging_bytes <= stored
        assert report.read_requests == 3
    else:
        assert max(counts) == 2 and 3_000_000 < report.peak_staging_bytes <= staging


def test_a_chunk_that_is_larger_than_staging_comes_in_ranges_at_a_time(server, bucket):
    state = {"small": torch.randn(100, 100), "large": torch.randn(10_000, 700), "last": torch.randn(100, 100)}
    address, stored = saved(server, bucket, state)
    found = empty(state)
    with counting_at_once(server) as counts:
        report = sw.load(found, address, staging_bytes=1_000_000)
    assert differing(found, state) == []
    assert max(counts) >= 2 and report.read_requests == 6
    assert server.bytes_asked(ARCHIVES) <= stored
    assert 28_000_000 < report.peak_staging_bytes < 28_100_000


def test_objects_are_asked_for_once(server, bucket):
    state = {"weight": torch.randn(30, 30), "lr": 0.25, "names": ["a", "b"], "text": "x"}
    address, stored = saved(server, bucket, state)
    found = empty(state)
    report = sw.load(found, address)
    assert torch.equal(found.pop("weight"), state.pop("weight")) and found == state
    ranges = [(one.begin, one.end) for one in server.asked(ARCHIVES)]
    assert sum(end - begin for begin, end in ranges) <= stored and len(ranges) == 2 == report.read_requests


def test_what_breaks_off_goes_on(server, bucket):
    state = {name: torch.randn(700, 700) for name in "abcdef"}
    address, _ = saved(server, bucket, state)
    found = empty(state)
    server.fault = breaking_off(1000, times=4)
    server.fault.where = ARCHIVES
    sw.load(found, address)
    assert server.fault.times == 0 and differing(found, state) == []


def test_ctrl_c_is_heard_while_a_store_stalls(server, bucket):
    state = {"a": torch.randn(2000, 700)}
    address, _ = saved(server, bucket, state)
    found = empty(state)
    server.fault = breaking_off(1000, times=1, stall=6)
    server.fault.where = ARCHIVES
    threading.Timer(1, os.kill, [os.getpid(), signal.SIGINT]).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        sw.load(found, address)
    assert time.monotonic() - began < 4
    for one in reading_parts():
        one.join()


INTERRUPTED = """
import signal, sys
import shardwright as sw, torch
signal.signal(signal.SIGINT, signal.default_int_handler)
sw.load({"a": torch.zeros(2000, 700)}, sys.argv[1])
"""


@pytest.mark.process
def test_ctrl_c_ends_the_process_while_a_store_stalls(server, bucket):
    """The store's connection is given up after 20 s without a byte: nothing waits for that."""
    address, _ = saved(server, bucket, {"a": torch.randn(2000, 700)})
    has_stalled, is_over = threading.Event(), threading.Event()

    def stall(handler: Handler, name: str, begin: int, end: int) -> bool:
        has_stalled.set()
        is_over.wait(60)
        handler.close_connection = True
        return True

    server.fault = Fault(stall, times=10**6, where=ARCHIVES)
    command = [sys.executable, "-c", INTERRUPTED, address]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert has_stalled.wait(120)
            began = time.monotonic()
            child.send_signal(signal.SIGINT)
            error = child.communicate(timeout=60)[1]
            seconds = time.monotonic() - began
        finally:
            is_over.set()
            child.kill()
    assert error.endswith("KeyboardInterrupt\n") and child.returncode == -signal.SIGINT
    assert seconds < 10


def test_what_is_denied_is_an_error_that_names_it(server, bucket):
    state = {name: torch.randn(700, 700) for name in "abc"}
    address, _ = saved(server, bucket, state)
    found = empty(state)
    server.fault = refusing(403, times=10**6)
    server.fault.where = ARCHIVES
    with pytest.raises(PermissionError, match=r"torchs/__0_0\.distcp: access was denied") as caught:
        sw.load(found, address)
    assert caught.value.partly_written == []
    assert reading_parts() == []


def test_parts_are_taken_as_was_said(server, bucket):
    (server.folder / bucket / "bytes").write_bytes(bytes(range(100)))
    parts = [Part(f"s3://{bucket}/bytes", begin, begin + 10) for begin in (0, 50, 60, 70, 5)]
    with PartsAhead(parts, 80) as ahead:
        assert ahead.take(parts[0]).read() == bytes(range(10))
        with pytest.raises(RuntimeError, match="expected .*begin=50.*, found .*begin=5,"):
            ahead.take(parts[4])
    for most_bytes, requests, peak in ((80, 4, 50), (35, 5, 30), (5, 5, 10)):
        with PartsAhead(parts, most_bytes) as ahead:
            assert [ahead.take(part).read() for part in parts] == [bytes(range(*part[1:])) for part in parts]
            assert (ahead.requests, ahead.peak_bytes) == (requests, peak)


def test_a_part_is_read_once_for_all_boxes_of_it(server, bucket):
    (server.folder / bucket / "bytes").write_bytes(bytes(range(100)))
    parts = [Part(f"s3://{bucket}/bytes", begin, begin + 10) for begin in (0, 50, 60)]
    with PartsAhead(parts, 80) as ahead:
        for part in parts:
            assert [ahead.take(part).read() for _ in range(3)] == [bytes(range(*part[1:]))] * 3
        assert ahead.requests == 2
