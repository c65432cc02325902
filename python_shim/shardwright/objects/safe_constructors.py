"""What a pickled object may name, and what is made of it.

Each maker takes the arguments that the class itself pickles, checks them, and builds the value by way of the class's
own constructor: no argument reaches code that imports, evaluates, opens files or takes memory beyond what the pickle
holds.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import io
import math
import pathlib
import pickle
import re
import types
import uuid
from collections.abc import Callable
from typing import Any

import torch


class Refused(pickle.UnpicklingError):
    """What a pickle asks for and does not get."""


class Maker:
    """A name that a pickle may call. It is no value itself: left over in what was loaded, it cannot be pickled again.

    ``new`` makes the object that pickle's NEWOBJ asks for; ``set_state`` gives an object what BUILD brings.
    """

    def __init__(
        self,
        name: str,
        make: Callable[..., Any] | None = None,
        *,
        new: Callable[..., Any] | None = None,
        type_: type | None = None,
    ) -> None:
        self.name, self.make, self.new, self.type = name, make, new, type_

    def __call__(self, *arguments: Any) -> Any:
        return _made(self.name, self.make, arguments)

    def make_new(self, arguments: tuple[Any, ...]) -> Any:
        return _made(self.name, self.new, arguments)

    def __reduce__(self) -> Any:
        raise Refused(f"it holds {self.name} itself")


def _made(name: str, make: Callable[..., Any] | None, arguments: tuple[Any, ...]) -> Any:
    if make is None:
        raise Refused(f"it makes {name} in a way that {name} is not pickled")
    try:
        return make(*arguments)
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"it gives {name} arguments that {name} is not pickled with: {error}") from error


def _expect(truth: bool, what: str) -> None:
    if not truth:
        raise Refused(f"expected {what}")


def _all_of(values: Any, *types_: type) -> bool:
    return all(type(value) in types_ for value in values)


# --- of Python's library -------------------------------------------------------------------------------------------


def _bytes_of_text(text: Any, encoding: Any) -> bytes:
    """How protocol 2 has bytes. Other encodings would be looked up among Python's modules."""
    _expect(type(text) is str and encoding in ("latin1", "latin-1"), "bytes as text in Latin 1")
    data: bytes = text.encode("latin-1")
    return data


def _bytearray(*arguments: Any) -> bytearray:
    """Never of a number, which would be so much memory."""
    if not arguments:
        return bytearray()
    return bytearray(arguments[0] if _all_of(arguments, bytes) else _bytes_of_text(*arguments))


def _numbers_of(length: int, data: Any) -> bytes:
    _expect(type(data) is bytes and len(data) == length, f"{length} bytes")
    number: bytes = data
    return number


def _expect_zone(zone: tuple[Any, ...]) -> None:
    _expect(len(zone) <= 1 and all(isinstance(one, datetime.tzinfo) for one in zone), "a time zone")


def _datetime(data: Any, *zone: Any) -> datetime.datetime:
    _expect_zone(zone)
    b = _numbers_of(10, data)
    year, microsecond = int.from_bytes(b[:2], "big"), int.from_bytes(b[7:], "big")
    found = datetime.datetime(year, b[2] & 127, b[3], b[4], b[5], b[6], microsecond, *zone)
    return found.replace(fold=b[2] >> 7)


def _date(data: Any) -> datetime.date:
    b = _numbers_of(4, data)
    return datetime.date(int.from_bytes(b[:2], "big"), b[2], b[3])


def _time(data: Any, *zone: Any) -> datetime.time:
    _expect_zone(zone)
    b = _numbers_of(6, data)
    found = datetime.time(b[0] & 127, b[1], b[2], int.from_bytes(b[3:], "big"), *zone)
    return found.replace(fold=b[0] >> 7)


def _path_maker(name: str, class_: type[pathlib.PurePath]) -> Maker:
    def make(*parts: Any) -> pathlib.PurePath:
        _expect(_all_of(parts, str), "parts of a path as text")
        return class_(*parts)

    return Maker(name, make)


