"""`status`, `pause`, `resume` and `reset`: looking at a running app, and telling it what to do."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import typer

from processor.cli.connection import connected_to_app
from processor.cli.inputs import is_confirmed, route_of
from processor.cli.terminal import EXIT_FAILED, EXIT_OK, Screen, say
from processor.config import Config, fingerprint, load
from processor.operate.budgets import budget_states
from processor.operate.control import Control
from processor.operate.journal import Journal
from processor.operate.status import COUNTED_MAX, Survey
from processor.printable import printable
from processor.route import Route
from processor.telemetry import configure_logging


def status(path: Path, name: str | None, format: str | None) -> int:
    """Show who runs the app, and how far each route is; EXIT_FAILED where a route does not run.

    A paused route stands still on purpose.
    """
    config = load(path, needs_secrets=False)
    routes = [route_of(config, name)] if name is not None else list(config.routes.values())
    configure_logging("human", "warning")
    return asyncio.run(_status(config, routes, Screen(format)))


async def _status(config: Config, routes: list[Route], screen: Screen) -> int:
    async with connected_to_app(config, "status") as broker:
        survey = await Survey.take(broker, config.app)
        members = survey.members()
        for member in members:
            _show_member(screen, member)
        if not members:
            say("no processor of this app answers")
        _show_versions(screen, config, members)
        is_well = not any(_own_stops(member) for member in members)
        for route in routes:
            shown = await survey.route(route)
            has_members = any(route.name in member["routes"] for member in members)
            is_well = is_well and _runs(shown, has_members=has_members)
            _show_route(screen, shown, has_members=has_members)
        for state in await budget_states(broker, config.app, routes):
            _show_budget(screen, state)
        screen.flush()
        return EXIT_OK if is_well else EXIT_FAILED


def _own_stops(member: dict[str, Any]) -> list[dict[str, str]]:
    """What stops a processor, and not only one of its routes."""
    of_routes = ("route ", "input ", "inbox ", "breaker ", "budget ")
    return [stop for stop in member["stops"] if not stop["what"].startswith(of_routes)]


def _runs(shown: dict[str, Any], *, has_members: bool) -> bool:
    """Whether a route does what it is to do; a paused one is to stand still."""
    return shown["paused"] or (has_members and not shown["orphaned"] and not shown["stops"])


def _show_member(screen: Screen, member: dict[str, Any]) -> None:
    if screen.is_json:
        screen.document(member)
        return
    screen.heading(f"processor {member['member']}")
    if member["config"]:
        screen.line(f"  configuration {member['config']}")
    for stop in _own_stops(member):
        screen.problem(f"  since {stop['since']}: {stop['why']}")


def _show_versions(screen: Screen, config: Config, members: list[dict[str, Any]]) -> None:
    """Mark members that run different configurations; a file that none of them runs is only mentioned."""
    if screen.is_json:
        return
    here = fingerprint(config)
    running = {member["config"] for member in members if member["config"]}
    if len(running) > 1:
        screen.problem(f"processors run {len(running)} different configurations")
    if running and here not in running:
        screen.line(f"{config.path} is configuration {here}, which no processor runs")


def _show_route(screen: Screen, shown: dict[str, Any], *, has_members: bool) -> None:
    if screen.is_json:
        screen.document(shown)
        return
    parts = shown["partitions"]
    screen.heading(f"route {shown['route']}")
    if shown["paused"]:
        why = shown["reason"] or "no reason given"
        screen.problem(f"  paused by {shown['paused_by']} since {shown['paused_at']}: {why}")
    elif not has_members:
        screen.problem("  no processor runs it")
    by_why: dict[str, list[dict[str, str]]] = {}
    for stop in shown["stops"]:
        by_why.setdefault(stop["why"], []).append(stop)
    for why, stops in by_why.items():
        where = ", ".join(stop["member"] for stop in stops)
        screen.problem(f"  since {min(stop['since'] for stop in stops)}: {why} ({where})")
    programs = shown["programs"]
    if len(programs) == 1:
        screen.line(f"  program {programs[0]['program']}")
    elif programs:
        screen.problem(f"  processors run {len(programs)} different programs")
        for each in programs:
            screen.line(f"    program {each['program']}: {', '.join(each['members'])}")
    if parts:
        least, most = shown["behind"], shown["behind_at_most"]
        behind = f"{_counted(most, 'message')} behind" if most else "nothing behind"
        if least != most:
            behind = f"{least} to {behind}"
        if shown["last_sequence"] is None:
            screen.line(f"  schedule: {behind}")
        else:
            at = f"at {shown['highest_position']}" if shown["dealt"] is None else f"dealt to {shown['dealt']}"
            screen.line(f"  input {shown['input'] or 'is gone'}: {at} of {shown['last_sequence']}, {behind}")
    else:
        screen.line("  has not run yet")
    for owner, count in sorted(Counter(part["owner"] for part in parts).items()):
        at = max(part["position"] for part in parts if part["owner"] == owner)
        screen.line(f"  {count} of {_counted(len(parts), 'partition')}: {owner or 'nobody'}, at {at}")
    for sentence in _aside(shown):
        screen.line(f"  {printable(sentence)}")
    if shown["orphaned"] and not shown["paused"]:
        have = "has" if shown["orphaned"] == 1 else "have"
        screen.problem(f"  {_counted(shown['orphaned'], 'partition')} {have} no processor")


def _show_budget(screen: Screen, state: dict[str, Any]) -> None:
    if screen.is_json:
        screen.document(state)
        return
    used = f"{state['used'] + state['held']:,} of {state['limit']:,} {state['kind']}"
    held = f" ({state['held']:,} of it held by leases)" if state["held"] else ""
    until = f", until {state['until']}" if state["until"] else ""
    line = f"budget {state['budget']}: {used} used{held} in its {state['window']}{until}"
    if state["left"]:
        screen.line(line)
    else:
        screen.problem(f"{line}; then {state['then']}")


def _aside(shown: dict[str, Any]) -> Iterator[str]:
    """What a route has beside its input."""
    waiting, blocked = (sum(part[n] for part in shown["partitions"]) for n in ("waiting", "blocked_keys"))
    if waiting:
        yield f"{_counted(waiting, 'message')} {'waits' if waiting == 1 else 'wait'} for another try"
    later = shown["later"]
    if later["messages"]:
        next_due = f", the next at {later['next']}" if later["next"] else ""
        yield f"{_counted(later['messages'], 'message')} for later with the server{next_due}"
    if shown["due"]:
        yield f"{_counted(shown['due'], 'message')} due"
    held = shown["held"]
    if blocked or held["messages"]:
        keys = ", ".join(f"{each['key']!r} ({each['messages']})" for each in held["keys"])
        yield (
            f"{_counted(blocked, 'key')} blocked, with {_counted(held['messages'], 'message')} held:"
            f" {keys}{', ...' if blocked > len(held['keys']) else ''}"
        )
    if shown["dead_letters"]:
        yield _counted(shown["dead_letters"], "dead letter")
    if not shown["counted_all"]:
        yield f"there are more of these: counted were the first {COUNTED_MAX} of each kind"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def pause(path: Path, name: str, *, is_paused: bool, reason: str) -> int:
    """Pause a route, or let it go on."""
    config = load(path, needs_secrets=False)
    route = route_of(config, name)
    configure_logging("human", "warning")

    async def tell() -> int:
        async with connected_to_app(config, "control") as broker:
            verb = "pause" if is_paused else "resume"
            async with Journal(broker, config).act(verb, route.name, reason=reason):
                await Control(broker, config.app).pause(route.name, is_paused=is_paused, reason=reason)
        say(f"route {route.name} {'is paused, also over restarts' if is_paused else 'goes on'}")
        return EXIT_OK

    return asyncio.run(tell())


def reset(path: Path, name: str, to: str, *, keep_context: bool, is_sure: bool) -> int:
    """Make a route read again from `to`: `start`, a sequence, or a time."""
    config = load(path, needs_secrets=False)
    route = route_of(config, name)
    configure_logging("human", "warning")
    return asyncio.run(_reset(config, route, _target(to), keep_context=keep_context, is_sure=is_sure))


def _target(to: str) -> int | datetime:
    if to == "start":
        return 1
    if to.isdecimal() and int(to) > 0:
        return int(to)
    try:
        return datetime.fromisoformat(to).astimezone()
    except (ValueError, OverflowError):
        text = f"{to!r} is neither `start`, nor a sequence, nor a time such as 2026-01-31T08:00"
        raise typer.BadParameter(text, param_hint="--to") from None


async def _reset(
    config: Config, route: Route, to: int | datetime, *, keep_context: bool, is_sure: bool
) -> int:
    async with connected_to_app(config, "reset") as broker:
        control = Control(broker, config.app)
        try:
            target = await control.target(route, to)
        except ValueError as err:
            raise typer.BadParameter(str(err), param_hint="--to") from err
        at = "nowhere" if target.lowest is None else f"{target.lowest}"
        if target.lowest is not None and route.partitions > 1:
            at += " (of the partition furthest behind)"
        what = (
            f"route {route.name}: from position {at} to {target.sequence - 1} of {target.source.stream}, "
            f"{'with its contexts' if keep_context else 'and its contexts are removed'}"
        )
        if not is_sure and not is_confirmed(
            f"{what}. Its outputs from there on are made again. Do it?", "outputs will be made again"
        ):
            say("nothing was changed")
            return EXIT_FAILED
        async with Journal(broker, config).act("reset", route.name, data=target.facts()):
            moved = await control.reset_to(target, keep_context=keep_context)
        say(f"{what} ({_counted(moved, 'partition')})")
        return EXIT_OK
