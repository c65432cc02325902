"""Runs on ranks: a checkpoint is loaded, exported as MXFP8 and loaded again, and every bit is the same.

    torchrun --nproc-per-node N round_trip.py CHECKPOINT UNEVEN_CHECKPOINT RESULT.json

The boundaries between the ranks lie inside blocks of scales. Unlike export.py it takes no reference's word for what the
files hold, so that checkpoints of any size will do.
"""

import warnings

import numpy as np
import shardwright as sw
import torch
import torch.distributed as dist
from checks import run_checks
from export import empty_like, inside_blocks, local, shared_folder
from exported import bytes_of_files, problems_of_files
from placements import held_indices
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

State = dict[str, torch.Tensor]


def begins_inside_a_block(columns: np.ndarray) -> bool:
    """True if a run of these columns, which a rank holds, begins inside of a block of 32."""
    begins = columns[np.diff(columns, prepend=-2) != 1]
    return bool((begins % 32 != 0).any())


def empty_state(path: str) -> tuple[State, int]:
    """Tensors to load into, and for how many of them this rank's part begins inside of a block."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state: State = {}
    cut = 0
    for fqn, whole in sw.empty_state_dict(path).items():
        placement = inside_blocks(fqn, whole)
        held = held_indices(tuple(whole.shape), tuple(mesh.shape), tuple(mesh.get_coordinate()), [placement])
        part = torch.zeros([len(indices) for indices in held], dtype=whole.dtype)
        state[fqn] = DTensor.from_local(
            part, mesh, [placement], run_check=False, shape=whole.shape, stride=whole.stride()
        )
        cut += whole.dim() > 1 and begins_inside_a_block(held[1])
    return state, cut


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return local(tensor).contiguous().reshape(-1).view(torch.uint8)


def every_bit_comes_back(path: str, uneven: str) -> None:
    state, begun = empty_state(path)
    cut: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(cut, begun)
    assert dist.get_world_size() == 1 or sum(cut) > 0, "no rank's part begins inside of a block"
    sw.load(state, path)
    with shared_folder() as folder:
        report = sw.export(state, folder / "to", quantization="mxfp8", template=path, max_shard_size="500MB")
        written: list[int] = [0] * dist.get_world_size()
        dist.all_gather_object(written, report.bytes_written)
        if dist.get_rank() == 0:
            assert problems_of_files(folder / "to") == []
            assert sum(written) == bytes_of_files(folder / "to")
        back = empty_like(state)
        sw.load(back, folder / "to")
        assert [fqn for fqn in state if not torch.equal(bits(back[fqn]), bits(state[fqn]))] == []


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    run_checks([every_bit_comes_back])
