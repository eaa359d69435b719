"""The language of a Runnable: what it allows, what it refuses in which words, what nobody can reach.

`denied/` and `allowed/` hold programs in pairs: what is refused, and how the same end is reached. The first
line of a denied program says what it is refused with: a code and the beginning of the sentence where it is
refused when it is compiled, an exception where it is refused when it runs. An allowed program has to give
the same result in plain Python.
"""

from __future__ import annotations

import ast
import collections
import datetime
import dis
import hashlib
import json
import logging
import math
import random
import re
import subprocess
import sys
import textwrap
import time
import types
import typing
from pathlib import Path
from typing import Any

import pytest

from processor.errors import Faults
from processor.model import Program
from processor.sandbox import dialect, facades
from processor.sandbox.dialect import verifier
from processor.sandbox.facades import guards

HERE = Path(__file__).parent
DENIED = sorted((HERE / "denied").glob("*.py"))
ALLOWED = sorted((HERE / "allowed").glob("*.py"))
PRICES = {"Time Series (5min)": {"2024-01-02 19:55": {"1. open": "1.5", "4. close": "2.5"}}}


class Base:
    """A base class as a guest has one: a context, and helpers that need the world."""

    def __init__(self) -> None:
        self._voice = "not for users"
        self.context: dict[str, Any] = {}
        self.logger = logging.getLogger("runnable")

    def init(self) -> None: ...

    def get_stock_data(self, ticker: str) -> Any:
        return PRICES

    def query_stock(self, query: dict[str, Any]) -> dict[str, Any]:
        return {"ticker_open": "1.5"}


class Loaded:
    """A program compiled and loaded as a guest does it."""

    def __init__(self, source: str) -> None:
        self.program = Program(textwrap.dedent(source), "orders.py")
        self.lines: list[tuple[str, str]] = []
        code = dialect.compile_program(self.program)
        self.space = dialect.namespace(
            dialect.Runtime(Base, lambda level, text: self.lines.append((level, text)))
        )
        exec(code, self.space)
        self.instance = dialect.runnable_class(self.space)()
        self.instance.init()

    def process(self, queries: Any = ()) -> Any:
        return self.instance.process(list(queries))

    def failure(self) -> tuple[str, str]:
        """How `describe` words the exception that `process` raises."""
        with pytest.raises(BaseException) as raised:
            self.process()
        return dialect.describe(raised.value, self.program)


def body(source: str) -> str:
    """A program whose `process` runs `source`."""
    lines = textwrap.indent(textwrap.dedent(source), " " * 8)
    return f"class Runnable:\n    def process(self, queries):\n{lines}\n"


def refusals(source: str) -> list[str]:
    with pytest.raises(Faults) as raised:
        dialect.compile_program(Program(textwrap.dedent(source), "orders.py"))
    return [str(fault) for fault in raised.value.faults]


def plainly(source: str) -> Any:
    """What a program gives in plain Python, with the names that a Runnable need not import."""
    space: dict[str, Any] = {
        "__name__": "runnable", "BaseSecureRunnable": Base, "logger": logging.getLogger("runnable"),
        "json": json, "math": math, "re": re, "random": random, "hashlib": hashlib, "time": time,
        "datetime": datetime.datetime,
        **{name: getattr(typing, name) for name in ("Any", "Dict", "List", "Optional")},
    }  # fmt: skip
    module = sys.modules["runnable"] = types.ModuleType("runnable")  # data classes look for their module
    vars(module).update(space)
    space = vars(module)
    try:
        exec(compile(source, "plain.py", "exec", dont_inherit=True), space)
        return _instance_of(space).process([])
    finally:
        del sys.modules["runnable"]


def _instance_of(space: dict[str, Any]) -> Any:
    cls = space["Runnable"]
    if not issubclass(cls, Base):
        cls = space["Runnable"] = type("Runnable", (cls, Base), {"__module__": "runnable"})
    instance = cls()
    instance.init()
    return instance


class TestPrograms:
    def test_every_denied_program_has_an_allowed_twin(self) -> None:
        """Whoever refuses a thing shows how it is done instead."""
        assert DENIED
        assert {path.name for path in DENIED} <= {path.name for path in ALLOWED}

    @pytest.mark.parametrize("path", DENIED, ids=lambda path: path.stem)
    def test_denied(self, path: Path) -> None:
        """A denied program is refused with the words of its first line."""
        source = path.read_text()
        expected = source.partition("\n")[0].removeprefix("# ")
        if re.match(r"E\d{3} ", expected):
            assert any(f" {expected}" in fault for fault in refusals(source))
        else:
            text, _ = Loaded(source).failure()
            assert text.startswith(expected)

    @pytest.mark.parametrize("path", ALLOWED, ids=lambda path: path.stem)
    def test_allowed(self, path: Path) -> None:
        """An allowed program gives what it gives in plain Python."""
        source = path.read_text()
        assert json.dumps(Loaded(source).process(), default=repr) == json.dumps(plainly(source), default=repr)


