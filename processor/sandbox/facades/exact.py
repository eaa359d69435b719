"""What C code works on while it could call a Runnable's code: given exact built-in types, or kept from it.

C holds raw memory, or a reference that nobody else owns, across a call of a hook (`__index__`, `__lt__`,
`__len__`): a hook that changes the very object then makes it read and write what is no longer its own.
CPython mends such places one by one, in new releases only. So arguments become exact built-in objects, whose
hooks are the interpreter's, before the memory is looked at; what must call hooks is written in Python.

`facades` and `guards` hand out what is here in the place of their namesakes. `tests/sandbox/fuzz.py` looks
for what is missing.
"""

from __future__ import annotations

import array as arrays
import builtins
import collections
import contextlib
import csv
import datetime
import decimal
import fractions
import functools
import gc
import io
import itertools
import json
import math
import operator
import re
import reprlib
import struct
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from processor.sandbox.documents import of_class

# Values of these types have no hook of a user's, nor do those that they hold.
_EXACT = frozenset((int, float, complex, bool, str, bytes, type(None), memoryview, range))
_NUMBERS = frozenset((int, float, complex, bool, decimal.Decimal, fractions.Fraction, datetime.timedelta))


def whole(value: Any) -> Any:
    """`value` as an int that is nothing but an int. Raises TypeError where it is no whole number."""
    if type(value) is int:
        return value
    return int.__index__(operator.index(value))


def real(value: Any) -> float:
    """`value` as a float that is nothing but a float. Raises TypeError where it is no number."""
    return value if type(value) is float else math.ldexp(value, 0)


def exact(value: Any) -> Any:
    """An argument as C may have it: of the built-in type that its class derives from, or the int it is."""
    kind = type(value)
    if kind in _EXACT:
        return value
    if kind is slice:
        return slice(
            *(None if part is None else whole(part) for part in (value.start, value.stop, value.step))
        )
    if kind is tuple:
        return tuple([exact(item) for item in value])
    if isinstance(value, int):
        return int.__index__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, builtins.bytes):
        return builtins.bytes.__bytes__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, (arrays.array, builtins.bytearray)):
        return value
    return int.__index__(operator.index(value)) if hasattr(kind, "__index__") else value


def _is_buffer(value: Any) -> bool:
    return isinstance(value, (builtins.bytes, builtins.bytearray, memoryview, arrays.array))


def _given_exactly(method: Callable[..., Any], made: Callable[[Any], Any]) -> Callable[..., Any]:
    """`method` of a C type, given exact arguments only; `made` is what becomes of the result."""

    def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        args = tuple([exact(value) for value in args])
        return made(method(self, *args, **{name: exact(value) for name, value in kwargs.items()}))

    call.__name__ = call.__qualname__ = method.__name__
    return call


class bytearray(builtins.bytearray):
    """bytearray, as its namesake."""

    __slots__ = ()

    def __init__(self, source: Any = b"", /, *args: Any, **kwargs: Any) -> None:
        if type(source) not in _EXACT and not _is_buffer(source) and not isinstance(source, (str, int)):
            source = whole(source) if hasattr(type(source), "__index__") else _octets(source)
        _BYTEARRAY_INIT(self, exact(source), *map(exact, args), **kwargs)

    def extend(self, iterable: Any, /) -> None:
        builtins.bytearray.extend(self, iterable if _is_buffer(iterable) else _octets(iterable))

    def join(self, iterable: Any, /) -> Any:
        return _bytearray(builtins.bytearray.join(self, [exact(item) for item in iterable]))

    def __setitem__(self, at: Any, value: Any) -> None:
        if type(at) is slice and not _is_buffer(value) and not hasattr(type(value), "__index__"):
            value = _octets(value)
        builtins.bytearray.__setitem__(self, exact(at), exact(value))

    def __mod__(self, values: Any) -> Any:
        return bytearray(bytes(self) % values)

    def __contains__(self, value: Any) -> bool:
        return builtins.bytearray.__contains__(self, exact(value))

    def copy(self) -> Any:
        return bytearray(self)


