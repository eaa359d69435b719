"""A Runnable that would take every message and do nothing is refused where it is loaded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from textwrap import dedent

import pytest

from processor.errors import Faults, ProcessorError
from processor.library import SecureRunnableBuilder
from processor.model import Group, Limits, Program, Ran
from processor.sandbox.host import Guest, Zygote

NONE = "Runnable has no"
BATCH, STREAM = (
    f"{NONE} `process`, which mode batch calls",
    f"{NONE} `process_stream`, which mode stream calls",
)
WRITE = "Write 'def process(self, queries):'"
OUTSIDE = "is not in the body of the class. Check how it is indented."

# mode, source, place, text
REFUSED = [
    (
        "batch",
        "class Runnable:\n  def proccess(self, queries): return queries",
        "2:3",
        f"{BATCH}; did you mean `process` for `proccess` (line 2)?",
    ),
    (
        "stream",
        "class Runnable:\n  def init(self): pass\n  def process_steam(self, query): yield 1",
        "3:3",
        f"{STREAM}; did you mean `process_stream` for `process_steam` (line 3)?",
    ),
    (
        "batch",
        "class Runnable:\n  def init(self): pass\n  def run(self, queries): return queries",
        "3:3",
        f"{BATCH}; did you mean `process` for `run` (line 3)?",
    ),
    (
        "stream",
        "class Runnable:\n  def process(self, queries): return queries",
        "2:3",
        f"{STREAM}; it has `process` (line 2), which mode batch calls. Set 'mode: batch', or write 'def ",
    ),
    (
        "batch",
        "class Runnable:\n  def process_stream(self, query): yield 1",
        "2:3",
        f"{BATCH}; it has `process_stream` (line 2), which mode stream calls. Set 'mode: stream', or write ",
    ),
    ("batch", "x = 1\nclass Runnable:\n  def init(self): pass", "2:1", f"{BATCH}. {WRITE}."),
    ("stream", "class Runnable(BaseSecureRunnable): pass", "1:1", f"{STREAM}. Write 'def process_stream("),
    ("batch", "class Runnable:\n  process = None", "1:1", f"{BATCH}. {WRITE}."),
    (
        "batch",
        "class Base:\n  def process(self, queries): pass\nclass Runnable(Base):\n  process = None",
        "3:1",
        f"{BATCH}. {WRITE}.",
    ),
    ("batch", "class Runnable:\n  process = 3", "1:1", f"{BATCH}. {WRITE}."),
    (
        "batch",
        "class Runnable:\n  def init(self):\n    self.n = 1\n    def process(self, queries): return []",
        "4:5",
        f"{BATCH}; the one in line 4 {OUTSIDE}",
    ),
    (
        "batch",
        "class Runnable:\n  def init(self): pass\ndef process(self, queries): return []",
        "3:1",
        f"{BATCH}; the one in line 3 {OUTSIDE}",
    ),
    (
        "",
        "class Runnable:\n  def init(self): pass",
        "1:1",
        f"{NONE} `process` and no `process_stream`. {WRITE} or 'def process_stream(self, query):'.",
    ),
]

ACCEPTED = [
    ("batch", "class Base:\n  def process(self, queries): return queries\nclass Runnable(Base): pass"),
    ("batch", "class Runnable:\n  def init(self): self.process = lambda queries: queries"),
    ("batch", "class Runnable:\n  @staticmethod\n  def process(queries): return queries"),
    ("batch", "class Runnable:\n  process = property(lambda self: lambda queries: queries)"),
    ("batch", "class Runnable:\n  pass\nRunnable.process = lambda self, queries: queries"),
    ("", "class Runnable:\n  def process_stream(self, query): yield 1"),
]


@asynccontextmanager
async def started() -> AsyncIterator[Callable[..., Awaitable[Guest]]]:
    """`async with started() as load`: `await load(source, language, mode)` is a guest with that program."""
    zygote = await Zygote.start()

    async def load(source: str, language: str, mode: str = "batch") -> Guest:
        return await zygote.spawn(Program(source, "r.py", language, (), mode), Limits())

    try:
        yield load
    finally:
        await zygote.close()


@pytest.mark.parametrize("language", ["restricted", "python"])
async def test_a_runnable_without_the_method_of_its_mode_is_refused(language: str) -> None:
    """It is refused at the place where the method was probably meant to be, with the nearest name."""
    async with started() as load:
        for mode, source, place, text in REFUSED:
            with pytest.raises(Faults) as refused:
                await load(source, language, mode)
            [fault] = refused.value.faults
            assert (fault.code, f"{fault.line}:{fault.column}") == ("E207", place), source
            assert fault.text.startswith(text), source


@pytest.mark.parametrize("language", ["restricted", "python"])
async def test_a_method_may_come_from_anywhere(language: str) -> None:
    """A base class, a decorator, a descriptor and an assignment bring the method as well as a def does."""
    async with started() as load:
        for mode, source in ACCEPTED:
            guest = await load(source, language, mode)
            assert guest.warnings == [], source


@pytest.mark.parametrize("language", ["restricted", "python"])
async def test_a_method_may_be_asynchronous(language: str) -> None:
    """`async def` is a method as any other, also one that yields."""
    head = "class Runnable:\n  async def init(self): pass\n  async def"
    async with started() as load:
        for name, mode, body in (
            ("process", "batch", "return queries"), ("process", "batch", "yield queries"),
            ("process_stream", "stream", "yield queries"),
        ):  # fmt: skip
            assert (await load(f"{head} {name}(self, queries): {body}", language, mode)).warnings == []


@pytest.mark.parametrize("language", ["restricted", "python"])
async def test_a_class_of_another_name_is_named(language: str) -> None:
    """Where no Runnable is defined, the class that was probably meant is named with its place."""
    async with started() as load:
        for name in ("runnable", "Runable", "Enricher"):
            with pytest.raises(Faults) as refused:
                await load(f"x = 1\nclass {name}:\n  def process(self, queries): return queries", language)
            text = f"r.py:2:1 E204 Runnable is not defined; did you mean `Runnable` for class `{name}`?"
            assert str(refused.value) == text


@pytest.mark.parametrize("language", ["restricted", "python"])
async def test_a_method_that_nothing_calls_is_a_warning(language: str) -> None:
    """Only what looks like a method of ours is warned of, and not what the source calls itself."""
    source = dedent("""
        class Base:
            def on_start(self): pass
        class Runnable(Base):
            def process(self, queries):
                return [self.process_item(query) for query in queries]
            def process_item(self, query): return query
            def proces(self, queries): return queries
            def _process(self): pass
            def describe(self): pass
    """)
    async with started() as load:
        guest = await load(source, language)
    called = "init, process, process_stream"
    assert [str(warning) for warning in guest.warnings] == [
        "r.py:8:5 E207 Processor does not call `proces` of Runnable; did you mean `process`?",
        f"r.py:3:5 E207 Processor does not call `on_start` of Runnable; it calls {called}.",
    ]


def test_a_library_call_without_its_method_is_refused() -> None:
    """Without a route there is no mode: the call itself says which method there must be."""
    builder = SecureRunnableBuilder()
    with builder.compile("class Runnable:\n  def process_stream(self, query): yield 'a'\n") as runnable:
        assert list(runnable.process_stream({})) == ["a"]
        with pytest.raises(ProcessorError, match="E207 Runnable has no `process`"):
            runnable.process([{}])
    with pytest.raises(Faults, match="E207"):
        builder.compile("class Runnable:\n  def init(self): pass\n")


@pytest.mark.parametrize("language", ["restricted", "python"])
async def test_a_program_may_be_for_a_class_of_another_name(language: str) -> None:
    """That class is called and spoken of, whatever else the file has."""
    source = """
    class Runnable:
        def process(self, queries):
            return ["wrong"]

    class Other:
        def process(self, queries):
            return [type(self) is Other, isinstance(self, BaseSecureRunnable)]

    class Empty:
        pass
    """
    zygote = await Zygote.start()
    try:
        for name, refusal in (
            ("Othr", "r.py:6:1 E204 Othr is not defined; did you mean `Other`?"),
            ("Empty", "r.py:10:1 E207 Empty has no `process`, which mode batch calls."),
        ):
            with pytest.raises(Faults) as refused:
                await zygote.spawn(
                    Program(dedent(source), "r.py", language, mode="batch", class_name=name), Limits()
                )
            assert str(refused.value).startswith(refusal)
        guest = await zygote.spawn(Program(dedent(source), "r.py", language, class_name="Other"), Limits())
        outcome = await guest.run([Group("", [b"1"], {})])
        assert isinstance(outcome, Ran)
        assert [output.body for output in outcome.outputs] == [b"true", b"true"]
    finally:
        await zygote.close()
