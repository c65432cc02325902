"""Fails the n-th call of every kind in every flow, and looks at what is left.

    python tests/python/fault_matrix.py --all                 # some ten thousand faults
    python tests/python/fault_matrix.py --faults 400 --seed 1 # so many of them, at random
    python tests/python/fault_matrix.py --all --flow "save over another" --ranks 2

A fault is: in this flow, the n-th open (read, write, rename, ...) below the flow's folder answers EIO (a full disk, an
interrupt, half of the bytes, ...), it alone or all from it on. After each, either the call has raised OSError with that
number and a path, and everything is as it was, or it has done its work; nothing is open that was not; the same call
without a fault then works and leaves nothing of the one before.

One process goes through thousands of faults. That it crashes or hangs is a finding too; a new one goes on behind it.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

from faults import ENDED, HARMLESS, KILLED, Fault, Faults, environment, faults_of, kills_of

#: A call that takes longer hangs.
SECONDS_EACH = 60


# --- one process -----------------------------------------------------------------------------------------------------


def open_below(root: Path) -> list[str]:
    """What this process has open below a folder, and rings."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            continue
        if target.startswith(os.path.realpath(root)) or "io_uring" in target:
            found.append(target)
    return sorted(found)


def is_promised(error: BaseException, fault: Fault, root: Path, of_ranks: bool) -> bool:
    from fault_flows import Found
    from shardwright import CheckpointFormatError

    text = str(error)
    if str(root) not in text and not isinstance(error, Found):
        return False
    if fault.answer == ENDED:  # a file that is shorter than it was
        return isinstance(error, (OSError, CheckpointFormatError, Found))
    if isinstance(error, Found):
        return os.strerror(fault.answer) in text
    answers = (fault.answer, 9) if fault.kind == "ring read" else (fault.answer,)  # EBADF: see faults.c
    return isinstance(error, OSError) and error.errno in answers


def one(flow: Any, fault: Fault, faults: Faults, armed: bool, together: bool) -> tuple[str, str]:
    """(outcome, what is wrong, or nothing)."""
    import torch.distributed as dist
    from fault_flows import meet, rank

    flow.prepare()
    before = open_below(flow.root)
    meet()
    error: BaseException | None = None
    with faults.armed(fault if armed else None):
        try:
            flow.act()
        except Exception as raised:
            error = raised
    hits, path = faults.hits(), faults.path()
    wrong = []
    if together:
        hits_of: list[int] = [0] * dist.get_world_size()
        dist.all_gather_object(hits_of, hits)
        hits = sum(hits_of)
        errors: list[str] = [""] * dist.get_world_size()
        dist.all_gather_object(errors, "" if error is None else str(error))
        if len({text == "" for text in errors}) > 1 and "load" not in flow.name:
            wrong.append(f"ranks disagree: {errors}")
    if hits == 0:
        outcome = "not reached"
        if error is not None:
            wrong.append("raised without a fault: " + told(error))
    elif error is None:
        outcome = "done all the same"
    else:
        outcome = "refused"
        if fault.answer in HARMLESS:
            wrong.append("expected no error, found " + told(error))
        elif not is_promised(error, fault, flow.root, together):
            wrong.append("expected OSError with that number and a path, found " + told(error))
    meet()
    try:
        if rank() == 0 or "load" in flow.name:
            flow.look_after_success() if error is None else flow.look_after_failure(error)
            if outcome == "refused" and hasattr(flow, "left_over") and flow.left_over():
                outcome = "refused, and left something for the next"
    except Exception as failure:
        wrong.append("after it: " + told(failure))
    error = None  # with its frames
    if open_below(flow.root) != before:
        wrong.append(f"left open: {open_below(flow.root)}, before: {before}")
    meet()
    try:
        flow.repeat()
    except Exception as failure:
        wrong.append("the next call: " + told(failure))
    meet()
    return outcome, "; ".join(wrong) + (f" [at {path}]" if wrong and path else "")


