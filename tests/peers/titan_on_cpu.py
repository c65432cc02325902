"""torchtitan 0.3.0 where there is no GPU: imported first, it lets torchtitan's Trainer run on the CPU with Gloo.

Stands in for what torchtitan imports and this does not use (TensorBoard, datasets, Triton's kernels), for the figures
of a device that it logs, and for a function that only later versions of torch have. Nothing of it has to do with
checkpoints.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch._utils
from torch.distributed.fsdp import FSDPModule


def stand_in(name: str, **values: Any) -> None:
    module = ModuleType(name)
    module.__dict__.update(values, __path__=[], __spec__=ModuleSpec(name, None))
    sys.modules[name] = module


def any_kernel(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return object


class Cpu:
    """What torchtitan asks of torch.cuda, of a CPU."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    def get_device_name(self, device: Any) -> str:
        return "CPU"

    def get_device_properties(self, device: Any) -> Any:
        return SimpleNamespace(total_memory=1 << 30)

    def memory_stats(self, device: Any = None) -> dict[str, int]:
        return {}

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def nothing(self, *arguments: Any) -> None:
        pass

    set_device = reset_peak_memory_stats = empty_cache = synchronize = nothing


stand_in("torch.utils.tensorboard", SummaryWriter=object)
stand_in("datasets", Dataset=object, load_dataset=None)
stand_in("datasets.distributed", split_dataset_by_node=None)
stand_in("torchtitan.distributed.minimal_async_ep.kernels", __getattr__=any_kernel)
torch._utils._get_available_device_type = lambda: "cpu"
torch._utils._get_device_module = lambda device_type: Cpu()


def make_ready(trainer: Any) -> None:
    """Gloo has no scaled sums, which FSDP asks for where gradients are not divided."""
    import torchtitan.distributed.utils

    torchtitan.distributed.utils.set_pg_timeouts = lambda **_: None
    for part in trainer.model_parts:
        for module in part.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)
