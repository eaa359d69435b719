"""`StateManager`: graphs and their runs, asked for by programs of the user's.

It runs in the user's process and speaks the requests `ctl.<app>.api.graph.*`, which any processor of the app
answers; what a request does is written in `operate`. The names and models are those that programs for
exospherehost import, `deploy/compat` makes them importable by that name.

The connection lives in a thread with an event loop of its own: a client may be used from several loops, one
after the other, and a program that blocks its own loop stays connected.

What must stay true: a request that was not answered is sent again, and asked twice is as once: run ids are
made here.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import secrets
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar, TypeVar

import orjson
from pydantic import BaseModel

from processor.config import Nats, server_of
from processor.errors import BrokerError, Faults, Refusal
from processor.graphs.definition import (
    CronDefinition,
    NodeDefinition,
    RetryDefinition,
    StoreDefinition,
    UnitesDefinition,
)
from processor.jetstream import Again, Broker, Unknown, ask_service, connect_options
from processor.subject import api_subject

URI_VARIABLE = "EXOSPHERE_STATE_MANAGER_URI"
KEY_VARIABLE = "EXOSPHERE_API_KEY"

_REQUEST_S = 5.0
_PATIENCE_S = 30.0  # how long a request is repeated that nobody answers
_AGAIN_S = 0.2
_LOOK_S = 0.05  # how soon a result is looked for again; later, more and more seldom
_LOOK_MAX_S = 1.0
_CLOSE_S = 5.0
_LOGIN = ("NATS_USER", "NATS_PASSWORD", "NATS_TOKEN", "NATS_NKEY_SEED", "NATS_CREDS")

T = TypeVar("T")


class StateManagerError(Exception):
    """A request that was refused or not answered; `code` is one of the documented error codes."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        super().__init__(f"{code} {text}")


class UnitesStrategyEnum(StrEnum):
    """Whether a node that unites runs where a branch has failed."""

    ALL_SUCCESS = "ALL_SUCCESS"
    ALL_DONE = "ALL_DONE"


class RetryStrategyEnum(StrEnum):
    """How the waits between tries grow."""

    EXPONENTIAL = "EXPONENTIAL"
    EXPONENTIAL_FULL_JITTER = "EXPONENTIAL_FULL_JITTER"
    EXPONENTIAL_EQUAL_JITTER = "EXPONENTIAL_EQUAL_JITTER"
    LINEAR = "LINEAR"
    LINEAR_FULL_JITTER = "LINEAR_FULL_JITTER"
    LINEAR_EQUAL_JITTER = "LINEAR_EQUAL_JITTER"
    FIXED = "FIXED"
    FIXED_FULL_JITTER = "FIXED_FULL_JITTER"
    FIXED_EQUAL_JITTER = "FIXED_EQUAL_JITTER"


class UnitesModel(UnitesDefinition):
    """`unites` of a node."""


class GraphNodeModel(NodeDefinition):
    """A node of a graph."""


class RetryPolicyModel(RetryDefinition):
    """The retry policy of a graph."""


class StoreConfigModel(StoreDefinition):
    """The store of a graph's runs."""


class CronTrigger(CronDefinition):
    """Runs that start at the times of a cron expression."""


class TriggerState(BaseModel):
    """Inputs for a node, by its identifier."""

    identifier: str
    inputs: dict[str, Any]


def new_run_id() -> str:
    """An id that no other run has, and that sorts behind those made before: a UUID, version 7."""
    now_ms = time.time_ns() // 1_000_000
    head = (now_ms & (1 << 48) - 1) << 80 | 7 << 76 | secrets.randbits(12) << 64
    return str(uuid.UUID(int=head | 2 << 62 | secrets.randbits(62)))


def server(uri: str | None, key: str | None) -> Nats:
    """The NATS server at `uri`, with `key` to log in; what is None is taken from the environment.

    `key` is a token, an nkey seed (`SU...`) or the path of a `.creds` file. Raises ValueError for what cannot
    be an address or a login.
    """
    uri = uri or os.environ.get(URI_VARIABLE) or os.environ.get("NATS_URL")
    key = key or os.environ.get(KEY_VARIABLE)
    if not uri:
        raise ValueError(f"no server is named: give state_manager_uri, or set {URI_VARIABLE} or NATS_URL")
    scheme, _, rest = uri.partition("://")
    if scheme.lower() in ("http", "https"):
        host = rest.rpartition("@")[2].partition("/")[0].partition(":")[0] or "HOST"
        raise ValueError(
            f"state_manager_uri begins with {scheme}://, and Processor is reached over NATS: write "
            f"nats://{host}:4222, or tls://{host}:4222"
        )
    env = {name: value for name, value in os.environ.items() if not key or name not in _LOGIN}
    if key:
        env[_variable_of(key)] = key
    try:
        return server_of(uri, env)
    except Faults as err:
        raise ValueError("; ".join(fault.text for fault in err.faults)) from None


def _variable_of(key: str) -> str:
    if key.startswith("SU"):
        return "NATS_NKEY_SEED"
    return "NATS_CREDS" if key.endswith(".creds") else "NATS_TOKEN"


