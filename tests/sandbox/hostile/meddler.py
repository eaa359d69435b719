# A Runnable that attacks what it is given: it calls the functions of one module, or the methods and operators of
# built-in types, with objects whose hooks change or free whatever is being worked on. tests/sandbox/fuzz.py drives it.
import array, asyncio, base64, binascii, bisect, cmath, collections, contextlib, copy, csv, dataclasses, datetime, decimal
import difflib, enum, fractions, functools, graphlib, hashlib, heapq, hmac, html, io, itertools, json, math, operator
import pydantic, random, re, secrets, shlex, statistics, string, struct, textwrap, time, types, typing, unicodedata, urllib.parse
import uuid, zlib

try:
    import exospherehost  # what nodes of graphs import, where there is a guest around it
except ImportError:
    exospherehost = None


class Shape(pydantic.BaseModel):
    a: int = 0
    b: list[typing.Union[int, str, None]] = []
    c: dict[str, typing.Any] = {}
    d: typing.Optional[list[list]] = None
    e: typing.Any = None
    f: list["Shape"] = []

    @pydantic.field_validator("b", "e", mode="before")
    @classmethod
    def met(cls, value):
        if value == 0:
            raise ValueError(value)
        return value


shapes = [Shape(a=1)]


TARGETS = {
    "builtins": {
        f.__name__: f
        for f in (
            abs,
            all,
            any,
            ascii,
            bin,
            bool,
            bytearray,
            bytes,
            chr,
            complex,
            dict,
            divmod,
            enumerate,
            filter,
            float,
            format,
            frozenset,
            hash,
            hex,
            int,
            isinstance,
            issubclass,
            iter,
            len,
            list,
            map,
            max,
            min,
            next,
            oct,
            ord,
            range,
            repr,
            reversed,
            round,
            set,
            slice,
            sorted,
            str,
            sum,
            tuple,
            zip,
            memoryview,
        )
    },
    "operators": {},
    **{
        name: {key: getattr(module, key) for key in dir(module) if not key.startswith("_")}
        for name, module in (
            ("array", array),
            ("base64", base64),
            ("binascii", binascii),
            ("bisect", bisect),
            ("cmath", cmath),
            ("collections", collections),
            ("copy", copy),
            ("csv", csv),
            ("datetime", datetime),
            ("decimal", decimal),
            ("difflib", difflib),
            ("fractions", fractions),
            ("functools", functools),
            ("hashlib", hashlib),
            ("heapq", heapq),
            ("hmac", hmac),
            ("io", io),
            ("itertools", itertools),
            ("json", json),
            ("math", math),
            ("operator", operator),
            ("random", random),
            ("re", re),
            ("statistics", statistics),
            ("string", string),
            ("struct", struct),
            ("textwrap", textwrap),
            ("unicodedata", unicodedata),
            ("urllib", urllib.parse),
            ("uuid", uuid),
            ("zlib", zlib),
            ("time", time),
        )
    },
    "events": {"event": lambda *args, **named: M.event("e", [args, named])},
    **{
        name: {key: getattr(module, key) for key in dir(module) if not key.startswith("_")}
        for name, module in (("asyncio", asyncio), ("pydantic", pydantic), ("contextlib", contextlib))
    },
    "models": {
        "call": lambda *args, **named: Shape(**named),
        "validate": lambda *args, **named: Shape.model_validate(*args),
        "fields": lambda *args, **named: Shape(a=1, b=args, c=named, d=[args], e=named),
        "nested": lambda *args, **named: Shape(a="2", f=[{"a": 1, "c": named}, *args]),
        "dump": lambda *args, **named: M.one_of(shapes).model_dump(**named),
        "text": lambda *args, **named: M.one_of(shapes).model_dump_json(),
        "copy": lambda *args, **named: M.one_of(shapes).model_copy(update={"c": args, "e": named}, deep=True),
        "same": lambda *args, **named: M.one_of(shapes) == Shape(a=1, c=named, e=args),
        "keep": lambda *args, **named: shapes.append(Shape(a=len(args), b=list(args), c=dict(named), e=args)),
        "forget": lambda *args, **named: shapes.__delitem__(slice(1, None)),
        "set": lambda *args, **named: setattr(M.one_of(shapes), "e", args),
        "event": lambda *args, **named: M.event("e", M.one_of(shapes)),
        "shown": lambda *args, **named: f"{M.one_of(shapes)!r}{M.one_of(shapes)}",
    },
    "nodes": {} if exospherehost is None else {
        "prune": lambda *args, **named: exospherehost.PruneSignal(*args).data,
        "requeue": lambda *args, **named: exospherehost.ReQueueAfterSignal(*args, **named).inputs,
        "runtime": lambda *args, **named: exospherehost.Runtime("n", "m", *args).start(),
        "node": lambda *args, **named: exospherehost.BaseNode.Inputs(**named),
        "event": lambda *args, **named: M.event("e", exospherehost.BaseNode.Inputs.model_validate(*args)),
    },
}
# What never ends, or takes for ever, where nothing is wrong with it.
SLOW = {
    "sleep",
    "cycle",
    "count",
    "repeat",
    "scrypt",
    "pbkdf2_hmac",
    "factorial",
    "comb",
    "perm",
    "pow",
    "lshift",
    "ilshift",
    "ipow",
    "print",
    "help",
    "prod",
    "exp",
    "ln",
    "log10",
    "power",
    "sqrt",
    "randbytes",
    "getrandbits",
}
# What releases a view that others hold, too, and what a build with assertions has to test itself.
LEFT_OUT = SLOW | {"release", "__exit__", "test_c_api"}
# A deque that is repeated until memory is used up loses the MemoryError: a SystemError, or an assertion.
REPEATS = {"__mul__", "__rmul__", "__imul__"}

