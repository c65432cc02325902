"""Runs on ranks: exports of every kind of sharding, each compared with the reference.

    torchrun --nproc-per-node N export.py CHECKPOINT UNEVEN_CHECKPOINT RESULT.json

RESULT.json gets, for each check below, what went wrong on which rank; an empty text if nothing did.
"""

import re
import warnings
from pathlib import Path

import reference
import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checks import run_checks
from exported import bytes_of_files, problems_of_files, wrong_tensors
from placements import held_indices, take
from shared_folder import shared_folder
from torch import nn
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard

State = dict[str, torch.Tensor]


def sharded_state(path: str | Path, placements_of) -> State:
    """The native tensors of a checkpoint, on a mesh of all ranks; `placements_of(fqn, tensor)` None: plain."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("x",))
    state: State = {}
    for fqn, whole in reference.native(path).items():
        placement = placements_of(fqn, whole)
        if placement is None:
            state[fqn] = whole
            continue
        held = held_indices(whole.shape, mesh.shape, mesh.get_coordinate(), [placement])
        state[fqn] = DTensor.from_local(
            take(whole, held).contiguous(),
            mesh,
            [placement],
            run_check=False,
            shape=whole.shape,
            stride=whole.stride(),
        )
    return state


def rows(fqn: str, tensor: torch.Tensor) -> Placement | None:
    return Shard(0) if tensor.dim() > 0 else None


def inside_blocks(fqn: str, tensor: torch.Tensor) -> Placement | None:
    """Cuts along the blocks, in five parts of which each rank gets a share: ranks' boundaries lie inside blocks."""
    if tensor.dim() < 2:
        return Replicate()
    return _StridedShard(1, split_factor=5)


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def empty_like(state: State) -> State:
    return {fqn: torch.zeros_like(tensor) for fqn, tensor in state.items()}


def expect_files(directory: Path, source: str, quantized: bool) -> None:
    if dist.get_rank() == 0:
        assert problems_of_files(directory) == []
        assert wrong_tensors(directory, Path(source), None, quantized=quantized) == []


def expect_loads_back(state: State, directory: Path) -> None:
    back = empty_like(state)
    dcp.load(back, storage_reader=sw.HuggingFaceStorageReader(directory), planner=sw.LoadPlanner())
    assert [fqn for fqn in state if not reference.same(local(back[fqn]), local(state[fqn]))] == []


def save(state: State, directory: Path, planner=None, **options) -> "sw.SaveReport":
    writer = sw.HuggingFaceStorageWriter(directory, **options)
    dcp.save(state, storage_writer=writer, planner=planner or sw.SavePlanner())
    return writer.report


def mxfp8_with_rows_over_ranks(path: str, uneven: str) -> None:
    for source in (path, uneven):
        with shared_folder() as folder:
            state = sharded_state(source, rows)
            save(state, folder / "to", quantization="mxfp8", template=source, max_shard_size="1MB")
            expect_files(folder / "to", source, quantized=True)
            expect_loads_back(state, folder / "to")


def mxfp8_with_boundaries_inside_blocks(path: str, uneven: str) -> None:
    for source in (path, uneven):
        with shared_folder() as folder:
            state = sharded_state(source, inside_blocks)
            save(state, folder / "to", quantization="mxfp8", template=source)
            expect_files(folder / "to", source, quantized=True)
            expect_loads_back(state, folder / "to")


def bf16(path: str, uneven: str) -> None:
    for source in (path, uneven):
        with shared_folder() as folder:
            state = sharded_state(source, inside_blocks)
            save(state, folder / "to", template=source)
            expect_files(folder / "to", source, quantized=False)
            expect_loads_back(state, folder / "to")


def torchs_planner(path: str, uneven: str) -> None:
    """Another planner's write items will do, too."""
    with shared_folder() as folder:
        state = sharded_state(path, rows)
        planner = dcp.DefaultSavePlanner()
        save(state, folder / "to", planner, quantization="mxfp8", template=path)
        expect_files(folder / "to", path, quantized=True)


