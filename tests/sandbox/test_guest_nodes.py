"""Nodes of graphs in guests of the restricted language: what a file says, and how a node is executed."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from processor.errors import Faults
from processor.model import Failed, Failure, Group, Limits, Module, Program, Ran
from processor.sandbox.calls import Perform
from processor.sandbox.host import Guest, Zygote
from tests.web import Asked, answer, outside, serving, to

HEAD = """
from datetime import timedelta
from typing import Optional
from exospherehost import BaseNode, PruneSignal, ReQueueAfterSignal, Runtime
from pydantic import BaseModel, Field, field_validator
"""
# The classes of the SDK's own README, as they stand there.
README = re.findall(r"```python\n(.*?)```", (Path(__file__).parent / "exosphere.md").read_text(), re.DOTALL)


def execution(kind: str, inputs: Mapping[str, Any] | None = None, **more: Any) -> bytes:
    document = {"kind": kind, "run": "r1", "x": "a/b.0", "a": 1, "inputs": inputs or {}, "store": {}, **more}
    return json.dumps(document).encode()


class Nodes:
    """A guest with nodes in it."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    async def run(self, *documents: bytes, isolate: bool = True) -> Ran | Failed:
        groups = [Group("", [document], {} if at == 0 else None) for at, document in enumerate(documents)]
        return await self.guest.run(groups, isolate=isolate)

    async def result(self, *arguments: Any, **more: Any) -> Any:
        """The body of the result of one execution."""
        ran = await self.run(execution(*arguments, **more))
        assert isinstance(ran, Ran), ran
        assert ran.failed == ()
        [output] = ran.outputs
        return json.loads(output.body)

    async def failure(self, *arguments: Any, **more: Any) -> Failure:
        """Why one execution failed."""
        ran = await self.run(execution(*arguments, **more))
        assert isinstance(ran, Ran), ran
        assert not ran.outputs
        [(group, failure)] = ran.failed
        assert group == 0
        return failure


class Started:
    """Guests of one zygote."""

    def __init__(self, zygote: Zygote) -> None:
        self._zygote = zygote

    async def load(
        self,
        source: str,
        *,
        perform: Perform | None = None,
        secrets: Mapping[str, str] | None = None,
        emits: Sequence[str] = (),
        modules: Sequence[Module] = (),
        head: str = HEAD,
        language: str = "restricted",
        **limits: Any,
    ) -> Nodes:
        packages = ("pydantic",) if language == "python" else ()
        source = head + dedent(source)
        program = Program(source, "nodes.py", language, packages, "nodes", modules=tuple(modules))
        guest = await self._zygote.spawn(
            program, Limits(**limits), perform=perform, secrets=secrets, emits=emits
        )
        return Nodes(guest)

    async def faults(self, source: str, head: str = HEAD) -> list[str]:
        with pytest.raises(Faults) as refused:
            await self.load(source, head=head)
        lines = head.count("\n")
        faults = refused.value.faults
        return [f"{max(fault.line - lines, 1)} {fault.code} {fault.text}" for fault in faults]


@asynccontextmanager
async def started() -> AsyncIterator[Started]:
    zygote = await Zygote.start()
    try:
        yield Started(zygote)
    finally:
        await zygote.close()


# The files of the SDK.


async def test_the_quick_start_runs_unchanged() -> None:
    """A file that ends in Runtime(...).start() defines the nodes that it lists."""
    async with started() as nodes:
        made = await nodes.load(README[0], head="")
        assert list(made.guest.manifest) == ["SampleNode"]
        ran = await made.run(execution("SampleNode", {"name": "n", "data": "d"}))
        assert isinstance(ran, Ran)
        assert [line.text for line in ran.logs] == ["Processing data for: n"]
        assert json.loads(ran.outputs[0].body) == {
            "outputs": {"message": "success", "processed_data": "completed:d"},
            "sets": [],
        }


