"""`typing` for a Runnable. The dialect drops annotations, so that most hints only have to exist.

What a hint does when it is not an annotation is here: it is derived from, asked with isinstance(), or called.
"""

from __future__ import annotations

import abc
import collections
import collections.abc
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from processor.sandbox.facades import exact
from processor.sandbox.facades.guards import (
    CLASS_NAMES,
    FIELDS,
    bless,
    has,
    is_dunder,
    is_user_class,
    unmangled,
    words,
)
from processor.sandbox.facades.records import NamedTupleBase, namedtuple


class Hint:
    """A name of typing; it stands for `_bases` in a class, also where it is subscripted."""

    __slots__ = ("_bases", "_hint")

    @property
    def name(self) -> str:
        """What typing calls it."""
        return self._hint

    def __init__(self, hint: str, *bases: type) -> None:
        self._hint = hint
        self._bases = bases

    def __getitem__(self, arguments: object) -> Hint:
        return Subscribed(self, arguments if type(arguments) is tuple else (arguments,))

    def __or__(self, other: object) -> Hint:
        return Subscribed(Hint("Union"), (self, other))

    def __ror__(self, other: object) -> Hint:
        return Subscribed(Hint("Union"), (other, self))

    def __call__(self, *args: Any, **_: Any) -> Any:
        return self

    def __mro_entries__(self, _: tuple[type, ...]) -> tuple[type, ...]:
        return self._bases

    def __instancecheck__(self, ob: object) -> bool:
        return isinstance(ob, self._runtime())

    def __subclasscheck__(self, cls: type) -> bool:
        return issubclass(cls, self._runtime())

    def _runtime(self) -> tuple[type, ...]:
        if not self._bases:
            raise TypeError(f"typing.{self._hint} cannot be used with isinstance()")
        return self._bases

    def __repr__(self) -> str:
        return f"typing.{self._hint}"


class Subscribed(Hint):
    """A name of typing with what it is subscripted with, which models look at."""

    __slots__ = ("arguments",)

    def __init__(self, hint: Hint, arguments: tuple[Any, ...]) -> None:
        super().__init__(hint._hint, *hint._bases)
        self.arguments = arguments


ANY = Hint("Any")


class _Called(Hint):
    """A hint that makes something when it is called."""

    __slots__ = ("_make",)

    def __init__(self, hint: str, base: type, make: Callable[..., Any]) -> None:
        super().__init__(hint, base)
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._make(*args, **kwargs)


def _named_tuple(name: Any, fields: Any = (), /) -> type:
    return namedtuple(name, [field for field, _ in fields])


def _typed_dict(name: Any, fields: Any = None, /, *, total: bool = True) -> type:
    return dict


class _Generic:
    """Stands for Generic among the bases of a class: what it is subscripted with changes nothing."""

    def __class_getitem__(cls, _: object) -> type:
        return cls


_RUNTIME_CHECKABLE = "~runtime"
_PROTOCOL = "~protocol"


class _ProtocolMeta(abc.ABCMeta):
    """The class of protocols: what has the members of one is an instance of it."""

    def __init__(cls, name: str, bases: tuple[type, ...], space: Mapping[str, Any], **options: Any) -> None:
        super().__init__(name, bases, dict(space))
        if any(base is Protocol for base in bases):
            names = {field for field, *_ in space.get(FIELDS, ())}
            names |= {unmangled(key) for key in space if not is_dunder(key) and key[0] != "~"}
            names |= {key for key, value in space.items() if is_dunder(key) and key not in _OF_ANY_CLASS}
            for base in bases:
                names |= getattr(base, _PROTOCOL, frozenset())
            type.__setattr__(cls, _PROTOCOL, frozenset(names))

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if _PROTOCOL in cls.__dict__:
            raise TypeError("Protocols cannot be instantiated")
        return super().__call__(*args, **kwargs)

    def __instancecheck__(cls, ob: Any) -> bool:
        if super().__instancecheck__(ob):
            return True
        names = cls.__dict__.get(_PROTOCOL)
        if names is None:
            return False
        if _RUNTIME_CHECKABLE not in cls.__dict__:
            raise TypeError("Instance and class checks can only be used with @runtime_checkable protocols")
        return all(has(ob, name) for name in names)


