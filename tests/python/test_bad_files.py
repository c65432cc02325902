"""Files that break their format: an error that names file and tensor, before any byte changes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import reference
import shardwright as sw
from checkpoints import (
    INDEX,
    Tensor,
    config_of,
    file_of,
    header_of,
    made_up_m3,
    write_checkpoint,
    write_safetensors,
)
from refusals import assert_refused

NORM = "language_model.model.norm.weight"


# --- directories --------------------------------------------------------------------------------------------


def test_a_missing_directory(whole, tmp_path: Path):
    assert_refused(tmp_path / "nowhere", whole, FileNotFoundError, tmp_path / "nowhere")


def test_a_directory_without_safetensors(whole, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(config_of()))
    assert_refused(tmp_path, whole, FileNotFoundError, tmp_path, "safetensors")


def test_a_file_instead_of_a_directory(whole, tmp_path: Path):
    write_safetensors(tmp_path / "model.safetensors", made_up_m3())
    assert_refused(tmp_path / "model.safetensors", whole, OSError, tmp_path / "model.safetensors")


# --- headers ------------------------------------------------------------------------------------------------

TWO = {"a.weight": Tensor("BF16", (2, 3), bytes(12)), "b.weight": Tensor("F32", (4,), bytes(16))}


def with_b(**fields) -> bytes:
    """A file of two tensors, in which b.weight's entry is changed; a field that is None is left out."""
    header = header_of(TWO)
    header["b.weight"] |= fields
    header["b.weight"] = {key: value for key, value in header["b.weight"].items() if value is not None}
    return file_of(header, bytes(28))


