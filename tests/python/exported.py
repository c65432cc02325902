"""What an export must have written, HF tensor by HF tensor, from what the trainer held."""

import json
import math
from pathlib import Path

import numpy as np
import reference
import torch
from checkpoints import INDEX


def wrong_tensors(
    directory: Path, source: Path, dtypes: reference.Dtypes, *, quantized: bool, layout: str = "automodel"
) -> list[str]:
    """What is wrong with an export, to `directory`, of what `source` fills: held in `dtypes`, `source` its template."""
    before, after = reference.read_checkpoint(source), reference.read_checkpoint(directory)
    expected: set[str] = set()
    problems = []
    for fqn, parts in reference.native_parts(before, layout).items():
        for hf, _, _ in parts:
            native = held_as(before, hf, dtypes(fqn) if callable(dtypes) else dtypes)
            is_scaled = hf + "_scale_inv" in before
            if is_scaled and quantized:
                weight, scales = reference.encode_mxfp8(native)
                stored = {
                    hf: ("F8_E4M3", weight),
                    hf + "_scale_inv": (before[hf + "_scale_inv"].dtype, scales),
                }
            else:
                dtype = "BF16" if is_scaled else before[hf].dtype
                stored = {hf: (dtype, bits_of(native, dtype))}
            expected |= stored.keys()
            problems += [
                name for name, (dtype, bits) in stored.items() if not is_stored(after, name, dtype, bits)
            ]
    return problems + sorted(expected ^ after.keys())


def held_as(checkpoint: dict[str, reference.Stored], hf: str, dtype: torch.dtype | None) -> torch.Tensor:
    stored = checkpoint[hf]
    if dtype is None:
        dtype = torch.bfloat16 if hf + "_scale_inv" in checkpoint else reference.TORCH_DTYPES[stored.dtype]
    return reference.decode(checkpoint, hf, dtype)


def bits_of(native: torch.Tensor, dtype: str) -> np.ndarray:
    """The tensor's bits in the dtype that it is stored in."""
    names = {of: name for name, of in reference.TORCH_DTYPES.items()}
    bits = (
        native.contiguous()
        .view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[native.element_size()])
        .numpy()
    )
    stored = reference.cast(
        bits.view(f"u{bits.itemsize}"), names[native.dtype], reference.TORCH_DTYPES[dtype]
    )
    signed = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[stored.element_size()]
    return stored.view(signed).numpy().view(f"u{stored.element_size()}")


def is_stored(found: dict[str, reference.Stored], name: str, dtype: str, bits: np.ndarray) -> bool:
    """One NaN is as good as another."""
    stored = found.get(name)
    if stored is None or stored.dtype != dtype or stored.shape != bits.shape:
        return False
    raw = stored.raw()
    if dtype == "F8_E4M3":
        return bool(((raw == bits) | ((raw & 0x7F == 0x7F) & (bits & 0x7F == 0x7F))).all())
    if dtype in ("U8", "F8_E8M0"):
        return bool((raw == bits).all())
    of = reference.TORCH_DTYPES[dtype]
    return reference.same(reference.tensor_of(raw, of), reference.tensor_of(bits, of))


def problems_of_files(directory: Path) -> list[str]:
    """What is wrong with the files beside their tensors: gaps, an index that does not say what is there."""
    index = json.loads((directory / INDEX).read_text())
    problems, total, found = [], 0, {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors = reference.read_safetensors(file)
        found |= dict.fromkeys(tensors, file.name)
        ends = sorted((stored.begin, stored.end) for stored in tensors.values())
        total += sum(stored.nbytes for stored in tensors.values())
        gaps = [a for a, b in zip(ends, ends[1:], strict=False) if a[1] != b[0]]
        if gaps or ends[-1][1] != file.stat().st_size or ends[0][0] % 8 != 0:
            problems.append(f"{file.name}: {gaps}")
        for name, stored in tensors.items():
            if stored.nbytes != math.prod(stored.shape) * reference.ITEM_BYTES[stored.dtype]:
                problems.append(name)
    if index["weight_map"] != found or index["metadata"]["total_size"] != total:
        problems.append("index")
    return problems


def bytes_of_files(directory: Path) -> int:
    """What the ranks write: all files of tensors, headers included."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))
