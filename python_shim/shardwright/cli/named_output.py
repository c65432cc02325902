"""Files that an option names for output: what is there already is kept, unless it is an older one of the same kind."""

from __future__ import annotations

import os
import re

from shardwright import _core
from shardwright.local_path import local_path

#: How each begins that a command writes. Of a plan: its version, and the first of its lists (planner/wire/plan.proto).
PLAN = re.compile(rb"\x08[\x01-\x7f](?:[\x12\x1a\x22]|$)")
PAGE = re.compile(rb"<!doctype html>\n", re.IGNORECASE)


def expect_replaceable(option: str, file: str | os.PathLike[str] | None, kind: re.Pattern[bytes]) -> None:
    """Raises ValueError if the file is there, and neither empty nor of the kind that is to be written.

    A mistyped name may be that of a weight. Pipes, devices and /dev/stdout hold nothing to lose, and are not opened.
    """
    if not file or _core.is_written_into(file) or not os.path.isfile(local_path(file)):
        return
    with open(file, "rb") as present:
        begin = present.read(64)
    if begin and not kind.match(begin):
        raise ValueError(
            f"{option} {os.fspath(file)}: is there and was not written by this option; remove it, or name another file"
        )
