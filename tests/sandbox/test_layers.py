"""Each layer of the wall by itself: what the language stops with no jail around it, and what the jail stops
with no language inside it.

The attacks on the language run in a plain process and hand back whatever they got hold of; an attack has
failed when that is nothing of the interpreter's or the host's, and when nothing that programs share has
changed. The attacks on the system are plain Python in a sealed process. So no rule of one layer hides behind
the other.
"""

from __future__ import annotations

import _abc  # type: ignore[import-not-found]
import abc
import asyncio
import builtins
import contextlib
import dis
import inspect
import itertools
import json
import signal
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from processor import runnable
from processor.errors import Faults
from processor.model import Failed, Group, Limits, Program
from processor.sandbox import capabilities, dialect, facades, values
from processor.sandbox.bounds import Bounds
from processor.sandbox.dialect import verifier
from processor.sandbox.facades import guards
from processor.sandbox.host import Zygote
from processor.sandbox.messages import InHand

HERE = Path(__file__).parent
DENIED = sorted((HERE / "denied").glob("*.py"))

# The language without the jail.


def loaded(source: str) -> Any:
    """An instance of the program's Runnable, made as a guest makes it but in this very process."""
    program = Program(textwrap.dedent(source), "attack.py")
    code = dialect.compile_program(program)
    space = dialect.namespace(dialect.Runtime(capabilities.GuestRunnable, lambda *_: None))
    exec(code, space)
    voice = capabilities.Voice(
        call=lambda *_: {},
        emit=lambda *_: None,
        event=lambda *_: None,
        logger=space["logger"],
        requests=None,
        secrets=capabilities.Secrets({}),
        in_hand=InHand(),
    )
    bounds = Bounds(Limits())
    return capabilities.make(dialect.runnable_class(space), values.Keeper(bounds).context, voice)


def in_process(lines: str) -> str:
    """A program whose process() is `lines`."""
    return f"class Runnable:\n    def process(self, queries):\n{textwrap.indent(lines, ' ' * 8)}\n"


def outcome(source: str) -> Any:
    """What the program returns, or the exception that stopped it."""
    try:
        return loaded(source).process([])
    except (Faults, Exception) as err:
        return err


_FUNCTIONS = (
    open, eval, exec, compile, __import__, getattr, setattr, delattr, vars, globals, locals, dir, input,
    breakpoint,
)  # fmt: skip
# Methods that read or set any name, or take an object apart: with one of them a user needs no other.
_METHODS = frozenset(
    f"__{name}__"
    for name in facades.words(
        "getattribute setattr delattr reduce reduce_ex subclasses dir getattr new get set setstate"
    )
)


def loot(ob: Any, depth: int = 4) -> str:
    """What there is among `ob` that no Runnable may get hold of; empty for nothing."""
    kind = type(ob)
    if kind is types.ModuleType:
        return "" if ob.__name__.startswith("runnable.") else f"the module {ob.__name__}"
    if kind in (types.FrameType, types.CodeType, types.CellType):
        return f"a {kind.__name__}"
    if isinstance(ob, type):
        if issubclass(ob, type):
            return "" if ob is facades.TYPE else f"the metaclass {ob.__name__}"
        home = vars(sys.modules.get(ob.__module__, types))
        known = type(ob) is not type or ob in guards.user_classes or ob.__qualname__ != ob.__name__
        return "" if known or home.get(ob.__name__) is ob else f"{ob!r}, a class that no class statement made"
    if kind is capabilities.Voice:
        return "what speaks to the host"
    if any(ob is function for function in _FUNCTIONS):
        return f"the function {ob.__name__}"
    if inspect.isroutine(ob) and not inspect.isfunction(ob) and getattr(ob, "__name__", "") in _METHODS:
        return f"the method {ob.__name__}"
    if kind is types.MappingProxyType and "__module__" in ob:
        return "the names of a class"
    if isinstance(ob, dict) and {"__builtins__", "__import__"} & ob.keys():
        return "the names of a module"
    if isinstance(ob, str):
        return (
            f"the text {ob!r}"
            if any(mark in ob for mark in ("<frame at", "<code object", "<module '"))
            else ""
        )
    inner: list[Any] = []
    if isinstance(ob, dict):
        inner = [*dict.keys(ob), *dict.values(ob)]
    elif isinstance(ob, (list, tuple, set, frozenset)):
        inner = list(ob)
    elif isinstance(ob, BaseException):
        inner = list(ob.args)
    return next(filter(None, (loot(item, depth - 1) for item in inner)), "") if depth else ""


