"""Saves, loads and exports in one process, again and again: memory, descriptors, threads and files stay as they are.

python tests/python/soak.py [--rounds 200]
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import shardwright as sw
import torch


def state() -> dict:
    draw = torch.Generator().manual_seed(1)
    tensors = {f"layer.{i}": torch.randn(256, 1024, generator=draw) for i in range(8)}
    return {
        "model": tensors,
        "turned": torch.randn(300, 200, generator=draw).t(),
        "step": 1,
        "notes": {"a": [1, "b"]},
    }


def one_round(folder: Path, released: Path, number: int) -> None:
    held = state()
    sw.save(held, folder / "runs", step=number, keep_last=2)
    pending = sw.save(held, folder / "background", asynchronous=True)
    assert isinstance(pending, sw.PendingSave)
    pending.wait()
    latest = sw.latest(folder / "runs")
    assert latest is not None
    sw.load(
        held, latest, reads=("auto", "io_uring", "pread")[number % 3], verify=(None, True, False)[number % 3]
    )
    assert not sw.verify(latest).problems
    weights = sw.empty_state_dict(released)
    sw.load(weights, released)
    sw.export(weights, folder / "export", quantization="mxfp8", template=released)
    for wrong in (folder / "nowhere", folder / "runs"):
        try:
            sw.load(held, wrong)
        except (OSError, ValueError):
            continue
        raise AssertionError("not refused")


def files_in(folder: Path, number: int) -> list[str]:
    """All files and folders after a round, by names that are the same after each: what a save has drawn is ``…``, and
    steps are counted from the last."""
    steps = {f"step-{step:08d}": f"step-(last - {number - step})" for step in (number, number - 1)}
    found = []
    for path in folder.rglob("*"):
        *folders, name = (steps.get(part, part) for part in path.relative_to(folder).parts)
        name = re.sub(r"(?<=-)[0-9a-f]{12}(?=\.)", "…", name)
        found.append("/".join([*folders, re.sub(r"^model-2-", "model-", name)]))  # every other export
    return sorted(found)


def taken() -> dict[str, int]:
    gc.collect()
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {
        "resident bytes": resident,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "Python's threads": threading.active_count(),
    }


def taken_in_the_end(first: dict[str, int]) -> dict[str, int]:
    """What is still taken when threads that were ending have ended."""
    limit = time.monotonic() + 60
    while True:
        last = taken()
        grown = [what for what in first if what != "resident bytes" and last[what] > first[what]]
        if not grown or time.monotonic() > limit:
            return last
        time.sleep(0.1)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    if rounds < 7:
        parser.error("expected 7 rounds or more: those of which nothing is asked come first")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sw.generate(folder / "released", "tiny")
        first: dict[str, int] = {}
        names: list[str] = []
        for number in range(rounds):
            one_round(folder, folder / "released", number)
            if number == max(5, rounds // 5):  # caches have filled
                first, names = taken(), files_in(folder, number)
        last = taken_in_the_end(first)
        last_names = files_in(folder, rounds - 1)
    print(f"{rounds} rounds of five saves, loads and exports, then {len(last_names)} files and folders")
    before, after = Counter(names), Counter(last_names)
    for name in sorted((before - after) + (after - before)):
        print(f"{name}: {before[name]} after a fifth, {after[name]} at the end")
    for what, value in first.items():
        print(f"{what}: {value:,} after a fifth, {last[what]:,} at the end")
    grown = last["resident bytes"] - first["resident bytes"]
    return int(
        last_names != names
        or grown > 20 << 20
        or any(last[what] > first[what] for what in first if what != "resident bytes")
    )


if __name__ == "__main__":
    sys.exit(main())
