"""Nodes of graphs in guests of plain Python: real pydantic, real coroutines, and the files of the SDK."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from textwrap import dedent
from typing import Any

import pytest

from processor.model import Group, Limits, Program, Ran
from processor.sandbox.calls import Perform
from processor.sandbox.host import Zygote
from tests.sandbox.test_guest_nodes import HEAD, README, Nodes, execution
from tests.sandbox.test_plain_async import Crowd
from tests.web import answer, outside, serving

CANARY = "S3CRET-value"


class Loading:
    """Guests of one zygote, in either language."""

    def __init__(self, zygote: Zygote, language: str) -> None:
        self._zygote = zygote
        self._language = language

    async def __call__(
        self,
        source: str,
        head: str = HEAD,
        perform: Perform | None = None,
        secrets: Mapping[str, str] | None = None,
        **limits: Any,
    ) -> Nodes:
        program = Program(head + dedent(source), "nodes.py", self._language, mode="nodes")
        return Nodes(await self._zygote.spawn(program, Limits(**limits), perform=perform, secrets=secrets))


@asynccontextmanager
async def loading(language: str = "python") -> AsyncIterator[Loading]:
    zygote = await Zygote.start()
    try:
        yield Loading(zygote, language)
    finally:
        await zygote.close()


async def test_the_nodes_of_the_readme_run_unchanged() -> None:
    """All four of them, as in the other language: inputs with defaults, one that raises, one that calls."""
    source = "\n".join([README[0].partition("# Initialize the runtime")[0], *README[1:]])
    said = iter((b'{"b": [2]}', b"plain", b""))
    async with serving(lambda _: answer(next(said))) as web, loading() as load:
        known = {"api_key": (CANARY, [web.host]), "api_endpoint": (web.url, [web.host])}
        async with outside(web.host, names={}, secrets=known) as calls:
            nodes = await load(source, head="", perform=calls.perform, secrets=calls.secrets)
            manifest = nodes.guest.manifest
            assert sorted(manifest) == ["APINode", "ConfigurableNode", "RobustNode", "SampleNode"]
            assert manifest["ConfigurableNode"]["inputs"]["properties"]["max_length"]["default"] == "100"
            assert set(manifest["APINode"]["secrets"]["required"]) == {
                "api_key",
                "api_endpoint",
                "database_url",
            }
            ran = await nodes.run(execution("SampleNode", {"name": "n", "data": "d"}))
            assert isinstance(ran, Ran)
            assert [line.text for line in ran.logs] == ["Processing data for: n"]
            assert json.loads(ran.outputs[0].body)["outputs"] == {
                "message": "success", "processed_data": "completed:d",
            }  # fmt: skip
            result = await nodes.result("ConfigurableNode", {"text": "x" * 200})
            assert result["outputs"] == {"result": "x" * 100, "length": "100"}
            failure = await nodes.failure("RobustNode", {"data": ""})
            assert (failure.code, failure.text) == ("E304", "Exception: This is a test error")
            assert 'raise Exception("This is a test error")' in failure.traceback
            for text in ('{"b": [2]}', "plain", ""):
                inputs = {"user_id": "u", "query": "q"}
                result = await nodes.result("APINode", inputs, settings={"database_url": "postgres://db"})
                assert result["outputs"] == {"response": text, "status": "success"}
    asked = web.asked[0]
    assert (asked.method, asked.target) == ("POST", "/process")
    assert asked.headers["authorization"] == f"Bearer {CANARY}"
    assert json.loads(asked.body) == {"user_id": "u", "query": "q"}


async def test_the_quick_start_runs_unchanged() -> None:
    """With the Runtime(...).start() at its end, which lists its nodes."""
    async with loading() as load:
        nodes = await load(README[0], head="")
        assert list(nodes.guest.manifest) == ["SampleNode"]
        assert (await nodes.result("SampleNode", {"name": "n", "data": "d"}))["sets"] == []


MODELS = """
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal
from pydantic import computed_field, model_validator

class Part(BaseModel):
    at: datetime
    price: Annotated[Decimal, Field(gt=0)]

