"""The adapter API that the seed documentation describes, held against the reference."""

import copy
import importlib
import inspect
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import reference
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from checkpoints import Sizes, made_up_m3, write_checkpoint, write_m3
from hf_state import as_stored, configs, hf_state_dict, text, text_part, vl
from reference import differing
from safetensors.torch import save_file
from shardwright.describe import DTYPES
from shardwright.models.minimax_m3_vl.state_dict_adapter import (
    MiniMaxM3StateDictAdapter,
    MiniMaxM3VLStateDictAdapter,
)
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader as TorchReader
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

MODULE = "shardwright.models.minimax_m3_vl.state_dict_adapter"
Sd = dict[str, torch.Tensor]


def without_mtp(tensors: Sd) -> Sd:
    return {name: tensor for name, tensor in tensors.items() if ".mtp." not in name}


def text_only(natives: Sd) -> Sd:
    return {name: tensor for name, tensor in natives.items() if not name.startswith("vision_tower.")}


@pytest.fixture(scope="module")
def natives(tiny: Path) -> Sd:
    return reference.native(tiny)


# --- the module -------------------------------------------------------------------------------------------------


def test_every_documented_name_is_there():
    module = importlib.import_module(MODULE)
    for name in (
        "MiniMaxM3StateDictAdapter", "MiniMaxM3VLStateDictAdapter", "_dequantize_mxfp8_local",
        "_should_quantize_mxfp8_key", "_slice_mxfp8_scale_for_dtensor", "create_mxfp8_scale_inv",
        "dequantize_mxfp8", "MXFP8_BLOCK_SIZE", "_MXFP8_QUANT_KEY_RE", "_MXFP8_SCALE_INV_IDENTITY",
    ):  # fmt: skip
        assert hasattr(module, name), name
    for name in (
        "_expert_path_segment", "_mtp_enabled", "_dequantize", "_hf_key_to_native", "_mtp_from_hf",
        "_mtp_tensor_to_hf", "_native_key_to_hf", "convert_single_tensor_to_hf", "from_hf", "to_hf",
        "view_loaded_native_keys",
    ):  # fmt: skip
        assert hasattr(module.MiniMaxM3StateDictAdapter, name), name
    for name in (
        "_map_non_text_from_hf", "_map_non_text_to_hf", "convert_single_tensor_to_hf", "from_hf", "to_hf",
        "view_loaded_native_keys",
    ):  # fmt: skip
        assert hasattr(module.MiniMaxM3VLStateDictAdapter, name), name
    assert isinstance(vl().text_adapter, MiniMaxM3StateDictAdapter)
    assert (module.MXFP8_BLOCK_SIZE, module._MXFP8_SCALE_INV_IDENTITY) == (32, 127)
    assert isinstance(module._MXFP8_QUANT_KEY_RE, re.Pattern)
    for adapter in (module.MiniMaxM3StateDictAdapter, module.MiniMaxM3VLStateDictAdapter):
        parameters = inspect.signature(adapter).parameters.values()
        documented = [p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        assert documented == ["config", "moe_config", "backend", "dtype"]


def test_configs_are_asked_for_attributes_or_keys_and_nothing_else(tiny: Path, natives: Sd):
    whole, moe_config = configs(4, 1)
    as_dict = {"text_config": {"num_mtp_modules": 1, "num_local_experts": 4}}
    for config, moe in ((whole, moe_config), (as_dict, None), (whole, None), (as_dict, moe_config)):
        adapter = MiniMaxM3VLStateDictAdapter(config, moe, object())
        assert differing(adapter.from_hf(hf_state_dict(tiny)), natives) == []
    assert not MiniMaxM3StateDictAdapter(SimpleNamespace(num_mtp_modules=None), None, None)._mtp_enabled
    assert not MiniMaxM3StateDictAdapter(SimpleNamespace(), None, None)._mtp_enabled
    assert text(mtp=2)._mtp_enabled and not text(mtp=0)._mtp_enabled
    assert text()._expert_path_segment == "mlp.experts"


def test_a_copy_of_a_model_takes_its_adapter_along(tiny: Path, natives: Sd):
    """Trainers deepcopy and pickle models whose attribute the adapter is, also after it has been used."""
    adapter = vl()
    asked = adapter.to_hf(natives, quantization=True)
    for copied in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
        assert differing(copied.from_hf(hf_state_dict(tiny)), natives) == []
    assert asked.keys() == adapter.to_hf(natives, quantization=True).keys()


# --- from_hf ----------------------------------------------------------------------------------------------------


def test_from_hf_decodes_all_that_comes_with_scales(tiny: Path, natives: Sd):
    hf = hf_state_dict(tiny)
    before = dict(hf)
    assert differing(vl().from_hf(hf), natives) == []
    assert hf.keys() == before.keys() and all(hf[name] is before[name] for name in before)


@pytest.mark.parametrize("layout", ["transformers", "huggingface"])
def test_from_hf_takes_a_whole_checkpoint_in_every_layout(tiny: Path, layout: str):
    """Also where the layout has no place for some of it, as transformers has none for MTP."""
    expected = reference.native(tiny, layout=layout)
    assert differing(vl(layout=layout).from_hf(hf_state_dict(tiny)), expected) == []


def test_from_hf_leaves_mtp_out_of_a_model_without_it(tiny: Path, natives: Sd):
    for none in (0, None):
        assert differing(vl(mtp=none).from_hf(hf_state_dict(tiny)), without_mtp(natives)) == []


@pytest.mark.parametrize("mtp", [0, 1])
def test_the_text_adapter_takes_names_with_and_without_model_before_them(tiny: Path, natives: Sd, mtp: int):
    expected = text_only(natives) if mtp else without_mtp(text_only(natives))
    with_model = text_part(hf_state_dict(tiny))
    assert differing(text(mtp=mtp).from_hf(dict(with_model)), expected) == []
    bare = {name.removeprefix("model."): tensor for name, tensor in with_model.items()}
    bare_expected = {name.removeprefix("model."): tensor for name, tensor in expected.items()}
    assert differing(text(mtp=mtp).from_hf(bare), bare_expected) == []


def test_the_text_adapter_lets_go_of_what_it_has_decoded(tiny: Path):
    hf = text_part(hf_state_dict(tiny))
    text().from_hf(hf)
    assert not [name for name in hf if "experts" in name or name.endswith("_scale_inv")]


def test_from_hf_gives_the_dtype_asked_for_rounded_once(tmp_path: Path):
    directory = write_m3(tmp_path / "m3", Sizes(hidden=37, inter=21))
    scaled = {name.removesuffix("_scale_inv") for name in reference.read_checkpoint(directory)}
    for dtype in (torch.float32, torch.float16):
        expected = reference.native(directory, lambda fqn, dtype=dtype: dtype)
        found = vl(experts=3, dtype=dtype).from_hf(hf_state_dict(directory))
        parts = reference.native_parts(reference.read_checkpoint(directory))
        stored = reference.native(directory)
        for fqn, pieces in parts.items():
            is_scaled = pieces[0][0] in scaled and pieces[0][0] + "_scale_inv" in hf_state_dict(directory)
            assert reference.same(found[fqn], expected[fqn] if is_scaled else stored[fqn]), fqn


def test_dequantize_replaces_what_has_scales_in_the_dict_itself(tiny: Path):
    hf = hf_state_dict(tiny)
    checkpoint = reference.read_checkpoint(tiny)
    norm = hf["language_model.model.norm.weight"]
    assert text()._dequantize(hf) is hf
    assert hf["language_model.model.norm.weight"] is norm
    assert hf.keys() == {name for name in checkpoint if not name.endswith("_scale_inv")}
    for name, tensor in hf.items():
        assert reference.same(tensor, reference.decode(checkpoint, name, tensor.dtype)), name


@pytest.mark.parametrize("quantized", [True, False])
def test_scales_may_be_e8m0_or_not_be_there_at_all(tmp_path: Path, quantized: bool):
    directory = write_m3(tmp_path / "m3", quantized=quantized, scale_dtype="F8_E8M0")
    expected = reference.native(directory)
    assert differing(vl(experts=3).from_hf(hf_state_dict(directory)), expected) == []
    state = sw.empty_state_dict(directory)
    hf = vl(experts=3).to_hf(state, quantization=True, checkpoint=directory)
    stored = reference.read_checkpoint(directory)
    assert hf.keys() == stored.keys()
    assert all(hf[name].dtype == as_stored(stored[name]).dtype for name in hf)
    dcp.load(hf, storage_reader=sw.HuggingFaceStorageReader(directory), no_dist=True)
    assert differing(vl(experts=3).from_hf(hf), expected) == []


def test_tensors_of_another_device_pass_through_buffers(tiny: Path, natives: Sd, monkeypatch):
    monkeypatch.setattr("shardwright.adapters.decoding.KERNEL_DEVICE", "elsewhere")
    state = {fqn: torch.zeros_like(tensor) for fqn, tensor in natives.items()}
    adapter = vl()
    hf = adapter.to_hf(state, quantization=True, checkpoint=tiny)
    dcp.load(hf, storage_reader=sw.HuggingFaceStorageReader(tiny), no_dist=True)
    assert differing(adapter.from_hf(hf), natives) == []
    assert differing(state, natives) == []


def test_what_no_rule_knows_passes_and_what_no_layout_uses_does_not(tiny: Path):
    hf = hf_state_dict(tiny) | {"extra.weight": torch.ones(3), "language_model.model.extra": torch.ones(2)}
    hf["vision_tower.mtp.layers.0.eh_proj.weight"] = torch.ones(2, 2)
    hf["language_model.model.layers.0._extra_state"] = "not a tensor"
    found = vl().from_hf(hf)
    assert found["extra.weight"] is hf["extra.weight"]
    assert found["model.extra"] is hf["language_model.model.extra"]
    assert found["model.layers.0._extra_state"] == "not a tensor"
    assert not [name for name in found if name.startswith("vision_tower.mtp")]


# --- to_hf ------------------------------------------------------------------------------------------------------


def expected_names(natives: Sd, experts: int = 4) -> list[str]:
    return [name for fqn in natives for name in reference.hf_names(fqn, "language_model.", experts)]


def test_to_hf_gives_hfs_names_and_the_native_values(tiny: Path, natives: Sd):
    hf = vl().to_hf(natives)
    assert sorted(hf) == sorted(expected_names(natives))
    checkpoint = reference.read_checkpoint(tiny)
    for name, tensor in hf.items():
        assert reference.same(tensor, reference.decode(checkpoint, name, tensor.dtype)), name


@pytest.mark.parametrize("layout", ["automodel", "transformers", "huggingface"])
def test_what_to_hf_gives_can_be_saved_by_others(tiny: Path, tmp_path: Path, layout: str):
    """safetensors and torch's writer take contiguous tensors only; whole native tensors are passed on as they are."""
    native = reference.native(tiny, layout=layout)
    hf = vl(layout=layout).to_hf(native)
    whole = {id(tensor) for tensor in native.values()}
    storages = {tensor.untyped_storage().data_ptr() for tensor in native.values()}
    for name, tensor in hf.items():
        assert tensor.is_contiguous(), name
        assert (id(tensor) in whole) == (tensor.untyped_storage().data_ptr() in storages), name
    save_file(hf, tmp_path / "model.safetensors")
    writer = HuggingFaceStorageWriter(str(tmp_path / "by_torch"))
    dcp.save(hf, storage_writer=writer, no_dist=True)
    for directory in (tmp_path, tmp_path / "by_torch"):
        assert differing(hf_state_dict(directory), hf) == []


def test_what_is_loaded_into_is_a_view_of_the_native_memory(natives: Sd):
    storages = {tensor.untyped_storage().data_ptr() for tensor in natives.values()}
    for hf in (vl().to_hf(natives, for_checkpoint_load=True), vl().to_hf(natives, quantization=True)):
        for name, tensor in hf.items():
            if name + "_scale_inv" not in hf and not name.endswith("_scale_inv"):
                assert tensor.untyped_storage().data_ptr() in storages, name


def test_from_hf_undoes_to_hf(natives: Sd):
    hf = vl().to_hf(natives)
    assert differing(vl().from_hf({name: tensor.clone() for name, tensor in hf.items()}), natives) == []
    adapter = vl()
    before = {fqn: tensor.clone() for fqn, tensor in natives.items()}
    trained = {fqn: tensor.clone() for fqn, tensor in natives.items()}
    hf = adapter.to_hf(trained)
    stacks = [fqn for fqn in trained if ".mlp.experts." in fqn]
    for fqn in stacks:
        trained[fqn].zero_()
    back = adapter.from_hf(hf)
    assert differing(back, before) == []
    assert not any(trained[fqn].count_nonzero() for fqn in stacks), "what was copied is not written back"
    bare = {name.removeprefix("model."): tensor for name, tensor in text_only(natives).items()}
    adapter = text()
    hf = adapter.to_hf(bare)
    assert not [name for name in hf if name.startswith(("model.", "language_model."))]
    assert differing(adapter.from_hf(hf), bare) == []


@pytest.mark.parametrize("kind", ["vl", "text"])
@pytest.mark.parametrize("layout", ["automodel", "transformers", "huggingface"])
def test_every_layout_comes_back_from_hf(tiny: Path, tmp_path: Path, layout: str, kind: str):
    path = tiny
    if kind == "text":
        config = {"model_type": "minimax_m3_vl_text"}
        path = write_checkpoint(tmp_path, made_up_m3(Sizes(vision_layers=0), prefix=""), config=config)
    make, experts = (vl, 4) if kind == "vl" else (text, 3)
    natives = reference.native(path, layout=layout)
    stored = reference.read_checkpoint(path)
    sources = {hf for parts in reference.native_parts(stored, layout).values() for hf, *_ in parts}
    hf = make(experts, layout=layout).to_hf(natives)
    assert hf.keys() == sources
    for name, tensor in hf.items():
        assert reference.same(tensor, reference.decode(stored, name, tensor.dtype)), name
    copies = {name: tensor.clone() for name, tensor in hf.items()}
    assert differing(make(experts, layout=layout).from_hf(copies), natives) == []
    adapter = make(experts, layout=layout)
    back = adapter.from_hf(adapter.to_hf(natives, for_checkpoint_load=True))
    assert back.keys() == natives.keys() and all(back[fqn] is natives[fqn] for fqn in natives)
    assert differing(adapter.from_hf(adapter.to_hf(natives)), natives) == []


@pytest.mark.parametrize("reader", [sw.HuggingFaceStorageReader, TorchReader])
@pytest.mark.parametrize("layout", ["transformers", "huggingface"])
def test_the_three_step_way_fills_every_layout(tiny: Path, layout: str, reader):
    expected = reference.native(tiny, layout=layout)
    state = {fqn: torch.full_like(tensor, 7) for fqn, tensor in expected.items()}
    adapter = vl(layout=layout)
    hf = adapter.to_hf(state, quantization=True, checkpoint=tiny)
    dcp.load(hf, storage_reader=reader(str(tiny)), no_dist=True)
    loaded = adapter.from_hf(hf)
    assert differing(loaded, expected) == [] and all(loaded[fqn] is state[fqn] for fqn in state)


def test_single_tensors_convert_as_the_whole_does(natives: Sd):
    for adapter, state in ((vl(), natives), (text(), text_only(natives))):
        for quantization in (False, True):
            one_by_one = [
                pair
                for fqn, tensor in state.items()
                for pair in adapter.convert_single_tensor_to_hf(fqn, tensor, quantization=quantization)
            ]
            at_once = adapter.to_hf(state, quantization=quantization)
            assert {name: (t.dtype, t.shape) for name, t in one_by_one} == {
                name: (t.dtype, t.shape) for name, t in at_once.items()
            }
    mtp = {fqn: tensor for fqn, tensor in natives.items() if ".mtp." in fqn}
    pairs = [pair for fqn, tensor in mtp.items() for pair in text()._mtp_tensor_to_hf(fqn, tensor)]
    assert differing(text(mtp=0)._mtp_from_hf(dict(pairs)), mtp) == []


def test_exclude_key_regex_matches_hf_names_from_their_start(natives: Sd):
    everything = vl().to_hf(natives, quantization=True)
    kept = vl().to_hf(natives, exclude_key_regex=r"language_model\.model\.layers\.1\.", quantization=True)
    assert everything.keys() - kept.keys() == {
        name for name in everything if name.startswith("language_model.model.layers.1.")
    }
    assert everything.keys() == vl().to_hf(natives, r"layers\.1\.", True).keys()
    q_proj = r".*q_proj\.weight$"
    left = vl().to_hf(natives, exclude_key_regex=q_proj, quantization=True)
    assert not [name for name in left if "q_proj.weight" in name and "index" not in name], "scales go as well"


def test_extra_state_is_passed_and_can_be_excluded(natives: Sd):
    state = natives | {"model.layers.0._extra_state": b"x"}
    assert vl().to_hf(state)["language_model.model.layers.0._extra_state"] == b"x"
    assert not [n for n in vl().to_hf(state, exclude_key_regex=r".*_extra_state.*") if "_extra" in n]
    assert vl().get_hf_state_dict_keys(state) == list(vl().to_hf(natives))


def test_a_request_is_empty_fp8_with_placeholders_of_ones(tiny: Path, natives: Sd):
    stored = reference.read_checkpoint(tiny)
    hf = vl().to_hf(natives, quantization=True, checkpoint=tiny)
    assert {name: (t.dtype, tuple(t.shape)) for name, t in hf.items()} == {
        name: (as_stored(one).dtype, one.shape) for name, one in stored.items()
    }
    for name, tensor in hf.items():
        if name.endswith("_scale_inv"):
            assert (tensor == 127).all()
    names = list(hf)
    assert all(names[names.index(n) - 1] + "_scale_inv" == n for n in names if n.endswith("_scale_inv"))


def test_without_a_checkpoint_the_rule_of_names_decides(tiny: Path, natives: Sd):
    eh_proj = "language_model.model.mtp.layers.0.eh_proj.weight"
    by_rule = vl().to_hf(natives, quantization=True)
    for checkpoint in (tiny, str(tiny), sw.HuggingFaceStorageReader(tiny), TorchReader(str(tiny)),
                       sw.read_catalog(tiny)):  # fmt: skip
        by_checkpoint = vl().to_hf(natives, quantization=True, checkpoint=checkpoint)
        assert by_checkpoint.keys() - by_rule.keys() == {eh_proj + "_scale_inv"}
        assert by_checkpoint[eh_proj].dtype == torch.float8_e4m3fn
    assert by_rule[eh_proj] is natives["model.mtp.layers.0.eh_proj.weight"]


@pytest.mark.parametrize("layout", ["automodel", "transformers", "huggingface"])
def test_without_a_checkpoint_quantized_weights_are_casts_that_come_back(tiny: Path, layout: str):
    natives = reference.native(tiny, layout=layout)
    kept = {fqn: tensor.clone() for fqn, tensor in natives.items()}
    plain, cast = vl(layout=layout).to_hf(natives), vl(layout=layout).to_hf(natives, quantization=True)
    scaled = [name for name in cast if name + "_scale_inv" in cast]
    assert scaled
    for name in scaled:
        assert cast[name].dtype == torch.float8_e4m3fn
        assert reference.same(cast[name], plain[name].to(torch.float8_e4m3fn)), name
        assert (cast[name + "_scale_inv"] == 127).all()
    adapter = vl(layout=layout)
    back = adapter.from_hf(adapter.to_hf(natives, quantization=True))
    expected = plain | {name: plain[name].to(torch.float8_e4m3fn).to(torch.bfloat16) for name in scaled}
    assert differing(vl(layout=layout).to_hf(back), expected) == []
    assert differing(natives, kept) == []


def test_a_request_that_nothing_has_been_loaded_into_is_refused(tiny: Path, natives: Sd):
    state = {fqn: tensor.clone() for fqn, tensor in natives.items()}
    adapter = vl()
    hf = adapter.to_hf(state, quantization=True, checkpoint=tiny)
    with pytest.raises(sw.PlanError, match=r"experts.\{0-3\}.w1.weight") as error:
        adapter.from_hf(hf)
    assert "dcp.load" in str(error.value)
    assert differing(state, natives) == []
    left_out = {name: tensor for name, tensor in hf.items() if not name.endswith("o_proj.weight")}
    dcp.load(left_out, storage_reader=sw.HuggingFaceStorageReader(tiny), no_dist=True)
    with pytest.raises(sw.PlanError, match="self_attn.o_proj.weight"):
        adapter.from_hf(hf)
    assert differing(state, natives) == []
    dcp.load(hf, storage_reader=sw.HuggingFaceStorageReader(tiny), no_dist=True)
    assert differing(adapter.from_hf(hf), natives) == []


def test_casts_that_only_some_of_are_loaded_into_are_refused(tiny: Path, natives: Sd):
    state = {fqn: tensor.clone() for fqn, tensor in natives.items()}
    adapter = vl()
    hf = adapter.to_hf(state, quantization=True)
    loaded = {name: tensor for name, tensor in hf.items() if ".experts.0.w1." in name}
    dcp.load(loaded, storage_reader=sw.HuggingFaceStorageReader(tiny), no_dist=True)
    with pytest.raises(sw.PlanError, match="nothing has been loaded"):
        adapter.from_hf(hf)
    assert differing(state, natives) == []


@pytest.mark.parametrize("fill", ["copy_", "data.copy_", "data", "numpy"])
def test_a_request_may_be_filled_in_any_way(tiny: Path, natives: Sd, fill: str):
    state = {fqn: torch.full_like(tensor, 7) for fqn, tensor in natives.items()}
    adapter = vl()
    hf = adapter.to_hf(state, quantization=True, checkpoint=tiny)
    stored = hf_state_dict(tiny)
    for name, tensor in hf.items():
        if fill == "copy_":
            tensor.copy_(stored[name])
        elif fill == "data.copy_" or tensor.dtype != torch.float8_e4m3fn:
            tensor.data.copy_(stored[name])
        elif fill == "data":
            tensor.data = stored[name].clone()
        else:
            tensor.detach().view(torch.uint8).numpy()[:] = stored[name].view(torch.uint8).numpy()
    assert differing(adapter.from_hf(hf), natives) == []


# --- the three-step way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", [sw.HuggingFaceStorageReader, TorchReader])
@pytest.mark.parametrize("mtp", [0, 1])
def test_the_three_step_way_fills_the_trainers_own_tensors(tiny: Path, natives: Sd, reader, mtp: int):
    expected = natives if mtp else without_mtp(natives)
    state = {fqn: torch.full_like(tensor, 7) for fqn, tensor in expected.items()}
    adapter = vl(mtp=mtp)
    hf = adapter.to_hf(state, quantization=True, checkpoint=tiny)
    dcp.load(hf, storage_reader=reader(str(tiny)), no_dist=True)
    loaded = adapter.from_hf(hf)
    assert differing(loaded, expected) == []
    assert all(loaded[fqn] is state[fqn] for fqn in state)


def test_the_three_step_way_loads_what_load_loads(tiny: Path):
    by_load = sw.empty_state_dict(tiny)
    sw.load(by_load, tiny)
    state = sw.empty_state_dict(tiny)
    hf = vl().to_hf(state, quantization=True, checkpoint=tiny)
    dcp.load(hf, storage_reader=sw.HuggingFaceStorageReader(tiny), no_dist=True)
    assert differing(vl().from_hf(hf), by_load) == []


def test_a_dtype_that_is_not_the_trainers_gets_tensors_of_its_own(tiny: Path):
    state = sw.empty_state_dict(tiny)
    before = {fqn: tensor.clone() for fqn, tensor in state.items()}
    adapter = vl(dtype=torch.float32)
    hf = adapter.to_hf(state, quantization=True, checkpoint=tiny)
    hf |= {name: tensor for name, tensor in hf_state_dict(tiny).items() if hf[name] is not None}
    loaded = adapter.from_hf(hf)
    assert loaded["model.layers.1.mlp.experts.down_projs"].dtype == torch.float32
    assert differing(state, before) == []


def test_tensors_written_through_views_are_the_trainers_own(natives: Sd):
    adapter = vl()
    state = {fqn: torch.zeros_like(tensor) for fqn, tensor in natives.items()}
    hf = adapter.to_hf(state, for_checkpoint_load=True)
    for name, tensor in vl().to_hf(natives).items():
        hf[name].copy_(tensor)
    loaded = adapter.from_hf(hf)
    assert differing(loaded, natives) == [] and all(loaded[fqn] is state[fqn] for fqn in state)
    assert adapter.view_loaded_native_keys == set()


def test_the_full_model_asks_for_46521_tensors_with_its_checkpoint_and_46520_without(tmp_path: Path):
    sw.generate(tmp_path / "full", preset="full", layout_only=True)
    stored = reference.read_checkpoint(tmp_path / "full")
    parts = reference.native_parts(stored)
    state = {}
    for fqn, pieces in parts.items():
        rows = stored[pieces[0][0]].shape
        scaled = pieces[0][0] + "_scale_inv" in stored
        dtype = torch.bfloat16 if scaled else reference.TORCH_DTYPES[stored[pieces[0][0]].dtype]
        if pieces[0][1] == "w2":
            rows = (128, rows[1], rows[0])
        elif pieces[0][1] is not None:
            rows = (128, rows[1], 2 * rows[0])
        state[fqn] = torch.empty(rows, dtype=dtype, device="meta")
    assert len(state) == 1665
    expected = {name: (DTYPES[one.dtype], one.shape) for name, one in stored.items()}
    assert len(expected) == 46521
    adapter = vl(experts=128)

    def forms(hf: Sd) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        assert all(tensor.is_meta for tensor in hf.values())
        return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in hf.items()}

    hf = adapter.to_hf(state, quantization=True, checkpoint=tmp_path / "full")
    assert forms(hf) == expected
    back = adapter.from_hf(hf)
    assert {f: (t.shape, t.dtype) for f, t in back.items()} == {
        f: (t.shape, t.dtype) for f, t in state.items()
    }
    eh_proj = "language_model.model.mtp.layers.0.eh_proj.weight"
    del expected[eh_proj + "_scale_inv"]
    expected[eh_proj] = (torch.bfloat16, expected[eh_proj][1])
    assert len(expected) == 46520
    assert forms(adapter.to_hf(state, quantization=True)) == expected


