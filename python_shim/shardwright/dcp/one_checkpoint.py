"""Ranks that load one checkpoint: that what each of them was given is the same one."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from typing import Any

from torch.distributed.checkpoint.planner import LoadPlan

from shardwright import _core
from shardwright.dcp.lazy_metadata import LazyMetadata
from shardwright.dcp.torch_metadata import METADATA_NAME
from shardwright.local_path import beside, location
from shardwright.ranks.gone_ranks import has_others
from shardwright.regular_file import open_regular


@dataclass
class Content:
    """What a rank tells the coordinator of ``dcp.load`` of the checkpoint that it was given: content_words()."""

    words: list[str]


def words_of(path: str | os.PathLike[str], metadata: Any, threads: int) -> list[str]:
    """What the checkpoint holds, in words to be compared between ranks. Of torch's, what its metadata says."""
    if isinstance(metadata, LazyMetadata):
        words: list[str] = _core.content_words(metadata.catalog, threads)
        return words
    if _core.kind_of(location(path)) != "torch":
        return []  # saved with use_collectives=False: each rank has metadata of its own
    digest = hashlib.blake2b(digest_size=8)
    with open_regular(beside(path, METADATA_NAME)) as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return [f"{METADATA_NAME} {digest.hexdigest()}"]


def telling_content(plan: LoadPlan, path: str | os.PathLike[str], metadata: Any, threads: int) -> LoadPlan:
    """The rank's plan, with the words for the coordinator where there are several ranks."""
    if not has_others(None) or plan.storage_data is not None:
        return plan
    return replace(plan, storage_data=Content(words_of(path, metadata, threads)))


def expect_one_checkpoint(plans: list[LoadPlan]) -> list[LoadPlan]:
    """The plans without the words of their ranks.

    Raises:
        PlanError: names the ranks that were given another checkpoint than the first.
    """
    contents = [plan.storage_data for plan in plans]
    if not all(isinstance(content, Content) for content in contents):
        return plans  # ranks that have nothing to compare, or a planner that tells something else
    _core.expect_one_checkpoint([content.words for content in contents])
    return [replace(plan, storage_data=None) for plan in plans]