def host_classes() -> set[type]:
    """Every class that a program can name, with its bases."""
    found: set[type] = {facades.Logger, capabilities.GuestRunnable, dialect.Reject, dialect.Retry}
    found |= {runnable.Headers, runnable.Message}
    found.update(facades.EXCEPTIONS.values(), guards.bases_allowed)
    for module in facades.MODULES.values():
        found.update(ob if isinstance(ob, type) else type(ob) for ob in vars(module).values())
    return {base for kind in found for base in kind.__mro__} - guards.user_classes - {types.ModuleType}


def shared() -> dict[str, Any]:
    """A picture of everything that two programs in one process have in common."""
    picture: dict[str, Any] = {"recursion": sys.getrecursionlimit()}
    for name, module in facades.MODULES.items():
        for key, ob in vars(module).items():
            picture[f"{name}.{key}"] = id(ob)
            if inspect.isfunction(ob):
                picture[f"{name}.{key}()"] = (
                    id(ob.__code__),
                    ob.__defaults__,
                    ob.__kwdefaults__,
                    sorted(vars(ob)),
                )
            if isinstance(ob, (dict, list, set)):
                picture[f"{name}.{key}[]"] = repr(ob)
    for kind in host_classes():
        # A stand-in has the name of what it stands in for.
        called = f"{kind.__module__}.{kind.__qualname__} at {id(kind):#x}"
        for key, ob in vars(kind).items():
            if key not in ("_abc_impl", "__slotnames__", "__doc__"):
                picture[f"{called}: {key}"] = repr(ob)
        if isinstance(kind, abc.ABCMeta):
            registry, *_ = _abc._get_dump(kind)
            picture[f"{called}: registered"] = len(registry)
    picture.update((key, id(ob)) for key, ob in vars(builtins).items() if key != "_")
    return picture


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """Insist that what programs share is the same after as before."""
    before = shared()
    yield
    after = shared()
    assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} == set()


