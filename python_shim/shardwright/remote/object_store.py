"""S3, Google Cloud Storage, Azure and plain HTTP, by obstore."""

from __future__ import annotations

import os
import queue
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from shardwright.remote.address import scheme_and_rest, without_secrets
from shardwright.remote.installed import imported
from shardwright.remote.store import (
    ChangedObjectError,
    DeniedError,
    Listing,
    StoredObject,
    StoreError,
    is_same_version,
)

#: Those that obstore opens.
SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "az", "azure", "adl", "abfs", "abfss", "http", "https"})

#: Seconds in which a server must send something.
STALL_SECONDS = 20

#: And in which one that is written to must have taken a part, of which a few leave at a time.
WRITING_STALL_SECONDS = 120

#: A request whose bytes come in one buffer cannot be ended before it has them; after so many seconds it is given up.
AT_ONCE_SECONDS = 2

#: How often what is written is tried again, with pauses of up to 15 s between.
WRITING_RETRIES = 10

#: For so long an address is signed, and for so long used: clocks differ, and what has begun must end.
SIGNED_SECONDS = 3600
USED_SECONDS = 2700

#: Parts of one object that are on their way at a time.
PARTS_AT_ONCE = 8

#: What a checkpoint's folder can begin with, where a server lists nothing.
KNOWN_NAMES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "config.json",
    "shardwright.manifest",
    "shardwright.checksums",
    ".metadata",
    "adapter_config.json",
    "adapter_model.safetensors",
)

_STATUS = re.compile(
    r"status code: (\d{3})|\b(\d{3}) (?:Too Many|Service Unavail|Forbidden|Unauthorized|Slow)"
)
_NO_RANGE = re.compile("non-partial response|Range request not supported")
_PLAIN_NAME = re.compile(r"[\w./~-]*", re.ASCII)  # is written in an address as it is
_CHUNK_BYTES = 256 << 10  # small enough to be copied from the cache, as measured