async def test_the_other_nodes_of_the_readme_run_unchanged() -> None:
    """The defaults of inputs, a node that raises, and one that calls an API with httpx and its secrets."""
    head, bodies = "\n".join(README[:1]).partition("class ")[0], README[1:]
    said = iter((b'{"b": [2]}', b"plain", b""))
    async with serving(lambda _: answer(next(said))) as web, started() as nodes:
        secrets = {"api_key": ("S3CRET-value", [web.host])}
        async with outside(web.host, names={}, secrets=secrets) as calls:
            source = "\n".join(bodies)
            made = await nodes.load(source, head=head, perform=calls.perform, secrets=calls.secrets)
            assert list(made.guest.manifest) == ["APINode", "ConfigurableNode", "RobustNode"]
            manifest = made.guest.manifest["APINode"]
            assert manifest["inputs"]["required"] == ["user_id", "query"]
            assert set(manifest["secrets"]["properties"]) == {"api_key", "api_endpoint", "database_url"}
            result = await made.result("ConfigurableNode", {"text": "x" * 200})
            assert result["outputs"] == {"result": "x" * 100, "length": "100"}
            failure = await made.failure("RobustNode", {"data": ""})
            assert (failure.code, failure.text) == ("E304", "Exception: This is a test error")
            assert 'raise Exception("This is a test error")' in failure.traceback
            settings = {"api_endpoint": web.url, "database_url": "postgres://db"}
            for text in ('{"b": [2]}', "plain", ""):
                inputs = {"user_id": "u", "query": "q"}
                result = await made.result("APINode", inputs, settings=settings)
                assert result["outputs"] == {"response": text, "status": "success"}
            asked = web.asked[0]
            assert (asked.method, asked.target) == ("POST", "/process")
            assert asked.headers["authorization"] == "Bearer S3CRET-value"
            assert json.loads(asked.body) == {"user_id": "u", "query": "q"}


# What a file says of itself.


async def test_a_manifest_has_the_schemas_and_the_words() -> None:
    """Every class of nodes in the file counts where no Runtime lists any, but for a base of others."""
    source = '''
        class Common(BaseNode):
            class Inputs(BaseModel):
                n: int = Field(ge=1, description="how many")

        class Api(Common):
            """Asks.

            Again and again.
            """
            class Outputs(BaseModel):
                items: list[str]
            def execute(self):
                return self.Outputs(items=[str(self.inputs.n)])

        class Bare(BaseNode):
            async def execute(self):
                pass
    '''
    nothing = {"properties": {}, "title": "Secrets", "type": "object"}
    async with started() as nodes:
        made = await nodes.load(source)
        assert made.guest.manifest == {
            "Api": {
                "inputs": {
                    "properties": {
                        "n": {"description": "how many", "minimum": 1, "title": "N", "type": "integer"}
                    },
                    "required": ["n"],
                    "title": "Inputs",
                    "type": "object",
                },
                "outputs": {
                    "properties": {"items": {"items": {"type": "string"}, "title": "Items", "type": "array"}},
                    "required": ["items"],
                    "title": "Outputs",
                    "type": "object",
                },
                "secrets": nothing,
                "doc": "Asks.\n\nAgain and again.",
            },
            "Bare": {
                "inputs": {**nothing, "title": "Inputs"},
                "outputs": {**nothing, "title": "Outputs"},
                "secrets": nothing,
                "doc": "",
            },
        }
        assert await made.result("Bare") == {"outputs": {}, "sets": []}


async def test_what_only_the_main_block_needs_is_left_out() -> None:
    """A file may trigger its graphs where it is run as a program, with what there is not in a guest."""
    source = """
        import os
        import sys as system
        import asyncio, json, argparse, no_such_module
        from exospherehost import StateManager

        class Api(BaseNode):
            def execute(self):
                return json.loads("{}")

        async def create_graph():
            return await manager().upsert_graph("g", [])

        def manager():
            return StateManager(namespace=os.environ["NS"])

        if __name__ == "__main__":
            asyncio.run(create_graph())
            argparse.ArgumentParser().parse_args(system.argv)
            no_such_module.go()
            Runtime(nodes=[]).start()
    """
    async with started() as nodes:
        for language in ("restricted", "python"):
            made = await nodes.load(source, language=language)
            assert (await made.result("Api"))["outputs"] == {}
        [fault, *_] = await nodes.faults(
            "import os\nclass Api(BaseNode):\n  def execute(self): return os.name\n"
        )
        assert fault.startswith("1 E203 'import os' is not allowed.")
        [fault] = await nodes.faults("from exospherehost import StateManager\nStateManager()\n")
        assert "exospherehost has here: BaseNode, PruneSignal, ReQueueAfterSignal, Runtime." in fault
        assert fault.endswith("Graphs are made and triggered from outside of a node.")


