"""Checkpoint and trainer that do not fit: an exception that names all that is wrong, and no byte changed."""

import re
from pathlib import Path

import pytest
import reference
import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checkpoints import (
    Sizes,
    Tensor,
    Tensors,
    config_of,
    file_of,
    made_up_m3,
    without,
    write_checkpoint,
    write_m3,
)
from destinations import Destination, destinations_like, state_of
from refusals import assert_refused
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

Q_PROJ = "language_model.model.layers.0.self_attn.q_proj.weight"
MOE = "language_model.model.layers.1.block_sparse_moe"


def expected_of(tensors: Tensors, directory: Path) -> dict[str, torch.Tensor]:
    return reference.native(write_checkpoint(directory, tensors, files=1))


# --- checkpoint and trainer ---------------------------------------------------------------------------------


def test_an_fp8_weight_without_scale(whole, tmp_path: Path):
    path = write_checkpoint(tmp_path, without(made_up_m3(), Q_PROJ + "_scale_inv"), config=config_of())
    assert_refused(path, whole, sw.PlanError, Q_PROJ + "_scale_inv")


@pytest.mark.parametrize("shape", [(20, 1), (19, 2), (20,), (20, 3), (2, 20)])
def test_a_scale_of_the_wrong_shape(shape: tuple[int, ...], whole, tmp_path: Path):
    scale = Tensor("U8", shape, bytes(torch.Size(shape).numel()))
    path = write_checkpoint(tmp_path, made_up_m3() | {Q_PROJ + "_scale_inv": scale}, config=config_of())
    message = assert_refused(path, whole, sw.PlanError, Q_PROJ + "_scale_inv", "[20, 2]")
    assert f"[{', '.join(map(str, shape))}]" in message


@pytest.mark.parametrize("dtype, size", [("F16", 2), ("I8", 1), ("I64", 8)])
def test_a_scale_of_the_wrong_dtype(dtype: str, size: int, whole, tmp_path: Path):
    scale = Tensor(dtype, (20, 2), bytes(40 * size))
    path = write_checkpoint(tmp_path, made_up_m3() | {Q_PROJ + "_scale_inv": scale}, config=config_of())
    assert_refused(path, whole, sw.PlanError, Q_PROJ + "_scale_inv", dtype, "U8")


def test_a_scale_without_its_weight(whole, tmp_path: Path):
    path = write_checkpoint(tmp_path, without(made_up_m3(), Q_PROJ), config=config_of())
    assert_refused(path, whole, sw.PlanError, Q_PROJ)


def test_missing_experts_are_listed_in_ranges(tmp_path: Path):
    tensors = made_up_m3(Sizes(experts=12))
    expected = expected_of(tensors, tmp_path / "whole")
    gone = [f"{MOE}.experts.{e}.{w}.weight" for e in (1, 2, 3, 7) for w in ("w1", "w2", "w3")]
    path = write_checkpoint(
        tmp_path / "gap",
        without(tensors, *gone, *(name + "_scale_inv" for name in gone)),
        config=config_of(),
    )
    message = assert_refused(path, expected, sw.PlanError, "model.layers.1.mlp.experts")
    assert re.search(r"\b1\s?(-|–|\.\.|to)\s?3\b.*\b7\b", message), message
    for weight in ("w1", "w2", "w3"):
        assert weight in message


def test_missing_last_experts_are_missed(tmp_path: Path):
    """The trainer's tensor says how many there must be, not the checkpoint."""
    tensors = made_up_m3(Sizes(experts=4))
    expected = expected_of(tensors, tmp_path / "whole")
    path = write_checkpoint(
        tmp_path / "gap",
        {name: tensor for name, tensor in tensors.items() if ".experts.3." not in name},
        config=config_of(),
    )
    assert_refused(path, expected, sw.PlanError, "experts.3.")


def test_more_experts_than_the_trainer_has(whole, tmp_path: Path):
    path = write_m3(tmp_path, Sizes(experts=4))
    some = {fqn: tensor for fqn, tensor in whole.items() if ".mlp.experts." in fqn}
    assert_refused(path, some, sw.PlanError, "experts", "3")


