"""Plain Python in the jail: a real zygote with real packages, real guests, and no language layer in the way.

What the kernel has to hold by itself is tried here from the inside, with all of Python at hand. The dialect's
guests stand behind the same seal.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import orjson
import pytest

from processor.errors import Faults, LanguageError, ProcessorError
from processor.model import Failed, Group, Limits, Outcome, Program, Ran
from processor.sandbox.host import Guest, Zygote
from processor.sandbox.jail import JailReport
from processor.sandbox.languages import Footing

Run = Callable[..., Any]
Open = Callable[..., AbstractAsyncContextManager[Run]]

HAS_PANDAS = all(map(importlib.util.find_spec, ("numpy", "pandas")))
with_pandas = pytest.mark.skipif(
    not HAS_PANDAS, reason="numpy and pandas are not installed: pip install '.[test]'"
)


def program(source: str, *packages: str) -> Program:
    return Program(dedent(source), "plain.py", "python", packages)


def returning(body: str, before: str = "") -> str:
    """A Runnable whose one output is what `body` leaves in `result`."""
    inner = indent(dedent(body), " " * 8)
    head = f"{dedent(before)}\nclass Runnable:\n    def process(self, queries):\n"
    return f"{head}{inner}\n        return [result]\n"


async def once(guest: Guest, *documents: Any) -> Outcome:
    return await guest.run([Group("", [orjson.dumps(each) for each in documents or ({},)], {})])


def output(outcome: Outcome) -> Any:
    assert isinstance(outcome, Ran), outcome
    return orjson.loads(outcome.outputs[0].body)


def failure(outcome: Outcome) -> tuple[str, str]:
    assert isinstance(outcome, Failed), outcome
    return outcome.failure.code, outcome.failure.text


@pytest.fixture(scope="session")
def opened() -> Open:
    """`async with opened("numpy") as run`: a zygote; `await run(source, **limits)`: one fresh guest."""

    @asynccontextmanager
    async def open_zygote(*packages: str) -> AsyncIterator[Run]:
        zygote = await Zygote.start()

        async def run(source: str, *documents: Any, **limits: Any) -> Outcome:
            guest = await zygote.spawn(program(source, *packages), Limits(**limits))
            try:
                return await once(guest, *documents)
            finally:
                await guest.close()

        try:
            yield run
        finally:
            await zygote.close()

    return open_zygote


# The language.


async def test_all_of_python_and_its_standard_library_is_there(opened: Open) -> None:
    """What the dialect refuses runs: any import, exec, metaclasses, and a database in memory."""
    source = returning(
        """
        import asyncio, concurrent.futures, email.message, lzma, multiprocessing, sqlite3, ssl, unittest
        import xml.etree.ElementTree as tree
        space = {}
        exec("x = 20 + 1", space)
        class Meta(type):
            def __new__(meta, name, bases, body):
                return super().__new__(meta, name, bases, {**body, "mark": 2})
        class Marked(metaclass=Meta):
            pass
        async def answer():
            return 1
        try:
            answer().send(None)
        except StopIteration as stop:
            one = stop.value
        rows = sqlite3.connect(":memory:").execute("select 7").fetchall()
        result = [space["x"] * Marked.mark * one, rows, tree.fromstring("<a>b</a>").text]
        """
    )
    async with opened() as run:
        assert output(await run(source)) == [42, [[7]], "b"]


async def test_asyncio_works_without_a_descriptor(opened: Open) -> None:
    """Tasks, groups, timeouts and queues run to their end; a loop that nothing can wake says so at once."""
    work = """
        async def work():
            seen = [asyncio.current_task().get_name() == "main", asyncio.Task is _asyncio.Task]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(asyncio.sleep(0.001 * n, n)) for n in (2, 1)]
            seen.append([task.result() for task in tasks])
            try:
                async with asyncio.timeout(0.01):
                    await asyncio.sleep(30)
            except TimeoutError:
                seen.append("timeout")
            queue = asyncio.Queue()
            putting = asyncio.create_task(queue.put("put"))
            seen.append(await asyncio.wait_for(queue.get(), 5))
            seen.append(await asyncio.gather(asyncio.sleep(0, 1), putting))
            return seen

        async def stuck():
            await asyncio.get_running_loop().create_future()

        async def named(coroutine):
            asyncio.current_task().set_name("main")
            return await coroutine
    """
    body = """
        result = [asyncio.run(named(work())) for _ in range(2)]
        try:
            asyncio.run(stuck())
        except RuntimeError as err:
            result.append(str(err))
    """
    async with opened() as run:
        seen = [True, True, [2, 1], "timeout", "put", [1, None]]
        source = returning(body, f"import asyncio, _asyncio\n{dedent(work)}")
        assert output(await run(source, wall_s=20)) == [
            seen, seen, "the event loop has nothing left to do, and nothing can wake it"
        ]  # fmt: skip


async def test_a_runnable_of_the_dialect_runs_as_plain_python(opened: Open) -> None:
    """What is there without an import is there in both languages, and the base class too."""
    source = """
    class Runnable(BaseSecureRunnable):
        def __init__(self, config=None):
            super().__init__(config)
        def init(self):
            self.context["n"] = 0
        def process(self, queries):
            self.context["n"] += len(queries)
            self.event("seen", {"n": self.context["n"]})
            self.logger.info("seen")
            day = datetime(2020, 1, 1).isoformat()
            return [{"n": self.context["n"], "j": json.loads("[1]"), "m": math.floor(2.5), "day": day,
                     "t": time(1, 2).isoformat(), "clock": time.time() > 0}]
    """
    zygote = await Zygote.start()
    try:
        seen = []
        for language in ("restricted", "python"):
            guest = await zygote.spawn(Program(dedent(source), "both.py", language), Limits())
            outcome = await once(guest, {}, {})
            assert isinstance(outcome, Ran)
            seen.append((outcome.outputs, outcome.events, outcome.contexts, outcome.logs))
        assert seen[0] == seen[1]
        assert seen[0][2][""].items == {"n": b"2"}
    finally:
        await zygote.close()


async def test_the_base_class_is_mixed_in_where_it_is_left_out(opened: Open) -> None:
    """A plain class gets the context, the other methods, and stays what its source calls Runnable."""
    async with opened() as run:
        source = returning(
            "self.context['a'] = 1\nresult = [type(self) is Runnable, isinstance(self, BaseSecureRunnable)]"
        )
        assert output(await run(source)) == [True, True]


UNLOADABLE = [
    ("class Runnable:\n    x = = 1", "plain.py:2:9 E201 invalid syntax."),
    ("x = '\0'\nclass Runnable: pass", "plain.py:1:1 E201 source code string cannot contain null bytes."),
    ("x = " + "(" * 5000, "plain.py:1:1 E205 the source is too deeply nested."),
    ("#" * 300_000, "plain.py:1:1 E205 the source has 300000 characters, more than 262144."),
    ("x = 1", "plain.py:1:1 E204 Runnable is not defined."),
    ("Runnable = 3", "plain.py:1:1 E204 Runnable is not a class."),
    ("class Runnable(dict): pass", "plain.py:1:1 E204 Runnable derives from a class that makes its own"),
    ("import json\n\nimport nosuch", "plain.py:3:1 E206 ModuleNotFoundError: No module named 'nosuch'"),
    (
        "import os\nos._exit(3)",
        "plain.py:1:1 E206 while it was loaded: the guest process ended with exit code 3",
    ),
    ("import sys\nsys.exit(0)", "plain.py:2:1 E206 SystemExit: 0"),
]


async def test_what_cannot_be_loaded_is_a_fault_with_its_place(opened: Open) -> None:
    """Python's own sentence, at Python's own place."""
    async with opened() as run:
        for source, said in UNLOADABLE:
            with pytest.raises(Faults) as caught:
                await run(source)
            assert str(caught.value).startswith(said)


async def test_what_is_printed_and_logged_goes_to_the_routes_log(opened: Open) -> None:
    """Both standard streams, warnings and `logging`; a line that was not ended ends with the run."""
    source = returning(
        """
        import logging, sys, warnings
        print("one", 1)
        print("two", file=sys.stderr)
        logging.getLogger("lib").error("three %d", 3)
        logging.debug("not asked for")
        warnings.warn("four")
        print("five", end="")
        result = sys.stdin is None
        """
    )
    async with opened() as run:
        outcome = await run(source)
        assert output(outcome) is True
        said = [(line.level, line.text) for line in outcome.logs]
        assert said[:3] == [("info", "one 1"), ("warning", "two"), ("error", "three 3")]
        assert said[-1] == ("info", "five")
        assert any(level == "warning" and "UserWarning: four" in text for level, text in said)
        outcome = await run(
            returning("for n in range(10**4): print('x' * 5000, end='')\nresult = 1"), log_lines=10
        )
        assert len(outcome.logs) == 11
        assert max(len(line.text) for line in outcome.logs) <= 1000


async def test_a_traceback_shows_the_users_frames_with_their_source(opened: Open) -> None:
    """Frames of the standard library and of ours are left out; Python's own `traceback` finds the source."""
    source = returning(
        """
        import traceback
        try:
            json.loads("{")
        except ValueError:
            print(traceback.format_exc())
        result = json.loads("{")
        """
    )
    async with opened() as run:
        outcome = await run(source)
    assert isinstance(outcome, Failed)
    assert failure(outcome)[1].startswith("JSONDecodeError: Expecting property name")
    trace = outcome.failure.traceback
    assert re.search(r'File "plain.py", line \d+, in process\n    result = json.loads\("{"\)', trace)
    assert trace.count("File ") == 1
    assert any('json.loads("{")' in line.text for line in outcome.logs)


