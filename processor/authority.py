"""`AuthorityKernel`: the SDK of the Authority Kernel for scripts, in memory or on the app of a configuration.

The script is trusted, and runs in this process; what it asks of the kernel passes the same monitor as the
calls of a guest (`processor.capability`). Without a configuration the heap, the audit and the budgets are in
memory, and the policy alone says what may be done: the hosts that its lines name may be asked, and there are
the tools add, concat and echo. With one, the kernel connects to its server: objects are in the context of a
route's key, each change is an edit with its record (`operate.edits`), and the configuration and the policy of
the route must both allow.

What must stay true: an operation is whole or has no effect, and leaves one entry in the audit either way.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import orjson

from processor.audit import CONTROL, GENESIS, AuditEntry, AuditRecord, chained, document_of
from processor.capability.authorization import details, undeclared
from processor.capability.monitor import Governor, Mandate, Monitor
from processor.capability.registry import HostCalls
from processor.capability.remarks import DATA_BYTES
from processor.config import Config, calling, load
from processor.context.chains import Chain
from processor.context.history import Author, me
from processor.context.subjects import app_stream
from processor.errors import About, BrokerError, Faults, ProcessorError
from processor.jetstream import Broker, connect_options
from processor.operate.audits import AuditFilter, Audits
from processor.operate.edits import ContextEdits
from processor.policy import NO_POLICY, Ask, Rules, Verdict, suggest
from processor.policy import load as load_policy_files
from processor.reach import FunctionTool, Outbound, Reach
from processor.route import Route
from processor.runnable import (
    AuthorityKernelError,
    BudgetExceededError,
    BufferOverflowError,
    CapabilityError,
    ConflictError,
    InvalidArgumentError,
    LibakError,
    NotFoundError,
    OperationDeniedError,
    OutOfMemoryError,
    TimeoutError,
)
from processor.sandbox import objects, requests
from processor.sandbox.bounds import UNCONFIGURED
from processor.sandbox.capabilities import refused
from processor.sandbox.heap import Heap, Objects
from processor.sandbox.kernel import Kernel
from processor.sandbox.offer import HeapOffer
from processor.sandbox.wire import Attached

__all__ = [
    "AuthorityKernel", "AuthorityKernelError", "BudgetExceededError", "BufferOverflowError",
    "CapabilityError", "ConflictError", "InvalidArgumentError", "LibakError", "NotFoundError",
    "OperationDeniedError", "OutOfMemoryError", "TimeoutError",
]  # fmt: skip

T = TypeVar("T")
Paths = str | Path | Sequence[str | Path] | None

_CHAIN = "kernel.0"
_RECORD_BYTES = 1 << 20
_UNITS = {
    "heap_bytes": "bytes of objects",
    "heap_objects": "objects",
    "compute": "us of CPU",
    "requests": "requests",
    "tokens": "tokens of models",
}
_DENIALS = ("E325", "E326", "E330", "E331", "E332")
_ALSO = {"memory": "heap_bytes"}


class _Loop:
    """An event loop in a thread of its own, for calls that wait."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="authority-kernel", daemon=True)
        self._thread.start()

    def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Store(Protocol):
    """Where the objects are, and the entries of the audit."""

    async def change(self, act: Callable[[Objects], T]) -> T:
        """What `act` makes of the objects; its changes are kept unless it raises."""

    async def note(self, entry: AuditEntry) -> bool:
        """Keep an entry; False where there is no audit."""

    async def lines(self) -> list[bytes]:
        """Every entry, oldest first."""

    async def verify(self) -> str:
        """What is wrong with the audit; empty where nothing is."""

    async def close(self) -> None: ...


class _Memory:
    """Objects and an audit chain of this process."""

    def __init__(self) -> None:
        self._objects = Objects({})
        self.records: list[AuditRecord] = []
        self._head = GENESIS

    async def change(self, act: Callable[[Objects], T]) -> T:
        try:
            result = act(self._objects)
            self._objects.changes()
        except BaseException:
            self._objects.undo()
            raise
        self._objects.keep()
        return result

    async def note(self, entry: AuditEntry) -> bool:
        made, self._head = chained([entry], _CHAIN, self._head, "", _RECORD_BYTES)
        self.records += made
        return True

    async def close(self) -> None:
        pass

    async def lines(self) -> list[bytes]:
        return [line for record in self.records for line in record.lines]

    async def verify(self) -> str:
        head = GENESIS
        for record in self.records:
            try:
                AuditRecord.decode(record.encoded()).check_follows(head)
            except ValueError as err:
                return f"chain {_CHAIN} breaks at entry {record.first}: {err}"
            head = record.head
        return (
            "" if head == self._head else f"chain {_CHAIN} breaks at entry {head.number}: it is not the last"
        )