BINARY = [
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.mod,
    operator.and_,
    operator.or_,
    operator.xor,
    operator.iadd,
    operator.imul,
    operator.ior,
    operator.iand,
    operator.contains,
    lambda a, b: a == b,
    lambda a, b: a < b,
    lambda a, b: a >= b,
    lambda a, b: a != b,
    lambda a, b: a in b,
    lambda a, b: a[b],
    lambda a, b: divmod(a, b),
    lambda a, b: f"{a}{b!r}",
    lambda a, b: a % (b, b),
    lambda a, b: [*a, *b],
    lambda a, b: {**a, **b},
    lambda a, b: a(*b),
    lambda a, b: a(**b),
    lambda a, b: isinstance(a, b),
    lambda a, b: a @ b,
    lambda a, b: a is b,
]

COMPARED = "__eq__ __ne__ __lt__ __le__ __gt__ __ge__ __contains__".split()
NUMBERED = (
    "__add__ __radd__ __iadd__ __sub__ __rsub__ __mul__ __rmul__ __imul__ __truediv__ __rtruediv__ __mod__ "
    "__rmod__ __floordiv__ __and__ __rand__ __or__ __ror__ __ior__ __xor__ __rxor__ __divmod__ __matmul__ "
    "__neg__ __abs__ __round__ __trunc__ __floor__ __call__ __enter__ __reversed__"
).split()
WHOLE = "__index__ __int__ __len__ __length_hint__ __hash__".split()
TEXT = "__str__ __repr__ __format__".split()


class Meddling:
    """The state of one run; its numbers come from a seed alone, so that a run can be had again."""

    def __init__(self):
        self.begin(0, "operators")

    def begin(self, seed, target):
        self.state = seed * 1000 + list(TARGETS).index(target)
        self.fuel = 0
        self.depth = 0
        self.pool = []
        self.hand = []
        self.method_of = None
        self.spray = []
        self.names = [name for name in TARGETS[target] if name not in SLOW]
        self.target = TARGETS[target]
        self.calls = 0
        self.meddled = 0
        self.event = None

    def below(self, n):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        return (self.state >> 33) % n

    def one_of(self, things):
        return things[self.below(len(things))]


M = Meddling()


