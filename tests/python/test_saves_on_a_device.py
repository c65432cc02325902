"""Exports and saves of CUDA tensors, where there is a device. What they prove is proven of the engine without one in
tests/storage/device_export*_test.cpp, device_shard_file_test.cpp and copy_out_test.cpp."""

from pathlib import Path

import pytest
import reference
import shardwright as sw
import torch
from checkpoints import Sizes, write_m3
from destinations import Destination, Layout
from exported import problems_of_files, wrong_tensors
from shardwright import _core

if not torch.cuda.is_available():
    pytest.skip("skipped: no CUDA device", allow_module_level=True)

LAYOUTS = [Layout(), Layout(margin=1), Layout(step=2)]

State = dict[str, torch.Tensor]


@pytest.fixture
def device() -> torch.device:
    assert _core.has_cuda(), "there is a CUDA device, and this build has no kernels for it"
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_m3(tmp_path / "source", Sizes(hidden=70, inter=44, experts=5, vocab=13, vision_hidden=7))


def laid_out(tensor: torch.Tensor, layout: Layout, device: torch.device) -> torch.Tensor:
    there = Destination(tensor.shape, tensor.dtype, layout)
    view = there.layout.view(there.buffer.to(device), tensor.shape)
    return view.copy_(tensor)


@pytest.mark.parametrize("quantization", ["mxfp8", None])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_exports_of_tensors_on_a_device_are_those_of_the_reference(
    quantization: str | None, layout: Layout, device, source: Path, tmp_path: Path
):
    native = reference.native(source)
    state = {fqn: laid_out(tensor, layout, device) for fqn, tensor in native.items()}
    options = {"quantization": quantization, "template": source}
    report = sw.export(state, tmp_path / "to", device_memory=1 << 20, **options)
    assert wrong_tensors(tmp_path / "to", source, None, quantized=quantization == "mxfp8") == []
    assert problems_of_files(tmp_path / "to") == []
    assert report.devices == 1
    assert report.peak_device_bytes <= 1 << 20
    assert report.bytes_from_devices > 0
    sw.export(native, tmp_path / "of the cpu", **options)
    for file in (tmp_path / "to").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "of the cpu" / file.name).read_bytes()


def test_devices_may_be_mixed_with_the_cpu(device, source: Path, tmp_path: Path):
    state = {
        fqn: tensor.to(device) if number % 3 else tensor
        for number, (fqn, tensor) in enumerate(reference.native(source).items())
    }
    sw.export(state, tmp_path / "to", quantization="mxfp8", template=source)
    assert wrong_tensors(tmp_path / "to", source, None, quantized=True) == []


def test_exports_and_saves_come_after_the_current_stream(device, source: Path, tmp_path: Path):
    native = reference.native(source)
    with torch.cuda.stream(torch.cuda.Stream(device)):
        values = {fqn: tensor.to(device) for fqn, tensor in native.items()}
        state = {fqn: torch.zeros_like(tensor) for fqn, tensor in values.items()}

        def fill_late() -> None:
            for tensor in state.values():
                tensor.zero_()
            torch.cuda._sleep(50_000_000)
            for fqn, tensor in state.items():
                tensor.copy_(values[fqn])

        fill_late()
        sw.export(state, tmp_path / "exported", quantization="mxfp8", template=source)
        fill_late()
        sw.save(state, tmp_path / "saved")
        fill_late()
        pending = sw.save(state, tmp_path / "in the background", asynchronous=True)
        for tensor in state.values():
            tensor.zero_()
        pending.wait()
    assert wrong_tensors(tmp_path / "exported", source, None, quantized=True) == []
    for name in ("saved", "in the background"):
        loaded: State = {fqn: torch.zeros_like(tensor) for fqn, tensor in native.items()}
        sw.load(loaded, tmp_path / name, verify=True)
        assert [fqn for fqn in native if not reference.same(loaded[fqn], native[fqn])] == []


def test_a_device_that_is_not_current(source: Path, tmp_path: Path):
    if torch.cuda.device_count() < 2:
        pytest.skip("skipped: no second CUDA device")
    other = torch.device("cuda", (torch.cuda.current_device() + 1) % torch.cuda.device_count())
    before = torch.cuda.current_device()
    state = {fqn: tensor.to(other) for fqn, tensor in reference.native(source).items()}
    sw.export(state, tmp_path / "to", quantization="mxfp8", template=source)
    sw.save(state, tmp_path / "saved")
    assert torch.cuda.current_device() == before
    assert wrong_tensors(tmp_path / "to", source, None, quantized=True) == []


@pytest.mark.parametrize("asynchronous", [False, True])
def test_saves_hold_tensors_of_a_device_of_any_kind(asynchronous: bool, device, tmp_path: Path):
    bits = torch.randint(0, 256, (3 << 20,), dtype=torch.uint8)
    numbers = torch.randn(40, 30, dtype=torch.complex128)
    host = {
        "large": bits.view(torch.float32).reshape(3, -1),
        "turned": torch.randn(1100, 1050, dtype=torch.float64).t(),
        "every second": torch.randn(999)[::2],
        "expanded": torch.arange(300.0)[:, None].expand(300, 50),
        "fp8": bits[:100].view(torch.float8_e4m3fn),
        "complex": numbers,
        "complex, turned": numbers.t(),
        "conjugated": numbers.conj(),
        "number": torch.tensor(7),
        "empty": torch.empty(0, 3),
    }
    state = {name: tensor if name == "expanded" else tensor.to(device) for name, tensor in host.items()}
    state["expanded"] = torch.arange(300.0, device=device)[:, None].expand(300, 50)
    state["turned"] = host["turned"].t().to(device).t()
    state["conjugated"] = numbers.to(device).conj()
    saved = sw.save(state, tmp_path / "to", asynchronous=asynchronous, device_memory=1 << 20)
    report = saved.wait() if isinstance(saved, sw.PendingSave) else saved
    assert asynchronous or (report.devices == 1 and 0 < report.peak_device_bytes <= 1 << 20)
    loaded = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in host.items()}
    sw.load(loaded, tmp_path / "to", verify=True)
    for name, tensor in host.items():
        found, expected = loaded[name].contiguous(), tensor.resolve_conj().contiguous()
        assert torch.equal(found.view(-1).view(torch.uint8), expected.view(-1).view(torch.uint8)), name


def test_out_of_device_memory_names_tensor_and_call(device, source: Path, tmp_path: Path):
    state = {fqn: tensor.to(device) for fqn, tensor in reference.native(source).items()}
    sw.export(
        state, tmp_path / "to", quantization="mxfp8", template=source
    )  # the kernels are there from now on
    free, _ = torch.cuda.mem_get_info(device)
    hog = torch.empty(free - (1 << 20), dtype=torch.uint8, device=device)
    try:
        with pytest.raises(ValueError, match=r"cudaMalloc failed on cuda:\d: .*\n?.*device_memory") as caught:
            sw.export(state, tmp_path / "again", quantization="mxfp8", template=source)
    finally:
        del hog
    assert any(fqn in str(caught.value) for fqn in state)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["source", "to"]
