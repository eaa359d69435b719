"""The jail as a library, without a broker: compile a Runnable and call it.

For people who try a Runnable in a shell or a notebook, for tests, and for programs written against the
original interface (`SecurityConfig`, `SecureRunnableBuilder(config).compile(code).process(queries=...)`).
The code runs in the same zygote and guest as under `processor run`; nothing here is a shortcut through the
wall. No other part of Processor imports this module.

The calls are synchronous; an event loop of its own runs in a thread, started with the first `compile` and
ended with the last Runnable that needs it. A guest that died is replaced at the next call, with the context
of the last call that succeeded.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType, TracebackType
from typing import Any, TypeVar

from processor.address import Allowed, Binding, parse_url
from processor.capability.registry import HostCalls
from processor.config import (
    SECRET_CHARS,
    modules_of,
    read_modules,
    taken,
)
from processor.errors import Fault, Faults, ProcessorError
from processor.model import Emit, Failed, Failure, Group, Limits, Module, Outcome, Program, Ran
from processor.reach import BoundSecret, Outbound, Reach, Stock
from processor.runnable import Message
from processor.sandbox import documents, objects, values
from processor.sandbox.bounds import Bounds, Exceeded
from processor.sandbox.host import Guest, Zygote
from processor.sandbox.messages import columns_of
from processor.subject import check_subject

T = TypeVar("T")
Modules = Mapping[str, str] | str | os.PathLike[str] | None

_FILENAME = "runnable.py"
_KEY = ""  # a library's Runnable has one context


@dataclass(frozen=True)
class SecurityConfig:
    """What a Runnable may use.

    `enable_resource_limits=False` lifts the memory and CPU limits; the jail and `execution_timeout` stay.
    `max_string_length` (characters) and `max_container_length` (items) hold for whatever goes in and comes
    out, the list of documents that `process` is given included. `max_outputs` is for one call of `process`.
    `language="python"` is plain Python, with the installed `packages` that are named.
    `allowed_domains` are the hosts that `requests` and the stock helpers may ask: exact names, `*.suffix`,
    `*` for every public host, or addresses, with `:port` for another one than 80 and 443; none by default.
    The helpers ask the server at `stock_url`. `secrets` holds a pair of value and hosts for each name.
    `emits` are the subjects or patterns that `self.emit` may name, as those of a route; every one by default.
    With `nan_as_null` NaN is null in what is handed over, else an error.
    """

    max_memory_mb: int = 100
    max_cpu_time_seconds: float = 5
    max_requests: int = 50
    max_outputs: int = Limits().outputs
    allowed_domains: Sequence[str] | None = ()
    execution_timeout: float = 10
    max_string_length: int = 1_000_000
    max_container_length: int = 10_000
    enable_resource_limits: bool = True
    language: str = "restricted"
    packages: Sequence[str] = ()
    stock_url: str = "https://www.alphavantage.co"
    secrets: Mapping[str, tuple[str, Sequence[str]]] = field(default_factory=dict, repr=False)
    emits: Sequence[str] = (">",)
    nan_as_null: bool = False

    def __post_init__(self) -> None:
        for name, kinds, least in (
            ("max_memory_mb", (int,), 16),
            ("max_requests", (int,), 0),
            ("max_outputs", (int,), 1),
            ("max_string_length", (int,), 1),
            ("max_container_length", (int,), 1),
            ("max_cpu_time_seconds", (int, float), 0.01),
            ("execution_timeout", (int, float), 0.01),
        ):
            value = getattr(self, name)
            if type(value) not in kinds or not least <= value < math.inf:
                kind = "a whole number" if kinds == (int,) else "a number"
                raise _refused(name, value, f"It is {kind}, {least} or more.")
        if self.language not in ("restricted", "python"):
            raise _refused("language", self.language, "It is 'restricted' or 'python'.")
        if isinstance(self.packages, str) or not all(isinstance(name, str) for name in self.packages):
            raise _refused("packages", self.packages, "It is a list of names.")
        if self.packages and self.language != "python":
            raise _refused("packages", self.packages, "Packages are for language='python'.")
        if type(self.enable_resource_limits) is not bool:
            raise _refused("enable_resource_limits", self.enable_resource_limits, "It is True or False.")
        if type(self.nan_as_null) is not bool:
            raise _refused("nan_as_null", self.nan_as_null, "It is True or False.")
        if isinstance(self.allowed_domains, str):
            raise _refused("allowed_domains", self.allowed_domains, "It is a list of hosts.")
        for domain in self.allowed_domains or ():
            try:
                Allowed.of([domain])
            except (TypeError, ValueError):
                hint = (
                    "An entry is a host, '*.suffix', '*', an address or a network, with ':port' where needed."
                )
                raise _refused("allowed_domains", domain, hint) from None
        for name, secret in self.secrets.items():
            try:
                _bound(name, *secret)
            except (TypeError, ValueError):
                hint = f"It is a pair of a value, of {SECRET_CHARS} characters or more, and its hosts."
                raise _refused("secrets", name, hint) from None
        if isinstance(self.emits, str):
            raise _refused("emits", self.emits, "It is a list of subjects or patterns.")
        for subject in self.emits:
            try:
                check_subject(subject)
            except (AttributeError, TypeError, ValueError) as err:
                raise _refused("emits", subject, f"It is a subject or a pattern: {err}.") from None
        try:
            parse_url(self.stock_url)
        except ValueError:
            hint = "It is a URL such as 'https://www.alphavantage.co'."
            raise _refused("stock_url", self.stock_url, hint) from None

    def program(self, code: str, modules: Modules = None) -> Program:
        """`code` in the language of this configuration, and what it may import. Raises Faults."""
        return Program(
            code,
            _FILENAME,
            self.language,
            tuple(self.packages),
            nan_as_null=self.nan_as_null,
            modules=self._modules(modules) if modules is not None else (),
        )

    def _modules(self, given: Mapping[str, str] | str | os.PathLike[str]) -> tuple[Module, ...]:
        found, problems = modules_of(given) if isinstance(given, Mapping) else read_modules(os.fspath(given))
        problems = [*problems, *taken(found, self.language, self.packages)]
        if problems:
            raise Faults([Fault("modules", 1, 1, code, text) for code, text in problems])
        return found

    def limits(self) -> Limits:
        """These settings as a guest takes them."""
        return Limits(
            memory_mb=self.max_memory_mb if self.enable_resource_limits else 0,
            cpu_s=self.max_cpu_time_seconds if self.enable_resource_limits else math.inf,
            wall_s=self.execution_timeout,
            requests=self.max_requests,
            outputs=self.max_outputs,
            max_string_length=self.max_string_length,
            max_container_length=self.max_container_length,
        )

    def reach(self) -> Reach:
        """What a guest may reach outside with these settings."""
        return Reach(
            "SecurityConfig.allowed_domains",
            Outbound(allowed_domains=tuple(self.allowed_domains or ())),
            Stock(base_url=self.stock_url),
            secrets=tuple(_bound(name, *secret) for name, secret in self.secrets.items()),
            emits=tuple(self.emits),
        )

    def check_stock_host(self) -> None:
        """Raise ProcessorError E325 unless the stock server is among `allowed_domains`, on any port."""
        url = parse_url(self.stock_url)
        for entry in Allowed.of(self.allowed_domains or ()).entries:
            if entry.name == "*" or replace(entry, port=url.port).covers(url):
                return
        remedy = f"Add {url.host!r} to SecurityConfig.allowed_domains."
        raise ProcessorError("E325", f"{url.host} is not an allowed domain", place="stock", remedy=remedy)


def _bound(name: str, value: str, hosts: Sequence[str]) -> BoundSecret:
    if not isinstance(value, str) or len(value) < SECRET_CHARS or isinstance(hosts, str):
        raise ValueError("no secret")
    return BoundSecret(name, value, tuple(map(Binding.parse, hosts)))


def _refused(name: str, value: object, remedy: str) -> ProcessorError:
    return ProcessorError("E104", f"SecurityConfig.{name} is {str(value)[:60]!r}", remedy=remedy)


class RunFailed(ProcessorError):
    """A call of a Runnable failed; `failure` is all that is known, the user's traceback included."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(failure.code, failure.text)


