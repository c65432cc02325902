"""What is done with a damaged checkpoint, and what must be true afterwards.

A load that succeeds is classified:

* the destination has the bits of the undamaged checkpoint: what was damaged is not read, or says the same;
* a checkpoint of ours, whose bytes have checksums: anything else is a failure;
* a Hugging Face checkpoint or an adapter, which have none: a changed byte makes another checkpoint, so the safetensors
  library and the plain definitions (reference.py, lora_reference.py) must find the same values in it;
* one of torch's: `verify` must name the damage, or torch's own reader, with which nothing of ours is shared, must find
  the same.

A load that fails must raise a documented error. Every destination then is as it was; or, where the error has
`partly_written`, is named there, or has the bits of the undamaged checkpoint.
"""

import contextlib
import inspect
import io
import json
import random
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mutations
import reference
import safetensors
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from checkpoints import INDEX, Sizes, write_m3
from lora_reference import Sizes as LoraSizes
from lora_reference import file_tensors, trainers, write_adapter
from mutations import ANYWHERE, HARM, Mutation
from shardwright.cli.command_line import main
from torch.distributed.checkpoint.api import CheckpointException

#: The errors that the documentation promises.
DOCUMENTED = (sw.PlanError, sw.CheckpointFormatError, OSError, ValueError)

TORCH_DTYPES = reference.TORCH_DTYPES | {
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}

PATTERN = 0x5A
GUARD = 64

#: Checksums are checked by default, where that is so; else asked for.
VERIFY = {"verify": True} if inspect.signature(sw.load).parameters["verify"].default is False else {}


class Broken(Exception):
    """A promise that was not kept."""


