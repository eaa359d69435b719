"""Hooks of classes: fallbacks, descriptors, registration of subclasses."""


class Row:
    def __init__(self, **columns):
        self._columns = columns

    def __getattr__(self, name):
        try:
            return self._columns[name]
        except KeyError:
            raise AttributeError(f"no column {name!r}") from None


class Proxy:
    def __init__(self, target):
        self.target = target
    def __getattr__(self, name):
        return getattr(self.target, name)


def check_getattr():
    row = Row(a=1, b="x")
    try:
        row.c
    except AttributeError as err:
        missing = str(err)
    return [row.a, getattr(row, "b"), hasattr(row, "z"), missing, getattr(row, "q", 7), Proxy([3, 1]).index(1), Proxy("ab").upper()]


class Plugin:
    registry = {}

    def __init_subclass__(cls, /, name=None, **kwargs):
        super().__init_subclass__(**kwargs)
        Plugin.registry[name or cls.__name__.lower()] = cls

    def run(self, x): return x


class Double(Plugin):
    def run(self, x): return x * 2


class Square(Plugin, name="sq"):
    def run(self, x): return x * x


def check_registry():
    return {name: cls().run(3) for name, cls in sorted(Plugin.registry.items())}


class Typed:
    def __init__(self, kind, default=None):
        self.kind, self.default = kind, default
    def __set_name__(self, owner, name):
        self.name = name
    def __get__(self, obj, owner=None):
        if obj is None:
            return self
        return obj.values.get(self.name, self.default)
    def __set__(self, obj, value):
        if not isinstance(value, self.kind):
            raise TypeError(f"{self.name} must be {self.kind.__name__}")
        obj.values[self.name] = value
    def __delete__(self, obj):
        obj.values.pop(self.name, None)


class Product:
    price = Typed(float, 0.0)
    title = Typed(str)

    def __init__(self, title, price):
        self.values = {}
        self.title = title
        self.price = price


def check_descriptors():
    p = Product("pen", 1.5)
    q = Product("ink", 2.0)
    p.price = 3.0
    try:
        p.title = 5
    except TypeError as err:
        bad = str(err)
    del q.price
    return [p.title, p.price, q.price, bad, Product.title.name, p.values]


class Lazy:
    def __init__(self, f): self.f = f
    def __set_name__(self, owner, name): self.name = "_lazy_" + name
    def __get__(self, obj, owner=None):
        if obj is None: return self
        if not hasattr(obj, self.name):
            setattr(obj, self.name, self.f(obj))
        return getattr(obj, self.name)


class Report:
    made = 0
    @Lazy
    def body(self):
        Report.made += 1
        return "text"


def check_lazy():
    r = Report()
    return [r.body, r.body, Report.made]


class Container:
    def __class_getitem__(cls, item): return f"{cls.__name__}[{item.__name__}]"


class Immutable:
    def __init__(self, x):
        object.__setattr__(self, "x", x)
    def __setattr__(self, name, value):
        raise AttributeError(f"{name} is read-only")
    def __delattr__(self, name):
        raise AttributeError(f"{name} stays")


class Audited:
    def __init__(self): self.log = []; self.x = 1
    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name != "log": self.log.append(name)


def check_setattr():
    i = Immutable(3)
    out = []
    try:
        i.x = 4
    except AttributeError as err:
        out.append(str(err))
    try:
        del i.x
    except AttributeError as err:
        out.append(str(err))
    a = Audited()
    a.y = 2
    setattr(a, "z", 3)
    return [i.x, out, a.log, Container[int]]


class Made:
    made = []
    def __new__(cls, *args, **kwargs):
        self = super().__new__(cls)
        cls.made.append(args)
        return self
    def __init__(self, x): self.x = x


class Single:
    _it = None
    def __new__(cls):
        if cls._it is None:
            cls._it = super().__new__(cls)
        return cls._it


class Upper(str):
    def __new__(cls, value):
        return super().__new__(cls, value.upper())


class Celsius(float):
    def __new__(cls, v): return float.__new__(cls, round(v, 1))


class Version(tuple):
    def __new__(cls, text): return tuple.__new__(cls, map(int, text.split(".")))


def check_new():
    return [Made(1).x, Made.made, Single() is Single(), Upper("ab"), Celsius(1.26), Version("1.2") < Version("1.10")]


class WithDict:
    kind = "w"
    def __init__(self): self.a, self._b = 1, 2
    def to_dict(self): return dict(self.__dict__)
    def public(self): return {k: v for k, v in vars(self).items() if not k.startswith("_")}
    @classmethod
    def from_dict(cls, d):
        self = cls()
        self.__dict__.update(d)
        return self


def check_dict():
    w = WithDict.from_dict({"a": 5, "c": 6})
    return [w.to_dict(), w.public(), w.c, w.__dict__["a"], sorted(vars(w))]


def check_introspection():
    def f(a, b=1): ...
    return [f.__name__, WithDict.__name__, WithDict().__class__.__name__, [n for n in dir(WithDict()) if not n.startswith("_")], WithDict.__module__ != "", f.__qualname__, check_dict.__module__ == WithDict.__module__]


class Runnable:
    def process(self, queries):
        return [
            check_getattr(),
            check_registry(),
            check_descriptors(),
            check_lazy(),
            check_setattr(),
            check_new(),
            check_dict(),
            check_introspection(),
        ]
