"""What README and docs/ tell readers to type is typed here: each page in a folder of its own, from top to bottom.

Run are all blocks of Python and of shell, but those below a comment `<!-- not run: why -->`. A block of Python with a
title is kept as the file of that name; the others are one session of Python. `...` in a line of shell is not allowed.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import shardwright as sw
from shardwright.cli.commands.families import PEERS, families

TREE = Path(__file__).parents[2]
README = TREE / "README.md"
BLOCK = re.compile(
    r"^(?P<not_run><!-- not run: .+ -->\n)?```(?P<language>python|sh)(?: title=\"(?P<title>[^\"]+)\")?\n"
    r"(?P<text>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
PAGES = [README, *sorted((TREE / "docs").rglob("*.md"))]
WITH_BLOCKS = [page for page in PAGES if BLOCK.search(page.read_text())]


def name_of(page: Path) -> str:
    return str(page.relative_to(TREE))


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """Where `shardwright`, `torchrun` and `python` are this package and this Python."""
    folder = tmp_path_factory.mktemp("bin")
    for command, module in (
        ("shardwright", "-m shardwright"),
        ("torchrun", "-m torch.distributed.run"),
        ("python", ""),
    ):
        (folder / command).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        (folder / command).chmod(0o755)
    package = str(TREE / "python_shim")
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    return os.environ | {"PATH": path, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


@pytest.mark.ranks
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_what_a_page_says_to_type_runs(page: Path, tmp_path: Path, monkeypatch, environment):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(BLOCK.finditer(page.read_text()), 1):
        where = f"{name_of(page)}, block {number}"
        if block["not_run"]:
            continue
        if block["title"]:
            Path(block["title"]).write_text(block["text"])
        elif block["language"] == "python":
            exec(compile(block["text"], where, "exec"), names)
        else:
            assert "..." not in block["text"], where
            run = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block["text"]],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=600,
            )
            assert run.returncode == 0, f"{where}:\n{block['text']}\n{run.stdout}"


def test_every_block_that_looks_like_a_command_is_looked_at():
    """No other fence hides Python or shell from the test above."""
    allowed = {"python", "sh", "cpp", "text", "json", "toml", ""}
    for page in PAGES:
        fences = re.findall(r"^```(\w*)[^\n]*\n.*?^```$", page.read_text(), re.MULTILINE | re.DOTALL)
        assert set(fences) <= allowed, name_of(page)


@pytest.mark.parametrize("page", [page for page in PAGES if "```cpp\n" in page.read_text()], ids=name_of)
def test_the_cpp_of_a_page_is_compiled_and_run(page: Path):
    """It stands in a program of tests/cpp, which the C++ tests build and run, letter for letter."""
    tested = set()
    for program in (TREE / "tests" / "cpp").glob("*.cpp"):
        parts = re.findall(r"// README: [^\n]+\n(.*?) *// README: end\n", program.read_text(), re.DOTALL)
        tested |= {"".join(part.split()) for part in parts}  # clang-format wraps by the indent
    for block in re.findall(r"^```cpp\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        assert "".join(block.split()) in tested, f"{name_of(page)}:\n{block}"


def test_every_public_header_is_in_the_reference():
    umbrellas = "".join(path.read_text() for path in (TREE / "include" / "shardwright").glob("*.h"))
    public = re.findall(r'#include "([^"]+)"', umbrellas)
    listed = re.findall(
        r"^@header\(([^,]+), .+\)$", (TREE / "docs/reference/cpp.md").read_text(), re.MULTILINE
    )
    assert sorted(listed) == sorted(public)


def test_every_public_name_is_in_the_reference():
    pages = "".join(page.read_text() for page in (TREE / "docs" / "reference").glob("*.md"))
    listed = re.findall(r"^::: shardwright\.(\w+)$", pages, re.MULTILINE)
    assert sorted(listed) == sorted(name for name in sw.__all__ if name != "__version__")


def test_type_checkers_see_each_public_name_where_python_finds_it():
    module = ast.parse(Path(sw.__file__).read_text())
    checked = next(node for node in module.body if isinstance(node, ast.If))
    seen = {one.names[0].asname: one.module for one in checked.body}
    assert seen == {name: f"shardwright.{module}" for name, module in sw._MODULE_OF.items()}


def row_of_family(one: dict) -> str:
    others = ", ".join(f"`{name}`" for name in one["model_types"] if name != one["family"])
    cells = [f"`{one['family']}`", others]
    for layout in ("automodel", "transformers", "torchtitan"):
        peer = one["layouts"].get(layout, "").rpartition(" ")[0]
        cells.append("refused" if layout in one["refused"] else peer)
    return f"| {' | '.join(cells)} |"


def test_the_table_of_families_is_that_of_the_command():
    listed = families()["families"]
    table = "\n".join(map(row_of_family, listed))
    page = (TREE / "docs" / "families.md").read_text()
    assert table + "\n\n" in page, f"docs/families.md: expected this table of families:\n{table}"
    total = len(listed)
    count = {layout: sum(layout in one["layouts"] for one in listed) for layout in PEERS}
    of_transformers = sum(one["layouts"].get("automodel") == PEERS["transformers"] for one in listed)
    for sentence in (
        f"{count['automodel']} of the {total} with tables",
        f"for the {of_transformers} that it trains as theirs",
        f"| {count['transformers']} of them; any other",
        f"| {count['torchtitan']} of them |",
    ):
        assert sentence in README.read_text(), sentence
    assert f"tables of {total} families" in (TREE / "CHANGELOG.md").read_text()


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r": ([\w/-]+\.md)$", (TREE / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {str(page.relative_to(TREE / "docs")) for page in PAGES if page != README}


def test_the_versions_are_those_of_the_code():
    def constant(path: str, pattern: str) -> str:
        (found,) = re.findall(pattern, (TREE / path).read_text())
        return found

    versions = {
        "the library": sw.__version__,
        "manifest of a sharded checkpoint": constant(
            "storage/format/manifest.h", r"manifest_version = (\d+);"
        ),
        "checksums of an export": constant("storage/format/checksums_file.cpp", r"uint32_t version = (\d+);"),
        "a plan that is kept": constant("planner/load/plan_wire.h", r"plan_wire_version = (\d+);"),
        "what ranks tell each other in a save": constant(
            "planner/save/save_wire.h", r"save_wire_version = (\d+);"
        ),
        "what ranks tell each other in an export": constant(
            "planner/save/export_wire.cpp", r"uint32_t version = (\d+);"
        ),
    }
    rows = re.findall(r"^\| ([^|]+) \| ([\d.]+) \|", (TREE / "docs/versions.md").read_text(), re.MULTILINE)
    assert dict(rows) == versions
