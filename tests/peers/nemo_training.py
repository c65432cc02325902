"""Tiny models of nemo-automodel in training on CPUs: its model classes, EP and FSDP2, recipe, Checkpointer and LoRA."""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from nemo_automodel.components._peft.lora import PeftConfig, apply_lora_to_linear_modules
from nemo_automodel.components.checkpoint.config import CheckpointingConfig
from nemo_automodel.components.config.loader import ConfigNode
from nemo_automodel.components.models.common import BackendConfig
from nemo_automodel.components.models.deepseek_v3.model import DeepseekV3ForCausalLM
from nemo_automodel.components.models.minimax_m3_vl.config import MiniMaxM3VLConfig
from nemo_automodel.components.models.minimax_m3_vl.model import MiniMaxM3SparseForConditionalGeneration
from nemo_automodel.components.models.qwen3_moe import model as qwen3_moe
from nemo_automodel.components.moe.parallelizer import parallelize_model
from nemo_automodel.components.training.rng import StatefulRNG
from nemo_automodel.recipes.base_recipe import BaseRecipe
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import AutoConfig

warnings.simplefilter("ignore")

BACKEND = BackendConfig(
    linear="torch", attn="sdpa", rms_norm="torch", dispatcher="torch", experts="torch", rope_fusion=False
)
CPU = torch.device("cpu")

# Two of its models ask for a GPU by name to keep the tables of their rotary embedding on.
_rotary_embedding = qwen3_moe.RotaryEmbedding
qwen3_moe.RotaryEmbedding = lambda **options: _rotary_embedding(**options | {"device": CPU})
torch.cuda.current_device = lambda: 0


def qwen3_config(**changes: Any) -> Any:
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "mlp_only_layers": [],
        "architectures": ["Qwen3MoeForCausalLM"],
        "dtype": "bfloat16",
    }
    return AutoConfig.for_model("qwen3_moe", **sizes | changes)


def config_of(checkpoint: Path) -> Any:
    return AutoConfig.from_pretrained(checkpoint)


def m3_config(checkpoint: Path) -> Any:
    """nemo-automodel names the settings of the indexer otherwise than the release."""
    config = json.loads((checkpoint / "config.json").read_text())
    text = config["text_config"]
    text["sparse_attention_config"] = {
        "use_sparse_attention": True,
        "sparse_attention_freq": [int(kind == "minimax_m3_sparse") for kind in text["layer_types"]],
        "sparse_num_index_heads": text["index_n_heads"],
        "sparse_index_dim": text["index_head_dim"],
        "sparse_block_size": 4,
        "sparse_topk_blocks": 2,
    }
    text["num_mtp_modules"] = 0
    made = MiniMaxM3VLConfig(
        text_config=text,
        vision_config=config["vision_config"],
        projector_hidden_size=config["projector_hidden_size"],
    )
    made.quantization_config = config["quantization_config"]
    return made


def model_of(config: Any) -> torch.nn.Module:
    """With other values each time, which a load has to replace, unless the caller seeds."""
    if config.model_type == "qwen3_moe":
        model = qwen3_moe.Qwen3MoeForCausalLM(config, backend=BACKEND)
    elif config.model_type == "deepseek_v3":
        model = DeepseekV3ForCausalLM(config, backend=BACKEND)
    else:
        model = MiniMaxM3SparseForConditionalGeneration(config, backend=BACKEND)
    model.initialize_weights(buffer_device=CPU)
    return model


def ep_mesh(ep: int) -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size() // ep, ep), mesh_dim_names=("ep_shard", "ep"))


def sharded(model: torch.nn.Module, moe_mesh: DeviceMesh) -> torch.nn.Module:
    """As nemo-automodel's infrastructure does it: what the consolidated files hold is noted before."""
    model._pre_shard_hf_state_dict_keys = model.state_dict_adapter.get_hf_state_dict_keys(model.state_dict())
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("dp",))
    parallelize_model(
        model,
        mesh,
        moe_mesh,
        dp_axis_names=("dp",),
        ep_axis_name="ep",
        ep_shard_axis_names=("ep_shard",),
    )
    return model


class Trainer(BaseRecipe):
    """The part of nemo-automodel's recipes that saves and resumes, about a model that trains on random tokens."""

    def __init__(
        self, directory: Path, config: Any = None, *, lora: dict[str, Any] | None = None, **options: Any
    ) -> None:
        self.rng = StatefulRNG(seed=7, ranked=True)
        self.cfg = ConfigNode({"model": {"pretrained_model_name_or_path": "tiny"}})
        self.peft_config = None
        torch.manual_seed(0)
        model = model_of(config or qwen3_config())
        if lora is not None:
            self.peft_config = PeftConfig(
                **{"target_modules": ["*q_proj", "*o_proj", "*experts"], "dim": 4, "alpha": 8} | lora,
                use_memory_efficient_lora=False,
            )
            apply_lora_to_linear_modules(model, self.peft_config)
        moe_mesh = ep_mesh(dist.get_world_size())
        self.model = sharded(model, moe_mesh)
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        self.checkpointer = CheckpointingConfig(
            checkpoint_dir=str(directory), is_peft=lora is not None, **options
        ).build(dist.get_rank(), 0, 0, moe_mesh=moe_mesh if moe_mesh.size() > 1 else None)
        self.steps = 0

    def train(self, steps: int) -> list[float]:
        return [self.step() for _ in range(steps)]

    def step(self) -> float:
        tokens = torch.randint(0, self.model.config.vocab_size, (1, 16))
        out = self.model(tokens)
        logits = getattr(out, "logits", out)[0].float()
        loss = torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        return loss.item()

    def save(self) -> None:
        self.save_checkpoint(0, self.steps, 1.0)
        if self.checkpointer.config.is_async:
            self.checkpointer.async_wait()
            self.checkpointer.lifecycle.complete_pending()

    def parameters(self) -> dict[str, torch.Tensor]:
        """Whole, on every rank."""
        return {
            name: getattr(value, "full_tensor", lambda value=value: value)().clone()
            for name, value in self.model.named_parameters()
        }

    def _get_optimizer_checkpoint_part_ids(self) -> None:
        return None


def leave() -> None:
    """Ends a rank; torch 2.13 may abort a process that has used Gloo and ends by itself."""
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)
