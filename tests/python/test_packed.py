"""A state dict may hold encoded weights as files do: codes and companions, regrouped and not decoded."""

from pathlib import Path

import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from encoded import Weight, fp8_weights, mxfp4_packed, packed_weights
from packed_models import (
    MODELS,
    PackedModel,
    Tensors,
    differing,
    gpt_oss,
    held,
    packed_gpt_oss,
    same_bytes,
)
from placements import held_indices, take
from shardwright import _core
from test_property import fake_mesh, sharded
from test_stored_weights import placements_of, write
from torch.distributed.tensor import DTensor, Shard

GENERATOR = torch.Generator().manual_seed(4)
WEIGHTS = fp8_weights(GENERATOR) + packed_weights(GENERATOR)
each = pytest.mark.parametrize("weight", WEIGHTS, ids=lambda weight: weight.name)
models = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
LAYOUTS = [(model, layout) for model in MODELS for layout in model.natives]


def filled(state: Tensors) -> Tensors:
    """Bytes that nothing stored here has everywhere."""
    for tensor in state.values():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        local.reshape(-1).view(torch.uint8).fill_(0x5A)
    return state


def native_of(weight: Weight) -> Tensors:
    """What a trainer holds of a weight under its own name."""
    packed = {}
    module = weight.name.removesuffix("weight")
    endings = {
        f"{weight.name}_packed": "",
        f"{weight.name}_blocks": "",
        f"{weight.name}_scales": "_scale_inv",
    }
    for name, tensor in weight.stored.items():
        if name.endswith("_shape"):
            continue
        native = weight.name + endings[name] if name in endings else name
        if name == f"{module}scale":
            native = f"{weight.name}_scale"
        packed[native] = tensor.flatten(-2) if name == f"{weight.name}_blocks" else tensor
    return packed


def loaded(path: Path, **how) -> Tensors:
    state = filled(sw.empty_state_dict(path, dtype="packed", **how))
    report = sw.load(state, path, dtype="packed", **how)
    assert report.not_loaded == [] and report.unknown == [] and report.rounded == {}
    return state


@each
def test_under_the_files_own_names_it_is_what_the_files_hold(weight: Weight, tmp_path: Path):
    path = write(tmp_path / "from", weight)
    state = loaded(path, layout="huggingface")
    assert state.keys() == native_of(weight).keys()
    assert differing(state, native_of(weight)) == []
    sw.export(state, tmp_path / "to", template=path, layout="huggingface")
    assert held(tmp_path / "to").keys() == weight.stored.keys()
    assert differing(held(tmp_path / "to"), weight.stored) == []


@each
def test_every_shard_is_that_part_of_the_codes_and_of_each_companion(weight: Weight, tmp_path: Path):
    path = write(tmp_path, weight)
    whole = native_of(weight)
    for placements in placements_of(whole[weight.name].dim()):
        shape = {1: (3,), 2: (2, 2)}[len(placements)]
        for rank in range(4 if len(placements) == 2 else 3):
            with fake_mesh(shape, rank) as mesh:
                expected, state, locals_ = {}, {}, {}
                for name, tensor in whole.items():
                    if any(getattr(one, "dim", 0) >= tensor.dim() for one in placements):
                        expected[name], state[name] = tensor, torch.zeros_like(tensor)
                        locals_[name] = state[name]
                        continue
                    held_here = held_indices(tensor.shape, shape, tuple(mesh.get_coordinate()), placements)
                    expected[name] = (
                        take(tensor.view(torch.uint8), held_here).view(tensor.dtype)
                        if (tensor.dtype.itemsize == 1)
                        else take(tensor, held_here)
                    )
                    locals_[name] = torch.zeros(expected[name].shape, dtype=tensor.dtype)
                    state[name] = sharded(locals_[name], tensor, mesh, placements)
                sw.load(state, path, layout="huggingface", dtype="packed", staging_bytes=1 << 16, threads=1)
            assert differing(locals_, expected) == [], (placements, rank)