#: What a defaultdict may make its values with.
_FACTORIES = (
    *(list, dict, set, frozenset, tuple, int, float, complex, bool, str, bytes),
    *(collections.OrderedDict, collections.Counter, collections.deque, collections.defaultdict),
)


def _defaultdict(factory: Any = None) -> collections.defaultdict[Any, Any]:
    if factory is not None:
        factory = factory.type if isinstance(factory, Maker) else factory
        _expect(any(factory is known for known in _FACTORIES), "a factory of empty values")
    return collections.defaultdict(factory)


def _ordered_dict(pairs: Any = ()) -> collections.OrderedDict[Any, Any]:
    _expect(
        type(pairs) in (list, tuple) and all(type(pair) in (list, tuple) for pair in pairs), "keys and values"
    )
    return collections.OrderedDict(pairs)


def _fraction(*parts: Any) -> fractions.Fraction:
    """No exponents, which would be so many digits."""
    if len(parts) == 1 and type(parts[0]) is str:
        _expect(re.fullmatch(r"-?\d+(/\d+)?", parts[0]) is not None, "numerator/denominator")
    else:
        _expect(len(parts) == 2 and _all_of(parts, int), "numerator and denominator")
    return fractions.Fraction(*parts)


def _set_state_of_uuid(value: uuid.UUID, state: Any) -> None:
    _expect(type(state) is dict and set(state) <= {"int", "is_safe"}, "the number of a UUID")
    _expect(type(state.get("int")) is int and 0 <= state["int"] < 1 << 128, "128 bits")
    object.__setattr__(value, "int", state["int"])
    object.__setattr__(value, "is_safe", uuid.SafeUUID(state.get("is_safe")))


def _set_state_of_buffer(value: io.BytesIO, state: Any) -> None:
    _expect(type(state) is tuple and len(state) == 3 and state[2] in (None, {}), "bytes and a position")
    data, position, _ = state
    _expect(type(data) is bytes and type(position) is int and 0 <= position < 1 << 62, "bytes and a position")
    value.seek(0)
    value.truncate()
    value.write(data)
    value.seek(position)


def _set_attributes(value: Any, state: Any) -> None:
    """Data alone, under names that hide no method."""
    _expect(type(state) is dict and _all_of(state, str), "attributes")
    hidden = [name for name in state if hasattr(type(value), name)]
    _expect(not hidden, f"attributes that hide none of {type(value).__name__}'s own, found {hidden}")
    value.__dict__.update(state)


# --- of numpy ------------------------------------------------------------------------------------------------------
# Arrays are what their bytes say: no element is an object, and the shape has as many elements as there are bytes.

_NUMPY_CODE = re.compile(r"b1|[iu][1248]|f(2|4|8|12|16)|c(8|16|24|32)|[SUV]\d{1,9}|[Mm]8")
_NUMPY_SCALARS = (
    "bool bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 longlong ulonglong intc uintc "
    "float16 float32 float64 longdouble complex64 complex128 clongdouble str_ bytes_ void datetime64 timedelta64"
)


def _numpy_dtype(code: Any, *_: Any) -> Any:
    """A copy, to be given a state."""
    import numpy

    _expect(
        type(code) is str and _NUMPY_CODE.fullmatch(code) is not None,
        f"a dtype of plain numbers, found {code!r}",
    )
    return numpy.dtype(code, align=False, copy=True)


