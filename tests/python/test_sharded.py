"""Sharded checkpoints in one process: what goes in comes out, and what is damaged is named."""

import dataclasses
import json
import os
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from shardwright.cli.command_line import main
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,  # safetensors has none
    torch.complex32,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e8m0fnu,
]


@dataclasses.dataclass
class Position:
    """An object that weights_only does not know."""

    epoch: int


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Random bits."""
    elements = int(np.prod(shape, dtype=np.int64))
    bits = np.random.default_rng(seed).integers(0, 256, elements * dtype.itemsize, dtype=np.uint8)
    if dtype == torch.bool:
        bits %= 2
    return torch.from_numpy(bits).view(dtype).reshape(shape) if elements else torch.empty(shape, dtype=dtype)


def bits_of(tensor: torch.Tensor) -> bytes:
    # clone(), since contiguous() leaves a tensor of one element its strides
    flat = tensor.clone(memory_format=torch.contiguous_format).reshape(-1)
    return bytes(torch.empty_like(flat).copy_(flat).view(torch.uint8).numpy()) if tensor.numel() else b""


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert [name for name in expected if bits_of(found[name]) != bits_of(expected[name])] == []


def blank(state: dict) -> dict:
    """Its shapes and dtypes, other values."""
    return {
        name: blank(value)
        if isinstance(value, dict)
        else torch.zeros_like(value, memory_format=torch.contiguous_format)
        if isinstance(value, torch.Tensor)
        else type(value)()
        for name, value in state.items()
    }


@st.composite
def tensors(draw) -> torch.Tensor:
    shape = tuple(draw(st.lists(st.integers(0, 7), max_size=4)))
    tensor = random_tensor(shape, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 1 << 30)))
    if len(shape) >= 2 and draw(st.booleans()):
        tensor = tensor.transpose(0, draw(st.integers(1, len(shape) - 1)))
    if tensor.dim() and draw(st.booleans()):
        tensor = tensor[:: draw(st.integers(1, 3))]
    return tensor


@given(st.lists(tensors(), min_size=1, max_size=5))
def test_any_tensors_come_back_bit_for_bit(values: list[torch.Tensor]):
    import tempfile

    state = {f"t{i}": value for i, value in enumerate(values)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "checkpoint")
        sw.save(state, path, format="safetensors")
        assert not sw.verify(path).problems
        loaded = blank(state)
        sw.load(loaded, path, verify=True)
        assert_same(loaded, state)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return {
        "large": random_tensor((3, 1 << 20), torch.float32, 0),  # of several blocks
        "turned": random_tensor((1100, 1050), torch.float64, 1).t(),
        "small": random_tensor((5,), torch.bfloat16, 2),
        "complex": random_tensor((4, 2), torch.complex128, 3),
        "number": torch.tensor(7),
        "none": torch.empty(0, 3),
    }


@pytest.fixture(scope="module")
def path(state, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sharded") / "checkpoint"
    sw.save(state | {"object": {"a": [1, "b"]}}, path, format="safetensors")
    return path


def test_large_and_turned_tensors_come_back(path: Path, state):
    loaded = blank(state)
    report = sw.load(loaded, path)
    assert_same(loaded, state)
    assert report.bytes_needed == report.bytes_read


def test_a_trace_tells_of_what_is_read_straight_beside_what_needs_a_buffer(tmp_path: Path):
    state = {"straight": torch.arange(999.0), "of_another_dtype": torch.arange(7.0)}
    sw.save(state, tmp_path / "saved", format="safetensors")
    loaded = {"straight": torch.zeros(999), "of_another_dtype": torch.zeros(7, dtype=torch.int64)}
    sw.load(loaded, tmp_path / "saved", trace=tmp_path / "trace.json")
    assert all(torch.equal(loaded[name].float(), state[name]) for name in state)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {event["args"].get("tensor") for event in events if event["ph"] == "X"} == {"straight"}


def test_safetensors_itself_reads_the_files(path: Path, state):
    (file,) = path.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    assert_same(found, {name: value for name, value in state.items() if name != "complex"})


def test_torchs_hf_reader_reads_the_tensors(path: Path, state):
    loaded = blank({name: state[name] for name in ("large", "turned", "small", "number")})
    dcp.load(loaded, storage_reader=dcp.HuggingFaceStorageReader(path))
    assert_same(loaded, {name: state[name] for name in loaded})


def test_objects_that_run_code_are_refused_unless_the_caller_says_otherwise(tmp_path: Path):
    sw.save({"position": Position(3), "t": torch.ones(2)}, tmp_path / "checkpoint", format="safetensors")
    loaded = {"position": Position(0), "t": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"(?s)position .*weights_only=False") as refused:
        sw.load(loaded, tmp_path / "checkpoint")
    assert re.search(r"rank-00000-\w+\.bin", str(refused.value))
    assert loaded["position"] == Position(0)
    sw.load(loaded, tmp_path / "checkpoint", weights_only=False)
    assert loaded["position"] == Position(3)


def test_loading_into_another_dtype_and_only_a_part(path: Path, state):
    loaded = {"small": torch.zeros(5, dtype=torch.float64), "large": torch.zeros(3, 1 << 20)}
    sw.load(loaded, path)
    assert torch.equal(loaded["small"].isnan(), state["small"].isnan())
    assert torch.equal(loaded["small"].nan_to_num(), state["small"].double().nan_to_num())


def test_dcps_own_conversion_of_the_saved_names(path: Path, state):
    """_load_state_dict_from_keys builds the nested state from the planner's data alone."""
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

    found = _load_state_dict_from_keys(storage_reader=sw.ShardedStorageReader(path))
    assert found["object"] == {"a": [1, "b"]}
    assert_same(found, state)


