"""Small checkpoints of models whose experts are released in 4 or 8 bits, and what a trainer holds of them packed.

What is stored is regrouped here by stacking, joining and transposing raw tensors; nothing is decoded, and no rule of
the library's is asked.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import shardwright as sw
import torch
from encoded import (
    Weight,
    fp4_deepseek,
    fp8_deepseek,
    int4,
    mxfp4_blocks,
    mxfp4_packed,
    nvfp4_compressed_tensors,
    nvfp4_modelopt,
)
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
Encode = Callable[[torch.Generator, str, tuple[int, ...]], Weight]

#: How a trainer's companion ends, by the ending of an expert's tensor in files; "": it is the codes.
ENDINGS = {
    "weight": "",
    "weight_packed": "",
    "weight_scale_inv": "_scale_inv",
    "weight_scale": "_scale",
    "scale": "_scale",
    "weight_scale_2": "_scale_2",
    "weight_global_scale": "_global_scale",
    "input_scale": "_input_scale",
    "input_global_scale": "_input_global_scale",
}
#: What a projection is called in files.
GATES, UPS, DOWNS = ("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")


def held(path: Path) -> Tensors:
    return {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}


@dataclass(frozen=True)
class PackedModel:
    """One release. ``experts`` is what the names of a layer's experts begin with, in files; by layout, natively."""

    name: str
    make: Callable[[Path], None]
    experts: str
    natives: dict[str, str]

    def write(self, path: Path) -> Tensors:
        """Writes the checkpoint, and returns what it holds."""
        path.mkdir(parents=True, exist_ok=True)
        self.make(path)
        return held(path)

    def packed(self, stored: Tensors, layout: str) -> Tensors:
        """The stacks of experts, and their companions."""
        stacks: Tensors = {}
        for layer, native, parts in self._layers(stored, layout):
            for ending in {ENDINGS[name.rsplit(".", 1)[1]] for name in parts if not name.endswith("_shape")}:
                of = {name: t for name, t in parts.items() if ENDINGS.get(name.rsplit(".", 1)[1]) == ending}
                gate, up, down = (stacked(of, layer, projections) for projections in (GATES, UPS, DOWNS))
                stacks |= natives_of(layout, native, ending, gate, up, down)
        return stacks

    def _layers(self, stored: Tensors, layout: str) -> list[tuple[str, str, Tensors]]:
        """(prefix in files, prefix of the trainer's, tensors) of each layer."""
        pattern = re.compile(self.experts.replace(".", r"\.").replace("{layer}", r"(\d+)") + r"\.")
        layers: dict[str, Tensors] = {}
        for name, tensor in stored.items():
            if found := pattern.match(name):
                layers.setdefault(found[1], {})[name] = tensor
        return [
            (self.experts.replace("{layer}", number), self._native(layout, number), parts)
            for number, parts in layers.items()
        ]

    def _native(self, layout: str, number: str) -> str:
        """The trainer's prefix of a layer; the last one of DeepSeek's is for multi-token prediction."""
        prefix = self.natives[layout].replace("{layer}", number)
        return prefix.replace("layers.2.", "mtp_layers.0.") if layout == "torchtitan" else prefix


def stacked(parts: Tensors, prefix: str, projections: tuple[str, ...]) -> torch.Tensor:
    """[experts, ...] of a projection; numbers become matrices of one entry."""
    experts: dict[int, torch.Tensor] = {}
    for name, tensor in parts.items():
        number, projection, _ = name.removeprefix(prefix + ".").split(".")
        if projection in projections:
            experts[int(number)] = tensor.reshape(1, 1) if tensor.numel() == 1 else tensor
    return torch.stack([experts[number] for number in sorted(experts)])


def natives_of(
    layout: str, native: str, ending: str, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> Tensors:
    both = torch.cat([gate, up], 1)
    if layout == "automodel":  # [experts, in, out]
        both, down = both.transpose(1, 2).contiguous(), down.transpose(1, 2).contiguous()
        return {f"{native}.gate_and_up_projs{ending}": both, f"{native}.down_projs{ending}": down}
    if layout == "transformers":
        return {f"{native}.gate_up_proj{ending}": both, f"{native}.down_proj{ending}": down}
    names = ("w1_EFD", "w3_EFD", "w2_EDF")
    return {f"{native}.{name}{ending}": one for name, one in zip(names, (gate, up, down), strict=True)}


def generated(**how: str) -> Callable[[Path], None]:
    return lambda path: sw.generate(path, **how)


def encoded(family: str, expert: Encode, other: tuple[str, Encode] | None = None) -> Callable[[Path], None]:
    """The family's sample in BF16, its experts encoded so, and weights whose names have that part otherwise."""

    def make(path: Path) -> None:
        sw.generate(path, family=family, form="bf16")
        generator = torch.Generator().manual_seed(5)
        tensors: Tensors = {}
        for name, tensor in held(path).items():
            encode = expert if ".experts." in name and name.endswith(".weight") else None
            if other is not None and re.search(other[0], name):
                encode = other[1]
            if encode is None:
                tensors[name] = tensor
            else:
                tensors |= encode(generator, name.removesuffix(".weight"), tuple(tensor.shape)).stored
        for file in path.glob("*.safetensors*"):
            file.unlink()
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})

    return make


