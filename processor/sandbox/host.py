"""The trusted side of the wall: starts the zygote, owns every guest, and believes none of them.

`Zygote` is the clean processes that guests are forked from: one for the dialect, and one for each set of
packages of plain Python. `Guest` is one guest, loaded with one program. The worker calls `run` and `stream`
and gets an Outcome: whatever a guest does (loop, crash, lie, flood) ends in a `Failed` with a code, and at
worst with a dead guest that the worker replaces.

Time and processor use are measured here, never asked for. Every byte from a guest goes through wire.py;
anything unexpected kills the guest. Nothing here interprets a payload, holds a secret, or touches the
broker; capability calls are handed to the `perform` that the caller gave.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import logging
import math
import os
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import IO, Any

import orjson

from processor.errors import Fault, Faults, GuestError, LanguageError
from processor.model import Failed, Failure, Group, Limits, Outcome, Program
from processor.sandbox import processes, wire
from processor.sandbox.calls import Answer, OpenCalls, Perform, RunCalls
from processor.sandbox.clock import RunClock
from processor.sandbox.endings import Ending, OutOfMemoryKills
from processor.sandbox.jail import LEVELS, JailReport
from processor.sandbox.languages import Footing
from processor.sandbox.launch import execute, out_of_descriptors
from processor.sandbox.link import LAST_WORDS_S, Gone, Link, violated
from processor.sandbox.offer import OPEN_HEAP, HeapOffer, Offer, Signature
from processor.sandbox.tally import Tally

log = logging.getLogger("processor")

WEIGH_EVERY_S = 0.1  # a look at a guest's memory takes a tenth of what a small run takes
IDLE_LOOK_S = 5.0  # at what guests use while nothing is asked of them
START_S = 20.0
IMPORT_S = 120.0  # for a zygote that imports packages: some take long, and read a lot from a cold disk
COMPILED_MAX = 2000  # programs, of at most wire.CODE_BYTES each, whose code is kept


_RESTRICTED = Footing("restricted")  # its zygote is there from the start, and tells what jail there is


class Zygote:
    """The processes that guests are forked from. Close it, and every guest of it is gone.

    Programs in the dialect share one process. A language with packages has one for each set of them, which
    is started when a program needs it and ends with `retain` or `close`.
    """

    report: JailReport

    def __init__(self) -> None:
        self._cells: dict[Footing, _Cell] = {}
        self._starting: dict[Footing, asyncio.Lock] = {}
        # More at a time would only queue up in the zygote, with their descriptors in flight.
        self._forking = asyncio.Semaphore(8)
        self._guests: weakref.WeakSet[Guest] = weakref.WeakSet()  # the loop holds those that live
        # As a guest compiled it, before it had seen any message. Only guests of the very same source get it,
        # and they verify it like what they compile themselves.
        self._compiled: dict[Program, bytes] = {}
        self._is_closed = False
        self._looking: asyncio.TimerHandle | None = None

    @classmethod
    async def start(cls) -> Zygote:
        """A zygote that is ready to fork, with the jail's report. Raises GuestError E502."""
        zygote = cls()
        try:
            zygote.report = (await zygote._running_cell(_RESTRICTED)).report
            zygote._look_at_idle()
        except BaseException:
            await zygote.close()
            raise
        return zygote

    async def prepare(self, program: Program) -> str:
        """Start what guests of this program are forked from, unless it is there; returns a sentence about it.

        Raises LanguageError E504 where the jail is too weak for plain Python, E505 where a package is not
        installed or cannot be imported, and GuestError E502.
        """
        return (await self._running_cell(Footing.of(program))).told

    async def retain(self, programs: Iterable[Program]) -> None:
        """End the processes for packages that none of these programs needs, and the guests of them."""
        kept = set(programs)
        self._compiled = {program: code for program, code in self._compiled.items() if program in kept}
        needed = {_RESTRICTED, *map(Footing.of, kept)}
        for footing in [footing for footing in self._cells if footing not in needed]:
            await self._cells.pop(footing).close()

    async def spawn(
        self,
        program: Program,
        limits: Limits,
        *,
        perform: Perform | None = None,
        capabilities: Sequence[Signature] = (),
        secrets: Mapping[str, str] | None = None,
        emits: Sequence[str] = (),
        heap: HeapOffer = OPEN_HEAP,
    ) -> Guest:
        """A guest with `program` loaded. A zygote that died meanwhile is started again.

        `perform` makes its capability calls, and `capabilities` are what it is told that it may call;
        `secrets` are the marks that it knows the route's secrets by; `emits` are the subjects, as patterns,
        that it may emit to. `heap` says whose objects it may use.

        Raises Faults with all that is wrong with the program, GuestError E502 where the machine refuses
        the process, and what `prepare` raises.
        """
        await self.prepare(program)
        cell, guest = await self._fork(Footing.of(program), limits, perform)
        try:
            sealed = await guest._sealed()
            if sealed != cell.sealed:
                raise _no_guest(f"its jail has other layers than at the start: {sealed}")
            offer = Offer(capabilities, secrets or {}, emits, heap)
            code = await guest._load(program, offer, self._compiled.get(program, b""))
        except BaseException:
            await guest.close()
            raise
        if code:
            self._compiled[program] = code
            if len(self._compiled) > COMPILED_MAX:
                del self._compiled[next(iter(self._compiled))]
        return guest

    async def close(self) -> None:
        """Kill every guest and end the zygote; nothing of them remains. Idempotent."""
        self._is_closed = True
        if self._looking is not None:
            self._looking.cancel()
        await asyncio.gather(*(guest.close() for guest in list(self._guests)))
        await asyncio.gather(*(cell.close() for cell in self._cells.values()))

    def _look_at_idle(self) -> None:
        # All at once: a timer for each of a thousand idle guests would cost more than they do.
        for guest in list(self._guests):
            guest.check_idle()
        self._looking = asyncio.get_running_loop().call_later(IDLE_LOOK_S, self._look_at_idle)

    async def _running_cell(self, footing: Footing) -> _Cell:
        async with self._starting.setdefault(footing, asyncio.Lock()):
            if self._is_closed:
                raise _no_guest("the zygote is closed")
            cell = self._cells.get(footing)
            if cell is None or not cell.is_up:
                if cell is not None:
                    await cell.close()
                if self._cells:  # `report` is of the first one
                    _require_jail(footing, self.report)
                self._cells[footing] = cell = await _Cell.launch(footing)
                try:
                    await cell.probe()
                    _require_jail(footing, cell.report)
                except BaseException:
                    await cell.close()
                    raise
            return cell

    async def _fork(self, footing: Footing, limits: Limits, perform: Perform | None) -> tuple[_Cell, Guest]:
        async with self._forking:
            cell = await self._running_cell(footing)
            try:
                guest = await cell.fork(limits, perform)
            except Gone:  # it died since we looked; the next one gets no second chance
                cell = await self._running_cell(footing)
                guest = await cell.fork(limits, perform)
        self._guests.add(guest)
        return cell, guest


