"""A folder of this machine that stands for one of a store, so that what holds for folders holds for objects."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shardwright import _core
from shardwright.remote.address import masked
from shardwright.remote.reading import arriving, tried
from shardwright.remote.store import Store, StoredObject, store_and_name

#: Requests for small objects that are under way at a time.
_AT_ONCE = 16

#: Objects by which the rules tell what a checkpoint is, read whole.
_LISTS = (_core.manifest_name, _core.checksums_name, "model.safetensors.index.json", ".metadata")

#: What is larger and of no known name is nothing that lies beside weights.
_MOST_BYTES_BESIDE = 64 << 20

#: Folders that belong to a checkpoint.
_FOLDERS_BESIDE = ("additional_chat_templates",)

_WEIGHTS = (".safetensors", ".distcp", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".npz")


class Shadow:
    """``path`` has a file for each object below the address: of its size, with the contents of those that are read to
    tell what the folder holds, and holes in place of weights. What is done to it is then done to the objects.

    ``objects`` are those that were there, by their names below the address. What lies in the folder of saves under way
    is left out; ``saving`` has it.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.store, self.folder = store_and_name(address)
        self.path = Path(tempfile.mkdtemp(prefix="shardwright-"))
        self.objects: dict[str, StoredObject] = {}
        self.saving: list[StoredObject] = []
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

    def changes(self) -> tuple[list[str], list[str]]:
        """Names of the files that were written since, and of those that are gone, each sorted."""
        now = self._looks()
        written = [name for name, look in now.items() if self._before.get(name) != look]
        return sorted(written), sorted(set(self._before) - set(now))

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Errors name the address in place of the folder of this machine."""
        try:
            yield
        except (OSError, ValueError, _core.PlanError) as error:
            shown = masked(self.address)

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
        holds_lists = [name for name in self.objects if os.path.basename(name) in _LISTS]
        holds_weights = any(name.endswith(".safetensors") for name in self.objects)
        if holds_lists or holds_weights:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(self._fetch, self.objects))
        for relative, one in self.objects.items():
            if one.modified:
                os.utime(self.path / relative, (one.modified, one.modified))

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

    def _fetch(self, relative: str) -> None:
        found = self.objects[relative]
        if os.path.basename(relative) in _LISTS:
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