def replicas(path: str, uneven: str) -> None:
    """What every rank holds whole is written once, by all of them alike."""
    with shared_folder() as folder:
        state = sharded_state(path, lambda fqn, tensor: Replicate() if tensor.dim() == 2 else None)
        report = sw.export(state, folder / "to", quantization="mxfp8", template=path)
        expect_files(folder / "to", path, quantized=True)
        written: list[int] = [0] * dist.get_world_size()
        dist.all_gather_object(written, report.bytes_written)
        assert sum(written) == bytes_of_files(folder / "to")
        assert max(written) <= 1.1 * sum(written) / len(written), written


def asynchronous(path: str, uneven: str) -> None:
    """The parameters may change right after async_save has returned."""
    with shared_folder() as folder:
        state = sharded_state(path, inside_blocks)
        writer = sw.HuggingFaceStorageWriter(folder / "to", quantization="mxfp8", template=path)
        future = dcp.async_save(state, storage_writer=writer, planner=sw.SavePlanner())
        for tensor in state.values():
            local(tensor).zero_()
        future.result()
        dist.barrier()
        expect_files(folder / "to", path, quantized=True)


class Holder(nn.Module):
    """A module of these tensors, named as they are: floats of a dtype as parameters, others as buffers."""

    def __init__(self, state: State) -> None:
        super().__init__()
        for fqn, tensor in state.items():
            *path, name = fqn.split(".")
            module: nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module._modules[part]
            if tensor.dtype == torch.bfloat16:
                module.register_parameter(name, nn.Parameter(tensor.clone()))
            else:
                module.register_buffer(name, tensor.clone())


def fsdp2_state(path: str) -> State:
    """What `fully_shard` makes of the model, a group for each layer, as trainers do."""
    model = Holder(reference.native(path))
    for layer in model.get_submodule("model.layers").children():
        fully_shard(layer)
    fully_shard(model)
    return model.state_dict()


def fsdp2(path: str, uneven: str) -> None:
    for source in (path, uneven):
        for quantization in ("mxfp8", None):
            with shared_folder() as folder:
                state = fsdp2_state(source)
                assert any(isinstance(tensor, DTensor) for tensor in state.values())
                save(state, folder / "to", quantization=quantization, template=source)
                expect_files(folder / "to", source, quantized=quantization == "mxfp8")


def from_a_sharded_save(path: str, uneven: str) -> None:
    """Training's checkpoint of these ranks becomes a released one, in one process or on all of these."""
    with shared_folder() as folder:
        sw.save({"model": sharded_state(path, inside_blocks), "step": 7}, folder / "training")
        state = {"model": empty_like(sharded_state(path, rows))}
        sw.load(state, folder / "training", verify=True)
        save(state["model"], folder / "to", quantization="mxfp8", template=path)
        expect_files(folder / "to", path, quantized=True)


def under_another_name(path: str, uneven: str) -> None:
    """checkpoint_id= overrules the writer's path, which may be used again."""
    with shared_folder() as folder:
        state = sharded_state(uneven, rows)
        writer = sw.HuggingFaceStorageWriter(folder / "unused", quantization="mxfp8", template=uneven)
        for name in ("first", "second"):
            dcp.save(state, checkpoint_id=folder / name, storage_writer=writer, planner=sw.SavePlanner())
            expect_files(folder / name, uneven, quantized=True)
        dist.barrier()
        assert sorted(entry.name for entry in folder.iterdir()) == ["first", "second"]
        dist.barrier()


