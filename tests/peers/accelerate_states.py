"""Runs under torchrun: accelerate's save_state and load_state of a tiny model by our functions.

    torchrun --nproc-per-node N accelerate_states.py FOLDER CASE

CASE: "more layers": a state of three layers into a model of two; "optimizer of others": the same, with a model of the
third layer, but no optimizer of it; "killed between": two saves into one folder, the second of which ends between model
and optimizer; "twice": the second ends well.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from shardwright.integrations import accelerate as ours
from torch import nn
from torch.distributed.fsdp import fully_shard


class Layers(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def made(layers: int, trained: int | None = None) -> tuple[Accelerator, nn.Module, torch.optim.Optimizer]:
    """accelerate knows FSDP on accelerators alone; it is told that this is one."""
    accelerator = Accelerator(cpu=True)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    for state in (PartialState, AcceleratorState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    model = Layers(layers)
    for layer in model.layers[trained:] if trained is not None else []:
        layer.requires_grad_(False)
    fully_shard(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    accelerator._models = [model]
    accelerator._optimizers = [accelerator.prepare_optimizer(optimizer)]
    train(model, optimizer)
    return accelerator, model, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def main(folder: str, case: str) -> None:
    dist.init_process_group("gloo")
    ours.install()
    accelerator, model, optimizer = made(3)
    accelerator.save_state(folder)
    if case in ("killed between", "twice"):
        train(model, optimizer)
        if case == "killed between":
            import accelerate.accelerator

            accelerate.accelerator.save_fsdp_optimizer = interrupted
        try:
            accelerator.save_state(folder)
        except KeyboardInterrupt:
            print("ended between model and optimizer")
    other, its_model, _ = made(2) if case == "more layers" else made(3, 2 if "others" in case else None)
    other.load_state(folder)
    same = [
        torch.equal(a.full_tensor(), b.full_tensor())
        for a, b in zip(model.parameters(), its_model.parameters(), strict=True)
    ]
    print("loaded", all(same))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(str(Path(sys.argv[1], "state")), sys.argv[2])
