"""What a context holds: the live mapping that user code works on, and the bytes that are kept of it.

`encode` and `decode` are the one text form of a kept value: JSON, with a tag such as `{"$set": [...]}` for
each of Python's plain data types that JSON lacks. A tuple comes back as a list (inside a set or as a key it
comes back as a tuple), a time zone loses its name but not its offset, and a dict whose keys are no texts, or
could be taken for tags, is written as pairs. Whatever else would not come back as it went in is refused with
its path; nothing is rounded or turned into text.

`LiveContext` is the dict that a Runnable has as `self.context`; `Keeper` is the guest's handle on it: what a
run changed, and the way back. A container is decoded when it is first touched and let go after the run, so
that every run sees the round trip through the bytes, as it would after a crash. The order of a context's
own keys is that of their insertion only while the guest lives.

The guest keeps, the host prints: `decode` is safe on any bytes. No function here runs user code, and for
that reason only exact types are accepted, never subclasses.
"""

from __future__ import annotations

import binascii
import math
import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, ValuesView
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from itertools import chain
from reprlib import recursive_repr
from typing import Any, NoReturn

import orjson

from processor.sandbox.bounds import ELEMENT, KEY, UNCONFIGURED, Bounds, Path, described
from processor.sandbox.remedies import a_kind, instead_of_keeping

# Levels of JSON in one kept value, tags included, and the highest that limits.max_depth may be. orjson reads
# 1024 and writes 254.
DEPTH = 100
# Of the name of an item, in UTF-8. One that fits into no subject is a header, as JSON that takes six bytes
# for one at worst, of the 64 KB that the server lets a message have of headers.
NAME_BYTES = 8192
# Stands for a deleted key that init() would set again; no value is ever written like this.
TOMBSTONE = b'{"$gone":1}'

HEAP = "=heap"  # what the names of the items begin with that keep the objects of `self.heap`

_MAX_INT_CHARS = 4300  # Python's own limit for reading an integer from text
_STEP_CHARS = 60

_WRITE = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
_SCALARS: frozenset[type] = frozenset({str, int, bool, type(None)})
_SCALARS_AND_FLOAT: frozenset[type] = _SCALARS | {float}


# Writing.


def encode(value: Any, name: Path = "value", bounds: Bounds = UNCONFIGURED) -> bytes:
    """The text to keep for `value`. Raises ValueError, which says where in `name` it cannot be kept.

    It is Exceeded where that is for its length or depth.
    """
    return _encode(value, name, bounds)


def _encode(value: Any, path: Path, bounds: Bounds) -> bytes:
    try:
        text = orjson.dumps(value, option=_WRITE)
    except orjson.JSONEncodeError:
        pass
    else:
        if b'"$' not in text and _is_plain(value, _SCALARS if b"null" in text else _SCALARS_AND_FLOAT):
            if bounds.may_be_exceeded(text):
                bounds.check(value, path)
            return text
    return orjson.dumps(_Writer(bounds).plain(value, path, 0))


def _is_plain(value: Any, scalars: frozenset[type]) -> bool:
    """Whether orjson writes `value` as it is. It also writes NaN as null, members of an Enum, and more."""
    if type(value) in scalars:
        return True
    level = [value]
    for _ in range(DEPTH):
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is dict:
                below += [inner for inner in item.values() if type(inner) not in scalars]
            elif kind is list or kind is tuple:
                below += [inner for inner in item if type(inner) not in scalars]
            elif kind is not float or not math.isfinite(item):
                return False
        if not below:
            return True
        level = below
    return False