_BYTEARRAY_INIT = builtins.bytearray.__init__


def _octets(iterable: Any) -> builtins.bytes:
    return builtins.bytes([whole(item) for item in iterable])


def _bytearray(made: Any) -> Any:
    """What a method of bytearray gave, with those in it of the class that is handed out."""
    kind = type(made)
    if kind is builtins.bytearray:
        return bytearray(made)
    if kind is list or kind is tuple:
        return kind(map(_bytearray, made))
    return made


_TEXT_CODES = frozenset("uw")
_REAL_CODES = frozenset("fd")


class array(arrays.array):  # type: ignore[type-arg]
    """array.array, as its namesake."""

    __slots__ = ()

    def __new__(cls, typecode: Any, initializer: Any = (), /) -> Any:
        typecode = exact(typecode)
        if isinstance(initializer, str):
            initializer = exact(initializer)
        elif not _is_buffer(initializer):
            initializer = [_item(typecode, item) for item in initializer]
        return arrays.array.__new__(cls, typecode, initializer)

    def append(self, value: Any, /) -> None:
        arrays.array.append(self, _item(self.typecode, value))

    def insert(self, at: Any, value: Any, /) -> None:
        arrays.array.insert(self, whole(at), _item(self.typecode, value))

    def extend(self, iterable: Any, /) -> None:
        if not isinstance(iterable, arrays.array):
            iterable = [_item(self.typecode, item) for item in iterable]
        arrays.array.extend(self, iterable)

    def fromlist(self, items: Any, /) -> None:
        if not isinstance(items, list):
            raise TypeError("arg must be list")
        arrays.array.fromlist(self, [_item(self.typecode, item) for item in items])

    def __iadd__(self, other: Any) -> Any:  # type: ignore[misc]
        return arrays.array.__iadd__(self, other)

    def __setitem__(self, at: Any, value: Any) -> None:
        at = exact(at)
        arrays.array.__setitem__(self, at, value if type(at) is slice else _item(self.typecode, value))

    def __contains__(self, value: Any) -> bool:
        return value in self.tolist()

    def index(self, value: Any, /, *limits: Any) -> int:
        try:
            return self.tolist().index(value, *map(whole, limits))
        except ValueError:
            raise ValueError("array.index(x): x not in array") from None

    def count(self, value: Any, /) -> int:
        return self.tolist().count(value)

    def remove(self, value: Any, /) -> None:
        try:
            del self[self.tolist().index(value)]
        except ValueError:
            raise ValueError("array.remove(x): x not in array") from None

    def tofile(self, file: Any, /) -> None:
        file.write(self.tobytes())

    def fromfile(self, file: Any, count: Any, /) -> None:
        count = whole(count)
        read = exact(file.read(count * self.itemsize))
        if not _is_buffer(read):
            raise TypeError("read() didn't return bytes")
        self.frombytes(read)
        if len(read) != count * self.itemsize:
            raise EOFError("read() didn't return enough bytes")

    def __repr__(self) -> str:
        return arrays.array.__repr__(self)


def _item(typecode: str, value: Any) -> Any:
    """`value` as an array with that type code stores it."""
    if typecode in _REAL_CODES:
        return real(value)
    if typecode in _TEXT_CODES or type(value) is int:
        return exact(value)
    return whole(value) if hasattr(type(value), "__index__") else exact(value)


def _array(made: Any) -> Any:
    return array(made.typecode, made) if type(made) is arrays.array else made


