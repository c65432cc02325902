"""What is asked for of an export, whether files are written or tensors are handed over in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardwright import _core
from shardwright.catalog import catalog_of
from shardwright.local_path import expect_flags, expect_text
from shardwright.quantization import checked_quantization
from shardwright.weight_maps import imported_map, model_name


@dataclass(frozen=True)
class AskedExport:
    """What a checkpoint is to hold, in the arguments of :class:`shardwright.HuggingFaceStorageWriter`."""

    quantization: str | None = None
    template: Any = None
    model: Any = "auto"
    layout: str = "automodel"
    strict: bool = True
    strict_dtypes: bool = False
    quantized_weights: Sequence[str] | None = None

    @property
    def has_template(self) -> bool:
        return self.template is not None

    def checked_quantization(self) -> tuple[str, list[str]]:
        """Its name, and the weights that it is for, once all arguments are checked.

        Raises:
            ValueError: an argument, such as a quantization that is not known, or "template" without one.
        """
        expect_flags(strict=self.strict, strict_dtypes=self.strict_dtypes)
        expect_text("layout", self.layout)
        return checked_quantization(self.quantization, self.quantized_weights, has_template=self.has_template)

    def request(
        self, max_file_bytes: int = 5_000_000_000, file_numbers: Mapping[str, int] | None = None
    ) -> Any:
        """As the core takes it. Raises ValueError as :meth:`checked_quantization` does."""
        quantization, weights = self.checked_quantization()
        catalog = catalog_of(self.template) if self.has_template else None
        return _core.ExportRequest(
            catalog,
            model_name(self.model),
            self.layout,
            quantization,
            weights,
            self.strict,
            max_file_bytes,
            dict(file_numbers or {}),
            self.strict_dtypes,
            imported_map(catalog, self.model, self.layout),
        )
