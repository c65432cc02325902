"""Runs on ranks: training that is saved, and resumed from a checkpoint of other ranks.

    torchrun --nproc-per-node N resume.py DIRECTORY UNEVEN_CHECKPOINT RESULT.json

DIRECTORY is the same for all N: two ranks save what one and four resume from.
"""

import os

import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checks import run_checks
from tiny_training import Training
from torch.distributed.device_mesh import init_device_mesh


def mesh_of_all():
    return init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("fsdp",))


def ep_mesh():
    return init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("ep", "fsdp"))


def resumed(mesh, load) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and parameters after three more steps of a training that began with other numbers."""
    training = Training(mesh, seed=99)
    training.step()  # so that there are moments to load into
    state = training.state()
    load(state)
    training.resume(state)
    assert training.position == 3
    losses = [training.step() for _ in range(3)]
    return losses, training.parameters()


def assert_same(got, want) -> None:
    assert got[0] == want[0], (got[0], want[0])
    assert [name for name in want[1] if not torch.equal(got[1][name], want[1][name])] == []


def trained(mesh, path: str, *, of_torch: str | None = None):
    """A training of six steps that never stops, saved after three."""
    training = Training(mesh)
    for _ in range(3):
        training.step()
    sw.save(training.state(), path)
    if of_torch:
        dcp.save(training.state(), checkpoint_id=of_torch)
    losses = [training.step() for _ in range(3)]
    return losses, training.parameters()


def two_ranks_go_on_as_if_nothing_had_been(directory: str, _: str) -> None:
    if dist.get_world_size() != 2:
        return
    path = os.path.join(directory, "ours")
    want = trained(mesh_of_all(), path, of_torch=os.path.join(directory, "torchs"))
    assert_same(resumed(mesh_of_all(), lambda state: sw.load(state, path, verify=True)), want)
    assert_same(
        resumed(mesh_of_all(), lambda state: dcp.load(state, storage_reader=sw.ShardedStorageReader(path))),
        want,
    )


def other_numbers_of_ranks_as_torchs_own(directory: str, _: str) -> None:
    ours, torchs = os.path.join(directory, "ours"), os.path.join(directory, "torchs")
    want = resumed(mesh_of_all(), lambda state: dcp.load(state, checkpoint_id=torchs))
    assert_same(resumed(mesh_of_all(), lambda state: sw.load(state, ours)), want)
    # And torch's own is recognised, and read by torch's reader.
    assert_same(resumed(mesh_of_all(), lambda state: sw.load(state, torchs)), want)


def expert_parallel_and_fsdp(directory: str, _: str) -> None:
    if dist.get_world_size() == 1:
        return
    path = os.path.join(directory, f"ep_{dist.get_world_size()}")
    want = trained(ep_mesh(), path)
    assert_same(resumed(ep_mesh(), lambda state: sw.load(state, path)), want)


def expert_parallel_and_fsdp_on_other_ranks(directory: str, _: str) -> None:
    """Four ranks of ep 2 x fsdp 2 from two ranks' checkpoint, and plain FSDP from theirs, as torch's own gives."""
    if dist.get_world_size() != 4:
        return
    for saved in ("ep_2", "ep_4"):
        path = os.path.join(directory, saved)
        converted = os.path.join(directory, saved + "_torchs")
        for mesh in (ep_mesh(), mesh_of_all()):
            # torch's own checkpoint of the same state, on this number of ranks.
            training = Training(mesh, seed=5)
            training.step()
            state = training.state()
            sw.load(state, path)
            dcp.save(state, checkpoint_id=converted)
            want = resumed(mesh, lambda state, path=converted: dcp.load(state, checkpoint_id=path))
            assert_same(resumed(mesh, lambda state, path=path: sw.load(state, path)), want)


def replicated_tensors_once_and_balanced(directory: str, _: str) -> None:
    path = os.path.join(directory, f"replicated_{dist.get_world_size()}")
    torch.manual_seed(1)
    state = {f"t{i}": torch.randn(100 + i) for i in range(64)}
    report = sw.save(state, path)
    written: list = [None] * dist.get_world_size()
    dist.all_gather_object(written, (report.tensors, report.bytes_written))
    assert sum(tensors for tensors, _ in written) == 64, written
    mean = sum(size for _, size in written) / len(written)
    assert max(size for _, size in written) <= 1.1 * mean, written


def torchs_hf_reader_reads_the_tensors(directory: str, _: str) -> None:
    if dist.get_world_size() != 4:
        return
    path = os.path.join(directory, "ours_as_safetensors")
    sw.save({"model": Training(mesh_of_all(), seed=97).model.state_dict()}, path, format="safetensors")
    training = Training(mesh_of_all(), seed=99)
    training.step()
    theirs, ours = training.state()["model"], Training(mesh_of_all(), seed=98).model.state_dict()
    dcp.load({"model": theirs}, storage_reader=dcp.HuggingFaceStorageReader(path))
    sw.load({"model": ours}, path)
    assert [name for name in ours if not torch.equal(theirs[name].to_local(), ours[name].to_local())] == []


def what_torchs_hf_writer_wrote(directory: str, _: str) -> None:
    path = os.path.join(directory, f"hf_of_torch_{dist.get_world_size()}")
    training = Training(mesh_of_all())
    saved = training.model.state_dict()
    dcp.save(saved, storage_writer=dcp.HuggingFaceStorageWriter(path, save_distributed=True))
    state = Training(mesh_of_all(), seed=3).model.state_dict()
    sw.load(state, path)
    assert [name for name in saved if not torch.equal(saved[name].to_local(), state[name].to_local())] == []


def saving_while_training_goes_on(directory: str, _: str) -> None:
    path = os.path.join(directory, f"background_{dist.get_world_size()}")
    training = Training(mesh_of_all())
    training.step()
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    pending = sw.save(training.state(), path, asynchronous=True)
    with torch.no_grad():
        for parameter in training.model.parameters():
            parameter.to_local().fill_(-1)
    report = pending.wait()
    assert report.peak_staging_bytes > 0
    state = {"model": training.model.state_dict()}
    sw.load(state, path)
    found = state["model"]
    assert [name for name in before if not torch.equal(before[name].to_local(), found[name].to_local())] == []


def a_failure_in_the_background(directory: str, _: str) -> None:
    """On one rank alone: all hear of it at the next save, or when they wait."""
    path = os.path.join(directory, f"too_large_{dist.get_world_size()}")
    limit = 10 if dist.get_rank() == 0 else None
    state = {"t": torch.ones(100)}
    for find_out in (lambda pending: pending.wait(), lambda _: sw.save(state, path)):
        pending = sw.save(state, path, asynchronous=True, async_staging_bytes=limit)
        try:
            find_out(pending)
            raise AssertionError("expected an error")
        except ValueError as error:
            assert "rank 0" in str(error) and "async_staging_bytes allows 10" in str(error), str(error)
        assert not os.path.exists(path)
    sw.save(state, path)
    assert not sw.verify(path).problems


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_checks(
        [
            two_ranks_go_on_as_if_nothing_had_been,
            other_numbers_of_ranks_as_torchs_own,
            expert_parallel_and_fsdp,
            expert_parallel_and_fsdp_on_other_ranks,
            replicated_tensors_once_and_balanced,
            torchs_hf_reader_reads_the_tensors,
            what_torchs_hf_writer_wrote,
            saving_while_training_goes_on,
            a_failure_in_the_background,
        ]
    )
