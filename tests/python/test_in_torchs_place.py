"""What a user of torch.distributed.checkpoint sees is the same with our readers, writers and planners in torch's place.

Every case is held against torch's own class. tests/torch_own runs torch's own tests the same way.
"""

import copy
import dataclasses
import inspect
import io
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from nested_states import differing
from outcomes import run_forked
from safetensors.torch import save_file
from torch.distributed._shard import sharded_tensor
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec, ShardMetadata
from torch.distributed.checkpoint._extension import ExtensionRegistry, StreamTransformExtension, ZStandard
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader as TorchHuggingFaceReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.checkpoint.storage import StorageReader
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.futures import Future

PAIRS = {
    "torch's": (dcp.FileSystemWriter, dcp.FileSystemReader),
    "ours": (sw.ShardedStorageWriter, sw.ShardedStorageReader),
}
STATE = {
    "model": {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)},
    "list": [torch.full((2,), 7), 3],
    "step": 5,
}


def empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: empty(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [empty(inner) for inner in value]
    return torch.zeros_like(value) if isinstance(value, torch.Tensor) else None


def saved(path: Path, who: str, state: Any = STATE, **options: Any) -> Path:
    dcp.save(state, storage_writer=PAIRS[who][0](path), no_dist=True, **options)
    return path


def loaded(path: Path, reader: Any, planner: Any = None, like: Any = STATE) -> Any:
    state = empty(like)
    dcp.load(state, storage_reader=reader(path), planner=planner, no_dist=True)
    return state


# --- constructors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(dcp.FileSystemWriter, sw.ShardedStorageWriter), (dcp.FileSystemReader, sw.ShardedStorageReader)],
)
def test_a_writer_and_a_reader_take_torchs_arguments_in_torchs_order(theirs: Any, ours: Any):
    names = list(inspect.signature(theirs).parameters)
    parameters = inspect.signature(ours).parameters
    assert list(parameters)[: len(names)] == names
    assert all(parameters[name].kind == parameters[name].POSITIONAL_OR_KEYWORD for name in names)


def test_a_save_planner_takes_torchs_arguments_with_torchs_defaults():
    theirs = inspect.signature(dcp.DefaultSavePlanner).parameters
    ours = inspect.signature(sw.SavePlanner).parameters
    assert list(ours) == list(theirs)
    assert all(ours[name].default == theirs[name].default for name in theirs)


def test_torchs_first_arguments_are_not_taken_for_a_model_and_a_layout():
    for arguments in [(True, True, True), (False,), ("auto", True)]:
        with pytest.raises(TypeError, match="flatten_sharded_tensors.*by their names"):
            sw.LoadPlanner(*arguments)


@pytest.mark.parametrize("writer", [sw.ShardedStorageWriter, sw.HuggingFaceStorageWriter])
def test_a_plan_that_another_writer_prepared_is_refused_by_name(writer: Any, tmp_path: Path):
    planner = dcp.DefaultSavePlanner()
    planner.set_up_planner({"w": torch.ones(2)}, is_coordinator=True)
    plan = dataclasses.replace(planner.create_local_plan(), storage_data={"shard_index": 1})
    with pytest.raises(ValueError, match="prepare_global_plan.*dict"):
        writer(tmp_path / "it").write_data(plan, planner)
    assert not (tmp_path / "it").exists()


class Backwards(StreamTransformExtension):
    """Each byte is its complement."""

    @staticmethod
    def from_descriptor(version: str) -> "Backwards":
        return Backwards()

    @staticmethod
    def registry_name() -> str:
        return "stream.complement"

    def get_descriptor(self) -> str:
        return "stream.complement/1"

    def transform_to(self, output: Any) -> Any:
        class Writer(io.RawIOBase):
            def write(self, data: Any) -> int:
                return output.write(bytes(byte ^ 255 for byte in bytes(data)))

            def flush(self) -> None:
                output.flush()

        return Writer()

    def transform_from(self, input: Any) -> Any:  # noqa: A002 - torch's word
        return io.BytesIO(bytes(byte ^ 255 for byte in input.read()))


def registry_of_extensions() -> ExtensionRegistry:
    registry = ExtensionRegistry()
    registry.register(Backwards)
    return registry


def loaded_with_extensions(path: Path, reader: Any, like: Any = STATE) -> Any:
    return loaded(path, lambda where: reader(where, registry_of_extensions()), like=like)


