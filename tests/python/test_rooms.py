"""Dependencies of C++ point one way, in the order of CONTRIBUTING.md's list of folders and rooms, and the glossary's
words are those of the code."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
FOLDERS = ("kernels", "planner", "storage", "python_shim")


def order_of_rooms() -> dict[str, int]:
    """Each room ("planner/names"; a folder's own files are its room "planner") and its number in the list."""
    rooms, folder = [], ""
    for line in (TREE / "CONTRIBUTING.md").read_text().splitlines():
        row = re.match(r"\| (?:`(\w+)/`)? ?\| (?:`(\w+)/`)? ?\| ", line)
        if row is None:
            continue
        folder = row[1] or folder
        rooms += [folder] if row[1] else []
        rooms += [f"{folder}/{row[2]}"] if row[2] else []
    return {room: number for number, room in enumerate(rooms)}


def room_of(file: str) -> str:
    """The room that a file, named from the root of the tree, lies in."""
    return "/".join(Path(file).parts[:-1][:2])


def test_a_file_includes_what_stands_in_its_room_or_above_it_in_the_list():
    order = order_of_rooms()
    files = [
        path.relative_to(TREE)
        for folder in FOLDERS
        for ending in ("*.h", "*.cpp", "*.cu")
        for path in (TREE / folder).rglob(ending)
    ]
    assert len(files) > 400
    below = []
    for file in files:
        for header in re.findall(r'^#include "([^"]+/[^"]+)"', (TREE / file).read_text(), re.MULTILINE):
            if not (TREE / header).exists():  # generated, or another library's
                continue
            if order[room_of(header)] > order[room_of(str(file))]:
                below.append(f"{file} includes {header}")
    assert not below, "\n".join(below)


def imports_of(module: str, modules: dict[str, Path]) -> set[str]:
    """The package's modules that one imports, wherever in its code; each named from the package on."""
    found = set()
    for node in ast.walk(ast.parse(modules[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: expected whole names of modules, found a relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name in modules} - {module}


def test_no_module_imports_one_that_imports_it():
    package = TREE / "python_shim" / "shardwright"
    modules = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts): path
        for path in package.rglob("*.py")
    }
    modules = {name: path for name, path in modules.items() if path.name != "__init__.py"}
    assert len(modules) > 120
    try:
        TopologicalSorter({name: imports_of(name, modules) for name in modules}).prepare()
    except CycleError as error:
        pytest.fail(f"each imports the one before it: {', '.join(error.args[1])}")


def test_what_the_glossary_names_is_in_the_code():
    glossary = (TREE / "storage" / "README.md").read_text().partition("## Glossary")[2]
    rows = re.findall(r"^\| ([^|\n]+) \| .+ \| ([^|\n]*)\|$", glossary, re.MULTILINE)
    assert len(rows) > 100
    files = [path for folder in FOLDERS for path in (TREE / folder).rglob("*")]
    code = [path.read_text() for path in files if path.suffix in (".h", ".cpp", ".cu", ".py")]
    words = {word for text in code for word in re.findall(r"\w+", text)}
    structs = re.compile(r"^(?:struct|class) ([\w:]+)[^;{\n]*{(.*?)^};", re.MULTILINE | re.DOTALL)
    members = {name: set(re.findall(r"\w+", body)) for text in code for name, body in structs.findall(text)}
    for word, where in rows:
        for name in re.findall(r"`([^`]+)`", where):
            first, _, member = name.partition("::")
            if "/" in name:
                assert (TREE / name).exists(), f"{word}: {name}"
            elif member:
                assert member in members[first], f"{word}: {name}"
            else:
                assert first in words, f"{word}: {name}"
