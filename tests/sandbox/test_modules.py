"""The user's own modules: what a Runnable imports of them, in both languages, and what it cannot reach."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Mapping
from textwrap import dedent
from typing import Any

import orjson
import pytest

from processor.config import modules_of
from processor.errors import Faults
from processor.library import RunFailed, SecureRunnableBuilder, SecurityConfig
from processor.model import Failed, Group, Limits, Module, Program, Ran
from processor.sandbox import dialect, facades
from processor.sandbox.host import Guest, Zygote

BOTH = pytest.mark.parametrize("language", ["restricted", "python"])
FEES = '''
"""What is taken."""
from lib.pricing.tax import RATE

_per_unit = 2
count = 0

def total(units):
    global count
    count += 1
    return units * _per_unit + RATE

def broken():
    return 1 / 0

def where():
    return [__name__, total.__module__]
'''
SHOP = {
    "lib.fees": FEES,
    "lib.pricing.tax": "from dataclasses import dataclass\nRATE = 10\n@dataclass\nclass Tax:\n    part: int",
    "lib.time": "NOON = 12\n",
}


def program(main: str, modules: Mapping[str, str], language: str = "restricted") -> Program:
    sources = {name: dedent(source) for name, source in modules.items()}
    return Program(dedent(main), "runnable.py", language, modules=modules_of(sources)[0])


def returning(expression: str, imports: str = "", statement: str = "pass") -> str:
    return (
        f"{dedent(imports)}\nclass Runnable:\n    def process(self, queries):\n"
        f"        {statement}\n        return [{expression}]\n"
    )


def with_zygote(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """A test that is called with a zygote, which ends in the test's own loop."""

    @functools.wraps(test)
    async def run(**given: Any) -> None:
        zygote = await Zygote.start()
        try:
            await test(zygote, **given)
        finally:
            await zygote.close()

    signature = inspect.signature(test)
    rest = [each for name, each in signature.parameters.items() if name != "zygote"]
    setattr(run, "__signature__", signature.replace(parameters=rest))  # noqa: B010
    return run


async def outcome(guest: Guest) -> Ran | Failed:
    return await guest.run([Group("", [b"{}"], {})])


async def output(zygote: Zygote, program: Program) -> Any:
    guest = await zygote.spawn(program, Limits())
    ran = await outcome(guest)
    await guest.close()
    assert isinstance(ran, Ran), ran
    return orjson.loads(ran.outputs[0].body)


async def refusal(zygote: Zygote, program: Program) -> list[str]:
    with pytest.raises(Faults) as refused:
        await zygote.spawn(program, Limits())
    return [str(fault) for fault in refused.value.faults]


@BOTH
@with_zygote
async def test_every_form_of_import_gives_what_it_gives_in_python(zygote: Zygote, language: str) -> None:
    """By the whole name, by a name of the module, by another name, of a package, inside of a function."""
    main = returning(
        "[lib.fees.total(3), total(1), fees.count, p.tax.RATE, Tax(4).part, lib.pricing.tax.RATE,"
        " time.NOON, fees.where(), fees.__doc__, late(), hasattr(fees, 'nope')]",
        """
        import lib.fees
        import lib.pricing as p
        import lib.pricing.tax as tax
        from lib import fees, time
        from lib.fees import total
        from lib.pricing.tax import Tax

        def late():
            from lib.pricing import tax as again
            return again is tax
        """,
    )
    assert await output(zygote, program(main, SHOP, language)) == [
        16, 12, 2, 10, 4, 10, 12, ["lib.fees", "lib.fees"], "What is taken.", True, False,
    ]  # fmt: skip


@BOTH
@with_zygote
async def test_a_module_runs_once_and_only_where_it_is_imported(zygote: Zygote, language: str) -> None:
    """All importers have the same one; one that nobody imports is compiled and does not run."""
    modules = {
        "lib.log": "lines = []\n",
        "lib.a": "from lib.log import lines\nlines.append('a')\n",
        "lib.b": "import lib.a\nfrom lib import log\nlog.lines.append('b')\n",
        "lib.never": "1 / 0\n",
        "lib": "from lib.log import lines\nlines.append('lib')\n",
    }
    main = returning("log.lines", "import lib.b\nimport lib.a\nfrom lib import log")
    assert await output(zygote, program(main, modules, language)) == ["lib", "a", "b"]


