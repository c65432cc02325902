"""torch's ``.metadata``, which is a pickle: read without running code, and checked, so that nothing else has to."""

from __future__ import annotations

import dataclasses
import gc
import io
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any, ClassVar

import torch
from torch.distributed._shard.sharded_tensor.metadata import MEM_FORMAT_ENCODING
from torch.distributed._shard.sharded_tensor.metadata import TensorProperties as ShardedProperties
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.serialization import _get_layout

from shardwright import _core
from shardwright.local_path import beside, shown
from shardwright.regular_file import GIT_LFS, IS_POINTER, read_regular
from shardwright.remote.address import is_address
from shardwright.system_calls import is_there

METADATA_NAME = ".metadata"

#: Of a .metadata: a hundred for each of 40 million chunks. More is a wrong file, and not a machine out of memory.
_MOST_BYTES = 4 << 30

_NONE = type(None)
_PROPERTIES = (TensorProperties, ShardedProperties)

#: The classes of DCP's metadata, with the fields that something is made of, and what may be in them.
_FIELDS: dict[type, dict[str, tuple[type, ...]]] = {
    Metadata: {
        "state_dict_metadata": (dict,),
        "planner_data": (_NONE, dict),
        "storage_data": (_NONE, dict),
        "storage_meta": (_NONE, StorageMeta),
        "version": (_NONE, str),
    },
    MetadataIndex: {"fqn": (str,), "offset": (_NONE, torch.Size), "index": (_NONE, int)},
    TensorStorageMetadata: {"properties": _PROPERTIES, "size": (torch.Size,), "chunks": (list,)},
    BytesStorageMetadata: {},
    ChunkStorageMetadata: {"offsets": (torch.Size,), "sizes": (torch.Size,)},
    StorageMeta: {
        "checkpoint_id": (_NONE, str, PurePath),
        "save_id": (_NONE, str),
        "load_id": (_NONE, str),
        "modules": (list,),
    },
    _StorageInfo: {
        "relative_path": (str,),
        "offset": (int,),
        "length": (int,),
        "transform_descriptors": (_NONE, list, tuple),
    },
}

#: The classes that a pickle may call with all of their fields: what our lazy metadata writes (see LazyMetadata), as
#: pickle's own form, __new__ and a state, is refused to an object of a derived class.
_BY_POSITION = (Metadata, TensorStorageMetadata)

#: What fields of a later torch may hold.
_PLAIN = (_NONE, bool, int, float, str, torch.dtype)


def _is_size(arguments: tuple[Any, ...]) -> bool:
    # not isinstance(): True is an int, and no size
    return (
        len(arguments) == 1
        and type(arguments[0]) is tuple
        and all(type(size) is int and 0 <= size < 2**63 for size in arguments[0])
    )


def _are(*types: type) -> Callable[[tuple[Any, ...]], bool]:
    return lambda arguments: tuple(map(type, arguments)) == types


def _are_texts(arguments: tuple[Any, ...]) -> bool:
    return all(type(part) is str for part in arguments)


#: What a pickle of DCP's metadata calls, and with what.
_CALLS: dict[Any, Callable[[tuple[Any, ...]], bool]] = {
    torch.Size: _is_size,
    _get_layout: _are(str),
    _MEM_FORMAT_ENCODING: _are(int),
    MEM_FORMAT_ENCODING: _are(int),
    OrderedDict: _are(),
    Path: _are_texts,
    PurePath: _are_texts,
}

_NAMES: dict[tuple[str, str], Any] = {
    **{(made.__module__, made.__qualname__): made for made in (*_FIELDS, *_PROPERTIES)},
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"): _MEM_FORMAT_ENCODING,
    ("torch.distributed._shard.sharded_tensor.metadata", "MEM_FORMAT_ENCODING"): MEM_FORMAT_ENCODING,
    ("torch.serialization", "_get_layout"): _get_layout,
    ("torch", "Size"): torch.Size,
    ("collections", "OrderedDict"): OrderedDict,
    **{
        (module, name): Path if "Pure" not in name else PurePath
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "PurePath", "PurePosixPath")
    },
}

#: All that pickle writes for such values, whatever its protocol. What is left out (persistent objects, extensions,
#: sets, arguments by name, ...) has no part in them.
_OPCODES = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE "
    "BINUNICODE8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS BINGET "
    "LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD"
)


#: Python's own, which the standard library has beside the one in C.
_PlainUnpickler: Any = pickle._Unpickler


