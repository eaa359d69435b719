"""Abstract classes, protocols and the collections built on them."""
import abc
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, MutableMapping, MutableSequence, MutableSet, Sequence, Set, Sized
from collections import UserDict, UserList, UserString
from typing import Generic, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


class Shape(ABC):
    @abstractmethod
    def area(self) -> float:
        """The area."""

    @property
    @abstractmethod
    def name(self): ...

    @classmethod
    @abstractmethod
    def unit(cls): ...

    def describe(self):
        return f"{self.name} of {self.area():.1f}"


class Square(Shape):
    def __init__(self, side): self.side = side
    def area(self): return self.side ** 2
    @property
    def name(self): return "square"
    @classmethod
    def unit(cls): return cls(1)


class Half(Shape):
    def area(self): return 0


class Meta(metaclass=abc.ABCMeta):
    @abstractmethod
    def run(self): ...


def check_abstract():
    out = [Square(2).describe(), Square.unit().area(), isinstance(Square(1), Shape)]
    for cls in (Shape, Half, Meta):
        try:
            cls()
            out.append("made")
        except TypeError as err:
            out.append("abstract" in str(err))
    return out


class Frozen(Mapping):
    def __init__(self, **items): self._items = dict(items)
    def __getitem__(self, key): return self._items[key]
    def __iter__(self): return iter(self._items)
    def __len__(self): return len(self._items)


class Lower(MutableMapping):
    def __init__(self, *args, **kwargs):
        self._d = {}
        self.update(*args, **kwargs)
    def __getitem__(self, key): return self._d[key.lower()]
    def __setitem__(self, key, value): self._d[key.lower()] = value
    def __delitem__(self, key): del self._d[key.lower()]
    def __iter__(self): return iter(self._d)
    def __len__(self): return len(self._d)


class Steps(Sequence):
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, i):
        if i >= self.n: raise IndexError(i)
        return i * 10


class Bag(MutableSequence):
    def __init__(self): self._l = []
    def __getitem__(self, i): return self._l[i]
    def __setitem__(self, i, v): self._l[i] = v
    def __delitem__(self, i): del self._l[i]
    def __len__(self): return len(self._l)
    def insert(self, i, v): self._l.insert(i, v)


class Unique(MutableSet):
    def __init__(self, items=()): self._l = list(dict.fromkeys(items))
    def __contains__(self, x): return x in self._l
    def __iter__(self): return iter(self._l)
    def __len__(self): return len(self._l)
    def add(self, x):
        if x not in self._l: self._l.append(x)
    def discard(self, x):
        if x in self._l: self._l.remove(x)


class Evens(Iterator):
    def __init__(self): self.n = -2
    def __next__(self):
        self.n += 2
        if self.n > 6: raise StopIteration
        return self.n


def check_mappings():
    f, l = Frozen(a=1, b=2), Lower({"A": 1}, B=2)
    l["C"] = 3
    del l["a"]
    l.setdefault("D", 4)
    return [dict(f), f.get("z", 0), "a" in f, list(f.items()), list(f.values()), f == {"a": 1, "b": 2}, {**f}, dict(l), l.pop("b"), l.get("D"), len(l), isinstance(f, Mapping), isinstance(l, dict), sorted(l.keys()), list(f.keys() & {"a"})]


def check_sequences():
    b = Bag()
    b.extend([3, 1, 2])
    b.append(4)
    b += [5]
    b.reverse()
    b.remove(1)
    u = Unique("abca")
    u.add("z"); u.discard("a"); u |= {"q"}
    return [list(Steps(3)), Steps(3)[1], 20 in Steps(3), Steps(4).index(30), list(reversed(Steps(2))), Steps(3).count(10), list(b), b.pop(), len(b), list(u), sorted(u & {"b"}), u <= Unique("zbcq"), list(Evens()), isinstance(Evens(), Iterable), sorted(u - {"b"})]


class Config(UserDict):
    def __getitem__(self, key):
        return super().__getitem__(key.lower())
    def __setitem__(self, key, value):
        super().__setitem__(key.lower(), value)
    def __missing__(self, key): return "?"


class Stack(UserList):
    def push(self, x): self.append(x)
    def peek(self): return self[-1]


class Name(UserString):
    def shout(self): return self.upper() + "!"


def check_user_classes():
    c = Config({"A": 1})
    c["B"] = 2
    c.update(C=3)
    s = Stack([1])
    s.push(2)
    return [c["a"], dict(c), c.data, c["zz"], "b" in c.data, len(c), s.peek(), s + [3], s.data, s[0:1], len(s), str(Name("ab").shout()), Name("a") + "b", Name("ab").data, sorted(s, reverse=True), isinstance(c, MutableMapping)]


class LRU(dict):
    def __init__(self, size):
        super().__init__()
        self.size = size
    def __setitem__(self, key, value):
        if len(self) >= self.size and key not in self:
            del self[next(iter(self))]
        super().__setitem__(key, value)
    def __missing__(self, key):
        self[key] = value = key * 2
        return value


class Total(list):
    @property
    def total(self): return sum(self)


class Celsius(float):
    def __str__(self): return f"{float(self):.1f}C"


class Upper(str):
    def shout(self): return self.upper() + "!"


class Tagged(str):
    def __new__(cls, value, tag):
        self = super().__new__(cls, value)
        self.tag = tag
        return self


class Even(int):
    def half(self): return self // 2


class Pair(tuple):
    @property
    def left(self): return self[0]


def check_builtin_bases():
    cache = LRU(2)
    cache["a"] = 1; cache["b"] = 2; cache["c"] = 3
    return [dict(cache), cache["zz"], dict(cache), Total([1, 2]).total, str(Celsius(21.55)), Celsius(2) + 1, Upper("ab").shout(), Upper("ab") == "ab", len(Upper("abc")), Even(4).half(), Pair((1, 2)).left, Tagged("a", "t").tag, isinstance(Upper("x"), str)]


@runtime_checkable
class Closes(Protocol):
    def close(self) -> None: ...


class Greets(Protocol):
    name: str
    def greet(self) -> str: ...


class File:
    name = "f"
    def close(self): return None
    def greet(self): return "hi"


class Polite(Greets):
    name = "p"
    def greet(self): return "good day"


class Box(Generic[T]):
    def __init__(self, item: T): self.item = item
    def get(self) -> T: return self.item
    def map(self, f: Callable[[T], T]) -> "Box[T]": return Box(f(self.item))


class IntBox(Box[int]): ...


def check_generic():
    def use(g: Greets) -> str:
        return g.greet()
    return [isinstance(File(), Closes), isinstance(3, Closes), use(File()), use(Polite()), Box[int](3).map(lambda x: x + 1).get(), IntBox(4).get(), isinstance(Box(1), Box), isinstance([], Iterable), isinstance("", Sized), isinstance(1, Hashable), isinstance(len, Callable), isinstance({}, Mapping), isinstance(set(), Set), issubclass(list, Sequence)]


class Runnable:
    def process(self, queries):
        return [
            check_abstract(),
            check_mappings(),
            check_sequences(),
            check_user_classes(),
            check_builtin_bases(),
            check_generic(),
        ]
