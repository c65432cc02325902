"""A checkpoint in any of the encodings loads right, by whichever way; what fits none of them is refused."""

from pathlib import Path

import numpy as np
import pytest
import reference
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from checkpoints import (
    Sizes,
    Tensor,
    config_of,
    made_up_m3,
    random_scales,
    scale_shape,
    without,
    write_checkpoint,
    write_m3,
)
from destinations import destinations_like, state_of, wrong
from hf_state import as_stored, configs, hf_state_dict
from refusals import assert_refused
from shardwright import _core
from shardwright.models.minimax_m3_vl.state_dict_adapter import MiniMaxM3VLStateDictAdapter
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader as TorchReader

Q_PROJ = "language_model.model.layers.0.self_attn.q_proj.weight"
SEVERAL_BLOCKS = Sizes(hidden=300, inter=150, dense_inter=129, experts=2, heads=3, head_dim=50)
WAYS = [
    {"encoding": encoding, "scale_dtype": scale, "element_dtype": element, "scale_suffix": suffix}
    for encoding, scale, element, suffix in (
        ("mxfp8", "U8", "F8_E5M2", "_scale"),  # torch's own reader knows no F8_E8M0
        ("block_fp8", "F32", "F8_E4M3", "_scale_inv"),
        ("block_fp8", "BF16", "F8_E5M2", "_scale"),
        ("tensor_fp8", "F32", "F8_E4M3", "_scale"),
        ("tensor_fp8", "BF16", "F8_E4M3", "_scale_inv"),
    )
]
ways = pytest.mark.parametrize("how", WAYS, ids=lambda how: "-".join(how.values()))


def check(path: Path, load, dtypes: reference.Dtypes = None, layout: str = "automodel") -> None:
    expected = reference.native(path, dtypes, layout)
    destinations = destinations_like(expected)
    load(state_of(destinations))
    assert wrong(destinations, expected) == []


@ways
def test_each_encoding_loads_into_any_dtype_and_layout(how: dict[str, str], tmp_path: Path):
    path = write_m3(tmp_path, SEVERAL_BLOCKS, **how)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        check(path, lambda state: sw.load(state, path, staging_bytes=1 << 16, threads=2), dtype)
    for layout in ("transformers", "huggingface"):
        check(path, lambda state, layout=layout: sw.load(state, path, layout=layout), None, layout)


@ways
def test_either_half_of_dcp_may_be_torchs_own(how: dict[str, str], tmp_path: Path):
    path = write_m3(tmp_path, SEVERAL_BLOCKS, **how)
    for reader in (sw.HuggingFaceStorageReader(path), TorchReader(str(path))):
        check(
            path,
            lambda state, r=reader: dcp.load(state, storage_reader=r, planner=sw.LoadPlanner(), no_dist=True),
        )
    raw = {name: torch.zeros_like(tensor) for name, tensor in hf_state_dict(path).items()}
    dcp.load(raw, storage_reader=sw.HuggingFaceStorageReader(path), no_dist=True)
    for name, tensor in hf_state_dict(path).items():
        assert raw[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8)), name


@ways
def test_the_adapter_asks_for_what_the_checkpoint_stores_and_decodes_it(how: dict[str, str], tmp_path: Path):
    path = write_m3(tmp_path, SEVERAL_BLOCKS, **how)
    stored, expected = reference.read_checkpoint(path), reference.native(path)
    asked = {name: (dtype, tuple(shape)) for name, dtype, shape in sw.request_list(path)}
    assert asked == {name: (tensor.dtype, tensor.shape) for name, tensor in stored.items()}
    adapter = MiniMaxM3VLStateDictAdapter(*configs(SEVERAL_BLOCKS.experts), None)
    state = sw.empty_state_dict(path)
    hf = adapter.to_hf(state, quantization=True, checkpoint=path)
    assert {name: (t.dtype, tuple(t.shape)) for name, t in hf.items()} == {
        name: (as_stored(tensor).dtype, tensor.shape) for name, tensor in stored.items()
    }
    for name, tensor in hf.items():
        if name.endswith(reference.SCALE_ENDINGS):
            assert tensor.float().eq(127 if tensor.dtype == torch.uint8 else 1).all(), name
    dcp.load(hf, storage_reader=sw.HuggingFaceStorageReader(path), no_dist=True)
    for found in (adapter.from_hf(hf), adapter.from_hf(hf_state_dict(path))):
        assert found.keys() == expected.keys()
        assert [fqn for fqn in expected if not reference.same(found[fqn], expected[fqn])] == []


