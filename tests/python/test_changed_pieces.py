"""What has changed since the last time is handed over alone, and put in place a layer at a time."""

from pathlib import Path

import pytest
import shardwright as sw
import torch
from handed_over import bits, exported, of_all_ranks, put_together, sharded_over, wrong_tensors
from test_property import fake_mesh
from torch.distributed.tensor import Replicate, Shard

Tensors = dict[str, torch.Tensor]


def matrices(rows: int = 256, columns: int = 4096) -> Tensors:
    generator = torch.Generator().manual_seed(3)
    return {
        f"model.layers.{n}.mlp.up_proj.weight": torch.randn(rows, columns, generator=generator).bfloat16()
        for n in range(3)
    }


MXFP8 = {"quantization": "mxfp8", "layout": "huggingface", "quantized_weights": ["*.weight"]}


def bytes_of(pieces: list["sw.Piece"]) -> int:
    return sum(piece.tensor.nbytes for piece in pieces)


def engine_of(pieces: list["sw.Piece"]) -> Tensors:
    return {piece.name: torch.zeros(piece.shape, dtype=piece.dtype) for piece in pieces}


#: Blocks that share a checksum of 4 KiB at most, in a row of 4096 values; and tiles, which finer checksums find.
RUNS = [("mxfp8", 1, 2048), ("block_fp8", 128, 128), ("nvfp4-modelopt", 1, 4096), (None, 1, 2048)]
TILES = [("mxfp8", 128, 128), ("block_fp8", 128, 128), ("nvfp4-modelopt", 128, 128), (None, 128, 128)]


@pytest.mark.parametrize(
    "quantization, rows, columns, block_bytes",
    [(*run, 4096) for run in RUNS] + [(*tile, 128) for tile in TILES] + [("mxfp8", 1, 32, 33)],
)
def test_two_percent_of_the_blocks_move_at_most_three_of_the_bytes(
    quantization: str | None, rows: int, columns: int, block_bytes: int, tmp_path: Path, capsys
):
    state = matrices(640 if rows > 1 else 100)
    options = MXFP8 | {"quantization": quantization}
    if quantization is None:
        del options["quantized_weights"]
    sums = sw.PieceSums(block_bytes)
    first = list(sw.pieces(state, changed_since=sums, **options))
    engine = engine_of(first)
    assert sw.apply_pieces(engine, first).layers == [f"model.layers.{n}" for n in range(3)]
    assert list(sw.pieces(state, changed_since=sums, **options)) == []

    generator = torch.Generator().manual_seed(4)
    for weight in state.values():
        of_rows, of_columns = weight.shape[0] // rows, weight.shape[1] // columns
        count = of_rows * of_columns
        for number in torch.randperm(count, generator=generator)[: round(count * 0.02)].tolist():
            row, column = number // of_columns * rows, number % of_columns * columns
            weight[row : row + rows, column : column + columns] *= 0.7
    changed = list(sw.pieces(state, changed_since=sums, **options))
    share = bytes_of(changed) / bytes_of(first)
    with capsys.disabled():
        print(
            f"\n{quantization}: 2 % of the blocks of {rows} x {columns} are {100 * share:.2f} % of the bytes, in "
            f"{len(changed)} pieces; checksums take {100 * 8 * sums.blocks / bytes_of(first):.2f} %",
            end=" ",
        )
    assert 0 < share <= 0.03
    assert all(piece.tensor.is_contiguous() for piece in changed)
    sw.apply_pieces(engine, changed)
    sw.export(state, tmp_path / "to", **options)
    assert wrong_tensors(engine, exported(tmp_path / "to")) == []


