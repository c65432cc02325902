"""transformers and FSDP2 on two Gloo ranks: a quantized release is loaded, trained, resumed and stored.

    make peers
    .venv-peers/bin/python examples/transformers_training.py

The model is tiny and made on the spot. The lines with `sw.`, `load_pretrained` and `save_pretrained` are Shardwright's.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import shardwright as sw
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from shardwright.integrations.transformers import load_pretrained, save_pretrained
from shardwright.ranks.run import run_on_ranks
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

RANKS = 2


def released_in_fp8(path: Path) -> None:
    """A model as releases have it: matrices in FP8, with an F32 scale for each block of 128 × 128; here one block."""
    config = Qwen3Config(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    config.update({"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8})
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    for name in [name for name in tensors if "_proj" in name]:
        scale = tensors[name].float().abs().max().reshape(1, 1) / 448
        tensors[name + "_scale_inv"] = scale
        tensors[name] = (tensors[name].float() / scale).to(torch.float8_e4m3fn)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def sharded_model(path: Path) -> Any:
    """The model on meta, sharded, then each rank's shards from the files."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    report = load_pretrained(model, path)
    if dist.get_rank() == 0:
        print(f"loaded {report.tensors} tensors, {report.bytes_read:,} bytes on rank 0")
    return model


def train(rank: int, folder: str, steps: int) -> None:
    released, training = Path(folder, "released"), Path(folder, "training")
    model = sharded_model(released)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    state = {"model": model, "optim": optimizer, "step": 0}
    newest = sw.latest(training)
    if newest is not None:
        sw.load(state, newest)
    for step in range(state["step"], steps):
        tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(2 * step + rank))
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total = loss.detach().clone()
        dist.all_reduce(total)
        if rank == 0:
            print(f"step {step + 1}, loss {total.item() / RANKS:.6f}")
    state["step"] = steps
    sw.save(state, training, step=steps, keep_last=2)
    save_pretrained(model, Path(folder, "trained"))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        released = Path(folder, "released")
        released_in_fp8(released)
        run_on_ranks(RANKS, train, folder, 2)
        print("from the checkpoint of step 2:", flush=True)
        run_on_ranks(RANKS, train, folder, 4)
        model = AutoModelForCausalLM.from_pretrained(Path(folder, "trained"))
        print(f"from_pretrained reads what was stored: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