NODE = "class A(BaseNode):\n  def execute(self): pass\n"
WRONG = [
    ("x = 1", "1 E204 no node is defined. Write 'class MyNode(BaseNode):' with a method execute(self)."),
    ("class A(BaseNode): pass", "1 E204 no node is defined."),
    (
        "class A(BaseNode): pass\nRuntime(nodes=[A])",
        "1 E207 A has no `execute`. Write 'async def execute(self):' or 'def execute(self):'.",
    ),
    ("Runtime(nodes=[3])", "1 E207 int is no class that derives from BaseNode."),
    (
        "x = 1\n" + NODE + "  Inputs = 5",
        "2 E207 A has Inputs that are no model. Write 'class Inputs(BaseModel):'.",
    ),
    (NODE + "  class Outputs: pass", "1 E207 A has Outputs that are no model."),
    (NODE + "  def __new__(cls): return super().__new__(cls)", "1 E207 A makes its own objects."),
    (NODE + "B = A\n" + NODE + "Runtime(nodes=[A, B])", "1 E207 A is there twice. Rename one of them."),
    (
        NODE + "  class Inputs(BaseModel):\n    a: set[int]",
        "3 E203 Inputs.a is a set, which a model cannot have in a Runnable: it has str,",
    ),
    (NODE + "1 / 0", "3 E206 ZeroDivisionError: division by zero"),
    (
        NODE + '  class Inputs(BaseModel):\n    a: str = Field("", description="x" * 70000)',
        "1 E207 the schemas of its nodes have 70263 bytes (limit 65536). Divide the nodes among several",
    ),
    (
        NODE
        + "  class Inputs(BaseModel):\n    @classmethod\n    def model_json_schema(cls): return {1: {2}}",
        "1 E207 the schemas of its nodes are no JSON:",
    ),
]


async def test_what_is_no_node_is_refused_where_it_stands() -> None:
    """Each with what to write instead, when the file is loaded."""
    async with started() as nodes:
        for source, text in WRONG:
            [fault] = await nodes.faults(source)
            assert fault.startswith(text), fault


# What a node has and gives.


async def test_what_a_node_knows() -> None:
    """Its inputs, its place in the run, the store, the log, and a key that all its tries share."""
    source = """
        class Api(BaseNode):
            class Inputs(BaseModel):
                n: int
            def __init__(self):
                self.made = 1
            async def execute(self, inputs):
                self.logger.info("hello")
                self.emit("orders.x", {"n": inputs.n})
                self.event("seen", [1])
                self.store.set("new", [self.store["old"]])
                self.store["old"] = None
                known = [self.store.get("new"), "nope" in self.store, len(self.store), dict(self.store)]
                return {"all": [self.run_id, self.execution, self.attempt, self.idempotency_key, self.united,
                    inputs is self.inputs, self.made, type(self).__name__, *known]}
            class Outputs(BaseModel):
                all: list
    """
    async with started() as nodes:
        made = await nodes.load(source, emits=["orders.*"])
        document = execution("Api", {"n": "3"}, a=2, store={"old": 7}, united={"success": 2})
        ran = await made.run(document)
        assert isinstance(ran, Ran), ran
        assert json.loads(ran.outputs[0].body) == {
            "outputs": {"all": ["r1", "a/b.0", 2, "r1:a/b.0", {"success": 2}, True, 1, "Api", [7], False, 2,
                                {"old": None, "new": [7]}]},
            "sets": [["new", [7]], ["old", None]],
        }  # fmt: skip
        assert [(emit.subject, emit.body) for emit in ran.emits] == [("orders.x", b'{"n":3}')]
        assert [(event.name, event.body) for event in ran.events] == [("seen", b"[1]")]
        assert [line.text for line in ran.logs] == ["hello"]


SEVERAL = """
class Api(BaseNode):
    class Inputs(BaseModel):
        what: str = ""
    class Outputs(BaseModel):
        a: int
        at: Optional[str] = None
    class Secrets(BaseModel):
        key: str = "none"
        url: str = "none"

    def execute(self):
        made = self.Outputs(a=1)
        match self.inputs.what:
            case "one": return made
            case "list": return [made, {"a": 2, "b": 3}, self.Outputs(a="3", at="x")]
            case "tuple": return (made,)
            case "empty": return []
            case "dict": return {"a": "5"}
            case "none": return None
            case "text": return "text"
            case "other": return self.inputs
            case "generator": return (made for _ in "ab")
            case "wrong": return {"a": "x"}
            case "raised": return self.Outputs()
            case "input": return self.Inputs(what=3)
            case "hidden":
                try:
                    raise PruneSignal({"why": ["x"]})
                except Exception:
                    return made
            case "prune": raise PruneSignal
            case "requeue": raise ReQueueAfterSignal(timedelta(minutes=1.5))
            case "seconds": raise ReQueueAfterSignal(0.25, inputs={"what": "one"})
            case "past": raise ReQueueAfterSignal(timedelta(seconds=-1))
            case "never": raise ReQueueAfterSignal("1")
            case "pruned": raise PruneSignal([1])
            case "secrets": return {"a": 1, "at": f"{self.secrets.key} {self.secrets.url}"}
            case "nested":
                value = []
                for _ in range(150):
                    value = [value]
                raise PruneSignal({"a": value})
            case "unwritable": raise PruneSignal({"a": object()})
            case "dotted": self.store.set("a.b", 1)
            case "long": self.store.set("a", "x" * 70000)
            case "long_in_all":
                for n in range(20): self.store.set(f"k{n}", "x" * 60000)
            case "heap": self.heap
            case "print": print("a", "b")
"""


