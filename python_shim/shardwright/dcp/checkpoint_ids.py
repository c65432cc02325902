"""What a ``checkpoint_id`` may be, for whoever asks a reader or a writer before it makes one."""

from __future__ import annotations

import os

from torch.distributed.checkpoint.filesystem import FileSystem

from shardwright.remote.address import is_address
from shardwright.remote.open_stores import is_opened_by_some


class OfAnyPlace:
    """A reader or writer of paths and addresses."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """True for an address that a library opens, and for a path of which torch's FileSystem says so."""
        if is_address(checkpoint_id):
            return is_opened_by_some(os.fsdecode(checkpoint_id))
        return bool(FileSystem.validate_checkpoint_id(checkpoint_id))
