"""Folders for temporary files that go with the process that made them: if it was killed, by whoever comes next."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

_PREFIX = "shardwright-"

#: A file in each folder that its process holds a lock on. A folder without was not made here, or is being made.
_LOCK = ".shardwright.process"


class OwnFolder:
    """A new folder, ``path``, in which nothing is."""

    def __init__(self) -> None:
        self._around = Path(tempfile.mkdtemp(prefix=_PREFIX))
        unnamed = self._around / "lock"
        self._lock = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with suppress(OSError):  # a file system without locks: what a kill leaves there stays
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(unnamed, self._around / _LOCK)  # nobody finds one that is not held
        self.path = self._around / "folder"
        self.path.mkdir()

    def remove(self) -> None:
        """Removes it with all that is in it. A second time nothing happens."""
        shutil.rmtree(self._around, ignore_errors=True)
        with suppress(OSError):
            os.close(self._lock)
        self._lock = -1


def remove_folders_of_dead_processes() -> None:
    """Removes what others of this user have left in the folder for temporary files and no living process holds."""
    with suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX) and entry.is_dir(follow_symlinks=False):
                with suppress(OSError):
                    _remove_if_dead(entry.path)


def _remove_if_dead(folder: str) -> None:
    lock = os.path.join(folder, _LOCK)
    descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or {found.st_uid, os.lstat(folder).st_uid} != {os.geteuid()}:
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where the process lives
        if os.path.samestat(found, os.lstat(lock)):  # or another has removed it meanwhile
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)
