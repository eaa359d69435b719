"""Steps of recipes in guests of both languages: what their files import, and how a step is executed."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from processor.errors import Faults
from processor.model import Group, Limits, Module, Program, Ran
from processor.recipes.tree import tree
from processor.sandbox.host import Guest, Zygote
from processor.sandbox.steps import source_of

HEAD = """\
from orchestrator.context import Context
from orchestrator.scriptlets.python.core.base import BaseScriptlet
from orchestrator.scriptlets.python.core.logging import get_logger
from orchestrator.scriptlets.python.core.resource import track_resources
logger = get_logger(__name__)
"""


class Steps:
    """A guest with steps in it."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    async def run(self, name: str, params: Any = None, store: Any = None, **more: Any) -> Ran:
        said = {"kind": name, "run": "r1", "x": name, "a": 1, "inputs": params or {}, "store": store or {}}
        ran = await self.guest.run([Group("", [json.dumps({**said, **more}).encode()], {})], isolate=True)
        assert isinstance(ran, Ran), ran
        return ran

    async def __call__(self, name: str, params: Any = None, store: Any = None, **more: Any) -> Any:
        """The body of the result of one step."""
        ran = await self.run(name, params, store, **more)
        assert ran.failed == ()
        [output] = ran.outputs
        return json.loads(output.body)


class Loading:
    """Guests of one zygote."""

    def __init__(self, zygote: Zygote, language: str) -> None:
        self._zygote = zygote
        self._language = language

    async def __call__(
        self, source: str, steps: Mapping[str, str], head: str = HEAD, more: Mapping[str, str] | None = None
    ) -> Steps:
        """`steps` has by name a class or function of the source, which is the module `steps.one`."""
        named = {name: ("steps.one", each, each[0].isupper()) for name, each in steps.items()}
        sources = {"steps.one": head + dedent(source), **(more or {})}
        modules = [Module(name, f"{name.replace('.', '/')}.py", text) for name, text in sources.items()]
        program = Program(source_of(named), "r.yaml", self._language, (), "steps", modules=tuple(modules))
        return Steps(await self._zygote.spawn(program, Limits()))


@asynccontextmanager
async def loading(language: str) -> AsyncIterator[Loading]:
    zygote = await Zygote.start()
    try:
        yield Loading(zygote, language)
    finally:
        await zygote.close()


in_both = pytest.mark.parametrize("language", ["restricted", "python"])


@in_both
async def test_a_step_of_the_guide_runs_unchanged(language: str) -> None:
    """The file of section 8 runs as it stands, with its asserts, its logger and its decorator."""
    async with loading(language) as load:
        step = await load(guide(8), {"compute_msg_len": "ComputeMessageLength"}, head="")
        ran = await step.run("compute_msg_len", {"message": "Framework"})
        bad = await step("compute_msg_len", {"message": 5})
    result = json.loads(ran.outputs[0].body)
    key = "metrics.message_length_v1"
    assert result["outputs"] == {"status": "ok", "key": key, "length": 9}
    [[name, value, who, ts_ms]] = result["sets"]
    assert (name, value, who) == (key, 9, "compute_message_length")
    assert ts_ms > 1e12
    [line] = [line.text for line in ran.logs]
    module, _, text = line.partition(" | ")
    assert module == "orchestrator.scriptlets.python.core.resource"
    usage = json.loads(text)
    assert {"metric": "resource_usage", "function": "run"}.items() <= usage.items()
    assert usage["heap_peak"] >= usage["heap_current"]
    assert set(usage) == {"metric", "function", "seconds", "rss_delta", "heap_current", "heap_peak"}
    assert bad["error"]["code"] == "E716"
    assert bad["error"]["text"] == "step compute_msg_len: message must be string"
    assert bad["returned"] == {"status": "error", "reason": "message must be string"}
    assert 'in validate\n    assert isinstance(params["message"], str)' in bad["error"]["traceback"]
    assert 'File "steps/one.py", line 25' in bad["error"]["traceback"]