async def test_what_a_node_may_return() -> None:
    """Outputs, several or none, what a dict is made to; or a signal, which `except Exception` lets pass."""
    async with started() as nodes:
        made = await nodes.load(SEVERAL, secrets={"key": "MARK", "other": "MARK2"})

        async def outputs(what: str) -> Any:
            return (await made.result("Api", {"what": what}, settings={"url": "u", "more": "m"})).get(
                "outputs"
            )

        one = {"a": 1, "at": None}
        assert await outputs("one") == one
        assert await outputs("list") == [one, {"a": 2, "at": None}, {"a": 3, "at": "x"}]
        assert await outputs("tuple") == [one]
        assert await outputs("empty") == []
        assert await outputs("dict") == {"a": 5, "at": None}
        assert await outputs("secrets") == {"a": 1, "at": "MARK u"}
        assert await made.result("Api", {"what": "prune"}) == {"prune": {}}
        assert await made.result("Api", {"what": "hidden"}) == {"prune": {"why": ["x"]}}
        assert await made.result("Api", {"what": "requeue"}) == {"requeue_ms": 90_000}
        assert await made.result("Api", {"what": "seconds"}) == {"requeue_ms": 250, "inputs": {"what": "one"}}


REFUSED = [
    ("none", "E709", "outputs of Api: a: Field required. Not tried again."),
    (
        "wrong",
        "E709",
        "outputs of Api: a: Input should be a valid integer, unable to parse string as an integer. Not",
    ),
    ("raised", "E709", "outputs of Api: a: Field required. Not tried again."),
    (
        "text",
        "E709",
        "outputs of Api: execute returned a str; return self.Outputs(...), a list of them, or None.",
    ),
    ("other", "E709", "outputs of Api: execute returned a Inputs;"),
    ("generator", "E709", "outputs of Api: execute returned a generator;"),
    ("input", "E304", "ValidationError: 1 validation error for Inputs"),
    ("past", "E304", "ValueError: the delay is -1.0 s; it is 0 to 31622400 seconds"),
    ("never", "E304", "TypeError: the delay is a timedelta or seconds, not a str"),
    ("pruned", "E304", "TypeError: the data of a PruneSignal is a dict, not a list"),
    ("nested", "E320", "PruneSignal"),
    ("unwritable", "E306", "PruneSignal"),
    ("dotted", "E304", "ValueError: a key of the store is 1 to 128 characters without a dot: 'a.b'"),
    ("long", "E304", "ValueError: store a: 70002 bytes; a value takes 65536. Keep a reference."),
    ("long_in_all", "E304", "ValueError: store k17: more than 1048576 bytes are set. Keep references."),
    ("heap", "E304", "AttributeError: 'Api' object has no attribute 'heap'"),
]


async def test_what_a_node_may_not_return() -> None:
    """What its models refuse is E709, and final; what it raises is E304 with its own lines."""
    async with started() as nodes:
        made = await nodes.load(SEVERAL)
        for what, code, text in REFUSED:
            failure = await made.failure("Api", {"what": what})
            assert failure.code == code, (what, failure)
            assert failure.text.startswith(text), (what, failure)
            assert ("nodes.py" in failure.traceback) == (code == "E304" or what == "raised"), (what, failure)