async def test_reject_and_retry_pass_through_except_exception(opened: Open) -> None:
    """They decide about the message, as in the dialect."""
    async with opened() as run:
        for raised, code in (("Reject('no')", "E305"), ("Retry(3)", "E304")):
            outcome = await run(returning(f"try:\n    raise {raised}\nexcept Exception:\n    result = 1"))
            assert failure(outcome)[0] == code


async def test_a_changed_module_is_changed_for_one_guest_only(opened: Open) -> None:
    """Guests share the zygote's memory, and what one of them writes is its own copy, to its own harm."""
    reading = returning("import json\nresult = [json.dumps(len([1])), math.pi > 3.1]")
    async with opened() as run:
        assert output(await run(returning("import json\nmath.pi = 3\njson.dumps = None\nresult = 0"))) == 0
        assert output(await run(reading)) == ["1", True]
        broken = await run(returning("import builtins\nbuiltins.len = None\nresult = 0"))
        assert failure(broken)[0] == "E314"
        assert output(await run(reading)) == ["1", True]


async def test_what_no_package_of_the_route_has_cannot_be_imported(opened: Open) -> None:
    """Only what is named, and what that needs; the rest of what is installed is not there."""
    async with opened() as run:
        source = returning("try:\n    import nats\nexcept ImportError as err:\n    result = str(err)")
        assert output(await run(source)) == "No module named 'nats'"
        said = failure(await run(returning("import nats")))[1]
        assert said == "ModuleNotFoundError: No module named 'nats' (packages of this route: none)"