_OF_ANY_CLASS = CLASS_NAMES | {"__init__", "__dict__", "__weakref__", "__abstractmethods__"}
Protocol: Any = None
Protocol = _ProtocolMeta("Protocol", (_Generic,), {})


def _runtime_checkable(cls: Any) -> Any:
    if not (is_user_class(cls) and _PROTOCOL in cls.__dict__):
        raise TypeError("@runtime_checkable can be only applied to protocol classes")
    type.__setattr__(cls, _RUNTIME_CHECKABLE, True)
    return cls


def _assert_never(value: Any) -> NoReturn:
    raise AssertionError(f"Expected code to be unreachable, but got: {value!r}")


# What collections.abc has here; typing has the same, but for a Set that is the class.
ABSTRACT: dict[str, type] = {
    name: getattr(collections.abc, name)
    for name in words(
        "Callable Collection Container Generator Hashable ItemsView Iterable Iterator KeysView Mapping "
        "MappingView MutableMapping MutableSequence MutableSet Reversible Sequence Set Sized ValuesView"
    )
}
# What waits by itself here, and is the plain one therefore.
ASYNC = {
    "AsyncGenerator": Hint("AsyncGenerator", collections.abc.Generator),
    "AsyncIterable": Hint("AsyncIterable", collections.abc.Iterable),
    "AsyncIterator": Hint("AsyncIterator", collections.abc.Iterator),
    "Awaitable": Hint("Awaitable"),
    "Coroutine": Hint("Coroutine"),
}
_CONCRETE: dict[str, type] = {
    "List": list, "Dict": dict, "Set": set, "FrozenSet": frozenset, "Tuple": tuple, "Text": str,
    "DefaultDict": collections.defaultdict, "OrderedDict": exact.OrderedDict,
    "Counter": collections.Counter, "Deque": exact.deque, "ChainMap": collections.ChainMap,
    "AbstractSet": collections.abc.Set, "Pattern": re.Pattern, "Match": re.Match,
}  # fmt: skip
_INERT = (
    "Annotated AnyStr AsyncContextManager BinaryIO ClassVar Concatenate Final "
    "ForwardRef IO Literal LiteralString Never NoReturn NotRequired Optional ParamSpec ReadOnly Required "
    "Self SupportsAbs SupportsBytes SupportsFloat SupportsIndex SupportsInt SupportsRound TextIO Type "
    "TypeAlias TypeAliasType TypeGuard TypeIs TypeVar TypeVarTuple Union Unpack"
)


def typing_names() -> dict[str, Any]:
    def same(ob: Any) -> Any:
        return ob

    names: dict[str, Any] = {name: Hint(name) for name in words(_INERT)}
    names |= {name: Hint(name, kind) for name, kind in (ABSTRACT | _CONCRETE).items()}
    names |= dict.fromkeys(("overload", "final", "override", "no_type_check", "reveal_type"), same)
    return (
        names
        | ASYNC
        | {
            "Any": ANY,
            "Generic": Hint("Generic", _Generic),
            "Protocol": Hint("Protocol", Protocol),
            "NamedTuple": _Called("NamedTuple", NamedTupleBase, _named_tuple),
            "TypedDict": _Called("TypedDict", dict, _typed_dict),
            "NewType": lambda name, kind: lambda value: value,
            "cast": lambda kind, value: value,
            "assert_type": lambda value, kind: value,
            "assert_never": _assert_never,
            "dataclass_transform": lambda **_: same,
            "runtime_checkable": _runtime_checkable,
            "TYPE_CHECKING": False,
        }
    )


bless(_Generic)
bless(Protocol)