@in_both
async def test_the_context_of_a_step_is_what_was_and_what_it_sets(language: str) -> None:
    """`ctx` gives copies of what was given and of what was set, with its history, and notes each change."""
    source = """
    class Sums(BaseScriptlet):
        def run(self, ctx, params):
            before = ctx.get("data")
            before["rows"].append(4)
            assert ctx.get("data") == {"rows": [1, 2]}
            ctx.set("data", before, who="sums")
            before["rows"].append(5)
            ctx.set("n.total_v1", 7)
            assert ctx.get("none", "default") == "default"
            told = ctx.get_history("data")
            told[0]["new"] = "changed"
            return {
                "status": "success",
                "all": ctx.to_dict(),
                "whos": [entry["who"] for entry in ctx.get_history("data")],
                "olds": [entry["old"] for entry in ctx.get_history("data")],
                "first": ctx.get_history("data")[0],
                "is_later": ctx.last_modified("data") > 5.5,
                "never": [ctx.last_modified("none"), ctx.get_history("none")],
                "own": Context().to_dict(),
            }
    """
    first = {"ts": 5.5, "who": "load", "old": None, "new": {"rows": [1, 2]}}
    async with loading(language) as load:
        steps = await load(source, {"sums": "Sums"})
        store = {"data": {"rows": [1, 2]}}
        history = {"data": [None, [5500, "load", {"rows": [1, 2]}]]}
        result = await steps("sums", store=store, history=history)
        without = await steps("sums", store=store)
    assert result["outputs"] == {
        "status": "success",
        "all": {"data": {"rows": [1, 2, 4]}, "n.total_v1": 7},
        "whos": ["load", "sums"],
        "olds": [None, {"rows": [1, 2]}],
        "first": first,
        "is_later": True,
        "never": [None, []],
        "own": {},
    }
    changes = [change[:3] for change in result["sets"]]
    assert changes == [["data", {"rows": [1, 2, 4]}, "sums"], ["n.total_v1", 7, "sums"]]
    assert without["outputs"]["whos"] == ["sums"]


@in_both
async def test_a_value_that_is_no_json_is_refused_by_name(language: str) -> None:
    """What would not come back from JSON as it is raises ValueError with its key; nothing is set then."""
    source = """
    VALUES = {
        "nan": lambda: float("nan"),
        "tuple": lambda: {"a": [1, (2, 3)]},
        "keys": lambda: {1: "one"},
        "set": lambda: {1, 2},
        "object": lambda: BaseScriptlet(),
        "long": lambda: 1 << 70,
        "large": lambda: "x" * 70000,
    }
    def tries(ctx, params):
        found = {}
        for name in VALUES:
            try:
                ctx.set(name, VALUES[name]())
            except ValueError as err:
                found[name] = str(err)
        for key in ("", "a" + chr(10), "k" * 129):
            try:
                ctx.set(key, 1)
            except ValueError as err:
                found[key[:2]] = str(err)
        return {"status": "ok", "found": found, "all": ctx.to_dict()}
    """
    async with loading(language) as load:
        steps = await load(source, {"tries": "tries"})
        result = await steps("tries")
    assert result["outputs"]["all"] == {}
    found = result["outputs"]["found"]
    assert found.pop("large").startswith("Value for large is 70002 bytes; a value takes 65536.")
    assert {found.pop(key)[:40] for key in ("", "a\n", "kk")} == {"a key of the context is 1 to 128 printab"}
    assert found == {
        "nan": "Value for nan not JSON-serializable: nan",
        "tuple": "Value for tuple not JSON-serializable: a tuple at ['a'][1]",
        "keys": "Value for keys not JSON-serializable: 1 as a key of a dict",
        "set": "Value for set not JSON-serializable: a set",
        "object": "Value for object not JSON-serializable: a BaseScriptlet",
        "long": "Value for long not JSON-serializable: an integer of more than 64 bits",
    }


