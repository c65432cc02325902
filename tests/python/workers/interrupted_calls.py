"""Runs with tests/data/interrupted_calls.c preloaded: every flow, though half of its system calls are interrupted.

python interrupted_calls.py HUGGING_FACE_CHECKPOINT DIRECTORY
"""

import sys
from pathlib import Path

import shardwright as sw
import torch

source, directory = Path(sys.argv[1]), Path(sys.argv[2])


def state(value: float) -> dict:
    return {"w": torch.full((300, 70), value), "b": torch.full((7,), value), "notes": {"epoch": value}}


for value in (1.0, 2.0):  # the second replaces the first
    sw.save(state(value), directory / "saved")
    assert not sw.verify(directory / "saved").problems
    for reads in ("pread", "auto"):
        for direct in (True, False):
            loaded = state(0.0)
            sw.load(loaded, directory / "saved", reads=reads, direct_io=direct, verify=True)
            assert (loaded["w"] == value).all()
            assert (loaded["b"] == value).all()
            assert loaded["notes"] == {"epoch": value}
sw.save(state(3.0), directory / "steps", step=1, keep_last=1)
sw.save(state(4.0), directory / "steps", step=2, keep_last=1)
assert [path.name for path in (directory / "steps").iterdir()] == ["step-00000002"]
assert sw.verify(source).problems == []
