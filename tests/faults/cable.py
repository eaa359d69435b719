"""A cable between a processor and its server that can be cut, slowed down and listened to.

What is cut is not closed: both ends see a connection on which nothing arrives any more, as when a cable is
pulled or a firewall drops packets. Nothing is lost of what was written before; TCP would send it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Cable:
    """Forwards connections to a server until it is told otherwise."""

    def __init__(self, server_port: int) -> None:
        self.url = ""
        self.sent = bytearray()  # what clients wrote, of all connections; only while `listens`
        self.listens = False
        self.lateness_s = 0.0  # how long each piece waits on its way, in each direction
        self._server_port = server_port
        self._forward, self._backward = asyncio.Event(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._hung_up = asyncio.Event()
        self.heal()

    def cut(self) -> None:
        """Let nothing through, in neither direction, and no new connection."""
        self._forward.clear()
        self._backward.clear()

    def hold_answers(self) -> None:
        """Let the server hear everything and the clients nothing."""
        self._backward.clear()

    def heal(self) -> None:
        """Let through what waited, and all that comes."""
        self._forward.set()
        self._backward.set()

    def hang_up(self) -> None:
        """Close every connection, as a device in between does that has forgotten them."""
        self._hung_up.set()
        self._hung_up = asyncio.Event()
        for task in self._tasks:
            task.cancel()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._forward.wait()
            there, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
            both = [
                asyncio.create_task(self._copy(reader, to_server, self._forward, is_heard=True)),
                asyncio.create_task(self._copy(there, writer, self._backward, is_heard=False)),
            ]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in both:
                    each.cancel()
                await asyncio.gather(*both, return_exceptions=True)
                to_server.close()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _copy(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        is_open: asyncio.Event,
        *,
        is_heard: bool,
    ) -> None:
        while piece := await source.read(1 << 16):
            if self.lateness_s:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._hung_up.wait(), self.lateness_s)
            await is_open.wait()
            if is_heard and self.listens:
                self.sent += piece
            target.write(piece)
            with suppress(ConnectionError):
                await target.drain()


@asynccontextmanager
async def cable(server_url: str) -> AsyncIterator[Cable]:
    """A cable to that server; its own address is `url`."""
    line = Cable(int(server_url.rpartition(":")[2]))
    listener = await asyncio.start_server(line.serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    line.url = f"nats://127.0.0.1:{port}"
    try:
        yield line
    finally:
        listener.close()
        line.heal()
        line.hang_up()
        await asyncio.gather(*line._tasks, return_exceptions=True)
