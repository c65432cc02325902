"""LoRA tensors of families whose adapters have forms of their own, and what the adapter files hold, by torch alone.

Names and shapes are written down from peft 0.21, transformers 5.23 and nemo-automodel 0.7.0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from lora_reference import PREFIX, Sd, block_diagonal, wrapper

EXPERTS, HIDDEN, INTER, RANK = 4, 20, 12, 3


@dataclass(frozen=True)
class Form:
    """What the file of an adapter of a family holds in a layout."""

    model: str
    layout: str
    trainers: Callable[[], Sd]
    in_file: Callable[[Sd], Sd]
    parameters: tuple[str, ...] = ()  #: target_parameters of adapter_config.json

    @property
    def id(self) -> str:
        return f"{self.model}, {self.layout}"


def module(name: str, outputs: int, inputs: int, generator: torch.Generator) -> Sd:
    return {
        f"{name}.lora_A.weight": torch.randn(RANK, inputs, generator=generator),
        f"{name}.lora_B.weight": torch.randn(outputs, RANK, generator=generator),
    }


def stacks(path: str, joined: int) -> Sd:
    """A and B of both stacks of experts; gates and ups are `joined` columns."""
    generator = torch.Generator().manual_seed(3)
    shapes = {
        "gate_and_up_A": (EXPERTS, HIDDEN, RANK),
        "gate_and_up_B": (EXPERTS, RANK, joined),
        "down_A": (EXPERTS, INTER, RANK),
        "down_B": (EXPERTS, RANK, HIDDEN),
    }
    made = {f"{path}.lora_{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    layer = path.partition(".1.")[0] + ".1."
    return made | module(layer + "self_attn.q_proj", 16, HIDDEN, generator)


def pair(lora: Sd, path: str, stack: str) -> tuple[torch.Tensor, torch.Tensor]:
    return lora[f"{path}.lora_{stack}_A"], lora[f"{path}.lora_{stack}_B"]


def filed(name: str, a: torch.Tensor, b: torch.Tensor) -> Sd:
    return {f"{PREFIX}{name}.lora_A.weight": a, f"{PREFIX}{name}.lora_B.weight": b}


def modules_of(lora: Sd, rename: Callable[[str], str] = str) -> Sd:
    """The pairs of modules, which the file has as they are."""
    return {PREFIX + rename(name): tensor for name, tensor in lora.items() if name.endswith(".weight")}


def wrapped(lora: Sd, path: str, stack: str) -> Sd:
    """Both stacks are parameters of one module: peft wraps the first one's wrapper in the second's."""
    return filed(stack, *wrapper(*pair(lora, path, "down"), False)) | filed(
        stack + ".base_layer", *wrapper(*pair(lora, path, "gate_and_up"), False)
    )


EXPERTS_OF_LAYER = "model.layers.1.mlp.experts"
EXPERTS_OF_VISION_MODEL = "model.language_model.layers.1.mlp.experts"
EXPERTS_OF_MIXER = "model.layers.1.mixer.experts"
EXPERTS_OF_STEP = "model.layers.1.moe.experts"


def deepseek_v4_names(name: str) -> str:
    return name.replace("self_attn.wq_a.", "self_attn.q_a_proj.")


def deepseek_v4() -> Sd:
    generator = torch.Generator().manual_seed(4)
    lora = {name: t for name, t in stacks(EXPERTS_OF_LAYER, 2 * INTER).items() if "self_attn" not in name}
    return lora | module("model.layers.1.self_attn.wq_a", 8, HIDDEN, generator)


def fused() -> Sd:
    """Three modules of the trainer that are one in the file; query has more rows than key and value."""
    generator = torch.Generator().manual_seed(6)
    lora: Sd = {}
    for name, rows in (("q", 12), ("k", 6), ("v", 6)):
        lora |= module(f"model.layers.1.self_attn.{name}_proj", rows, HIDDEN, generator)
    return lora | module("model.layers.1.self_attn.o_proj", HIDDEN, 12, generator)


def fused_in_file(lora: Sd) -> Sd:
    def of(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        path = f"model.layers.1.self_attn.{name}_proj.lora_"
        return lora[path + "A.weight"], lora[path + "B.weight"]

    attention = "model.layers.1.attention."
    return filed(attention + "query_key_value", *block_diagonal([of("q"), of("k"), of("v")])) | filed(
        attention + "dense", *of("o")
    )


#: A trainer of transformers' own M3 calls its modules so; also what peft calls them in its files.
M3_ATTENTION = "model.language_model.layers.1.self_attn.q_proj"
M3_INDEXER = "model.language_model.layers.1.self_attn.indexer.q_proj"
M3_SHARED = "model.language_model.layers.1.mlp.shared_experts"
M3_VISION = "model.vision_tower.layers.0.self_attn.q_proj"


def minimax_m3_of_transformers() -> Sd:
    generator = torch.Generator().manual_seed(7)
    return (
        module(M3_ATTENTION, 14, HIDDEN, generator)
        | module(M3_INDEXER, 4, HIDDEN, generator)
        | module(f"{M3_SHARED}.gate_up_proj", 2 * INTER, HIDDEN, generator)
        | module(f"{M3_SHARED}.down_proj", HIDDEN, INTER, generator)
        | module(M3_VISION, 8, 8, generator)
    )


def minimax_m3_released(lora: Sd) -> Sd:
    """Under the released names: gate and up are two modules, which share the one's A."""
    renamed = {
        M3_ATTENTION: "language_model.model.layers.1.self_attn.q_proj",
        M3_INDEXER: "language_model.model.layers.1.self_attn.index_q_proj",
        f"{M3_SHARED}.down_proj": "language_model.model.layers.1.block_sparse_moe.shared_experts.down_proj",
        M3_VISION: "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj",
    }
    stored: Sd = {}
    for name, released in renamed.items():
        stored |= filed(released, lora[f"{name}.lora_A.weight"], lora[f"{name}.lora_B.weight"])
    a = lora[f"{M3_SHARED}.gate_up_proj.lora_A.weight"]
    gate, up = lora[f"{M3_SHARED}.gate_up_proj.lora_B.weight"].chunk(2)
    shared = "language_model.model.layers.1.block_sparse_moe.shared_experts."
    return stored | filed(shared + "gate_proj", a, gate) | filed(shared + "up_proj", a, up)