class TestSeedExamples:
    TEMPLATE = """
        ## Template to customize a python state
        class Runnable(BaseSecureRunnable):
            ## any initialization parameters you want to save (on a per event basis)
            def init(self):
                self.context['counter'] = 0

            ## if the state is using a python state type
            def process(self, queries: List[Any]) -> List[Any]:
                logger.info(queries)
                return [{
                    **self.query_stock(query),
                    **query
                } for query in queries]

            ## if the state is using a stream state type
            def process_stream(self, query: Dict) -> Any:
                yield json.dumps({
                    **query,
                    **self.query_stock(query)
                }, indent=2)
    """
    COUNTER = """
        class Runnable(BaseSecureRunnable):
            def init(self):
                self.context['counter'] = 0

            def process(self, queries: List[Any]) -> List[Any]:
                # Get current counter value
                c = self.context['counter']

                # Increment counter and store additional state
                self.context['counter'] = c + 1
                self.context['other'] = f"other_{c}"

                # Return processed queries with counter added
                return [{
                    'index': self.context['counter'],
                    **query
                } for query in queries]

            def process_stream(self, queries: List[Any]) -> Any:
                # Stream processing implementation
                # yield from (self.process(query) for query in queries)
                pass
    """
    STOCK = """
        class Runnable(BaseSecureRunnable):
            def init(self):
                self.context['counter'] = 0

            def process(self, queries: List[Any]) -> List[Any]:
                # Log message for debugging
                self.logger.info("Processing stock data request")

                # Get stock data for Apple
                ticker = "AAPL"
                stock_data = self.get_stock_data(ticker)

                # Process the stock data if available
                if stock_data:
                    stock_data = stock_data['Time Series (5min)']
                    stock_data = list(stock_data.items())[0]
                    stock_data = stock_data[1]

                # Return processed results
                return [{
                    'ticker': ticker,
                    **stock_data,
                    **query
                } for query in queries]

            def process_stream(self, query: Dict) -> Any:
                # Stream JSON response
                yield json.dumps(query, indent=2)
    """

    def test_template(self) -> None:
        """The template runs unchanged, as a batch and as a stream."""
        loaded = Loaded(self.TEMPLATE)
        assert loaded.process([{"a": 1}]) == [{"ticker_open": "1.5", "a": 1}]
        assert list(loaded.instance.process_stream({"a": 1})) == ['{\n  "a": 1,\n  "ticker_open": "1.5"\n}']
        assert loaded.lines == [("info", "[{'a': 1}]")]

    def test_counter(self) -> None:
        """Example 1 counts from call to call, and its stream method may do nothing."""
        loaded = Loaded(self.COUNTER)
        assert loaded.process([{}]) == [{"index": 1}]
        assert loaded.process([{}, {"a": 1}]) == [{"index": 2}, {"index": 2, "a": 1}]
        assert loaded.instance.context == {"counter": 2, "other": "other_1"}
        assert loaded.instance.process_stream([]) is None

    def test_stock(self) -> None:
        """Example 2 takes a helper's documents apart."""
        expected = [{"ticker": "AAPL", "1. open": "1.5", "4. close": "2.5", "a": 1}]
        assert Loaded(self.STOCK).process([{"a": 1}]) == expected


class TestAsync:
    def test_places_are_those_of_the_source(self) -> None:
        """A traceback through awaits, and through a call that is made later, shows the lines as written."""
        loaded = Loaded("""
            import asyncio

            class Runnable:
                async def process(self, queries):
                    async with asyncio.timeout(60):
                        return await asyncio.gather(
                            self.fetch(),
                        )

                async def fetch(self):
                    return await asyncio.sleep("x")
        """)
        text, trace = loaded.failure()
        assert text == "TypeError: a delay is a number of seconds, not str"
        places = re.findall(r"line (\d+), in (\S+)", trace)
        assert places == [("7", "process"), ("8", "<lambda>"), ("12", "fetch")]

    def test_process_may_be_async(self) -> None:
        """As a method, and as a generator."""
        assert Loaded("class Runnable:\n  async def process(self, q): return [1]").process() == [1]
        made = Loaded("class Runnable:\n  async def process(self, q):\n    yield 1\n    yield 2").process()
        assert list(made) == [1, 2]

    def test_a_deep_source_is_walked_or_refused(self) -> None:
        """As one that waits for nothing: nested as deeply as may be, it loads; beyond that it is E205."""
        source = "class Runnable:\n  async def process(self, q):\n    x = 1\n    return await "
        assert Loaded(f"{source}x{'.real' * 390}").process() == 1
        nested = "asyncio.gather(" * 180 + "q" + ")" * 180
        assert "E205 the source is too deeply nested" in refusals(f"import asyncio\n{source}{nested}")[0]

    def test_names_that_a_source_binds_are_its_own(self) -> None:
        """`anext` is `next` in an async source, unless the source has one of its own."""
        source = "async def anext(it): return 7\n"
        assert Loaded(source + body("return anext(queries)")).process() == 7


