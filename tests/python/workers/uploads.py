"""Runs on ranks: saves and exports to a store that rank 0 serves.

    torchrun --nproc-per-node N uploads.py CHECKPOINT UNEVEN_CHECKPOINT RESULT.json

What is uploaded equals, byte for byte, what the same ranks write into a folder.
"""

import os
import tempfile
import warnings
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checks import run_checks
from shardwright.dcp import storage_writer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from writing_server import answering, serving_writes

SERVED = ExitStack()
FOLDER = Path()  # as the server has it, on rank 0's machine, which is every rank's


def serve() -> None:
    global FOLDER
    told: list = [None]
    if dist.get_rank() == 0:
        folder = SERVED.enter_context(tempfile.TemporaryDirectory())
        server = SERVED.enter_context(serving_writes(folder))
        server.folder.joinpath("bucket").mkdir()
        vars(serve)["server"] = server
        told = [(folder, server.environment)]
    dist.broadcast_object_list(told)
    FOLDER = Path(told[0][0], "bucket")
    os.environ.update(told[0][1])


def fail_writes(faults: list) -> None:
    """Has the server do that, once all ranks are here."""
    dist.barrier()
    if dist.get_rank() == 0:
        vars(serve)["server"].write_faults = faults
    dist.barrier()


def state(value: float = 1.0) -> dict:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(3)
    whole = {
        "rows": torch.randn(1501, 2100) * value,
        "columns": torch.randn(701, 1303) * value,
        "turned": (torch.randn(301, 205) * value).t(),
        "all": torch.randn(77) * value,
        "few": torch.randn(1, 5) * value,
        "half": (torch.randn(64, 96) * value).bfloat16(),
    }
    placements = {"columns": Shard(1), "turned": Shard(1), "all": Replicate(), "half": Shard(1)}
    return {
        name: distribute_tensor(tensor, mesh, [placements.get(name, Shard(0))])
        for name, tensor in whole.items()
    }


def local(value: object) -> object:
    return value.to_local() if isinstance(value, DTensor) else value


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def expect_holds(folder: Path, expected: dict) -> None:
    assert sw.verify(folder).problems == []
    loaded = {name: DTensor.from_local(torch.zeros_like(held.to_local()), held.device_mesh, held.placements,
                                       run_check=False, shape=held.shape, stride=held.stride())
              for name, held in expected.items()}  # fmt: skip
    loaded["step"] = 0
    sw.load(loaded, folder)
    assert loaded.pop("step") == 7
    assert [name for name in expected if not torch.equal(local(loaded[name]), local(expected[name]))] == []


def outcome_of(run) -> str:
    """What went wrong, which is to be the same on all ranks."""
    message = ""
    try:
        run()
    except (OSError, ValueError) as error:
        message = f"{type(error).__name__}: {error}"
    messages = [""] * dist.get_world_size()
    dist.all_gather_object(messages, message)
    assert len(set(messages)) == 1, messages
    return message


def a_save_is_that_of_a_folder(path: str, uneven: str) -> None:
    for format in ("torch", "safetensors"):
        held = state()
        sw.save({**held, "step": 7}, f"s3://bucket/{format}", format=format)
        expect_holds(FOLDER / format, held)
        sw.save({**state(2.0), "step": 7}, f"s3://bucket/{format}", format=format)
        expect_holds(FOLDER / format, state(2.0))
        dist.barrier()
        assert len(contents(FOLDER / format)) <= 2 + 4 * dist.get_world_size()


def steps_are_kept(path: str, uneven: str) -> None:
    for step in (1, 2, 3):
        sw.save({**state(step), "step": 7}, "s3://bucket/steps", step=step, keep_last=2)
    dist.barrier()
    assert sw.latest("s3://bucket/steps") == "s3://bucket/steps/step-00000003"
    kept = {file.parent.name for file in (FOLDER / "steps").rglob("*") if file.is_file()}
    assert kept == {"step-00000002", "step-00000003"}
    expect_holds(FOLDER / "steps" / "step-00000003", state(3))


def an_asynchronous_save(path: str, uneven: str) -> None:
    held = state(4.0)
    pending = sw.save({**held, "step": 7}, "s3://bucket/later", asynchronous=True)
    for tensor in held.values():
        tensor.to_local().zero_()
    pending.wait()
    expect_holds(FOLDER / "later", state(4.0))


def an_export_is_that_of_a_folder(path: str, uneven: str) -> None:
    for size in ("1MB", "6MB", "5GB"):
        how = {"layout": "huggingface", "max_shard_size": size}
        with tempfile.TemporaryDirectory() as scratch:
            beside = [scratch]
            dist.broadcast_object_list(beside)
            sw.export(state(), f"s3://bucket/export-{size}", **how)
            sw.export(state(), Path(beside[0], "local"), **how)
            assert contents(FOLDER / f"export-{size}") == contents(Path(beside[0], "local"))
            dist.barrier()
        assert sw.verify(FOLDER / f"export-{size}").problems == []


