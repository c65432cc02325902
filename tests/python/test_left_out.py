"""Nothing is silent: what is left out, refused or changed is said, whatever the reason."""

import json
from math import prod
from pathlib import Path

import pytest
import shardwright as sw
import torch
import torch.distributed as dist
from checkpoints import config_of, made_up_m3, write_checkpoint, write_m3
from shardwright.cli.command_line import main
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore


def test_unknown_tensors_are_named_in_the_report_when_allowed(tmp_path: Path):
    tensors = made_up_m3()
    tensors["audio.weight"] = tensors["language_model.model.norm.weight"]
    path = write_checkpoint(tmp_path, tensors, config=config_of())
    state = sw.empty_state_dict(path)
    assert sw.load(state, path, strict=False).unknown == ["audio.weight"]
    with pytest.raises(sw.PlanError, match=r"audio\.weight"):
        sw.load(state, path)


def test_tensors_that_were_not_loaded_are_named_in_the_report_when_allowed(tiny: Path):
    misspelt = torch.full((64,), 7.0)
    report = sw.load({"model.nrom.weight": misspelt}, tiny, allow_partial_load=True)
    assert report.not_loaded == ["model.nrom.weight"]
    assert torch.equal(misspelt, torch.full((64,), 7.0))


def test_weights_that_nobody_asks_for_are_named_in_the_report(tiny: Path):
    report = sw.load({"model.norm.weight": torch.zeros(64)}, tiny)
    assert "language_model.lm_head.weight" in report.unused
    assert "language_model.model.norm.weight" not in report.unused


def test_all_that_is_wrong_is_told_at_once(tiny: Path):
    with pytest.raises(sw.PlanError) as refused:
        sw.load({"step": 5, "lm_head.weight": torch.zeros(3), "foo": torch.zeros(3)}, tiny)
    for name in ("step", "lm_head.weight", "foo"):
        assert f"\n  {name}: " in str(refused.value)


def test_all_faulty_files_are_told_at_once(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{]")
    with pytest.raises(sw.CheckpointFormatError) as refused:
        sw.read_catalog(tmp_path)
    assert "a.safetensors" in str(refused.value) and "b.safetensors" in str(refused.value)


@pytest.mark.parametrize("shape", [[], [64], [2, 4, 8]])
def test_an_expert_that_is_no_matrix_is_refused_everywhere(tmp_path: Path, shape: list[int], capsys):
    tensors = made_up_m3()
    name = next(name for name in tensors if name.endswith(".experts.0.w1.weight"))
    write_raw(tmp_path, name, shape)
    assert main(["inspect", str(tmp_path)]) in (0, 1)
    assert main(["plan", str(tmp_path)]) == 1
    assert name in capsys.readouterr().err
    with pytest.raises(sw.CheckpointFormatError, match="expected an HF tensor of 2 dimensions"):
        sw.empty_state_dict(tmp_path)


def write_raw(folder: Path, name: str, shape: list[int]) -> None:
    size = 2 * prod(shape)
    header = json.dumps({name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, size]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))


def test_a_file_replaced_by_a_longer_one_after_planning_is_an_error(tmp_path: Path):
    path = write_m3(tmp_path)
    state = sw.empty_state_dict(path)
    reader, planner = sw.HuggingFaceStorageReader(path), sw.LoadPlanner()
    metadata = reader.read_metadata()
    planner.set_up_planner(state, metadata)
    reader.set_up_storage_reader(metadata, True)
    plan = planner.create_local_plan()
    file = sorted(path.glob("*.safetensors"))[0]
    content = file.read_bytes()
    header = int.from_bytes(content[:8], "little")
    file.write_bytes(
        (header + 8).to_bytes(8, "little") + content[8 : 8 + header] + b" " * 8 + content[8 + header :]
    )
    with pytest.raises(OSError, match="replaced"):
        reader.read_data(plan, planner)


@pytest.fixture
def rank_5_of_8():
    dist.init_process_group("fake", rank=5, world_size=8, store=FakeStore())
    yield
    dist.destroy_process_group()


def test_a_rank_that_is_not_on_a_tensors_mesh_loads_nothing_of_it(tiny: Path, rank_5_of_8):
    mesh = DeviceMesh("cpu", [0, 1], mesh_dim_names=("shard",))
    state = sw.empty_state_dict(tiny, mesh)
    assert all(tensor.to_local().numel() == 0 for tensor in state.values())
    report = sw.load(state, tiny)
    assert (report.tensors, report.bytes_read) == (0, 0)


def test_negated_views_are_refused(tiny: Path):
    negated = torch.zeros(64, dtype=torch.complex64).conj().imag
    assert negated.is_neg()
    with pytest.raises(sw.PlanError, match=r"model\.norm\.weight"):
        sw.load({"model.norm.weight": negated}, tiny)


def test_autograd_notices_that_a_dtensor_has_been_written_to(tiny: Path, rank_5_of_8):
    mesh = DeviceMesh("cpu", list(range(8)))
    local = torch.ones(16, 64, requires_grad=True)
    weight = DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
    before = weight._version
    sw.load({"lm_head.weight": weight}, tiny)
    assert weight._version > before


def test_a_nested_state_dict_is_told_about_its_prefix(tiny: Path):
    with pytest.raises(sw.PlanError, match=r"state_dict\['model'\]"):
        sw.load({"model": sw.empty_state_dict(tiny)}, tiny)


def test_a_module_is_told_to_pass_its_state_dict(tiny: Path):
    with pytest.raises(TypeError, match="state_dict"):
        sw.load(torch.nn.Linear(2, 2), tiny)


def test_an_hf_name_is_no_second_way_to_a_tensor_of_another_native_name(tiny: Path):
    with pytest.raises(sw.PlanError, match=r"block_sparse_moe\.gate\.weight"):
        sw.load({"model.layers.1.block_sparse_moe.gate.weight": torch.zeros(4, 64)}, tiny)


@pytest.mark.parametrize(
    "options", [{"threads": 1.5}, {"threads": 2**31}, {"staging_bytes": 2**70}, {"threads": 0}]
)
def test_options_out_of_range_are_refused_by_name(tiny: Path, options: dict):
    with pytest.raises(ValueError, match="thread_count" if "threads" in options else "staging_bytes"):
        sw.load({}, tiny, **options)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("reads", "mmap"),
        ("reads", 3),
        ("direct_io", "yes"),
        ("huge_pages", "no"),
        ("cooperative", "yes"),
        ("cooperative", 1),
        ("trace", ""),
    ],
)
def test_options_of_reading_are_refused_by_name_with_what_was_expected(tiny: Path, option: str, value):
    with pytest.raises(ValueError, match=rf"{option}: expected .*, found {value!r}"):
        sw.load(sw.empty_state_dict(tiny), tiny, **{option: value})


def test_a_file_name_that_is_no_utf8_does_not_hide_the_message(tmp_path: Path):
    path = write_m3(tmp_path)
    for index in path.glob("*.index.json"):
        index.unlink()
    first = sorted(path.glob("*.safetensors"))[0]
    first.rename(path / b"a\xff.safetensors".decode("utf-8", "surrogateescape"))
    with pytest.raises(sw.PlanError, match=r"expected shape"):
        sw.load({"model.embed_tokens.weight": torch.zeros(3)}, path)
