"""Any shapes, any mesh of up to 8 ranks, any placements and strides: shards equal slices of the reference."""

import contextlib
import itertools
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import reference
import shardwright as sw
import torch
import torch.distributed as dist
from checkpoints import Sizes, write_m3
from destinations import Destination, Layout
from hypothesis import given
from hypothesis import strategies as st
from placements import bytes_held, held_indices, take
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

LAYER, MTP = "model.layers.1", "model.mtp.layers.0"
VISION = "vision_tower.vision_model"

# Number of dimensions, and those that cut no source row in two. A grouped expert weight is [expert, in, out].
TENSORS = {
    f"{LAYER}.mlp.experts.gate_and_up_projs": (3, (0, 2)),
    f"{LAYER}.mlp.experts.down_projs": (3, (0, 2)),
    f"{MTP}.transformer_layer.mlp.experts.gate_and_up_projs": (3, (0, 2)),
    f"{MTP}.eh_proj.weight": (2, (0,)),
    f"{LAYER}.self_attn.q_proj.weight": (2, (0,)),
    "model.layers.0.mlp.down_proj.weight": (2, (0,)),
    f"{LAYER}.shared_experts.up_proj.weight": (2, (0,)),
    "model.embed_tokens.weight": (2, (0,)),
    f"{LAYER}.mlp.gate.e_score_correction_bias": (1, (0,)),
    f"{VISION}.embeddings.patch_embedding.weight": (5, (0,)),
    f"{VISION}.encoder.layers.0.mlp.fc1.bias": (1, (0,)),
}

MESHES = [
    mesh for dims in (1, 2, 3) for mesh in itertools.product(range(1, 9), repeat=dims) if math.prod(mesh) <= 8
]


@dataclass
class Wanted:
    """One native tensor, as the trainer wants it."""

    placements: list[Placement] | None  # None: a plain tensor
    dtype: torch.dtype
    layout: Layout


@dataclass
class Case:
    sizes: Sizes
    seed: int
    how: dict[str, str]  # the block-scaled weights are stored
    files: int
    mesh: tuple[int, ...]
    wanted: dict[str, Wanted] = field(default_factory=dict)
    threads: int | None = None
    staging_bytes: int | None = None


@st.composite
def cases(draw: st.DrawFn, whole_rows: bool) -> Case:
    encoding = draw(st.sampled_from(["mxfp8", "block_fp8", "tensor_fp8"]))
    size = st.integers(1, 70)
    if encoding == "block_fp8":  # so that there are several blocks, and shards begin and end inside them
        size |= st.integers(129, 160)
    case = Case(
        sizes=Sizes(
            hidden=draw(size),
            inter=draw(size),
            dense_inter=draw(size),
            experts=draw(st.integers(1, 6)),
            heads=draw(st.integers(1, 3)),
            head_dim=draw(st.integers(1, 12)),
            vocab=draw(size),
            vision_hidden=draw(st.integers(1, 20)),
        ),
        seed=draw(st.integers(0, 2**32 - 1)),
        how={
            "encoding": encoding,
            "element_dtype": draw(st.sampled_from(["F8_E4M3", "F8_E5M2"])),
            "scale_dtype": draw(
                st.sampled_from(["U8", "F8_E8M0"] if encoding == "mxfp8" else ["F32", "BF16"])
            ),
            "scale_suffix": draw(st.sampled_from(["_scale_inv", "_scale"])),
        },
        files=draw(st.integers(1, 3)),
        mesh=draw(st.sampled_from(MESHES)),
        threads=draw(st.sampled_from([None, 1, 2, 3])),
        staging_bytes=draw(st.sampled_from([None, 1 << 16, 1 << 20])),
    )
    for fqn in draw(st.lists(st.sampled_from(list(TENSORS)), min_size=1, max_size=3, unique=True)):
        rank, row_dims = TENSORS[fqn]
        dims = st.sampled_from(row_dims if whole_rows else range(rank))
        placement = st.one_of(
            dims.map(Shard),
            st.just(Replicate()),
            # Of a vector, strided shards take single elements out of its one row.
            st.nothing()
            if whole_rows and rank == 1
            else st.builds(_StridedShard, dims, split_factor=st.integers(1, 4)),
        )
        case.wanted[fqn] = Wanted(
            draw(st.none() | st.lists(placement, min_size=len(case.mesh), max_size=len(case.mesh))),
            draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32])),
            Layout(
                order=draw(st.none() | st.permutations(range(rank)).map(tuple)),
                margin=draw(st.integers(0, 2)),
                step=draw(st.integers(1, 2)),
            ),
        )
    return case


