"""Runs under torchrun, with tests/data/failing_writes.c preloaded: saves that fail on one rank.

    torchrun --nproc-per-node N failing_save.py DIRECTORY UNEVEN_CHECKPOINT RESULT.json

After each failure every rank has the same error, the old checkpoint is whole, and the next save works.
"""

import errno
import os
import subprocess
from pathlib import Path

import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checks import run_checks
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard


def state(value: float, size: int = 1000) -> dict[str, torch.Tensor]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {
        name: DTensor.from_local(torch.full((size,), value), mesh, [Shard(0)], run_check=False)
        for name in ("a", "b")
    }


def assert_holds(path: Path, value: float) -> None:
    assert not sw.verify(path).problems
    loaded = state(0)
    sw.load(loaded, path, verify=True)
    assert all((tensor.to_local() == value).all() for tensor in loaded.values())


def assert_same_failure(path: Path, number: int | None, *words: str, new: dict | None = None) -> None:
    """Saving fails on every rank with one message that has these words; nothing else is there afterwards."""
    beside = sorted(path.parent.iterdir()) if path.parent.is_dir() else None
    try:
        sw.save(state(2) if new is None else new, path)
        raise AssertionError("expected an error")
    except (OSError, ValueError) as error:
        message = str(error)
        assert number is None or (isinstance(error, OSError) and error.errno == number), repr(error)
    assert not [word for word in words if word not in message], (words, message)
    messages: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(messages, message)
    assert len(set(messages)) == 1, messages
    assert beside == (sorted(path.parent.iterdir()) if path.parent.is_dir() else None)
    dist.barrier()


def injected(fault: str, number: int, directory: str) -> None:
    for rank in (0, dist.get_world_size() - 1):
        path = Path(directory, f"{fault}_{number}_{rank}", "checkpoint")
        sw.save(state(1), path)
        if dist.get_rank() == rank:
            os.environ["SHARDWRIGHT_TEST_FAULT"] = f"{fault}:{number}"
        file = f"rank-{rank:05d}-00000-"
        assert_same_failure(path, number, f"rank {rank}: ", file, os.strerror(number))
        os.environ.pop("SHARDWRIGHT_TEST_FAULT", None)
        assert_holds(path, 1)
        sw.save(state(3), path)
        assert_holds(path, 3)
        # Through dcp itself, the writer given as torch's is.
        if dist.get_rank() == rank:
            os.environ["SHARDWRIGHT_TEST_FAULT"] = f"{fault}:{number}"
        try:
            dcp.save(state(4), checkpoint_id=path, storage_writer=sw.ShardedStorageWriter("unused"))
            raise AssertionError("expected an error")
        except CheckpointException as failure:
            assert f"rank {rank}: " in str(failure), str(failure)
        os.environ.pop("SHARDWRIGHT_TEST_FAULT", None)
        dist.barrier()
        assert_holds(path, 3)


def input_output_error_in_the_middle(directory: str, _: str) -> None:
    injected("pwrite", errno.EIO, directory)


def input_output_error_at_the_end(directory: str, _: str) -> None:
    injected("fsync", errno.EIO, directory)


def no_space_left(directory: str, _: str) -> None:
    injected("fallocate", errno.ENOSPC, directory)


def mounted(path: Path, *options: str) -> bool:
    """Mounts a small file system there, if this user may."""
    done = [False]
    if dist.get_rank() == 0:
        path.mkdir(parents=True, exist_ok=True)
        run = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", path], capture_output=True)
        done = [run.returncode == 0]
    dist.broadcast_object_list(done)
    return done[0]


def on_rank_0(*command: str | Path) -> None:
    if dist.get_rank() == 0:
        subprocess.run(command, check=True)
    dist.barrier()


def a_file_system_without_links(directory: str, _: str) -> None:
    """There files are renamed, and what is replaced is copied."""
    path = Path(directory, "no_links", "checkpoint")
    sw.save(state(1), path)
    os.environ["SHARDWRIGHT_TEST_FAULT"] = f"link:{errno.EOPNOTSUPP}"
    sw.save(state(2), path)
    os.environ["SHARDWRIGHT_TEST_FAULT"] = f"link:{errno.EACCES}"
    assert_same_failure(path, errno.EACCES, "rank 0: ", str(path))
    del os.environ["SHARDWRIGHT_TEST_FAULT"]
    assert_holds(path, 2)
    assert [entry.name for entry in path.parent.iterdir()] == ["checkpoint"]


