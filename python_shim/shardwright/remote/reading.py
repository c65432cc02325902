"""Objects for the engine: ranges of them, tried again while that may help, and resumed in the middle; and small ones
that it writes."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address, ip_network
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from shardwright import _core
from shardwright.remote import object_store
from shardwright.remote.address import address_of, is_address, root_and_key, without_secrets
from shardwright.remote.open_stores import open_store, reopen_store, store_and_name
from shardwright.remote.store import DeniedError, StoredObject, StoreError

T = TypeVar("T")

#: Seconds without a byte after which a request is given up, all its tries together.
PATIENCE = "SHARDWRIGHT_REMOTE_PATIENCE"
_DEFAULT_PATIENCE = 60.0

#: The same for a store that has never answered: a wrong address is more likely than a pause.
_FIRST_PATIENCE = 10.0

_FIRST_PAUSE = 0.1  # seconds; twice as long after each try
_LONGEST_PAUSE = 5.0
_NAP = 0.05  # how soon a wait notices that it is not needed any more

#: A request that takes no longer is worth asking for anew where it breaks off, and nobody waits long for its end.
_QUICK_SECONDS = 0.5

#: What is longer would take as much memory again; the engine's requests are no longer, but of what it receives itself.
_MOST_AT_ONCE = 9 << 20
_LARGE_REQUEST = 1 << 20  # bytes, from which on a request tells how quick its store is

_answered: set[str] = set()  # roots of stores
_quick: set[str] = set()  # those whose last large request was
_connected = threading.Lock()
_is_connected = False


def connect() -> None:
    """Tells the engine how objects are reached. Before the first address, once."""
    global _is_connected
    with _connected:
        if not _is_connected:
            _core.set_remote_calls(_list, _head, arriving, _plain_url, _put, _remove)
            _is_connected = True


def patience() -> float:
    """Seconds, of the environment variable, or 60.

    Raises:
        ValueError: it is no number.
    """
    text = os.environ.get(PATIENCE, "")
    try:
        seconds = float(text) if text else _DEFAULT_PATIENCE
    except ValueError:
        raise ValueError(f"{PATIENCE} is {text!r}; expected seconds, such as 60") from None
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{PATIENCE} is {text!r}; expected seconds, such as 60")
    return seconds


class _Tries:
    """When to try again: pauses that grow, until nothing has come for as long as patience lasts."""

    def __init__(self, address: str) -> None:
        self._address, self._root, self._patience = address, root_and_key(address)[0], patience()
        self._count, self._renewed = 0, False
        self._began = time.monotonic()

    def progressed(self) -> None:
        _answered.add(self._root)
        self.begin_anew()

    def begin_anew(self) -> None:
        self._count, self._began = 0, time.monotonic()

    def pause_after(self, error: StoreError) -> float:
        """Seconds to wait. Raises the error where trying again is no use, or patience has run out."""
        if isinstance(error, DeniedError) and not self._renewed:
            self._renewed = True  # credentials and signed addresses expire: once they are looked up anew
            reopen_store(self._root)
            return 0.0
        if not error.may_pass:
            raise error
        self._count += 1
        waited = time.monotonic() - self._began
        if waited >= (self._patience if self._root in _answered else min(self._patience, _FIRST_PATIENCE)):
            raise StoreError(
                f"{error}; given up after {self._count} tries and {waited:.0f} s without a byte "
                f"({PATIENCE} says how long to wait)"
            ) from None
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (self._count - 1))
        return float(random.uniform(longest / 2, longest))


def arriving(address: str, version: str, begin: int, count: int, in_pieces: bool = False) -> Iterator[Any]:
    """The bytes [begin, begin + count) of an object, as buffers. Those that have come are not asked for again.

    An empty buffer comes now and then while it waits, so that whoever takes them can end it. Of a quick store they
    come in one buffer, unless they are wanted ``in_pieces``, of which few are in memory.
    """
    tries, done, root, broke_off = _Tries(address), 0, root_and_key(address)[0], False
    while done < count:
        at_once = not in_pieces and root in _quick and not broke_off and count - done <= _MOST_AT_ONCE
        began, before = time.monotonic(), done
        try:
            store, name = store_and_name(address)
            for buffer in store.get(name, begin + done, count - done, version, at_once):
                done += len(buffer)
                if done > count:
                    raise StoreError(
                        f"{without_secrets(address)}: asked for {count} bytes, the server sent {done}"
                    )
                tries.progressed()
                if done == count and done - before >= _LARGE_REQUEST:
                    _note(root, time.monotonic() - began)
                yield buffer
            if done < count:
                raise StoreError(
                    f"{without_secrets(address)}: asked for {count} bytes from {begin} on, the server sent {done}",
                    True,
                )
        except StoreError as error:
            _quick.discard(root)
            broke_off = True
            if at_once:
                tries.begin_anew()  # bytes may have come until just now
            until = time.monotonic() + tries.pause_after(error)
            while (left := until - time.monotonic()) > 0:
                time.sleep(min(_NAP, left))
                yield b""


def _plain_url(address: str) -> tuple[str, int, int]:
    """Where the engine may read the object by plain HTTP, or an empty text; seconds for which it may, and seconds in
    which the server must send something."""
    with suppress(Exception):  # `arriving` says what is wrong
        store, name = store_and_name(address)
        url, seconds = store.plain_url(name)
        if url.startswith("http://") and not _leads_to_proxy(url):
            return url, seconds, max(1, int(min(object_store.STALL_SECONDS, patience())))
    return "", 0, 0


def _leads_to_proxy(url: str) -> bool:
    proxies, parts = getproxies(), urlsplit(url)
    if not proxies.keys() & {"http", "all"} or proxy_bypass(parts.netloc):
        return False
    return not _is_within(parts.hostname or "", proxies.get("no", ""))


def _is_within(host: str, no_proxy: str) -> bool:
    """Whether a network of no_proxy, such as 10.0.0.0/8, has the address: urllib knows names there, obstore both."""
    with suppress(ValueError):
        address = ip_address(host)
        for network in no_proxy.split(","):
            with suppress(ValueError):
                if address in ip_network(network.strip(), strict=False):
                    return True
    return False


def _note(root: str, seconds: float) -> None:
    if seconds <= _QUICK_SECONDS:
        _quick.add(root)
    else:
        _quick.discard(root)


def tried(address: str, act: Callable[[], T]) -> T:
    """What ``act`` gives, again while that may help."""
    tries = _Tries(address)
    while True:
        try:
            found = act()
            tries.progressed()
            return found
        except StoreError as error:
            time.sleep(tries.pause_after(error))


def look_at(address: str) -> StoredObject:
    """The object's size and version now."""

    def look() -> StoredObject:
        store, name = store_and_name(address)
        return store.head(name)

    return tried(address, look)