class _MetadataUnpickler(_PlainUnpickler):
    """Builds the classes above out of plain values, each field of its type, and calls nothing else.

    It is not the unpickler in C, for three faults of that one which a list of allowed names does not mend: nine bytes
    that name a large place of its memo take 16 GiB; a dictionary's key of many nested tuples, which it hashes by
    recursion, ends the process; and the state that it gives an object may be given to a class.
    """

    dispatch: ClassVar = {
        code[0]: _PlainUnpickler.dispatch[code[0]]
        for code in (getattr(pickle, name) for name in _OPCODES.split())
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NAMES:
            return _NAMES[module, name]
        if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return dtype
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of DCP's metadata")

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        called = self.stack[-1]
        if isinstance(called, type) and called in _BY_POSITION and type(arguments) is tuple:
            self.stack[-1] = _made_of_fields(called, arguments)
            return
        takes = _CALLS.get(called) if isinstance(called, type) or called is _get_layout else None
        if takes is None or type(arguments) is not tuple or not takes(arguments):
            raise pickle.UnpicklingError(f"it calls {_kind(called)} in a way that DCP's metadata does not")
        self.stack[-1] = called(*arguments)

    def load_newobj(self) -> None:
        arguments = self.stack.pop()
        made: Any = self.stack[-1]
        arguments = type(arguments) is not tuple or len(arguments)
        if not isinstance(made, type) or not (made in _FIELDS or made in _PROPERTIES) or arguments:
            raise pickle.UnpicklingError(f"it makes {_kind(made)}, which is no class of DCP's metadata")
        self.stack[-1] = object.__new__(made)

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if type(made) in _PROPERTIES:
            _set_properties(made, state)
        else:
            _set_fields(made, state)

    def _set(self, items: list[Any]) -> None:
        into = self.stack[-1]
        if not isinstance(into, dict):
            raise pickle.UnpicklingError(f"expected a dict to put items in, found {_kind(into)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # a text, or an index that is whole: hashing goes no deeper
            if type(key) is not str and not (type(key) is MetadataIndex and "fqn" in vars(key)):
                raise pickle.UnpicklingError(f"expected a name or an index as a key, found {_kind(key)}")
            into[key] = value

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def load_setitems(self) -> None:
        self._set(self.pop_mark())

    def _append(self, items: list[Any]) -> None:
        into = self.stack[-1]
        if type(into) is not list:
            raise pickle.UnpicklingError(f"expected a list to append to, found {_kind(into)}")
        into.extend(items)

    def load_appends(self) -> None:
        self._append(self.pop_mark())

    def load_append(self) -> None:
        self._append([self.stack.pop()])

    dispatch |= {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
    }


def _kind(value: Any) -> str:
    """For messages; never the value itself, which may be of any size."""
    return value.__name__ if isinstance(value, type) else f"an object of type {type(value).__name__}"


def _set_properties(made: Any, state: Any) -> None:
    types = (torch.dtype, torch.layout, bool, (_MEM_FORMAT_ENCODING, MEM_FORMAT_ENCODING), bool)
    fits = type(state) is tuple and len(state) == len(types)
    if not fits or not all(isinstance(value, kind) for value, kind in zip(state, types, strict=True)):
        raise pickle.UnpicklingError("it has a TensorProperties whose fields are not those of DCP's")
    made.__setstate__(state)


def _made_of_fields(made: type, values: tuple[Any, ...]) -> Any:
    names = [field.name for field in dataclasses.fields(made)]
    if len(values) != len(names):
        raise pickle.UnpicklingError(f"it makes {_kind(made)} of {len(values)} fields, expected {len(names)}")
    whole: Any = object.__new__(made)
    _set_fields(whole, dict(zip(names, values, strict=True)))
    return whole


def _set_fields(made: Any, state: Any) -> None:
    known = _FIELDS.get(type(made))
    if known is None or type(state) is not dict:
        raise pickle.UnpicklingError(f"it gives {_kind(made)} a state, which DCP's metadata does not")
    for name, value in state.items():
        if type(name) is not str or not isinstance(value, known.get(name, _PLAIN)):
            raise pickle.UnpicklingError(f"{type(made).__name__} has {_kind(value)} for {str(name)[:80]!r}")
    vars(made).update(state)


def read_torch_metadata(directory: str | os.PathLike[str], name: str = METADATA_NAME) -> Metadata:
    """The ``.metadata`` of a checkpoint of torch's FileSystemWriter.

    Raises:
        CheckpointFormatError: it is damaged, names code that DCP's metadata does not consist of, or places outside the
            directory.
        OSError: it cannot be read, or is that of a save to a store that has not been published.
    """
    file = beside(directory, name)
    is_unpublished = is_address(directory) and is_there(beside(directory, _core.saving_name))
    if is_unpublished and not _core.has_manifest(os.fspath(directory)):
        raise FileNotFoundError(
            f"{shown(directory)}: expected a checkpoint, found the files of a save that has not been published; it "
            "still runs or was interrupted: give a checkpoint whose save has ended"
        )
    data = read_regular(file, _MOST_BYTES)
    if data.startswith(GIT_LFS):
        raise _core.CheckpointFormatError(f"{shown(file)}: {IS_POINTER}")
    collects = gc.isenabled()
    gc.disable()  # which would look again and again at a million objects that are all in use
    try:
        metadata = _MetadataUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # damaged pickles raise anything
        text = str(error) or type(error).__name__
        raise _core.CheckpointFormatError(f"{shown(file)}: cannot be read safely: {text}") from error
    finally:
        if collects:
            gc.enable()
    if not isinstance(metadata, Metadata):
        raise _core.CheckpointFormatError(f"{shown(file)}: expected DCP's Metadata, found {_kind(metadata)}")
    if fault := _fault_of(metadata):
        raise _core.CheckpointFormatError(
            f"{shown(file)}: {fault}; the file is damaged: save or copy it again"
        )
    return metadata


def _fault_of(metadata: Metadata) -> str:
    """What does not hold together; empty if all does."""
    if "state_dict_metadata" not in vars(metadata):
        return "expected the metadata of a state dict, found none"
    if metadata.storage_data is None:
        return "expected the places of tensors and objects, found none"
    for name, stored in metadata.state_dict_metadata.items():
        if type(name) is not str or type(stored) not in (TensorStorageMetadata, BytesStorageMetadata):
            return f"expected tensors and objects by their names, found {_kind(stored)}"
        if not _is_utf_8(name):
            return f"expected names in UTF-8, found {name[:200]!r}"
        if isinstance(stored, TensorStorageMetadata) and (fault := _fault_of_tensor(stored)):
            return f"{name}: {fault}"
    for index, place in metadata.storage_data.items():
        if type(index) is not MetadataIndex or type(place) is not _StorageInfo:
            return f"expected places of tensors and objects, found {_kind(place)}"
        if not _is_utf_8(index.fqn):
            return f"expected names in UTF-8, found {index.fqn[:200]!r}"
        if fault := _fault_of_place(place):
            return f"{index.fqn}: {fault}"
    if fault := fault_of_planner_data(metadata.planner_data):
        return fault
    modules = vars(metadata.storage_meta).get("modules", []) if metadata.storage_meta else []
    return "" if all(type(name) is str for name in modules) else "expected names of modules"


def _is_utf_8(text: str) -> bool:
    """A pickle may hold halves of surrogate pairs, which nothing else can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def fault_of_planner_data(data: Any) -> str:
    """DCP's planner keeps where in the nested state dict each value was; empty if this is that, or nothing."""
    for name, path in data.items() if isinstance(data, dict) else [("", data)] if data is not None else []:
        parts = path if type(path) in (tuple, list) else (None,)
        if type(name) is not str or not parts or not all(type(part) in (str, int) for part in parts):
            return f"expected the places of values in a state dict, found {_kind(path)}"
    return ""


def _fault_of_tensor(stored: TensorStorageMetadata) -> str:
    if vars(stored).keys() < _FIELDS[TensorStorageMetadata].keys():
        return "expected dtype, size and chunks of a tensor, found less"
    if not hasattr(stored.properties, "dtype"):
        return "expected the properties of a tensor, found none"
    elements = 1
    for size in stored.size:
        elements *= max(size, 1)
    if elements >= 2**59:  # bytes must be countable, whatever the dtype
        return f"expected a shape, found {list(stored.size)[:20]}"
    for chunk in stored.chunks:
        if type(chunk) is not ChunkStorageMetadata or len(vars(chunk)) < 2:
            return f"expected chunks, found {_kind(chunk)}"
        if len(chunk.offsets) != len(stored.size) or len(chunk.sizes) != len(stored.size):
            return f"expected chunks of {len(stored.size)} dimensions, found {len(chunk.sizes)}"
        for begin, size, whole in zip(chunk.offsets, chunk.sizes, stored.size, strict=True):
            if begin + size > whole:
                return (
                    f"a chunk at {list(chunk.offsets)} of {list(chunk.sizes)} leaves the tensor of "
                    f"{list(stored.size)}"
                )
    return ""


def _fault_of_place(place: _StorageInfo) -> str:
    if not vars(place).keys() >= {"relative_path", "offset", "length"}:
        return "expected a file, an offset and a length, found less"
    if any(type(number) is not int or not 0 <= number < 2**63 for number in (place.offset, place.length)):
        return f"expected an offset and a length, found {str(place.offset)[:30]} and {str(place.length)[:30]}"
    path = PurePath(place.relative_path)
    is_text = _is_utf_8(place.relative_path) and "\0" not in place.relative_path
    if path.is_absolute() or ".." in path.parts or not path.name or not is_text:
        return f"expected a file of this directory, found {place.relative_path[:200]!r}"
    if not all(type(name) is str for name in place.transform_descriptors or ()):
        return "expected names of transforms"
    return ""
