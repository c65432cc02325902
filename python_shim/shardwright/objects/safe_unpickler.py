"""Pickle's machine without what makes it dangerous: it calls nothing but what ``safe_constructors`` makes, and what
``torch.serialization.add_safe_globals`` allows."""

from __future__ import annotations

import _compat_pickle
import collections
import enum
import io
import pickle
import sys
from typing import Any

import torch
from torch._weights_only_unpickler import _blocklisted_modules, _get_user_allowed_globals

from shardwright.objects.safe_constructors import NAMES, Maker, Refused, set_state

#: The operations of protocols 2 to 4 that put data on the stack, and nothing else. Those that make or change objects
#: are defined below; what is in neither list is refused.
_DATA = (
    "PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINSTRING "
    "SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_LIST EMPTY_DICT "
    "EMPTY_SET EMPTY_TUPLE BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE "
    "GLOBAL STACK_GLOBAL"
)


#: How deep tuples may lie in each other, and how many elements that may come to in all: what is hashed, as keys are, is
#: walked through by recursion, each time it is met.
_DEEPEST = 100
_MOST_ELEMENTS = 10_000_000

#: Of Python's library, in Python.
_Machine: Any = vars(pickle)["_Unpickler"]


class SafeUnpickler(_Machine):
    """Unpickles the data of ``torch.load``, which gives it storages by ``persistent_load``."""

    dispatch: Any = {
        operation[0]: _Machine.dispatch[operation[0]]
        for operation in (getattr(pickle, name) for name in _DATA.split())
    }

    def __init__(self, file: Any, **options: Any) -> None:
        super().__init__(file, **options)
        self.of_user = _get_user_allowed_globals()
        self.classes_of_user = {id(value) for value in self.of_user.values()}
        self.nested: dict[int, tuple[Any, int, int]] = {}  # by id of a tuple: itself, its depth, its elements

    def find_class(self, module: str, name: str) -> Any:
        if type(module) is not str or type(name) is not str:
            raise Refused("it names a class by something else than text")
        if self.proto < 3:
            module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
            module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        full = f"{module}.{name}"
        if module in _blocklisted_modules:
            raise Refused(f"it names {full}")
        if full in self.of_user:
            return self.of_user[full]
        if full in NAMES:
            return NAMES[full]
        if full == "builtins.getattr":
            return Maker("getattr", self._member)
        # Neither imported nor asked by getattr, which a module may answer with code of its own.
        found = vars(sys.modules[module]).get(name) if module in sys.modules else None
        if is_namedtuple(found):
            return Maker(full, new=lambda *values: self._made(_namedtuple(found, values)))
        raise Refused(f"it names {full}")

    def _member(self, class_: Any, name: Any) -> Any:
        """How some versions of Python pickle the members of an enum."""
        if id(class_) in self.classes_of_user and isinstance(class_, enum.EnumMeta) and type(name) is str:
            return class_.__members__[name]
        raise Refused("it names builtins.getattr")

    def is_of_user(self, value: Any) -> bool:
        return id(value) in self.classes_of_user

    # --- what can be hashed --------------------------------------------------------------------------------------

    def _made(self, value: Any) -> Any:
        """The tuple or frozenset, unless it lies too deep in others of these."""
        depth, elements = 1, 0
        for element in value:
            _, below, within = self.nested.get(id(element), (None, 0, 1))
            depth, elements = max(depth, below + 1), elements + within
        if depth > _DEEPEST or elements > _MOST_ELEMENTS:
            raise Refused(f"its tuples lie {depth} deep in each other, with {elements} elements")
        self.nested[id(value)] = value, depth, elements
        return value

    def load_tuple(self) -> None:
        elements = self.pop_mark()  # which changes what append() is
        self.append(self._made(tuple(elements)))

    def load_tuple1(self) -> None:
        self.stack[-1:] = [self._made((self.stack[-1],))]

    def load_tuple2(self) -> None:
        self.stack[-2:] = [self._made((self.stack[-2], self.stack[-1]))]

    def load_tuple3(self) -> None:
        self.stack[-3:] = [self._made((self.stack[-3], self.stack[-2], self.stack[-1]))]

    def load_frozenset(self) -> None:
        elements = self.pop_mark()
        self.append(self._made(frozenset(elements)))

    # --- what makes objects ------------------------------------------------------------------------------------

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        make = self.stack[-1]
        if type(arguments) is not tuple or not (isinstance(make, Maker) or self.is_of_user(make)):
            raise Refused(f"it calls {_shown(make)}")
        self.stack[-1] = make(*arguments)

    def load_newobj(self) -> None:
        arguments = self.stack.pop()
        class_ = self.stack.pop()
        if type(arguments) is not tuple:
            raise Refused(f"it calls {_shown(class_)}")
        if isinstance(class_, Maker):
            self.append(class_.make_new(arguments))
        elif self.is_of_user(class_) and isinstance(class_, type):
            self.append(class_.__new__(class_, *arguments))
        else:
            raise Refused(f"it makes an object of {_shown(class_)}")

    def load_newobj_ex(self) -> None:
        named = self.stack.pop()
        arguments = self.stack.pop()
        class_ = self.stack.pop()
        if not (self.is_of_user(class_) and isinstance(class_, type) and type(named) is dict):
            raise Refused(f"it makes an object of {_shown(class_)}")
        self.append(class_.__new__(class_, *arguments, **named))

    def load_build(self) -> None:
        state = self.stack.pop()
        value = self.stack[-1]
        if set_state(value, state):
            return
        if type(value) is torch.nn.Parameter:
            value.__setstate__(state)
        elif not self.is_of_user(type(value)):
            raise Refused(f"it changes a {type(value).__name__}")
        elif hasattr(value, "__setstate__"):
            value.__setstate__(state)
        else:
            attributes, slots = state if type(state) is tuple and len(state) == 2 else (state, None)
            if attributes:
                value.__dict__.update(attributes)
            for name, slot in (slots or {}).items():
                setattr(value, name, slot)

    # --- what fills containers ---------------------------------------------------------------------------------

    def _expect_container(self, *types_: type) -> Any:
        value = self.stack[-1]
        if type(value) not in types_ and not self.is_of_user(type(value)):
            raise Refused(f"it puts elements into a {type(value).__name__}")
        return value

    def load_append(self) -> None:
        element = self.stack.pop()
        self._expect_container(list, collections.deque).append(element)

    def load_appends(self) -> None:
        elements = self.pop_mark()
        self._expect_container(list, collections.deque).extend(elements)

    def load_additems(self) -> None:
        elements = self.pop_mark()
        self._expect_container(set).update(elements)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._expect_mapping()[key] = value

    def load_setitems(self) -> None:
        elements = self.pop_mark()
        into = self._expect_mapping()
        for key, value in zip(elements[::2], elements[1::2], strict=True):
            into[key] = value

    def _expect_mapping(self) -> Any:
        return self._expect_container(
            dict, collections.OrderedDict, collections.Counter, collections.defaultdict
        )

    # --- storages ----------------------------------------------------------------------------------------------

    record_size: Any = None  #: (name of a record of the archive) → its bytes

    def load_binpersid(self) -> None:
        saved = self.stack.pop()
        if not (
            type(saved) is tuple
            and len(saved) == 5
            and saved[0] in ("storage", b"storage")
            and type(saved[2]) is str
            and type(saved[4]) is int
        ):
            raise Refused("it asks for something else than a storage")
        storage, key, elements = saved[1], saved[2], saved[4]
        size = 1 if storage is torch.UntypedStorage else torch._utils._element_size(storage.dtype)
        # torch would read past the end of what it has read.
        if not 0 <= elements * size <= self.record_size(f"data/{key}"):
            raise Refused(f"it asks for {elements} elements of a storage that has fewer")
        self.append(self.persistent_load(saved))


