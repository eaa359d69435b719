"""`copy` and `deepcopy` of a Runnable, for the types that were reviewed.

The standard library's copies by calling what an object's class names as its maker, and a method's class names
`getattr`: with a memo of the user's, or a method whose function has a name of the user's choice, that reads
any attribute of any object. Here a type is copied in the way that is written down for it, or not at all.
"""

from __future__ import annotations

import collections
import copyreg
import datetime
import decimal
import enum
import fractions
import re
import types
import uuid
from collections.abc import Callable
from typing import Any, NoReturn

from processor.sandbox.facades import exact
from processor.sandbox.facades.decimals import Context
from processor.sandbox.facades.guards import is_user_class

# What a copy of is the thing itself; their subclasses that are the host's, too.
_SAME: tuple[type, ...] = (
    type, enum.Enum, types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType,
    types.GenericAlias, types.UnionType, property, range, slice, type(None), type(...), type(NotImplemented),
    int, float, complex, str, bytes, re.Pattern, re.Match, decimal.Decimal, fractions.Fraction, uuid.UUID,
    datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo,
)  # fmt: skip
# The same for exactly these types, known at once and kept in no memo: most of what a document holds.
_ATOMS = frozenset((*_SAME, bool))
# What copies itself as its type says, with no word of the user's in it.
_MADE_BY_COPY = frozenset((
    exact.bytearray, Context, list, dict, set, exact.deque, collections.Counter,
    exact.OrderedDict, collections.defaultdict, collections.ChainMap,
))  # fmt: skip

_Copy = Callable[[Any], Any]


def share(kind: type) -> None:
    """Make the copy of a `kind`, a class of ours, the object itself."""
    global _SAME
    _SAME += (kind,)


def copied(ob: Any) -> Any:
    """A copy of `ob` that holds the same things."""
    if type(ob) in (tuple, frozenset):
        return ob
    if type(ob) in _MADE_BY_COPY:
        return ob.copy()
    return _made(ob, _itself, {})


def _itself(item: Any) -> Any:
    return item


def deepcopied(ob: Any, memo: Any = None) -> Any:
    """A copy of `ob` and of all that it holds; what it holds twice is copied once."""
    return _deep(ob, memo._done if type(memo) is _Memo else {})


class _Memo:
    """What a `__deepcopy__` of the user's is given: it may say what the copy of an id is, and pass it on."""

    __slots__ = ("_done",)

    def __init__(self, done: dict[int, Any]) -> None:
        self._done = done

    def __setitem__(self, key: int, made: Any) -> None:
        self._done[key] = made, None

    def __getitem__(self, key: int) -> Any:
        return self._done[key][0]

    def __contains__(self, key: int) -> bool:
        return key in self._done

    def get(self, key: int, default: Any = None) -> Any:
        return self._done.get(key, (default,))[0]


def _deep(ob: Any, done: dict[int, Any]) -> Any:
    if id(ob) in done:
        return done[id(ob)][0]
    if type(ob) in _ATOMS:
        return ob
    made = _made(ob, lambda item: _deep(item, done), done)
    done[id(ob)] = made, ob  # with `ob`, so that nothing else gets its id meanwhile
    return made


def _made(ob: Any, each: _Copy, done: dict[int, Any]) -> Any:
    kind = type(ob)
    if is_user_class(kind):
        own = getattr(kind, "__copy__" if each is _itself else "__deepcopy__", None)
        if own is not None:
            return own(ob) if each is _itself else own(ob, _Memo(done))
        return ob if issubclass(kind, enum.Enum) else _instance(ob, each, done)
    if kind in _CONTAINERS:
        return _CONTAINERS[kind](ob, each, done)
    if isinstance(ob, _SAME):
        return ob
    if kind in _MADE_BY_COPY:
        return ob.copy()
    if isinstance(ob, BaseException):
        return _exception(ob, each)
    if isinstance(ob, tuple):  # a named tuple of the standard library
        return tuple.__new__(kind, map(each, ob))
    if isinstance(ob, dict):  # a mapping of ours
        return {each(key): each(value) for key, value in ob.items()}
    return _refuse(kind)


def _refuse(kind: type) -> NoReturn:
    raise TypeError(f"a {kind.__name__!r} object cannot be copied in a Runnable")


def _begun(ob: Any, made: Any, done: dict[int, Any]) -> Any:
    """`made`, known as the copy of `ob` before it is filled, for what refers back to it."""
    done[id(ob)] = made, ob
    return made


def _sequence(ob: Any, each: _Copy, done: dict[int, Any]) -> Any:
    made = _begun(ob, type(ob)(), done)
    made.extend(map(each, ob))
    return made


def _deque(ob: Any, each: _Copy, done: dict[int, Any]) -> Any:
    made = _begun(ob, exact.deque(maxlen=ob.maxlen), done)
    made.extend(map(each, ob))
    return made


def _mapping(ob: Any, each: _Copy, done: dict[int, Any]) -> Any:
    made = _begun(ob, type(ob)(), done)
    for key, value in ob.items():
        made[each(key)] = each(value)
    return made


def _defaultdict(ob: Any, each: _Copy, done: dict[int, Any]) -> Any:
    made = _begun(ob, collections.defaultdict(ob.default_factory), done)
    for key, value in ob.items():
        made[each(key)] = each(value)
    return made


def _chain(ob: Any, each: _Copy, done: dict[int, Any]) -> Any:
    made = _begun(ob, collections.ChainMap(), done)
    made.maps = list(map(each, ob.maps))
    return made


def _collection(ob: Any, each: _Copy, done: dict[int, Any]) -> Any:
    return type(ob)(map(each, ob))


def _names(ob: Any, each: _Copy, done: dict[int, Any]) -> Any:
    made = _begun(ob, types.SimpleNamespace(), done)
    for name, value in vars(ob).items():
        vars(made)[name] = each(value)
    return made


_CONTAINERS: dict[type, Callable[[Any, _Copy, dict[int, Any]], Any]] = {
    list: _sequence,
    exact.deque: _deque,
    dict: _mapping,
    collections.Counter: _mapping,
    exact.OrderedDict: _mapping,
    collections.defaultdict: _defaultdict,
    collections.ChainMap: _chain,
    tuple: _collection,
    set: _collection,
    frozenset: _collection,
    types.SimpleNamespace: _names,
}


def _exception(ob: BaseException, each: _Copy) -> BaseException:
    made = type(ob).__new__(type(ob), *map(each, ob.args))
    vars(made).update({name: each(value) for name, value in vars(ob).items()})
    return made


def _instance(ob: Any, each: _Copy, done: dict[int, Any]) -> Any:
    """A copy of an instance of a user's class, which can define none of the methods that decide here."""
    make, arguments, state, items, pairs = (*ob.__reduce_ex__(4), None, None, None)[:5]
    if make not in (copyreg.__newobj__, type(ob)):  # type: ignore[attr-defined]
        _refuse(type(ob))
    if make is type(ob):
        made = make(*map(each, arguments))
    else:
        cls, *rest = arguments
        made = cls.__new__(cls, *map(each, rest))
    _begun(ob, made, done)
    values, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    if values:
        vars(made).update({name: each(value) for name, value in values.items()})
    for name, value in (slots or {}).items():
        object.__setattr__(made, name, each(value))
    for item in items or ():
        made.append(each(item))
    for key, value in pairs or ():
        made[each(key)] = each(value)
    return made
