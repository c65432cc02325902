"""Runs under torchrun: transformers' own Trainer with FSDP2 through accelerate, on the CPU.

    torchrun --nproc-per-node N trainer_on_ranks.py FOLDER OPTIONS

OPTIONS is JSON: ``released``; ``by``: "ours" or "theirs"; ``resume``; ``killed_at``: the step after which all ranks are
killed, before it is saved. Losses go to FOLDER/losses.json. accelerate knows FSDP on accelerators alone; it is told
that this is one.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

plain_init = AcceleratorState.__init__


def init_with_fsdp(self: AcceleratorState, *arguments: Any, fsdp_plugin: Any = None, **options: Any) -> None:
    plain_init(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
        for state in (PartialState, AcceleratorState):
            state._shared_state["distributed_type"] = DistributedType.FSDP


AcceleratorState.__init__ = init_with_fsdp


class Tokens(Dataset):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(0, 40, (9,), generator=torch.Generator().manual_seed(number))
        return {"input_ids": tokens, "labels": tokens}


class Watch(TrainerCallback):
    def __init__(self, file: Path, killed_at: int | None) -> None:
        self.file, self.killed_at = file, killed_at
        self.losses: dict[str, str] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self.losses[str(state.global_step)] = float(logs["loss"]).hex()
            if state.is_world_process_zero:
                self.file.write_text(json.dumps(self.losses))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.killed_at:
            dist.barrier()
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, options: dict[str, Any]) -> None:
    if options["by"] == "ours":
        from shardwright.integrations import accelerate

        accelerate.install()
    arguments = TrainingArguments(
        str(folder / "training"),
        use_cpu=True,
        max_steps=4,
        save_steps=2,
        logging_steps=1,
        per_device_train_batch_size=2,
        report_to=[],
        disable_tqdm=True,
        fsdp="full_shard",
        fsdp_config={
            "version": 2,
            "state_dict_type": "SHARDED_STATE_DICT",
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "transformer_layer_cls_to_wrap": ["Qwen3DecoderLayer"],
        },
    )
    model = AutoModelForCausalLM.from_pretrained(options["released"], dtype=torch.float32)
    watch = Watch(folder / "losses.json", options.get("killed_at"))
    trainer = Trainer(model, arguments, train_dataset=Tokens(), callbacks=[watch])
    trainer.train(resume_from_checkpoint=options.get("resume", False))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