@pytest.mark.parametrize("planner", [dcp.DefaultSavePlanner, sw.SavePlanner], ids=["torch's", "ours"])
@pytest.mark.parametrize("who", PAIRS)
def test_whoever_saved_with_extensions_either_reads(who: str, planner: Any, tmp_path: Path):
    threads = 1 if who == "torch's" else 2  # with two, torch's writer leaves an object as it is now and then
    writer = PAIRS[who][0](tmp_path, thread_count=threads, _extensions=[Backwards()])
    metadata = dcp.save(STATE, storage_writer=writer, planner=planner(), no_dist=True)
    for reader in (dcp.FileSystemReader, sw.ShardedStorageReader):
        assert differing(loaded_with_extensions(tmp_path, reader), STATE) == []
    assert metadata.version == CURRENT_DCP_VERSION and metadata.storage_meta == writer.storage_meta()
    places = dcp.FileSystemReader(tmp_path).read_metadata().storage_data.values()
    assert all(place.transform_descriptors == ["stream.complement/1"] for place in places)


def test_an_extension_that_is_not_known_is_named_and_is_no_damage(tmp_path: Path):
    save_to = PAIRS["torch's"][0](tmp_path, thread_count=2, _extensions=[Backwards()])
    dcp.save(STATE, storage_writer=save_to, no_dist=True)
    for state in ({"model": {"w": torch.zeros(2, 3)}}, {"step": 0}):
        with pytest.raises(
            ValueError, match="extensions, stream.complement/1, which are not known here.*registry"
        ):
            sw.load(state, tmp_path)


def test_a_save_with_extensions_replaces_what_it_may(tmp_path: Path):
    def save(step: int, **options: Any) -> None:
        writer = sw.ShardedStorageWriter(tmp_path, **options)
        dcp.save({"step": step, "w": torch.full((3,), step)}, storage_writer=writer, no_dist=True)

    like = {"step": 0, "w": torch.zeros(3, dtype=torch.long)}
    save(1)
    save(2, _extensions=[Backwards()])
    for reader in (dcp.FileSystemReader, sw.ShardedStorageReader):
        assert loaded_with_extensions(tmp_path, reader, like)["step"] == 2
    assert {path.suffix or path.name for path in tmp_path.iterdir()} == {".metadata", ".distcp"}
    save(3, _extensions=[Backwards()])
    assert loaded_with_extensions(tmp_path, sw.ShardedStorageReader, like)["step"] == 3
    with pytest.raises(CheckpointException, match="overwrite=False"):
        save(4, _extensions=[Backwards()], overwrite=False)
    save(4, _extensions=[Backwards()], overwrite=True)
    assert loaded_with_extensions(tmp_path, sw.ShardedStorageReader, like)["step"] == 4
    names = {
        place.relative_path for place in dcp.FileSystemReader(tmp_path).read_metadata().storage_data.values()
    }
    assert {path.name for path in tmp_path.iterdir()} == {".metadata", *names}
    save(5)
    assert loaded(tmp_path, sw.ShardedStorageReader, like=like)["step"] == 5
    assert not sw.verify(tmp_path).problems
    assert not list(tmp_path.glob("__*_*_*"))


