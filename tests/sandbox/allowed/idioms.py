"""Idioms of one function or class each."""
from __future__ import annotations
import abc, collections, contextlib, copy, dataclasses, datetime, decimal, enum, functools, io, itertools, json, math, operator, random, re, string, time, typing, uuid
from collections import Counter, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, Iterator, Callable
from enum import Enum

T = TypeVar("T")

@dataclass
class WithInit:
    x: int
    def __init__(self, y): self.x = y * 2

def check_own_init(): return [WithInit(2).x, repr(WithInit(1))]

class Stack(Generic[T]):
    def __init__(self) -> None:
        self._items: list[T] = []
        self.max_size: int | None = None
    def push(self, item: T) -> None: self._items.append(item)
    def pop(self) -> T:
        if not self._items: raise IndexError("pop from empty stack")
        return self._items.pop()
    def __bool__(self): return bool(self._items)
    def __len__(self): return len(self._items)
    def __repr__(self): return f"Stack({self._items!r})"

def check_stack():
    s: Stack[int] = Stack()
    s.push(1); s.push(2)
    try: Stack().pop()
    except IndexError as e: m = str(e)
    return [s.pop(), len(s), bool(s), repr(s), m]


class Trie:
    def __init__(self): self.root = {}
    def add(self, word):
        node = self.root
        for ch in word: node = node.setdefault(ch, {})
        node["$"] = word
    def find(self, prefix):
        node = self.root
        for ch in prefix:
            if ch not in node: return
            node = node[ch]
        stack = [node]
        while stack:
            n = stack.pop()
            for k, v in sorted(n.items(), reverse=True):
                if k == "$": yield v
                else: stack.append(v)

def check_trie():
    t = Trie()
    for w in ("car", "card", "cat", "dog"): t.add(w)
    return [sorted(t.find("car")), list(t.find("x"))]

class Event:
    _ids = itertools.count(1)
    def __init__(self, kind, **payload):
        self.id, self.kind = next(Event._ids), kind
        self.__dict__.update(payload)
    def __eq__(self, o): return isinstance(o, Event) and vars(self) == vars(o)

def check_event():
    e = Event("a", x=1, y=2)
    return [e.x, e.id >= 1, sorted(vars(e)), e == copy.copy(e)]

class Undo:
    def __init__(self): self._done, self._undone = [], []
    def do(self, f, undo): f(); self._done.append((f, undo)); self._undone.clear()
    def undo(self):
        if self._done:
            pair = self._done.pop(); pair[1](); self._undone.append(pair)

def check_undo():
    state = []
    u = Undo(); u.do(lambda: state.append(1), lambda: state.pop()); u.undo()
    return state

def deco(cls):
    cls.extra = "added"
    original = cls.__init__
    def __init__(self, *a, **k):
        original(self, *a, **k)
        self.decorated = True
    cls.__init__ = __init__
    return cls

def check_class_decorator_extra():
    def add(cls):
        cls.extra = "added"
        cls.total = lambda self: self.x + 1
        cls.prop = property(lambda self: self.x * 10)
        return cls
    @add
    class C:
        x = 1
    return [C().extra, C().total(), C().prop]

class Cfg:
    DEFAULTS = {"a": 1}
    def __init__(self, **kw):
        for k, v in {**self.DEFAULTS, **kw}.items(): setattr(self, k, v)
    def __getitem__(self, k): return getattr(self, k)
    def __contains__(self, k): return hasattr(self, k)
    def __iter__(self): return iter(self.__dict__.items())

def check_cfg():
    c = Cfg(b=2)
    return [c["a"], "b" in c, "z" in c, dict(c)]

def check_multiple_dispatch():
    handlers: dict[type, Callable] = {int: lambda v: v + 1, str: str.upper, list: len}
    return [next((h(v) for k, h in handlers.items() if isinstance(v, k)), None) for v in (1, "a", [1], 2.5)]

def check_exception_group_like():
    class Many(Exception):
        def __init__(self, msg, errors): super().__init__(msg); self.errors = list(errors)
        def __iter__(self): return iter(self.errors)
    try: raise Many("two", [ValueError("a"), KeyError("b")])
    except Many as m: return [str(m), [type(e).__name__ for e in m], m.args[0]]

def check_reraise():
    log = []
    def f():
        try: 1 / 0
        except ZeroDivisionError:
            log.append("seen")
            raise
    try: f()
    except ArithmeticError as e: log.append(type(e).__name__)
    try: raise ValueError("v").with_traceback(None)
    except ValueError as e: log.append(str(e))
    return log