# Ways to get something of `x`, the object that an attack wants to take apart.
WAYS = {
    "attribute": "return [x.{name}]",
    "getattr": "return [getattr(x, '{name}')]",
    "getattr by parts": "return [getattr(x, '{name}'[:3] + '{name}'[3:], None)]",
    "getattr in map": "return list(map(getattr, [x], ['{name}']))",
    "getattr in partial": "import functools\nreturn [functools.partial(getattr, x)('{name}')]",
    "attrgetter": (
        "import operator, types\nreturn [operator.attrgetter('a.{name}')(types.SimpleNamespace(a=x))]"
    ),
    "methodcaller": "import operator\nreturn [operator.methodcaller('{name}')(x)]",
    "own str": "import enum\nclass S(enum.StrEnum):\n    a = '{name}'\nreturn [getattr(x, S.a)]",
    "full width": "return [x.{wide}]",
    "getattr in full width": "return [getattr(x, '{wide}')]",
    "format": "return ['{{0.{name}}}'.format(x)]",
    "format behind an item": "return ['{{0[0].{name}!r:>9}}'.format([x])]",
    "format in a specification": "return ['{{:{{1.{name}}}}}'.format(1, x)]",
    "format_map": "return ['{{a.{name}}}'.format_map({{'a': x}})]",
    "format of the class": "return [str.format('{{0.{name}}}', x)]",
    "format by name": "return [getattr('{{0.{name}}}', 'format')(x)]",
    "format by methodcaller": "import operator\nreturn [operator.methodcaller('format', x)('{{0.{name}}}')]",
    "format of a user string": (
        "import collections\nreturn [collections.UserString('{{0.{name}}}').format(x)]"
    ),
    "format of an own str": (
        "import enum\nclass S(enum.StrEnum):\n    a = '{{0.{name}}}'\nreturn [S.a.format(x)]"
    ),
    "f-string": "return [f'{{x.{name}!r}}']",
    "class pattern": "match x:\n    case object({name}=found):\n        return [found]",
    "positional pattern": (
        "class P(type(x)):\n    __match_args__ = ('{name}',)\n"
        "match x:\n    case P(found):\n        return [found]"
    ),
    "pattern value": "match 1:\n    case x.{name}:\n        return [1]",
    "named tuple pattern": (
        "import typing\nclass P(typing.NamedTuple):\n    a: int\n    __match_args__ = ('{name}',)\n"
        "match P(1):\n    case P(found):\n        return [found]"
    ),
    "data class": (
        "import dataclasses\n@dataclasses.dataclass\nclass P(type(x)):\n    {name}: object\n"
        "return [dataclasses.astuple(P(1))]"
    ),
    "super": "class P(type(x)):\n    def get(self):\n        return super().{name}\nreturn [P().get()]",
    "in-place": "x.{name} += 1\nreturn [x]",
    "decorator": "@x.{name}\ndef found():\n    pass\nreturn [found]",
    "default": "return [(lambda found=x.{name}: found)()]",
    "walrus": "return [(y := x).{name}]",
    "annotation": "y: x.{name} = 1\nreturn [y]",
    "import": "from json import {name}\nreturn [{name}]",
    "vars": "return [vars(x)['{name}']]",
    "copy": "import copy\nreturn [copy.deepcopy(x).{name}]",
    "wraps": "import functools\nreturn [functools.wraps(x)(lambda: 0).{name}]",
}
# How to come by an `x`, and what there is to take.
OBJECTS = {
    "generator": ("x = (number for number in [1])", "gi_frame gi_code gi_yieldfrom"),
    "function": ("x = lambda a=1: a", "__globals__ __code__ __closure__ __defaults__ __builtins__ __get__"),
    "function of the host": ("x = json.dumps", "__globals__ __code__ __kwdefaults__ __wrapped__ __module__"),
    "method": ("x = self.process", "__func__ __self__ __getattribute__ __reduce__"),
    "built-in": ("x = len", "__self__ __reduce__ __getattribute__"),
    "class": ("x = type(self)", "__mro__ __bases__ __subclasses__ mro __getattribute__ __class__"),
    "class of the host": ("x = json.JSONEncoder", "__mro__ __subclasses__ __dict__ mro __new__ __setattr__"),
    "instance": ("x = self", "__class__ __reduce_ex__ __getattribute__ __dir__ __setattr__ _voice"),
    "exception": (
        "try:\n    json.nothing\nexcept AttributeError as err:\n    x = err",
        "__traceback__ with_traceback obj __reduce__ __setstate__",
    ),
    "traceback": (
        "class Taker:\n    def __enter__(self):\n        return self\n"
        "    def __exit__(self, kind, err, trace):\n        self.trace = trace\n        return True\n"
        "with Taker() as taker:\n    1 / 0\nx = taker.trace",
        "tb_frame tb_next",
    ),
    "module": ("x = json", "__dict__ __loader__ __spec__ __class__ codecs decoder sys"),
    "property": ("import collections\nx = collections.ChainMap.parents", "fget fset __get__ __set__"),
    "alias": ("x = list[int]", "__origin__ mro __mro_entries__ __getattribute__ __reduce__"),
    "context manager": (
        "import contextlib\n@contextlib.contextmanager\ndef managed():\n    yield 1\nx = managed()",
        "gen func _recreate_cm gi_frame",
    ),
    "cached function": (
        "import functools\n@functools.cache\ndef x():\n    return 1",
        "__wrapped__ __globals__ cache_parameters",
    ),
    "enumeration": (
        "import enum\nclass Kind(enum.Enum):\n    one = 1\nx = Kind",
        "_member_map_ __class__ mro _create_ __prepare__ _convert_",
    ),
    "logger": ("x = logger", "_write __class__ __slots__"),
}


def wide(name: str) -> str:
    return "".join(chr(ord(char) + 0xFEE0) if char.isascii() and char.isalpha() else char for char in name)


@pytest.mark.parametrize("kind", OBJECTS)
def test_nothing_is_taken_apart_in_any_way(kind: str) -> None:
    """Every way to an attribute ends at the same rules, whatever the object is."""
    made, names = OBJECTS[kind]
    with unchanged():
        for name in names.split():
            for way, text in WAYS.items():
                lines = f"{made}\n{text.format(name=name, wide=wide(name))}"
                found = outcome(in_process(lines))
                assert not loot(found), (way, name, found)