def test_encodings_may_be_mixed_in_one_checkpoint(tmp_path: Path):
    rng = np.random.default_rng(3)
    tensors = made_up_m3(SEVERAL_BLOCKS)
    weights = [name for name, tensor in tensors.items() if tensor.dtype == "F8_E4M3"]
    for number, name in enumerate(weights):
        encoding = ("mxfp8", "block_fp8", "tensor_fp8")[number % 3]
        if encoding != "mxfp8":
            shape = scale_shape(encoding, *tensors[name].shape)
            tensors[name + "_scale_inv"] = random_scales(rng, "F32", shape)
    path = write_checkpoint(tmp_path, tensors, config=config_of(SEVERAL_BLOCKS))
    check(path, lambda state: sw.load(state, path))
    counts = _core.scaled_weights(sw.read_catalog(path))
    assert sum(counts.values()) == len(weights) and set(counts) == {"mxfp8", "block_fp8", "tensor_fp8"}


@pytest.mark.parametrize("preset", ["tiny", "small"])
@pytest.mark.parametrize("encoding", ["block_fp8", "tensor_fp8"])
def test_the_generator_writes_each_encoding(encoding: str, preset: str, tmp_path: Path):
    sw.generate(tmp_path, preset, encoding=encoding, values="any")
    stored = reference.read_checkpoint(tmp_path)
    weights = {name: tensor for name, tensor in stored.items() if tensor.dtype == "F8_E4M3"}
    assert len(weights) > 50
    for name, weight in weights.items():
        assert stored[name + "_scale_inv"].shape == scale_shape(encoding, *weight.shape)
    check(tmp_path, lambda state: sw.load(state, tmp_path))


def test_the_generator_refuses_an_encoding_that_it_does_not_know(tmp_path: Path):
    with pytest.raises(ValueError, match="'?fp3'?.*mxfp8, block_fp8, tensor_fp8"):
        sw.generate(tmp_path, encoding="fp3")


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype, shape",
    [
        ("F32", (2,)),
        ("F32", (20, 2)),
        ("F32", (2, 2)),
        ("BF16", (20, 3)),
        ("U8", ()),
        ("F16", ()),
        ("F64", (1, 1)),
    ],
)
def test_a_scale_that_fits_no_known_block_shape(dtype: str, shape: tuple[int, ...], whole, tmp_path: Path):
    nbytes = torch.Size(shape).numel() * reference.ITEM_BYTES[dtype]
    scale = Tensor(dtype, shape, bytes(nbytes))
    path = write_checkpoint(tmp_path, made_up_m3() | {Q_PROJ + "_scale_inv": scale}, config=config_of())
    (file,) = {
        t.file.name for name, t in reference.read_checkpoint(path).items() if name == Q_PROJ + "_scale_inv"
    }
    assert_refused(
        path,
        whole,
        sw.PlanError,
        f"{Q_PROJ}_scale_inv in {file} ({dtype} [{', '.join(map(str, shape))}])",
        "U8 or F8_E8M0 [20, 2]",
        "F32 or BF16 [1, 1]",
        "F32 or BF16 []",
    )


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_an_fp8_weight_without_any_scale(dtype: str, whole, tmp_path: Path):
    tensors = without(made_up_m3(element_dtype=dtype, scale_suffix="_scale"), Q_PROJ + "_scale")
    path = write_checkpoint(tmp_path, tensors, config=config_of())
    assert_refused(path, whole, sw.PlanError, Q_PROJ + "_scale_inv", Q_PROJ + "_scale", dtype)


def test_scales_under_both_names(whole, tmp_path: Path):
    tensors = made_up_m3() | {Q_PROJ + "_scale": Tensor("F32", (), bytes(4))}
    path = write_checkpoint(tmp_path, tensors, config=config_of())
    assert_refused(path, whole, sw.PlanError, Q_PROJ + "_scale_inv", Q_PROJ + "_scale in", "one name")


def test_a_weight_scale_without_its_weight(whole, tmp_path: Path):
    path = write_checkpoint(tmp_path, without(made_up_m3(scale_suffix="_scale"), Q_PROJ), config=config_of())
    assert_refused(path, whole, sw.PlanError, Q_PROJ)
