"""Files that an integration writes beside a checkpoint, such as config.json, and by which it knows them again."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from shardwright.system_calls import has_entry, is_file, opened

#: JSON: the name of each written file → SHA-256 of its contents, the newest last. A file of another content is somebody
#: else's, be it that they have edited ours.
RECORD_NAME = "shardwright.beside"


def expect_replaceable(
    folder: Path, contents: Mapping[str, bytes | None], overwrite: bool | None, advice: str
) -> None:
    """To be called before anything is written.

    Args:
        contents: file names → what is going to be in them; None: not known yet.
        overwrite: True replaces all files, None those that :func:`write_beside` has written, False none.
        advice: what to do otherwise, for the message.

    Raises:
        FileExistsError: names the files of others. One that has the content already is none.
    """
    if overwrite is True:
        return
    record = _record(folder) if overwrite is None else {}
    others = [
        name
        for name, content in contents.items()
        if has_entry(folder / name) and not _may_go(folder / name, content, record.get(name, []))
    ]
    if others:
        raise FileExistsError(
            errno.EEXIST,
            f"{', '.join(others)} in {folder}: expected no such file, or one that was written here before and nobody "
            f"has edited since; nothing was written. {advice}",
        )


def write_beside(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes the files, each in one step."""
    record = _record(folder)
    for name, content in contents.items():
        # A job that ends between record and file leaves the earlier one, which is known still.
        there = [_sum_of(folder / name)] if has_entry(folder / name) else []
        record[name] = [known for known in there if known in record.get(name, [])] + [_sum(content)]
    _write(folder / RECORD_NAME, json.dumps(record, indent=1, sort_keys=True).encode())
    for name, content in contents.items():
        _write(folder / name, content)


def _may_go(file: Path, content: bytes | None, known: list[str]) -> bool:
    found = _sum_of(file)
    return found in known or (content is not None and found == _sum(content))


def _record(folder: Path) -> dict[str, list[str]]:
    """What is no such record says nothing of any file."""
    try:
        found = json.loads((folder / RECORD_NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: sums for name, sums in found.items() if isinstance(sums, list)}


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sum_of(file: Path) -> str:
    """Empty for what is no file."""
    if not is_file(file):
        return ""
    with opened(file, "rb") as content:
        digest = hashlib.sha256()
        while part := content.read(1 << 20):
            digest.update(part)
        return digest.hexdigest()


def _write(file: Path, content: bytes) -> None:
    aside = file.with_name(f".{file.name}-{os.getpid()}.tmp")
    try:
        with opened(aside, "wb") as written:
            written.write(content)
            written.flush()
            os.fsync(written.fileno())
        os.replace(aside, file)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(aside)
        raise