class TestRefusals:
    def test_all_faults_of_a_source_at_once(self) -> None:
        """A source with several faults is told all of them, in order, each with its line and column."""
        source = """
            import os
            from json import codecs

            fetch = eval

            class Runnable:
                def process(self, queries):
                    größe = 1; text = open("x")
                    return self.__globals__

            def f(a, a): ...
        """
        assert [fault.split(" is ")[0].split(" '")[0] for fault in refusals(source)] == [
            "orders.py:2:1 E203",
            "orders.py:3:1 E203",
            "orders.py:5:9 E202",
            "orders.py:9:27 E202",
            "orders.py:10:16 E202 the attribute",
            "orders.py:12:10 E201 duplicate argument",
        ]

    @pytest.mark.parametrize(
        "source", ["", "x = 1", "\x00", "x = '\ud800'", "(" * 300 + ")" * 300, "-" * 9000 + "1"]
    )
    def test_no_source_gets_past_as_anything_but_faults(self, source: str) -> None:
        """What is no program is refused as such, however odd the text."""
        assert all(re.match(r"orders\.py:\d+:\d+ E20[145] ", fault) for fault in refusals(source))

    def test_a_source_that_is_too_long(self) -> None:
        """The size of a source is bounded, and the bound is named."""
        assert "E205 the source has 300000 characters, more than 262144." in refusals("#" * 300_000)[0]

    def test_the_walk_leaves_the_recursion_limit_alone(self) -> None:
        """Deep sources get room to be walked, and give it back."""
        before = sys.getrecursionlimit()
        Loaded(body("return " + "not " * 300 + "1"))
        assert sys.getrecursionlimit() == before

    def test_every_refusal_says_what_to_do(self) -> None:
        """A refusal that ends after its first sentence leaves its reader alone."""
        for path in DENIED:
            expected = path.read_text().partition("\n")[0]
            if re.match(r"# E20[2-5] ", expected):
                for fault in refusals(path.read_text()):
                    sentences = [part for part in re.split(r"(?<=[.])\s", fault) if part]
                    assert len(sentences) > 1 or " E201 " in fault, fault

    def test_runnable_has_to_be_a_class(self) -> None:
        """A Runnable that is no class of the source, or derives from a built-in one, is not loaded."""
        for source in (
            "Runnable = 1",
            "Runnable = dict",
            "class Runnable(dict): ...",
            "if 0:\n    Runnable = 1",
        ):
            with pytest.raises(Faults, match="E204 Runnable "):
                Loaded(source)


class TestNames:
    def test_bare_names(self) -> None:
        """What the seed's programs use without import is there; `datetime` is the class, `time` both."""
        loaded = Loaded(
            body("""
            return [
                datetime(2024, 1, 2).isoformat(), time(1, 2).isoformat(), time.time() > 0,
                math.floor(1.5), re.sub("a", "b", "a"), hashlib.md5(b"").hexdigest()[:4],
                len(random.sample(range(9), 2)), json.dumps({}), Optional is not None,
            ]""")
        )
        assert loaded.process() == ["2024-01-02T00:00:00", "01:02:00", True, 1, "b", "d41d", 2, "{}", True]

    def test_logging(self) -> None:
        """`logger`, `logging` and `print` write to the route's log; a level set is kept to."""
        loaded = Loaded(
            body("""
            import logging
            log = logging.getLogger(__name__)
            log.setLevel(logging.INFO)
            log.debug("quiet")
            log.info("%s of %d", "x", 2)
            log.log(logging.ERROR, "%(a)s", {"a": 1})
            print("a", 1, sep="-")
            log.info("%d", "x")
            try:
                self._nope
            except AttributeError:
                logger.exception("no luck")
            """)
        )
        loaded.process()
        assert loaded.lines[:3] == [("info", "x of 2"), ("error", "1"), ("info", "a-1")]
        assert loaded.lines[3][1].startswith("%d ('x',) (the text does not fit its arguments")
        assert loaded.lines[4][1] == "no luck: AttributeError: 'Runnable' object has no attribute '_nope'"

    def test_two_namespaces_share_nothing_that_can_be_written(self) -> None:
        """What one Runnable does to its names another does not see."""
        one = Loaded("import json\njson = 1\nlen = 2\nclass Runnable: ...")
        two = Loaded(body("return [json.dumps(len([1]))]"))
        assert one.space["json"] == 1
        assert two.process() == ["1"]

    def test_reject_and_retry_get_past_except_exception(self) -> None:
        """`except Exception` does not eat what a Runnable says about its message."""
        for raised, kind in (("Reject('bad')", dialect.Reject), ("Retry(after_s=2)", dialect.Retry)):
            loaded = Loaded(body(f"try:\n    raise {raised}\nexcept Exception:\n    return 1"))
            with pytest.raises(kind) as caught:
                loaded.process()
            assert getattr(caught.value, "why", "bad") == "bad"
            assert getattr(caught.value, "after_s", 2) == 2

    def test_the_name_runnable_is_the_class_of_self(self) -> None:
        """A base that was mixed in does not make two classes of one."""
        loaded = Loaded(body("return [type(self) is Runnable, isinstance(self, BaseSecureRunnable)]"))
        assert loaded.process() == [True, True]

    def test_reseed(self) -> None:
        """A forked guest draws numbers of its own."""
        random.seed(1)
        first = random.random()
        random.seed(1)
        dialect.reseed()
        assert random.random() != first