async def test_inputs_are_checked_by_the_model_of_the_node() -> None:
    """All that is wrong with them at once, without what they hold; a validator of the user's has its say."""
    source = """
        class Item(BaseModel):
            n: int = Field(le=5)

        class Api(BaseNode):
            class Inputs(BaseModel):
                user_id: str
                n: int
                items: list[Item] = []
                @field_validator("user_id")
                @classmethod
                def known(cls, value):
                    if value == "bug":
                        return value.nothing
                    if value != "u":
                        raise ValueError("nobody")
                    return value.upper()
            class Outputs(BaseModel):
                said: str
            class Secrets(BaseModel):
                key: str
            def execute(self):
                return self.Outputs(said=f"{self.inputs.user_id}{self.inputs.n}")
    """
    async with started() as nodes:
        made = await nodes.load(source, secrets={"key": "MARK"})
        assert (await made.result("Api", {"user_id": "u", "n": "7", "more": 1}))["outputs"] == {"said": "U7"}
        for inputs, text in (
            ({"n": "SECRET"}, "user_id: Field required; n: Input should be a valid integer, unable to parse"
             " string as an integer"),
            ({"user_id": "v", "n": 1}, "user_id: Value error, nobody"),
            ({"user_id": "u", "n": 1, "items": [{"n": 1}, {"n": 9}]},
             "items.1.n: Input should be less than or equal to 5"),
        ):  # fmt: skip
            failure = await made.failure("Api", inputs)
            assert failure == Failure("E709", f"inputs of Api: {text}. Not tried again.")
        failure = await made.failure("Api", {"user_id": "bug", "n": 1})
        assert (failure.code, failure.text) == (
            "E304",
            "AttributeError: 'str' object has no attribute 'nothing'",
        )
        failure = await made.failure("Other")
        assert (failure.code, failure.text) == ("E304", "there is no node 'Other' in this file; it has Api")
        without = await nodes.load(source)
        failure = await without.failure("Api", {"user_id": "u", "n": 1})
        assert failure == Failure("E709", "secrets of Api: key: Field required. Not tried again.")


@pytest.mark.parametrize("language", ["restricted", "python"])
async def test_a_model_is_handed_over_as_it_stands(language: str) -> None:
    """A Runnable returns models, emits them and says them; a context keeps what they dump."""
    source = """
from datetime import datetime, timezone
from pydantic import BaseModel

class Inner(BaseModel):
    x: int

class Order(BaseModel):
    n: int
    at: datetime
    inner: list[Inner] = []

class Runnable:
    def process(self, queries):
        if queries[0] == 2:
            self.context["a"] = Inner(x=1)
        made = Order(n="1", at=datetime(2024, 1, 2, tzinfo=timezone.utc), inner=[{"x": 3}])
        self.event("made", made)
        return [made, [made.inner[0]], made.inner]
"""
    packages = ("pydantic",) if language == "python" else ()
    zygote = await Zygote.start()
    try:
        guest = await zygote.spawn(Program(source, "runnable.py", language, packages), Limits())
        ran = await guest.run([Group("", [b"1"], {})])
        assert isinstance(ran, Ran), ran
        order = b'{"n":1,"at":"2024-01-02T00:00:00Z","inner":[{"x":3}]}'
        assert [output.body for output in ran.outputs] == [order, b'[{"x":3}]', b'[{"x":3}]']
        assert [event.body for event in ran.events] == [order]
        failed = await guest.run([Group("", [b"2"], None)])
        assert isinstance(failed, Failed)
        assert failed.failure.code == "E309"
        assert "write value.model_dump()" in failed.failure.text
    finally:
        await zygote.close()


# One of many.


MANY = """
class Api(BaseNode):
    class Inputs(BaseModel):
        n: int
        events: int = 0
    class Outputs(BaseModel):
        n: int
    kept = []
    def execute(self):
        self.store.set("n", self.inputs.n)
        self.emit("orders.x", self.inputs.n)
        for _ in range(self.inputs.events):
            self.event("e", 1)
        try:
            if self.inputs.n % 3 == 1:
                raise ValueError(f"no {self.inputs.n}")
        finally:
            self.event("end", self.inputs.n)
        if self.inputs.n == 90:
            while True: pass
        if self.inputs.n == 93:
            self.kept.append(bytearray(1 << 29))
        return self.Outputs(n=self.inputs.n)
"""


async def test_one_that_fails_is_undone_alone() -> None:
    """What it emitted, said and set is gone; the others count, those before it and those behind it."""
    async with started() as nodes:
        made = await nodes.load(MANY, emits=["orders.*"])
        documents = [execution("Api", {"n": n}) for n in range(6)]
        ran = await made.run(*documents)
        assert isinstance(ran, Ran), ran
        assert [(group, failure.code, failure.text) for group, failure in ran.failed] == [
            (1, "E304", "ValueError: no 1"),
            (4, "E304", "ValueError: no 4"),
        ]
        kept = [0, 2, 3, 5]
        assert [output.group for output in ran.outputs] == kept
        assert [json.loads(output.body) for output in ran.outputs] == [
            {"outputs": {"n": n}, "sets": [["n", n]]} for n in kept
        ]
        assert [(emit.group, emit.body) for emit in ran.emits] == [(n, str(n).encode()) for n in kept]
        assert [event.group for event in ran.events] == kept
        failed = await made.run(*documents[:2], isolate=False)
        assert isinstance(failed, Failed)
        assert (failed.group, failed.failure.text) == (1, "ValueError: no 1")