async def test_the_host_makes_the_requests() -> None:
    """`import requests`, the bare name and `self.requests` are one thing, and go through the host."""

    async def perform(name: str, arguments: Any) -> Any:
        raise ProcessorError("E325", f"no {name} here")

    source = returning(
        """
        import requests as imported
        from requests.exceptions import RequestException
        try:
            imported.get("https://example.com/")
        except RequestException as err:
            result = [imported is requests is self.requests, str(err)]
        """
    )
    zygote = await Zygote.start()
    try:
        guest = await zygote.spawn(program(source), Limits(), perform=perform)
        is_one, said = output(await once(guest))
        assert is_one
        assert "E325 no " in said
    finally:
        await zygote.close()


# What must be in memory, because there are no files.


async def test_modules_data_and_metadata_are_found_without_files(opened: Open) -> None:
    """Modules that nobody had imported, time zones, encodings, and a distribution's version."""
    source = returning(
        """
        import sys
        before = "wave" in sys.modules
        import uuid, wave, zoneinfo, importlib.metadata
        from datetime import datetime, timezone
        zone = zoneinfo.ZoneInfo("Europe/Berlin")
        noon = datetime(2024, 7, 1, 12, tzinfo=timezone.utc).astimezone(zone).hour
        version = importlib.metadata.version("pydantic")
        result = [before, noon, "é".encode("cp037").hex(), version > "2", uuid.uuid1().version]
        """
    )
    async with opened("pydantic") as run:
        assert output(await run(source)) == [False, 14, "51", True, 1]


