"""Saves and exports of Gloo ranks to a store. The checks are in workers/uploads.py; ranks that die are killed here."""

import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import shardwright as sw
import torch
from outcomes import HERE, outcome_of
from writing_server import serving_writes

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module", params=[1, 2, 4], ids=["1_rank", "2_ranks", "4_ranks"])
def outcome(request, tiny: Path, tmp_path_factory) -> dict[str, str]:
    """What each check of the worker found wrong, from one run for all tests."""
    return outcome_of("uploads.py", request.param, tiny, tmp_path_factory.mktemp("uploads"))


@pytest.mark.parametrize(
    "check",
    [
        "begin",
        "a_save_is_that_of_a_folder",
        "steps_are_kept",
        "an_asynchronous_save",
        "an_export_is_that_of_a_folder",
        "a_quantized_export_by_a_template",
        "through_dcp",
        "a_store_that_denies_a_rank",
        "a_state_that_one_rank_cannot_save",
        "an_export_that_one_rank_cannot_begin",
    ],
)
def test_uploads(outcome: dict[str, str], check: str):
    assert not outcome[check], outcome[check]


RANK = """
import sys, torch, torch.distributed as dist
from datetime import timedelta
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
import shardwright as sw
store, rank, flow, address = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2, timeout=timedelta(seconds=60))
mesh = init_device_mesh("cpu", (2,))
held = {f"t{n}": distribute_tensor(torch.full((6000, 1000), 2.0), mesh, [Shard(0)]) for n in range(3)}
if flow == "save":
    sw.save(held, address)
else:
    sw.export(held, address, layout="huggingface", max_shard_size="30MB")
"""


@pytest.mark.parametrize("flow", ["save", "export"])
def test_a_rank_that_dies_while_it_uploads_publishes_nothing(flow: str, tmp_path: Path, monkeypatch):
    with serving_writes(tmp_path / "store") as server:
        bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        folder = server.folder / bucket / "run"
        folder.mkdir(parents=True)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        address = f"s3://{bucket}/run"
        held = {f"t{n}": torch.full((6000, 1000), 1.0) for n in range(3)}

        def act() -> None:
            if flow == "save":
                sw.save(held, address)
            else:
                sw.export(held, address, layout="huggingface", max_shard_size="30MB")

        act()
        before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        moment = re.compile(r"rank-00001.*partNumber=1" if flow == "save" else r"model-2-00002.*partNumber=1")

        def kill(method: str, path: str) -> None:
            if moment.search(path) and ranks[1].poll() is None:
                ranks[1].kill()

        server.before = kill
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, str(tmp_path / "file_store"), str(rank), flow, address],
                env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            _, told = ranks[0].communicate(timeout=300)
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        assert "ConnectionResetError" in told and "rank 1" in told, told
        server.before = lambda *_: None
        after = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        assert {name: after[name] for name in before} == before
        assert sw.verify(folder).problems == []
        server.uploads.clear()  # as the rule of a bucket's life cycle does
        act()
        assert sw.verify(folder).problems == []
        assert len([file for file in folder.iterdir() if file.is_file()]) == len(before)
        assert not any((folder / ".shardwright.saving").iterdir())
