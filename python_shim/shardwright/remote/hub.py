"""The Hugging Face Hub: hf://organisation/name@revision, by huggingface_hub."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn
from urllib.parse import urlsplit

from shardwright.remote.address import scheme_and_rest, without_secrets
from shardwright.remote.installed import imported
from shardwright.remote.store import ChangedObjectError, DeniedError, Listing, StoredObject, StoreError

_CHUNK_BYTES = 256 << 10


class HubStore:
    """A repository at one commit, which is the version of each file: the revision is looked up once.

    Tokens are found by huggingface_hub's own rules.
    """

    lists = True

    def __init__(self, address: str) -> None:
        self._hub = imported("huggingface_hub", f"{without_secrets(address)}: reading it")
        for part in ("constants", "errors", "hf_api", "utils"):
            imported(f"huggingface_hub.{part}", f"{without_secrets(address)}: reading it")
        _, rest = scheme_and_rest(address)
        self._kind = "model"
        for kind in ("datasets", "spaces"):
            if rest.startswith(kind + "/"):
                self._kind, rest = kind[:-1], rest[len(kind) + 1 :]
        repository, _, revision = rest.partition("@")
        if repository.count("/") != 1:
            raise ValueError(
                f"{without_secrets(address)}: expected hf://organisation/name or hf://organisation/name@revision"
            )
        self.address, self._repository = without_secrets(address), repository
        with self._naming(""):
            info = self._hub.HfApi().repo_info(repository, revision=revision or None, repo_type=self._kind)
        self._commit: str = info.sha
        self._lock = threading.Lock()
        self._places: dict[str, tuple[str, StoredObject]] = {}

    def head(self, name: str) -> StoredObject:
        return self._place_of(name)[1]

    def listed(self, folder: str = "") -> Listing:
        listing = Listing()
        with suppress(FileNotFoundError), self._naming(folder):
            found = self._hub.HfApi().list_repo_tree(
                self._repository, folder or None, revision=self._commit, repo_type=self._kind
            )
            for entry in found:
                if isinstance(entry, self._hub.hf_api.RepoFolder):
                    listing.folders.append(entry.path)
                else:
                    listing.objects.append(StoredObject(entry.path, entry.size, self._commit))
        return listing

    def get(
        self, name: str, begin: int, length: int, version: str = "", at_once: bool = False
    ) -> Iterator[Any]:
        place, _ = self._place_of(name)
        if version and version != self._commit:
            raise ChangedObjectError(
                f"{self.address}/{name}: was read at commit {version} first, and is at {self._commit} now; give the "
                "commit as revision, or load again"
            )
        with self._naming(name):
            headers = {"Range": f"bytes={begin}-{begin + length - 1}", "Accept-Encoding": "identity"}
            if urlsplit(place).netloc == urlsplit(self._hub.constants.ENDPOINT).netloc:
                headers |= (
                    self._hub.utils.build_hf_headers()
                )  # where the files lie elsewhere, the address is signed
            session = self._hub.utils.get_session()
            with session.stream("GET", place, headers=headers, follow_redirects=True, timeout=20) as answer:
                if answer.status_code != 206:
                    self._refused(name, answer.status_code)
                yield from answer.iter_bytes(_CHUNK_BYTES)

    def plain_url(self, name: str) -> tuple[str, int]:
        return "", 0

    def put(self, name: str, data: Any, only_new: bool = False, only_over: str = "") -> StoredObject:
        self._read_only()

    def open_upload(self, name: str, part_bytes: int = 16 << 20) -> Any:
        self._read_only()

    def delete(self, name: str) -> None:
        self._read_only()

    def _read_only(self) -> NoReturn:
        raise ValueError(
            f"{self.address}: the Hub is only read here; export into a directory and upload that: hf upload "
            f"{self._repository} DIRECTORY"
        )

    def _place_of(self, name: str) -> tuple[str, StoredObject]:
        """Where the bytes are now, and what the file is. Signed addresses expire: `_refused` forgets them."""
        with self._lock:
            place = self._places.get(name)
        if place is not None:
            return place
        with self._naming(name):
            url = self._hub.hf_hub_url(self._repository, name, revision=self._commit, repo_type=self._kind)
            meta = self._hub.get_hf_file_metadata(url)
            location = url if urlsplit(meta.location).path == urlsplit(url).path else meta.location
            place = (location, StoredObject(name, meta.size, self._commit))
        with self._lock:
            self._places[name] = place
        return place

    def _refused(self, name: str, status: int) -> NoReturn:
        where = f"{self.address}/{name}"
        if status == 404:
            raise FileNotFoundError(f"{where}: there is no such file")
        if status in (401, 403):
            with self._lock:
                expired = self._places.pop(name, None)
            signed = expired is not None and urlsplit(expired[0]).query
            raise DeniedError(
                f"{where}: access was denied ({status}); log in: hf auth login", may_pass=bool(signed)
            )
        if status == 200:
            raise StoreError(f"{where}: asked for a range, the server sent the whole file")
        raise StoreError(f"{where}: the server answered {status}", status in (408, 425, 429) or status >= 500)

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        where = f"{self.address}/{name}".rstrip("/")
        errors = self._hub.errors
        try:
            yield
        except (StoreError, FileNotFoundError):
            raise
        except errors.GatedRepoError as error:
            raise DeniedError(
                f"{where}: access is granted on the Hub's page of it, then log in: hf auth login"
            ) from error
        except (
            errors.RepositoryNotFoundError,
            errors.RevisionNotFoundError,
            errors.EntryNotFoundError,
        ) as error:
            raise FileNotFoundError(
                f"{where}: the Hub has nothing of that name, or not for you; check the name, or log in: hf auth login "
                f"({type(error).__name__})"
            ) from None
        except errors.HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            self._refused(name, status)
        except Exception as error:
            raise StoreError(f"{where}: {type(error).__name__}: {error}", may_pass=True) from None