class AppConnection:
    """A connection to NATS in a thread of its own, made when it is first needed."""

    _all: ClassVar[weakref.WeakSet[AppConnection]] = weakref.WeakSet()

    def __init__(self, nats: Nats, name: str) -> None:
        self._nats = nats
        self._name = name
        self._guard = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._opening: asyncio.Task[Broker] | None = None
        AppConnection._all.add(self)

    async def do(self, work: Callable[[Broker], Coroutine[Any, Any, T]]) -> T:
        """What `work` returns, in the thread of the connection. Raises BrokerError E404 without a server."""
        return await asyncio.wrap_future(self.start(work))

    def start(self, work: Callable[[Broker], Coroutine[Any, Any, T]]) -> concurrent.futures.Future[T]:
        """As `do`, for who does not wait here."""
        with self._guard:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                run = self._loop.run_forever
                self._thread = threading.Thread(target=run, name=f"nats {self._name}", daemon=True)
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(self._done(work), self._loop)

    async def _done(self, work: Callable[[Broker], Coroutine[Any, Any, T]]) -> T:
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        opening = self._opening
        try:
            broker = await asyncio.shield(opening)
        except BrokerError:
            if self._opening is opening:
                self._opening = None
            raise
        return await work(broker)

    async def _open(self) -> Broker:
        return await Broker.connect(
            connect_options(self._nats), name=self._name, wait=False, needs_jetstream=False
        )

    async def close(self) -> None:
        """Close the connection and end its thread; it is opened again when it is needed."""
        await asyncio.to_thread(self.stop)

    def stop(self) -> None:
        """As `close`, for who has no event loop."""
        with self._guard:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._shut(), loop).result(_CLOSE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_CLOSE_S)
        if not thread.is_alive():
            loop.close()

    async def _shut(self) -> None:
        opening, self._opening = self._opening, None
        others = asyncio.all_tasks() - {asyncio.current_task(), opening}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if opening is not None:
            with contextlib.suppress(BrokerError):
                await (await opening).close()


@atexit.register
def _close_all() -> None:
    for connection in list(AppConnection._all):
        connection.stop()