# What the file holds, and what the message must name beside the file.
HEADERS: dict[str, tuple[bytes, list[str]]] = {
    "empty_file": (b"", []),
    "shorter_than_the_length_field": (b"\x02\x00\x00", []),
    "length_of_zero": (file_of("", length=0), []),
    "length_beyond_the_file": (file_of("{}", length=1000), ["1000"]),
    "length_of_2_to_the_63": (file_of("{}", length=2**63), [str(2**63)]),
    "length_of_2_to_the_64_minus_1": (file_of("{}", length=2**64 - 1), [str(2**64 - 1)]),
    "length_that_cuts_the_json": (file_of(header_of(TWO), bytes(28), length=20), []),
    "not_json": (file_of("{nonsense"), []),
    "not_an_object": (file_of("[1, 2]"), []),
    "not_utf_8": (file_of(b'{"\xff\xfe": 1}'), []),
    "nested_without_end": (file_of('{"a":' + "[" * 200_000), []),
    "nested_deeply": (file_of('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"), []),
    "text_after_the_json": (file_of("{}{}"), []),
    "entry_is_no_object": (file_of({"a.weight": 7}), ["a.weight"]),
    "dtype_missing": (with_b(dtype=None), ["b.weight", "dtype"]),
    "dtype_unknown": (with_b(dtype="F7"), ["b.weight", "F7"]),
    "dtype_is_a_number": (with_b(dtype=7), ["b.weight", "dtype"]),
    "shape_missing": (with_b(shape=None), ["b.weight", "shape"]),
    "shape_negative": (with_b(shape=[-4]), ["b.weight"]),
    "shape_fractional": (with_b(shape=[4.5]), ["b.weight"]),
    "shape_of_texts": (with_b(shape=["4"]), ["b.weight"]),
    "shape_that_overflows": (with_b(shape=[2**62, 4, 2**62]), ["b.weight"]),
    "shape_that_wraps_to_the_right_size": (with_b(shape=[2**62 + 1, 4]), ["b.weight"]),
    "shape_larger_than_64_bits": (with_b(shape=[10**30]), ["b.weight"]),
    "offsets_missing": (with_b(data_offsets=None), ["b.weight", "data_offsets"]),
    "offsets_of_one_number": (with_b(data_offsets=[12]), ["b.weight", "data_offsets"]),
    "offsets_reversed": (with_b(data_offsets=[28, 12]), ["b.weight"]),
    "offsets_negative": (with_b(data_offsets=[-4, 12]), ["b.weight"]),
    "offsets_near_2_to_the_64": (with_b(data_offsets=[2**64 - 17, 2**64 - 1]), ["b.weight"]),
    "offsets_out_of_the_file": (file_of(header_of(TWO), bytes(20)), ["b.weight"]),
    "offsets_that_overlap": (with_b(data_offsets=[8, 24]), ["a.weight", "b.weight"]),
    "size_is_not_shape_times_dtype": (with_b(shape=[5]), ["b.weight", "16", "20"]),
    "name_twice": (
        file_of(
            '{"a.weight": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},'
            ' "a.weight": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}',
            bytes(2),
        ),
        ["a.weight"],
    ),
}


@pytest.mark.parametrize("content, words", HEADERS.values(), ids=HEADERS.keys())
def test_a_malformed_header(content: bytes, words: list[str], whole, tmp_path: Path):
    path = write_checkpoint(tmp_path, made_up_m3(), index=False)
    (path / "model-bad.safetensors").write_bytes(content)
    assert_refused(path, whole, sw.CheckpointFormatError, "model-bad.safetensors", *words)


def test_a_name_in_two_files(whole, tmp_path: Path):
    path = write_checkpoint(tmp_path, made_up_m3(), index=False)
    first = reference.read_checkpoint(path)[NORM].file.name
    write_safetensors(path / "model-more.safetensors", {NORM: Tensor("BF16", (40,), bytes(80))})
    assert_refused(path, whole, sw.CheckpointFormatError, NORM, first, "model-more.safetensors")


def test_a_file_cut_short_before_the_load(whole, tmp_path: Path):
    path = write_checkpoint(tmp_path, made_up_m3(), files=1)
    (file,) = path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    last = max(reference.read_safetensors(file).items(), key=lambda item: item[1].end)[0]
    assert_refused(path, whole, sw.CheckpointFormatError, file.name, last)


# --- the index ----------------------------------------------------------------------------------------------


def with_index(directory: Path, change: Callable[[dict], object]) -> Path:
    path = write_checkpoint(directory, made_up_m3(), config=config_of())
    index = json.loads((path / INDEX).read_text())
    change(index)
    (path / INDEX).write_text(json.dumps(index))
    return path


def test_an_index_that_names_an_absent_file(whole, tmp_path: Path):
    path = with_index(
        tmp_path, lambda index: index["weight_map"].update({NORM: "model-00009-of-00009.safetensors"})
    )
    assert_refused(path, whole, (sw.CheckpointFormatError), INDEX, "model-00009-of-00009.safetensors")


def test_an_index_that_names_an_absent_tensor(whole, tmp_path: Path):
    path = with_index(
        tmp_path,
        lambda index: index["weight_map"].update({"no.such.tensor": "model-00001-of-00002.safetensors"}),
    )
    assert_refused(
        path, whole, sw.CheckpointFormatError, "no.such.tensor", "model-00001-of-00002.safetensors"
    )


def test_an_index_that_names_the_wrong_file(whole, tmp_path: Path):
    def swap(index: dict) -> None:
        files = sorted(set(index["weight_map"].values()))
        index["weight_map"][NORM] = files[index["weight_map"][NORM] == files[0]]

    path = with_index(tmp_path, swap)
    assert_refused(path, whole, sw.CheckpointFormatError, NORM)


@pytest.mark.parametrize(
    "outside", ["../outside.safetensors", "/outside.safetensors", "a/../../outside.safetensors"]
)
def test_an_index_that_leaves_the_directory(outside: str, whole, tmp_path: Path):
    """The file is there, so that only its place is wrong."""
    write_safetensors(tmp_path / "outside.safetensors", {NORM: Tensor("BF16", (40,), bytes(80))})
    outside = outside if outside.startswith(("..", "a")) else str(tmp_path) + outside
    path = with_index(tmp_path / "m3", lambda index: index["weight_map"].update({NORM: outside}))
    assert_refused(path, whole, sw.CheckpointFormatError, INDEX, outside)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {"a": 1}}', "[" * 200_000]
)
def test_an_index_that_is_none(text: str, whole, tmp_path: Path):
    path = write_checkpoint(tmp_path, made_up_m3())
    (path / INDEX).write_text(text)
    assert_refused(path, whole, sw.CheckpointFormatError, INDEX)


def test_a_config_that_is_no_json(whole, tmp_path: Path):
    path = write_checkpoint(tmp_path, made_up_m3())
    (path / "config.json").write_text("{nonsense")
    assert_refused(path, whole, sw.CheckpointFormatError, "config.json")