class ObjectStore:
    """A bucket, or a folder of one. Credentials, region and endpoint are found by obstore's own rules: environment
    variables (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, AWS_REGION, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_…), then
    the machine's role; for S3 what boto3 finds, such as a profile, where that is installed."""

    def __init__(self, address: str) -> None:
        self._obstore = imported("obstore", f"{without_secrets(address)}: reading it")
        from obstore.store import HTTPStore, from_url

        self.address = without_secrets(address)
        self.lists = not address.startswith("http")
        scheme, rest = scheme_and_rest(address)
        options: dict[str, Any] = {
            # The first is for each read; the time of a whole request says nothing of a slow line.
            "client_options": {
                "allow_http": True,
                "read_timeout": timedelta(seconds=STALL_SECONDS),
                "timeout": timedelta(hours=1),
            },
            "retry_config": {"max_retries": 0},  # retries.py does, and counts
        }
        # What is written is tried again by obstore, as only that knows the parts of an upload.
        writing: dict[str, Any] = {
            "client_options": options["client_options"]
            | {"read_timeout": timedelta(seconds=WRITING_STALL_SECONDS)},
            "retry_config": {
                "max_retries": WRITING_RETRIES,
                "retry_timeout": timedelta(seconds=180),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=15),
                    "base": 2,
                },
            },
        }
        at_once: dict[str, Any] = {
            "client_options": options["client_options"] | {"timeout": timedelta(seconds=AT_ONCE_SECONDS)}
        }
        self._signs = scheme in ("s3", "s3a") and not os.environ.get("AWS_SKIP_SIGNATURE")
        self._http = f"http://{rest}" if scheme == "http" and "@" not in rest else ""
        if scheme in ("s3", "s3a"):
            options |= _s3_options()
        scheme = {"gcs": "gs", "azure": "az"}.get(scheme, scheme)
        self._takes_generations = scheme == "gs"
        # from_url takes https:// addresses of Amazon's and Azure's hosts for buckets, and looks for credentials.
        opened: Any = from_url if self.lists else HTTPStore.from_url
        try:
            self._store = opened(f"{scheme}://{rest}", **options)
            self._writing = opened(f"{scheme}://{rest}", **options | writing)
            self._at_once = opened(f"{scheme}://{rest}", **options | at_once)
        except Exception as error:
            cause = str(error).partition("\n")[0]  # what follows is for obstore's developers
            raise ValueError(f"{self.address}: cannot open this store: {without_secrets(cause)}") from None

    def head(self, name: str) -> StoredObject:
        try:
            return self._head(name)
        except DeniedError:
            if name.endswith(".safetensors") or not self._denies_what_is_absent(name):
                raise
        raise FileNotFoundError(f"{self.address}/{name}: there is no such object, or it is denied")

    def _head(self, name: str) -> StoredObject:
        with self._naming(name):
            return _object_of(name, self._obstore.head(self._store, name))

    def listed(self, folder: str = "") -> Listing:
        if not self.lists:
            objects, denied = self._probed(folder)
            if denied is not None and not objects and not self._denies_what_is_absent(folder):
                raise denied
            return Listing(objects)
        with self._naming(folder):
            found = self._obstore.list_with_delimiter(self._store, folder or None)
        listing = Listing(folders=[prefix.rstrip("/") for prefix in found["common_prefixes"]])
        for meta in found["objects"]:
            if meta["path"].rstrip("/") != folder.rstrip("/"):  # a folder's own marker
                listing.objects.append(_object_of(meta["path"], meta))
        return listing

    def get(
        self, name: str, begin: int, length: int, version: str = "", at_once: bool = False
    ) -> Iterator[Any]:
        asked: dict[str, Any] = {"range": (begin, begin + length)}
        if version.startswith('"'):  # a strong etag; others are compared with what comes
            asked["if_match"] = version
        with self._naming(name):
            result = self._answer_to(name, asked, self._at_once if at_once else self._store)
            found = _version_of(result.meta)
            if version and not is_same_version(found, version):
                raise ChangedObjectError(f"{self.address}/{name}: expected version {version}, found {found}")
            if result.range[0] != begin:
                raise self._knows_no_ranges(name, asked)
            # All of it costs no copy of ours, and Python nothing for each chunk.
            chunks = iter([result.bytes()] if at_once else result.stream(min_chunk_size=_CHUNK_BYTES))
        while True:
            with self._naming(name):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def _answer_to(self, name: str, asked: dict[str, Any], store: Any) -> Any:
        """Some servers answer a range that is all of an object without saying that it is a range, which obstore
        refuses: they are asked for the object."""
        try:
            return self._obstore.get(store, name, options=asked)
        except Exception as error:
            if not _NO_RANGE.search(str(error)):
                raise
        without_range = {option: value for option, value in asked.items() if option != "range"}
        result = self._obstore.get(store, name, options=without_range)
        if asked["range"] != (0, result.meta["size"]):
            raise self._knows_no_ranges(name, asked)
        return result

    def _knows_no_ranges(self, name: str, asked: dict[str, Any]) -> StoreError:
        begin, end = asked["range"]
        return StoreError(
            f"{self.address}/{name}: asked for the bytes from {begin} to {end}, the server sent others: it does not "
            "know ranges"
        )

    def plain_url(self, name: str) -> tuple[str, int]:
        if self._http and _PLAIN_NAME.fullmatch(name):
            return f"{self._http}/{name}", USED_SECONDS
        if not self._signs:
            return "", 0
        signed = self._obstore.sign(self._store, "GET", name, expires_in=timedelta(seconds=SIGNED_SECONDS))
        return signed, USED_SECONDS

    def put(self, name: str, data: Any, only_new: bool = False, only_over: str = "") -> StoredObject:
        how: dict[str, Any] = {"use_multipart": False}
        if only_over:
            how = {"mode": self._condition_on(name, only_over)}
        elif only_new:
            how = {"mode": "create"}
        with self._naming(name, "cannot write there: there is no such bucket"):
            done = self._obstore.put(self._writing, name, data, **how)
        return StoredObject(name, memoryview(data).nbytes, done["e_tag"] or "")

    def _condition_on(self, name: str, version: str) -> dict[str, str]:
        """Google's store has conditions on generations alone, which its listings do not tell; an etag without quotes is
        asked for as answers have it."""
        if not self._takes_generations and version.startswith('"'):
            return {"e_tag": version}
        with self._naming(name):
            found = self._obstore.head(self._store, name)
        if not is_same_version(_version_of(found), version):
            raise ChangedObjectError(
                f"{self.address}/{name}: expected version {version}, found {_version_of(found)}"
            )
        if not self._takes_generations:
            return {"e_tag": _version_of(found)}
        return {"e_tag": version, "version": found["version"]}

    def open_upload(self, name: str, part_bytes: int = 16 << 20) -> ObjectUpload:
        return ObjectUpload(self, name, part_bytes)

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError), self._naming(name):
            self._obstore.delete(self._writing, name)

    def _denies_what_is_absent(self, name: str) -> bool:
        """As public buckets do by HTTP, to those who may not list them: true if not all beside it is denied."""
        return not self.lists and bool(self._probed(name.rpartition("/")[0])[0])

    def _probed(self, folder: str) -> tuple[list[StoredObject], DeniedError | None]:
        """A server of plain HTTP lists nothing: it is asked for the files that a checkpoint can begin with. Returns
        those that are there, and the denial of another."""

        def find(known: str) -> StoredObject | DeniedError | None:
            try:
                return self._head(f"{folder}/{known}" if folder else known)
            except FileNotFoundError:
                return None
            except DeniedError as denied:
                return denied

        with ThreadPoolExecutor(len(KNOWN_NAMES)) as pool:
            found = list(pool.map(find, KNOWN_NAMES))
        denied = next((one for one in found if isinstance(one, DeniedError)), None)
        return [one for one in found if isinstance(one, StoredObject)], denied

    @contextmanager
    def _naming(self, name: str, absent: str = "there is no such object") -> Iterator[None]:
        """Turns what obstore raises into errors that say of which object, and whether trying again can help."""
        where = f"{self.address}/{name}".rstrip("/")
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError:
            raise FileNotFoundError(f"{where}: {absent}") from None
        except Exception as error:
            raise _told(error, where) from None