Entry = tuple[
    str, int, str, bool, float
]  # name, bytes, version, whether it is a folder, seconds since 1970 or 0

_held = threading.local()


@contextmanager
def looking_once(path: str | os.PathLike[str]) -> Iterator[None]:
    """Has this thread list the folder at an address once, and see from that what lies directly in it: what a load asks
    of a folder before it reads is then one request, and of one moment."""
    if getattr(_held, "folder", None) is not None or not is_address(path):
        yield
        return
    _held.folder, _held.entries = address_of(path), None
    try:
        yield
    finally:
        _held.folder = _held.entries = None


def _entries_of_held() -> dict[str, Entry]:
    if _held.entries is None:
        _held.entries = {entry[0]: entry for entry in _listed(_held.folder)}
    found: dict[str, Entry] = _held.entries
    return found


def _in_held(address: str) -> str | None:
    """The name of what lies directly in the folder that is looked at once; None if this does not, or none is."""
    folder: str | None = getattr(_held, "folder", None)
    if folder is None or address.rpartition("/")[0] != folder:
        return None
    return address.rpartition("/")[2] if open_store(root_and_key(folder)[0]).lists else None


def _head(address: str) -> Entry:
    name = _in_held(address)
    if name is None:
        found = look_at(address)
        return _entry_of(found.name, found)
    entry = _entries_of_held().get(name)
    if entry is None or entry[3]:
        raise FileNotFoundError(f"{without_secrets(address)}: there is no such object")
    return entry


def _list(folder: str) -> list[Entry]:
    if folder == getattr(_held, "folder", None):
        return list(_entries_of_held().values())
    name = _in_held(folder)
    if name is not None and name not in _entries_of_held():
        return []
    return _listed(folder)


def _listed(folder: str) -> list[Entry]:
    def look() -> list[Entry]:
        store, name = store_and_name(folder)
        listing = store.listed(name)
        start = len(name) + 1 if name else 0
        objects = [_entry_of(one.name[start:], one) for one in listing.objects]
        return objects + [(one[start:], 0, "", True, 0.0) for one in listing.folders]

    return tried(folder, look)


def _entry_of(name: str, found: StoredObject) -> Entry:
    return name, found.size, found.version, False, found.modified


def _put(address: str, data: bytes, only_new: bool, only_over: str) -> Entry:
    store, name = store_and_name(address)
    return _entry_of(name, store.put(name, data, only_new, only_over))


def _remove(address: str) -> None:
    store, name = store_and_name(address)
    store.delete(name)