class _App:
    """The context of one key of a route, and the audit of its app, on their server."""

    def __init__(self, broker: Broker, config: Config, route: Route, key: str) -> None:
        self._broker = broker
        self._edits = ContextEdits(broker, route)
        self._key = key
        self._chain = Chain(broker, config.app, CONTROL, config.audit.copy_ttl)
        self._is_audited = config.audit_level != "off"
        self._audits = Audits(broker, config)

    @classmethod
    async def connect(cls, config: Config, route: Route, key: str) -> _App:
        """Raises AuthorityKernelError where there is no server, or no app of this name."""
        where = ", ".join(config.nats.url)
        try:
            broker = await Broker.connect(
                connect_options(config.nats), name=f"authority {config.app}", wait=False
            )
        except BrokerError as err:
            raise AuthorityKernelError(f"Kernel connection failed: {where}: {err}", code=err.code) from None
        stream = app_stream(config.app)
        if await broker.stream(stream) is None:
            where = broker.address
            await broker.close()
            what = f"there is no stream {stream} at {where}, for the app {config.app} has not run there"
            raise AuthorityKernelError(
                f"Kernel connection failed: {what}. Start it: processor run {config.path}", code="E401"
            )
        return cls(broker, config, route, key)

    async def change(self, act: Callable[[Objects], T]) -> T:
        results: list[T] = []

        def change(items: Mapping[str, bytes] | None) -> dict[str, bytes]:
            """May be asked for again, where another one has changed the context meanwhile."""
            kept = dict(items or {})
            held = Objects({name: item for name, item in kept.items() if objects.is_item(name)})
            results[:] = [act(held)]
            changed, _ = held.changes()
            after = {**kept, **changed}
            return {name: item for name, item in after.items() if item is not None}

        await self._edits.update(self._key, change, Author(me(), "authority kernel"))
        return results[0]

    async def note(self, entry: AuditEntry) -> bool:
        if self._is_audited:
            await self._chain.append([entry])
        return self._is_audited

    async def lines(self) -> list[bytes]:
        return [orjson.dumps(entry) async for entry in self._audits.entries(AuditFilter())]

    async def verify(self) -> str:
        report = await self._audits.verify([])
        return "; ".join(report.faults[:1])

    async def close(self) -> None:
        await self._broker.close()


@dataclass(slots=True)
class _Budgets:
    """What a script may use until it closes its kernel."""

    limits: dict[str, int]
    requests: int = 0
    tokens: int = 0
    began_s: float = 0.0

    def lower(self, kind: str, limit: int) -> None:
        name = _ALSO.get(kind, kind)
        if name not in _UNITS:
            known = ", ".join([*_UNITS, *_ALSO])
            raise InvalidArgumentError(f"set_budget E337 there is no budget {kind!r}; there are {known}.")
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            raise InvalidArgumentError(f"set_budget E337 a limit is a whole number from 0 on, not {limit!r}.")
        if limit > self.limits.get(name, limit):
            least = self.limits[name]
            raise InvalidArgumentError(
                f"set_budget E337 {kind} is {least:,} already; it can only be lowered."
            )
        self.limits.setdefault(name, limit)
        self.limits[name] = limit
        if name == "compute" and not self.began_s:
            self.began_s = time.process_time()

    def check(self, kind: str, used: int, need: int) -> None:
        """Raise BudgetExceededError where `need` more of a kind would be over its limit."""
        limit = self.limits.get(kind)
        if limit is not None and used + need > limit:
            what = f"{used:,} of {limit:,} {_UNITS[kind]} used this run, and this call may need {need:,}"
            raise BudgetExceededError(f"E332 budget {kind}: {what}.", operation=kind, code="E332")

    def check_time(self) -> None:
        if "compute" in self.limits:
            self.check("compute", round((time.process_time() - self.began_s) * 1e6), 1)