@pytest.mark.skipif(not Path("/usr/share/zoneinfo").is_dir(), reason="this machine has no time zones")
def test_the_machines_time_zones_stand_in_for_the_package() -> None:
    """Where `tzdata` is not installed, zones are kept from where the system has them."""
    source = """
        import io, sys, zoneinfo
        sys.path.append(sys.argv[1])
        from processor.sandbox import packages
        packages.bring([])
        io.open = None
        zoneinfo.reset_tzpath(to=[])
        known = zoneinfo.available_timezones()
        print(zoneinfo.ZoneInfo("America/Argentina/Ushuaia"), "Europe/Berlin" in known)
    """
    command = [sys.executable, "-I", "-S", "-c", dedent(source), str(Path(__file__).parents[2])]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stdout == "America/Argentina/Ushuaia True\n", ended.stderr


async def test_pydantic_works_with_its_core(opened: Open) -> None:
    """A package with a compiled core: models are made and validated in the guest, forward references too."""
    source = """
    from __future__ import annotations
    from pydantic import BaseModel, ValidationError

    class Order(BaseModel):
        price: float
        lines: list[Line] = []

    class Line(BaseModel):
        sku: str

    class Runnable:
        def process(self, queries):
            try:
                Order(price="x")
            except ValidationError as err:
                yield err.errors()[0]["type"]
            yield Order.model_validate(queries[0]).model_dump()
    """
    async with opened("pydantic") as run:
        outcome = await run(source, {"price": "2.5", "lines": [{"sku": "a"}]})
        assert isinstance(outcome, Ran)
        bodies = [orjson.loads(each.body) for each in outcome.outputs]
        assert bodies == ["float_parsing", {"price": 2.5, "lines": [{"sku": "a"}]}]


NUMBERS = """
import io
import numpy as np
import pandas as pd

def work():
    ones = np.ones((700, 700))
    yield "product", float((ones @ ones).sum()) == 700.0**3
    yield "svd", np.linalg.svd(np.eye(50))[1].sum() == 50
    yield "fft", np.fft.ifft(np.fft.fft(np.arange(64.0))).real.round().sum() == 2016
    yield "random", 0 < np.random.default_rng().random() < 1
    yield "lazy", np.polynomial.Polynomial([1, 2])(3) == 7
    frame = pd.DataFrame({"k": list("abab") * 25, "v": np.arange(100.0)})
    frame["t"] = pd.date_range("2020-03-28", periods=100, freq="h", tz="Europe/Berlin")
    yield "groupby", frame.groupby("k")["v"].sum().to_dict() == {"a": 2450.0, "b": 2500.0}
    yield "apply", frame.groupby("k")["v"].apply(lambda part: part.max()).tolist() == [98.0, 99.0]
    yield "merge", len(frame.merge(frame, on="k")) == 5000
    yield "rolling", frame["v"].rolling(2).mean().iloc[-1] == 98.5
    yield "resample", len(frame.set_index("t")["v"].resample("D").sum()) == 5
    yield "to_datetime", pd.to_datetime(["2021-05-06 10:00"])[0].hour == 10
    yield "parse", pd.to_datetime("5th of May 2020").day == 5
    yield "csv", pd.read_csv(io.StringIO("a,b\\n1,2\\n")).to_dict("records") == [{"a": 1, "b": 2}]
    yield "json", pd.read_json(io.StringIO('[{"a": 1}]'))["a"].tolist() == [1]
    yield "query", len(frame.query("v > 97")) == 2
    yield "html", frame.head(1).to_html().startswith("<table")
    yield "pivot", frame.pivot_table(index="k", values="v").shape == (2, 1)

class Runnable:
    def process(self, queries):
        return [[name for name, held in work() if not held]]
"""