@pytest.mark.parametrize(
    "name, dim, ranks, alone",
    [
        ("mxfp4.weight", 0, 3, []),  # each row has its own scales
        ("mxfp4.weight", 1, 3, [1, 2]),  # 28, 28 and 24 of 80 columns, in blocks of 32
        ("block_fp8.weight", 0, 2, [1]),
    ],
)
def test_codes_whose_scales_are_on_another_rank_are_told(
    name: str, dim: int, ranks: int, alone: list[int], tmp_path: Path
):
    if name == "mxfp4.weight":
        weight = next(weight for weight in WEIGHTS if weight.name == name)
    else:
        codes = torch.zeros(200, 256, dtype=torch.float8_e4m3fn)
        weight = Weight(name, {name: codes, f"{name}_scale_inv": torch.ones(2, 2)}, codes.float())
    path, whole = write(tmp_path, weight), native_of(weight)
    for rank in range(ranks):
        with fake_mesh((ranks,), rank) as mesh:
            state = {}
            for key, tensor in whole.items():
                held_here = held_indices(tensor.shape, (ranks,), (rank,), [Shard(dim)])
                part = torch.zeros([len(one) for one in held_here], dtype=tensor.dtype)
                state[key] = sharded(part, tensor, mesh, [Shard(dim)])
            report = sw.load(state, path, layout="huggingface", dtype="packed")
        assert report.codes_alone == ([name] if rank in alone else []), rank
    assert sw.load(dict(whole), path, layout="huggingface", dtype="packed").codes_alone == []


@pytest.mark.parametrize("model, layout", LAYOUTS, ids=[f"{m.name}-{layout}" for m, layout in LAYOUTS])
def test_experts_are_regrouped_and_go_back_as_they_were(model: PackedModel, layout: str, tmp_path: Path):
    stored = model.write(tmp_path / "from")
    state = filled(sw.empty_state_dict(tmp_path / "from", dtype="packed", layout=layout))
    report = sw.load(state, tmp_path / "from", dtype="packed", layout=layout)
    assert report.not_loaded == [] and report.unknown == [] and report.rounded == {}
    no_place = {name.rsplit(".", 1)[0] for name in report.unused}
    assert all("mtp." in name or "layers.2." in name for name in no_place)
    kept = {name: tensor for name, tensor in stored.items() if name.rsplit(".", 1)[0] not in no_place}
    expected = model.packed(kept, layout)
    assert len(expected) >= 4
    assert differing(state, expected) == []
    for name, tensor in stored.items():  # what no rule renames or joins
        if name in state:
            assert same_bytes(state[name], tensor), name
    sw.export(state, tmp_path / "to", template=tmp_path / "from", layout=layout)
    assert held(tmp_path / "to").keys() == kept.keys()
    assert differing(held(tmp_path / "to"), kept) == []
    config = (tmp_path / "from" / "config.json").read_bytes()
    assert (tmp_path / "to" / "config.json").read_bytes() == config


@pytest.mark.parametrize("layout", ["automodel", "transformers", "torchtitan"])
def test_gpt_oss_is_transposed_in_whole_bytes(layout: str, tmp_path: Path):
    stored = gpt_oss(tmp_path / "from")
    state = loaded(tmp_path / "from", layout=layout)
    expected = packed_gpt_oss(stored, layout)
    assert len(expected) == 8 and differing(state, expected) == []
    sw.export(state, tmp_path / "to", template=tmp_path / "from", layout=layout)
    assert held(tmp_path / "to").keys() == stored.keys()
    assert differing(held(tmp_path / "to"), stored) == []


@models
def test_meshes_shard_codes_and_companions_alike(model: PackedModel, tmp_path: Path):
    stored = model.write(tmp_path)
    whole = loaded(tmp_path)
    expected = model.packed(stored, "automodel")
    for names, shape in ((("ep", "ep_shard"), (2, 2)), (("shard",), (2,)), (("fsdp",), (4,))):
        for rank in range(torch.Size(shape).numel()):
            with fake_mesh(shape, rank) as unnamed:
                mesh = torch.distributed.device_mesh.init_device_mesh("cpu", shape, mesh_dim_names=names)
                assert unnamed.get_coordinate() == mesh.get_coordinate()
                state = filled(sw.empty_state_dict(tmp_path, mesh, dtype="packed"))
                sw.load(state, tmp_path, dtype="packed")
                for name, tensor in state.items():
                    part = held_indices(
                        whole[name].shape, shape, tuple(mesh.get_coordinate()), list(tensor.placements)
                    )
                    is_byte = whole[name].dtype.itemsize == 1
                    seen = whole[name].view(torch.uint8) if is_byte else whole[name]
                    assert same_bytes(tensor.to_local(), take(seen, part).view(whole[name].dtype)), (
                        name,
                        rank,
                    )
                if "ep" in names:
                    assert all(state[name].placements[0].is_shard(0) for name in expected)