@BOTH
@with_zygote
async def test_modules_may_import_each_other_in_a_circle(zygote: Zygote, language: str) -> None:
    """As in Python: the module is there, what it has not run up to is not."""
    whole = {
        "lib.a": "import lib.b\nfrom lib import b\nimport lib.b as c\ndef f():\n    return c.g()\nx = 1\n",
        "lib.b": "import lib.a\nfrom lib import a\nimport lib.a as d\ndef g():\n    return a.x + d.x\n",
    }
    assert await output(zygote, program(returning("lib.a.f()", "import lib.a"), whole, language)) == 2
    part = {"lib.a": "\nfrom lib.b import g\nx = 1\n", "lib.b": "\n\nfrom lib.a import x\n"}
    [fault] = await refusal(zygote, program(returning("1", "import lib.a"), part, language))
    assert fault.startswith("lib/b.py:3:1 E206 ImportError: cannot import name 'x' from ")
    assert "circ" in fault


@BOTH
@with_zygote
async def test_a_failed_import_can_be_tried_again(zygote: Zygote, language: str) -> None:
    """A module whose code raised was not imported."""
    modules = {
        "lib.log": "tries = []\n",
        "lib.a": "from lib.log import tries\ntries.append(1)\n1 / len(tries[1:])\n",
    }
    main = returning(
        "[found, a.tries]",
        """
        found = None
        try:
            import lib.a
        except ZeroDivisionError as err:
            found = str(err)
        from lib import a
        """,
    )
    assert await output(zygote, program(main, modules, language)) == ["division by zero", [1, 1]]


@BOTH
@with_zygote
async def test_what_is_there_without_an_import_is_there_in_modules(zygote: Zygote, language: str) -> None:
    """A module may rely on what a Runnable may, and does not hand it on."""
    modules = {
        "lib.a": "def f():\n    logger.info('x')\n    return [json.dumps(1), math.pi > 3, Reject.__name__]\n"
    }
    star = "from lib.a import *\nimport json as own\n" if language == "python" else "from lib.a import f\n"
    main = returning("f()", "datetime = 5\n" + star + "assert datetime == 5")
    assert await output(zygote, program(main, modules, language)) == ["1", True, "Reject"]


@BOTH
@with_zygote
async def test_a_traceback_shows_the_lines_of_modules(zygote: Zygote, language: str) -> None:
    """Their own file, line and text, and nothing of ours in between."""
    main = returning("lib.fees.broken()", "import lib.fees")
    guest = await zygote.spawn(program(main, SHOP, language), Limits())
    failed = await outcome(guest)
    assert isinstance(failed, Failed)
    assert failed.failure.traceback.splitlines() == [
        "Traceback (most recent call last):",
        '  File "runnable.py", line 5, in process',
        "    return [lib.fees.broken()]",
        '  File "lib/fees.py", line 14, in broken',
        "    return 1 / 0",
        "ZeroDivisionError: division by zero",
    ]
    late = returning("1", statement="import lib.bad")
    guest = await zygote.spawn(program(late, {"lib.bad": "\n\nint('x')\n"}, language), Limits())
    failed = await outcome(guest)
    assert isinstance(failed, Failed)
    assert failed.failure.traceback.splitlines()[1:5] == [
        '  File "runnable.py", line 4, in process',
        "    import lib.bad",
        '  File "lib/bad.py", line 3, in <module>',
        "    int('x')",
    ]


