"""What a load must give, computed the plain way.

Nothing here is shared with the code under test: files are read with `open`, `struct` and `json`; an FP8
number is a `Fraction`, and what it becomes is rounded by hand; the names are an `if` after another. Slow,
and meant to be read.
"""

import functools
import json
import math
import re
import struct
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

# --- files --------------------------------------------------------------------------------------------------

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F16": 2, "BF16": 2, "F32": 4, "F64": 8, "C64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """One tensor as it lies in a file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin

    def raw(self) -> np.ndarray:
        """Its bytes, as an array of unsigned integers of the element's size and the tensor's shape."""
        with open(self.file, "rb") as file:
            file.seek(self.begin)
            data = file.read(self.nbytes)
        return np.frombuffer(data, dtype=f"<u{ITEM_BYTES[self.dtype]}").reshape(self.shape)


def read_safetensors(path: Path) -> dict[str, Stored]:
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    start = 8 + length
    return {
        name: Stored(
            path,
            entry["dtype"],
            tuple(entry["shape"]),
            start + entry["data_offsets"][0],
            start + entry["data_offsets"][1],
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def read_checkpoint(directory: str | Path) -> dict[str, Stored]:
    """Every tensor of every safetensors file of a directory."""
    tensors: dict[str, Stored] = {}
    for path in sorted(Path(directory).glob("*.safetensors")):
        tensors.update(read_safetensors(path))
    return tensors


# --- numbers ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Float:
    """A binary floating-point format of IEEE 754's kind."""

    bits: int
    exponent_bits: int

    @property
    def mantissa_bits(self) -> int:
        return self.bits - 1 - self.exponent_bits

    @property
    def smallest_exponent(self) -> int:
        """Of a normal number: the smallest is 2 to this power."""
        return 2 - 2 ** (self.exponent_bits - 1)

    @property
    def infinity(self) -> int:
        return (2**self.exponent_bits - 1) << self.mantissa_bits

    @property
    def nan(self) -> int:
        return self.infinity | 1 << (self.mantissa_bits - 1)


FLOATS = {
    torch.bfloat16: Float(16, 8),
    torch.float16: Float(16, 5),
    torch.float32: Float(32, 8),
    torch.float64: Float(64, 11),
}
TORCH_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32,
    "F64": torch.float64,
}  # fmt: skip


def round_fraction(value: Fraction, to: Float) -> int:
    """The bits of a value that is not negative, rounded once, to nearest even."""
    if value == 0:
        return 0
    exponent = value.numerator.bit_length() - value.denominator.bit_length()  # right, or one too large
    if value < Fraction(2) ** exponent:
        exponent -= 1
    exponent = max(exponent, to.smallest_exponent)
    count = round(value / Fraction(2) ** (exponent - to.mantissa_bits))  # Python rounds halves to even
    # `count` holds the leading one of a normal number, which carries into the exponent field by itself.
    return min(((exponent - to.smallest_exponent) << to.mantissa_bits) + count, to.infinity)


def e4m3(code: int) -> Fraction | float:
    """Magnitude of a float8 e4m3 ("fn") code; the one float is NaN."""
    exponent, mantissa = code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    if exponent == 0:
        return mantissa * Fraction(2) ** -9
    return (8 + mantissa) * Fraction(2) ** (exponent - 10)


def e5m2(code: int) -> Fraction | float:
    """Magnitude of a float8 e5m2 code; floats are infinity and NaN."""
    exponent, mantissa = code >> 2 & 31, code & 3
    if exponent == 31:
        return math.nan if mantissa else math.inf
    if exponent == 0:
        return mantissa * Fraction(2) ** -16
    return (4 + mantissa) * Fraction(2) ** (exponent - 17)


MAGNITUDES = {"F8_E4M3": e4m3, "F8_E5M2": e5m2}