def test_a_weight_in_bf16_is_decoded_beside_packed_ones(tmp_path: Path):
    """NVFP4 experts stay in 4 bits, MXFP8 attention becomes BF16, as trainers of M3's third release want it."""
    sw.generate(tmp_path, "tiny", encoding="nvfp4_modelopt")
    packed, decoded = loaded(tmp_path), sw.empty_state_dict(tmp_path)
    sw.load(decoded, tmp_path)
    state = {name: torch.zeros_like(t) for name, t in decoded.items() if ".mlp.experts." not in name}
    state |= {name: torch.zeros_like(t) for name, t in packed.items() if ".mlp.experts." in name}
    sw.load(state, tmp_path, dtype="packed")
    for name, tensor in state.items():
        assert same_bytes(tensor, packed[name] if ".mlp.experts." in name else decoded[name]), name
    sw.export(state, tmp_path / "to", template=tmp_path)
    assert differing(held(tmp_path / "to"), held(tmp_path)) == []


def test_both_halves_of_dcp_take_packed_tensors(tmp_path: Path):
    model = next(model for model in MODELS if model.name == "kimi_k2_int4")
    model.write(tmp_path)
    expected = loaded(tmp_path)
    state = filled(sw.empty_state_dict(tmp_path, dtype="packed"))
    dcp.load(
        state,
        storage_reader=sw.HuggingFaceStorageReader(tmp_path),
        planner=sw.LoadPlanner(dtype="packed"),
        no_dist=True,
    )
    assert differing(state, expected) == []


def test_a_plan_is_kept_and_replayed(tmp_path: Path):
    model = next(model for model in MODELS if model.name == "nvfp4_of_modelopt")
    model.write(tmp_path)
    expected = loaded(tmp_path)
    planner = sw.LoadPlanner(dtype="packed")
    reader = sw.HuggingFaceStorageReader(tmp_path)
    planner.set_up_planner(expected, reader.read_metadata())
    planner.create_local_plan()
    kept = _core.encode_plan(planner.core_plan, planner.catalog, planner.description.specs)
    state = filled(sw.empty_state_dict(tmp_path, dtype="packed"))
    sw.load(state, tmp_path, dtype="packed", plan=kept)
    assert differing(state, expected) == []


@models
def test_the_request_list_asks_for_what_is_stored(model: PackedModel, tmp_path: Path):
    stored = model.write(tmp_path)
    asked = {name: (dtype, tuple(shape)) for name, dtype, shape in sw.request_list(tmp_path, dtype="packed")}
    catalog = sw.read_catalog(tmp_path).as_stored()
    has = {tensor.name: (tensor.dtype, tuple(tensor.shape)) for tensor in catalog.tensors}
    assert asked == {name: of for name, of in has.items() if not name.endswith("weight_shape")}
    assert len(stored) == len(has)


def test_a_packed_state_dict_is_saved_and_resumed(tmp_path: Path):
    model = next(model for model in MODELS if model.name == "kimi_k2_int4")
    model.write(tmp_path / "from")
    expected = loaded(tmp_path / "from")
    sw.save(expected, tmp_path / "saved")
    state = filled({name: tensor.clone() for name, tensor in expected.items()})
    sw.load(state, tmp_path / "saved")
    assert differing(state, expected) == []


# --- what cannot be ---------------------------------------------------------------------------------------------------


def refused(state: Tensors, path: Path, *parts: str, **how) -> None:
    before = {name: tensor.clone() for name, tensor in state.items()}
    with pytest.raises(sw.PlanError) as error:
        sw.load(state, path, dtype="packed", **how)
    for part in parts:
        assert part in str(error.value), error.value
    assert differing(state, before) == []