def one_kill(flow: Any, fault: Fault, faults: Faults) -> tuple[str, str]:
    """The same for a process that is killed in the middle: a child of this one."""
    flow.prepare()
    before = open_below(flow.root)
    child = os.fork()
    if child == 0:
        try:
            with faults.armed(fault):
                flow.act()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    wrong, outcome = [], "not reached"
    try:
        if os.waitstatus_to_exitcode(status) == 9:
            outcome = "killed, the new one is there" if flow.look_after_kill() else "killed, as before"
        else:
            flow.look_after_success()
    except Exception as failure:
        wrong.append("after it: " + told(failure))
    try:
        flow.repeat()
    except Exception as failure:
        wrong.append("the next call: " + told(failure))
    if open_below(flow.root) != before:
        wrong.append(f"left open: {open_below(flow.root)}, before: {before}")
    return outcome, "; ".join(wrong)


def told(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    at = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    number = f" errno {error.errno}" if isinstance(error, OSError) else ""
    return f"{type(error).__name__}{number}: {str(error)[:600]} ({at})"


def work(options: argparse.Namespace) -> None:
    """Goes through the faults of this process, writing a line for each as it begins and as it ends."""
    import torch
    import torch.distributed as dist
    from fault_flows import of_one_process, of_ranks, quietly, rank

    faulthandler.enable()
    torch.set_num_threads(1)
    quietly()
    if options.ranks > 1:
        store = dist.FileStore(str(options.folder / "store"), options.ranks)
        dist.init_process_group(
            "gloo",
            store=store,
            rank=options.rank,
            world_size=options.ranks,
            timeout=timedelta(seconds=SECONDS_EACH // 2),
        )
    flows = (of_ranks if options.ranks > 1 else of_one_process)(options.folder / "flows")
    out = open(options.folder / f"lines_{options.rank}", "a", buffering=1)  # noqa: SIM115
    done = Counter(line.split("\t")[0] for line in options.skip.read_text().splitlines())

    def line(*parts: str) -> None:
        if rank() == 0:
            out.write("\t".join(part.replace("\n", "\\n").replace("\t", " ") for part in parts) + "\n")

    for flow in flows:
        if options.flow and flow.name != options.flow:
            continue
        faults = Faults(flow.root)
        for _ in range(2):  # the second one finds caches warm, as all that come after it do
            flow.prepare()
            with faults.armed(None):
                flow.act()
            counts = faults.counts()
            flow.look_after_success() if rank() == 0 or "load" in flow.name else None
            flow.repeat()
        for faulty in range(options.ranks):
            mine = [counts]
            if options.ranks > 1:
                dist.broadcast_object_list(mine, src=faulty)
            cases = faults_of(mine[0])
            if options.ranks == 1 and hasattr(flow, "look_after_kill"):
                cases += kills_of(mine[0])
            if options.faults:
                chosen = random.Random(f"{options.seed} {flow.name} {faulty}")
                cases = chosen.sample(cases, min(len(cases), options.faults))
            key = f"{flow.name}" + (f", rank {faulty}" if options.ranks > 1 else "")
            line("flow", key, json.dumps(mine[0]), str(len(cases)))
            for fault in cases[done[key] :]:
                line("begin", key, str(fault), fault.kind)
                faulthandler.dump_traceback_later(SECONDS_EACH, exit=True)
                if fault.answer == KILLED:
                    outcome, wrong = one_kill(flow, fault, faults)
                else:
                    mine_is_faulty = options.ranks == 1 or options.rank == faulty
                    outcome, wrong = one(flow, fault, faults, mine_is_faulty, options.ranks > 1)
                faulthandler.cancel_dump_traceback_later()
                line("end", key, str(fault), fault.kind, outcome, wrong)
    line("finished")
    out.close()
    sys.stdout.flush()
    os._exit(0)


# --- all of them -----------------------------------------------------------------------------------------------------


def run(
    ranks: int, faults: int, seed: int, flow: str | None, folder: Path, say: bool
) -> tuple[Counter, list[str]]:
    """({(flow, kind, outcome): count}, what was wrong)."""
    outcomes: Counter = Counter()
    wrong: list[str] = []
    skip = folder / "skip"
    skip.write_text("")
    for attempt in range(100):
        own = folder / f"{ranks}_{attempt}"
        own.mkdir()
        line = [sys.executable, __file__, "--worker", "--ranks", str(ranks), "--seed", str(seed)]
        line += ["--faults", str(faults), "--folder", str(own), "--skip", str(skip)]
        line += ["--flow", flow] if flow else []
        with open(own / "output", "w") as output:
            workers = [
                subprocess.Popen(
                    [*line, "--rank", str(rank)],
                    env=environment(own) | {"OMP_NUM_THREADS": "1"},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
                for rank in range(ranks)
            ]
            for worker in workers:
                worker.wait()
        begun: list[str] = []
        finished = False
        lines = (own / "lines_0").read_text().splitlines() if (own / "lines_0").exists() else []
        for parts in (text.split("\t") for text in lines):
            if parts[0] == "begin":
                begun = parts[1:]
            elif parts[0] == "end":
                key, fault, kind, outcome, failure = parts[1:]
                outcomes[key, kind, outcome] += 1
                begun = []
                with skip.open("a") as skipped:
                    skipped.write(key + "\n")
                if failure:
                    wrong.append(f"{ranks} rank(s), {key}, {fault}: {failure}")
            elif parts[0] == "flow" and say:
                print(f"{parts[1]}: {parts[3]} faults of {parts[2]}", flush=True)
            finished = finished or parts[0] == "finished"
        if finished:
            return outcomes, wrong
        tail = (own / "output").read_text()[-3000:]
        if not begun:
            raise RuntimeError(f"the worker has ended outside of a fault:\n{tail}")
        wrong.append(f"{ranks} rank(s), {begun[0]}, {begun[1]}: the process has ended or hung:\n{tail}")
        outcomes[begun[0], begun[2], "crashed or hung"] += 1
        with skip.open("a") as skipped:
            skipped.write(begun[0] + "\n")
    return outcomes, wrong


def folder_in_memory() -> str | None:
    """Where flushing costs nothing, if there is such a place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--faults", type=int, default=20, help="of each flow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flow")
    parser.add_argument("--ranks", type=int, help="1 or 2; both if not given")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--worker", action="store_true")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--skip", type=Path)
    options = parser.parse_args()
    if options.worker:
        options.ranks = options.ranks or 1
        work(options)
    every: Counter = Counter()
    failures = []
    for ranks in [options.ranks] if options.ranks else [1, 2]:
        with tempfile.TemporaryDirectory(dir=options.folder or folder_in_memory()) as folder:
            outcomes, wrong = run(
                ranks, 0 if options.all else options.faults, options.seed, options.flow, Path(folder), True
            )
        failures += wrong
        for (key, kind, outcome), count in outcomes.items():
            every[f"{ranks} rank(s), {key}", kind, outcome] += count
    print_table(every)
    print(f"\n{sum(every.values())} faults, {len(failures)} not as promised")
    for failure in failures:
        print("\n" + failure)
    return 1 if failures else 0


def print_table(every: Counter) -> None:
    for position, what in ((0, "flow"), (1, "call")):
        sums: dict[str, Counter] = {}
        for key, count in every.items():
            sums.setdefault(key[position], Counter())[key[2]] += count
        print(f"\nby {what}")
        for name, counts in sums.items():
            text = ", ".join(f"{outcome} {count}" for outcome, count in sorted(counts.items()))
            print(f"  {name:45} {sum(counts.values()):6}: {text}")


if __name__ == "__main__":
    raise SystemExit(main())