class Priced(BaseNode):
    '''What parts cost.'''
    class Inputs(BaseModel):
        parts: list[Part] = Field(min_length=1)
        mode: Literal["sum", "max"] = "sum"

        @model_validator(mode="after")
        def ordered(self):
            if [part.at for part in self.parts] != sorted(part.at for part in self.parts):
                raise ValueError("parts are out of order")
            return self

    class Outputs(BaseModel):
        total: Decimal = Field(alias="the_total")

        @computed_field
        @property
        def twice(self) -> Decimal:
            return self.total * 2

    async def execute(self) -> Outputs:
        return self.Outputs(the_total=sum(part.price for part in self.inputs.parts))
"""


async def test_the_schemas_and_faults_are_those_of_pydantic() -> None:
    """What the other language refuses to declare is there, in its own words, and no input is quoted."""
    parts = [{"at": "2026-01-01T00:00:00Z", "price": "1.50"}, {"at": "2026-01-02T00:00:00Z", "price": "2"}]
    async with loading() as load:
        nodes = await load(MODELS)
        priced = nodes.guest.manifest["Priced"]
        assert priced["doc"] == "What parts cost."
        assert priced["inputs"]["properties"]["mode"]["enum"] == ["sum", "max"]
        assert priced["outputs"]["required"] == ["the_total"]
        result = await nodes.result("Priced", {"parts": parts})
        assert result["outputs"] == {"the_total": "3.50", "twice": "7.00"}
        failure = await nodes.failure("Priced", {"parts": [{"at": "CANARY", "price": -1}], "mode": "avg"})
        assert failure.code == "E709"
        assert failure.text.startswith("inputs of Priced: parts.0.at: Input should be a valid datetime")
        assert "; parts.0.price: Input should be greater than 0; mode: Input should be" in failure.text
        assert "CANARY" not in failure.text
        failure = await nodes.failure("Priced", {"parts": parts[::-1]})
        assert failure.text == ("inputs of Priced: Value error, parts are out of order. Not tried again.")


WAITING = """
import asyncio
import httpx

class Asking(BaseNode):
    class Inputs(BaseModel):
        url: str

    class Outputs(BaseModel):
        texts: list[str]

    async def execute(self) -> Outputs:
        async with httpx.AsyncClient(base_url=self.inputs.url) as client:
            answers = await asyncio.gather(*(client.get(f"/{n}") for n in range(10)))
        return self.Outputs(texts=[answer.text for answer in answers])

class Signals(BaseNode):
    class Inputs(BaseModel):
        what: str = "prune"

    async def execute(self):
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(0))
                await asyncio.sleep(0)
                if self.inputs.what == "prune":
                    raise PruneSignal({"why": "empty"})
                if self.inputs.what == "requeue":
                    raise ReQueueAfterSignal(timedelta(seconds=2))
        except Exception:
            return {}
        self.store.set("seen", self.execution)
        self.emit_later = asyncio.create_task(asyncio.sleep(3600))
        return None

class Plain(BaseNode):
    def execute(self, inputs):
        return asyncio.run(self.later())

    async def later(self):
        await asyncio.sleep(0.001)
        return []
"""


async def test_a_node_awaits_what_it_begins_together() -> None:
    """Ten requests of one `gather` are at the server at the same time."""
    crowd = Crowd(10)
    async with serving(crowd) as web, loading() as load, outside(web.host, names={}) as calls:
        nodes = await load(WAITING, perform=calls.perform)
        result = await nodes.result("Asking", {"url": web.url})
    assert result["outputs"] == {"texts": [f"/{n}" for n in range(10)]}
    assert crowd.most == 10


async def test_signals_pass_through_coroutines() -> None:
    """`except Exception` does not eat one, and what a node leaves behind ends with its execution."""
    async with loading() as load:
        nodes = await load(WAITING)
        assert await nodes.result("Signals") == {"prune": {"why": "empty"}}
        assert await nodes.result("Signals", {"what": "requeue"}) == {"requeue_ms": 2000}
        assert await nodes.result("Signals", {"what": "go"}) == {"outputs": {}, "sets": [["seen", "a/b.0"]]}
        assert await nodes.result("Plain") == {"outputs": [], "sets": []}


async def test_a_node_that_fails_with_calls_open_is_undone_alone() -> None:
    """The executions beside it count, and what it had begun is cut off with it."""
    source = """
    import asyncio, httpx

    class Either(BaseNode):
        class Inputs(BaseModel):
            url: str = ""

        async def execute(self):
            if self.inputs.url:
                client = httpx.AsyncClient()
                asyncio.create_task(client.get(self.inputs.url))
                await asyncio.sleep(0)
                raise ValueError("with a call open")
    """
    async with serving(lambda asked: None) as web, loading() as load, outside(web.host, names={}) as calls:
        nodes = await load(source, perform=calls.perform)
        some = [{}, {"url": web.url}, {}]
        ran = await nodes.run(*(execution("Either", inputs) for inputs in some))
        assert isinstance(ran, Ran)
        assert [output.group for output in ran.outputs] == [0, 2]
        [(group, failure)] = ran.failed
        assert (group, failure.text) == (1, "ValueError: with a call open")
        assert [(call.group, call.code) for call in ran.calls] == [(1, "E314")]


SECRETS = """
from typing import Optional

