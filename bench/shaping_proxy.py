"""A TCP proxy that stands for a line: `shaping_proxy.py PORT MILLISECONDS MBIT` prints the port that leads to PORT.

Bytes of an answer leave after the latency, and all connections together share the rate, as a token bucket deals it out.
Requests are not delayed: the latency is that of the round trip.
"""

from __future__ import annotations

import asyncio
import sys
import time

PIECE = 64 << 10


class Line:
    """Bytes leave one after the other, each when those before it are gone."""

    def __init__(self, mbit: float) -> None:
        self._seconds_per_byte = 8 / (mbit * 1e6) if mbit else 0.0
        self._free = 0.0

    async def send(self, size: int) -> None:
        self._free = max(self._free, time.monotonic()) + size * self._seconds_per_byte
        if (left := self._free - time.monotonic()) > 0.002:
            await asyncio.sleep(left)


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Requests, as they come."""
    try:
        while data := await reader.read(PIECE):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def forward_shaped(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: Line, latency: float
) -> None:
    """Answers: what has come waits for its time, then for the line."""
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)

    async def take() -> None:
        try:
            while data := await reader.read(PIECE):
                await waiting.put((time.monotonic() + latency, data))
        except ConnectionError:
            pass
        await waiting.put((0.0, b""))

    taking = asyncio.create_task(take())
    try:
        while True:
            due, data = await waiting.get()
            if not data:
                break
            if (left := due - time.monotonic()) > 0:
                await asyncio.sleep(left)
            await line.send(len(data))
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        taking.cancel()
        writer.close()


async def main() -> None:
    port, latency, mbit = int(sys.argv[1]), float(sys.argv[2]) / 1e3, float(sys.argv[3])
    line = Line(mbit)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(forward(reader, there[1]), forward_shaped(there[0], writer, line, latency))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