# Their hooks are for the interpreter, which asks a type and not an object, or cannot be reached at all.
_LEFT_ALONE = frozenset((
    "__new__", "__init__", "__getattribute__", "__class__", "__doc__", "__hash__", "__class_getitem__",
    "__init_subclass__", "__subclasshook__", "__sizeof__", "__alloc__", "__reduce__", "__reduce_ex__",
    "__buffer__", "__release_buffer__", "__iter__", "__len__", "__repr__", "__str__", "__eq__", "__ne__",
    "__lt__", "__le__", "__gt__", "__ge__", "__setattr__", "__delattr__", "__dir__", "__getstate__",
    "__format__",
))  # fmt: skip
_METHODS = (types.MethodDescriptorType, types.WrapperDescriptorType)


# What makes another bytearray, of a size that is asked for: where memory is short, CPython takes the one that
# it could not make for one whose buffer is in use, and prints that, which trips the tripwire.
_SIZED = (
    "zfill", "ljust", "rjust", "center", "expandtabs", "replace", "translate",
    "__mul__", "__rmul__", "__add__",
)  # fmt: skip


def _by_way_of_bytes(name: str) -> Callable[..., Any]:
    """A method of bytearray, done by its namesake of bytes."""
    method = _given_exactly(getattr(builtins.bytes, name), bytearray)

    def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        return method(builtins.bytes(self), *args, **kwargs)

    call.__name__ = call.__qualname__ = name
    return call


for _name in _SIZED:
    setattr(bytearray, _name, _by_way_of_bytes(_name))


def _guard(cls: Any, base: type, made: Callable[[Any], Any]) -> None:
    for name, value in vars(base).items():
        if isinstance(value, _METHODS) and name not in vars(cls) and name not in _LEFT_ALONE:
            setattr(cls, name, _given_exactly(value, made))
    cls.__module__ = base.__module__


_guard(bytearray, builtins.bytearray, _bytearray)
_guard(array, arrays.array, _array)


def _fromhex(text: Any, /) -> Any:
    return bytearray(builtins.bytes.fromhex(exact(text)))


setattr(bytearray, "fromhex", staticmethod(_fromhex))  # noqa: B010 (a class method would take any class)


# Deques


class deque(collections.deque[Any]):
    """collections.deque, as its namesake: C's `index` reads what a limit's `__index__` may have freed."""

    __slots__ = ()

    def index(self, value: Any, /, *limits: Any) -> int:
        return collections.deque.index(self, value, *map(whole, limits))


deque.__module__ = "collections"


# Lists


def set_item(ob: Any, at: Any, value: Any) -> None:
    """`ob[at] = value`. A list measures an extended slice, and then runs the iterator that it is given."""
    if type(at) is slice and isinstance(ob, list) and type(value) not in (list, tuple):
        value = list(value)
    ob[at] = value


def list_setter(method: Callable[..., None]) -> Callable[..., None]:
    """`list.__setitem__`, bound or not, that does the same."""

    def __setitem__(*args: Any) -> None:
        *place, value = args
        if place and type(place[-1]) is slice and type(value) not in (list, tuple):
            value = list(value)
        method(*place, value)

    return __setitem__


class _ExactItems:
    """A list where items of it are set in a program that knows extended slices."""

    __slots__ = ("_list",)

    def __init__(self, items: list[Any]) -> None:
        self._list = items

    def __getitem__(self, at: Any) -> Any:
        return self._list[at]

    def __setitem__(self, at: Any, value: Any) -> None:
        set_item(self._list, at, value)


def items_of(ob: Any) -> Any:
    """`ob`, where a Runnable sets an item of it."""
    return _ExactItems(ob) if isinstance(ob, list) else ob


def _set_item_of_user_list(self: Any, at: Any, value: Any) -> None:
    set_item(self.data, at, value)


# Dicts
#
# A dict looks at the kind of its table (texts alone, or any keys) before it looks for the place of a new key,
# and a comparison in between may run a user's code. A table that was emptied and filled with texts by then
# would keep the new key as if it were a text. Only `clear`, and merging a whole dict into an empty one, make
# a table one for texts again; item by item it stays what it is.