def _set_state_of_numpy_dtype(value: Any, state: Any) -> None:
    """Builds the dtype by numpy's public constructor, and gives ``value`` the state that this one has."""
    import numpy

    _expect(type(state) is tuple and len(state) in (8, 9) and state[0] in (3, 4), "a dtype's state")
    _, order, base, names, fields, itemsize, alignment, _, *unit = state
    _expect(order in ("<", ">", "|", "="), "a byte order")
    if names is not None:
        wanted = _structured(names, fields, itemsize, alignment)
    elif base is not None:
        _expect(type(base) is tuple and len(base) == 2, "a dtype and a shape")
        wanted = numpy.dtype((_plain(base[0]), _expect_shape(base[1])))
    elif value.kind in "Mm":
        _expect(len(unit) == 1 and type(unit[0]) is tuple and len(unit[0]) == 2, "a unit of time")
        wanted = numpy.dtype(value.kind + "8" + _unit_of_time(unit[0][1])).newbyteorder(order)
    else:
        wanted = value.newbyteorder(order) if order != "|" else value
    value.__setstate__(wanted.__reduce__()[2])
    _expect(value == wanted, "a dtype that numpy has")


def _structured(names: Any, fields: Any, itemsize: Any, alignment: Any) -> Any:
    import numpy

    _expect(type(names) is tuple and _all_of(names, str) and type(fields) is dict, "names and fields")
    _expect(set(fields) == set(names), "a field for each name")
    _expect(type(itemsize) is int and 0 <= itemsize < 1 << 31, "bytes of an element")
    formats, offsets = [], []
    for name in names:
        field = fields[name]
        _expect(type(field) is tuple and len(field) == 2, "a dtype and an offset")
        formats.append(_plain(field[0]))
        _expect(type(field[1]) is int and field[1] >= 0, "an offset")
        offsets.append(field[1])
    return numpy.dtype({"names": list(names), "formats": formats, "offsets": offsets, "itemsize": itemsize})


def _unit_of_time(unit: Any) -> str:
    _expect(type(unit) is tuple and len(unit) == 4 and _all_of(unit[1:], int), "a unit of time")
    text = unit[0].decode() if type(unit[0]) is bytes else unit[0]
    if text == "generic":
        return ""
    _expect(text in ("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as"), "a unit of time")
    _expect(unit[2:3] == (1,) and unit[1] > 0, "a unit of time")
    return f"[{unit[1]}{text}]"


def _plain(dtype: Any) -> Any:
    """A dtype whose elements are their bytes."""
    import numpy

    _expect(isinstance(dtype, numpy.dtype), "a dtype")
    _expect(not dtype.hasobject and dtype.kind in "biufcSUVMm", f"a dtype of plain numbers, found {dtype}")
    return dtype


def _expect_shape(shape: Any) -> tuple[int, ...]:
    _expect(type(shape) is tuple and len(shape) <= 32 and _all_of(shape, int), "a shape")
    _expect(all(size >= 0 for size in shape), "a shape")
    found: tuple[int, ...] = shape
    return found


def _expect_bytes_of(dtype: Any, shape: tuple[int, ...], data: Any) -> None:
    _expect(type(data) in (bytes, bytearray), "elements as bytes")
    size = math.prod(shape) * _plain(dtype).itemsize
    _expect(len(data) == size, f"{size} bytes for shape {shape} of {dtype}, found {len(data)}")


def _numpy_array(class_: Any, shape: Any, code: Any) -> Any:
    """An empty array, whose state comes next."""
    import numpy

    _expect(isinstance(class_, Maker) and class_.type is numpy.ndarray and shape == (0,), "an empty array")
    return numpy.empty(0, numpy.uint8)


def _set_state_of_numpy_array(value: Any, state: Any) -> None:
    _expect(
        type(state) is tuple and len(state) == 5 and state[0] == 1 and value.size == 0, "an array's state"
    )
    _, shape, dtype, is_fortran, data = state
    _expect_bytes_of(dtype, _expect_shape(shape), data)
    value.__setstate__((1, shape, dtype, bool(is_fortran), bytes(data)))


def _numpy_from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> Any:
    import numpy

    _expect_bytes_of(dtype, _expect_shape(shape), data)
    _expect(order in ("C", "F"), "an order")
    return numpy.frombuffer(bytearray(data), dtype).reshape(shape, order=order)


