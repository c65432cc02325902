"""Nothing grows; `python tests/python/soak.py` goes 200 rounds."""

import subprocess
import sys

import pytest
import soak
from outcomes import HERE

pytestmark = pytest.mark.ranks


def test_memory_descriptors_threads_and_files_stay_as_they_are():
    command = [sys.executable, "-W", "ignore", HERE / "soak.py", "--rounds", "30"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]


@pytest.mark.parametrize(
    ("left", "counts"),
    [
        ("runs/step-00000006/rank-00000-00000-0123456789ab.distcp", "1 after a fifth, 2 at the end"),
        ("runs/step-00000003/notes.txt", "0 after a fifth, 1 at the end"),
    ],
)
def test_files_that_are_left_are_noticed(left: str, counts: str, monkeypatch, capsys):
    def one_round(folder, released, number):
        of_round(folder, released, number)
        if number == 6:
            (folder / left).parent.mkdir(exist_ok=True)
            (folder / left).touch()

    of_round = soak.one_round
    monkeypatch.setattr(soak, "one_round", one_round)
    monkeypatch.setattr(soak.torch, "set_num_threads", lambda _: None)  # it is of all tests
    monkeypatch.setattr(sys, "argv", ["soak.py", "--rounds", "7"])
    assert soak.main() == 1
    assert counts in capsys.readouterr().out
