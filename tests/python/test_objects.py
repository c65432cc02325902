"""Objects in a checkpoint: what loads by default, what is refused, and that hostile pickles run nothing."""

import argparse
import builtins
import collections
import datetime
import decimal
import enum
import fractions
import io
import os
import pathlib
import pickle
import random
import subprocess
import types
import uuid
import warnings
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from shardwright.objects.safe_objects import safe_pickle

Pair = collections.namedtuple("Pair", "left right")


class Named(NamedTuple):
    name: str
    size: int = 3


class Colour(enum.Enum):
    red = 1


class Bits(enum.Flag):
    a = 1
    b = 2


class Position:
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __eq__(self, other) -> bool:
        return type(other) is Position and other.epoch == self.epoch


def named_value(name: str):
    return name.upper()


RECORD = np.dtype([("step", ">i4"), ("losses", "<f8", (2,)), ("tag", "U3")])

#: What a default load has to give back as it was.
TAKEN = {
    "array": np.arange(6, dtype=np.float32).reshape(2, 3),
    "array_of_columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">i2"),
    "empty_array": np.zeros((0, 3)),
    "bools": np.array([True, False]),
    "half": np.array([1.5], dtype=np.float16),
    "complex_array": np.array([1j, 2]),
    "texts": np.array(["a", "bcd"]),
    "byte_texts": np.array([b"a", b"bcd"]),
    "times": np.array(["2024-02-29", "NaT"], dtype="M8[25ms]"),
    "spans": np.array([3], dtype="m8[h]"),
    "records": np.array([(1, (2, 3), "x")], dtype=RECORD),
    "record": np.array([(1, (2, 3), "x")], dtype=RECORD)[0],
    "scalar": np.float32(1.5),
    "long_scalar": np.int64(-3),
    "bool_scalar": np.bool_(True),
    "text_scalar": np.str_("ab"),
    "no_text": np.str_(""),
    "time_scalar": np.datetime64("2024-02-29T12:00"),
    "dtype": np.dtype(">f4"),
    "scalar_type": np.float32,
    "random": random.Random(3).getstate(),
    "numpy_random": np.random.RandomState(3).get_state(),
    "generator": np.random.default_rng(3).bit_generator.state,
    "torch_random": torch.Generator().get_state(),
    "cuda_random": [torch.arange(16, dtype=torch.uint8), torch.zeros(16, dtype=torch.uint8)],
    "set": {1, "a"},
    "frozenset": frozenset([(1, 2)]),
    "now": datetime.datetime(2024, 2, 29, 23, 59, 58, 987654, tzinfo=datetime.timezone.utc),
    "folded": datetime.datetime(2024, 10, 27, 2, fold=1),
    "date": datetime.date(2024, 2, 29),
    "time": datetime.time(1, 2, 3, 4, fold=1),
    "span": datetime.timedelta(days=-1, microseconds=3),
    "zone": datetime.timezone(datetime.timedelta(hours=5, minutes=30), "IST"),
    "path": pathlib.Path("data/train.bin"),
    "pure_path": pathlib.PurePosixPath("/a"),
    "lists": collections.defaultdict(list, {"a": [1]}),
    "counters": collections.defaultdict(collections.Counter),
    "no_factory": collections.defaultdict(None, {1: 2}),
    "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
    "deque": collections.deque([1, 2, 3], maxlen=3),
    "counter": collections.Counter("abca"),
    "complex": 1 - 2j,
    "range": range(3, 30, 4),
    "slice": slice(1, None, 2),
    "size": torch.Size([2, 3]),
    "torch_dtype": torch.bfloat16,
    "device": torch.device("cuda", 1),
    "layout": torch.strided,
    "pair": Pair(1, [2, np.float32(3)]),
    "named": Named("n"),
    "decimal": decimal.Decimal("1.10"),
    "fraction": fractions.Fraction(-1, 3),
    "uuid": uuid.UUID("12345678123456781234567812345678"),
    "bytes": bytes(range(256)),
    "bytearray": bytearray(b"\xff\x00"),
    "arguments": argparse.Namespace(lr=0.1, layers=[1, 2]),
    "namespace": types.SimpleNamespace(a=np.arange(2)),
    "ellipsis": ...,
    "big_number": -(10**300),
    "text": "ünïcode \N{SNOWMAN}",
    "with_tensors": (torch.arange(3.0), torch.nn.Parameter(torch.ones(2)), torch.eye(2).to_sparse()),
    "shared": [Pair(1, 2)] * 2,
}


