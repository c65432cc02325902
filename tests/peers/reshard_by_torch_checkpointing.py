"""Runs under torchrun: torch_checkpointing loads, saves and reshards by our resharder.

    torchrun --nproc-per-node N reshard_by_torch_checkpointing.py FOLDER

FOLDER holds "quantized", a released checkpoint, and expected.safetensors, its decoded tensors. Each rank writes
RANK.json, the names of what came out otherwise, by what was tried.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import shardwright as sw
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from shardwright.integrations.torch_checkpointing import AnyCheckpoint, Resharder
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch_checkpointing import CheckpointManager, ItemSpec, SyncCheckpointSaverConfig
from torch_checkpointing.default_resharder import DefaultResharder
from torch_checkpointing.hf.metadata import HuggingFaceSafetensorsDistributedMetadataFormat
from torch_checkpointing.metadata_manager import DefaultMetadataManager
from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

Tensors = dict[str, torch.Tensor]


def gathered(self: DefaultMetadataManager, data: Any, process_group: Any = None) -> dict[int, Any]:
    """What it does by way of CUDA, which there need not be."""
    of_ranks: list[Any] = [None] * dist.get_world_size(process_group)
    dist.all_gather_object(of_ranks, data, process_group)
    return dict(enumerate(of_ranks))


DefaultMetadataManager._all_gather_pickled_data = gathered


def manager_of(resharder: DefaultResharder) -> CheckpointManager:
    return CheckpointManager(
        CheckpointManager.Config(
            items={"model": ItemSpec(resharder=resharder)},
            save=SyncCheckpointSaverConfig(),
            storage_config=LocalFileSystemStorageConfig(use_direct_io=False),
        )
    )


def differing(found: Tensors, expected: Tensors) -> list[str]:
    return [name for name in expected if not torch.equal(found[name].to_local(), expected[name].to_local())]


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    whole = load_file(folder / "expected.safetensors")

    def placed(dimension: int) -> Tensors:
        def placement(tensor: torch.Tensor) -> list:
            return [Shard(dimension % tensor.dim()) if tensor.dim() else Replicate()]

        return {
            name: distribute_tensor(t, mesh, placement(t), src_data_rank=None) for name, t in whole.items()
        }

    def empty(dimension: int) -> Tensors:
        return {name: torch.zeros_like(tensor) for name, tensor in placed(dimension).items()}

    wrong: dict[str, list[str]] = {}
    resharder = Resharder()
    manager = manager_of(resharder)
    formats = {"any": AnyCheckpoint, "their format": HuggingFaceSafetensorsDistributedMetadataFormat}
    for kind, metadata_format in formats.items():
        for dimension in (0, -1):
            state = empty(dimension)
            manager.load(
                folder / "quantized", into={"model": state}, metadata_format=metadata_format, strict=True
            )
            wrong[f"quantized, {kind}, {dimension}"] = differing(state, placed(dimension))
    assert resharder.report is not None and resharder.report.bytes_read > 0

    theirs = empty(0)
    manager_of(DefaultResharder()).load(
        folder / "quantized",
        into={"model": theirs},
        metadata_format=HuggingFaceSafetensorsDistributedMetadataFormat,
    )
    wrong["theirs"] = differing(theirs, placed(0))

    # What it has saved itself, in another placement.
    manager.save(str(folder / "saved"), {"model": placed(0)})
    dist.barrier()
    state = empty(-1)
    manager.load(folder / "saved", into={"model": state}, strict=True)
    wrong["saved by it"] = differing(state, placed(-1))

    # What a training has saved.
    sw.save({"model": placed(0)}, folder / "trained")
    state = empty(-1)
    manager.load(folder / "trained", into={"model": state}, metadata_format=AnyCheckpoint, strict=True)
    wrong["saved by shardwright"] = differing(state, placed(-1))

    misfit = empty(0)
    misfit["another.weight"] = misfit["model.norm.weight"]
    try:
        manager.load(folder / "quantized", into={"model": misfit}, metadata_format=AnyCheckpoint)
        wrong["misfit"] = ["nothing was said"]
    except sw.PlanError as error:
        wrong["misfit"] = [] if "another.weight" in str(error) else [str(error)]
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(wrong))
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
