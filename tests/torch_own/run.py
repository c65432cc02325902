"""Runs torch's own tests of torch.distributed.checkpoint with ours in place of torch's, and prints a table.

    SHARDWRIGHT_TORCH_SOURCE=../pytorch python tests/torch_own/run.py [test_planner ...]

The variable names a checkout of the PyTorch that is installed, or a folder with its test/distributed/checkpoint/.
Four columns: torch as it is, our readers and writers, our planners, both. Counted are tests that pass as they are.
Ends with 1 where one of them does not pass in another column and differences.py does not say why, or says so of a test
that passes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from differences import DIFFERENCES

HERE = Path(__file__).parent
#: Those that read, write or plan a checkpoint. test_state_dict names neither readers, writers, planners, save nor load:
#: nothing of ours would run in it.
FILES = [
    "test_hf_storage",
    "test_hf_safetensor_e2e",
    "test_quantized_hf_storage",
    "test_file_system_checkpoint",
    "test_file_system_checkpoint_cpu",
    "test_dtensor_resharding",
    "test_dtensor_checkpoint",
    "test_planner",
    "test_save_load_api",
    "test_format_utils",
    "e2e/test_e2e_save_and_load",
]
COLUMNS = ["without", "storage", "planners", "both"]

#: {test: (outcome, message)} for each column
Outcomes = dict[str, dict[str, tuple[str, str]]]


def outcomes_of(file: Path) -> Outcomes:
    found: Outcomes = {}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for column in COLUMNS:
        with tempfile.TemporaryDirectory() as folder:
            told = Path(folder, "outcomes.json")
            run = subprocess.run(
                [sys.executable, HERE / "run_file.py", file, column, told],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            if not told.exists():
                raise SystemExit(
                    f"{run.stdout[-3000:]}\n{file}: ended with {run.returncode} before its tests had run"
                )
            found[column] = {test: tuple(outcome) for test, outcome in json.loads(told.read_text()).items()}
    return found


def reason_of(file: str, test: str, column: str) -> str | None:
    return next((one.reason for one in DIFFERENCES if one.concerns(file, test, column)), None)


def looks_inside(file: str, test: str) -> bool:
    return any(
        one.is_inside and one.concerns(file, test, column) for one in DIFFERENCES for column in COLUMNS
    )


def print_row(name: str, cells: Iterable[object]) -> None:
    print(f"{name:34}" + "".join(f"{cell!s:>12}" for cell in cells), flush=True)


def main() -> int:
    source = os.environ.get("SHARDWRIGHT_TORCH_SOURCE", "")
    tests = Path(source, "test/distributed/checkpoint")
    if not source or not tests.is_dir():
        raise SystemExit(f"SHARDWRIGHT_TORCH_SOURCE: expected a checkout of PyTorch, found no folder {tests}")
    passing = dict.fromkeys(COLUMNS, 0)
    of_behaviour = dict.fromkeys(COLUMNS, 0)
    reasons: dict[str, list[str]] = {}
    faults: list[str] = []
    print_row("", COLUMNS)
    for file in sys.argv[1:] or FILES:
        path = tests / f"{file}.py"
        name = path.stem
        if not path.exists():
            print_row(name, ["not there"])
            continue
        found = outcomes_of(path)
        counted = [test for test, (outcome, _) in found["without"].items() if outcome == "passed"]
        row = dict.fromkeys(COLUMNS, 0)
        for test in counted:
            for column in COLUMNS:
                outcome, message = found[column].get(test, ("missing", "did not run"))
                reason = reason_of(name, test, column)
                row[column] += outcome == "passed"
                of_behaviour[column] += outcome == "passed" and not looks_inside(name, test)
                if outcome == "passed" and reason:
                    faults.append(f"{column}: {name}.{test} passes: differences.py says otherwise")
                elif outcome != "passed" and reason:
                    reasons.setdefault(reason, []).append(f"{column}: {name}.{test}")
                elif outcome != "passed":
                    faults.append(f"{column}: {name}.{test} {outcome}:\n{message}")
        passing = {column: passing[column] + row[column] for column in COLUMNS}
        others = len(found["without"]) - len(counted)
        print_row(
            name, [*row.values(), f"({others} more do not pass or are skipped as they are)" if others else ""]
        )
    print_row("all", passing.values())
    print_row("all that look at behaviour", of_behaviour.values())
    for reason, lines in reasons.items():
        print("\n  ".join([f"\n{reason}:", *lines]))
    for fault in faults:
        print(f"\n{fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