class Arena:
    """Destinations in one piece of memory, each with room around it that nothing may touch."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.places: dict[str, tuple[int, int]] = {}
        at = GUARD
        for name, tensor in tensors.items():
            self.places[name] = at, at + tensor.nbytes
            at += (tensor.nbytes + 2 * GUARD - 1) // GUARD * GUARD
        self.buffer = torch.empty(at, dtype=torch.uint8)
        self.is_guard = torch.ones(at, dtype=torch.bool)
        self.tensors = {}
        for name, (begin, end) in self.places.items():
            self.is_guard[begin:end] = False
            like = tensors[name]
            self.tensors[name] = self.buffer[begin:end].view(like.dtype).view(like.shape)
        self.clear()

    def clear(self) -> None:
        self.buffer.fill_(PATTERN)

    def expect_guards(self) -> None:
        if not (self.buffer[self.is_guard] == PATTERN).all():
            raise Broken("written past a destination")

    def expect_whole_or_untouched(self, but: list[str], expected: dict[str, torch.Tensor]) -> None:
        """partly_written names what is neither."""
        for name, (begin, end) in self.places.items():
            if name in but or (self.buffer[begin:end] == PATTERN).all():
                continue
            # without a word of what is partly written, nothing is written at all
            if not but or not same_bits(self.tensors[name], expected[name]):
                raise Broken(f"{name} is written, which the error does not say; partly_written: {but[:5]}")

    def differing(self, expected: dict[str, torch.Tensor]) -> list[str]:
        return [name for name, tensor in self.tensors.items() if not same_bits(tensor, expected[name])]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    flat = [t.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8) for t in (a, b)]
    return torch.equal(*flat)


def blank(objects: dict[str, Any]) -> dict[str, Any]:
    """Of the same keys, with other values."""
    return {name: blank(value) if isinstance(value, dict) else None for name, value in objects.items()}


@dataclass
class Kind:
    """A kind of checkpoint: how to make one, and what is done with it."""

    name: str
    directory: Path  #: the undamaged one
    mutations: list[tuple[Mutation, int]]
    expected: dict[str, torch.Tensor]
    objects: dict[str, Any]
    load: Callable[[dict, Path], object]
    others: list[Callable[[Path], object]]  #: what is done beside loading
    differs: Callable[
        [Path, Arena, dict], str
    ]  #: how a load that gave other values is classified; raises Broken
    nested: bool = False
    counts: Counter = field(default_factory=Counter)

    def state(self, arena: Arena) -> dict:
        if not self.nested:
            return dict(arena.tensors)
        return {"model": dict(arena.tensors), **blank(self.objects)}


# --- what is done -------------------------------------------------------------------------------------------


def command(*arguments: str) -> Callable[[Path], object]:
    def run(path: Path) -> int:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return main([arguments[0], str(path), *arguments[1:]])

    run.__name__ = arguments[0]
    return run


def export(path: Path) -> None:
    destination = path.parent / "exported"
    shutil.rmtree(destination, ignore_errors=True)
    try:
        sw.export(path, destination)
    except BaseException:
        if destination.exists():
            raise Broken("a failed export has published something") from None
        raise


def verify(path: Path) -> None:
    sw.verify(path)


def through_dcp(
    reader: Callable[..., Any], planner: Callable[[], Any] | None
) -> Callable[[dict, Path], object]:
    """`dcp.load`, which wraps what went wrong on each rank."""

    def load(state: dict, path: Path) -> None:
        try:
            dcp.load(state, storage_reader=reader(path), planner=planner and planner(), no_dist=True)
        except CheckpointException as wrapped:
            (cause, _), *_ = wrapped.failures.values()
            if type(cause) is RuntimeError and str(cause).startswith("Missing key in checkpoint state_dict"):
                cause = sw.PlanError(str(cause))  # torch's own planner says so, in its own way
            raise cause from wrapped

    return load


def in_turns(*loads: Callable[[dict, Path], object]) -> Callable[[dict, Path], object]:
    turn = 0

    def load(state: dict, path: Path) -> object:
        nonlocal turn
        turn += 1
        return loads[turn % len(loads)](state, path)

    return load


# --- loads that gave other values ---------------------------------------------------------------------------


def read_files(directory: Path, into: Path) -> Path:
    """The files that a reader of Hugging Face checkpoints reads, and no others: links to them."""
    index = directory / INDEX
    names = [path.name for path in directory.glob("*.safetensors") if not path.name.startswith(".")]
    if index.exists():
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(50_000)  # what else is in the index may be nested
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        finally:
            sys.setrecursionlimit(limit)
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    for number, name in enumerate(names):
        (into / f"{number:05}.safetensors").symlink_to(directory / name)
    return into


def as_safetensors_reads(directory: Path) -> None:
    """The safetensors library takes each file, and finds the tensors where the plain reader of the reference does."""
    for file in sorted(directory.glob("*.safetensors")):
        try:
            with safetensors.safe_open(file, "np") as opened:
                found = set(opened.keys())
        except Exception as error:
            raise Broken(f"loaded a file that safetensors refuses: {file.resolve().name}: {error}") from error
        if found != set(reference.read_safetensors(file)):
            raise Broken(f"safetensors finds other tensors in {file.resolve().name}")


def same_as_reference(
    definition: Callable[[Path], dict[str, torch.Tensor]],
) -> Callable[[Path, Arena, dict], str]:
    def differs(path: Path, arena: Arena, objects: dict) -> str:
        read = read_files(path, path.parent / "read")
        as_safetensors_reads(read)
        expected = definition(read)
        wrong = [
            name
            for name, tensor in arena.tensors.items()
            if name not in expected or not reference.same(tensor, expected[name])
        ]
        if wrong:
            raise Broken(f"other values than the reference: {wrong[:5]}")
        return "another checkpoint, as the reference reads it"

    return differs


def never(path: Path, arena: Arena, objects: dict) -> str:
    raise Broken("other values in a checkpoint with checksums")


# --- kinds --------------------------------------------------------------------------------------------------

SMALL = Sizes(
    hidden=16,
    inter=8,
    dense_inter=12,
    experts=2,
    layers=2,
    heads=1,
    head_dim=8,
    vocab=6,
    mtp=0,
    vision_hidden=4,
)


def hugging_face(folder: Path) -> Kind:
    path = write_m3(folder / "hf", SMALL)
    expected = reference.native(path)
    load = in_turns(
        sw.load,
        sw.load,
        through_dcp(sw.HuggingFaceStorageReader, sw.LoadPlanner),
    )

    def definition(directory: Path) -> dict[str, torch.Tensor]:
        """In the dtypes of the destinations, to which a changed dtype is converted."""
        return reference.native(directory, lambda name: expected[name].dtype if name in expected else None)

    return Kind(
        "Hugging Face",
        path,
        [*ANYWHERE, (mutations.in_header, 12), (mutations.in_json, 5)],
        expected,
        {},
        load,
        [verify, command("inspect"), command("plan"), command("verify"), export],
        same_as_reference(definition),
    )


def converted(stored: reference.Stored, dtype: torch.dtype) -> torch.Tensor:
    """As torch's copy_ converts a dtype to any other."""
    own = TORCH_DTYPES.get(stored.dtype)
    assert own is not None, stored.dtype
    raw = torch.from_numpy(stored.raw().copy()).reshape(-1).view(torch.uint8)
    return raw.view(own).view(stored.shape).to(dtype)


