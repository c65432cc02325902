"""Runs under torchrun: torchtitan's own Trainer with a tiny Llama on the CPU.

    torchrun --nproc-per-node N titan_training.py FOLDER OPTIONS

FOLDER is the trainer's dump_folder; losses go to FOLDER/losses.json, step → loss as hexadecimal, beside those of
earlier runs. OPTIONS is JSON: ``manager``: "ours" (by torchtitan's override), "config" (our Config in place of theirs)
or "theirs"; ``steps``; ``layers``; ``lora``; ``assets``: hf_assets_path; ``killed_at``: the training step after which
all ranks are killed, before it is saved; ``killed_saving``: the step in whose save rank 0 is killed, before it is
published; ``checkpoint``: fields of the manager's config.
"""

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import titan_on_cpu  # first
import torch
import torch.distributed as dist
import torchtitan.models.llama3 as llama3
from torch.utils.data import IterableDataset
from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.dataloader import ParallelAwareDataloader
from torchtitan.components.lora import LoRAConverter
from torchtitan.components.loss import CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config.configs import DebugConfig, ParallelismConfig, TrainingConfig
from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.common.attention import ScaledDotProductAttention
from torchtitan.tools.logging import init_logger
from torchtitan.trainer import Trainer

WIDTH, VOCABULARY, HEADS, GROUPS, INTERMEDIATE = 32, 64, 4, 2, 48
OVERRIDE = "shardwright.integrations.torchtitan.checkpoints"


class Tokens(IterableDataset):
    def __init__(self, rank: int) -> None:
        self.rank, self.position = rank, 0

    def __iter__(self):
        while True:
            generator = torch.Generator().manual_seed(1000 * self.position + self.rank)
            self.position += 1
            tokens = torch.randint(0, VOCABULARY, (17,), generator=generator)
            yield {"input": tokens[:-1], "positions": torch.arange(16)}, tokens[1:]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Loader(ParallelAwareDataloader):
    @dataclass(kw_only=True, slots=True)
    class Config(ParallelAwareDataloader.Config):
        pass

    def __init__(self, config: Config, *, dp_world_size: int, dp_rank: int, local_batch_size: int, **_: Any):
        super().__init__(Tokens(dp_rank), dp_rank, dp_world_size, batch_size=local_batch_size)


class NoTokenizer(BaseTokenizer):
    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        pass

    def __init__(self, config: Config, tokenizer_path: str | None) -> None:
        pass

    def encode(self, *_: Any) -> list[int]:
        return []

    def decode(self, *_: Any) -> str:
        return ""

    def get_vocab_size(self) -> int:
        return VOCABULARY


def model_of(layers: int, lora: bool) -> Any:
    """A Llama as torchtitan builds it, with an attention that trains on a CPU."""
    spec = llama3.model_registry("debugmodel", attn_backend="varlen")
    spec.model = llama3.Llama3Model.Config(
        dim=WIDTH,
        vocab_size=VOCABULARY,
        tok_embeddings=Embedding.Config(
            num_embeddings=VOCABULARY, embedding_dim=WIDTH, param_init=llama3._EMBEDDING_INIT
        ),
        norm=RMSNorm.Config(normalized_shape=WIDTH, param_init=llama3._NORM_INIT),
        lm_head=Linear.Config(
            in_features=WIDTH, out_features=VOCABULARY, param_init=llama3._output_linear_init(WIDTH)
        ),
        layers=llama3._build_llama3_layers(
            n_layers=layers,
            dim=WIDTH,
            n_heads=HEADS,
            n_kv_heads=GROUPS,
            hidden_dim=INTERMEDIATE,
            rope=ComplexRoPE.Config(dim=WIDTH // HEADS, max_seq_len=64, theta=10000),
            attn_backend="varlen",
        ),
    )
    for layer in spec.model.layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    if lora:
        converter = LoRAConverter(
            LoRAConverter.Config(rank=2, alpha=8.0, target_modules=["wqkv", "wo", "w1"])
        )
        spec.model = converter.convert(spec.model)
    return spec


def config_of(folder: Path, options: dict[str, Any]) -> Trainer.Config:
    manager = CheckpointManager
    if options["manager"] == "config":
        from shardwright.integrations.torchtitan import CheckpointManager as manager
    config = Trainer.Config(
        loss=CrossEntropyLoss.Config(global_vocab_size=VOCABULARY),
        hf_assets_path=options.get("assets"),
        model_spec=model_of(options.get("layers", 2), options.get("lora", False)),
        dump_folder=str(folder),
        tokenizer=NoTokenizer.Config(),
        dataloader=Loader.Config(),
        optimizer=default_adamw(lr=1e-2),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=2),
        training=TrainingConfig(
            local_batch_size=2,
            seq_len=16,
            steps=options["steps"],
            disable_cuda_graphs=True,
            mixed_precision_param="float32",
        ),
        parallelism=ParallelismConfig(spmd_backend="partial_dtensor"),
        metrics=MetricsProcessor.Config(log_freq=1),
        debug=DebugConfig(seed=7, deterministic=True, enable_structured_logging=False),
        checkpoint=manager.Config(**{"enable": True, "interval": 2} | options.get("checkpoint", {})),
    )
    if options["manager"] == "ours":
        config.override.imports = [OVERRIDE]
    return config


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, options: dict[str, Any]) -> None:
    init_logger()
    trainer = config_of(folder, options).build()
    titan_on_cpu.make_ready(trainer)
    file = folder / "losses.json"
    losses = json.loads(file.read_text()) if file.exists() else {}

    def log(step: int, loss: float, *_: Any, **__: Any) -> None:
        losses[str(step)] = float(loss).hex()
        if dist.get_rank() == 0:
            file.write_text(json.dumps(losses))
        if step == options.get("killed_at"):
            dist.barrier()
            die()
        if step == options.get("killed_saving"):
            from shardwright import _core

            _core.write_manifest = lambda *_: die()

    trainer.metrics_processor.log = log
    if trainer.config.checkpoint.create_seed_checkpoint:  # as torchtitan's train.py does it
        trainer.checkpointer.save(curr_step=0, last_step=True)
    else:
        trainer.train()
    trainer.close()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
