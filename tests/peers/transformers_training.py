"""Runs under torchrun: a tiny Qwen3 of transformers, made on meta, sharded by FSDP2, filled by load_pretrained.

    torchrun --nproc-per-node N transformers_training.py FOLDER OPTIONS

Losses go to FOLDER/losses.json. OPTIONS is JSON: ``released``; ``steps``; ``lora``; ``by``: "sw", "accelerate" with our
functions, or "plain accelerate"; ``killed_at``: the training step after which all ranks are killed.
The state is saved after every second step, and what there is is resumed. The end is stored in FOLDER/stored.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import shardwright as sw
import torch
import torch.distributed as dist
from shardwright.integrations.transformers import load_pretrained, save_adapter, save_pretrained
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoModelForCausalLM


def made(options: dict[str, Any]) -> torch.nn.Module:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(options["released"]))
    if options.get("lora"):
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(model, config, autocast_adapter_dtype=False)
    layers = (model.get_base_model() if options.get("lora") else model).model.layers
    for layer in layers:
        fully_shard(layer)
    fully_shard(model)
    torch.manual_seed(5 + dist.get_rank())
    load_pretrained(model, options["released"])
    return model


def loss_of(model: torch.nn.Module, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(10 * step + dist.get_rank())
    tokens = torch.randint(0, 40, (2, 9), generator=generator)
    return model(input_ids=tokens, labels=tokens).loss


class ByShardwright:
    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.folder = folder
        self.model = made(options)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=0.01)
        self.state = {"model": self.model, "optim": self.optimizer, "step": 0}

    def resume(self) -> int:
        newest = sw.latest(self.folder / "training")
        if newest is not None:
            sw.load(self.state, newest)
        return self.state["step"]

    def save(self, step: int) -> None:
        self.state["step"] = step
        sw.save(self.state, self.folder / "training", step=step)


class ByAccelerate:
    """accelerate knows FSDP on accelerators alone; it is told that this is one."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, PartialState
        from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

        if options["by"] == "accelerate":
            from shardwright.integrations import accelerate as ours

            ours.install()
        self.folder = folder
        self.accelerator = Accelerator(cpu=True)
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
        AcceleratorState._shared_state["fsdp_plugin"] = plugin
        for state in (PartialState, AcceleratorState):
            state._shared_state["distributed_type"] = DistributedType.FSDP
        self.model = made(options)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=0.01)
        self.accelerator._models = [self.model]
        self.accelerator._optimizers = [self.accelerator.prepare_optimizer(self.optimizer)]

    def resume(self) -> int:
        steps = sorted(int(entry.name) for entry in (self.folder / "states").glob("*"))
        if steps:
            self.accelerator.load_state(str(self.folder / "states" / str(steps[-1])))
        return steps[-1] if steps else 0

    def save(self, step: int) -> None:
        self.accelerator.save_state(str(self.folder / "states" / str(step)))


def main(folder: Path, options: dict[str, Any]) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    training = (ByShardwright if options["by"] == "sw" else ByAccelerate)(folder, options)
    file = folder / "losses.json"
    losses = json.loads(file.read_text()) if file.exists() else {}
    for step in range(training.resume() + 1, options["steps"] + 1):
        loss = loss_of(training.model, step)
        training.optimizer.zero_grad()
        loss.backward()
        training.optimizer.step()
        total = loss.detach().clone()
        dist.all_reduce(total)
        losses[str(step)] = float(total).hex()
        if dist.get_rank() == 0:
            file.write_text(json.dumps(losses))
        if step == options.get("killed_at"):
            dist.barrier()
            os.kill(os.getpid(), signal.SIGKILL)
        if step % 2 == 0:
            training.save(step)
    save_pretrained(training.model, folder / "stored", merge_adapters=options.get("lora", False))
    if options.get("lora"):
        save_adapter(training.model, folder / "adapter")
    torch.save(
        {name: t.full_tensor().cpu() for name, t in training.model.state_dict().items()},
        folder / f"whole-{dist.get_rank()}.pt",
    )
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