def test_file_system_writer_checkpoints_are_recognised(tmp_path: Path):
    dcp.save({"t": torch.arange(5.0)}, storage_writer=FileSystemWriter(tmp_path / "torchs"))
    loaded = {"t": torch.zeros(5)}
    assert sw.load(loaded, tmp_path / "torchs").bytes_written == 20
    assert torch.equal(loaded["t"], torch.arange(5.0))


def test_the_writer_stands_where_file_system_writer_does(tmp_path: Path):
    expected = {"nested": {"t": torch.arange(5.0), "u": [torch.ones(2), 3]}}
    for writer, reader in (
        (FileSystemWriter, FileSystemReader),
        (sw.ShardedStorageWriter, sw.ShardedStorageReader),
    ):
        target = tmp_path / writer.__name__
        options = {"single_file_per_rank": False, "sync_files": True, "thread_count": 2, "overwrite": True}
        written = writer(tmp_path / "unused", **options, per_thread_copy_ahead=1000)
        metadata = dcp.save(expected, checkpoint_id=target, storage_writer=written)
        assert set(metadata.state_dict_metadata) == {"nested.t", "nested.u.0", "nested.u.1"}
        assert len(reader(target).read_metadata().storage_data) == 3
        future = dcp.async_save(expected, checkpoint_id=target, storage_writer=written)
        future.result()
        loaded = {"nested": {"t": torch.zeros(5), "u": [torch.zeros(2), 0]}}
        dcp.load(loaded, checkpoint_id=target, storage_reader=reader(tmp_path / "unused"))
        assert torch.equal(loaded["nested"]["t"], torch.arange(5.0))
        assert loaded["nested"]["u"][1] == 3
    with pytest.raises(BaseException, match="overwrite=False"):
        dcp.save(expected, storage_writer=sw.ShardedStorageWriter(target, overwrite=False))
    assert not sw.verify(target).problems


def test_plans_that_the_planner_has_cached(tmp_path: Path):
    planner = dcp.DefaultSavePlanner(enable_plan_caching=True)
    for value in range(3):
        sw.save({"t": torch.full((5,), float(value))}, tmp_path / f"c[{value}]", planner=planner)
        loaded = {"t": torch.zeros(5)}
        sw.load(loaded, tmp_path / f"c[{value}]", verify=True)
        assert (loaded["t"] == value).all()


def test_steps_the_latest_and_those_that_go(tmp_path: Path):
    assert sw.latest(tmp_path / "runs") is None
    for step in (5, 10, 100, 20):
        sw.save({"t": torch.full((5,), float(step))}, tmp_path / "runs", step=step, keep_last=2)
    (tmp_path / "runs" / "step-00000200").mkdir()  # no checkpoint
    assert sw.latest(tmp_path / "runs") == tmp_path / "runs" / "step-00000020"  # saved last
    kept = sorted(entry.name for entry in (tmp_path / "runs").iterdir())
    assert kept == ["step-00000020", "step-00000100", "step-00000200"]
    with pytest.raises(ValueError, match="latest"):
        sw.load({"t": torch.zeros(5)}, tmp_path / "runs")


def damaged_copy(path: Path, folder: Path, file: str, offset: int) -> Path:
    copy = folder / "damaged"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(path, copy, copy_function=os.link)  # all but this one are only read
    content = bytearray((path / file).read_bytes())
    content[offset] ^= 1 << offset % 8
    (copy / file).unlink()
    (copy / file).write_bytes(content)
    return copy


