"""Handing weights to an engine on Gloo ranks. The checks are in workers/refit.py."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from outcomes import HERE, outcome_of

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module", params=[2, 4], ids=["2_ranks", "4_ranks"])
def outcome(request, small: Path, tmp_path_factory) -> dict[str, str]:
    return outcome_of("refit.py", request.param, small, tmp_path_factory.mktemp("refit"))


@pytest.mark.parametrize(
    "check",
    [
        "bf16_to_other_ranks",
        "mxfp8_to_other_ranks",
        "mxfp8_over_c10d",
        "mxfp8_between_nodes",
        "memory_that_is_refused",
        "beside_an_asynchronous_save",
        "one_plan_over_two_groups",
        "mxfp8_to_the_same_ranks",
        "block_fp8_of_odd_sizes_to_some_of_the_ranks",
        "one_error_for_all",
        "a_value_that_cannot_be_encoded",
    ],
)
def test_refit(outcome: dict[str, str], check: str):
    assert not outcome[check], outcome[check]


def is_stopped(process: subprocess.Popen) -> bool:
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


def run_with_signal(
    folder: Path, sent: signal.Signals, ranks: list[int], transport: str
) -> list[subprocess.Popen]:
    """Four ranks, of which these get a signal in the middle."""
    worker = [sys.executable, "-W", "ignore", HERE / "workers" / "ended_refit.py"]
    rest = [folder, str(int(sent)), ",".join(map(str, ranks)), transport]
    names = set(os.listdir("/dev/shm"))
    processes = [subprocess.Popen([*worker, str(rank), *rest]) for rank in range(4)]
    if transport == "auto":
        while not is_stopped(processes[3]) and all(process.poll() is None for process in processes):
            time.sleep(0.01)
        assert (folder / "middle").exists()
        processes[0].send_signal(signal.SIGSTOP)  # without it the others do not come to the end meanwhile
        (folder / "begun").write_text(str(time.monotonic()))
        for rank in ranks:
            processes[rank].send_signal(sent)
        processes[3].send_signal(signal.SIGCONT)
        time.sleep(1)
        processes[0].send_signal(signal.SIGCONT)
    for process in processes:
        process.wait(timeout=300)
    assert set(os.listdir("/dev/shm")) <= names
    return processes


def expect_whole_layers(told: dict) -> None:
    """New or old, as is said."""
    assert set(told["new"]) | set(told["old"]) == set(told["values"])
    for layer, values in told["values"].items():
        assert values == ([2.0] if layer in told["new"] else [1.0]), (layer, told)


BOTH = pytest.mark.parametrize("transport", ["auto", "c10d"])


@BOTH
def test_a_rank_that_is_killed_in_the_middle(tmp_path: Path, transport: str):
    """All others are told which one it was; the engine's layers are whole new or whole old, and it is said which."""
    ranks = run_with_signal(tmp_path, signal.SIGKILL, [1], transport)
    assert ranks[1].returncode == -signal.SIGKILL
    for rank in (0, 2, 3):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        assert told["type"] == "ConnectionResetError" and "rank 1 (process" in told["text"], told
        expect_whole_layers(told)
        assert rank == 0 or told["old"], told


@pytest.mark.parametrize("interrupted", [[1], [3], [0, 1, 2, 3]], ids=["trainer", "engine", "all"])
@BOTH
def test_ctrl_c_in_the_middle(tmp_path: Path, interrupted: list[int], transport: str):
    """All ranks end at once, and are told by whom; the next hand-over finds the group as it was."""
    ranks = run_with_signal(tmp_path, signal.SIGINT, interrupted, transport)
    assert [rank.returncode for rank in ranks] == [0] * 4
    for rank in range(4):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        assert told["type"] in ("KeyboardInterrupt", "InterruptedError"), told
        if interrupted != [0, 1, 2, 3]:  # of all, some are ended by others before their own comes
            assert (told["type"] == "KeyboardInterrupt") == (rank in interrupted), told
            assert f"rank {interrupted[0]}: interrupted while handing weights over" in told["text"], told
        assert told["type"] == "InterruptedError" or told["seconds"] < 5, (
            told
        )  # a second, on a machine that is not busy
        expect_whole_layers(told)
        assert rank < 2 or told["old"], told
        assert all(values == [2.0] for values in told["values_after"].values()), told


def test_a_rank_that_gets_no_memory(tmp_path: Path):
    """Nobody waits for it until the group's timeout, and the engine is as it was."""
    worker = [sys.executable, "-W", "ignore", HERE / "workers" / "refused_refit.py"]
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}  # or each thread of Gloo's takes 64 MiB of addresses
    for process in [subprocess.Popen([*worker, str(rank), tmp_path], env=environment) for rank in range(2)]:
        assert process.wait(timeout=300) == 0
    for rank in range(2):
        kind, text, seconds, values = json.loads((tmp_path / f"{rank}.json").read_text())
        assert kind == "ValueError" and "rank 1: cannot take" in text and "staging_bytes" in text, text
        assert seconds < 60, "waited for the timeout"
        assert values == ([[1.0, 1.0]] * 2 if rank == 1 else [])