def step_in_file(lora: Sd) -> Sd:
    """Each projection is one parameter, called weight, of a module of its own."""
    a, b = pair(lora, EXPERTS_OF_STEP, "gate_and_up")
    gate, up = b.chunk(2, dim=2)
    path = "model.layers.1.moe."
    return (
        filed(path + "gate_proj", *wrapper(a, gate, False))
        | filed(path + "up_proj", *wrapper(a, up, False))
        | filed(path + "down_proj", *wrapper(*pair(lora, EXPERTS_OF_STEP, "down"), False))
        | modules_of(lora)
    )


FORMS = [
    # [experts, in, out] in transformers, too.
    Form(
        "gpt_oss",
        "transformers",
        lambda: stacks(EXPERTS_OF_LAYER, 2 * INTER),
        lambda lora: wrapped(lora, EXPERTS_OF_LAYER, EXPERTS_OF_LAYER) | modules_of(lora),
        (f"{EXPERTS_OF_LAYER}.down_proj", f"{EXPERTS_OF_LAYER}.gate_up_proj"),
    ),
    # Experts without gates, under another name.
    Form(
        "nemotron_h",
        "transformers",
        lambda: {k: t for k, t in stacks(EXPERTS_OF_MIXER, INTER).items() if "self_attn" not in k},
        lambda lora: wrapped(lora, EXPERTS_OF_MIXER, EXPERTS_OF_MIXER),
        (f"{EXPERTS_OF_MIXER}.down_proj", f"{EXPERTS_OF_MIXER}.up_proj"),
    ),
    Form(
        "qwen3_vl_moe",
        "transformers",
        lambda: stacks(EXPERTS_OF_VISION_MODEL, 2 * INTER),
        lambda lora: wrapped(lora, EXPERTS_OF_VISION_MODEL, EXPERTS_OF_VISION_MODEL) | modules_of(lora),
        (f"{EXPERTS_OF_VISION_MODEL}.down_proj", f"{EXPERTS_OF_VISION_MODEL}.gate_up_proj"),
    ),
    Form(
        "deepseek_v4",
        "transformers",
        deepseek_v4,
        lambda lora: wrapped(lora, EXPERTS_OF_LAYER, EXPERTS_OF_LAYER) | modules_of(lora, deepseek_v4_names),
        (f"{EXPERTS_OF_LAYER}.down_proj", f"{EXPERTS_OF_LAYER}.gate_up_proj"),
    ),
    Form("bailing_moe_v2", "huggingface", fused, fused_in_file),
    Form(
        "step3p5",
        "huggingface",
        lambda: stacks(EXPERTS_OF_STEP, 2 * INTER),
        step_in_file,
        tuple(f"model.layers.1.moe.{name}_proj.weight" for name in ("down", "gate", "up")),
    ),
    Form("minimax_m3", "transformers", minimax_m3_of_transformers, modules_of),
    Form("minimax_m3", "huggingface", minimax_m3_of_transformers, minimax_m3_released),
    Form("minimax_m3", "automodel", minimax_m3_of_transformers, minimax_m3_released),
    # nemo-automodel's own file has the trainer's tensors.
    Form(
        "mistral4",
        "automodel",
        lambda: stacks("model.language_model.model.layers.1.mlp.experts", 2 * INTER),
        lambda lora: {PREFIX + name: tensor for name, tensor in lora.items()},
    ),
]