# Attacks that are no pattern. Each hands back what it found; `loot` says what is wrong with that.
ESCAPES = {
    "a method that copy takes for a name": """
        import copy
        def gi_frame(self):
            pass
        class Holder:
            get = gi_frame
        class Runnable:
            def process(self, queries):
                holder, numbers = Holder(), (number for number in [1])
                moved = copy.deepcopy(holder.get, {id(holder): numbers})
                return [copy.copy(holder.get), copy.copy(moved)]
        """,
    "a copied method with the name of a class": """
        import copy, functools
        class gi_code:
            pass
        @functools.wraps(gi_code)
        def get(self):
            pass
        class Holder:
            get = get
        class Runnable:
            def process(self, queries):
                return [copy.copy(Holder().get), copy.deepcopy(Holder().get)]
        """,
    "a memo that says what the copy is": """
        import copy
        class Liar:
            def __deepcopy__(self, memo):
                memo[id(1)] = "__globals__"
                return self
        class Runnable:
            def process(self, queries):
                return copy.deepcopy([Liar(), 1, "".join, self.process, len, lambda: 0])
        """,
    "what is read in place": """
        class Taker:
            def __radd__(self, found):
                return found
        class Holder:
            pass
        class Runnable:
            def process(self, queries):
                setattr(Holder, "a", Taker())
                Holder.mro += Taker()
                return [Holder.mro()]
        """,
    "a pattern whose class changes": """
        import enum, json
        Chosen = None
        class Own:
            __match_args__ = ("a",)
        def change():
            global Chosen
            Chosen = type(enum.auto())
        class Runnable:
            def process(self, queries):
                global Chosen
                Chosen = Own
                match enum.auto():
                    case _ if change():
                        pass
                    case Chosen(found):
                        return [found]
        """,
    "an enumeration that builds classes": """
        import enum, re, uuid
        class Kind(enum.Enum):
            a = 1
        class Runnable:
            def process(self, queries):
                found = []
                kinds = (type(re.I), type(uuid.uuid4().is_safe), Kind, type(Kind.a), Kind.__class__)
                for kind in (*kinds, *map(type, kinds)):
                    for arguments in (("X", "b"), ("X", {"__reduce__": len}), ("X", (), {})):
                        try:
                            found.append(kind(*arguments))
                        except (TypeError, ValueError):
                            pass
                return found
        """,
    "every class called as type is": """
        class Runnable:
            def process(self, queries):
                found = []
                things = [1, "", [], json, json.dumps, self, type(self), len, lambda: 0, json.JSONEncoder]
                for thing in things:
                    for kind in (type(thing), type(type(thing)), thing.__class__, thing.__class__.__class__):
                        for arguments in (("X", (), {}), ("X", (object,), {"__del__": len}), (len, {})):
                            try:
                                made = kind(*arguments)
                                found.append(type(made))
                            except (TypeError, ValueError):
                                pass
                return found
        """,
    "an annotation that is read": """
        import functools
        @functools.singledispatch
        def show(x):
            return x
        @show.register
        def show_function(x: "(lambda: 0).__globals__"):
            return x
        class Runnable:
            def process(self, queries):
                return [show.registry]
        """,
    "an object with every attribute": """
        class Open:
            def __getattr__(self, name):
                return {"__self__": 1, "__objclass__": int, "__func__": len}.get(name, "{0.gi_frame}".join)
        class Runnable:
            def process(self, queries):
                names = "format", "register", "obj", "fget", "__class__"
                return [getattr(Open(), name, None) for name in names]
        """,
    "a Runnable that intercepts what it is given": """
        class Runnable(BaseSecureRunnable):
            given = {}
            def __setattr__(self, name, value):
                self.given[name] = value
            def process(self, queries):
                return list(self.given.values())
        """,
    "super of everything": """
        class Base:
            @classmethod
            def of_class(cls):
                return [super().__init__, super().__eq__, super().__init_subclass__]
            def of_self(self):
                return [super().__setattr__, super().__new__, super().__init__]
        class Runnable:
            def process(self, queries):
                found = []
                for get in (Base.of_class, Base().of_self):
                    try:
                        found += get()
                    except AttributeError:
                        pass
                given = (json, "dumps", 1), (Base, "__class__", int), ("__class__", int), (type, "X", (), {})
                for function in list(found):
                    for arguments in given:
                        try:
                            found.append(function(*arguments))
                        except (AttributeError, TypeError):
                            pass
                return [item for item in found if item is not None and not callable(item)]
        """,
}


@pytest.mark.parametrize("attack", ESCAPES)
def test_an_escape_gets_hold_of_nothing(attack: str) -> None:
    """What an attack hands back is its own, and nothing of the interpreter's."""
    with unchanged():
        found = outcome(ESCAPES[attack])
    assert not loot(found), found


