"""Either half of DCP may be torch's own: all ways of loading give the same bits."""

from pathlib import Path

import pytest
import reference
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader as TorchReader


def loaded(path: Path, reader, planner) -> dict[str, torch.Tensor]:
    state_dict = sw.empty_state_dict(path)
    dcp.load(state_dict, storage_reader=reader, planner=planner, no_dist=True)
    return state_dict


@pytest.mark.parametrize("threads", [1, 3])
def test_our_planner_decodes_what_torchs_reader_reads(tiny: Path, threads: int):
    state_dict = loaded(tiny, TorchReader(str(tiny), thread_count=threads), sw.LoadPlanner())
    for fqn, expected in reference.native(tiny).items():
        assert reference.same(state_dict[fqn], expected.to(state_dict[fqn].dtype)), fqn


def test_our_reader_reads_what_torchs_planner_asks_for_as_it_is_stored(tiny: Path):
    by_ours = {t.name: torch.zeros(t.shape, dtype=stored_dtype(t)) for t in sw.read_catalog(tiny).tensors}
    by_torchs = {name: tensor.clone() for name, tensor in by_ours.items()}
    dcp.load(by_ours, storage_reader=sw.HuggingFaceStorageReader(tiny), no_dist=True)
    dcp.load(by_torchs, storage_reader=TorchReader(str(tiny)), no_dist=True)
    for name, tensor in by_torchs.items():
        assert torch.equal(by_ours[name].view(torch.uint8), tensor.view(torch.uint8)), name


def stored_dtype(tensor) -> torch.dtype:
    from shardwright.describe import DTYPES

    return DTYPES[tensor.dtype]


def test_our_metadata_is_that_of_torchs_reader(tiny: Path):
    ours = sw.HuggingFaceStorageReader(tiny).read_metadata()
    theirs = TorchReader(str(tiny)).read_metadata()
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data == theirs.storage_data


def test_torchs_planner_hears_of_a_key_that_the_checkpoint_lacks(tiny: Path):
    with pytest.raises(dcp.api.CheckpointException, match="no.such.tensor"):
        dcp.load(
            {"no.such.tensor": torch.zeros(3)}, storage_reader=sw.HuggingFaceStorageReader(tiny), no_dist=True
        )


def test_our_reader_can_stand_where_torchs_stands(tiny: Path):
    reader = sw.HuggingFaceStorageReader(path=str(tiny), thread_count=2)
    assert isinstance(reader, TorchReader)
    assert str(reader.checkpoint_id) == str(tiny)
