"""Resumes a run of nemo_killed_run.py on another number of ranks. Run under torchrun: FOLDER."""

import hashlib
import logging
import sys
from pathlib import Path

import shardwright.integrations.nemo_automodel as automodel
import torch
import torch.distributed as dist
from nemo_training import Trainer, leave
from torch.distributed.tensor import DTensor

logging.basicConfig(level=logging.WARNING)
automodel.install()
dist.init_process_group("gloo")
trainer = Trainer(Path(sys.argv[1]))
trainer.load_checkpoint("epoch_0_step_6")
state = trainer.optimizer.state
values = {}
for name, parameter in trainer.model.named_parameters():
    for key, value in {"": parameter, **state[parameter]}.items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        values[f"{name} {key}"] = whole.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
text = "".join(f"{name}{hashlib.sha256(value).hexdigest()}" for name, value in sorted(values.items()))
if dist.get_rank() == 0:
    print("sums", len(values), hashlib.sha256(text.encode()).hexdigest(), flush=True)
leave()
