"""Functions of functions: functools, closures, decorators, argument forms."""
import functools
import itertools
import operator
from functools import cache, cached_property, cmp_to_key, lru_cache, partial, partialmethod, reduce, singledispatch, singledispatchmethod, total_ordering, wraps

counter = 0


def check_partial():
    power = partial(pow, exp=2)
    hexa = partial(int, base=16)
    return [power(5), hexa("ff"), list(map(partial(operator.add, 10), [1, 2])), power.func is pow, power.keywords, partial(print, sep="").args, reduce(lambda a, b: a * b, range(1, 6), 1), reduce(operator.or_, [{1}, {2}])]


class Button:
    def set_state(self, state, loud=False): return f"{state}{'!' if loud else ''}"
    on = partialmethod(set_state, "on")
    shout = partialmethod(set_state, "off", loud=True)


def check_partialmethod():
    return [Button().on(), Button().shout(), Button().on(loud=True)]


@singledispatch
def show(value): return f"? {value}"
@show.register
def _(value: int): return f"int {value}"
@show.register(list)
def _(value): return f"list {len(value)}"
@show.register(str)
@show.register(bytes)
def show_text(value): return f"text {value!r}"


class Formatter:
    @singledispatchmethod
    def format_value(self, value): return "?"
    @format_value.register
    def _(self, value: int): return f"i{value}"
    @format_value.register(str)
    def _(self, value): return f"s{value}"


def check_dispatch():
    show.register(float, lambda v: f"float {v}")
    f = Formatter()
    return [show(1), show([1]), show("x"), show(2.5), show(None), show(True), show.dispatch(bool)(3), f.format_value(1), f.format_value("a"), f.format_value(None), show.__name__]


@lru_cache(maxsize=2)
def slow(n):
    global counter
    counter += 1
    return n * n


@cache
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)


def check_caches():
    values = [slow(1), slow(2), slow(1), slow(3), slow(2)]
    info = slow.cache_info()
    slow.cache_clear()
    return [values, counter, info.hits, info.misses, fib(80), slow.cache_info().currsize, tuple(info)]


def trace(label=None, *, log=[]):
    def decorate(f):
        @wraps(f)
        def inner(*args, **kwargs):
            log.append((label or f.__name__, args, sorted(kwargs)))
            return f(*args, **kwargs)
        inner.log = log
        inner.calls = 0
        return inner
    return decorate


class CountCalls:
    def __init__(self, f):
        functools.update_wrapper(self, f)
        self.f, self.n = f, 0
    def __call__(self, *args):
        self.n += 1
        return self.f(*args)


@trace("t")
@trace()
def greet(name, *, mark="!"):
    """Greets."""
    return f"hi {name}{mark}"


@CountCalls
def counted(x): return x + 1


def check_decorators():
    greet.calls += 1
    return [greet("a", mark="?"), greet.log, greet.__name__, greet.__doc__, greet.calls, counted(1), counted(2), counted.n, counted.__name__]


def arguments(a, b=2, /, c=3, *rest, d, e=5, **more): return [a, b, c, rest, d, e, more]


def check_arguments():
    pos, kw = [1, 2, 3, 4], {"d": 6, "z": 7}
    out = [arguments(1, d=4), arguments(*pos, **kw), arguments(*pos[:2], *pos, d=0), arguments(1, c=9, d=1, **{"q": 2})]
    for call in (lambda: arguments(1), lambda: arguments(a=1, d=2), lambda: arguments(1, d=1, **{"d": 2})):
        try:
            call()
        except TypeError as err:
            out.append(str(err))
    return out


def check_closures():
    def make_counter(start=0):
        count = start
        def increment(by=1):
            nonlocal count
            count += by
            return count
        def reset():
            nonlocal count
            count = start
        increment.reset = reset
        return increment
    c = make_counter(5)
    c(); c(2)
    value = c()
    c.reset()
    late = [lambda: i for i in range(3)]
    early = [lambda i=i: i for i in range(3)]
    return [value, c(), [f() for f in late], [f() for f in early], (lambda *a, **k: (a, k))(1, x=2)]


