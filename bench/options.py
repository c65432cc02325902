"""The command line that the measurements of loads, saves and exports have in common."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def options(
    description: str | None, check: str, writes: bool = False, remote: bool = False
) -> argparse.Namespace:
    """``check`` says what ``--check`` fails on; ``writes``: what is measured writes, which can be told where to;
    ``remote``: it comes from a server, over a line that can be shaped."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="bench")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint that is there already")
    if writes:
        parser.add_argument("--folder", type=Path, help="where to write: the device that is measured")
    if remote:
        parser.add_argument(
            "--latency", type=float, default=0, help="milliseconds that an answer takes longer"
        )
        parser.add_argument("--server", default="ours", choices=["ours", "moto"])
        parser.add_argument("--rate", type=float, default=0, help="of the line, in Mbit/s; 0: as it is")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help=check)
    return parser.parse_args()


@contextmanager
def checkpoint(chosen: argparse.Namespace, max_shard_size: str | None = None) -> Iterator[Path]:
    """The checkpoint that is there already, or a generated one for as long as it is needed."""
    if chosen.checkpoint is not None:
        yield chosen.checkpoint
        return
    import shardwright as sw

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, chosen.preset)
        sw.generate(path, chosen.preset, max_shard_size=max_shard_size)
        yield path
