"""Whole checkpoints load, whatever their form, into whatever the trainer holds."""

import os
import resource
from pathlib import Path

import numpy as np
import pytest
import reference
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from checkpoints import (
    INDEX,
    Sizes,
    Tensor,
    allows_direct_reads,
    config_of,
    made_up_m3,
    random_scales,
    random_tensor,
    write_checkpoint,
    write_m3,
)
from destinations import Destination, Layout, destinations_like, state_of, wrong
from torch import nn


def load_and_compare(path: Path, expected: dict[str, torch.Tensor], **options) -> "sw.LoadReport":
    destinations = destinations_like(expected)
    report = sw.load(state_of(destinations), path, **options)
    assert wrong(destinations, expected) == []
    return report


def bytes_of(path: Path) -> int:
    return sum(stored.nbytes for stored in reference.read_checkpoint(path).values())


def native_dtype(fqn: str) -> torch.dtype:
    """M3's own: norms, the router's bias and all of vision in FP32."""
    return torch.float32 if "norm" in fqn or "bias" in fqn or "vision" in fqn else torch.bfloat16


@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_a_preset_loads_completely(preset: str, request):
    path = request.getfixturevalue(preset)
    expected = reference.native(path, native_dtype)
    assert any(".mtp." in fqn for fqn in expected) and any("vision" in fqn for fqn in expected)
    report = load_and_compare(path, expected)
    assert report.bytes_needed == bytes_of(path)
    assert report.bytes_read <= 1.02 * report.bytes_needed
    assert list(report.unused) == []


@pytest.mark.skipif("SHARDWRIGHT_TEST_BENCH" not in os.environ, reason="takes minutes and 12 GB of memory")
def test_the_bench_preset_loads_completely(tmp_path: Path):
    sw.generate(tmp_path / "bench", preset="bench", values="any")
    destinations = {}
    for fqn, tensor in reference.iterate_native(tmp_path / "bench"):
        destinations[fqn] = Destination(tensor.shape, tensor.dtype)
    sw.load(state_of(destinations), tmp_path / "bench")
    for fqn, tensor in reference.iterate_native(tmp_path / "bench"):
        assert reference.same(destinations[fqn].tensor, tensor), fqn


def test_the_report_says_what_was_done(tiny: Path):
    expected = reference.native(tiny)
    report = load_and_compare(tiny, expected)
    assert isinstance(report, sw.LoadReport)
    assert report.tensors == len(reference.read_checkpoint(tiny))
    assert report.files == len(list(tiny.glob("*.safetensors")))
    assert {"catalog", "plan", "read", "decode", "total"} <= set(report.seconds)
    assert all(seconds >= 0 for seconds in report.seconds.values())
    assert report.peak_staging_bytes > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_tensor_loads_into_any_wide_dtype(dtype: torch.dtype, tmp_path: Path):
    path = write_m3(tmp_path)
    load_and_compare(path, reference.native(path, dtype))


def test_dtypes_may_be_mixed(tmp_path: Path):
    path = write_m3(tmp_path)
    dtypes = [torch.bfloat16, torch.float16, torch.float32]
    load_and_compare(path, reference.native(path, lambda fqn: dtypes[len(fqn) % 3]))


def test_plain_dtypes_of_any_kind_load(tmp_path: Path):
    tensors = made_up_m3(plain_dtype="F64")
    path = write_checkpoint(tmp_path, tensors, config=config_of())
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        load_and_compare(path, reference.native(path, dtype))


def test_a_bf16_checkpoint_loads(tmp_path: Path):
    path = write_m3(tmp_path, quantized=False)
    for dtype in (torch.bfloat16, torch.float32):
        load_and_compare(path, reference.native(path, dtype))


@pytest.mark.parametrize("prefix", ["", "bare"])
@pytest.mark.parametrize("with_config", [True, False], ids=["config", "no_config"])
def test_a_text_only_checkpoint_without_prefix_loads(prefix: str, with_config: bool, tmp_path: Path):
    config = config_of()["text_config"] | {"quantization_config": config_of()["quantization_config"]}
    path = write_checkpoint(tmp_path, made_up_m3(prefix=prefix), config=config if with_config else None)
    expected = reference.native(path)
    assert "model.layers.1.mlp.experts.gate_and_up_projs" in expected and "lm_head.weight" in expected
    load_and_compare(path, expected)


def test_a_model_without_mtp_loads_from_a_checkpoint_with_it(tiny: Path):
    expected = {fqn: tensor for fqn, tensor in reference.native(tiny).items() if ".mtp." not in fqn}
    report = load_and_compare(tiny, expected)
    mtp = {name for name in reference.read_checkpoint(tiny) if ".mtp." in name}
    weights = {name for name in mtp if not name.endswith("_scale_inv")}
    assert weights <= set(report.unused) <= mtp


