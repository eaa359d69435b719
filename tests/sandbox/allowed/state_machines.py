"""Enums, and machines built on them."""
import enum
from dataclasses import dataclass, field
from enum import Enum, Flag, IntEnum, IntFlag, StrEnum, auto, unique
from typing import ClassVar


@unique
class State(Enum):
    NEW = "new"
    PAID = "paid"
    SHIPPED = "shipped"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (State.SHIPPED, State.CANCELLED)

    @classmethod
    def parse(cls, text: str) -> "State":
        return cls(text.strip().lower())

    def __str__(self):
        return self.value.title()


TRANSITIONS = {
    State.NEW: {"pay": State.PAID, "cancel": State.CANCELLED},
    State.PAID: {"ship": State.SHIPPED},
}


class IllegalTransition(Exception):
    def __init__(self, state, event):
        super().__init__(f"{event!r} in {state.name}")
        self.state, self.event = state, event


@dataclass
class Order:
    id: str
    state: State = State.NEW
    history: list[str] = field(default_factory=list)
    count: ClassVar[int] = 0

    def __post_init__(self):
        Order.count += 1

    def fire(self, event: str) -> "Order":
        try:
            target = TRANSITIONS[self.state][event]
        except KeyError:
            raise IllegalTransition(self.state, event) from None
        self.history.append(f"{self.state.name}->{target.name}")
        self.state = target
        return self


def check_machine():
    order = Order("1").fire("pay").fire("ship")
    try:
        order.fire("cancel")
    except IllegalTransition as err:
        failed = [str(err), err.state is State.SHIPPED, err.event, err.args]
    return [order.history, order.state.is_final, failed, str(order.state), f"{order.state}", repr(order), Order.count]


class Level(IntEnum):
    LOW = 1
    MID = 5
    HIGH = 10


class Color(StrEnum):
    RED = auto()
    GREEN = auto()


class Permission(Flag):
    READ = auto()
    WRITE = auto()
    RUN = auto()
    ALL = READ | WRITE | RUN


class Planet(Enum):
    EARTH = (5.97e24, 6.37e6)
    MARS = (6.42e23, 3.39e6)

    def __init__(self, mass, radius):
        self.mass = mass
        self.radius = radius

    @property
    def gravity(self):
        return round(6.67e-11 * self.mass / self.radius**2, 2)


class Status(str, Enum):
    OK = "ok"
    BAD = "bad"

    @classmethod
    def _missing_(cls, value):
        return cls.BAD if isinstance(value, str) else None


class Auto(Enum):
    def _generate_next_value_(name, start, count, last_values):
        return name.lower()

    FIRST = auto()
    SECOND = auto()


class Shape(Enum):
    SQUARE = 2
    DIAMOND = 1
    ALIAS_FOR_SQUARE = 2


def check_kinds():
    return [
        [m.name for m in State], State("paid").name, State["NEW"].value, State.parse(" PAID "), len(State), State.NEW == State.NEW, State.NEW is State("new"),
        Level.HIGH > Level.LOW, Level.MID + 1, sorted(Level, reverse=True), max(Level), int(Level.LOW), isinstance(Level.LOW, int), Level(5).name, f"{Level.LOW}", f"{Level.LOW!r}",
        Color.RED, Color("green").name, Color.RED == "red", f"{Color.RED}", Color.RED.upper(), [c for c in Color],
    ]


def check_flags():
    both = Permission.READ | Permission.WRITE
    return [Permission.READ in both, Permission.RUN in both, both.value, bool(both & Permission.RUN), both ^ Permission.ALL == Permission.RUN, ~Permission.READ & Permission.ALL == Permission.WRITE | Permission.RUN, str(Permission.READ), both == Permission(3), [p.name for p in Permission]]


class Mode(IntFlag):
    R = 4
    W = 2
    X = 1


def check_members():
    return [
        Planet.EARTH.gravity, Planet.MARS.value, Status("what"), Status.OK == "ok", Status("ok").upper(), Auto.FIRST.value, [s.name for s in Shape], Shape.ALIAS_FOR_SQUARE is Shape.SQUARE,
        list(Shape.__members__), Mode.R | Mode.W == 6, (Mode.R | 1).value, State.NEW in TRANSITIONS, hash(State.NEW) == hash(State.NEW), repr(Shape.SQUARE), {Color.RED: 1}["red"], isinstance(State.NEW, State), type(State.NEW) is State, type(State.NEW).__name__, State.NEW in State, isinstance(State, type),
    ]


def check_errors():
    found = []
    for make in (lambda: State("none"), lambda: State["NONE"], lambda: Status(3)):
        try:
            make()
        except (ValueError, KeyError) as err:
            found.append([type(err).__name__, str(err)])
    try:
        @unique
        class Twice(Enum):
            A = 1
            B = 1
    except ValueError as err:
        found.append("unique")
    try:
        State.NEW = 3
    except AttributeError:
        found.append("set")
    return found


def check_functional():
    Animal = Enum("Animal", "CAT DOG")
    Size = enum.IntEnum("Size", ["S", "M"], start=10)
    Pairs = Enum("Pairs", {"X": "x", "Y": "y"})
    return [Animal.CAT.value, [a.name for a in Animal], Size.M, Pairs("y").name, Animal(2).name, Enum("T", [("A", 1), ("B", 5)]).B.value]


def check_member_and_nonmember():
    class Ops(Enum):
        ADD = enum.member(lambda a, b: a + b)
        helper = enum.nonmember(3)

        def __call__(self, *args):
            return self.value(*args)
    return [Ops.ADD(1, 2), Ops.helper, [o.name for o in Ops]]


def check_lights():
    class Light(Enum):
        RED = "red", 30
        GREEN = "green", 25

        def __new__(cls, value, seconds):
            member = object.__new__(cls)
            member._value_ = value
            member.seconds = seconds
            return member
    return [Light.RED.seconds, Light("green").seconds]


class Runnable:
    def process(self, queries):
        return [
            check_machine(),
            check_kinds(),
            check_flags(),
            check_members(),
            check_errors(),
            check_functional(),
            check_member_and_nonmember(),
            check_lights(),
        ]
