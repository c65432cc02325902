"""The n-th system call of a kind on anything below a folder fails: the other side of tests/data/faults.c.

It works in processes that have the library preloaded: ``environment()`` says how.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

#: As in faults.c.
KINDS = (
    "open",
    "read",
    "write",
    "sync",
    "rename",
    "link",
    "unlink",
    "rmdir",
    "mkdir",
    "stat",
    "readdir",
    "map",
    "lock",
    "space",
    "close",
    "readlink",
    "submit",
    "ring read",
)

SHORT, ENDED, KILLED = -1, -2, -3

#: What each kind of call may answer.
ANSWERS = {
    "open": (errno.EIO, errno.EMFILE, errno.EINTR),
    "read": (errno.EIO, errno.EINTR, SHORT, ENDED),
    "write": (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR, SHORT),
    "sync": (errno.EIO, errno.ENOSPC, errno.EINTR),
    "rename": (errno.EIO, errno.ENOSPC),
    "link": (errno.EIO, errno.EDQUOT),
    "unlink": (errno.EIO,),
    "rmdir": (errno.EIO,),
    "mkdir": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "stat": (errno.EIO, errno.EINTR),
    "readdir": (errno.EIO,),
    "map": (errno.ENOMEM,),
    "lock": (errno.EIO, errno.EINTR),
    "space": (errno.ENOSPC, errno.EDQUOT, errno.EINTR),
    "close": (errno.EIO, errno.EINTR),
    "readlink": (errno.EIO,),
    "submit": (errno.EIO,),
    "ring read": (errno.EIO, SHORT, ENDED),
}

#: Those after which a call is to succeed all the same.
HARMLESS = (errno.EINTR, SHORT)


@dataclass(frozen=True)
class Fault:
    kind: str
    call: int  #: 1: the first
    answer: int
    goes_on: bool = False  #: all calls from that one on

    def __str__(self) -> str:
        answer = {SHORT: "short", ENDED: "ended", KILLED: "killed"}.get(self.answer) or errno.errorcode[
            self.answer
        ]
        return f"{self.kind} {self.call}{' and on' if self.goes_on else ''}: {answer}"


#: The kinds of calls before which a kill leaves something else than before the next.
CHANGING = ("open", "write", "sync", "rename", "link", "unlink", "rmdir", "mkdir", "lock", "space")


def kills_of(counts: dict[str, int]) -> list[Fault]:
    """The process is killed before each call that changes what is on disk."""
    return [
        Fault(kind, call, KILLED)
        for kind, count in counts.items()
        if kind in CHANGING
        for call in range(1, count + 1)
    ]


def faults_of(counts: dict[str, int]) -> list[Fault]:
    """All that can go wrong in a call that does so many of each kind; EIO and a full disk also for good."""
    return [
        Fault(kind, call, answer, goes_on)
        for kind, count in counts.items()
        for call in range(1, count + 1)
        for answer in ANSWERS[kind]
        for goes_on in (False, True)
        if not goes_on or answer in (errno.EIO, errno.ENOSPC)
    ]


def environment(folder: Path) -> dict[str, str]:
    """Compiles the library into a folder; says what a process needs to have it."""
    library = folder / "faults.so"
    source = Path(__file__).parent.parent / "data" / "faults.c"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return os.environ | {"LD_PRELOAD": str(library)}


class Faults:
    """The preloaded library of this process."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root)
        self._library = ctypes.CDLL(None)
        self._library.faults_count.restype = self._library.faults_hits.restype = ctypes.c_long
        self._library.faults_path.restype = ctypes.c_char_p

    @contextmanager
    def armed(self, fault: Fault | None) -> Iterator[None]:
        """None: calls are counted, and that is all."""
        number = (
            (0, 0, 0, 0)
            if fault is None
            else (KINDS.index(fault.kind), fault.call, fault.answer, fault.goes_on)
        )
        kind, call, answer, goes_on = number
        self._library.faults_arm(
            os.fsencode(self.root), kind, ctypes.c_long(call), answer, ctypes.c_int(goes_on)
        )
        try:
            yield
        finally:
            self._library.faults_disarm()

    def counts(self) -> dict[str, int]:
        found = {kind: self._library.faults_count(number) for number, kind in enumerate(KINDS)}
        return {kind: count for kind, count in found.items() if count}

    def hits(self) -> int:
        return int(self._library.faults_hits())

    def path(self) -> str:
        """What the first of them was to work on."""
        return os.fsdecode(self._library.faults_path())
