"""`Runtime`: nodes of graphs that run in the user's own process, as external workers.

Their kinds are registered with the app, and their executions taken from the stream `<app>-work`. The result
of one is published for the engine; only when that is stored is the execution acknowledged. So a worker that
is killed leaves its executions to others, and a result that is published twice counts once.

Nodes run in the loop of `start`, and the connection in a thread of its own: a node that blocks the loop does
not lose what is in hand here.

What must stay true: nothing that a node does ends the Runtime; what was fetched is either answered, given
back, or left to its lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from processor.context.subjects import GraphSubjects
from processor.errors import BrokerError, ProcessorError
from processor.graphs.client import AppConnection, StateManagerError, ask, server
from processor.graphs.nodes import BaseNode, NodeClass, Task, classes_of, error_of, perform, result_head
from processor.graphs.vault import Recipient, Sealed
from processor.jetstream import Again, ApiError, Broker, LeasedMessage, Outgoing, Unknown, WorkQueue
from processor.model import partition_of

log = logging.getLogger("processor")

SECRET_PREFIX = "PROCESSOR_SECRET_"

_LEASE_S = 30.0
_LOST_MAX = 3  # workers that may be lost over an execution
_AGAIN_S = 0.5


@dataclass(eq=False, slots=True)
class _Fetched:
    """An execution that is leased to us; `is_begun` says that its node may have run."""

    node_class: NodeClass
    lease: LeasedMessage
    queue: WorkQueue
    is_begun: bool = False


class _Counter:
    """What of the Runtime lives with the connection: it fetches executions and hands in results."""

    def __init__(
        self, app: str, namespace: str, classes: Sequence[NodeClass], partitions: int, batch: int
    ) -> None:
        self._subjects = GraphSubjects(app)
        self._namespace = namespace
        self._classes = classes
        self._partitions = partitions
        self._batch = batch
        self._held: set[_Fetched] = set()
        self._pumps: list[asyncio.Task[None]] = []
        self._keeping: set[asyncio.Task[None]] = set()

    async def serve(self, broker: Broker, take: Callable[[_Fetched], None]) -> None:
        """Fetch executions for `take` until `stop`. Raises BrokerError where that cannot be."""
        self._pumps = [asyncio.create_task(self._pump(broker, each, take)) for each in self._classes]
        await asyncio.gather(*self._pumps)

    async def stop(self, broker: Broker) -> None:
        """Fetch nothing more, and let other workers have at once what has not begun."""
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        for fetched in [fetched for fetched in self._held if not fetched.is_begun]:
            await self._give_back(broker, fetched)

    async def _give_back(self, broker: Broker, fetched: _Fetched) -> None:
        """Let another worker have what has not begun.

        Each delivery counts until an execution is given up for the workers that were lost over it. So it is
        given back only once; after that its run sends it anew.
        """
        if fetched.lease.tries > 1:
            with contextlib.suppress(ValueError):
                about = result_head(Task.read(fetched.lease.payload))
                await self.hand_in(broker, fetched, {**about, "requeue_ms": 1})
                return
        self._held.discard(fetched)
        fetched.queue.give_back(fetched.lease)

    async def _pump(self, broker: Broker, node_class: NodeClass, take: Callable[[_Fetched], None]) -> None:
        queue = WorkQueue(
            broker,
            self._subjects.work_stream,
            self._subjects.work(self._namespace, node_class.name),
            name=f"{self._namespace}-{node_class.name}",
            ack_wait_s=_LEASE_S,
            batch=self._batch,
        )
        try:
            while True:
                fetched = _Fetched(node_class, await queue.next(), queue)
                if not any(task.get_name() == node_class.name for task in self._keeping):
                    self._keeping.add(asyncio.create_task(self._keep(queue), name=node_class.name))
                self._held.add(fetched)
                take(fetched)
        finally:
            await queue.close()

    async def _keep(self, queue: WorkQueue) -> None:
        """Say in time of all that is in hand of a queue that somebody is at it."""
        while True:
            await asyncio.sleep(queue.ack_wait_s / 3)
            for fetched in self._held:
                if fetched.queue is queue:
                    queue.extend(fetched.lease)

    async def hand_in(self, broker: Broker, fetched: _Fetched, result: Mapping[str, Any]) -> None:
        """Have a result stored, then let go of its execution."""
        try:
            await self._store(broker, result)
        except BrokerError as err:
            if err.code != "E406":
                log.error("a result of %s cannot be stored: %s", fetched.node_class.name, err)
                self._held.discard(fetched)
                fetched.queue.forget(fetched.lease)
                return
            why = (
                f"{fetched.node_class.name} returned more than a message takes ({err.what}): pass references"
            )
            about = {key: result[key] for key in ("v", "t", "run", "x", "a")}
            await self._store(broker, {**about, **error_of("E711", why)})
        self.drop(fetched)

    async def _store(self, broker: Broker, result: Mapping[str, Any]) -> None:
        run, x, attempt = (result[name] for name in ("run", "x", "a"))
        subject = self._subjects.external(self._namespace, partition_of(run, self._partitions))
        message = Outgoing(subject, orjson.dumps(result), {"Nats-Msg-Id": f"{run}:{x}:{attempt}"})
        while True:
            await broker.connected()
            try:
                await broker.publish_stored(message)
                return
            except (Unknown, Again, ApiError) as err:  # the id makes of two that are stored one
                log.debug("a result is not stored yet: %s", err)
                await asyncio.sleep(_AGAIN_S)

    def drop(self, fetched: _Fetched) -> None:
        """Let go of an execution for good."""
        self._held.discard(fetched)
        fetched.queue.finish(fetched.lease)


class NodeRuntime:
    """Runs nodes of graphs in this process, until it is stopped.

    `namespace` is that of their kinds, and the app unless `app` names another; `name` says in the log which
    program this is. Server and login are those of `StateManager`. At most `workers` executions run at a time,
    and up to `batch_size` of each kind are fetched ahead. `secrets` are values by name; others are taken from
    the variables PROCESSOR_SECRET_<NAME>, and else from what was uploaded with the graph.
    `state_manage_version` and `poll_interval` are taken for the sake of programs that give them: executions
    come by themselves. Raises ValueError with everything that is wrong with the nodes, or with the address.
    """

    def __init__(
        self,
        namespace: str,
        name: str,
        nodes: Sequence[type[BaseNode]],
        state_manager_uri: str | None = None,
        key: str | None = None,
        batch_size: int = 16,
        workers: int = 4,
        state_manage_version: str = "v0",
        poll_interval: int = 1,
        secrets: Mapping[str, str] | None = None,
        *,
        app: str | None = None,
    ) -> None:
        if batch_size < 1 or workers < 1:
            raise ValueError(f"batch_size is {batch_size} and workers {workers}; both are 1 or more")
        self._namespace = namespace
        self._name = name
        self._app = app or namespace
        self._classes = classes_of(nodes)
        self._batch_size = batch_size
        self._workers = workers
        self._secrets = dict(secrets or {})
        self._nats = server(state_manager_uri, key)

    def start(self) -> asyncio.Task[None] | None:
        """Run the nodes. Blocks until SIGTERM or Ctrl-C; in an event loop it returns a task, to be cancelled.

        What runs when it is stopped is finished, and what was only fetched is given back; a second signal
        ends at once. Raises StateManagerError where the app refuses the kinds, and ProcessorError where the
        server does not give them work.
        """
        if _is_in_loop():
            return asyncio.create_task(self._run(), name=f"runtime {self._name}")
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(self._run_until_signal())
        return None

    async def _run_until_signal(self) -> None:
        run = asyncio.create_task(self._run())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            # Elsewhere than in the main thread signals are for others.
            with contextlib.suppress(ValueError, RuntimeError):
                loop.add_signal_handler(number, run.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await run

    async def _run(self) -> None:
        connection = AppConnection(self._nats, f"runtime {self._namespace} {self._name}")
        try:
            partitions = await self._register(connection)
            classes = list(self._classes.values())
            counter = _Counter(self._app, self._namespace, classes, partitions, self._batch_size)
            await self._work(connection, counter)
        finally:
            await connection.close()

    async def _register(self, connection: AppConnection) -> int:
        """Say what there is here; the number of partitions that results go to."""
        asked = {
            "runtime": self._name,
            "namespace": self._namespace,
            "kinds": [each.manifest() for each in self._classes.values()],
        }
        is_told = False
        while True:
            try:
                answer = await ask(connection, self._app, "register", asked, patience_s=_AGAIN_S)
                break
            except StateManagerError as err:
                if err.code != "E404":
                    raise
                if not is_told:
                    log.warning("%s; trying until one does", err)
                    is_told = True
                await asyncio.sleep(_AGAIN_S)
        if faults := answer["faults"]:
            raise StateManagerError(faults[0]["code"], "; ".join(str(each["text"]) for each in faults))
        log.info("runtime %s of %s has %s", self._name, self._app, ", ".join(self._classes))
        return int(answer["partitions"])

    async def _work(self, connection: AppConnection, counter: _Counter) -> None:
        loop = asyncio.get_running_loop()
        fetched: asyncio.Queue[_Fetched] = asyncio.Queue()

        def take(one: _Fetched) -> None:
            loop.call_soon_threadsafe(fetched.put_nowait, one)

        serving = asyncio.wrap_future(connection.start(lambda broker: counter.serve(broker, take)))
        running: set[asyncio.Task[None]] = set()
        dispatching = asyncio.create_task(self._dispatch(connection, counter, fetched, running))
        try:
            done, _ = await asyncio.wait({serving, dispatching}, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()  # neither ends but with an error
        finally:
            dispatching.cancel()
            await asyncio.gather(dispatching, return_exceptions=True)
            with contextlib.suppress(ProcessorError):  # without a server leases end by themselves
                await connection.do(counter.stop)
            await asyncio.gather(serving, return_exceptions=True)
            if running:
                await asyncio.wait(running)

    async def _dispatch(
        self,
        connection: AppConnection,
        counter: _Counter,
        fetched: asyncio.Queue[_Fetched],
        running: set[asyncio.Task[None]],
    ) -> None:
        """Perform what was fetched, so many at a time."""
        places = asyncio.Semaphore(self._workers)

        def ended(task: asyncio.Task[None]) -> None:
            running.discard(task)
            places.release()

        while True:
            await places.acquire()
            one = await fetched.get()
            one.is_begun = True
            task = asyncio.create_task(self._perform(connection, counter, one))
            running.add(task)
            task.add_done_callback(ended)

    async def _perform(self, connection: AppConnection, counter: _Counter, fetched: _Fetched) -> None:
        try:
            task = Task.read(fetched.lease.payload)
        except ValueError as err:
            log.warning("message %d of the work stream is not an execution: %s", fetched.lease.sequence, err)

            async def drop(broker: Broker) -> None:
                counter.drop(fetched)

            await connection.do(drop)
            return
        began_s = time.monotonic()
        outcome = await self._outcome(connection, fetched, task)
        took_ms = round((time.monotonic() - began_s) * 1000)
        result = {**result_head(task), **outcome, "ms": took_ms}
        await connection.do(lambda broker: counter.hand_in(broker, fetched, result))

    async def _outcome(self, connection: AppConnection, fetched: _Fetched, task: Task) -> dict[str, Any]:
        if fetched.lease.tries > _LOST_MAX:
            why = (
                f"three workers in a row were lost over this execution "
                f"(not heard of for {fetched.queue.ack_wait_s:g} s each)."
            )
            return error_of("E712", why)
        try:
            secrets = await self._secrets_of(connection, fetched.node_class, task)
        except (StateManagerError, Sealed) as err:
            return error_of("E705", f"{fetched.node_class.name} got no secrets: {err}")
        missing = [name for name in fetched.node_class.required_secrets if name not in secrets]
        if missing:
            variables = ", ".join(SECRET_PREFIX + name.upper() for name in missing)
            return error_of(
                "E705",
                f"{fetched.node_class.name} needs the secret {missing[0]!r}, and graph {task.graph} has "
                f"none of that name. Upload it with the graph, or set {variables}.",
            )
        return await perform(fetched.node_class, task, secrets)

    async def _secrets_of(
        self, connection: AppConnection, node_class: NodeClass, task: Task
    ) -> dict[str, str]:
        """The values that there are for the secrets of a node."""
        found = {}
        for name in node_class.secret_names:
            value = self._secrets.get(name) or os.environ.get(SECRET_PREFIX + name.upper())
            if value is not None:
                found[name] = value
        if all(name in found for name in node_class.secret_names):
            return found
        recipient = Recipient()
        asked = {"run": task.run, "x": task.x, "key": recipient.key}
        try:
            answer = await ask(connection, self._app, "secrets", asked)
        except StateManagerError as err:
            if any(name not in found for name in node_class.required_secrets):
                raise
            log.debug("the defaults of %s are used: %s", node_class.name, err)
            return found
        return recipient.open(answer["sealed"]) | found


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


Runtime = NodeRuntime  # as programs call it
