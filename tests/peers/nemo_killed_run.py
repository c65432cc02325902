"""A run of nemo-automodel that saves every two steps. Run under torchrun: FOLDER STEPS LOSSES [KILLED-AT-STEP]."""

import json
import os
import signal
import sys
from pathlib import Path

import shardwright.integrations.nemo_automodel as automodel
import torch.distributed as dist
from nemo_training import Trainer, leave
from shardwright.dcp.sharded_writer import ShardedStorageWriter

folder, steps, losses = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
killed_at = int(sys.argv[4]) if len(sys.argv) > 4 else None

automodel.install()
dist.init_process_group("gloo")
trainer = Trainer(folder)
trainer.load_checkpoint()
saved = [int(path.name.rpartition("_")[2]) for path in folder.glob("epoch_0_step_*")]
whole = [step for step in saved if not (folder / f"epoch_0_step_{step}" / ".incomplete").exists()]
trainer.steps = max(whole, default=0)
begun_at = trainer.steps
write = ShardedStorageWriter.write_data


def write_or_die(self, plan, planner):
    if trainer.steps == killed_at and dist.get_rank() == 1 and self.path.name == "optim":
        os.kill(os.getpid(), signal.SIGKILL)
    return write(self, plan, planner)


ShardedStorageWriter.write_data = write_or_die
found = []
while trainer.steps < steps:
    found.append(trainer.step())
    if trainer.steps % 2 == 0:
        trainer.save()
if dist.get_rank() == 0:
    losses.write_text(json.dumps({"begun_at": begun_at, "losses": found}))
leave()
