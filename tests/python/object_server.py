"""A small server of objects: plain HTTP with ranges, and as much of S3 as reading and writing a checkpoint takes.

Objects are files below a folder: /bucket/key. It logs each request, and can be told to fail:

    with serving(folder) as server:
        server.fault = stall_after(1000)
        ...
        server.bytes_asked("bucket/model.safetensors")
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar
from xml.sax.saxutils import escape

from shardwright.remote import open_stores


@dataclass(frozen=True)
class Request:
    """Bytes [begin, end) were asked for; (0, 0) where none were. ``sent`` of them left the server."""

    method: str
    name: str
    begin: int = 0
    end: int = 0
    sent: int = 0
    status: int = 200


@dataclass
class Fault:
    """What is done instead of answering as asked. Returns True if it has answered."""

    act: Callable[[Handler, str, int, int], bool]
    times: int = 1
    where: str = r"\.safetensors$"  # names of objects
    of_headers: bool = False  # also where the header of a safetensors file is asked for


@dataclass
class ObjectServer:
    folder: Path
    port: int = 0
    log: list[Request] = field(default_factory=list)
    fault: Fault | None = None
    etags: dict[str, str] = field(default_factory=dict)  # by name, in place of what the files give
    lists_bare_etags: bool = False  # without the quotes that they have in answers
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What makes s3:// lead here."""
        return {
            "AWS_ENDPOINT_URL": self.http,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret-of-test",
            "AWS_REGION": "us-east-1",
        }

    def asked(self, part: str = "") -> list[Request]:
        with self.lock:
            return [
                one for one in self.log if one.method == "GET" and re.search(part, one.name) and one.end > 0
            ]

    def bytes_asked(self, part: str = "") -> int:
        return sum(one.end - one.begin for one in self.asked(part))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    objects: ObjectServer

    def log_message(self, *_: object) -> None:
        pass

    def _name_and_query(self) -> tuple[str, dict[str, str]]:
        parts = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        return urllib.parse.unquote(parts.path).strip("/"), query

    def etag_of(self, name: str, file: Path) -> str:
        status = file.stat()
        own = hashlib.md5(f"{status.st_size} {status.st_mtime_ns}".encode()).hexdigest()
        return self.objects.etags.get(name, f'"{own}"')

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name, query = self._name_and_query()
        if "list-type" in query:
            self._note(name)
            return self._list(name, query)
        file = self.objects.folder / name
        if not file.is_file():
            self._note(name, status=404)
            return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        size, etag = file.stat().st_size, self.etag_of(name, file)
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        begin, end = (int(found[1]), int(found[2] or size - 1) + 1) if found else (0, size)
        end = min(end, size)
        if self.command == "GET":
            self._note(name, begin, end)
        fault = self.objects.fault
        if (
            fault
            and self.command == "GET"
            and re.search(fault.where, name)
            and (fault.of_headers or begin >= header_bytes(file))
        ):
            with self.objects.lock:
                due = fault.times > 0
                fault.times -= due
            if due and fault.act(self, name, begin, end):
                return None
        if (wanted := self.headers.get("If-Match")) not in (None, etag):
            return self.answer(412, f"<Error><Code>PreconditionFailed</Code>{wanted}</Error>".encode())
        self.send_bytes(file, begin, end, size, etag, 206 if found else 200)
        return None

    def send_bytes(
        self, file: Path, begin: int, end: int, size: int, etag: str, status: int, stop: int | None = None
    ) -> None:
        """Sends [begin, end) of the file; with ``stop`` as many bytes only, though the header promises all."""
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - begin))
        self.send_header("ETag", etag)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Last-Modified", self.date_time_string(int(file.stat().st_mtime)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.flush()
        end = end if stop is None else begin + stop
        with open(file, "rb") as opened:
            while begin < end:
                sent = os.sendfile(self.connection.fileno(), opened.fileno(), begin, end - begin)
                if sent == 0:  # a shorter one has taken its place meanwhile
                    self.close_connection = True
                    return
                begin += sent

    def do_PUT(self) -> None:
        name, query = self._name_and_query()
        body = self._body()
        self._note(name)
        if "partNumber" in query:
            with self.objects.lock:
                self.objects.uploads[query["uploadId"]][int(query["partNumber"])] = body
            return self.answer(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')
        if self.headers.get("If-None-Match") == "*" and (self.objects.folder / name).exists():
            return self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        self._write(name, body)
        return self.answer(200, ETag=self.etag_of(name, self.objects.folder / name))

    def do_POST(self) -> None:
        name, query = self._name_and_query()
        body = self._body()
        self._note(name)
        if "uploads" in query:
            upload = os.urandom(8).hex()
            with self.objects.lock:
                self.objects.uploads[upload] = {}
            text = f"<Bucket>b</Bucket><Key>{escape(name)}</Key><UploadId>{upload}</UploadId>"
            text = f"<InitiateMultipartUploadResult>{text}</InitiateMultipartUploadResult>"
            return self.answer(200, text.encode())
        if "uploadId" in query:
            with self.objects.lock:
                parts = self.objects.uploads.pop(query["uploadId"])
            numbers = [int(number) for number in re.findall(rb"<PartNumber>(\d+)</PartNumber>", body)]
            self._write(name, b"".join(parts[number] for number in numbers))
            etag = self.etag_of(name, self.objects.folder / name)
            text = (
                f"<CompleteMultipartUploadResult><ETag>{escape(etag)}</ETag></CompleteMultipartUploadResult>"
            )
            return self.answer(200, text.encode())
        if "delete" in query:
            keys = re.findall(rb"<Key>(.*?)</Key>", body)
            for key in keys:
                self._remove(f"{name}/{urllib.parse.unquote(key.decode())}")
            gone = b"".join(b"<Deleted><Key>" + key + b"</Key></Deleted>" for key in keys)
            return self.answer(200, b"<DeleteResult>" + gone + b"</DeleteResult>")
        return self.answer(400)

    def do_DELETE(self) -> None:
        name, query = self._name_and_query()
        self._note(name)
        if "uploadId" in query:
            with self.objects.lock:
                self.objects.uploads.pop(query["uploadId"], None)
        else:
            self._remove(name)
        self.answer(204)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _write(self, name: str, body: bytes) -> None:
        file = self.objects.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pending = file.with_name(f".pending-{os.urandom(4).hex()}")
        pending.write_bytes(body)
        pending.rename(file)

    def _remove(self, name: str) -> None:
        file = self.objects.folder / name
        if file.is_file():
            file.unlink()

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        root = self.objects.folder / bucket
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        contents, prefixes = [], set()
        for file in sorted(root.rglob("*")):
            key = file.relative_to(root).as_posix()
            if not file.is_file() or not key.startswith(prefix) or file.name.startswith(".pending-"):
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
                continue
            with suppress(FileNotFoundError):  # it has been deleted meanwhile
                status = file.stat()
                stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(status.st_mtime))
                etag = self.etag_of(f"{bucket}/{key}", file)
                if self.objects.lists_bare_etags:
                    etag = etag.strip('"')
                contents.append(
                    f"<Contents><Key>{escape(key)}</Key><LastModified>{stamp}</LastModified>"
                    f"<ETag>{escape(etag)}</ETag>"
                    f"<Size>{status.st_size}</Size></Contents>"
                )
        folders = [
            f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in sorted(prefixes)
        ]
        text = "".join(
            ["<ListBucketResult><IsTruncated>false</IsTruncated>", *contents, *folders, "</ListBucketResult>"]
        )
        self.answer(200, text.encode(), Content_Type="application/xml")

    def _note(self, name: str, begin: int = 0, end: int = 0, status: int = 200) -> None:
        with self.objects.lock:
            self.objects.log.append(Request(self.command, name, begin, end, status=status))

    def hang_up(self) -> None:
        """Resets the connection, as a server that dies does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def header_bytes(file: Path) -> int:
    """Of a safetensors file; 0 for others."""
    if file.suffix != ".safetensors":
        return 0
    with open(file, "rb") as opened:
        return 8 + int.from_bytes(opened.read(8), "little")


def refusing(status: int, times: int = 1, **more: str) -> Fault:
    """Answers with that status, such as 429, 503 or 403."""

    def act(handler: Handler, name: str, begin: int, end: int) -> bool:
        handler.answer(status, f"<Error><Code>Refused</Code><Message>{name}</Message></Error>".encode())
        return True

    return Fault(act, times, **more)


def breaking_off(after: int, times: int = 1, reset: bool = False, stall: float = 0) -> Fault:
    """Sends so many bytes of what it promises, then nothing for ``stall`` seconds, then ends the connection."""

    def act(handler: Handler, name: str, begin: int, end: int) -> bool:
        file = handler.objects.folder / name
        etag = handler.etag_of(name, file)
        handler.send_bytes(file, begin, end, file.stat().st_size, etag, 206, min(after, end - begin - 1))
        time.sleep(stall)
        handler.close_connection = True
        if reset:
            handler.hang_up()
        return True

    return Fault(act, times)


def answering_whole(where: str, even_parts: bool = False) -> Fault:
    """Answers a range that is all of an object as if no range had been asked for; with ``even_parts`` any range."""

    def act(handler: Handler, name: str, begin: int, end: int) -> bool:
        file = handler.objects.folder / name
        size = file.stat().st_size
        if (begin, end) != (0, size) and not even_parts:
            return False
        handler.send_bytes(file, 0, size, size, handler.etag_of(name, file), 200)
        return True

    return Fault(act, 10**6, where, of_headers=True)


def answering_short(less: int = 100, times: int = 1) -> Fault:
    """Answers with fewer bytes than were asked for, and says so: a correct answer to another question."""

    def act(handler: Handler, name: str, begin: int, end: int) -> bool:
        file = handler.objects.folder / name
        size = file.stat().st_size
        handler.send_bytes(file, begin, end - less, size, handler.etag_of(name, file), 206)
        return True

    return Fault(act, times)


def sending_elsewhere(shift: int = 64, times: int = 1) -> Fault:
    """Answers with other bytes than were asked for."""

    def act(handler: Handler, name: str, begin: int, end: int) -> bool:
        file = handler.objects.folder / name
        size = file.stat().st_size
        handler.send_bytes(file, begin - shift, end - shift, size, handler.etag_of(name, file), 206)
        return True

    return Fault(act, times)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: object, address: object) -> None:
        pass  # clients hang up, and so do we


Server = TypeVar("Server", bound=ObjectServer)


@contextmanager
def running(objects: Server, handler: type[Handler]) -> Iterator[Server]:
    """Serves the objects by handlers of that class until the block ends."""
    server = _Server(("127.0.0.1", 0), type("BoundHandler", (handler,), {"objects": objects}))
    objects.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield objects
    finally:
        for address in list(open_stores._open):
            open_stores.reopen_store(address)  # or each test would leave some 50 connections
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving(folder: str | os.PathLike[str]) -> Iterator[ObjectServer]:
    """Serves the files of the folder until the block ends."""
    with running(ObjectServer(Path(folder)), Handler) as objects:
        yield objects


def main() -> None:
    """Serves a folder until it is killed: `object_server.py FOLDER` prints the port."""
    import sys

    with serving(sys.argv[1]) as server:
        print(server.port, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
