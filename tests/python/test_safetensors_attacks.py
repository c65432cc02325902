"""Published attacks on the safetensors format: those that its own tests hold, and those that its audit (Trail of Bits,
2023) and later reports describe. What the safetensors library refuses is refused; what it rightly takes, is taken."""

import json
import os
import resource
import struct
import time
from pathlib import Path

import pytest
import safetensors
import shardwright as sw
from checkpoints import file_of


def one(dtype: str = "I32", shape: object = (2, 2), offsets: object = (0, 16), name: str = "test") -> dict:
    return {name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


SIXTEEN = bytes(16)
TEXT = json.dumps(one()["test"])
TWICE = f'{{"test":{TEXT},"test":{TEXT}}}'

#: Refused by both.
ATTACKS: dict[str, bytes] = {
    # safetensors/src/tensor.rs
    "json_attack": file_of({f"weight_{i}": one("F32")["test"] for i in range(10)}, SIXTEEN),
    "polyglot_with_data_behind": file_of(one(), SIXTEEN + b"extra_bogus_data_for_polyglot_file"),
    "incomplete_buffer": file_of(one(), bytes(14)),
    "header_too_large": b"<\0\0\0\0\xff\xff\xff" + file_of(one(), SIXTEEN)[8:],
    "header_too_small": b"",
    "header_length_without_header": b"<\0\0\0\0\0\0\0",
    "header_not_utf_8": b"\1\0\0\0\0\0\0\0\xff",
    "header_not_json": b"\1\0\0\0\0\0\0\0{",
    "size_is_not_that_of_the_offsets": file_of(one(offsets=(0, 4)), bytes(4)),
    "elements_overflow": file_of(one(shape=(2, 2**64 - 2)), SIXTEEN),
    "bytes_overflow": file_of(one(shape=(2, 2**63 - 1)), SIXTEEN),
    "bytes_wrap_to_the_right_size": file_of(one(shape=(2**62 + 1, 4)), SIXTEEN),
    "offsets_overflow": file_of(one(offsets=(2**64 - 16, 2**64)), SIXTEEN),
    # the audit: more than one reading of one file
    "hole_before_the_first": file_of(one(offsets=(8, 24)), bytes(24)),
    "hole_between": file_of(one() | one(offsets=(20, 36), name="b"), bytes(36)),
    "overlap": file_of(one() | one(offsets=(8, 24), name="b"), bytes(24)),
    "same_place_twice": file_of(one() | one(name="b"), SIXTEEN),
    "offsets_reversed": file_of(one(offsets=(16, 0)), SIXTEEN),
    "header_of_100_MB_and_a_byte": struct.pack("<Q", 100_000_001) + b"{}",
    "negative_shape": file_of(one(shape=(-2, -2)), SIXTEEN),
    "fractional_shape": file_of(one(shape=(2.0, 2)), SIXTEEN),
    "shape_is_text": file_of(one(shape="22"), SIXTEEN),
    "unknown_dtype": file_of(one("pickle"), SIXTEEN),
    "metadata_is_no_text": file_of(one() | {"__metadata__": {"a": {"b": 1}}}, SIXTEEN),
    "json_behind_json": file_of(json.dumps(one()) + json.dumps(one()), SIXTEEN),
    "comment_in_json": file_of(json.dumps(one()) + "// x", SIXTEEN),
    "array_for_an_object": file_of("[]"),
    "nested_100000_deep": file_of('{"test":' + '{"a":' * 100_000 + "1" + "}" * 100_001),
    "byte_order_mark": file_of(b"\xef\xbb\xbf" + json.dumps(one()).encode(), SIXTEEN),
    "half_a_surrogate_pair": file_of('{"\\ud800":' + TEXT + "}", SIXTEEN),
    "nul_in_the_json": file_of(json.dumps(one()) + "\0", SIXTEEN),
}

#: Taken by some readers, with the first or the last of two meanings.
AMBIGUOUS: dict[str, bytes] = {
    "name_twice": file_of(TWICE, SIXTEEN),
    "name_twice_in_two_spellings": file_of(TWICE.replace('"test"', '"t\\u0065st"', 1), SIXTEEN),
    "metadata_twice": file_of('{"__metadata__":{},"__metadata__":{},"test":' + TEXT + "}", SIXTEEN),
    "dtype_twice": file_of(
        '{"test":{"dtype":"F32","dtype":"I32","shape":[2,2],"data_offsets":[0,16]}}', SIXTEEN
    ),
    "header_that_begins_with_space": file_of(" " + json.dumps(one()), SIXTEEN),
    "unknown_field": file_of({"test": one()["test"] | {"code": "x"}}, SIXTEEN),
    "empty_name": file_of(one(name=""), SIXTEEN),
    "nul_in_a_name": file_of('{"a\\u0000b":' + TEXT + "}", SIXTEEN),
}

#: Taken by both.
GOOD: dict[str, bytes] = {
    "plain": file_of(one(), SIXTEEN),
    "padded_with_white_space": file_of(json.dumps(one()) + "\r \t\n", SIXTEEN),
    "scalar": file_of(one(shape=(), offsets=(0, 4)), bytes(4)),
    "zero_sized": file_of(one(shape=(2, 0), offsets=(0, 0))),
    "zero_times_huge": file_of(one(shape=(0, 2**40), offsets=(0, 0))),
    "not_aligned": file_of(one("U8", (3,), (0, 3)) | one(offsets=(3, 19), name="b"), bytes(19)),
    "escaped_name": file_of('{"t\\u0065st":' + TEXT + "}", SIXTEEN),
    "a_name_as_of_a_path": file_of(one(name="../../etc/passwd"), SIXTEEN),
}


def safetensors_takes(path: Path) -> bool:
    try:
        with safetensors.safe_open(path, "np") as opened:
            return opened.keys() is not None
    except Exception:
        return False


def written(directory: Path, content: bytes) -> Path:
    path = directory / "model.safetensors"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("content", ATTACKS.values(), ids=ATTACKS)
def test_what_safetensors_refuses_is_refused(content: bytes, tmp_path: Path):
    path = written(tmp_path, content)
    assert not safetensors_takes(path)
    with pytest.raises(sw.CheckpointFormatError, match=r"model\.safetensors"):
        sw.read_catalog(tmp_path)
    assert "model.safetensors" in sw.verify(tmp_path).problems[0]


@pytest.mark.parametrize("content", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_has_two_meanings_is_refused(content: bytes, tmp_path: Path):
    written(tmp_path, content)
    with pytest.raises(sw.CheckpointFormatError, match=r"model\.safetensors"):
        sw.read_catalog(tmp_path)


@pytest.mark.parametrize("content", GOOD.values(), ids=GOOD)
def test_what_is_rare_but_right_is_taken(content: bytes, tmp_path: Path):
    path = written(tmp_path, content)
    with safetensors.safe_open(path, "np") as opened:
        names = list(opened.keys())
        shapes = [list(opened.get_slice(name).get_shape()) for name in names]
    found = sw.read_catalog(tmp_path).tensors
    assert sorted((t.name, t.shape) for t in found) == sorted(zip(names, shapes, strict=True))


def bloated(entries: int) -> bytes:
    """A header of empty tensors: the most work for its bytes."""
    members = (f'"{i:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(entries))
    return file_of("{" + ",".join(members) + "}")


def test_a_bloated_header_takes_memory_and_time_in_proportion(tmp_path: Path):
    """700,000 tensors in 38 MB; the limit of the format is 100 MB."""
    path = written(tmp_path, bloated(700_000))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            begin = time.process_time()
            count = len(sw._core.read_catalog(os.fspath(tmp_path), 1).files)
            taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            seconds = time.process_time() - begin
            good = count == 1 and taken < 12 * path.stat().st_size and seconds < 20
            print(f"{taken / path.stat().st_size:.1f} times the header, {seconds:.1f} s", flush=True)
            status = 0 if good else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