def a_failure_in_the_background(path: str, uneven: str) -> None:
    """On the last rank alone: all hear of it when they wait, nothing is there, and the next export works."""
    last = dist.get_world_size() - 1
    with shared_folder() as folder:
        state = sharded_state(uneven, rows)
        bound = {"staging_bytes": 1} if dist.get_rank() == last else {}
        writer = sw.HuggingFaceStorageWriter(folder / "to", template=uneven, **bound)
        future = dcp.async_save(state, storage_writer=writer, planner=sw.SavePlanner())
        try:
            future.result()
            raise AssertionError("expected an error")
        except CheckpointException as failure:
            assert f"rank {last}: staging_bytes" in str(failure), failure
        dist.barrier()
        assert list(folder.iterdir()) == []
        dist.barrier()
        save(state, folder / "to", template=uneven)
        expect_files(folder / "to", uneven, quantized=False)


def expect_refused_everywhere(
    folder: Path, exception: type[Exception], words: list[str], state: State, **options
):
    """All ranks get the same error, and nothing is there, not even for a moment's sake."""
    message = ""
    try:
        sw.export(state, folder / "to", **options)
    except exception as refused:
        message = str(refused)
    messages: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(messages, message)
    assert len(set(messages)) == 1, messages
    assert [word for word in words if word not in message] == [], message
    assert list(folder.iterdir()) == []


def one_rank_fails_while_it_writes(path: str, uneven: str) -> None:
    last = dist.get_world_size() - 1
    with shared_folder() as folder:
        options = {"staging_bytes": 1} if dist.get_rank() == last else {}
        state = sharded_state(path, rows)
        expect_refused_everywhere(
            folder, ValueError, [f"rank {last}", "staging_bytes"], state, template=path, **options
        )


def one_rank_has_another_shape(path: str, uneven: str) -> None:
    with shared_folder() as folder:
        state = sharded_state(path, lambda fqn, tensor: None)
        if dist.get_rank() == 1:
            state["model.norm.weight"] = torch.zeros(3)
        words = ["model.norm.weight", "[3] on rank 1"]
        expect_refused_everywhere(folder, sw.PlanError, words, state, template=path)


def one_rank_has_other_arguments(path: str, uneven: str) -> None:
    """Each rank lays out the files by its own: they would write to each other's."""
    for name, mine, theirs, told in (
        ("max_shard_size", "5GB", 1200, "max_shard_size 5000000000 as on rank 0, found max_shard_size 1200"),
        ("quantization", None, "mxfp8", "quantization none as on rank 0, found quantization mxfp8"),
        ("template", path, uneven, "template"),
    ):
        with shared_folder() as folder:
            state = sharded_state(path, rows)
            options = {"template": path} | {name: mine if dist.get_rank() == 0 else theirs}
            words = ["rank 1: expected", told, "different arguments"]
            expect_refused_everywhere(folder, sw.PlanError, words, state, **options)


def a_part_that_no_rank_has(path: str, uneven: str) -> None:
    with shared_folder() as folder:
        state = sharded_state(path, rows)
        if dist.get_rank() == 1:
            del state["model.embed_tokens.weight"]
        expect_refused_everywhere(folder, sw.PlanError, ["model.embed_tokens.weight"], state, template=path)


def mxfp8_where_one_rank_alone_has_a_mark_of_the_family(path: str, uneven: str) -> None:
    """Ranks scale the blocks that they share before anyone has seen the names of all."""
    with shared_folder() as folder:
        state = sharded_state(
            uneven, lambda fqn, tensor: inside_blocks(fqn, tensor) if ".experts." in fqn else None
        )
        experts = {fqn: tensor for fqn, tensor in state.items() if ".experts." in fqn}
        mark = {fqn: tensor for fqn, tensor in state.items() if ".indexer.index_" in fqn}
        mine = experts | (mark if dist.get_rank() == 0 else {})
        sw.export(mine, folder / "told", quantization="mxfp8", model="minimax_m3")
        sw.export(mine, folder / "found", quantization="mxfp8")
        assert bytes_of_files(folder / "found") > 0
        for name in ("model-00001-of-00001.safetensors", "model.safetensors"):
            files = [folder / which / name for which in ("told", "found")]
            if files[0].exists():
                assert files[0].read_bytes() == files[1].read_bytes()


