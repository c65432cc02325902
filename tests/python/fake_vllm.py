"""What vLLM's weight transfer asks of a trainer's WeightSource, by its documented protocol (0.33), without vLLM.

`ParamMeta` and `WeightSource` have the fields and methods of vllm.distributed.weight_transfer.base. The engine sends
what a source yields as vLLM's NCCL engine does, to a model that loads names and tensors.
"""

import sys
import types
from dataclasses import dataclass, field
from functools import cached_property

import torch


@dataclass(frozen=True)
class ParamMeta:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    owners: tuple[int, ...] | None = field(default=None, kw_only=True)


class WeightSource:
    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        assert isinstance(vars(cls)["metadata"], cached_property)

    def owned_names(self, rank: int) -> list[str]:
        return [meta.name for meta in self.metadata if meta.owners is None or rank in meta.owners]

    def iter_full(self):
        raise NotImplementedError

    def implements_iter_full(self) -> bool:
        return type(self).iter_full is not WeightSource.iter_full


class Engine:
    """A trainer's and a worker's engine in one: rank 0 sends, and what is sent is loaded."""

    def __init__(self, source: WeightSource, rank: int) -> None:
        assert source.implements_iter_full()
        self.source, self.rank = source, rank
        self.loaded: dict[str, torch.Tensor] = {}

    def send_weights(self) -> None:
        told = {meta.name: meta for meta in self.source.metadata}
        names = []
        for name, tensor in self.source.iter_full():
            names.append(name)
            assert (tensor.dtype, tuple(tensor.shape)) == (told[name].dtype, told[name].shape), name
            if self.rank == 0:
                self.loaded[name] = tensor.clone()
        assert names == self.source.owned_names(self.rank)


def install() -> None:
    """Puts the two classes where shardwright.integrations.vllm imports them from."""
    base = types.ModuleType("vllm.distributed.weight_transfer.base")
    vars(base).update(ParamMeta=ParamMeta, WeightSource=WeightSource)
    for name in ("vllm", "vllm.distributed", "vllm.distributed.weight_transfer"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[base.__name__] = base
