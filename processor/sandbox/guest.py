"""The hostile side of the wall: the zygote that guests are forked from, and what a guest does.

`zygote` is the process that the host executes with a clean slate: it imports everything a guest will need,
closes itself into a cell (jail.py) and then only forks, one guest ahead of the orders (nursery.py). A
forked guest seals itself, reads its program from the one descriptor it has, compiles it unless another guest
of the same source has, loads it, and answers requests until the channel closes. Nobody imports this module
but that process.

User code runs only inside `Runner._user`. A run is all or nothing: until the reply is written every context
it touched can be undone. The tripwire is armed from the seal on, but for the few calls of our own that it
would mistake for an escape. Nothing here is trusted by the host.
"""

from __future__ import annotations

import marshal
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from types import CodeType, FrameType, TracebackType
from typing import Any, NoReturn

from processor.errors import Fault, Faults
from processor.model import SAFE_TOKEN, WHOLE_BYTES, ContextChange, Failure, Group, HeapOp, Limits, Program
from processor.sandbox import (
    capabilities,
    documents,
    entrypoints,
    jail,
    modules,
    objects,
    requests,
    values,
    wire,
)
from processor.sandbox.bounds import Bounds, Exceeded
from processor.sandbox.channel import Channel, GuestCalls
from processor.sandbox.facades import deadlines, look_within, set_deadlines, wait_by
from processor.sandbox.heap import Heap, Objects
from processor.sandbox.kernel import GuestKernel
from processor.sandbox.languages import NEEDS, Language, Runtime, Unusable
from processor.sandbox.messages import InHand
from processor.sandbox.nodes import NodeKit, NodeRunner
from processor.sandbox.nursery import Nursery, keep_heap, open_control, tell, tend
from processor.sandbox.offer import OPEN_HEAP
from processor.sandbox.plain import PlainPython
from processor.sandbox.reasons import Reasons, out_of_memory
from processor.sandbox.restricted import Restricted
from processor.sandbox.results import GuestLog, Results, Unsuccessful, Writer, failed
from processor.sandbox.steps import StepKit, StepRunner
from processor.sandbox.turns import HAS_GREENLETS, Turns

EXIT_BROKEN = 70
BOUNDS_OF_RUN = frozenset(("E307", "E324"))  # of what all its groups bring together
RESTRICTED = Restricted()
LANGUAGES: dict[str, Language] = {language.name: language for language in (RESTRICTED, PlainPython())}


# The zygote.


def zygote(control_fd: int, name: str, packages: Sequence[str]) -> NoReturn:
    """Fork a guest for every order that arrives on the control socket; end when it closes.

    The guests run programs in the language of that name, and may import these packages.
    """
    language = LANGUAGES[name]
    control, woken, wake = open_control(control_fd)
    keep_heap()
    _warm_up()
    try:
        brought = language.prepare(packages)
    except Unusable as err:
        tell(control, {"unusable": err.package, "why": err.why, "nearest": err.nearest})
        os._exit(0)
    # Not ru_maxrss: that still holds the size of the process that executed us.
    baseline, resident = jail.memory_in_use()
    layers = jail.enter_cell()
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    guest = Runner(Channel(), Tripwire(), language)
    tend(control, woken, {"cell": layers, "resident": resident, **brought}, Nursery(control, baseline, guest))


def _warm_up() -> None:
    """Go once through what every guest does first, so that its modules and pages are there to share."""
    RESTRICTED.warm_up(capabilities.GuestRunnable)
    documents.encode(documents.decoder(())(b'[1, 2.5, null, "x", {"a": true}]'), "output")
    values.Keeper().overlay({"warm": values.encode(["up"])})
    jail.prepare()


def _drop(_: object) -> None:
    pass


