"""One of two ranks calls with something that is refused before the ranks talk; see outcomes.py."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shardwright as sw
import torch
import torch.distributed as dist
from checks import run_checks

STATE: dict[str, Any] = {"a": torch.ones(4)}
MODULE = torch.nn.Linear(1, 1)


def of_rank(fine: Any, odd: Any) -> Any:
    return odd if dist.get_rank() == 1 else fine


def folder(path: str) -> Path:
    """For what is saved; in it nothing may be made."""
    return Path(path).parent / "refused"


def expect_refused(call: Callable[[], Any], words: str) -> None:
    """This rank hears within seconds what rank 1 was refused for."""
    start = time.monotonic()
    try:
        call()
    except (ValueError, TypeError, OSError) as error:
        assert words in str(error), error
    else:
        raise AssertionError("not refused")
    assert time.monotonic() - start < 20, "heard too late"


def save(path: str, ignored: str) -> None:
    expect_refused(lambda: sw.save(of_rank(STATE, MODULE), folder(path)), "state dict")


def save_in_the_background(path: str, ignored: str) -> None:
    def call() -> None:
        pending = sw.save(of_rank(STATE, MODULE), folder(path), asynchronous=True)
        assert isinstance(pending, sw.PendingSave)
        pending.wait()

    expect_refused(call, "state dict")


def save_to_an_address(path: str, ignored: str) -> None:
    expect_refused(lambda: sw.save(STATE, of_rank(folder(path), "s3://x")), "s3://")


def export(path: str, ignored: str) -> None:
    expect_refused(lambda: sw.export(STATE, folder(path), quantization=of_rank(None, "odd")), "quantization")


def export_of_a_path(path: str, ignored: str) -> None:
    expect_refused(lambda: sw.export(path, folder(path), max_shard_size=of_rank("5GB", "large")), "large")


def load(path: str, ignored: str) -> None:
    state = sw.empty_state_dict(path)
    expect_refused(lambda: sw.load(of_rank(state, None), path, cooperative=True), "state dict")


def afterwards(path: str, ignored: str) -> None:
    assert not folder(path).exists()
    sw.save(STATE, folder(path))
    dist.barrier()
    assert {file.suffix or file.name for file in folder(path).iterdir()} == {
        ".distcp",
        ".metadata",
        ".manifest",
    }


if __name__ == "__main__":
    run_checks([save, save_in_the_background, save_to_an_address, export, export_of_a_path, load, afterwards])