def stages_of_pipeline(path: str, parts: int) -> State:
    """This rank's stage: some layers, on a mesh of the ranks that share the stage, which divide the experts."""
    stages = dist.get_world_size() // parts
    mesh = init_device_mesh("cpu", (stages, parts), mesh_dim_names=("pp", "ep"))
    stage, experts = mesh.get_local_rank("pp"), mesh["ep"]
    state: State = {}
    for fqn, whole in reference.native(path).items():
        layer = re.search(r"model[.]layers[.](\d+)[.]", fqn)
        comes_last = "mtp" in fqn or fqn in ("lm_head.weight", "model.norm.weight")
        if (int(layer[1]) % stages if layer else (stages - 1) * comes_last) != stage:
            continue
        if ".experts." in fqn:
            held = held_indices(whole.shape, experts.shape, experts.get_coordinate(), [Shard(0)])
            state[fqn] = DTensor.from_local(
                take(whole, held).contiguous(),
                experts,
                [Shard(0)],
                run_check=False,
                shape=whole.shape,
                stride=whole.stride(),
            )
        else:
            state[fqn] = whole
    return state


def pipeline_stages(path: str, uneven: str) -> None:
    """No rank has all names, and none of another stage's meshes."""
    for source in (path, uneven):
        for parts in {1, dist.get_world_size() // 2}:
            state = stages_of_pipeline(source, parts)
            for quantization in ("mxfp8", None):
                with shared_folder() as folder:
                    report = sw.export(
                        state,
                        folder / "to",
                        quantization=quantization,
                        template=source,
                        max_shard_size="1MB",
                    )
                    assert report.left_out == []
                    expect_files(folder / "to", source, quantized=quantization == "mxfp8")
                    expect_loads_back(state, folder / "to")


def some_of_the_ranks(path: str, uneven: str) -> None:
    """Two groups export, save and load at the same time, each its own; ranks count from 0 in each."""
    half = dist.get_world_size() // 2
    members = [list(range(half)), list(range(half, 2 * half))]
    groups = [dist.new_group(ranks) for ranks in members]
    which = dist.get_rank() // half
    mesh = DeviceMesh.from_group(groups[which], "cpu")
    with shared_folder() as folder:
        state: State = {}
        for fqn, whole in reference.native((path, uneven)[which]).items():
            held = held_indices(
                whole.shape, mesh.shape, mesh.get_coordinate(), [rows(fqn, whole) or Replicate()]
            )
            state[fqn] = DTensor.from_local(
                take(whole, held).contiguous(),
                mesh,
                [rows(fqn, whole) or Replicate()],
                run_check=False,
                shape=whole.shape,
                stride=whole.stride(),
            )
        own = folder / f"{which}"
        sw.export(
            state,
            own / "hf",
            quantization="mxfp8",
            template=(path, uneven)[which],
            process_group=groups[which],
        )
        sw.save({"model": state}, own / "training", process_group=groups[which])
        for together in (False, groups[which]):
            back = empty_like(state)
            sw.load(back, own / "hf", cooperative=together)
            assert [n for n in state if not reference.same(local(back[n]), local(state[n]))] == []
            back = empty_like(state)
            sw.load({"model": back}, own / "training", cooperative=together)
            assert [n for n in state if not reference.same(local(back[n]), local(state[n]))] == []
        dist.barrier()
        for group, source in enumerate((path, uneven)):
            expect_files(folder / f"{group}" / "hf", source, quantized=True)


CHECKS = [
    pipeline_stages,
    some_of_the_ranks,
    mxfp8_with_rows_over_ranks,
    mxfp8_with_boundaries_inside_blocks,
    bf16,
    torchs_planner,
    replicas,
    asynchronous,
    fsdp2,
    from_a_sharded_save,
    under_another_name,
    a_failure_in_the_background,
    one_rank_fails_while_it_writes,
    one_rank_has_another_shape,
    one_rank_has_other_arguments,
    a_part_that_no_rank_has,
    mxfp8_where_one_rank_alone_has_a_mark_of_the_family,
]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    run_checks(CHECKS)
