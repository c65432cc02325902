"""What fsspec opens: memory://, sftp://, hdfs:// and whatever else is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from shardwright.remote.address import without_secrets
from shardwright.remote.installed import imported
from shardwright.remote.store import ChangedObjectError, DeniedError, Listing, StoredObject, StoreError


class FilesystemStore:
    """A folder of one of fsspec's file systems. Credentials are found by its own rules."""

    lists = True

    def __init__(self, address: str) -> None:
        fsspec = imported("fsspec", f"{without_secrets(address)}: reading it")
        self.address = without_secrets(address)
        try:
            self._files, self._root = fsspec.core.url_to_fs(address)
        except ImportError as error:
            raise ImportError(f"{self.address}: fsspec cannot open it: {error}") from None
        except ValueError as error:
            raise ValueError(
                f"{self.address}: no library opens such an address ({without_secrets(str(error))})"
            ) from None

    def head(self, name: str) -> StoredObject:
        with self._naming(name):
            self._files.invalidate_cache()
            info = self._files.info(self._path(name))
            if info["type"] != "file":
                raise FileNotFoundError
            return _object_of(name, info)

    def listed(self, folder: str = "") -> Listing:
        listing = Listing()
        try:
            with self._naming(folder):
                self._files.invalidate_cache()
                found = self._files.ls(self._path(folder), detail=True)
        except FileNotFoundError:
            return listing
        for info in found:
            last = info["name"].rstrip("/").rpartition("/")[2]
            name = f"{folder}/{last}" if folder else last
            if info["type"] == "directory":
                listing.folders.append(name)
            elif info["name"].rstrip("/") != self._path(folder).rstrip("/"):
                listing.objects.append(self.head(name))  # a listing may tell other versions than a look
        return listing

    def get(
        self, name: str, begin: int, length: int, version: str = "", at_once: bool = False
    ) -> Iterator[Any]:
        if version and self.head(name).version != version:
            raise ChangedObjectError(
                f"{self.address}/{name}: the object is not the one that was looked at first"
            )
        with self._naming(name):
            yield self._files.cat_file(self._path(name), start=begin, end=begin + length)

    def plain_url(self, name: str) -> tuple[str, int]:
        return "", 0

    def put(self, name: str, data: Any, only_new: bool = False, only_over: str = "") -> StoredObject:
        with self._naming(name):
            if only_over and self.head(name).version != only_over:
                raise ChangedObjectError(
                    f"{self.address}/{name}: the object is not the one that was looked at first"
                )
            if only_new and self._files.exists(self._path(name)):
                raise FileExistsError
            self._files.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(self._path(name), bytes(data))
        return self.head(name)

    def open_upload(self, name: str, part_bytes: int = 16 << 20) -> FileUpload:
        return FileUpload(self, name, part_bytes)

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError), self._naming(name):
            self._files.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}" if name else self._root

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        where = f"{self.address}/{name}".rstrip("/")
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError:
            raise FileNotFoundError(f"{where}: there is no such object") from None
        except FileExistsError:
            raise FileExistsError(f"{where}: there is such an object already") from None
        except PermissionError as error:
            raise DeniedError(f"{where}: access was denied ({error})") from None
        except Exception as error:
            may_pass = isinstance(error, (OSError, TimeoutError))
            raise StoreError(f"{where}: {type(error).__name__}: {error}", may_pass) from None


class FileUpload:
    """A file that fsspec writes; those of object stores are there once they are closed."""

    def __init__(self, store: FilesystemStore, name: str, part_bytes: int) -> None:
        self._in, self._name = store, name
        with store._naming(name):
            store._files.makedirs(store._path(name).rpartition("/")[0], exist_ok=True)
            self._file: Any = store._files.open(store._path(name), "wb", block_size=part_bytes)

    def write(self, data: Any) -> None:
        with self._in._naming(self._name):
            self._file.write(bytes(data))

    def finish(self) -> StoredObject:
        with self._in._naming(self._name):
            self._file.close()
        return self._in.head(self._name)

    def abandon(self) -> None:
        with suppress(Exception):
            self._file.discard()
        with suppress(Exception):
            self._file.forced = (
                True  # else a buffered file is published by its closing, which comes with its end
            )
            self._file.close()
        with suppress(Exception):
            self._in.delete(self._name)  # many file systems show a file from its first byte on


def _object_of(name: str, info: Any) -> StoredObject:
    stamps = (info.get(key) for key in ("ETag", "etag", "md5", "mtime", "LastModified", "created"))
    version = next((str(stamp) for stamp in stamps if stamp is not None), "")
    return StoredObject(name, int(info["size"]), version)