# One program writes, or tries to; the next must find everything as it was.
WRITES = """
    json.dumps = len
    json.dumps += 1
    del json.dumps
    setattr(json, 'dumps', len)
    delattr(json, 'dumps')
    json.dumps.x = 1
    json.__dict__['dumps'] = len
    vars(json).update(dumps=len)
    object.__setattr__(json, 'dumps', len)
    for json.dumps in [len]: pass
    with contextlib.nullcontext(len) as json.dumps: pass
    json.dumps, rest = len, 1
    json.dumps: object = len
    [0 for json.dumps in [len]]
    json.JSONEncoder.default = len
    setattr(json.JSONEncoder, 'default', len)
    object.__setattr__(json.JSONEncoder, 'default', len)
    super(json.JSONEncoder, self).__setattr__('a', 1)
    Encoder.raw()(json.JSONEncoder, default=len)
    Encoder().raw_of_other_self()(json.JSONEncoder)
    random.Random.setstate(json, (3, (), 1))
    random.Random.gauss(json, 0, 1)
    collections.abc.Sequence.register(Encoder)
    collections.abc.Iterator[int].register(Encoder)
    operator.methodcaller('register', Encoder)(numbers.Number)
    getattr(abc.ABC, 'register')(Encoder)
    collections.ChainMap.maps = []
    collections.Counter.x = 1
    enum.Enum.x = 1
    types.SimpleNamespace.x = 1
    decimal.Context.prec = 3
    ValueError.x = 1
    ValueError().x = 1
    Reject.x = 1
    BaseSecureRunnable.process = 1
    logger.info = len
    type(logger).info = len
    typing.Any.x = 1
    time.time = len
    Any.x = 1
    hashlib.algorithms_guaranteed.add('x')
    textwrap.TextWrapper.unicode_whitespace_trans.clear()
    functools.update_wrapper(json.dumps, len)
    functools.wraps(len)(json.JSONEncoder.default)
    functools.total_ordering(json.JSONEncoder)
    abc.abstractmethod(json.dumps)
    dataclasses.dataclass(json.JSONEncoder)
    dataclasses.MISSING.x = 1
    calendar.day_name.x = 1
    functools.cached_property(len).attrname = 'x'
    len.x = 1
    super.x = 1
    type.x = 1
    print.x = 1
    getattr.x = 1
    int.x = 1
    zoneinfo.ZoneInfo.clear_cache()
    string.Template.delimiter = '!'
"""


@pytest.mark.parametrize("write", [line.strip() for line in WRITES.strip().splitlines()])
def test_no_program_changes_what_another_one_has(write: str) -> None:
    """Modules, functions, classes and their registries are the same for the next program."""
    source = f"""
import abc, calendar, collections.abc, contextlib, dataclasses, decimal, enum, functools, hashlib, json
import numbers, operator, random, string, textwrap, types, typing, zoneinfo

class Encoder(json.JSONEncoder):
    @classmethod
    def raw(cls):
        return super().__init__
    def raw_of_other_self(self):
        self = Encoder
        return super().__init__

class Runnable:
    def process(self, queries):
        {write}
        return []
"""
    with unchanged():
        outcome(source)


def test_what_a_class_of_the_hosts_does_to_self_is_only_done_to_its_own() -> None:
    """A method of a host class that sets attributes of `self`, or calls its class, refuses a stranger."""
    suspects = []
    for kind in host_classes():
        for name, member in vars(kind).items():
            function = member.fget if isinstance(member, property) else member
            ours = kind.__module__.partition(".")[0] == "processor"
            if ours or name.startswith("_") or not inspect.isfunction(function):
                continue
            steps = list(dis.get_instructions(function.__code__))
            for before, step in itertools.pairwise(steps):
                on_self = before.opname == "LOAD_FAST" and before.argval == "self"
                sets = step.opname == "STORE_ATTR" and not step.argval.startswith("_") and function is member
                if on_self and (sets or step.argval == "__class__"):
                    suspects.append(f"{kind.__name__}.{name}")
    assert suspects == []


