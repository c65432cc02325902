"""The checkpoints of a training's steps below an address: which go."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from shardwright import _core
from shardwright.local_path import location
from shardwright.remote.address import without_secrets
from shardwright.remote.open_stores import store_and_name
from shardwright.remote.pending import delete_what_a_save_wrote
from shardwright.remote.reading import tried
from shardwright.remote.shadow import Shadow
from shardwright.remote.store import Store

#: How old the marker of a save to another step must be before what that has written is taken for a dead one's.
_DEAD_SECONDS = 24 * 60 * 60


def keep_last_steps(root: str, keep: int) -> list[str]:
    """Deletes all but so many steps, those that were saved last, and what dead saves to steps have left. Other people's
    objects in their folders stay. Returns a line for each that was not deleted, and why."""
    start = f"keep_last={keep}: "
    problems: list[str] = []
    try:
        names = [Path(path).name for path in _core.saved_steps(location(root))]
        store, folder = store_and_name(root)
        folders = tried(root, lambda: store.listed(folder)).folders
    except Exception as error:
        return [f"{start}not all of {without_secrets(root)} was looked at: {error}"]
    for name in names[:-keep]:
        try:
            remove_checkpoint(f"{root}/{name}")
        except Exception as error:
            problems.append(f"{start}{without_secrets(root)}/{name} was not removed: {error}")
    for name in folders:
        if name.rpartition("/")[2].startswith("step-"):
            with suppress(Exception):
                _delete_what_dead_saves_left(store, name)
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
