"""The copy of a state that an asynchronous save makes, within bounds that the caller sets."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.metadata import STATE_DICT_TYPE
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from shardwright.device_copies import DeviceCopies


class BoundedStaging:
    """Stands before torch's BlockingAsyncStager among the bases of a storage writer."""

    async_staging_bytes: int | None = None  #: the most that the copy may take on this rank
    device_memory: int | None = None  #: bytes of each CUDA device that copying may take
    thread_count: int
    cache_staged_state_dict: bool
    staged_bytes = 0  #: what it took
    _staging_fault = ""
    _device_copies: DeviceCopies | None = None
    _taken: list[str] | None = None  # names of the tensors that torch's stager was not given last time
    state_dict_cache: STATE_DICT_TYPE | None  # of torch's stager

    def stage(self, state_dict: STATE_DICT_TYPE) -> STATE_DICT_TYPE:
        """A copy of the state in CPU memory, which training no longer touches. CUDA tensors come there by way of pinned
        memory, after the work of the current streams."""
        needed = sum(_bytes_of(leaf) for leaf in tree_leaves(state_dict))
        if self.async_staging_bytes is not None and needed > self.async_staging_bytes:
            # Told where dcp listens to all ranks: raised here, this rank's error would leave the others waiting.
            self._staging_fault = (
                f"an asynchronous save needs a copy of this rank's state, {needed:,} bytes, and async_staging_bytes "
                f"allows {self.async_staging_bytes:,}; raise it, or save with dcp.save"
            )
            return {}
        self.staged_bytes = needed
        parent: Any = super()
        copies = self._device_copies = self._device_copies or DeviceCopies()
        try:
            left, taken = copies.without(state_dict)
            if taken != self._taken:
                # Where it has no memory for a tensor yet, torch's stager would hand on the tensor itself.
                self.state_dict_cache, self._taken = None, taken
            staged: STATE_DICT_TYPE = parent.stage(left)
            return copies.put_into(
                staged, state_dict, self.thread_count, self.device_memory, self.cache_staged_state_dict
            )
        except Exception as refused:  # by a device, or for an argument
            self._staging_fault = str(refused)
            return {}

    def expect_staged(self) -> None:
        """Raises what kept the state from being copied. Called where dcp listens to all ranks."""
        fault, self._staging_fault = self._staging_fault, ""
        if fault:
            raise ValueError(fault)


def _bytes_of(value: Any) -> int:
    if isinstance(value, ShardedTensor):
        return sum(_bytes_of(shard.tensor) for shard in value.local_shards())
    if not isinstance(value, torch.Tensor):
        return 0
    local: torch.Tensor = value.to_local() if isinstance(value, DTensor) else value
    return int(local.nbytes)
