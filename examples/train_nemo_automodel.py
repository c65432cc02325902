"""A small DeepSeek-V3 in nemo-automodel on CPUs: from a Hugging Face checkpoint, trained, saved, resumed, exported.

    torchrun --nproc-per-node 2 examples/train_nemo_automodel.py RUN STEPS

The first run in the folder RUN makes the checkpoint to begin with; a later one goes on where the newest save was made.
Two lines are Shardwright's: the import, and ``install()``. `make compare` runs it.
"""

import os
import sys
from pathlib import Path

import shardwright as sw
import shardwright.integrations.nemo_automodel as automodel
import torch
import torch.distributed as dist
from nemo_automodel.components.checkpoint.config import CheckpointingConfig
from nemo_automodel.components.checkpoint.utils import find_latest_checkpoint
from nemo_automodel.components.models.common import BackendConfig
from nemo_automodel.components.models.deepseek_v3.model import DeepseekV3ForCausalLM
from nemo_automodel.components.moe.parallelizer import parallelize_model
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoConfig

automodel.install()

backend = BackendConfig(linear="torch", attn="sdpa", rms_norm="torch", dispatcher="torch", experts="torch")
sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 32}
sizes |= {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
}
sizes |= {
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
sizes |= {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
}


def new_model() -> torch.nn.Module:
    config = AutoConfig.for_model(
        "deepseek_v3", dtype="bfloat16", architectures=["DeepseekV3ForCausalLM"], **sizes
    )
    torch.manual_seed(0)
    made = DeepseekV3ForCausalLM(config, backend=backend)
    made.initialize_weights(buffer_device=torch.device("cpu"))
    return made


folder, steps = Path(sys.argv[1]), int(sys.argv[2])
released = folder / "released"
if os.environ["RANK"] == "0" and not released.exists():  # what a download would be
    model = new_model()
    sw.export(dict(model.state_dict()), released, model="deepseek_v3")
    model.config.save_pretrained(released)
dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
dist.barrier()

# The model as nemo-automodel's recipes make it: experts over all ranks, FSDP2 over all ranks for the rest.
model = new_model()
model._pre_shard_hf_state_dict_keys = model.state_dict_adapter.get_hf_state_dict_keys(model.state_dict())
moe_mesh = init_device_mesh("cpu", (1, ranks), mesh_dim_names=("ep_shard", "ep")) if ranks > 1 else None
if moe_mesh is not None:
    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("dp",))
    parallelize_model(model, mesh, moe_mesh, dp_axis_names=("dp",), ep_axis_name="ep")
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
checkpointer = CheckpointingConfig(
    checkpoint_dir=folder, model_repo_id=str(released), save_consolidated="final"
).build(dp_rank=rank, tp_rank=0, pp_rank=0, moe_mesh=moe_mesh)

newest = find_latest_checkpoint(folder)
if newest is None:
    checkpointer.load_base_model(model, torch.device("cpu"), str(folder), str(released))
    done = 0
else:
    checkpointer.load_model(model, str(Path(newest, "model")))
    checkpointer.load_optimizer(optimizer, model, str(newest))
    done = int(Path(newest).name.rpartition("_")[2])

for step in range(done, steps):
    torch.manual_seed(1000 * step + rank)
    tokens = torch.randint(0, model.config.vocab_size, (1, 16))
    out = model(tokens)
    logits = getattr(out, "logits", out)[0].float()
    loss = torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if rank == 0:
        print(f"step {step + 1}, loss {loss.item():.6f}", flush=True)

path = str(folder / f"epoch_0_step_{steps}")
checkpointer.lifecycle.reserve(path)
checkpointer.save_model(model, path, is_final_checkpoint=True)
checkpointer.save_optimizer(optimizer, model, path)
checkpointer.lifecycle.publish(path, best_val_metric=None, metric_key=None)
if rank == 0:
    print(f"saved {path}; for Hugging Face, {path}/model/consolidated", flush=True)
dist.barrier()
os._exit(0)  # torch 2.13 may abort a process that has used Gloo and ends by itself
