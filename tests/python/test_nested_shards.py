"""A ShardedTensor inside of another, in a nested dict, is flattened as torch's planner flattens it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import shardwright as sw
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from shardwright.dcp.catalog_metadata import CatalogMetadata
from shardwright.dcp.resume_planner import ResumePlanner
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.testing._internal.distributed.fake_pg import FakeStore


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    dist.init_process_group("fake", rank=0, world_size=1, store=FakeStore())
    yield
    dist.destroy_process_group()


def sharded(local: torch.Tensor) -> ShardedTensor:
    metadata = ShardMetadata([0, 0], [4, 3], "rank:0/cpu")
    return ShardedTensor._init_from_local_shards([Shard(local, metadata)], [4, 3])


def sharded_twice(elements: torch.Tensor) -> ShardedTensor:
    outer = sharded(torch.zeros(4, 3))
    outer._local_shards[0].tensor = sharded(elements)
    return outer


def planners() -> list[DefaultLoadPlanner]:
    return [DefaultLoadPlanner(), ResumePlanner(), sw.LoadPlanner()]


@pytest.mark.filterwarnings("ignore")  # of ShardedTensor, which is deprecated
@pytest.mark.parametrize("planner", planners(), ids=lambda planner: type(planner).__name__)
def test_the_inner_tensor_stands_for_the_outer_one(planner: DefaultLoadPlanner, tmp_path: Path) -> None:
    elements = torch.arange(12.0).reshape(4, 3)
    metadata = Metadata({})
    if isinstance(planner, sw.LoadPlanner):
        save_file({"w": elements}, tmp_path / "model.safetensors")
        metadata = sw.HuggingFaceStorageReader(tmp_path).read_metadata()
        assert isinstance(metadata, CatalogMetadata)
    planner.set_up_planner({"model": {"w": sharded_twice(elements)}}, metadata, True)
    [shard] = planner.state_dict["model.w"].local_shards()
    assert type(shard.tensor) is torch.Tensor
    assert torch.equal(shard.tensor, elements)
    assert planner.mappings == {"model.w": ("model", "w")}