def meddle():
    """What a hostile hook does: take away what the caller of the hook is working on, and fill its place."""
    if M.depth > 3 or M.fuel <= 0:
        return
    M.depth += 1
    M.fuel -= 1
    M.meddled += 1
    try:
        for _ in range(1 + M.below(3)):
            change(M.one_of(M.hand) if M.hand and M.below(4) else M.one_of(M.pool))
        if M.below(3) == 0:
            step()
        if M.below(2) == 0 and M.hand:
            M.hand[M.below(len(M.hand))] = None
        if M.below(3) == 0:
            M.pool[M.below(len(M.pool))] = fresh()
        M.spray = [b"\x41" * size for size in (8, 24, 40, 56, 72, 104, 168, 520)] + [
            bytearray(64),
            ["x"] * 7,
            ("y",) * 5,
        ]
    finally:
        M.depth -= 1


MEDDLING = (
    "truncate reset popitem popleft sort reverse close update move_to_end rotate insert remove discard add setdefault "
    "seek".split()
)


def change(thing):
    if type(thing) is memoryview:
        # Only one at work, which nobody else holds: an iterator of a released view is made with an error set, which
        # a build with assertions does not bear, and the others raise.
        if M.method_of is thing:
            thing.release()
        return
    how = M.below(9)
    try:
        if how == 0:
            thing.clear()
        elif how == 1:
            del thing[:]
        elif how == 2:
            thing.pop()
        elif how == 3:
            next(thing)
        elif how == 4:
            thing.extend([1] * 40)
        elif how == 5:
            thing[:] = []
        elif how == 6:
            thing.append(1)
        elif how == 7:
            thing[M.one_of([0, 1, "a", None])] = some()
        else:
            name = M.one_of(MEDDLING)
            getattr(thing, name)(*[some() for _ in range(M.below(3))])
    except Exception:
        pass


def hook(name):
    def acting(self, *args):
        if M.fuel > 0 and M.below(3):
            meddle()
            if M.below(14) == 0:
                raise ValueError(name)
        if name in COMPARED:
            return M.one_of([True, False, NotImplemented]) if name != "__contains__" else bool(M.below(2))
        if name in WHOLE:
            return M.below(3) if name == "__hash__" else M.one_of([0, 1, 2, 3, 7, 12, 100, 255])
        if name in TEXT:
            return M.one_of(["", "x", "abc" * 9, "\u20ac", "\U0001f600"])
        if name == "__bytes__":
            return M.one_of([b"", b"abc", b"z" * 99])
        if name == "__float__":
            return M.one_of([0.0, 1.5, -2.0, float("nan")])
        if name == "__complex__":
            return 1j
        if name == "__bool__":
            return bool(M.below(2))
        if name == "__iter__":
            return M.one_of([iter([1, 2, 3]), stream(), self, iter(["a", "b"]), iter([(1, 2), (3, 4)])])
        if name == "__next__":
            if M.fuel <= 0 or M.below(4) == 0:
                raise StopIteration
            return some()
        if name == "__getitem__":
            if M.fuel <= 0 or M.below(3) == 0:
                raise IndexError(name)
            return some()
        if name in ("__setitem__", "__delitem__", "__exit__"):
            return None
        if M.fuel <= 0 or M.below(3) == 0:
            return NotImplemented
        return some()

    return acting


def stream():
    try:
        for _ in range(M.below(6)):
            meddle()
            yield some()
    finally:  # also when it is freed, wherever that is
        meddle()


def in_context():
    with decimal.localcontext() as context:
        context.prec = 1 + M.below(9)
        yield from stream()


HOOKS = [
    *COMPARED,
    *NUMBERED,
    *WHOLE,
    *TEXT,
    "__bytes__",
    "__float__",
    "__complex__",
    "__bool__",
    "__iter__",
    "__next__",
    "__getitem__",
    "__setitem__",
    "__delitem__",
    "__exit__",
    "__missing__",
    "__invert__",
    "__pos__",
]


def armed(cls, names):
    for name in names:
        setattr(cls, name, hook(name))
    return cls


