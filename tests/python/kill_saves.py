"""Kills ranks at random moments of saves over an existing checkpoint, and looks at what is left.

    python tests/python/kill_saves.py [--moments 50] [--ranks 2] [--seed 0]

Each time the checkpoint of before or a newer one must be there, whole and of one save, and the next save must work and
leave nothing else behind. In turns one rank is killed (kill -9), and all.
"""

import argparse
import os
import random
import signal
import tempfile
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import shardwright as sw
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

SIZE = 200_000


def state(value: float) -> dict:
    tensors = {f"t{i}": torch.full((SIZE,), value) for i in range(4)}
    if dist.is_initialized():
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        tensors = {
            name: DTensor.from_local(tensor, mesh, [Shard(0)], run_check=False)
            for name, tensor in tensors.items()
        }
    return {**tensors, "step": value}


def save_for_ever(rank: int, ranks: int, folder: Path, path: Path, begin: int) -> None:
    """One rank: saves ever newer values, and says when the first one is there."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    for value in range(begin, begin + 1000):
        sw.save(state(float(value)), path)
        (folder / f"ready_{rank}").touch()  # the first save takes longer


def forked(work, *arguments) -> int:
    """A process that does the work; torch has been imported by then. What it says goes nowhere."""
    child = os.fork()
    if child != 0:
        return child
    status = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        work(*arguments)
        status = 0
    finally:
        os._exit(status)


def ended(process: int, seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if os.waitpid(process, os.WNOHANG)[0] != 0:
            return True
        time.sleep(0.01)
    return False


def value_at(path: Path) -> float:
    """What the checkpoint holds, which must be of one save."""
    report = sw.verify(path)
    assert not report.problems, report.problems
    shape = SIZE * len(list(path.glob("rank-*-00000.safetensors")))
    loaded: dict = {f"t{i}": torch.zeros(shape) for i in range(4)} | {"step": 0.0}
    sw.load(loaded, path, verify=True)
    values = {loaded["step"]} | {value.item() for i in range(4) for value in loaded[f"t{i}"].unique()}
    assert len(values) == 1, values
    return values.pop()


def one_moment(path: Path, ranks: int, all_of_them: bool, wait: float, choice: random.Random) -> str:
    """Kills, and looks. Says whether it was in the middle of a save."""
    before = value_at(path)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        children = [
            forked(save_for_ever, rank, ranks, folder, path, int(before) + 1) for rank in range(ranks)
        ]
        try:
            while not all((folder / f"ready_{rank}").exists() for rank in range(ranks)):
                for child in children:
                    ended_now = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                    assert ended_now is None, "a rank ended before it had saved"
                time.sleep(0.002)
            time.sleep(wait)
            victims = children if all_of_them else [choice.choice(children)]
            for child in victims:
                os.kill(child, signal.SIGKILL)
            for child in victims:
                os.waitpid(child, 0)
            for child in list(set(children) - set(victims)):
                assert ended(child, 120), "a rank waits for ever for one that has been killed"
            children = []
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
    after = value_at(path)
    assert after > before, (after, before)
    in_the_middle = len(list(path.parent.iterdir())) > 1  # a dead save has left something
    sw.save(state(after + 1), path)
    assert value_at(path) == after + 1
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], list(path.parent.iterdir())
    return "in the middle of a save" if in_the_middle else "between saves"


def kill_saves(moments: int, ranks: int, seed: int, folder: Path) -> Counter[str]:
    choice = random.Random(seed)
    path = folder / "checkpoints" / "checkpoint"
    sw.save(state(0.0), path)
    found: Counter[str] = Counter()
    for moment in range(moments):
        all_of_them = moment % 2 == 1
        outcome = one_moment(path, ranks, all_of_them, choice.uniform(0, 0.15), choice)
        found[f"{'all' if all_of_them else 'one'} killed, {outcome}"] += 1
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        for what, count in sorted(
            kill_saves(options.moments, options.ranks, options.seed, Path(directory)).items()
        ):
            print(f"{what}: {count}")
