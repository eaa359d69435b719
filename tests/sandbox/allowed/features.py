"""One feature each, as they turn up in processors."""
import base64, bisect, calendar, collections, contextlib, copy, csv, dataclasses, datetime as dt, decimal, enum, functools, hashlib, heapq, io, itertools, json, math, operator, random, re, statistics, string, struct, textwrap, time, typing, uuid, zlib
from collections import UserDict
from dataclasses import dataclass, field
from enum import Enum, IntFlag, auto
from typing import ClassVar, Generic, NamedTuple, Optional, TypeVar

try:
    from zoneinfo import ZoneInfo
except ImportError:
    ZoneInfo = None

try:
    import orjson
    HAVE = True
except ImportError:
    HAVE = False

Number = int | float
Vector = list[float]
K = TypeVar("K"); V = TypeVar("V")


class Cache(Generic[K, V]):
    def __init__(self, size: int) -> None:
        self.size: int = size
        self.data: "collections.OrderedDict[K, V]" = collections.OrderedDict()
        self.hits = self.misses = 0
    def __getitem__(self, key: K) -> V:
        try: value = self.data.pop(key)
        except KeyError:
            self.misses += 1
            raise
        self.hits += 1
        self.data[key] = value
        return value
    def __setitem__(self, key: K, value: V) -> None:
        self.data.pop(key, None)
        self.data[key] = value
        if len(self.data) > self.size: self.data.popitem(last=False)
    def stats(self): return {k: v for k, v in self.__dict__.items() if isinstance(v, int)}


def check_cache():
    c = Cache[str, int](2)
    c["a"] = 1; c["b"] = 2; c["a"]; c["c"] = 3
    try: c["b"]
    except KeyError as e: missing = e.args
    return [list(c.data), c.stats(), missing]


def check_json_dataclass():
    @dataclass
    class P:
        x: int
        when: dt.date
        kind: Enum
    class Kind(Enum):
        A = "a"
    def default(o):
        if dataclasses.is_dataclass(o): return dataclasses.asdict(o)
        if isinstance(o, (dt.date, dt.datetime)): return o.isoformat()
        if isinstance(o, Enum): return o.value
        if isinstance(o, (set, frozenset)): return sorted(o)
        if isinstance(o, decimal.Decimal): return str(o)
        if hasattr(o, "__dict__"): return vars(o)
        raise TypeError(f"Object of type {o.__class__.__name__} is not JSON serializable")
    class Plain:
        def __init__(self): self.a, self.b = 1, {2}
    return json.dumps([P(1, dt.date(2024, 1, 2), Kind.A), {1, 2}, decimal.Decimal("1.5"), Plain()], default=default)


def check_default_args_mutable():
    def add(x, acc=[]):
        acc.append(x)
        return acc
    add(1)
    return add(2)


def check_generator_pipeline():
    def source(): yield from ({"n": i, "ok": i % 3 != 0} for i in range(7))
    def only(rows, **where):
        for r in rows:
            if all(r.get(k) == v for k, v in where.items()): yield r
    def add(rows, **fs):
        for r in rows: yield r | {k: f(r) for k, f in fs.items()}
    def window(rows, n):
        buf = collections.deque(maxlen=n)
        for r in rows:
            buf.append(r)
            if len(buf) == n: yield tuple(buf)
    return [[a["sq"] + b["sq"] for a, b in window(add(only(source(), ok=True), sq=lambda r: r["n"] ** 2), 2)]]


def check_send_protocol():
    def accumulate():
        total = 0
        while True:
            try:
                got = yield total
            except ValueError:
                total = 0
                continue
            total += got or 0
    g = accumulate(); next(g)
    return [g.send(1), g.send(5), g.throw(ValueError), g.send(2)]


def check_contextlib_more():
    @contextlib.contextmanager
    def timer(name, sink):
        start = time.perf_counter()
        try: yield lambda: time.perf_counter() - start
        finally: sink.append(name)
    sink = []
    with timer("t", sink) as elapsed: ok = elapsed() >= 0
    with contextlib.suppress(KeyError): {}["x"]
    with contextlib.ExitStack() as s:
        for n in "ab": s.enter_context(timer(n, sink))
    return [ok, sink]


def check_struct_view():
    records = b"".join(struct.pack("<I8sf", i, f"n{i}".encode(), i / 2) for i in range(3))
    return [(i, n.rstrip(b"\0").decode(), f) for i, n, f in struct.iter_unpack("<I8sf", records)]