class _Writer:
    """Turns one value into JSON's own types and our tags, within `bounds`."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._inside: set[int] = set()  # the containers around the value in hand

    def plain(self, value: Any, path: Path, depth: int) -> Any:
        """What JSON can hold of `value`; `depth` levels are around it. Raises ValueError."""
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is str:
            return self._text(value, path)
        if kind is int:
            return value if -(1 << 63) <= value < 1 << 64 else {"$int": _digits(value, path)}
        if kind is float:
            if not math.isfinite(value):
                _refuse(path, f"is {value!r}, which cannot be kept")
            return value
        if kind is bytes:
            self._bounds.check_text(value, path)
        if kind in _ATOM_WRITERS:
            return _ATOM_WRITERS[kind](value, path)
        if kind not in _LEVELS:
            _refuse(path, f"is {a_kind(kind)}, which cannot be kept{instead_of_keeping(value)}")
        if id(value) in self._inside:
            _refuse(path, "refers back to itself")
        pairs = kind is dict and not _has_plain_keys(value)
        depth += 3 if pairs else _LEVELS[kind]
        self._bounds.check_depth(depth, path)
        self._bounds.check_length(len(value), path)
        self._inside.add(id(value))
        try:
            if pairs:
                return {"$dict": self._pairs(value, path, depth)}
            return self._container(kind, value, path, depth)
        finally:
            self._inside.discard(id(value))

    def _container(self, kind: type, value: Any, path: Path, depth: int) -> Any:
        if kind is dict:
            return {
                self._text(key, (path, KEY)): self.plain(item, (path, key), depth)
                for key, item in value.items()
            }
        if kind is Counter:
            return {"$counter": self._pairs(value, path, depth)}
        if kind is defaultdict:
            names = [name for name, factory in _FACTORIES.items() if factory is value.default_factory]
            if not names:
                _refuse(path, f"is a defaultdict whose factory is none of {', '.join(_FACTORIES)}")
            return {"$defaultdict": [names[0], self._pairs(value, path, depth)]}
        if kind is set or kind is frozenset:
            elements = [self.plain(element, (path, ELEMENT), depth) for element in value]
            # Equal sets must be equal bytes, and their own order is another one in every process.
            elements.sort(key=None if set(map(type, elements)) == {str} else orjson.dumps)
            return {f"${kind.__name__}": elements}
        items = [self.plain(item, (path, index), depth) for index, item in enumerate(value)]
        return {"$deque": [value.maxlen, items]} if issubclass(kind, deque) else items

    def _pairs(self, value: Mapping[Any, Any], path: Path, depth: int) -> list[list[Any]]:
        return [
            [self.plain(key, (path, KEY), depth), self.plain(item, (path, key), depth)]
            for key, item in value.items()
        ]

    def _text(self, value: str, path: Path) -> str:
        self._bounds.check_text(value, path)
        return _text(value, path)


def _has_plain_keys(value: Mapping[Any, Any]) -> bool:
    return all(type(key) is str and not key.startswith("$") for key in value)


def _text(value: str, path: Path) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        _refuse(path, "holds a lone surrogate, which is not text")
    return value


def _digits(value: int, path: Path) -> str:
    if value.bit_length() > _MAX_INT_CHARS * 3:
        _refuse(path, "is an integer of too many digits, which cannot be kept")
    return str(value)


def _write_bytes(value: bytes, path: Path) -> Any:
    return {"$bytes": binascii.b2a_base64(value, newline=False).decode()}


def _write_decimal(value: Decimal, path: Path) -> Any:
    if not value.is_finite():
        _refuse(path, f"is the Decimal {str(value)[:_STEP_CHARS]}, which cannot be kept")
    return {"$decimal": str(value)}


def _write_moment(value: date | time, path: Path) -> Any:
    zone = getattr(value, "tzinfo", None)
    if zone is not None and type(zone) is not timezone:
        fixed = "value.astimezone(timezone.utc), or " if type(value) is datetime else ""
        what = f"has the time zone of {a_kind(type(zone))}, which cannot be kept"
        _refuse(path, f"{what}; write {fixed}value.isoformat()")
    text = value.isoformat()
    return {f"${type(value).__name__}": [text, 1] if getattr(value, "fold", 0) else text}


def _write_timedelta(value: timedelta, path: Path) -> Any:
    return {"$timedelta": [value.days, value.seconds, value.microseconds]}


_ATOM_WRITERS: dict[type, Callable[[Any, Path], Any]] = {
    bytes: _write_bytes,
    Decimal: _write_decimal,
    datetime: _write_moment,
    date: _write_moment,
    time: _write_moment,
    timedelta: _write_timedelta,
}
# The containers that can be kept, and the levels of JSON that each is written with.
_LEVELS: dict[type, int] = {
    dict: 1, list: 1, tuple: 1, set: 2, frozenset: 2, deque: 3, Counter: 3, defaultdict: 4,
}  # fmt: skip
_FACTORIES: dict[str, Callable[[], Any]] = {
    "int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict, "set": set,
}  # fmt: skip


def _refuse(path: Path, why: str) -> NoReturn:
    raise ValueError(f"{described(path)} {why}")


# Reading.


def decode(data: bytes) -> Any:
    """The value that `encode` wrote as `data`. Raises ValueError for bytes that it cannot have written."""
    value = orjson.loads(data)
    if b'"$' in data:
        return _restored(value, 0)
    if data.count(b"[") + data.count(b"{") > DEPTH and not _is_plain(value, _SCALARS_AND_FLOAT):
        _refuse_depth()
    return value


def _restored(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind in _SCALARS_AND_FLOAT:
        return value
    if depth == DEPTH:
        _refuse_depth()
    depth += 1
    if kind is list:
        return [item if type(item) in _SCALARS_AND_FLOAT else _restored(item, depth) for item in value]
    restored = {key: _restored(item, depth) for key, item in value.items()}
    if not any(key.startswith("$") for key in restored):
        return restored
    tag, body = next(iter(restored.items()))
    if len(restored) > 1 or tag not in _READERS:
        raise ValueError(f"a kept value has an unknown tag: {tag[:_STEP_CHARS]!r}")
    try:
        return _READERS[tag](body)
    except (ArithmeticError, LookupError, TypeError, ValueError) as err:
        raise ValueError(f"a kept value has a content that does not fit its tag {tag}") from err


def _refuse_depth() -> NoReturn:
    raise ValueError(f"a kept value is more than {DEPTH} levels deep")


def _exact(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{kind.__name__} expected")
    return value


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if type(value) is list else value


def _hashables(body: Any) -> Iterable[Any]:
    return map(_hashable, _exact(list, body))


def _items(body: Any) -> dict[Any, Any]:
    items = {}
    for pair in _exact(list, body):
        key, value = _exact(list, pair)
        items[_hashable(key)] = value
    return items


def _read_counter(body: Any) -> Counter[Any]:
    counter: Counter[Any] = Counter()
    dict.update(counter, _items(body))  # Counter's own update adds up, which not every value can
    return counter


_deque: type[deque[Any]] = deque


def read_deques_as(kind: type[deque[Any]]) -> None:
    """Make this process read deques as that class, which is kept as a deque is."""
    global _deque
    _deque = kind
    _LEVELS[kind] = _LEVELS[deque]


def _read_deque(body: Any) -> deque[Any]:
    maxlen, items = _exact(list, body)
    return _deque(_exact(list, items), None if maxlen is None else _exact(int, maxlen))


def _read_defaultdict(body: Any) -> defaultdict[Any, Any]:
    name, pairs = _exact(list, body)
    return defaultdict(_FACTORIES[_exact(str, name)], _items(pairs))


def _read_int(body: Any) -> int:
    if not re.fullmatch(r"-?[0-9]+", _exact(str, body)):
        raise ValueError("digits expected")
    return int(body)


def _read_decimal(body: Any) -> Decimal:
    value = Decimal(_exact(str, body))
    if not value.is_finite():
        raise ValueError("a finite number expected")
    return value


def _read_moment(kind: type[datetime] | type[time], body: Any) -> datetime | time:
    if type(body) is str:
        return kind.fromisoformat(body)
    text, fold = _exact(list, body)
    return kind.fromisoformat(_exact(str, text)).replace(fold=_exact(int, fold))


def _read_timedelta(body: Any) -> timedelta:
    days, seconds, microseconds = (_exact(int, part) for part in _exact(list, body))
    return timedelta(days, seconds, microseconds)


_READERS: dict[str, Callable[[Any], Any]] = {
    "$set": lambda body: set(_hashables(body)),
    "$frozenset": lambda body: frozenset(_hashables(body)),
    "$bytes": lambda body: binascii.a2b_base64(_exact(str, body), strict_mode=True),
    "$decimal": _read_decimal,
    "$datetime": lambda body: _read_moment(datetime, body),
    "$date": lambda body: date.fromisoformat(_exact(str, body)),
    "$time": lambda body: _read_moment(time, body),
    "$timedelta": _read_timedelta,
    "$counter": _read_counter,
    "$deque": _read_deque,
    "$defaultdict": _read_defaultdict,
    "$dict": _items,
    "$int": _read_int,
}


# The live mapping.

# Stands in the dict for a value that is still, or again, in its bytes.
_ENCODED: Any = object()
_ABSENT: Any = object()
# What user code cannot change in place; such a value is read any number of times without being encoded.
_IMMUTABLE = _SCALARS_AND_FLOAT

_get = dict.__getitem__  # super() costs as much as all the rest of an access
_set = dict.__setitem__


class LiveContext(dict[str, Any]):
    """`self.context`: a dict of the user's whose values are decoded when they are first read.

    The dict underneath has every key from the start, with `_ENCODED` in the place of what nobody has read,
    so that `in`, `len`, `keys` and `reversed` are dict's own.
    """

    __slots__ = ("_kept", "_touched")
    __hash__ = None

    def __init__(self, kept: Mapping[str, bytes], touched: dict[str, None]) -> None:
        """Show `kept`, and note in `touched` each key whose value may have become another one."""
        super().__init__(dict.fromkeys(kept, _ENCODED))
        self._kept = kept
        self._touched = touched

    def __getitem__(self, key: str) -> Any:
        value = _get(self, key)
        if value is _ENCODED:
            value = decode(self._kept[key])
            _set(self, key, value)
            if type(value) not in _IMMUTABLE:
                self._touched[key] = None
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        if type(key) is not str:
            raise TypeError(f"a key of the context must be a str, not {a_kind(type(key))}")
        self._touched[key] = None
        _set(self, key, value)

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self._touched[key] = None

    def __iter__(self) -> Iterator[str]:
        # Not superfluous: dict(context) and {**context} read the dict underneath where a subclass has none.
        return super().__iter__()

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        return _Values(self)

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        return _LiveItems(self)

    def get(self, key: str, default: Any = None) -> Any:
        if key not in self:
            return default
        return self[key]

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: str, *default: Any) -> Any:
        if len(default) > 1:
            raise TypeError(f"pop expected at most 2 arguments, got {1 + len(default)}")
        if default and key not in self:
            return default[0]
        value = self[key]
        del self[key]
        return value

    def popitem(self) -> tuple[str, Any]:
        for key in reversed(self):
            return key, self.pop(key)
        raise KeyError("popitem(): the context is empty")

    def update(self, /, *others: Any, **items: Any) -> None:
        for key, value in dict(*others, **items).items():
            self[key] = value

    def clear(self) -> None:
        self._touched.update(dict.fromkeys(self))
        while dict.__len__(self):  # one by one, as `facades.exact.clear` does it
            dict.popitem(self)

    def copy(self) -> dict[str, Any]:
        return dict(self)

    @classmethod
    def fromkeys(cls, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)

    def __or__(self, other: Any) -> Any:
        return dict(self) | dict(other) if isinstance(other, dict) else NotImplemented

    def __ror__(self, other: Any) -> Any:
        return dict(other) | dict(self) if isinstance(other, dict) else NotImplemented

    def __ior__(self, other: Any) -> LiveContext:  # type: ignore[override]
        self.update(other)
        return self

    def __eq__(self, other: object) -> bool:
        return dict(self) == other

    def __ne__(self, other: object) -> bool:
        return dict(self) != other

    @recursive_repr("{...}")
    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> Any:
        return dict, (dict(self),)


class _Values(ValuesView[Any]):
    """`context.values()`, as live as dict's own."""

    def __init__(self, context: LiveContext) -> None:
        super().__init__(context)
        self._context = context

    def __reversed__(self) -> Iterator[Any]:
        return (self._context[key] for key in reversed(self._context))

    def __repr__(self) -> str:
        return f"dict_values({list(self)!r})"