def check_stopiter():
    def g():
        yield 1
        return "ret"
    it = g(); next(it)
    try: next(it)
    except StopIteration as s: v = s.value
    def d():
        x = yield from g()
        yield x
    def lazy():
        try:
            yield 1
        finally:
            out.append("closed")
    out = []
    l = lazy(); next(l); l.close()
    return [v, list(d()), out]

def check_type_things():
    return [type(1) is int, type("a").__name__, isinstance(True, int), type(check_cfg).__name__, [t.__name__ for t in (int, str)], callable(Cfg), issubclass(Cfg, object), type(Cfg()).__name__, type(Cfg) is type, {type(x) for x in (1, 2)} == {int}, isinstance(Cfg, type), int.__name__, (lambda: 0).__name__, Cfg.__init__.__name__, str(type(1)), repr(int)]

def check_bytes_proto():
    frame = bytearray()
    for tag, body in ((1, b"ab"), (2, b"")):
        frame += bytes([tag]) + len(body).to_bytes(2, "big") + body
    out, i = [], 0
    view = memoryview(frame)
    while i < len(view):
        tag, n = view[i], int.from_bytes(view[i + 1:i + 3], "big")
        out.append((tag, bytes(view[i + 3:i + 3 + n]).decode())); i += 3 + n
    return out

def check_dt():
    from datetime import datetime, timedelta
    d = datetime(2024, 1, 31, 23, 59)
    first_next = (d.replace(day=1) + timedelta(days=32)).replace(day=1)
    age = (datetime(2024, 6, 1) - datetime(1990, 6, 2)).days // 365
    return [first_next.date().isoformat(), age, d.strftime("%j %U %p %I"), d.isocalendar().week, d.timetuple().tm_yday, datetime.strptime("2024-W05-1", "%G-W%V-%u").date().isoformat(), d.ctime(), str(d), repr(d), datetime.fromisoformat("20240105T101112").hour, d.date() == datetime(2024, 1, 31).date(), (d - timedelta(hours=1, minutes=30)).time().isoformat("minutes"), sorted([d, datetime(2023, 1, 1)])[0].year, datetime.max > d, f"{d:%B %-d}"]

def check_shadow():
    list_ = [1]; dict_ = {}
    def process(input, type="x", id=None, format="json", filter=None, open=3): return [input, type, id, format, open]
    class K:
        list = [1]
        def get(self, id): return self.list, id
        def open(self): return "opened"
        def exec(self): return "ran"
        def compile(self): return 1
        def eval(self, x): return x
    return [process(1), K().get(2), K().open(), K().exec(), K().eval(3), K().compile()]

def check_star():
    def f(*, a, b=2, **kw): return a, b, kw
    args = {"a": 1, "c": 3}
    return [f(**args), f(**{**args, "b": 5}), max(*[1, 2], 3), print is not None, [*map(lambda *a: sum(a), [1, 2], [3, 4])], dict(**{"x": 1}, y=2), (lambda *a, k=1, **kw: (a, k, kw))(1, 2, k=3, z=4)]

def check_textio():
    buf = io.StringIO()
    with contextlib.redirect_stdout(buf) if 0 else contextlib.nullcontext():
        print("to buf", file=buf)
    w = io.BytesIO(); w.write(b"ab"); w.seek(0)
    return [buf.getvalue(), w.getvalue().decode(), w.read().decode()]

def check_lru_method():
    class A:
        def __init__(self): self.n = 0
        @functools.lru_cache(maxsize=None)
        def f(self, x): self.n += 1; return x * 2
        @functools.cached_property
        def g(self): self.n += 10; return self.n
        @staticmethod
        @functools.cache
        def h(x): return x + 1
    a = A(); a.f(1); a.f(1); a.g; a.g
    del a.g
    return [a.n, a.h(1), a.g]

def check_operator_mod():
    return [operator.itemgetter(*"ab")({"a": 1, "b": 2}), functools.reduce(operator.add, [[1], [2]]), operator.attrgetter("a.b")(type_obj()), operator.methodcaller("f", 1, k=2)(type_obj())]

def type_obj():
    class B: b = 5
    class A:
        a = B()
        def f(self, x, k=0): return x + k
    return A()

def check_random_seeded():
    r = random.Random("seed")
    class Dice(random.Random):
        def roll(self): return self.randint(1, 6)
    return [r.randint(0, 9), Dice(3).roll(), [r.random() for _ in range(2)]]

