"""Every native layout holds what the reference says, whole and sharded, from any dialect of names."""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import reference
import shardwright as sw
import torch.distributed.checkpoint as dcp
from checkpoints import Sizes, config_of, made_up_m3, write_checkpoint, write_m3
from command import output_of
from destinations import Destination, destinations_like, state_of, wrong
from hypothesis import given, settings
from hypothesis import strategies as st
from placements import bytes_held, held_indices, take
from test_property import MESHES, fake_mesh, sharded
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader as TorchReader
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard

LAYOUTS = ["transformers", "huggingface"]  # all other tests speak of "automodel"


def weights_of(path: Path) -> set[str]:
    return {name for name in reference.read_checkpoint(path) if not name.endswith("_scale_inv")}


@pytest.mark.parametrize("preset", ["tiny", "small"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_preset_loads_completely(layout: str, preset: str, request):
    path = request.getfixturevalue(preset)
    expected = reference.native(path, layout=layout)
    destinations = destinations_like(expected)
    report = sw.load(state_of(destinations), path, layout=layout)
    assert wrong(destinations, expected) == []
    without_place = {name for name in weights_of(path) if ".mtp." in name and layout == "transformers"}
    assert set(report.unused) == without_place


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_state_dict_has_the_names_shapes_and_dtypes_of_the_layout(layout: str, tiny: Path):
    state_dict = sw.empty_state_dict(tiny, layout=layout)
    expected = reference.native(tiny, layout=layout)
    assert {fqn: (t.shape, t.dtype) for fqn, t in state_dict.items()} == {
        fqn: (t.shape, t.dtype) for fqn, t in expected.items()
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reader", [sw.HuggingFaceStorageReader, lambda path: TorchReader(str(path))])
def test_dcp_loads_the_layout_with_either_reader(layout: str, reader, tiny: Path):
    state_dict = sw.empty_state_dict(tiny, layout=layout)
    dcp.load(state_dict, storage_reader=reader(tiny), planner=sw.LoadPlanner(layout=layout), no_dist=True)
    for fqn, expected in reference.native(tiny, layout=layout).items():
        assert reference.same(state_dict[fqn], expected), fqn


@pytest.mark.parametrize("prefix", ["", "bare"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_text_only_checkpoint_loads_whatever_prefix_its_names_have(
    layout: str, prefix: str, tmp_path: Path
):
    path = write_checkpoint(tmp_path / "m3", made_up_m3(prefix=prefix), config=config_of())
    expected = reference.native(path, layout=layout)
    assert len(expected) > 20 and not any("language_model." in fqn for fqn in expected)
    destinations = destinations_like(expected)
    sw.load(state_of(destinations), path, layout=layout)
    assert wrong(destinations, expected) == []


def spelled(name: str, prefix: str) -> str:
    """An HF name of the text part, which begins with "language_model.", as a checkpoint with `prefix` has it."""
    name = name.removeprefix("language_model.")
    return name.removeprefix("model.") if prefix == "bare" else prefix + name


@pytest.mark.parametrize("in_files", ["language_model.", "", "bare"])
@pytest.mark.parametrize("in_trainer", ["language_model.", ""])
def test_a_trainer_with_hf_names_may_spell_the_text_part_otherwise(
    in_files: str, in_trainer: str, tmp_path: Path
):
    path = write_checkpoint(tmp_path / "m3", made_up_m3(prefix=in_files), config=config_of())
    text = [name for name in made_up_m3() if name.startswith("language_model.")]
    stored = reference.native(path, layout="huggingface")
    expected = {
        spelled(name, in_trainer): stored[spelled(name, in_files)]
        for name in text
        if not name.endswith("_scale_inv")
    }
    destinations = destinations_like(expected)
    report = sw.load(state_of(destinations), path, layout="huggingface")
    assert wrong(destinations, expected) == []
    assert all(name.startswith(("vision_", "multi_", "patch_")) for name in report.unused)


# --- sharded ------------------------------------------------------------------------------------------------

TEXT, HF_TEXT = "model.language_model.layers", "language_model.model.layers"
TENSORS = {  # by layout: name and number of dimensions
    "transformers": {
        f"{TEXT}.1.mlp.experts.gate_up_proj": 3,
        f"{TEXT}.1.mlp.experts.down_proj": 3,
        f"{TEXT}.1.mlp.shared_experts.gate_up_proj.weight": 2,
        f"{TEXT}.0.mlp.gate_up_proj.weight": 2,
        f"{TEXT}.0.mlp.down_proj.weight": 2,
        f"{TEXT}.1.self_attn.indexer.q_proj.weight": 2,
        f"{TEXT}.1.mlp.gate.e_score_correction_bias": 1,
        "model.vision_tower.embeddings.proj.weight": 5,
        "model.multi_modal_projector.merge_linear_1.weight": 2,
    },
    "huggingface": {
        f"{HF_TEXT}.1.block_sparse_moe.experts.0.w1.weight": 2,
        f"{HF_TEXT}.1.block_sparse_moe.experts.0.w2.weight": 2,
        f"{HF_TEXT}.0.mlp.up_proj.weight": 2,
        f"{HF_TEXT}.1.self_attn.index_k_norm.weight": 1,
        "language_model.model.mtp.layers.0.eh_proj.weight": 2,
        "vision_tower.vision_model.embeddings.patch_embedding.weight": 5,
    },
}


@dataclass
class Case:
    layout: str
    sizes: Sizes
    seed: int
    mesh: tuple[int, ...]
    placements: dict[str, list[Placement]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    size = st.integers(1, 70)
    layout = draw(st.sampled_from(LAYOUTS))
    mesh = draw(st.sampled_from(MESHES))
    placements = {}
    for fqn in draw(st.lists(st.sampled_from(list(TENSORS[layout])), min_size=1, max_size=3, unique=True)):
        dims = st.integers(0, TENSORS[layout][fqn] - 1)
        placement = st.one_of(
            dims.map(Shard),
            st.just(Replicate()),
            st.builds(_StridedShard, dims, split_factor=st.integers(1, 4)),
        )
        placements[fqn] = draw(st.lists(placement, min_size=len(mesh), max_size=len(mesh)))
    sizes = Sizes(
        hidden=draw(size), inter=draw(size), dense_inter=draw(size), experts=draw(st.integers(1, 6))
    )
    return Case(layout, sizes, draw(st.integers(0, 2**32 - 1)), mesh, placements)


@settings(max_examples=-(-settings().max_examples // 2))
@given(case=cases())
def test_each_shard_equals_its_slice_of_the_reference(case: Case):
    with tempfile.TemporaryDirectory() as directory:
        path = write_m3(Path(directory) / "m3", case.sizes, case.seed)
        checkpoint = reference.read_checkpoint(path)
        parts = reference.native_parts(checkpoint, case.layout)
        expected = reference.native(path, layout=case.layout)
        for rank in range(math.prod(case.mesh)):
            with fake_mesh(case.mesh, rank) as mesh:
                destinations, slices, state, needed = {}, {}, {}, 0
                for fqn, placements in case.placements.items():
                    whole = expected[fqn]
                    held = held_indices(whole.shape, case.mesh, tuple(mesh.get_coordinate()), placements)
                    slices[fqn] = take(whole, held)
                    destinations[fqn] = Destination(slices[fqn].shape, whole.dtype)
                    state[fqn] = sharded(destinations[fqn].tensor, whole, mesh, placements)
                    needed += bytes_held(parts[fqn], checkpoint, held, transposed=False)
                report = sw.load(state, path, layout=case.layout)
                assert wrong(destinations, slices) == [], f"rank {rank}"
                # Where the parts of a strided shard lie in one block of 32, each counts the block's scale.
                assert report.bytes_needed >= needed
                if not any(isinstance(p, _StridedShard) for ps in case.placements.values() for p in ps):
                    assert report.bytes_needed == needed


# --- what is wrong, and the command line ----------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tensor_of_another_layout_is_named(layout: str, tiny: Path):
    state_dict = sw.empty_state_dict(tiny, layout="automodel")
    with pytest.raises(sw.PlanError, match=f"layout {layout}(.|\n)*mlp.experts.gate_and_up_projs"):
        sw.load(state_dict, tiny, layout=layout)


def test_experts_that_the_joined_tensor_lacks_are_named(tiny: Path):
    fqn = f"{TEXT}.1.mlp.experts.gate_up_proj"
    state_dict = sw.empty_state_dict(tiny, layout="transformers")
    state_dict[fqn] = state_dict[fqn][:3].clone()
    with pytest.raises(sw.PlanError, match=f"{fqn}.*experts 3"):
        sw.load(state_dict, tiny, layout="transformers")


def test_an_unknown_layout_is_told_with_those_that_are_known(tiny: Path):
    with pytest.raises(ValueError, match="'megatron'.*automodel, transformers, huggingface"):
        sw.load({}, tiny, layout="megatron")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_command_line_plans_the_layout(layout: str, tiny: Path):
    expected = reference.native(tiny, layout=layout)
    written = sum(tensor.nbytes for tensor in expected.values())
    plan = output_of("plan", tiny, "--layout", layout)
    assert f"{written:,}" in plan


@pytest.mark.ranks
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_of_the_command_line_load_the_layout(layout: str, tiny: Path):
    assert "rank 1 of 2" in output_of("load", tiny, "--ranks", "2", "--layout", layout)