class _LiveItems(ItemsView[str, Any]):
    """`context.items()`, as live as dict's own."""

    def __init__(self, context: LiveContext) -> None:
        super().__init__(context)
        self._context = context

    def __reversed__(self) -> Iterator[tuple[str, Any]]:
        return ((key, self._context[key]) for key in reversed(self._context))

    def __repr__(self) -> str:
        return f"dict_items({list(self)!r})"


class Keeper:
    """The guest's handle on one LiveContext: what a run changed, and the way on or back.

    A life begins with an empty context that init() fills, then `overlay` with the committed items. From
    there on every run ends in `changes` and `keep`, or in `undo`.
    """

    __slots__ = (
        "_bounds", "_gone", "_kept", "_new", "_set_by_init", "_size", "_staged", "_staged_size",
        "_touched", "context",
    )  # fmt: skip

    def __init__(self, bounds: Bounds = UNCONFIGURED) -> None:
        self._bounds = bounds
        self._kept: dict[str, bytes] = {}  # the values before the run
        self._gone: set[str] = set()  # keys that the host holds as TOMBSTONE
        self._new: dict[str, None] = {}  # keys that init() set and the host has not been told yet
        self._set_by_init: frozenset[str] = frozenset()
        self._size = 0
        self._touched: dict[str, None] = {}
        self._staged: dict[str, bytes | None] = {}
        self._staged_size = 0
        self.context = LiveContext(self._kept, self._touched)

    def overlay(self, items: Mapping[str, bytes]) -> None:
        """Lay the committed `items` over what init() set. The rest of that is new, and so far unreported.

        Raises ValueError where init() set what cannot be kept; the keeper is of no further use then.
        """
        initial, _ = self.changes()
        self._set_by_init = frozenset(initial)
        self._new = {key: None for key in initial if key not in items}
        for key, value in chain(initial.items(), items.items()):
            if value is not None:
                self._kept[key] = value
        self._gone = {key for key, value in items.items() if value == TOMBSTONE}
        for key in self._gone:
            del self._kept[key]
        self.undo()
        self._size = sum(weight(key, value) for key, value in self.all_items().items())

    def changes(self) -> tuple[dict[str, bytes | None], int]:
        """What the host does not hold yet (None: delete), and the size in bytes of all that it then holds.

        Staged until `keep` or `undo`. Raises ValueError with the path of a value that cannot be kept; it is
        Exceeded where that is for its length or depth.
        """
        staged: dict[str, bytes | None] = {}
        size = self._size
        for key in {**self._new, **self._touched} if self._new else self._touched:
            before = TOMBSTONE if key in self._gone else self._kept.get(key)
            after = self._encoded(key)
            if after != before:
                size += weight(key, after) - weight(key, before)
            elif key not in self._new:
                continue
            staged[key] = after
        self._staged, self._staged_size = staged, size
        return staged, size

    def _encoded(self, key: str) -> bytes | None:
        value = dict.get(self.context, key, _ABSENT)
        if value is _ABSENT:
            return TOMBSTONE if key in self._set_by_init else None
        if value is _ENCODED:
            if key not in self._kept:  # taken from below the context, with dict.get(self.context, ...)
                _refuse(("context", key), "is an item that was never read: use self.context[...]")
            return self._kept[key]
        if not key.isascii():
            _text(key, ("context", KEY))
        self._bounds.check_text(key, ("context", KEY))
        if key.startswith(HEAP):
            _refuse(("context", key), f"has a name that is for self.heap, as are all that begin with {HEAP}")
        check_name(key)
        return _encode(value, ("context", key), self._bounds)

    def keep(self) -> None:
        """Make what `changes` staged the ground of the next run."""
        if self._staged:
            for key, value in self._staged.items():
                self._gone.discard(key)
                if value is not None and value != TOMBSTONE:
                    self._kept[key] = value
                    continue
                self._kept.pop(key, None)
                if value is not None:
                    self._gone.add(key)
            self._size = self._staged_size
            self._staged = {}
            self._new = {}
        for key in self._touched:
            if type(dict.get(self.context, key)) not in _IMMUTABLE:
                _set(self.context, key, _ENCODED)
        self._touched.clear()

    def undo(self) -> None:
        """Bring the context back to what it was before the run."""
        self._staged = {}
        self._touched.clear()
        dict.clear(self.context)
        dict.update(self.context, dict.fromkeys(self._kept, _ENCODED))

    def all_items(self) -> dict[str, bytes]:
        """All that the host has to hold, tombstones included, once what is staged is kept."""
        items = {**self._kept, **dict.fromkeys(self._gone, TOMBSTONE), **self._staged}
        return {key: value for key, value in items.items() if value is not None}


def check_name(name: str) -> None:
    """Raise ValueError for a name that no item of a context can have."""
    if len(name) > NAME_BYTES // 4 and len(name.encode()) > NAME_BYTES:
        size = len(name.encode())
        raise ValueError(
            f"the context has an item whose name, {name[:_STEP_CHARS]!r}…, is {size} bytes long; "
            f"a name may have {NAME_BYTES}"
        )


def weight(name: str, value: bytes | None) -> int:
    """The bytes that an item counts for in the size of its context."""
    return 0 if value is None else len(name if name.isascii() else name.encode()) + len(value)
