"""Classes with operators, properties and protocols of the language."""
from __future__ import annotations

import functools
import math
from typing import Any, Iterator


@functools.total_ordering
class Money:
    """An amount in cents."""

    zero: "Money"
    __slots__ = ("cents", "_note")

    def __init__(self, cents: int = 0):
        self.cents = cents
        self._note = "n"

    @classmethod
    def parse(cls, text: str) -> Money:
        whole, _, part = text.partition(".")
        return cls(int(whole) * 100 + int(part.ljust(2, "0")[:2] or 0))

    @staticmethod
    def valid(text: str) -> bool:
        return text.replace(".", "", 1).isdigit()

    def __add__(self, other):
        if isinstance(other, Money):
            return Money(self.cents + other.cents)
        return NotImplemented

    def __radd__(self, other):
        return self if other == 0 else NotImplemented

    def __sub__(self, other): return Money(self.cents - other.cents)
    def __mul__(self, n): return type(self)(int(self.cents * n))
    __rmul__ = __mul__
    def __truediv__(self, n): return Money(self.cents // n)
    def __neg__(self): return Money(-self.cents)
    def __abs__(self): return Money(abs(self.cents))
    def __bool__(self): return self.cents != 0
    def __int__(self): return self.cents
    def __float__(self): return self.cents / 100
    def __round__(self, digits=None): return Money(round(self.cents, -2))
    def __eq__(self, other): return isinstance(other, Money) and self.cents == other.cents
    def __lt__(self, other): return self.cents < other.cents
    def __hash__(self): return hash(("Money", self.cents))
    def __repr__(self): return f"{self.__class__.__name__}({self.cents})"
    def __str__(self): return f"{self.cents / 100:.2f}"
    def __format__(self, spec): return f"{self.cents / 100:{spec or '.2f'}} EUR"

    def __iadd__(self, other):
        self.cents += other.cents
        return self


Money.zero = Money(0)


def check_money():
    a, b = Money.parse("12.5"), Money(50)
    total = sum([a, b])
    c = a
    c += b
    return [str(total), repr(a * 2), repr(2 * b), f"{b}", f"{b:8.1f}", a > b, a >= b, max(a, b).cents, {Money(50): 1}[b], bool(Money.zero), Money.valid("1.5"), repr(-b), repr(abs(-b)), int(b), float(b), repr(round(Money(149))), c is a, sorted([a, b])[0].cents, a != b, not Money(), repr(b / 3), b._note]


class Temperature:
    def __init__(self, celsius):
        self.celsius = celsius

    @property
    def celsius(self):
        """Degrees."""
        return self._celsius

    @celsius.setter
    def celsius(self, value):
        if value < -273.15:
            raise ValueError("below absolute zero")
        self._celsius = value

    @celsius.deleter
    def celsius(self):
        self._celsius = 0

    @property
    def fahrenheit(self):
        return self._celsius * 9 / 5 + 32

    @fahrenheit.setter
    def fahrenheit(self, f):
        self.celsius = (f - 32) * 5 / 9

    kelvin = property(lambda self: self._celsius + 273.15, doc="K")


def check_properties():
    t = Temperature(10)
    t.fahrenheit = 212
    out = [t.celsius, t.fahrenheit, t.kelvin]
    try:
        t.celsius = -300
    except ValueError as err:
        out.append(str(err))
    try:
        t.kelvin = 3
    except AttributeError:
        out.append("read only")
    del t.celsius
    return out + [t.celsius, hasattr(t, "kelvin"), getattr(t, "nope", None)]


class Grid:
    def __init__(self, w, h, fill=0):
        self.w, self.h = w, h
        self._cells = [fill] * (w * h)

    def _index(self, key):
        x, y = key
        if not (0 <= x < self.w and 0 <= y < self.h):
            raise IndexError(key)
        return y * self.w + x

    def __getitem__(self, key):
        if isinstance(key, slice):
            return self._cells[key]
        return self._cells[self._index(key)]

    def __setitem__(self, key, value):
        self._cells[self._index(key)] = value

    def __delitem__(self, key):
        self[key] = 0

    def __len__(self): return len(self._cells)
    def __contains__(self, value): return value in self._cells
    def __iter__(self): return iter(self._cells)
    def __reversed__(self): return reversed(self._cells)
    def __call__(self, f): return [f(c) for c in self]
    def __missing__(self, key): return None
    def __length_hint__(self): return 3


def check_grid():
    g = Grid(2, 2)
    g[0, 1] = 5
    g[1, 1] += 7
    g[1, 0] = 1
    del g[1, 0]
    try:
        g[9, 9]
    except IndexError as err:
        missing = err.args[0]
    return [list(g), g[0:2], len(g), 5 in g, list(reversed(g)), g(lambda c: c * 2), missing, [*g], dict(enumerate(g)), g[::-1]]


class Vector:
    def __init__(self, *parts): self.parts = parts
    def __matmul__(self, other): return sum(a * b for a, b in zip(self.parts, other.parts))
    def __pow__(self, n): return Vector(*(p**n for p in self.parts))
    def __mod__(self, n): return Vector(*(p % n for p in self.parts))
    def __floordiv__(self, n): return Vector(*(p // n for p in self.parts))
    def __lshift__(self, n): return Vector(*self.parts, n)
    def __and__(self, o): return Vector(*(p for p in self.parts if p in o.parts))
    def __or__(self, o): return Vector(*dict.fromkeys(self.parts + o.parts))
    def __xor__(self, o): return "xor"
    def __invert__(self): return Vector(*reversed(self.parts))
    def __pos__(self): return self
    def __divmod__(self, n): return self // n, self % n
    def __rsub__(self, o): return f"{o}-v"
    def __rtruediv__(self, o): return f"{o}/v"
    def __index__(self): return len(self.parts)
    def __complex__(self): return complex(*self.parts[:2])
    def __trunc__(self): return 1
    def __floor__(self): return 2
    def __ceil__(self): return 3
    def __eq__(self, o): return self.parts == o.parts
    def __ne__(self, o): return not self == o
    def __le__(self, o): return self.parts <= o.parts
    def __ge__(self, o): return self.parts >= o.parts
    def __gt__(self, o): return self.parts > o.parts
    __hash__ = None
    def __imul__(self, n):
        self.parts = tuple(p * n for p in self.parts)
        return self
    def __bytes__(self): return bytes(self.parts)
    def __repr__(self): return f"V{self.parts}"


def check_vector():
    v, w = Vector(1, 2, 3), Vector(3, 4, 5)
    u = Vector(1, 2)
    u *= 3
    try:
        hash(v)
    except TypeError:
        unhashable = True
    return [v @ w, repr(v**2), repr(w % 2), repr(v << 9), repr(v & w), repr(v | w), v ^ w, repr(~v), repr(+v), repr(divmod(w, 2)), 5 - v, 1 / v, [0, 1, 2, 3][v], str(complex(v)), math.trunc(v), math.floor(v), math.ceil(v), v == Vector(1, 2, 3), v != w, v <= w, repr(u), unhashable, list(bytes(v)), hex(v), "abcdef"[v:]]


class Animal:
    sound = "..."
    count = 0

    def __init__(self, name):
        self.name = name
        type(self).count += 1

    def speak(self):
        return f"{self.name} says {self.sound}"

    def __repr__(self):
        return f"<{type(self).__name__} {self.name}>"


class Loud:
    def speak(self):
        return super().speak().upper() + "!"


class Fast:
    def __init__(self, *args, speed=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.speed = speed


class Dog(Loud, Fast, Animal):
    sound = "woof"


def check_inheritance():
    d = Dog("rex", speed=9)
    Animal("x")
    return [d.speak(), d.speed, repr(d), Dog.count, Animal.count, isinstance(d, (Loud, int)), issubclass(Dog, Animal), [c.__name__ for c in Dog.mro()] if hasattr(Dog, "mro") and 0 else None, Dog.__name__, Dog.sound, d.__class__.__name__, type(d) is Dog, type(d)("y").name, Animal.speak(d), d.__class__ is Dog]


class Countdown:
    def __init__(self, n): self.n = n
    def __iter__(self): return self
    def __next__(self):
        if self.n <= 0:
            raise StopIteration
        self.n -= 1
        return self.n + 1


class Timer:
    def __enter__(self):
        self.log = ["in"]
        return self

    def __exit__(self, kind, value, trace):
        self.log.append(kind.__name__ if kind else "out")
        return kind is ValueError


def check_protocols():
    with Timer() as t:
        raise ValueError("x")
    with Timer() as a, Timer() as b:
        pass
    with (Timer() as c, Timer() as e):
        c.log.append("both")
    return [list(Countdown(3)), sum(Countdown(4)), t.log, a.log, b.log, c.log, e.log, next(Countdown(1)), 2 in Countdown(3), [x for x in Countdown(2)], max(Countdown(5)), dict(zip("ab", Countdown(2)))]


class Outer:
    """Outer."""

    limit = 3
    names = [f"n{i}" for i in range(3)]
    table = {n: len(n) for n in names}

    class Inner:
        def __init__(self): self.value = Outer.limit

    def make(self):
        class Local(self.Inner):
            def double(self): return self.value * 2
        return Local()

    def __secret(self): return "secret"
    def tell(self): return self.__secret() + self._other()
    def _other(self): return "!"


def check_nested():
    o = Outer()
    return [o.make().double(), Outer.Inner().value, Outer.names, Outer.table, o.tell(), Outer.__doc__, o._other(), Outer.__qualname__, o.make().__class__.__name__, Outer.Inner.__qualname__]


class Singleton:
    _instance = None

    @classmethod
    def get(cls):
        if cls._instance is None:
            cls._instance = cls()
        return cls._instance


class Registry:
    handlers: dict[str, Any] = {}

    @classmethod
    def register(cls, name):
        def decorate(f):
            cls.handlers[name] = f
            return f
        return decorate


@Registry.register("up")
def up(x): return x.upper()


@Registry.register("twice")
def twice(x): return x * 2


def check_patterns():
    return [Singleton.get() is Singleton.get(), {k: f("ab") for k, f in Registry.handlers.items()}, up.__name__, callable(up), Registry.handlers["up"] is up]


class Lazy:
    def __init__(self): self.calls = 0

    @functools.cached_property
    def value(self):
        self.calls += 1
        return 42


def check_lazy():
    lazy = Lazy()
    return [lazy.value, lazy.value, lazy.calls]


class Builder:
    def __init__(self): self._parts = []
    def add(self, part): self._parts.append(part); return self
    def build(self): return "-".join(self._parts)


def check_attributes():
    b = Builder().add("a").add("b")
    for name, value in {"x": 1, "y": 2}.items():
        setattr(b, name, value)
    delattr(b, "x")
    b.z = b.y = 5
    b.y -= 1
    del b.z
    return [b.build(), b.y, hasattr(b, "x"), getattr(b, "build")(), getattr(b, "q", "none")]


def check_super_explicit():
    class A:
        def __init__(self, x): self.x = x
        def hello(self): return "A"
    class B(A):
        def __init__(self, x, y):
            A.__init__(self, x)
            self.y = y
        def hello(self): return super(B, self).hello() + "B"
    class C(B):
        def hello(self): return B.hello(self) + "C" + super().hello()
    return [C(1, 2).hello(), C(1, 2).x, C(1, 2).y]


class Runnable:
    def process(self, queries):
        return [
            check_money(),
            check_properties(),
            check_grid(),
            check_vector(),
            check_inheritance(),
            check_protocols(),
            check_nested(),
            check_patterns(),
            check_lazy(),
            check_attributes(),
            check_super_explicit(),
        ]