@with_pandas
async def test_numpy_and_pandas_work_sealed(opened: Open) -> None:
    """Linear algebra, tables, time zones and parsers, with the modules that they load when first used."""
    async with opened("numpy", "pandas") as run:
        assert output(await run(NUMBERS)) == []


@with_pandas
async def test_numbers_of_numpy_leave_as_numbers(opened: Open) -> None:
    """Scalars and arrays become JSON; what has no clear text is refused with what to write instead."""
    values = "{'a': np.int64(3), 'b': np.arange(4).reshape(2, 2), 'c': np.float32(0.5), 'd': np.bool_(True)}"
    refused = {
        "pd.DataFrame({'a': [1]})": (r"E306 output 0 is a DataFrame, .*; write value.to_dict\('records'\)"),
        "pd.Period('2020-01')": r"E306 output 0 is a Period, .*; write str\(value\)",
        "[np.float64('nan')]": r"E306 output 0\[0\] is nan, which JSON cannot express",
        "np.array([1, np.nan])": r"E306 output 0\[1\] is nan, which JSON cannot express",
        "np.timedelta64(1, 'M')": r"E306 output 0 is a timedelta64, .*; write str\(value\)",
        "np.zeros((3, 9))": r"E319 output 0\[0\] holds 9 items",
    }
    async with opened("pandas") as run:
        imports = "import numpy as np, pandas as pd"
        assert output(await run(returning(f"result = {values}", imports))) == {
            "a": 3, "b": [[0, 1], [2, 3]], "c": 0.5, "d": True,
        }  # fmt: skip
        for value, said in refused.items():
            outcome = await run(returning(f"result = {value}", imports), max_container_length=8)
            assert re.match(said, " ".join(failure(outcome))), (value, outcome)
        outcome = await run(returning("self.context['m'] = np.float64(1)\nresult = 1", imports))
        assert re.match(
            r"E309 .*float64, which cannot be kept; write float\(value\)", " ".join(failure(outcome))
        )


@with_pandas
async def test_the_memory_limit_is_on_top_of_the_packages(opened: Open) -> None:
    """128 MB are 128 MB for the program; more is a MemoryError, and E313 if that is not caught."""
    imports = "import numpy as np"
    async with opened("numpy", "pandas") as run:
        most = "big = np.ones(118 << 17)\nresult = int(big.sum() + (np.eye(256) @ np.eye(256)).sum())"
        assert output(await run(returning(most, imports))) == (118 << 17) + 256
        outcome = await run(returning("result = int(np.ones(140 << 17).sum())", imports))
        assert failure(outcome)[0] == "E313"
        caught = "try:\n    np.ones(140 << 17)\nexcept MemoryError as err:\n    result = True"
        assert output(await run(returning(caught, imports))) is True


@with_pandas
async def test_guests_do_not_share_random_numbers(opened: Open) -> None:
    """Neither Python's nor numpy's: the zygote's state is not every guest's."""
    draw = returning("import random\nresult = [random.random(), np.random.rand()]", "import numpy as np")
    async with opened("numpy") as run:
        first, second = output(await run(draw)), output(await run(draw))
    assert not set(first) & set(second)


# Packages that cannot be had, and those of a route's own.


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`installed({"pkg/__init__.py": "x = 1"})`: files on the import path of zygotes that start now."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(files: dict[str, str]) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(dedent(text))

    return write


