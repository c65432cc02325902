"""The server of objects of `object_server`, for what is written to it: it fails writes, and has conditions on them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from object_server import Handler, ObjectServer, running


@dataclass
class WriteFault:
    """What is done with a write instead of answering as asked. Returns True if it has answered."""

    act: Callable[[WritingHandler, Callable[[], None]], bool]
    times: int = 1
    where: str = r"rank-|model-"  # in the request's path
    methods: tuple[str, ...] = ("PUT", "POST")


@dataclass
class WrittenServer(ObjectServer):
    """``write_faults`` are tried in order; ``before`` is called with method and path of each write."""

    write_faults: list[WriteFault] = field(default_factory=list)
    before: Callable[[str, str], None] = lambda method, path: None

    def names(self, folder: str) -> list[str]:
        """Objects below a folder of the bucket, with those of saves under way."""
        root = self.folder / folder
        return sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())

    def writes(self, part: str) -> int:
        with self.lock:
            return sum(one.method in ("PUT", "POST") and part in one.name for one in self.log)


class WritingHandler(Handler):
    objects: WrittenServer

    def do_PUT(self) -> None:
        self._write_unless_failed(super().do_PUT)

    def do_POST(self) -> None:
        self._write_unless_failed(super().do_POST)

    def do_DELETE(self) -> None:
        self._write_unless_failed(super().do_DELETE)

    def _body(self) -> bytes:
        if not hasattr(self, "_read"):
            self._read = super()._body()
        return self._read

    def _write_unless_failed(self, write: Callable[[], None]) -> None:
        vars(self).pop("_read", None)
        self._body()
        self.objects.before(self.command, self.path)
        for fault in self.objects.write_faults:
            if self.command not in fault.methods or not re.search(fault.where, self.path):
                continue
            with self.objects.lock:
                due = fault.times > 0
                fault.times -= due
            if due and fault.act(self, write):
                return
        name, _ = self._name_and_query()
        file = self.objects.folder / name
        wanted = self.headers.get("If-Match")
        if self.command == "PUT" and wanted is not None:
            found = self.etag_of(name, file) if file.is_file() else None
            if wanted != found:
                self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                return
        write()


def answering(status: int, times: int = 1, **more: object) -> WriteFault:
    """Answers with that status and writes nothing."""

    def act(handler: WritingHandler, write: Callable[[], None]) -> bool:
        handler.answer(status, b"<Error><Code>Refused</Code></Error>")
        return True

    return WriteFault(act, times, **more)  # type: ignore[arg-type]


def hanging_up(times: int = 1, written: bool = False, **more: object) -> WriteFault:
    """Resets the connection, before or after it has written."""

    def act(handler: WritingHandler, write: Callable[[], None]) -> bool:
        if written:
            handler.answer = lambda *_, **__: None  # type: ignore[method-assign]
            write()
        handler.hang_up()
        return True

    return WriteFault(act, times, **more)  # type: ignore[arg-type]


@contextmanager
def serving_writes(folder: str | os.PathLike[str]) -> Iterator[WrittenServer]:
    """Serves the files of the folder until the block ends, and takes more of them."""
    with running(WrittenServer(Path(folder)), WritingHandler) as objects:
        yield objects