async def test_what_a_run_may_bring_is_shared_by_its_executions() -> None:
    """The first that finds no room is left out with all behind it; one that is too much alone fails."""
    async with started() as nodes:
        made = await nodes.load(MANY, emits=["orders.*"], outputs=20)
        documents = [execution("Api", {"n": n, "events": 5}) for n in (0, 2, 3, 5, 6)]
        ran = await made.run(*documents)
        assert isinstance(ran, Ran), ran
        assert [output.group for output in ran.outputs] == [0, 1, 2]
        assert ran.failed == ()
        again = await made.run(*documents[3:])
        assert isinstance(again, Ran)
        assert [output.group for output in again.outputs] == [0, 1]
        failure = await made.failure("Api", {"n": 0, "events": 30})
        assert failure.code == "E324"


async def test_a_node_that_loops_or_hoards_ends_its_guest_by_name() -> None:
    """The host is told which of them it was."""
    async with started() as nodes:
        for n, code in ((90, "E311"), (93, "E313")):
            made = await nodes.load(MANY, emits=["orders.*"], cpu_s=0.3, memory_mb=64)
            failed = await made.run(execution("Api", {"n": 0}), execution("Api", {"n": n}))
            assert isinstance(failed, Failed)
            assert (failed.failure.code, failed.group, failed.failure.lethal) == (code, 1, True)
            assert not made.guest.alive


async def test_only_nodes_can_be_undone_alone(spawned: Any, one: Any) -> None:
    """A Runnable's groups share their contexts."""
    async with spawned("class Runnable:\n  def process(self, queries): return 1") as guest:
        with pytest.raises(ValueError, match="only the groups of a program of nodes"):
            await guest.run([one(1)], isolate=True)
        assert guest.manifest == {}


# What nodes reach.


async def test_modules_of_the_user_may_have_nodes_and_models() -> None:
    """An import brings a node as a definition does."""
    lib = Module("lib.common", "lib/common.py", HEAD + dedent("""
        class Base(BaseModel):
            n: "Optional[list[Inner]]" = None

        class Inner(BaseModel):
            x: int

        class Double(BaseNode):
            class Outputs(Base): pass
            Inputs = Base
            async def execute(self):
                return self.Outputs(n=[{"x": self.inputs.n[0].x * 2}])
    """))  # fmt: skip
    async with started() as nodes:
        made = await nodes.load("from lib.common import Double\nclass More(Double): pass", modules=[lib])
        assert list(made.guest.manifest) == ["Double", "More"]
        assert (await made.result("More", {"n": [{"x": 4}]}))["outputs"] == {"n": [{"x": 8}]}


HTTPX = """
import asyncio
import httpx

class Api(BaseNode):
    class Inputs(BaseModel):
        url: str
        what: str
    class Outputs(BaseModel):
        said: list
    class Secrets(BaseModel):
        k: str = ""

    async def execute(self):
        try:
            return {"said": await getattr(self, self.inputs.what)(self.inputs.url)}
        except httpx.HTTPStatusError as err:
            return {"said": [type(err).__name__, str(err), err.response.status_code]}
        except httpx.HTTPError as err:
            kinds = (httpx.TimeoutException, httpx.ConnectError, httpx.TooManyRedirects, httpx.RequestError)
            return {"said": [type(err).__name__, [isinstance(err, kind) for kind in kinds], err.code]}

    async def calls(self, url):
        headers = {"X-A": "b", "Authorization": f"Bearer {self.secrets.k}"}
        async with httpx.AsyncClient(base_url=url + "/api/", headers=headers, params={"p": 1}) as client:
            await client.get("/g", params={"a": [1, "x y"]}, headers={"x-a": "c"})
            await client.post("p", json={"a": [1.5, None]})
            await client.put("p", content=b"\\x00", timeout=httpx.Timeout(5, connect=1))
            await client.patch("p", data={"a": "b c"})
            await client.delete(url + "/d")
            await client.request("options", "")
        with httpx.Client(follow_redirects=True, timeout=3.0) as client:
            client.head(url)
        return [httpx.get(url, auth=("u", "p")).status_code]

    async def answers(self, url):
        made = await httpx.AsyncClient().get(url)
        return [made.status_code, made.reason_phrase, made.headers["X-B"], made.text, made.json(),
            made.is_success, made.is_error, made.is_redirect, len(made.read()),
            made.elapsed.total_seconds() >= 0, repr(made), made.raise_for_status() is made]

    async def status(self, url):
        (await httpx.AsyncClient().get(url)).raise_for_status()

    async def redirected(self, url):
        first = httpx.get(url)
        return [first.status_code, first.is_redirect, httpx.get(url, follow_redirects=True).text]

    async def refused(self, url):
        await httpx.AsyncClient().get("http://elsewhere.example/")

    async def slow(self, url):
        await httpx.AsyncClient(timeout=0.1).get(url)

    async def bounded(self, url):
        try:
            async with asyncio.timeout(0.1):
                await httpx.AsyncClient(timeout=60).get(url)
        except TimeoutError as err:
            return [type(err).__name__]

    async def waited(self, url):
        try:
            await asyncio.wait_for(httpx.AsyncClient().get(url), 0.1)
        except asyncio.TimeoutError as err:
            return [type(err).__name__]

    async def options(self, url):
        said = []
        for make in (
            lambda: httpx.Client(verify=False), lambda: httpx.Client(proxy="x"),
            lambda: httpx.get(url, files={}),
            lambda: httpx.Client(nonsense=1),
            lambda: httpx.Client.close(httpx),
        ):
            try:
                make()
            except TypeError as err:
                said.append(str(err))
        return said
"""