class TestReach:
    """What can be reached from a namespace by names alone, followed as far as it goes."""

    @staticmethod
    def reached() -> list[tuple[str, Any]]:
        loaded = Loaded(body("return 1"))
        builtins = loaded.space["__builtins__"]
        assert isinstance(builtins, dict)
        roots = [*loaded.space.items(), *facades.MODULES.items(), ("self", loaded.instance)]
        roots += [item for item in builtins.items() if not item[0].startswith(("~", "__"))]
        for name, kind in (("match", re.match("a", "a")), ("error", KeyError(1)), ("hash", hashlib.md5())):
            roots.append((name, kind))
        found, seen, pending = [], set(), [item for item in roots if item[0] != "__builtins__"]
        while pending:
            path, ob = pending.pop()
            if id(ob) in seen or path.count(".") > 6:
                continue
            seen.add(id(ob))
            found.append((path, ob))
            for name in dir(ob):
                if name.startswith("_") or name in verifier.FORBIDDEN:
                    continue
                try:
                    value = facades.read(ob, name)
                except (AttributeError, TypeError, NotImplementedError):
                    continue
                pending.append((f"{path}.{name}", value))
        return found

    def test_no_module_frame_or_metaclass_is_in_reach(self) -> None:
        """No chain of public names leads to a real module, a frame, a code object or a metaclass."""
        known = {id(module) for module in facades.MODULES.values()}
        for path, ob in self.reached():
            if isinstance(ob, types.ModuleType):
                name = vars(ob)["__name__"]
                assert id(ob) in known or name == "runnable.logging", path
                assert name.startswith("runnable."), path
            assert not isinstance(ob, (types.FrameType, types.CodeType, types.TracebackType)), path
            shown = ob is facades.TYPE
            assert shown or not (isinstance(ob, type) and issubclass(ob, type)), path

    def test_no_function_that_opens_runs_or_imports_is_in_reach(self) -> None:
        """None of the functions that undo the rules can be had under any name."""
        forbidden = {id(f) for f in (open, eval, exec, compile, __import__, globals, vars, getattr, setattr)}
        assert not [path for path, ob in self.reached() if id(ob) in forbidden]

    def test_facades_hold_no_module_that_was_not_reviewed(self) -> None:
        """A name that a new Python adds to a module does not turn up by itself."""
        for name, facade in facades.MODULES.items():
            for key, value in vars(facade).items():
                if isinstance(value, types.ModuleType):
                    assert f"{name}.{key}" in facades.MODULES

    @pytest.mark.parametrize(
        "name", ["__class__", "__dict__", "gi_frame", "~build", "__reduce_ex__", "f_globals"]
    )
    def test_names_that_cannot_be_set(self, name: str) -> None:
        """No way of setting an attribute takes a name that is not the user's to set."""
        instance = Loaded(body("return 1")).instance
        for put in (facades.write, facades.put):
            with pytest.raises(AttributeError, match="not accessible"):
                put(instance, name, 1)


