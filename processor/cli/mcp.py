"""`mcp`: the verbs of an app for an MCP client, over standard input and output."""

from __future__ import annotations

import asyncio
import sys
import threading
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from processor.cli.connection import connected_to_app
from processor.cli.terminal import EXIT_FAILED, EXIT_OK, complain
from processor.config import Config, load
from processor.errors import ProcessorError, Refusal
from processor.operate.mcp import MESSAGE_BYTES, McpServer
from processor.operate.verbs import OperatedApp
from processor.telemetry import configure_logging

_ROOM_BYTES = 1 << 20  # of one answer


def serve(path: Path, *, may_write: bool) -> int:
    """Answer until standard input ends."""
    config = load(path, needs_secrets=False)
    configure_logging("human", "warning")  # to standard error: standard output is the protocol's
    return asyncio.run(_serve(config, may_write=may_write))


class _Connection:
    """The app, connected to when it is first asked for: a server that is not there is a call's failure."""

    def __init__(self, config: Config, opened: AsyncExitStack) -> None:
        self._config = config
        self._opened = opened
        self._app: OperatedApp | None = None

    async def app(self) -> OperatedApp:
        """Raises Refusal."""
        if self._app is None:
            try:
                broker = await self._opened.enter_async_context(connected_to_app(self._config, "mcp"))
            except ProcessorError as err:
                raise Refusal(err.code, err.sentence) from err
            room_bytes = min(broker.max_payload, _ROOM_BYTES)
            self._app = OperatedApp(broker, self._config, "mcp", room_bytes)
        return self._app


async def _serve(config: Config, *, may_write: bool) -> int:
    lines: asyncio.Queue[bytes] = asyncio.Queue(maxsize=8)
    # A daemon, for nothing ends a read of standard input but its end.
    reading = threading.Thread(target=_read, args=(asyncio.get_running_loop(), lines), daemon=True)
    reading.start()
    async with AsyncExitStack() as opened:
        server = McpServer(_Connection(config, opened).app, may_write=may_write)
        while line := await lines.get():
            if len(line) > MESSAGE_BYTES:  # what is left of it would be taken for messages
                complain(f"a message of more than {MESSAGE_BYTES} bytes: no more are read")
                return EXIT_FAILED
            if line.strip() and (answer := await server.answer(line)) is not None:
                sys.stdout.buffer.write(answer)
                sys.stdout.buffer.flush()
    return EXIT_OK


def _read(loop: asyncio.AbstractEventLoop, lines: asyncio.Queue[bytes]) -> None:
    """Hand over each line of standard input, be it a pipe, a file or a terminal; an empty one is its end."""
    # Not `sys.stdin.buffer`: the interpreter closes that when it ends, which a read in this thread forbids.
    line = b"x"
    with open(0, "rb", closefd=False) as stdin, suppress(RuntimeError):  # nobody reads any more
        while line:
            line = stdin.readline(MESSAGE_BYTES + 1)
            asyncio.run_coroutine_threadsafe(lines.put(line), loop).result()