class _AbandonedError(Exception):
    pass


class ObjectUpload:
    """A multipart upload: parts leave while others are written. obstore runs it in a thread that takes the parts from
    a queue, and aborts it, so that the store forgets the parts, where taking one fails."""

    def __init__(self, store: ObjectStore, name: str, part_bytes: int) -> None:
        self._in, self._name, self._size = store, name, 0
        self._part_bytes = part_bytes
        self._parts: queue.Queue[Any] = queue.Queue(1)
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"uploading {name}", daemon=True)
        self._thread.start()

    def write(self, data: Any) -> None:
        self._size += memoryview(data).nbytes
        self._give(data)

    def finish(self) -> StoredObject:
        self._give(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        found = self._in.head(self._name)
        if found.size != self._size:
            where = f"{self._in.address}/{self._name}"
            raise ChangedObjectError(f"{where}: {self._size} bytes were written, the store has {found.size}")
        return found

    def abandon(self) -> None:
        with suppress(Exception):
            self._give(_AbandonedError())
        self._thread.join(timeout=60)

    def _run(self) -> None:
        try:
            with self._in._naming(self._name, "cannot write there: there is no such bucket"):
                self._in._obstore.put(
                    self._in._writing,
                    self._name,
                    self._given(),
                    use_multipart=True,
                    chunk_size=self._part_bytes,
                    max_concurrency=PARTS_AT_ONCE,
                )
        except Exception as error:
            self._failure = error

    def _given(self) -> Iterator[Any]:
        while (part := self._parts.get()) is not None:
            if isinstance(part, _AbandonedError):
                raise part
            yield part

    def _give(self, part: Any) -> None:
        """Waits until there is room. Raises why the upload has failed."""
        while self._thread.is_alive():
            with suppress(queue.Full):
                self._parts.put(part, timeout=0.5)
                return
        if self._failure is not None:
            raise self._failure


def _s3_options() -> dict[str, Any]:
    """boto3, where it is installed, knows profiles and single sign-on, which obstore does not."""
    if os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_SKIP_SIGNATURE"):
        return {}
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return {}
    session = boto3.Session()
    if session.get_credentials() is None:
        return {}
    return {"credential_provider": Boto3CredentialProvider(session)}


def _object_of(name: str, meta: Any) -> StoredObject:
    changed = meta.get("last_modified")
    modified = changed.timestamp() if changed is not None else 0.0
    return StoredObject(name, meta["size"], _version_of(meta), modified)


def _version_of(meta: Any) -> str:
    changed = meta.get("last_modified")
    stamp = f"of {changed.isoformat()}" if changed is not None else ""
    tag: str = meta.get("e_tag") or ""
    return tag or stamp


def _told(error: Exception, where: str) -> Exception:
    from obstore import exceptions

    text = without_secrets(str(error))
    found = _STATUS.search(text)
    status = int(found[1] or found[2]) if found else 0
    cause = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    if isinstance(error, exceptions.AlreadyExistsError):
        return FileExistsError(f"{where}: there is such an object already")
    if isinstance(error, exceptions.PreconditionError) or status == 412:
        return ChangedObjectError(f"{where}: the object is not the one that was looked at first ({cause})")
    denied = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
    if isinstance(error, denied) or status in (401, 403):
        return DeniedError(
            f"{where}: access was denied; the credentials are missing, expired or not good for it ({cause})"
        )
    if status == 404:
        return FileNotFoundError(f"{where}: there is no such bucket")
    may_pass = isinstance(error, exceptions.GenericError) and (status in (0, 408, 425, 429) or status >= 500)
    return StoreError(f"{where}: {cause}", may_pass)
