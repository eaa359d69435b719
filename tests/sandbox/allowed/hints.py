"""What is imported from typing, and used."""
from __future__ import annotations

import typing
import typing as t
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING, Annotated, Any, Callable, ClassVar, DefaultDict, Deque, Dict, Final, FrozenSet, Generator, Generic, Iterable, Iterator, List, Literal, Mapping, NamedTuple, NewType, NoReturn, Optional, ParamSpec, Sequence, Set, Tuple, Type, TypedDict, TypeVar, Union, cast, overload, assert_never, final, no_type_check, Self, Required, NotRequired, TypeAlias, Never, Concatenate, Counter as CounterT,
)

if TYPE_CHECKING:
    from decimal import Decimal

T = TypeVar("T", bound="Comparable")
K = TypeVar("K", int, str, covariant=False)
P = ParamSpec("P")
UserId = NewType("UserId", int)
Json: TypeAlias = Union[Dict[str, "Json"], List["Json"], str, None]
Handler = Callable[[Dict[str, Any]], Optional[str]]
Number = Union[int, float]
MAX: Final = 10
LIMIT: Final[int] = 20


class Movie(TypedDict, total=False):
    title: Required[str]
    year: NotRequired[int]


class Big(Movie):
    cast: List[str]


Options = TypedDict("Options", {"a": int, "b-c": str}, total=False)


class Employee(NamedTuple):
    name: str
    id: int = 3
    tags: Tuple[str, ...] = ()

    def label(self) -> str:
        return f"{self.name}#{self.id}"


Coordinate = NamedTuple("Coordinate", [("x", int), ("y", int)])


def check_typed_dicts():
    m: Movie = {"title": "x"}
    b = Big(title="t", year=1, cast=["a"])
    o: Options = {"a": 1}
    return [m, b, Movie(title="y"), o, isinstance(b, dict), UserId(3) + 1, Options(a=2)]


def check_named():
    e = Employee("ann")
    c = Coordinate(1, y=2)
    name, number, tags = e
    return [e.label(), e._replace(id=9), e._asdict(), name, number, tags, e == ("ann", 3, ()), Employee._fields, Employee._make(["z", 1, ()]), c.x + c.y, repr(e), Employee._field_defaults, e[0], len(e), isinstance(e, tuple), hash(e) == hash(("ann", 3, ()))]


@overload
def double(x: int) -> int: ...
@overload
def double(x: str) -> str: ...
def double(x):
    return x * 2


def first(items: Sequence[T], default: T | None = None) -> T | None:
    return items[0] if items else default


def timed(f: Callable[P, T]) -> Callable[P, T]:
    def inner(*args: P.args, **kwargs: P.kwargs) -> T:
        return f(*args, **kwargs)
    return inner


@final
class Leaf:
    children: ClassVar[List[Any]] = []
    def me(self) -> Self: return self


@timed
def add(a: int, b: int = 1) -> int:
    total: int = a + b
    unset: int
    x: Dict[str, List[int]] = {}
    x["k"]: List[int] = [total]
    return total


def kind(x: int | str | None) -> Literal["int", "str", "none"]:
    if isinstance(x, int | str):
        return "int" if isinstance(x, int) else "str"
    if x is None:
        return "none"
    assert_never(x)


def produce() -> Generator[int, str, bool]:
    got = yield 1
    return got == "x"


def check_functions():
    value = cast("list[int]", [1])
    other = cast(List[int], value)
    alias = list[int] | None
    return [double(2), double("a"), first([], 3), first([9]), add(1), add(1, b=5), kind(1), kind("s"), kind(None), other, Leaf().me().children, MAX + LIMIT, isinstance(3, (int, str)), typing.cast(int, "x"), isinstance([], t.List), isinstance({}, Mapping), isinstance({}, typing.Dict)]


def check_union():
    return [isinstance(1, int | None), isinstance(None, int | None), isinstance("x", int | float), issubclass(bool, int | str)]


def check_new_type():
    UserName = NewType("UserName", str)
    return [UserName("x").upper(), UserId(5)]


def check_get_args():
    return [t.Optional[int] is not None, Annotated[int, "m"] is not None]


class Runnable:
    def process(self, queries):
        return [
            check_typed_dicts(),
            check_named(),
            check_functions(),
            check_union(),
            check_new_type(),
            check_get_args(),
        ]
