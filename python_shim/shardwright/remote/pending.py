"""A checkpoint that is being added to a folder of a store, beside whatever else is there.

The rules are those of folders (storage/format/pending_checkpoint.h), which a :class:`Shadow` of the folder is given.
What differs is how a checkpoint is published. Objects have no names before they are whole, and no locks:

* Files of weights have names that no other save gives, and are written where they stay. Until the manifest or index
  names them they belong to nothing.
* Before the first of them, ``.shardwright.saving/<tag>`` is written, on condition that it is not there, and lists what
  this save writes, replaces and removes. The tag is in all names of shards; that of an export is what they begin with.
  Who saves there next sees the folder as it was before a save that died, and deletes what that has left.
* The manifest or index is written last. It, and what else is replaced, is written on condition that it is still what
  was there in the beginning, or nothing. Of two saves that run at once one is published, and the other finds that out.
* What is replaced is deleted after that.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from shardwright import _core
from shardwright.remote.address import without_secrets
from shardwright.remote.open_stores import store_and_name
from shardwright.remote.reading import tried
from shardwright.remote.shadow import Shadow, read_bytes
from shardwright.remote.store import ChangedObjectError, Store, StoredObject, StoreError, is_same_version

_TORCHS = ".metadata"


def tag_of_save_under_way(address: str) -> str:
    """The tag of the save to this folder that was begun last.

    Raises:
        FileNotFoundError: there is none.
    """
    store, folder = store_and_name(address)
    saving = f"{folder}/{_core.saving_name}" if folder else _core.saving_name
    markers = [one for one in store.listed(saving).objects if _TAG.fullmatch(one.name.rpartition("/")[2])]
    if not markers:
        raise FileNotFoundError(2, f"{without_secrets(address)}: no save to this folder is under way")
    return max(markers, key=lambda marker: marker.modified).name.rpartition("/")[2]


class PendingObjects:
    """Stands where `_core.PendingCheckpoint` does, for a folder of a store. ``begin`` is given the shadow's path and
    makes what decides by the rules of folders: a `_core.PendingCheckpoint`, or a `_core.Publication`.
    """

    def __init__(self, address: str, commit_name: str, begin: Callable[[Path], Any]) -> None:
        self.address, self._commit_name = address, commit_name
        self.tag = secrets.token_hex(6)
        self._lock = threading.Lock()
        self._shadow: Shadow | None = Shadow(address)
        self._folder = self._shadow.folder
        try:
            self._told: dict[str, Any] = {"commit": commit_name, "over": _version(self._shadow, commit_name)}
            _undo_unpublished(self._shadow)
            with self._shadow.naming():
                self.decides = begin(self._shadow.path)
        except BaseException:
            self._shadow.remove()
            raise
        self._store = self._shadow.store
        self._is_marked = False

    @property
    def _marker(self) -> str:
        folder = f"{self._folder}/" if self._folder else ""
        return f"{folder}{_core.saving_name}/{self.tag}"

    def mark(self, writes: Mapping[str, int] | None = None) -> bool:
        """Says in the store that this save is under way. ``writes``: name and size of what it uploads under names that
        do not end in its tag. False if another save has taken the tag."""
        self._told |= {"writes": dict(writes or {}), "publishes": {}, "previous": {}, "removes": {}}
        data = json.dumps(self._told).encode()
        try:
            self._store.put(self._marker, data, only_new=True)
        except FileExistsError:
            if self._found(self._marker, data) is None:
                return False
        except BaseException:
            self.abandon()
            raise
        self._is_marked = True
        return True

    def take(self, name: str) -> None:
        """Has what decides find a file of this name, which no save may write."""
        assert self._shadow is not None
        (self._shadow.path / name).touch()
        self._shadow.seen()

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

    def publish(self, *args: Any, expected: dict[str, int]) -> None:
        """Publishes what decides, which writes into the shadow, and then does the same to the objects.

        ``expected``: the sizes of the objects that ranks have uploaded, without which nothing is published.

        Raises:
            FileExistsError: another save has published meanwhile, or somebody has written one of the names.
            StoreError: the store refuses; nothing has been published then, unless it says that it does not know.
        """
        with self._lock:
            shadow = self._shadow
            if shadow is None:
                raise OSError(
                    f"{without_secrets(self.address)}: this save has been given up; nothing was saved"
                )
            self._expect(shadow, expected)
            with shadow.naming():
                self.decides.publish(*args)
            commit_name = self._commit_name
            written, gone = shadow.changes()
            before = [name for name in written if name not in (commit_name, _TORCHS)]
            before += [name for name in written if name == _TORCHS != commit_name]
            previous = {name: self._previous(shadow, name) for name in before if name in shadow.objects}
            before = [name for name in before if previous.get(name) != (shadow.path / name).read_bytes()]
            self._tell_intent(shadow, before, previous, gone)
            self._write(shadow, before, previous, commit_name)
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
                    delete_what_a_save_wrote(
                        self._store, shadow.folder, self._marker, set(shadow.objects), is_published=False
                    )
            self._give_up()

    def _give_up(self) -> None:
        shadow, self._shadow = self._shadow, None
        self.decides.abandon()
        if shadow is not None:
            shadow.remove()

    def _expect(self, shadow: Shadow, expected: dict[str, int]) -> None:
        """Another save that has published meanwhile has deleted what it took for that of a dead one."""
        listing = tried(self.address, lambda: self._store.listed(shadow.folder))
        found = {one.name: one.size for one in listing.objects}
        for name, size in expected.items():
            there = found.get(shadow.name(name))
            if there != size:
                raise ChangedObjectError(
                    f"{without_secrets(self.address)}/{name}: expected the {size} bytes that a rank has uploaded, "
                    f"found {'no such object' if there is None else f'{there} bytes'}; nothing was published. Did "
                    "another save to the same place run?"
                )

    def _previous(self, shadow: Shadow, name: str) -> bytes:
        found = shadow.objects[name]
        return read_bytes(self._store, found, 0, found.size)

    def _tell_intent(
        self, shadow: Shadow, before: list[str], previous: dict[str, bytes], gone: list[str]
    ) -> None:
        """For whoever comes after a kill between the first of these writes and the last deletion."""
        if not before and not gone:
            return
        self._told["publishes"] = {name: _digest((shadow.path / name).read_bytes()) for name in before}
        self._told["previous"] = {
            name: base64.b64encode(previous[name]).decode() for name in before if name in previous
        }
        self._told["removes"] = {name: shadow.objects[name].version for name in gone}
        self._store.put(self._marker, json.dumps(self._told).encode())

    def _write(self, shadow: Shadow, before: list[str], replaced: dict[str, bytes], commit_name: str) -> None:
        """Writes all others, then what commits. Brings back what was replaced where that fails."""
        done: dict[str, StoredObject] = {}
        try:
            for name in before:
                done[name] = self._put(shadow, name, (shadow.path / name).read_bytes(), commits=False)
            self._commit(shadow, commit_name)
        except BaseException:
            if not self._is_marked:
                raise  # what it names may have been published
            for name, written in done.items():
                with suppress(Exception):
                    if name in replaced:
                        self._store.put(shadow.name(name), replaced[name], only_over=written.version)
                    elif is_same_version(self._store.head(shadow.name(name)).version, written.version):
                        self._store.delete(shadow.name(name))
            raise

    def _commit(self, shadow: Shadow, name: str) -> None:
        """Writes what publishes. From here on nothing is deleted, unless it is known that it has not been written: an
        interrupt may come when it is there already."""
        self._is_marked = False
        try:
            self._put(shadow, name, (shadow.path / name).read_bytes(), commits=True)
        except Exception as failure:
            self._is_marked = not isinstance(failure, _UnknownError)
            raise

    def _put(self, shadow: Shadow, name: str, data: bytes, commits: bool) -> StoredObject:
        """Writes an object over that which was there in the beginning, and over no other."""
        earlier = shadow.objects.get(name)
        try:
            if earlier is None:
                return self._store.put(shadow.name(name), data, only_new=True)
            return self._store.put(shadow.name(name), data, only_over=earlier.version)
        except Exception as failure:
            refusal = failure
        # An answer that was lost looks like a refusal when the same is written again.
        where = f"{without_secrets(self.address)}/{name}"
        try:
            found = self._found(shadow.name(name), data)
        except Exception:
            if not commits:
                raise refusal from None
            raise _UnknownError(
                f"{refusal}; whether {where} has been written is not known, and what it names stays: save again"
            ) from refusal
        if found is not None:
            return found
        if isinstance(refusal, (FileExistsError, ChangedObjectError)):
            raise FileExistsError(
                errno.EEXIST,
                f"{where}: another save to this place has written it meanwhile; this one was not published",
            ) from refusal
        raise refusal

    def _found(self, name: str, data: bytes) -> StoredObject | None:
        """The object if it holds these bytes."""
        try:
            found = tried(self.address, lambda: self._store.head(name))
        except FileNotFoundError:
            return None
        is_same = found.size == len(data) and read_bytes(self._store, found, 0, found.size) == data
        return found if is_same else None

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


def _undo_unpublished(shadow: Shadow) -> None:
    """Has the shadow show the folder as it was before saves that have not been published. The objects stay."""
    published: list[tuple[str, str, str | None]] = []  # name, digest, and what was there before, in base 64
    for marker in shadow.saving:
        told = _read_marker(shadow.store, marker)
        if told is None or _version(shadow, told["commit"]) != told["over"]:
            continue
        for name in told["writes"]:
            if _is_shown(shadow, name):  # no name of weights, but one that they may not begin with
                os.rename(shadow.path / name, shadow.path / f"{name}.unpublished")
        published += [
            (name, digest, told["previous"].get(name)) for name, digest in told["publishes"].items()
        ]
        if not _TAG.fullmatch(marker.name.rpartition("/")[2]):
            (shadow.path / f"{marker.name.rpartition('/')[2]}-0-of-0.unpublished").touch()
    # One that died after another has written over what that had: the later one is undone first.
    while undone := [one for one in published if _is_shown(shadow, one[0], one[1])]:
        name, _, previous = undone[0]
        published.remove(undone[0])
        if previous is None:
            (shadow.path / name).unlink()
        else:
            (shadow.path / name).write_bytes(base64.b64decode(previous))
    shadow.look_into_what_is_told_of()
    shadow.seen()


def _is_shown(shadow: Shadow, name: str, digest: str | None = None) -> bool:
    """Whether the shadow has a file in place of that object, and of that digest."""
    if name not in shadow.objects or not (shadow.path / name).is_file():
        return False
    return digest is None or _digest(shadow.content(name)) == digest


_TAG = re.compile("[0-9a-f]{12}")


def _read_marker(store: Store, marker: StoredObject) -> dict[str, Any] | None:
    """None for one that a save has not written, or that is gone."""
    kinds = {"commit": str, "over": str, "writes": dict, "publishes": dict, "previous": dict, "removes": dict}
    try:
        told = json.loads(read_bytes(store, marker, 0, marker.size))
        if not isinstance(told, dict) or not all(
            isinstance(told.get(key), kind) for key, kind in kinds.items()
        ):
            return None
        for previous in told["previous"].values():
            base64.b64decode(previous, validate=True)
    except (ValueError, TypeError, RecursionError, FileNotFoundError, ChangedObjectError):
        return None
    return told


def _version(shadow: Shadow, name: str) -> str:
    return shadow.objects[name].version if name in shadow.objects else ""


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def delete_what_a_save_wrote(
    store: Store, folder: str, marker: str, kept: set[str], is_published: bool = True
) -> None:
    """Deletes the objects of the save of that marker but those of the names in ``kept``, and then the marker.
    ``is_published``: it or a later one has been, so that what it was to replace goes, too."""
    told = _read_marker(store, store.head(marker))
    if told is None:
        return
    tag = marker.rpartition("/")[2]
    is_tag = (
        _TAG.fullmatch(tag) is not None
    )  # else what an export's names begin with: its sizes tell which are its
    for one in store.listed(folder).objects:
        relative = one.name[len(folder) + 1 :] if folder else one.name
        is_of_save = (
            (is_tag and relative.partition(".")[0].endswith("-" + tag))
            or told["writes"].get(relative) == one.size
            or (
                is_published
                and relative in told["removes"]
                and is_same_version(told["removes"][relative], one.version)
            )
            or (
                relative in told["publishes"]
                and relative not in told["previous"]
                and _digest(read_bytes(store, one, 0, one.size)) == told["publishes"][relative]
            )
        )
        if is_of_save and relative not in kept:
            store.delete(one.name)
    store.delete(marker)