class StateManager:
    """Graphs of one app: define them, trigger them, and look at what became of their runs.

    `namespace` is the app, as its configuration names it. `state_manager_uri` is the address of the NATS
    server, `nats://` or `tls://`, by default from EXOSPHERE_STATE_MANAGER_URI or NATS_URL; `key`, by default
    from EXOSPHERE_API_KEY, is a token, an nkey seed or the path of a `.creds` file. `state_manager_version`
    is taken for the sake of programs that give it. Raises ValueError for an address of another kind.

    Every method raises StateManagerError where the app refuses, or where nobody answers.
    """

    def __init__(
        self,
        namespace: str,
        state_manager_uri: str | None = None,
        key: str | None = None,
        state_manager_version: str = "v0",
    ) -> None:
        self._namespace = namespace
        self._connection = AppConnection(server(state_manager_uri, key), f"state-manager {namespace}")

    async def upsert_graph(
        self,
        graph_name: str,
        graph_nodes: Sequence[GraphNodeModel],
        secrets: Mapping[str, str] | None = None,
        retry_policy: RetryPolicyModel | None = None,
        store_config: StoreConfigModel | None = None,
        triggers: Sequence[CronTrigger] | None = None,
        validation_timeout: int = 60,
        polling_interval: int = 1,
    ) -> dict[str, Any]:
        """Define a graph, or define it anew, and return it once it is found valid.

        Waits up to `validation_timeout` seconds for the kinds of its nodes to be there, and looks every
        `polling_interval` seconds. Raises Exception with every fault where the graph is not valid: a valid
        version from before stays. `secrets` are kept sealed, and what is returned only has their names.
        """
        asked: dict[str, Any] = {
            "name": graph_name,
            "nodes": [_document(node) for node in graph_nodes],
            "by": f"state-manager {self._namespace}",
        }
        if secrets:
            asked["secrets"] = dict(secrets)
        if retry_policy is not None:
            asked["retry_policy"] = _document(retry_policy)
        if store_config is not None:
            asked["store_config"] = _document(store_config)
        if triggers:
            asked["triggers"] = [{"type": "CRON", "value": _document(each)} for each in triggers]
        head = await self._ask("apply", asked)
        until_s = time.monotonic() + validation_timeout
        while head["status"] == "PENDING":
            if time.monotonic() >= until_s:
                raise Exception(  # noqa: TRY002 - as programs written for it expect
                    f"Graph validation check timed out after {validation_timeout} seconds: "
                    f"{'; '.join(sentences(head))}"
                )
            await asyncio.sleep(min(polling_interval, max(0.0, until_s - time.monotonic())))
            head = await self._ask("get", {"name": graph_name, "version": head["version"]})
        if head["status"] != "VALID":
            raise Exception(  # noqa: TRY002
                f"Graph validation failed: {head['status']} and errors: {sentences(head)}"
            )
        return await self.get_graph(graph_name)

    async def get_graph(self, graph_name: str) -> dict[str, Any]:
        """A graph with what it was last found to be: `validation_status` and `validation_errors`."""
        found = await self._ask("get", {"name": graph_name})
        definition = found["definition"]
        return {
            "name": graph_name,
            "namespace": self._namespace,
            "nodes": definition["nodes"],
            "secrets": dict.fromkeys(found["secrets"], True),
            "retry_policy": definition.get("retry_policy"),
            "store_config": definition.get("store_config"),
            "triggers": definition.get("triggers", []),
            "validation_status": found["status"],
            "validation_errors": sentences(found),
            "version": found["version"],
        }

    async def trigger(
        self,
        graph_name: str,
        inputs: Mapping[str, Any] | None = None,
        store: Mapping[str, Any] | None = None,
        start_delay: int = 0,
        run_id: str | None = None,
    ) -> dict[str, Any]:
        """Start a run of a graph, `start_delay` milliseconds from now; it is stored when this returns.

        Returns its `status`, its `run_id`, and in `ignored` the inputs that the first node does not declare.
        With the `run_id` of a run that there is, this is that run, and nothing is started.
        """
        asked = {
            "name": graph_name,
            "inputs": dict(inputs or {}),
            "store": dict(store or {}),
            "delay_ms": start_delay,
            "run_id": run_id or new_run_id(),
        }
        return await self._ask("trigger", asked)

    async def run(self, run_id: str) -> dict[str, Any]:
        """A run: its state, its executions, and why each that is open is open."""
        return await self._ask("run", {"run": run_id})

    async def runs(
        self, graph_name: str = "", state: str = "", since: str = "", limit: int = 100
    ) -> list[dict[str, Any]]:
        """The newest runs, of one graph or in one state where that is given."""
        asked: dict[str, Any] = {"graph": graph_name, "state": state, "since": since, "limit": limit}
        found: list[dict[str, Any]] = (await self._ask("runs", asked))["runs"]
        return found

    async def result(self, run_id: str, timeout: float | None = None) -> dict[str, Any]:  # noqa: ASYNC109
        """The outputs of a run, when it has ended well.

        Raises StateManagerError E708 where it failed or was cancelled, with its first error, and TimeoutError
        where it has not ended within `timeout` seconds.
        """
        async with asyncio.timeout(timeout):
            wait_s = _LOOK_S
            while True:
                found = await self.run(run_id)
                if found["state"] == "SUCCESS":
                    outputs: dict[str, Any] = found["outputs"]
                    return outputs
                if found["state"] in ("FAILED", "CANCELLED"):
                    first: dict[str, Any] = next(iter(found["errors"]), {})
                    why = f": {first.get('x')}: {first.get('code')} {first.get('text')}" if first else ""
                    raise StateManagerError("E708", f"run {run_id} is {found['state']}{why}")
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, _LOOK_MAX_S)

    async def retry(self, run_id: str, execution: str = "", and_after: bool = False) -> dict[str, Any]:
        """Run again what failed of a run, or one execution of it; `and_after` also what came of that."""
        asked = {
            "run": run_id,
            "by": self._by,
            "id": new_run_id(),
            "execution": execution,
            "after": and_after,
        }
        return await self._ask("retry", asked)

    async def cancel(self, run_id: str, reason: str = "") -> dict[str, Any]:
        """End a run: what is open of it is not run any more."""
        return await self._ask("cancel", {"run": run_id, "by": self._by, "reason": reason})

    async def close(self) -> None:
        """Close the connection. It is closed at the end of the program, too."""
        await self._connection.close()

    @property
    def _by(self) -> str:
        return f"state-manager {self._namespace}"

    async def _ask(self, verb: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        return await ask(self._connection, self._namespace, verb, asked)


async def ask(
    connection: AppConnection,
    app: str,
    verb: str,
    asked: Mapping[str, Any],
    *,
    patience_s: float = _PATIENCE_S,
) -> dict[str, Any]:
    """The answer to a request about graphs, asked again until somebody answers, for so long.

    Raises StateManagerError.
    """
    subject, payload = api_subject(app, f"graph.{verb}"), orjson.dumps(asked)

    async def answer(broker: Broker) -> bytes:
        return await ask_service(broker, subject, payload, _REQUEST_S)

    until_s = time.monotonic() + patience_s
    while True:
        try:
            document: dict[str, Any] = orjson.loads(await connection.do(answer))
            return document
        except Refusal as err:
            raise StateManagerError(err.code, err.text) from None
        except BrokerError as err:
            raise StateManagerError(err.code, err.sentence) from err
        except (Again, Unknown) as err:
            if time.monotonic() >= until_s:
                raise StateManagerError(
                    "E404", f"no processor of app {app!r} answered to graph.{verb} within {patience_s:g} s"
                ) from err
            await asyncio.sleep(_AGAIN_S)


def _document(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json", exclude_none=True)


def sentences(head: Mapping[str, Any]) -> list[str]:
    """What is wrong with a graph, by what is said of it: each fault with its code, and its place in front."""
    return [
        f"{each['code']} {each['text']}"
        if not each.get("place") or each["place"] in each["text"]
        else f"{each['place']}: {each['code']} {each['text']}"
        for each in head["errors"]
    ]
