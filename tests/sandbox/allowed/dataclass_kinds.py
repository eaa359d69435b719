"""Data classes with all their options."""
import copy
import dataclasses
import json
from dataclasses import KW_ONLY, InitVar, asdict, astuple, dataclass, field, fields, is_dataclass, make_dataclass, replace
from datetime import date
from functools import cached_property
from typing import ClassVar, Optional


@dataclass(order=True)
class Version:
    major: int
    minor: int = 0
    label: str = field(default="", compare=False)

    @classmethod
    def parse(cls, text): return cls(*map(int, text.split(".")))
    def __str__(self): return f"{self.major}.{self.minor}"


@dataclass(frozen=True)
class Key:
    region: str
    id: int

    def with_id(self, id): return replace(self, id=id)


@dataclass(slots=True, kw_only=True)
class Slotted:
    a: int
    b: list = field(default_factory=list)


@dataclass
class Mixed:
    x: int
    _: KW_ONLY
    y: int = 2
    z: int


@dataclass
class Person:
    name: str
    born: date
    tags: set[str] = field(default_factory=set)
    nick: Optional[str] = None
    full: str = field(init=False)
    secret: str = field(default="s", repr=False)
    meta: dict = field(default_factory=dict, metadata={"unit": "none"})
    count: ClassVar[int] = 0

    def __post_init__(self):
        self.full = f"{self.name} ({self.nick or '-'})"

    @property
    def year(self): return self.born.year


@dataclass
class Employee(Person):
    salary: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        self.full += "*"


@dataclass
class Account:
    owner: str
    opening: InitVar[int] = 0
    balance: int = field(init=False, default=0)

    def __post_init__(self, opening):
        self.balance = opening * 100


@dataclass(frozen=True, order=True)
class Frozen:
    x: float
    size: float = field(init=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "size", self.x * 2)


@dataclass
class Node:
    value: int
    children: list["Node"] = field(default_factory=list)

    def walk(self):
        yield self.value
        for child in self.children:
            yield from child.walk()


@dataclass(eq=False)
class Identity:
    n: int


@dataclass(unsafe_hash=True)
class Hashed:
    n: int


@dataclass(repr=False)
class Own:
    n: int
    def __repr__(self): return "own"
    def __eq__(self, other): return "eq"


def check_versions():
    vs = [Version.parse(t) for t in ("1.10", "1.2", "0.9")]
    return [list(map(str, sorted(vs))), max(vs).minor, Version(1, 2, "a") == Version(1, 2, "b"), repr(Version(1)), Version(1) < Version(2), astuple(vs[0])]


def check_frozen():
    key = Key("eu", 1)
    try:
        key.id = 3
    except dataclasses.FrozenInstanceError as err:
        failed = str(err)
    try:
        del key.id
    except AttributeError as err:
        failed2 = str(err)
    return [{key: "v"}[Key("eu", 1)], key.with_id(2), failed, failed2, hash(key) == hash(Key("eu", 1)), len({key, Key("eu", 1)}), Frozen(2).size, Frozen(1) < Frozen(2)] and [str(key.with_id(2)), failed, failed2, Frozen(2).size]


def check_forms():
    s = Slotted(a=1)
    s.b.append(2)
    m = Mixed(1, z=3)
    bad = []
    for make in (lambda: Slotted(1), lambda: Mixed(1, 2, 3), lambda: Mixed(1), lambda: setattr(s, "q", 1), lambda: Key("eu")):
        try:
            make()
        except (TypeError, AttributeError) as err:
            bad.append(type(err).__name__)
    return [repr(s), repr(m), bad, Slotted(a=1).b]


def check_person():
    p = Person("Ann", date(1990, 5, 1), {"x"}, nick="A")
    e = Employee("Bob", date(1980, 1, 1), salary=10.0)
    return [p.full, p.year, repr(e), e.full, [f.name for f in fields(Employee)], fields(Person)[6].metadata["unit"], is_dataclass(p), is_dataclass(Person), is_dataclass(3), Person.count, e == Employee("Bob", date(1980, 1, 1), salary=10.0), json.dumps(asdict(e), default=str), p.tags is not Person("x", date.today()).tags]


def check_init_var():
    return [Account("a", 5).balance, Account("a").balance, repr(Account("a", opening=2)), replace(Account("a", 1), owner="b", opening=4).balance]


def check_tree():
    tree = Node(1, [Node(2, [Node(3)]), Node(4)])
    twin = copy.deepcopy(tree)
    twin.children[0].value = 9
    return [list(tree.walk()), list(twin.walk()), asdict(tree), tree == copy.copy(tree), tree != twin, repr(Node(1))]


def check_equality():
    try:
        hash(Node(1))
    except TypeError:
        unhashable = True
    return [Identity(1) == Identity(1), hash(Hashed(1)) == hash(Hashed(1)), repr(Own(1)), Own(1) == 3, unhashable, Version(1) == 1, Version(1).__eq__(1) is NotImplemented]


def check_made():
    Point = make_dataclass("Point", ["x", ("y", int), ("z", int, field(default=3))])
    return [repr(Point(1, 2)), Point(1, 2) == Point(1, 2, 3)]


def check_match():
    match Version(1, 2):
        case Version(1, minor):
            return minor


def check_defaults():
    try:
        @dataclass
        class Bad:
            items: list = []
    except ValueError as err:
        first = "mutable default" in str(err)
    try:
        @dataclass
        class Order:
            a: int = 1
            b: int
    except TypeError as err:
        second = 'follows default argument' in str(err)
    return [first, second]


@dataclass
class Cart:
    items: list[float] = field(default_factory=lambda: [1.0])
    @cached_property
    def total(self): return sum(self.items)
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)


def check_methods():
    cart = Cart([1, 2])
    return [cart.total, len(cart), list(cart), Cart().items, dataclasses.asdict(cart, dict_factory=lambda pairs: sorted(pairs)), dataclasses.MISSING is fields(Cart)[0].default, fields(cart)[0].type is not None]


class Runnable:
    def process(self, queries):
        return [
            check_versions(),
            check_frozen(),
            check_forms(),
            check_person(),
            check_init_var(),
            check_tree(),
            check_equality(),
            check_made(),
            check_match(),
            check_defaults(),
            check_methods(),
        ]
