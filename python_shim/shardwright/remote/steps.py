"""The checkpoints of a training's steps below an address: which was saved last, and which go."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shardwright import _core
from shardwright.remote.address import masked
from shardwright.remote.pending import delete_what_a_save_wrote
from shardwright.remote.shadow import Shadow, read_bytes
from shardwright.remote.store import Store, store_and_name

_AT_ONCE = 16

#: The end of a manifest, where its order is.
_END_BYTES = 64

#: How old the marker of a save to another step must be before what that has written is taken for a dead one's.
_DEAD_SECONDS = 24 * 60 * 60


def latest(root: str) -> str | None:
    """The step that was saved last; None if there is none. Raises ValueError for two folders of one step."""
    with _steps_of(root) as steps:
        found = steps.naming(lambda: _core.latest_checkpoint(steps.path))
    return None if found is None else f"{root}/{Path(found).name}"


def next_order(address: str) -> tuple[int, list[str]]:
    """See storage/format/steps.h."""
    root, _, name = address.rpartition("/")
    with _steps_of(root) as steps:
        order, unread = steps.naming(lambda: _core.next_order(steps.path / name))
        return order, [line.replace(str(steps.path), masked(root)) for line in unread]


def step_path(root: str, step: int) -> str:
    """See storage/format/steps.h."""
    with _steps_of(root) as steps:
        return f"{root}/{Path(steps.naming(lambda: _core.step_path(steps.path, step))).name}"


def keep_last_steps(root: str, keep: int) -> list[str]:
    """Deletes all but so many steps, those that were saved last, and what dead saves to steps have left. Other people's
    objects in their folders stay. Returns a line for each that was not deleted, and why."""
    start = f"keep_last={keep}: "
    problems: list[str] = []
    try:
        with _steps_of(root) as steps:
            names = [Path(path).name for path in steps.naming(lambda: _core.saved_steps(steps.path))]
            others = steps.names
    except Exception as error:
        return [f"{start}not all of {masked(root)} was looked at: {error}"]
    for name in names[: -keep or None]:
        try:
            remove_checkpoint(f"{root}/{name}")
        except Exception as error:
            problems.append(f"{start}{masked(root)}/{name} was not removed: {error}")
    store, folder = store_and_name(root)
    for name in others:
        with suppress(Exception):
            _delete_what_dead_saves_left(store, f"{folder}/{name}" if folder else name)
    return problems


def remove_checkpoint(address: str) -> None:
    """Deletes a sharded checkpoint: its manifest first, so that nobody finds half of it, then what that names."""
    shadow = Shadow(address)
    try:
        with shadow.naming():
            _core.remove_checkpoint(shadow.path)
        gone = shadow.changes()[1]
        for name in sorted(gone, key=lambda name: name != _core.manifest_name):
            shadow.store.delete(shadow.name(name))
    finally:
        shadow.remove()


def _delete_what_dead_saves_left(store: Store, folder: str) -> None:
    markers = store.listed(f"{folder}/{_core.saving_name}").objects
    dead = [marker for marker in markers if 0 < marker.modified < time.time() - _DEAD_SECONDS]
    if not dead:
        return
    shadow = Shadow(f"{store.address}/{folder}")
    try:
        for marker in dead:
            delete_what_a_save_wrote(store, folder, marker.name, set(_core.names_of_checkpoints(shadow.path)))
    finally:
        shadow.remove()


class _Steps:
    """A folder of this machine with a folder for each step of a root, in which a manifest's end is where the step has
    been published."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.path = Path(tempfile.mkdtemp(prefix="shardwright-"))
        store, folder = store_and_name(root)
        folders = store.listed(folder).folders
        self.names = [name.rpartition("/")[2] for name in folders]
        self.names = [name for name in self.names if name.startswith("step-")]

        def look(name: str) -> None:
            try:
                place = f"{folder}/{name}" if folder else name
                found = store.head(f"{place}/{_core.manifest_name}")
            except FileNotFoundError:
                return
            begin = max(0, found.size - _END_BYTES)
            end = read_bytes(store, found, begin, found.size - begin)
            with open(self.path / name / _core.manifest_name, "wb") as file:
                file.seek(begin)
                file.write(end)

        for name in self.names:
            (self.path / name).mkdir()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(look, self.names))

    def naming(self, run: Callable[[], Any]) -> Any:
        """Errors name the address in place of the folder of this machine."""
        try:
            return run()
        except (OSError, ValueError) as error:
            shown = masked(self.root)
            error.args = tuple(
                part.replace(str(self.path), shown) if isinstance(part, str) else part for part in error.args
            )
            raise


@contextmanager
def _steps_of(root: str) -> Iterator[_Steps]:
    steps = _Steps(root)
    try:
        yield steps
    finally:
        shutil.rmtree(steps.path, ignore_errors=True)
