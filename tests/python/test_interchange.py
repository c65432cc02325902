"""Either half of DCP may be torch's own: all ways of loading give the same bits."""

import inspect
import json
import re
import warnings
from pathlib import Path

import pytest
import reference
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from checkpoints import INDEX, Sizes, made_up_m3, write_safetensors
from reference import differing
from safetensors.torch import save_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader as TorchReader
from torch.distributed.checkpoint.quantized_hf_storage import QuantizedHuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict, _load_state_dict_from_keys


def loaded(path: Path, reader, planner) -> dict[str, torch.Tensor]:
    state_dict = sw.empty_state_dict(path)
    dcp.load(state_dict, storage_reader=reader, planner=planner, no_dist=True)
    return state_dict


@pytest.mark.parametrize("threads", [1, 3])
def test_our_planner_decodes_what_torchs_reader_reads(tiny: Path, threads: int):
    state_dict = loaded(tiny, TorchReader(str(tiny), thread_count=threads), sw.LoadPlanner())
    for fqn, expected in reference.native(tiny).items():
        assert reference.same(state_dict[fqn], expected.to(state_dict[fqn].dtype)), fqn


def test_a_reader_that_decodes_by_itself_is_found_out(tiny: Path):
    """Its values would be multiplied by the scales twice."""
    name = "language_model.model.layers.0.mlp.down_proj.weight"
    reader = QuantizedHuggingFaceStorageReader(str(tiny), block_size=32)
    state = {"model.layers.0.mlp.down_proj.weight": torch.full((64, 96), 7, dtype=torch.bfloat16)}
    with pytest.raises(
        dcp.api.CheckpointException, match=re.escape(f"{name}: expected elements as they are stored")
    ):
        dcp.load(state, storage_reader=reader, planner=sw.LoadPlanner(), no_dist=True)
    assert (state["model.layers.0.mlp.down_proj.weight"] == 7).all()


def test_what_waits_for_its_other_half_is_scales_and_not_elements(tmp_path: Path):
    """A checkpoint may keep all its scales in a file of their own, behind the others."""
    tensors = made_up_m3(Sizes())
    names = sorted(tensors, key=lambda name: name.endswith("_scale_inv"))
    weights = next(i for i, name in enumerate(names) if name.endswith("_scale_inv"))
    files = {"model-1-of-2.safetensors": names[:weights], "model-2-of-2.safetensors": names[weights:]}
    for file, part in files.items():
        write_safetensors(tmp_path / file, {name: tensors[name] for name in part})
    weight_map = {name: file for file, part in files.items() for name in part}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    waiting = []

    class Watched(sw.LoadPlanner):
        def commit_tensor(self, read_item, tensor):
            super().commit_tensor(read_item, tensor)
            waiting.extend(number for number in self._arrived if number % 3 == 0)

    planner = Watched(model="minimax_m3")
    state = {name: torch.zeros_like(t) for name, t in reference.native(tmp_path).items()}
    dcp.load(state, storage_reader=TorchReader(str(tmp_path)), planner=planner, no_dist=True)
    assert differing(state, reference.native(tmp_path)) == []
    assert waiting == []


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


def test_our_reader_is_made_as_torchs_is():
    theirs = inspect.signature(TorchReader).parameters
    ours = inspect.signature(sw.HuggingFaceStorageReader).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    assert all(ours[name].kind == theirs[name].kind for name in theirs)
    added = [parameter for name, parameter in ours.items() if name not in theirs]
    assert all(p.kind == p.KEYWORD_ONLY and p.default is not p.empty for p in added)


def test_our_planner_has_torchs_options():
    theirs = inspect.signature(dcp.DefaultLoadPlanner).parameters
    ours = inspect.signature(sw.LoadPlanner).parameters
    assert {name: parameter.default for name, parameter in theirs.items()} == {
        name: ours[name].default for name in theirs
    }


def test_torch_rebuilds_a_state_dict_from_nothing_with_our_reader(tiny: Path):
    """`_load_state_dict_from_keys` makes the tensors by the metadata, under HF names, as they are stored."""
    theirs = _load_state_dict_from_keys(storage_reader=TorchReader(str(tiny)))
    for reader in (sw.HuggingFaceStorageReader(tiny), reset_to(tiny)):
        ours = _load_state_dict_from_keys(storage_reader=reader)
        assert ours.keys() == theirs.keys() == reference.read_checkpoint(tiny).keys()
        for name, tensor in theirs.items():
            assert torch.equal(ours[name].view(torch.uint8), tensor.view(torch.uint8)), name


def reset_to(path: Path) -> sw.HuggingFaceStorageReader:
    """A reader of another directory, pointed to this one as `dcp.load(checkpoint_id=...)` does."""
    reader = sw.HuggingFaceStorageReader(path.parent)
    assert reader.validate_checkpoint_id(path) and TorchReader.validate_checkpoint_id(path)
    reader.reset(path)
    assert Path(reader.checkpoint_id) == path
    return reader