def test_no_denied_program_does_anything_first(tmp_path: Path) -> None:
    """With no jail around it each denied program is stopped before it opens, runs or imports anything."""
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from test_layers import outcome
        from processor.errors import Faults
        from processor.sandbox import dialect
        dialect.preload()
        watched = ("open", "import", "os.", "socket.", "subprocess.", "ctypes.", "gc.", "sys._getframe")
        seen, armed = [], []
        def hook(event, arguments):
            source = event == "open" and arguments[0] == "attack.py"  # which the parser's errors quote
            if armed and event.startswith(watched) and not source:
                seen.append((armed[0], event, str(arguments)[:80]))
        sys.addaudithook(hook)
        programs = [(path, Path(path).read_text()) for path in sys.argv[2:]]
        for path, source in programs:
            outcome(source)  # once, for what the compiler and the error texts load at their first use
        for path, source in programs:
            armed.append(path)
            found = outcome(source)
            armed.clear()
            assert isinstance(found, BaseException) or path.endswith("/no_runnable.py"), (path, found)
        print(seen)
        """)
    )
    done = subprocess.run(
        [sys.executable, str(script), str(HERE), *map(str, DENIED)],
        capture_output=True, text=True, timeout=60, check=False, env={"PYTHONPATH": str(HERE.parent.parent)},
    )  # fmt: skip
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


# The verifier without the transformer, and the other way about.


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("f = super", "super as a value"),
        ("class A:\n def f(self): return [super]", "super as a value"),
        ("class A:\n def f(self): return g(super(), 'a')", "super as a value"),
        ("class A:\n def f(self): return super(A, self).x", "super"),
        ("class A:\n def f(self): return super().__init__", "the attribute '__init__' is not allowed"),
        ("class A:\n def f(self): return super().obj", "the attribute 'obj' is read without its guard"),
        ("def f(super): pass", "the variable 'super' is not allowed"),
        ("def f(__class__): pass", "the variable '__class__' is not allowed"),
        (
            "class A:\n def f(self):\n  nonlocal __class__\n  __class__ = int",
            "setting the variable '__class__'",
        ),
        (
            "class A:\n def f(self):\n  def g():\n   nonlocal __class__\n   del __class__",
            "setting the variable",
        ),
        ("from .json import dumps", "not named from the top"),
        ("from . import json", "not named from the top"),
        ("from json import register", "the attribute 'register' is read without its guard"),
        ("from json import gi_frame", "the attribute 'gi_frame' is not allowed"),
        ("x.register(1)", "the attribute 'register' is read without its guard"),
        ("x.mro += 1", "the attribute 'mro' is read without its guard"),
        ("x.\uff47\uff49_frame", "the attribute 'gi_frame' is not allowed"),
        ("x.__\uff43lass__", "the attribute '__class__' is not allowed"),
        ("match x:\n case object(\uff47\uff49_frame=y): pass", "the attribute 'gi_frame' is not allowed"),
        ("match x:\n case y.__class__: pass", "the attribute '__class__' is not allowed"),
        ("match x:\n case y.__class__(): pass", "the attribute '__class__' is not allowed"),
        ("__class__", "the name '__class__' is not allowed"),
        ("[0 for x.y in z]", "an attribute is set without its guard"),
        ("with x as y.z: pass", "an attribute is set without its guard"),
        ("async def f():\n async with x: pass", "asynchronous code is not allowed"),
        ("async def f():\n return [y async for y in x]", "asynchronous code is not allowed"),
        ("async def f():\n await x", "asynchronous code is not allowed"),
        ("(lambda: (yield))().gi_yieldfrom", "the attribute 'gi_yieldfrom' is not allowed"),
        (
            "x.cr_frame, x.ag_code, x.tb_next, x.f_builtins, x.co_consts",
            "the attribute 'co_consts' is not allowed",
        ),
    ],
)
def test_the_verifier_alone(source: str, complaint: str) -> None:
    """Code that no transformer has seen is refused for what it does."""
    complaints = [text for _, text in dialect.verify(compile(source, "attack.py", "exec"))]
    assert any(complaint in text for text in complaints), complaints


def test_a_constant_that_no_source_has_is_refused() -> None:
    """What is smuggled among the constants of a code object, at any depth, is found."""
    code = compile("x = 1", "attack.py", "exec")
    for constant in (open, sys, (1, (open,)), type):
        complaints = dialect.verify(code.replace(co_consts=(*code.co_consts, constant)))
        assert any("a constant of type" in text for _, text in complaints), constant


@pytest.mark.parametrize(("source", "name"), [("x = 1", "~read"), ("del x", "~class"), ("x", "~build")])
def test_a_guard_cannot_be_put_in_place_of_another(source: str, name: str) -> None:
    """The names that stand for guards are read, and only those that are guards; no code binds them."""
    code = compile(source, "attack.py", "exec")
    complaints = dialect.verify(code.replace(co_names=(name,)))
    assert [text for _, text in complaints] == [f"the name {name!r} is not allowed"]


# What no look at the code can tell: these are for the guards, at run time.
DYNAMIC = ["x.count", "getattr(x, '__class__')", "'{0.x}'", "f(*x)", "eval"]


@pytest.mark.parametrize("source", DYNAMIC)
def test_the_verifier_leaves_to_the_guards_what_depends_on_values(source: str) -> None:
    """What only the objects decide is not the verifier's to judge: it says nothing rather than guess."""
    assert dialect.verify(compile(source, "attack.py", "eval")) == []


