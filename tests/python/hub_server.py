"""As much of the Hugging Face Hub as reading a repository takes, on top of `object_server`.

The repository organisation/name is that folder; large files are sent from signed addresses that expire.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from object_server import Handler, ObjectServer, running

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class HubServer(ObjectServer):
    signature: int = 0  # that is valid now; older ones have expired


class HubHandler(Handler):
    objects: HubServer

    def do_GET(self) -> None:
        name, query = self._name_and_query()
        if found := re.fullmatch(r"api/models/(organisation/name)/revision/([^/]+)", name):
            return self._json({"id": found[1], "sha": COMMIT, "siblings": [], "tags": []})
        if found := re.fullmatch(rf"api/models/([^/]+/[^/]+)/tree/{COMMIT}", name):
            files = sorted((self.objects.folder / found[1]).iterdir())
            return self._json([self._entry(file) for file in files])
        if name.startswith("api/"):
            return self.answer(404, X_Error_Code="EntryNotFound" if COMMIT in name else "RepoNotFound")
        if found := re.fullmatch(rf"([^/]+/[^/]+)/resolve/{COMMIT}/(.+)", name):
            return self._resolve(found[1], found[2])
        if query.get("signature", "") != str(self.objects.signature):
            return self.answer(403, b"expired")
        return super().do_GET()

    def _json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def _entry(self, file: Path) -> dict[str, object]:
        entry: dict[str, object] = {
            "type": "file",
            "path": file.name,
            "size": file.stat().st_size,
            "oid": file.name,
        }
        if file.suffix == ".safetensors":
            entry["lfs"] = {"oid": file.name.encode().hex(), "size": file.stat().st_size, "pointerSize": 130}
        return entry

    def _resolve(self, repository: str, name: str) -> None:
        file = self.objects.folder / repository / name
        if not file.is_file():
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        headers = {"X_Repo_Commit": COMMIT, "X_Linked_Size": str(file.stat().st_size)}
        if file.suffix == ".safetensors":
            signed = (
                f"http://localhost:{self.objects.port}/{repository}/{name}?signature={self.objects.signature}"
            )
            etag = f'"{name.encode().hex()}"'
            return self.answer(302, Location=signed, X_Linked_Etag=etag, **headers)
        if self.command == "HEAD":
            return self.answer(200, file.read_bytes(), ETag=f'"{name}"', **headers)
        size = file.stat().st_size
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        begin, end = (int(found[1]), int(found[2]) + 1) if found else (0, size)
        return self.send_bytes(file, begin, min(end, size), size, f'"{name}"', 206 if found else 200)


@contextmanager
def hub(folder: Path) -> Iterator[HubServer]:
    with running(HubServer(folder), HubHandler) as objects:
        yield objects
