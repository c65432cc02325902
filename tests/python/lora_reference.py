"""What LoRA adapter files hold, element by element, and LoRA tensors of a trainer to fill them with.

Sources: peft's ParamWrapper.get_delta_weight (0.19.0 and 0.21.2), nemo-automodel 0.7.0's GroupedExpertsLoRA. Nothing
here is shared with the code under test.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import reference
import torch
from checkpoints import Tensor, write_safetensors

Sd = dict[str, torch.Tensor]

PREFIX = "base_model.model."
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True)
class Sizes:
    experts: int = 3
    hidden: int = 10
    inter: int = 6
    rank: int = 2
    dense: int = 8


def modules(sizes: Sizes) -> dict[str, tuple[int, int]]:
    """Trainer's name → (out, in), of some modules that are no experts."""
    h, i, d = sizes.hidden, sizes.inter, sizes.dense
    return {
        "model.layers.0.self_attn.q_proj": (14, h),
        "model.layers.0.mlp.gate_proj": (d, h),
        "model.layers.0.mlp.up_proj": (d, h),
        "model.layers.0.mlp.down_proj": (h, d),
        "model.layers.1.self_attn.indexer.index_q_proj": (4, h),
        "model.layers.1.shared_experts.gate_proj": (i, h),
        "model.layers.1.shared_experts.up_proj": (i, h),
        "model.layers.1.shared_experts.down_proj": (h, i),
    }


def trainers(sizes: Sizes = Sizes(), seed: int = 0, dtype: torch.dtype = torch.float32) -> Sd:
    """LoRA tensors of a trainer: experts of two layers, and modules."""
    generator = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    e, h, i, r = sizes.experts, sizes.hidden, sizes.inter, sizes.rank
    found: Sd = {}
    for layer in (1, 2):
        stack = f"model.layers.{layer}.mlp.experts."
        found[stack + "lora_gate_and_up_A"] = values(e, h, r)
        found[stack + "lora_gate_and_up_B"] = values(e, r, 2 * i)
        found[stack + "lora_down_A"] = values(e, i, r)
        found[stack + "lora_down_B"] = values(e, r, h)
    for name, (out, inputs) in modules(sizes).items():
        found[name + ".lora_A.weight"] = values(r, inputs)
        found[name + ".lora_B.weight"] = values(out, r)
    return found


def wrapper(a: torch.Tensor, b: torch.Tensor, legacy: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(lora_A.weight, lora_B.weight) of the ParamWrapper for the trainer's A [e, in, r] and B [e, r, out]."""
    if legacy:  # a parameter [e, out, in] was taken for one [e, in, out]
        a, b = b.transpose(1, 2), a.transpose(1, 2)
    experts, inputs, rank = a.shape
    of_file_a = torch.zeros(experts * rank, inputs, dtype=a.dtype)
    of_file_b = torch.zeros(b.shape[2], rank * experts, dtype=b.dtype)
    for e in range(experts):
        for k in range(rank):
            of_file_a[e * rank + k] = a[e, :, k]
            of_file_b[:, k * experts + e] = b[e, k]
    return of_file_a, of_file_b


def block_diagonal(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    a = torch.cat([a for a, _ in pairs])
    b = torch.block_diag(*[b for _, b in pairs])
    return a, b


def file_tensors(lora: Sd, layout: str, *, text_only: bool = False, legacy: bool = False) -> Sd:
    """The adapter file that these tensors amount to, for a model in that layout."""
    hf, tf = ("", "model.") if text_only else ("language_model.", "model.language_model.")
    found: Sd = {}

    def add(module: str, a: torch.Tensor, b: torch.Tensor) -> None:
        found[f"{PREFIX}{module}.lora_A.weight"] = a
        found[f"{PREFIX}{module}.lora_B.weight"] = b

    def pair(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return lora[name + ".lora_A.weight"], lora[name + ".lora_B.weight"]

    for key in lora:
        if key.endswith(".lora_down_A"):
            stack = key.removesuffix(".lora_down_A")
            (ga, gb), (da, db) = (
                (lora[f"{stack}.lora_{kind}_A"], lora[f"{stack}.lora_{kind}_B"])
                for kind in ("gate_and_up", "down")
            )
            if layout == "transformers":
                module = tf + stack.removeprefix("model.")
                add(module, *wrapper(da, db, legacy))
                add(module + ".base_layer", *wrapper(ga, gb, legacy))
                continue
            names = ("gate_proj", "up_proj", "down_proj") if layout == "automodel" else ("w1", "w3", "w2")
            path = stack if layout == "automodel" else stack.replace(".mlp.", ".block_sparse_moe.")
            for e in range(len(ga)):
                gate, up = gb[e].chunk(2, dim=1)
                for name, a, b in zip(names, (ga[e], ga[e], da[e]), (gate, up, db[e]), strict=True):
                    add(f"{hf}{path}.{e}.{name}", a.T, b.T)
        elif key.endswith(".lora_A.weight"):
            name = key.removesuffix(".lora_A.weight")
            if layout != "transformers":
                module = name.replace(".shared_experts.", ".block_sparse_moe.shared_experts.")
                add(hf + module.replace(".indexer.index_", ".index_"), *pair(name))
                continue
            module = tf + name.removeprefix("model.").replace(".shared_experts.", ".mlp.shared_experts.")
            if name.endswith(".gate_proj"):
                both = [pair(name), pair(name.replace(".gate_proj", ".up_proj"))]
                add(module.replace(".gate_proj", ".gate_up_proj"), *block_diagonal(both))
            elif not name.endswith(".up_proj"):
                add(module.replace(".indexer.index_", ".indexer."), *pair(name))
    return found


def write_adapter(directory: Path, tensors: Sd, **config) -> Path:
    """An adapter as peft saves it."""
    directory.mkdir(parents=True, exist_ok=True)
    stored = {}
    for name, tensor in tensors.items():
        row_major = tensor.clone(memory_format=torch.contiguous_format)
        data = row_major.view(torch.uint8).numpy().tobytes()
        stored[name] = Tensor(DTYPES[tensor.dtype], tuple(tensor.shape), data)
    write_safetensors(directory / "adapter_model.safetensors", stored)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(settings | config))
    return directory


def read_adapter(directory: Path) -> Sd:
    stored = reference.read_safetensors(directory / "adapter_model.safetensors")
    return {name: reference.tensor_of(t.raw(), reference.TORCH_DTYPES[t.dtype]) for name, t in stored.items()}


def nan_like(tensors: Sd) -> Sd:
    return {name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}
