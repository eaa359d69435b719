"""The guest's way to its host: frames over its one descriptor, and the calls that it makes there.

A guest may have several calls open. Each has an id, by which its answer is found, in whatever order answers
come. Code that waits for one takes in what comes for others meanwhile, so that an event loop and plain code
can both call. Where groups take turns, one that waits lets others run (`turns`); what runs in an event loop
does not, for the loop would find itself running. At the end of a run nothing is open: `drain` lets the host
cut off what nobody waits for.

Only the guest uses this module; nothing here is trusted by the host.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson

from processor.model import Limits
from processor.runnable import CapabilityError
from processor.sandbox import capabilities, documents, jail, wire
from processor.sandbox.bounds import UNCONFIGURED, Bounds
from processor.sandbox.results import Results, Unsuccessful, failed

Heard = Callable[[wire.Frame], object]
# Lets others run until the caller may go on; False where it has to wait by itself (`turns.Turns.wait`).
Wait = Callable[[Callable[[], Any]], bool]


class Channel:
    """The guest's end of the socket to the host; the only descriptor it has."""

    def __init__(self) -> None:
        self.nonce = 0  # of the request in hand
        self.is_writing = False
        self._splitter = wire.Splitter(0xFFFFFFFF)
        self._frames: list[wire.Frame] = []

    @property
    def has_frame(self) -> bool:
        """Whether `receive` returns at once."""
        return bool(self._frames)

    def send(self, frame: bytes) -> None:
        self.is_writing = True
        rest = memoryview(frame)
        while rest:
            try:
                rest = rest[os.write(jail.CHANNEL_FD, rest) :]
            except OSError:  # the host is gone, and nobody is left to answer to
                os._exit(0)
        self.is_writing = False

    def send_off_the_clock(self, frame: bytes) -> None:
        """`send`, where a slow listener may hold the write up: that is no time of the user's."""
        left_s, _ = signal.setitimer(signal.ITIMER_REAL, 0)
        self.send(frame)
        if left_s:
            signal.setitimer(signal.ITIMER_REAL, left_s)

    def receive(self) -> wire.Frame:
        while not self._frames:
            try:
                data = os.read(jail.CHANNEL_FD, 1 << 18)
            except OSError:
                data = b""
            if not data:
                os._exit(0)
            self._frames = self._splitter.feed(data)
        frame = self._frames.pop(0)
        self.nonce = frame.nonce
        return frame

    def wait(self, timeout_s: float) -> bool:
        """Wait at most so long until something has come, and say whether it has."""
        if self._frames:
            return True
        # Not poll: it takes no more descriptors than may be opened, which is none.
        return bool(select.select([jail.CHANNEL_FD], [], [], max(timeout_s, 0.0))[0])


