"""A resume that leaves nothing of the checkpoint behind."""

from __future__ import annotations

import os

import torch.distributed as dist

from shardwright import _core
from shardwright.ranks.together import lacking_everywhere


def expect_all_taken(
    path: str | os.PathLike[str], unused: list[str], group: dist.ProcessGroup | None
) -> None:
    """``unused``: names that this rank had no use for. Collective over the group. Raises a PlanError on all ranks that
    lists those that no rank had a use for."""
    left = lacking_everywhere(group, unused)
    if left:
        raise _core.PlanError(
            _core.in_lines(
                f"{os.fspath(path)} holds what no rank has a place for; it is of another model, optimizer or number "
                "of layers. Expected the checkpoint of this one; do not train on:",
                _core.grouped_names(left),
            )
        )
