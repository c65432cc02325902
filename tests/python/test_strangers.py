"""Saves and exports touch no file that is not theirs, and lose nothing that was saved."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import settings
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter as TorchWriter

STRANGERS = {
    "README.md": b"written by hand",
    ".git/HEAD": b"ref: refs/heads/main",
    "checkpoint-500/optimizer.pt": b"months of training",
    "checkpoint-500/rng_state.pth": b"luck",
    "extra.safetensors": b"embeddings of somebody",
    "rank-00000-00000.safetensors": b"named as ours once were",
}


def write(folder: Path, files: dict[str, bytes] = STRANGERS) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def read(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Content, inode and time of each file; a link's target in place of its content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if path.is_symlink():
            found[str(path)] = (os.readlink(path).encode(), status.st_ino, 0)
        elif path.is_file():
            found[str(path)] = (path.read_bytes(), status.st_ino, status.st_mtime_ns)
    return found


def assert_untouched(before: dict, folder: Path) -> None:
    after = read(folder)
    assert {path: after.get(path) for path in before} == before


def state(value: float) -> dict:
    return {"weight": torch.full((3, 5), value), "nested": {"bias": torch.full((7,), value)}, "step": 3}


def holds(path: Path, value: float) -> bool:
    found = state(-1.0)
    sw.load(found, path)
    return bool((found["weight"] == value).all() and (found["nested"]["bias"] == value).all())


WEIGHTS = {"a.weight": torch.ones(4, 6), "b.weight": torch.zeros(5)}


# --- where a save goes ------------------------------------------------------------------------------------------------


def test_a_final_save_without_a_step_leaves_the_steps_beside_it(tmp_path: Path):
    write(tmp_path)
    for step in (1, 2):
        sw.save(state(step), tmp_path, step=step)
    before = read(tmp_path)
    sw.save(state(9), tmp_path)
    assert_untouched(before, tmp_path)
    assert (
        holds(tmp_path, 9) and holds(tmp_path / "step-00000001", 1) and holds(tmp_path / "step-00000002", 2)
    )


def test_an_export_into_a_trainers_folder_leaves_what_is_there(tmp_path: Path):
    write(tmp_path)
    sw.save(state(1), tmp_path, step=1)
    before = read(tmp_path)
    for _ in range(3):
        sw.export(WEIGHTS, tmp_path)
    assert_untouched(before, tmp_path)
    assert len(list(tmp_path.glob("model*.safetensors"))) == 1


def test_a_save_into_a_folder_with_files_of_weights_leaves_them(tmp_path: Path):
    write(
        tmp_path,
        {"notes.safetensors": b"mine", "adapter_model.safetensors": b"mine", "notes.distcp": b"mine"},
    )
    before = read(tmp_path)
    sw.save(state(1), tmp_path)
    sw.save(state(2), tmp_path)
    assert_untouched(before, tmp_path)
    assert holds(tmp_path, 2)


@pytest.mark.parametrize("kind", ["released", "model.safetensors", "torch", "torchs shards", "exported"])
def test_another_kind_of_checkpoint_is_replaced_when_that_is_said(kind: str, tiny: Path, tmp_path: Path):
    to = tmp_path / "to"
    if kind == "released":
        shutil.copytree(tiny, to)
    elif kind == "model.safetensors":
        write(to, {kind: b"weights"})
    elif kind == "torch":
        dcp.save(dict(WEIGHTS), checkpoint_id=to, no_dist=True)
    elif kind == "exported":
        sw.export(WEIGHTS, to)
    else:
        dcp.save(dict(WEIGHTS), storage_writer=TorchWriter(str(to), save_distributed=True), no_dist=True)
    theirs = set(read(to))
    write(to)
    before = read(to)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        sw.save(state(1), to)
    if kind != "exported":
        with pytest.raises(FileExistsError, match="overwrite=True"):
            sw.export(WEIGHTS, to)
    assert read(to) == before
    sw.save(state(1), to, overwrite=True)
    assert_untouched({path: facts for path, facts in before.items() if path not in theirs}, to)
    assert holds(to, 1)
    assert {
        path for path in theirs if Path(path).suffix in (".safetensors", ".distcp") and Path(path).exists()
    } == set()


def test_an_export_onto_its_template_needs_overwrite(tiny: Path, tmp_path: Path):
    template = tmp_path / "template"
    shutil.copytree(tiny, template)
    write(template, {"README.md": b"by hand", "tokenizer.json": b"{}"})
    loaded = sw.empty_state_dict(template)
    sw.load(loaded, template)
    before = read(template)
    with pytest.raises(FileExistsError, match="made from"):
        sw.export(loaded, template, template=template)
    assert read(template) == before
    sw.export(loaded, template, template=template, overwrite=True)
    assert (template / "README.md").read_bytes() == b"by hand"
    again = sw.empty_state_dict(template)
    sw.load(again, template)
    assert all(torch.equal(again[name], loaded[name]) for name in loaded)


def test_an_export_over_one_with_the_same_template_keeps_what_lies_beside_the_weights(
    tiny: Path, tmp_path: Path
):
    template = tmp_path / "template"
    shutil.copytree(tiny, template)
    write(template, {"tokenizer.json": b"{}", "additional_chat_templates/tool.jinja": b"{{ x }}"})
    loaded = sw.empty_state_dict(template)
    sw.load(loaded, template)
    beside = {"config.json", "tokenizer.json", "additional_chat_templates/tool.jinja"}
    sw.export(loaded, tmp_path / "to", template=template)
    expected = {name: (tmp_path / "to" / name).read_bytes() for name in beside}
    for _ in range(3):
        sw.export(loaded, tmp_path / "to", template=template)
        found = {name: (tmp_path / "to" / name) for name in beside}
        assert {name: path.read_bytes() for name, path in found.items() if path.exists()} == expected


def test_a_strangers_file_of_a_needed_name_is_refused_by_name(tiny: Path, tmp_path: Path):
    loaded = sw.empty_state_dict(tiny)
    sw.load(loaded, tiny)
    write(tmp_path, {"config.json": b"of another program"})
    before = read(tmp_path)
    with pytest.raises(FileExistsError, match=r'"config\.json"'):
        sw.export(loaded, tmp_path, template=tiny)
    assert read(tmp_path) == before


def test_torchs_shards_over_older_ones_leave_none_of_these(tmp_path: Path):
    write(tmp_path)
    before = read(tmp_path)
    numbers = {"a.weight": 1, "b.weight": 2}
    dcp.save(
        dict(WEIGHTS),
        storage_writer=sw.HuggingFaceStorageWriter(tmp_path, numbers, save_distributed=True),
        no_dist=True,
    )
    changed = {name: tensor + 3 for name, tensor in WEIGHTS.items()}
    dcp.save(
        changed, storage_writer=sw.HuggingFaceStorageWriter(tmp_path, save_distributed=True), no_dist=True
    )
    found = {name: torch.empty_like(tensor) for name, tensor in WEIGHTS.items()}
    sw.load(found, tmp_path)
    assert all(torch.equal(found[name], changed[name]) for name in changed)
    assert len(list(tmp_path.glob("shard-*.safetensors"))) == 1
    assert_untouched(before, tmp_path)


def test_two_saves_whose_names_begin_alike_leave_each_other_alone(tmp_path: Path):
    class Meanwhile(sw.SavePlanner):
        def resolve_data(self, item):
            sw.save(state(1), tmp_path / "a")
            return super().resolve_data(item)

    sw.save(state(2), tmp_path / "a.saving-b", planner=Meanwhile())
    assert holds(tmp_path / "a", 1) and holds(tmp_path / "a.saving-b", 2)


# --- steps ------------------------------------------------------------------------------------------------------------


def test_what_was_just_saved_stays_and_is_the_latest_after_a_roll_back(tmp_path: Path):
    for step in (100, 200, 300, 400):
        sw.save(state(step), tmp_path, step=step)
    sw.save(state(150), tmp_path, step=150, keep_last=3)
    latest = sw.latest(tmp_path)
    assert latest is not None and latest.name == "step-00000150" and holds(latest, 150)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000150",
        "step-00000300",
        "step-00000400",
    ]
    sw.save(state(160), tmp_path, step=160, keep_last=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000150", "step-00000160"]


def test_a_step_that_is_a_link_loses_the_link_and_keeps_its_target(tmp_path: Path):
    archive = tmp_path / "archive"
    sw.save(state(1), archive)
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "step-00000001").symlink_to(archive)
    before = read(archive)
    for step in (2, 3):
        sw.save(state(step), runs, step=step, keep_last=1)
    assert [path.name for path in runs.iterdir()] == ["step-00000003"]
    assert read(archive) == before and holds(archive, 1)


def test_trainers_files_in_the_folder_of_a_step_outlive_it(tmp_path: Path):
    for step in (1, 2):
        write(tmp_path / f"step-{step:08d}", {"optimizer.pt": b"mine"})
        sw.save(state(step), tmp_path, step=step, keep_last=1)
    assert [path.name for path in (tmp_path / "step-00000001").iterdir()] == ["optimizer.pt"]
    assert holds(tmp_path / "step-00000002", 2)


def test_one_step_in_two_spellings_is_one_or_an_error(tmp_path: Path):
    sw.save(state(1), tmp_path / "step-7")
    sw.save(state(2), tmp_path, step=7)
    assert [path.name for path in tmp_path.iterdir()] == ["step-7"]
    assert holds(tmp_path / "step-7", 2)
    shutil.copytree(tmp_path / "step-7", tmp_path / "step-00000007")
    for call in (lambda: sw.latest(tmp_path), lambda: sw.save(state(3), tmp_path, step=7)):
        with pytest.raises(ValueError, match="step 7 is there twice"):
            call()


# --- all of it, at random ---------------------------------------------------------------------------------------------


class Trouble(Exception):
    pass


class Unlucky(sw.SavePlanner):
    """Fails in the middle of a save."""

    def resolve_data(self, item):
        if item.index.fqn == "nested.bias":
            raise Trouble("in the middle")
        return super().resolve_data(item)


def test_strangers_files_are_identical_after_many_random_saves_exports_and_failures(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    choose = random.Random(13)
    runs, outside = tmp_path / "runs", tmp_path / "outside"
    write(tmp_path)
    write(runs)
    write(outside)
    sw.save(state(0), outside / "archive")
    for step in (2, 5, 8):
        write(runs / f"step-{step:08d}", {"optimizer.pt": b"of a trainer", "sub/rng.pt": b"as well"})
    (runs / "link").symlink_to(outside)
    (runs / "step-00000004").symlink_to(outside / "archive")
    (runs / "step-00000006").symlink_to(outside / "nowhere")
    (tmp_path / "elsewhere").symlink_to(runs / "exports")  # elsewhere/.. is runs
    write(runs / "exports", {"README.md": b"of the exports", "tokenizer.json": b"of another model"})
    for step in (1, 2, 3):
        sw.save(state(step), tmp_path / "other" / "runs", step=step)  # of another training
    links = {str(runs / "step-00000004"), str(runs / "step-00000006")}  # which keep_last may remove
    before = {path: facts for path, facts in read(tmp_path).items() if path not in links}

    released = sw.empty_state_dict(tiny)
    sw.load(released, tiny)
    last: dict[Path, float] = {}
    kept = [4]  # steps, those that were saved last at the end; the link's checkpoint is of no step

    def save(value: float) -> None:
        step, keep_last = choose.choice([1, 2, 3, 5, 7, 8, 9]), choose.choice([None, 1, 2, 3])
        monkeypatch.chdir(choose.choice([tmp_path, tmp_path / "other", outside]))
        root = choose.choice([runs, tmp_path / "elsewhere" / "..", os.path.relpath(runs)])
        sw.save(state(value), root, step=step, keep_last=keep_last)
        last[runs] = value
        kept[:] = [other for other in kept if other != step] + [step]
        kept[:] = kept[-keep_last:] if keep_last else kept
        there = [path.name for path in runs.glob("step-*") if (path / "shardwright.manifest").exists()]
        assert sorted(there) == sorted(f"step-{other:08d}" for other in kept)

    def save_without_a_step(value: float) -> None:
        to = choose.choice([runs, runs / "final", tmp_path])
        sw.save(state(value), to, overwrite=choose.choice([None, True]))

    def export(value: float) -> None:
        to = choose.choice([runs / "exports", runs / "released", runs])
        options = choose.choice([{}, {"max_shard_size": 64}, {"overwrite": True}])
        sw.export({"a.weight": torch.full((8, 8), value), "b.weight": torch.ones(3)}, to, **options)

    def export_with_template(value: float) -> None:
        to = choose.choice([runs / "exports", runs / "released", outside])
        sw.export(released, to, template=tiny, overwrite=choose.choice([None, True]))

    def fail(value: float) -> None:
        sw.save(
            state(value), choose.choice([runs, runs / "step-00000005", runs / "exports"]), planner=Unlucky()
        )

    def fail_to_pickle(value: float) -> None:
        sw.save(state(value) | {"odd": lambda: 1}, choose.choice([runs, runs / "final"]))

    def generate(value: float) -> None:
        sw.generate(choose.choice([runs, runs / "exports"]), "tiny")

    ways = [save] * 5 + [save_without_a_step, export, export_with_template, fail, fail_to_pickle, generate]
    outcomes: dict[str, int] = {}
    for number in range(rounds := 10 * settings().max_examples):
        way = choose.choice(ways)
        try:
            way(float(number))
            outcome = "done"
        except (OSError, ValueError, sw.PlanError, dcp.api.CheckpointException) as refused:
            outcome = type(refused).__name__
        outcomes[f"{way.__name__}: {outcome}"] = outcomes.get(f"{way.__name__}: {outcome}", 0) + 1
        if number % 20 == 0:
            assert_untouched(before, tmp_path)
            latest = sw.latest(runs)
            assert latest is None or holds(latest, last[runs])
    assert_untouched(before, tmp_path)
    assert not list(tmp_path.rglob(".shardwright.saving"))
    print(outcomes)
    assert outcomes["save: done"] > rounds * 3 // 10
    assert outcomes["export: done"] > rounds // 100 and outcomes["fail: ValueError"] > rounds // 100
