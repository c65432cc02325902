"""Loads a checkpoint from an object server on this machine, beside what other libraries do, all in one run.

    python bench/remote.py [--preset bench] [--threads 2] [--runs 3] [--checkpoint DIR] [--json] [--check]
    python bench/remote.py --server moto
    python bench/remote.py --latency 50 --rate 1000      # milliseconds, Mbit/s: through a proxy that shapes

Servers, each in a process of its own, as is the proxy:
  ours          tests/python/object_server.py: the kernel sends the files
  moto          moto's S3, which reads a whole object for each range of it: objects have 16 MB
The destination is allocated and touched beforehand. Measured in turns, medians are quoted, with the processor time
of this process and of the server. Of a released checkpoint:
  shardwright       sw.load into native BF16 tensors: asks, decodes, regroups
  obstore           the same library reads the whole objects, as many ranges at a time, and throws them away
  streamer          runai-model-streamer: whole files into CPU tensors, not regrouped, in its own number of requests
Of some of the same weights, loaded and saved again as torch saves them (.distcp):
  shardwright       sw.load
  FsspecReader      torch's, through s3fs
  s3torchconnector  Amazon's reader of such checkpoints
  obstore           as above
The last three ways of others are in .venv-peers alone (make peers); what is not installed is left out by name.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import remote_ways
import torch
from options import checkpoint, options
from turns import seconds_in_turns

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests" / "python"
OF_TESTS = ROOT / ".venv" / "bin" / "python"  # which has moto
MOST_DISTCP_BYTES = 256 << 20

Works = dict[str, Callable[[], remote_ways.Work]]  # what makes each


@dataclass(frozen=True)
class Served:
    """A server that has a folder as a bucket."""

    port: int
    process: int

    def processor_seconds(self) -> float:
        fields = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def process_with_port(*command: str) -> Iterator[Served]:
    """A server that prints its port, for as long as it is needed."""
    python = str(OF_TESTS) if OF_TESTS.exists() else sys.executable
    with subprocess.Popen([python, *command], stdout=subprocess.PIPE, text=True) as process:
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


def counting(work: remote_ways.Work, served: Served, found: list[dict[str, float]]) -> Callable[[], None]:
    """The work, which notes the processor time that it takes here and in the server."""

    def run() -> None:
        loader, server = time.process_time(), served.processor_seconds()
        work()
        found.append({"loader": time.process_time() - loader, "server": served.processor_seconds() - server})

    return run


def save_as_torch(path: Path, folder: Path, files: int) -> dict[str, torch.Tensor]:
    """Loads some of the checkpoint's tensors, stacked ones as one for each expert, saves them as torch does, and
    returns them."""
    import shardwright as sw
    import torch.distributed.checkpoint as dcp

    native = sw.empty_state_dict(path)
    sw.load(native, path)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in native.items():
        rows = {f"{name}.{n}": row for n, row in enumerate(tensor)} if tensor.dim() == 3 else {name: tensor}
        for one, value in rows.items():
            if sum(kept.nbytes for kept in state.values()) + value.nbytes <= MOST_DISTCP_BYTES:
                state[one] = value.clone()
    dcp.save(state, storage_writer=dcp.FileSystemWriter(folder, thread_count=files), no_dist=True)
    return state


def works_of_release(path: Path, address: str, threads: int) -> Works:
    from ways import safetensors_files, touched_native

    state = touched_native(path)
    names = [file.name for file in safetensors_files(path)]
    return {
        "shardwright": lambda: remote_ways.shardwright(address, state, threads),
        "obstore": lambda: remote_ways.obstore(address, ".safetensors"),
        "streamer": lambda: remote_ways.streamer(address, names),
    }


def works_of_distcp(state: dict[str, torch.Tensor], address: str, threads: int) -> Works:
    return {
        "shardwright": lambda: remote_ways.shardwright(address, state, threads),
        "FsspecReader": lambda: remote_ways.fsspec_reader(address, state),
        "s3torchconnector": lambda: remote_ways.s3torchconnector(address, state),
        "obstore": lambda: remote_ways.obstore(address, ".distcp"),
    }


def measure(
    path: Path,
    files: str,
    works_of: Callable[[str], Works],
    server: str,
    line: tuple[float, float],
    runs: int,
) -> dict[str, Any]:
    """Of the files of a folder whose names match, which the server has, the works on their address."""
    total = sum(file.stat().st_size for file in path.glob(files))
    with serving(server, path) as served, shaped(served, *line) as port:
        url = f"http://127.0.0.1:{port}"
        os.environ |= {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
            "RUNAI_STREAMER_S3_ENDPOINT": url,
        }
        works, left_out = {}, {}
        for name, make in works_of(f"s3://{path.name}").items():
            try:
                works[name] = make()
                works[name]()
            except Exception as error:  # it is not installed, or does not reach the server
                if name == "shardwright":
                    raise
                left_out[name] = f"{type(error).__name__}: {str(error)[:200]}"
                works.pop(name, None)
        worked: dict[str, list[dict[str, float]]] = {name: [] for name in works}
        seconds = seconds_in_turns(
            {name: counting(work, served, worked[name]) for name, work in works.items()}, runs
        )
        report: Any = works["shardwright"]()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "bytes": total,
        "seconds": seconds,
        "processor_seconds": {
            name: {side: statistics.median(one[side] for one in found) for side in ("loader", "server")}
            for name, found in worked.items()
        },
        "gigabytes_per_second": {name: total / median / 1e9 for name, median in medians.items()},
        "times_their_rate": {
            name: median / medians["shardwright"] for name, median in medians.items() if name != "shardwright"
        },
        "of_line": total * 8 / (line[1] * 1e6) / medians["shardwright"] if line[1] else None,
        "bytes_read": report.bytes_read,
        "requests": report.read_requests,
        "peak_staging_bytes": report.peak_staging_bytes,
        "left_out": left_out,
    }


def measure_both(
    path: Path, server: str, threads: int, runs: int, line: tuple[float, float]
) -> dict[str, Any]:
    found = {}
    found["released"] = measure(
        path, "*.safetensors", lambda at: works_of_release(path, at, threads), server, line, runs
    )
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder, "saved")
        state = save_as_torch(path, saved, files=32 if server == "moto" else 4)
        found["distcp"] = measure(
            saved, "*.distcp", lambda at: works_of_distcp(state, at, threads), server, line, runs
        )
    return {
        "server": server,
        "latency_ms": line[0],
        "rate_mbit": line[1],
        "threads": threads,
        "runs": runs,
    } | found


def rows_of(facts: dict[str, Any]) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [("bytes", facts["bytes"])]
    rows += [(f"{name}, GB/s", f"{rate:.3f}") for name, rate in facts["gigabytes_per_second"].items()]
    rows += [
        (f"{name}, processor seconds", f"{found['loader']:.2f}, of the server {found['server']:.2f}")
        for name, found in facts["processor_seconds"].items()
    ]
    rows += [
        (f"times the rate of {name}", f"{times:.3f}") for name, times in facts["times_their_rate"].items()
    ]
    if facts["of_line"] is not None:
        rows += [("of the line", f"{facts['of_line']:.3f}")]
    rows += [(name, facts[name]) for name in ("bytes_read", "requests", "peak_staging_bytes")]
    return rows + [(f"left out: {name}", why) for name, why in facts["left_out"].items()]


def main() -> None:
    chosen = options(
        __doc__, "fail below 0.85 of obstore's rate, or below 0.9 of the line where one is given", remote=True
    )
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    line = chosen.latency, chosen.rate
    with checkpoint(chosen, "16MB" if chosen.server == "moto" else None) as path:
        facts = measure_both(path, chosen.server, chosen.threads, chosen.runs, line)
    if chosen.json:
        print(json.dumps(facts))
    else:
        from shardwright.cli.table import table

        for kind in ("released", "distcp"):
            print(table([(f"{kind}, from", chosen.server), *rows_of(facts[kind])]))
            print()
    released = facts["released"]
    fails = released["times_their_rate"]["obstore"] < 0.85 if not chosen.rate else released["of_line"] < 0.9
    if chosen.check and fails:
        sys.exit(1)


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()