async def test_the_clients_of_httpx() -> None:
    """Each call sends what people know it to send; a secret goes to its host alone."""
    async with serving() as web, started() as nodes:
        secrets = {"k": ("S3CRET-value", [web.host])}
        async with outside(web.host, names={}, secrets=secrets) as calls:
            made = await nodes.load(HTTPX, perform=calls.perform, secrets=calls.secrets)
            assert (await made.result("Api", {"url": web.url, "what": "calls"}))["outputs"] == {"said": [200]}
    said = [(asked.method, asked.target, asked.body) for asked in web.asked]
    assert said == [
        ("GET", "/api/g?p=1&a=1&a=x+y", b""), ("POST", "/api/p?p=1", b'{"a":[1.5,null]}'),
        ("PUT", "/api/p?p=1", b"\x00"), ("PATCH", "/api/p?p=1", b"a=b+c"), ("DELETE", "/d?p=1", b""),
        ("OPTIONS", "/api/?p=1", b""), ("HEAD", "/", b""), ("GET", "/", b""),
    ]  # fmt: skip
    assert (web.asked[0].headers["x-a"], web.asked[1].headers["x-a"]) == ("c", "b")
    assert web.asked[0].headers["authorization"] == "Bearer S3CRET-value"
    assert web.asked[7].headers["authorization"] == "Basic dTpw"


async def test_what_httpx_gives_and_raises() -> None:
    """Answers, statuses, redirects, refusals of the host, and times that are up."""

    async def say(asked: Asked) -> bytes | None:
        match asked.target.split("?")[0]:
            case "/ok":
                return answer(b'{"a": 1}', X_B="c")
            case "/missing":
                return answer(b"no", 404)
            case "/moved":
                return to("/ok")
            case _:
                return None

    async with serving(say) as web, started() as nodes, outside(web.host, names={}) as calls:
        made = await nodes.load(HTTPX, perform=calls.perform)

        async def said(what: str, path: str = "/ok") -> Any:
            return (await made.result("Api", {"url": web.url + path, "what": what}))["outputs"]["said"]

        ok = [
            200,
            "Said",
            "c",
            '{"a": 1}',
            {"a": 1},
            True,
            False,
            False,
            8,
            True,
            "<Response [200 Said]>",
            True,
        ]
        assert await said("answers") == ok
        text = f"Client error '404 Said' for url '{web.url}/missing'"
        assert await said("status", "/missing") == ["HTTPStatusError", text, 404]
        assert await said("redirected", "/moved") == [302, True, '{"a": 1}']
        assert await said("refused") == ["RequestError", [False, False, False, True], "E325"]
        assert await said("slow", "/never") == ["ReadTimeout", [True, False, False, True], "E317"]
        assert await said("bounded", "/never") == ["TimeoutError"]
        assert await said("waited", "/never") == ["TimeoutError"]
        assert await said("options") == [
            "httpx does not take 'verify' in a Runnable: TLS is verified against the host's authorities,"
            " always",
            "httpx does not take 'proxy' in a Runnable: the host connects directly",
            "httpx does not take 'files' in a Runnable: give the body as `content`",
            "httpx does not take 'nonsense' in a Runnable: the options are auth, params, headers, timeout,"
            " follow_redirects, base_url",
            "Client.close() is for an instance of Client",
        ]


# What hostile nodes get.