def same(found, expected) -> bool:
    if type(found) is not type(expected):
        return False
    if isinstance(expected, torch.Tensor):
        return found.dtype == expected.dtype and torch.equal(found.to_dense(), expected.to_dense())
    if isinstance(expected, np.ndarray):
        if expected.dtype.str[0] == ">":  # numpy unpickles such arrays in the machine's own order
            expected = expected.astype(expected.dtype.newbyteorder("="))
        return (
            found.dtype == expected.dtype
            and found.shape == expected.shape
            and found.tobytes() == expected.tobytes()
            and found.flags.f_contiguous == expected.flags.f_contiguous
        )
    if isinstance(expected, (argparse.Namespace, types.SimpleNamespace)):
        return same(vars(found), vars(expected))
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, (list, tuple, collections.deque)):
        return len(found) == len(expected) and all(map(same, found, expected))
    return bool(found == expected)


def save_ours(state: dict, path: Path) -> None:
    sw.save(state, path)


def save_torchs(state: dict, path: Path) -> None:
    dcp.save(state, checkpoint_id=path)


SAVES = (save_ours, save_torchs)


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("name", TAKEN)
def test_an_object_comes_back_as_it_was_and_its_save_does_not_warn(name: str, save, tmp_path: Path):
    value = TAKEN[name]
    in_list = [value, 1]  # whatever DCP would make of it at the top
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        save({"object": (value,), "listed": {"in": (in_list,)}}, tmp_path / "saved")
        loaded = {"object": None, "listed": {"in": None}}
        sw.load(loaded, tmp_path / "saved")
    assert same(loaded["object"], (value,))
    assert same(loaded["listed"]["in"], (in_list,))


def test_limits_of_containers_are_kept(tmp_path: Path):
    buffer = io.BytesIO(b"abcdef")
    buffer.read(2)
    saved = (buffer, collections.deque([1], maxlen=1), collections.defaultdict(set))
    sw.save({"object": saved}, tmp_path / "saved")
    loaded = {"object": None}
    sw.load(loaded, tmp_path / "saved")
    found, queue, sets = loaded["object"]
    assert (found.getvalue(), found.tell()) == (b"abcdef", 2)
    assert queue.maxlen == 1 and sets["new"] == set()