def test_a_checkpoint_without_mtp_loads_into_a_model_without_it(tmp_path: Path):
    path = write_m3(tmp_path, Sizes(mtp=0))
    assert list(load_and_compare(path, reference.native(path)).unused) == []


def test_mtp_tensors_outside_the_text_part_are_ignored(tmp_path: Path):
    tensors = made_up_m3()
    tensors["mtp.layers.0.enorm.weight"] = Tensor("BF16", (2,), bytes(4))
    path = write_checkpoint(tmp_path, tensors, config=config_of())
    load_and_compare(path, reference.native(path))


def test_a_part_of_the_model_loads_alone(tiny: Path):
    expected = {
        fqn: tensor for fqn, tensor in reference.native(tiny).items() if fqn.startswith("model.layers.1.")
    }
    report = load_and_compare(tiny, expected)
    assert report.bytes_needed < bytes_of(tiny)
    assert "language_model.model.norm.weight" in report.unused


def test_parameters_that_require_grad_are_filled_in_place(tiny: Path):
    expected = reference.native(tiny)
    parameters = {fqn: nn.Parameter(torch.zeros_like(tensor)) for fqn, tensor in expected.items()}
    addresses = {fqn: parameter.data_ptr() for fqn, parameter in parameters.items()}
    sw.load(parameters, tiny)
    for fqn, parameter in parameters.items():
        assert reference.same(parameter.detach(), expected[fqn]), fqn
        assert parameter.data_ptr() == addresses[fqn] and parameter.requires_grad


def test_a_modules_state_dict_fills_the_module(tiny: Path):
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = reference.native(tiny)[name]
    layer = nn.Linear(*reversed(expected.shape), bias=False, dtype=torch.bfloat16)
    sw.load({name: layer.state_dict()["weight"]}, tiny)
    assert reference.same(layer.weight.detach(), expected)


def test_scalars_and_integers_load(tmp_path: Path):
    scalar, counter = "language_model.model.layers.0.scale", "language_model.model.layers.0.counter"
    tensors = made_up_m3()
    tensors[scalar] = Tensor("F32", (), b"\x00\x00\x20\x41")
    tensors[counter] = Tensor("I64", (2,), bytes(range(16)))
    path = write_checkpoint(tmp_path, tensors, config=config_of())
    expected = reference.native(path)
    assert expected["model.layers.0.scale"].item() == 10 and expected["model.layers.0.counter"].shape == (2,)
    load_and_compare(path, expected)
    expected["model.layers.0.scale"] = torch.tensor(10, dtype=torch.bfloat16)
    load_and_compare(path, expected)


def test_tensors_without_elements_load(tmp_path: Path):
    tensors = made_up_m3()
    tensors["language_model.model.embed_tokens.weight"] = Tensor("BF16", (0, 40), b"")
    path = write_checkpoint(tmp_path, tensors, config=config_of())
    load_and_compare(path, reference.native(path))


def test_scales_may_be_typed_f8_e8m0(tmp_path: Path):
    path = write_m3(tmp_path, scale_dtype="F8_E8M0")
    load_and_compare(path, reference.native(path))


def test_eh_proj_is_scaled_although_no_name_rule_says_so(tmp_path: Path):
    name = "language_model.model.mtp.layers.0.eh_proj.weight"
    tensors = made_up_m3()
    tensors[name].data = b"\x38" * len(tensors[name].data)  # 1.0
    scales = tensors[name + "_scale_inv"]
    scales.data = b"\x82" * len(scales.data)  # 2^3
    path = write_checkpoint(tmp_path, tensors, config=config_of())
    weight = torch.zeros(40, 80, dtype=torch.bfloat16)
    sw.load({"model.mtp.layers.0.eh_proj.weight": weight}, path)
    assert (weight == 8).all()


def test_the_checkpoint_decides_what_is_quantized(tmp_path: Path):
    """One weight in BF16 that the rule calls FP8, and one with scales that it does not name."""
    tensors = made_up_m3()
    q_proj = "language_model.model.layers.0.self_attn.q_proj.weight"
    del tensors[q_proj + "_scale_inv"]
    tensors[q_proj] = Tensor("BF16", (20, 40), bytes(range(200)) * 8)
    index = "language_model.model.layers.1.self_attn.index_q_proj.weight"
    tensors[index] = Tensor("F8_E4M3", (10, 40), bytes(range(100)) * 4)
    tensors[index + "_scale_inv"] = Tensor("U8", (10, 2), bytes(range(110, 130)))
    path = write_checkpoint(tmp_path, tensors, config=config_of())
    load_and_compare(path, reference.native(path))


def test_the_model_is_recognised_without_config(tiny: Path, tmp_path: Path):
    for file in tiny.iterdir():
        if file.name != "config.json":
            (tmp_path / file.name).symlink_to(file)
    load_and_compare(tmp_path, reference.native(tiny))