def a_quantized_export_by_a_template(path: str, uneven: str) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(5)
    held = {}
    for number, (name, tensor) in enumerate(sw.empty_state_dict(uneven).items()):
        value = torch.randn(tensor.shape).to(tensor.dtype)
        held[name] = distribute_tensor(value, mesh, [Shard(number % max(1, tensor.dim()))])
    for quantization in (None, "mxfp8"):
        how = {"template": uneven, "quantization": quantization, "max_shard_size": "20KB"}
        with tempfile.TemporaryDirectory() as scratch:
            beside = [scratch]
            dist.broadcast_object_list(beside)
            sw.export(held, f"s3://bucket/template-{quantization}", **how)
            sw.export(held, Path(beside[0], "local"), **how)
            assert contents(FOLDER / f"template-{quantization}") == contents(Path(beside[0], "local"))
            dist.barrier()


def through_dcp(path: str, uneven: str) -> None:
    writer = sw.HuggingFaceStorageWriter("s3://bucket/dcp", layout="huggingface")
    dcp.save(state(), storage_writer=writer, planner=sw.SavePlanner())
    assert sw.verify(FOLDER / "dcp").problems == []
    sharded = sw.ShardedStorageWriter("s3://bucket/dcp-sharded")
    dcp.save({**state(), "step": 7}, storage_writer=sharded, planner=sw.SavePlanner())
    expect_holds(FOLDER / "dcp-sharded", state())


def a_store_that_denies_a_rank(path: str, uneven: str) -> None:
    """What one rank is refused all are told, nothing is published, and the next save works."""
    last = dist.get_world_size() - 1
    sw.save({**state(), "step": 7}, "s3://bucket/denied")
    sw.export(state(), "s3://bucket/denied-model", layout="huggingface", max_shard_size="6MB")
    before = contents(FOLDER / "denied"), contents(FOLDER / "denied-model")
    fail_writes([answering(403, times=1000, where=f"rank-{last:05d}-|model-2-00002")])
    message = outcome_of(lambda: sw.save({**state(2.0), "step": 7}, "s3://bucket/denied"))
    assert message.startswith("PermissionError") and f"rank {last}: s3://bucket/denied/rank-" in message, (
        message
    )
    message = outcome_of(
        lambda: sw.export(state(2.0), "s3://bucket/denied-model", layout="huggingface", max_shard_size="6MB")
    )
    assert message.startswith("PermissionError") and "s3://bucket/denied-model/model-2-00002" in message, (
        message
    )
    fail_writes([])
    assert (contents(FOLDER / "denied"), contents(FOLDER / "denied-model")) == before
    assert not (FOLDER / "denied" / ".shardwright.saving").is_dir() or not any(
        (FOLDER / "denied" / ".shardwright.saving").iterdir()
    )
    dist.barrier()
    sw.save({**state(3.0), "step": 7}, "s3://bucket/denied")
    expect_holds(FOLDER / "denied", state(3.0))


def a_state_that_one_rank_cannot_save(path: str, uneven: str) -> None:
    held = {**state(), "step": 7}
    if dist.get_rank() == 0:
        held["object"] = lambda: None  # which no pickle can hold
    assert outcome_of(lambda: sw.save(held, "s3://bucket/unsaved")) != ""
    dist.barrier()
    assert not [file for file in (FOLDER / "unsaved").rglob("*") if file.is_file()]
    if dist.get_rank() == 0:
        assert vars(serve)["server"].uploads == {}


def an_export_that_one_rank_cannot_begin(path: str, uneven: str) -> None:
    """Such as one where the library of the store is not installed: no rank waits for it."""
    last = dist.get_world_size() - 1
    with ExitStack() as until_refused:
        if dist.get_rank() == last:
            until_refused.enter_context(
                mock.patch.object(storage_writer, "Sending", side_effect=OSError("no library"))
            )
        message = outcome_of(lambda: sw.export(state(), "s3://bucket/unbegun", layout="huggingface"))
    assert f"rank {last}: " in message and "no library" in message, message
    dist.barrier()
    sw.export(state(), "s3://bucket/unbegun", layout="huggingface")
    assert sw.verify(FOLDER / "unbegun").problems == []


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    CHECKS = [
        a_save_is_that_of_a_folder,
        steps_are_kept,
        an_asynchronous_save,
        an_export_is_that_of_a_folder,
        a_quantized_export_by_a_template,
        through_dcp,
        a_store_that_denies_a_rank,
        a_state_that_one_rank_cannot_save,
        an_export_that_one_rank_cannot_begin,
    ]

    def begin(path: str, uneven: str) -> None:
        serve()

    run_checks([begin, *CHECKS])