@pytest.mark.parametrize("planner", [dcp.DefaultLoadPlanner, sw.LoadPlanner])
def test_checkpoint_id_points_our_reader_elsewhere(tiny: Path, planner):
    native = reference.native(tiny)
    by_hf_names = planner is dcp.DefaultLoadPlanner
    name = ("language_model." if by_hf_names else "") + "model.norm.weight"
    state = {name: torch.zeros_like(native["model.norm.weight"])}
    reader = sw.HuggingFaceStorageReader(tiny.parent)
    dcp.load(state, checkpoint_id=str(tiny), storage_reader=reader, planner=planner(), no_dist=True)
    assert reference.same(state[name], native["model.norm.weight"])


def test_our_reader_takes_metadata_that_torchs_has_read(tiny: Path):
    reader = sw.HuggingFaceStorageReader(tiny)
    name = "language_model.lm_head.weight"
    expected = reference.native(tiny)["lm_head.weight"]
    state = {name: torch.zeros_like(expected)}
    metadata = TorchReader(str(tiny)).read_metadata()
    planner = dcp.DefaultLoadPlanner()
    planner.set_up_planner(state, metadata, True)
    reader.set_up_storage_reader(metadata, True)
    reader.read_data(planner.create_local_plan(), planner).wait()
    assert reference.same(state[name], expected)


def test_elements_are_not_given_without_their_scales(tiny: Path):
    name = "language_model.model.mtp.layers.0.eh_proj.weight"
    stored = reference.read_checkpoint(tiny)
    shape = stored[name].shape
    decoded = {name: torch.zeros(shape, dtype=torch.bfloat16)}
    dcp.load(decoded, storage_reader=sw.HuggingFaceStorageReader(tiny), no_dist=True)
    expected = reference.decode(stored, name, torch.bfloat16)
    assert reference.same(decoded[name], expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="torch.distributed is")
        dcp.load(
            {name: torch.zeros(shape, dtype=torch.float8_e4m3fn)},
            storage_reader=sw.HuggingFaceStorageReader(tiny),
            no_dist=True,
        )


CASTS = [torch.float32, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn]


@pytest.mark.parametrize("stored", CASTS)
def test_torchs_planner_may_ask_for_any_dtype_with_either_reader(tmp_path: Path, stored: torch.dtype):
    """What is asked for in another dtype is cast as `Tensor.copy_` casts."""
    values = {"a": torch.arange(12).reshape(3, 4).to(stored), "b": torch.tensor(1).to(stored)}
    save_file(values, tmp_path / "model.safetensors")
    for dtype in CASTS:
        state = {name: torch.zeros(value.shape, dtype=dtype) for name, value in values.items()}
        dcp.load(state, storage_reader=sw.HuggingFaceStorageReader(tmp_path), no_dist=True)
        for name, value in values.items():
            assert reference.same(state[name].view(-1), value.to(dtype).view(-1)), (name, dtype)


READERS = [sw.HuggingFaceStorageReader, TorchReader]


@pytest.mark.parametrize("reader", READERS)
def test_an_empty_state_dict_loads_nothing_as_with_torchs_planner(tiny: Path, reader):
    for planner in (sw.LoadPlanner(), dcp.DefaultLoadPlanner()):
        state_dict: dict = {}
        _load_state_dict(state_dict, reader(str(tiny)), no_dist=True, planner=planner)
        dcp.load(state_dict, storage_reader=reader(str(tiny)), planner=planner, no_dist=True)
        assert state_dict == {}


@pytest.mark.parametrize("reader", READERS)
def test_nested_state_dicts_are_flattened_unless_told_not_to(tiny: Path, reader):
    expected = reference.native(tiny)["model.layers.0.self_attn.q_proj.weight"]
    leaf = torch.zeros_like(expected)
    nested = {"model": {"layers": [{"self_attn": {"q_proj.weight": leaf}}]}}
    dcp.load(nested, storage_reader=reader(str(tiny)), planner=sw.LoadPlanner(), no_dist=True)
    assert reference.same(leaf, expected)
    with pytest.raises(dcp.api.CheckpointException, match="model: expected a tensor"):
        dcp.load(
            nested,
            storage_reader=reader(str(tiny)),
            planner=sw.LoadPlanner(flatten_state_dict=False),
            no_dist=True,
        )


@pytest.mark.parametrize("reader", READERS)
def test_a_partial_load_leaves_what_the_checkpoint_lacks(tiny: Path, reader):
    expected = reference.native(tiny)["model.norm.weight"]
    lacking = torch.full((3,), 7.0)
    state = {"model.norm.weight": torch.zeros_like(expected), "value.head": lacking, "step": 5}
    with pytest.raises(dcp.api.CheckpointException, match=r"step: expected a tensor[\s\S]*value\.head"):
        dcp.load(state, storage_reader=reader(str(tiny)), planner=sw.LoadPlanner(), no_dist=True)
    planner = sw.LoadPlanner(allow_partial_load=True)
    dcp.load(state, storage_reader=reader(str(tiny)), planner=planner, no_dist=True)
    assert reference.same(state["model.norm.weight"], expected)
    assert state["step"] == 5 and state["value.head"] is lacking and lacking.tolist() == [7.0] * 3


def test_our_reader_can_stand_where_torchs_stands(tiny: Path):
    reader = sw.HuggingFaceStorageReader(path=str(tiny), thread_count=2)
    assert isinstance(reader, TorchReader)
    assert str(reader.checkpoint_id) == str(tiny)
