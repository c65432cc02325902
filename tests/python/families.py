"""Small checkpoints of the families beside MiniMax M3, and what a trainer holds of them, by torch's own operations.

Names and operations are written down from transformers 5.23 and nemo-automodel 0.7.0, not from the library's tables.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from lora_reference import PREFIX, wrapper
from safetensors import safe_open
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]

HIDDEN, INTER, EXPERTS, VOCABULARY, LAYERS = 20, 12, 4, 17, 2


@dataclass(frozen=True)
class Family:
    """A released form of a family: its checkpoint, and each layout's native tensors made of it."""

    name: str
    model: str
    config: dict
    make: Callable[[torch.Generator], Tensors]
    natives: dict[str, Callable[[Tensors], Tensors]]
    without_place: Callable[[str, str], bool] = lambda layout, name: (
        layout == "transformers" and name.startswith("mtp.")
    )
    """Whether a tensor of the file has no place in a layout: (layout, name)."""
    is_quantized: bool = False
    own: Callable[[Tensors], Tensors] = dict  #: in the layout "huggingface"
    needs_config: bool = False  #: for a layout's shapes, so that an adapter needs the checkpoint

    @property
    def layouts(self) -> list[str]:
        return [*self.natives, "huggingface"]

    def kept(self, layout: str, tensors: Tensors) -> Tensors:
        return {name: tensor for name, tensor in tensors.items() if not self.without_place(layout, name)}


def random_tensor(
    generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    return torch.randn(shape, generator=generator).to(dtype)


def write(family: Family, path: Path, seed: int = 0) -> Tensors:
    """Writes the checkpoint in two files, and returns what it holds."""
    path.mkdir(parents=True, exist_ok=True)
    tensors = family.make(torch.Generator().manual_seed(seed))
    names = sorted(tensors)
    parts = [names[::2], names[1::2]]
    weight_map = {}
    for number, part in enumerate(parts, start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name].contiguous() for name in part}, path / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text(json.dumps(family.config))
    return tensors


def named(generator: torch.Generator, prefix: str, **shapes: tuple[int, ...]) -> Tensors:
    """Tensors whose names have a dot for each double underscore."""
    return {
        prefix + name.replace("__", "."): random_tensor(generator, *shape) for name, shape in shapes.items()
    }


def outside_layers(generator: torch.Generator) -> Tensors:
    return named(
        generator,
        "",
        model__embed_tokens__weight=(VOCABULARY, HIDDEN),
        model__norm__weight=(HIDDEN,),
        lm_head__weight=(VOCABULARY, HIDDEN),
    )


def mlp(generator: torch.Generator, prefix: str, inter: int) -> Tensors:
    return named(
        generator,
        prefix,
        gate_proj__weight=(inter, HIDDEN),
        up_proj__weight=(inter, HIDDEN),
        down_proj__weight=(HIDDEN, inter),
    )


def renamed(tensors: Tensors, *pairs: tuple[str, str]) -> Tensors:
    """Each name with all replacements, regular expressions, in turn."""
    result = {}
    for name, tensor in tensors.items():
        for pattern, replacement in pairs:
            name = re.sub(pattern, replacement, name)
        result[name] = tensor
    return result


# --- Qwen3-MoE -------------------------------------------------------------------------------------------------------


def attention(generator: torch.Generator, prefix: str) -> Tensors:
    shapes = {"q_proj": (16, HIDDEN), "k_proj": (8, HIDDEN), "v_proj": (8, HIDDEN), "o_proj": (HIDDEN, 16)}
    shapes |= {"q_norm": (4,), "k_norm": (4,)}
    return {
        f"{prefix}self_attn.{name}.weight": random_tensor(generator, *shape) for name, shape in shapes.items()
    }


def norms(generator: torch.Generator, prefix: str) -> Tensors:
    names = ("input_layernorm", "post_attention_layernorm")
    return {f"{prefix}{name}.weight": random_tensor(generator, HIDDEN) for name in names}


def split_experts(generator: torch.Generator, prefix: str) -> Tensors:
    tensors = {}
    for expert in range(EXPERTS):
        for name, shape in (("gate", (INTER, HIDDEN)), ("up", (INTER, HIDDEN)), ("down", (HIDDEN, INTER))):
            tensors[f"{prefix}mlp.experts.{expert}.{name}_proj.weight"] = random_tensor(generator, *shape)
    return tensors