class Ruled(BaseNode):
    class Secrets(BaseModel):
        api_key: str = Field(min_length=200, pattern="^sk-")
        region: str = "eu"
        @field_validator("api_key")
        def looks_like_one(cls, value):
            assert value.startswith("sk-")
            return value

    async def execute(self):
        return [{"kind": type(self.secrets).__name__, "given": sorted(vars(self.secrets))}]

    class Outputs(BaseModel):
        kind: str
        given: list[str]

class Bare(BaseNode):
    class Outputs(BaseModel):
        has: list[str]

    async def execute(self):
        return self.Outputs(has=[name for name in ("api_key", "other") if hasattr(self.secrets, name)])

class Short(BaseNode):
    class Secrets(BaseModel):
        region: str = Field(max_length=3)

    async def execute(self):
        return None

class Lacking(BaseNode):
    class Secrets(BaseModel):
        api_key: str
        database_url: str

    async def execute(self):
        return None
"""


@pytest.mark.parametrize("language", ["restricted", "python"])
async def test_rules_of_secrets_are_for_values_and_not_for_marks(language: str) -> None:
    """The host has held the values against them. A setting is its text, and a node sees what it declares."""
    async with loading(language) as load:
        marks = {"api_key": "secret.api_key.0123", "other": "secret.other.0123"}
        nodes = await load(SECRETS, secrets=marks)
        assert nodes.guest.manifest["Ruled"]["secrets"]["properties"]["api_key"]["minLength"] == 200
        [made] = (await nodes.result("Ruled", settings={"region": "us"}))["outputs"]
        assert made["kind"] == "Secrets"
        assert {"api_key", "region"} <= set(made["given"])
        assert (await nodes.result("Bare", settings={"x": "y"}))["outputs"] == {"has": []}
        failure = await nodes.failure("Short", settings={"region": "us-east"})
        assert failure.text.startswith("secrets of Short: region: String should have at most 3 characters")
        failure = await nodes.failure("Lacking")
        assert failure.text == "secrets of Lacking: database_url: Field required. Not tried again."


async def test_a_secret_text_of_pydantic_hides_its_mark() -> None:
    """`SecretStr` is what its users know, and its value is the mark."""
    source = """
    import httpx
    from pydantic import SecretStr

    class Hidden(BaseNode):
        class Inputs(BaseModel):
            url: str

        class Secrets(BaseModel):
            token: SecretStr = Field(min_length=200)

        class Outputs(BaseModel):
            shown: str

        async def execute(self):
            async with httpx.AsyncClient() as client:
                await client.get(self.inputs.url, headers={"X-Token": self.secrets.token.get_secret_value()})
            return self.Outputs(shown=str(self.secrets.token))
    """
    async with (
        serving() as web,
        loading() as load,
        outside(web.host, names={}, secrets={"token": (CANARY, [web.host])}) as calls,
    ):
        nodes = await load(source, perform=calls.perform, secrets=calls.secrets)
        result = await nodes.result("Hidden", {"url": web.url})
    assert result["outputs"] == {"shown": "**********"}
    assert web.asked[0].headers["x-token"] == CANARY


async def test_pydantic_is_there_for_nodes_and_not_for_runnables() -> None:
    """A file of nodes needs no packages for it; a Runnable that wants it names it."""
    zygote = await Zygote.start()
    try:
        source = "class Runnable:\n    def process(self, queries):\n        import pydantic\n"
        guest = await zygote.spawn(Program(source, "r.py", "python"), Limits())
        outcome = await guest.run([Group("", [b"1"], {})])
        assert "No module named 'pydantic'" in outcome.failure.text  # type: ignore[union-attr]
    finally:
        await zygote.close()