def test_one_projection_of_an_expert_missing(whole, tmp_path: Path):
    name = f"{MOE}.experts.2.w3.weight"
    path = write_checkpoint(tmp_path, without(made_up_m3(), name, name + "_scale_inv"), config=config_of())
    assert_refused(path, whole, sw.PlanError, name)


def test_a_shape_that_differs_from_the_trainers(whole, tmp_path: Path):
    path = write_m3(tmp_path)
    others = without(whole, "model.norm.weight")
    message = assert_refused(
        path, others, sw.PlanError, "model.norm.weight", add={"model.norm.weight": torch.zeros(41)}
    )
    assert "[41]" in message and "[40]" in message


def test_experts_of_another_shape(whole, tmp_path: Path):
    fqn = "model.layers.1.mlp.experts.down_projs"
    path = write_m3(tmp_path)
    assert_refused(
        path, without(whole, fqn), sw.PlanError, fqn, "[24, 40]", add={fqn: torch.zeros(3, 40, 24)}
    )


def test_all_faults_are_told_at_once(whole, tmp_path: Path):
    path = write_m3(tmp_path)
    add = {"model.norm.weight": torch.zeros(41), "model.embed_tokens.weight": torch.zeros(2, 2)}
    add["model.layers.7.input_layernorm.weight"] = torch.zeros(40)
    assert_refused(path, without(whole, "norm.weight", "embed_tokens.weight"), sw.PlanError, *add, add=add)


def test_a_trainers_tensor_without_source(whole, tmp_path: Path):
    path = write_m3(tmp_path)
    name = "model.layers.9.input_layernorm.weight"
    assert_refused(path, whole, sw.PlanError, name, add={name: torch.zeros(40)})


def test_a_trainers_tensor_that_no_rule_knows(whole, tmp_path: Path):
    path = write_m3(tmp_path)
    assert_refused(path, whole, sw.PlanError, "optimizer.step", add={"optimizer.step": torch.zeros(1)})


@pytest.mark.parametrize("name", ["audio_tower.proj.weight", "language_model.model.layers.0.novelty.weight"])
def test_a_source_tensor_that_no_rule_knows(name: str, whole, tmp_path: Path):
    tensors = made_up_m3() | {name: Tensor("BF16", (2,), bytes(4))}
    path = write_checkpoint(tmp_path, tensors, config=config_of())
    assert_refused(path, whole, sw.PlanError, name, "strict")


def test_a_checkpoint_of_another_model(whole, tmp_path: Path):
    tensors = {"transformer.h.0.attn.c_attn.weight": Tensor("F32", (4, 4), bytes(64))}
    path = write_checkpoint(tmp_path, tensors, config={"model_type": "gpt2"})
    assert_refused(path, whole, ValueError, "gpt2", "minimax_m3")


# --- destinations -------------------------------------------------------------------------------------------

EMBED = "model.embed_tokens.weight"  # [30, 40]


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(torch.zeros(30, 40, device="meta"), id="meta"),
        pytest.param(torch.zeros(40).expand(30, 40), id="expanded"),
        pytest.param(torch.zeros(100).as_strided((30, 40), (1, 1)), id="overlapping"),
        pytest.param(torch.zeros(30, 40, dtype=torch.int32), id="integers"),
        pytest.param(torch.zeros(30, 40, dtype=torch.complex64), id="complex"),
        pytest.param(torch.eye(30, 40).to_sparse(), id="sparse"),
    ],
)
def test_a_destination_that_cannot_be_written(tensor: torch.Tensor, whole, tmp_path: Path):
    path = write_m3(tmp_path)
    destinations = destinations_like(without(whole, EMBED))
    with pytest.raises((sw.PlanError, TypeError), match=re.escape(EMBED)):
        sw.load(state_of(destinations) | {EMBED: tensor}, path)
    assert [name for name in destinations if not destinations[name].untouched()] == []


def test_two_destinations_in_the_same_memory(whole, tmp_path: Path):
    path = write_m3(tmp_path)
    memory = torch.zeros(40 * 40)
    add = {EMBED: memory[: 30 * 40].view(30, 40), "lm_head.weight": memory[-30 * 40 :].view(30, 40)}
    assert_refused(path, without(whole, *add), sw.PlanError, *add, add=add)


