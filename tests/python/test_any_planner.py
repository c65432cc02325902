"""What has scales is decoded whoever plans: our reader under torch's planners, for a family that nobody knows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from checkpoints import Tensor, Tensors, random_scales, random_tensor, scale_shape, without, write_checkpoint
from deepseek import made_up_deepseek, write_deepseek
from destinations import Destination, destinations_like, state_of, wrong
from hf_state import hf_state_dict
from outcomes import outcome_of
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter as TorchWriter
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.quantized_hf_storage import QuantizedHuggingFaceStorageReader

pytestmark = pytest.mark.ranks

WAYS = [
    ("mxfp8", "U8", "F8_E4M3", "_scale_inv"),
    ("mxfp8", "F8_E8M0", "F8_E5M2", "_scale"),
    ("block_fp8", "F32", "F8_E4M3", "_scale_inv"),
    ("block_fp8", "BF16", "F8_E5M2", "_scale"),
    ("tensor_fp8", "F32", "F8_E4M3", "_scale"),
    ("tensor_fp8", "BF16", "F8_E4M3", "_scale_inv"),
]
ways = pytest.mark.parametrize("way", WAYS, ids="-".join)
WIDE = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
WEIGHT = "tower.3.proj.weight"


def made_up(rng: np.random.Generator, way: tuple[str, str, str, str], shape: tuple[int, int]) -> Tensors:
    """One weight with scales, of any bits, and tensors that have none."""
    encoding, scale, element, suffix = way
    return {
        "tower.3.norm.weight": random_tensor(rng, "BF16", (7,)),
        WEIGHT: random_tensor(rng, element, shape),
        WEIGHT + suffix: random_scales(rng, scale, scale_shape(encoding, *shape)),
        "head": random_tensor(rng, "F32", (3, 5)),
    }


def load(state: dict[str, torch.Tensor], path: Path, planner=None, **options) -> sw.HuggingFaceStorageReader:
    reader = sw.HuggingFaceStorageReader(path, **options)
    dcp.load(state, storage_reader=reader, planner=planner, no_dist=True)
    return reader


def decoded(path: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every tensor but the scales: decoded, or converted, to that dtype."""
    stored = reference.read_checkpoint(path)
    names = [name for name in stored if not name.endswith(("_scale_inv", "weight_scale"))]
    return {name: reference.decode(stored, name, dtype) for name in names}


