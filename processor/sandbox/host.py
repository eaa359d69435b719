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

import asyncio
import contextlib
import logging
import math
import os
import time
import weakref
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from processor.errors import Fault, Faults, LanguageError, ProcessorError
from processor.model import Failed, Failure, Group, Limits, Outcome, Program
from processor.sandbox import processes, wire
from processor.sandbox.calls import Answer, OpenCalls, Perform, RunCalls
from processor.sandbox.cells import START_S, Cell, Forked, no_guest, unusable
from processor.sandbox.clock import RunClock
from processor.sandbox.jail import LEVELS, JailReport
from processor.sandbox.languages import Footing
from processor.sandbox.launch import execute, out_of_descriptors
from processor.sandbox.link import Gone, Link, violated
from processor.sandbox.offer import OPEN_HEAP, HeapOffer, Offer, Signature
from processor.sandbox.tally import Tally

log = logging.getLogger("processor")

WEIGH_EVERY_S = 0.1  # a look at a guest's memory takes a tenth of what a small run takes
IDLE_LOOK_S = 5.0  # at what guests use while nothing is asked of them
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
        self._cells: dict[Footing, Cell] = {}
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
        footing = Footing.of(program)
        return _told(footing, await self._running_cell(footing))

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
                raise no_guest(f"its jail has other layers than at the start: {sealed}")
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

    async def _running_cell(self, footing: Footing) -> Cell:
        async with self._starting.setdefault(footing, asyncio.Lock()):
            if self._is_closed:
                raise no_guest("the zygote is closed")
            cell = self._cells.get(footing)
            if cell is None or not cell.is_up:
                if cell is not None:
                    await cell.close()
                if self._cells:  # `report` is of the first one
                    _require_jail(footing, self.report)
                self._cells[footing] = cell = await _launched(footing)
                try:
                    await _probe(cell)
                    _require_jail(footing, cell.report)
                except BaseException:
                    await cell.close()
                    raise
            return cell

    async def _fork(self, footing: Footing, limits: Limits, perform: Perform | None) -> tuple[Cell, Guest]:
        async with self._forking:
            cell = await self._running_cell(footing)
            try:
                guest = await _forked(cell, limits, perform)
            except Gone:  # it died since we looked; the next one gets no second chance
                cell = await self._running_cell(footing)
                guest = await _forked(cell, limits, perform)
        self._guests.add(guest)
        return cell, guest


async def _launched(footing: Footing) -> Cell:
    """A zygote's process for programs of this footing. Raises GuestError E502 and LanguageError E505."""

    def unready(why: str) -> ProcessorError:
        if footing.packages:
            return unusable(", ".join(footing.packages), f"cannot be imported here: {why}", "")
        return no_guest(why)

    start_s = IMPORT_S if footing.packages else START_S
    return await Cell.launch(
        lambda control_fd, errors: execute(control_fd, footing, errors), start_s, unready
    )


def _told(footing: Footing, cell: Cell) -> str:
    """A sentence about a zygote's process."""
    if not footing.needs.has_packages:
        return footing.needs.words
    names = f"packages {', '.join(footing.packages)}" if footing.packages else "no packages"
    failed = cell.brought.get("failed", [])
    not_loaded = f", not loaded: {', '.join(failed)}" if failed else ""
    return (
        f"{footing.needs.words} with {names}: ready in {cell.took_s:.1f} s, {cell.resident_bytes >> 20} MB, "
        f"{cell.brought.get('kept', 0)} modules kept{not_loaded}"
    )


async def _forked(cell: Cell, limits: Limits, perform: Perform | None) -> Guest:
    """A guest that is closing its jail. Raises Gone where the zygote has died."""
    forked = await cell.fork()
    try:
        return Guest(cell, forked, limits, perform)
    except OSError as err:
        forked.channel.close()
        os.close(forked.handle)
        raise no_guest(out_of_descriptors(err)) from err


async def _probe(cell: Cell) -> None:
    """Learn from a guest that is never loaded which layers a guest gets here."""
    guest = await _forked(cell, Limits(), None)
    try:
        cell.sealed = await guest._sealed()
    finally:
        await guest.close()


def _require_jail(footing: Footing, report: JailReport) -> None:
    needs = footing.needs
    if LEVELS.index(report.level) < LEVELS.index(needs.jail_level):
        raise LanguageError(
            "E504",
            f"{needs.words} needs a jail of level {needs.jail_level}, and this one is {report.level}"
            f" ({report.off})",
            remedy=f"Allow what the layers need, or remove `language: {footing.language}`.",
        )


class Guest:
    """A jailed process with one program; it does one run at a time and is never used for another route.

    When it dies (`alive` is False), all its contexts are gone; the caller spawns another and gives them
    again. Cancelling a run kills the guest, for nobody knows how far it has come; so does an `emit` that
    raises what it should not. What `perform` raises is the failure of that one call.
    """

    def __init__(
        self,
        cell: Cell,
        forked: Forked,
        limits: Limits,
        perform: Perform | None,
    ) -> None:
        self.warnings: Sequence[Fault] = ()  # about the program that is loaded
        self.manifest: wire.Manifest = {}  # of the nodes that it defines, or the steps that it names

        def kill_for_us() -> None:
            with contextlib.suppress(Gone):
                cell.kill(forked.order)

        _, channel, handle, ending = forked
        self._link = Link(channel, handle, ending, limits, cell.kills, kill_for_us, self._interrupt)
        self._clock = RunClock(self._link, limits)
        self._limits = limits
        self._perform = perform
        self._emits: Sequence[str] = ()
        self._has_kinds = False
        self._local: Collection[str] = ()  # capabilities whose calls do not leave the host
        self._uncounted: Collection[str] = ()  # and those whose calls go on with another one
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

        A program of nodes, or of steps, executes one for each document instead. Its groups keep nothing, so
        that with `isolate` one that fails is undone alone, and named in `Ran.failed`. A group that is neither
        there nor has an output was not run, because what the run may bring was used up before it: give it
        again.

        `messages` are `messages.columns` of all documents, where the Runnable is to know them. `answer`
        answers the capability calls, and may do so without making them; what is not made does not count as
        one of the requests that its group may make.
        """
        if isolate and not self._has_kinds:
            raise ValueError("only the groups of a program of nodes or steps can be undone alone")
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
                raise no_guest(wire.read_broken(frame).strip().rpartition("\n")[2])
            layers = wire.read_sealed(frame)
        except (Gone, TimeoutError, wire.Violation) as err:
            failure = await self._link.obituary() if not self.alive else None
            raise no_guest(failure.text if failure else f"it did not close its jail ({err!r})") from err
        self._end()
        return layers

    async def _load(self, program: Program, offer: Offer, code: bytes) -> bytes:
        """Compile the program, unless `code` is what came of that before, and load it.

        Returns its code where the guest compiled it. Raises Faults.
        """
        self._emits = offer.emits
        self._has_kinds = program.has_kinds
        self._local = frozenset(each.name for each in offer.signatures if not each.is_request)
        self._uncounted = frozenset(each.name for each in offer.signatures if not each.is_counted)
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
        requests = RunCalls(self._limits, request.groups, answer, self._local, self._uncounted)
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
