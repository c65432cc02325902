"""Dependencies of C++ point one way: CONTRIBUTING.md's list of folders and rooms is the order."""

import re
from pathlib import Path

TREE = Path(__file__).parents[2]


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
        for folder in ("kernels", "planner", "storage", "python_shim/bindings")
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
