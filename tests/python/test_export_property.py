"""Any shapes, any mesh of up to 8 ranks, any placements and strides: an export's files are those of the reference."""

import math
import tempfile
from pathlib import Path

import pytest
import reference
import shardwright as sw
import torch
from checkpoints import write_m3
from destinations import Destination
from exported import bytes_of_files, problems_of_files, wrong_tensors
from hypothesis import given
from hypothesis import strategies as st
from placements import held_indices, take
from test_property import Case, cases, fake_mesh, sharded
from torch.distributed.tensor import Replicate


def state_of_rank(case: Case, expected: dict[str, torch.Tensor], mesh) -> dict[str, torch.Tensor]:
    """What this rank holds: all tensors, those that the case does not speak of plain and whole."""
    state = {}
    for fqn, whole in expected.items():
        wanted = case.wanted.get(fqn)
        if wanted is None:
            state[fqn] = whole
            continue
        placements = wanted.placements or [Replicate()] * mesh.ndim
        held = held_indices(whole.shape, case.mesh, tuple(mesh.get_coordinate()), placements)
        local = Destination(take(whole, held).shape, wanted.dtype, wanted.layout).tensor
        local.copy_(take(whole, held))
        state[fqn] = sharded(local, whole, mesh, placements) if wanted.placements else local
    return state


def export_on_all_ranks(
    case: Case, expected: dict[str, torch.Tensor], path: Path, **options
) -> list["sw.SaveReport"]:
    """What dcp.save makes the ranks do, one after the other."""
    ranks = []
    for rank in range(math.prod(case.mesh)):
        writer = sw.HuggingFaceStorageWriter(path, thread_count=case.threads, **options)
        planner = sw.SavePlanner()
        with fake_mesh(case.mesh, rank) as mesh:
            planner.set_up_planner(state_of_rank(case, expected, mesh), writer.storage_meta(), rank == 0)
            writer.set_up_storage_writer(rank == 0, rank=rank)
            ranks.append((writer, planner, writer.prepare_local_plan(planner.create_local_plan())))
    coordinator, planner, _ = ranks[0]
    plans, metadata = planner.create_global_plan([plan for _, _, plan in ranks])
    plans = coordinator.prepare_global_plan(plans)
    results = [
        writer.write_data(planner.finish_plan(plan), planner).wait()
        for (writer, planner, _), plan in zip(ranks, plans, strict=True)
    ]
    coordinator.finish(metadata, results)
    return [writer.report for writer, _, _ in ranks]


@pytest.mark.parametrize("quantization", ["mxfp8", None])
@given(case=cases(whole_rows=False), max_shard_size=st.sampled_from([1, 5000, "5GB"]))
def test_the_files_are_those_of_the_reference(
    quantization: str | None, case: Case, max_shard_size: int | str
):
    with tempfile.TemporaryDirectory() as folder:
        source = write_m3(Path(folder, "m3"), case.sizes, case.seed, files=case.files)
        dtypes = {fqn: wanted.dtype for fqn, wanted in case.wanted.items()}
        expected = reference.native(source, dtypes.get)
        path = Path(folder, "exported")
        reports = export_on_all_ranks(
            case, expected, path, quantization=quantization, template=source, max_shard_size=max_shard_size,
            staging_bytes=case.staging_bytes,
        )  # fmt: skip
        assert wrong_tensors(path, source, dtypes.get, quantized=quantization == "mxfp8") == []
        assert problems_of_files(path) == []
        assert sum(report.bytes_written for report in reports) == bytes_of_files(path)