@pytest.mark.parametrize("rows, columns", [(1, 1), (64, 32), (700, 2128)])
def test_of_weights_whose_columns_are_runs_what_has_changed_comes_alone(
    rows: int, columns: int, tmp_path: Path
):
    """They are encoded upright, in squares of about 512 x 512, of which this has several and cut ones."""
    state = {name: value.T.contiguous().T for name, value in matrices(700, 2128).items()}
    assert all(value.stride() == (1, 700) for value in state.values())
    sums = sw.PieceSums(128)
    first = list(sw.pieces(state, changed_since=sums, **MXFP8))
    engine = engine_of(first)
    sw.apply_pieces(engine, first)
    generator = torch.Generator().manual_seed(7)
    for weight in state.values():
        row = int(torch.randint(701 - rows, (), generator=generator))
        column = int(torch.randint(2129 - columns, (), generator=generator))
        weight[row : row + rows, column : column + columns] *= -0.3
    changed = list(sw.pieces(state, changed_since=sums, **MXFP8))
    of_row = min(2128, columns + 2 * 127)  # what shares a checksum with what has changed
    assert 0 < bytes_of(changed) <= len(state) * rows * (of_row + of_row // 32 + 1)
    sw.apply_pieces(engine, changed)
    sw.export(state, tmp_path / "to", **MXFP8)
    assert wrong_tensors(engine, exported(tmp_path / "to")) == []
    assert list(sw.pieces(state, changed_since=sums, **MXFP8)) == []


def test_every_step_ends_in_the_bits_of_an_export(small: Path, tmp_path: Path):
    state = sw.empty_state_dict(small)
    sw.load(state, small)
    options = {"quantization": "mxfp8", "template": small, "bucket_bytes": "256KiB"}
    sums, engine = sw.PieceSums(), engine_of(list(sw.pieces(state, **options)))
    generator = torch.Generator().manual_seed(5)
    for step in range(4):
        for value in state.values():
            if value.numel() and torch.rand((), generator=generator) < 0.5:
                at = torch.randint(value.numel(), (3,), generator=generator)
                value.view(-1)[at] = torch.randn(3, generator=generator).to(value.dtype)
        sw.apply_pieces(engine, sw.pieces(state, changed_since=sums, **options))
        sw.export(state, tmp_path / str(step), quantization="mxfp8", template=small)
        assert wrong_tensors(engine, exported(tmp_path / str(step))) == [], step


def test_what_a_run_that_ended_early_handed_over_comes_again():
    state = matrices()
    sums = sw.PieceSums()
    engine = engine_of(list(sw.pieces(state, **MXFP8)))
    sw.apply_pieces(engine, sw.pieces(state, changed_since=sums, **MXFP8))
    name = next(iter(state))
    before = state[name].clone()
    state[name][7] += 1
    lost = sw.pieces(state, changed_since=sums, **MXFP8)
    assert next(lost).name == name
    lost.close()
    again = list(sw.pieces(state, changed_since=sums, **MXFP8))
    assert {piece.name for piece in again} >= {name}
    sw.apply_pieces(engine, again)
    lost = sw.pieces(state, changed_since=sums, **MXFP8)
    assert list(lost) == []

    state[name][7] += 1
    partly = sw.pieces(state, changed_since=sums, **MXFP8)
    next(partly).put_into(engine[name])  # which the receiver has now, and sums do not know
    partly.close()
    state[name].copy_(before)
    sw.apply_pieces(engine, sw.pieces(state, changed_since=sums, **MXFP8))
    assert wrong_tensors(engine, put_together(sw.pieces(state, **MXFP8))) == []


def test_after_forget_and_in_another_plan_everything_comes():
    state = matrices()
    sums = sw.PieceSums()
    all_of_it = bytes_of(list(sw.pieces(state, changed_since=sums, **MXFP8)))
    assert sums.blocks > 0
    assert list(sw.pieces(state, changed_since=sums, **MXFP8)) == []
    sums.forget()
    assert bytes_of(list(sw.pieces(state, changed_since=sums, **MXFP8))) == all_of_it
    wider = MXFP8 | {"quantization": None, "quantized_weights": None}
    assert bytes_of(list(sw.pieces(state, changed_since=sums, **wider))) > all_of_it


@pytest.mark.parametrize("mesh", [(2,), (2, 2)])
def test_ranks_of_a_mesh_change_a_sharded_engine(mesh: tuple[int, ...], tmp_path: Path):
    """Shards that cut blocks; the engine has its tensors as DTensors of its own placements."""
    state = matrices(96, 2128)
    placements = {name: [Shard(1), Replicate()][: len(mesh)] for name in state}
    every = [sw.PieceSums() for _ in range(mesh[0] * (mesh[1] if len(mesh) > 1 else 1))]
    streams = list(of_all_ranks(state, mesh, placements, sums=every, **MXFP8))
    state["model.layers.1.mlp.up_proj.weight"][40:50, 5:99] = 3
    changed = list(of_all_ranks(state, mesh, placements, sums=every, **MXFP8))
    assert {piece.layer for piece in changed} == {"model.layers.1"}
    whole = put_together(sw.pieces(state, **MXFP8))
    by_rows = {name: [Shard(0)] for name in whole}
    with fake_mesh((3,), 1) as engines:
        engine = sharded_over(
            {name: torch.zeros_like(value) for name, value in whole.items()}, engines, by_rows
        )
        sw.apply_pieces(engine, sorted(streams, key=lambda piece: piece.place))
        sw.apply_pieces(engine, changed)
        expected = sharded_over(whole, engines, by_rows)
        for name, value in expected.items():
            assert torch.equal(bits(engine[name].to_local()), bits(value.to_local())), name


def test_a_layer_is_whole_old_or_whole_new():
    state = matrices()
    pieces = list(sw.pieces(state, **MXFP8, bucket_bytes="128KiB"))
    engine = engine_of(pieces)
    expected = put_together(pieces)

    def broken():
        for piece in pieces:
            if piece.layer == "model.layers.1" and piece.name.endswith("_scale_inv"):
                raise ConnectionResetError(104, "the sender is gone")
            yield piece

    with pytest.raises(
        OSError, match=r"the sender is gone; model.layers.0 has the new values, all others"
    ) as error:
        sw.apply_pieces(engine, broken())
    assert error.value.applied.layers == ["model.layers.0"]
    for name, value in engine.items():
        new = name.startswith("model.layers.0.")
        assert torch.equal(bits(value), bits(expected[name]) if new else torch.zeros_like(bits(value))), name


def test_parts_of_tensors_get_their_parts():
    state = matrices()
    pieces = list(sw.pieces(state, **MXFP8, bucket_bytes="128KiB"))
    expected = put_together(pieces)
    engine = {}
    for name, value in expected.items():
        rows, columns = value.shape[0] // 3, value.shape[1] // 2
        low = sw.TensorPart(torch.zeros(rows, value.shape[1], dtype=value.dtype), (0, 0))
        right = sw.TensorPart(torch.zeros(value.shape[0] - rows, columns, dtype=value.dtype), (rows, columns))
        engine[name] = [low, right]
    applied = sw.apply_pieces(engine, pieces)
    for name, (low, right) in engine.items():
        assert torch.equal(bits(low.tensor), bits(expected[name][: low.tensor.shape[0]])), name
        assert torch.equal(bits(right.tensor), bits(expected[name][right.offset[0] :, right.offset[1] :])), (
            name
        )
    assert applied.bytes == sum(part.tensor.nbytes for parts in engine.values() for part in parts)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda engine, name: engine.pop(name), "there is no tensor for it"),
        (
            lambda engine, name: engine.update({name: torch.zeros(256, 4096)}),
            "expected a tensor of torch.float8_e4m3fn",
        ),
        (lambda engine, name: engine.update({name: engine[name][0]}), "and 2 dimensions"),
        (
            lambda engine, name: engine.update({name: sw.TensorPart(engine[name], (1, 0))}),
            "expected a part of",
        ),
        (
            lambda engine, name: engine.update({name: engine[name][:100]}),
            r"expected a tensor of \[256, 4096\], found \[100, 4096\]; say with a shardwright.TensorPart",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_its_layer_stays(change, message: str):
    pieces = list(sw.pieces(matrices(), **MXFP8))
    engine = engine_of(pieces)
    name = "model.layers.1.mlp.up_proj.weight"
    change(engine, name)
    with pytest.raises(sw.PlanError, match=message) as error:
        sw.apply_pieces(engine, pieces)
    assert str(error.value).endswith("model.layers.0 has the new values, all others have the old ones")
    assert not bits(engine[f"{name}_scale_inv"]).any()
    if message.startswith("there is"):
        applied = sw.apply_pieces(engine, pieces, strict=False)
        assert applied.passed_over == {name}


def test_what_is_no_tensors_and_no_pieces_is_told():
    pieces = list(sw.pieces(matrices(64, 512), layout="huggingface"))
    for tensors, stream, message in [
        (None, pieces, "expected a dict of names and tensors, found NoneType"),
        ({}, "abc", "expected what shardwright.pieces gives, found str"),
        ({}, [*pieces, 3], "expected what shardwright.pieces gives, found int"),
    ]:
        with pytest.raises(TypeError, match=message):
            sw.apply_pieces(tensors, stream, strict=False)


def test_an_error_of_a_stream_says_its_number_once():
    def broken():
        raise OSError(5, "the line is cut", "socket")
        yield

    with pytest.raises(
        OSError, match=r"^\[Errno 5\] socket: the line is cut; no layer has the new values"
    ) as error:
        sw.apply_pieces({}, broken())
    assert error.value.errno == 5


@pytest.mark.parametrize("taken", [0, 1])
def test_a_second_run_with_the_same_sums_ends_the_first(taken: int):
    """In the middle of a bucket that is being filled, as where a sender begins anew after an error."""
    state = matrices(64, 512)
    sums = sw.PieceSums()
    options = {"changed_since": sums, "layout": "huggingface", "bucket_bytes": "128KiB"}
    first = sw.pieces(state, **options)
    for _ in range(taken):
        next(first)
    second = sw.pieces(state, **options)
    with pytest.raises(ValueError, match="another handing over has begun with these PieceSums"):
        for _ in first:
            pass
    assert wrong_tensors(put_together(second), state) == []
    assert list(sw.pieces(state, **options)) == []


def test_what_cannot_be_written_is_refused_before_it_counts_as_handed_over():
    """The last layer is written when all pieces have been asked for."""
    state = matrices(64, 512)
    last = "model.layers.2.mlp.up_proj.weight"
    sums = sw.PieceSums()
    options = {"changed_since": sums, "layout": "huggingface"}
    engine = {name: torch.zeros_like(value) for name, value in state.items()}
    expanded = torch.zeros(1, 512).bfloat16().expand(64, 512)
    for place in (expanded, sw.TensorPart(expanded, (0, 0))):
        with pytest.raises(sw.PlanError, match=f"{last}: expected memory for each element"):
            sw.apply_pieces(engine | {last: place}, sw.pieces(state, **options))
    sw.apply_pieces(engine, sw.pieces(state, **options))
    assert wrong_tensors(engine, state) == []
    with pytest.raises(sw.PlanError, match="last: expected memory for each element"):
        sw.refit(state, [sw.EngineTensor("last", expanded, [last])], layout="huggingface")
