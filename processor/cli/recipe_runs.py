"""`recipe runs`: the runs of the recipes of an app, newest first; `graph run` shows one of them whole."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from processor.cli.connection import connected_to_app
from processor.cli.graphs import show_runs
from processor.cli.recipe_verb import RecipeRequest
from processor.cli.terminal import EXIT_OK, Screen
from processor.config import Config, load
from processor.errors import ProcessorError
from processor.operate.runs import GraphRuns
from processor.telemetry import configure_logging

_NEWEST = 50


def do(request: RecipeRequest) -> int:
    """List the runs. Raises Faults, and ProcessorError E706 for a recipe that the configuration has not."""
    config = load(request.path, needs_secrets=False)
    configure_logging("human", "warning")
    if request.name is not None and request.name not in config.recipes:
        near = get_close_matches(request.name, config.recipes, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(config.recipes) or 'none'}."
        raise ProcessorError("E706", f"the configuration has no recipe {request.name!r}", remedy=hint)
    names = [request.name] if request.name is not None else list(config.recipes)
    return asyncio.run(_list(config, names, Screen(request.format)))


async def _list(config: Config, names: Sequence[str], screen: Screen) -> int:
    found: list[dict[str, Any]] = []
    if names:
        async with connected_to_app(config, "recipe") as broker:
            runs = GraphRuns(broker, config)
            for name in names:
                found += (await runs.newest(graph=name, state="", since_s=0.0, limit=_NEWEST, before=0))[0]
    found.sort(key=lambda run: run["created"], reverse=True)
    show_runs(screen, found[:_NEWEST])
    screen.flush()
    return EXIT_OK
