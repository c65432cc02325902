"""What the storage half tells the planner half about a Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata


@dataclass
class CatalogMetadata(Metadata):
    """DCP metadata of an HF checkpoint, with the catalog that Shardwright's planner plans from.

    A checkpoint that cannot be read raises when ``catalog`` is asked for, which is in the planner: what
    ``read_metadata`` itself raises, ``dcp.load`` turns into an AssertionError.
    """

    read: Callable[[], Any] | None = None

    @property
    def catalog(self) -> Any:
        assert self.read is not None
        return self.read()
