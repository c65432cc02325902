"""What an asynchronous save copies by itself, as far as it shows without a device: tests/python/test_on_a_device.py has
the rest, and tests/storage/copy_out_test.cpp the copying."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import shardwright as sw
import torch
from shardwright import _core, device_copies
from test_property import fake_mesh
from torch.distributed._shard.sharding_spec import ChunkShardingSpec
from torch.distributed.checkpoint import staging
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.tensor import DTensor, Replicate, Shard


def state_on(mesh: Any) -> dict[str, Any]:
    return {
        "model": {"a": torch.arange(12.0).reshape(3, 4).t(), "b.c": torch.arange(5), "step": torch.tensor(7)},
        "model.b": {"c": torch.arange(5) + 1},
        "list": [torch.ones(2, dtype=torch.bfloat16), ("text", torch.zeros(0, 3)), 5, None],
        "sharded": DTensor.from_local(torch.arange(6.0).reshape(2, 3), mesh, [Shard(0)], run_check=False),
        "count": DTensor.from_local(torch.tensor(3.0), mesh, [Replicate()], run_check=False),
    }


def tensors_of(state: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    device_copies._mapped(state, lambda _, tensor: found.append(tensor))
    return [tensor._local_tensor if isinstance(tensor, DTensor) else tensor for tensor in found]


@pytest.mark.parametrize("every", [1, 2, 3, 100])
@pytest.mark.parametrize("keep", [False, True])
def test_staged_states_are_copies_whoever_copies_which(
    every: int, keep: bool, monkeypatch: pytest.MonkeyPatch
):
    """Every so many-th tensor is one that is copied here, as if it were on a device."""
    with fake_mesh((1,), 0) as mesh:
        state = state_on(mesh)
        ours = {tensor.data_ptr() for tensor in tensors_of(state)[::every]}
        is_ours = device_copies._is_ours
        monkeypatch.setattr(
            device_copies,
            "_is_ours",
            lambda tensor: device_copies._local(tensor).data_ptr() in ours or is_ours(tensor),
        )
        copies = device_copies.DeviceCopies()
        earlier: list[torch.Tensor] = []
        for _ in range(2):
            staged = BlockingAsyncStager().stage(copies.without(state)[0])
            staged = copies.put_into(staged, state, 1, None, keep)
            before, found = tensors_of(state), tensors_of(staged)
            assert [one.shape for one in found] == [one.shape for one in before]
            assert all(torch.equal(one, other) for one, other in zip(found, before, strict=True))
            assert all(one.dtype == other.dtype for one, other in zip(found, before, strict=True))
            memory = {one.data_ptr() for one in before if one.numel()}
            assert not [one for one in found if one.data_ptr() in memory]
            assert staged["list"][2:] == [5, None] and staged["list"][1][0] == "text"
            assert staged["sharded"].placements == state["sharded"].placements
            assert staged["sharded"].shape == state["sharded"].shape
            if earlier:
                kept = {one.data_ptr() for one in earlier} & {one.data_ptr() for one in copies._kept}
                assert bool(kept) == keep
            earlier = list(copies._kept)
            for tensor in before:
                tensor.add_(1)


def test_a_dtensor_without_dimensions_is_copied(tmp_path: Path):
    with fake_mesh((1,), 0) as mesh:
        state = {"count": DTensor.from_local(torch.tensor(3.0), mesh, [Replicate()], run_check=False)}
        staged = sw.ShardedStorageWriter(tmp_path).stage(state)
        state["count"].to_local().add_(1)
        assert staged["count"].to_local().item() == 3


def test_a_tensor_that_comes_back_from_a_device_is_copied_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """torch's stager keeps the copies of a state, and had none of a tensor that it was not given."""
    create = staging._create_cpu_state_dict  # whose memory is pinned, which takes a device
    monkeypatch.setattr(
        staging,
        "_create_cpu_state_dict",
        lambda state, **options: create(state, **options | {"pin_memory": False}),
    )
    writer = sw.ShardedStorageWriter(tmp_path, cache_staged_state_dict=True)
    state = {"w": torch.zeros(4), "x": torch.zeros(4)}
    with monkeypatch.context() as patch:
        patch.setattr(device_copies, "_is_ours", lambda tensor: tensor is state["w"])
        writer.stage(state)
    for value in (1, 2):
        state["w"].fill_(value)
        staged = writer.stage(state)
        state["w"].fill_(9)
        assert staged["w"].tolist() == [value] * 4
        assert staged["x"].data_ptr() != state["x"].data_ptr()


def test_sharded_tensors_are_left_to_torch(tmp_path: Path):
    with fake_mesh((1,), 0):
        whole = torch.distributed._shard.sharded_tensor.rand(ChunkShardingSpec(0, ["rank:0/cpu"]), 4, 3)
        staged = sw.ShardedStorageWriter(tmp_path).stage({"w": whole})
        before, after = whole.local_tensor(), staged["w"].local_tensor()
        assert torch.equal(after, before)
        assert after.data_ptr() != before.data_ptr()


class Wrapped(torch.Tensor):
    """A tensor that has no memory of its own, as those of Transformer Engine and torchao."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Wrapped":
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner: torch.Tensor):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), keywords=None):
        own = [one.inner if isinstance(one, Wrapped) else one for one in arguments]
        found = function(*own, **(keywords or {}))
        return Wrapped(found) if function is torch.ops.aten.detach.default else found


def test_tensors_without_memory_of_their_own_are_not_read_from_it():
    wrapped = Wrapped(torch.arange(3.0))
    assert not device_copies.shows_its_memory(wrapped)
    assert device_copies.shows_its_memory(torch.empty(0)) and device_copies.shows_its_memory(torch.ones(1))


def test_tensors_on_devices_go_to_the_engine(monkeypatch: pytest.MonkeyPatch):
    source = SimpleNamespace(
        is_cuda=True,
        device=torch.device("cuda", 3),
        shape=(2, 3),
        data_ptr=lambda: 4096,
        stride=lambda: (1, 2),
        element_size=lambda: 4,
    )
    copy = torch.empty(2, 3)
    seen = []
    monkeypatch.setattr(_core, "copy_out", lambda *arguments: seen.append(arguments))
    monkeypatch.setattr(_core, "DeviceOptions", lambda memory, streams: (memory, streams))
    monkeypatch.setattr(device_copies, "current_streams", lambda tensors: {3: len(tensors)})
    device_copies._copy([("model.w", source), ("x", torch.ones(2))], [copy, torch.empty(2)], 5, 1 << 20)
    part = (copy.data_ptr(), 4096, [2, 3], [1, 2], 4, 3)
    assert seen == [([part], ["model.w"], 5, (1 << 20, {3: 1}))]


def test_a_device_that_refuses_fails_the_save_and_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise RuntimeError("model.w: cudaMalloc failed on cuda:3: out of memory (2)")

    monkeypatch.setattr(device_copies.DeviceCopies, "put_into", refuse)
    pending = sw.save({"w": torch.ones(3)}, tmp_path / "to", asynchronous=True)
    with pytest.raises(ValueError, match="model.w: cudaMalloc failed on cuda:3"):
        pending.wait()
    assert list(tmp_path.iterdir()) == []
