"""Loads into CUDA tensors, where there is a device. What they prove is proven of the engine without one in
tests/storage/device_*_test.cpp."""

from pathlib import Path

import pytest
import reference
import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checkpoints import Sizes, write_m3
from destinations import Destination, Layout, destinations_like
from shardwright import _core
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

if not torch.cuda.is_available():
    pytest.skip("skipped: no CUDA device", allow_module_level=True)

LAYOUTS = [Layout(), Layout(margin=1), Layout(step=2)]


@pytest.fixture
def device() -> torch.device:
    assert _core.has_cuda(), "there is a CUDA device, and this build has no kernels for it"
    return torch.device("cuda", torch.cuda.current_device())


class OnDevice:
    """A destination on a device, with the pattern around it there."""

    def __init__(self, destination: Destination, device: torch.device):
        self.host = destination
        self.buffer = destination.buffer.to(device)
        self.tensor = destination.layout.view(self.buffer, destination.shape)

    def holds(self, expected: torch.Tensor) -> bool:
        self.host.buffer.copy_(self.buffer)
        return self.host.holds(expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_on_a_device_hold_what_the_reference_says(layout: Layout, device, tmp_path: Path):
    path = write_m3(tmp_path, Sizes(hidden=70, inter=44, experts=5, vocab=13, vision_hidden=7))
    expected = reference.native(path)
    destinations = {
        fqn: OnDevice(Destination(tensor.shape, tensor.dtype, layout), device)
        for fqn, tensor in expected.items()
    }
    report = sw.load({fqn: d.tensor for fqn, d in destinations.items()}, path, device_memory=1 << 20)
    assert [fqn for fqn, d in destinations.items() if not d.holds(expected[fqn])] == []
    assert report.devices == 1
    assert 0 < report.peak_device_bytes <= 1 << 20
    assert report.bytes_to_devices >= report.bytes_needed


def test_devices_may_be_mixed_with_the_cpu(device, small: Path):
    expected = reference.native(small)
    destinations = destinations_like(expected)
    on_device = {fqn: OnDevice(d, device) for n, (fqn, d) in enumerate(destinations.items()) if n % 3}
    state = {fqn: (on_device.get(fqn) or d).tensor for fqn, d in destinations.items()}
    sw.load(state, small)
    assert [
        fqn for fqn, d in destinations.items() if not (on_device.get(fqn) or d).holds(expected[fqn])
    ] == []


def test_a_load_comes_after_the_current_stream(device, small: Path):
    expected = reference.native(small)
    with torch.cuda.stream(torch.cuda.Stream(device)):
        state = {fqn: torch.empty_like(tensor, device=device) for fqn, tensor in expected.items()}
        torch.cuda._sleep(50_000_000)
        for tensor in state.values():
            tensor.fill_(1)
        sw.load(state, small)
    assert [fqn for fqn in expected if not reference.same(state[fqn].cpu(), expected[fqn])] == []


def test_dtensors_on_a_device_load_through_dcp_and_export(device, small: Path, tmp_path: Path):
    expected = reference.native(small)
    store = dist.HashStore()
    dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1, device_id=device)
    try:
        mesh = init_device_mesh("cuda", (1,))
        state = {
            fqn: distribute_tensor(torch.zeros_like(tensor, device=device), mesh, [Shard(0)])
            for fqn, tensor in expected.items()
        }
        dcp.load(state, storage_reader=sw.HuggingFaceStorageReader(small), planner=sw.LoadPlanner())
        loaded = {fqn: tensor.to_local().cpu() for fqn, tensor in state.items()}
        assert [fqn for fqn in expected if not reference.same(loaded[fqn], expected[fqn])] == []
        sw.export(state, tmp_path / "exported", quantization="mxfp8", template=small)
        sw.save(state, tmp_path / "saved")
        for tensor in state.values():
            tensor.to_local().zero_()
        sw.load(state, tmp_path / "saved")
        loaded = {fqn: tensor.to_local().cpu() for fqn, tensor in state.items()}
        assert [fqn for fqn in expected if not reference.same(loaded[fqn], expected[fqn])] == []
    finally:
        dist.destroy_process_group()
    again = reference.native(tmp_path / "exported")
    assert [fqn for fqn in expected if not reference.same(again[fqn], expected[fqn])] == []


def test_out_of_device_memory_names_tensor_and_call(device, small: Path):
    state = {fqn: t.to(device) for fqn, t in reference.native(small).items()}
    free, _ = torch.cuda.mem_get_info(device)
    hog = torch.empty(free - (8 << 20), dtype=torch.uint8, device=device)
    with pytest.raises(RuntimeError, match=r"cudaMalloc failed on cuda:\d: .*\n?.*device_memory") as caught:
        sw.load(state, small)
    assert any(fqn in str(caught.value) for fqn in state)
    del hog
