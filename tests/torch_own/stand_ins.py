"""Ours in place of torch's readers, writers and planners, wherever torch.distributed.checkpoint names one of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.distributed.checkpoint.format_utils  # noqa: F401 - which names readers, too
import torch.distributed.checkpoint.quantized_hf_storage  # noqa: F401
from torch.distributed.checkpoint import hf_storage
from torch.distributed.fsdp import fully_sharded_data_parallel
from torch.distributed.fsdp._common_utils import _FSDPDeviceHandle
from torch.testing._internal import common_distributed
from torch.testing._internal.distributed._tensor import common_dtensor

STORAGE = {
    dcp.FileSystemReader: sw.ShardedStorageReader,
    dcp.FileSystemWriter: sw.ShardedStorageWriter,
    hf_storage.HuggingFaceStorageReader: sw.HuggingFaceStorageReader,
    hf_storage.HuggingFaceStorageWriter: sw.HuggingFaceStorageWriter,
}
PLANNERS = {
    dcp.DefaultLoadPlanner: sw.LoadPlanner,
    dcp.DefaultSavePlanner: sw.SavePlanner,
}
#: Which stand where, by the name of a column of the table.
COLUMNS: dict[str, dict[Any, Any]] = {
    "without": {},
    "storage": STORAGE,
    "planners": PLANNERS,
    "both": {**STORAGE, **PLANNERS},
}


def stand_in(column: str) -> None:
    """Replaces the names in torch's modules. Classes that torch derives keep torch's as their bases."""
    for name, module in list(sys.modules.items()):
        if not name.startswith("torch.distributed.checkpoint"):
            continue
        for variable, value in list(vars(module).items()):
            if isinstance(value, type) and value in COLUMNS[column]:
                setattr(module, variable, COLUMNS[column][value])


def run_on_cpus() -> None:
    """Lets tests that ask for several GPUs run on ranks without any, forked from a process that has imported torch."""
    if torch.accelerator.is_available():
        return
    init_process_group = dist.init_process_group

    def init_once_for_a_device(backend: str | None = None, **options: Any) -> None:
        init_process_group("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, **options)

    def handle_of_cpus(state: Any, *_: Any) -> Any:
        state._device_handle = _FSDPDeviceHandle(torch.device("cpu"))
        return state

    vars(dist)["init_process_group"] = init_once_for_a_device
    vars(fully_sharded_data_parallel)["_init_device_handle"] = handle_of_cpus  # which asks for an accelerator

    def runs_anyway(_: int, **__: Any) -> Callable[[Any], Any]:
        return lambda test: test

    for module in (common_distributed, common_dtensor):
        vars(module)["skip_if_lt_x_gpu"] = runs_anyway

    def fork(self: Any) -> None:
        self._start_processes(torch.multiprocessing.get_context("fork").Process)

    vars(common_distributed)["MultiProcessTestCase"]._spawn_processes = fork
