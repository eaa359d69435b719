"""Nodes in the user's own process: what comes of an execution, whatever the node does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import orjson
import pytest
from pydantic import BaseModel, Field

from processor.graphs.nodes import (
    BaseNode,
    NodeClass,
    PruneSignal,
    ReQueueAfterSignal,
    Task,
    classes_of,
    perform,
)

KEY = "sk-live-4711"


def node_that(act: Callable[[Any], Any]) -> type[BaseNode]:
    """A node whose `execute` does this with itself."""

    class Api(BaseNode):
        """Asks somebody."""

        class Inputs(BaseModel):
            user_id: str
            n: int = 1

        class Outputs(BaseModel):
            total: int

        class Secrets(BaseModel):
            api_key: str = Field(min_length=8)

        async def execute(self) -> Any:
            return act(self)

    return Api


async def came_of(act: Callable[[Any], Any], secrets: dict[str, str] | None = None, **more: Any) -> Any:
    """The result of an execution of that node."""
    body = {"v": 1, "t": "exec", "run": "r1", "x": "api", "a": 2, "graph": "g", "inputs": {"user_id": "u"}}
    task = Task.read(orjson.dumps(body | more))
    return await perform(NodeClass.of(node_that(act)), task, {"api_key": KEY} if secrets is None else secrets)


def raises(err: BaseException) -> Callable[[Any], Any]:
    def act(node: Any) -> Any:
        raise err

    return act


async def test_outputs_are_what_the_model_makes_of_them() -> None:
    """One object, a list that goes on as branches, or nothing; an object without its class is taken, too."""
    assert await came_of(lambda node: node.Outputs(total=3)) == {"outputs": {"total": 3}, "sets": []}
    many = await came_of(lambda node: [node.Outputs(total=1), {"total": 2}])
    assert many["outputs"] == [{"total": 1}, {"total": 2}]
    assert (await came_of(lambda node: []))["outputs"] == []
    assert (await came_of(lambda node: None))["outputs"] is None


async def test_a_node_knows_where_it_is() -> None:
    """Run, execution, attempt, a key for outside calls, the store and what was united."""
    seen: list[Any] = []

    def act(node: Any) -> Any:
        seen.append((node.run_id, node.execution, node.attempt, node.idempotency_key, node.united))
        seen.append((node.store["cursor"], node.store.get("x", 1), "cursor" in node.store, node.inputs.n))
        node.store.set("cursor", {"page": 2})
        node.store.set("done", True)
        return node.store["cursor"] and None

    result = await came_of(act, store={"cursor": "0"}, united={"success": 2, "errored": 0, "pruned": 1})
    assert seen[0] == ("r1", "api", 2, "r1:api", {"success": 2, "errored": 0, "pruned": 1})
    assert seen[1] == ("0", 1, True, 1)
    assert result == {"outputs": None, "sets": [["cursor", {"page": 2}], ["done", True]]}


async def test_signals_are_results() -> None:
    """To prune and to run again are no errors, and `except Exception` of a node does not eat them."""
    assert await came_of(raises(PruneSignal({"why": "old"}))) == {"prune": {"why": "old"}}
    again = ReQueueAfterSignal(timedelta(seconds=1.5), inputs={"page": 2})
    assert await came_of(raises(again)) == {"requeue_ms": 1500, "inputs": {"page": 2}}
    assert await came_of(raises(ReQueueAfterSignal(2))) == {"requeue_ms": 2000}
    assert not issubclass(PruneSignal, Exception)
    assert not issubclass(ReQueueAfterSignal, Exception)
    with pytest.raises(ValueError, match="longer than nothing"):
        ReQueueAfterSignal(0)
    result = await came_of(raises(PruneSignal({"why": object()})))
    assert (result["error"]["code"], result["final"]) == ("E709", True)


@pytest.mark.parametrize(
    ("err", "text"),
    [
        (RuntimeError("no such user"), "RuntimeError: no such user"),
        (SystemExit(3), "SystemExit: 3"),
        (ExceptionGroup("two", [ValueError("a")]), "ExceptionGroup: two (1 sub-exception)"),
        (GeneratorExit(), "GeneratorExit"),
    ],
)
async def test_whatever_a_node_raises_is_an_error_of_its_try(err: BaseException, text: str) -> None:
    """It ends nothing, and the traceback shows the lines of the user and none of ours."""
    result = await came_of(raises(err))
    assert (result["error"]["code"], result["error"]["text"], result["final"]) == ("E304", text, False)
    assert "test_nodes.py" in result["error"]["traceback"]
    assert "graphs/nodes.py" not in result["error"]["traceback"]


async def test_a_node_that_cancels_itself_has_failed() -> None:
    """Only who waits for it may cancel an execution, and then its node is cancelled, too."""

    is_at_it = asyncio.Event()

    class Stuck(BaseNode):
        class Inputs(BaseModel):
            user_id: str

        async def execute(self) -> None:
            if self.inputs.user_id == "own":
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            is_at_it.set()
            await asyncio.Event().wait()

    def task_of(user: str) -> Task:
        return Task("r1", "stuck", 1, "g", {"user_id": user}, {}, None)

    result = await perform(NodeClass.of(Stuck), task_of("own"), {})
    assert result["error"]["text"] == "CancelledError: Stuck cancelled its own task"
    is_at_it.clear()
    waiting = asyncio.create_task(perform(NodeClass.of(Stuck), task_of("u"), {}))
    await is_at_it.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_what_a_model_refuses_is_final() -> None:
    """Inputs, outputs and secrets that do not fit say which field and why, and are not tried again."""
    result = await came_of(lambda node: None, inputs={"n": "x"})
    assert result["final"] is True
    assert result["error"]["code"] == "E709"
    assert result["error"]["text"] == (
        "inputs of Api: user_id: Field required; n: Input should be a valid integer, unable to parse string "
        "as an integer. Not tried again."
    )
    for returned in (7, "text", {"totl": 1}, object()):
        result = await came_of(lambda node, value=returned: value)
        assert result["error"]["code"] == "E709"
        assert result["error"]["text"].startswith("outputs of Api:")
    result = await came_of(lambda node: [node.Outputs(total=1), {"total": "?"}])
    assert "outputs of Api: element 1 total: Input should be a valid integer" in result["error"]["text"]
    result = await came_of(lambda node: None, secrets={"api_key": "short"})
    assert result["error"]["text"] == (
        "secrets of Api: api_key: String should have at least 8 characters. Not tried again."
    )


async def test_no_error_holds_a_secret() -> None:
    """Not its text, not its traceback, and not what a model says."""
    result = await came_of(lambda node: int(node.secrets.api_key))
    assert KEY not in orjson.dumps(result).decode()
    assert result["error"]["text"] == "ValueError: invalid literal for int() with base 10: '***'"


async def test_long_errors_are_cut() -> None:
    """The beginning of a text and the end of a traceback are kept."""
    result = await came_of(raises(ValueError("x" * 100_000)))
    assert len(result["error"]["text"]) == 500
    assert len(result["error"]["traceback"]) == 2000


async def test_execute_may_be_plain_and_take_its_inputs() -> None:
    """`def execute(self, inputs)` is accepted, too."""

    class Plain(BaseNode):
        class Inputs(BaseModel):
            n: int

        class Outputs(BaseModel):
            n: int

        def execute(self, inputs: Any) -> Any:  # type: ignore[override]
            return self.Outputs(n=inputs.n + self.inputs.n)

    result = await perform(NodeClass.of(Plain), Task("r", "x", 1, "g", {"n": 2}, {}, None), {})
    assert result["outputs"] == {"n": 4}


def test_a_manifest_has_what_graphs_are_checked_against() -> None:
    """The JSON Schemas of the models, the names of secrets, and the words of the class."""
    made = NodeClass.of(node_that(print)).manifest()
    assert (made["name"], made["secrets"], made["doc"]) == ("Api", ["api_key"], "Asks somebody.")
    assert made["inputs"]["required"] == ["user_id"]
    assert made["outputs"]["properties"]["total"]["type"] == "integer"


def test_everything_that_is_wrong_with_classes_is_said_at_once() -> None:
    """What derives from something else, models that are none, and two of one name."""

    class Odd(BaseNode):
        Inputs = dict  # type: ignore[assignment]

    twice = [node_that(print), node_that(print)]
    with pytest.raises(ValueError) as caught:
        classes_of([int, Odd, *twice])  # type: ignore[list-item]
    assert str(caught.value) == (
        "<class 'int'> is not a subclass of BaseNode; Odd.Inputs is not a subclass of pydantic.BaseModel; "
        "two nodes are called Api"
    )
    with pytest.raises(ValueError, match="there are no nodes"):
        classes_of([])


@pytest.mark.parametrize(
    "payload",
    [b"", b"[]", b"7", b"{}", b'{"v":2,"t":"exec"}', b'{"v":1,"t":"result","run":"r"}',
     b'{"v":1,"t":"exec","run":"","x":"x","a":1,"graph":"g","inputs":{}}',
     b'{"v":1,"t":"exec","run":"r","x":"x","a":1,"graph":"g","inputs":[]}'],
)  # fmt: skip
def test_what_is_no_execution_is_refused(payload: bytes) -> None:
    """Any other message says what it is not."""
    with pytest.raises(ValueError):
        Task.read(payload)


def test_emit_and_event_say_that_they_are_not_here() -> None:
    """An external worker has clients of its own."""
    node = node_that(print)()
    with pytest.raises(RuntimeError, match="publish with a client"):
        node.emit("alerts", {})
    with pytest.raises(RuntimeError, match="log it"):
        node.event("x")