def qwen3_moe(generator: torch.Generator) -> Tensors:
    tensors = {
        "model.embed_tokens.weight": random_tensor(generator, VOCABULARY, HIDDEN),
        "model.norm.weight": random_tensor(generator, HIDDEN),
        "lm_head.weight": random_tensor(generator, VOCABULARY, HIDDEN),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        tensors |= attention(generator, prefix) | norms(generator, prefix)
        tensors[f"{prefix}mlp.gate.weight"] = random_tensor(generator, EXPERTS, HIDDEN)
        tensors |= split_experts(generator, prefix)
    return tensors


def is_of_expert(name: str) -> bool:
    return ".mlp.experts." in name


def others(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not is_of_expert(name)}


def stack(tensors: Tensors, prefix: str, name: str) -> torch.Tensor:
    return torch.stack([tensors[f"{prefix}{expert}.{name}_proj.weight"] for expert in range(EXPERTS)])


def prefixes_of_experts(tensors: Tensors) -> list[str]:
    return sorted(
        {name.split(".mlp.experts.")[0] + ".mlp.experts." for name in tensors if is_of_expert(name)}
    )


def grouped(tensors: Tensors) -> Tensors:
    """As the grouped experts of nemo-automodel: x @ weight."""
    result = {}
    for prefix in prefixes_of_experts(tensors):
        gate, up, down = (stack(tensors, prefix, name).transpose(1, 2) for name in ("gate", "up", "down"))
        result[prefix + "gate_and_up_projs"] = torch.cat([gate, up], dim=2)
        result[prefix + "down_projs"] = down
    return result


def fused(tensors: Tensors) -> Tensors:
    """As the experts of transformers: MergeModulelist(0), Concatenate(1)."""
    result = {}
    for prefix in prefixes_of_experts(tensors):
        gate, up, down = (stack(tensors, prefix, name) for name in ("gate", "up", "down"))
        result[prefix + "gate_up_proj"] = torch.cat([gate, up], dim=1)
        result[prefix + "down_proj"] = down
    return result


# --- Qwen3.5-MoE -----------------------------------------------------------------------------------------------------

TEXT = "model.language_model."


def linear_attention(generator: torch.Generator, prefix: str) -> Tensors:
    shapes = {
        "in_proj_qkv.weight": (24, HIDDEN),
        "in_proj_z.weight": (12, HIDDEN),
        "in_proj_a.weight": (3, HIDDEN),
        "in_proj_b.weight": (3, HIDDEN),
        "conv1d.weight": (24, 1, 4),
        "norm.weight": (4,),
        "out_proj.weight": (HIDDEN, 12),
        "A_log": (3,),
        "dt_bias": (3,),
    }
    return {f"{prefix}linear_attn.{name}": random_tensor(generator, *shape) for name, shape in shapes.items()}


def mixture(generator: torch.Generator, prefix: str, is_split: bool) -> Tensors:
    tensors = {
        f"{prefix}mlp.gate.weight": random_tensor(generator, EXPERTS, HIDDEN),
        f"{prefix}mlp.shared_expert_gate.weight": random_tensor(generator, 1, HIDDEN),
        f"{prefix}mlp.shared_expert.gate_proj.weight": random_tensor(generator, INTER, HIDDEN),
        f"{prefix}mlp.shared_expert.up_proj.weight": random_tensor(generator, INTER, HIDDEN),
        f"{prefix}mlp.shared_expert.down_proj.weight": random_tensor(generator, HIDDEN, INTER),
    }
    if is_split:
        return tensors | split_experts(generator, prefix)
    return tensors | {
        f"{prefix}mlp.experts.gate_up_proj": random_tensor(generator, EXPERTS, 2 * INTER, HIDDEN),
        f"{prefix}mlp.experts.down_proj": random_tensor(generator, EXPERTS, HIDDEN, INTER),
    }


def qwen3_5_moe(generator: torch.Generator, is_split: bool, is_mtp_split: bool) -> Tensors:
    tensors = {
        f"{TEXT}embed_tokens.weight": random_tensor(generator, VOCABULARY, HIDDEN),
        f"{TEXT}norm.weight": random_tensor(generator, HIDDEN),
        "lm_head.weight": random_tensor(generator, VOCABULARY, HIDDEN),
        "model.visual.patch_embed.proj.weight": random_tensor(generator, 6, 3, 2, 4, 4),
        "model.visual.blocks.0.attn.qkv.weight": random_tensor(generator, 18, 6),
        "mtp.fc.weight": random_tensor(generator, HIDDEN, 2 * HIDDEN),
        "mtp.norm.weight": random_tensor(generator, HIDDEN),
        "mtp.pre_fc_norm_embedding.weight": random_tensor(generator, HIDDEN),
        "mtp.pre_fc_norm_hidden.weight": random_tensor(generator, HIDDEN),
    }
    for layer in range(LAYERS):
        prefix = f"{TEXT}layers.{layer}."
        tensors |= (linear_attention if layer == 0 else attention)(generator, prefix)
        tensors |= norms(generator, prefix) | mixture(generator, prefix, is_split)
    prefix = "mtp.layers.0."
    tensors |= (
        attention(generator, prefix) | norms(generator, prefix) | mixture(generator, prefix, is_mtp_split)
    )
    return tensors


RENAMED = {
    "mtp.fc.weight": "mtp.layers.0.eh_proj.weight",
    "mtp.norm.weight": "mtp.layers.0.final_layernorm.weight",
    "mtp.pre_fc_norm_embedding.weight": "mtp.layers.0.enorm.weight",
    "mtp.pre_fc_norm_hidden.weight": "mtp.layers.0.hnorm.weight",
}


def stacked(tensors: Tensors, gate_up: str, down: str, is_transposed: bool) -> Tensors:
    """Experts that the file has stacked, of a decoder or of MTP."""
    result = {}
    for name, tensor in tensors.items():
        for ending, native in ((".mlp.experts.gate_up_proj", gate_up), (".mlp.experts.down_proj", down)):
            if name.endswith(ending):
                value = tensor.transpose(1, 2) if is_transposed else tensor
                result[name.removesuffix(ending) + ".mlp.experts." + native] = value
    return result


def only_split(tensors: Tensors) -> Tensors:
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name.endswith("_proj.weight") and is_of_expert(name)
    }


