"""`dcp.load` under torchrun with 2 and 4 Gloo ranks. The checks themselves are in workers/dcp_load.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import Sizes, write_m3

HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=[2, 4], ids=["2_ranks", "4_ranks"])
def outcome(request, tiny: Path, tmp_path_factory) -> dict[str, str]:
    """What each check of the worker found wrong, from one run for all tests."""
    directory = tmp_path_factory.mktemp("dcp_load")
    uneven = write_m3(directory / "uneven", Sizes(hidden=35, inter=21, experts=5, vocab=13, vision_hidden=7))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(request.param), str(HERE / "workers" / "dcp_load.py")]
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = subprocess.run(
        [*command, tiny, uneven, directory / "result.json"],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads((directory / "result.json").read_text())


def test_experts_on_dimension_0_over_ep(outcome: dict[str, str]):
    assert not outcome["expert_parallel"], outcome["expert_parallel"]


def test_experts_on_dimensions_0_and_1_over_ep_and_ep_shard(outcome: dict[str, str]):
    assert not outcome["expert_parallel_with_fsdp"], outcome["expert_parallel_with_fsdp"]


def test_fsdp2s_own_sharding_of_a_module(outcome: dict[str, str]):
    assert not outcome["fsdp2"], outcome["fsdp2"]


def test_ranks_that_hold_different_tensors(outcome: dict[str, str]):
    assert not outcome["pipeline"], outcome["pipeline"]


def test_what_one_rank_refuses_all_ranks_hear_of(outcome: dict[str, str]):
    assert not outcome["one_rank_asks_for_a_wrong_shape"], outcome["one_rank_asks_for_a_wrong_shape"]
