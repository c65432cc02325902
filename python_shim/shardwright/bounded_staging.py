"""The copy of a state that an asynchronous save makes, within bounds that the caller sets."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.checkpoint.metadata import STATE_DICT_TYPE
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves


class BoundedStaging:
    """Stands before torch's BlockingAsyncStager among the bases of a storage writer."""

    async_staging_bytes: int | None = None  #: the most that the copy may take on this rank
    staged_bytes = 0  #: what it took
    _staging_fault = ""

    def stage(self, state_dict: STATE_DICT_TYPE) -> STATE_DICT_TYPE:
        """A copy of the state in CPU memory, which training no longer touches."""
        needed = sum(_bytes_of(leaf) for leaf in tree_leaves(state_dict) if isinstance(leaf, torch.Tensor))
        if self.async_staging_bytes is not None and needed > self.async_staging_bytes:
            # Told where dcp listens to all ranks: raised here, this rank's error would leave the others waiting.
            self._staging_fault = (
                f"an asynchronous save needs a copy of this rank's state, {needed:,} bytes, and async_staging_bytes "
                f"allows {self.async_staging_bytes:,}; raise it, or save with dcp.save"
            )
            return {}
        self.staged_bytes = needed
        parent: Any = super()
        staged: STATE_DICT_TYPE = parent.stage(state_dict)
        return staged

    def expect_staged(self) -> None:
        """Raises what kept the state from being copied. Called where dcp listens to all ranks."""
        fault, self._staging_fault = self._staging_fault, ""
        if fault:
            raise ValueError(fault)


def _bytes_of(tensor: torch.Tensor) -> int:
    local: torch.Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return int(local.nbytes)