class Merging(dict[Any, Any]):
    """A dict's items, which C merges one by one as the class has an `__iter__` of its own."""

    __slots__ = ("source",)

    def __init__(self, source: Any) -> None:
        dict.__init__(self, source)
        self.source = source

    def __iter__(self) -> Iterator[Any]:
        return dict.__iter__(self)


Merging.__name__ = Merging.__qualname__ = "dict"


def merging(source: Any) -> Any:
    """`source` as it may be merged into a dict that a user knows of."""
    kind = type(source)
    if kind is set or not issubclass(kind, dict) or kind.__iter__ is not dict.__iter__:
        return source
    return Merging(source)


def unmerged(value: Any) -> Any:
    """What `merging` was given."""
    return value.source if type(value) is Merging else value


def update(self: Any, /, *sources: Any, **items: Any) -> None:
    """dict.update."""
    if len(sources) > 1:
        raise TypeError(f"update expected at most 1 argument, got {len(sources)}")
    for source in sources:
        # No code of a user's runs between this look at the length and C's own.
        is_plain = type(source) is dict and isinstance(self, dict) and dict.__len__(self)
        dict.update(self, source if is_plain else merging(source))
    if items:
        dict.update(self, merging(items))


def clear(self: Any, /) -> None:
    """dict.clear."""
    if not isinstance(self, dict):
        raise TypeError(
            f"descriptor 'clear' for 'dict' objects doesn't apply to a {type(self).__name__!r} object"
        )
    with contextlib.suppress(KeyError):  # what was removed may hold code that removes more
        collections.deque(map(dict.popitem, itertools.repeat(self, dict.__len__(self))), 0)


def initialize(self: Any, /, *args: Any, **items: Any) -> None:
    """dict.__init__ and that of defaultdict, for an object that may be in use."""
    if isinstance(self, collections.defaultdict):
        collections.defaultdict.__init__(self, *args[:1])
        args = args[1:]
    update(self, *args, **items)


def ior(a: Any, b: Any, /) -> Any:
    """operator.ior."""
    a |= merging(b)
    return a


_OF_DICT: dict[str, Callable[..., Any]] = {"clear": clear, "update": update}


def of_dict(ob: Any, name: str) -> Any:
    """The attribute `clear` or `update` of `ob`."""
    value = getattr(ob, name)
    if isinstance(value, types.BuiltinFunctionType):
        return (
            functools.partial(_OF_DICT[name], value.__self__) if isinstance(value.__self__, dict) else value
        )
    return _OF_DICT[name] if value is vars(dict)[name] else value


def last_of(view: Any) -> Any:
    """The last item of a view of a dict, read in one call of C. Raises StopIteration where there is none."""
    return next(itertools.chain.from_iterable(map(builtins.reversed, (view,))))


def dict_slot(name: str, value: Any) -> Any:
    """`value`, which is `__init__` or `__ior__` of something, bound or not."""
    if not isinstance(value, _SLOTS) or value.__objclass__ not in (dict, collections.defaultdict):
        return value
    of_self = (value.__self__,) if isinstance(value, types.MethodWrapperType) else ()

    def __init__(*args: Any, **items: Any) -> None:
        initialize(*of_self, *args, **items)

    def __ior__(*args: Any) -> Any:
        return value(*map(merging, args)) if of_self else value(*args[:1], *map(merging, args[1:]))

    return __init__ if name == "__init__" else wrapper(__ior__)


_WRAPPER = "~wrapper"


def wrapper(function: Any) -> Any:
    """`function`, a method that stands before one of C's or of a user's, so that a class may lend it."""
    vars(function)[_WRAPPER] = True
    return function


def is_wrapper(value: Any) -> bool:
    # Not by its code: to read that of a function is what the tripwire of a guest waits for.
    return type(value) is types.FunctionType and _WRAPPER in vars(value)


