"""One rank of a hand-over in the middle of which ranks end: `ended_refit.py RANK FOLDER SIGNAL RANKS TRANSPORT`.

Ranks 0 and 1 are the trainer's, 2 and 3 the engine's. Over c10d those of RANKS (such as 1,3) give themselves the signal
while they send or receive. Through memory, where nothing of Python is called, rank 3 stops once its first layer is new
and says so in FOLDER/middle: whoever has begun all sends the signal and lets it go on. All write what they were told to
FOLDER/RANK.json, and which layers of their engine have which values. After an interrupt they hand over again, which has
to go as if nothing had been.
"""

import json
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import shardwright as sw
import shardwright.handover.refit as refit
import torch
import torch.distributed as dist
from shardwright.handover.group_transport import GroupTransport
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

ROWS, COLUMNS = 512, 1024
LAYERS = {"c10d": 8, "auto": 200}

SECONDS_OF_SEND = 0.5  #: of an interrupted one: to the end it would take 20 seconds


class EndingTransport(GroupTransport):
    """That of a rank which gets a signal at its fifth message."""

    sent = signal.SIGKILL
    left = 5
    begun = 0.0

    def _one_more(self) -> None:
        cls = type(self)
        cls.left -= 1
        if cls.left == 0:
            cls.begun = time.monotonic()
            os.kill(os.getpid(), cls.sent)

    def send(self, rank: int, memory: memoryview) -> int:
        self._one_more()
        if self.sent == signal.SIGINT:
            time.sleep(SECONDS_OF_SEND)
        return super().send(rank, memory)

    def receive(self, rank: int, memory: memoryview) -> int:
        self._one_more()
        return super().receive(rank, memory)


def values_of(engine: list[sw.EngineTensor]) -> dict[str, list[float]]:
    return {one.name.removesuffix(".weight"): sorted(set(one.tensor.view(-1).tolist())) for one in engine}


def stop_in_the_middle(first: torch.Tensor, folder: Path) -> None:
    """Of a rank of the engine, on a thread of its own."""
    while first.view(-1)[-1].item() != 2:
        time.sleep(0)
    (folder / "middle").touch()
    os.kill(os.getpid(), signal.SIGSTOP)


def main() -> None:
    rank, folder, transport = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[5]
    sent, ending = signal.Signals(int(sys.argv[3])), [int(one) for one in sys.argv[4].split(",")]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 4)
    timeout = timedelta(seconds=60 if sent == signal.SIGKILL else 100)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=4, timeout=timeout)
    group = dist.new_group([0, 1])
    state, engine = None, []
    names = [f"model.layers.{layer}.weight" for layer in range(LAYERS[transport])]
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

    staging = {"c10d": "512KiB", "auto": "4MiB"}[transport]
    arguments = {"layout": "huggingface", "staging_bytes": staging, "transport": transport}
    arguments["plan"] = sw.refit_plan(state, engine, **arguments)
    EndingTransport.sent = sent
    if transport == "auto":
        if rank == 3:
            threading.Thread(target=stop_in_the_middle, args=(engine[0].tensor, folder), daemon=True).start()
    elif rank in ending or (sent == signal.SIGINT and rank < 2):  # all senders are slow then
        refit.GroupTransport = EndingTransport
    if rank not in ending:
        EndingTransport.left = -1
    told = {"type": "", "text": "", "new": [], "old": []}
    try:
        sw.refit(state, engine, **arguments)
    except BaseException as error:
        told = {
            "type": type(error).__name__,
            "text": str(error),
            "new": getattr(error, "new_layers", []),
            "old": getattr(error, "old_layers", []),
        }
    if transport == "auto":
        EndingTransport.begun = float((folder / "begun").read_text())
    told["seconds"] = time.monotonic() - EndingTransport.begun
    told["values"] = values_of(engine)
    if sent == signal.SIGINT:
        refit.GroupTransport = GroupTransport
        sw.refit(state, engine, **arguments)
        told["values_after"] = values_of(engine)
    (folder / f"{rank}.json").write_text(json.dumps(told))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
