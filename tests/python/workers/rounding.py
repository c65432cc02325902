"""Runs on ranks: what an export rounds, each rank holding other rows.

torchrun --nproc-per-node N rounding.py TEMPLATE IGNORED RESULT.json
"""

from pathlib import Path

import reference
import shardwright as sw
import torch
import torch.distributed as dist
from checks import run_checks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

GATE = "model.layers.1.mlp.gate.weight"


def state_of(path: str) -> dict[str, torch.Tensor]:
    """The gate in F32 and of one row for each rank, all else whole and as the template has it."""
    state = reference.native(path)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state[GATE] = distribute_tensor(state[GATE].float(), mesh, [Shard(0)])
    return state


def listed(path: str, ignored: str) -> None:
    report = sw.export(state_of(path), Path(path).parent / "to", template=path)
    assert report.rounded == {GATE: "F32 -> BF16"}, report.rounded


def refused(path: str, ignored: str) -> None:
    to = Path(path).parent / "refused"
    try:
        sw.export(state_of(path), to, template=path, strict_dtypes=True)
    except sw.PlanError as error:
        assert f"{GATE}: F32 -> BF16" in str(error), error
    else:
        raise AssertionError("not refused")
    dist.barrier()
    assert not to.exists()


if __name__ == "__main__":
    run_checks([listed, refused])