def _require_jail(footing: Footing, report: JailReport) -> None:
    needs = footing.needs
    if LEVELS.index(report.level) < LEVELS.index(needs.jail_level):
        raise LanguageError(
            "E504",
            f"{needs.words} needs a jail of level {needs.jail_level}, and this one is {report.level}"
            f" ({report.off})",
            remedy=f"Allow what the layers need, or remove `language: {footing.language}`.",
        )


def _no_guest(why: str) -> GuestError:
    return GuestError(
        "E502",
        f"the guest could not be started: {why}",
        remedy="Guests need Linux 5.4 or newer and a Python that may start processes.",
    )


class _Cell:
    """One life of the zygote's process: the control socket and what is awaited on it."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, errors: IO[bytes]) -> None:
        self.is_up = True
        self.layers: dict[str, str] = {}
        self.sealed: dict[str, str] = {}  # the layers of its guests
        self.told = ""
        self._loop = asyncio.get_running_loop()
        self._process = process
        self._control = control
        self._errors = errors
        self._errors_text = ""
        self._resident_bytes = 0
        self.kills = OutOfMemoryKills.here()
        self._kept = 0
        self._failed: list[str] = []
        self._handle = os.pidfd_open(process.pid)
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._down: asyncio.Future[None] = self._loop.create_future()
        self._orders = 0
        self._forked: dict[int, asyncio.Future[list[int]]] = {}  # descriptors: its process, its channel
        self._endings: dict[int, asyncio.Future[Ending | None]] = {}
        self._loop.add_reader(control, self._readable)
        self._loop.add_reader(self._handle, self._ended)

    @classmethod
    async def launch(cls, footing: Footing) -> _Cell:
        """A zygote's process that is ready to fork. Raises GuestError."""
        began_s = time.monotonic()
        try:
            os.close(os.pidfd_open(os.getpid()))
        except (AttributeError, OSError) as err:
            raise _no_guest(f"{sys.platform} has no process descriptors here ({err})") from err
        with contextlib.ExitStack() as opened:
            try:
                ours, theirs = map(
                    opened.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                )
                errors = opened.enter_context(os.fdopen(os.memfd_create("zygote-errors"), "r+b"))
            except OSError as err:
                raise _no_guest(out_of_descriptors(err)) from err
            ours.setblocking(False)
            try:
                process = execute(theirs.fileno(), footing, errors)
            except OSError as err:
                raise _no_guest(f"{sys.executable}: {err.strerror}") from err
            theirs.close()
            opened.pop_all()  # ours and the errors are the cell's from here on
        cell = cls(process, ours, errors)
        try:
            async with asyncio.timeout(IMPORT_S if footing.packages else START_S):
                await cell._ready
        except (TimeoutError, Gone) as err:
            took_s = time.monotonic() - began_s
            why = cell._last_words() or f"the zygote was not ready after {took_s:.0f} s"
            if footing.packages:
                raise _unusable(", ".join(footing.packages), f"cannot be imported here: {why}", "") from err
            raise _no_guest(why) from err
        finally:
            if not cell.layers:
                await cell.close()
        cell.told = footing.needs.words
        if footing.needs.has_packages:
            cell.told = cell._describe(footing, time.monotonic() - began_s)
        return cell

    def _describe(self, footing: Footing, took_s: float) -> str:
        names = f"packages {', '.join(footing.packages)}" if footing.packages else "no packages"
        failed = f", not loaded: {', '.join(self._failed)}" if self._failed else ""
        return (
            f"{footing.needs.words} with {names}: ready in {took_s:.1f} s, {self._resident_bytes >> 20} MB, "
            f"{self._kept} modules kept{failed}"
        )

    @property
    def report(self) -> JailReport:
        """What the kernel took from this zygote and from its guests."""
        return JailReport.of({**self.layers, **self.sealed})

    async def probe(self) -> None:
        """Learn from a guest that is never loaded which layers a guest gets here."""
        guest = await self.fork(Limits(), None)
        try:
            self.sealed = await guest._sealed()
        finally:
            await guest.close()

    async def fork(self, limits: Limits, perform: Perform | None) -> Guest:
        """A guest that is closing its jail. Raises Gone where the zygote has died."""
        if not self.is_up:
            raise Gone
        self._orders += 1
        order = self._orders
        forked = self._forked[order] = self._loop.create_future()
        ending = self._endings[order] = self._loop.create_future()
        try:
            self._send({"id": order})
            async with asyncio.timeout(START_S):
                try:
                    handle, channel_fd = await forked
                except asyncio.CancelledError:
                    if forked.done() and not forked.cancelled() and forked.exception() is None:
                        for descriptor in forked.result():  # without its channel the guest ends
                            os.close(descriptor)
                    raise
        except TimeoutError as err:
            raise _no_guest(f"the zygote did not fork within {START_S:g} s") from err
        finally:
            del self._forked[order]
        ours = socket.socket(fileno=channel_fd)
        ours.setblocking(False)
        try:
            return Guest(self, order, ours, handle, ending, limits, perform)
        except OSError as err:
            ours.close()
            os.close(handle)
            raise _no_guest(out_of_descriptors(err)) from err

    def kill(self, order: int) -> None:
        """Have the zygote kill a guest that we may not signal: root without CAP_KILL, uid dropped."""
        self._send({"kill": order})

    async def close(self) -> None:
        if self.is_up:
            self._control.shutdown(socket.SHUT_RDWR)
            try:
                async with asyncio.timeout(LAST_WORDS_S):
                    await asyncio.shield(self._down)
            except TimeoutError:
                self._process.kill()
                await self._down

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._control.send(orjson.dumps(message))
        except OSError as err:
            raise Gone from err

    def _readable(self) -> None:
        try:
            message, passed, _, _ = self._control.recvmsg(16384, socket.CMSG_SPACE(8))
        except BlockingIOError:
            return
        except OSError:
            message, passed = b"", []
        if not message:
            self._loop.remove_reader(self._control)
            return
        self._handle_message(
            orjson.loads(message), [fd for item in passed for fd in array.array("i", item[2])]
        )

    def _handle_message(self, message: dict[str, Any], fds: list[int]) -> None:
        if "cell" in message:
            self.layers = message["cell"]
            self._resident_bytes = message["resident"]
            self._kept, self._failed = message.get("kept", 0), message.get("failed", [])
            _settle(self._ready, None)
        elif "unusable" in message:
            if not self._ready.done():
                self._ready.set_exception(_unusable(message["unusable"], message["why"], message["nearest"]))
        elif "forked" in message:
            waiting = self._forked.get(message["forked"])
            if waiting is not None and not waiting.done() and len(fds) == 2:
                waiting.set_result(fds)
                return
            for fd in fds:  # the guest sees its channel close, and ends
                os.close(fd)
            if waiting is not None and not waiting.done():  # the kernel drops what we have no number for
                full = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                waiting.set_exception(_no_guest(out_of_descriptors(full)))
        elif "refused" in message:
            del self._endings[message["refused"]]
            waiting = self._forked.get(message["refused"])
            if waiting is not None and not waiting.done():
                waiting.set_exception(_no_guest(message["why"]))
        else:
            ending = self._endings.pop(message["ended"])
            _settle(ending, Ending(message["exit"], message["resident"] - self._resident_bytes))

    def _ended(self) -> None:
        """The zygote's process has ended: reap it and let go of everything that waits for it."""
        self._readable()  # why it gave up, if it said so
        self.is_up = False
        self._loop.remove_reader(self._handle)
        self._loop.remove_reader(self._control)
        self._process.wait()
        os.close(self._handle)
        self._control.close()
        waiting: list[asyncio.Future[Any]] = [self._ready, *self._forked.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(Gone())
        for ending in self._endings.values():
            _settle(ending, None)
        with self._errors:
            self._errors.seek(0)
            self._errors_text = self._errors.read(1 << 16).decode("utf-8", "replace")
        _settle(self._down, None)

    def _last_words(self) -> str:
        """What the zygote's process said before it gave up; empty where it has not."""
        if self.is_up:
            return ""
        lines = self._errors_text.strip().splitlines() or ["it said nothing"]
        return f"the zygote ended with exit code {self._process.returncode}: {lines[-1][:300]}"


def _unusable(package: str, why: str, nearest: str) -> LanguageError:
    verb = "Install" if "is not installed" in why else "Mend"
    remedy = f"Did you mean {nearest!r}?" if nearest else f"{verb} it, or remove it from `packages`."
    return LanguageError("E505", f"the package {package!r} {why}", package=package, remedy=remedy)


def _settle(future: asyncio.Future[Any], value: object) -> None:
    if not future.done():
        future.set_result(value)


class Guest:
    """A jailed process with one program; it does one run at a time and is never used for another route.

    When it dies (`alive` is False), all its contexts are gone; the caller spawns another and gives them
    again. Cancelling a run kills the guest, for nobody knows how far it has come; so does an `emit` that
    raises what it should not. What `perform` raises is the failure of that one call.
    """

    def __init__(
        self,
        cell: _Cell,
        order: int,
        channel: socket.socket,
        handle: int,
        ending: asyncio.Future[Ending | None],
        limits: Limits,
        perform: Perform | None,
    ) -> None:
        self.warnings: Sequence[Fault] = ()  # about the program that is loaded
        self.manifest: wire.Manifest = {}  # of the nodes that it defines

        def kill_for_us() -> None:
            with contextlib.suppress(Gone):
                cell.kill(order)

        self._link = Link(channel, handle, ending, limits, cell.kills, kill_for_us, self._interrupt)
        self._clock = RunClock(self._link, limits)
        self._limits = limits
        self._perform = perform
        self._emits: Sequence[str] = ()
        self._has_nodes = False
        self._local: Collection[str] = ()  # capabilities whose calls do not leave the host
        self._kills = cell.kills
        self._open: OpenCalls | None = None  # the calls of the run in hand
        self._tally = Tally(limits.context_bytes)
        self._weighed_s = -math.inf
        self._resident_bytes = 0

    # What the worker calls.

    async def run(
        self,
        groups: Sequence[Group],
        *,
        fields: Sequence[str] = (),
        forget: Sequence[str] = (),
        messages: bytes = b"",
        answer: Answer | None = None,
        isolate: bool = False,
    ) -> Outcome:
        """Call `process` once per group, in order; all of it counts, or nothing.

        A program of nodes executes a node for each document instead. Its groups keep nothing, so that with
        `isolate` one that fails is undone alone, and named in `Ran.failed`. A group that is neither there nor
        has an output was not run, because what the run may bring was used up before it: give it again.

        `messages` are `messages.columns` of all documents, where the Runnable is to know them. `answer`
        answers the capability calls, and may do so without making them; what is not made does not count as
        one of the requests that its group may make.
        """
        if isolate and not self._has_nodes:
            raise ValueError("only the groups of a program of nodes can be undone alone")
        request = wire.RunRequest(groups, fields, forget, False, messages, isolate)
        return await self._ask(request, None, answer)

    async def stream(
        self,
        group: Group,
        emit: Callable[[bytes], Awaitable[None]],
        *,
        forget: Sequence[str] = (),
        messages: bytes = b"",
        answer: Answer | None = None,
    ) -> Outcome:
        """Call `process_stream`, awaiting `emit` for every chunk before the next one is read.

        Time spent in `emit` does not count against the guest. `answer` is as in `run`.
        """
        return await self._ask(wire.RunRequest([group], (), forget, True, messages), emit, answer)

    def memory_bytes(self) -> int:
        """The memory that is this guest's own and not shared with the zygote; 0 when it is dead."""
        return processes.private_bytes(self.pid) if self.alive else 0

    @property
    def alive(self) -> bool:
        return self._link.alive

    @property
    def pid(self) -> int:
        return self._link.pid

    @property
    def verdict(self) -> Failure | None:
        """Why the host ended it, where it has."""
        return self._link.verdict

    def check_idle(self) -> None:
        """Kill the guest where it uses the processor while nothing is asked of it (E367)."""
        if self._link.nonce is None and self.alive and (excess := self._clock.idle_excess()) is not None:
            self._link.kill(excess)

    async def close(self) -> None:
        """Kill the guest and wait until it is gone. Idempotent."""
        await self._link.close(Failure("E314", "the guest was closed", lethal=True))

    # What the zygote calls.

    async def _sealed(self) -> dict[str, str]:
        """The layers that the guest's own jail has. Raises GuestError."""
        try:
            async with asyncio.timeout(START_S):
                frame = await self._link.receive()
            if "broken" in frame.header:
                raise _no_guest(wire.read_broken(frame).strip().rpartition("\n")[2])
            layers = wire.read_sealed(frame)
        except (Gone, TimeoutError, wire.Violation) as err:
            failure = await self._link.obituary() if not self.alive else None
            raise _no_guest(failure.text if failure else f"it did not close its jail ({err!r})") from err
        self._end()
        return layers

    async def _load(self, program: Program, offer: Offer, code: bytes) -> bytes:
        """Compile the program, unless `code` is what came of that before, and load it.

        Returns its code where the guest compiled it. Raises Faults.
        """
        self._emits = offer.emits
        self._has_nodes = program.mode == "nodes"
        self._local = frozenset(each.name for each in offer.signatures if not each.is_request)
        self._tally.watch(offer.heap)
        nonce = self._begin()
        try:
            self._link.write(wire.write_load(nonce, program, self._limits, offer, code))
            frame = await self._link.receive()
            self._refuse_broken(frame)
            (faults, self.warnings), compiled = (
                wire.read_loaded(frame, program),
                wire.read_compiled(frame, wire.code_bytes(program)),
            )
            self.manifest = wire.read_manifest(frame, program)
        except wire.Violation as err:
            self._link.kill(violated(err))
            raise Faults([_load_fault(program, await self._link.obituary())]) from err
        except Gone as err:
            raise Faults([_load_fault(program, await self._link.obituary())]) from err
        finally:
            self._end()
        if faults:
            raise Faults(faults)
        return compiled

    # A conversation.

    async def _ask(
        self,
        request: wire.RunRequest,
        emit: Callable[[bytes], Awaitable[None]] | None,
        answer: Answer | None,
    ) -> Outcome:
        if self._link.nonce is not None:
            raise RuntimeError("a guest does one run at a time")
        self._tally.ask(request.groups, request.forget)
        if not self.alive:
            return Failed(await self._link.obituary())
        requests = RunCalls(self._limits, request.groups, answer, self._local)
        started_s = time.perf_counter()
        nonce = self._begin()
        calls = OpenCalls(self._link, nonce, requests, self._limits.calls_at_once, self._perform)
        self._open = calls
        try:
            self._link.write(wire.write_run(nonce, request))
            outcome = await self._converse(request, emit, requests, calls)
            if isinstance(outcome, Failed) and outcome.failure.lethal:
                await self._link.obituary()
        except wire.Violation as err:
            self._link.kill(violated(err))
            outcome = Failed(await self._link.obituary())
        except Gone:
            outcome = Failed(await self._link.obituary())
        except BaseException:
            self._link.kill(Failure("E314", "the run was cancelled", lethal=True))
            raise
        finally:
            self._open = None
            try:
                await calls.close()
            finally:
                self._end()
        wall_s, cpu_s = time.perf_counter() - started_s, self._clock.cpu_spent_s
        return replace(outcome, calls=requests.made, wall_s=wall_s, cpu_s=cpu_s)

    async def _converse(
        self,
        request: wire.RunRequest,
        emit: Callable[[bytes], Awaitable[None]] | None,
        requests: RunCalls,
        calls: OpenCalls,
    ) -> Outcome:
        room_bytes, room_chunks = self._limits.output_bytes, self._limits.outputs * 100
        while True:
            frame = await self._link.receive()
            if "chunk" in frame.header and emit is not None:
                chunk = wire.read_chunk(frame)
                room_bytes, room_chunks = room_bytes - len(chunk), room_chunks - 1
                if room_bytes < 0 or room_chunks < 0:
                    raise wire.Violation("more chunks than the limit")
                await self._emit(chunk, emit)
            elif "call" in frame.header:
                calls.begin(frame)
            elif "cancel" in frame.header:
                calls.cancel(frame)
            else:
                return self._conclude(frame, request, requests, calls)

    def _conclude(
        self, frame: wire.Frame, request: wire.RunRequest, requests: RunCalls, calls: OpenCalls
    ) -> Outcome:
        if self._link.has_more:
            raise wire.Violation("bytes after the end of its answer")
        self._refuse_broken(frame)
        if "failed" in frame.header:
            failed = wire.read_failed(frame, request, self._limits)
            if failed.failure.code in ("E311", "E312"):
                return self._out_of_time(failed)
            if failed.failure.code == "E313":
                # What filled the memory may still be held by the instance; a new guest starts clean.
                text = f"the Runnable used more memory than its limit ({self._limits.memory_mb} MB)"
                failure = replace(failed.failure, text=text, lethal=True)
                self._link.kill(failure)
                return replace(failed, failure=failure)
            self._require_all_read(calls)
            return failed
        self._require_all_read(calls)
        ran = wire.read_ran(frame, request, self._limits, self._emits)
        self._tally.check_heap(request.groups, ran, requests.granted)
        return replace(
            ran,
            contexts=self._tally.change(ran.contexts),
            memory_bytes=self._memory_lately(),
        )

    def _require_all_read(self, calls: OpenCalls) -> None:
        """Raise Violation where the guest ends a run before it has all that it asked for, and will go on."""
        if self._link.unsent:
            raise wire.Violation("an answer to a request that it has not read")
        if calls:
            raise wire.Violation("the end of a run with calls that are open")

    def _memory_lately(self) -> int:
        now_s = time.monotonic()
        if now_s >= self._weighed_s + WEIGH_EVERY_S:
            self._weighed_s = now_s
            self._resident_bytes = processes.resident_bytes(self.pid)
        return self._resident_bytes

    async def _emit(self, chunk: bytes, emit: Callable[[bytes], Awaitable[None]]) -> None:
        with self._clock.held_up():
            await emit(chunk)

    def _refuse_broken(self, frame: wire.Frame) -> None:
        """End a guest whose own runtime failed, and ask for a report."""
        if "broken" in frame.header:
            trace = wire.read_broken(frame)
            text = "the runtime inside the guest failed; this is a fault in Processor, please report it"
            self._link.kill(Failure("E314", text, trace, lethal=True))
            raise Gone

    def _out_of_time(self, failed: Failed) -> Failed:
        """The guest's own timer came first and says which line was running; the sentence is ours."""
        ours = self._clock.too_slow() if failed.failure.code == "E312" else self._clock.too_busy()
        failure = replace(ours, traceback=failed.failure.traceback)
        self._link.kill(failure)
        return replace(failed, failure=failure)

    def _begin(self) -> int:
        """Ask something of the guest: the nonce for it."""
        self._kills.look()
        self._clock.begin()
        return self._link.ask()

    def _end(self) -> None:
        self._link.rest()
        self._clock.end()

    def _interrupt(self) -> None:
        if self._open is not None:
            self._open.interrupt()


def _load_fault(program: Program, failure: Failure) -> Fault:
    return Fault(program.filename, 1, 1, "E206", f"while it was loaded: {failure.text}")