class Tripwire:
    """Ends the guest at the first thing that only code which broke out of the dialect would do.

    An audit hook cannot be removed. It costs nothing while nothing happens, and it is not the boundary:
    it turns a loss of the language layer into a dead guest with a name for the cause.
    """

    _EVENTS = frozenset(
        (
            "open", "exec", "compile", "import", "code.__new__", "function.__new__", "object.__getattr__",
            "object.__setattr__", "object.__delattr__", "sys._getframe", "sys._current_frames",
            "sys._getframemodulename", "sys.addaudithook", "sys.excepthook", "sys.setprofile",
            "sys.settrace", "builtins.input", "builtins.breakpoint",
            "pickle.find_class", "marshal.loads", "marshal.dumps", "marshal.load", "signal.pthread_kill",
            "resource.prlimit",
        )
    )  # fmt: skip
    _FAMILIES = (
        "os.", "socket.", "subprocess.", "ctypes.", "shutil.", "mmap.", "fcntl.", "gc.", "cpython.",
        "tempfile.", "pty.", "syslog.", "urllib.", "http.", "glob.", "pathlib.", "sqlite3.",
        "webbrowser.", "setopencodehook",
    )  # fmt: skip

    def __init__(self) -> None:
        # A list, not attributes: the hook must keep working whatever becomes of this object.
        self._state = [False, 0]  # armed, number of `exec` events to let pass
        sys.addaudithook(self._hook(self._state))

    @classmethod
    def _hook(cls, state: list[int]) -> Callable[[str, object], None]:
        events, families, leave, code = cls._EVENTS, cls._FAMILIES, os._exit, jail.EXIT_TRIPWIRE

        def hook(event: str, _: object) -> None:
            if not state[0]:
                return
            if event == "exec" and state[1]:
                state[1] -= 1
            elif event in events or event.startswith(families):
                leave(code)

        return hook

    def arm(self) -> None:
        self._state[0] = True

    @contextmanager
    def disarmed(self) -> Iterator[None]:
        before, self._state[0] = self._state[0], False
        try:
            yield
        finally:
            self._state[0] = before

    def run_module(self, code: CodeType, space: dict[str, Any]) -> None:
        """`exec(code, space)`, with the tripwire armed for all that the code does."""
        self._state[1] = 1
        exec(code, space)


def _unkeepable(err: ValueError) -> Unsuccessful:
    return failed(err.code if isinstance(err, Exceeded) else "E309", str(err))


class HeldContext:
    """One key's context, and the instance that works on it once a message needed one."""

    def __init__(
        self, given: Mapping[str, bytes], bounds: Bounds, open_heap: Callable[[Objects], Heap]
    ) -> None:
        """`open_heap` gives user code the use of its objects."""
        self.instance: Any = None
        self._open_heap = open_heap
        self._given = given
        self._bounds = bounds
        self._keeper: values.Keeper  # with the instance
        self._heap: Mapping[str, bytes] = objects.items_in(given)
        self._heap_bytes = sum(values.weight(name, value) for name, value in self._heap.items())
        self._objects: Objects | None = None  # once a run has used them
        size = sum(len(name.encode()) + len(value) for name, value in given.items())
        self._was_small = size <= WHOLE_BYTES

    def instantiate(self, make: Callable[[HeldContext, values.LiveContext], Any]) -> None:
        """Make the instance, with the committed items laid over what its init() set."""
        self._keeper = values.Keeper(self._bounds)
        instance = make(self, self._keeper.context)
        given = self._given
        if self._heap:
            given = {name: value for name, value in given.items() if name not in self._heap}
        try:
            self._keeper.overlay(given)
        except ValueError as err:
            raise _unkeepable(err) from None
        self.instance, self._given = instance, {}

    def heap(self) -> Heap:
        """What user code has of its objects."""
        if self._objects is None:
            self._objects = Objects(self._heap)
        return self._open_heap(self._objects)

    @property
    def ops(self) -> Iterable[HeapOp]:
        """What the run did to them."""
        return self._objects.touched.values() if self._objects is not None else ()

    def change(self, limit_bytes: int) -> ContextChange | None:
        """What the run did, staged until `keep` or `undo`."""
        if self.instance is None:
            return None
        try:
            items, size = self._keeper.changes()
        except ValueError as err:
            raise _unkeepable(err) from None
        if self._objects is not None:
            changed, heap_bytes = self._objects.changes()
            items, size = {**items, **changed}, size + heap_bytes
        else:
            size += self._heap_bytes
        if size > limit_bytes:
            raise failed("E310", f"the context holds {size} bytes (limit {limit_bytes})")
        if not items:
            return None
        if size > WHOLE_BYTES and not self._was_small:
            return ContextChange(items, False, size)
        heap = self._objects.all_items() if self._objects is not None else self._heap
        every = self._keeper.all_items()
        change = ContextChange({**every, **heap} if heap else every, True, size)
        try:
            for name in () if change.is_small else change.items:
                values.check_name(name)
        except ValueError as err:
            raise _unkeepable(err) from None
        return change

    def keep(self, change: ContextChange | None) -> None:
        """The change is on its way to the host: it is the ground for the next run."""
        if self.instance is not None:
            self._keeper.keep()
        if self._objects is not None:
            self._objects.keep()
        if change is not None:
            self._was_small = change.is_small

    def undo(self) -> None:
        """Be as before the run."""
        if self.instance is not None:
            self._keeper.undo()
        if self._objects is not None:
            self._objects.undo()


