"""`status`, `pause`, `resume` and `reset`: looking at a running app, and telling it what to do."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import typer

from processor.cli.connection import connected_to_app
from processor.cli.inputs import is_confirmed, route_of
from processor.cli.terminal import EXIT_FAILED, EXIT_OK, Screen, say
from processor.config import Config, Route, load
from processor.context import Input
from processor.control import UNSAID, Control, Pause
from processor.errors import BrokerError
from processor.jetstream import Broker
from processor.telemetry import configure_logging


def status(path: Path, name: str | None, format: str | None) -> int:
    """Show who runs the app, and how far each route is; EXIT_FAILED where a route has nobody."""
    config = load(path)
    routes = [route_of(config, name)] if name is not None else list(config.routes.values())
    configure_logging("human", "warning")
    return asyncio.run(_status(config, routes, Screen(format)))


async def _status(config: Config, routes: list[Route], screen: Screen) -> int:
    async with connected_to_app(config, "status") as broker:
        control = Control(broker, config.app)
        members = await control.members()
        pauses = await control.pauses()
        code = EXIT_OK
        for member in sorted(members):
            if screen.is_json:
                screen.document({"member": member, "routes": members[member]})
            else:
                screen.heading(f"processor {member}")
        if not members:
            say("no processor of this app answers")
        for route in routes:
            shown = await _route_status(broker, control, route, pauses.get(route.name, UNSAID))
            orphaned = [p for p in shown["partitions"] if p["owner"] not in members]
            if orphaned and not shown["paused"]:
                code = EXIT_FAILED
            _show_route(screen, shown, len(orphaned))
        screen.flush()
        return code


async def _route_status(broker: Broker, control: Control, route: Route, pause: Pause) -> dict[str, Any]:
    info = await broker.stream_of(route.input_subjects[0])
    last = int(info["state"]["last_seq"]) if info else 0
    parts = await control.parts(route.name)
    positions = [part.position for part in parts]
    return {
        "route": route.name,
        "input": info["config"]["name"] if info else None,
        "last_sequence": last,
        "lowest_position": min(positions, default=0),
        "highest_position": max(positions, default=0),
        "behind": max(0, last - max(positions, default=0)),
        "paused": pause.is_paused,
        "paused_by": pause.by if pause.is_paused else "",
        "reason": pause.reason,
        "partitions": [
            {
                "partition": part.partition,
                "owner": part.owner,
                "epoch": part.epoch,
                "position": part.position,
                "waiting": part.open,
                "blocked_keys": part.blocked,
            }
            for part in parts
        ],
    }


def _show_route(screen: Screen, shown: dict[str, Any], orphaned: int) -> None:
    if screen.is_json:
        screen.document(shown)
        return
    parts = shown["partitions"]
    screen.heading(f"route {shown['route']}")
    if shown["paused"]:
        screen.problem(f"  paused by {shown['paused_by']}: {shown['reason'] or 'no reason given'}")
    if not parts:
        screen.line("  has not run yet")
        return
    # The stream may hold what the route does not read, and what was deleted leaves gaps.
    behind = f"at most {_counted(shown['behind'], 'message')} behind" if shown["behind"] else "nothing behind"
    at = f"at {shown['highest_position']} of {shown['last_sequence']}"
    screen.line(f"  input {shown['input']}: {at}, {behind}")
    for owner, count in sorted(Counter(part["owner"] for part in parts).items()):
        at = max(part["position"] for part in parts if part["owner"] == owner)
        screen.line(f"  {count} of {_counted(len(parts), 'partition')}: {owner or 'nobody'}, at {at}")
    waiting, blocked = (sum(part[name] for part in parts) for name in ("waiting", "blocked_keys"))
    if waiting or blocked:
        wait, are = "waits" if waiting == 1 else "wait", "is" if blocked == 1 else "are"
        screen.line(
            f"  {_counted(waiting, 'message')} {wait} for another try,"
            f" {_counted(blocked, 'key')} {are} blocked"
        )
    if orphaned and not shown["paused"]:
        have = "has" if orphaned == 1 else "have"
        screen.problem(f"  {_counted(orphaned, 'partition')} {have} no processor")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def pause(path: Path, name: str, *, is_paused: bool, reason: str) -> int:
    """Pause a route, or let it go on."""
    config = load(path)
    route = route_of(config, name)
    configure_logging("human", "warning")

    async def tell() -> int:
        async with connected_to_app(config, "control") as broker:
            await Control(broker, config.app).pause(route.name, is_paused=is_paused, reason=reason)
        say(f"route {route.name} {'is paused, also over restarts' if is_paused else 'goes on'}")
        return EXIT_OK

    return asyncio.run(tell())


def reset(path: Path, name: str, to: str, *, keep_context: bool, is_sure: bool) -> int:
    """Have a route read again from `to`: `start`, a sequence, or a time."""
    config = load(path)
    route = route_of(config, name)
    configure_logging("human", "warning")
    return asyncio.run(_reset(config, route, _target(to), keep_context=keep_context, is_sure=is_sure))


def _target(to: str) -> int | datetime:
    if to == "start":
        return 1
    if to.isdecimal() and int(to) > 0:
        return int(to)
    try:
        found = datetime.fromisoformat(to)
    except ValueError:
        text = f"{to!r} is neither `start`, nor a sequence, nor a time such as 2026-01-31T08:00"
        raise typer.BadParameter(text, param_hint="--to") from None
    return found.astimezone()


async def _reset(
    config: Config, route: Route, to: int | datetime, *, keep_context: bool, is_sure: bool
) -> int:
    async with connected_to_app(config, "reset") as broker:
        control = Control(broker, config.app)
        subject = route.input_subjects[0]
        info = await broker.stream_of(subject)
        if info is None:
            raise BrokerError("E401", f"no stream holds {subject!r}, the input of route {route.name}")
        stream = info["config"]["name"]
        if info["config"].get("retention", "limits") != "limits":
            raise BrokerError(
                "E407",
                f"stream {stream} deletes what was processed, so route {route.name} cannot read it again",
            )
        end = info["state"]["last_seq"] + 1
        if isinstance(to, int) and to > end:
            text = f"{to} is behind the end of stream {stream}: its next message is {end}"
            raise typer.BadParameter(text, param_hint="--to")
        sequence = to if isinstance(to, int) else await control.sequence_at(stream, subject, to)
        parts = await control.parts(route.name)
        at = f"{min(p.position for p in parts)}" if parts else "nowhere"
        what = (
            f"route {route.name}: from position {at} to {sequence - 1} of {stream}, "
            f"{'with its contexts' if keep_context else 'and its contexts are removed'}"
        )
        if not is_sure and not is_confirmed(
            f"{what}. Its outputs from there on are made again. Do it?", "outputs will be made again"
        ):
            say("nothing was changed")
            return EXIT_FAILED
        source = Input(stream, info["created"])
        moved = await control.reset(route.name, sequence, keep_context=keep_context, source=source)
        say(f"{what} ({_counted(moved, 'partition')})")
        return EXIT_OK
