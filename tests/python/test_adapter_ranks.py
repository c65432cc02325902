"""The adapter on several ranks. What is compared with what stands in workers/adapter.py."""

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
    directory = tmp_path_factory.mktemp("adapter")
    uneven = write_m3(directory / "uneven", Sizes(hidden=35, inter=21, experts=5, vocab=13, vision_hidden=7))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(request.param), str(HERE / "workers" / "adapter.py")]
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


@pytest.mark.parametrize(
    "check",
    [
        "expert_parallel",
        "expert_parallel_with_fsdp",
        "matrices_on_dimension_1",
        "experts_over_a_mesh_that_replicates",
        "plain_tensors_and_a_mesh",
        "a_rank_misses_only_its_own_experts",
        "views_for_a_load_are_not_given_back",
        "single_weights",
        "meshes_that_do_not_fit_are_named",
    ],
)
def test_on_every_rank(outcome: dict[str, str], check: str):
    assert not outcome[check], outcome[check]
