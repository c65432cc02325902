"""torchtitan's own Trainer on two Gloo ranks: begun from a quantized release, killed, resumed, exported.

    make peers
    .venv-peers/bin/python examples/torchtitan_training.py

torchtitan wants GPUs. Where there are none, tests/peers/titan_on_cpu.py stands in for what it asks of them, and
tests/peers/titan_training.py is the config: a tiny Llama. On GPUs it is one option more on torchtitan's command line:

    --override.imports shardwright.integrations.torchtitan.checkpoints
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

WORKER = Path(__file__).parent.parent / "tests" / "peers" / "titan_training.py"
TOLD = ("passed over", "Loading the checkpoint", "fresh start", "Exporting", "no place for", "Read ")


def released_in_fp8(path: Path) -> None:
    """A model as releases have it: matrices in FP8, with an F32 scale for each block of 128 × 128; here one block."""
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    config.update({"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8})
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    for name in [name for name in tensors if "_proj" in name]:
        scale = tensors[name].float().abs().max().reshape(1, 1) / 448
        tensors[name + "_scale_inv"] = scale
        tensors[name] = (tensors[name].float() / scale).to(torch.float8_e4m3fn)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def train(folder: Path, **options: Any) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(WORKER),
    ]
    run = subprocess.run(
        [*command, str(folder), json.dumps({"manager": "ours", "steps": 6} | options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    told = [line.split(" - ")[-1] for line in run.stdout.splitlines() if any(text in line for text in TOLD)]
    for line in dict.fromkeys(told):
        print("  " + line)
    if run.returncode != 0 and not options.keys() & {"killed_at", "killed_saving"}:
        raise SystemExit(run.stdout)
    losses = json.loads((folder / "losses.json").read_text())
    print("  losses " + ", ".join(f"{step}: {float.fromhex(loss):.4f}" for step, loss in losses.items()))
    (folder / "losses.json").unlink()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        released, training = Path(folder, "released"), Path(folder, "training")
        released_in_fp8(released)
        checkpoint = {
            "initial_load_path": str(released),
            "initial_load_in_hf": True,
            "last_save_in_hf": True,
            "export_dtype": "bfloat16",
        }
        options = {"assets": str(released), "checkpoint": checkpoint}
        print("begun from a release in FP8, and killed while step 4 is saved:", flush=True)
        train(training, killed_saving=4, **options)
        print("started again with the same options:", flush=True)
        train(training, **options)
        model = AutoModelForCausalLM.from_pretrained(training / "checkpoint" / "step-6")
        print(f"from_pretrained reads step 6: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