@in_both
async def test_a_step_is_a_class_or_a_function_of_either_form(language: str) -> None:
    """Functions take the context and the parameters, or the parameters alone; 0 is as good as a status."""
    source = """
    def two(ctx, params):
        ctx.set("two", params["n"])
        return {"status": "ok", "n": params["n"]}
    def one(params):
        return {"status": "success", "n": params["n"]}
    def none():
        "Words with half a character: \\ud800."
        return 0
    def any_number(*given):
        return {"status": "ok", "n": len(given)}
    @track_resources
    def decorated(params):
        return {"status": "ok", "n": params["n"]}
    async def waits(ctx, params):
        return {"status": "ok", "n": params["n"]}
    class Plain:
        def run(self, ctx, params):
            return 0
    class Waits(BaseScriptlet):
        async def validate(self, ctx, params):
            assert params["n"] == 3, "n must be 3"
        @track_resources
        async def run(self, ctx, params):
            return 0
    """
    names = ["two", "one", "none", "any_number", "decorated", "waits", "Plain", "Waits"]
    async with loading(language) as load:
        steps = await load(source, {name: name for name in names})
        results = {name: await steps(name, {"n": 3}) for name in names}
        late = await steps("Waits", {"n": 4})
        assert steps.guest.manifest["none"]["doc"] == "Words with half a character: ?."
    assert {name: result["outputs"] for name, result in results.items()} == {
        "two": {"status": "ok", "n": 3},
        "one": {"status": "success", "n": 3},
        "none": {"status": "ok"},
        "any_number": {"status": "ok", "n": 2},
        "decorated": {"status": "ok", "n": 3},
        "waits": {"status": "ok", "n": 3},
        "Plain": {"status": "ok"},
        "Waits": {"status": "ok"},
    }
    assert [change[:3] for change in results["two"]["sets"]] == [["two", 3, "two"]]
    assert late["error"]["text"] == "step Waits: n must be 3"


@in_both
async def test_what_is_not_good_is_bad_and_says_why(language: str) -> None:
    """A bad status, no result, an exception: E716 with the reason, what was returned, and nothing set."""
    source = """
    def bad(ctx, params):
        ctx.set("k", 1)
        return {"status": "error", "reason": "disk full", "left": 0}
    def odd(ctx, params):
        return {"status": "done"}
    def nothing(ctx, params):
        ctx.set("k", 1)
    def seven(ctx, params):
        return 7
    def raises(ctx, params):
        ctx.set("k", 1)
        return params["missing"]
    def bare(ctx, params):
        assert params
    def no_json(ctx, params):
        return {"status": "ok", "n": float("nan")}
    def refuses(ctx, params):
        return {"status": "error", "n": float("nan")}
    def half(ctx, params):
        return {"status": "error", "reason": "half \\ud800"}
    def raises_half(ctx, params):
        raise ValueError("half \\ud800")
    def gives(ctx, params):
        yield {"status": "ok"}
    """
    names = ["bad", "odd", "nothing", "seven", "raises", "bare", "no_json", "refuses"]
    names += ["half", "raises_half", "gives"]
    async with loading(language) as load:
        steps = await load(source, {name: name for name in names})
        results = {name: await steps(name) for name in names}
    assert {result["error"]["code"] for result in results.values()} == {"E716"}
    assert not any("sets" in result or "outputs" in result for result in results.values())
    why = {name: result["error"]["text"].removeprefix(f"step {name}: ") for name, result in results.items()}
    returns = 'a step returns {"status": "ok", ...}, or 0'
    assert why == {
        "bad": "disk full",
        "odd": "it returned the status 'done'",
        "nothing": f"it returned None; {returns}",
        "seven": f"it returned 7; {returns}",
        "raises": "KeyError: 'missing'",
        "bare": "AssertionError",
        "no_json": "output['n'] is nan, which JSON cannot express; write None for it",
        "refuses": "it returned the status 'error'",
        "half": "half ?",
        "raises_half": "ValueError: half ?",
        "gives": f"it returned a generator; {returns}",
    }
    assert results["bad"]["returned"] == {"status": "error", "reason": "disk full", "left": 0}
    assert results["raises"]["returned"] == {"status": "error", "reason": "KeyError: 'missing'"}
    assert 'return params["missing"]' in results["raises"]["error"]["traceback"]
    assert results["refuses"]["returned"] == {"status": "error", "reason": why["refuses"]}


@in_both
async def test_what_a_step_logs_names_its_module(language: str) -> None:
    """A line of `get_logger` begins with the name it was given; nested measures are told one by one."""
    source = """
    @track_resources
    def inner():
        return bytearray(200_000)
    @track_resources
    def outer(params):
        kept = inner()
        del kept
        logger.warning("%d rows", 3)
        return 0
    """
    async with loading(language) as load:
        steps = await load(source, {"outer": "outer"})
        ran = await steps.run("outer")
    inner, said, outer = ran.logs
    assert (said.level, said.text) == ("warning", "steps.one | 3 rows")
    told = [json.loads(line.text.partition(" | ")[2]) for line in (inner, outer)]
    assert [each["function"] for each in told] == ["inner", "outer"]
    assert told[0]["heap_current"] >= 200_000
    assert told[1]["heap_peak"] >= 200_000 > told[1]["heap_current"]


