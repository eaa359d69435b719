"""`dlq`: what was given up, and what is to become of it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import orjson
import typer

from processor.cli.connection import connected_to_app
from processor.cli.inputs import is_confirmed, moment_s, route_of
from processor.cli.terminal import (
    EXIT_FAILED,
    EXIT_OK,
    Screen,
    complain,
    printable,
    say,
)
from processor.codec import content_of
from processor.config import Config, load
from processor.deadletters import DeadLetter, DeadLetters, Filter
from processor.errors import CODES, BrokerError
from processor.jetstream import Broker
from processor.telemetry import configure_logging

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
    if code is not None and code not in CODES:
        raise typer.BadParameter(f"{code!r} is no error code, such as E304", param_hint="--reason")
    which = Filter(route or "", id or "", code or "", moment_s(since) if since else 0.0)
    config = load(path)
    if route is not None:
        route_of(config, route)
    configure_logging("human", "warning")
    return asyncio.run(_do(action, config, which, limit, Screen(format), is_sure=is_sure))


async def _do(
    action: str, config: Config, which: Filter, limit: int | None, screen: Screen, *, is_sure: bool
) -> int:
    async with connected_to_app(config, "dlq") as broker:
        letters = await _meant(broker, config.app, which, limit)
        if not letters:
            say(f"there is no dead letter {which.id}" if which.id else "there are no such dead letters")
            return EXIT_FAILED if which.id else EXIT_OK
        if action in ("ls", "show"):
            for letter in letters:
                (_list if action == "ls" else _show)(letter, screen)
            screen.flush()
            return EXIT_OK
        question = f"Drop {len(letters)} dead letter{'' if len(letters) == 1 else 's'} for good?"
        if action == "drop" and not is_sure and not is_confirmed(question, "dropping is for good"):
            say("nothing was dropped")
            return EXIT_FAILED
        return await _change(action, DeadLetters(broker, config.app), letters, config, screen)


async def _meant(broker: Broker, app: str, which: Filter, limit: int | None) -> list[DeadLetter]:
    letters: list[DeadLetter] = []
    async with aclosing(DeadLetters(broker, app).find(which)) as found:
        async for letter in found:
            letters.append(letter)
            if len(letters) == limit:
                break
    return letters


async def _change(
    action: str, store: DeadLetters, letters: list[DeadLetter], config: Config, screen: Screen
) -> int:
    done, code = 0, EXIT_OK
    for letter in letters:
        if action == "redrive" and letter.route not in config.routes:
            complain(f"{letter.id} stays: the configuration has no route {letter.route} to take it up")
            code = EXIT_FAILED
            continue
        try:
            is_done = await (store.redrive if action == "redrive" else store.drop)(letter)
        except BrokerError as err:
            complain(err)
            code = EXIT_FAILED
            continue
        done += is_done
        what = _DONE[action] if is_done else "somebody else was faster"
        if screen.is_json:
            screen.document({"id": letter.id, "done": is_done, "action": action})
        else:
            screen.line(f"{letter.id}  {what}")
    screen.flush()
    say(f"{done} of {len(letters)} {_DONE[action] if done == 1 else _DONE[action].replace('its', 'their')}")
    return code


def _list(letter: DeadLetter, screen: Screen) -> None:
    if screen.is_json:
        screen.document(letter.facts())
        return
    screen.line(
        f"{letter.id}  {letter.failed_at}  {letter.code}  x{letter.tries}  {printable(letter.reason)}"
    )


def _show(letter: DeadLetter, screen: Screen) -> None:
    if screen.is_json:
        content = content_of(letter.delivery.payload)
        screen.document({**letter.facts(), "headers": dict(letter.delivery.headers), **content})
        return
    traceback = orjson.loads(letter.traceback) if letter.traceback else ""
    screen.problem(f"{letter.id} {letter.code} {letter.reason}", traceback)
    screen.items({**letter.facts(), "headers": dict(letter.delivery.headers)})
    screen.document(content_of(letter.delivery.payload))