# --- wrong input ------------------------------------------------------------------------------------------------


def test_missing_experts_are_named_in_ranges(tiny: Path):
    gone = [f".layers.1.block_sparse_moe.experts.{e}.w{w}.weight" for e in (1, 2) for w in (1, 2, 3)]
    hf = {
        n: t for n, t in hf_state_dict(tiny).items() if not n.removesuffix("_scale_inv").endswith(tuple(gone))
    }
    with pytest.raises(RuntimeError, match=r"layers\.1\.block_sparse_moe\.experts\.\{1-2\}\.w1\.weight"):
        vl().from_hf(hf)


@pytest.mark.parametrize("which", ["w1", "w2", "w3"])
def test_half_an_expert_is_missing_weights(tiny: Path, which: str):
    name = f"language_model.model.layers.2.block_sparse_moe.experts.3.{which}.weight"
    hf = hf_state_dict(tiny)
    del hf[name], hf[name + "_scale_inv"]
    with pytest.raises(RuntimeError, match=re.escape(name)):
        vl().from_hf(hf)


def test_a_layer_without_any_down_projection_is_missing_weights(tiny: Path):
    hf = {n: t for n, t in hf_state_dict(tiny).items() if not re.search(r"layers\.1\..*\.w2\.", n)}
    with pytest.raises(RuntimeError, match=r"layers\.1\.block_sparse_moe\.experts\.\{0-3\}\.w2\.weight"):
        vl().from_hf(hf)