class Evil:
    pass


class Index:
    pass


class Real:
    pass


class Same:
    pass


class Walker:
    pass


class Sized:
    pass


class Text:
    pass


class Adder:
    pass


class EvilInt(int):
    pass


class EvilFloat(float):
    pass


class EvilStr(str):
    pass


class EvilBytes(bytes):
    pass


class EvilList(list):
    pass


class EvilTuple(tuple):
    pass


class EvilDict(dict):
    pass


class EvilSet(set):
    pass


class EvilOrdered(collections.OrderedDict):
    pass


class EvilDeque(collections.deque):
    pass


class EvilDefault(collections.defaultdict):
    pass


class EvilCounter(collections.Counter):
    pass


armed(Evil, HOOKS)
armed(Index, ["__index__", "__int__"])
armed(Real, ["__float__", "__index__"])
armed(Same, [*COMPARED[:6], "__hash__"])
armed(Walker, ["__iter__", "__next__", "__length_hint__"])
armed(Sized, ["__len__", "__getitem__"])
armed(Text, TEXT + ["__bytes__"])
armed(Adder, NUMBERED[:-4])
for kind in (EvilInt, EvilFloat, EvilStr, EvilBytes, EvilTuple):
    armed(
        kind,
        [
            "__index__",
            "__float__",
            "__int__",
            "__str__",
            "__repr__",
            "__bytes__",
            "__iter__",
            "__getitem__",
            *COMPARED,
            "__add__",
            "__radd__",
            "__mod__",
        ],
    )
    if kind is not EvilBytes:
        armed(kind, ["__hash__"])
for kind in (EvilList, EvilDict, EvilSet, EvilOrdered, EvilDeque, EvilDefault, EvilCounter):
    armed(
        kind,
        [
            "__len__",
            "__iter__",
            "__getitem__",
            "__setitem__",
            "__delitem__",
            "__contains__",
            "__eq__",
            "__lt__",
            "__missing__",
            "__or__",
            "__bool__",
            "__repr__",
        ],
    )


EVILS = [
    *[Evil, Index, Real, Same, Walker, Sized, Text, Adder, Same] * 2,
    lambda: EvilInt(M.below(9)),
    lambda: EvilFloat(1.5),
    lambda: EvilStr("abc"),
    lambda: EvilBytes(b"abcd"),
    lambda: EvilList([1, Same(), 3]),
    lambda: EvilTuple([1, Same()]),
    lambda: EvilDict(a=1, b=Same()),
    lambda: EvilSet([1, 2]),
    lambda: EvilOrdered(a=1, b=2, c=3),
    lambda: EvilDeque([1, 2, 3], 5),
    lambda: EvilDefault(int),
    lambda: EvilCounter("aab"),
]


def evil():
    return M.one_of(EVILS)()


def callback(*args, **named):
    meddle()
    return some()


def few(make):
    return [make() for _ in range(M.one_of([1, 2, 3, 5, 9, 40]))]