def test_a_dtensor_whose_local_part_is_not_what_its_placements_say(whole, tmp_path: Path):
    path = write_m3(tmp_path)
    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (4,))
        local = Destination((9, 40), torch.bfloat16)  # it should have 8 rows
        tensor = DTensor.from_local(
            local.tensor, mesh, [Shard(0)], run_check=False, shape=torch.Size((30, 40)), stride=(40, 1)
        )
        with pytest.raises(sw.PlanError, match=re.escape(EMBED)):
            sw.load({EMBED: tensor}, path)
        assert local.untouched()
    finally:
        dist.destroy_process_group()


# --- options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        ({"model": "llama5"}, ["llama5", "minimax_m3"]),
        ({"layout": "sideways"}, ["sideways", "automodel"]),
        ({"threads": -1}, ["thread", "-1"]),
        ({"staging_bytes": -1}, ["staging_bytes", "-1"]),
    ],
)
def test_an_option_that_makes_no_sense(options: dict, words: list[str], whole, tmp_path: Path):
    assert_refused(write_m3(tmp_path), whole, ValueError, *words, **options)


# --- through dcp --------------------------------------------------------------------------------------------


def refused_by_dcp(state: dict[str, torch.Tensor], reader: "sw.HuggingFaceStorageReader") -> BaseException:
    with pytest.raises(CheckpointException) as refused:
        dcp.load(state, storage_reader=reader, planner=sw.LoadPlanner())
    return refused.value.failures[0][0]


def test_dcp_load_reports_a_mismatch_as_such(whole, tmp_path: Path):
    reader = sw.HuggingFaceStorageReader(write_m3(tmp_path))
    destinations = destinations_like(whole)
    error = refused_by_dcp(state_of(destinations) | {"model.norm.weight": torch.zeros(41)}, reader)
    assert isinstance(error, sw.PlanError) and "model.norm.weight" in str(error)
    assert [name for name in destinations if not destinations[name].untouched()] == []


def test_dcp_load_reports_a_missing_directory_as_such(whole, tmp_path: Path):
    """torch itself turns what read_metadata raises into an AssertionError."""
    error = refused_by_dcp(
        state_of(destinations_like(whole)), sw.HuggingFaceStorageReader(tmp_path / "nowhere")
    )
    assert isinstance(error, FileNotFoundError) and "nowhere" in str(error)


def test_dcp_load_reports_a_malformed_file_as_such(whole, tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(file_of("{nonsense"))
    error = refused_by_dcp(state_of(destinations_like(whole)), sw.HuggingFaceStorageReader(tmp_path))
    assert isinstance(error, sw.CheckpointFormatError) and "model.safetensors" in str(error)


def test_a_file_cut_short_after_planning_is_an_error_that_names_file_and_offset(tmp_path: Path):
    tensors = made_up_m3()
    path = write_checkpoint(tmp_path, tensors, files=1, config=config_of())
    expected = reference.native(path)
    (file,) = path.glob("*.safetensors")
    keep = file.stat().st_size // 2

    class Cutting(sw.HuggingFaceStorageReader):
        def read_data(self, plan, planner):
            with open(file, "r+b") as opened:
                opened.truncate(keep)
            return super().read_data(plan, planner)

    error = refused_by_dcp(state_of(destinations_like(expected)), Cutting(path))
    assert isinstance(error, OSError) and file.name in str(error)
    assert int(re.search(r"offset (\d+)", str(error))[1]) >= keep


def test_a_file_removed_after_planning_is_an_error_that_names_it(tmp_path: Path):
    path = write_m3(tmp_path)
    expected = reference.native(path)
    gone = path / "model-00002-of-00002.safetensors"

    class Removing(sw.HuggingFaceStorageReader):
        def read_data(self, plan, planner):
            gone.unlink()
            return super().read_data(plan, planner)

    error = refused_by_dcp(state_of(destinations_like(expected)), Removing(path))
    assert isinstance(error, OSError) and gone.name in str(error)