class TestVerifier:
    """The second look knows nothing of the first: it is given code that never went through it."""

    @pytest.mark.parametrize(
        ("source", "complaint"),
        [
            ("x.__class__", "the attribute '__class__' is not allowed"),
            ("x.__init__()", "the attribute '__init__' is not allowed"),
            ("x._private", "the private attribute '_private' is not allowed"),
            ("x.gi_frame", "the attribute 'gi_frame' is not allowed"),
            ("x.format(1)", "the attribute 'format' is read without its guard"),
            ("f = x.format", "the attribute 'format' is read without its guard"),
            ("x.y = 1", "the attribute 'y' is set on what no guard returned"),
            ("f(x).y = 1", "an attribute is set without its guard"),
            ("x.y += 1", "an attribute is set without its guard"),
            ("x |= y", "'|=' is without its guard"),
            ("x |= y or 1", "'|=' is without its guard"),
            ("x.clear()", "the attribute 'clear' is read without its guard"),
            ("del x.y", "the attribute 'y' is set on what no guard returned"),
            ("class A: pass", "a class is built without its guard"),
            ("import os", "importing 'os' is not allowed"),
            ("from json import _x", "importing the name '_x' is not allowed"),
            ("from json import *", "not"),
            ("__builtins__", "the name '__builtins__' is not allowed"),
            ("__import__ = 1", "the name '__import__' is not allowed"),
            ("def f():\n global __builtins__\n __builtins__ = 1", "the name '__builtins__' is not allowed"),
            ("def f(__x__): pass", "the variable '__x__' is not allowed"),
            ("super = 1", "the name 'super' is not allowed"),
            ("async def f(): pass", "asynchronous code is not allowed"),
            ("f(x async for x in y)", "asynchronous code is not allowed"),
            ("try: pass\nexcept* ValueError: pass\n", "is not known to be harmless"),
            ("match x:\n case A(y): pass", "a positional class pattern is used without its guard"),
            ("match x:\n case A(__dict__=y): pass", "the attribute '__dict__' is not allowed"),
            ("match x:\n case str(format=y): pass", "the attribute 'format' is read without its guard"),
            ("x: int = 1", "is not known to be harmless"),
            (
                "def f():\n def g():\n  return [x.__code__ for x in y]",
                "the attribute '__code__' is not allowed",
            ),
        ],
    )
    def test_complains(self, source: str, complaint: str) -> None:
        """Code that went round the transformer is refused on its own account."""
        complaints = dialect.verify(compile(source, "orders.py", "exec"))
        assert any(complaint in text for _, text in complaints), complaints

    @pytest.mark.parametrize("path", ALLOWED, ids=lambda path: path.stem)
    def test_is_content_with_what_the_transformer_makes(self, path: Path) -> None:
        """It has nothing to say of an allowed program."""
        code = dialect.compile_program(Program(path.read_text(), path.name))
        assert dialect.verify(code) == []

    def test_an_unknown_operation_is_refused(self) -> None:
        """What a later Python adds is refused until it was reviewed."""
        code = compile("x = 1", "orders.py", "exec")
        foreign = code.replace(co_code=bytes([dis.opmap["GET_AITER"], 0]) + code.co_code[2:])
        assert any("is not known to be harmless" in text for _, text in dialect.verify(foreign))

    def test_operations_that_are_refused(self) -> None:
        """The operations of this Python that are refused are these; a later Python adds its own here."""
        refused = {
            "ASYNC_GEN_WRAP", "BEFORE_ASYNC_WITH", "CALL_INTRINSIC_2", "CHECK_EG_MATCH", "END_ASYNC_FOR",
            "GET_AITER", "GET_ANEXT", "GET_AWAITABLE", "IMPORT_STAR", "PREP_RERAISE_STAR", "PRINT_EXPR",
            "SETUP_ANNOTATIONS",
        }  # fmt: skip
        # What the compiler or the interpreter uses among themselves, and what the walk steps over.
        internal = {
            "CACHE", "ENTER_EXECUTOR", "EXIT_INIT_CHECK", "EXTENDED_ARG", "INTERPRETER_EXIT", "JUMP",
            "JUMP_NO_INTERRUPT", "LOAD_SUPER_METHOD", "LOAD_ZERO_SUPER_ATTR", "LOAD_ZERO_SUPER_METHOD",
            "POP_BLOCK", "RESERVED", "SETUP_CLEANUP", "SETUP_FINALLY", "SETUP_WITH", "STORE_FAST_MAYBE_NULL",
        }  # fmt: skip
        here = {name for name in dis.opmap if not name.startswith("INSTRUMENTED_")} - internal
        assert here - verifier.OPERATIONS <= refused


class TestDescribe:
    def test_the_users_frames_only(self) -> None:
        """A traceback shows the user's file, lines and source, and nothing of ours."""
        source = """\
            import functools

            def divide(tick, _by=0):
                return tick / _by

            class Runnable:
                def process(self, queries):
                    return functools.reduce(lambda a, b: divide(b), [1, 2])
        """
        text, trace = Loaded(source).failure()
        assert text == "ZeroDivisionError: division by zero"
        assert trace == textwrap.dedent("""\
            Traceback (most recent call last):
              File "orders.py", line 8, in process
                return functools.reduce(lambda a, b: divide(b), [1, 2])
              File "orders.py", line 8, in <lambda>
                return functools.reduce(lambda a, b: divide(b), [1, 2])
              File "orders.py", line 4, in divide
                return tick / _by
            ZeroDivisionError: division by zero""")

    def test_a_cause_is_shown(self) -> None:
        """What an exception was raised from, or during, comes before it."""
        text, trace = Loaded(
            body("try:\n    1 / 0\nexcept ZeroDivisionError as err:\n    raise ValueError('x') from err")
        ).failure()
        assert text == "ValueError: x"
        assert "ZeroDivisionError: division by zero\n\nThe above exception was the direct cause" in trace

    def test_private_names_as_they_were_written(self) -> None:
        """A private name is shown as it stands in the source."""
        text, _ = Loaded(body("return self._missing")).failure()
        assert text == "AttributeError: 'Runnable' object has no attribute '_missing'"

    def test_deep_recursion(self) -> None:
        """A thousand equal frames are shown as a few."""
        source = body("def f(n):\n    return f(n + 1)\nreturn f(0)")
        text, trace = Loaded(source).failure()
        assert text.startswith("RecursionError")
        assert "more frames]" in trace
        assert len(trace) < 4000

    def test_long_texts_are_cut(self) -> None:
        """However much an exception says, the texts are bounded."""
        text, trace = Loaded(body("raise ValueError('x' * 10**6)")).failure()
        assert len(text) == dialect.TEXT_CHARS
        assert len(trace) <= dialect.TRACEBACK_CHARS

    @pytest.mark.parametrize(
        "make",
        [
            "raise ValueError",
            "raise SystemExit('no')",
            "return 1",
            "return Odd(Odd.__name__) if 0 else None",
            "return [][1]",
        ],
    )
    def test_a_hostile_text(self, make: str) -> None:
        """An exception whose text cannot be made is still described."""
        source = (
            "class Odd(Exception):\n    def __str__(self):\n        " + make + "\n" + body("raise Odd('x')")
        )
        text, _ = Loaded(source).failure()
        assert text.startswith("Odd: <its text could not be made: ")