ATTACKS = [
    ("BaseNode.emit(json, 'a', 1)", "AttributeError: module 'runnable.json' has no attribute '_voice'"),
    ("self._voice", "AttributeError: 'Api' object has no attribute '_voice'"),
    ("self.store._items", "AttributeError: 'Store' object has no attribute '_items'"),
    ("setattr(self.store, 'get', print)", "AttributeError: attributes of 'Store' objects cannot be set"),
    ("setattr(BaseNode, 'emit', print)", "AttributeError: attributes of 'type' objects cannot be set"),
    ("setattr(BaseNode.Inputs, 'x', 1)", "AttributeError: attributes of 'type' objects cannot be set"),
    ("setattr(exospherehost, 'Runtime', 1)", "AttributeError: a module's attributes cannot be set"),
    ("getattr(Runtime(nodes=[]), '__class__').__init__", "AttributeError: '__init__' is not accessible"),
    ("BaseNode.__new__(BaseNode)", "TypeError: BaseNode.__new__() is for a class derived from it"),
    ("getattr(self.execute, '__globals__')", "AttributeError: '__globals__' is not accessible"),
    ("self.secrets.k.encode().decode('x')", "LookupError: unknown encoding: x"),
    ("raise Exception(self.secrets.k)", "Exception: MARK"),
    ("raise Mine('x')", "RuntimeError: no delay for you"),
    ("raise Odd()", "AttributeError: 'Odd' object has no attribute 'data'"),
    ("self.heap", "AttributeError: 'Api' object has no attribute 'heap'"),
    ("self.context['a'] = 1", "AttributeError: 'Api' object has no attribute 'context'"),
]
HOSTILE = """
import json
import exospherehost

class Mine(ReQueueAfterSignal):
    def __init__(self, text):
        self.text = text
    @property
    def delay(self):
        raise RuntimeError("no delay for you")

class Odd(PruneSignal):
    def __init__(self):
        pass

class Text(str):
    def __eq__(self, other):
        raise RuntimeError("compared")
    __hash__ = str.__hash__

class Api(BaseNode):
    class Inputs(BaseModel):
        what: int
    class Secrets(BaseModel):
        k: str = ""
    class Outputs(BaseModel):
        a: str = ""
    def execute(self):
        attack = {ATTACKS}
        return attack[self.inputs.what]()

class Late(BaseNode):
    class Inputs(BaseModel):
        a: int = 1
    class Outputs(BaseModel):
        a: int = 1
    def execute(self):
        # What is known of a node was read when it was loaded, and what it gives is read past its code.
        Late.Inputs = Late.Outputs = Late.Secrets = int
        Late.execute = lambda self: {"a": 9}
        made = Kept(a=2)
        Kept.a = property(lambda self: 1 / 0)
        self.run_id = self.execution = "forged"
        self.store.set(Text("k"), Text("v"))
        return made

Kept = Late.Outputs
"""


async def test_a_hostile_node_gets_nothing() -> None:
    """Neither what is the host's, nor what another program shares, nor a place beside its own."""
    bodies = "".join(f"        def f{n}(): {code}\n" for n, (code, _) in enumerate(ATTACKS))
    table = "[" + ", ".join(f"f{n}" for n in range(len(ATTACKS))) + "]"
    source = HOSTILE.replace("        attack = {ATTACKS}\n", f"{bodies}        attack = {table}\n")
    async with started() as nodes:
        made = await nodes.load(source, secrets={"k": "MARK"})
        for n, (code, text) in enumerate(ATTACKS):
            failure = await made.failure("Api", {"what": n})
            assert failure.code == "E304", (code, failure)
            assert failure.text.startswith(text), (code, failure)
        result = {"outputs": {"a": 2}, "sets": [["k", "v"]]}
        assert await made.result("Late") == result
        assert (await made.result("Late"))["outputs"] == {"a": 9}
        assert made.guest.alive


async def test_no_value_of_a_secret_is_in_what_a_node_says() -> None:
    """A node knows a mark; what its host says is without the value, too."""
    source = """
        import httpx
        class Api(BaseNode):
            class Inputs(BaseModel):
                url: str
            class Secrets(BaseModel):
                k: str
            async def execute(self):
                made = await httpx.AsyncClient().get(self.inputs.url, headers={"X-Key": self.secrets.k})
                print(made.text)
                raise ValueError(f"{made.text} {self.secrets!r} {self.secrets.k}")
    """
    async with serving() as web, started() as nodes, AsyncExitStack() as stack:
        secrets = {"k": ("S3CRET-value", [web.host])}
        calls = await stack.enter_async_context(outside(web.host, names={}, secrets=secrets))
        made = await nodes.load(source, perform=calls.perform, secrets=calls.secrets)
        ran = await made.run(execution("Api", {"url": web.url}))
    assert web.asked[0].headers["x-key"] == "S3CRET-value"
    assert isinstance(ran, Ran)
    assert "x-key: ***" in ran.failed[0][1].text.lower()
    assert "S3CRET" not in repr(ran)