class CurrentGroup:
    """The group whose code runs, with all that a guest knows of it: others may run before it ends."""

    def __init__(self, results: Results, in_hand: InHand) -> None:
        self.number: int | None = None  # whose failure one of the run would be; None where it is of no group
        self._results = results
        self._in_hand = in_hand
        self._kernel_of = GuestKernel.in_hand

    def enter(self, number: int) -> None:
        """What runs from now on is this group's."""
        self.number = number
        self._results.enter(number)
        self._in_hand.enter(number)

    def leave(self) -> tuple[Any, ...]:
        """What is known of it, its number first, for `come_back`: others come before it goes on."""
        [instance] = self._kernel_of
        bounding = deadlines()
        set_deadlines()
        return self.number, instance, bounding, self._results.leave(), self._in_hand.leave()

    def come_back(self, known: tuple[Any, ...]) -> None:
        """The group that was left goes on."""
        self.number, self._kernel_of[0], bounding, of_results, of_messages = known
        set_deadlines(bounding)
        self._results.come_back(of_results)
        self._in_hand.come_back(of_messages)


class Runner:
    """One Runnable at work: its program, its instances, and the bookkeeping of the run in hand.

    The zygote makes one and forks: what is made there is shared, and what a guest makes is its own memory.
    """

    def __init__(self, channel: Channel, tripwire: Tripwire, language: Language) -> None:
        self._channel = channel
        self._memory: jail.MemoryLimit  # from its life on
        self._tripwire = tripwire
        self._language = language
        self._limits = Limits()
        self._program = Program("", "")
        self._cls: type[capabilities.GuestRunnable] = capabilities.GuestRunnable
        self._logger: Any = None
        self._calls = GuestCalls(channel)
        self._requests: Any = requests.client(self._calls.call)
        self._files = capabilities.Files(self._calls.call)
        self._tools = capabilities.Tools(self._calls.call)
        self._secrets = capabilities.Secrets({})
        self._heap_offer = OPEN_HEAP
        self._kernel_of = GuestKernel.in_hand
        self._streams_a_list = False
        self._entry_points: frozenset[str] = frozenset()
        self._warnings: list[Fault] = []
        self._is_loading = True
        self._in_hand = InHand()
        self._held: dict[str, HeldContext] = {}
        self._log = GuestLog(language.end_lines)
        self._writer: Writer  # from the load of the program on, as are its results
        self._results: Results
        self._reasons = Reasons(language, tripwire.disarmed)
        look_within(tripwire.disarmed)
        wait_by(self._calls.let_others_run)
        models = language.models()
        self._kit = NodeKit(models) if models else None
        self._steps = StepKit(self._log.write, has_coroutines=language.finish is not None)
        self._nodes: NodeRunner | StepRunner | None = None  # of a program that has nodes or steps
        self._runtime = Runtime(
            capabilities.GuestRunnable,
            self._log.write,
            self._requests,
            self._reasons.describe,
            self._calls,
            self._kit,
            self._steps,
        )
        # What the program finds around it, where that can be made before there is one.
        self._space = language.namespace(self._runtime) if language.is_preparable else {}

    def live(self, channel_fd: int, parent: int, memory: jail.MemoryLimit, *, is_ahead: bool) -> NoReturn:
        """The whole life of a guest, from the fork to its last exit."""
        self._memory = self._reasons.memory = memory
        tripwire, channel = self._tripwire, self._channel
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if channel_fd != jail.CHANNEL_FD:
                os.dup2(channel_fd, jail.CHANNEL_FD)
            sys.unraisablehook = _drop  # a generator that resists close() is no news for anyone
            self._language.reseed()  # the zygote's random numbers are every guest's: fork copied them
            for timer in (signal.SIGALRM, signal.SIGPROF):
                signal.signal(timer, self.out_of_time)
            layers = jail.seal(memory, parent)
            state = f"off({NEEDS[self._language.name].words})"
            if self._language.is_watched:
                tripwire.arm()
                state = "on"
            channel.send(wire.write_sealed({**layers, "tripwire": state}))
            if is_ahead:
                with tripwire.disarmed():  # what it touches is then its own: half of what loading costs
                    self._language.rehearse(self._space)
            self.load(channel.receive())
            while True:
                self.serve(channel.receive())
        except MemoryError:
            channel.send(wire.write_failed(channel.nonce, out_of_memory(memory), []))
        except BaseException:  # a wall: user code cannot get here, so this is a fault of ours
            with tripwire.disarmed():
                channel.send(wire.write_broken(channel.nonce, traceback.format_exc()))
        finally:
            os._exit(EXIT_BROKEN)

    # Loading.

    def load(self, frame: wire.Frame) -> None:
        """Compile and run the program's module level; say what is wrong with it, or that it is loaded."""
        self._program, self._limits = wire.read_load(frame)
        self._reasons.program = self._program
        self._memory.allow(self._limits.memory_mb)
        self._memory.for_runtime()
        offer = wire.read_offer(frame)
        capabilities.offer(offer.signatures)
        self._secrets = capabilities.Secrets(offer.marks)
        self._heap_offer = offer.heap
        self._log.limits = self._limits
        self._writer = Writer(self._program, self._limits)
        self._results = Results(self._limits, self._writer, offer.emits, self._memory, self._in_hand)
        self._current = CurrentGroup(self._results, self._in_hand)
        self._turns = Turns(self._calls, self._current.leave, self._current.come_back)
        _start_timers(self._limits)
        compiled = b""
        try:
            compiled = self._load(wire.read_code(frame))
            faults: list[Fault] = []
        except Faults as err:
            faults = err.faults
        except Unsuccessful as err:
            code, text = err.fault
            faults = [Fault(*err.place, 1, code, text or err.failure.text)]
        _stop_timers()
        self._is_loading = False
        self._calls.allow(self._limits, self._memory, self._writer.bounds, self._results)
        self._channel.send(
            wire.write_loaded(
                self._channel.nonce,
                faults,
                compiled,
                self._warnings,
                self._program.sources,
                self._nodes.manifest if self._nodes and not faults else self._no_manifest,
            )
        )

    @property
    def _no_manifest(self) -> wire.Manifest | None:
        """What stands in place of one where the program is not loaded, or none of nodes."""
        return {} if self._program.has_kinds else None

    def _load(self, given: bytes) -> bytes:
        """Run the module level; what was compiled for that, where it is for other guests, too."""
        program, language = self._program, self._language
        with self._tripwire.disarmed():
            codes = modules.read_codes(given, program, language) or modules.compile_all(program, language)
            compiled = marshal.dumps(codes) if language.is_preparable and not given else b""
            space = self._space or language.namespace(self._runtime)
            ours = self._steps.modules() if program.mode == "steps" else {}
            modules.bring(program, codes, language, space, self._tripwire.run_module, ours)
        self._logger = space["logger"]
        self._user(self._tripwire.run_module, codes[0], space)
        if program.has_kinds:
            self._load_nodes(space)
            return compiled if len(compiled) <= wire.code_bytes(program) else b""
        with self._tripwire.disarmed():
            self._cls = language.runnable_class(space, program)
            entrypoints.check(self._cls, program)
            self._entry_points = entrypoints.entry_points(self._cls)
            self._warnings = entrypoints.warnings(self._cls, program)
            self._streams_a_list = entrypoints.first_parameter(self._cls, "process_stream") == "queries"
        return compiled if len(compiled) <= wire.code_bytes(program) else b""

    def _load_nodes(self, space: dict[str, Any]) -> None:
        finish = self._language.finish
        nodes: NodeRunner | StepRunner
        if self._program.mode == "steps":
            nodes = StepRunner(self._program, self._reasons, finish)
        else:
            assert self._kit is not None  # what a program of nodes is forked from has models
            nodes = NodeRunner(self._kit, self._program, self._reasons, finish)
        self._nodes = nodes
        self._user(nodes.learn, space)
        with self._tripwire.disarmed():
            nodes.check()
        nodes.begin(self._voice(_no_heap), self._secrets, self._writer)

    # Running.

    def serve(self, frame: wire.Frame) -> None:
        """Answer one request for a run; whatever user code does, exactly one reply ends it."""
        request = wire.read_run(frame)
        self._results.begin(len(request.groups), isolate=request.isolate)
        self._calls.begin_run()
        self._in_hand.begin(request.messages, request.groups)
        self._current.number = None
        set_deadlines()
        keyed = request.groups if self._nodes is None else ()  # nodes keep nothing
        for key in request.forget:
            self._held.pop(key, None)
        for group in keyed:
            if group.context is not None:
                self._held[group.key] = HeldContext(group.context, self._writer.bounds, self._open_heap)
        _start_timers(self._limits)
        try:
            self._run_groups(request)
            self._calls.drain()
            changes = self._changes(keyed)
            self._current.number = None
            reply = self._reply(changes)
        except (Unsuccessful, MemoryError) as err:
            failure = err.failure if isinstance(err, Unsuccessful) else out_of_memory(self._memory)
            for group in keyed:
                self._held[group.key].undo()
            self._calls.drain()
            reply = wire.write_failed(self._channel.nonce, failure, self._log.take(), self._current.number)
        else:
            for key in {group.key for group in keyed}:
                self._held[key].keep(changes.get(key))
        _stop_timers()
        self._results.begin(0)
        self._channel.send(reply)

    def _run_groups(self, request: wire.RunRequest) -> None:
        queues: dict[str, list[int]] = {}
        if HAS_GREENLETS and self._calls.most > 1 and self._nodes is None:
            for number, group in enumerate(request.groups):
                queues.setdefault(group.key, []).append(number)
        if len(queues) > 1:
            self._turns.run(queues.values(), partial(self._run_one, request))
            self._results.put_in_order()
            return
        for number in range(len(request.groups)):
            if not self._run_one(request, number):
                return

    def _run_one(self, request: wire.RunRequest, number: int) -> bool:
        """Run a group, whose failure is its own where each is undone alone; False where it found no room."""
        self._current.enter(number)
        before = self._results.mark() if request.isolate else None
        try:
            self._run_group(request.groups[number], request)
            if self._results.spoiled is not None:
                raise self._results.spoiled
        except Unsuccessful as err:
            if before is None or err.failure.code == "E313":
                raise  # what filled the memory may still be held
            self._results.back_to(before)
            if err.failure.code in BOUNDS_OF_RUN and not before.is_empty:
                return False
            self._results.undo(err.failure)
        return True

    def _run_group(self, group: Group, request: wire.RunRequest) -> None:
        if self._nodes is not None:
            self._execute(self._nodes, group.documents)
            return
        queries = self._decode(group)
        if not queries:
            return
        entry = entrypoints.ENTRY_POINTS["stream" if request.stream else "batch"]
        if not self._program.mode and self._entry_points and entry not in self._entry_points:
            raise failed("E207", f"{self._program.class_name} has no `{entry}`, which this call is for")
        held = self._held[group.key]
        if held.instance is None:
            held.instantiate(self._make)
        instance = self._kernel_of[0] = held.instance
        if request.stream:
            self._stream(instance, queries)
        else:
            self._process(instance, queries, request.fields)

    def _decode(self, group: Group) -> list[Any]:
        queries: list[Any] = []
        decode, bounds = documents.decoder(group.documents), self._writer.bounds
        for index, text in enumerate(group.documents):
            try:
                document = decode(text)
                if len(text) > bounds.harmless_bytes and bounds.may_be_exceeded(text):
                    self._writer.bounds_for(document).check(document, "the message")
            except (ValueError, RecursionError) as err:
                self._results.brought.rejected.append(
                    (self._results.group, index, *documents.unreadable(err))
                )
                self._in_hand.spread(index, 0)
                continue
            if isinstance(document, list):
                queries += document
                self._in_hand.spread(index, len(document))
            else:
                queries.append(document)
        return queries

    def _execute(self, nodes: NodeRunner | StepRunner, documents: Sequence[bytes]) -> None:
        for text in documents:
            document = nodes.read(text)
            try:
                result, store = self._user(nodes.execute, document)
            except Unsuccessful as err:
                result, store = nodes.raised(err, document)
            body = self._encode(nodes.write, result, store)
            if (excess := self._results.add_output(body)) is not None:
                raise excess

    def _voice(self, heap: Callable[[], Any]) -> capabilities.Voice:
        return capabilities.Voice(
            self._calls.call,
            self._results.emit,
            self._results.event,
            self._logger,
            self._requests,
            self._secrets,
            self._files,
            self._tools,
            self._in_hand,
            heap,
            self._language.awaited,
        )

    def _make(self, held: HeldContext, context: values.LiveContext) -> Any:
        voice = self._voice(held.heap)
        self._in_hand.is_making = True
        try:
            instance = self._user(capabilities.make, self._cls, context, voice)
            self._user(entrypoints.init, instance, self._language.finish)
        finally:
            self._in_hand.is_making = False
        return instance

    def _open_heap(self, held: Objects) -> Heap:
        begin = self._results.heap_group
        return Heap(held, self._heap_offer, self._calls.call, self._writer.bounds, begin)

    def _process(self, instance: Any, queries: list[Any], fields: Sequence[str]) -> None:
        made = self._user(entrypoints.process, instance, queries, self._language.finish)
        # What goes on after an output may change it: that one is written before the next is asked for.
        is_lazy = isinstance(made, Iterator)
        written = []
        for index, document in enumerate(self._snapshots(made) if is_lazy else made):
            if document is None:
                continue
            body = self._encode(self._writer.write, document, "output", index)
            if (excess := self._results.add_output(body)) is not None:
                if is_lazy:
                    self._give_up(made)
                raise excess
            if fields and is_lazy:
                self._results.brought.tokens += self._user(_tokens, [document], fields)
            elif fields:
                written.append(document)
        if written:
            self._results.brought.tokens += self._user(_tokens, written, fields)

    def _drawn(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """What the iterator of a user's has, one by one."""
        while (item := self._user(next, iterator, entrypoints.END)) is not entrypoints.END:
            yield item

    def _snapshots(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """The same, but many at a time of what can no longer change: to and fro costs more."""
        flat: list[Any] = []
        item: Any = entrypoints.MORE
        while item is not entrypoints.END:
            item = self._user(entrypoints.draw, iterator, flat)
            yield from flat
            flat.clear()
            if item is not entrypoints.MORE and item is not entrypoints.END:
                yield item

    def _give_up(self, iterator: Iterator[Any]) -> None:
        with suppress(Unsuccessful):  # what it says to being closed is not why the run fails
            self._user(entrypoints.close, iterator)

    def _stream(self, instance: Any, queries: list[Any]) -> None:
        sent = 0
        for index, argument in enumerate([queries] if self._streams_a_list else queries):
            if not self._streams_a_list:
                self._in_hand.single_out(index)
            chunks = self._user(entrypoints.process_stream, instance, argument, self._language.finish)
            for chunk in self._drawn(chunks):
                if chunk is None:
                    continue
                sent += 1
                body = self._encode(self._writer.write_chunk, chunk, sent)
                if (excess := self._results.count_chunk(body, sent)) is not None:
                    self._give_up(chunks)
                    raise excess
                self._channel.send_off_the_clock(wire.write_chunk(self._channel.nonce, body))

    def _encode(self, write: Callable[..., bytes], *arguments: Any) -> bytes:
        """What `write` makes of a document of the user's; whatever goes wrong is the run's failure."""
        try:
            return write(*arguments)
        except Unsuccessful:
            raise
        except Exceeded as err:
            raise failed(err.code, str(err)) from None
        except documents.Unwritable as err:
            raise failed("E306", str(err)) from None
        except BaseException as err:  # a wall: the document's class is the user's, and so is its code
            raise Unsuccessful(self._reasons.failure(err)) from None

    def _changes(self, groups: Sequence[Group]) -> dict[str, ContextChange]:
        changes = {}
        only: dict[str, int | None] = {}  # by key, its group where it has one alone
        for number, group in enumerate(groups):
            only[group.key] = None if group.key in only else number
        for key, self._current.number in only.items():
            held = self._held[key]
            change = held.change(self._limits.context_bytes)
            if held.ops:
                self._results.brought.heap += held.ops
            if change is not None:
                changes[key] = change
        return changes

    def _reply(self, changes: Mapping[str, ContextChange]) -> bytes:
        most = wire.reply_bytes(self._limits)
        try:
            reply = wire.write_ran(self._channel.nonce, self._results.brought, changes, self._log.take())
        except ValueError as err:
            raise failed("E307", f"the result of the run cannot be carried: {err}") from None
        if len(reply) > most:
            raise failed("E307", f"the result of the run is {len(reply)} bytes long (limit {most})")
        return reply

    # Where user code runs, and what it reaches of us.

    def _user(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call user code under its memory limit; whatever it raises becomes the run's failure."""
        self._memory.for_user()
        try:
            return function(*arguments)
        except Unsuccessful:
            raise
        except BaseException as err:  # a wall: nothing that user code raises gets past here
            self._memory.for_runtime()
            failure, place = self._reasons.failure(err), self._reasons.place(err)
            if self._is_loading:
                raise Unsuccessful(failure, place, self._reasons.fault(err)) from None
            raise Unsuccessful(failure, place) from None
        finally:
            self._memory.for_runtime()

    # Time.

    def out_of_time(self, number: int, frame: FrameType | None) -> None:
        """Say which line was running when the time was up, and end."""
        if self._channel.is_writing:
            return  # half a frame is out; the host's own clock decides
        self._memory.for_runtime()
        kind, code, limit_s = ("CPU", "E311", self._limits.cpu_s)
        if number == signal.SIGALRM:
            kind, code, limit_s = ("wall", "E312", self._limits.wall_s)
        err = TimeoutError(f"more than {limit_s:g} s of {kind} time").with_traceback(_trace_of(frame))
        if self._is_loading:
            fault = Fault(*self._reasons.place(err), 1, "E206", f"while it was loaded: {err}")
            loaded = wire.write_loaded(
                self._channel.nonce, [fault], files=self._program.sources, manifest=self._no_manifest
            )
            self._channel.send(loaded)
        else:
            group = self._current.number
            if (standing := self._turns.longest) is not None:
                (group, *_), frame = standing
                err = err.with_traceback(_trace_of(frame))
            with self._tripwire.disarmed():
                text, shown = self._reasons.describe(err)
            failure = Failure(code, text, shown)
            self._channel.send(wire.write_failed(self._channel.nonce, failure, self._log.take(), group))
        os._exit(0)


def _no_heap() -> NoReturn:
    raise RuntimeError("a node keeps nothing: what is to last is in self.store, or in its outputs")


def _start_timers(limits: Limits) -> None:
    # The host measures and kills by its own clocks. These come first where they can, because only the
    # guest can say which line of the user's was running.
    for timer, limit_s in (
        (signal.ITIMER_REAL, limits.wall_s),
        (signal.ITIMER_PROF, limits.cpu_s),
    ):
        if limit_s < 1e9:
            signal.setitimer(timer, limit_s)


def _stop_timers() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.setitimer(signal.ITIMER_PROF, 0)


def _trace_of(frame: FrameType | None) -> TracebackType | None:
    """The traceback that an exception raised in `frame` would have, so that it can be told like one."""
    trace: TracebackType | None = None
    while frame is not None:
        trace = TracebackType(trace, frame, frame.f_lasti, frame.f_lineno)
        frame = frame.f_back
    return trace


def _tokens(made: Sequence[Any], fields: Sequence[str]) -> list[str]:
    paths = [(field, field.split(".")) for field in fields]
    return [_token(document, field, path) for document in made for field, path in paths]


def _token(document: Any, field: str, path: Sequence[str]) -> str:
    """The subject token that `field`, a dotted path, has in `document`."""
    value = document
    for part in path:
        if not isinstance(value, dict) or part not in value:
            raise failed("E308", f"an output has no field {field!r}")
        value = value[part]
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        kind = type(value).__name__
        raise failed("E308", f"field {field!r} of an output is a {kind}, not a text or an integer")
    token = str(value)
    if not SAFE_TOKEN.match(token):
        raise failed("E308", f"field {field!r} of an output cannot be part of a subject: {token[:60]!r}")
    return token
