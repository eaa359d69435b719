"""`context`: what a route has committed, read from the app's stream without owning anything."""

from __future__ import annotations

import asyncio
from pathlib import Path

from processor.cli.connection import connected_to_app
from processor.cli.inputs import route_of
from processor.cli.terminal import EXIT_FAILED, EXIT_OK, Screen, complain, printable, say
from processor.config import Config, Route, load
from processor.context import read
from processor.sandbox.values import TOMBSTONE, decode
from processor.telemetry import configure_logging


def show_contexts(path: Path, name: str, key: str | None, *, is_keys_only: bool, format: str | None) -> int:
    """Show the contexts of a route, or that of `key`; EXIT_FAILED where it has none or one is damaged."""
    config = load(path)
    route = route_of(config, name)
    configure_logging("human", "warning")
    return asyncio.run(_show(config, route, key, Screen(format), is_keys_only=is_keys_only))


async def _show(config: Config, route: Route, key: str | None, screen: Screen, *, is_keys_only: bool) -> int:
    found, code = 0, EXIT_OK
    async with connected_to_app(config, "context") as broker:
        async for name, items in read(broker, config.app, route.name, key):
            found += 1
            if is_keys_only:
                screen.line(printable(name))
                continue
            context = {}
            for item, value in items.items():
                try:
                    if value != TOMBSTONE:
                        context[item] = decode(value)
                except ValueError as err:
                    complain(f"E410 context[{item!r}] of key {name!r} cannot be read: {err}.")
                    code = EXIT_FAILED
            screen.document({"key": name, "context": context})
    if not found:
        say(f"route {route.name} has kept nothing" + (f" for key {key!r}" if key is not None else ""))
        return EXIT_FAILED if key is not None else EXIT_OK
    return code