@dataclass(frozen=True)
class Emitted:
    """What a Runnable sent with `self.emit`."""

    subject: str
    document: Any
    delay_s: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)


class SecureRunnableBuilder:
    """Compiles Runnables under one configuration; all of them share a zygote."""

    def __init__(self, config: SecurityConfig | None = None, *, modules: Modules = None) -> None:
        """`modules` are what the Runnables may import: sources by dotted name, or a folder as a route has."""
        self._config = config or SecurityConfig()
        self._modules = modules
        self._engine: _Engine | None = None

    def compile(self, code: str) -> SecureRunnable:
        """The Runnable that `code` defines, loaded in a guest. Raises Faults or GuestError."""
        if self._engine is None or not self._engine.enter():
            self._engine = _Engine()
        try:
            return SecureRunnable(self._engine, self._config.program(code, self._modules), self._config)
        except BaseException:
            self._engine.leave()
            raise


class SecureRunnable:
    """A Runnable in its guest. Its context goes on from call to call, and over a guest's death."""

    def __init__(self, engine: _Engine, program: Program, config: SecurityConfig) -> None:
        self._engine = engine
        self._session = session = _Session(engine, program, config)
        engine.wait_for(session.open())
        self._finish = weakref.finalize(self, engine.leave, session)

    def process(self, queries: Sequence[Any], messages: Sequence[Message] = ()) -> list[Any]:
        """What the Runnable's `process` returns for these documents, as a list. Raises RunFailed.

        `messages` are what it sees as `self.messages`: one for each query, or none. Raises ValueError for any
        other number of them.
        """
        return self._engine.wait_for(self._session.process(queries, messages))

    async def process_async(self, queries: Sequence[Any], messages: Sequence[Message] = ()) -> list[Any]:
        """`process`, for callers in an event loop."""
        return await asyncio.wrap_future(self._engine.begin(self._session.process(queries, messages)))

    def process_stream(self, query: Any, message: Message | None = None) -> Iterator[str]:
        """The chunks of the Runnable's `process_stream`, each before the next is made. Raises RunFailed.

        `message` is what it sees as `self.message`. A caller that stops early gives the call up: its context
        stays as before.
        """
        chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        messages = [] if message is None else [message]
        running = self._engine.begin(self._session.process_stream(query, chunks, messages))
        try:
            while (chunk := self._engine.wait_for(_taken(chunks))) is not None:
                yield chunk.decode()
            running.result()
        finally:
            running.cancel()

    @property
    def context(self) -> Mapping[str, Any]:
        """A read-only copy of the context, as the last call that succeeded left it."""
        items = self._session.items
        kept = {
            name: value
            for name, value in items.items()
            if value != values.TOMBSTONE and not objects.is_item(name)
        }
        return MappingProxyType({name: values.decode(value) for name, value in kept.items()})

    @property
    def heap(self) -> Mapping[str, Mapping[str, Any]]:
        """The objects of `self.heap` by handle: `type`, `version` and `value`, as that call left them."""
        items = self._session.items
        held = {name: value for name, value in items.items() if objects.is_item(name)}
        held.pop(objects.COUNTER, None)
        return MappingProxyType({objects.handle_of(name): values.decode(held[name]) for name in held})

    @property
    def emitted(self) -> list[Emitted]:
        """What the last call that succeeded sent with `self.emit`, in order; it goes nowhere by itself."""
        emits = self._session.emits
        decode = documents.decoder([emit.body for emit in emits])
        return [Emitted(emit.subject, decode(emit.body), emit.delay_s, dict(emit.headers)) for emit in emits]

    def close(self) -> None:
        """End the guest. Idempotent; without it the guest ends with this object."""
        self._finish()

    def __enter__(self) -> SecureRunnable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def _taken(chunks: asyncio.Queue[bytes | None]) -> bytes | None:
    chunk = await chunks.get()
    chunks.task_done()
    return chunk


