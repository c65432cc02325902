"""Damages checkpoints of every kind at random, and sees to it that nothing worse than a clean error comes of it.

    python tests/python/mutate_checkpoints.py [--count 20000] [--seed 0] [--kind NAME] [--jobs 2]

Each batch runs in a process of its own, so that a crash, a hang (60 s), memory out of proportion or the code of a
pickle is found and said. mutated_flows.py says what is expected. `--first N --count 1` repeats one of a kind.
"""

import argparse
import contextlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import torch
from mutated_flows import KINDS, Arena, Broken, Kind, try_one

SECONDS = 60
MEMORY = 1 << 30  #: that a load may take beside what the process has: far more than these checkpoints are
BATCH = 200


def _own_memory() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _child(kind: Kind, numbers: list[int], seed: int, folder: Path, out: int) -> None:
    """Says each thing on a line: what is tried, then what came of it."""

    def say(line: str) -> None:
        os.write(out, (line.encode("utf-8", "backslashreplace").replace(b"\n", b" ")[:3000] + b"\n"))

    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(quiet, descriptor)
    os.chdir(folder)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # pytest-timeout has one of its own
    limit = _own_memory() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    arena = Arena(kind.expected)
    for number in numbers:
        signal.alarm(SECONDS)  # which ends the process
        say(f"begin {number}")
        try:
            rng = random.Random(f"{seed} {kind.name} {number}")
            outcome = try_one(kind, arena, rng, folder / "damaged", lambda what: say(f"what {what}"))
            say(f"done {outcome}")
        except Broken as error:
            where = _last_line(error.__cause__)
            say(f"broken {error} {where}")
        except BaseException as error:
            say(f"broken in the test itself: {''.join(traceback.format_exception(error))[-1500:]}")
    signal.alarm(0)


def _last_line(error: BaseException | None) -> str:
    """Of the traceback: where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)[-3:] if error else []
    return " <- ".join(
        f"{Path(frame.filename).name}:{frame.lineno} {frame.line}" for frame in reversed(frames)
    )


def _fork(kind: Kind, numbers: list[int], seed: int, folder: Path) -> tuple[int, int]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            _child(kind, numbers, seed, folder, writing)
        finally:
            os._exit(0)
    os.close(writing)
    return child, reading


def run_batch(kind: Kind, numbers: list[int], seed: int) -> tuple[Counter[str], list[str]]:
    """What came of each, and what was broken."""
    counts: Counter[str] = Counter()
    broken: list[str] = []
    while numbers:
        folder = Path(
            tempfile.mkdtemp(prefix="mutated-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        )
        child, reading = _fork(kind, numbers, seed, folder)
        number, what, ended = None, "", 0
        with os.fdopen(reading, "rb") as lines:
            for raw in lines:
                word, _, rest = raw.decode("utf-8", "replace").rstrip("\n").partition(" ")
                if word == "begin":
                    number, what = int(rest), ""
                elif word == "what":
                    what = rest
                else:
                    ended += 1
                    if word == "done":
                        counts[rest] += 1
                    else:
                        broken.append(f"{kind.name} {number}: {what}: {rest}")
        _, status = os.waitpid(child, 0)
        shutil.rmtree(folder, ignore_errors=True)
        if ended == len(numbers):
            break
        name = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {status}"
        why = "it hung" if name == "SIGALRM" else f"it ended the process ({name})"
        broken.append(f"{kind.name} {number}: {what}: {why}")
        numbers = numbers[ended + 1 :]
    return counts, broken


def mutate(
    count: int,
    seed: int,
    folder: Path,
    *,
    kinds: list[str] | None = None,
    first: int = 0,
    part: tuple[int, int] = (0, 1),
) -> tuple[Counter[tuple[str, str]], list[str]]:
    """`count` mutations, dealt out to the kinds; `part` (n, of) does each of-th batch."""
    torch.set_num_threads(1)
    makers = [make for make in KINDS if not kinds or make.__name__ in kinds]
    counts: Counter[tuple[str, str]] = Counter()
    broken: list[str] = []
    for at, make in enumerate(makers):
        mine = range(first, first + (count + len(makers) - 1 - at) // len(makers))
        kind = make(folder)
        batches = [list(mine[begin : begin + BATCH]) for begin in range(0, len(mine), BATCH)]
        for batch in batches[part[0] :: part[1]]:
            found, wrong = run_batch(kind, batch, seed)
            for outcome, times in found.items():
                counts[kind.name, outcome] += times
            broken += wrong
    return counts, broken


def report(counts: Counter[tuple[str, str]], broken: list[str]) -> None:
    for (kind, outcome), times in sorted(counts.items()):
        print(f"{times:6}  {kind}: {outcome}")
    for line in broken:
        print("BROKEN", line)
    print(f"{sum(counts.values()) + len(broken)} mutations, {len(broken)} promises broken")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first of each kind")
    parser.add_argument("--kind", action="append", choices=[make.__name__ for make in KINDS])
    options = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        counts, broken = mutate(
            options.count, options.seed, Path(folder), kinds=options.kind, first=options.first
        )
    report(counts, broken)
    print(f"{time.perf_counter() - start:.1f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
