"""Files that are uploaded while they are written: the bytes go from staging to the store, a part at a time."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from shardwright.remote.object_store import PARTS_AT_ONCE
from shardwright.remote.open_stores import store_and_name
from shardwright.remote.store import StoredObject, Upload

#: Objects whose last part has been given and that may still be on their way.
_MOST_ENDING = 16


class Sending:
    """The objects that one rank of a save uploads below an address.

    ``send`` takes the parts of each object in order (storage/files/upload.h), from any thread, and waits while much is
    under way. What is not finished leaves nothing in the store.
    """

    def __init__(self, address: str) -> None:
        self._store, self._folder = store_and_name(address)
        self._uploads: dict[str, Upload] = {}
        self._pool = ThreadPoolExecutor(_MOST_ENDING, "uploading")
        self._room = threading.BoundedSemaphore(_MOST_ENDING)
        self._ending: dict[str, Future[StoredObject]] = {}
        self._lock = threading.Lock()
        self._peak_bytes = 0  # of objects of several parts
        self._small_files, self._small_bytes = 0, 0  # of one part: how many, and the largest

    def send(self, name: str, file_bytes: int, begin: int, part: Any) -> None:
        """Takes bytes from ``begin`` on of the file of that name."""
        is_last = begin + len(part) == file_bytes
        if begin == 0 and is_last:
            with self._lock:
                self._small_files += 1
                self._small_bytes = max(self._small_bytes, file_bytes)
            self._end(name, lambda: self._store.put(self._name(name), part))
            return
        if begin == 0:
            upload = self._store.open_upload(self._name(name), len(part))
            with self._lock:
                # One is filled while the others leave, and one waits in between.
                parts = min(PARTS_AT_ONCE + 2, -(-file_bytes // len(part)))
                self._peak_bytes = max(self._peak_bytes, parts * len(part))
                self._uploads[name] = upload
        upload = self._uploads[name]
        upload.write(part)
        if is_last:
            self._end(name, upload.finish)

    @property
    def peak_bytes(self) -> int:
        """What parts that are on their way may have taken at a time, where it was most."""
        return self._peak_bytes + min(_MOST_ENDING, self._small_files) * self._small_bytes

    def __enter__(self) -> Sending:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.abandon()

    def finish(self) -> None:
        """Returns once all objects are there. Raises why one is not."""
        for name, ending in self._ending.items():
            ending.result()
            self._uploads.pop(name, None)
        self._pool.shutdown()

    def abandon(self) -> None:
        """Ends all uploads. Those that have been finished are there; whoever began the save deletes them."""
        for upload in list(self._uploads.values()):
            with suppress(Exception):
                upload.abandon()
        self._uploads.clear()
        self._pool.shutdown(cancel_futures=True)

    def _name(self, name: str) -> str:
        return f"{self._folder}/{name}" if self._folder else name

    def _end(self, name: str, run: Any) -> None:
        self._room.acquire()

        def ended() -> StoredObject:
            try:
                done: StoredObject = run()
                return done
            finally:
                self._room.release()

        self._ending[name] = self._pool.submit(ended)
