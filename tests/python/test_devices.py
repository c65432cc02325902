"""What loads, exports and saves of CUDA tensors need and refuse, as far as it shows without a device."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import shardwright as sw
import torch
from checkpoints import write_m3
from shardwright import _core
from shardwright.dcp import sharded_writer, storage_writer
from shardwright.describe import copy_to_cpu, current_streams, describe
from shardwright.report import SaveReport


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


def test_an_export_from_a_device_that_is_not_there_writes_nothing(tiny: Path, tmp_path: Path):
    _, specs, _, _ = plan_on("cuda:999", tiny)
    request = _core.ExportRequest(None, "auto", "huggingface", "none", [], True, 1 << 30, {})
    state = _core.state_of(specs, 0)
    if not _core.has_cuda():
        with pytest.raises(sw.PlanError, match=r"model.norm.weight.*cuda:999.*nvcc"):
            _core.describe_export(specs, state, request)
        return
    publication = _core.Publication(tmp_path, request)
    (told,) = publication.plan([_core.describe_export(specs, state, request)])
    with pytest.raises(RuntimeError, match=r"model.norm.weight.*(cudaGetDeviceCount|cuda:999)"):
        _core.write_share(told, specs, state, request)
    publication.abandon()
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_a_device_that_is_not_there_is_refused(tmp_path: Path):
    values = _core.encode_values([("w", 0, "float32", "strided", 4, 0, [3], [], [])])
    files = _core.RankFiles(tmp_path, 0, values, [(0, [0], [3])], [0], True, False)
    expected = (RuntimeError, r"w: .*(cudaGetDeviceCount|cuda:999)")
    if not _core.has_cuda():
        expected = (sw.PlanError, r"(?s)no kernels for GPUs.*w")
    with pytest.raises(expected[0], match=expected[1]):
        files.write([(0, 4096, [3], [1], 4, 999)], 1, _core.DeviceOptions())


@pytest.mark.parametrize("write", [sw.export, sw.save])
def test_exports_and_saves_hand_on_device_memory_and_the_current_streams(
    write: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    seen = []

    def options(*arguments: object) -> object:
        seen.append(arguments)
        return core_options(*arguments)

    core_options = _core.DeviceOptions
    monkeypatch.setattr(_core, "DeviceOptions", options)
    for module in (storage_writer, sharded_writer):
        monkeypatch.setattr(module, "current_streams", lambda tensors: {len(list(tensors)): 7})
    write({"a": torch.ones(3), "b": torch.ones(4)}, tmp_path / "to", device_memory=1 << 20)
    assert seen and all(arguments == (1 << 20, {2: 7}) for arguments in seen)


def test_what_the_engine_does_not_reach_is_copied(monkeypatch: pytest.MonkeyPatch):
    values = torch.arange(6.0).reshape(2, 3)
    description = describe({"here": values, "there": values})
    there = SimpleNamespace(is_meta=False, is_cpu=False, is_cuda=True)
    there.detach = lambda: SimpleNamespace(cpu=values.t)
    description.local_tensors[1] = there
    monkeypatch.setattr(_core, "has_cuda", lambda: True)
    assert copy_to_cpu(description) == 0
    monkeypatch.setattr(_core, "has_cuda", lambda: False)
    assert copy_to_cpu(description) == 6 * 4
    assert description.local_tensors[0] is values
    copy = description.local_tensors[1]
    assert copy.is_contiguous() and torch.equal(copy, values.t())
    assert (description.specs[1].fqn, description.specs[1].local_shape) == ("there", [3, 2])


def test_reports_of_saves_tell_of_devices():
    core = SimpleNamespace(
        rounded={},
        tensors=1, files=1, bytes_needed=9, bytes_written=9, write_requests=1, peak_staging_bytes=5, threads=1,
        devices=2, peak_device_bytes=1234, bytes_from_devices=5678, device_batches=3,
        plan_seconds=0, encode_seconds=0, write_seconds=0, sync_seconds=0,
    )  # fmt: skip
    text = str(SaveReport.of(core, 1.0))
    assert "2, 3" in text and "1,234" in text and "5,678" in text
    assert "device" not in str(SaveReport())


def test_current_streams_are_those_of_torch_for_each_device_once(monkeypatch: pytest.MonkeyPatch):
    one, two = torch.device("cuda", 1), torch.device("cuda", 2)
    tensors = [SimpleNamespace(is_cuda=True, device=device) for device in (two, one, two)]
    tensors.append(SimpleNamespace(is_cuda=False, device=torch.device("cpu")))
    stream_of = {one: SimpleNamespace(cuda_stream=11), two: SimpleNamespace(cuda_stream=22)}
    monkeypatch.setattr(torch.cuda, "current_stream", stream_of.__getitem__)
    assert current_streams(tensors) == {1: 11, 2: 22}


@pytest.mark.parametrize("value", [0, -1, 1.5, 1 << 50])
def test_device_memory_must_be_a_size(value: object, tiny: Path, tmp_path: Path):
    state = sw.empty_state_dict(tiny)
    for function, path in ((sw.load, tiny), (sw.export, tmp_path / "to"), (sw.save, tmp_path / "to")):
        with pytest.raises(ValueError, match="device_memory"):
            function(state, path, device_memory=value)


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
