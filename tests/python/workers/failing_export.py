"""Runs under torchrun, with tests/data/failing_writes.c preloaded: exports that fail on one rank.

    torchrun --nproc-per-node N failing_export.py CHECKPOINT UNEVEN_CHECKPOINT RESULT.json

After each failure every rank has the same error, what was exported before is whole, and the next export works.
"""

import contextlib
import errno
import os
import shutil
from pathlib import Path

import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checks import run_checks
from export import rows, sharded_state, shared_folder
from exported import problems_of_files
from failing_save import mounted, on_rank_0, state
from safetensors.torch import load_file
from torch.distributed.checkpoint import CheckpointException


def assert_holds(path: Path, value: float) -> None:
    assert problems_of_files(path) == []
    tensors = [tensor for file in path.glob("*.safetensors") for tensor in load_file(file).values()]
    assert tensors and all((tensor == value).all() for tensor in tensors)


def assert_same_failure(path: Path, number: int | None, *words: object, new=None, **options) -> None:
    """Exporting fails on every rank with one message that has these words; nothing else is there afterwards."""
    beside = sorted(path.parent.iterdir()) if path.parent.is_dir() else None
    dist.barrier()
    try:
        sw.export(state(2) if new is None else new, path, **options)
        raise AssertionError("expected an error")
    except (OSError, ValueError) as error:
        message = str(error)
        assert number is None or (isinstance(error, OSError) and error.errno == number), repr(error)
    assert not [word for word in map(str, words) if word not in message], (words, message)
    messages: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(messages, message)
    assert len(set(messages)) == 1, messages
    assert beside == (sorted(path.parent.iterdir()) if path.parent.is_dir() else None)
    dist.barrier()


@contextlib.contextmanager
def fault_on(rank: int, fault: str):
    if dist.get_rank() == rank:
        os.environ["SHARDWRIGHT_TEST_FAULT"] = fault
    try:
        yield
    finally:
        os.environ.pop("SHARDWRIGHT_TEST_FAULT", None)
        dist.barrier()


def injected(fault: str, number: int) -> None:
    for rank in (0, dist.get_world_size() - 1):
        with shared_folder() as folder:
            path = folder / "to"
            sw.export(state(1), path)
            with fault_on(rank, f"{fault}:{number}"):
                words = [f"rank {rank}: ", "model-2-00001-of-00001.safetensors", os.strerror(number)]
                assert_same_failure(path, number, *words)
            assert_holds(path, 1)
            # Through dcp itself. The writer is still there when another one exports to the same name.
            writer = sw.HuggingFaceStorageWriter(path)
            try:
                with fault_on(rank, f"{fault}:{number}"):
                    dcp.save(state(2), storage_writer=writer, planner=sw.SavePlanner())
                raise AssertionError("expected an error")
            except CheckpointException as failure:
                assert f"rank {rank}: " in str(failure), str(failure)
            sw.export(state(3), path)
            assert_holds(path, 3)
            assert [entry.name for entry in folder.iterdir()] == ["to"]


def input_output_error_in_the_middle(path: str, uneven: str) -> None:
    injected("pwrite", errno.EIO)


def input_output_error_at_the_end(path: str, uneven: str) -> None:
    injected("fsync", errno.EIO)


def no_space_left_while_writing(path: str, uneven: str) -> None:
    injected("pwrite", errno.ENOSPC)


def a_disk_that_fills_up(path: str, uneven: str) -> None:
    """Before anything is written, where the tensors do not fit; and at the end, where the template's files do not."""
    with shared_folder() as folder:
        disk = folder / "small_disk"
        if not mounted(disk, "-o", "size=2m"):
            return
        try:
            sw.export(state(1), disk / "to")
            large = state(2, 600_000)
            assert_same_failure(disk / "to", errno.ENOSPC, "rank 0: ", disk / "to", "free space", new=large)
            template = folder / "template"
            if dist.get_rank() == 0:
                shutil.copytree(path, template)
                (template / "tokenizer.json").write_bytes(b" " * (3 << 20))
            dist.barrier()
            new = sharded_state(path, rows)
            words = ["rank 0: ", "tokenizer.json", os.strerror(errno.ENOSPC)]
            assert_same_failure(disk / "to", errno.ENOSPC, *words, new=new, template=template)
            assert_holds(disk / "to", 1)
            sw.export(state(3), disk / "to")
            assert_holds(disk / "to", 3)
            dist.barrier()
        finally:
            on_rank_0("umount", disk)


