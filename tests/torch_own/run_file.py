"""One file of torch's tests with one column's stand-ins: python run_file.py FILE COLUMN OUTCOMES

Writes {test: [outcome, message]} to OUTCOMES, where an outcome is "passed", "skipped" or "failed".
"""

from __future__ import annotations

import importlib
import json
import sys
import unittest
from pathlib import Path
from typing import Any

import safetensors.torch  # noqa: F401 - a test finds it there as torch's writer has imported it
from stand_ins import run_on_cpus, stand_in

# At import, as processes that a test spawns import this again.
stand_in(sys.argv[2])
run_on_cpus()


class Outcomes(unittest.TestResult):
    def __init__(self) -> None:
        super().__init__()
        self.told: dict[str, tuple[str, str]] = {}

    def _tell(self, test: Any, outcome: str, message: str = "") -> None:
        name = test.id().split(".", 1)[-1]  # without its module
        self.told[name] = (outcome, message)
        print(f"{outcome:8} {name}", flush=True)

    def addSuccess(self, test: Any) -> None:
        self._tell(test, "passed")

    def addSkip(self, test: Any, reason: str) -> None:
        self._tell(test, "skipped", reason)

    def addFailure(self, test: Any, err: Any) -> None:
        super().addFailure(test, err)
        self._tell(test, "failed", self.failures[-1][1])

    def addError(self, test: Any, err: Any) -> None:
        super().addError(test, err)
        self._tell(test, "failed", self.errors[-1][1])

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        self._tell(test, "passed")

    def addUnexpectedSuccess(self, test: Any) -> None:
        self._tell(test, "failed", "expected to fail, and passed")


def main() -> None:
    file, outcomes = Path(sys.argv[1]), Path(sys.argv[3])
    sys.path.insert(0, str(file.parent))
    module = importlib.import_module(file.stem)
    result = Outcomes()
    unittest.defaultTestLoader.loadTestsFromModule(module).run(result)
    outcomes.write_text(json.dumps(result.told, indent=1))


if __name__ == "__main__":
    main()