@contextlib.contextmanager
def fake_mesh(mesh: tuple[int, ...], rank: int):
    """The mesh as this rank sees it, without the others."""
    dist.init_process_group("fake", rank=rank, world_size=math.prod(mesh), store=FakeStore())
    try:
        yield init_device_mesh("cpu", mesh, mesh_dim_names=("x", "y", "z")[: len(mesh)])
    finally:
        dist.destroy_process_group()


def sharded(
    local: torch.Tensor, whole: torch.Tensor, mesh: DeviceMesh, placements: list[Placement]
) -> DTensor:
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def check_rank(
    case: Case, path: Path, expected: dict[str, torch.Tensor], mesh: DeviceMesh
) -> tuple["sw.LoadReport", int]:
    """Loads what this rank wants and compares it. Returns the report and the bytes it needs."""
    destinations, slices, state, needed = {}, {}, {}, 0
    checkpoint = reference.read_checkpoint(path)
    parts = reference.native_parts(checkpoint)
    for fqn, wanted in case.wanted.items():
        whole = expected[fqn]
        placements = wanted.placements or [Replicate()] * mesh.ndim
        held = held_indices(whole.shape, case.mesh, tuple(mesh.get_coordinate()), placements)
        slices[fqn] = take(whole, held)
        destinations[fqn] = Destination(slices[fqn].shape, wanted.dtype, wanted.layout)
        local = destinations[fqn].tensor
        state[fqn] = sharded(local, whole, mesh, placements) if wanted.placements else local
        needed += bytes_held(parts[fqn], checkpoint, held)
    report = sw.load(state, path, threads=case.threads, staging_bytes=case.staging_bytes)
    for fqn in case.wanted:
        assert destinations[fqn].holds(slices[fqn]), f"{fqn} on rank {mesh.get_rank()}"
    return report, needed


def check(case: Case) -> list[tuple["sw.LoadReport", int]]:
    with tempfile.TemporaryDirectory() as directory:
        path = write_m3(Path(directory) / "m3", case.sizes, case.seed, files=case.files, **case.how)
        dtypes = {fqn: wanted.dtype for fqn, wanted in case.wanted.items()}
        expected = reference.native(path, dtypes.get, only=dtypes)
        results = []
        for rank in range(math.prod(case.mesh)):
            with fake_mesh(case.mesh, rank) as mesh:
                results.append(check_rank(case, path, expected, mesh))
        return results


def is_strided(case: Case) -> bool:
    return any(
        isinstance(placement, _StridedShard)
        for wanted in case.wanted.values()
        for placement in wanted.placements or ()
    )


@given(case=cases(whole_rows=False))
def test_each_shard_equals_its_slice_of_the_reference(case: Case):
    for report, needed in check(case):
        # Where the parts of a strided shard lie in one block of 32, each counts the block's scale.
        assert report.bytes_needed >= needed if is_strided(case) else report.bytes_needed == needed


@given(case=cases(whole_rows=True))
def test_whole_rows_are_read_alone(case: Case):
    for report, needed in check(case):
        assert report.bytes_needed == needed
        # Rows of a block share its scale, which each of the runs that they lie in reads.
        assert case.how["encoding"] != "mxfp8" or report.bytes_read <= 1.02 * needed
