"""One rank of a hand-over in which the engine's rank gets no memory: `refused_refit.py RANK FOLDER`.

Both write to FOLDER/RANK.json what they were told, after how many seconds, and what values the engine then has.
"""

import json
import os
import resource
import sys
import time
from datetime import timedelta
from pathlib import Path

import shardwright as sw
import torch
import torch.distributed as dist

NAMES = ["model.embed_tokens.weight", "model.layers.0.weight"]
SHAPES = [(50_000, 4096), (64, 64)]


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=100))
    state, engine = None, []
    for name, shape in zip(NAMES, SHAPES, strict=True):
        if rank == 0:
            state = (state or {}) | {name: torch.full(shape, 2.0, dtype=torch.bfloat16)}
        else:
            engine.append(sw.EngineTensor(name, torch.ones(shape, dtype=torch.bfloat16), [name]))
    arguments = {"layout": "huggingface", "staging_bytes": "4MiB", "threads": 1}
    plan = sw.refit_plan(state, engine, **arguments)
    if rank == 1:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + (300 << 20),) * 2)  # a layer is of 400 MB
    begin, told = time.monotonic(), ["", ""]
    try:
        sw.refit(state, engine, plan=plan, **arguments)
    except Exception as error:
        told = [type(error).__name__, str(error)]
    values = [one.tensor.view(-1)[[0, -1]].tolist() for one in engine]
    (folder / f"{rank}.json").write_text(json.dumps([*told, time.monotonic() - begin, values]))
    os._exit(0)


if __name__ == "__main__":
    main()