async def test_a_package_is_whole_without_its_tests(opened: Open, installed: Callable[..., None]) -> None:
    """Submodules and data that nobody touched before are found; folders of tests are left out."""
    installed(
        {
            "shop/__init__.py": "",
            "shop/tax/__init__.py": "from shop.tax import rates",
            "shop/tax/rates.py": "RATE = 0.19",
            "shop/tax/rates.txt": "19",
            "shop/tests/__init__.py": "",
            "shop/namespace/inner.py": "X = 1",
            "shop-1.2.dist-info/METADATA": "Metadata-Version: 2.1\nName: shop\nVersion: 1.2\n",
            "shop-1.2.dist-info/RECORD": "shop/__init__.py,,\n",
        }
    )
    source = returning(
        """
        import importlib.metadata, importlib.resources
        import shop.tax, shop.namespace.inner
        text = importlib.resources.files("shop.tax").joinpath("rates.txt").read_text()
        try:
            import shop.tests
        except ImportError as err:
            tests = str(err)
        version = importlib.metadata.version("shop")
        result = [shop.tax.rates.RATE, text, shop.namespace.inner.X, version, tests]
        """
    )
    async with opened("shop") as run:
        assert output(await run(source)) == [0.19, "19", 1, "1.2", "No module named 'shop.tests'"]
    assert "shop" not in sys.modules  # a package is imported by the zygote, never beside the credentials


UNUSABLE = {
    "pydantik": "the package 'pydantik' is not installed beside Processor. Did you mean 'pydantic'?",
    "broken": "the package 'broken' cannot be imported here: RuntimeError: no licence",
    "exits": "the package 'exits' cannot be imported here: SystemExit: 3",
    "threaded": "the package 'threaded' starts threads when it is imported, which a guest cannot have",
}


async def test_a_package_that_cannot_be_had_is_named_with_the_reason(installed: Callable[..., None]) -> None:
    """E505, and no other program notices."""
    thread = "threading.Thread(target=time.sleep, args=(60,), daemon=True)"
    installed(
        {
            "broken.py": "raise RuntimeError('no licence')",
            "exits.py": "raise SystemExit(3)",
            "threaded.py": f"import threading, time\n{thread}.start()",
        }
    )
    zygote = await Zygote.start()
    try:
        for package, said in UNUSABLE.items():
            with pytest.raises(LanguageError) as caught:
                await zygote.spawn(program(returning("result = 1"), package), Limits())
            assert (caught.value.code, caught.value.package) == ("E505", package)
            assert said in str(caught.value)
        assert output(await once(await zygote.spawn(program(returning("result = 1")), Limits()))) == 1
    finally:
        await zygote.close()


async def test_a_package_that_crashes_is_told(installed: Callable[..., None]) -> None:
    """The zygote's last words, with the packages that it was to import (E505)."""
    installed({"crashes.py": "import os\nos._exit(9)"})
    zygote = await Zygote.start()
    try:
        with pytest.raises(LanguageError, match=r"E505 .*'crashes' cannot be imported here: .* exit code 9"):
            await zygote.spawn(program(returning("result = 1"), "crashes"), Limits())
    finally:
        await zygote.close()


async def test_a_weak_jail_gets_no_plain_python() -> None:
    """E504 names the level and the layers that are off; the dialect goes on."""
    zygote = await Zygote.start()
    try:
        zygote.report = JailReport.of({"rlimits": "on", "no_new_privs": "on", "seccomp": "off(EPERM: no)"})
        with pytest.raises(LanguageError, match=r"E504 .* this one is process \(seccomp: off\(EPERM: no\)\)"):
            await zygote.spawn(program(returning("result = 1")), Limits())
        await zygote.spawn(Program(returning("result = 1"), "a.py"), Limits())
    finally:
        await zygote.close()