class Perm(IntFlag):
    R = auto(); W = auto(); X = auto()
    RW = R | W


def check_intflag(): return [int(Perm.RW), Perm.R in Perm.RW, (Perm.RW & ~Perm.W) == Perm.R, bool(Perm.X & Perm.RW), Perm(3) == Perm.RW]


class Registry:
    _types: ClassVar[dict] = {}
    def __init_subclass__(cls, **kw):
        super().__init_subclass__(**kw)
        cls._types[cls.__name__.lower()] = cls
    @classmethod
    def create(cls, kind, *a): return cls._types[kind](*a)


class Json(Registry):
    def parse(self, s): return json.loads(s)


class Csv(Registry):
    def __init__(self, sep=","): self.sep = sep
    def parse(self, s): return [r.split(self.sep) for r in s.splitlines()]


def check_factory(): return [Registry.create("json").parse("[1]"), Registry.create("csv", ";").parse("a;b")]


class Attr:
    """A descriptor with validation."""
    def __init__(self, *, min=None, max=None): self.min, self.max = min, max
    def __set_name__(self, owner, name): self.public, self.private = name, "_" + name
    def __get__(self, obj, cls=None): return self if obj is None else getattr(obj, self.private)
    def __set__(self, obj, value):
        if self.min is not None and value < self.min: raise ValueError(f"{self.public} must be >= {self.min}")
        setattr(obj, self.private, value)


class Account:
    balance = Attr(min=0)
    def __init__(self, balance): self.balance = balance


def check_attr():
    a = Account(5); a.balance += 5
    try: a.balance -= 100
    except ValueError as e: return [a.balance, str(e), a._balance, vars(a), Account.balance.min]


class Store:
    def __init__(self, **kw): self.__dict__["_data"] = dict(kw)
    def __getattr__(self, name):
        if name.startswith("_"): raise AttributeError(name)
        try: return self._data[name]
        except KeyError: raise AttributeError(f"{type(self).__name__!r} has no {name!r}") from None
    def __setattr__(self, name, value): self._data[name] = value
    def __delattr__(self, name): del self._data[name]


def check_store():
    s = Store(a=1); s.b = 2; del s.a
    try: s.a
    except AttributeError as e: return [s.b, str(e), s._data, hasattr(s, "zz"), copy.deepcopy(s).b]


class AttrDict(dict):
    __getattr__ = dict.get
    __setattr__ = dict.__setitem__ if 0 else (lambda self, k, v: self.__setitem__(k, v))
    def __delattr__(self, k): del self[k]


def check_attrdict():
    d = AttrDict(a=1); d.b = 2
    return [d.a, d["b"], d.missing, json.dumps(d)]


def check_text_table():
    rows = [{"id": 1, "name": "pen"}, {"id": 22, "name": "notebook"}]
    widths = {k: max(len(str(r[k])) for r in rows + [{k: k}]) for k in rows[0]}
    lines = [" | ".join(f"{k:<{w}}" for k, w in widths.items())]
    lines += [" | ".join(f"{r[k]!s:>{w}}" for k, w in widths.items()) for r in rows]
    return lines


def check_retry_backoff():
    delays = [min(60, 2 ** n) + random.Random(n).random() * 0 for n in range(8)]
    def attempt(f, tries=3):
        for i in range(tries):
            try: return f(i)
            except RuntimeError as err: last = err; time.sleep(0)
        raise TimeoutError(f"{tries} tries") from last
    def flaky(i):
        if i < 2: raise RuntimeError(i)
        return i
    return [delays, attempt(flaky)]


