"""Services in small: repositories, validation, caches, decorators of classes."""
import json
import re
from collections import defaultdict
from dataclasses import dataclass, field, fields, asdict
from datetime import date, datetime, timedelta, timezone
from enum import Enum, IntEnum
from functools import partial, reduce, wraps
from typing import Any, Callable, Dict, List, Optional, Protocol, TypedDict, Union
import logging
import typing as t
import uuid

logger = logging.getLogger(__name__)
logger.setLevel(logging.DEBUG)
handler = logging.StreamHandler()
handler.setFormatter(logging.Formatter("%(message)s"))
logger.addHandler(handler)


class HTTPStatus(IntEnum):
    OK = 200
    NOT_FOUND = 404
    def describe(self): return self.name.replace("_", " ").title()


class Category(str, Enum):
    label: str
    FOOD = "food", "Food & drink"
    TOYS = "toys", "Toys"
    def __new__(cls, value, label):
        obj = str.__new__(cls, value)
        obj._value_ = value
        obj.label = label
        return obj


def check_enums():
    return [HTTPStatus(404).describe(), HTTPStatus.OK == 200, json.dumps({"s": HTTPStatus.OK, "c": Category.FOOD}), Category("toys").label, Category.FOOD.label, "food" in Category._value2member_map_, [c.value for c in Category], {c.name: c.value for c in HTTPStatus}, Category.FOOD == "food", f"{HTTPStatus.OK:d}", HTTPStatus.__members__["OK"], list(Category._member_map_)]


class Repository(Protocol):
    def get(self, key: str) -> Optional[dict]: ...
    def put(self, key: str, value: dict) -> None: ...


class MemoryRepository:
    def __init__(self): self._rows: Dict[str, dict] = {}
    def get(self, key): return self._rows.get(key)
    def put(self, key, value): self._rows[key] = value


class Service:
    def __init__(self, repo: Repository, clock: Callable[[], datetime] = lambda: datetime(2024, 1, 1)):
        self.repo, self.clock = repo, clock
    def touch(self, key: str, **changes: Any) -> dict:
        row = self.repo.get(key) or {"id": key, "version": 0}
        row = {**row, **changes, "version": row["version"] + 1, "at": self.clock().isoformat()}
        self.repo.put(key, row)
        return row


def check_service():
    s = Service(MemoryRepository())
    s.touch("a", x=1)
    return s.touch("a", y=2)


@dataclass
class Base:
    id: str
    created: datetime = datetime(2024, 1, 1)


@dataclass
class Item(Base):
    price: float = 0.0
    tags: List[str] = field(default_factory=list)
    def __post_init__(self):
        if self.price < 0: raise ValueError("price must not be negative")
        self.tags = [t.lower() for t in self.tags]


@dataclass(frozen=True, order=True, slots=True)
class Point:
    x: float = 0.0
    y: float = 0.0
    def __add__(self, o): return Point(self.x + o.x, self.y + o.y)


@dataclass
class Tree:
    value: int
    left: Optional["Tree"] = None
    right: Optional["Tree"] = None
    def insert(self, v):
        side = "left" if v < self.value else "right"
        child = getattr(self, side)
        if child is None: setattr(self, side, Tree(v))
        else: child.insert(v)
        return self
    def __iter__(self):
        if self.left: yield from self.left
        yield self.value
        if self.right: yield from self.right


def check_dataclasses():
    out = [repr(Item("a", price=2, tags=["X"])), asdict(Item("b", tags=["Y"]))["tags"], Point(1, 2) + Point(3), sorted([Point(2), Point(1, 5)]), list(Tree(5).insert(3).insert(8).insert(4)), {Point(1, 2): 1}[Point(1.0, 2)]]
    for make in (lambda: Item("a", price=-1), lambda: Item(), lambda: Item("a", nope=1), lambda: Point(1, 2, 3)):
        try: make()
        except (ValueError, TypeError) as err: out.append(type(err).__name__)
    try: Point().x = 3
    except AttributeError as err: out.append(str(err))
    return [str(o) for o in out]


def check_missing_argument_text():
    try: Base()
    except TypeError as err: first = str(err)
    try: Base("a", 1, 2, 3)
    except TypeError as err: second = str(err)
    return [first, second]


class Temperature:
    class Unit(Enum):
        C = "c"
        F = "f"
    def __init__(self, v, unit=Unit.C): self.v, self.unit = v, unit
    def to(self, unit):
        match (self.unit, unit):
            case (a, b) if a is b: v = self.v
            case (Temperature.Unit.C, Temperature.Unit.F): v = self.v * 9 / 5 + 32
            case (Temperature.Unit.F, Temperature.Unit.C): v = (self.v - 32) * 5 / 9
        return Temperature(v, unit)


