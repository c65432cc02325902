"""Runs with tests/data/failing_allocations.cpp preloaded: loads in which each allocation fails in turn.

python failing_allocations.py DIRECTORY READS

Prints how many loads ended with MemoryError, how many of them named something as partly written, and how many
succeeded.
"""

import ctypes
import sys
from pathlib import Path

import shardwright as sw
import torch

preloaded = ctypes.CDLL(None)
preloaded.allocations_left.restype = ctypes.c_long
reads = sys.argv[2]


def state(value: float) -> dict:
    return {name: torch.full((40_000,), value) for name in ("a", "b", "c")}


path = Path(sys.argv[1], "saved")
sw.save(state(1.0), path)
sw.load(state(0.0), path, reads=reads)
refused = named = whole = number = 0
while True:
    number += 1
    loaded = state(0.0)
    preloaded.fail_allocation(number)
    try:
        sw.load(loaded, path, reads=reads, threads=2)
    except MemoryError as error:
        refused += 1
        names = getattr(error, "partly_written", [])
        named += bool(names)
        is_told = hasattr(error, "partly_written")
        for name, tensor in loaded.items():
            is_one = bool((tensor == 1).all()) or bool((tensor == 0).all())
            assert is_one or not is_told or name in names, name
    else:
        whole += 1
        assert all((tensor == 1).all() for tensor in loaded.values())
        if preloaded.allocations_left() > 0:
            break
    finally:
        preloaded.fail_allocation(0)
sw.load(loaded, path, reads=reads)
print(refused, named, whole)