def test_a_directory_without_index_loads(tiny: Path, tmp_path: Path):
    """Of symbolic links, too, as the Hugging Face cache makes them."""
    for file in tiny.iterdir():
        if file.name != INDEX:
            (tmp_path / file.name).symlink_to(file)
    load_and_compare(tmp_path, reference.native(tiny))


@pytest.fixture(scope="module")
def small_native(small: Path) -> dict[str, torch.Tensor]:
    return reference.native(small)


@pytest.mark.parametrize("staging_bytes", [1 << 16, 1 << 20, 1 << 26])
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_threads_and_staging_do_not_change_the_result(
    staging_bytes: int, threads: int, small: Path, small_native: dict[str, torch.Tensor]
):
    report = load_and_compare(small, small_native, threads=threads, staging_bytes=staging_bytes)
    assert 0 < report.peak_staging_bytes <= staging_bytes


@pytest.mark.parametrize("direct_io", [False, True])
def test_more_files_than_a_process_may_have_open_load(direct_io: bool, tmp_path: Path):
    path = write_m3(tmp_path / "m3", files=120)
    expected = reference.native(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(100)]  # a quarter of all is too much to take
    few = len(os.listdir("/proc/self/fd")) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        report = load_and_compare(path, expected, direct_io=direct_io, threads=3)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in others:
            os.close(descriptor)
    assert report.files > 20
    assert report.files_direct == (report.files if direct_io and allows_direct_reads(path) else 0)


def test_a_row_longer_than_staging_loads(tmp_path: Path):
    rng, columns = np.random.default_rng(0), 200_001
    q_proj = "model.layers.0.self_attn.q_proj.weight"
    tensors = {
        "model.embed_tokens.weight": random_tensor(rng, "BF16", (2, columns)),
        q_proj: random_tensor(rng, "F8_E4M3", (3, columns)),
        q_proj + "_scale_inv": random_scales(rng, "U8", (3, 6251)),
    }
    path = write_checkpoint(tmp_path, tensors)
    load_and_compare(path, reference.native(path), model="minimax_m3", staging_bytes=1 << 16, threads=2)


@pytest.mark.parametrize(
    "layout", [Layout((2, 0, 1)), Layout((1, 2, 0), margin=3), Layout(None, margin=1, step=3)]
)
def test_destinations_may_be_strided_and_their_surroundings_stay_as_they_are(layout: Layout, tiny: Path):
    expected = {fqn: tensor for fqn, tensor in reference.native(tiny).items() if tensor.dim() == 3}
    destinations = {fqn: Destination(tensor.shape, tensor.dtype, layout) for fqn, tensor in expected.items()}
    sw.load(state_of(destinations), tiny)
    assert wrong(destinations, expected) == []


def test_dcp_load_works_in_one_process(tiny: Path):
    expected = reference.native(tiny)
    destinations = destinations_like(expected)
    reader = sw.HuggingFaceStorageReader(tiny)
    dcp.load(state_of(destinations), storage_reader=reader, planner=sw.LoadPlanner())
    assert wrong(destinations, expected) == []
    assert reader.report.bytes_needed == bytes_of(tiny)


def test_paths_may_be_texts(tiny: Path):
    load_and_compare(str(tiny), reference.native(tiny))


def test_unknown_tensors_are_passed_over_when_not_strict(tmp_path: Path):
    tensors = made_up_m3()
    tensors["audio_tower.proj.weight"] = Tensor("BF16", (2,), bytes(4))
    path = write_checkpoint(tmp_path, tensors, config=config_of())
    load_and_compare(path, reference.native(path), strict=False)


def test_progress_is_shown_on_request_only(tiny: Path, capfd):
    expected = reference.native(tiny)
    load_and_compare(tiny, expected)
    assert capfd.readouterr() == ("", "")
    load_and_compare(tiny, expected, progress=True)
    assert capfd.readouterr().err


def test_the_request_list_is_the_checkpoint_as_the_model_asks_for_it(tiny: Path):
    stored = reference.read_checkpoint(tiny)
    everything = {name: (tensor.dtype, tensor.shape) for name, tensor in stored.items()}
    state = {fqn: tensor.to("meta") for fqn, tensor in reference.native(tiny).items()}
    for asked in (sw.request_list(tiny, state), sw.request_list(sw.read_catalog(tiny), state)):
        assert {name: (dtype, tuple(shape)) for name, dtype, shape in asked} == everything
    no_mtp = {fqn: tensor for fqn, tensor in state.items() if ".mtp." not in fqn}
    assert {name for name, *_ in sw.request_list(tiny, no_mtp)} == {
        name for name in everything if ".mtp." not in name
    }


def test_the_catalog_lists_every_tensor(tiny: Path):
    found = {tensor.name: (tensor.dtype, tuple(tensor.shape)) for tensor in sw.read_catalog(tiny).tensors}
    stored = reference.read_checkpoint(tiny)
    assert found == {name: (tensor.dtype, tensor.shape) for name, tensor in stored.items()}