_SLOTS = (types.WrapperDescriptorType, types.MethodWrapperType)


def makes_known(cls: type) -> bool:
    """Whether a call of `cls`, a dict of a user's, may give one that is in use: `__new__` is a user's."""
    return isinstance(cls.__new__, types.FunctionType)


def keep_dict(cls: type) -> None:
    """Let no call of `cls`, a class of a user's, initialize a dict that is in use past `update`."""
    if issubclass(cls, dict) and makes_known(cls) and isinstance(cls.__init__, _SLOTS):
        setattr(cls, "__init__", dict_slot("__init__", cls.__init__))  # noqa: B010


def _update_counter(self: Any, iterable: Any = None, /, **counts: Any) -> None:
    if not self and isinstance(iterable, dict):
        update(self, iterable)
        iterable = None
    _COUNTER_UPDATE(self, iterable, **counts)


_COUNTER_UPDATE = collections.Counter.update


def _ior_user_dict(self: Any, other: Any) -> Any:
    self.data = ior(self.data, other.data if isinstance(other, collections.UserDict) else other)
    return self


def _clear_chain(self: Any) -> None:
    of_dict(self.maps[0], "clear")()


def _ior_chain(self: Any, other: Any) -> Any:
    of_dict(self.maps[0], "update")(other)
    return self


def _or_chain(self: Any, other: Any) -> Any:
    if not isinstance(other, Mapping):
        return NotImplemented
    return _ior_chain(self.copy(), other)


def lru_cache(maxsize: Any = 128, typed: Any = False) -> Any:
    """functools.lru_cache, whose `cache_clear` gives its dict no table for texts alone."""
    return functools.lru_cache(maxsize, True)


def cache(function: Any, /) -> Any:
    """functools.cache."""
    return lru_cache(None)(function)


_NO_ROOM = re.compile("(?<![0-9])0+p")


def _format(format: Any) -> Any:
    """A format of struct, exact. Raises struct.error where a text has no room for its length.

    C writes it all the same, behind the memory that it was given.
    """
    if not isinstance(format, (str, bytes)):
        return format
    format = exact(format)
    text = format if type(format) is str else format.decode("latin-1")
    if "0p" in text and _NO_ROOM.search(text):
        raise struct.error("'0p' has no room for the length of its text; write '1p' or more")
    return format


class Struct(struct.Struct):
    """struct.Struct, as its namesake."""

    __slots__ = ()

    def __init__(self, format: Any) -> None:
        struct.Struct.__init__(self, _format(format))


Struct.__module__ = "_struct"


