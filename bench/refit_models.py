"""The models that bench/refit.py hands over: what trainers hold, the HF tensors that these are, and an engine."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import shardwright as sw
import torch
from shardwright import _core

HfTensors = Iterator[tuple[str, torch.Tensor]]


@dataclass(frozen=True)
class Model:
    """Native tensors by name, without memory, and how HF's follow from each whole one."""

    natives: dict[str, torch.Tensor]
    hf_of: Callable[[str, torch.Tensor], HfTensors]
    is_quantized: Callable[[str], bool]
    layout: str
    quantized_weights: list[str] | None  #: None: as the family has it

    @property
    def parameters(self) -> int:
        return sum(native.numel() for native in self.natives.values())


def dense(layers: int, hidden: int) -> Model:
    """Attention and an MLP in BF16, under HF names."""
    natives = {}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        for part in "qkvo":
            natives[f"{name}.self_attn.{part}_proj.weight"] = (hidden, hidden)
        for part in ("gate", "up"):
            natives[f"{name}.mlp.{part}_proj.weight"] = (3 * hidden, hidden)
        natives[f"{name}.mlp.down_proj.weight"] = (hidden, 3 * hidden)
    return Model(
        {name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in natives.items()},
        lambda name, whole: iter([(name, whole)]),
        lambda hf: True,
        "huggingface",
        ["*.weight"],
    )


def minimax_m3(preset: str) -> Model:
    """A generated MiniMax M3, as nemo-automodel trains it: experts stacked, transposed, gate and up joined."""
    with tempfile.TemporaryDirectory() as folder:
        sw.generate(folder, preset, layout_only=True)
        catalog = sw.read_catalog(folder)
        natives = _core.native_tensors(catalog, _core.weight_map(catalog))
    dtypes = {"BF16": torch.bfloat16, "F32": torch.float32}
    return Model(
        {one.fqn: torch.empty(one.shape, dtype=dtypes[one.dtype], device="meta") for one in natives},
        _minimax_m3_hf,
        lambda hf: _M3_QUANTIZED.search(hf) is not None,
        "automodel",
        None,
    )


_M3_QUANTIZED = re.compile(
    r"language_model\..*(?:self_attn\.[qkvo]_proj|(?:mlp|shared_experts)\.(?:gate|up|down)_proj|experts\.\d+\.w[123])"
    r"\.weight$"
)


def _minimax_m3_hf(name: str, whole: torch.Tensor) -> HfTensors:
    """By hand: what planner/models/minimax_m3_automodel.cpp has as rules."""
    if name.startswith("vision_tower."):
        rest = name.removeprefix("vision_tower.")
        yield name if rest.startswith("vision_model.") else rest, whole
        return
    hf = f"language_model.{name}".replace(".indexer.", ".").replace(
        ".shared_experts.", ".block_sparse_moe.shared_experts."
    )
    hf = hf.replace(".mlp.gate.", ".block_sparse_moe.gate.").replace("gate.e_score", "e_score")
    layer, _, stacked = hf.partition(".mlp.experts.")
    if not stacked:
        yield hf, whole.bfloat16()  # a router's bias too, as exports of this family have it
        return
    for expert, weight in enumerate(whole):
        of_expert = f"{layer}.block_sparse_moe.experts.{expert}"
        if stacked == "down_projs":
            yield f"{of_expert}.w2.weight", weight.T
        else:
            gate, up = weight.T.chunk(2)
            yield f"{of_expert}.w1.weight", gate
            yield f"{of_expert}.w3.weight", up


# Of the engine: which HF tensors it joins to one, and the dimension that its ranks cut.
_FUSED = (
    (re.compile(r"experts\.(\d+)\.w[13]\.weight$"), "experts.w13.weight", 0),
    (re.compile(r"experts\.(\d+)\.w2\.weight$"), "experts.w2.weight", 1),
    (re.compile(r"[qkv]_proj\.weight$"), "qkv_proj.weight", 0),
    (re.compile(r"(?:gate|up)_proj\.weight$"), "gate_up_proj.weight", 0),
    (re.compile(r"(?:o|down)_proj\.weight$"), None, 1),
    (re.compile(r"(?:embed_tokens|lm_head|eh_proj|index_q_proj)\.weight$"), None, 0),
)


@dataclass(frozen=True)
class _Source:
    """An HF tensor in a tensor of the engine."""

    hf: str
    expert: int | None  #: its index in a stack
    cut: int | None  #: the dimension that the engine's ranks cut


def _joined(hf_names: Iterable[str]) -> dict[str, list[_Source]]:
    """The engine's tensors by name, and what each is made of."""
    joined: dict[str, list[_Source]] = {}
    for hf in hf_names:
        for pattern, name, cut in _FUSED:
            if match := pattern.search(hf):
                expert = int(match[1]) if pattern.groups else None
                fused = hf[: match.start()] + name if name else hf
                joined.setdefault(fused, []).append(_Source(hf, expert, cut))
                break
        else:
            joined[hf] = [_Source(hf, None, None)]
    return joined


def engine_of(model: Model, rank: int, ranks: int, encoded: bool) -> list[sw.EngineTensor]:
    """A tensor-parallel rank's tensors, fused as engines have them, and their scales beside them."""
    hf = {hf: whole for name, native in model.natives.items() for hf, whole in model.hf_of(name, native)}
    tensors = []
    for name, sources in _joined(hf).items():
        kinds = [("", hf[sources[0].hf].dtype, 1)]
        if encoded and model.is_quantized(sources[0].hf):
            kinds = [("", torch.float8_e4m3fn, 1), ("_scale_inv", torch.uint8, 32)]
        for ending, dtype, block in kinds:
            shapes = {one.hf: [*hf[one.hf].shape[:-1], hf[one.hf].shape[-1] // block] for one in sources}
            tensors.append(_engine_tensor(name + ending, dtype, sources, shapes, ending, (rank, ranks)))
    return tensors


def _engine_tensor(
    name: str,
    dtype: torch.dtype,
    sources: list[_Source],
    shapes: dict[str, list[int]],
    ending: str,
    place: tuple[int, int],
) -> sw.EngineTensor:
    """``place``: the engine's rank, and how many there are."""
    parts = []
    size: list[int] = []
    rows = dict.fromkeys((one.expert for one in sources), 0)  # so far, of each expert
    for one in sources:
        box = [slice(0, length) for length in shapes[one.hf]]
        if one.cut is not None:
            step = box[one.cut].stop // place[1]
            box[one.cut] = slice(place[0] * step, (place[0] + 1) * step)
        size = [along.stop - along.start for along in box]
        at = [rows[one.expert], *[0] * (len(size) - 1)]
        parts.append(sw.EnginePart(one.hf + ending, box, at if one.expert is None else [one.expert, *at]))
        rows[one.expert] += size[0]
    stack = [] if None in rows else [len(rows)]
    whole = [*stack, next(iter(rows.values())), *size[1:]]
    return sw.EngineTensor(name, torch.zeros(whole, dtype=dtype), parts)


def encode(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """MXFP8 by torch's own operations. Scales are the least powers of two that let a block fit below 448."""
    blocks = weight.float().unflatten(1, (-1, 32))
    mantissa, exponent = torch.frexp(blocks.abs().amax(-1).clamp_min(2.0**-126))
    exponent = exponent - 9 + (mantissa > 448 / 512).int()
    codes = (blocks * torch.exp2(-exponent.float()).unsqueeze(-1)).to(torch.float8_e4m3fn)
    return codes.flatten(1), (exponent + 127).to(torch.uint8)
