"""What a load into CUDA tensors needs, and what it refuses, as far as it shows without a device."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import shardwright as sw
import torch
from checkpoints import write_m3
from shardwright import _core
from shardwright.describe import current_streams


def plan_on(device: str, checkpoint: Path):
    """A plan for a tensor of the checkpoint that is said to be on a device, and its memory, which is not."""
    catalog = _core.read_catalog(str(checkpoint), 1)
    norm = torch.full((64,), 7.0)
    box = _core.LocalBox([0], [64], [0])
    fqn = "model.norm.weight"
    specs = [_core.TensorSpec(fqn, "F32", [64], [64], [1], norm.data_ptr(), device, [box])]
    weight_map = _core.weight_map(catalog, "auto", "automodel")
    return catalog, specs, weight_map, norm


def test_a_device_that_is_not_there_is_an_error_before_anything_is_written(tiny: Path):
    catalog, specs, weight_map, norm = plan_on("cuda:999", tiny)
    if not _core.has_cuda():
        with pytest.raises(sw.PlanError, match=r"model.norm.weight.*cuda:999.*nvcc"):
            _core.plan_load(specs, catalog, weight_map)
        return
    plan = _core.plan_load(specs, catalog, weight_map)
    with pytest.raises(RuntimeError, match=r"model.norm.weight.*(cudaGetDeviceCount|cuda:999)") as caught:
        _core.run_load(plan, catalog, specs)
    assert caught.value.partly_written == []
    assert bool((norm == 7).all())


def test_devices_that_are_not_cudas_are_refused(tiny: Path):
    catalog, specs, weight_map, _ = plan_on("xpu:0", tiny)
    with pytest.raises(sw.PlanError, match="model.norm.weight.*xpu:0"):
        _core.plan_load(specs, catalog, weight_map)


def test_exports_and_placements_in_memory_refuse_a_devices_memory(tiny: Path):
    if not _core.has_cuda():
        pytest.skip("skipped: no kernels for GPUs in this build, so their tensors are refused before")
    _, specs, _, _ = plan_on("cuda:0", tiny)
    request = _core.ExportRequest(None, "auto", "automodel", False, True, 1, {})
    with pytest.raises(sw.PlanError, match="model.norm.weight: expected CPU memory, found it on cuda:0"):
        _core.describe_export(specs, request)


def test_current_streams_are_those_of_torch_for_each_device_once(monkeypatch: pytest.MonkeyPatch):
    one, two = torch.device("cuda", 1), torch.device("cuda", 2)
    tensors = [SimpleNamespace(is_cuda=True, device=device) for device in (two, one, two)]
    tensors.append(SimpleNamespace(is_cuda=False, device=torch.device("cpu")))
    stream_of = {one: SimpleNamespace(cuda_stream=11), two: SimpleNamespace(cuda_stream=22)}
    monkeypatch.setattr(torch.cuda, "current_stream", stream_of.__getitem__)
    assert current_streams(tensors) == {1: 11, 2: 22}


@pytest.mark.parametrize("value", [0, -1, 1.5, 1 << 50])
def test_device_memory_must_be_a_size(value: object, tiny: Path):
    with pytest.raises(ValueError, match="device_memory"):
        sw.load(sw.empty_state_dict(tiny), tiny, device_memory=value)


def test_an_error_on_the_way_names_what_is_partly_written(small: Path, tmp_path: Path):
    path = write_m3(tmp_path / "m3")
    state = sw.empty_state_dict(path)
    reader = sw.HuggingFaceStorageReader(path, thread_count=1)
    planner = sw.LoadPlanner()
    metadata = reader.read_metadata()
    planner.set_up_planner(state, metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    plan = planner.finish_plan(
        planner.create_global_plan([reader.prepare_local_plan(planner.create_local_plan())])[0]
    )
    for file in path.glob("*.safetensors"):
        with file.open("r+b") as stream:
            stream.truncate(file.stat().st_size - 1)
    with pytest.raises(OSError, match="cut short") as caught:
        reader.read_data(plan, planner)
    names = caught.value.partly_written
    assert names == sorted(set(names), key=list(state).index) and set(names) <= set(state)