def test_a_python_that_was_not_reviewed_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version of Python whose operations nobody has read is refused in so many words."""
    assert sys.version_info[:2] in verifier.REVIEWED
    monkeypatch.setattr(verifier, "REVIEWED", frozenset({(3, 9), (3, 10)}))
    found = "{}.{}".format(*sys.version_info)
    assert dialect.verify(compile("x = 1", "attack.py", "exec")) == [
        (1, f"the operations of Python {found} were not reviewed: run a Runnable on one of 3.9, 3.10")
    ]


@pytest.mark.parametrize("path", DENIED, ids=lambda path: path.stem)
def test_the_transformer_needs_no_verifier(path: Path) -> None:
    """What is refused when it is compiled is refused in the user's terms, before bytecode is looked at."""
    found = outcome(path.read_text())
    faults = found.faults if isinstance(found, Faults) else []
    assert not [fault for fault in faults if "the verifier" in fault.text]


# The jail without the language: what an escape would want to do next, in plain Python.


@pytest.mark.parametrize(
    "payload",
    [
        "os.system('id')",
        "os.posix_spawn('/bin/id', ['id'], {})",
        "os.kill(os.getppid(), 9)",
        "os.killpg(0, 9)",
        "socket.socket().connect(('127.0.0.1', 4222))",
        "socket.socket(socket.AF_UNIX).connect('/run/docker.sock')",
        "ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0)",
        "ctypes.CDLL(None).syscall(319, b'x', 0)",
        "[os.fork() for _ in range(10**6)]",
        "threading.Thread(target=os.getpid).start()",
    ],
)
def test_the_jail_alone_kills(jailed: Any, payload: str) -> None:
    """Code that has the whole of Python dies of what only an attack does."""
    escaped = "().__class__.__base__.__subclasses__()[0].__init__"
    died = jailed(f"{escaped}\nresult = repr({payload})")
    assert (died.exit, died.result) == (-signal.SIGSYS, None)


@pytest.mark.parametrize(
    "payload",
    [
        "open('/etc/hostname').read()",
        "open('/proc/self/environ', 'rb').read()",
        "open('/proc/1/environ', 'rb').read()",
        "open('/proc/self/mem', 'r+b')",
        "os.open('/dev/shm/x', os.O_CREAT | os.O_RDWR)",
        "os.write(1, b'out')",
        "os.write(4, b'forged')",
        "os.symlink('/', '/x')",
        "subprocess.check_output(['id'])",
        "__import__('importlib').import_module('wsgiref')",
    ],
)
def test_the_jail_alone_refuses(jailed: Any, payload: str) -> None:
    """Code that has the whole of Python finds no file, no variable and no other descriptor."""
    outcome = jailed(f"result = repr({payload})")
    assert outcome.result is None
    assert outcome.error.partition(":")[0] in (
        "PermissionError",
        "OSError",
        "FileNotFoundError",
        "ModuleNotFoundError",
    )


# The two together: what a guest's own runtime makes of hostile objects and of bombs.


async def fate(source: str, **limits: Any) -> Any:
    """The failure of one run, or its outputs."""
    zygote = await Zygote.start()
    try:
        lines = textwrap.indent(textwrap.dedent(source), " " * 8)
        program = (
            source
            if "class Runnable" in source
            else f"class Runnable:\n    def process(self, queries):\n{lines}"
        )
        guest = await zygote.spawn(Program(textwrap.dedent(program), "attack.py"), Limits(**limits))
        outcome = await asyncio.wait_for(guest.run([Group("", [json.dumps({"a": 1}).encode()], {})]), 20)
    finally:
        await zygote.close()
    return outcome.failure if isinstance(outcome, Failed) else outcome


OWN_STR = """
import enum
class S(str, enum.Enum):
    a = "abc"
    long = "x" * 300
    def __str__(self): return S.a
    def __getitem__(self, at): return 5
    def __bool__(self): raise ValueError("bool")
    def encode(self, *_): return 5
    def replace(self, *_): return 5
    def join(self, *_): return S.a
    def __mod__(self, _): return 5
    def __add__(self, _): return S.a
    def __format__(self, _): return S.a
    def __eq__(self, _): raise ValueError("eq")
    def __hash__(self): return 1
class Runnable:
"""