def test_a_save_of_torchs_own_is_not_taken_for_one_of_ours_with_extensions(tmp_path: Path):
    ours, torchs = sw.ShardedStorageWriter, dcp.FileSystemWriter
    for writer in (ours, torchs):
        dcp.save(STATE, storage_writer=writer(tmp_path, _extensions=[Backwards()]), no_dist=True)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for options in ({}, {"_extensions": [Backwards()]}):
        with pytest.raises(CheckpointException, match="checkpoint of torch's FileSystemWriter"):
            dcp.save(STATE, storage_writer=ours(tmp_path, **options), no_dist=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_metadata_of_files_of_other_names_is_not_ours_beside_such_of_ours(tmp_path: Path):
    writer = sw.ShardedStorageWriter(tmp_path, _extensions=[Backwards()])
    dcp.save(STATE, storage_writer=writer, no_dist=True)
    (tmp_path / ".metadata").write_bytes(b"of shard0.bin")
    with pytest.raises(CheckpointException, match="checkpoint of torch's FileSystemWriter"):
        dcp.save(STATE, storage_writer=sw.ShardedStorageWriter(tmp_path), no_dist=True)
    assert (tmp_path / ".metadata").read_bytes() == b"of shard0.bin"


class Broken(Backwards):
    """Fails on the second tensor or object."""

    used = 0

    def transform_to(self, output: Any) -> Any:
        self.used += 1
        if self.used > 1:
            raise OSError(28, "no space left for it")
        return super().transform_to(output)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_save_whose_extension_fails_leaves_what_was_there(threads: int, tmp_path: Path):
    saved(tmp_path, "ours", {"step": 1})
    with pytest.raises(CheckpointException, match="no space left for it.*Nothing was published"):
        dcp.save(
            {"step": 2, "w": torch.ones(3)},
            storage_writer=sw.ShardedStorageWriter(tmp_path, thread_count=threads, _extensions=[Broken()]),
            no_dist=True,
        )
    assert loaded(tmp_path, sw.ShardedStorageReader, like={"step": 0}) == {"step": 1}


def test_extensions_that_cannot_be_run_are_refused_by_name_and_nothing_is_made(tmp_path: Path):
    with pytest.raises(ValueError, match=r"_extensions.*Backwards.*safetensors"):
        sw.ShardedStorageWriter(tmp_path / "path", _extensions=[Backwards()], format="safetensors")
    with pytest.raises(ValueError, match=r"_extensions.*StreamTransformExtension.*str"):
        sw.ShardedStorageWriter(tmp_path / "path", _extensions=["zstd"])
    assert not (tmp_path / "path").exists()


def test_verify_says_of_extensions_what_it_cannot_check(tmp_path: Path):
    dcp.save(STATE, storage_writer=sw.ShardedStorageWriter(tmp_path, _extensions=[Backwards()]), no_dist=True)
    (problem,) = sw.verify(tmp_path).problems
    assert "stream.complement/1" in problem and "not checked" in problem


def test_verify_undoes_extensions_that_torch_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ZStandard, "is_available", staticmethod(lambda: True))
    monkeypatch.setattr(ZStandard, "transform_to", Backwards.transform_to)
    monkeypatch.setattr(ZStandard, "transform_from", Backwards.transform_from)
    dcp.save(STATE, storage_writer=sw.ShardedStorageWriter(tmp_path, _extensions=[ZStandard()]), no_dist=True)
    report = sw.verify(tmp_path)
    assert not report.problems and report.bytes_hashed > 0
    place = max(
        dcp.FileSystemReader(tmp_path).read_metadata().storage_data.values(), key=lambda it: it.length
    )
    with open(tmp_path / place.relative_path, "r+b") as file:
        file.seek(place.offset + place.length // 2)
        byte = file.read(1)
        file.seek(-1, io.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    assert len(sw.verify(tmp_path).problems) == 1


# --- saves -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", PAIRS)
def test_overwrite_false_says_that_a_checkpoint_exists(who: str, tmp_path: Path):
    writer, reader = PAIRS[who]
    saved(tmp_path, who)
    with pytest.raises(CheckpointException, match="Checkpoint already exists"):
        dcp.save({"step": 6}, storage_writer=writer(tmp_path, overwrite=False), no_dist=True)
    dcp.save({"step": 6}, storage_writer=writer(tmp_path, overwrite=True), no_dist=True)
    assert loaded(tmp_path, reader, like={"step": 0}) == {"step": 6}


@pytest.mark.parametrize("planner", [dcp.DefaultSavePlanner, sw.SavePlanner])
def test_torchs_quantized_tensors_are_refused_before_a_scale_is_lost_and_read_where_torch_saved_them(
    planner: Any, tmp_path: Path
):
    def state(number: float) -> dict[str, torch.Tensor]:
        numbers, halves = torch.full((4, 6), number), torch.full((4,), 0.5)
        return {
            "one": torch.quantize_per_tensor(numbers, 0.5, 3, torch.qint8),
            "rows": torch.quantize_per_channel(numbers, halves, torch.zeros(4), 0, torch.quint8),
        }

    writer = sw.ShardedStorageWriter(tmp_path / "ours")
    with pytest.raises(CheckpointException, match="int_repr") as refused:
        dcp.save(state(2.0), planner=planner(), storage_writer=writer, no_dist=True)
    assert re.search("one: .*qint8", str(refused.value)) and re.search("rows: .*quint8", str(refused.value))
    assert list(tmp_path.glob("ours/*")) == []
    writer = dcp.FileSystemWriter(tmp_path / "theirs")
    dcp.save(state(2.0), planner=dcp.DefaultSavePlanner(), storage_writer=writer, no_dist=True)
    found = state(0.0)
    dcp.load(found, storage_reader=sw.ShardedStorageReader(tmp_path / "theirs"), no_dist=True)
    assert all(torch.equal(found[name].dequantize(), torch.full((4, 6), 2.0)) for name in found)


@pytest.mark.parametrize("who", PAIRS)
def test_a_writer_tells_which_checkpoint_it_writes(who: str, tmp_path: Path):
    writer = PAIRS[who][0](tmp_path / "first")
    first = writer.storage_meta()
    assert Path(first.checkpoint_id) == Path(writer.checkpoint_id) == tmp_path / "first" and first.save_id
    writer.reset(tmp_path / "second")
    second = writer.storage_meta()
    assert Path(second.checkpoint_id) == tmp_path / "second" and second.save_id != first.save_id
    writer.reset()
    assert writer.storage_meta().save_id != second.save_id


@pytest.mark.parametrize("planner", [dcp.DefaultSavePlanner, sw.SavePlanner])
@pytest.mark.parametrize("who", PAIRS)
def test_the_metadata_of_a_save_tells_which_checkpoint_it_is_of(who: str, planner: Any, tmp_path: Path):
    writer = PAIRS[who][0](tmp_path / "unused")
    metadata = dcp.save(
        STATE, checkpoint_id=tmp_path / "it", storage_writer=writer, planner=planner(), no_dist=True
    )
    for found in (metadata, pickle.loads(pickle.dumps(metadata))):
        assert found.version == CURRENT_DCP_VERSION
        assert found.storage_meta == writer.storage_meta()
        assert found.planner_data["list.1"] == ("list", 1)


@pytest.mark.parametrize("who", PAIRS)
@pytest.mark.parametrize(
    "options", [{}, {"flatten_state_dict": False}, {"flatten_sharded_tensors": False}], ids=str
)
def test_states_are_flattened_or_not(who: str, options: dict[str, bool], tmp_path: Path):
    state = {"w": torch.arange(4.0), "nested": {"a": torch.ones(2), "n": 1}}
    saved(tmp_path, who, state, planner=sw.SavePlanner(**options))
    names = set(PAIRS[who][1](tmp_path).read_metadata().state_dict_metadata)
    assert names == ({"w", "nested"} if "flatten_state_dict" in options else {"w", "nested.a", "nested.n"})
    assert differing(loaded(tmp_path, PAIRS[who][1], sw.LoadPlanner(**options), state), state) == []
    if options != {
        "flatten_state_dict": False
    }:  # with which torch's planner puts objects into a dict of its own
        found = loaded(tmp_path, PAIRS[who][1], dcp.DefaultLoadPlanner(**options), state)
        assert differing(found, state) == []


@pytest.mark.parametrize("state", [{}, {"inner": {}}], ids=["nothing", "an empty dict"])
def test_a_state_without_tensors_is_saved_and_loaded(state: dict[str, Any], tmp_path: Path):
    for writer, writes in PAIRS.items():
        saved(tmp_path / writer, writer, state)
        for reader in (dcp.FileSystemReader, sw.ShardedStorageReader):
            assert loaded(tmp_path / writer, reader, like=state) == state, (writes, reader)


@pytest.mark.parametrize(
    "kind",
    [AsyncCheckpointerType.THREAD, pytest.param(AsyncCheckpointerType.PROCESS, marks=pytest.mark.process)],
)
@pytest.mark.parametrize("stager", ["the writer", "torch's", "torch's in the background"])
def test_saves_in_the_background(kind: AsyncCheckpointerType, stager: str, tmp_path: Path):
    in_process = kind is AsyncCheckpointerType.PROCESS
    if in_process:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    own = None
    if stager != "the writer":
        own = DefaultStager(StagingOptions(False, in_process, stager.endswith("background"), False))
    try:
        state = {"w": torch.arange(6.0), "step": 3}
        writer = sw.ShardedStorageWriter(tmp_path / "it")
        response = dcp.async_save(
            state, storage_writer=writer, async_checkpointer_type=kind, async_stager=own
        )
        getattr(response, "upload_completion", response).result()
        state["w"] += 1
    finally:
        if own is not None:
            own.close()
        if in_process:
            dist.destroy_process_group()
    assert not sw.verify(tmp_path / "it").problems
    found = loaded(tmp_path / "it", dcp.FileSystemReader, like=state)
    assert found["step"] == 3 and torch.equal(found["w"], torch.arange(6.0))


# --- loads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planner", [dcp.DefaultLoadPlanner, sw.LoadPlanner])
@pytest.mark.parametrize("reader", [dcp.FileSystemReader, sw.ShardedStorageReader])
@pytest.mark.parametrize("who", PAIRS)
def test_whoever_saved_reads_and_plans(who: str, reader: Any, planner: Any, tmp_path: Path):
    assert differing(loaded(saved(tmp_path, who), reader, planner()), STATE) == []


def test_one_reader_is_pointed_at_checkpoints_of_either_kind(tmp_path: Path):
    reader = sw.ShardedStorageReader(tmp_path)
    for step, who in enumerate(["torch's", "ours", "torch's", "ours"]):
        path = saved(tmp_path / str(step), who, {"step": step, "w": torch.full((3,), step)})
        state = {"step": -1, "w": torch.zeros(3, dtype=torch.long)}
        dcp.load(state, checkpoint_id=path, storage_reader=reader, no_dist=True)
        assert state["step"] == step and state["w"].tolist() == [step] * 3
        assert Path(reader.checkpoint_id) == path and reader.report is not None


def test_a_reader_of_torchs_checkpoint_keeps_to_its_options(tmp_path: Path):
    path = saved(tmp_path, "torch's", {"call": print})
    with pytest.raises(CheckpointException, match="print"):
        loaded(path, sw.ShardedStorageReader, like={"call": None})
    found = loaded(
        path, lambda where: sw.ShardedStorageReader(where, weights_only=False), like={"call": None}
    )
    assert found["call"] is print


class InMemory(StorageReader):
    """Somebody's reader, of a checkpoint that is a dict."""

    def __init__(self, stored: dict[str, Any]) -> None:
        self.stored = stored

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    def read_metadata(self) -> Metadata:
        planner = dcp.DefaultSavePlanner()
        planner.set_up_planner(self.stored, is_coordinator=True)
        return planner.create_global_plan([planner.create_local_plan()])[1]

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: Any) -> Future[None]:
        for item in plan.items:
            value = self.stored[item.storage_index.fqn]
            if item.type == LoadItemType.BYTE_IO:
                data = io.BytesIO()
                torch.save(value, data)
                data.seek(0)
                planner.load_bytes(item, data)
                continue
            target = planner.resolve_tensor(item).detach()
            for dimension, (begin, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                value = value.narrow(dimension, begin, length)
            target.copy_(value)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


def test_our_planner_plans_for_anybodys_reader(tmp_path: Path):
    stored = {"w": torch.arange(6.0).reshape(2, 3), "step": 4}
    for planner in (dcp.DefaultLoadPlanner(), sw.LoadPlanner()):
        assert differing(loaded(tmp_path, lambda _: InMemory(stored), planner, stored), stored) == []


@pytest.mark.parametrize("who", PAIRS)
def test_what_lacks_or_does_not_fit_is_told_in_torchs_words_too(who: str, tmp_path: Path):
    saved(tmp_path, who)
    cases = {
        "Missing key in checkpoint state_dict": {"more": torch.zeros(1)},
        "Size mismatch": {"list": [torch.zeros(3)]},
    }
    for words, state in cases.items():
        for planner in (dcp.DefaultLoadPlanner, sw.LoadPlanner):
            with pytest.raises(CheckpointException, match=words):
                dcp.load(state, storage_reader=PAIRS[who][1](tmp_path), planner=planner(), no_dist=True)


@pytest.mark.parametrize("who", PAIRS)
def test_a_partial_load_leaves_the_rest_alone(who: str, tmp_path: Path):
    saved(tmp_path, who)
    for planner in (dcp.DefaultLoadPlanner, sw.LoadPlanner):
        state = {"step": 0, "more": torch.full((2,), 8.0)}
        dcp.load(
            state,
            storage_reader=PAIRS[who][1](tmp_path),
            planner=planner(allow_partial_load=True),
            no_dist=True,
        )
        assert state["step"] == 5 and state["more"].tolist() == [8, 8]


@pytest.mark.parametrize("who", PAIRS)
def test_objects_with_a_state_are_loaded_in_place(who: str, tmp_path: Path):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.125)
    model(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    saved(tmp_path, who, {"model": model, "optimizer": optimizer})
    other = torch.nn.Linear(3, 2)
    steps = torch.optim.Adam(other.parameters(), lr=0.5)
    other(torch.rand(4, 3)).sum().backward()
    steps.step()
    state = {"model": other, "optimizer": steps}
    dcp.load(state, storage_reader=PAIRS[who][1](tmp_path), planner=sw.LoadPlanner(), no_dist=True)
    assert state["model"] is other and state["optimizer"] is steps
    assert differing(other.state_dict(), model.state_dict()) == []
    assert differing(steps.state_dict(), optimizer.state_dict()) == []


READERS = [TorchHuggingFaceReader, sw.HuggingFaceStorageReader]


@pytest.mark.parametrize("reader", READERS)
def test_what_says_of_no_family_that_it_is_of_it_is_loaded_under_its_own_names(reader: Any, tmp_path: Path):
    values = {"tower.proj": torch.rand(4, 6), "tower.norm": torch.rand(6)}
    save_file(values, tmp_path / "model.safetensors")
    for planner in (dcp.DefaultLoadPlanner, sw.LoadPlanner):
        assert differing(loaded(tmp_path, lambda path: reader(str(path)), planner(), values), values) == []
        state = {"tower.norm": torch.zeros(6), "more": torch.full((1,), 3.0)}
        with pytest.raises(CheckpointException, match="more"):
            dcp.load(state, storage_reader=reader(str(tmp_path)), planner=planner(), no_dist=True)
        dcp.load(
            state,
            storage_reader=reader(str(tmp_path)),
            planner=planner(allow_partial_load=True),
            no_dist=True,
        )
        assert torch.equal(state["tower.norm"], values["tower.norm"]) and state["more"].item() == 3
    with pytest.raises(CheckpointException, match="cannot tell which model"):
        dcp.load(
            {"x": torch.zeros(1)},
            storage_reader=reader(str(tmp_path)),
            planner=sw.LoadPlanner(),
            no_dist=True,
        )
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    with pytest.raises(
        CheckpointException, match="unheard_of"
    ):  # a family with layouts, perhaps; what says so is asked
        dcp.load(
            empty(values),
            storage_reader=sw.HuggingFaceStorageReader(tmp_path),
            planner=sw.LoadPlanner(),
            no_dist=True,
        )


# --- metadata ----------------------------------------------------------------------------------------------------


def of_a_save(path: Path) -> Metadata:
    return dcp.save(
        STATE, storage_writer=sw.ShardedStorageWriter(path), planner=sw.SavePlanner(), no_dist=True
    )


def of_ours(path: Path) -> Metadata:
    saved(path, "ours")
    return sw.ShardedStorageReader(path).read_metadata()


def of_a_released_checkpoint(path: Path) -> Metadata:
    path.mkdir()
    save_file({"a": torch.rand(2, 3), "b": torch.rand(4)}, path / "model.safetensors")
    return sw.HuggingFaceStorageReader(path).read_metadata()


KINDS: list[Callable[[Path], Metadata]] = [of_a_save, of_ours, of_a_released_checkpoint]


def same_metadata(a: Metadata, b: Metadata) -> bool:
    """Field by field, of plain values alone."""

    def plain(stored: Any) -> Any:
        if isinstance(stored, TensorStorageMetadata):
            chunks = [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in stored.chunks]
            return dataclasses.astuple(stored.properties), tuple(stored.size), sorted(chunks)
        assert isinstance(stored, BytesStorageMetadata)
        return "object"

    tables = [{name: plain(stored) for name, stored in one.state_dict_metadata.items()} for one in (a, b)]
    others = [(one.planner_data, one.storage_data, one.storage_meta, one.version) for one in (a, b)]
    return tables[0] == tables[1] and others[0] == others[1]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize(
    "copied", [lambda it: pickle.loads(pickle.dumps(it)), copy.copy, copy.deepcopy, dataclasses.replace]
)
def test_metadata_is_pickled_copied_and_replaced(make: Any, copied: Any, tmp_path: Path):
    metadata = make(tmp_path / "it")
    found = copied(metadata)
    assert same_metadata(found, metadata) and found == metadata and metadata == found
    changed = dataclasses.replace(found, version="another")
    assert changed.version == "another" and changed != metadata and metadata != changed
    assert metadata != "something else"
    name = next(name for name, stored in metadata.state_dict_metadata.items() if hasattr(stored, "size"))
    resized = dataclasses.replace(metadata.state_dict_metadata[name], size=torch.Size([1]))
    assert resized.size == torch.Size([1])
    assert resized.chunks == metadata.state_dict_metadata[name].chunks


def test_our_metadata_says_what_torchs_says(tmp_path: Path):
    ours = sw.ShardedStorageReader(saved(tmp_path / "ours", "ours")).read_metadata()
    theirs = dcp.FileSystemReader(saved(tmp_path / "torchs", "torch's")).read_metadata()
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert (ours.planner_data, ours.version) == (theirs.planner_data, theirs.version)
    assert ours.storage_data.keys() == theirs.storage_data.keys()
    assert Path(ours.storage_meta.checkpoint_id) == tmp_path / "ours" and ours.storage_meta.load_id


@pytest.mark.parametrize("planner", [dcp.DefaultLoadPlanner, sw.LoadPlanner])
def test_replaced_metadata_is_planned_and_read(planner: Any, tmp_path: Path):
    path = saved(tmp_path, "ours")
    reader = sw.ShardedStorageReader(path)
    metadata = dataclasses.replace(reader.read_metadata(), storage_meta=None)
    state = empty(STATE)
    one = planner()
    one.set_up_planner(state, metadata, True)
    reader.set_up_storage_reader(metadata, True)
    plan = one.finish_plan(one.create_global_plan([reader.prepare_local_plan(one.create_local_plan())])[0])
    reader.read_data(plan, one).wait()
    assert differing(state, STATE) == []


# --- several ranks -----------------------------------------------------------------------------------------------


def check_ranks(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    own_state_of_each_rank(rank, folder, mesh)
    the_lowest_rank_writes_replicas(rank, folder, mesh)
    several_shards_of_a_rank(rank, folder)
    extensions_of_two_ranks(rank, folder, mesh)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # Gloo's thread may drop a tensor while the interpreter ends, which aborts it (torch 2.13)


def own_state_of_each_rank(rank: int, folder: Path, mesh: Any) -> None:
    """use_collectives=False."""
    whole = torch.arange(6.0)
    state = {"d": distribute_tensor(whole, mesh, [Shard(0)]), "rank": rank}
    dcp.save(state, checkpoint_id=folder / "alone", use_collectives=False)
    dist.barrier()
    assert not (folder / "alone" / ".metadata").exists()
    for planner in (dcp.DefaultLoadPlanner(), sw.LoadPlanner()):
        found = {"d": distribute_tensor(torch.zeros(6), mesh, [Shard(0)]), "rank": -1}
        dcp.load(found, storage_reader=sw.ShardedStorageReader(folder / "alone"), planner=planner)
        assert found["rank"] == rank and torch.equal(found["d"].full_tensor(), whole)
    with pytest.raises(ValueError, match="use_collectives=False.*dcp.load"):
        sw.load({"rank": -1}, folder / "alone")
    with pytest.raises(ValueError, match="use_collectives=False"):
        dcp.save(state, storage_writer=sw.ShardedStorageWriter(folder / "refused"), use_collectives=False)


def the_lowest_rank_writes_replicas(rank: int, folder: Path, mesh: Any) -> None:
    state = {
        "own": distribute_tensor(torch.rand(4096), mesh, [Shard(0)]),
        **{f"all.{n}": distribute_tensor(torch.full((64,), float(n)), mesh, [Replicate()]) for n in range(4)},
        "plain": torch.ones(3),
        "object": "text",
    }
    for lowest in (True, False):
        written = {}
        for which in (dcp.DefaultSavePlanner, sw.SavePlanner):
            planner = which(dedup_save_to_lowest_rank=lowest)
            path = folder / f"{which.__name__}.{lowest}"
            dcp.save(state, storage_writer=dcp.FileSystemWriter(path), planner=planner)
            written[which] = {item.index.fqn for item in planner.plan.items}
        if lowest:
            assert written[sw.SavePlanner] == written[dcp.DefaultSavePlanner]
            assert written[sw.SavePlanner] == (set(state) if rank == 0 else {"own"})
        else:
            assert "all.0" in written[sw.SavePlanner] or "all.1" in written[sw.SavePlanner], rank


def several_shards_of_a_rank(rank: int, folder: Path) -> None:
    cuts = [(0, 2, 0), (2, 1, 1), (3, 3, 0), (6, 4, 1)]
    spec = EnumerableShardingSpec(
        [ShardMetadata([begin, 0], [size, 4], f"rank:{owner}/cpu") for begin, size, owner in cuts]
    )
    whole = torch.arange(40.0).reshape(10, 4)
    for flatten in (True, False):
        tensor = sharded_tensor.empty(spec, 10, 4)
        for shard in tensor.local_shards():
            begin, _ = shard.metadata.shard_offsets
            shard.tensor.copy_(whole[begin : begin + shard.metadata.shard_sizes[0]])
        path = folder / f"shards.{flatten}"
        planner = sw.SavePlanner(flatten_sharded_tensors=flatten)
        dcp.save({"t": tensor}, storage_writer=sw.ShardedStorageWriter(path), planner=planner)
        for reader in (dcp.FileSystemReader, sw.ShardedStorageReader):
            found = sharded_tensor.zeros(spec, 10, 4)
            dcp.load(
                {"t": found},
                storage_reader=reader(path),
                planner=sw.LoadPlanner(flatten_sharded_tensors=flatten),
            )
            for shard in found.local_shards():
                begin, _ = shard.metadata.shard_offsets
                assert torch.equal(shard.tensor, whole[begin : begin + shard.metadata.shard_sizes[0]])


def extensions_of_two_ranks(rank: int, folder: Path, mesh: Any) -> None:
    """Where one rank's extension fails, all ranks hear of it and nothing is there."""
    whole = torch.arange(24.0).reshape(6, 4)
    state = {"d": distribute_tensor(whole, mesh, [Shard(0)]), "e": distribute_tensor(whole, mesh, [Shard(1)])}
    path = folder / "extended"
    with pytest.raises(CheckpointException, match="rank 1: .*no space left for it"):
        broken = Broken() if rank == 1 else Backwards()
        dcp.save(state, storage_writer=sw.ShardedStorageWriter(path, thread_count=1, _extensions=[broken]))
    dist.barrier()
    assert not path.exists()
    dcp.save(state, storage_writer=sw.ShardedStorageWriter(path, _extensions=[Backwards()]))
    found = {"d": distribute_tensor(torch.zeros(6, 4), mesh, [Shard(1)])}
    dcp.load(found, storage_reader=sw.ShardedStorageReader(path, registry_of_extensions()))
    assert torch.equal(found["d"].full_tensor(), whole)


@pytest.mark.ranks
def test_two_ranks(tmp_path: Path):
    run_forked(2, check_ranks, tmp_path)


def with_left_shards(path: Path, whole: torch.Tensor, left: torch.Tensor) -> Path:
    """A folder to which torch's writer has saved twice, by fewer ranks the second time."""
    save_file({"w": whole}, path / "shard-00001-model-00001-of-00001.safetensors")
    saved_offsets = {"w": {"saved_offsets": [whole.shape[0] - left.shape[0], 0]}}
    save_file(
        {"w": left},
        path / "shard-00002-model-00001-of-00001.safetensors",
        {"DCP_SHARDING_INFO": json.dumps(saved_offsets)},
    )
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_what_is_there_twice_is_read_where_both_are_the_same_bits(dtype: torch.dtype, tmp_path: Path):
    whole = torch.arange(24.0).reshape(6, 4).to(dtype)
    whole.view(torch.uint8)[-1, -1] = 0xFF  # a NaN, if it is a float: equal by its bits
    with_left_shards(tmp_path, whole, whole[2:].clone())
    state = {"w": torch.zeros_like(whole)}
    dcp.load(
        state,
        storage_reader=TorchHuggingFaceReader(str(tmp_path)),
        planner=sw.LoadPlanner(layout="huggingface"),
        no_dist=True,
    )
    assert torch.equal(state["w"].view(torch.uint8), whole.view(torch.uint8))


def test_what_is_there_twice_and_differs_is_refused_by_name(tmp_path: Path):
    whole = torch.arange(24.0).reshape(6, 4)
    left = whole[2:].clone()
    left[-1, -1] += 1
    with_left_shards(tmp_path, whole, left)
    with pytest.raises(CheckpointException, match=r"w: \[4, 4\] at \[2, 0\] .* differ; remove the files"):
        dcp.load(
            {"w": torch.zeros_like(whole)},
            storage_reader=TorchHuggingFaceReader(str(tmp_path)),
            planner=sw.LoadPlanner(layout="huggingface"),
            no_dist=True,
        )


@pytest.mark.parametrize(
    "kind",
    [
        sw.ShardedStorageWriter,
        sw.ShardedStorageReader,
        sw.HuggingFaceStorageWriter,
        sw.HuggingFaceStorageReader,
    ],
)
def test_whoever_asks_whether_a_checkpoint_can_be_there_is_told(kind: Any, tmp_path: Path):
    for known in (
        tmp_path / "x",
        str(tmp_path / "x"),
        "s3://bucket/run",
        "hf://organisation/name",
        "memory://run",
    ):
        assert kind.validate_checkpoint_id(known), known
    for unknown in ("abc://abc.abc", "/nowhere/else/at/all"):
        assert kind.validate_checkpoint_id(unknown) == (
            "://" not in unknown and dcp.FileSystemReader.validate_checkpoint_id(unknown)
        )
