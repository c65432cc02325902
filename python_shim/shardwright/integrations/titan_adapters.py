"""torchtitan's LoRA: which tensors are adapters, and weights with the adapters in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torchtitan.components.checkpointer.utils import canonical_fqn

from shardwright.integrations.restored_weights import restored


def adapted_modules(models: Sequence[nn.Module]) -> dict[str, Any]:
    """The modules that torchtitan's LoRAConverter has given adapters, by their names in state dicts."""
    return {
        canonical_fqn(name): module
        for model in models
        for name, module in model.named_modules()
        if isinstance(getattr(module, "lora_a", None), nn.Module)
        and isinstance(getattr(module, "lora_b", None), nn.Module)
        and isinstance(getattr(module, "_lora_scaling", None), float)
    }


def without_adapters(state_dict: dict[str, Any], models: Sequence[nn.Module]) -> dict[str, Any]:
    """The entries of a model's state dict that its released checkpoint has."""
    of_adapters = tuple(
        f"{name}.{part}." for name in adapted_modules(models) for part in ("lora_a", "lora_b")
    )
    return {name: value for name, value in state_dict.items() if not name.startswith(of_adapters)}


@contextmanager
def adapters_in_weights(models: Sequence[nn.Module]) -> Iterator[int]:
    """Within it the weights of the adapted modules have what their adapters add. Afterwards they are as they were, bit
    for bit. All ranks enter it together: products of sharded matrices are collectives. Gives the number of modules.

    The sum is made in F32 and rounded once. Beside the model, a copy of these weights is held.
    """
    modules = adapted_modules(models).values()
    with restored(module.weight for module in modules):
        with torch.no_grad():
            for module in modules:
                weight, a, b = module.weight, module.lora_a.weight, module.lora_b.weight
                added = (b.to(torch.float32) @ a.to(torch.float32)) * module._lora_scaling
                if hasattr(weight, "placements"):
                    added = added.redistribute(weight.device_mesh, weight.placements)
                weight.copy_((weight.to(torch.float32) + added).to(weight.dtype))
        yield len(modules)
