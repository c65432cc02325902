"""What the fault matrix runs, one call of the library each: what is there before, and what must be there after."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lora_reference
import reference
import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checkpoints import INDEX, Sizes, write_m3
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

SIZES = Sizes(hidden=24, inter=8, dense_inter=8, experts=2, layers=2, vocab=8, mtp=0, vision_layers=0)

STRANGERS = {
    "README.md": b"written by hand",
    "optimizer.pt": b"of a trainer",
    "sub/rng.pt": b"as well",
    "embeddings.gguf": b"of somebody",
}

#: Files of one name in a checkpoint and in the one that replaces it.
OF_BOTH = ("shardwright.checksums", "config.json", "tokenizer.json", ".metadata")


# --- what is on disk -------------------------------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; a folder counts as one without content. What goes meanwhile, as where a save
    in the background tidies, counts as gone."""
    found = {}
    for parent, folders, files in os.walk(folder):
        found |= {str((Path(parent) / name).relative_to(folder)): b"/" for name in folders}
        for path in (Path(parent) / name for name in files):
            with contextlib.suppress(FileNotFoundError):
                found[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else b"/"
    return found


def put_strangers(folder: Path) -> None:
    for name, content in STRANGERS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def shapes_of_names(folder: Path) -> list[str]:
    """The names below a folder, without what differs from save to save."""
    names = [re.sub(r"-[0-9a-f]{12}\.", "-TAG.", name) for name in tree(folder)]
    return sorted(re.sub(r"model-\d+-(\d+-of-\d+)", r"model-\1", name) for name in names)


# --- what a trainer has ----------------------------------------------------------------------------------------------


def sharded(tensor: torch.Tensor) -> Any:
    """The rank's part of a tensor, as training has it; the tensor itself for one process."""
    if not dist.is_initialized():
        return tensor
    ranks, rank = dist.get_world_size(), dist.get_rank()
    mesh = init_device_mesh("cpu", (ranks,))
    part = tensor.chunk(ranks)[rank].clone()
    return DTensor.from_local(
        part, mesh, [Shard(0)], run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def local(value: Any) -> torch.Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def state(value: float) -> dict[str, Any]:
    """Tensors of several kinds, and an object."""
    return {
        "model": {
            "weight": sharded(torch.arange(600.0).view(20, 30) + value),
            "bias": sharded(torch.full((30,), value, dtype=torch.bfloat16)),
        },
        "strided": sharded(torch.arange(80.0).view(4, 20).t().contiguous() * value),
        "complex": torch.full((3, 4), complex(value, 1)),
        "scheduler": {"name": "cosine", "value": value},
    }


def holds(path: Path, value: float) -> bool:
    found = state(-5.0)
    sw.load(found, path, verify=True)
    wanted = state(value)
    return (
        all(
            torch.equal(local(found["model"][name]), local(wanted["model"][name]))
            for name in ("weight", "bias")
        )
        and all(torch.equal(local(found[name]), local(wanted[name])) for name in ("strided", "complex"))
        and found["scheduler"] == wanted["scheduler"]
    )


def weights(value: float) -> dict[str, Any]:
    return {
        "layers.0.weight": sharded(torch.arange(240.0).view(8, 30) + value),
        "layers.1.weight": sharded(torch.full((40,), value)),
        "norm": sharded(torch.full((6,), value, dtype=torch.bfloat16)),
    }


def holds_weights(path: Path, value: float) -> bool:
    found = {name: torch.zeros_like(local(tensor)) for name, tensor in weights(0).items()}
    # As the index has it: a failure that goes on may leave files that the next export removes.
    files = set(json.loads((path / INDEX).read_text())["weight_map"].values())
    whole = {
        name: stored for file in files for name, stored in reference.read_safetensors(path / file).items()
    }
    for name, tensor in weights(value).items():
        full = torch.arange(240.0).view(8, 30) + value if name == "layers.0.weight" else None
        stored = reference.tensor_of(whole[name].raw(), tensor.dtype).view(tensor.shape)
        if full is not None and not torch.equal(stored, full):
            return False
        if full is None and not bool((stored == value).all()):
            return False
    return len(whole) == len(found)


# --- flows -----------------------------------------------------------------------------------------------------------


@dataclass
class Flow:
    """One call. ``prepare`` puts into ``root`` what is there before; ``act`` is the call. All ranks run all of it, and
    rank 0 looks at the disk."""

    root: Path
    name: str = ""
    before: dict[str, bytes] = field(default_factory=dict)
    usual: list[str] = field(default_factory=list)  #: names that are there after the call and its repetition

    def prepare(self) -> None:
        raise NotImplementedError

    def act(self) -> Any:
        raise NotImplementedError

    def look_after_failure(self, goes_on: bool) -> None:
        """``goes_on``: the fault was not over when the call gave up, and hindered it in cleaning up."""
        raise NotImplementedError

    def look_after_success(self) -> None:
        raise NotImplementedError

    def repeat(self) -> None:
        """The call again, without a fault, and what must be there then."""
        raise NotImplementedError


class Loading(Flow):
    """Loads into tensors that hold something else."""

    def __init__(
        self,
        root: Path,
        name: str,
        make: Callable[[Path], dict[str, torch.Tensor]],
        load: Callable[[dict[str, Any], Path], Any],
    ) -> None:
        super().__init__(root, name)
        self.load = load
        root.mkdir(parents=True, exist_ok=True)  # another rank may be as far
        self.expected = make(root / "checkpoint")
        self.destination: dict[str, torch.Tensor] = {}
        self.partly_written: list[str] = []

    def prepare(self) -> None:
        self.before = self.before or tree(self.root)
        self.destination = {
            name: torch.full_like(tensor.view(torch.uint8), 0xA5).view(tensor.dtype)
            for name, tensor in self.expected.items()
        }

    def act(self) -> Any:
        self.partly_written = []
        try:
            return self.load(self.destination, self.root / "checkpoint")
        except (OSError, ValueError, RuntimeError) as error:
            self.partly_written = list(getattr(error, "partly_written", []))
            raise

    def look_after_failure(self, goes_on: bool) -> None:
        written = set(self.partly_written)
        assert written <= set(self.expected), f"partly_written has {written}"
        for name, tensor in self.destination.items():
            if name in written:
                continue
            untouched = bool((tensor.view(torch.uint8) == 0xA5).all())
            right = reference.same(tensor, self.expected[name])
            assert untouched or right, f"{name} has changed, and partly_written does not name it"
        assert tree(self.root) == self.before

    def look_after_success(self) -> None:
        assert reference.differing(self.destination, self.expected) == []
        assert tree(self.root) == self.before

    def repeat(self) -> None:
        self.prepare()
        self.act()
        self.look_after_success()


class Writing(Flow):
    """Writes a checkpoint to ``root/runs/here``, over one of before or where there is none."""

    def __init__(
        self,
        root: Path,
        name: str,
        write: Callable[[float, Path], Any],
        has: Callable[[Path, float], bool],
        over: bool,
        verified: bool = True,
    ) -> None:
        super().__init__(root, name)
        self.write, self.has, self.over, self.verified = write, has, over, verified
        self.place = root / "runs" / "here"
        self.pristine = root.with_name(root.name + " pristine")

    def made(self) -> None:
        put_strangers(self.root)
        if self.over:
            put_strangers(self.place)
            self.write(1.0, self.place)

    def prepare(self) -> None:
        if rank() == 0:
            shutil.rmtree(self.root, ignore_errors=True)
            self.root.mkdir(parents=True)
        meet()
        if not self.pristine.exists():
            self.made()
            meet()
            if rank() == 0:
                shutil.copytree(self.root, self.pristine)
                self.before = tree(self.pristine)
            meet()
        elif rank() == 0:
            shutil.copytree(self.pristine, self.root, dirs_exist_ok=True)
            self.before = self.before or tree(self.pristine)
        meet()

    def act(self) -> Any:
        return self.write(2.0, self.place)

    def old_is_whole(self, in_the_middle: bool) -> None:
        """Whatever else is there by now: nothing that was there is gone or other. In the middle, what has the same name
        in both may be of the new one, until the next save puts it back."""
        after = tree(self.root)
        lost = [name for name in self.before if after.get(name) != self.before[name]]
        if in_the_middle:
            lost = [name for name in lost if name not in after or Path(name).name not in OF_BOTH]
        assert not lost, f"lost or changed: {lost}"
        if self.over:
            assert self.has(self.place, 1.0), "the old checkpoint cannot be loaded"
            assert self.problems_of(self.place) == []

    def problems_of(self, path: Path) -> list[str]:
        problems: list[str] = sw.verify(path).problems if self.verified else []
        # A save that is in the middle has given its files their names, torch's metadata last but the manifest.
        if (path / ".shardwright.saving").exists():
            problems = [problem for problem in problems if ".metadata" not in problem]
        return [problem for problem in problems if "that the manifest does not list" not in problem]

    def look_after_failure(self, goes_on: bool) -> None:
        self.old_is_whole(goes_on)

    def new_is_there(self) -> bool:
        try:
            return self.has(self.place, 2.0)
        except (OSError, ValueError):
            return False

    def look_after_kill(self) -> bool:
        """Whether the new checkpoint is there; else all of before is."""
        self.strangers_are_there()
        if self.new_is_there():
            return True
        self.old_is_whole(in_the_middle=True)
        return False

    def left_over(self) -> list[str]:
        """What a failure has left for the next save to clean up."""
        return [name for name in tree(self.root) if name not in self.before]

    def look_after_success(self) -> None:
        assert self.has(self.place, 2.0), "the new checkpoint is not there, and no error was raised"
        assert self.problems_of(self.place) == []
        self.strangers_are_there()

    def strangers_are_there(self) -> None:
        for folder in (self.root, *([self.place] if self.over else [])):
            for name, content in STRANGERS.items():
                assert (folder / name).read_bytes() == content, f"{folder / name} has changed"

    def repeat(self) -> None:
        self.write(3.0, self.place)
        meet()
        if rank() == 0:
            self.strangers_are_there()
            assert self.has(self.place, 3.0), "the next save has not worked"
            names = shapes_of_names(self.root)
            if not self.usual:
                self.usual = names
            assert names == self.usual, f"names after the next save: {set(names) ^ set(self.usual)}"


class SavingForTorch(Writing):
    """Saves in both formats in turns. Torch's readers, too, find a whole checkpoint at any time, or none."""

    def old_is_whole(self, in_the_middle: bool) -> None:
        super().old_is_whole(in_the_middle)
        self.torch_finds_a_whole_one()

    def look_after_kill(self) -> bool:
        self.torch_finds_a_whole_one()
        return super().look_after_kill()

    def look_after_success(self) -> None:
        super().look_after_success()
        self.torch_finds_a_whole_one()

    def torch_finds_a_whole_one(self) -> None:
        if not (self.place / ".metadata").exists():
            return
        found = state(-5.0)
        try:
            dcp.load(found, storage_reader=dcp.FileSystemReader(self.place), no_dist=True)
        except CheckpointException as failure:  # which is no Exception
            raise AssertionError(f"torch finds what is not whole: {failure}") from failure
        wanted = state(found["scheduler"]["value"])
        for name in ("weight", "bias"):
            assert torch.equal(found["model"][name], wanted["model"][name]), "torch finds another one"
        for name in ("strided", "complex"):
            assert torch.equal(found[name], wanted[name]), "torch finds another one"


class SavingSteps(Writing):
    """Saves a third step, of which the last two stay."""

    def made(self) -> None:
        put_strangers(self.root)
        for step in (1, 2):
            put_strangers(self.root / "runs" / f"step-{step:08d}")
            sw.save(state(float(step)), self.root / "runs", step=step)
        self.place = self.root / "runs" / "step-00000003"

    def prepare(self) -> None:
        super().prepare()
        self.place = self.root / "runs" / "step-00000003"
        self.step = 2

    def old_is_whole(self, in_the_middle: bool) -> None:
        after = tree(self.root)
        lost = [name for name in self.before if after.get(name) != self.before[name]]
        assert not lost, f"lost or changed: {lost}"
        assert sw.latest(self.root / "runs") == self.root / "runs" / "step-00000002"

    def strangers_are_there(self) -> None:
        for folder in (self.root, self.root / "runs/step-00000001", self.root / "runs/step-00000002"):
            for name, content in STRANGERS.items():
                assert (folder / name).read_bytes() == content, f"{folder / name} has changed"

    def look_after_success(self) -> None:
        super().look_after_success()
        assert sw.latest(self.root / "runs") == self.place
        assert holds(self.root / "runs" / "step-00000002", 2.0), "step 2 was to stay"


def save_step(value: float, place: Path) -> None:
    sw.save(state(value), place.parent, step=3, keep_last=2, threads=2)


class Verifying(Flow):
    def __init__(self, root: Path, name: str, make: Callable[[Path], Any]) -> None:
        super().__init__(root, name)
        root.mkdir(parents=True)
        make(root / "checkpoint")
        self.before = tree(root)
        self.report: Any = None

    def prepare(self) -> None:
        pass

    def act(self) -> Any:
        self.report = sw.verify(self.root / "checkpoint", threads=2)
        if self.report.problems:  # a file that cannot be read is one
            raise Found("\n".join(self.report.problems))

    def look_after_failure(self, goes_on: bool) -> None:
        assert tree(self.root) == self.before

    def look_after_success(self) -> None:
        assert tree(self.root) == self.before
        assert self.report.files > 0 and self.report.problems == []

    def repeat(self) -> None:
        self.act()
        self.look_after_success()


class Found(Exception):
    """What verify has found."""


class Finding(Verifying):
    """Asks for the latest checkpoint."""

    def act(self) -> Any:
        self.report = sw.latest(self.root / "checkpoint")

    def look_after_success(self) -> None:
        assert self.report == self.root / "checkpoint" / "step-00000002", f"found {self.report}"


class WritingAFile(Flow):
    """Writes a file that a user names."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, "a named file")

    def prepare(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        (self.root / "name").write_bytes(b"old")
        (self.root / "name.partial").write_bytes(b"a stranger's")

    def write(self, content: bytes) -> None:
        sw._core.write_named_file(self.root / "name", content)

    def act(self) -> None:
        self.write(b"new")

    def look(self, content: bytes) -> None:
        after = tree(self.root)
        assert after["name"] == content and after["name.partial"] == b"a stranger's", after

    def look_after_failure(self, goes_on: bool) -> None:
        self.look(b"old")

    def look_after_kill(self) -> bool:
        new = (self.root / "name").read_bytes() == b"new"
        self.look(b"new" if new else b"old")
        return new

    def look_after_success(self) -> None:
        self.look(b"new")

    def repeat(self) -> None:
        self.write(b"newer")
        self.look(b"newer")


# --- ranks -----------------------------------------------------------------------------------------------------------


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def meet() -> None:
    if dist.is_initialized():
        dist.barrier()


# --- all of them -----------------------------------------------------------------------------------------------------


def released(path: Path) -> dict[str, torch.Tensor]:
    """A Hugging Face checkpoint, and what is to be loaded from it."""
    if rank() == 0 and not path.exists():
        write_m3(path, SIZES)
    meet()
    return reference.native(path)


def saved(path: Path) -> dict[str, torch.Tensor]:
    tensors = {
        "weight": torch.arange(3000.0).view(50, 60),
        "bias": torch.full((30,), 2.0, dtype=torch.bfloat16),
        "complex": torch.full((3, 4), 1 + 2j),
    }
    if rank() == 0 and not path.exists():
        sw.save(dict(tensors), path) if not dist.is_initialized() else None
    return tensors


def adapter(path: Path) -> dict[str, torch.Tensor]:
    tensors = lora_reference.trainers()
    sw.save_lora(tensors, path, alpha=4.0)
    return tensors


def save_lora(value: float, path: Path) -> None:
    tensors = {name: torch.full_like(tensor, value) for name, tensor in lora_reference.trainers().items()}
    sw.save_lora(tensors, path, alpha=4.0)


def holds_lora(path: Path, value: float) -> bool:
    stored = lora_reference.read_adapter(path)
    values = torch.cat([tensor.flatten() for tensor in stored.values()]).unique().tolist()
    return values in ([value], [0.0, value])  # B of a module made of two is block-diagonal


def steps(path: Path) -> None:
    for step in (1, 2):
        sw.save(state(float(step)), path, step=step)


def of_one_process(folder: Path) -> list[Flow]:
    template = folder / "template"
    released(template)
    (template / "tokenizer.json").write_bytes(b"{}")
    trained = folder / "trained"
    sw.save({"model": weights(2.0)}, trained)
    native = {
        value: {name: torch.full_like(tensor, value) for name, tensor in reference.native(template).items()}
        for value in (1.0, 2.0, 3.0)
    }

    def export_like(value: float, path: Path) -> None:
        sw.export(native[value], path, template=template, threads=2)

    def has_like(path: Path, value: float) -> bool:
        found = sw.empty_state_dict(path)
        sw.load(found, path)
        files = {"tokenizer.json", "config.json"} <= {entry.name for entry in path.iterdir()}
        return files and reference.differing(found, native[value]) == []

    def export_saved(value: float, path: Path) -> None:
        sw.export(trained, path, threads=2)

    def load(**options: Any) -> Callable[[dict[str, Any], Path], Any]:
        return lambda into, path: sw.load(into, path, threads=2, **options)

    def save_in_the_background(value: float, path: Path) -> None:
        pending = sw.save(state(value), path, asynchronous=True, threads=2)
        assert isinstance(pending, sw.PendingSave)
        pending.wait()

    def save(value: float, path: Path) -> None:
        sw.save(state(value), path, threads=2)

    def save_as(formats: list[str]) -> Callable[[float, Path], None]:
        """Of the first, second and third value."""

        def save(value: float, path: Path) -> None:
            sw.save(state(value), path, threads=2, format=formats[int(value) - 1])

        return save

    def export(value: float, path: Path) -> None:
        sw.export(weights(value), path, threads=2, max_shard_size=1000)

    def at(name: str) -> Path:
        return folder / name.replace(" ", "_")

    return [
        Loading(at("load"), "load", released, load(reads="pread", direct_io=False)),
        Loading(
            at("load past"), "load past the page cache", released, load(reads="io_uring", direct_io=True)
        ),
        Loading(at("load ring"), "load by io_uring", released, load(reads="io_uring", direct_io=False)),
        Loading(at("load sharded"), "load sharded", saved, load()),
        Loading(at("load verified"), "load sharded, verified", saved, load(verify=True)),
        Loading(
            at("load lora"), "load_lora", adapter, lambda into, path: sw.load_lora(into, path, threads=2)
        ),
        Verifying(at("verify"), "verify", saved),
        Verifying(at("verify exported"), "verify exported", lambda path: sw.export(weights(1.0), path)),
        Finding(at("latest"), "latest", steps),
        WritingAFile(at("named")),
        Writing(at("save"), "save", save, holds, over=False),
        Writing(at("save over"), "save over another", save, holds, over=True),
        Writing(at("save async"), "save in the background", save_in_the_background, holds, over=True),
        *(
            SavingForTorch(at(name), name, save_as(formats), holds, over)
            for name, formats, over in (
                ("save for torch", ["torch", "torch", "torch"], False),
                ("save for torch over another", ["torch", "torch", "safetensors"], True),
                ("save for torch over safetensors", ["safetensors", "torch", "torch"], True),
                ("save over one for torch", ["torch", "safetensors", "torch"], True),
            )
        ),
        SavingSteps(at("save step"), "save a step, keep two", save_step, holds, over=True),
        Writing(at("export"), "export", export, holds_weights, over=False),
        Writing(at("export over"), "export over another", export, holds_weights, over=True),
        Writing(at("export like"), "export with a template", export_like, has_like, over=True),
        Writing(
            at("export saved"),
            "export a saved training",
            export_saved,
            lambda path, _: holds_weights(path, 2.0),
            over=True,
        ),
        Writing(at("save lora"), "save_lora", save_lora, holds_lora, over=False, verified=False),
        Writing(
            at("save lora over"), "save_lora over another", save_lora, holds_lora, over=True, verified=False
        ),
    ]


def of_ranks(folder: Path) -> list[Flow]:
    def save(value: float, path: Path) -> None:
        sw.save(state(value), path, threads=1)

    def export(value: float, path: Path) -> None:
        sw.export(weights(value), path, threads=1, max_shard_size=1000)

    def has(path: Path, value: float) -> bool:
        """Of rank 0 alone: the tensors whole."""
        found: dict[str, Any] = {
            "model": {"weight": torch.zeros(20, 30), "bias": torch.zeros(30, dtype=torch.bfloat16)},
            "strided": torch.zeros(20, 4),
        }
        sw.load(found, path, verify=True)
        return (
            torch.equal(found["model"]["weight"], torch.arange(600.0).view(20, 30) + value)
            and bool((found["model"]["bias"] == value).all())
            and torch.equal(found["strided"], torch.arange(80.0).view(4, 20).t() * value)
        )

    def together(into: dict[str, Any], path: Path) -> None:
        sw.load(into, path, cooperative="node", threads=1)

    def lora(value: float, path: Path) -> None:
        tensors = {
            name: sharded(torch.full_like(tensor, value))
            for name, tensor in lora_reference.trainers(lora_reference.Sizes(experts=4)).items()
        }
        sw.save_lora(tensors, path, alpha=4.0)

    return [
        Loading(folder / "together", "load together", released, together),
        Writing(folder / "save", "save", save, has, over=False),
        Writing(folder / "save_over", "save over another", save, has, over=True),
        Writing(folder / "export_over", "export over another", export, holds_weights, over=True),
        Writing(folder / "lora", "save_lora over another", lora, holds_lora, over=True, verified=False),
    ]


def quietly() -> None:
    """Warnings of cleaning up are part of what is injected."""
    warnings.simplefilter("ignore")
    os.environ["TORCH_CPP_LOG_LEVEL"] = "FATAL"