class AuthorityKernel(Kernel):
    """A kernel for a script, until `close`; a context manager.

    `policy` are files, `config` is a configuration file and `route` one of its routes, whose context of `key`
    holds the objects. Raises AuthorityKernelError where its app is not reached: `Kernel connection failed: …`
    with the address and what to do.
    """

    def __init__(
        self,
        policy: Paths = None,
        config: str | Path | None = None,
        route: str | None = None,
        *,
        key: str = "",
    ) -> None:
        self._budgets = _Budgets({})
        self._config, self._route = _configured(config, route)
        self._rules = _rules_of(policy) if policy is not None else self._declared_rules
        self._is_closed = False
        self._loop = _Loop()
        try:
            self._store: _Store = self._loop.wait_for(self._open(key))
        except BaseException:
            self._loop.close()
            raise
        self._calls = HostCalls()
        self._govern()
        self._client: Any = requests.client(self._call)

    @property
    def _declared_rules(self) -> Rules:
        return self._route.policy if self._route else NO_POLICY

    async def _open(self, key: str) -> _Store:
        if self._config is None or self._route is None:
            return _Memory()
        return await _App.connect(self._config, self._route, key)

    def _govern(self) -> None:
        name = self._route.name if self._route else "kernel"
        reach = self._route.reach if self._route else _named_by(self._rules)
        now_us = time.time_ns() // 1000
        self._governor: Governor = self._calls.for_route(reach, Mandate(name, self._rules))
        self._governor.see(dict.fromkeys(self._rules.expiring, now_us))
        self._monitor: Monitor = self._governor.lane()

    def close(self) -> None:
        """Let go of the connections. Idempotent; the objects of a kernel in memory are gone then."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.wait_for(self._calls.close())
            self._loop.wait_for(self._store.close())
            self._loop.close()

    def load_policy(self, path: str | Path | Sequence[str | Path]) -> None:
        """Let these files say what may be done, in place of those that did. Raises InvalidArgumentError with
        every fault in them; then those before stay.
        """
        rules = _rules_of(path)
        self._loop.wait_for(self._calls.close())
        self._rules = rules
        self._govern()

    def set_budget(self, kind: str, limit: int) -> None:
        """Allow at most `limit` of a kind from now on: memory (bytes of objects), heap_objects, requests,
        tokens of models, or compute (microseconds of CPU of this process). A budget can only be lowered.
        """
        self._budgets.lower(kind, limit)

    def authorize_details(self, operation: str, target: str) -> dict[str, Any]:
        self._monitor.begin()
        try:
            said = details(operation, target, self._monitor.verdict, self._missing)
        except ProcessorError as err:
            raise _raised(err, "authorize") from None
        decision = "allow" if said["authorized"] else "deny"
        self._note("authorize", said["operation"], target, decision, said["capability"])
        return said

    def _missing(self, ask: Ask, verdict: Verdict) -> str:
        """What is to be declared for something that the policy does not deny."""
        if self._route is not None:
            return undeclared(ask, self._governor.connections.reach)
        if ask.kind == "heap" or (ask.kind == "http" and verdict.rule):
            return ""
        if ask.kind == "tool":
            return undeclared(ask, self._governor.connections.reach)
        if ask.kind == "http":
            return f"Give a policy to the kernel, with these lines:\n{suggest(self._governor.route, ask)}"
        return f"Give a configuration and a route to the kernel: without one there is no {ask.kind}."

    # The audit.

    def audit_log(self, event: str, data: Any = None) -> bool:
        """Add an entry of your own, with at most 4 KiB of JSON; False where an app has no audit.

        Raises BufferOverflowError.
        """
        try:
            size = len(orjson.dumps(data))
        except TypeError as err:
            raise InvalidArgumentError(f"audit_log E337 the data is not JSON: {err}.") from None
        if size > DATA_BYTES:
            what = f"audit_log E338 the data has {size:,} bytes of JSON; an event takes {DATA_BYTES:,}."
            raise BufferOverflowError(what)
        entry = AuditEntry("user", operation="note", target=str(event), details={"data": data})
        return self._store_entry(entry)

    def audit_logs(self) -> list[bytes]:
        """Every entry as JSON, oldest first; those of an app have the name of their `chain`, too."""
        return self._read(self._store.lines())

    def audit_query(self, query: bytes | Mapping[str, Any] = b"{}") -> list[bytes]:
        """The entries that match: `event` (or `event_type`: heap, heap.alloc or alloc), `actor`, `decision`,
        `since` and `until` (seconds since 1970, or a time), and the last `limit` of them.
        """
        asked = orjson.loads(query) if isinstance(query, bytes) else dict(query)
        if not isinstance(asked, dict):
            raise InvalidArgumentError("audit_query E337 a query is an object.")
        known = ("event", "event_type", "actor", "decision", "since", "until", "limit")
        for name in asked:
            if name not in known:
                what = f"audit_query E337 there is no {name!r} in a query; it takes {', '.join(known)}."
                raise InvalidArgumentError(what)
        found = [line for line in self.audit_logs() if _matches(document_of(line), asked)]
        limit = asked.get("limit")
        return found[-limit:] if isinstance(limit, int) and limit > 0 else found

    def audit_verify(self) -> bool:
        """Whether each entry follows the one before it. Raises AuthorityKernelError that names the first that
        does not.
        """
        if fault := self._read(self._store.verify()):
            raise AuthorityKernelError(f"audit: {fault}", operation="audit_verify")
        return True

    def _read(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return self._loop.wait_for(work)
        except ProcessorError as err:
            raise _raised(err, "audit") from None

    def _store_entry(self, entry: AuditEntry) -> bool:
        entry.moment_us = time.time_ns() // 1000
        entry.actor = f"by:{me()}"
        entry.route = self._governor.route
        entry.policy = self._rules.id
        return self._loop.wait_for(self._store.note(entry))

    def _note(
        self, event: Any, operation: str, target: str, decision: Any, rule: str = "", code: str = ""
    ) -> None:
        method = operation.partition(".")[2] or operation
        self._store_entry(AuditEntry(event, decision, operation=method, target=target, rule=rule, code=code))

    # What a script asks, done by the monitor.

    def _use(self, method: str, target: str, act: Callable[[Any], T]) -> T:
        offer = HeapOffer(
            [[]], self._governor.heap.schemas
        )  # nothing is known to be allowed: the monitor is asked
        name = target if isinstance(target, str) else type(target).__name__

        def change(held: Objects) -> T:
            budgets = self._budgets
            budgets.check_time()
            before, size = len(held), held.changes()[1]
            result = act(Heap(held, offer, self._ask, UNCONFIGURED, lambda: 0))
            grown = held.changes()[1] - size
            if grown > 0:
                budgets.check("heap_bytes", size, grown)
            if len(held) > before:
                budgets.check("heap_objects", before, len(held) - before)
            return result

        try:
            result = self._loop_change(change)
        except AuthorityKernelError as err:
            decision = "deny" if err.code in _DENIALS else "error"
            self._note("heap", method, name, decision, err.rule, err.code)
            raise
        self._note("heap", method, str(result) if method == "alloc" else name, "allow")
        return result

    def _loop_change(self, change: Callable[[Objects], T]) -> T:
        try:
            return self._loop.wait_for(self._store.change(change))
        except ProcessorError as err:
            raise _raised(err, "heap") from None

    def _ask(self, name: str, arguments: dict[str, Any]) -> Any:
        """A call of the heap, within the loop: it waits for nothing, so its coroutine runs to its end."""
        self._monitor.begin()
        work = self._monitor.perform(name, arguments)
        try:
            work.send(None)
        except StopIteration as done:
            return done.value
        except ProcessorError as err:
            raise _raised(err, name) from None
        raise RuntimeError(f"the call {name} waits")

    def _call(self, name: str, arguments: dict[str, Any], body: bytes) -> Any:
        """A call of `requests`: what it brought, as a guest gets it."""
        self._budgets.check("requests", self._budgets.requests, 1)
        self._budgets.requests += 1
        self._monitor.begin()
        try:
            answer = self._loop.wait_for(self._monitor.perform(name, {**arguments, "body": body}))
        except ProcessorError as err:
            raise _raised(err, name) from None
        assert isinstance(answer, Attached)
        return answer.value, answer.body

    def _file(self, op: str, path: str, body: bytes) -> bytes:
        self._monitor.begin()
        try:
            arguments = {"op": op, "path": path, "body": body}
            answer = self._loop.wait_for(self._monitor.perform("file", arguments))
        except ProcessorError as err:
            decision = "deny" if err.code in _DENIALS else "error"
            self._note("file", op, str(path), decision, err.about.rule if err.about else "", err.code)
            raise _raised(err, f"file.{op}") from None
        self._note("file", op, path, "allow")
        assert isinstance(answer, Attached)
        return answer.body

    def _tool(self, name: str, arguments: dict[str, Any]) -> Any:
        is_served = "/" in name
        if is_served:
            self._budgets.check("requests", self._budgets.requests, 1)
            self._budgets.requests += 1
        self._monitor.begin()
        try:
            given = {"name": name, "arguments": arguments}
            answer = self._loop.wait_for(self._monitor.perform("served_tool" if is_served else "tool", given))
        except ProcessorError as err:
            decision = "deny" if err.code in _DENIALS else "error"
            self._note("tool", "execute", name, decision, err.about.rule if err.about else "", err.code)
            raise _raised(err, "tool.execute") from None
        self._note("tool", "execute", name, "allow")
        return answer

    def _infer(self, name: str, arguments: dict[str, Any]) -> Any:
        is_begun = name in ("infer", "infer_stream")
        model = str(arguments.get("model"))
        if is_begun:
            self._budgets.check("requests", self._budgets.requests, 1)
            need = len(orjson.dumps(arguments)) // 4 + (arguments["max_tokens"] or 0)
            self._budgets.check("tokens", self._budgets.tokens, need)
            self._budgets.requests += 1
            self._monitor.begin()
        try:
            answer = self._loop.wait_for(self._monitor.perform(name, arguments))
        except ProcessorError as err:
            decision = "deny" if err.code in _DENIALS else "error"
            self._note("infer", "chat", model, decision, err.about.rule if err.about else "", err.code)
            raise _raised(err, "infer.chat") from None
        if is_begun:
            self._note("infer", "chat", model, "allow")
        for said in (answer, *answer.get("items", ())) if isinstance(answer, dict) else ():
            self._budgets.tokens += said.get("usage", {}).get("total_tokens", 0)
        return answer

    def _request(self, method: str, url: str, **options: Any) -> bytes:
        target = url.partition("?")[0] if isinstance(url, str) else ""
        try:
            answer = self._client.request(method, url, **{k: v for k, v in options.items() if v is not None})
            answer.raise_for_status()
        except AuthorityKernelError as err:
            decision = "deny" if err.code in _DENIALS else "error"
            self._note("http", method.lower(), target, decision, err.rule, err.code)
            raise
        self._note("http", method.lower(), target, "allow")
        return bytes(answer.content)


def _configured(config: str | Path | None, route: str | None) -> tuple[Config | None, Route | None]:
    if config is None:
        if route is not None:
            raise InvalidArgumentError(
                "AuthorityKernel E337 a route is one of a configuration; give config, too."
            )
        return None, None
    try:
        loaded = load(config, needs_secrets=False)
    except Faults as err:
        raise AuthorityKernelError(f"Kernel connection failed: {err}", code=err.faults[0].code) from None
    names = [*loaded.routes]
    if route is None and len(names) == 1:
        route = names[0]
    if route is None or route not in loaded.routes:
        what = f"there is no route {route!r} in {config}; it has {', '.join(names)}"
        raise InvalidArgumentError(f"AuthorityKernel E337 {what}.")
    return loaded, loaded.routes[route]


def _rules_of(paths: Paths) -> Rules:
    listed = [paths] if isinstance(paths, (str, Path)) else list(paths or ())
    try:
        return load_policy_files(listed)
    except Faults as err:
        raise InvalidArgumentError(str(err), code=err.faults[0].code, operation="load_policy") from None


def _named_by(rules: Rules) -> Reach:
    """What a kernel without a configuration reaches: the hosts that lines of its policies allow."""
    hosts = [
        rule.resource.partition("://")[2].partition("/")[0] or rule.resource
        for policy in rules.policies
        for rule in policy.rules
        if rule.kind == "http" and not rule.is_deny
    ]
    outbound = Outbound(allowed_domains=tuple(dict.fromkeys(hosts)))
    return Reach("policy", outbound, tools=tuple(_built_in()))


# The tools of a kernel without a configuration: what examples for that SDK call.
_BUILT_IN = """
def add(a, b):
    return {"result": a + b}