@in_both
async def test_modules_of_the_user_lie_beside_ours(language: str) -> None:
    """A package of the user's may be called orchestrator, too: what is ours in it stays ours."""
    more = {
        "orchestrator": "VERSION = 3\n",
        "orchestrator.tools.sums": "import orchestrator.context\ndef add(a, b):\n    return a + b\n",
    }
    source = """
    import orchestrator
    from orchestrator.tools.sums import add
    def run(params):
        return {"status": "ok", "n": add(orchestrator.VERSION, 4)}
    """
    async with loading(language) as load:
        steps = await load(source, {"sums": "run"}, more=more)
        assert (await steps("sums"))["outputs"]["n"] == 7


@in_both
async def test_what_is_no_step_is_refused_when_it_is_loaded(language: str) -> None:
    """A class without `run`, a name that is no function, and a name that ours does not have are faults."""
    source = """
    class Nothing(BaseScriptlet):
        run = 3
    number = 5
    """
    async with loading(language) as load:
        with pytest.raises(Faults) as refused:
            await load(source, {"a": "Nothing", "b": "number"})
        assert [str(fault) for fault in refused.value.faults] == [
            "r.yaml:1:1 E207 step a: it is no class with a method run(self, ctx, params)",
            "r.yaml:1:1 E207 step b: it is no function of (ctx, params) or (params)",
        ]
        with pytest.raises(
            Faults, match=r"cannot import name 'Board' from 'orchestrator\.context'"
        ) as refused:
            await load("from orchestrator.context import Board\n", {"a": "Nothing"})
        assert refused.value.faults[0].file == "steps/one.py"


@in_both
async def test_a_program_has_as_many_steps_as_a_recipe(language: str) -> None:
    """900 with the longest names load, whatever their classes say of themselves, and the last one runs."""
    names = [f"{number:03d}".rjust(64, "s") for number in range(900)]
    source = f"class Step(BaseScriptlet):\n    {chr(7) * 300!r}\n    def run(self, ctx, params): return 0\n"
    async with loading(language) as load:
        step = await load(source, dict.fromkeys(names, "Step"))
        assert list(step.guest.manifest) == names
        assert (await step(names[-1]))["outputs"] == {"status": "ok"}


@in_both
async def test_no_step_reaches_what_is_behind_its_context(language: str) -> None:
    """The methods of a Context are for one; in the restricted language its inside is out of reach."""
    source = """
    class Other:
        pass
    def run(ctx, params):
        try:
            Context.set(Other, "a", 1)
        except TypeError as err:
            return {"status": "ok", "why": str(err)}
    def peeks(ctx, params):
        return {"status": "ok", "values": ctx._values}
    """
    async with loading(language) as load:
        steps = await load(source, {"one": "run", "two": "peeks"})
        assert "is for an instance of" in (await steps("one"))["outputs"]["why"]
        peeked = await steps("two")
    assert ("error" in peeked) == (language == "restricted")


GUIDE = Path(__file__).parents[1] / "recipes.md"


def guide(section: int) -> str:
    """The first program in Python of a section of the guide."""
    text = re.split(r"^## \d+\. ", GUIDE.read_text(), flags=re.MULTILINE)[section]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]