def check_sorting():
    rows = [("b", 2), ("a", 2), ("c", 1)]
    by = sorted(rows, key=operator.itemgetter(1, 0))
    compare = cmp_to_key(lambda x, y: (x[1] > y[1]) - (x[1] < y[1]))
    words = ["Banana", "apple", "cherry"]
    words.sort(key=str.lower)
    objects = [type("x", (), {}) for _ in ()]
    return [by, sorted(rows, key=compare), sorted(rows, key=lambda r: (-r[1], r[0])), words, max(rows, key=lambda r: r[1]), min([], default=None), sorted("bca", reverse=True), list(map(operator.attrgetter("real"), [1, 2])), operator.methodcaller("split", "-")("a-b"), sorted([3, None, 1], key=lambda x: (x is None, x or 0))]


def check_pipeline():
    compose = lambda *fs: reduce(lambda f, g: lambda x: g(f(x)), fs)
    def pipe(value, *steps):
        for step in steps:
            value = step(value)
        return value
    return [compose(str.strip, str.upper, len)("  ab "), pipe([3, 1], sorted, tuple), list(filter(None, [0, 1, "", "a"])), any(x > 2 for x in (1, 3)), all([]), list(map(max, [1, 5], [3, 2]))]


def check_generators():
    def averager():
        total = n = 0
        average = None
        while True:
            value = yield average
            if value is None:
                return total
            total += value; n += 1
            average = total / n
    def outer():
        result = yield from averager()
        yield f"total {result}"
    g = outer()
    next(g)
    out = [g.send(10), g.send(20), g.send(None)]
    g.close()
    def read(lines):
        for line in lines:
            yield line.strip()
    def numbers(lines): return (int(x) for x in lines if x.isdigit())
    def batched(items, n):
        it = iter(items)
        while batch := list(itertools.islice(it, n)):
            yield batch
    def flatten(x):
        for item in x:
            if isinstance(item, (list, tuple)):
                yield from flatten(item)
            else:
                yield item
    try:
        gen = averager(); next(gen); gen.send(None)
    except StopIteration as stop:
        out.append(stop.value)
    return [out, list(batched(numbers(read([" 1", "x", "2 ", "3"])), 2)), list(flatten([1, [2, (3, [4])]])), sum(x * x for x in range(4)), list(itertools.islice(itertools.count(1, 2), 3))]


def check_scope():
    global counter
    before = counter
    counter = 100
    x = 1
    def inner():
        x = 2
        return x
    result = [counter, inner(), x]
    del x
    try:
        x
    except NameError as err:
        result.append(type(err).__name__)
    counter = before
    return result


def check_recipes():
    a, b = itertools.tee([1, 2, 3])
    next(b)
    pairs = list(zip(a, b))
    return [pairs, list(itertools.pairwise("abc")), list(itertools.chain.from_iterable([[1], [2]])), list(itertools.product("ab", repeat=2))[:3], list(itertools.combinations("abc", 2)), list(itertools.permutations([1, 2])), list(itertools.zip_longest("ab", "c", fillvalue="-")), list(itertools.takewhile(lambda x: x < 3, [1, 2, 3, 1])), list(itertools.dropwhile(lambda x: x < 3, [1, 3, 1])), list(itertools.starmap(pow, [(2, 3)])), list(itertools.compress("abc", [1, 0, 1])), list(itertools.repeat("x", 2)), list(itertools.islice(itertools.cycle("ab"), 3)), list(itertools.filterfalse(str.isdigit, "1a"))]


class Runnable:
    def process(self, queries):
        return [
            check_partial(),
            check_partialmethod(),
            check_dispatch(),
            check_caches(),
            check_decorators(),
            check_arguments(),
            check_closures(),
            check_sorting(),
            check_pipeline(),
            check_generators(),
            check_scope(),
            check_recipes(),
        ]
