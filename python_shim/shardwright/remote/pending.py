"""A checkpoint that is being added to a folder of a store, beside whatever else is there.

The rules are those of folders (storage/format/pending_checkpoint.h), which a :class:`Shadow` of the folder is given.
What differs is how a checkpoint is published. Objects have no names before they are whole, and no locks:

* The files of shards have names that no other save gives, and are written where they stay. Until the manifest or index
  names them they belong to nothing.
* Before the first of them, ``.shardwright.saving/<tag>`` is written, which lists what this save will write. Who saves
  there next deletes what a save that died has left.
* The manifest or index is written last, on condition that it is still the one that was there in the beginning, or none.
  Of two saves that run at once the first to publish succeeds; the other finds that out and fails.
* What is replaced is deleted after that.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from shardwright import _core
from shardwright.remote.address import masked
from shardwright.remote.shadow import Shadow, read_bytes
from shardwright.remote.store import ChangedObjectError, Store, StoredObject, StoreError, store_and_name

_TORCHS = ".metadata"


def tag_of_save_under_way(address: str) -> str:
    """The tag of the save to this folder that was begun last.

    Raises:
        FileNotFoundError: there is none.
    """
    store, folder = store_and_name(address)
    saving = f"{folder}/{_core.saving_name}" if folder else _core.saving_name
    markers = store.listed(saving).objects
    if not markers:
        raise FileNotFoundError(2, f"{masked(address)}: no save to this folder is under way")
    return max(markers, key=lambda marker: marker.modified).name.rpartition("/")[2]


class PendingObjects:
    """Stands where `_core.PendingCheckpoint` does, for a folder of a store. ``begin`` is given the shadow's path and
    makes what decides by the rules of folders: a `_core.PendingCheckpoint`, or a `_core.Publication`.
    """

    def __init__(self, address: str, begin: Callable[[Path], Any]) -> None:
        self.address = address
        self.tag = secrets.token_hex(6)
        self._lock = threading.Lock()
        self._shadow: Shadow | None = Shadow(address)
        try:
            with self._shadow.naming():
                self.decides = begin(self._shadow.path)
        except BaseException:
            self._shadow.remove()
            raise
        self._store = self._shadow.store
        self._marker = self._shadow.name(f"{_core.saving_name}/{self.tag}")
        self._is_marked = False

    def mark(self, writes: Mapping[str, int] | None = None) -> None:
        """Says in the store that this save is under way. ``writes``: name and size of what it uploads under names that
        do not end in its tag."""
        try:
            self._store.put(self._marker, json.dumps({"writes": dict(writes or {})}).encode())
        except BaseException:
            self.abandon()
            raise
        self._is_marked = True

    @property
    def path(self) -> Path:
        """A folder of this machine, in which the small files are written that are published."""
        return Path(self.decides.path)

    def call(self, name: str, *args: Any) -> Any:
        """Calls a function of what decides, and gives everything up where that fails."""
        assert self._shadow is not None
        try:
            with self._shadow.naming():
                return getattr(self.decides, name)(*args)
        except BaseException:
            self.abandon()
            raise

    def publish(self, commit_name: str, *args: Any, expected: dict[str, int]) -> None:
        """Publishes what decides, which writes into the shadow, and then does the same to the objects.

        ``expected``: the sizes of the objects that ranks have uploaded, without which nothing is published.

        Raises:
            FileExistsError: another save has published meanwhile, or somebody has written one of the names.
            StoreError: the store refuses; nothing has been published then, unless it says that it does not know.
        """
        with self._lock:
            shadow = self._shadow
            if shadow is None:
                raise OSError(f"{masked(self.address)}: this save has been given up; nothing was saved")
            self._expect(shadow, expected)
            with shadow.naming():
                self.decides.publish(*args)
            written, gone = shadow.changes()
            before = [name for name in written if name not in (commit_name, _TORCHS)]
            before += [name for name in written if name == _TORCHS != commit_name]
            self._write(shadow, before, commit_name)
            self._delete(shadow, gone)
            self._delete_left_behind(shadow)
            self._give_up()

    def abandon(self) -> None:
        """Deletes what this save has written. Never raises."""
        with self._lock:
            shadow = self._shadow
            if shadow is None:
                return
            if self._is_marked:
                with suppress(Exception):
                    delete_what_a_save_wrote(self._store, shadow.folder, self._marker, set())
            self._give_up()

    def _give_up(self) -> None:
        shadow, self._shadow = self._shadow, None
        self.decides.abandon()
        if shadow is not None:
            shadow.remove()

    def _expect(self, shadow: Shadow, expected: dict[str, int]) -> None:
        """Another save that has published meanwhile has deleted what it took for that of a dead one."""
        found = {one.name: one.size for one in self._store.listed(shadow.folder).objects}
        for name, size in expected.items():
            there = found.get(shadow.name(name))
            if there != size:
                raise ChangedObjectError(
                    f"{masked(self.address)}/{name}: expected the {size} bytes that a rank has uploaded, found "
                    f"{'no such object' if there is None else f'{there} bytes'}; nothing was published. Did another "
                    "save to the same place run?"
                )

    def _write(self, shadow: Shadow, before: list[str], commit_name: str) -> None:
        """Writes all others, then what commits. Brings back what was replaced where that fails."""
        replaced = {
            name: read_bytes(self._store, shadow.objects[name], 0, shadow.objects[name].size)
            for name in before
            if name in shadow.objects
        }
        done: list[str] = []
        try:
            for name in before:
                done.append(name)
                data = (shadow.path / name).read_bytes()
                self._put(shadow.name(name), data, name not in replaced)
            self._commit(shadow, commit_name, (shadow.path / commit_name).read_bytes())
        except _UnknownError:
            raise
        except BaseException as failure:
            for name in done:
                with suppress(Exception):
                    if name in replaced:
                        self._store.put(shadow.name(name), replaced[name])
                    elif not isinstance(failure, FileExistsError) or name != done[-1]:
                        self._store.delete(shadow.name(name))
            raise

    def _put(self, name: str, data: bytes, is_new: bool) -> None:
        try:
            self._store.put(name, data, only_new=is_new)
        except FileExistsError:
            if self._content(name) != data:  # else it was written twice, as the first answer was lost
                raise

    def _commit(self, shadow: Shadow, name: str, data: bytes) -> None:
        earlier = shadow.objects.get(name)
        where = f"{masked(self.address)}/{name}"
        try:
            if earlier is None:
                self._store.put(shadow.name(name), data, only_new=True)
            else:
                self._store.put(shadow.name(name), data, only_over=earlier.version)
            return
        except Exception as failure:
            refusal = failure
        # An answer that was lost looks like a refusal when the same is written again.
        there = self._content(shadow.name(name))
        if there == data:
            return
        if there is None and isinstance(refusal, StoreError) and refusal.may_pass:
            self._is_marked = False  # what may have been published is not deleted
            raise _UnknownError(
                f"{refusal}; whether {where} has been written is not known, and what it names stays: save again"
            ) from refusal
        if isinstance(refusal, (FileExistsError, ChangedObjectError)):
            raise FileExistsError(
                17, f"{where}: another save to this place has been published meanwhile; this one was not"
            ) from refusal
        raise refusal

    def _content(self, name: str) -> bytes | None:
        """None where it cannot be read."""
        for _ in range(3):
            try:
                found = self._store.head(name)
                return read_bytes(self._store, found, 0, found.size)
            except FileNotFoundError:
                return b""
            except Exception:
                continue
        return None

    def _delete(self, shadow: Shadow, gone: list[str]) -> None:
        """Deletes what was replaced, the lists first; what cannot be deleted is nobody's, and stays."""
        for name in sorted(gone, key=lambda name: name not in (_TORCHS, _core.manifest_name)):
            with suppress(Exception):
                self._store.delete(shadow.name(name))

    def _delete_left_behind(self, shadow: Shadow) -> None:
        """The marker of this save, and what saves that died have left: nobody can publish over what is there now."""
        with suppress(Exception):
            self._store.delete(self._marker)
        kept = set(_core.names_of_checkpoints(shadow.path))
        for marker in shadow.saving:
            with suppress(Exception):
                delete_what_a_save_wrote(self._store, shadow.folder, marker.name, kept)


class _UnknownError(StoreError):
    """Whether something has been published cannot be said."""


def delete_what_a_save_wrote(store: Store, folder: str, marker: str, kept: set[str]) -> None:
    """Deletes the objects of the save of that marker, but those of the names in ``kept``, and then the marker."""
    found: StoredObject = store.head(marker)
    told = json.loads(read_bytes(store, found, 0, found.size))
    tag = marker.rpartition("/")[2]
    for one in store.listed(folder).objects:
        relative = one.name[len(folder) + 1 :] if folder else one.name
        is_later = one.modified >= found.modified or not found.modified
        has_tag = relative.partition(".")[0].endswith("-" + tag)
        is_of_save = has_tag or (told["writes"].get(relative) == one.size and is_later)
        if is_of_save and relative not in kept:
            store.delete(one.name)
    store.delete(marker)
