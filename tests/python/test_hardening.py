"""The built module carries what makes a fault in them harder to make use of. Read with binutils, which g++ needs."""

import subprocess
from pathlib import Path

import pytest
import shardwright

MODULES = sorted(Path(shardwright.__file__).parent.glob("_*.so"))


def readelf(option: str, module: Path) -> str:
    return subprocess.run(
        ["readelf", "--wide", option, module], capture_output=True, text=True, check=True
    ).stdout


def test_the_module_is_looked_at():
    assert {module.name.split(".")[0] for module in MODULES} == {"_core"}


@pytest.mark.process
@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name.split(".")[0])
def test_a_module_is_hardened(module: Path):
    segments = readelf("--program-headers", module)
    stack = next(line for line in segments.splitlines() if "GNU_STACK" in line)
    assert " RWE " not in stack and " RW " in stack  # no code on the stack
    assert "GNU_RELRO" in segments  # tables of addresses are read-only once filled,
    assert "NOW" in readelf("--dynamic", module)  # which is at once
    symbols = readelf("--dyn-syms", module)
    assert "__stack_chk_fail" in symbols  # -fstack-protector-strong
    if module.name.startswith("_core"):
        assert "_chk@" in symbols.replace("__stack_chk_fail", "")  # _FORTIFY_SOURCE
