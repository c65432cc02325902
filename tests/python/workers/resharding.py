"""Runs on ranks: sharded checkpoints planned by sw.SavePlanner, from any placement into any other.

    torchrun --nproc-per-node N resharding.py CHECKPOINT UNEVEN_CHECKPOINT RESULT.json

RESULT.json gets, for each check below, what went wrong on which rank; an empty text if nothing did.
"""

import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checks import run_checks
from export import shared_folder
from save_planning import SHAPES, shardings, state_of, whole
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.tensor import DTensor, Replicate


def saved(folder, number: int, mesh, placements) -> list:
    """The same state by every way to save it."""
    state = state_of(mesh, placements)
    ways = {
        "save": lambda path: sw.save(state, path),
        "dcp.save": lambda path: dcp.save(
            state, storage_writer=sw.ShardedStorageWriter(path), planner=sw.SavePlanner()
        ),
        "dcp.async_save": lambda path: dcp.async_save(
            state, storage_writer=sw.ShardedStorageWriter(path), planner=sw.SavePlanner()
        ).result(),
    }
    paths = []
    for name, save in ways.items():
        paths.append(folder / f"{number} {name}")
        save(paths[-1])
        dist.barrier()
    return paths


def assert_loads(load, mesh, placements) -> None:
    found, expected = state_of(mesh, placements, zero=True), state_of(mesh, placements)
    load(found)
    wrong = [
        name
        for name, tensor in found["model"].items()
        if not torch.equal(tensor.to_local(), expected["model"][name].to_local())
    ]
    assert wrong == [], wrong
    assert torch.equal(found["plain"], expected["plain"]) and found["step"] == expected["step"]


def any_placement_into_any_other(path: str, uneven: str) -> None:
    everything = list(shardings())
    with shared_folder() as folder:
        for number, (mesh, placements) in enumerate(everything):
            for where in saved(folder, number, mesh, placements):
                if dist.get_rank() == 0:
                    assert not sw.verify(where).problems
                for into in everything:
                    assert_loads(lambda state, where=where: sw.load(state, where, verify=True), *into)
                    reader = sw.ShardedStorageReader(where)
                    planner = sw.LoadPlanner()
                    assert_loads(
                        lambda state, reader=reader, planner=planner: dcp.load(
                            state, storage_reader=reader, planner=planner
                        ),
                        *into,
                    )


def torchs_checkpoints_into_any_placement(path: str, uneven: str) -> None:
    with shared_folder() as folder:
        mesh, placements = next(shardings())
        dcp.save(state_of(mesh, placements), checkpoint_id=folder / "torchs")
        for into in shardings():
            assert_loads(lambda state: sw.load(state, folder / "torchs"), *into)


def torchs_planner_is_told_what_is_beyond_it(path: str, uneven: str) -> None:
    """It takes the boxes of a strided shard for one, and would fill it with the wrong rows."""
    with shared_folder() as folder:
        *_, (mesh, placements) = shardings()
        sw.save(state_of(mesh, placements), folder / "to")
        found = state_of(mesh, placements, zero=True)
        try:
            dcp.load(found, storage_reader=sw.ShardedStorageReader(folder / "to"))
            raise AssertionError("expected an error")
        except CheckpointException as refused:
            assert "model.matrix" in str(refused) and "shardwright.LoadPlanner()" in str(refused), refused
        assert not any(tensor.to_local().any() for tensor in found["model"].values())


def training_goes_on_during_a_save(path: str, uneven: str) -> None:
    with shared_folder() as folder:
        for number, (mesh, placements) in enumerate(shardings()):
            state = state_of(mesh, placements)
            where = folder / str(number)
            writer = sw.ShardedStorageWriter(where)
            future = dcp.async_save(state, storage_writer=writer, planner=sw.SavePlanner())
            for tensor in [*state["model"].values(), state["plain"]]:
                (tensor.to_local() if isinstance(tensor, DTensor) else tensor).fill_(-1)
            future.result()
            dist.barrier()
            assert_loads(lambda found, where=where: sw.load(found, where, verify=True), mesh, placements)


def a_planner_that_is_used_again(path: str, uneven: str) -> None:
    """The second and third save send hashes, to checkpoints of other names."""
    planner = sw.SavePlanner()
    mesh, placements = next(shardings())
    with shared_folder() as folder:
        for step in range(3):
            state = state_of(mesh, placements)
            state["step"] = step
            sw.save(state, folder, step=step, keep_last=2, planner=planner)
            found = state_of(mesh, placements, zero=True)
            sw.load(found, sw.latest(folder), verify=True)
            assert found["step"] == step
            dist.barrier()
        assert sorted(entry.name for entry in folder.iterdir()) == ["step-00000001", "step-00000002"]
        dist.barrier()


def a_plan_that_the_ranks_refuse_leaves_nothing(path: str, uneven: str) -> None:
    """While the writer that was refused is still there, another one saves to the same name."""
    mesh, placements = next(shardings())
    last = dist.get_world_size() - 1
    with shared_folder() as folder:
        state = state_of(mesh, placements)
        if dist.get_rank() == last:
            state["model"]["one"] = DTensor.from_local(
                torch.zeros(1, 4),
                mesh,
                [Replicate()],
                run_check=False,
                shape=torch.Size((1, 4)),
                stride=(4, 1),
            )
        writer = sw.ShardedStorageWriter(folder / "to")
        try:
            dcp.save(state, storage_writer=writer, planner=sw.SavePlanner())
            raise AssertionError("expected an error")
        except CheckpointException as refused:
            assert (
                f"model.one: expected float32 [1, 3] as on rank 0, found float32 [1, 4] on rank {last}"
                in str(refused)
            ), refused
        assert list(folder.iterdir()) == []
        dist.barrier()
        sw.save(state_of(mesh, placements), folder / "to")
        assert_loads(lambda found: sw.load(found, folder / "to"), mesh, placements)


def every_rank_writes_its_part_and_no_more(path: str, uneven: str) -> None:
    """What all hold is written once; a rank writes what it alone holds, and about a mean share of the rest."""
    with shared_folder() as folder:
        for number, (mesh, placements) in enumerate(shardings()):
            state = {"model": state_of(mesh, placements)["model"]}
            report = sw.save(state, folder / str(number), format="safetensors")
            written = [0] * dist.get_world_size()
            chunks = report.bytes_written - sum(
                int.from_bytes(file.read_bytes()[:8], "little") + 8
                for file in (folder / str(number)).glob(f"rank-{dist.get_rank():05d}-*.safetensors")
            )
            dist.all_gather_object(written, chunks)
            expected = sum(whole(name).nbytes for name in SHAPES)
            # Alignment between tensors may take up to 7 bytes each.
            assert expected <= sum(written) <= expected + 8 * len(SHAPES) * len(written), written


CHECKS = [
    any_placement_into_any_other,
    torchs_checkpoints_into_any_placement,
    torchs_planner_is_told_what_is_beyond_it,
    training_goes_on_during_a_save,
    a_planner_that_is_used_again,
    a_plan_that_the_ranks_refuse_leaves_nothing,
    every_rank_writes_its_part_and_no_more,
]


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_checks(CHECKS)