def _numpy_scalar(dtype: Any, data: Any = b"") -> Any:
    import numpy

    _expect_bytes_of(dtype, (), data)
    if dtype.itemsize == 0:
        return numpy.zeros(1, dtype)[0]
    return numpy.frombuffer(data, dtype)[0]


def _numpy_names() -> dict[str, Any]:
    try:
        import numpy
    except ImportError:  # torch runs without
        return {}
    names: dict[str, Any] = {
        "numpy.dtype": Maker("numpy.dtype", _numpy_dtype),
        "numpy.ndarray": Maker("numpy.ndarray", type_=numpy.ndarray),
    }
    for core in ("numpy.core", "numpy._core"):  # numpy 1 and 2
        names[f"{core}.multiarray._reconstruct"] = Maker("numpy.ndarray", _numpy_array)
        names[f"{core}.multiarray.scalar"] = Maker("numpy scalar", _numpy_scalar)
        names[f"{core}.numeric._frombuffer"] = Maker("numpy.ndarray", _numpy_from_buffer)
    for name in _NUMPY_SCALARS.split():
        if hasattr(numpy, name):
            names[f"numpy.{name}"] = getattr(numpy, name)
    return names


# --- of torch ------------------------------------------------------------------------------------------------------


def _size(sizes: Any) -> torch.Size:
    _expect(type(sizes) in (tuple, list) and _all_of(sizes, int), "whole numbers")
    return torch.Size(sizes)


def _tensor_of_type(make: Any, type_: Any, arguments: Any, state: Any) -> Any:
    _expect(isinstance(make, Maker), "one of torch's functions that rebuild tensors")
    _expect(isinstance(type_, type) and issubclass(type_, torch.Tensor), "a class of tensors")
    return torch._tensor._rebuild_from_type_v2(make, type_, arguments, state)


def _torchs_names() -> dict[str, Any]:
    """What torch's own safe loading knows: functions that rebuild tensors are called, classes and dtypes are named."""
    from torch._weights_only_unpickler import _get_allowed_globals

    names: dict[str, Any] = {}
    for name, value in _get_allowed_globals().items():
        if not name.startswith("torch"):
            continue
        is_called = name.startswith("torch._utils._rebuild") or name == "torch.serialization._get_layout"
        names[name] = Maker(name, value) if is_called else value
    names["torch.Size"] = Maker("torch.Size", _size)
    names["torch._tensor._rebuild_from_type_v2"] = Maker("a tensor", _tensor_of_type)
    return names


# --- classes that are made of plain arguments ----------------------------------------------------------------------

_LIST = (list, tuple)
_NUMBER = (float, int)
_WHOLE = (int,)
_BOUND = (int, type(None))
_TEXT = (str,)

#: Full name, class, the fewest arguments, the types that each may have, and what both are called.
_PLAIN_CLASSES: list[tuple[str, type, int, list[tuple[type, ...]], str]] = [
    ("builtins.set", set, 0, [_LIST], "a list of elements"),
    ("builtins.frozenset", frozenset, 0, [_LIST], "a list of elements"),
    ("builtins.complex", complex, 2, [_NUMBER] * 2, "two numbers"),
    ("builtins.range", range, 1, [_WHOLE] * 3, "whole numbers"),
    ("builtins.slice", slice, 3, [_BOUND] * 3, "three whole numbers or None"),
    ("collections.Counter", collections.Counter, 0, [(dict, type(None))], "a dict of counts"),
    ("collections.deque", collections.deque, 0, [_LIST, _BOUND], "elements and a length"),
    ("datetime.timedelta", datetime.timedelta, 3, [_WHOLE] * 3, "days, seconds and microseconds"),
    ("datetime.timezone", datetime.timezone, 1, [(datetime.timedelta,), _TEXT], "an offset and a name"),
    ("decimal.Decimal", decimal.Decimal, 1, [_TEXT], "a number as text"),
    ("torch.device", torch.device, 1, [_TEXT, _WHOLE], "a device's name and number"),
]


