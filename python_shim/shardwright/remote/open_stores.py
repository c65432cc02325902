"""The stores that addresses mean, each opened once."""

from __future__ import annotations

import threading
from typing import Literal

from shardwright import _core
from shardwright.remote.address import root_and_key, scheme_and_rest, unmangled
from shardwright.remote.store import Store

_open: dict[str, Store] = {}
_lock = threading.Lock()


def open_store(address: str) -> Store:
    """The store at an address; names are relative to that. Stays open, and is shared, while the process runs.

    s3, gs, az (and their other names), http and https are opened by obstore, hf by huggingface_hub, the rest by fsspec.

    Raises:
        ImportError: the library is not installed; says how to install it.
        ValueError: no library knows such an address.
    """
    with _lock:
        store = _open.get(address)
        if store is None:
            store = _open[address] = _opened(address)
        return store


def is_opened_by_some(address: str) -> bool:
    """Whether a library opens such addresses; whether it is installed, and what lies there, is not asked."""
    scheme, _ = scheme_and_rest(unmangled(address))
    if _library_of(scheme) != "fsspec":
        return True
    try:
        import fsspec
    except ImportError:
        return False
    return scheme in fsspec.available_protocols()


def reopen_store(address: str) -> None:
    """Forgets an open store, so that credentials are looked up anew when it is opened again."""
    with _lock:
        _open.pop(address, None)
    _core.forget_plain_urls()


def store_and_name(address: str) -> tuple[Store, str]:
    """For an address of an object or a folder: the store of its bucket, and its name in there."""
    root, key = root_and_key(address)
    return open_store(root), key


def _library_of(scheme: str) -> Literal["huggingface_hub", "obstore", "fsspec"]:
    """Which opens such addresses; the last is asked for all that the others do not."""
    from shardwright.remote.object_store import SCHEMES

    if scheme == "hf":
        return "huggingface_hub"
    return "obstore" if scheme in SCHEMES else "fsspec"


def _opened(address: str) -> Store:
    library = _library_of(scheme_and_rest(address)[0])
    if library == "huggingface_hub":
        from shardwright.remote.hub import HubStore

        return HubStore(address)
    if library == "obstore":
        from shardwright.remote.object_store import ObjectStore

        return ObjectStore(address)
    from shardwright.remote.filesystem import FilesystemStore

    return FilesystemStore(address)