async def test_a_zygote_ends_when_nothing_needs_its_packages(wait_until: Any) -> None:
    """`retain` ends it with its guests; the next program that needs it starts another, as after its death."""
    needy, plain = program(returning("result = 1"), "pydantic"), program(returning("result = 1"))
    zygote = await Zygote.start()
    try:
        first, other = await zygote.spawn(needy, Limits()), await zygote.spawn(plain, Limits())
        await zygote.retain([plain])
        assert not first.alive
        assert other.alive
        again = await zygote.spawn(needy, Limits())
        zygote._cells[Footing.of(needy)]._process.kill()
        await wait_until(lambda: not again.alive, "the guest has died with its zygote")
        assert output(await once(await zygote.spawn(needy, Limits()))) == 1
    finally:
        await zygote.close()


# Attacks. With all of Python, the kernel is what is left.

CTYPES = "import ctypes, mmap\nlibc = ctypes.CDLL(None)\n"


FATAL = [
    "os.fork()",
    "os.execv('/bin/true', ['true'])",
    "os.system('true')",
    "threading.Thread(target=print).start()",
    "socket.socket()",
    "socket.create_connection(('127.0.0.1', 4222))",
    "urllib.request.urlopen('http://127.0.0.1/')",
    "os.kill(os.getppid(), 9)",
    "os.kill(1, 9)",
    "os.killpg(0, 9)",
    "signal.pidfd_send_signal(3, 9)",
    "os.memfd_create('x')",
    "os.pidfd_open(1)",
    "os.setuid(0)",
    "os.chroot('/')",
    "libc.prctl(22, 2, 0, 0, 0)",
    "libc.prctl(4, 1, 0, 0, 0)",
    "libc.ptrace(16, 1, 0, 0)",
    "libc.unshare(0x10000000)",
    "libc.mount(b'none', b'/', b'tmpfs', 0, None)",
    "libc.syscall(425, 1, 0)",
    "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
    "libc.mprotect(ctypes.c_void_p(ctypes.addressof(ctypes.create_string_buffer(9000)) & ~4095), 4096, 7)",
    "ctypes.CFUNCTYPE(None)(print)",
]


async def test_an_attack_ends_the_guest(opened: Open) -> None:
    """New processes, threads, sockets, signals, privileges and code: dead before anything happens (E316)."""
    imports = "import os, signal, socket, threading, urllib.request\n" + CTYPES
    async with opened() as run:
        outcomes = await asyncio.gather(
            *(run(returning(f"result = repr({each})", imports)) for each in FATAL)
        )
    ended = {each: failure(outcome)[0] for each, outcome in zip(FATAL, outcomes, strict=True)}
    assert ended == dict.fromkeys(FATAL, "E316")


REFUSED = [
    "subprocess.run(['true'])",
    "multiprocessing.Process(target=print).start()",
    "open('/etc/passwd').read()",
    "open('/proc/self/environ').read()",
    "open('/proc/1/environ').read()",
    "open('/proc/self/mem', 'rb')",
    "open('/tmp/x', 'w')",
    "os.open('/', os.O_RDONLY)",
    "os.listdir('/')",
    "os.listdir('/proc')",
    "os.stat('/etc/passwd')",
    "os.readlink('/proc/self/exe')",
    "os.mkdir('/x')",
    "os.unlink('/x')",
    "os.getcwd()",
    "os.chdir('/')",
    "os.dup(3)",
    "os.close(3)",
    "os.pipe()",
    "os.read(0, 1)",
    "os.write(1, b'x')",
    "os.sendfile(3, 3, 0, 1)",
    "socket.socket(fileno=3).getpeername()",
    "fcntl.fcntl(3, fcntl.F_GETFL)",
    "signal.signal(signal.SIGALRM, print)",
    "resource.prlimit(1, resource.RLIMIT_CORE)",
    "tempfile.TemporaryFile()",
    "shutil.copy('/etc/passwd', '/tmp/x')",
    "pathlib.Path('/etc/passwd').read_text()",
    "sqlite3.connect('/tmp/x')",
]