def test_a_flipped_bit_in_any_tensor_is_named_by_verify_and_refused_by_a_load(path: Path, state, tmp_path):
    (file,) = path.glob("*.safetensors")
    with safe_open(file, "np") as opened:
        names = [name for name in opened.keys() if state[name].numel()]  # noqa: SIM118
    data = file.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    import json

    offsets = json.loads(data[8:header])
    choice = random.Random(1)
    for name in names:
        begin, end = offsets[name]["data_offsets"]
        for offset in (begin, end - 1, choice.randrange(begin, end)):
            copy = damaged_copy(path, tmp_path, file.name, header + offset)
            report = sw.verify(copy)
            assert report.damaged == [name]
            assert file.name in report.problems[0] and name in report.problems[0]
            loaded = blank(state)
            with pytest.raises(sw.CheckpointFormatError, match=f'"{name}" is damaged'):
                sw.load(loaded, copy, verify=True)
            assert not loaded[name].contiguous().reshape(-1).view(torch.uint8).any()


def test_a_flipped_bit_in_the_header_is_found_by_verify_and_refused_by_a_load(path: Path, state, tmp_path):
    (file,) = path.glob("*.safetensors")
    length = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    for offset in [*range(0, length, 37), length - 1]:
        copy = damaged_copy(path, tmp_path, file.name, offset)
        report = sw.verify(copy)
        assert "the header is damaged" in report.problems[0] and "large" in report.damaged
        loaded = {"small": torch.zeros_like(state["small"])}
        with pytest.raises(sw.CheckpointFormatError, match=f"{file.name}: the header is damaged"):
            sw.load(loaded, copy, verify=True)
        assert not loaded["small"].any()


def test_a_flipped_bit_in_an_object_or_an_odd_dtype_is_found(path: Path, tmp_path: Path):
    (file,) = path.glob("rank-00000-*.bin")
    size = file.stat().st_size
    found = set()
    for offset in range(0, size, 29):
        copy = damaged_copy(path, tmp_path, file.name, offset)
        report = sw.verify(copy)
        assert len(report.damaged) == 1
        found |= set(report.damaged)
        with pytest.raises(sw.CheckpointFormatError, match="is damaged"):
            sw.load(
                {"complex": torch.zeros(4, 2, dtype=torch.complex128), "object": {"a": [0, ""]}},
                copy,
                verify=True,
            )
    assert found == {"complex", "object.a.0", "object.a.1"} or found == {"complex", "object.a"}


def test_a_flipped_bit_in_the_manifest_is_found(path: Path, tmp_path: Path):
    size = (path / "shardwright.manifest").stat().st_size
    for offset in range(0, size, 7):
        copy = damaged_copy(path, tmp_path, "shardwright.manifest", offset)
        assert sw.verify(copy).problems
        with pytest.raises(BaseException, match="manifest"):
            dcp.load({"number": torch.tensor(0)}, storage_reader=sw.ShardedStorageReader(copy))


def test_missing_and_short_files_are_found(path: Path, tmp_path: Path, state):
    (file,) = path.glob("*.safetensors")
    for harm, words in (
        (lambda copy: (copy / file.name).unlink(), "No such file"),
        (lambda copy: (copy / file.name).write_bytes(file.read_bytes()[:-9]), "expected"),
    ):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(path, copy)
        harm(copy)
        report = sw.verify(copy)
        assert any(words in problem for problem in report.problems), report.problems
    with pytest.raises(sw.CheckpointFormatError):
        shutil.rmtree(copy)
        shutil.copytree(path, copy)
        (copy / file.name).write_bytes(file.read_bytes()[:-9])
        sw.load(blank(state), copy)


def test_verify_on_the_command_line(path: Path, tmp_path: Path, tiny: Path, capsys):
    assert main(["verify", str(path)]) == 0
    assert main(["verify", str(tiny)]) == 0
    assert "no checksums" in capsys.readouterr().out
    (file,) = path.glob("*.safetensors")
    copy = damaged_copy(path, tmp_path, file.name, file.stat().st_size - 1)
    assert main(["verify", str(copy)]) == 1
    assert "damaged" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "nothing")]) == 1


def test_a_damaged_hugging_face_checkpoint_is_found(tiny: Path, tmp_path: Path):
    (first, *_) = sorted(file.name for file in tiny.glob("*.safetensors"))
    copy = damaged_copy(tiny, tmp_path, first, 3)
    assert sw.verify(copy).problems
    with pytest.raises(ValueError, match="checksums"):
        sw.load({}, tiny, verify=True)
