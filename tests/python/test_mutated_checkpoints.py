"""Damaged checkpoints of every kind: a correct result or a clean error. mutated_flows.py says what is expected, and
`python tests/python/mutate_checkpoints.py` tries more of them."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import mutate_checkpoints
import mutations
import pytest
import torch
from mutate_checkpoints import run_batch
from mutated_flows import Broken, Kind
from outcomes import HERE

pytestmark = pytest.mark.ranks

KINDS = ("Hugging Face", "torch's shards", "ours", "ours for torch", "torch's", "adapter")


def test_damaged_checkpoints_are_refused_or_loaded_as_they_are():
    command = [sys.executable, HERE / "mutate_checkpoints.py", "--count", "3000", "--seed", "1"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-5000:]
    counts: Counter[tuple[str, bool]] = Counter()
    for times, kind, outcome in re.findall(r"^ *(\d+)  ([^:]+): (.*)$", run.stdout, re.MULTILINE):
        counts[kind, outcome.startswith("refused")] += int(times)
    assert sum(counts.values()) == 3000
    # Neither so wild that nothing gets far, nor so tame that nothing is refused.
    assert [kind for kind in KINDS if counts[kind, True] < 200 or counts[kind, False] < 30] == []


# --- that the above can fail --------------------------------------------------------------------------------


def good(state: dict, path: Path) -> None:
    state["a"].copy_(torch.ones(4))


def refuses_after_writing(state: dict, path: Path) -> None:
    state["a"][0] = 1
    raise ValueError("too late")


def other_values(state: dict, path: Path) -> None:
    state["a"].fill_(3)


def past_the_destination(state: dict, path: Path) -> None:
    good(state, path)
    state["a"].as_strided((5,), (1,))[4] = 1


def undocumented(state: dict, path: Path) -> None:
    raise KeyError("a")


def crashes(state: dict, path: Path) -> None:
    os.kill(os.getpid(), signal.SIGABRT)  # which AddressSanitizer leaves alone


def hangs(state: dict, path: Path) -> None:
    signal.pause()


def takes_memory(state: dict, path: Path) -> None:
    bytearray(3 << 30)


def runs_code(state: dict, path: Path) -> None:
    good(state, path)
    mutations.Harm().__reduce__()[0](mutations.HARM)


BAD = {
    refuses_after_writing: "a is written, which the error does not say",
    other_values: "other values",
    past_the_destination: "written past a destination",
    undocumented: "load: KeyError",
    crashes: "it ended the process (SIGABRT)",
    hangs: "it hung",
    takes_memory: "load: MemoryError",
    runs_code: "a pickle has run code",
}


def kind_that(load, directory: Path) -> Kind:
    directory.mkdir()
    (directory / "file").write_bytes(bytes(100))

    def differs(path: Path, arena: object, objects: dict) -> str:
        raise Broken("other values")

    return Kind("made up", directory, [(mutations.in_bytes, 1)], {"a": torch.ones(4)}, {}, load, [], differs)


@pytest.mark.parametrize("load", BAD, ids=lambda load: load.__name__)
def test_a_load_that_breaks_a_promise_is_found(load, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(mutate_checkpoints, "SECONDS", 2)
    counts, broken = run_batch(kind_that(load, tmp_path / "made up"), [0], seed=0)
    assert not counts and len(broken) == 1 and BAD[load] in broken[0], broken


def test_a_load_that_keeps_them_is_not(tmp_path: Path):
    counts, broken = run_batch(kind_that(good, tmp_path / "made up"), [0, 1, 2], seed=0)
    assert (counts, broken) == ({"the same": 3}, [])