VICTIMS = [
    *[lambda: array.array(M.one_of("bBhHiIlLqQ"), few(lambda: 1))] * 2,
    lambda: array.array(M.one_of("fd"), few(lambda: 1.5)),
    lambda: array.array("u", "abcd"),
    *[lambda: bytearray(b"a" * len(few(int)))] * 3,
    lambda: memoryview(bytearray(b"a" * len(few(int)))),
    lambda: memoryview(array.array("i", few(int))),
    lambda: few(Same),
    lambda: few(evil),
    lambda: [[Same(), 1, 2], [Same(), 3], (Same(), 4)],
    lambda: collections.deque(few(Same), M.one_of([None, 4, 70])),
    lambda: collections.OrderedDict((Same() if M.below(2) else i, i) for i in range(M.below(9))),
    lambda: {Same() if M.below(2) else i: evil() for i in range(M.below(9))},
    lambda: {Same() if M.below(2) else i for i in range(M.below(9))},
    lambda: io.BytesIO(b"a\nb\n" * len(few(int))),
    lambda: io.StringIO("a\nb\n" * len(few(int))),
    lambda: iter(fresh()),
    lambda: stream(),
    lambda: itertools.count(M.one_of([0, 1.5, EvilInt(2)]), M.one_of([1, EvilInt(2), EvilFloat(0.5)])),
    lambda: itertools.groupby([Same(), Same(), 1, 2], M.one_of([None, callback])),
    lambda: itertools.accumulate([[1], Adder(), Adder(), [2]], M.one_of([None, callback, operator.iadd])),
    lambda: M.one_of([itertools.zip_longest, zip, itertools.chain, itertools.product])(
        stream(), Walker(), [1, 2]
    ),
    lambda: M.one_of(itertools.tee(Walker(), 2)),
    lambda: map(callback, [1, 2, 3, 4]),
    lambda: itertools.pairwise(Walker()),
    lambda: itertools.islice(Walker(), 1, 8, 2),
    lambda: itertools.compress(Walker(), Walker()),
    lambda: itertools.combinations(stream(), 2),
    lambda: itertools.starmap(callback, [(1, 2), (3,)]),
    lambda: struct.Struct(M.one_of(["<IHd", "3s?b", "qQ", "10B"])),
    lambda: M.one_of([zlib.compressobj, zlib.decompressobj, hashlib.sha256])(),
    lambda: hmac.new(b"k", b"m", "sha1"),
    lambda: re.compile(M.one_of(["a+", "(a)(b)?", "(?P<n>.)*", ".*?x", r"\w+|\d"])),
    lambda: functools.lru_cache(M.one_of([None, 0, 1, 2]))(callback),
    lambda: functools.partial(callback, evil(), a=evil()),
    lambda: functools.cmp_to_key(callback)(evil()),
    lambda: collections.defaultdict(callback, {1: evil()}),
    lambda: collections.Counter("abca"),
    lambda: collections.ChainMap({1: Same()}, {}),
    lambda: random.Random(1),
    lambda: decimal.Decimal("1.5"),
    lambda: decimal.getcontext(),
    lambda: datetime.datetime(2020, 1, 2),
    lambda: fractions.Fraction(1, 3),
    lambda: csv.writer(io.StringIO()),
    lambda: csv.reader(M.one_of([Walker, stream, lambda: ["a,b", 'c,"d']])()),
    lambda: M.one_of([decimal.Context(prec=5), decimal.getcontext()]).flags,
    lambda: in_context(),
    lambda: io.BytesIO(),
    lambda: reversed({i: i for i in range(M.below(40))}),
    lambda: {i: Same() for i in range(M.below(9))}.items(),
    lambda: json.JSONEncoder(default=callback),
    lambda: operator.itemgetter(Index(), 1),
]
ARGUMENTS = [
    *[lambda: M.below(9)] * 3,
    lambda: -1,
    lambda: 1 << 40,
    lambda: -(1 << 70),
    lambda: 2**63,
    lambda: 255,
    lambda: 1.5,
    lambda: float("inf"),
    lambda: "",
    lambda: "abc",
    lambda: "a\u20ac\U0001f600",
    lambda: b"",
    lambda: b"abcd",
    lambda: None,
    lambda: True,
    lambda: "i",
    lambda: "d",
    lambda: "<IH",
    lambda: "%s %d %r %5.2f",
    lambda: "{0} {1!r:>{2}} {}",
    lambda: "{a}",
    lambda: "utf-8",
    lambda: "utf-16",
    lambda: "replace",
    lambda: "a+",
    lambda: "sha256",
    lambda: "a=b&c=d",
    lambda: "2020-01-01",
    *[lambda: callback] * 3,
    lambda: int,
    lambda: str,
    lambda: list,
    lambda: stream(),
    lambda: [evil(), evil()],
    lambda: (evil(), evil()),
    lambda: [1, 2, 3],
    lambda: few(Same),
    lambda: {Same(): 1},
    lambda: {},
    lambda: slice(0, 9, 2),
    lambda: slice(Index(), Index(), None),
    lambda: slice(None, None, -1),
    lambda: [(1, evil()), (2, evil())],
    lambda: memoryview(b"abcd"),
    lambda: range(5),
    lambda: iter([1, evil()]),
    lambda: few(Index),
    lambda: few(Real),
]


