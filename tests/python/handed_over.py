"""Pieces put together by plain torch, and the tensors that safetensors' own reader finds in an export."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import shardwright as sw
import torch
from placements import held_indices, take
from safetensors import safe_open
from shardwright import _core
from shardwright.handover.pieces import Described
from test_property import fake_mesh
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Placement


def put_together(pieces: Iterable["sw.Piece"]) -> dict[str, torch.Tensor]:
    """Whole tensors. Raises where an element comes twice, or not at all."""
    tensors: dict[str, torch.Tensor] = {}
    seen: dict[str, torch.Tensor] = {}  # how often each byte has come
    for piece in pieces:
        if piece.name not in tensors:
            tensors[piece.name] = torch.zeros(piece.shape, dtype=piece.dtype)
            seen[piece.name] = torch.zeros(tensors[piece.name].nbytes, dtype=torch.uint8)
        whole = tensors[piece.name]
        assert tuple(whole.shape) == piece.shape and whole.dtype == piece.dtype, piece.name
        assert piece.tensor.is_contiguous()
        if whole.numel() == 0:
            continue
        for of, value in (
            (whole, piece.tensor),
            (seen[piece.name], torch.ones(piece.tensor.nbytes, dtype=torch.uint8)),
        ):
            place = of.view(piece.tensor.dtype).view(piece.view)[piece.box]
            assert place.shape == piece.tensor.shape, piece.name
            assert of is whole or not bits(place).any(), f"{piece.name}: an element comes twice"
            place.copy_(value.view(piece.tensor.dtype).view(place.shape))
    for name, counts in seen.items():
        assert counts.numel() == 0 or counts.all(), f"{name}: not whole"
    return tensors


def exported(directory: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in sorted(Path(directory).glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    return tensors


def wrong_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    """Names that one lacks, and those of tensors that differ in dtype, shape or any bit."""
    wrong = sorted(found.keys() ^ expected.keys())
    for name in found.keys() & expected.keys():
        one, other = found[name], expected[name]
        same = one.dtype == other.dtype and one.shape == other.shape
        if not same or not torch.equal(bits(one), bits(other)):
            wrong.append(name)
    return wrong


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def sharded_over(
    state: dict[str, torch.Tensor], mesh: DeviceMesh, placements: dict[str, list[Placement]]
) -> dict[str, torch.Tensor]:
    """The state as a rank of the mesh holds it, by index arithmetic."""
    shards = {}
    for name, whole in state.items():
        held = held_indices(whole.shape, mesh.shape, tuple(mesh.get_coordinate()), placements[name])
        shards[name] = DTensor.from_local(
            take(whole, held).contiguous(), mesh, placements[name], run_check=False, shape=whole.shape,
            stride=whole.stride(),
        )  # fmt: skip
    return shards


def of_all_ranks(
    state: dict[str, torch.Tensor],
    mesh: tuple[int, ...],
    placements: dict[str, list[Placement]],
    sums=None,
    **options,
) -> Iterator["sw.Piece"]:
    """What all ranks of a mesh hand over, one after the other, as sw.pieces plans it. `sums`: of each rank."""
    ranks = []
    for rank in range(math.prod(mesh)):
        with fake_mesh(mesh, rank) as of_rank:
            own = {"changed_since": sums[rank]} if sums is not None else {}
            ranks.append(Described(sharded_over(state, of_rank, placements), **(options | own)))
    for rank, share in zip(
        ranks, _core.plan_export([rank.holdings for rank in ranks], ranks[0].request, ""), strict=True
    ):
        yield from rank.handed_over(rank.source(share))