Q = "language_model.model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({Q + "_scale_inv": torch.zeros(64, 3, dtype=torch.uint8)}, [Q + "_scale_inv", "[64, 3]"]),
        ({Q + "_scale_inv": None}, [Q, "needs its scales"]),
        ({Q: None}, [Q + "_scale_inv", "its weight"]),
        (
            {"language_model.model.layers.1.block_sparse_moe.experts.9.w1.weight": torch.zeros(32, 64)},
            ["gate_and_up_projs", "experts 9"],
        ),
        (
            {"language_model.model.layers.1.block_sparse_moe.experts.2.w1.weight": torch.zeros(8, 8)},
            ["experts.2.w1.weight", "found"],
        ),
    ],
)
def test_what_does_not_fit_together_is_named(tiny: Path, change: dict, words: list[str]):
    hf = {name: tensor for name, tensor in (hf_state_dict(tiny) | change).items() if tensor is not None}
    with pytest.raises(sw.PlanError) as refused:
        vl().from_hf(hf)
    assert all(word in str(refused.value) for word in words), refused.value


def test_tensors_without_plain_memory_are_named(natives: Sd):
    fqn = "model.layers.0.self_attn.q_proj.weight"
    for tensor, words in (
        (natives[fqn].to_sparse(), "strided"),
        (torch.quantize_per_tensor(torch.ones(64, 64), 1.0, 0, torch.qint8), "dtype"),
    ):
        with pytest.raises(ValueError, match=f"{re.escape(fqn)}: .*{words}"):
            vl().to_hf(natives | {fqn: tensor}, quantization=True)
        with pytest.raises(ValueError, match=f"{re.escape('language_model.' + fqn)}: .*{words}"):
            vl().from_hf({"language_model." + fqn: tensor})


def test_a_stack_of_another_number_of_experts_is_refused(natives: Sd):
    with pytest.raises(ValueError, match="5 experts"):
        vl(experts=5).to_hf(natives)


def test_a_text_only_checkpoints_own_spelling_is_asked_for(tmp_path: Path):
    for prefix in ("", "bare"):
        directory = tmp_path / (prefix or "model")
        write_checkpoint(directory, made_up_m3(Sizes(vision_layers=0), prefix=prefix), config={
            "model_type": "minimax_m3_vl_text"
        })  # fmt: skip
        expected = reference.native(directory)
        state = {fqn: torch.zeros_like(tensor) for fqn, tensor in expected.items()}
        hf = text(experts=3).to_hf(state, quantization=True, checkpoint=directory)
        assert hf.keys() == reference.read_checkpoint(directory).keys()