@BOTH
@with_zygote
async def test_all_faults_of_all_sources_are_told_at_once(zygote: Zygote, language: str) -> None:
    """With the file, line and column of each; a module that nobody imports is no exception."""
    modules = {
        "lib.a": "x = (1\n",
        "lib.pricing.b": "x = 1\nfrom .c import y\nfrom . import c\nfrom ..a import x\n",
        "lib.pricing.c": "y = 1",
    }
    faults = await refusal(
        zygote, program("class Runnable:\n    def process(self queries): ...\n", modules, language)
    )
    assert faults[0].startswith("runnable.py:2:")
    assert [fault.split(" ", 2)[:2] for fault in faults[1:]] == [
        ["lib/a.py:1:5", "E201"],
        ["lib/pricing/b.py:2:1", "E201"],
        ["lib/pricing/b.py:3:1", "E201"],
        ["lib/pricing/b.py:4:1", "E201"],
    ]
    assert faults[2].endswith("'from .c import' is relative. Write 'from lib.pricing.c import y'.")
    assert faults[3].endswith("'from . import' is relative. Write 'from lib.pricing import c'.")
    assert faults[4].endswith("'from ..a import' is relative. Write 'from lib.a import x'.")
    [fault] = await refusal(
        zygote, program(returning("x", "from .a import x as x"), {"lib.a": "x = 1"}, language)
    )
    assert fault.endswith(
        ["runnable.py:2:1", "E201 'from .a import' is relative. Write 'from lib.a import x as x'."][1]
    )


@BOTH
@with_zygote
async def test_what_ends_the_import_of_a_module_is_told_with_its_place(zygote: Zygote, language: str) -> None:
    """An exception, and time that is over: the line of the module, not that of the import."""
    main = returning("1", "import lib.a")
    assert await refusal(zygote, program(main, {"lib.a": "\n\n1 / 0\n"}, language)) == [
        "lib/a.py:3:1 E206 ZeroDivisionError: division by zero"
    ]
    with pytest.raises(Faults) as refused:
        await zygote.spawn(program(main, {"lib.a": "\nwhile True: pass\n"}, language), Limits(cpu_s=0.5))
    assert str(refused.value) == "lib/a.py:2:1 E206 while it was loaded: more than 0.5 s of CPU time"


@BOTH
@with_zygote
async def test_a_name_that_a_guest_has_already_is_refused(zygote: Zygote, language: str) -> None:
    """An import would find the other module: of Python, of a package, or one that we are made of."""
    for name in ("json.own", "requests", "runnable.x", "orjson"):
        [fault] = await refusal(zygote, program(returning("1"), {name: "x = 1"}, language))
        assert fault.startswith(
            f"{name.replace('.', '/')}.py:1:1 E114 the module {name} cannot be imported: "
        )


@with_zygote
async def test_the_code_of_modules_is_compiled_once(zygote: Zygote) -> None:
    """Later guests get it, and run none that the verifier refuses; another module is another program."""
    main = returning("lib.a.x", "import lib.a")
    one, two = (program(main, {"lib.a": f"x = {n}"}) for n in (1, 2))
    assert await output(zygote, one) == 1
    code = zygote._compiled[one]
    assert code
    assert await output(zygote, one) == 1
    assert await output(zygote, two) == 2
    other = program(main, {"lib.a": "x = 1", "lib.b": "x = 1"})
    zygote._compiled[other] = code  # not of as many sources
    assert await output(zygote, other) == 1
    assert zygote._compiled[one] == code


def test_the_library_takes_modules_by_name_and_by_folder(tmp_path: Any) -> None:
    """Both give the same names; what is wrong with them is told as for a route."""
    (tmp_path / "lib" / "pricing").mkdir(parents=True)
    for name, source in SHOP.items():
        (tmp_path / f"{name.replace('.', '/')}.py").write_text(source)
    main = returning("lib.fees.total(3)", "import lib.fees", "self.context['n'] = lib.fees.count")
    for given in (SHOP, tmp_path / "lib", str(tmp_path / "lib")):
        with SecureRunnableBuilder(modules=given).compile(main) as runnable:
            assert runnable.process([{}]) == [16]
    with pytest.raises(Faults, match="E114 'json' is the name of a module that is there already"):
        SecureRunnableBuilder(SecurityConfig(language="python"), modules={"json": ""}).compile(main)
    with pytest.raises(Faults, match=r"E107 .*nowhere cannot be read: No such file"):
        SecureRunnableBuilder(modules=tmp_path / "nowhere").compile(main)
    with (
        SecureRunnableBuilder(modules={"lib.a": "def f():\n    raise Reject('no')\n"}).compile(
            returning("f()", "from lib.a import f")
        ) as runnable,
        pytest.raises(RunFailed, match="E305"),
    ):
        runnable.process([{}])