def qwen3_5_automodel(tensors: Tensors) -> Tensors:
    result = grouped(only_split(tensors)) | stacked(tensors, "gate_and_up_projs", "down_projs", True)
    for name, tensor in others(tensors).items():
        native = RENAMED.get(name, name).replace(".shared_expert.", ".shared_experts.")
        if name.endswith((".A_log", ".dt_bias")):
            native = native.replace(".linear_attn.", ".linear_attn._fp32_params.")
            tensor = tensor.float()
        result[native] = tensor
    return result


def qwen3_5_transformers(tensors: Tensors) -> Tensors:
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("mtp.")}
    return others(tensors) | fused(only_split(tensors)) | stacked(tensors, "gate_up_proj", "down_proj", False)


def qwen3_5(name: str, is_split: bool, is_mtp_split: bool) -> Family:
    return Family(
        name,
        "qwen3_5_moe",
        {"model_type": "qwen3_5_moe", "text_config": {"model_type": "qwen3_5_moe_text"}},
        lambda generator: qwen3_5_moe(generator, is_split, is_mtp_split),
        {"automodel": qwen3_5_automodel, "transformers": qwen3_5_transformers},
    )


FAMILIES = [
    Family(
        "qwen3_moe",
        "qwen3_moe",
        {"model_type": "qwen3_moe"},
        qwen3_moe,
        {
            "automodel": lambda tensors: others(tensors) | grouped(tensors),
            "transformers": lambda tensors: others(tensors) | fused(tensors),
        },
    ),
    qwen3_5("qwen3_5_moe", False, False),
    qwen3_5("qwen3_5_moe, MTP's experts apart", False, True),
    qwen3_5("qwen3_5_moe, experts apart", True, True),
]


def native(family: Family, layout: str, tensors: Tensors) -> Tensors:
    """What a trainer of that layout holds, contiguous."""
    made = family.own(tensors) if layout == "huggingface" else family.natives[layout](tensors)
    return {name: tensor.contiguous() for name, tensor in made.items()}


# --- files -----------------------------------------------------------------------------------------------------------


def held(path: Path) -> Tensors:
    """What the files of a checkpoint hold, read by safetensors."""
    tensors = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return tensors


# --- LoRA ------------------------------------------------------------------------------------------------------------

RANK = 3


def lora_of(prefix: str, generator: torch.Generator) -> Tensors:
    """LoRA tensors of a layer's experts and of a projection, as a trainer holds them."""
    shapes = {
        "mlp.experts.lora_gate_and_up_A": (EXPERTS, HIDDEN, RANK),
        "mlp.experts.lora_gate_and_up_B": (EXPERTS, RANK, 2 * INTER),
        "mlp.experts.lora_down_A": (EXPERTS, INTER, RANK),
        "mlp.experts.lora_down_B": (EXPERTS, RANK, HIDDEN),
        "self_attn.q_proj.lora_A.weight": (RANK, HIDDEN),
        "self_attn.q_proj.lora_B.weight": (16, RANK),
    }
    return {prefix + name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def expected_adapter(lora: Tensors, prefix: str, layout: str, is_stacked: bool) -> Tensors:
    """What peft's file holds: a ParamWrapper for each stack that is one parameter, else a module for each expert."""
    experts = PREFIX + prefix + "mlp.experts"
    found = {
        f"{PREFIX}{prefix}self_attn.q_proj.lora_{letter}.weight": lora[
            f"{prefix}self_attn.q_proj.lora_{letter}.weight"
        ]
        for letter in "AB"
    }
    pairs = {
        stack: (lora[f"{prefix}mlp.experts.lora_{stack}_A"], lora[f"{prefix}mlp.experts.lora_{stack}_B"])
        for stack in ("gate_and_up", "down")
    }
    if layout == "transformers" or is_stacked:
        for stack, module in (("gate_and_up", ".base_layer"), ("down", "")):
            a, b = wrapper(*pairs[stack], False)
            found |= {f"{experts}{module}.lora_A.weight": a, f"{experts}{module}.lora_B.weight": b}
        return found
    for expert in range(EXPERTS):
        (a, b), (down_a, down_b) = ((a[expert].T, b[expert].T) for a, b in pairs.values())
        for name, one_a, one_b in (
            ("gate", a, b[: INTER]), ("up", a, b[INTER :]), ("down", down_a, down_b),
        ):  # fmt: skip
            module = f"{experts}.{expert}.{name}_proj"
            found |= {f"{module}.lora_A.weight": one_a, f"{module}.lora_B.weight": one_b}
    return found
