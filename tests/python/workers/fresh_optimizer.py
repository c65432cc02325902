"""Runs on ranks: FSDP2 training that resumes into optimizers that have taken no step.

torchrun --nproc-per-node N fresh_optimizer.py CHECKPOINT UNEVEN_CHECKPOINT RESULT.json
"""

import os
import tempfile

import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checks import run_checks
from tiny_training import Training
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, foreach=False),
    "adamw_foreach": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, foreach=True),
    "adamw_fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
    "sgd_momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
}


class Resumable(Training):
    """With plain objects in the state, whose optimizer is asked for its own state dict: parameters by number."""

    def __init__(self, make, seed: int) -> None:
        super().__init__(init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("fsdp",)), seed)
        parameters = list(self.model.parameters())
        self.model.lm_head.weight.requires_grad_(False)
        self.optimizer = make([{"params": parameters[:4], "lr": 0.02}, {"params": parameters[4:]}])
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.5)

    def state(self) -> dict:
        return {
            "model": self.model,
            "optim": self.optimizer,
            "scheduler": self.scheduler,
            "rng": torch.get_rng_state(),
        }


def shared_folder() -> str:
    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(folder)
    return folder[0]


def check(name: str, save) -> None:
    path = os.path.join(shared_folder(), "saved")
    never_stopped = Resumable(OPTIMIZERS[name], seed=0)
    for _ in range(3):
        never_stopped.step()
    save(never_stopped.state(), path)
    expected = [never_stopped.step() for _ in range(3)], never_stopped.parameters()

    resumed = Resumable(OPTIMIZERS[name], seed=99)
    local = {id(p): p.to_local().data_ptr() for p in resumed.model.parameters()}
    state = resumed.state()
    report = sw.load(state, path)
    assert report.unused == [], report.unused
    assert local == {id(p): p.to_local().data_ptr() for p in resumed.model.parameters()}
    for parameter, values in resumed.optimizer.state.items():
        for value in values.values():
            if value.shape == parameter.shape:
                assert isinstance(value, DTensor) and value.placements == parameter.placements
    torch.set_rng_state(state["rng"])
    found = [resumed.step() for _ in range(3)], resumed.parameters()
    assert found[0] == expected[0], (found[0], expected[0])
    assert [key for key in expected[1] if not torch.equal(found[1][key], expected[1][key])] == []


def ours(_: str, __: str) -> None:
    for name in OPTIMIZERS:
        check(name, sw.save)


def torchs(_: str, __: str) -> None:
    for name in OPTIMIZERS:
        check(name, lambda state, path: dcp.save(state, checkpoint_id=path))


def an_object_on_one_rank_is_refused_on_all(_: str, __: str) -> None:
    """Before any of them has written to a tensor."""
    path = os.path.join(shared_folder(), "saved")
    mine = f"of_rank_{dist.get_world_size() - 1}"
    state = {"t": torch.ones(4)}
    if dist.get_rank() == dist.get_world_size() - 1:
        state[mine] = complex  # a class, which a default load refuses
    sw.save(state, path)
    loaded = {"t": torch.zeros(4)}
    if mine in state:
        loaded[mine] = None
    try:
        dcp.load(loaded, storage_reader=sw.ShardedStorageReader(path), planner=sw.LoadPlanner())
        raise AssertionError("expected an error")
    except dcp.api.CheckpointException as error:
        assert f"{mine} in" in str(error) and "weights_only=False" in str(error), str(error)
    assert not loaded["t"].any()


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_checks([ours, torchs, an_object_on_one_rank_is_refused_on_all])