def a_directory_that_cannot_be_written(path: str, uneven: str) -> None:
    with shared_folder() as folder:
        disk = folder / "read_only"
        if not mounted(disk):
            return
        try:
            sw.export(state(1), disk / "to")
            on_rank_0("mount", "-o", "remount,ro", disk)
            assert_same_failure(disk / "to", errno.EROFS, "rank 0: ", disk, os.strerror(errno.EROFS))
            assert_holds(disk / "to", 1)
            dist.barrier()
        finally:
            on_rank_0("umount", disk)


def a_directory_that_is_a_file(path: str, uneven: str) -> None:
    with shared_folder() as folder:
        file = folder / "a_file"
        if dist.get_rank() == 0:
            file.write_text("not a directory")
        dist.barrier()
        assert_same_failure(file, errno.ENOTDIR, "rank 0: ", file, "found a file")
        assert_same_failure(file / "to", errno.ENOTDIR, "rank 0: ", file)
        assert file.read_text() == "not a directory"


def a_directory_of_other_things(path: str, uneven: str) -> None:
    with shared_folder() as folder:
        if dist.get_rank() == 0:
            (folder / "home").mkdir()
            (folder / "home" / "thesis.tex").write_text("years of work")
        dist.barrier()
        sw.export(state(1), folder / "home")
        assert_holds(folder / "home", 1)
        assert (folder / "home" / "thesis.tex").read_text() == "years of work"


def a_template_whose_names_do_not_match(path: str, uneven: str) -> None:
    with shared_folder() as folder:
        new = sharded_state(path, rows)
        new["model.layers.77.input_layernorm.weight"] = new.pop("model.norm.weight")
        words = ["rank 0: ", "model.layers.77.input_layernorm.weight", path]
        assert_same_failure(folder / "to", None, *words, new=new, template=path)
        del new["model.layers.77.input_layernorm.weight"]
        words = ["rank 0: ", "language_model.model.norm.weight", "strict=False", path]
        assert_same_failure(folder / "to", None, *words, new=new, template=path)


def a_template_that_one_rank_cannot_see(path: str, uneven: str) -> None:
    last = dist.get_world_size() - 1
    with shared_folder() as folder:
        template = "/nowhere" if dist.get_rank() == last else path
        words = [f"rank {last}: ", "/nowhere"]
        new = sharded_state(path, rows)
        assert_same_failure(folder / "to", errno.ENOENT, *words, new=new, template=template)


def a_value_that_is_no_tensor(path: str, uneven: str) -> None:
    last = dist.get_world_size() - 1
    with shared_folder() as folder:
        new = state(2) | ({"step": 3} if dist.get_rank() == last else {})
        assert_same_failure(folder / "to", None, f"rank {last}: ", "step", "int", new=new)


def two_exports_at_once(path: str, uneven: str) -> None:
    with shared_folder() as folder:
        sw.export(state(1), folder / "to")
        other = None
        if dist.get_rank() == 0:
            from shardwright import _core

            other = _core.PendingCheckpoint(folder / "to", "huggingface")
        dist.barrier()
        assert_same_failure(folder / "to", errno.EBUSY, "rank 0: ", folder / "to", "another save")
        if other is not None:
            other.abandon()
        dist.barrier()
        sw.export(state(3), folder / "to")
        assert_holds(folder / "to", 3)


def staging_beyond_its_bound(path: str, uneven: str) -> None:
    """On one rank alone: all hear of it from the future, and nothing is there."""
    with shared_folder() as folder:
        limit = 10 if dist.get_rank() == 0 else None
        writer = sw.HuggingFaceStorageWriter(folder / "to", async_staging_bytes=limit)
        future = dcp.async_save(state(2), storage_writer=writer, planner=sw.SavePlanner())
        try:
            future.result()
            raise AssertionError("expected an error")
        except CheckpointException as failure:
            assert "async_staging_bytes allows 10" in str(failure), str(failure)
        dist.barrier()
        assert list(folder.iterdir()) == []


CHECKS = [
    input_output_error_in_the_middle,
    input_output_error_at_the_end,
    no_space_left_while_writing,
    a_disk_that_fills_up,
    a_directory_that_cannot_be_written,
    a_directory_that_is_a_file,
    a_directory_of_other_things,
    a_template_whose_names_do_not_match,
    a_template_that_one_rank_cannot_see,
    a_value_that_is_no_tensor,
    two_exports_at_once,
    staging_beyond_its_bound,
]


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_checks(CHECKS)