def int4_group32(generator: torch.Generator, module: str, shape: tuple[int, ...]) -> Weight:
    return int4(generator, module, shape, 32, False)


M3 = "language_model.model.layers.{layer}.block_sparse_moe.experts"
M3_NATIVES = {
    "automodel": "model.layers.{layer}.mlp.experts",
    "transformers": "model.language_model.layers.{layer}.mlp.experts",
}
V3 = "model.layers.{layer}.mlp.experts"
V3_NATIVES = {
    "automodel": V3,
    "transformers": V3,
    "torchtitan": "layers.{layer}.moe.routed_experts.inner_experts",
}
K2 = "language_model.model.layers.{layer}.mlp.experts"
K2_NATIVES = {
    "automodel": "model.language_model.model.layers.{layer}.mlp.experts",
    "transformers": "model.language_model.layers.{layer}.mlp.experts",
    "torchtitan": "layers.{layer}.moe.routed_experts.inner_experts",
}
V4_NATIVES = {"automodel": V3, "transformers": V3}

MODELS = [
    PackedModel("m3_mxfp8", generated(preset="tiny"), M3, M3_NATIVES),
    PackedModel("m3_nvfp4", generated(preset="tiny", encoding="nvfp4_modelopt"), M3, M3_NATIVES),
    PackedModel("m3_block_fp8", generated(preset="small", encoding="block_fp8"), M3, M3_NATIVES),
    PackedModel("deepseek_v3_fp8", generated(family="deepseek_v3", form="fp8"), V3, V3_NATIVES),
    PackedModel("kimi_k2_int4", encoded("kimi_k25", int4_group32), K2, K2_NATIVES),
    PackedModel("kimi_mxfp4", encoded("kimi_k25", mxfp4_packed), K2, K2_NATIVES),
    PackedModel("nvfp4_of_modelopt", encoded("deepseek_v3", nvfp4_modelopt), V3, V3_NATIVES),
    PackedModel(
        "nvfp4_of_compressed_tensors", encoded("deepseek_v3", nvfp4_compressed_tensors), V3, V3_NATIVES
    ),
    PackedModel(
        "deepseek_v4",
        encoded("deepseek_v4", fp4_deepseek, (r"\.attn\.w(q_a|kv|o_b)\.weight$", fp8_deepseek)),
        "layers.{layer}.ffn.experts",
        V4_NATIVES,
    ),
]


def gpt_oss(path: Path) -> Tensors:
    """A checkpoint of gpt-oss with experts as released, and what it holds."""
    path.mkdir(parents=True, exist_ok=True)
    sw.generate(path, family="gpt_oss", config={"intermediate_size": 64, "hidden_size": 96})
    generator = torch.Generator().manual_seed(6)
    tensors: Tensors = {}
    for name, tensor in held(path).items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, columns, rows = tensor.shape
            tensors |= mxfp4_blocks(generator, name, (experts, rows, columns)).stored
        else:
            tensors[name] = tensor
    for file in path.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return tensors


def packed_gpt_oss(stored: Tensors, layout: str) -> Tensors:
    """Its stacks of experts as a trainer holds them packed."""
    packed: Tensors = {}
    for name, blocks in stored.items():
        if not name.endswith("_blocks"):
            continue
        hf = name.removesuffix("_blocks")
        layer, projection = re.findall(r"layers\.(\d+)\..*\.(\w+)$", hf)[0]
        codes, scales = blocks.flatten(2), stored[f"{hf}_scales"]
        if layout != "torchtitan":
            codes, scales = codes.transpose(1, 2).contiguous(), scales.transpose(1, 2).contiguous()
        native = {
            "automodel": f"model.layers.{layer}.mlp.experts."
            + {"gate_up_proj": "gate_and_up_projs", "down_proj": "down_projs"}[projection],
            "transformers": f"model.layers.{layer}.mlp.experts.{projection}",
            "torchtitan": f"layers.{layer}.moe.routed_experts.inner_experts."
            + {"gate_up_proj": "mlp1_weight", "down_proj": "mlp2_weight"}[projection],
        }[layout]
        packed |= {native: codes, f"{native}_scale_inv": scales}
    return packed


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.dtype, a.shape) == (b.dtype, b.shape) and bytes_of(a) == bytes_of(b)


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def differing(found: Tensors, expected: Tensors) -> list[str]:
    return [name for name in expected if name not in found or not same_bytes(found[name], expected[name])]