def a_disk_that_fills_up(directory: str, _: str) -> None:
    """Truly, where this user may mount one; the injected error says the same elsewhere."""
    disk = Path(directory, "small_disk")
    if not mounted(disk, "-o", "size=2m"):
        return no_space_left(directory + "/instead", _)
    try:
        sw.save(state(1), disk / "checkpoint")
        assert_same_failure(
            disk / "checkpoint",
            errno.ENOSPC,
            ".distcp",
            os.strerror(errno.ENOSPC),
            new=state(2, 600_000),
        )
        assert_holds(disk / "checkpoint", 1)
        sw.save(state(3), disk / "checkpoint")
        assert_holds(disk / "checkpoint", 3)
        dist.barrier()
    finally:
        on_rank_0("umount", disk)
    return None


def a_directory_that_cannot_be_written(directory: str, _: str) -> None:
    folder = Path(directory, "read_only")
    if mounted(folder):
        sw.save(state(1), folder / "checkpoint")
        on_rank_0("mount", "-o", "remount,ro", folder)
        number = errno.EROFS
    else:
        sw.save(state(1), folder / "checkpoint")
        on_rank_0("chmod", "555", folder)
        if os.access(folder, os.W_OK):  # root, who may not mount: nothing keeps it from writing
            return
        number = errno.EACCES
    try:
        assert_same_failure(folder / "checkpoint", number, "rank 0: ", str(folder), os.strerror(number))
        assert_holds(folder / "checkpoint", 1)
        dist.barrier()
    finally:
        on_rank_0(*(["umount", folder] if number == errno.EROFS else ["chmod", "755", folder]))


def a_directory_that_is_a_file(directory: str, _: str) -> None:
    file = Path(directory, "a_file")
    if dist.get_rank() == 0:
        file.write_text("not a directory")
    dist.barrier()
    assert_same_failure(file, errno.ENOTDIR, "rank 0: ", str(file), "found a file")
    assert_same_failure(file / "checkpoint", errno.ENOTDIR, "rank 0: ", str(file))
    assert file.read_text() == "not a directory"


def a_directory_of_other_things(directory: str, _: str) -> None:
    folder = Path(directory, "home")
    if dist.get_rank() == 0:
        folder.mkdir()
        (folder / "thesis.tex").write_text("years of work")
    dist.barrier()
    sw.save(state(1), folder)
    sw.save(state(2), folder)
    assert_holds(folder, 2)
    assert (folder / "thesis.tex").read_text() == "years of work"
    # A save adds its files beside theirs; one whose name it needs stops it.
    if dist.get_rank() == 0:
        (folder / "other").mkdir()
        (folder / "other" / "shardwright.manifest").write_text("somebody's notes")
    dist.barrier()
    assert_same_failure(folder / "other", errno.EEXIST, "rank 0: ", "shardwright.manifest", "overwrite=True")
    assert (folder / "other" / "shardwright.manifest").read_text() == "somebody's notes"


def a_rank_whose_state_cannot_be_saved(directory: str, _: str) -> None:
    path = Path(directory, "unpicklable")
    rank = dist.get_world_size() - 1
    bad = {f"of_rank_{dist.get_rank()}": (lambda: 1) if dist.get_rank() == rank else 1}
    assert_same_failure(path, None, f"rank {rank}: ", "pickle", new=bad)
    assert not path.exists()


def two_saves_at_once(directory: str, _: str) -> None:
    path = Path(directory, "twice")
    sw.save(state(1), path)
    dist.barrier()
    if dist.get_rank() == 0:
        from shardwright import _core

        other = _core.PendingCheckpoint(path, "sharded")
    dist.barrier()
    assert_same_failure(path, errno.EBUSY, "rank 0: ", str(path), "another save")
    if dist.get_rank() == 0:
        other.abandon()
    dist.barrier()
    sw.save(state(3), path)
    assert_holds(path, 3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_checks(
        [
            input_output_error_in_the_middle,
            input_output_error_at_the_end,
            no_space_left,
            a_file_system_without_links,
            a_disk_that_fills_up,
            a_directory_that_cannot_be_written,
            a_directory_that_is_a_file,
            a_directory_of_other_things,
            a_rank_whose_state_cannot_be_saved,
            two_saves_at_once,
        ]
    )
