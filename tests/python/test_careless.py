"""What people do in a hurry: saves into places that are not what they take them for lose nobody's files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from outcomes import outcome_of
from safetensors.torch import load_file, save_file
from test_strangers import assert_untouched, holds, read, state
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter as TorchWriter

pytestmark = pytest.mark.ranks

WEIGHTS = {"a.weight": torch.ones(4, 6), "b.weight": torch.zeros(5)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- paths ------------------------------------------------------------------------------------------------------------


def test_keep_last_cleans_the_root_that_the_kernel_means_and_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far" / "folder").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/folder")
    for step in (1, 2, 3):
        sw.save(state(step), "run", step=step)
    before = read(tmp_path / "run")
    for step in (100, 200, 150):
        sw.save(state(step), "link/../run", step=step, keep_last=2)
    assert_untouched(before, tmp_path / "run")
    assert names(tmp_path / "far" / "run") == ["step-00000150", "step-00000200"]
    latest = sw.latest("link/../run")
    assert latest is not None and latest.name == "step-00000150"


@pytest.mark.parametrize("what", ["save", "export"])
def test_a_relative_path_means_what_it_meant_when_the_call_was_made(what: str, tmp_path, monkeypatch):
    for folder in ("here", "there"):
        for step in (1, 2, 3):
            sw.save(state(step), tmp_path / folder / "run", step=step)
    before = read(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "here")
    if what == "save":
        pending = sw.save(state(4), "run", step=4, keep_last=1, asynchronous=True)
        os.chdir(tmp_path / "there")
        pending.wait()
        assert names(tmp_path / "here" / "run") == ["step-00000004"]
    else:
        writer = sw.HuggingFaceStorageWriter("out")
        os.chdir(tmp_path / "there")
        torch.distributed.checkpoint.save(
            WEIGHTS, storage_writer=writer, planner=sw.SavePlanner(), no_dist=True
        )
        assert (tmp_path / "here" / "out" / "model.safetensors.index.json").exists()
    assert_untouched(before, tmp_path / "there")
    assert names(tmp_path / "there") == ["run"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "empty"),
        ("~/runs", "expanduser"),
        ("~", "expanduser"),
        ("a\0b", "NUL"),
        ("dangling", "not there"),
    ],
)
def test_a_path_that_cannot_be_meant_is_refused_and_makes_nothing(
    path: str, words: str, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dangling").symlink_to("nowhere")
    for call in (lambda: sw.save(state(1), path), lambda: sw.export(WEIGHTS, path)):
        with pytest.raises((ValueError, OSError), match=words):
            call()
    assert names(tmp_path) == ["dangling"]


@pytest.mark.parametrize("format", ["torch", "safetensors"])
def test_a_folder_of_any_name_is_saved_to(format: str, tmp_path):
    for name in (b"caf\xe9", b"a\nb", b"\xff\xfe"):
        path = tmp_path / os.fsdecode(name)
        sw.save(state(3), path, format=format)
        assert holds(path, 3) and sw.verify(path).problems == []
    found = {"a.weight": torch.zeros(4, 6)}
    sw.save({"a.weight": WEIGHTS["a.weight"]}, tmp_path / os.fsdecode(b"\xff\xfe"), format="torch")
    dcp.load(found, checkpoint_id=tmp_path / os.fsdecode(b"\xff\xfe"))
    assert torch.equal(found["a.weight"], WEIGHTS["a.weight"])


def test_a_working_directory_that_is_gone_is_told_by_the_path(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for call in (sw.save, sw.export):
        with pytest.raises(
            FileNotFoundError, match=r"\] \.: cannot resolve this path: No such file or directory"
        ):
            call(WEIGHTS, "run")
    assert names(tmp_path) == []


class Interrupted:
    def __reduce__(self):
        raise KeyboardInterrupt


def test_ctrl_c_is_no_failure_of_a_save_that_a_trainer_could_take_for_another(tmp_path):
    sw.save(state(1), tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        sw.save(state(2) | {"object": Interrupted()}, tmp_path / "run")
    assert holds(tmp_path / "run", 1) and not (tmp_path / "run" / ".shardwright.saving").exists()


def test_ctrl_c_in_an_export_at_any_moment_is_told_as_that(tmp_path):
    weights = {f"layers.{number}.weight": torch.ones(512, 1024) for number in range(24)}
    sw.export(weights, tmp_path / "out", quantization="mxfp8", quantized_weights=["*"], layout="huggingface")
    for moment in range(6):
        stop = threading.Timer(0.02 + 0.05 * moment, os.kill, [os.getpid(), signal.SIGINT])
        with pytest.raises(KeyboardInterrupt):
            stop.start()
            while True:
                sw.export(
                    weights,
                    tmp_path / "out",
                    quantization="mxfp8",
                    quantized_weights=["*"],
                    layout="huggingface",
                )
        assert sw.verify(tmp_path / "out").problems == []


@pytest.mark.parametrize(
    "options",
    [
        {"step": 1, "keep_last": 1.5},
        {"step": 1, "keep_last": 2.0},
        {"step": 1, "keep_last": True},
        {"step": 1, "keep_last": "3"},
        {"step": 1, "keep_last": 0},
        {"step": 1.5},
        {"step": "5"},
        {"step": -1},
        {"overwrite": "no"},
        {"keep_last": 1},
    ],
)
def test_an_odd_option_is_refused_before_anything_is_saved(options: dict, tmp_path):
    sw.save(state(1), tmp_path / "run", step=7)
    before = read(tmp_path)
    with pytest.raises(ValueError, match="expected"):
        sw.save(state(2), tmp_path / "run", **options)
    assert read(tmp_path) == before


# --- steps ------------------------------------------------------------------------------------------------------------


def test_a_link_to_a_step_is_that_step_and_no_further_one(tmp_path):
    for step in (1, 2):
        sw.save(state(step), tmp_path, step=step)
    (tmp_path / "step-00000099").symlink_to("step-00000002")
    assert sw.latest(tmp_path) == tmp_path / "step-00000002"
    sw.save(state(3), tmp_path, step=3, keep_last=2)
    assert names(tmp_path) == ["step-00000002", "step-00000003", "step-00000099"]
    assert holds(tmp_path / "step-00000002", 2)
    sw.save(state(4), tmp_path, step=4, keep_last=2)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "half", "empty"])
def test_a_sick_step_beside_it_ends_no_save(kind: str, tmp_path):
    for step in (1, 2):
        sw.save(state(step), tmp_path, step=step)
    manifest = tmp_path / "step-00000001" / "shardwright.manifest"
    whole = manifest.read_bytes()
    manifest.unlink()
    if kind == "link":
        manifest.symlink_to("nowhere")
    elif kind == "pipe":
        os.mkfifo(manifest)
    elif kind == "folder":
        manifest.mkdir()
    else:
        manifest.write_bytes(whole[: len(whole) // 2] if kind == "half" else b"")
    sw.save(state(3), tmp_path, step=3)
    assert sw.latest(tmp_path) == tmp_path / "step-00000003"
    assert holds(tmp_path / "step-00000003", 3)


# --- what others have written over ours -------------------------------------------------------------------------------


def write_model(folder: Path) -> dict:
    """As transformers and the hub write one; what was there before is deleted first, as downloads do."""
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    save_file({"a.weight": torch.full((4, 6), 7.0)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b.weight": torch.full((5,), 7.0)}, folder / "model-00002-of-00002.safetensors")
    weight_map = {f"{name}.weight": f"model-0000{n}-of-00002.safetensors" for n, name in ((1, "a"), (2, "b"))}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return read(folder)


def write_lone_file(folder: Path) -> dict:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    save_file({"a.weight": torch.full((4, 6), 7.0)}, folder / "model.safetensors")
    return read(folder)


def write_shard(folder: Path) -> dict:
    """Fine-tuned, and later: the same names, dtypes and shapes."""
    (shard,) = folder.glob("*.safetensors")
    save_file({name: tensor + 1 for name, tensor in WEIGHTS.items()}, shard)
    os.utime(shard, (shard.stat().st_atime, shard.stat().st_mtime + 3600))
    return read(folder)


@pytest.mark.parametrize("write", [write_model, write_lone_file, write_shard])
def test_weights_that_somebody_wrote_where_an_export_was_need_overwrite(write, tmp_path):
    sw.export(WEIGHTS, tmp_path / "out")
    before = write(tmp_path / "out")
    for call in (sw.export, sw.save):
        with pytest.raises(FileExistsError, match="overwrite=True"):
            call(WEIGHTS, tmp_path / "out")
    assert read(tmp_path / "out") == before
    sw.export(WEIGHTS, tmp_path / "out", overwrite=True)
    assert sw.verify(tmp_path / "out").problems == []
    (file,) = {file.name for file in sw.read_catalog(tmp_path / "out").files}
    found = load_file(tmp_path / "out" / file)
    assert found.keys() == WEIGHTS.keys() and all(
        torch.equal(found[name], WEIGHTS[name].bfloat16().to(found[name].dtype)) for name in found
    )


def test_torchs_shards_over_ours_are_theirs(tmp_path):
    for writer in (sw.HuggingFaceStorageWriter, TorchWriter):  # which give their files the same names
        torch.distributed.checkpoint.save(
            WEIGHTS, storage_writer=writer(str(tmp_path / "out"), save_distributed=True), no_dist=True
        )
    (shard,) = (tmp_path / "out").glob("*.safetensors")
    os.utime(shard, (shard.stat().st_atime, shard.stat().st_mtime + 3600))
    before = read(tmp_path / "out")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        sw.save(WEIGHTS, tmp_path / "out")
    assert read(tmp_path / "out") == before


@pytest.mark.parametrize("saved", ["torch", "safetensors", "torch's own"])
def test_shards_of_weights_replace_no_training_unasked(saved: str, tmp_path):
    """Both are sharded checkpoints, but the weights are not all that the training needs."""
    training = {"model": WEIGHTS, "optimizer": {"moment": torch.ones(3)}, "step": 7}
    if saved == "torch's own":
        dcp.save(training, checkpoint_id=tmp_path / "run", no_dist=True)
    else:
        sw.save(training, tmp_path / "run", format=saved)
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}

    def write(path: Path, **options: object) -> None:
        writer = sw.HuggingFaceStorageWriter(tmp_path / "elsewhere", save_distributed=True, **options)
        dcp.save(WEIGHTS, checkpoint_id=path, storage_writer=writer, planner=sw.SavePlanner(), no_dist=True)

    with pytest.raises(CheckpointException, match="holds a checkpoint of training .*pass overwrite=True"):
        write(tmp_path / "run")
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before
    write(tmp_path / "shards")
    write(tmp_path / "shards")
    write(tmp_path / "run", overwrite=True)
    assert not (tmp_path / "elsewhere").exists()


def test_an_export_goes_to_no_folder_that_is_called_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writer = sw.HuggingFaceStorageWriter("export")
    with pytest.raises(ValueError, match="leave out file://"):
        dcp.save(WEIGHTS, checkpoint_id=f"file://{tmp_path}/out", storage_writer=writer, no_dist=True)
    assert list(tmp_path.iterdir()) == []


def test_a_checksums_file_that_is_damaged_can_be_replaced_when_that_is_said(tmp_path):
    sw.export(WEIGHTS, tmp_path / "out")
    (tmp_path / "out" / "shardwright.checksums").write_bytes(b"damaged")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        sw.export(WEIGHTS, tmp_path / "out")
    sw.export(WEIGHTS, tmp_path / "out", overwrite=True)
    assert sw.verify(tmp_path / "out").problems == []


def test_an_export_onto_the_checkpoint_that_it_reads_needs_overwrite(tiny: Path, tmp_path):
    released = sw.empty_state_dict(tiny)
    sw.load(released, tiny)
    sw.export(released, tmp_path / "out", template=tiny, quantization="mxfp8")
    before = read(tmp_path)
    with pytest.raises(FileExistsError, match="made from"):
        sw.export(tmp_path / "out", tmp_path / "out")
    assert read(tmp_path) == before


def test_a_catalog_means_what_it_meant_when_it_was_read(tiny: Path, tmp_path, monkeypatch):
    """A trainer that goes to a folder of its run after reading, as Hydra does."""
    shutil.copytree(tiny, tmp_path / "released")
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    template = sw.read_catalog("released")
    state_dict = sw.empty_state_dict("released")
    monkeypatch.chdir("run")
    sw.export(state_dict, "../new", template=template)
    assert {"config.json", "tokenizer.json"} <= set(names(tmp_path / "new"))
    with pytest.raises(FileExistsError, match="this is what the checkpoint is made from"):
        sw.export(state_dict, "../released", template=template)


def test_an_export_without_a_template_keeps_what_an_earlier_one_has_beside_its_weights(tiny: Path, tmp_path):
    (template := tmp_path / "template").mkdir()
    for path in tiny.iterdir():
        shutil.copy(path, template)
    (template / "tokenizer.json").write_text("{}")
    released = sw.empty_state_dict(tiny)
    sw.load(released, tiny)
    sw.export(released, tmp_path / "out", template=template, quantization="mxfp8")
    assert "quantization_config" in json.loads((tmp_path / "out" / "config.json").read_text())
    for _ in range(2):
        sw.export(released, tmp_path / "out")
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["model_type"] == "minimax_m3_vl" and "quantization_config" not in config
        assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
        assert sw.verify(tmp_path / "out").problems == []
        again = sw.empty_state_dict(tmp_path / "out")
        sw.load(again, tmp_path / "out")


def test_the_id_of_a_hub_repository_is_no_adapter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lora = {f"model.layers.0.self_attn.o_proj.lora_{x}.weight": torch.ones(4, 4) for x in "AB"}
    with pytest.raises(FileNotFoundError, match="hf download someone/an-adapter"):
        sw.load_lora(lora, "someone/an-adapter")


def test_an_adapters_configuration_that_somebody_has_edited_needs_overwrite(tmp_path):
    module = "model.layers.0.self_attn.o_proj"
    lora = {f"{module}.lora_{x}.weight": torch.ones(4, 4) for x in "AB"}
    sw.save_lora(lora, tmp_path, alpha=8, model="minimax_m3")
    sw.save_lora(lora, tmp_path, alpha=8, model="minimax_m3")
    config = tmp_path / "adapter_config.json"
    config.write_text(
        config.read_text().replace('"base_model_name_or_path": ""', '"base_model_name_or_path": "mine"')
    )
    before = read(tmp_path)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        sw.save_lora(lora, tmp_path, alpha=8, model="minimax_m3")
    assert read(tmp_path) == before
    sw.save_lora(lora, tmp_path, alpha=8, model="minimax_m3", overwrite=True)


def test_a_git_lfs_pointer_in_the_place_of_a_shard_is_told(tmp_path):
    sw.save({"w": torch.ones(3000)}, tmp_path)
    (shard,) = tmp_path.glob("*.distcp")
    shard.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n")
    with pytest.raises(sw.CheckpointFormatError, match="Git LFS pointer"):
        sw.load({"w": torch.zeros(3000)}, tmp_path)


def test_a_directory_in_the_place_of_an_old_shard_ends_no_save(tmp_path):
    sw.save(state(1), tmp_path)
    (shard,) = tmp_path.glob("*.distcp")
    shard.unlink()
    shard.mkdir()
    for value in (2, 3, 4):
        sw.save(state(value), tmp_path)
        assert holds(tmp_path, value)
    assert shard.is_dir() and not (tmp_path / ".shardwright.saving").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"strict": "no"},
        {"allow_partial_load": 1},
        {"strict_dtypes": "yes"},
        {"verify": "yes"},
        {"progress": 1},
        {"plan": "plan"},
        {"key": "x"},
    ],
)
def test_an_odd_option_of_a_load_or_an_export_is_refused_by_its_name(options: dict, tiny: Path, tmp_path):
    state = sw.empty_state_dict(tiny)
    (name,) = options
    if name != "key":
        with pytest.raises(ValueError, match=f"{name}: expected"):
            sw.load(state, tiny, **options)
    if name in ("strict", "strict_dtypes", "key"):
        for source in (state, tiny):
            with pytest.raises(ValueError, match=f"{name}: expected"):
                sw.export(source, tmp_path / "out", **options)
    if name in ("strict", "strict_dtypes"):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            sw.pieces(state, **options)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "options",
    [{"asynchronous": "no"}, {"planner": 3}, {"async_staging_bytes": "1GB"}, {"process_group": "all"}],
)
def test_an_odd_option_of_a_save_is_refused_by_its_name(options: dict, tmp_path):
    (name,) = options
    with pytest.raises(ValueError, match=rf"{name}(:| is .*;) expected"):
        sw.save(state(1), tmp_path / "run", **options)
    assert names(tmp_path) == []


def test_an_adapter_in_the_place_of_a_model_is_told(tmp_path):
    module = "model.layers.0.self_attn.o_proj"
    lora = {f"{module}.lora_{x}.weight": torch.ones(4, 4) for x in "AB"}
    sw.save_lora(lora, tmp_path, alpha=8, model="minimax_m3")
    for call in (lambda: sw.load(dict(WEIGHTS), tmp_path), lambda: sw.empty_state_dict(tmp_path)):
        with pytest.raises(sw.PlanError, match="LoRA adapter.*load_lora"):
            call()


# --- ranks ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcome(tiny: Path, tmp_path_factory) -> dict[str, str]:
    return outcome_of("refused_arguments.py", 2, tiny, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(
    "check",
    [
        "save",
        "save_in_the_background",
        "save_after_one_that_failed",
        "save_as_others_do_not",
        "save_to_an_address",
        "another_call",
        "export",
        "export_of_a_path",
        "export_of_a_path_or_of_a_state_dict",
        "no_process_group",
        "none_of_the_group",
        "load",
        "load_in_no_way_that_there_is",
        "afterwards",
    ],
)
def test_what_one_rank_refuses_all_hear_of_at_once(outcome: dict[str, str], check: str):
    assert outcome[check] == ""