# What the dialect keeps out of reach, each beside what is allowed in its place.

SECRET = {
    "lib.a": "x = 1\n_own = 2\ndef f():\n    return x\nclass K:\n    y = 3\n",
    "lib": "",
}
WHEN_COMPILED = {
    "a dunder as a module": ("import lib.__builtins__", "", "E203", "import lib.a"),
    "a dunder of a module": ("from lib.a import __builtins__", "", "E202", "from lib.a import x"),
    "a dunder by another name": ("from lib.a import __dict__ as d", "", "E202", "from lib.a import x as d"),
    "a private name": ("from lib.a import _own", "", "E203", "from lib.a import f"),
    "all names": ("from lib.a import *", "", "E203", "from lib.a import x, f, K"),
    "a module that is not there": ("import lib.b", "", "E203", "import lib.a"),
    "the module without its package": (
        "import a", "", "E203 'import a' is not allowed. Did you mean 'lib.a'?", "import lib.a"
    ),
    "a real module": ("import os.path", "", "E203", "import posixpath"),
    "a real module's own": ("from os import path", "", "E203", "from lib import a"),
    "a loader": ("import lib.a", "lib.a.__loader__", "E202", "import lib.a"),
    "a path": ("import lib", "lib.__path__", "E202", "import lib"),
    "built-in names": ("import lib.a", "lib.a.__builtins__", "E202", "import lib.a"),
    "the globals of a function": ("import lib.a", "lib.a.f.__globals__", "E202", "import lib.a"),
    "the import itself": ("import lib.a", "__import__('lib.a')", "E202", "import lib.a"),
    "a hook of the module": ("import lib.a", "lib.a.__getattr__('x')", "E202", "import lib.a"),
}  # fmt: skip


@pytest.mark.parametrize("case", WHEN_COMPILED)
def test_an_import_reaches_public_names_only(case: str) -> None:
    """What would give more is refused when it is compiled; the twin is not."""
    imports, expression, refused, instead = WHEN_COMPILED[case]
    with pytest.raises(Faults) as caught:
        dialect.compile_program(program(returning(expression or "1", imports), SECRET))
    assert any(f" {refused}" in str(fault) for fault in caught.value.faults)
    dialect.compile_program(program(returning("1", instead), SECRET))


WHEN_RUN = {
    "setting an attribute": ("0", "lib.a.x = 5", "AttributeError: a module's attributes cannot be set"),
    "setting one of a package": ("0", "lib.a = 5", "AttributeError: a module's attributes cannot be set"),
    "setting one by name": ("setattr(lib.a, 'x', 5)", "pass", "AttributeError: a module's attributes"),
    "deleting one": ("0", "del lib.a.x", "AttributeError: a module's attributes cannot be set"),
    "adding to one": ("0", "lib.a.x += 5", "AttributeError: a module's attributes cannot be set"),
    "its dict": ("lib.a.__dict__", "pass", "AttributeError: '__dict__' is not accessible"),
    "its variables": ("vars(lib.a)", "pass", "AttributeError: '__dict__' is not accessible"),
    "a dunder by name": ("getattr(lib.a, '__builtins__')", "pass", "AttributeError: '__builtins__'"),
    "a dunder by a path": (
        "operator.attrgetter('a.__builtins__')(lib)", "pass", "AttributeError: '__builtins__'"
    ),
    "a dunder by a template": (
        "'{0.__builtins__}'.format(lib.a)", "pass", "AttributeError: '__builtins__'"
    ),
    "a guard by name": ("getattr(lib.a, '~read')", "pass", "AttributeError: '~read'"),
    "a private name": ("lib.a._own", "pass", "AttributeError: module 'lib.a' has no attribute '_own': what"),
    "a private name by name": ("getattr(lib.a, '_own')", "pass", "AttributeError: module 'lib.a' has no"),
    "the kind of a module": ("type(lib.a)('x')", "pass", "TypeError: 'module' objects cannot be made"),
    "a name of no module": ("lib.a.nope", "pass", "AttributeError: module 'lib.a' has no attribute 'nope'"),
}  # fmt: skip


