"""Kills one of several Gloo ranks at random moments, and looks at what the others are told.

    python tests/python/kill_ranks.py [--moments 20] [--ranks 2] [--flows load save async export lora] [--seed 0]

Each survivor has to end within the group's timeout and a few seconds, with an error that names the rank that is gone,
or without one if it had done its part. The checkpoint of before must be whole, or a newer one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import shardwright as sw
import torch
import torch.distributed as dist
from kill_flows import FLOWS, SIZE, ended, forked, state

TIMEOUT = 20


def load_together(path: Path, value: float) -> None:
    """All ranks hold all: each byte is read by one of them and handed on."""
    loaded = {f"t{i}": torch.zeros(2 * SIZE) for i in range(4)} | {"step": 0.0}
    sw.load(loaded, path, cooperative="node")


def of_whole(path: Path) -> float:
    assert not sw.verify(path).problems, sw.verify(path).problems
    return 0.0


VALUES = {name: value_at for name, (_, _, value_at) in FLOWS.items()} | {"load": of_whole}
ACTS = {name: act for name, (_, act, _) in FLOWS.items()} | {"load": load_together}


def for_ever(flow: str, rank: int, ranks: int, folder: Path, path: Path, begin: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=TIMEOUT)
    )
    try:
        for value in range(begin, begin + 100_000):
            ACTS[flow](path, float(value))
            (folder / f"ready_{rank}").touch()
    except BaseException as error:
        (folder / f"error_{rank}").write_text(f"{type(error).__name__}: {error}")
        raise


def one_moment(flow: str, path: Path, ranks: int, wait: float, choice: random.Random) -> str:
    before = VALUES[flow](path)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        children = [
            forked(for_ever, flow, rank, ranks, folder, path, int(before) + 1) for rank in range(ranks)
        ]
        try:
            while not all((folder / f"ready_{rank}").exists() for rank in range(ranks)):
                for child in children:
                    now = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                    errors = [file.read_text() for file in folder.glob("error_*")]
                    assert now is None, f"a rank ended before the kill: {errors}"
                time.sleep(0.001)
            time.sleep(wait)
            victim = choice.randrange(ranks)
            os.kill(children[victim], signal.SIGKILL)
            begin = time.monotonic()
            os.waitpid(children[victim], 0)
            slowest = 0.0
            for rank, child in enumerate(children):
                if rank == victim:
                    continue
                if not ended(child, TIMEOUT + 12):
                    raise AssertionError(f"rank {rank} is silent after rank {victim} was killed")
                slowest = max(slowest, time.monotonic() - begin)
            victims, children = children, []
            for rank in range(ranks):
                if rank == victim:
                    continue
                error = (folder / f"error_{rank}").read_text()
                told = f"rank {victim} (process {victims[victim]}" in error
                assert told, f"{flow}: rank {rank} is not told that rank {victim} is gone: {error}"
        finally:
            for child in children:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has ended meanwhile
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
    after = VALUES[flow](path)
    assert after >= before, (after, before)
    return "at once" if slowest < 8 else "within the timeout"


def prepared(flow: str, ranks: int, folder: Path) -> Path:
    path = folder / flow
    if flow == "load":
        doubled = {name: torch.cat([value, value]) for name, value in state(0.0).items() if name != "step"}
        sw.save({**doubled, "step": 0.0}, path)
    else:
        FLOWS[flow][1](path, 0.0)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--moments", type=int, default=20, help="of each flow")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--flows", nargs="+", default=["load", "save", "steps", "async", "export", "lora"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    choice = random.Random(options.seed)
    found: Counter[str] = Counter()
    failures = 0
    with tempfile.TemporaryDirectory() as directory:
        for flow in options.flows:
            path = prepared(flow, options.ranks, Path(directory))
            for _ in range(options.moments):
                try:
                    found[
                        f"{flow}: {one_moment(flow, path, options.ranks, choice.uniform(0, 0.15), choice)}"
                    ] += 1
                except AssertionError as fault:
                    failures += 1
                    print(f"{flow}: {str(fault)[:600]}", flush=True)
    for what, count in sorted(found.items()):
        print(f"{what}: {count}")
    print(f"{sum(found.values()) + failures} kills, {failures} not as promised")
    sys.exit(failures > 0)
