"""`context serve`: a context for programs that speak lines of JSON, until a signal."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import typer

from processor.cli.connection import connected_to_app
from processor.cli.inputs import route_of
from processor.cli.terminal import EXIT_OK, say
from processor.config import load
from processor.context.history import me
from processor.operate.edits import ContextEdits
from processor.operate.route_board import RouteBoard
from processor.printable import printable
from processor.recipes.bridge import HOST, Board, Bridge, FileBoard
from processor.telemetry import configure_logging


def serve(words: list[str], file: Path | None, port: int, reason: str) -> int:
    """Serve the context of a file, or of `CONFIG ROUTE [KEY]`.

    Raises ProcessorError for a context that is not there to be served, and for a port that is taken.
    """
    if (file is None) == (not words):
        raise typer.BadParameter("it is `context serve --file FILE` or `context serve CONFIG ROUTE [KEY]`")
    if len(words) not in (0, 2, 3):
        asked = "context serve CONFIG ROUTE [KEY]"
        raise typer.BadParameter(f"{len(words)} words follow `serve`; it is `{asked}`")
    configure_logging("human", "warning")
    return asyncio.run(_serve_route(words, port, reason) if file is None else _serve_file(file, port))


async def _serve_file(path: Path, port: int) -> int:
    with FileBoard.opened(path) as board:
        return await _answer(board, str(path), port)


async def _serve_route(words: list[str], port: int, reason: str) -> int:
    config = load(Path(words[0]), needs_secrets=False)
    route, key = route_of(config, words[1]), "".join(words[2:])
    async with connected_to_app(config, "context") as broker:
        board = RouteBoard(ContextEdits(broker, route), key, reason)
        await board.values()  # what is wrong with the key is said now
        of = f"key {printable(key)!r} of route {route.name}" if route.is_keyed else f"route {route.name}"
        return await _answer(board, of, port)


async def _answer(board: Board, of: str, port: int) -> int:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with Bridge(board, me()).serving(port) as taken:
        say(f"the context of {of} is served on {HOST}:{taken}")
        await stopped.wait()
    return EXIT_OK
