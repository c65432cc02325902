"""Checkpoints of format="torch": read by torch alone, where importing shardwright raises, and by us as any of ours."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from nested_states import differing, filled
from outcomes import HERE, run_forked
from shardwright import _core
from torch import nn
from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

MANIFEST, METADATA = "shardwright.manifest", ".metadata"


def bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Of any bits that the dtype can have."""
    draw = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.rand(shape, generator=draw) > 0.5
    raw = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8, generator=draw)
    return raw.view(dtype).reshape(shape)


DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.complex32,
    torch.complex64,
    torch.complex128,
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.uint16,
    torch.int16,
    torch.uint32,
    torch.int32,
    torch.uint64,
    torch.int64,
]


def odd_state() -> dict[str, Any]:
    return {
        "dtypes": {str(dtype)[6:]: bits((5, 3), dtype, 1) for dtype in DTYPES},
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "hollow": torch.empty(3, 0, 2),
        "turned": torch.randn(7, 9).t(),
        "large": bits((2_200_000,), torch.bfloat16, 2),  # more than one checksum block
        "trained": torch.randn(4, requires_grad=True).detach(),
        "a name.with / \u00fc": torch.ones(3),
    }


def training(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 6)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def state(seed: int = 0) -> dict[str, Any]:
    return {
        **training(seed),
        **odd_state(),
        "list": [torch.full((3,), float(seed)), {"text": "words", "none": None}],
        "step": seed,
        "numbers": {"lr": 0.1, "betas": (0.9, 0.95)},
    }


def empty(like: Any) -> Any:
    return filled(like, lambda v: torch.zeros_like(v) if isinstance(v, torch.Tensor) else None)