async def test_a_stray_call_is_an_error_that_the_program_can_read(opened: Open) -> None:
    """Files, directories, descriptors, handlers: an OSError (sqlite has its own), and nothing happened."""
    imports = (
        "import asyncio, fcntl, multiprocessing, os, pathlib, resource, shutil, signal, socket, sqlite3\n"
        "import subprocess, tempfile"
    )
    held = f"""
        said = {{}}
        for attack in {REFUSED!r}:
            try:
                said[attack] = repr(eval(attack))
            except (OSError, sqlite3.OperationalError):
                continue
        result = said
    """
    async with opened() as run:
        assert output(await run(returning(held, imports))) == {}


async def test_it_finds_nothing_of_its_host(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """No environment, no arguments, no user of ours; no text of ours in any object that it can reach."""
    monkeypatch.setenv("CANARY_TOKEN", "canary-" + "c0ffee")
    source = returning(
        """
        import gc, os, sys
        held = [repr(o)[:10**5] for o in gc.get_objects() if isinstance(o, (dict, list))]
        texts = [text for text in held if "canary-" + "c0ffee" in text]
        extra = [name for name in os.environ if "THREAD" not in name and "ARROW" not in name]
        result = [len(texts), extra, sys.path + sys.orig_argv, os.getuid() != 0 or os.geteuid() != 0]
        """
    )
    async with opened() as run:
        found = output(await run(source))
    assert found == [0, ["LC_CTYPE"], [], True]


FORGED = [
    "b'x' * 100",
    "b'\\xff' * 100",
    "struct.pack('<IQII', 16 + 2, nonce, 2, 0) + b'{}'",
    "struct.pack('<IQII', 16 + len(head), nonce ^ 1, len(head), 0) + head",
    "2 * (struct.pack('<IQII', 16 + len(head), nonce, len(head), 0) + head)",
]


async def test_a_forged_frame_ends_the_guest(opened: Open) -> None:
    """Bytes on the channel that are no answer to what was asked cost the guest its life (E315)."""
    source = """
        import os, struct, sys
        frame = sys._getframe()
        while not hasattr(frame.f_locals.get("self"), "_channel"):
            frame = frame.f_back
        nonce = frame.f_locals["self"]._channel.nonce
        head = b'{{"outputs":[0],"tokens":[],"events":[],"contexts":[],"rejected":[],"logs":[]}}'
        os.write(3, {})
        time.sleep(5)
        result = 1
    """
    async with opened() as run:
        outcomes = await asyncio.gather(*(run(returning(source.format(each))) for each in FORGED))
    assert [failure(outcome)[0] for outcome in outcomes] == ["E315"] * len(FORGED)


BEYOND = {
    "result = len(bytearray(300 << 20))": "E313",
    "rows = []\nwhile True:\n    rows.append(bytes(1 << 20))": "E313",
    "while True:\n    try:\n        while True: pass\n    except BaseException: pass": "E311",
    "signal.setitimer(signal.ITIMER_PROF, 0)\nwhile True: pass": "E311",
    "result = 10 ** 10 ** 8": "E311",
    "signal.setitimer(signal.ITIMER_REAL, 0)\ntime.sleep(60)": "E312",
    "while True:\n    try:\n        time.sleep(60)\n    finally:\n        continue": "E312",
    "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))": "E304",
    "os._exit(0)": "E314",
    "os.abort()": "E313",  # as far as can be told: native code that is refused memory crashes like this
    "ctypes.string_at(0)": "E313",
}


async def test_limits_hold_against_plain_python(opened: Open) -> None:
    """Memory, CPU and wall time are measured by host and kernel; no handler or timer changes that."""
    imports = "import ctypes, os, resource, signal"
    met = {}
    async with opened() as run:
        for body, code in BEYOND.items():
            wall_s = 0.3 if code == "E312" else 20
            limits = {"memory_mb": 64, "cpu_s": 0.2, "wall_s": wall_s}
            met[body] = failure(await run(returning(body, imports), **limits))[0]
    assert met == BEYOND
