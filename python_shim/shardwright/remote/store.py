"""What every store can do, and what all raise. `open_stores` finds the one that an address means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from errno import ESTALE
from typing import Any, Protocol

from shardwright.remote.address import without_secrets


class StoreError(OSError):
    """A store refuses or fails. ``may_pass`` says whether trying again can help."""

    def __init__(self, message: str, may_pass: bool = False) -> None:
        super().__init__(without_secrets(message))
        self.may_pass = may_pass


class ChangedObjectError(StoreError):
    """An object is no longer the one that was looked at: another version, another length, or gone."""

    errno = ESTALE  #: by which the engine knows it


class DeniedError(StoreError, PermissionError):
    """Credentials are missing, expired, or not good for it."""


@dataclass(frozen=True)
class StoredObject:
    """``name`` is relative to the store, ``size`` in bytes. ``version`` changes when the object does: its etag, or what
    else the store tells; empty where it tells nothing. ``modified`` is in seconds since 1970; 0: not told."""

    name: str
    size: int
    version: str = ""
    modified: float = 0.0


def is_same_version(version: str, other: str) -> bool:
    """Listings of some servers leave out the quotes of etags that answers have."""
    return version.strip('"') == other.strip('"')


@dataclass
class Listing:
    """What lies directly below a folder. Names are relative to the store; those of folders have no slash at the end."""

    objects: list[StoredObject] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


class Upload(Protocol):
    """An object that is being written, in parts. It is there, whole, once `finish` has returned, and not before."""

    def write(self, data: Any) -> None:
        """Appends bytes (any contiguous buffer), which nobody changes from then on. Waits while much is under way."""

    def finish(self) -> StoredObject:
        """Publishes the object."""

    def abandon(self) -> None:
        """Leaves nothing of it, as far as the store can. Never raises."""


class Store(Protocol):
    """Names are relative to ``address`` and have no slash before or after. Any number of threads may call.

    Reads are not tried again here, see `retries`; what is written is, as far as a store can. All raise
    FileNotFoundError for what is not there, `DeniedError`, `ChangedObjectError` and `StoreError`, each naming the
    object. No message holds a query or a password.
    """

    address: str
    lists: bool  #: what there is; else `listed` has only what it knows to ask for

    def head(self, name: str) -> StoredObject: ...

    def listed(self, folder: str = "") -> Listing:
        """Empty where nothing has names below the folder."""

    def get(
        self, name: str, begin: int, length: int, version: str = "", at_once: bool = False
    ) -> Iterator[Any]:
        """The bytes [begin, begin + length), in buffers as they arrive. Fewer come where the object ends before.

        With a version: of that version alone, otherwise `ChangedObjectError`. ``at_once``: in one buffer where that
        takes less work; what has come is lost where it breaks off.
        """

    def plain_url(self, name: str) -> tuple[str, int]:
        """Where the object is had by HTTP without TLS, and for how many seconds; an empty text where it is not.

        It may be signed: it is a secret.
        """

    def put(self, name: str, data: Any, only_new: bool = False, only_over: str = "") -> StoredObject:
        """Writes an object at once. ``only_new``: raises FileExistsError where there is one. ``only_over``: raises
        ChangedObjectError where that version is no longer there."""

    def open_upload(self, name: str, part_bytes: int = 16 << 20) -> Upload: ...

    def delete(self, name: str) -> None:
        """Deletes an object. One that is not there is deleted already."""
