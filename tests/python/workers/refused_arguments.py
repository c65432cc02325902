"""One of two ranks calls with something that is refused before the ranks talk; see outcomes.py."""

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
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
    expect_refused(lambda: sw.save(of_rank(STATE, MODULE), folder(path), asynchronous=True), "state dict")


def save_after_one_that_failed(path: str, ignored: str) -> None:
    """Which one rank has waited for, and the other has not."""

    class Unpicklable:
        def __reduce__(self) -> Any:
            raise ValueError("cannot be saved")

    pending = sw.save({"a": Unpicklable()}, folder(path), asynchronous=True)
    assert isinstance(pending, sw.PendingSave)
    if dist.get_rank() == 0:
        with suppress(ValueError):
            pending.wait()
    expect_refused(lambda: sw.save(STATE, folder(path)), "cannot be saved")


def save_as_others_do_not(path: str, ignored: str) -> None:
    for name, fine, odd in (
        ("asynchronous", False, True),
        ("step", 1, 2),
        ("overwrite", None, True),
        ("format", "torch", "safetensors"),
    ):
        options: dict[str, Any] = {name: of_rank(fine, odd)}
        expect_refused(lambda options=options: sw.save(STATE, folder(path), **options), f"found {name} {odd}")
    expect_refused(lambda: sw.save(STATE, of_rank(folder(path), path)), f"found path {path}")


def another_call(path: str, ignored: str) -> None:
    expect_refused(lambda: of_rank(sw.save, sw.export)(STATE, folder(path)), "found call of exporting")


def save_to_an_address(path: str, ignored: str) -> None:
    expect_refused(lambda: sw.save(STATE, of_rank(folder(path), "s3://x")), "s3://")


def export(path: str, ignored: str) -> None:
    expect_refused(lambda: sw.export(STATE, folder(path), quantization=of_rank(None, "odd")), "quantization")


def export_of_a_path(path: str, ignored: str) -> None:
    expect_refused(lambda: sw.export(path, folder(path), max_shard_size=of_rank("5GB", "large")), "large")


def export_of_a_path_or_of_a_state_dict(path: str, ignored: str) -> None:
    expect_refused(lambda: sw.export(of_rank(STATE, path), folder(path)), "found state_dict of a path")
    expect_refused(lambda: sw.export(of_rank(path, STATE), folder(path)), "found state_dict of tensors")
    expect_refused(lambda: sw.export(of_rank(path, "absent"), folder(path)), "absent")


def no_process_group(path: str, ignored: str) -> None:
    group: Any = of_rank(None, "all")
    for call in (
        lambda: sw.save(STATE, folder(path), process_group=group),
        lambda: sw.export(STATE, folder(path), process_group=group),
        lambda: sw.export(path, folder(path), process_group=group),
        lambda: sw.save_lora({}, folder(path), alpha=1, process_group=group),
        lambda: sw.convert(path, folder(path), quantization="bf16", process_group=group),
        lambda: sw.pieces(STATE, process_group=group),
        lambda: sw.refit(STATE, process_group=group),
    ):
        expect_refused(call, "process_group: expected a process group")


def none_of_the_group(path: str, ignored: str) -> None:
    """Only rank 0 is one of it, and saves; the other must not save by itself."""
    group = dist.new_group([0])
    if dist.get_rank() == 0:
        sw.save(STATE, folder(path), process_group=group)
        shutil.rmtree(folder(path))
    else:
        expect_refused(lambda: sw.save(STATE, folder(path), process_group=group), "none of that group's")
    dist.barrier()


def load_as_none_of_the_group(path: str, ignored: str) -> None:
    """The other must not take part in what all ranks do next."""
    group = dist.new_group([0])
    state = sw.empty_state_dict(path)
    if dist.get_rank() == 0:
        sw.load(state, path, cooperative=group)
    else:
        expect_refused(lambda: sw.load(state, path, cooperative=group), "none of that group's")
    told: list[Any] = [None, None]
    dist.all_gather_object(told, dist.get_rank())
    assert told == [0, 1]


def load(path: str, ignored: str) -> None:
    state = sw.empty_state_dict(path)
    expect_refused(lambda: sw.load(of_rank(state, None), path, cooperative=True), "state dict")


def load_in_no_way_that_there_is(path: str, ignored: str) -> None:
    for fine, odd in (
        (True, "nodes"),
        ("job", 3),
        ("node", None),
        ("node", "job"),
        (True, "node"),
        (dist.group.WORLD, "all"),
    ):
        way = of_rank(fine, odd)
        state = sw.empty_state_dict(path)
        expect_refused(lambda state=state, way=way: sw.load(state, path, cooperative=way), f"{odd}")


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
    run_checks(
        [
            save,
            save_in_the_background,
            save_after_one_that_failed,
            save_as_others_do_not,
            save_to_an_address,
            another_call,
            export,
            export_of_a_path,
            export_of_a_path_or_of_a_state_dict,
            no_process_group,
            none_of_the_group,
            load_as_none_of_the_group,
            load,
            load_in_no_way_that_there_is,
            afterwards,
        ]
    )