def check_units(): return [Temperature(100).to(Temperature.Unit.F).v, Temperature(1).to(Temperature.Unit.C).v]


def validate(**types):
    def decorate(f):
        @wraps(f)
        def wrapper(*args, **kwargs):
            for name, kind in types.items():
                if name in kwargs and not isinstance(kwargs[name], kind):
                    raise TypeError(f"{f.__name__}(): {name} must be {kind.__name__}, not {type(kwargs[name]).__name__}")
            return f(*args, **kwargs)
        return wrapper
    return decorate


@validate(n=int)
def repeat(s, *, n=1): return s * n


def check_validate():
    try: repeat("a", n="b")
    except TypeError as e: return [str(e), repeat("a", n=2)]


def auto_repr(cls):
    def __repr__(self):
        return f"{cls.__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"
    cls.__repr__ = __repr__
    return cls


@auto_repr
class User:
    def __init__(self, name): self.name, self._x = name, 1


def singleton(cls):
    instances = {}
    @wraps(cls)
    def get(*a, **k):
        if cls not in instances: instances[cls] = cls(*a, **k)
        return instances[cls]
    return get


@singleton
class Config:
    def __init__(self): self.n = 1


def check_class_decorators(): return [repr(User("a")), Config() is Config(), Config.__name__]


class Chain:
    def __init__(self, items): self._items = items
    def where(self, f): return Chain(i for i in self._items if f(i))
    def select(self, f): return Chain(map(f, self._items))
    def group(self, f):
        out = defaultdict(list)
        for i in self._items: out[f(i)].append(i)
        return dict(out)
    def __iter__(self): return iter(self._items)
    def __or__(self, f): return f(self)


def check_chain(): return [Chain(range(6)).where(lambda x: x % 2).select(lambda x: x * x) | list, Chain(["aa", "b"]).group(len)]


def check_ttl_cache():
    class TTL:
        def __init__(self, ttl, now): self.ttl, self.now, self.d = ttl, now, {}
        def __setitem__(self, k, v): self.d[k] = (v, self.now() + self.ttl)
        def __getitem__(self, k):
            v, until = self.d[k]
            if self.now() >= until:
                del self.d[k]
                raise KeyError(k)
            return v
        def get(self, k, default=None):
            try: return self[k]
            except KeyError: return default
    clock = [0]
    c = TTL(5, lambda: clock[0])
    c["a"] = 1
    first = c.get("a"); clock[0] = 6
    return [first, c.get("a"), c.d]


def check_uuid_ids():
    ns = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
    return [uuid.uuid5(ns, "python.org").hex, str(uuid.uuid5(uuid.NAMESPACE_DNS, "python.org")), isinstance(uuid.uuid4().hex, str), uuid.UUID(int=5).fields[0], uuid.uuid4() != uuid.uuid4(), len(str(uuid.uuid1())) if 0 else 36]


def check_merge():
    def deep(a, b):
        return {k: deep(a[k], b[k]) if isinstance(a.get(k), dict) and isinstance(b.get(k), dict) else b.get(k, a.get(k)) for k in sorted(a.keys() | b.keys())}
    return sorted(deep({"a": {"x": 1}, "b": 1}, {"a": {"y": 2}, "c": 3}).items())


def check_t_alias():
    Row = t.Dict[str, t.Any]
    def f(r: Row, xs: t.Sequence[int] = ()) -> t.Iterator[int]:
        yield from xs
    return [list(f({}, [1])), t.TYPE_CHECKING, isinstance({}, t.Mapping), t.cast("int", 3)]


def check_raise_class():
    try: raise KeyError
    except LookupError as e: a = [type(e).__name__, e.args]
    class E(Exception):
        """Doc."""
        def __str__(self): return f"E:{self.args}"
    try: raise E(1, 2)
    except E as e: b = [str(e), repr(e), E.__doc__, e.args]
    try:
        try: raise E("a")
        finally: c = "cleanup"
    except E: pass
    return [a, b, c]


def check_nonlocal_generator():
    def counter():
        n = 0
        def inc():
            nonlocal n
            n += 1
            return n
        return inc, lambda: n
    inc, get = counter()
    inc(); inc()
    return get()


class Runnable:
    def process(self, queries):
        return [
            check_enums(),
            check_service(),
            check_dataclasses(),
            check_missing_argument_text(),
            check_units(),
            check_validate(),
            check_class_decorators(),
            check_chain(),
            check_ttl_cache(),
            check_uuid_ids(),
            check_merge(),
            check_t_alias(),
            check_raise_class(),
            check_nonlocal_generator(),
        ]