def mx_bits(element: str, code: int, scale: int, dtype: torch.dtype) -> int:
    """The bits of the element of this byte × 2^(scale − 127) in `dtype`, rounded once."""
    to = FLOATS[dtype]
    magnitude = MAGNITUDES[element](code & 127)
    if scale == 255 or magnitude != magnitude:
        return to.nan
    infinite = magnitude == math.inf
    bits = to.infinity if infinite else round_fraction(magnitude * Fraction(2) ** (scale - 127), to)
    return bits | (1 << (to.bits - 1) if code & 128 else 0)


@functools.cache
def values_of_bytes(element: str) -> np.ndarray:
    """The number of each FP8 byte."""
    magnitudes = np.array([float(MAGNITUDES[element](code)) for code in range(128)])
    return np.concatenate([magnitudes, -magnitudes])


@functools.cache
def mx_table(element: str, dtype: torch.dtype) -> np.ndarray:
    """table[scale byte, element byte] is what `mx_bits` says: by fractions a table would take seconds."""
    products = np.ldexp(values_of_bytes(element), np.arange(256)[:, None] - 127)  # exact in float64
    products[255] = math.nan
    to = FLOATS[dtype]
    signed = {16: torch.int16, 32: torch.int32, 64: torch.int64}[to.bits]
    table = cast(products.view(np.uint64), "F64", dtype).view(signed).numpy().view(f"u{to.bits // 8}")
    table[np.isnan(products)] = to.nan
    return table


def decode_mxfp8(
    weight: np.ndarray, scales: np.ndarray, dtype: torch.dtype, block: int = 32, element: str = "F8_E4M3"
) -> torch.Tensor:
    """`weight` [out, in] of FP8 bytes, `scales` [out, ceil(in / block)] of e8m0 bytes."""
    rows, columns = weight.shape
    assert scales.shape == (rows, math.ceil(columns / block))
    scale_of_element = np.repeat(scales.astype(np.int32), block, axis=1)[:, :columns]
    return tensor_of(np.take(mx_table(element, dtype), scale_of_element * 256 + weight), dtype)


