"""Exports and saves tensors of a GPU, beside what bus and file system can do at best, all in one run.

    python bench/device_export.py [--preset bench] [--threads 2] [--runs 3] [--folder DIR] [--json] [--check]

The state holds the HF names and shapes in BF16 on the device, but for the two ways that copy all of it to CPU memory
first, as was done before. The bus limit copies as many bytes as the state has from the device to pinned memory. How it
is measured: writes.py. Prints one line where there is no device. None was at hand when this was written: no figures
are quoted anywhere.
"""

from __future__ import annotations

from pathlib import Path

import shardwright as sw
import torch
from options import options
from writes import LIMIT, State, Way, bytes_of, loaded, measure, tell, write_limit

MXFP8 = "sw.export, MXFP8, from the device"
BF16 = "sw.export, BF16, from the device"
SAVE = "sw.save, from the device"
MXFP8_BY_CPU = "sw.export, MXFP8, by way of a copy"
SAVE_BY_CPU = "sw.save, by way of a copy"
BUS = "bus limit"

BUFFER_BYTES = 64 << 20


def bus_limit(device: torch.device, count: int) -> Way:
    pinned = torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(BUFFER_BYTES, dtype=torch.uint8, device=device)

    def copy(path: Path) -> None:
        path.mkdir()
        for begin in range(0, count, BUFFER_BYTES):
            size = min(BUFFER_BYTES, count - begin)
            pinned[:size].copy_(there[:size], non_blocking=True)
        torch.cuda.synchronize(device)

    return copy


def ways(host: State, state: State, source: Path, device: torch.device, threads: int) -> dict[str, Way]:
    def export(tensors: State, path: Path, quantization: str | None) -> None:
        sw.export(
            tensors, path, quantization=quantization, template=source, layout="huggingface", threads=threads
        )

    def copied() -> State:
        return {fqn: tensor.cpu() for fqn, tensor in state.items()}

    return {
        MXFP8: lambda path: export(state, path, "mxfp8"),
        BF16: lambda path: export(state, path, None),
        SAVE: lambda path: sw.save(state, path, threads=threads),
        MXFP8_BY_CPU: lambda path: export(copied(), path, "mxfp8"),
        SAVE_BY_CPU: lambda path: sw.save(copied(), path, threads=threads),
        BUS: bus_limit(device, bytes_of(state)),
        LIMIT: write_limit(host, threads),
    }


def main() -> None:
    chosen = options(
        __doc__, "fail if slower than by way of copies, or above 256 MB of CPU memory", writes=True
    )
    if not torch.cuda.is_available():
        print("skipped: no CUDA device")
        return
    device = torch.device("cuda", torch.cuda.current_device())
    with loaded(chosen, "huggingface") as (folder, source, host):
        state = {fqn: tensor.to(device) for fqn, tensor in host.items()}
        taken = measure(ways(host, state, source, device, chosen.threads), folder, chosen.runs)
    seconds = {name: figures["median"] for name, figures in taken.items()}
    ratios = {
        "MXFP8, from the device / by way of a copy": seconds[MXFP8] / seconds[MXFP8_BY_CPU],
        "save, from the device / by way of a copy": seconds[SAVE] / seconds[SAVE_BY_CPU],
        "save / the slower of bus and write limit": seconds[SAVE] / max(seconds[BUS], seconds[LIMIT]),
    }
    bounds = {
        "no slower than by way of copies": max(list(ratios.values())[:2]) <= 1,
        "at most 256 MB of CPU memory": all(taken[name]["memory"] <= 256e6 for name in (MXFP8, BF16, SAVE)),
    }
    if not chosen.json:
        print(torch.cuda.get_device_name(device))
    tell(chosen, state, taken, ratios, bounds)


if __name__ == "__main__":
    main()
