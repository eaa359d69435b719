"""One guest's process and the socket to it, as the host holds them: frames, and the end of both.

`Link` knows nothing of programs and runs. It hands out whole frames that answer what was asked last, holds a
guest back that says more than is read, and can say what a guest died of. Every byte that it reads is hostile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
from collections import deque
from collections.abc import Callable

from processor.model import Failure, Limits
from processor.sandbox import processes, wire
from processor.sandbox.endings import Ending, OutOfMemoryKills, explain

LAST_WORDS_S = 2.0
# What may wait unread from a guest before the socket is left to fill up and holds the guest back.
UNREAD_BYTES = 1 << 20
READ_BYTES = 1 << 18


class Gone(Exception):
    """The process has ended, and it left no frame that has not been read."""


class Link:
    """The process of a guest until it ends, and both ways to it.

    `kill_for_us` kills it where we may not signal it; `ended` is called once, when the process has ended.
    """

    def __init__(
        self,
        channel: socket.socket,
        handle: int,
        ending: asyncio.Future[Ending | None],
        limits: Limits,
        kills: OutOfMemoryKills,
        kill_for_us: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        """Takes the channel and the handle over. Raises OSError where there are no more descriptors."""
        self.alive = True
        self.pid = processes.pid_of(handle)
        self.verdict: Failure | None = None  # why the host ended it, where it has
        # Of the request in hand, None where there is none. A guest that seals itself answers to 0.
        self.nonce: int | None = 0
        self._channel = channel
        self._handle = handle
        self._ending = ending
        self._limits = limits
        self._kills = kills
        self._kill_for_us = kill_for_us
        self._has_ended = ended
        self._loop = asyncio.get_running_loop()
        self._splitter = wire.Splitter(wire.reply_bytes(limits), wire.reply_parts(limits))
        self._frames: deque[wire.Frame] = deque()
        self._unread_bytes = 0
        self._is_reading = True
        self._unsent: deque[memoryview] = deque()
        self._gathered: list[bytes] = []  # to be written at the end of this turn of the loop
        self._arrival: asyncio.Future[None] | None = None
        self._down: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(channel, self._readable)
        self._loop.add_reader(handle, self._ended)

    @property
    def unsent(self) -> int:
        """How many frames of what was written are not, or not wholly, on their way."""
        return len(self._unsent) + len(self._gathered)

    @property
    def has_more(self) -> bool:
        """Whether something has arrived behind the frame that was received last."""
        return bool(self._frames) or self._splitter.pending > 0

    def ask(self) -> int:
        """The nonce of a new request, which each frame of its answer must have."""
        self.nonce = secrets.randbits(64)
        return self.nonce

    def rest(self) -> None:
        """Nothing is asked any more, and nothing may come."""
        self.nonce = None

    async def receive(self) -> wire.Frame:
        """The next frame of this conversation. Raises Gone when there can be none, or Violation."""
        while not self._frames:
            if not self.alive:
                raise Gone
            self._arrival = self._loop.create_future()
            await self._arrival
        frame = self._frames.popleft()
        if not self._frames:
            self._unread_bytes = 0
            if not self._is_reading and self.alive and self.verdict is None:
                self._is_reading = True
                self._loop.add_reader(self._channel, self._readable)
        if frame.nonce != self.nonce:
            raise wire.Violation("a frame that answers nothing that was asked")
        return frame

    def write(self, frame: bytes) -> None:
        self._gathered.append(frame)
        self._write_gathered()

    def write_soon(self, frame: bytes) -> None:
        """`write`, together with what else is to be written in this turn of the loop."""
        if not self._gathered:
            self._loop.call_soon(self._write_gathered)
        self._gathered.append(frame)

    def _write_gathered(self) -> None:
        frames, self._gathered = self._gathered, []
        if not self.alive or not frames:
            return
        if self._unsent:
            self._unsent.extend(map(memoryview, frames))
            return
        try:
            sent = self._channel.sendmsg(frames)
        except BlockingIOError:
            sent = 0
        except OSError:  # it is dying, and _ended is about to say so
            return
        for frame in frames:
            if sent < len(frame):
                self._unsent.append(memoryview(frame)[sent:])
            sent = max(0, sent - len(frame))
        if self._unsent:
            self._loop.add_writer(self._channel, self._writable)

    async def close(self, verdict: Failure, after_s: float = 0.0) -> None:
        """Kill the process, unless it ends by itself within that time, and wait for its end. Idempotent."""
        if self.alive and after_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(after_s):
                    await asyncio.shield(self._down)
        if self.alive:
            self.kill(verdict)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await asyncio.shield(self._down)

    def kill(self, verdict: Failure) -> None:
        """Kill the process; `verdict` is why, unless it had died of something else before.

        What it has said and nobody has read counts no more: it may be what came right behind what it dies of.
        """
        self.verdict = self.verdict or verdict
        self._frames.clear()
        if not self.alive:
            return
        self._is_reading = False
        self._loop.remove_reader(self._channel)
        try:
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except PermissionError:
            self._kill_for_us()

    async def obituary(self) -> Failure:
        """Why the guest is dead."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await asyncio.shield(self._down)
        if self.verdict is None:
            ending = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    ending = await asyncio.shield(self._ending)
            self.verdict = self.verdict or explain(ending, self._limits, self._kills)
        return self.verdict

    def _writable(self) -> None:
        try:
            while self._unsent:
                rest = self._unsent[0][self._channel.send(self._unsent[0]) :]
                if rest:
                    self._unsent[0] = rest
                else:
                    self._unsent.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()
        if not self._unsent:
            self._loop.remove_writer(self._channel)

    def _readable(self) -> None:
        if self._read_some() and self._unread_bytes > UNREAD_BYTES and self._frames and self.alive:
            self._is_reading = False
            self._loop.remove_reader(self._channel)
        self._wake()

    def _read_some(self) -> bool:
        """Take in what has arrived; False when there is nothing, or will never be more."""
        try:
            data = self._channel.recv(READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._channel)
            self._is_reading = False
            self._loop.call_later(LAST_WORDS_S, self._hung_up)
            return False
        try:
            if self.nonce is None:
                raise wire.Violation("bytes that nobody asked for")
            self._unread_bytes += len(data)
            self._frames += self._splitter.feed(data)
        except wire.Violation as err:
            self.kill(violated(err))
            return False
        return True

    def _hung_up(self) -> None:
        """An honest guest's channel closes with its process; one that lives on without it is of no use."""
        if self.alive:
            self.kill(violated(wire.Violation("it closed its channel")))

    def _wake(self) -> None:
        if (self._frames or not self.alive) and self._arrival is not None:
            arrival, self._arrival = self._arrival, None
            if not arrival.done():
                arrival.set_result(None)

    def _ended(self) -> None:
        """The process has ended: take its last bytes, let go of it, and wake whoever waits."""
        if self.verdict is None:
            while self._read_some():
                pass
        self.alive = False
        self._loop.remove_reader(self._handle)
        self._loop.remove_reader(self._channel)
        self._loop.remove_writer(self._channel)
        os.close(self._handle)
        self._channel.close()
        self._has_ended()
        self._has_ended = _nothing  # whose method it is holds this link: they go together, and at once
        self._wake()
        self._down.set_result(None)


def _nothing() -> None:
    pass


def violated(err: wire.Violation) -> Failure:
    """What becomes of a guest that broke the protocol."""
    return Failure("E315", f"the guest process broke the protocol and was killed: {err}", lethal=True)
