"""Two ranks are given checkpoints that differ in values alone, or copies of one; see outcomes.py."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checks import run_checks
from torch.distributed.checkpoint.api import CheckpointException


def others(path: str) -> tuple[Path, Path, Path]:
    """The checkpoint, a copy of it, and one in which 4 bytes of a weight are others."""
    one, copy, two = (Path(path).parent / name for name in ("one", "copy", "two"))
    if dist.get_rank() == 0 and not two.exists():
        for folder in (one, copy, two):
            shutil.copytree(path, folder)
        for file in two.glob("*.safetensors"):
            with file.open("r+b") as changed:
                changed.seek(-4, 2)
                changed.write(b"\x55\x55\x55\x55")
    dist.barrier()
    return one, copy, two


def of_rank(path: str, second: Path) -> Path:
    return second if dist.get_rank() == 1 else Path(path).parent / "one"


def expect_everywhere(holds: bool) -> None:
    """Fails on all ranks together, before any goes on."""
    of_ranks = [holds] * dist.get_world_size()
    dist.all_gather_object(of_ranks, holds)
    assert all(of_ranks), of_ranks


def expect_refused(call: Callable[[], Any], words: str = "rank 1: expected a checkpoint's") -> None:
    told = "not refused"
    try:
        call()
    except (ValueError, CheckpointException) as error:
        told = str(error)
    expect_everywhere(words in told)


def loads_by_dcp(path: str, ignored: str) -> None:
    one, copy, two = others(path)

    def load_of(second: Path) -> None:
        state = sw.empty_state_dict(one)
        for tensor in state.values():
            tensor.fill_(7)
        reader = sw.HuggingFaceStorageReader(of_rank(path, second))
        try:
            dcp.load(state, storage_reader=reader, planner=sw.LoadPlanner())
        except CheckpointException:
            assert all((tensor == 7).all() for tensor in state.values())
            raise

    load_of(copy)
    expect_refused(lambda: load_of(two))


def loads_together(path: str, ignored: str) -> None:
    one, copy, two = others(path)
    sw.load(sw.empty_state_dict(one), of_rank(path, copy), cooperative=True)
    expect_refused(lambda: sw.load(sw.empty_state_dict(one), of_rank(path, two), cooperative=True))


def resumes(path: str, ignored: str) -> None:
    """As after two nodes have found different steps to be the latest."""
    root = Path(path).parent / "steps"
    state = {"a": torch.ones(4)}
    for step in (1, 2):
        sw.save(state, root, step=step)
    dist.barrier()
    reader = sw.ShardedStorageReader(root / f"step-0000000{dist.get_rank() + 1}")
    expect_refused(lambda: dcp.load(state, storage_reader=reader))
    dcp.load(state, storage_reader=sw.ShardedStorageReader(root / "step-00000001"))


def resumes_from_torchs(path: str, ignored: str) -> None:
    folders = [Path(path).parent / "torchs" / name for name in ("0", "1")]
    for number, folder in enumerate(folders):
        dcp.save({"a": torch.ones(4 + number)}, checkpoint_id=folder)
    dist.barrier()
    reader = sw.ShardedStorageReader(folders[dist.get_rank()])
    expect_refused(lambda: dcp.load({"a": torch.ones(4 + dist.get_rank())}, storage_reader=reader))
    dcp.load({"a": torch.ones(4)}, storage_reader=sw.ShardedStorageReader(folders[0]))


def exports_a_path(path: str, ignored: str) -> None:
    _, copy, two = others(path)
    out = Path(path).parent / "out"
    expect_refused(lambda: sw.export(of_rank(path, two), out))
    expect_everywhere(not out.exists())
    sw.export(of_rank(path, copy), out)


def exports_with_a_template(path: str, ignored: str) -> None:
    one, copy, two = others(path)
    out = Path(path).parent / "with_template"
    state = sw.empty_state_dict(one)
    words = "rank 1: expected template's"
    expect_refused(lambda: sw.export(state, out, template=of_rank(path, two), quantization="template"), words)
    expect_everywhere(not out.exists())
    sw.export(state, out, template=of_rank(path, copy), quantization="template")


def converts(path: str, ignored: str) -> None:
    _, copy, two = others(path)
    out = Path(path).parent / "converted"
    words = "rank 1: expected template's"
    expect_refused(lambda: sw.convert(of_rank(path, two), out, quantization="bf16"), words)
    expect_everywhere(not out.exists())
    sw.convert(of_rank(path, copy), out, quantization="bf16")


if __name__ == "__main__":
    run_checks(
        [
            loads_by_dcp,
            loads_together,
            resumes,
            resumes_from_torchs,
            exports_a_path,
            exports_with_a_template,
            converts,
        ]
    )