def check_bits(): return [bin(0b1010 ^ 0b0110), (0xFF >> 4) & 3, f"{5:08b}", int("11", 2), -5 // 2, -5 % 3, math.floor(-2.5), round(-2.5), 1 if 5 & 1 else 0, (1 << 40).bit_length(), "".join(format(b, "02x") for b in b"\x01\xff")]


def check_zone(): return dt.datetime(2024, 7, 1, tzinfo=ZoneInfo("Europe/Paris")).isoformat() if ZoneInfo else "2024-07-01T00:00:00+02:00"


def check_with_return():
    def f():
        for i in range(5):
            with contextlib.nullcontext(i) as x:
                if x == 3: return x
                if x == 1: continue
        return None
    def g():
        while True:
            try: break
            finally: out.append("f")
    out = []; g()
    return [f(), out]


def check_complex_assign():
    data = {"a": [1, 2, {"b": 3}]}
    data["a"][2]["b"] += 1; data["a"][0], data["a"][1] = data["a"][1], data["a"][0]
    *data["a"][:], = [9, 8]
    x = y = z = 0; x += 1; y -= 1; z |= 6; z <<= 1; z **= 2; z //= 5; z %= 20; z ^= 3; z &= 0xF
    t = (1, [2]); t[1].append(3)
    return [data, x, y, z, t]


def check_methods_as_values():
    class C:
        def __init__(self): self.n = 0
        def inc(self, by=1): self.n += by; return self
        handlers = {"inc": inc}
    c = C(); f = c.inc; f(); f(by=2); C.inc(c); C.handlers["inc"](c)
    return [c.n, [m(3) for m in (str, float, c.inc(0).n.__add__)] if 0 else c.inc().n, list(map(str.strip, [" a "])), sorted(["b", "A"], key=str.casefold), dict(map(lambda kv: (kv[0], kv[1]), [("a", 1)]))]


def check_inspect_free():
    def f(a, b=2): "Doc."; return a
    return [f.__name__, f.__doc__, f.__module__ == __name__ if 0 else True, callable(f), type(f).__name__]


def check_sum_types():
    class Result:
        __match_args__ = ("value",)
        def __init__(self, value): self.value = value
    class Ok(Result): ...
    class Err(Result): ...
    def run(r):
        match r:
            case Ok(int(v)): return v
            case Ok(v): return str(v)
            case Err(ValueError() as e): return f"bad {e}"
            case Err(e): return repr(e)
    return [run(Ok(1)), run(Ok("x")), run(Err(ValueError("v"))), run(Err(2))]


def check_user_dict():
    class Fold(UserDict):
        def __setitem__(self, k, v): self.data[k.lower()] = v
        def __contains__(self, k): return k.lower() in self.data
    f = Fold(A=1); f["B"] = 2
    return ["a" in f, dict(f), f.get("b"), {**f}, f | {"C": 3} == {"a": 1, "b": 2, "c": 3}, copy.copy(f).data, copy.deepcopy(f).data]


def check_named_tuple_more():
    class P(NamedTuple):
        """Doc."""
        x: int
        y: int = 0
        @classmethod
        def zero(cls): return cls(0)
        @property
        def norm(self): return math.hypot(self.x, self.y)
        def __add__(self, o): return P(self.x + o.x, self.y + o.y)
    match P(3, 4):
        case P(x, y): pass
    return [P.zero(), P(3, 4).norm, P(1) + P(2), P.__doc__, x, y, {**P(1)._asdict()}, P(y=1, x=2), P(1) < P(2), hash(P(1)) == hash((1, 0)), copy.copy(P(5)), copy.deepcopy(P(6))]


def check_have(): return [HAVE in (True, False), textwrap.dedent("  a").strip(), statistics.median([3, 1, 2]), bisect.bisect_left([1, 3], 2), heapq.nsmallest(1, [2, 1]), zlib.crc32(b"a"), base64.b64encode(b"a").decode(), calendar.monthrange(2023, 2)[1], string.ascii_letters[:2], operator.mul(2, 3), io.StringIO("a,b").getvalue(), list(csv.reader(["a,b"])), hashlib.sha1(b"").hexdigest()[:4], uuid.UUID(int=1).hex[-1], list(itertools.chain("a", "b")), functools.reduce(operator.add, [1, 2]), enum.Enum is Enum, re.sub("a", "b", "a"), typing.Optional is Optional, random.Random(1).randint(1, 3)]


def check_what_python_warns_of():
    return [re.findall("[[a]", "[a"), len(hex(10**9000 // 3**4000)), random.Random("text").randint(1, 9)]


class Runnable:
    def process(self, queries):
        return [
            check_cache(),
            check_json_dataclass(),
            check_default_args_mutable(),
            check_generator_pipeline(),
            check_send_protocol(),
            check_contextlib_more(),
            check_struct_view(),
            check_intflag(),
            check_factory(),
            check_attr(),
            check_store(),
            check_attrdict(),
            check_text_table(),
            check_retry_backoff(),
            check_bits(),
            check_zone(),
            check_with_return(),
            check_complex_assign(),
            check_methods_as_values(),
            check_inspect_free(),
            check_sum_types(),
            check_user_dict(),
            check_named_tuple_more(),
            check_have(),
            check_what_python_warns_of(),
        ]
