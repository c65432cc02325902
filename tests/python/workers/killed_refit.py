"""One rank of a hand-over of which one is killed in the middle: `killed_refit.py RANK FOLDER`.

Ranks 0 and 1 are the trainer's, 2 and 3 the engine's. Rank 1 ends while it sends. The others write what they were told
to FOLDER/RANK.json, and which layers of their engine have which values.
"""

import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import shardwright as sw
import torch
import torch.distributed as dist
from shardwright.handover.group_transport import GroupTransport
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

LAYERS, ROWS, COLUMNS = 8, 512, 1024


class DyingTransport(GroupTransport):
    def __init__(self, group: dist.ProcessGroup | None) -> None:
        super().__init__(group)
        self._left = 5

    def send(self, rank: int, memory: memoryview) -> int:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().send(rank, memory)


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 4)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=4, timeout=timedelta(seconds=60))
    group = dist.new_group([0, 1])
    state, engine = None, []
    names = [f"model.layers.{layer}.weight" for layer in range(LAYERS)]
    if rank < 2:
        mesh = DeviceMesh.from_group(group, "cpu")
        local = torch.full((ROWS // 2, COLUMNS), 2.0, dtype=torch.bfloat16)
        state = {name: DTensor.from_local(local.clone(), mesh, [Shard(0)], run_check=False) for name in names}
    else:
        half = (slice(0, ROWS), slice((rank - 2) * COLUMNS // 2, (rank - 1) * COLUMNS // 2))
        engine = [
            sw.EngineTensor(
                name, torch.ones(ROWS, COLUMNS // 2, dtype=torch.bfloat16), [sw.EnginePart(name, half)]
            )
            for name in names
        ]
    import shardwright.handover.refit as refit

    arguments = {"layout": "huggingface", "staging_bytes": "512KiB"}
    sw.refit_plan(state, engine, **arguments)
    if rank == 1:
        refit.GroupTransport = DyingTransport
    told = {"type": "", "text": "", "new": [], "old": []}
    try:
        sw.refit(state, engine, **arguments)
    except Exception as error:
        told = {
            "type": type(error).__name__,
            "text": str(error),
            "new": getattr(error, "new_layers", []),
            "old": getattr(error, "old_layers", []),
        }
    told["values"] = {
        one.name.removesuffix(".weight"): sorted(set(one.tensor.view(-1).tolist())) for one in engine
    }
    (folder / f"{rank}.json").write_text(json.dumps(told))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