def with_saved_shards(folder: Path) -> Kind:
    """torch's HuggingFaceStorageWriter(save_distributed=True): the trainer's names, offsets in the header."""
    generator = torch.Generator().manual_seed(3)
    expected = {
        "model.a": torch.randn(6, 5, generator=generator),
        "model.b": torch.randn(7, generator=generator).bfloat16(),
        "step": torch.tensor(3),
    }
    path = folder / "shards"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(
            dict(expected),
            storage_writer=dcp.HuggingFaceStorageWriter(str(path), save_distributed=True),
            no_dist=True,
        )

    def definition(directory: Path) -> dict[str, torch.Tensor]:
        found = reference.read_checkpoint(directory)
        return {
            name: converted(stored, expected[name].dtype)
            for name, stored in found.items()
            if name in expected
        }

    return Kind(
        "torch's shards",
        path,
        [*ANYWHERE, (mutations.in_header, 16)],
        expected,
        {},
        in_turns(sw.load, through_dcp(sw.ShardedStorageReader, None)),
        [verify, command("inspect")],
        same_as_reference(definition),
    )


def training() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    generator = torch.Generator().manual_seed(5)
    tensors = {
        "embed.weight": torch.randn(6, 8, generator=generator),
        "norm.weight": torch.randn(8, generator=generator).bfloat16(),
        "norm2.weight": torch.randn(8, generator=generator).bfloat16(),
        "phase": torch.randn(3, 2, generator=generator, dtype=torch.complex128),
        "count": torch.tensor(11),
        "mask": torch.tensor([True, False, True]),
        "none": torch.empty(0, 4),
    }
    return tensors, {"scheduler": {"lr": 0.5, "steps": [1, 2]}, "position": 7}


def ours(folder: Path) -> Kind:
    return sharded("ours", folder, "safetensors", [(mutations.in_header, 3)])


def ours_for_torch(folder: Path) -> Kind:
    return sharded("ours for torch", folder, "torch", [])


def sharded(name: str, folder: Path, format: str, more: list[tuple[Mutation, int]]) -> Kind:
    expected, objects = training()
    path = folder / name
    sw.save({"model": expected, **objects}, path, format=format)

    def load(state: dict, directory: Path) -> object:
        return sw.load(state, directory, **VERIFY)

    def reader(directory: Path) -> Any:
        return sw.ShardedStorageReader(directory, **VERIFY)

    return Kind(
        name,
        path,
        [*ANYWHERE, *more, (mutations.in_manifest, 12), (mutations.lying_manifest, 6)],
        expected,
        objects,
        in_turns(load, load, through_dcp(reader, None)),
        [verify, command("verify"), export],
        never,
        nested=True,
    )


def torchs(folder: Path) -> Kind:
    expected, objects = training()
    path = folder / "torchs"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": expected, **objects}, checkpoint_id=path, no_dist=True)

    def differs(directory: Path, arena: Arena, found: dict) -> str:
        if sw.verify(directory).problems:
            return "other values, and verify names the damage"
        theirs = {
            "model": {name: torch.zeros_like(t) for name, t in expected.items()},
            **blank(objects),
        }
        dcp.load(theirs, storage_reader=dcp.FileSystemReader(directory), no_dist=True)
        wrong = [name for name, t in theirs["model"].items() if not same_bits(t, arena.tensors[name])]
        wrong += [name for name in objects if repr(theirs[name]) != repr(found[name])]
        if wrong:
            raise Broken(f"other values than torch's reader: {wrong}")
        return "another checkpoint, as torch's own reader reads it"

    return Kind(
        "torch's",
        path,
        [*ANYWHERE, (mutations.in_metadata, 14)],
        expected,
        objects,
        sw.load,
        [verify, command("verify"), export],
        differs,
        nested=True,
    )