ATTACKS = [
    ("ctx._values", "AttributeError: 'Context' object has no attribute"),
    ("setattr(ctx, 'get', print)", "AttributeError: attributes of 'Context' objects cannot be set"),
    ("setattr(Context, 'get', print)", "AttributeError: attributes of 'type' objects cannot be set"),
    ("setattr(BaseScriptlet, 'run', print)", "AttributeError: attributes of 'type' objects cannot be set"),
    ("setattr(orchestrator.context, 'Context', 1)", "AttributeError: a module's attributes cannot be set"),
    ("orchestrator.context.sys", "AttributeError: module 'orchestrator.context' has no attribute 'sys'"),
    ("getattr(track_resources, '__globals__')", "AttributeError: '__globals__' is not accessible"),
    ("getattr(track_resources(one), '__wrapped__')", "AttributeError: '__wrapped__' is not accessible"),
    ("getattr(ctx.set, '__closure__')", "AttributeError: '__closure__' is not accessible"),
    ("Context.set(Other, 'k', 1)", "TypeError: Context.set() is for an instance of Context"),
    ("Context.to_dict(json)", "TypeError: Context.to_dict() is for an instance of Context"),
    ("type('Mine', (Context,), {})", "TypeError: type() takes one argument"),
    ("derived()", "TypeError: a class in a Runnable cannot derive from 'Context'"),
    ("track_resources(Named())()", "RuntimeError: called"),
    ("ctx.set('k', 1, who=5)", "TypeError: who is a text, not a int"),
]
HOSTILE = """
import json
import orchestrator.context
class Other:
    pass
class Named:
    def __getattr__(self, name):
        raise RuntimeError(f"asked for its {name}")
    def __call__(self):
        raise RuntimeError("called")
class Text(str):
    def __eq__(self, other):
        raise RuntimeError("compared")
    __hash__ = str.__hash__
class Odd(dict):
    def items(self):
        raise RuntimeError("asked for its items")
    def get(self, key, default=None):
        return "ok"
def one():
    return 1
def derived():
    class Mine(Context):
        pass
def attacks(ctx, params):
    told = []
    for attack in (ATTACKS):
        try:
            told.append(f"nothing: {attack()}")
        except Exception as err:
            told.append(f"{type(err).__name__}: {err}")
    return {"status": "ok", "told": told}
def sets(ctx, params):
    ctx.set(Text("k"), Odd(a=Text("v")), who=Text("me"))
    return Odd(status=Text("success"), n=1)
def fails(ctx, params):
    return Odd(status=Text("no"))
"""


async def test_a_hostile_step_gets_nothing() -> None:
    """Neither what is behind the context, nor a change of what others use, nor a status that it has not."""
    table = "(" + ", ".join(f"lambda: {code}" for code, _ in ATTACKS) + ")"
    source = HOSTILE.replace("(ATTACKS)", table)
    async with loading("restricted") as load:
        steps = await load(source, {name: name for name in ("attacks", "sets", "fails")})
        told = (await steps("attacks"))["outputs"]["told"]
        sets, fails = await steps("sets"), await steps("fails")
        assert steps.guest.alive
    wrong = {
        code: said for (code, text), said in zip(ATTACKS, told, strict=True) if not said.startswith(text)
    }
    assert wrong == {}
    assert sets["sets"][0][:3] == ["k", {"a": "v"}, "me"]
    assert fails["error"]["text"] == "step fails: it returned the status 'no'"


@in_both
async def test_the_templates_of_the_guide_load(language: str) -> None:
    """The sample of a new folder runs; the template of section 20 loads, and says that it returns nothing."""
    sample = tree()["orchestrator/scriptlets/python/steps/sample_step.py"].text
    template = guide(20).replace("<CamelCase>", "Template")
    async with loading(language) as load:
        more = {"steps.two": HEAD + template}
        steps = await load(
            sample + "\nfrom steps.two import Template\n",
            {"sample": "SampleStep", "template": "Template"},
            "",
            more,
        )
        ran = await steps.run("sample", {"message": "Hello"})
        empty = await steps("template", {"key": "value"})
        wrong = await steps("sample")
    result = json.loads(ran.outputs[0].body)
    assert result["outputs"] == {"status": "ok", "recorded_key": "sample.message_v1"}
    assert [change[:3] for change in result["sets"]] == [["sample.message_v1", "Hello", "sample_step"]]
    assert ran.logs[0].text == "steps.one | recorded sample.message_v1"
    assert empty["error"]["text"].startswith("step template: it returned None; ")
    assert wrong["returned"] == {"status": "error", "reason": "message required"}


async def test_what_steps_import_is_for_steps_alone() -> None:
    """A Runnable is told so; a step that misspells a module is told which one it meant."""
    source = "from orchestrator.context import Context\nclass Runnable:\n    def process(self, q): pass\n"
    zygote = await Zygote.start()
    try:
        with pytest.raises(Faults, match="It is there for steps of recipes alone: a Runnable has"):
            await zygote.spawn(Program(source, "r.py"), Limits())
    finally:
        await zygote.close()
    async with loading("restricted") as load:
        with pytest.raises(Faults, match=r"Did you mean 'orchestrator\.context'\?"):
            await load("import orchestrator.contxt\ndef run(params): return 0\n", {"a": "run"})