REFUSED = {
    "instance": Position(3),
    "class": Position,
    "function": named_value,
    "enum": Colour.red,
    "flags": Bits.a | Bits.b,
    "objects_of_numpy": np.array([None, 1], dtype=object),
    "random_generator": np.random.default_rng(0),
    "inside": {"a": [1, (Position(1),)]},
    "module": torch.nn.Linear(1, 1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_load_refuses_is_warned_of_once_by_name_when_it_is_saved(name: str, tmp_path: Path):
    state = {"model": {"t": torch.ones(2)}, "place": {name: (REFUSED[name],), "other": [1]}}
    with pytest.warns(UserWarning) as heard:
        sw.save(state, tmp_path / "saved")
    (warning,) = [str(one.message) for one in heard if "this save holds objects" in str(one.message)]
    assert f"place.{name}: builtins.tuple" in warning and "weights_only=False" in warning
    assert "place.other" not in warning
    loaded = {"model": {"t": torch.zeros(2)}, "place": {name: None, "other": None}}
    with pytest.raises(ValueError, match=f"place.{name} .*weights_only=False"):
        sw.load(loaded, tmp_path / "saved")
    assert loaded == {"model": {"t": loaded["model"]["t"]}, "place": {name: None, "other": None}}
    assert not loaded["model"]["t"].any()


def test_the_type_and_the_remedy_are_in_the_warning(tmp_path: Path):
    with pytest.warns(UserWarning, match=rf"position: {__name__}.Position \(it names {__name__}.Position"):
        sw.save({"position": Position(3)}, tmp_path / "saved")
    with pytest.warns(
        UserWarning, match=r"a.layer: torch.nn.modules.linear.Linear .*pass its state_dict\(\)"
    ):
        sw.save({"a": {"layer": torch.nn.Linear(1, 1)}}, tmp_path / "saved")


@pytest.mark.parametrize("save", SAVES)
def test_classes_that_the_user_allows_are_taken_and_not_warned_of(save, tmp_path: Path):
    value = (Position(3), Colour.red, Bits.a | Bits.b)
    with torch.serialization.safe_globals([Position, Colour, Bits]), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        save({"object": value}, tmp_path / "saved")
        loaded = {"object": None}
        sw.load(loaded, tmp_path / "saved")
    assert loaded["object"] == value


def test_an_object_that_cannot_be_pickled_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="hooks.first: a function that cannot be saved"):
        sw.save({"hooks": {"first": lambda: 1}}, tmp_path / "saved")


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("through_dcp", [False, True])
def test_all_refusals_are_one_error_before_any_tensor_is_written(save, through_dcp: bool, tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save({"a": Position(1), "b": torch.ones(9), "c": 3, "d": Colour.red}, tmp_path / "saved")
    loaded = {"a": None, "b": torch.zeros(9), "c": None, "d": None}
    if through_dcp:
        from shardwright.dcp.torch_reading import TorchStorageReader

        reader = (sw.ShardedStorageReader if save is save_ours else TorchStorageReader)(tmp_path / "saved")
        with pytest.raises(dcp.api.CheckpointException) as refused:
            dcp.load(loaded, storage_reader=reader)
        assert "local_plan" in str(refused.value) or "plan" in str(refused.value)
    else:
        with pytest.raises(ValueError) as refused:
            sw.load(loaded, tmp_path / "saved")
        assert not hasattr(refused.value, "partly_written")
    assert f"{__name__}.Position" in str(refused.value) and f"{__name__}.Colour" in str(refused.value)
    assert not loaded["b"].any() and loaded["c"] is None


# --- hostile pickles -----------------------------------------------------------------------------------------------


def archived(data: bytes, **records: bytes) -> io.BytesIO:
    """An archive as torch.save writes it, of pickled bytes of one's own."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", b"little")
        for name, content in records.items():
            archive.writestr(f"archive/{name}", content)
        archive.writestr("archive/version", b"3\n")
    whole.seek(0)
    return whole


def calling(function: bytes, arguments: bytes, rest: bytes = b"") -> bytes:
    """A pickle that calls `module name` with what `arguments` leaves on the stack as a tuple."""
    return b"\x80\x02c" + function.replace(b" ", b"\n") + b"\n" + arguments + b"R" + rest + b"."


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


class Running:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HARM = "touch 'harm done'"
ONE = number(1) + b"\x85"
DTYPE = b"cnumpy\ndtype\n"
ARRAY = (
    b"\x80\x02cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    + number(0)
    + b"\x85c_codecs\nencode\n"
    + text("b")
    + text("latin1")
    + b"\x86R\x87R"
)


def plain_dtype(code: str, kind: bytes = b"") -> bytes:
    state = number(3) + text("|") + b"NNN" + number(-1) + number(-1) + number(0)
    return DTYPE + text(code) + b"\x89\x88\x87R(" + state + b"tb" + kind


def array_of(shape: bytes, dtype: bytes, data: bytes) -> bytes:
    return ARRAY + b"(" + number(1) + shape + dtype + b"\x89" + data + b"tb."


EMPTY = b"c__builtin__\nbytes\n)R"
STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")


def tensor_of(elements: int, sizes: int) -> bytes:
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
        + STORAGE
        + number(elements)
        + b"tQ"
        + number(0)
        + (number(sizes) + b"\x85" + ONE + b"\x89")
        + b"ccollections\nOrderedDict\n)RtR."
    )


BAD_MONTH = b"c_codecs\nencode\n" + text("\x07\xd0\x7f" + "\x00" * 7) + text("latin1") + b"\x86R"

HOSTILE = {
    "os.system": calling(b"os system", text(HARM) + b"\x85"),
    "posix.system": calling(b"posix system", text(HARM) + b"\x85"),
    "subprocess": pickle.dumps(Running(subprocess.check_call, HARM), 2),
    "eval": pickle.dumps(Running(builtins.eval, f'__import__("os").system("{HARM}")'), 2),
    "exec": pickle.dumps(Running(builtins.exec, f'import os; os.system("{HARM}")'), 2),
    "import": pickle.dumps(Running(builtins.__import__, "antigravity"), 2),
    "open": pickle.dumps(Running(io.open, "harm done", "w"), 4),
    "getattr": calling(b"__builtin__ getattr", b"cdatetime\ndatetime\n" + text("now") + b"\x86"),
    "getattr_of_a_module": calling(b"__builtin__ getattr", b"cnumpy\nndarray\n" + text("tofile") + b"\x86"),
    "setattr": pickle.dumps(Running(builtins.setattr, [], "a", 1), 2),
    "dotted_name": b"\x80\x04" + b"\x8c\x05numpy\x8c\x0entdarray.tofile" + b"\x93.",
    "nested_name": b"\x80\x04\x8c\x08datetime\x8c\x0cdatetime.now\x93)R.",
    "instance": b"\x80\x02(" + text(HARM) + b"ios\nsystem\n.",
    "object": b"\x80\x02(cos\nsystem\n" + text(HARM) + b"o.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent_text": b"\x80\x02Pstorage\n.",
    "new_object_of_a_function": b"\x80\x02cos\nsystem\n" + text(HARM) + b"\x85\x81.",
    "reduce_of_a_value": b"\x80\x02" + text("a") + b")R.",
    "state_of_a_function": b"\x80\x02cdatetime\ndatetime\n}" + text("make") + b"NsbN0.",
    "state_of_a_class": b"\x80\x02ctorch\nTensor\n}" + text("a") + b"Nsb.",
    "attributes_that_hide_methods": calling(
        b"collections OrderedDict", b")", b"}" + text("items") + b"Nsb"
    ),
    "codec": calling(b"_codecs encode", text("a") + text("rot13") + b"\x86"),
    "a_left_over_name": b"\x80\x02cdatetime\ndatetime\n.",
    "huge_bytearray": calling(b"__builtin__ bytearray", number(1 << 46) + b"\x85"),
    "huge_bytearray_in_protocol_5": b"\x80\x05\x96" + (1 << 46).to_bytes(8, "little") + b"a.",
    "huge_bytes": b"\x80\x04\x8e" + (1 << 46).to_bytes(8, "little") + b"a.",
    "huge_text": b"\x80\x04\x8d" + (1 << 46).to_bytes(8, "little") + b"a.",
    "huge_frame": b"\x80\x04\x95" + (1 << 46).to_bytes(8, "little") + b"N",
    "huge_tensor": calling(b"torch Tensor", number(1 << 46) + b"\x85"),
    "huge_legacy_tensor": calling(b"torch FloatTensor", number(1 << 46) + b"\x85"),
    "huge_fraction": calling(b"fractions Fraction", text("1e1000000000") + b"\x85"),
    "huge_subclass": calling(
        b"torch._tensor _rebuild_from_type_v2",
        b"(ctorch\nTensor\nctorch\nTensor\n" + number(1 << 46) + b"\x85}t",
    ),
    "storage_past_its_end": tensor_of(1 << 20, 1),
    "negative_storage": tensor_of(-1, 1),
    "tensor_past_its_storage": tensor_of(2, 1 << 40),
    "huge_array": array_of(number(1 << 46) + b"\x85", plain_dtype("f4"), EMPTY),
    "array_past_its_bytes": array_of(number(2) + b"\x85", plain_dtype("f4"), EMPTY),
    "negative_array": array_of(number(-1) + b"\x85", plain_dtype("f4"), EMPTY),
    "array_of_objects": array_of(number(1) + b"\x85", plain_dtype("O8"), b"]Na"),
    "array_of_pointers": array_of(number(1) + b"\x85", plain_dtype("O8"), EMPTY),
    "array_class_of_ones_own": b"\x80\x02cnumpy._core.multiarray\n_reconstruct\ncos\nsystem\n)" + b"N\x87R.",
    "huge_dtype": b"\x80\x02" + plain_dtype("V9999999999") + b".",
    "dtype_by_code": calling(b"numpy dtype", text("i4,O") + b"\x85"),
    "dtype_of_nested_objects": b"\x80\x02" + DTYPE + text("V8") + b"\x89\x88\x87R("
    + number(3) + text("|") + b"N" + text("a") + b"\x85}" + text("a") + plain_dtype("O8") + number(0)
    + b"\x86s" + number(8) + number(1) + number(27) + b"tb.",
    "field_past_its_element": b"\x80\x02" + DTYPE + text("V8") + b"\x89\x88\x87R("
    + number(3) + text("|") + b"N" + text("a") + b"\x85}" + text("a") + plain_dtype("f8") + number(4)
    + b"\x86s" + number(8) + number(1) + number(16) + b"tb.",
    "scalar_past_its_bytes": calling(b"numpy._core.multiarray scalar", plain_dtype("f8") + EMPTY + b"\x86"),
    "numpy_load": calling(b"numpy load", text("harm done") + b"\x85"),
    "numpy_fromfile": calling(b"numpy fromfile", text("harm done") + b"\x85"),
    "bad_month": calling(b"datetime datetime", BAD_MONTH + b"\x85"),
    "namedtuple_of_another_length": b"\x80\x02c" + __name__.encode() + b"\nPair\n" + ONE + b"\x81.",
    "deep": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "nothing": b"",
    "no_end": b"\x80\x02N",
    "empty_stack": b"\x80\x02.",
    "zoneinfo": calling(b"zoneinfo ZoneInfo", text("../../etc/passwd") + b"\x85"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_and_runs_nothing(name: str, tmp_path: Path, monkeypatch):
    import resource

    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="hostile in file: this object cannot be loaded safely"):
        safe_pickle("hostile", "file", archived(HOSTILE[name], **{"data/0": bytes(8)}))
    assert os.listdir(tmp_path) == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_the_same_archive_with_an_honest_pickle_is_taken():
    """So that it is the pickles that are refused above."""
    honest = safe_pickle("honest", "file", archived(tensor_of(2, 2), **{"data/0": bytes(8)}))
    assert torch.equal(torch.load(honest, weights_only=True), torch.zeros(2))
    found = safe_pickle("honest", "file", archived(array_of(number(0) + b"\x85", plain_dtype("f4"), EMPTY)))
    assert torch.load(found, weights_only=False).shape == (0,)


def test_what_is_no_archive_of_torch_or_one_of_code_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no archive"):
        safe_pickle("x", "file", io.BytesIO(pickle.dumps(1)))
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "code.pt")
    with pytest.raises(ValueError, match="TorchScript"):
        safe_pickle("x", "file", io.BytesIO((tmp_path / "code.pt").read_bytes()))


def test_mutated_pickles_are_taken_or_refused():
    """Bytes changed at random: never a crash, and never anything but a ValueError."""
    choice = random.Random(13)
    data = io.BytesIO()
    torch.save([value for name, value in TAKEN.items() if name not in ("with_tensors", "layout")], data)
    with zipfile.ZipFile(io.BytesIO(data.getvalue())) as archive:
        (name,) = [entry for entry in archive.namelist() if entry.endswith("data.pkl")]
        whole = archive.read(name)
    refused = 0
    for _ in range(400):
        mutated = bytearray(whole)
        for _ in range(choice.randint(1, 3)):
            mutated[choice.randrange(len(mutated))] = choice.randrange(256)
        try:
            safe_pickle("x", "file", archived(bytes(mutated), **{"data/0": bytes(5056), "data/1": bytes(16)}))
        except ValueError:
            refused += 1
    assert refused > 50


def pickled(code: bytes) -> io.BytesIO:
    """An archive as torch.save makes it, with this in place of its pickle."""
    made, archive = io.BytesIO(), io.BytesIO()
    torch.save({"a": 1}, made)
    with zipfile.ZipFile(made) as source, zipfile.ZipFile(archive, "w") as to:
        for name in source.namelist():
            to.writestr(name, code if name.endswith("data.pkl") else source.read(name))
    archive.seek(0)
    return archive


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x02})" + b"\x85" * 2_000_000 + b"K\x01s.",  # a key that hashing walks into, without end
        b"\x80\x02})q\x00"
        + b"h\x00\x86q\x00" * 60
        + b"K\x01s.",  # and one that it walks through 2 ** 60 times
        b"\x80\x04(" + b"(" * 300 + b"\x91" * 300 + b"\x91.",  # the same of frozen sets
    ],
    ids=["deep", "wide", "sets"],
)
def test_keys_that_take_for_ever_to_hash_are_refused(code: bytes):
    with pytest.raises(ValueError, match="deep in each other"):
        safe_pickle("x", "file", pickled(code))