def scale_index(scale: "Stored", rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """Where the scales of these rows and columns of a weight lie, as a grid of indices."""
    if scale.dtype in ("U8", "F8_E8M0"):
        return np.ix_(rows, columns // 32)
    if math.prod(scale.shape) == 1:
        return tuple(np.zeros((len(rows), len(columns)), dtype=int) for _ in scale.shape)
    return np.ix_(rows // 128, columns // 128)


def decode_scaled(weight: "Stored", scale: "Stored", dtype: torch.dtype) -> torch.Tensor:
    """A matrix of FP8 elements times its scales: rounded once for e8m0, else to float32 first."""
    if scale.dtype in ("U8", "F8_E8M0"):
        return decode_mxfp8(weight.raw(), scale.raw(), dtype, element=weight.dtype)
    rows, columns = (np.arange(size) for size in weight.shape)
    scales = scale.raw()[scale_index(scale, rows, columns)]
    values = values_of_bytes(weight.dtype)
    if scale.dtype == "BF16":
        scales = scales.astype(np.uint32) << 16
    with np.errstate(invalid="ignore"):  # infinity times zero
        products = values[weight.raw()] * scales.view(np.float32).astype(float)  # exact: 4 bits times 24
    in_f32 = cast(products.view(np.uint64), "F64", torch.float32)
    return cast(in_f32.view(torch.int32).numpy().view(np.uint32), "F32", dtype)


def encode_mxfp8(values: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The e4m3 bytes and e8m0 bytes of a matrix: the inverse of `decode_mxfp8`, by looking for the nearest.

    Of each 32 columns the scale is the first power of two, from 2^-127 on, of which 448 times it is no less than the
    largest magnitude; an infinity counts as 2^128, a NaN as nothing.
    """
    rows, columns = values.shape
    numbers = values.double().numpy()
    magnitudes = np.zeros((rows, math.ceil(columns / 32) * 32))
    magnitudes[:, :columns] = np.where(np.isnan(numbers), 0, np.minimum(np.abs(numbers), 2.0**128))
    largest = magnitudes.reshape(rows, -1, 32).max(axis=2)
    scales = np.searchsorted(448 * 2.0 ** np.arange(-127, 128), largest, side="left")

    elements = values_of_bytes("F8_E4M3")[:0x7F]
    wanted = np.ldexp(np.abs(numbers), 127 - np.repeat(scales, 32, axis=1)[:, :columns])
    wanted = np.where(np.isnan(wanted), 0, np.minimum(wanted, 448))
    above = np.searchsorted(elements, wanted).clip(1)
    down, up = wanted - elements[above - 1], elements[above] - wanted
    codes = np.where((down < up) | ((down == up) & (above % 2 == 1)), above - 1, above)
    codes = np.where(np.isinf(numbers), 0x7E, np.where(np.isnan(numbers), 0x7F, codes))
    return (codes | np.where(np.signbit(numbers), 0x80, 0)).astype(np.uint8), scales.astype(np.uint8)


def cast(bits: np.ndarray, source: str, dtype: torch.dtype) -> torch.Tensor:
    """In its own dtype the same bits, in another each value rounded once, to nearest even."""
    if TORCH_DTYPES[source] == dtype:
        return tensor_of(bits, dtype)
    if source == "BF16":
        bits, source = bits.astype(np.uint32) << 16, "F32"
    with np.errstate(invalid="ignore"):  # numpy warns of NaN, which may stand in a checkpoint
        values = bits.view({"F16": np.float16, "F32": np.float32, "F64": np.float64}[source]).astype(float)
    to = FLOATS[dtype]
    finite = np.isfinite(values)
    _, exponent = np.frexp(np.where(finite, values, 0))  # |value| is in [2^(exponent - 1), 2^exponent)
    quantum = np.maximum(exponent - 1, to.smallest_exponent) - to.mantissa_bits
    rounded = np.ldexp(np.rint(np.ldexp(np.where(finite, values, 0), -quantum)), quantum)
    rounded = np.where(finite, rounded, values)
    largest = math.ldexp(2 - 2.0**-to.mantissa_bits, 1 - to.smallest_exponent)
    rounded = np.where(np.abs(rounded) > largest, np.copysign(np.inf, values), rounded)
    rounded = np.where(np.isnan(values), np.nan, rounded)
    # Each value now is one of `dtype`'s own: what follows changes none.
    if dtype == torch.bfloat16:
        return tensor_of((rounded.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16), dtype)
    own = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}[dtype]
    return tensor_of(rounded.astype(own).view(f"u{to.bits // 8}"), dtype)


def tensor_of(bits: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """The tensor that has these bits."""
    signed = np.ascontiguousarray(bits).view(f"i{bits.itemsize}").reshape(bits.shape)
    return torch.from_numpy(signed.copy()).view(dtype)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal in dtype, shape and bits, except that one NaN is as good as another."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    equal = a.contiguous().view(integers) == b.contiguous().view(integers)
    return bool(equal.all()) or bool((equal | (a.isnan() & b.isnan())).all())


def differing(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not in both, or not the same."""
    return sorted(found.keys() ^ expected.keys()) + [
        name for name in expected if name in found and not same(found[name], expected[name])
    ]


# --- names --------------------------------------------------------------------------------------------------


def text_prefix(names) -> str:
    """How the text part's names begin in this checkpoint, before what a native name begins with."""
    if any(name.startswith("language_model.") for name in names):
        return "language_model."
    return "" if any(name.startswith("model.") for name in names) else "bare"


def native_name(hf: str, prefix: str) -> tuple[str, str | None, int | None] | None:
    """Native name of an HF tensor and, for an expert's weight, which one (w1, w2, w3) of which expert it is.

    None if the checkpoint's tensor has no place in the trainer.
    """
    if prefix == "language_model." and not hf.startswith("language_model."):
        if ".mtp." in hf or hf.startswith("mtp."):
            return None
        if hf.startswith(("multi_modal_projector.", "patch_merge_mlp.")):
            return "vision_tower." + hf, None, None
        if hf.startswith("vision_tower.vision_model."):
            return hf, None, None
        return None
    name = hf.removeprefix("language_model.")
    if prefix == "bare" and not name.startswith("lm_head."):
        name = "model." + name
    if match := re.fullmatch(r"(.*)\.block_sparse_moe\.experts\.(\d+)\.(w[123])\.weight", name):
        layer, expert, which = match.groups()
        grouped = "down_projs" if which == "w2" else "gate_and_up_projs"
        return f"{layer}.mlp.experts.{grouped}", which, int(expert)
    name = name.replace(".block_sparse_moe.gate.", ".mlp.gate.")
    name = name.replace(".block_sparse_moe.e_score_correction_bias", ".mlp.gate.e_score_correction_bias")
    name = name.replace(".block_sparse_moe.shared_experts.", ".shared_experts.")
    name = name.replace(".self_attn.index_", ".self_attn.indexer.index_")
    return name, None, None


def hf_names(fqn: str, prefix: str, experts: int) -> list[str]:
    """The weights (without their scales) that a native tensor is made of."""
    if fqn.startswith(("vision_tower.multi_modal_projector.", "vision_tower.patch_merge_mlp.")):
        return [fqn.removeprefix("vision_tower.")]
    if fqn.startswith("vision_tower."):
        return [fqn]
    name = fqn.removeprefix("model.") if prefix == "bare" else prefix + fqn
    if match := re.fullmatch(r"(.*)\.mlp\.experts\.(gate_and_up_projs|down_projs)", name):
        layer, grouped = match.groups()
        weights = ["w2"] if grouped == "down_projs" else ["w1", "w3"]
        return [f"{layer}.block_sparse_moe.experts.{e}.{w}.weight" for e in range(experts) for w in weights]
    name = name.replace(".mlp.gate.e_score", ".block_sparse_moe.e_score")
    name = name.replace(".mlp.gate.", ".block_sparse_moe.gate.")
    name = name.replace(".shared_experts.", ".block_sparse_moe.shared_experts.")
    return [name.replace(".self_attn.indexer.index_", ".self_attn.index_")]


def transformers_name(hf: str, prefix: str) -> tuple[str, str | None, int | None] | None:
    """The same as `native_name`, in layout "transformers". Gate and up projections, "gate" and "up", are joined."""
    if ".mtp." in hf or hf.startswith("mtp."):
        return None
    if prefix == "language_model." and not hf.startswith("language_model."):
        if match := re.fullmatch(r"multi_modal_projector\.(linear_[12]\..*)", hf):
            return f"model.multi_modal_projector.{match[1]}", None, None
        if match := re.fullmatch(r"patch_merge_mlp\.(linear_[12]\..*)", hf):
            return f"model.multi_modal_projector.merge_{match[1]}", None, None
        if match := re.fullmatch(r"vision_tower\.vision_model\.embeddings\.patch_embedding\.(.*)", hf):
            return f"model.vision_tower.embeddings.proj.{match[1]}", None, None
        if match := re.fullmatch(
            r"vision_tower\.vision_model\.(?:encoder\.(?=layers\.)|(?=pre_layrnorm\.))(.*)", hf
        ):
            return f"model.vision_tower.{match[1]}", None, None
        return None
    name = hf.removeprefix("language_model.").removeprefix("model.")
    if not name.startswith("lm_head."):
        # The text model on its own, as its checkpoint, is not inside of a VL model.
        name = ("model.language_model." if prefix == "language_model." else "model.") + name
    name = name.replace(".self_attn.index_", ".self_attn.indexer.")
    name = name.replace(".block_sparse_moe.e_score_correction_bias", ".mlp.gate.e_score_correction_bias")
    name = name.replace(".block_sparse_moe.", ".mlp.")
    if match := re.fullmatch(r"(.*\.mlp\.experts)\.(\d+)\.(w[123])\.weight", name):
        experts, expert, which = match.groups()
        return f"{experts}.{'down_proj' if which == 'w2' else 'gate_up_proj'}", which, int(expert)
    if match := re.fullmatch(r"(.*\.mlp(?:\.shared_experts)?)\.(gate|up)_proj\.weight", name):
        return f"{match[1]}.gate_up_proj.weight", match[2], None
    return name, None, None


def huggingface_name(hf: str, prefix: str) -> tuple[str, str | None, int | None] | None:
    """The same as `native_name`, in layout "huggingface": only what has no place in any trainer has none there."""
    return None if native_name(hf, prefix) is None else (hf, None, None)


NAMES = {"automodel": native_name, "transformers": transformers_name, "huggingface": huggingface_name}


# --- the model ----------------------------------------------------------------------------------------------

Dtypes = torch.dtype | Callable[[str], torch.dtype | None] | None


def native_parts(
    checkpoint: dict[str, Stored],
    layout: str = "automodel",
) -> dict[str, list[tuple[str, str | None, int | None]]]:
    """Native name → the (HF name, w1/w2/w3, expert) that it is made of."""
    prefix = text_prefix(checkpoint)
    parts: dict[str, list[tuple[str, str | None, int | None]]] = {}
    for hf in checkpoint:
        if hf.endswith(SCALE_ENDINGS):
            continue
        if found := NAMES[layout](hf, prefix):
            fqn, which, expert = found
            parts.setdefault(fqn, []).append((hf, which, expert))
    return parts


SCALE_ENDINGS = (".weight_scale_inv", ".weight_scale")


def scales_of(checkpoint: dict[str, Stored], hf: str) -> Stored | None:
    return checkpoint.get(hf + "_scale_inv") or checkpoint.get(hf + "_scale")


def decode(checkpoint: dict[str, Stored], hf: str, dtype: torch.dtype) -> torch.Tensor:
    weight = checkpoint[hf]
    if scales := scales_of(checkpoint, hf):
        return decode_scaled(weight, scales, dtype)
    return cast(weight.raw(), weight.dtype, dtype)


def iterate_native(
    directory: str | Path,
    dtypes: Dtypes = None,
    layout: str = "automodel",
    only: Container[str] | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Native name and global tensor, one after another.

    `dtypes` is one dtype for all, or a function of the native name. None, or a None from the function, means
    BF16 for what is block-scaled, and otherwise the dtype that is stored. `only` names the tensors that are
    wanted; None: all.
    """
    checkpoint = read_checkpoint(directory)
    for fqn, parts in native_parts(checkpoint, layout).items():
        if only is not None and fqn not in only:
            continue
        first = checkpoint[parts[0][0]]
        dtype = dtypes(fqn) if callable(dtypes) else dtypes
        if dtype is None or not TORCH_DTYPES.get(first.dtype, torch.bfloat16).is_floating_point:
            dtype = TORCH_DTYPES.get(first.dtype, torch.bfloat16)
        if parts[0][1] is None:
            assert len(parts) == 1, fqn
            yield fqn, decode(checkpoint, parts[0][0], dtype)
            continue
        of_expert: dict[int | None, dict[str | None, torch.Tensor]] = {}
        for hf, which, expert in parts:
            of_expert.setdefault(expert, {})[which] = decode(checkpoint, hf, dtype)
        if of_expert.keys() == {None}:  # a dense or shared MLP of transformers
            yield fqn, torch.cat([of_expert[None]["gate"], of_expert[None]["up"]])
            continue
        assert sorted(of_expert) == list(range(len(of_expert))), fqn
        order = ["w2"] if "down" in fqn.rpartition(".")[2] else ["w1", "w3"]
        stack = torch.stack([torch.cat([of_expert[e][w] for w in order]) for e in range(len(of_expert))])
        yield fqn, stack.mT.contiguous() if layout == "automodel" else stack


def native(
    directory: str | Path,
    dtypes: Dtypes = None,
    layout: str = "automodel",
    only: Container[str] | None = None,
) -> dict[str, torch.Tensor]:
    return dict(iterate_native(directory, dtypes, layout, only))
