"""Loads a checkpoint from an object server on this machine, beside what its library does at best, all in one run.

    python bench/remote.py [--preset bench] [--threads 2] [--runs 3] [--checkpoint DIR] [--json] [--check]
    python bench/remote.py --server moto
    python bench/remote.py --latency 50 --rate 1000      # milliseconds, Mbit/s: through a proxy that shapes

Servers, each in a process of its own, as is the proxy:
  ours          tests/python/object_server.py: the kernel sends the files
  moto          moto's S3, which reads a whole object for each range of it: objects have 16 MB
The destination is allocated and touched beforehand. Measured in turns, medians are quoted, with the processor time
of this process and of the server:
  shardwright   sw.load into native BF16 tensors: asks, decodes, regroups
  obstore       the same library reads the whole objects, as many ranges at a time, and throws them away
  streamer      runai-model-streamer, where it is installed with its part for S3: whole files into CPU tensors
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from options import checkpoint, options
from turns import seconds_in_turns

TESTS = Path(__file__).parents[1] / "tests" / "python"
BYTES_OF_REQUEST = 8 << 20
REQUESTS_AT_ONCE = 24


@dataclass(frozen=True)
class Served:
    """A server that has the checkpoint's folder as a bucket."""

    port: int
    process: int

    def processor_seconds(self) -> float:
        fields = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def process_with_port(*command: str) -> Iterator[Served]:
    """A server that prints its port, for as long as it is needed."""
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Served(int(process.stdout.readline()), process.pid)
        finally:
            process.terminate()


def serving(server: str, path: Path) -> AbstractContextManager[Served]:
    if server == "moto":
        return process_with_port(str(TESTS / "moto_server.py"), str(path))
    return process_with_port(str(TESTS / "object_server.py"), str(path.parent))


@contextmanager
def shaped(served: Served, latency: float, rate: float) -> Iterator[int]:
    """The port that leads to the server, through the proxy where something is to be shaped."""
    if not latency and not rate:
        yield served.port
        return
    proxy = str(Path(__file__).parent / "shaping_proxy.py")
    with process_with_port(proxy, str(served.port), str(latency), str(rate)) as between:
        yield between.port


def counting(work: Callable[[], object], served: Served, found: list[dict[str, float]]) -> Callable[[], None]:
    """The work, which notes the processor time that it takes here and in the server."""

    def run() -> None:
        loader, server = time.process_time(), served.processor_seconds()
        work()
        found.append({"loader": time.process_time() - loader, "server": served.processor_seconds() - server})

    return run


def discard_all(address: str) -> Callable[[], None]:
    """obstore alone: every object, in ranges, thrown away as it comes."""
    import obstore
    from obstore.store import from_url

    store = from_url(address, client_options={"allow_http": True, "timeout": "1h"})
    objects = [
        one for one in obstore.list_with_delimiter(store)["objects"] if one["path"].endswith(".safetensors")
    ]
    ranges = [
        (one["path"], begin, min(begin + BYTES_OF_REQUEST, one["size"]))
        for one in objects
        for begin in range(0, one["size"], BYTES_OF_REQUEST)
    ]

    def read(wanted: tuple[str, int, int]) -> None:
        path, begin, end = wanted
        for _ in obstore.get(store, path, options={"range": (begin, end)}).stream(min_chunk_size=256 << 10):
            pass

    def read_all() -> None:
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            list(pool.map(read, ranges))

    return read_all


def streamer(address: str, names: list[str]) -> Callable[[], None]:
    from runai_model_streamer import SafetensorsStreamer

    def read_all() -> None:
        with SafetensorsStreamer() as stream:
            stream.stream_files([f"{address}/{name}" for name in names])
            for _, tensor in stream.get_tensors():
                tensor.clone()

    return read_all


def measure(path: Path, server: str, threads: int, runs: int, latency: float, rate: float) -> dict[str, Any]:
    import shardwright as sw
    from ways import safetensors_files, touched_native

    total = sum(file.stat().st_size for file in safetensors_files(path))
    with serving(server, path) as served, shaped(served, latency, rate) as port:
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
            "RUNAI_STREAMER_S3_ENDPOINT": f"http://127.0.0.1:{port}",
        }
        address = f"s3://{path.name}"
        state_dict = touched_native(path)
        works: dict[str, Callable[[], object]] = {
            "shardwright": lambda: sw.load(state_dict, address, threads=threads),
            "obstore": discard_all(address),
        }
        left_out = {}
        try:
            theirs = streamer(address, [file.name for file in safetensors_files(path)])
            theirs()
            works["streamer"] = theirs
        except Exception as error:  # it is not installed, or does not reach the server
            left_out["streamer"] = f"{type(error).__name__}: {str(error)[:200]}"
        worked: dict[str, list[dict[str, float]]] = {name: [] for name in works}
        seconds = seconds_in_turns(
            {name: counting(work, served, worked[name]) for name, work in works.items()}, runs
        )
        report = sw.load(state_dict, address, threads=threads)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "server": server,
        "checkpoint_bytes": total,
        "latency_ms": latency,
        "rate_mbit": rate,
        "threads": threads,
        "runs": runs,
        "seconds": seconds,
        "processor_seconds": {
            name: {side: statistics.median(one[side] for one in found) for side in ("loader", "server")}
            for name, found in worked.items()
        },
        "gigabytes_per_second": {name: total / median / 1e9 for name, median in medians.items()},
        "of_obstore": medians["obstore"] / medians["shardwright"],
        "of_line": total * 8 / (rate * 1e6) / medians["shardwright"] if rate else None,
        "bytes_read": report.bytes_read,
        "requests": report.read_requests,
        "peak_staging_bytes": report.peak_staging_bytes,
        "left_out": left_out,
    }


def main() -> None:
    chosen = options(
        __doc__, "fail below 0.85 of obstore's rate, or below 0.9 of the line where one is given", remote=True
    )
    with checkpoint(chosen, "16MB" if chosen.server == "moto" else None) as path:
        facts = measure(path, chosen.server, chosen.threads, chosen.runs, chosen.latency, chosen.rate)
    if chosen.json:
        print(json.dumps(facts))
    else:
        from shardwright.cli.table import print_table

        rows: list[tuple[str, object]] = [
            ("server", facts["server"]),
            ("checkpoint bytes", facts["checkpoint_bytes"]),
        ]
        rows += [(f"{name}, GB/s", f"{rate:.3f}") for name, rate in facts["gigabytes_per_second"].items()]
        rows += [
            (f"{name}, processor seconds", f"{found['loader']:.2f}, of the server {found['server']:.2f}")
            for name, found in facts["processor_seconds"].items()
        ]
        rows += [("of obstore's rate", f"{facts['of_obstore']:.3f}")]
        if facts["of_line"] is not None:
            rows += [("of the line", f"{facts['of_line']:.3f}")]
        rows += [(name, facts[name]) for name in ("bytes_read", "requests", "peak_staging_bytes")]
        rows += [(f"left out: {name}", why) for name, why in facts["left_out"].items()]
        print_table(rows)
    fails = facts["of_obstore"] < 0.85 if facts["of_line"] is None else facts["of_line"] < 0.9
    if chosen.check and fails:
        sys.exit(1)


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()
