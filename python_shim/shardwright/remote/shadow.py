"""A folder of this machine that stands for one of a store, so that what holds for folders holds for objects."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from shardwright import _core
from shardwright.remote.address import without_secrets
from shardwright.remote.open_stores import store_and_name
from shardwright.remote.own_folder import OwnFolder, remove_folders_of_dead_processes
from shardwright.remote.reading import arriving, tried
from shardwright.remote.store import Store, StoredObject

#: Requests for small objects that are under way at a time.
_AT_ONCE = 16

#: Objects that say of others how they were written: the rules look into those.
_TELLS_OF_OTHERS = (_core.manifest_name, _core.checksums_name)

#: Objects that the rules look into whatever else is there.
_ALWAYS = ("model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors")

_TORCHS = ".metadata"

#: What is larger and of no known name is nothing that lies beside weights.
_MOST_BYTES_BESIDE = 64 << 20

#: Folders that belong to a checkpoint.
_FOLDERS_BESIDE = ("additional_chat_templates",)

_WEIGHTS = (".safetensors", ".distcp", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".npz")


class Shadow:
    """``path`` has a file for each object below the address: of its size, with the contents of those that the rules of
    folders look into, and holes in place of the rest. What is done to it is then done to the objects.

    ``objects`` are those that were there, by their names below the address. What lies in the folder of saves under way
    is left out; ``saving`` has it.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.store, self.folder = store_and_name(address)
        remove_folders_of_dead_processes()
        self._own = OwnFolder()
        self.path = self._own.path
        self.objects: dict[str, StoredObject] = {}
        self.saving: list[StoredObject] = []
        self._fetched: set[str] = set()
        try:
            self._fill()
        except BaseException:
            self.remove()
            raise
        self.seen()

    def seen(self) -> None:
        """What is there now counts as what was there before."""
        self._before = self._looks()

    def name(self, relative: str) -> str:
        """The object's name in the store."""
        return f"{self.folder}/{relative}" if self.folder else relative

    def look_into_what_is_told_of(self) -> None:
        """Fetches what the rules look into: also once more, after what tells of others has changed here."""
        tells = [self.path / name for name in _TELLS_OF_OTHERS]
        told = b"\n".join(file.read_bytes() for file in tells if file.is_file())
        # Names stand in there as they are; one that is found by chance is read for nothing.
        self._fetch_all(name for name in self.objects if name in _ALWAYS or name.encode() in told)

    def changes(self) -> tuple[list[str], list[str]]:
        """Names of the files that were written since, and of those that are gone, each sorted."""
        now = self._looks()
        written = [name for name, look in now.items() if self._before.get(name) != look]
        return sorted(written), sorted(set(self._before) - set(now))

    def content(self, relative: str) -> bytes:
        """What the folder has in place of the object: its own bytes, unless they were changed here."""
        if relative in self.objects:
            self._fetch(relative)
        return (self.path / relative).read_bytes()

    def remove(self) -> None:
        self._own.remove()

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Errors name the address in place of the folder of this machine."""
        try:
            yield
        except (OSError, ValueError, _core.PlanError) as error:
            shown = without_secrets(self.address)

            def told(text: Any) -> Any:
                return text.replace(str(self.path), shown) if isinstance(text, str) else text

            error.args = tuple(told(part) for part in error.args)
            if isinstance(error, OSError):
                error.strerror = told(error.strerror)
                if error.filename is not None:  # one that is set to None is shown
                    error.filename = told(error.filename)
            raise

    def _fill(self) -> None:
        self.saving = self._listed(_core.saving_name)
        listing = tried(self.address, lambda: self.store.listed(self.folder))
        found = listing.objects
        for folder in _FOLDERS_BESIDE:
            if self.name(folder) in listing.folders:
                found = found + self._listed(folder)
        for one in sorted(found, key=lambda one: one.name):
            relative = one.name[len(self.folder) + 1 :] if self.folder else one.name
            if _is_file_name(relative) and self._made(relative, one.size):
                self.objects[relative] = one
        for relative in self.objects:
            self._set_time(relative)
        self._fetch_all(_TELLS_OF_OTHERS)
        self.look_into_what_is_told_of()

    def _listed(self, folder: str) -> list[StoredObject]:
        return tried(self.address, lambda: self.store.listed(self.name(folder))).objects

    def _made(self, relative: str, size: int) -> bool:
        """False for an object that no file can stand for, such as one whose name another's goes on from."""
        file = self.path / relative
        try:
            file.parent.mkdir(exist_ok=True)
            with open(file, "xb") as made:
                made.truncate(size)
        except (FileExistsError, NotADirectoryError):
            return False
        return True

    def _fetch_all(self, names: Iterable[str]) -> None:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            wanted = [name for name in names if name in self.objects and (self.path / name).is_file()]
            list(pool.map(self._fetch, wanted))

    def _fetch(self, relative: str) -> None:
        """Gives the file what is looked into of the object, the first time."""
        if relative in self._fetched:
            return
        self._fetched.add(relative)
        found = self.objects[relative]
        if relative in _TELLS_OF_OTHERS or relative in _ALWAYS[:1] or relative == _TORCHS:
            self._write(relative, self._read(found, 0, found.size))
        elif relative.endswith(".safetensors"):
            length = self._read(found, 0, min(8, found.size))
            if len(length) == 8 and (bytes_of_header := struct.unpack("<Q", length)[0]) <= found.size - 8:
                self._write(relative, length + self._read(found, 8, min(bytes_of_header, 100_000_000)))
        elif not relative.endswith(_WEIGHTS) and found.size <= _MOST_BYTES_BESIDE:
            self._write(relative, self._read(found, 0, found.size))

    def _read(self, found: StoredObject, begin: int, length: int) -> bytes:
        return read_bytes(self.store, found, begin, length)

    def _write(self, relative: str, data: bytes) -> None:
        with open(self.path / relative, "r+b") as file:
            file.write(data)
        self._set_time(relative)

    def _set_time(self, relative: str) -> None:
        if modified := self.objects[relative].modified:
            os.utime(self.path / relative, (modified, modified))

    def _looks(self) -> dict[str, tuple[int, int, int]]:
        looks = {}
        for folder, folders, files in os.walk(self.path):
            folders[:] = [name for name in folders if name != _core.saving_name]
            for name in files:
                file = os.path.join(folder, name)
                status = os.stat(file)
                looks[os.path.relpath(file, self.path)] = status.st_ino, status.st_size, status.st_mtime_ns
        return looks


def _is_file_name(relative: str) -> bool:
    """True for what can be a file of a checkpoint; a store has names that a file system has not."""
    parts = relative.split("/")
    return all(
        0 < len(part.encode()) < 256 and part not in (".", "..") and "\0" not in part for part in parts
    )


def read_bytes(store: Store, found: StoredObject, begin: int, length: int) -> bytes:
    """Bytes of the object, of the version that was found."""
    return b"".join(
        bytes(part) for part in arriving(f"{store.address}/{found.name}", found.version, begin, length)
    )