def test_codes_without_what_decodes_them(tmp_path: Path):
    weight = next(weight for weight in WEIGHTS if weight.name == "nvfp4.weight")
    path = write(tmp_path, weight)
    state = sw.empty_state_dict(path, dtype="packed", layout="huggingface")
    del state["nvfp4.weight_scale_2"]
    refused(
        state,
        path,
        "nvfp4.weight: holds packed codes",
        "nvfp4.weight_scale_2",
        "F32 of shape []",
        layout="huggingface",
    )
    with pytest.raises(sw.PlanError, match="nvfp4.weight_scale_2"):
        sw.export(state, tmp_path / "to", template=path, layout="huggingface")
    del state["nvfp4.weight_scale"], state["nvfp4.input_scale"]
    refused(state, path, "nvfp4.weight_scale decodes", layout="huggingface")


def test_scales_of_activations_may_be_left_out(tmp_path: Path):
    weight = next(weight for weight in WEIGHTS if weight.name == "nvfp4.weight")
    path = write(tmp_path / "from", weight)
    state = sw.empty_state_dict(path, dtype="packed", layout="huggingface")
    del state["nvfp4.input_scale"]
    sw.load(state, path, dtype="packed", layout="huggingface")
    sw.export(
        state, tmp_path / "to", template=path, layout="huggingface"
    )  # which takes them from the template
    assert differing(held(tmp_path / "to"), weight.stored) == []


def test_another_shape_or_dtype(tmp_path: Path):
    model = next(model for model in MODELS if model.name == "kimi_k2_int4")
    model.write(tmp_path)
    state = sw.empty_state_dict(tmp_path, dtype="packed")
    name = next(name for name in state if name.endswith("gate_and_up_projs"))
    whole = state[name]
    state[name] = torch.zeros([4, 48, 80], dtype=torch.int32)  # the weight's shape, not that of its words
    refused(state, tmp_path, name, "expected I32 of shape [4, 6, 80]", "found shape [4, 48, 80]")
    state[name] = whole.view(torch.float32).clone().to(torch.int64)
    refused(state, tmp_path, name, "expected I32", "I64")


def test_joined_parts_whose_blocks_do_not_end_with_them_have_blocks_of_their_own(tmp_path: Path):
    """Gate and up of 40 rows, a scale for each 128 x 128: joined, they have two rows of scales and not one."""
    model = next(model for model in MODELS if model.name == "deepseek_v3_fp8")
    stored = model.write(tmp_path)
    state = loaded(tmp_path)
    name = next(name for name in state if name.endswith("gate_and_up_projs_scale_inv"))
    assert list(state[name].shape) == [4, 1, 2]
    assert differing({name: state[name]}, {name: model.packed(stored, "automodel")[name]}) == []


def test_rules_that_take_a_byte_apart(tmp_path: Path):
    """A tensor whose columns are interleaved halves: two of them share each byte."""
    generator = torch.Generator().manual_seed(7)
    write(tmp_path, mxfp4_packed(generator, "both", (4, 64)))
    catalog = sw.read_catalog(tmp_path)
    for axes, why in (("o (i 0/2) -> o i", "inside a block"), ("o (i 2) -> o (2 i)", "apart")):
        map_ = weight_map(axes)
        with pytest.raises(sw.PlanError, match=f"both.weight: cannot be held packed: codes: .*{why}.*BF16"):
            _core.as_packed(catalog, map_)
    _core.as_packed(catalog, weight_map("o (2 i) -> i (2 o)"))  # 32 columns each, transposed: whole bytes


def weight_map(axes: str):
    return _core.weight_map_of("made up", "made up", [("both.weight", "both.weight", axes, False)])


def test_only_packed_is_no_dtype(tmp_path: Path):
    weight = WEIGHTS[0]
    path = write(tmp_path, weight)
    with pytest.raises(ValueError, match='dtype: expected "packed" or None'):
        sw.load({}, path, dtype="bfloat16")
    with pytest.raises(ValueError, match='dtype: expected a dtype of torch .* or "packed"'):
        sw.empty_state_dict(path, dtype="fp4")


def test_another_encoding_is_refused_for_what_is_packed(tmp_path: Path):
    sw.generate(tmp_path / "from", "tiny")
    state = loaded(tmp_path / "from")
    with pytest.raises(sw.PlanError, match='packed, .*expected quantization="template" or None'):
        sw.export(state, tmp_path / "to", template=tmp_path / "from", quantization="mxfp8")
    assert not (tmp_path / "to").exists() or not list((tmp_path / "to").glob("*.safetensors"))