def check_matching_more():
    class Op(Enum):
        ADD = "+"
        SUB = "-"
    def ev(e):
        match e:
            case int() | float(): return e
            case [Op.ADD, *xs]: return sum(map(ev, xs))
            case [Op.SUB, a, b]: return ev(a) - ev(b)
            case {"op": "neg", "arg": x, **rest} if not rest: return -ev(x)
            case str(s) if s.isdigit(): return int(s)
            case (1, 2) | None: return 0
            case _: raise TypeError(f"{e!r}")
    return [ev([Op.ADD, 1, [Op.SUB, 5, "3"], {"op": "neg", "arg": 2}])]

def check_decimal_ctx():
    ctx = decimal.Context(prec=3, rounding=decimal.ROUND_HALF_UP)
    return [str(ctx.divide(decimal.Decimal(1), decimal.Decimal(3))), str(ctx.create_decimal("1.2345")), str(decimal.Decimal("-0.5").copy_abs()), decimal.Decimal("1.0").is_signed()]

def check_global_counter():
    global COUNT
    COUNT += 1
    return COUNT

COUNT = 0

def check_props_inherit():
    class A:
        @property
        def v(self): return 1
        @classmethod
        def make(cls, *a): return cls(*a)
    class B(A):
        @property
        def v(self): return super().v + 1
        @A.v.getter
        def w(self): return 5
    return [B().v, B.make().v, B().w]

def check_slots():
    class P:
        __slots__ = ("x", "_y", "__dict__") if 0 else ("x", "_y")
        def __init__(self): self.x, self._y = 1, 2
    p = P()
    try: p.z = 1
    except AttributeError as e: m = "no attribute" in str(e)
    return [p.x, p._y, m, hasattr(p, "z")]

def check_iter_protocol():
    class R:
        def __init__(self, n): self.n = n
        def __getitem__(self, i):
            if i >= self.n: raise IndexError
            return i
    class C:
        def __contains__(self, x): return x == 1
    return [list(R(3)), 2 in R(3), 1 in C(), list(reversed([*R(2)])), sum(R(4)), tuple(iter(R(1)))]

def check_format_protocol():
    class V:
        def __init__(self, *xs): self.xs = xs
        def __format__(self, spec): return "(" + ", ".join(format(x, spec) for x in self.xs) + ")"
    return [f"{V(1, 2.5):.1f}", "{:>3}".format(V(1)), format(V(3), "b") if 0 else ""]


def check_hmac_webhook():
    import base64, hashlib, hmac
    body = json.dumps({"b": 1, "a": [1, 2]}, separators=(",", ":"), sort_keys=True).encode()
    sig = base64.urlsafe_b64encode(hmac.new(b"k", body, hashlib.sha256).digest()).rstrip(b"=").decode()
    def verify(s): return hmac.compare_digest(s.encode(), sig.encode())
    return [sig, verify(sig), verify("x")]

def check_jwt():
    import base64
    def enc(d): return base64.urlsafe_b64encode(json.dumps(d).encode()).decode().rstrip("=")
    def dec(s): return json.loads(base64.urlsafe_b64decode(s + "=" * (-len(s) % 4)))
    return dec(enc({"sub": "a"}).split(".")[0])

def check_annotations_runtime():
    @dataclass
    class M:
        name: str
        n: int = 0
        tags: list[str] = field(default_factory=list)
    return [[f.name for f in dataclasses.fields(M)], list(M.__annotations__), dataclasses.fields(M)[0].type]

def check_time(): 
    a = time.perf_counter(); time.sleep(0)
    return time.perf_counter() >= a


class Runnable:
    def process(self, queries):
        return [
            check_own_init(),
            check_stack(),
            check_trie(),
            check_event(),
            check_undo(),
            check_class_decorator_extra(),
            check_cfg(),
            check_multiple_dispatch(),
            check_exception_group_like(),
            check_reraise(),
            check_stopiter(),
            check_type_things(),
            check_bytes_proto(),
            check_dt(),
            check_shadow(),
            check_star(),
            check_textio(),
            check_lru_method(),
            check_operator_mod(),
            check_random_seeded(),
            check_matching_more(),
            check_decimal_ctx(),
            check_global_counter(),
            check_props_inherit(),
            check_slots(),
            check_iter_protocol(),
            check_format_protocol(),
            check_hmac_webhook(),
            check_jwt(),
            check_annotations_runtime(),
            check_time(),
        ]