class GuestCalls:
    """The calls of one guest. There are none until `allow`: a program that is loaded makes none."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._open: dict[int, Heard] = {}  # by id
        self._last = 0
        self._most = 1
        self._memory: jail.MemoryLimit  # from `live` on
        self._bounds: Bounds
        self._results: Results | None = None
        self.wait: Wait | None = None  # while groups take turns
        self._is_in_loop = False
        self._is_given_up = False

    def allow(self, limits: Limits, memory: jail.MemoryLimit, bounds: Bounds, results: Results) -> None:
        """Take calls from now on, in the name of the group that `results` are of."""
        self._most = limits.calls_at_once
        self._memory, self._bounds, self._results = memory, bounds, results

    def begin_run(self) -> None:
        """A run begins: its first call is number 1."""
        self._last, self._is_given_up = 0, False

    @property
    def most(self) -> int:
        """How many may be open at a time."""
        return self._most

    @property
    def group(self) -> int:
        """The group of the run in hand whose code runs."""
        return self._results.group if self._results is not None else 0

    @property
    def are_open(self) -> bool:
        """Whether an answer is to come."""
        return bool(self._open)

    def call(self, name: str, arguments: dict[str, Any], body: bytes | None = None) -> Any:
        """What the host answers: a value, or with a `body` a value and bytes. Raises AuthorityKernelError."""
        answers: list[wire.Frame] = []
        results = self._allowed(name)
        self._memory.for_runtime()
        try:
            self._begin(name, arguments, body, results.group, answers.append)
            while not answers:
                if not self._others_run(answers.__len__):
                    self._take_in(self._channel.receive())
            return self._read(name, answers[0], has_body=body is not None)
        finally:
            self._memory.for_user()

    def begin(self, name: str, arguments: dict[str, Any], body: bytes | None, heard: Heard) -> int:
        """Make a call, and return its id: `heard` gets the frame that answers it, for `read`.

        Where as many calls are open as may be, it waits for an answer to one of them. Raises
        AuthorityKernelError for what cannot be sent.
        """
        results = self._allowed(name)
        with self._as_runtime():
            return self._begin(name, arguments, body, results.group, heard)

    def read(self, name: str, frame: wire.Frame, *, has_body: bool) -> Any:
        """What an answer says. Raises AuthorityKernelError where the call was refused."""
        with self._as_runtime():
            return self._read(name, frame, has_body=has_body)

    def cancel(self, number: int) -> None:
        """Nobody waits for the answer to this call any more: the host is to cut it off."""
        if number in self._open:
            self._open[number] = _ignore
            self._channel.send(wire.write_cancel(self._channel.nonce, number))

    def take_in(self, timeout_s: float | None) -> None:
        """Hand out the answers that are there; wait for one at most so long, or until one comes."""
        with self._as_runtime():
            if timeout_s is None or self._channel.wait(timeout_s):
                self._take_in(self._channel.receive())
                while self._channel.has_frame:
                    self._take_in(self._channel.receive())

    def take_in_next(self) -> None:
        """Hand out the answers that are there, or wait for the next: for our own code, that called nobody."""
        self._take_in(self._channel.receive())
        while self._channel.has_frame:
            self._take_in(self._channel.receive())

    def let_others_run(self, until: Callable[[], Any]) -> bool:
        """Let other groups run until one of them has made `until` true; False where none can."""
        with self._as_runtime():
            return self._others_run(until)

    @contextmanager
    def in_loop(self) -> Iterator[None]:
        """An event loop runs within: whoever waits there lets nobody run but the loop."""
        before, self._is_in_loop = self._is_in_loop, True
        try:
            yield
        finally:
            self._is_in_loop = before

    def give_up(self) -> None:
        """The run has failed: what is open is made to its end and heard by nobody, and no more is begun."""
        self._open = dict.fromkeys(self._open, _ignore)
        self._is_given_up = True

    def drain(self) -> None:
        """Have all that is open cut off, and take in the last of it: the run is about to end."""
        for number, heard in list(self._open.items()):
            if heard is not _ignore:
                self.cancel(number)
        while self._open:
            self._take_in(self._channel.receive())

    @contextmanager
    def _as_runtime(self) -> Iterator[None]:
        """Our own work in the middle of the user's: under the memory limit that is for it."""
        self._memory.for_runtime()
        try:
            yield
        finally:
            self._memory.for_user()

    def _others_run(self, until: Callable[[], Any]) -> bool:
        return self.wait is not None and not self._is_in_loop and self.wait(until)

    def _allowed(self, name: str) -> Results:
        if self._results is None:
            raise CapabilityError(f"{name}: no calls while the program is loaded; use init()")
        if self._is_given_up:
            raise ended()
        return self._results

    def _begin(
        self, name: str, arguments: dict[str, Any], body: bytes | None, group: int, heard: Heard
    ) -> int:
        # What goes with a body is in a form of our own, and not the user's document.
        bounds = self._bounds if body is None else UNCONFIGURED
        text = documents.encode(arguments, "arguments of", name, bounds=bounds)
        if len(text) > wire.CALL_BYTES or len(text) + len(body or b"") > wire.BODY_BYTES:
            size, most = len(text) + len(body or b""), wire.BODY_BYTES if body else wire.CALL_BYTES
            text_of = f"the arguments of {name} are {size} bytes long (limit {most})"
            raise capabilities.refused(text_of, "E323", operation=name)
        while len(self._open) >= self._most:
            self._take_in(self._channel.receive())
        self._last += 1
        self._open[self._last] = heard
        self._channel.send(wire.write_call(self._channel.nonce, self._last, group, name, text, body))
        return self._last

    def _read(self, name: str, frame: wire.Frame, *, has_body: bool) -> Any:
        if "refused" in frame.header:
            about = {"operation": name, **frame.header.get("about", {})}
            raise capabilities.refused(frame.header["refused"], frame.header["code"], **about)
        if has_body:
            head, content = frame.blobs
            return orjson.loads(head), content
        [answer] = frame.blobs
        return documents.decode_answer(answer, self._bounds, f"the answer of {name}")

    def _take_in(self, frame: wire.Frame) -> None:
        self._open.pop(frame.header["answer"])(frame)


def ended() -> Unsuccessful:
    """What ends code of a run that has failed elsewhere."""
    return failed("E304", "the run has failed in another group")


def _ignore(frame: wire.Frame) -> None:
    pass
