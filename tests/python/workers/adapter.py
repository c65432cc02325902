"""Runs on ranks: the adapter on several ranks, each check compared with the reference on every rank.

    torchrun --nproc-per-node N adapter.py CHECKPOINT UNEVEN_CHECKPOINT RESULT.json

RESULT.json gets, for each check below, what went wrong on which rank; an empty text if nothing did.
"""

import reference
import shardwright as sw
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checks import run_checks
from hf_state import configs, hf_state_dict
from placements import experts_and_fsdp, held_indices, is_grouped, take
from shardwright.models.minimax_m3_vl.state_dict_adapter import (
    MiniMaxM3VLStateDictAdapter,
    _dequantize_mxfp8_local,
    _slice_mxfp8_scale_for_dtensor,
    create_mxfp8_scale_inv,
    dequantize_mxfp8,
)
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader as TorchReader
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

Sd = dict[str, torch.Tensor]


def experts_of(natives: Sd) -> int:
    return next(tensor.shape[0] for fqn, tensor in natives.items() if is_grouped(fqn))


def adapter_for(natives: Sd) -> MiniMaxM3VLStateDictAdapter:
    return MiniMaxM3VLStateDictAdapter(*configs(experts_of(natives)), None)


def held(whole: torch.Tensor, mesh: DeviceMesh, placements) -> torch.Tensor:
    return take(whole, held_indices(whole.shape, mesh.shape, mesh.get_coordinate(), placements))


def sharded(whole: torch.Tensor, mesh: DeviceMesh, placements, fill: bool = True) -> DTensor:
    local = held(whole, mesh, placements)
    return DTensor.from_local(
        local if fill else torch.zeros_like(local),
        mesh,
        placements,
        run_check=False,
        shape=whole.shape,
        stride=whole.stride(),
    )


def same_parts(found: Sd, expected: Sd) -> list[str]:
    """Names of tensors whose parts, placements or global shapes on this rank differ."""
    wrong = sorted(found.keys() ^ expected.keys())
    for fqn in found.keys() & expected.keys():
        ours, theirs = found[fqn], expected[fqn]
        if isinstance(theirs, DTensor):
            alike = (
                isinstance(ours, DTensor)
                and tuple(ours.placements) == tuple(theirs.placements)
                and ours.shape == theirs.shape
                and reference.same(ours.to_local(), theirs.to_local())
            )
        else:
            alike = not isinstance(ours, DTensor) and reference.same(ours, theirs)
        if not alike:
            wrong.append(fqn)
    return wrong


def three_steps(path: str, sharding_of) -> None:
    """`to_hf` → `dcp.load` with either reader → `from_hf`, and back and forth without a checkpoint."""
    natives = reference.native(path)
    expected, empty = {}, {}
    for fqn, whole in natives.items():
        mesh, placements = sharding_of(fqn, whole) or (None, [])
        expected[fqn] = sharded(whole, mesh, placements) if mesh else whole
        empty[fqn] = sharded(whole, mesh, placements, fill=False) if mesh else torch.zeros_like(whole)
    for reader in (sw.HuggingFaceStorageReader, TorchReader):
        state = dict(empty)
        adapter = adapter_for(natives)
        hf = adapter.to_hf(state, quantization=True, checkpoint=path)
        check_request(hf, path)
        dcp.load(hf, storage_reader=reader(path))
        loaded = adapter.from_hf(hf)
        assert same_parts(loaded, expected) == []
        assert all(loaded[fqn] is state[fqn] for fqn in state)
    adapter = adapter_for(natives)
    assert same_parts(adapter.from_hf(adapter.to_hf(expected)), expected) == []


def check_request(hf: Sd, path: str) -> None:
    stored = reference.read_checkpoint(path)
    for name, tensor in hf.items():
        assert tuple(tensor.shape) == stored[name].shape, name
        if name.endswith("_scale_inv"):
            one = 127 if tensor.dtype == torch.uint8 else 1
            assert not isinstance(tensor, DTensor) and (tensor == one).all()