def concat(str1, str2):
    return {"result": str1 + str2}


def echo(message):
    return {"result": message}
"""


def _built_in() -> Iterator[FunctionTool]:
    source = _BUILT_IN.encode()
    for name in ("add", "concat", "echo"):
        yield FunctionTool(
            name, calling(source.decode(), name, "built-in"), hashlib.sha256(source).hexdigest()
        )


def _raised(err: ProcessorError, operation: str) -> AuthorityKernelError:
    """The exception that a refusal is to a script."""
    about = err.about or About(operation, "")
    known = {name: getattr(about, name) for name in ("operation", "target", "rule", "expires_s")}
    return refused(str(err), err.code, remedy=err.remedy, **known)


def _matches(entry: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    event = asked.get("event", asked.get("event_type"))
    names = [entry["e"], entry.get("op"), f"{entry['e']}.{entry.get('op')}"]
    names += [entry.get("on")] if entry["e"] == "user" else []
    if event is not None and event not in names:
        return False
    for name, key in (("actor", "actor"), ("decision", "d")):
        if name in asked and entry.get(key) != asked[name]:
            return False
    since_s, until_s = _moment_s(asked.get("since"), 0.0), _moment_s(asked.get("until"), math.inf)
    return since_s <= int(entry["t"]) / 1e6 <= until_s


def _moment_s(said: Any, otherwise: float) -> float:
    if said is None:
        return otherwise
    if isinstance(said, (int, float)) and not isinstance(said, bool):
        return float(said)
    try:
        return datetime.fromisoformat(str(said)).timestamp()
    except ValueError:
        raise InvalidArgumentError(f"audit_query E337 {said!r} is no moment in time.") from None