class InPieces(dcp.DefaultLoadPlanner):
    """Asks for each tensor in random boxes, several items for each."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rng = np.random.default_rng(seed)

    def create_local_plan(self) -> LoadPlan:
        return LoadPlan([piece for item in super().create_local_plan().items for piece in self.cut(item)])

    def cut(self, item: ReadItem, depth: int = 3) -> list[ReadItem]:
        longest = [d for d, size in enumerate(item.lengths) if size > 1]
        if depth == 0 or not longest:
            return [item]
        d = int(self.rng.choice(longest))
        at = int(self.rng.integers(1, item.lengths[d]))
        pieces = []
        for begin, size in ((0, at), (at, item.lengths[d] - at)):
            moved = [list(offsets) for offsets in (item.dest_offsets, item.storage_offsets)]
            lengths = list(item.lengths)
            lengths[d] = size
            for offsets in moved:
                offsets[d] += begin
            piece = ReadItem(
                item.type,
                item.dest_index,
                torch.Size(moved[0]),
                item.storage_index,
                torch.Size(moved[1]),
                torch.Size(lengths),
            )
            pieces += self.cut(piece, depth - 1)
        return pieces


@ways
def test_a_tensor_with_scales_is_decoded_into_any_wide_dtype(way, tmp_path: Path):
    rng = np.random.default_rng(1)
    for number in range(6):
        shape = (int(rng.integers(1, 300)), int(rng.integers(1, 400)))
        path = write_checkpoint(tmp_path / str(number), made_up(rng, way, shape))
        for dtype in WIDE:
            expected = decoded(path, dtype)
            destinations = destinations_like(expected)
            load(state_of(destinations), path, staging_bytes=1 << 16, thread_count=2)
            assert wrong(destinations, expected) == []


@ways
def test_slices_of_it_are_decoded_wherever_they_begin(way, tmp_path: Path):
    rng = np.random.default_rng(2)
    for number in range(6):
        shape = (int(rng.integers(2, 300)), int(rng.integers(2, 400)))
        path = write_checkpoint(tmp_path / str(number), made_up(rng, way, shape))
        for dtype in WIDE:
            expected = decoded(path, dtype)
            destinations = destinations_like(expected)
            load(state_of(destinations), path, InPieces(number))
            assert wrong(destinations, expected) == []


@ways
def test_the_stored_dtype_and_the_scales_by_name_are_given_as_they_are_stored(way, tmp_path: Path):
    path = write_checkpoint(tmp_path, made_up(np.random.default_rng(3), way, (130, 70)))
    whole = hf_state_dict(path)
    state = {name: torch.zeros_like(tensor) for name, tensor in whole.items()}
    load(state, path, InPieces(0))
    for name, tensor in whole.items():
        assert state[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8)), name


def test_scales_in_fp8_are_numbers(tmp_path: Path):
    """As NVFP4 has them: nobody scales the scales."""
    rng = np.random.default_rng(4)
    tensors = {
        "a.weight": random_tensor(rng, "U8", (4, 8)),
        "a.weight_scale": Tensor("F8_E4M3", (4, 1), bytes([0x38, 0x40, 0x44, 0x08])),
        "a.weight_scale_2": Tensor("F32", (), bytes(4)),
    }
    state = {"a.weight_scale": torch.zeros(4, 1)}
    load(state, write_checkpoint(tmp_path, tensors))
    assert state["a.weight_scale"].flatten().tolist() == [1, 2, 3, 2**-6]


def test_fp8_of_a_checkpoint_without_any_scales_is_cast(tmp_path: Path):
    tensors = {
        "norm.scale": Tensor("F32", (1,), bytes(4)),
        "a.weight": Tensor("F8_E4M3", (2, 2), bytes([0x38, 0x40, 0x44, 0x08])),
    }
    state = {"a.weight": torch.zeros(2, 2)}
    load(state, write_checkpoint(tmp_path, tensors))
    assert state["a.weight"].flatten().tolist() == [1, 2, 3, 2**-6]


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("dtype", WIDE)
def test_it_equals_what_torchs_quantized_reader_gives(dtype: torch.dtype, pieces: bool, tmp_path: Path):
    """To float32 that reader rounds as we do; what follows is one more rounding, which is ours as well."""
    path = write_deepseek(tmp_path)
    names = [name for name in made_up_deepseek() if not name.endswith("_scale_inv")]
    shapes = {name: tensor.shape for name, tensor in hf_state_dict(path).items()}
    found, expected = ({name: torch.zeros(shapes[name], dtype=dtype) for name in names} for _ in range(2))
    load(found, path, InPieces(5) if pieces else None)
    dcp.load(expected, storage_reader=QuantizedHuggingFaceStorageReader(str(path)), no_dist=True)
    assert reference.differing(found, expected) == []


# --- what cannot be ----------------------------------------------------------------------------------------------


def assert_refused(path: Path, dtypes: dict[str, torch.dtype], *words: str) -> None:
    """Loading all tensors, these in these dtypes, is refused with these words, and nothing is written."""
    stored = {name: t for name, t in hf_state_dict(path).items() if not name.endswith("_scale_inv")}
    destinations = {name: Destination(t.shape, dtypes.get(name, t.dtype)) for name, t in stored.items()}
    with pytest.raises(CheckpointException) as refused:
        load(state_of(destinations), path)
    error = refused.value.failures[0][0]
    assert isinstance(error, sw.PlanError), repr(error)
    assert [word for word in words if word not in str(error)] == [], error
    assert [name for name in destinations if not destinations[name].untouched()] == []


Q_A, Q_B = (f"model.layers.1.self_attn.{name}.weight" for name in ("q_a_proj", "q_b_proj"))


@pytest.mark.parametrize(
    "dtype", [torch.float8_e5m2, torch.uint8, torch.int8, torch.int64, torch.complex64, torch.complex128]
)
def test_a_destination_that_holds_no_decoded_numbers(dtype: torch.dtype, tmp_path: Path):
    path = write_deepseek(tmp_path)
    assert_refused(
        path,
        {Q_A: dtype, Q_B: dtype},
        Q_A,
        Q_B,
        str(dtype) if dtype.is_complex and dtype.itemsize == 16 else "F8_E4M3",
    )


def test_scales_that_fit_no_blocks(tmp_path: Path):
    tensors = made_up_deepseek() | {Q_A + "_scale_inv": Tensor("F32", (2, 3), bytes(24))}
    assert_refused(
        write_checkpoint(tmp_path, tensors), {Q_A: torch.bfloat16}, Q_A + "_scale_inv", "[2, 3]", "[2, 2]"
    )


def test_scales_that_are_missing(tmp_path: Path):
    path = write_checkpoint(tmp_path, without(made_up_deepseek(), Q_A + "_scale_inv"))
    assert_refused(path, {Q_A: torch.bfloat16}, Q_A, "needs its scales", Q_A + "_scale_inv")


@pytest.mark.parametrize(
    "name", ["proj.scale", "proj.weight_scale_2", "proj.weight.scales", "proj.scale_weight"]
)
def test_what_looks_like_scales_under_a_name_that_nobody_knows(name: str, tmp_path: Path):
    rng = np.random.default_rng(6)
    tensors = {"proj.weight": random_tensor(rng, "F8_E4M3", (4, 8)), name: random_tensor(rng, "F32", ())}
    path = write_checkpoint(tmp_path, tensors)
    assert_refused(path, {"proj.weight": torch.bfloat16}, "proj.weight", name, "F8_E4M3")


def test_scales_under_two_names(tmp_path: Path):
    tensors = made_up_deepseek() | {Q_A + "_scale": Tensor("F32", (), bytes(4))}
    path = write_checkpoint(tmp_path, tensors)
    assert_refused(path, {Q_A: torch.float32}, Q_A + "_scale_inv", Q_A + "_scale in", "one name")


def test_scaled_integers(tmp_path: Path):
    rng = np.random.default_rng(7)
    tensors = {
        "a.weight": random_tensor(rng, "I8", (4, 8)),
        "a.weight_scale": random_tensor(rng, "F32", (4, 1)),
    }
    path = write_checkpoint(tmp_path, tensors)
    assert_refused(path, {"a.weight": torch.bfloat16}, "a.weight", "I8", "a.weight_scale")


def test_a_scaled_tensor_that_is_no_matrix(tmp_path: Path):
    rng = np.random.default_rng(8)
    tensors = {
        "experts.weight": random_tensor(rng, "F8_E4M3", (8,)),
        "experts.weight_scale_inv": random_tensor(rng, "F32", ()),
    }
    path = write_checkpoint(tmp_path, tensors)
    assert_refused(path, {"experts.weight": torch.bfloat16}, "experts.weight", "matrix", "[8]")


# --- sharded checkpoints -----------------------------------------------------------------------------------------


def saved(writer: str, path: Path, directory: Path) -> Path:
    """What the HF checkpoint holds, saved by a trainer under the same names."""
    state = hf_state_dict(path)
    if writer == "shardwright":
        sw.save(state, directory)
    else:
        torchs = TorchWriter(str(directory), save_distributed=True)
        dcp.save(state, storage_writer=torchs, no_dist=True)
    return directory


@pytest.mark.parametrize("writer", ["shardwright", "torch"])
def test_a_sharded_checkpoint_with_scales_is_decoded(writer: str, tmp_path: Path):
    path = write_deepseek(tmp_path / "hf")
    shards = saved(writer, path, tmp_path / "shards")
    for dtype in WIDE:
        expected = decoded(path, dtype)
        if dtype != torch.float64:  # no narrowing that is torch's
            expected = {name: t for name, t in expected.items() if name + "_scale_inv" in made_up_deepseek()}
        destinations = destinations_like(expected)
        sw.load(state_of(destinations), shards)
        assert wrong(destinations, expected) == []


@pytest.mark.parametrize("writer", ["shardwright", "torch"])
def test_a_sharded_checkpoint_with_scales_that_fit_no_blocks(writer: str, tmp_path: Path):
    tensors = made_up_deepseek() | {Q_A + "_scale_inv": Tensor("F32", (2, 3), bytes(24))}
    shards = saved(writer, write_checkpoint(tmp_path / "hf", tensors), tmp_path / "shards")
    state = {Q_A: torch.ones(150, 200, dtype=torch.bfloat16), Q_B: torch.ones(200, 150)}
    with pytest.raises(sw.PlanError, match=rf"{Q_A}_scale_inv.*\[2, 3\]"):
        sw.load(state, shards)
    assert all(tensor.eq(1).all() for tensor in state.values())


def test_torchs_own_checkpoint_with_scales_is_refused_where_it_would_have_to_be_decoded(tmp_path: Path):
    state = hf_state_dict(write_deepseek(tmp_path / "hf"))
    dcp.save(state, checkpoint_id=tmp_path / "distcp", no_dist=True)
    raw = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    sw.load(raw, tmp_path / "distcp")
    assert raw[Q_A].view(torch.uint8).equal(state[Q_A].view(torch.uint8))
    wide = {"lm_head.weight": torch.zeros(64, 200, dtype=torch.bfloat16), Q_A: torch.zeros(150, 200)}
    with pytest.raises(sw.PlanError, match=f"{Q_A}.*float8_e4m3fn.*{Q_A}_scale_inv"):
        sw.load(wide, tmp_path / "distcp")
    assert all(tensor.eq(0).all() for tensor in wide.values())


class FirstRows(dcp.DefaultLoadPlanner):
    """Asks for the first rows of each tensor, and so for a part of its scales."""

    def create_local_plan(self) -> LoadPlan:
        return LoadPlan(
            [replace(item, lengths=torch.Size([100, 200])) for item in super().create_local_plan().items]
        )


def test_verify_checks_the_scales_that_a_weight_takes(tmp_path: Path):
    path = write_deepseek(tmp_path / "hf")
    shards = tmp_path / "shards"
    sw.save(hf_state_dict(path), shards, format="safetensors")
    (file,) = shards.glob("*.safetensors")
    damaged = reference.read_safetensors(file)[Q_A + "_scale_inv"]
    data = bytearray(file.read_bytes())
    data[damaged.end - 1] ^= 1
    file.write_bytes(data)
    state = {Q_A: torch.zeros(150, 200, dtype=torch.bfloat16)}
    with pytest.raises(CheckpointException, match=f"{Q_A}_scale_inv"):
        reader = sw.ShardedStorageReader(shards, verify=True)
        dcp.load(state, storage_reader=reader, planner=FirstRows(), no_dist=True)
    assert state[Q_A].eq(0).all()


# --- on ranks ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[1, 2], ids=["1_rank", "2_ranks"])
def outcome(request, tmp_path_factory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("any_planner")
    return outcome_of("any_planner.py", request.param, write_deepseek(directory / "deepseek"), directory)


def test_torchs_planner_loads_dtensors_of_an_unknown_family(outcome: dict[str, str]):
    assert not outcome["sharded"], outcome["sharded"]


def test_and_ranks_read_them_together(outcome: dict[str, str]):
    assert not outcome["together"], outcome["together"]