class TestInstead:
    """What beginners try, and what they are told to do instead."""

    @pytest.mark.parametrize(
        ("module", "instead"),
        [
            ("os", "self.secrets"),
            ("os.path", "posixpath"),
            ("sys", "logger"),
            ("pathlib", "posixpath"),
            ("subprocess", "route"),
            ("socket", "outbound"),
            ("urllib.request", "requests.get"),
            ("threading", "partitions"),
            ("multiprocessing", "partitions"),
            ("trio", "without 'async'"),
            ("pickle", "self.context"),
            ("sqlite3", "self.context"),
            ("numpy", "'packages: [numpy]'"),
            ("pandas", "'packages: [pandas]'"),
            ("sklearn.linear_model", "'packages: [scikit-learn]'"),
            ("importlib", "import statement"),
            ("inspect", "code"),
            ("no_such_module", "Importable here: abc, "),
        ],
    )
    def test_a_module(self, module: str, instead: str) -> None:
        """Importing it is refused with its place, its name and a way to the same end."""
        fault = refusals(f"class Runnable: ...\nimport {module} as it")[0]
        assert fault.startswith(f"orders.py:2:1 E203 'import {module}' is not allowed. ")
        assert instead in fault

    @pytest.mark.parametrize(
        ("source", "instead"),
        [
            ("open('x')", "self.context"),
            ("eval('1')", "json.loads"),
            ("exec('1')", "dict"),
            ("input()", "messages"),
            ("globals()", "dict"),
            ("self.__class__ = int", "object of the other class"),
            ("self.__dict__ = {}", "self.__dict__.update"),
            ("self.process.__code__", "Call the function"),
            ("[].__class__.__subclasses__()", "__init_subclass__"),
        ],
    )
    def test_a_name(self, source: str, instead: str) -> None:
        """Names and attributes that are not there say what is."""
        fault = refusals(body(source))[0]
        assert re.match(r"orders\.py:3:\d+ E202 ", fault)
        assert instead in fault

    def test_a_missing_attribute_of_a_module(self) -> None:
        """It raises AttributeError, with what the module has."""
        text, _ = Loaded(body("return json.load")).failure()
        assert text == (
            "AttributeError: module 'runnable.json' has no attribute 'load'; it has here: "
            "JSONDecodeError, JSONDecoder, JSONEncoder, dumps, loads"
        )

    def test_what_a_file_does_as_a_program_is_left_out(self) -> None:
        """The block at the end of a file that tries it out is no reason to refuse the file."""
        source = body("return __name__") + "\nif __name__ == '__main__':\n    import sys\n    open('x')\n"
        assert Loaded(source).process() == "runnable"

    def test_an_import_that_may_fail_does(self) -> None:
        """Who is ready for a module not to be there is not refused; but the machine stays out of reach."""
        source = """
            try:
                import numpy as np
                from pandas import DataFrame
            except ImportError as err:
                np, why = None, str(err)
        """
        source = textwrap.dedent(source) + body("return [np, why]")
        assert Loaded(source).process() == [None, "No module named 'numpy' in a Runnable"]
        assert "E203 'import os'" in refusals(source.replace("numpy as np", "os"))[0]


