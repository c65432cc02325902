"""What is asked for of an export, whether files are written or tensors are handed over in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shardwright import _core
from shardwright.catalog import catalog_of
from shardwright.weight_maps import imported_map, model_name


def export_request(
    template: Any = None,
    model: Any = "auto",
    layout: str = "automodel",
    quantization: str = "none",
    quantized_weights: Sequence[str] = (),
    *,
    strict: bool = True,
    strict_dtypes: bool = False,
    max_file_bytes: int = 5_000_000_000,
    file_numbers: Mapping[str, int] | None = None,
) -> Any:
    """An ExportRequest, of arguments as :class:`shardwright.HuggingFaceStorageWriter` takes them, checked before."""
    catalog = None if template is None else catalog_of(template)
    return _core.ExportRequest(
        catalog,
        model_name(model),
        layout,
        quantization,
        list(quantized_weights),
        strict,
        max_file_bytes,
        dict(file_numbers or {}),
        strict_dtypes,
        imported_map(catalog, model, layout),
    )