def names_in(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """Runs Python, and all processes that this starts, where importing shardwright raises."""
    folder = tmp_path_factory.mktemp("without")
    (folder / "shardwright.py").write_text("raise ImportError('it is not here')")
    path = os.pathsep.join([str(folder), str(HERE)])

    def run(*command: Any) -> None:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *map(str, command)],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    with pytest.raises(AssertionError, match="it is not here"):
        run("-c", "import shardwright")
    return run


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, and its state as torch.save wrote it."""
    folder = tmp_path_factory.mktemp("torch_format")
    values = state(3)
    sw.save(values, folder / "checkpoint", format="torch")
    torch.save(values, folder / "expected.pt")
    dcp.save(values, checkpoint_id=folder / "torchs")
    dcp_to_torch_save(folder / "torchs", folder / "converted.pt")  # integer keys become lists
    return folder


# --- by torch alone ----------------------------------------------------------------------------------------------


@pytest.mark.process
def test_dcp_load_reads_it(alone: Callable[..., None], saved: Path):
    alone(HERE / "workers" / "torch_alone.py", saved / "checkpoint", saved / "expected.pt", 1, 0)


@pytest.mark.ranks
@pytest.mark.parametrize("dimension", [0, 1])
def test_dcp_load_reads_it_on_two_ranks(alone: Callable[..., None], saved: Path, dimension: int):
    alone(HERE / "workers" / "torch_alone.py", saved / "checkpoint", saved / "expected.pt", 2, dimension)


@pytest.mark.process
def test_torch_rebuilds_the_state_from_nothing(alone: Callable[..., None], saved: Path, tmp_path: Path):
    program = (
        "import sys\nfrom torch.distributed.checkpoint.format_utils import dcp_to_torch_save\n"
        "dcp_to_torch_save(sys.argv[1], sys.argv[2])"
    )
    alone("-c", program, saved / "checkpoint", tmp_path / "out.pt")
    found = torch.load(tmp_path / "out.pt", weights_only=False)
    assert differing(found, torch.load(saved / "converted.pt", weights_only=False)) == []


@pytest.mark.process
def test_torchs_command_converts_it(alone: Callable[..., None], saved: Path, tmp_path: Path):
    module = "torch.distributed.checkpoint.format_utils"
    alone("-m", module, "dcp_to_torch", saved / "checkpoint", tmp_path / "out.pt")
    found = torch.load(tmp_path / "out.pt", weights_only=False)
    assert differing(found, torch.load(saved / "converted.pt", weights_only=False)) == []


def test_its_metadata_is_that_of_torchs_writer(tmp_path: Path):
    """Of the same state, but for where things lie, the identifiers, and the order of names."""
    values = state(1)
    sw.save(values, tmp_path / "ours", format="torch")
    dcp.save(values, checkpoint_id=tmp_path / "torchs")
    ours, theirs = (pickle.loads((tmp_path / name / METADATA).read_bytes()) for name in ("ours", "torchs"))
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.planner_data == theirs.planner_data
    assert ours.storage_data.keys() == theirs.storage_data.keys()
    assert {index: index.index for index in ours.storage_data} == {
        index: index.index for index in theirs.storage_data
    }
    assert vars(ours).keys() == vars(theirs).keys() and ours.version == theirs.version
    assert Path(ours.storage_meta.checkpoint_id) == tmp_path / "ours" and ours.storage_meta.save_id


def on_two_ranks(rank: int, folder: Path, flat: bool) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    values = torch.load(folder / "expected.pt", weights_only=False)

    def placed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return distribute_tensor(value, mesh, [Shard(value.dim() - 1) if value.dim() else Replicate()])

    sw.save(filled(values, placed), folder / "checkpoint", format="torch")
    dist.destroy_process_group()
    os._exit(0)  # at the interpreter's end a thread of Gloo may abort the process


@pytest.fixture(scope="module")
def saved_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torch_format_ranks")
    values = {**training(5), "odd": {"half": bits((9, 7), torch.bfloat16, 4)}, "step": 5}
    torch.save(values, folder / "expected.pt")
    run_forked(2, on_two_ranks, folder, True)
    return folder


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_what_two_ranks_saved_is_read_on_any_number_of_them(
    alone: Callable[..., None], saved_by_two: Path, ranks: int
):
    path, expected = saved_by_two / "checkpoint", saved_by_two / "expected.pt"
    assert len([name for name in names_in(path) if name.endswith(".distcp")]) == 2
    alone(HERE / "workers" / "torch_alone.py", path, expected, ranks, 0)


# --- by us -------------------------------------------------------------------------------------------------------


def test_we_read_it_as_any_checkpoint_of_ours(saved: Path):
    expected = torch.load(saved / "expected.pt", weights_only=False)
    loaded = empty(expected)
    report = sw.load(loaded, saved / "checkpoint", verify=True)
    assert differing(loaded, expected) == [] and report.tensors
    report = sw.verify(saved / "checkpoint")
    assert (report.kind, report.problems, report.damaged) == ("sharded", [], [])


@pytest.mark.ranks
def test_we_read_what_two_ranks_saved_on_one(saved_by_two: Path):
    expected = torch.load(saved_by_two / "expected.pt", weights_only=False)
    loaded = empty(expected)
    sw.load(loaded, saved_by_two / "checkpoint", verify=True)
    assert differing(loaded, expected) == []


def test_without_its_manifest_it_is_a_checkpoint_of_torchs(saved: Path, tmp_path: Path):
    """As a save that was ended before its manifest had its name leaves it."""
    shutil.copytree(saved / "checkpoint", tmp_path / "copy")
    (tmp_path / "copy" / MANIFEST).unlink()
    expected = torch.load(saved / "expected.pt", weights_only=False)
    loaded = empty(expected)
    sw.load(loaded, tmp_path / "copy")
    assert differing(loaded, expected) == []
    report = sw.verify(tmp_path / "copy")
    assert (report.kind, report.problems) == ("torch", [])


def test_without_torchs_metadata_it_is_loaded_and_verify_tells(saved: Path, tmp_path: Path):
    shutil.copytree(saved / "checkpoint", tmp_path / "copy")
    (tmp_path / "copy" / METADATA).unlink()
    loaded = {"step": 0}
    sw.load(loaded, tmp_path / "copy")
    assert loaded == {"step": 3}
    (problem,) = sw.verify(tmp_path / "copy").problems
    assert METADATA in problem


def test_any_byte_that_is_read_and_changes_is_found(saved: Path, tmp_path: Path):
    """Of tensors, of the headers that only torch reads, and of its metadata."""
    path = tmp_path / "copy"
    shutil.copytree(saved / "checkpoint", path)
    places = pickle.loads((path / METADATA).read_bytes()).storage_data
    assert not sw.verify(path).problems
    for index, place in places.items():
        file = path / place.relative_path
        whole = file.read_bytes()
        for at in {0, place.length // 2, place.length - 1}:
            data = bytearray(whole)
            data[place.offset + at] ^= 16
            file.write_bytes(data)
            assert index.fqn in sw.verify(path).damaged, (index, at)
        file.write_bytes(whole)
    whole = (path / METADATA).read_bytes()
    for at in (0, 100, len(whole) // 2, len(whole) - 1):
        data = bytearray(whole)
        data[at] ^= 1
        (path / METADATA).write_bytes(data)
        (problem,) = sw.verify(path).problems
        assert METADATA in problem


def test_data_lies_where_any_reader_may_map_it(saved: Path):
    manifest = _core.read_manifest(str(saved / "checkpoint"))
    for number in range(len(manifest.tensors)):
        for *_, begin, _ in manifest.chunks(number):
            assert begin % 64 == 0


# --- what replaces it, and what it replaces ----------------------------------------------------------------------


def test_formats_replace_each_other_and_leave_nothing(tmp_path: Path):
    path = tmp_path / "checkpoint"
    for seed, format in enumerate(["torch", "safetensors", "torch", "torch", "safetensors"]):
        values = {"w": torch.full((5,), float(seed)), "c": torch.full((2,), 1j * seed), "step": seed}
        sw.save(values, path, format=format)
        kinds = {Path(name).suffix or name for name in names_in(path)}
        torchs = {".distcp", METADATA, ".manifest"}
        assert kinds == (torchs if format == "torch" else {".safetensors", ".bin", ".manifest"})
        assert len(names_in(path)) == 3
        loaded = empty(values)
        sw.load(loaded, path, verify=True)
        assert differing(loaded, values) == []
        if format == "torch":
            loaded = empty(values)
            dcp.load(loaded, checkpoint_id=path)
            assert differing(loaded, values) == []


def test_steps_that_go_go_whole(tmp_path: Path):
    for step in range(4):
        sw.save({"w": torch.full((5,), float(step))}, tmp_path, step=step, keep_last=2, format="torch")
    assert names_in(tmp_path) == ["step-00000002", "step-00000003"]
    latest = sw.latest(tmp_path)
    assert latest is not None and latest.name == "step-00000003"


def test_a_checkpoint_of_torchs_is_not_taken_for_one_of_ours(tmp_path: Path):
    """Neither one that torch wrote over ours, nor one beside it."""
    values = {"w": torch.ones(5)}
    for format in ("torch", "safetensors"):
        path = tmp_path / format
        sw.save(values, path, format=format)
        dcp.save({"w": torch.zeros(7)}, checkpoint_id=path)
        with pytest.raises(FileExistsError, match="overwrite=True"):
            sw.save(values, path, format=format)
        assert (path / "__0_0.distcp").exists()
        sw.save(values, path, format=format, overwrite=True)
        assert not (path / "__0_0.distcp").exists() and len(names_in(path)) == (3 if format == "torch" else 2)
    path = tmp_path / "torch"
    dcp.save({"w": torch.zeros(7)}, checkpoint_id=path)
    with pytest.raises(sw.CheckpointFormatError, match=r"\.metadata: .*another program has saved here"):
        sw.load({"w": torch.zeros(5)}, path)


def test_a_copy_of_it_is_ours_whatever_its_times(tmp_path: Path):
    sw.save({"w": torch.ones(5)}, tmp_path, format="torch")
    late = (tmp_path / MANIFEST).stat().st_mtime + 1000
    os.utime(tmp_path / METADATA, (late, late))
    sw.save({"w": torch.ones(5)}, tmp_path, format="torch")
    assert len(names_in(tmp_path)) == 3


# --- how it is asked for -----------------------------------------------------------------------------------------


def test_each_tensor_may_have_a_file(tmp_path: Path):
    writer = sw.ShardedStorageWriter(tmp_path, single_file_per_rank=False, format="torch")
    values = {"a": torch.ones(3), "b": torch.zeros(2), "step": 4}
    dcp.save(values, storage_writer=writer)
    assert len([name for name in names_in(tmp_path) if name.endswith(".distcp")]) == 3
    loaded = empty(values)
    dcp.load(loaded, checkpoint_id=tmp_path)
    assert differing(loaded, values) == []


@pytest.mark.parametrize(
    "planner", [dcp.DefaultSavePlanner(), dcp.DefaultSavePlanner(flatten_state_dict=False)]
)
def test_torchs_planner_may_plan_it(tmp_path: Path, planner: Any):
    values = {"a.b": torch.ones(3), "c": torch.zeros(2, 2)}
    writer = sw.ShardedStorageWriter(tmp_path, serialization_format=SerializationFormat.TORCH_SAVE)
    dcp.save(values, storage_writer=writer, planner=planner)
    loaded = empty(values)
    dcp.load(loaded, checkpoint_id=tmp_path)
    assert differing(loaded, values) == []


def test_a_save_in_the_background_may_have_it(tmp_path: Path):
    pending = sw.save({"w": torch.ones(5)}, tmp_path / "x", asynchronous=True, format="torch")
    assert isinstance(pending, sw.PendingSave)
    pending.wait()
    loaded = {"w": torch.zeros(5)}
    dcp.load(loaded, checkpoint_id=tmp_path / "x")
    assert loaded["w"].eq(1).all()


def test_a_format_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="format is \"torch2\"|format is 'torch2'"):
        sw.save({"w": torch.ones(5)}, tmp_path / "x", format="torch2")
    with pytest.raises(ValueError, match="expected one format"):
        sw.ShardedStorageWriter(
            tmp_path, format="torch", serialization_format=SerializationFormat.SAFETENSORS
        )
    assert not (tmp_path / "x").exists()


def test_planner_data_that_torchs_metadata_cannot_hold_is_refused(tmp_path: Path):
    class Planner(dcp.DefaultSavePlanner):
        def create_global_plan(self, all_plans):
            plans, metadata = super().create_global_plan(all_plans)
            metadata.planner_data = {"w": object()}
            return plans, metadata

    writer = sw.ShardedStorageWriter(tmp_path, format="torch")
    with pytest.raises(dcp.api.CheckpointException, match="the planner's data"):
        dcp.save({"w": torch.ones(5)}, storage_writer=writer, planner=Planner())
    assert names_in(tmp_path) == []


def test_metadata_of_a_save_that_has_not_ended_is_called_that(tmp_path: Path):
    for name in ("run", "next"):
        sw.save({"w": torch.ones(5)}, tmp_path / name, format="torch")
    shutil.copyfile(tmp_path / "next" / ".metadata", tmp_path / "run" / ".metadata")
    assert ".metadata: the header is damaged" in sw.verify(tmp_path / "run").problems[-1]
    (tmp_path / "run" / ".shardwright.saving").mkdir()
    (problem,) = sw.verify(tmp_path / "run").problems
    assert ".metadata: is of a save that has not ended" in problem