def _plain_maker(
    name: str, class_: type, fewest: int, types_: list[tuple[type, ...]], expected: str
) -> Maker:
    def make(*arguments: Any) -> Any:
        _expect(fewest <= len(arguments) <= len(types_), expected)
        _expect(all(type(one) in known for one, known in zip(arguments, types_, strict=False)), expected)
        return class_(*arguments)

    return Maker(name.rpartition(".")[2], make, type_=class_)


# --- all of them ---------------------------------------------------------------------------------------------------


def _names() -> dict[str, Any]:
    names: dict[str, Any] = {
        "_codecs.encode": Maker("bytes", _bytes_of_text),
        "builtins.bytes": Maker("bytes", lambda: b"", type_=bytes),
        "builtins.bytearray": Maker("bytearray", _bytearray),
        "builtins.Ellipsis": ...,
        "collections.OrderedDict": Maker(
            "OrderedDict", _ordered_dict, new=_ordered_dict, type_=collections.OrderedDict
        ),
        "collections.defaultdict": Maker("defaultdict", _defaultdict, type_=collections.defaultdict),
        "datetime.datetime": Maker("datetime", _datetime),
        "datetime.date": Maker("date", _date),
        "datetime.time": Maker("time", _time),
        "fractions.Fraction": Maker("Fraction", _fraction),
        "uuid.UUID": Maker("UUID", new=lambda: uuid.UUID(int=0)),
        "_io.BytesIO": Maker("BytesIO", new=lambda: io.BytesIO()),
        "argparse.Namespace": Maker("Namespace", new=lambda: argparse.Namespace()),
        "types.SimpleNamespace": Maker("SimpleNamespace", lambda: types.SimpleNamespace()),
    }
    for class_ in (list, dict, tuple, int, float, bool, str):
        names[f"builtins.{class_.__name__}"] = class_  # named as the factory of a defaultdict, never called
    for name, path in (
        ("Path", pathlib.Path),
        ("PosixPath", pathlib.Path),
        ("WindowsPath", pathlib.PureWindowsPath),
        ("PurePath", pathlib.PurePath),
        ("PurePosixPath", pathlib.PurePosixPath),
        ("PureWindowsPath", pathlib.PureWindowsPath),
    ):
        for module in ("pathlib", "pathlib._local"):  # Python 3.13
            names[f"{module}.{name}"] = _path_maker(name, path)
    plain = {row[0]: _plain_maker(*row) for row in _PLAIN_CLASSES}
    return names | _numpy_names() | _torchs_names() | plain


#: By full name: a Maker, which may be called, or a value, which may be named.
NAMES: dict[str, Any] = _names()


def set_state(value: Any, state: Any) -> bool:
    """Gives one of the objects made here its state; False if it is none of them.

    Raises:
        Refused: the state is not what such an object is pickled with.
    """
    for type_, give in _STATE_SETTERS:
        if type(value) is type_ or (give is _set_state_of_numpy_dtype and isinstance(value, type_)):
            _made(type(value).__name__, give, (value, state))
            return True
    return False


def _state_setters() -> list[tuple[type, Callable[[Any, Any], None]]]:
    setters: list[tuple[type, Callable[[Any, Any], None]]] = [
        (collections.OrderedDict, _set_attributes),
        (argparse.Namespace, _set_attributes),
        (types.SimpleNamespace, _set_attributes),
        (uuid.UUID, _set_state_of_uuid),
        (io.BytesIO, _set_state_of_buffer),
    ]
    try:
        import numpy
    except ImportError:
        return setters
    return [*setters, (numpy.ndarray, _set_state_of_numpy_array), (numpy.dtype, _set_state_of_numpy_dtype)]


_STATE_SETTERS = _state_setters()