def expert_parallel(path: str, uneven: str) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("ep",))
    for checkpoint in (path, uneven):
        three_steps(checkpoint, lambda fqn, t: (mesh, [Shard(0)]) if t.dim() >= 2 else None)


def expert_parallel_with_fsdp(path: str, uneven: str) -> None:
    for ep in (1, 2, dist.get_world_size()):
        for checkpoint in (path, uneven):
            three_steps(checkpoint, experts_and_fsdp(ep))


def matrices_on_dimension_1(path: str, uneven: str) -> None:
    """Everything on its last dimension, so that blocks of scales are cut; down projections on their hidden side."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("fsdp",))

    def sharding(fqn: str, tensor: torch.Tensor):
        if fqn.endswith("gate_and_up_projs"):
            return mesh, [Shard(1)]
        return (mesh, [Shard(tensor.dim() - 1)]) if tensor.dim() >= 1 else None

    for checkpoint in (path, uneven):
        three_steps(checkpoint, sharding)


def experts_over_a_mesh_that_replicates(path: str, uneven: str) -> None:
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("ep_replicate", "ep"))
    for checkpoint in (path, uneven):
        three_steps(checkpoint, lambda fqn, t: (mesh, [Replicate(), Shard(0)]) if is_grouped(fqn) else None)


def plain_tensors_and_a_mesh(path: str, uneven: str) -> None:
    """From a whole HF state dict a rank takes its experts: the first `E mod n` ranks hold one more."""
    world, rank = dist.get_world_size(), dist.get_rank()
    # Made before anything can fail: a rank that has failed would leave the others waiting for it.
    mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("ep",))
    half = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("ep", "ep_shard"))
    for checkpoint in (path, uneven):
        natives = reference.native(checkpoint)
        count = experts_of(natives)
        each, more = divmod(count, world)
        start = sum(each + (1 if r < more else 0) for r in range(rank))
        mine = list(range(start, start + each + (1 if rank < more else 0)))
        adapter = adapter_for(natives)
        for hf in (hf_state_dict(checkpoint), only_experts(hf_state_dict(checkpoint), mine)):
            loaded = adapter.from_hf(hf, device_mesh=mesh)
            assert loaded.keys() == natives.keys()
            for fqn, tensor in loaded.items():
                if is_grouped(fqn):
                    assert isinstance(tensor, DTensor) and tensor.placements == (Shard(0),)
                    assert tensor.shape == natives[fqn].shape
                    assert reference.same(tensor.to_local(), natives[fqn][mine]), fqn
                else:
                    assert reference.same(tensor, natives[fqn]), fqn
            asked = adapter.to_hf(loaded)
            assert {e for e in map(expert_of, asked) if e is not None} == set(mine)
            assert same_parts(adapter.from_hf(asked, device_mesh=mesh), loaded) == []
        if count % (world // 2) == 0:
            loaded = adapter.from_hf(hf_state_dict(checkpoint), device_mesh=half)
            for fqn, whole in natives.items():
                if is_grouped(fqn):
                    part = held(whole, half, [Shard(0), Shard(1)])
                    assert reference.same(loaded[fqn].to_local(), part), fqn


def expert_of(name: str) -> int | None:
    parts = name.split(".")
    return int(parts[parts.index("experts") + 1]) if "experts" in parts else None


def only_experts(hf: Sd, experts: list[int]) -> Sd:
    return {name: t for name, t in hf.items() if expert_of(name) is None or expert_of(name) in experts}


def every_layout_comes_back(path: str, uneven: str) -> None:
    """`from_hf(to_hf(x))` is x, over one mesh dimension and over two, these on different and on the same dimension."""
    world = dist.get_world_size()
    flat = init_device_mesh("cpu", (world,), mesh_dim_names=("ep",))
    square = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("ep", "ep_shard"))

    def over_one(fqn: str, tensor: torch.Tensor):
        return flat, [Shard(1 if is_joined(fqn) else 0)]

    def over_two(fqn: str, tensor: torch.Tensor):
        if tensor.dim() == 1 or is_joined(fqn):
            return square, [Replicate(), Shard(tensor.dim() - 1)]
        return square, [Shard(0), Shard(2 if "gate_up_proj" in fqn else 1)]

    def twice(fqn: str, tensor: torch.Tensor):
        if is_grouped(fqn) or is_joined(fqn):
            return over_two(fqn, tensor)
        return square, [_StridedShard(0, split_factor=2), Shard(0)] if tensor.dim() == 2 else [Shard(0)] * 2

    for layout in ("automodel", "transformers", "huggingface"):
        for checkpoint in (path, uneven):
            count = experts_of(reference.native(checkpoint))
            natives = reference.native(checkpoint, layout=layout)
            for sharding in (over_one, over_two, twice):
                state = {fqn: sharded(whole, *sharding(fqn, whole)) for fqn, whole in natives.items()}
                adapter = MiniMaxM3VLStateDictAdapter(*configs(count), None, layout=layout)
                back = adapter.from_hf(adapter.to_hf(state))
                assert same_parts(back, state) == [], (layout, sharding.__name__)
                # Without the memory that they came from: the values went by way of HF's names and shapes.
                copies = {name: tensor.clone() for name, tensor in adapter.to_hf(state).items()}
                if sharding is over_two and layout != "huggingface":
                    other = MiniMaxM3VLStateDictAdapter(*configs(count), None, layout=layout)
                    found = other.from_hf(copies, device_mesh=square)
                    assert same_local_parts(found, state) == [], layout


def is_joined(fqn: str) -> bool:
    """Gate and up projections of one MLP, row below row."""
    return fqn.endswith("gate_up_proj.weight")


def same_local_parts(found: Sd, expected: Sd) -> list[str]:
    """Of the tensors of which this rank holds something."""
    held_here = {fqn: tensor.to_local() for fqn, tensor in expected.items() if tensor.to_local().numel()}
    return [
        fqn
        for fqn, local in held_here.items()
        if not (fqn in found and reference.same(local_of(found[fqn]), local))
    ]


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def a_rank_misses_only_its_own_experts(path: str, uneven: str) -> None:
    natives = reference.native(path)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("ep",))
    hf = {name: tensor for name, tensor in hf_state_dict(path).items() if expert_of(name) != 0}
    try:
        adapter_for(natives).from_hf(hf, device_mesh=mesh)
    except RuntimeError as refused:
        assert dist.get_rank() == 0 and "experts.0.w1.weight" in str(refused), refused
        assert "ep 0" in str(refused)
    else:
        assert dist.get_rank() != 0


def views_for_a_load_are_not_given_back(path: str, uneven: str) -> None:
    natives = reference.native(path)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("ep",))
    state, full = {}, {}
    for fqn, whole in natives.items():
        placements = [Shard(0)] if is_grouped(fqn) else [Replicate()]
        state[fqn] = sharded(whole, mesh, placements, fill=False)
        full[fqn] = sharded(whole, mesh, placements)
    adapter = adapter_for(natives)
    hf = adapter.to_hf(state, for_checkpoint_load=True)
    for name, tensor in adapter_for(natives).to_hf(full).items():
        local = hf[name].to_local() if isinstance(tensor, DTensor) else hf[name]
        local.copy_(tensor.to_local() if isinstance(tensor, DTensor) else tensor)
    loaded = adapter.from_hf(hf, device_mesh=mesh)
    grouped = {fqn for fqn in natives if is_grouped(fqn)}
    assert adapter.view_loaded_native_keys == grouped
    assert loaded.keys() == natives.keys() - grouped
    assert same_parts(state, full) == []
    adapter.from_hf(hf_state_dict(path))
    assert adapter.view_loaded_native_keys == set()


def single_weights(path: str, uneven: str) -> None:
    """`dequantize_mxfp8` of DTensors with any placement, the scales global, cut beforehand, or DTensors."""
    world = dist.get_world_size()
    flat = init_device_mesh("cpu", (world,), mesh_dim_names=("a",))
    square = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("a", "b"))
    layouts = [
        (flat, [Shard(0)]), (flat, [Shard(1)]), (flat, [Replicate()]), (square, [Shard(0), Shard(1)]),
        (square, [Shard(1), Shard(1)]), (square, [Shard(0), Shard(0)]),
        (square, [_StridedShard(0, split_factor=2), Shard(0)]),
    ]  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    for rows, columns in ((8, 256), (7, 83), (3, 65), (1, 31)):
        codes = torch.randint(0, 256, (rows, columns), dtype=torch.uint8, generator=generator)
        blocks = (rows, -(-columns // 32))
        scales = torch.randint(0, 256, blocks, dtype=torch.uint8, generator=generator)
        whole = reference.decode_mxfp8(codes.numpy(), scales.numpy(), torch.bfloat16)
        for mesh, placements in layouts:
            weight = sharded(codes.view(torch.float8_e4m3fn).view(torch.uint8), mesh, placements)
            weight = DTensor.from_local(
                weight.to_local().view(torch.float8_e4m3fn), mesh, placements, run_check=False,
                shape=weight.shape, stride=weight.stride(),
            )  # fmt: skip
            expected = held(whole, mesh, placements)
            for scale_inv in (scales, sharded(scales, mesh, [Replicate()] * mesh.ndim)):
                found = dequantize_mxfp8(weight, scale_inv)
                assert found.placements == weight.placements and found.shape == weight.shape
                assert reference.same(found.to_local(), expected), (rows, columns, placements)
            create = create_mxfp8_scale_inv(weight)
            assert not isinstance(create, DTensor) and tuple(create.shape) == blocks
            cut = _slice_mxfp8_scale_for_dtensor(scales, weight, weight.to_local(), 32)
            indices = held_indices((rows, columns), mesh.shape, mesh.get_coordinate(), placements)
            if all(len(each) for each in indices):
                wanted = scales[indices[0]][:, sorted(set(indices[1] // 32))]
                assert torch.equal(cut, wanted), (rows, columns, placements)
                if indices[1][0] % 32 == 0:
                    local = _dequantize_mxfp8_local(weight.to_local(), cut, 32, torch.bfloat16)
                    assert reference.same(local, expected)
                    assert reference.same(dequantize_mxfp8(weight, cut).to_local(), expected)


def meshes_that_do_not_fit_are_named(path: str, uneven: str) -> None:
    natives = reference.native(path)
    world = dist.get_world_size()
    nameless = init_device_mesh("cpu", (world,))
    other = init_device_mesh("cpu", (world,), mesh_dim_names=("tp",))
    for mesh, words in ((nameless, "no names"), (other, "tp")):
        try:
            adapter_for(natives).from_hf(hf_state_dict(path), device_mesh=mesh)
        except ValueError as refused:
            assert words in str(refused) and "ep_shard" in str(refused), refused
        else:
            raise AssertionError("not refused")
    square = init_device_mesh("cpu", (1, world))
    grouped = {
        fqn: sharded(whole, square, [Shard(0), Shard(1)]) for fqn, whole in natives.items() if is_grouped(fqn)
    }
    joined = {
        fqn: sharded(whole, other, [Shard(2)]) for fqn, whole in natives.items() if "gate_and_up" in fqn
    }
    sums = {
        fqn: DTensor.from_local(whole, other, [Partial()], run_check=False)
        for fqn, whole in natives.items()
        if "gate_and_up" in fqn or "q_proj" in fqn
    }
    one_sum = {fqn: tensor for fqn, tensor in sums.items() if "q_proj" in fqn}
    for state, words in (
        (grouped, "has no names"), (joined, "joins several HF tensors"), (sums, "P(sum)"), (one_sum, "P(sum)")
    ):  # fmt: skip
        try:
            adapter_for(natives).to_hf(state)
        except ValueError as refused:
            assert words in str(refused) and str(refused).startswith(tuple(state)), refused
        else:
            raise AssertionError("not refused")


CHECKS = [
    expert_parallel,
    expert_parallel_with_fsdp,
    matrices_on_dimension_1,
    experts_over_a_mesh_that_replicates,
    plain_tensors_and_a_mesh,
    every_layout_comes_back,
    a_rank_misses_only_its_own_experts,
    views_for_a_load_are_not_given_back,
    single_weights,
    meshes_that_do_not_fit_are_named,
]


if __name__ == "__main__":
    run_checks(CHECKS)