class _Engine:
    """An event loop in a thread with a zygote in it, for as long as an engine uses it."""

    def __init__(self) -> None:
        self.calls = HostCalls()
        self._zygote: Zygote | None = None
        self._users = 1
        self._changing = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._starting = asyncio.Lock()
        self._thread = threading.Thread(target=self._live, name="sandbox-library", daemon=True)
        self._thread.start()

    def _live(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    def enter(self) -> bool:
        """Use the engine as well; False when it has ended."""
        with self._changing:
            self._users += self._users > 0
            return self._users > 0

    def leave(self, session: _Session | None = None) -> None:
        """Close `session` and use the engine no longer; the last to leave ends it."""
        with self._changing:
            self._users -= 1
            is_last = not self._users
        leaving = self.begin(self._end(session, is_last))
        if threading.current_thread() is self._thread:
            return  # the collector came by in our own loop, which cannot wait for itself
        leaving.result()
        if is_last:
            self._thread.join()

    def begin(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        future = self.begin(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # a Ctrl-C ends the wait, and what was waited for
            raise

    async def zygote(self) -> Zygote:
        async with self._starting:
            if self._zygote is None:
                self._zygote = await Zygote.start()
            return self._zygote

    async def _end(self, session: _Session | None, is_last: bool) -> None:
        if session is not None:
            await session.close()
        if is_last:
            if self._zygote is not None:
                await self._zygote.close()
            await self.calls.close()
            self._loop.call_soon(self._loop.stop)


class _Session:
    """One Runnable's guests, one after the other, and the context that outlives them; lives in the loop."""

    def __init__(self, engine: _Engine, program: Program, config: SecurityConfig) -> None:
        self.items: dict[str, bytes] = {}
        self.emits: Sequence[Emit] = ()
        self._engine = engine
        self._program = program
        self._config = config
        self._bounds = Bounds(config.limits())
        self._governor = engine.calls.for_route(config.reach())
        self._monitor = self._governor.lane()
        self._guest: Guest | None = None
        self._holds_context = False
        self._one_call = asyncio.Lock()

    async def open(self) -> None:
        await self._running_guest()

    async def close(self) -> None:
        if self._guest is not None:
            await self._guest.close()
        await self._governor.close()

    async def process(self, queries: Sequence[Any], messages: Sequence[Message]) -> list[Any]:
        given = [queries] if isinstance(queries, Mapping) else list(queries)
        text = self._written(given, "queries")
        columns = _columns(messages, len(given))
        ran = await self._ask(text, lambda guest, group: guest.run([group], messages=columns))
        bodies = [output.body for output in ran.outputs]
        return list(map(documents.decoder(bodies), bodies))

    async def process_stream(
        self, query: Any, chunks: asyncio.Queue[bytes | None], messages: Sequence[Message]
    ) -> None:
        async def emit(chunk: bytes) -> None:
            await chunks.put(chunk)
            await chunks.join()

        try:
            text = self._written(query, "query")
            columns = _columns(messages, len(query) if isinstance(query, (list, tuple)) else 1)
            await self._ask(text, lambda guest, group: guest.stream(group, emit, messages=columns))
        finally:
            chunks.put_nowait(None)

    def _written(self, document: Any, name: str) -> bytes:
        try:
            return documents.encode(document, name, bounds=self._bounds)
        except Exceeded as err:
            raise RunFailed(Failure(err.code, str(err))) from None

    async def _ask(self, document: bytes, call: Callable[[Guest, Group], Awaitable[Outcome]]) -> Ran:
        async with self._one_call:
            guest = await self._running_guest()
            group = Group(_KEY, [document], None if self._holds_context else self.items)
            self._monitor.begin()
            self._guest = None  # until it has proved to be alive: a call that is given up kills it
            try:
                outcome = await call(guest, group)
            finally:
                await self._monitor.finish()
            if isinstance(outcome, Failed):
                if not outcome.failure.lethal:
                    self._guest, self._holds_context = guest, True
                raise RunFailed(outcome.failure)
            self._guest, self._holds_context = guest, True
            self._keep(outcome)
            return outcome

    def _keep(self, ran: Ran) -> None:
        self.emits = ran.emits
        change = ran.contexts.get(_KEY)
        if change is not None:
            items = {**({} if change.whole else self.items), **change.items}
            self.items = {name: value for name, value in items.items() if value is not None}

    async def _running_guest(self) -> Guest:
        if self._guest is None or not self._guest.alive:
            zygote = await self._engine.zygote()
            self._guest = await zygote.spawn(
                self._program,
                self._config.limits(),
                perform=self._perform,
                capabilities=self._governor.signatures,
                secrets=self._governor.secrets,
                emits=self._config.emits,
                heap=self._governor.heap,
            )
            self._holds_context = False
        return self._guest

    async def _perform(self, name: str, arguments: dict[str, Any]) -> Any:
        if name == "stock":
            self._config.check_stock_host()
        return await self._monitor.perform(name, arguments)


def _columns(messages: Sequence[Message], queries: int) -> bytes:
    if not messages:
        return b""
    if len(messages) != queries:
        raise ValueError(f"{len(messages)} messages for {queries} queries; give one for each, or none")
    return columns_of(messages)
