"""The reference agrees with others: torch's FP8, casts and shards, the safetensors package."""

import checkpoints
import numpy as np
import placements
import pytest
import reference
import torch
from hf_state import as_stored
from hypothesis import settings
from safetensors.torch import save_file
from torch.distributed.tensor import Shard
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard

WIDE = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("dtype", WIDE)
def test_mxfp8_table_equals_torchs_elements_times_powers_of_two_in_float64(dtype: torch.dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    elements = codes.view(torch.float8_e4m3fn).to(torch.float64)
    scales = torch.ldexp(torch.ones(256, dtype=torch.float64), codes.to(torch.int32) - 127)
    scales[255] = torch.nan
    products = scales[:, None] * elements  # exact
    expected = reference.cast(products.view(torch.int64).numpy(), "F64", dtype)
    assert reference.same(reference.tensor_of(reference.mx_table("F8_E4M3", dtype), dtype), expected)


@pytest.mark.parametrize("dtype", [*WIDE, torch.float64])
@pytest.mark.parametrize("element", ["F8_E4M3", "F8_E5M2"])
def test_mxfp8_tables_hold_the_fractions_rounded_once(element: str, dtype: torch.dtype):
    table = reference.mx_table(element, dtype)
    for scale in {0, 1, 2, 253, 254, 255, *range(0, 256, max(1, 100 // settings().max_examples))}:
        by_fractions = [reference.mx_bits(element, code, scale, dtype) for code in range(256)]
        assert table[scale].tolist() == by_fractions, scale


@pytest.mark.parametrize("element", ["F8_E4M3", "F8_E5M2"])
@pytest.mark.parametrize("scale_dtype", ["F32", "BF16"])
@pytest.mark.parametrize("shape", [(), (1,), (3, 2)])
def test_scaling_by_floats_equals_deepseeks_formula_in_torch(
    element: str, scale_dtype: str, shape: tuple[int, ...], tmp_path
):
    """weight_dequant of DeepSeek V3, and transformers: x.to(float32) * s, and then to the model's dtype."""
    rng = np.random.default_rng(0)
    tensors = {
        "w": checkpoints.random_tensor(rng, element, (300, 200)),
        "w_scale_inv": checkpoints.random_tensor(rng, scale_dtype, shape),
    }
    stored = reference.read_checkpoint(checkpoints.write_checkpoint(tmp_path, tensors))
    x, s = (as_stored(stored[name]).to(torch.float32) for name in ("w", "w_scale_inv"))
    if len(shape) == 2:
        s = s.repeat_interleave(128, 0).repeat_interleave(128, 1)[:300, :200]
    for dtype in WIDE:
        assert reference.same(reference.decode(stored, "w", dtype), (x * s).to(dtype))


def test_mxfp8_rounds_halves_to_even_at_the_edges_of_bf16():
    table = reference.tensor_of(reference.mx_table("F8_E4M3", torch.bfloat16), torch.bfloat16)
    assert table[127, 0x38] == 1.0
    assert table[0, 0x38].item() == 2.0**-127  # subnormal
    assert table[0, 0x01].item() == 0.0  # 2^-136
    assert table[0, 0x03].item() == 0.0  # 3 × 2^-136, less than half of 2^-133
    assert table[0, 0x04].item() == 0.0  # 2^-134 lies halfway, zero is even
    assert table[0, 0x05].item() == 2.0**-133
    assert table[0, 0x0C].item() == 2.0**-132  # 1.5 × 2^-133 lies halfway, 2 is even
    assert table[254, 0x7E] == torch.inf and table[254, 0xFE] == -torch.inf
    assert torch.signbit(table[0, 0x81])
    assert table[255].isnan().all() and table[:, [0x7F, 0xFF]].isnan().all()


@pytest.mark.parametrize("source", ["BF16", "F16", "F32"])  # from F64 torch rounds twice, by way of float32
@pytest.mark.parametrize("dtype", WIDE)
def test_casts_equal_torchs(source: str, dtype: torch.dtype):
    size = reference.ITEM_BYTES[source]
    bits = np.frombuffer(np.random.default_rng(0).bytes(size * 100_000), f"<u{size}")
    values = reference.tensor_of(bits, reference.TORCH_DTYPES[source])
    assert reference.same(reference.cast(bits, source, dtype), values.to(dtype))


def test_a_cast_rounds_once():
    value = np.array([1 + 2.0**-8 + 2.0**-40])  # by way of float32 it would become a tie, and then 1
    assert reference.cast(value.view(np.uint64), "F64", torch.bfloat16).item() == 1 + 2.0**-7


def test_files_read_as_the_safetensors_package_writes_them(tmp_path):
    tensors = {
        "a.weight": torch.randn(3, 5).bfloat16(),
        "b": torch.tensor(2.5),
        "c": torch.zeros(0, 4, dtype=torch.float16),
        "d": torch.arange(7, dtype=torch.uint8),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = reference.read_checkpoint(tmp_path)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        read = reference.tensor_of(found[name].raw(), reference.TORCH_DTYPES[found[name].dtype])
        assert torch.equal(read, tensor)


@pytest.mark.parametrize("prefix", ["language_model.", "", "bare"])
def test_the_two_directions_of_the_name_table_undo_each_other(prefix: str):
    sizes = checkpoints.Sizes()
    names = {name for name in checkpoints.made_up_m3(sizes, prefix=prefix) if not name.endswith("_scale_inv")}
    assert reference.text_prefix(names) == prefix
    natives = {reference.native_name(name, prefix)[0] for name in names}
    back = [hf for fqn in natives for hf in reference.hf_names(fqn, prefix, sizes.experts)]
    assert sorted(back) == sorted(names)


def test_native_names_do_not_depend_on_the_prefix():
    natives = [
        {
            reference.native_name(name, prefix)[0]
            for name in checkpoints.made_up_m3(prefix=prefix)
            if not name.startswith(("vision", "multi", "patch"))
        }
        for prefix in ("language_model.", "", "bare")
    ]
    assert natives[0] == natives[1] == natives[2]
    assert "model.mtp.layers.0.transformer_layer.self_attn.indexer.index_q_proj.weight" in natives[0]


def test_gate_comes_before_up_and_both_are_transposed(tmp_path):
    sizes = checkpoints.Sizes(hidden=5, inter=3, experts=2)
    tensors = checkpoints.made_up_m3(sizes, quantized=False)
    state = reference.native(checkpoints.write_checkpoint(tmp_path, tensors), torch.bfloat16)
    grouped = state["model.layers.1.mlp.experts.gate_and_up_projs"]
    assert grouped.shape == (2, 5, 6)
    moe = "language_model.model.layers.1.block_sparse_moe.experts.1"
    up = tensors[f"{moe}.w3.weight"]
    element = np.frombuffer(up.data, np.uint16).reshape(up.shape)[2, 4]
    assert grouped.view(torch.int16)[1, 4, 3 + 2].item() & 0xFFFF == element
    assert state["model.layers.1.mlp.experts.down_projs"].shape == (2, 3, 5)


def test_held_indices_are_dtensors():
    rng = np.random.default_rng(0)
    for _ in range(300):
        mesh = tuple(rng.integers(1, 4, size=rng.integers(1, 4)).tolist())
        shape = tuple(rng.integers(1, 9, size=2).tolist())
        coordinate = tuple(int(rng.integers(n)) for n in mesh)
        chosen = [
            Shard(int(rng.integers(2)))
            if rng.random() < 0.6
            else _StridedShard(int(rng.integers(2)), split_factor=2)
            for _ in mesh
        ]
        held = placements.held_indices(shape, mesh, coordinate, chosen)
        local, offset = _compute_local_shape_and_global_offset(shape, mesh, coordinate, chosen)
        assert tuple(map(len, held)) == local
        assert all(len(h) == 0 or h[0] == o for h, o in zip(held, offset, strict=True))


@pytest.mark.parametrize("mesh", [(1,), (8,), (2, 4), (2, 2, 2)])
def test_each_element_is_held_by_one_rank_where_nothing_is_replicated(mesh: tuple[int, ...]):
    shape, chosen = (5, 7, 3), [Shard(0), Shard(1), _StridedShard(0, split_factor=2)][: len(mesh)]
    holders = np.zeros(shape, dtype=int)
    for coordinate in np.ndindex(*mesh):
        holders[np.ix_(*placements.held_indices(shape, mesh, coordinate, chosen))] += 1
    assert (holders == 1).all()