def _with_exact_format(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(format: Any, /, *args: Any, **kwargs: Any) -> Any:
        return function(_format(format), *args, **kwargs)

    call.__name__ = call.__qualname__ = function.__name__
    return call


# The module keeps the formats that it has seen in a dict, which it clears.
STRUCT = {
    function.__name__: _with_exact_format(function)
    for function in (
        struct.pack, struct.unpack, struct.pack_into, struct.unpack_from, struct.iter_unpack, struct.calcsize,
    )
}  # fmt: skip


# Counting


def _count_elements(mapping: Any, iterable: Iterable[Any]) -> None:
    elements = iterable if type(iterable) in (list, tuple, str, bytes) else list(iterable)
    if _are_plain(elements) and _are_plain(mapping) and _are_plain(mapping.values()):
        _C_COUNT_ELEMENTS(mapping, elements)
        return
    get = mapping.get
    for element in elements:
        mapping[element] = get(element, 0) + 1


def _are_plain(items: Any) -> bool:
    return _EXACT.issuperset(map(type, items))


_C_COUNT_ELEMENTS: Callable[..., None] = vars(collections)["_count_elements"]


def guard_collections() -> None:
    """C keeps no hold of the count that it adds one to; the others set items of a list, or of a dict."""
    setattr(collections, "_count_elements", _count_elements)  # noqa: B010
    setattr(collections.UserList, "__setitem__", _set_item_of_user_list)  # noqa: B010
    setattr(collections.Counter, "update", _update_counter)  # noqa: B010
    setattr(collections.UserDict, "__ior__", _ior_user_dict)  # noqa: B010
    setattr(collections.ChainMap, "clear", _clear_chain)  # noqa: B010
    setattr(collections.ChainMap, "__ior__", _ior_chain)  # noqa: B010
    setattr(collections.ChainMap, "__or__", _or_chain)  # noqa: B010


def guard_json() -> None:
    """Keep C's encoder from items that nobody holds."""
    setattr(json.JSONEncoder, "iterencode", _iterencode)  # noqa: B010


# JSON
#
# C's encoder has no hold of an item of a list while it looks at it, but by its markers. They come too late
# for a list or tuple of a user's whose `__iter__` empties the list around it.


class _Writing:
    """How json writes: with C's encoder, unless a list or tuple of a user's has an `__iter__` of its own."""

    in_python = False
    depth = 0  # of calls of C's encoder that are at work


def keep_list(cls: type) -> None:
    """Have json write in Python from now on where `cls`, a class of a user's, walks through its items itself.

    Raises TypeError while C is writing.
    """
    if issubclass(cls, (list, tuple)) and id(of_class(cls, "__iter__")) not in _WALKS:
        keep_walk()


# By what they are: a value of the user's may claim to be equal.
_WALKS = {id(vars(kind)["__iter__"]) for kind in (list, tuple)}


def keep_walk() -> None:
    """The same, for a class that may be the base of such a list or tuple."""
    if _Writing.depth and not _Writing.in_python:
        raise TypeError("a list or tuple cannot be given an __iter__ of its own while json writes")
    _Writing.in_python = True


def _iterencode(self: Any, o: Any, _one_shot: Any = False) -> Any:
    if not _one_shot or self.indent is not None or _Writing.in_python:
        return _PYTHON_ITERENCODE(self, o)
    encoder = _C_MAKE_ENCODER(
        {},  # the markers, which are left out without check_circular
        self.default,
        _ENCODE_ASCII if self.ensure_ascii else _ENCODE,
        None,
        self.key_separator,
        self.item_separator,
        self.sort_keys,
        self.skipkeys,
        self.allow_nan,
    )
    is_collecting = gc.isenabled()
    gc.disable()  # what it frees may be a generator that has a `finally` to run
    _Writing.depth += 1
    try:
        return encoder(o, 0)
    finally:
        _Writing.depth -= 1
        if is_collecting:
            gc.enable()


_PYTHON_ITERENCODE = json.JSONEncoder.iterencode
_C_MAKE_ENCODER: Callable[..., Any] = vars(json.encoder)["c_make_encoder"]
_ENCODE_ASCII, _ENCODE = json.encoder.encode_basestring_ascii, json.encoder.encode_basestring


# CSV


class _Feed:
    """An iterator that refuses to be advanced from inside of its own step, but goes on after an end."""

    __slots__ = ("_is_at_work", "_iterator")

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator
        self._is_at_work = False

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> Any:
        if self._is_at_work:
            raise ValueError("a csv reader cannot be advanced by the lines that it reads")
        self._is_at_work = True
        try:
            return next(self._iterator)
        finally:
            self._is_at_work = False


# Iterators that run no code of a user's, or refuse this themselves.
_PLAIN_LINES = frozenset((type(iter([])), type(iter(())), io.StringIO, types.GeneratorType))


def _reader(lines: Any, /, *args: Any, **kwargs: Any) -> Any:
    """csv.reader; C's has lost the row that it reads when a line's iterator has read it to its end."""
    lines = iter(lines)
    return _C_READER(lines if type(lines) in _PLAIN_LINES else _Feed(lines), *args, **kwargs)


_C_READER = csv.reader


def guard_csv() -> None:
    setattr(csv, "reader", _reader)  # noqa: B010


# Streams


class BytesIO(io.BytesIO):
    """io.BytesIO, as its namesake."""

    __slots__ = ()

    def getbuffer(self) -> memoryview:
        # C would part an empty one from the bytes that all of them share, while a view of it is in use.
        at, size = self.tell(), self.seek(0, 2)
        if not size:
            with contextlib.suppress(BufferError):
                self.write(b"\0")
                self.truncate(0)
        self.seek(at)
        return io.BytesIO.getbuffer(self)


BytesIO.__module__ = "io"


# Iterators


def count(start: Any = 0, step: Any = 1) -> Iterator[Any]:
    """itertools.count; with numbers of a user's class it counts in Python."""
    if type(start) in _NUMBERS and type(step) in _NUMBERS:
        return itertools.count(start, step)
    if not (_is_number(start) and _is_number(step)):
        raise TypeError("a number is required")
    return _counted(start, step)


def _is_number(value: Any) -> bool:
    return any(hasattr(type(value), name) for name in ("__index__", "__int__", "__float__", "__complex__"))


def _counted(number: Any, step: Any) -> Iterator[Any]:
    while True:
        yield number
        number = number + step


def _alone(iterator: Iterator[Any]) -> Iterator[Any]:
    """`iterator`, which refuses to be advanced from inside of its own step, as a generator does."""
    yield from iterator


def _made_alone(make: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    def made(*args: Any, **kwargs: Any) -> Iterator[Any]:
        return _alone(make(*args, **kwargs))

    made.__name__ = made.__qualname__ = make.__name__
    return made


def groupby(iterable: Iterable[Any], key: Any = None) -> Iterator[tuple[Any, Iterator[Any]]]:
    """itertools.groupby, whose groups are as alone as itself."""
    return ((found, _alone(group)) for found, group in itertools.groupby(iterable, key))


# In the place of those that run a user's code in their own step; a step inside of it would free what it uses.
ITERTOOLS: dict[str, Any] = {
    **{
        make.__name__: _made_alone(make)
        for make in (
            itertools.accumulate, itertools.chain, itertools.compress, itertools.cycle, itertools.dropwhile,
            itertools.filterfalse, itertools.islice, itertools.pairwise, itertools.starmap,
            itertools.takewhile, itertools.zip_longest,
        )
    },
    "count": count,
    "groupby": groupby,
}  # fmt: skip
if "batched" in vars(itertools):
    ITERTOOLS["batched"] = _made_alone(vars(itertools)["batched"])
setattr(ITERTOOLS["chain"], "from_iterable", _made_alone(itertools.chain.from_iterable))  # noqa: B010


# Exceptions


class _CodecError(type):
    def __instancecheck__(cls, ob: object) -> bool:
        return isinstance(ob, builtins.UnicodeDecodeError)

    def __subclasscheck__(cls, kind: type) -> bool:
        return issubclass(kind, builtins.UnicodeDecodeError)


class UnicodeDecodeError(builtins.UnicodeDecodeError, metaclass=_CodecError):
    """UnicodeDecodeError, as its namesake: C shows the byte at `start` wherever that is."""

    def __init__(self, encoding: Any, data: Any, start: Any, end: Any, reason: Any, /) -> None:
        data = builtins.bytes(exact(data)) if _is_buffer(data) else data
        start, end = whole(start), whole(end)
        if not 0 <= start <= end <= len(data):
            raise ValueError(f"the bytes {start} to {end} are not among the {len(data)} that were given")
        builtins.UnicodeDecodeError.__init__(self, exact(encoding), data, start, end, exact(reason))


# What a stand-in catches: what C raises is of the class that it stands for.
CAUGHT: dict[type, type] = {UnicodeDecodeError: builtins.UnicodeDecodeError}
UnicodeDecodeError.__module__ = "builtins"


def caught(kinds: Any) -> Any:
    """What an except clause names, as the interpreter has to have it."""
    if type(kinds) is tuple:
        return tuple(map(caught, kinds))
    return CAUGHT.get(kinds, kinds) if isinstance(kinds, type) else kinds


# Ordered dicts


class OrderedDict(dict[Any, Any]):
    """collections.OrderedDict, in dict's own order: C's has a list of nodes that hooks can cut off."""

    __slots__ = ("\u01c0holes",)

    def __init__(self, other: Any = (), /, **items: Any) -> None:
        setattr(self, _HOLES, 0)
        self.update(other, **items)

    def update(self, other: Any = (), /, **items: Any) -> None:
        if type(self) is OrderedDict:
            update(self, other, **items)
            return
        _insist_on_ordered(self)
        for key, value in dict(other, **items).items():
            self[key] = value

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if type(self) is OrderedDict:
            return dict.setdefault(self, key, default)
        _insist_on_ordered(self)
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: Any, *default: Any, **named: Any) -> Any:
        default = (*default, *named.values()) if named.keys() <= {"default"} else (None, None, None)
        if type(self) is OrderedDict:
            return dict.pop(self, key, *default)
        _insist_on_ordered(self)
        if len(default) > 1:
            raise TypeError("pop() takes a key and a default")
        if default and key not in self:
            return default[0]
        value = self[key]
        del self[key]
        return value

    def popitem(self, last: Any = True) -> tuple[Any, Any]:
        if not dict.__len__(self):
            raise KeyError("dictionary is empty")
        if last:
            key = last_of(dict.keys(self))
        else:
            key = next(dict.__iter__(self))
            self._count_hole()
        return key, self.pop(key)

    def move_to_end(self, key: Any, last: Any = True) -> None:
        value = dict.pop(self, key)
        if last:
            dict.__setitem__(self, key, value)
        else:
            _refill(self, [(key, value), *dict.items(self)])

    def _count_hole(self) -> None:
        # dict finds its first item by a walk over what was removed before it.
        holes = getattr(self, _HOLES, 0) + 1
        if holes * holes > dict.__len__(self) + _HOLES_MIN:
            holes = 0
            _refill(self, list(dict.items(self)))
        setattr(self, _HOLES, holes)

    def copy(self) -> Any:
        _insist_on_ordered(self)
        return type(self)(self)

    def __eq__(self, other: Any) -> Any:
        if not isinstance(other, OrderedDict):
            return dict.__eq__(self, other)
        return dict.__eq__(self, other) and list(dict.keys(self)) == list(dict.keys(other))

    def __ne__(self, other: Any) -> Any:
        equal = self == other
        return equal if equal is NotImplemented else not equal

    __hash__ = None

    def __or__(self, other: Any) -> Any:
        return self._merged(self, other)

    def __ror__(self, other: Any) -> Any:
        return self._merged(other, self)

    def _merged(self, first: Any, second: Any) -> Any:
        if not (isinstance(first, dict) and isinstance(second, dict)):
            return NotImplemented
        merged = type(self)(first)
        merged.update(second)
        return merged

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self

    @reprlib.recursive_repr()
    def __repr__(self) -> str:
        shown = dict(self) if sys.version_info >= (3, 12) else list(dict.items(self))
        return f"{type(self).__name__}({shown!r})" if shown else f"{type(self).__name__}()"


def _insist_on_ordered(self: Any) -> None:
    if not isinstance(self, OrderedDict):  # given a class as self, type(self) is a metaclass
        raise TypeError("a method of OrderedDict is for an OrderedDict")


_HOLES = "\u01c0holes"
OrderedDict.__module__ = "collections"
_HOLES_MIN = 256  # so that a small one is not filled anew at every turn


def _refill(ordered: OrderedDict, items: list[tuple[Any, Any]]) -> None:
    clear(ordered)
    for key, value in items:
        dict.__setitem__(ordered, key, value)