_DEFINED_HERE = (
    "TUPLE TUPLE1 TUPLE2 TUPLE3 FROZENSET REDUCE NEWOBJ NEWOBJ_EX BUILD APPEND APPENDS ADDITEMS SETITEM SETITEMS "
    "BINPERSID"
)
for _name in _DEFINED_HERE.split():
    SafeUnpickler.dispatch[getattr(pickle, _name)[0]] = getattr(SafeUnpickler, f"load_{_name.lower()}")


def is_namedtuple(value: Any) -> bool:
    """True for a class as collections.namedtuple makes it: a tuple with names, which needs no code to be made."""
    return (
        type(value) is type
        and value.__bases__ == (tuple,)
        and type(vars(value).get("_fields")) is tuple
        and all(type(name) is str for name in vars(value)["_fields"])
    )


def _namedtuple(class_: Any, values: tuple[Any, ...]) -> Any:
    if len(values) != len(class_._fields):
        raise Refused(f"expected {len(class_._fields)} fields, found {len(values)}")
    return tuple.__new__(class_, values)


def _shown(value: Any) -> str:
    return value.name if isinstance(value, Maker) else f"{getattr(value, '__name__', type(value).__name__)}"


def load_safely(data: io.BytesIO) -> Any:
    """What ``torch.save`` wrote, tensors in CPU memory.

    Raises whatever damaged and hostile data come to.
    """
    start = data.tell()
    is_archive = data.read(4) == b"PK\x03\x04"
    data.seek(start)
    if not is_archive:
        raise Refused("it is no archive of torch.save")
    archive = torch._C.PyTorchFileReader(data)
    if "constants.pkl" in archive.get_all_records():
        raise Refused("it is a TorchScript archive, which is code")
    data.seek(start)

    class Unpickler(SafeUnpickler):
        record_size = staticmethod(archive.get_record_size)

    class machine:  # noqa: N801 - stands for a module
        pass

    module: Any = machine
    module.Unpickler = Unpickler
    return torch.load(data, map_location="cpu", pickle_module=module, weights_only=False)