def adapter(folder: Path) -> Kind:
    expected = trainers(LoraSizes(experts=2))
    path = write_adapter(folder / "adapter", file_tensors(expected, "huggingface"))

    def definition(directory: Path) -> dict[str, torch.Tensor]:
        """The destinations, from a file that holds other values under the same names."""
        stored = reference.read_checkpoint(directory)
        found = {name: reference.cast(one.raw(), one.dtype, torch.float32) for name, one in stored.items()}
        return from_file(found, expected)

    return Kind(
        "adapter",
        path,
        [*ANYWHERE, (mutations.in_header, 12), (mutations.in_json, 6)],
        expected,
        {},
        sw.load_lora,
        [],
        same_as_reference(definition),
    )


def from_file(found: dict[str, torch.Tensor], like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What an adapter of layout "huggingface" holds for the trainer's tensors: `file_tensors` the other way."""
    tags = {name: torch.arange(t.numel(), dtype=torch.float32).view(t.shape) for name, t in like.items()}
    starts, total = {}, 0
    for name, tag in tags.items():
        starts[name] = total
        tag += total
        total += tag.numel()
    flat = torch.full((total,), torch.nan)
    for name, tag in file_tensors(tags, "huggingface").items():
        if name in found and found[name].shape == tag.shape:
            flat[tag.long().reshape(-1)] = found[name].reshape(-1)
    return {
        name: flat[start : start + like[name].numel()].view(like[name].shape)
        for name, start in starts.items()
    }


KINDS = [hugging_face, with_saved_shards, ours, ours_for_torch, torchs, adapter]


# --- one mutation -------------------------------------------------------------------------------------------


def try_one(kind: Kind, arena: Arena, rng: random.Random, path: Path, say: Callable[[str], None]) -> str:
    """Damages a copy of the checkpoint at `path`, loads it and does one other thing. Returns what came of the load;
    raises Broken."""
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(kind.directory, path)
    choices, weights = zip(*kind.mutations, strict=True)
    try:
        what = rng.choices(choices, weights)[0](rng, path)
        if rng.random() < 0.1:
            what += "; " + rng.choices(choices, weights)[0](rng, path)
    except Exception as error:  # of the second one, which may find nothing that it can change
        what = f"nothing more ({error})"
    say(what)
    for harm in (Path(HARM), path / HARM):
        if harm.exists():
            raise RuntimeError("the mutation itself has run the code of a pickle")
    outcome = _load(kind, arena, path)
    if kind.others:
        other = rng.choice(kind.others)
        try:
            other(path)
        except DOCUMENTED:
            pass
        except Broken:
            raise
        except BaseException as error:
            raise Broken(f"{other.__name__}: {type(error).__name__}: {str(error)[:300]}") from error
    expect_no_harm(path)
    return outcome


def expect_no_harm(path: Path) -> None:
    done = [place for place in (Path(HARM), path / HARM) if place.exists()]
    for place in done:
        place.rmdir()
    if done:
        raise Broken("a pickle has run code")


def _load(kind: Kind, arena: Arena, path: Path) -> str:
    arena.clear()
    state = kind.state(arena)
    try:
        kind.load(state, path)
    except DOCUMENTED as error:
        arena.expect_guards()
        written = [
            name.removeprefix("model.") if kind.nested else name
            for name in getattr(error, "partly_written", [])
        ]
        arena.expect_whole_or_untouched(written, kind.expected)
        if not str(error):
            raise Broken(f"{type(error).__name__} without a word") from error
        if len(str(error)) > 100_000:
            raise Broken(f"a message of {len(str(error))} characters") from error
        return f"refused: {type(error).__name__}" + (", partly written" if written else "")
    except BaseException as error:
        raise Broken(f"load: {type(error).__name__}: {str(error)[:300]}") from error
    arena.expect_guards()
    expect_no_harm(path)
    objects = {name: state[name] for name in kind.objects}
    if not arena.differing(kind.expected) and repr(objects) == repr(kind.objects):
        return "the same"
    return kind.differs(path, arena, objects)