@pytest.mark.parametrize(
    ("member", "statement", "code"),
    [
        ("", "raise Reject(S.a)", "E305"),
        ("", "logger.info(S.a, 1)", "E304"),
        ("", "print(1, 2, sep=S.a)", "E304"),
        ("", "self.event(S.a, 1)", "E304"),
        ("", "return self.event(S.long, 1)", "E304"),
        ("", "raise ValueError(S.a)", "E304"),
        ("", "dict.__setitem__(self.context, 5, 1)", "E304"),
        ("process = property(lambda self: 5 / 0)", "", "E304"),
        ("init = property(lambda self: 5 / 0)", "", "E304"),
        ("context = property(lambda self: 5 / 0)", "", "E304"),
        ("def __init__(self): 5 / 0", "", "E304"),
        ("def __setattr__(self, name, value): 5 / 0", "self.a = 1", "E304"),
    ],
)
async def test_no_object_of_the_users_reaches_the_runtime(member: str, statement: str, code: str) -> None:
    """A text, a property or a method of the user's own fails the run it is in, never the guest's own code."""
    process = "" if member.startswith("process") else "    def process(self, queries):\n"
    if process:
        process += f"        {statement or 'pass'}\n        return 5 / 0\n"
    failure = await fate(f"{OWN_STR}    {member}\n{process}")
    assert failure.code == code, failure


async def test_what_crosses_of_an_own_str_is_its_text(spawned: Any, one: Any) -> None:
    """What a text says of itself does not matter: outputs, chunks and events have what is in it."""
    source = f"""{OWN_STR}
    def process(self, queries):
        self.event(S.a, S.a)
        return [S.a]
    def process_stream(self, query):
        return [S.a]
"""
    chunks: list[bytes] = []

    async def take(chunk: bytes) -> None:
        chunks.append(chunk)

    async with spawned(source) as guest:
        outcome = await guest.run([one({"a": 1})])
        await guest.stream(one({"a": 1}), take)
    assert [output.body for output in outcome.outputs] == [b'"abc"']
    assert [(event.name, event.body) for event in outcome.events] == [("abc", b'"abc"')]
    assert chunks == [b"abc"]


BOMBS = {
    "re.match(r'(a+)+$', 'a' * 64 + 'b')": "E312",
    "len(str(10 ** 10 ** 8))": "E312",
    "str(10 ** 5000)": "E304",
    "int('9' * 5000)": "E304",
    "9 ** 9 ** 9 ** 9": "E312",
    "1 << (1 << 40)": "E313",
    "'{:>10000000000}'.format(1)": "E313",
    "f'{1:10000000000}'": "E313",
    "'%*d' % (10 ** 10, 1)": "E313",
    "('a' * 10 ** 6).replace('a', 'b' * 10 ** 6)": "E313",
    "decimal.Context(prec=10 ** 9).sqrt(2)": "E313",
    "format(decimal.Decimal('1e1000000000'), 'f')": "E313",
    "zlib.decompress(zlib.compress(b''), bufsize=10 ** 12)": "E313",
    "list(range(10 ** 12))": "E313",
    "sum(itertools.count())": "E312",
    "json.loads('[' * 10 ** 6)": "E304",
    "functools.reduce(lambda x, _: [x, x], range(40), 'a' * 100)": "E313",
    "functools.reduce(lambda x, _: [x], range(10 ** 5), 1)": "E320",
    "(lambda f: f(f))(lambda f: f(f))": "E304",
    "hashlib.pbkdf2_hmac('sha256', b'a', b'b', 10 ** 9)": "E312",
}


async def test_a_bomb_ends_in_a_limit() -> None:
    """What takes for ever or takes everything, in one call of C too, costs its own run and nothing else."""
    imports = "import decimal, functools, hashlib, itertools, json, re, zlib\n"
    zygote = await Zygote.start()

    async def blow(expression: str, ends: str) -> str:
        # Filling memory takes its time on a busy machine, and must not end as what takes for ever does.
        limits = Limits(wall_s=1.0 if ends == "E312" else 60.0, memory_mb=64)
        source = f"{imports}class Runnable:\n    def process(self, queries):\n        return [{expression}]\n"
        guest = await zygote.spawn(Program(source, "bomb.py"), limits)
        outcome = await asyncio.wait_for(guest.run([Group("", [b"1"], {})]), 90)
        return outcome.failure.code if isinstance(outcome, Failed) else "survived"

    try:
        codes = await asyncio.gather(*(blow(*bomb) for bomb in BOMBS.items()))
    finally:
        await zygote.close()
    assert dict(zip(BOMBS, codes, strict=True)) == BOMBS
