"""`dlq`: what was given up, and what is to become of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import typer

from processor.cli.connection import connected_to_app
from processor.cli.inputs import is_confirmed, moment_s, route_of
from processor.cli.terminal import (
    EXIT_FAILED,
    EXIT_OK,
    Screen,
    complain,
    say,
)
from processor.config import Config, load
from processor.delivery.codec import codec_for, content_of, headers_shown, key_of
from processor.errors import ERRORS, BrokerError
from processor.operate.dead_letters import DeadLetters, Filter, StoredDeadLetter
from processor.operate.journal import Journal
from processor.printable import printable
from processor.telemetry import configure_logging

_AT_ONCE = 250  # letters in memory
_DONE = {"redrive": "sent back to its route", "drop": "dropped"}


def dead_letters(
    action: str,
    path: Path,
    *,
    route: str | None,
    id: str | None,
    since: str | None,
    code: str | None,
    limit: int | None,
    is_sure: bool,
    format: str | None,
) -> int:
    """Do `action` with the dead letters that are meant; EXIT_FAILED where one that was named is not there."""
    if code is not None and code not in ERRORS:
        raise typer.BadParameter(f"{code!r} is not an error code, such as E304", param_hint="--reason")
    which = Filter(route or "", id or "", code or "", moment_s(since) if since else 0.0)
    config = load(path, needs_secrets=False)
    if route is not None:
        route_of(config, route)
    configure_logging("human", "warning")
    return asyncio.run(_do(action, config, which, limit, Screen(format), is_sure=is_sure))


async def _do(
    action: str, config: Config, which: Filter, limit: int | None, screen: Screen, *, is_sure: bool
) -> int:
    async with connected_to_app(config, "dlq") as broker:
        store, journal = DeadLetters(broker, config.app), Journal(broker, config)
        if action == "drop":
            count = 0
            async with aclosing(_meant(store, which, limit)) as found:
                async for _ in found:
                    count += 1
            question = f"Drop {count} dead letter{'' if count == 1 else 's'} for good?"
            if count and not is_sure and not is_confirmed(question, "dropping is for good"):
                say("nothing was dropped")
                return EXIT_FAILED
            limit = count  # what was given up meanwhile is not meant
        chosen = _Chosen()
        async with aclosing(_meant(store, which, limit)) as found:
            group: list[StoredDeadLetter] = []
            async for letter in found:
                chosen.count += 1
                if action in ("ls", "show"):
                    (_list if action == "ls" else _show)(letter, _facts(letter, config), screen)
                    continue
                group.append(letter)
                if len(group) == _AT_ONCE:
                    await _change(action, store, journal, group, config, screen, chosen)
                    group = []
            await _change(action, store, journal, group, config, screen, chosen)
        if not chosen.count:
            say(f"there is no dead letter {which.id}" if which.id else "there are no such dead letters")
            return EXIT_FAILED if which.id else EXIT_OK
        screen.flush()
        if action in _DONE:
            what = _DONE[action] if chosen.done == 1 else _DONE[action].replace("its", "their")
            say(f"{chosen.done} of {chosen.count} {what}")
        return chosen.code


@dataclass(slots=True)
class _Chosen:
    """The dead letters that were meant, so far, and what became of them."""

    count: int = 0
    done: int = 0
    code: int = EXIT_OK


async def _meant(
    store: DeadLetters, which: Filter, limit: int | None
) -> AsyncGenerator[StoredDeadLetter, None]:
    count = 0
    async with aclosing(store.find(which)) as found:
        async for letter in found:
            if count == limit:
                return
            count += 1
            yield letter


async def _change(
    action: str,
    store: DeadLetters,
    journal: Journal,
    letters: list[StoredDeadLetter],
    config: Config,
    screen: Screen,
    chosen: _Chosen,
) -> None:
    known: list[StoredDeadLetter] = []
    for letter in letters:
        if action == "drop" or letter.route in config.routes:
            known.append(letter)
        else:
            complain(f"{letter.id} stays: the configuration has no route {letter.route} to process it")
            chosen.code = EXIT_FAILED
    if not known:
        return
    # Letters of several routes: the ids say of which.
    routes = sorted({letter.route for letter in known})
    async with journal.act(f"dlq.{action}", ",".join(routes)) as act:
        outcomes = await (store.redrive_all if action == "redrive" else store.drop_all)(known)
        ends = {
            letter.id: "failed" if isinstance(outcome, BrokerError) else "done" if outcome else "missed"
            for letter, outcome in zip(known, outcomes, strict=True)
        }
        act.sum_up(ends)
    for letter, outcome in zip(known, outcomes, strict=True):
        if isinstance(outcome, BrokerError):
            complain(outcome)
            chosen.code = EXIT_FAILED
            continue
        chosen.done += outcome
        what = _DONE[action] if outcome else "another process did it first"
        if screen.is_json:
            screen.document({"id": letter.id, "done": outcome, "action": action})
        else:
            screen.line(f"{letter.id}  {what}")


def _facts(letter: StoredDeadLetter, config: Config) -> dict[str, Any]:
    """What is known of a letter, with its key where the configuration says what that is."""
    route = config.routes.get(letter.route)
    key = key_of(letter.delivery, codec_for(route)) if route is not None else ""
    return {**letter.facts(), **({"key": key} if key else {})}


def _list(letter: StoredDeadLetter, facts: dict[str, Any], screen: Screen) -> None:
    if screen.is_json:
        screen.document(facts)
        return
    key = f"  key={printable(facts['key'])}" if "key" in facts else ""
    reason = printable(letter.reason)
    screen.line(f"{letter.id}{key}  {letter.failed_at}  {letter.code}  x{letter.tries}  {reason}")


def _show(letter: StoredDeadLetter, facts: dict[str, Any], screen: Screen) -> None:
    facts = {**facts, "headers": headers_shown(letter.delivery.headers)}
    if screen.is_json:
        screen.document({**facts, **content_of(letter.delivery.payload)})
        return
    traceback = orjson.loads(letter.traceback) if letter.traceback else ""
    screen.problem(f"{letter.id} {letter.code} {letter.reason}", traceback)
    screen.items(facts)
    screen.document(content_of(letter.delivery.payload))
