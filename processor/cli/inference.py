"""`infer`: ask a model of a configuration by hand."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import typer

from processor.capability.monitor import Mandate, Monitor
from processor.capability.registry import HostCalls
from processor.cli.inputs import route_of
from processor.cli.terminal import EXIT_FAILED, EXIT_OK, Screen, complain, say
from processor.config import Config, load
from processor.errors import ProcessorError
from processor.reach import Reach
from processor.telemetry import configure_logging


def infer(
    path: Path,
    model: str,
    prompt: str,
    *,
    route: str | None,
    max_tokens: int | None,
    is_streamed: bool,
    format: str | None,
) -> int:
    """Ask once, and show the answer. Raises Faults, and ProcessorError for a route that is not there."""
    configure_logging("human", "warning")
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text:
        raise typer.BadParameter("it is empty", param_hint="PROMPT")
    asked = {"model": model, "prompt": text, "max_tokens": max_tokens}
    return asyncio.run(_ask(load(path), route, asked, is_streamed, Screen(format)))


async def _ask(
    config: Config, name: str | None, asked: dict[str, Any], is_streamed: bool, screen: Screen
) -> int:
    calls = HostCalls()
    try:
        if name is None:  # whatever the policies of routes say: it is the operator who asks
            governor = calls.for_route(Reach("inference", inference=tuple(config.inference.values())))
        else:
            route = route_of(config, name)
            governor = calls.for_route(route.reach, Mandate.of(route))
            governor.see(dict.fromkeys(route.policy.expiring, time.time_ns() // 1000))
        monitor = governor.lane()
        monitor.begin()
        began_s = time.perf_counter()
        try:
            if is_streamed:
                document = await _stream(monitor, asked, began_s, screen)
            else:
                document = await monitor.perform("infer", asked)
                if not screen.is_json:
                    screen.line(document["choices"][0]["message"].get("content") or "")
        except ProcessorError as err:
            complain(err)
            return EXIT_FAILED
        finally:
            await monitor.finish()
    finally:
        await calls.close()
    if screen.is_json:
        screen.document(document)
    screen.flush()
    usage = document["usage"]
    about = ", estimated" if usage.get("estimated") else ""
    tokens = f"{usage['prompt_tokens']:,} tokens in, {usage['completion_tokens']:,} out{about}"
    say(f"{(time.perf_counter() - began_s) * 1000:.0f} ms, {tokens}")
    return EXIT_OK


async def _stream(monitor: Monitor, asked: dict[str, Any], began_s: float, screen: Screen) -> dict[str, Any]:
    """The end of a stream, whose text is shown as it comes."""
    number = (await monitor.perform("infer_stream", asked))["stream"]
    document: dict[str, Any] = {}
    is_first = True
    while True:
        pulled = await monitor.perform("stream_next", {"stream": number})
        for item in pulled["items"]:
            if "text" not in item:
                document = item
            elif not screen.is_json:
                screen.piece(item["text"])
            if is_first:
                is_first = False
                first_ms = (time.perf_counter() - began_s) * 1000
        if pulled["end"]:
            break
    if not screen.is_json:
        screen.piece("\n")
    say(f"first piece after {first_ms:.0f} ms")
    return document