@with_zygote
async def test_a_module_object_gives_nothing_but_public_names(zygote: Zygote) -> None:
    """Nor can it be changed by anybody but the module itself."""
    imports = "import lib.a\nimport copy\nimport operator"
    for case, (expression, statement, expected) in WHEN_RUN.items():
        guest = await zygote.spawn(program(returning(expression, imports, statement), SECRET), Limits())
        failed = await outcome(guest)
        await guest.close()
        assert isinstance(failed, Failed), case
        assert failed.failure.text.startswith(expected), (case, failed.failure.text)
    twin = returning(
        "[lib.a.x, getattr(lib.a, 'x'), operator.attrgetter('a.x')(lib), '{0.x}'.format(lib.a), dir(lib.a),"
        " lib.a.K.y, copy.deepcopy(lib.a) is lib.a, lib.a.f()]",
        imports,
    )
    assert await output(zygote, program(twin, SECRET)) == [1, 1, 1, "1", ["K", "f", "x"], 3, True, 1]


def test_a_module_of_the_users_never_leads_to_a_real_one() -> None:
    """Not even under the name of one: the interpreter looks for `from x import y` among real modules, too."""
    own = Program("", "r.py", modules=(Module("os", "os.py", "x = 1\n"), Module("os.path.a", "a.py", "")))
    space = dialect.namespace(dialect.Runtime(object, lambda *_: None))
    codes = {"os": dialect.compile_module(own, own.modules[0]), "os.path": None, "os.path.a": None}
    dialect.bring_modules(space, codes, exec, {})
    exec("from os import x, path\nimport os.path as p\nimport os", space)
    assert space["x"] == 1
    assert space["path"] is space["p"] is not sys.modules["os.path"]
    for source in ("from os import sep", "from os.path import join", "import os.path.join as j"):
        with pytest.raises(ImportError):
            exec(source, space)
    assert not {name for name in sys.modules if name.startswith("runnable.os")}


def test_the_verifier_knows_the_modules_by_their_names_alone() -> None:
    """Bytecode that imports another one, or a private name of one, is refused on its own account."""
    names = program("", SECRET).module_names
    assert names == {"lib", "lib.a"}
    assert not dialect.verify(compile("import lib.a\nfrom lib import a\n", "r.py", "exec"), names)
    for source in (
        "import lib.b",
        "import os",
        "from lib.a import _own",
        "from .a import x",
        "from lib import *",
    ):
        assert dialect.verify(compile(source, "r.py", "exec"), names), source
    assert dialect.verify(compile("import lib.a", "r.py", "exec"))


@with_zygote
async def test_a_module_is_held_to_the_dialect(zygote: Zygote) -> None:
    """Its faults are those of a Runnable, and it gets at nothing that a Runnable does not get at."""
    modules = {"lib.a": "import os\nx = __builtins__\ny = eval('1')\nclass A(metaclass=B): ...\n"}
    faults = await refusal(zygote, program(returning("1", "import lib.a"), modules))
    assert [fault.split(" ")[:2] for fault in faults] == [
        ["lib/a.py:1:1", "E203"],
        ["lib/a.py:2:5", "E202"],
        ["lib/a.py:3:5", "E202"],
        ["lib/a.py:4:9", "E202"],
    ]


def test_every_module_of_the_dialect_is_a_name_that_no_folder_may_have() -> None:
    """What `check` knows without a guest is all that the language has."""
    tops = {name.partition(".")[0] for name in (*facades.MODULES, *facades.RUNTIME_MODULES)}
    ours = {"authority_nanos", "exospherehost", "httpx", "processor", "pydantic", "requests"}
    assert tops <= {*sys.stdlib_module_names, *ours}
