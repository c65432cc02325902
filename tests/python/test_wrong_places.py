"""The wrong path or argument at three in the morning: a message that says what it is and what to do."""

import os
from pathlib import Path

import pytest
import reference
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from shardwright.cli.command_line import main
from shardwright.dcp.torch_reading import TorchStorageReader

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4294967296\n"
REMOTE = ("s3://bucket/x", "gs://bucket/x", "hf://owner/name", "https://host/x", "unheard-of://x/y")
READS = ("load", "template", "source", "read_catalog", "empty_state_dict", "verify", "latest", "readers",
         "sharded reader", "torch's reader")  # fmt: skip
WRITES = ("save", "save of a step", "export", "writers", "sharded writer")


def entries(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def told(capsys, *arguments: str) -> str:
    """What a command that fails prints."""
    assert main(list(arguments)) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("path", [*REMOTE, Path("s3://bucket/x"), Path("hf://a/b"), "file:///tmp/x"])
def test_addresses_are_refused_everywhere_and_nothing_is_made(
    path, tmp_path: Path, tiny: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    state = {"t": torch.ones(2)}
    match = (
        "leave out file://" if str(path).startswith("file") else "addresses are not taken here: download it"
    )
    calls = {
        "load": lambda: sw.load(state, path),
        "save": lambda: sw.save(state, path),
        "save of a step": lambda: sw.save(state, path, step=3),
        "export": lambda: sw.export(state, path),
        "template": lambda: sw.export(state, "exported", template=path),
        "source": lambda: sw.export(path, "exported"),
        "read_catalog": lambda: sw.read_catalog(path),
        "empty_state_dict": lambda: sw.empty_state_dict(path),
        "generate": lambda: sw.generate(path),
        "verify": lambda: sw.verify(path),
        "latest": lambda: sw.latest(path),
        "load_lora": lambda: sw.load_lora({}, path),
        "readers": lambda: sw.HuggingFaceStorageReader(path),
        "sharded reader": lambda: sw.ShardedStorageReader(path),
        "torch's reader": lambda: TorchStorageReader(path),
        "writers": lambda: sw.HuggingFaceStorageWriter(path),
        "sharded writer": lambda: sw.ShardedStorageWriter(path),
    }
    if not str(path).startswith("file"):  # what is read may be anywhere: test_remote.py, and test_uploads.py
        calls = {name: call for name, call in calls.items() if name not in (*READS, *WRITES)}
    for name, call in calls.items():
        with pytest.raises(ValueError, match=match):
            call()
            pytest.fail(f"{name} took {path}")
    text = str(path)
    commands = [["generate", text]]
    if text.startswith("file"):
        commands += [["inspect", text], ["plan", text], ["load", text], ["verify", text], ["simulate", text]]
        commands += [["export", text, "exported"], ["export", str(tiny), text]]
    for command in commands:
        assert match in told(capsys, *command), command
    assert entries(tmp_path) == []


@pytest.mark.parametrize("path", ["hf://owner/name", "https://host/x", Path("hf://a/b")])
def test_nothing_is_written_to_addresses_that_are_only_read(path, tiny: Path, capsys):
    state = {"t": torch.ones(2)}
    for write in (
        lambda: sw.save(state, path),
        lambda: sw.save(state, path, step=3),
        lambda: sw.export(state, path),
        lambda: sw.HuggingFaceStorageWriter(path),
        lambda: sw.ShardedStorageWriter(path),
    ):
        with pytest.raises(ValueError, match="an address that is only read"):
            write()
    assert "an address that is only read" in told(capsys, "export", str(tiny), str(path))


def test_a_checkpoint_id_of_dcp_that_is_an_address_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHARDWRIGHT_REMOTE_PATIENCE", "0.5")
    with pytest.raises(BaseException, match="only read|hf://owner/x"):
        dcp.save(
            {"t": torch.ones(2)}, checkpoint_id="hf://owner/x", storage_writer=sw.ShardedStorageWriter("a")
        )
    with pytest.raises(BaseException, match="addresses are not taken here|s3://bucket"):
        dcp.load(
            {"t": torch.ones(2)}, checkpoint_id="s3://bucket/x", storage_reader=sw.ShardedStorageReader("a")
        )
    assert entries(tmp_path) == []


def test_a_colon_in_a_name_is_no_address(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("run:3/x", "a:b", "12:/x"):
        sw.save({"t": torch.ones(2)}, path)
        loaded = {"t": torch.zeros(2)}
        sw.load(loaded, path)
        assert loaded["t"].tolist() == [1, 1]


def test_a_hub_id(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    match = "Hugging Face hub repository; download it first, hf download MiniMaxAI/MiniMax-M3 --local-dir MiniMax-M3"
    for path in ("MiniMaxAI/MiniMax-M3", Path("MiniMaxAI/MiniMax-M3")):
        for call in (
            lambda path=path: sw.load({}, path),
            lambda path=path: sw.load({}, path, verify=True),
            lambda path=path: sw.read_catalog(path),
            lambda path=path: sw.verify(path),
            lambda path=path: sw.export({"t": torch.ones(1)}, "out", template=path),
            lambda path=path: sw.export(path, "out"),
        ):
            with pytest.raises(FileNotFoundError, match=match):
                call()
    for command in ("inspect", "plan", "load", "verify"):
        assert match in told(capsys, command, "MiniMaxAI/MiniMax-M3")
    with pytest.raises(dcp.api.CheckpointException, match=match):
        dcp.load({"t": torch.ones(1)}, storage_reader=sw.HuggingFaceStorageReader("MiniMaxAI/MiniMax-M3"),
                 planner=sw.LoadPlanner())  # fmt: skip
    (tmp_path / "runs").mkdir()
    with pytest.raises(
        FileNotFoundError, match="runs/m3: no such directory; give the directory of a checkpoint"
    ):
        sw.load({}, "runs/m3")


def test_git_lfs_pointers(tmp_path: Path, tiny: Path, capsys):
    match = "this is a Git LFS pointer, which stands for the file; get the file itself: run git lfs pull"
    (tmp_path / "model.safetensors").write_text(POINTER)
    with pytest.raises(sw.CheckpointFormatError, match=rf"model\.safetensors: {match}"):
        sw.load({"t": torch.zeros(1)}, tmp_path)
    for command in ("inspect", "plan", "load"):
        assert match in told(capsys, command, str(tmp_path))
    assert any(match in problem for problem in sw.verify(tmp_path).problems)
    for name in ("config.json", "model.safetensors.index.json"):
        copy = tmp_path / name.replace(".", "_")
        copy.mkdir()
        for file in tiny.iterdir():
            (copy / file.name).symlink_to(file)
        (copy / name).unlink()
        (copy / name).write_text(POINTER)
        with pytest.raises(sw.CheckpointFormatError, match=f"{name}: {match}"):
            sw.read_catalog(copy)


def test_git_lfs_pointers_among_checkpoints_of_training(tmp_path: Path):
    match = "this is a Git LFS pointer"
    state = {"t": torch.ones(300), "n": 3}
    sw.save(state, tmp_path / "ours")
    (tmp_path / "ours" / "shardwright.manifest").write_text(POINTER)
    dcp.save(state, checkpoint_id=tmp_path / "torchs")
    (tmp_path / "torchs" / ".metadata").write_text(POINTER)
    dcp.save(state, checkpoint_id=tmp_path / "parts")
    (tmp_path / "parts" / "__0_0.distcp").write_text(POINTER)
    for name in ("ours", "torchs", "parts"):
        loaded = {"t": torch.zeros(300), "n": 0}
        with pytest.raises(sw.CheckpointFormatError, match=match):
            sw.load(loaded, tmp_path / name)
        assert not loaded["t"].any() and loaded["n"] == 0


def test_parts_of_torchs_checkpoint_that_are_cut_short_or_gone_are_told_before_anything_is_read(
    tmp_path: Path,
):
    dcp.save({"t": torch.ones(300), "n": 3}, checkpoint_id=tmp_path)
    file = tmp_path / "__0_0.distcp"
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    loaded = {"t": torch.zeros(300), "n": 0}
    with pytest.raises(
        sw.CheckpointFormatError, match=f"expected {len(data)} bytes or more, found {len(data) - 1}"
    ):
        sw.load(loaded, tmp_path)
    file.unlink()
    with pytest.raises(sw.CheckpointFormatError, match="__0_0.distcp: expected a file of"):
        sw.load(loaded, tmp_path)
    assert not loaded["t"].any()


def test_a_file_in_place_of_its_folder(tiny: Path, tmp_path: Path, capsys):
    sw.save({"t": torch.ones(2)}, tmp_path / "saved")
    files = [next(tiny.glob("*.safetensors")), tiny / "model.safetensors.index.json"]
    for file in [*files, tmp_path / "saved" / "shardwright.manifest"]:
        match = f"found a file; give the directory that holds it: {file.parent}"
        for call in (lambda file=file: sw.load({}, file), lambda file=file: sw.verify(file)):
            with pytest.raises(OSError, match=match):
                call()
        for command in ("inspect", "plan", "load", "verify"):
            assert match in told(capsys, command, str(file))


def test_a_folder_of_steps_in_place_of_one(tmp_path: Path, capsys):
    for step in (9, 10):
        sw.save({"t": torch.ones(2)}, tmp_path / "runs", step=step)
    match = r"steps.*such as the latest, shardwright\.latest\(\.\.\.\): .*step-00000010"
    for call in (
        lambda path: sw.load({"t": torch.zeros(2)}, path),
        sw.verify,
        sw.read_catalog,
        lambda path: sw.export(path, tmp_path / "out"),
    ):
        with pytest.raises((OSError, ValueError), match=match):
            call(tmp_path / "runs")
    with pytest.raises(dcp.api.CheckpointException, match=match):
        dcp.load({"t": torch.zeros(2)}, storage_reader=sw.ShardedStorageReader(tmp_path / "runs"))
    assert "shardwright.latest(...)" in told(capsys, "verify", str(tmp_path / "runs"))


def test_folders_that_hold_no_checkpoint_say_what_they_hold(tmp_path: Path, tiny: Path):
    def found(name: str) -> str:
        with pytest.raises(FileNotFoundError) as refused:
            sw.load({"t": torch.zeros(2)}, tmp_path / name)
        return str(refused.value)

    for name in ("empty", "unfinished", "published_by_half", "pickled", "trainers", "text"):
        (tmp_path / name).mkdir()
    assert "this directory is empty" in found("empty")
    (tmp_path / "unfinished" / ".shardwright.saving").mkdir()
    assert "an unfinished save (.shardwright.saving)" in found("unfinished")
    sw.save({"t": torch.ones(2)}, tmp_path / "published_by_half", format="safetensors")
    (tmp_path / "published_by_half" / ".shardwright.saving").mkdir(exist_ok=True)
    (tmp_path / "published_by_half" / "shardwright.manifest").unlink()
    assert "found the files of a save that has not been published" in found("published_by_half")
    (tmp_path / "pickled" / "pytorch_model.bin").touch()
    assert 'weights of other formats: "pytorch_model.bin"; convert them' in found("pickled")
    (tmp_path / "trainers" / "checkpoint-500").mkdir()
    (tmp_path / "trainers" / "checkpoint-500" / "model.safetensors").touch()
    assert 'in folders of it: "checkpoint-500"; give one of them' in found("trainers")
    (tmp_path / "text" / "README.md").touch()
    assert "found none; give the directory of a Hugging Face checkpoint" in found("text")


def test_commands_for_hugging_face_checkpoints_say_that_torchs_is_none(tmp_path: Path, capsys):
    dcp.save({"t": torch.ones(2)}, checkpoint_id=tmp_path)
    for command in ("plan", "load"):
        assert "this is a checkpoint of torch's FileSystemWriter" in told(capsys, command, str(tmp_path))


@pytest.mark.parametrize("given, asked", [("transformers", "automodel"), ("huggingface", "automodel"),
                                          ("automodel", "transformers"), ("automodel", "huggingface")])  # fmt: skip
def test_a_state_dict_of_another_layout(given: str, asked: str, tiny: Path, tmp_path: Path):
    state = sw.empty_state_dict(tiny, layout=given)
    match = rf"{len(state)} names are those of layout='{given}', \d+ those of layout='{asked}': pass layout='{given}'"
    with pytest.raises(sw.PlanError, match=match):
        sw.load(state, tiny, layout=asked)
    with pytest.raises(dcp.api.CheckpointException, match=match):
        reader = sw.HuggingFaceStorageReader(tiny)
        dcp.load(dict(state), storage_reader=reader, planner=sw.LoadPlanner(layout=asked))
    with pytest.raises(sw.PlanError, match=match):
        sw.export(state, tmp_path / "out", template=tiny, layout=asked)
    assert not any(value.any() for value in state.values()) and entries(tmp_path) == []


def test_prefixes_of_wrappers_on_a_load_from_hugging_face(tiny: Path, tmp_path: Path):
    expected = reference.native(tiny)
    for prefix, maker in (("module.", "DistributedDataParallel"), ("_orig_mod.", "torch.compile")):
        state = {prefix + name: torch.zeros_like(value) for name, value in expected.items()}
        match = f"{len(state)} names of the state dict have the prefix {prefix} of {maker}"
        with pytest.raises(sw.PlanError, match=match):
            sw.load(state, tiny)
        with pytest.raises(sw.PlanError, match=match):
            sw.export(state, tmp_path / "out", template=tiny)
        assert not any(value.any() for value in state.values()) and entries(tmp_path) == []
    nested = {"model": {name: torch.zeros_like(value) for name, value in expected.items()}}
    with pytest.raises(sw.PlanError, match='in the checkpoint without "model."'):
        sw.load(nested, tiny)


def test_a_wrong_shape_is_no_matter_of_names(tiny: Path):
    state = sw.empty_state_dict(tiny)
    state["model.norm.weight"] = torch.zeros(65)
    with pytest.raises(sw.PlanError, match=r"expected shape \[65\]") as refused:
        sw.load(state, tiny)
    assert "pass " not in str(refused.value) and len(str(refused.value).splitlines()) == 2