class TestHooks:
    """Hooks of classes that ordinary programs define, and what they cannot be used for."""

    @pytest.mark.parametrize(
        ("source", "text"),
        [
            (
                "class A:\n    def __new__(cls):\n        return json\ncopy.copy(A())",
                "TypeError: A.__new__() gives a 'module', no object of its class",
            ),
            (
                "object.__new__(json.JSONEncoder)",
                "TypeError: object.__new__() is for a class derived from it",
            ),
            (
                "class A:\n    def f(self):\n        super().__setattr__('__class__', int)\nA().f()",
                "AttributeError: '__class__' is not accessible in a Runnable",
            ),
            (
                "class A: ...\nA.__setattr__(json, 'dumps', 1)",
                "TypeError: A.__setattr__() is for an instance of a class derived from it",
            ),
            (
                "vars(self)['__reduce_ex__'] = 1",
                "AttributeError: '__reduce_ex__' is not accessible in a Runnable",
            ),
            (
                "import dataclasses\ndataclasses.make_dataclass('A', ['x'], namespace={'~dataclass': {}})",
                "TypeError: make_dataclass() takes names that are plain str",
            ),
            ("vars(json)", "AttributeError: '__dict__' is not accessible in a Runnable"),
            ("self.__dict__.update({'a b': 1})", "AttributeError: 'a b' is not accessible in a Runnable"),
            ("json.dumps.__dict__", "AttributeError: '__dict__' is not accessible in a Runnable"),
            (
                "class A:\n    def __get__(self, *a): ...\nA().__get__",
                "the attribute '__get__' is not allowed",
            ),
            (
                "collections.UserString('{0.__reduce__}').format(1)",
                "AttributeError: '__reduce__' is not accessible",
            ),
        ],
    )
    def test_they_stay_within_the_users_own(self, source: str, text: str) -> None:
        """A hook makes and changes objects of the user's classes, under names that may be set."""
        program = "import collections, copy, json\n" + body(source)
        try:
            said = Loaded(program).failure()[0]
        except Faults as err:
            said = str(err)
        assert text.partition(": ")[2] in said or text in said

    @pytest.mark.parametrize(
        "text", ["-" * 3000 + "1", "-" * 100_000 + "1", "a" + ".b" * 3000, "\ud800", "\0"]
    )
    def test_an_annotation_of_nonsense_is_no_annotation(self, text: str) -> None:
        """What `register` reads of a text is parsed by us: no text ends the compiler."""
        source = f"""
            import functools

            @functools.singledispatch
            def shown(value):
                return "any"

            @shown.register
            def _(value: {text!r}):
                return "none"

            class Runnable:
                def process(self, queries): ...
            """
        with pytest.raises(TypeError, match="annotation"):
            Loaded(source)

    def test_no_class_of_ours_has_what_may_follow_super(self) -> None:
        """`super().__get__` and the like can only be the user's own."""
        for cls in guards.bases_allowed:
            inherited = guards.AFTER_SUPER & {name for base in cls.__mro__ for name in vars(base)}
            assert inherited <= {"__init_subclass__", "__copy__", "__deepcopy__"}, cls

    def test_a_class_is_the_users_before_its_hooks_run(self) -> None:
        """`__init_subclass__` and `__set_name__` may set attributes of the class that is being made."""
        source = """
            class Named:
                def __set_name__(self, owner, name):
                    owner.named = name

            class Base:
                def __init_subclass__(cls, kind="none"):
                    cls.kind = kind

            class Derived(Base, kind="x"):
                _field = Named()
        """
        source = textwrap.dedent(source) + body("return [Derived.kind, Derived.named]")
        assert Loaded(source).process() == ["x", "_field"]


class TestHeldGuards:
    """The guard of a store is asked once for a parameter that is not bound again."""

    COUNTED = """
        class Runnable:
            def process(self, queries):
                self.n = 0
                for _ in range(9):
                    self.n += 1
                    self.last = self.n
                return self.n
    """

    def test_it_is_asked_once(self) -> None:
        """However many stores there are."""
        loaded, asked = Loaded(self.COUNTED), []
        builtins = loaded.space["__builtins__"]
        assert isinstance(builtins, dict)
        write = builtins["~write"]
        builtins["~write"] = lambda ob: asked.append(ob) or write(ob)
        assert loaded.process() == 9
        assert asked == [loaded.instance]

    @pytest.mark.parametrize(
        "source",
        [
            "def f(ob):\n    for _ in 'ab':\n        ob.x = 1\n        ob = json\nf(self)",
            "def f(ob):\n    ob.x = 1\n    ob = json\n    ob.y = 1\nf(self)",
            "def f(ob):\n def g():\n  nonlocal ob\n  ob = json\n ob.x = 1\n g()\n ob.y = 1\nf(self)",
            "def f(ob):\n    for ob in [ob, json]:\n        ob.x = 1\nf(self)",
            "def f(ob):\n    ob.x = 1\n    import json as ob\n    ob.y = 1\nf(self)",
            "def f(ob):\n    ob.x = 1\n    match [json]:\n        case [ob]:\n            ob.y = 1\nf(self)",
            "def f(ob):\n    ob.x = 1\n    (ob := json)\n    ob.y = 1\nf(self)",
            "def f(ob):\n    if ob is None:\n        ob.x = 1\n    ob.y = 1\nf(json)",
            "def f(ob):\n    while True:\n        ob.y += 1\nf(json)",
            "def f(*, ob):\n    ob.x = ob.y = 1\nf(ob=json)",
            "def f(ob):\n    [0 for ob.x in 'ab']\n    ob.y = 1\nf(json)",
        ],
    )
    def test_what_is_not_the_users_is_never_written(self, source: str) -> None:
        """A name that comes to mean another object is asked about again."""
        text, _ = Loaded(body(source)).failure()
        assert text.startswith("AttributeError: a module's attributes cannot be set")

    @pytest.mark.parametrize(
        ("store", "complaint"),
        [
            ("LOAD_FAST", "is set to what no guard returned"),
        ],
    )
    def test_the_verifier_asks_where_the_value_came_from(self, store: str, complaint: str) -> None:
        """A held variable that holds anything else is refused."""
        tree = ast.parse("def f(ob):\n    held = ob\n    held.x = 1")
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id == "held":
                node.id = "~w.ob"
        complaints = dialect.verify(compile(tree, "orders.py", "exec"))
        assert any(complaint in text for _, text in complaints), complaints


