"""Runs on ranks: LoRA tensors sharded over ranks, each check compared with plain index arithmetic on every rank.

torchrun --nproc-per-node N lora.py CHECKPOINT UNEVEN_CHECKPOINT RESULT.json
"""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import shardwright as sw
import torch
import torch.distributed as dist
from checks import run_checks
from lora_reference import Sd, Sizes, file_tensors, nan_like, read_adapter, trainers, write_adapter
from placements import held_indices, take
from reference import differing
from shardwright.lora import save as lora_save
from shardwright.models.minimax_m3_vl.state_dict_adapter import MiniMaxM3VLStateDictAdapter
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard

EVEN = Sizes(experts=4, hidden=12, inter=8, rank=4, dense=8)
UNEVEN = Sizes(experts=5, hidden=7, inter=3, rank=3, dense=5)


def shared_directory() -> Path:
    """The same new directory on all ranks."""
    names = [tempfile.mkdtemp() if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(names)
    return Path(names[0])


def sharded(whole: torch.Tensor, mesh: DeviceMesh, placements: list[Placement]) -> DTensor:
    local = take(whole, held_indices(whole.shape, mesh.shape, mesh.get_coordinate(), placements))
    return DTensor.from_local(
        local.clone(), mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def local_parts(state_dict: Sd) -> Sd:
    return {name: t.to_local() if isinstance(t, DTensor) else t for name, t in state_dict.items()}


def nan_parts(state_dict: Sd) -> Sd:
    empty = {}
    for name, tensor in state_dict.items():
        empty[name] = tensor.clone()
        local_parts(empty)[name].fill_(torch.nan)
    return empty


def meshes() -> list[tuple[DeviceMesh, list[Placement], list[Placement]]]:
    """(mesh, placements of experts, placements of modules)."""
    ranks = dist.get_world_size()
    flat = init_device_mesh("cpu", (ranks,), mesh_dim_names=("ep",))
    square = init_device_mesh("cpu", (ranks // 2, 2), mesh_dim_names=("ep", "ep_shard"))
    return [
        (flat, [Shard(0)], [Shard(0)]),
        (flat, [Shard(1)], [Shard(1)]),
        (flat, [Shard(2)], [Replicate()]),
        (square, [Shard(0), Shard(1)], [Replicate(), Shard(0)]),
        (square, [Shard(0), Replicate()], [Shard(1), Shard(0)]),
        (square, [_StridedShard(0, split_factor=2), Shard(0)], [_StridedShard(0, split_factor=2), Shard(0)]),
    ]


def states(sizes: Sizes) -> list[tuple[Sd, Sd]]:
    """(whole, sharded) of the same LoRA tensors, for each of the meshes."""
    whole = trainers(sizes)
    return [
        (
            whole,
            {
                name: sharded(tensor, mesh, experts if ".experts." in name else modules)
                for name, tensor in whole.items()
            },
        )
        for mesh, experts, modules in meshes()
    ]


def saves_what_one_rank_would(*_) -> None:
    for sizes in (EVEN, UNEVEN):
        for whole, parts in states(sizes):
            for layout in ("transformers", "huggingface"):
                path = shared_directory()
                sw.save_lora(parts, path, alpha=8, layout=layout)
                assert differing(read_adapter(path), file_tensors(whole, layout)) == []
                assert sorted(p.name for p in path.iterdir()) == [
                    "adapter_config.json",
                    "adapter_model.safetensors",
                ]


def loads_its_part(*_) -> None:
    for sizes in (EVEN, UNEVEN):
        for whole, parts in states(sizes):
            for layout, legacy in (("transformers", False), ("transformers", True), ("huggingface", False)):
                path = shared_directory()
                if dist.get_rank() == 0:
                    write_adapter(path, file_tensors(whole, layout, legacy=legacy))
                dist.barrier()
                found = nan_parts(parts)
                sw.load_lora(found, path)
                assert differing(local_parts(found), local_parts(parts)) == []


def reads_its_experts_only(*_) -> None:
    whole = {name: tensor for name, tensor in trainers(EVEN).items() if ".experts." in name}
    mesh = meshes()[0][0]
    path = shared_directory()
    mine = whole if dist.get_rank() == 0 else {}
    sw.save_lora(mine, path, alpha=8, model="minimax_m3", layout="huggingface")
    parts = {name: sharded(tensor, mesh, [Shard(0)]) for name, tensor in whole.items()}
    report = sw.load_lora(nan_parts(parts), path)
    held = sum(t.numel() * t.element_size() for t in local_parts(parts).values())
    assert report.load.bytes_needed == held, (report.load.bytes_needed, held)


def needs_its_experts_only(*_) -> None:
    """Rank 0's first expert is missing: an error there and nowhere else."""
    whole = trainers(EVEN)
    tensors = {
        n: t
        for n, t in file_tensors(whole, "huggingface").items()
        if ".1.block_sparse_moe.experts.0." not in n
    }
    path = shared_directory()
    if dist.get_rank() == 0:
        write_adapter(path, tensors)
    dist.barrier()
    mesh = meshes()[0][0]
    parts = {n: sharded(t, mesh, [Shard(0)] if ".experts." in n else [Replicate()]) for n, t in whole.items()}
    try:
        sw.load_lora(nan_parts(parts), path)
        failure = ""
    except sw.PlanError as error:
        failure = str(error)
    assert ("experts.0.w1.lora_A.weight" in failure) == (dist.get_rank() == 0), failure


def pipeline_stages_have_different_tensors(*_) -> None:
    whole = trainers(EVEN)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    pairs = sorted({name.replace("_B", "_A") for name in whole})
    mine = {n: t for n, t in whole.items() if pairs.index(n.replace("_B", "_A")) % ranks == rank}
    path = shared_directory()
    sw.save_lora(mine, path, alpha=8)
    assert differing(read_adapter(path), file_tensors(whole, "transformers")) == []
    found = nan_like(mine)
    sw.load_lora(found, path, strict=False)
    assert differing(found, mine) == []


def failures_of_rank_0_are_everyones(*_) -> None:
    path = shared_directory()
    if dist.get_rank() == 0:
        (path / "file").write_text("")
    dist.barrier()
    try:
        sw.save_lora(trainers(EVEN), path / "file", alpha=8)
    except OSError:
        return
    raise AssertionError("no OSError")


def failures_of_another_rank_are_everyones(*_) -> None:
    """Of a part that it has to give: no rank waits for it for ever."""
    path, last = shared_directory(), dist.get_world_size() - 1
    whole = trainers(EVEN)
    mine = {name: t for at, (name, t) in enumerate(whole.items()) if at < 4 or dist.get_rank() == last}

    def out_of_memory(*_) -> None:
        raise RuntimeError("no memory is left")

    usual = lora_save._AdapterWriter._write_share
    if dist.get_rank() == last:
        lora_save._AdapterWriter._write_share = out_of_memory
    try:
        sw.save_lora(mine, path, alpha=8)
    except ValueError as error:
        assert f"rank {last}: no memory is left" in str(error), error
        assert list(path.iterdir()) == []
    else:
        raise AssertionError("no ValueError")
    finally:
        lora_save._AdapterWriter._write_share = usual


def a_part_that_no_rank_has_is_named(*_) -> None:
    whole = trainers(EVEN)
    mesh = meshes()[0][0]
    parts = {name: sharded(tensor, mesh, [Shard(0)]) for name, tensor in whole.items()}
    lacks = "model.layers.1.mlp.experts.lora_down_A"
    mine = parts if dist.get_rank() == 0 else {name: t for name, t in parts.items() if name != lacks}
    path = shared_directory()
    try:
        sw.save_lora(mine, path, alpha=8)
    except sw.PlanError as error:
        assert lacks in str(error), error
        assert list(path.iterdir()) == []
        return
    raise AssertionError("no PlanError")


def the_adapter_goes_both_ways(*_) -> None:
    config = SimpleNamespace(text_config=SimpleNamespace(num_mtp_modules=1))
    for sizes in (EVEN, UNEVEN):
        adapter = MiniMaxM3VLStateDictAdapter(
            config, SimpleNamespace(n_routed_experts=sizes.experts, moe_inter_dim=sizes.inter), None
        )
        whole = {name: tensor for name, tensor in trainers(sizes).items() if ".experts." in name}
        expected = file_tensors(whole, "automodel")
        for mesh, placements, _ in (meshes()[0], meshes()[3]):
            coordinate, local_experts = mesh.get_coordinate(), []
            parts = {name: sharded(tensor, mesh, placements) for name, tensor in whole.items()}
            hf = adapter.to_hf({"base_model.model." + name: tensor for name, tensor in parts.items()})
            first = next(iter(whole.values()))
            local_experts = held_indices(first.shape, mesh.shape, coordinate, placements)[0].tolist()
            mine = {
                n: t
                for n, t in expected.items()
                if int(n.split(".experts.")[1].split(".")[0]) in local_experts
            }
            assert hf.keys() == mine.keys(), sorted(hf.keys() ^ mine.keys())
            if len(placements) == 1:
                assert differing(hf, mine) == []
            else:
                for name, tensor in hf.items():
                    lies = [Shard(1)]  # the inputs of A, the ranks of B
                    assert isinstance(tensor, DTensor) and list(tensor.placements) == lies, (
                        name,
                        tensor.placements,
                    )
                    held = held_indices(mine[name].shape, (2,), (coordinate[1],), lies)
                    assert torch.equal(tensor.to_local(), take(mine[name], held)), name
            if sizes is UNEVEN:
                continue  # which experts a rank then holds depends on who deals them out
            back = adapter.from_hf(hf, device_mesh=mesh)
            back = {name.removeprefix("base_model.model."): tensor for name, tensor in back.items()}
            assert back.keys() == parts.keys()
            for name in parts:
                assert list(back[name].placements) == placements, (name, back[name].placements)
            assert differing(local_parts(back), local_parts(parts)) == []


if __name__ == "__main__":
    run_checks(
        [
            saves_what_one_rank_would,
            loads_its_part,
            reads_its_experts_only,
            needs_its_experts_only,
            pipeline_stages_have_different_tensors,
            failures_of_rank_0_are_everyones,
            failures_of_another_rank_are_everyones,
            a_part_that_no_rank_has_is_named,
            the_adapter_goes_both_ways,
        ]
    )