def fresh():
    """Something whose memory can be taken away."""
    try:
        return M.one_of(VICTIMS)()
    except TypeError:  # iter() of what has no iterator
        return bytearray(7)


def some():
    """An argument."""
    kind = M.below(24)
    if kind < 8:
        return evil()
    if kind < 14 and M.pool:
        return M.one_of(M.pool)
    return M.one_of(ARGUMENTS)()


def arguments():
    args = [some() for _ in range(M.one_of([0, 1, 1, 2, 2, 2, 3, 3, 4]))]
    named = {}
    if M.below(6) == 0:
        named[
            M.one_of(
                [
                    "key",
                    "default",
                    "initial",
                    "reverse",
                    "maxlen",
                    "repeat",
                    "start",
                    "sep",
                    "flags",
                    "count",
                    "fillvalue",
                    "func",
                    "times",
                    "last",
                    "encoding",
                    "errors",
                    "strict",
                    "sort_keys",
                    "indent",
                    "bytes_per_sep",
                    "n",
                    "weights",
                    "k",
                ]
            )
        ] = some()
    return args, named


def operate(a, b, c):
    how = M.below(14)
    if how < 5:
        binary = M.one_of(BINARY)
        is_repeat = binary is operator.mul or binary is operator.imul
        if is_repeat and (isinstance(a, collections.deque) or isinstance(b, collections.deque)):
            return None
        return binary(a, b)
    if how == 5:
        a[b] = c
    elif how == 6:
        a[::2] = b
    elif how == 7:
        del a[b]
    elif how == 8:
        a[b] += c
    elif how == 9:
        a[0:3] = b
    elif how == 10:
        return [item for _, item in zip(range(60), a)]
    elif how == 11:
        first, *rest = a
        return rest
    elif how == 12:
        a += b
        return a
    else:
        match a:
            case [x, y, *_] if x == y:
                return y
            case {"a": x}:
                return x
            case str() | int():
                return b
    return a


def step():
    """One call, method or operator on hostile arguments; what it gives may be worked on later."""
    M.calls += 1
    outer = M.hand
    try:
        which = M.below(10)
        args, named = arguments()
        if which < 4 and M.names:
            M.hand = args
            given = M.target[M.one_of(M.names)](*args, **named)
        elif which < 8:
            thing = M.one_of(M.pool)
            if type(thing) is memoryview:
                thing = memoryview(thing)
            left_out = LEFT_OUT | REPEATS if isinstance(thing, collections.deque) else LEFT_OUT
            names = [] if isinstance(thing, Evil) else [name for name in dir(thing) if name not in left_out]
            M.hand = [thing, *args]
            M.method_of = thing
            given = getattr(thing, M.one_of(names))(*args, **named) if names else None
        else:
            M.hand = [M.one_of(M.pool), some(), some()]
            given = operate(*M.hand)
        if keepable(given):
            if len(M.pool) < 30:
                M.pool.append(given)
            else:
                M.pool[M.below(30)] = given
    except Exception:
        pass
    finally:
        M.hand = outer
        M.method_of = None


def keepable(thing):
    if type(thing) is int:
        return -(1 << 80) < thing < 1 << 80
    if type(thing) in (str, bytes, bytearray, list, tuple, dict, set, array.array, collections.deque):
        return len(thing) < 3000
    return thing is not None and thing is not NotImplemented


class Runnable(BaseSecureRunnable):
    def process(self, queries):
        done = []
        for query in queries:
            M.begin(query["seed"], query["target"])
            M.event = self.event
            M.pool = [fresh() for _ in range(12)]  # with no fuel yet, so that nothing meddles
            for _ in range(query["steps"]):
                M.fuel = 12
                step()
            done.append([M.calls, M.meddled])
            M.fuel = 0
            M.pool = M.hand = M.spray = []
        return done