class TestVersions:
    @pytest.mark.skipif(sys.version_info < (3, 12), reason="syntax of Python 3.12")
    def test_type_parameters(self) -> None:
        """The syntax of Python 3.12 for generic classes, functions and aliases does as it does there."""
        source = """
            type Pair[T] = tuple[T, T]

            class Box[T]:
                def __init__(self, item: T) -> None:
                    self.item = item

            def first[T: int | str](items: list[T]) -> T:
                return items[0]
        """
        source = textwrap.dedent(source) + body(
            "return [Box[int](3).item, first(['a']), f'{'x'}{first([\"y\"])}']"
        )
        assert Loaded(source).process() == [3, "a", "xy"]


class TestPreload:
    def test_a_closed_guest_needs_no_import(self, tmp_path: Path) -> None:
        """After `preload` no allowed program imports or opens anything, and odd encodings are unknown."""
        odd = body("""
            found = []
            for name in ("cp037", "no-such", "../../etc", "latin-1", "windows-1252", "UTF-16", "idna"):
                try:
                    found.append(len("x".encode(name)))
                except LookupError:
                    found.append(None)
            return found""")
        (tmp_path / "odd.py").write_text(odd)
        script = tmp_path / "run.py"
        script.write_text(
            textwrap.dedent("""
            import sys
            from pathlib import Path
            from processor.model import Program
            from processor.sandbox import dialect

            class Base:
                def __init__(self):
                    self.context = {}
                def init(self):
                    pass

            dialect.preload()
            seen, armed = [], [False]
            def hook(event, arguments):
                if armed[0] and event in ("import", "open", "compile", "code.__new__", "function.__new__"):
                    seen.append((event, str(arguments)))
            sys.addaudithook(hook)
            for path in sys.argv[1:]:
                program = Program(Path(path).read_text(), path)
                code = dialect.compile_program(program)
                space = dialect.namespace(dialect.Runtime(Base, lambda *_: None))
                armed[0] = True
                exec(code, space)
                instance = dialect.runnable_class(space)()
                instance.init()
                result = instance.process([])
                armed[0] = False
                assert not seen, (path, seen)
            print(result)
            """)
        )
        paths = [*map(str, ALLOWED), str(tmp_path / "odd.py")]
        done = subprocess.run(
            [sys.executable, str(script), *paths],
            capture_output=True, text=True, timeout=60, check=False,
            env={"PYTHONPATH": str(HERE.parent.parent)},
        )  # fmt: skip
        assert done.stderr == ""
        assert done.stdout == "[None, None, None, 1, 1, 4, 1]\n"


def test_every_kind_of_node_was_reviewed() -> None:
    """The syntax of this Python is known to the transformer, or is on this list of what it refuses."""
    refused = {"AsyncFor", "AsyncFunctionDef", "AsyncWith", "Await", "TryStar", "FunctionType", "Interactive"}
    rewritten = {
        "AnnAssign",
        "TypeAlias",
        "ParamSpec",
        "TypeVar",
        "TypeVarTuple",
        "type_ignore",
        "TypeIgnore",
    }
    abstract = {"AST", *(node.__name__ for node in ast.AST.__subclasses__())}
    obsolete = {
        "AugLoad",
        "AugStore",
        "Bytes",
        "Ellipsis",
        "ExtSlice",
        "Index",
        "NameConstant",
        "Num",
        "Param",
        "Str",
        "Suite",
        "slice",
    }
    known = {name.removeprefix("visit_") for name in dir(dialect.Transformer) if name.startswith("visit_")}
    kinds = {name: kind for name, kind in vars(ast).items() if isinstance(kind, type) and name[0] != "_"}
    here = {name for name, kind in kinds.items() if issubclass(kind, ast.AST)}
    assert here - known - abstract - obsolete <= refused | rewritten


def test_counts_of_a_collection_are_the_standard_ones() -> None:
    """Classes of the standard library stay themselves, so that what keeps a context knows them."""
    loaded = Loaded(body("from collections import Counter, defaultdict\nreturn Counter(), defaultdict()"))
    assert [type(item) for item in loaded.process()] == [collections.Counter, collections.defaultdict]
