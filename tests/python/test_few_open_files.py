"""Checkpoints of more files than this process may have open: loads of them are in test_load.py."""

import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import reference
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from checkpoints import write_m3
from destinations import destinations_like, state_of, wrong
from exported import problems_of_files

COUNT = 150


@contextmanager
def few_files_open(more: int = 50) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_file_for_each_tensor_is_saved_verified_and_loaded(tmp_path: Path):
    state = {f"t{i}": torch.full((10, i), float(i)) for i in range(COUNT)}
    writer = sw.ShardedStorageWriter(tmp_path / "to", single_file_per_rank=False, format="safetensors")
    with few_files_open():
        dcp.save(state, storage_writer=writer, no_dist=True)
        assert len(list((tmp_path / "to").glob("*.safetensors"))) == COUNT
        report = sw.verify(tmp_path / "to", threads=3)
        found = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        sw.load(found, tmp_path / "to", verify=True, threads=3)
    assert (report.problems, report.files) == ([], COUNT)
    assert [name for name in state if not torch.equal(state[name], found[name])] == []


@pytest.mark.parametrize("others", [0, 400], ids=["", "beside many of the process's own"])
def test_an_export_of_many_files(others: int, tmp_path: Path):
    source = write_m3(tmp_path / "from")
    expected = reference.native(source)
    destinations = destinations_like(expected)
    sw.load(state_of(destinations), source)
    with ExitStack() as held:
        for _ in range(others):
            held.enter_context(open(os.devnull))
        held.enter_context(few_files_open())
        report = sw.export(
            state_of(destinations), tmp_path / "to", template=source, max_shard_size=1, threads=3
        )
    assert report.files == len(list((tmp_path / "to").glob("*.safetensors"))) > 90
    assert problems_of_files(tmp_path / "to") == []
    again = destinations_like(expected)
    sw.load(state_of(again), tmp_path / "to")
    assert wrong(again, reference.native(tmp_path / "to")) == []
