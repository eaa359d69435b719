"""`context`: what a route has committed, looked at and changed from outside of its owner.

What is shown is JSON, with the nearest that it has for a value that it lacks; with `--typed`, and in what
`export` writes and `import` reads, such a value is written as it is kept: `{"$set": [1, 2]}`.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson
import typer

from processor.cli.connection import connected_to_app
from processor.cli.inputs import is_confirmed, moment_s, route_of
from processor.cli.terminal import (
    EXIT_FAILED,
    EXIT_OK,
    Screen,
    complain,
    exit_code_of,
    say,
)
from processor.config import Config, load
from processor.context.history import Author, Record, me
from processor.errors import BrokerError, ConfigError, ProcessorError
from processor.operate.edits import ContextEdits, Edit, plain_of, value_of
from processor.printable import printable, printable_json
from processor.route import Route
from processor.sandbox.values import TOMBSTONE, decode, encode
from processor.telemetry import configure_logging

# What follows CONFIG and ROUTE: at least, and at most, so many words.
ACTIONS = {
    "get": ("KEY [PATH]", 1, 2),
    "full": ("", 0, 0),
    "set": ("KEY PATH VALUE", 3, 3),
    "append": ("KEY PATH VALUE", 3, 3),
    "pop": ("KEY PATH", 2, 2),
    "delete": ("KEY [PATH]", 1, 2),
    "history": ("KEY", 1, 1),
    "export": ("[KEY]", 0, 1),
    "import": ("FILE", 1, 1),
}
# Contexts of one commit of an import: in messages and in bytes far below what a commit takes.
_CHUNK_KEYS = 100
_CHUNK_ITEMS = 400
_CHUNK_BYTES = 4 << 20
_SPOOLED_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Options:
    """What the options of `context` say."""

    format: str | None = None
    is_keys_only: bool = False
    is_typed: bool = False
    is_first: bool = False
    reason: str = ""
    limit: int = 0
    since: str | None = None
    is_whole: bool = False
    is_dry: bool = False
    is_sure: bool = False


def contexts(words: list[str], options: Options) -> int:
    """Do what `[ACTION] CONFIG ROUTE ...` says; EXIT_FAILED where what it names is not there."""
    for word in words:
        if word.startswith("--"):
            raise typer.BadParameter(f"there is no option {word}")
    if words[0] not in ACTIONS:
        if len(words) > 1 and not Path(words[0]).exists() and Path(words[1]).exists():
            raise typer.BadParameter(f"{words[0]!r} is not an action; there are {', '.join(ACTIONS)}")
        words = ["get" if len(words) == 3 else "full", *words]
    action, rest = words[0], words[1:]
    usage, least, most = ACTIONS[action]
    if not least <= len(rest) - 2 <= most:
        asked = f"context {action} CONFIG ROUTE {usage}".rstrip()
        raise typer.BadParameter(f"{len(rest)} words follow `{action}`; it is `{asked}`")
    config = load(Path(rest[0]), needs_secrets=False)
    route = route_of(config, rest[1])
    since_s = moment_s(options.since) if options.since else 0.0
    configure_logging("human", "warning")
    return asyncio.run(_do(action, config, route, rest[2:], options, since_s))


async def _do(
    action: str, config: Config, route: Route, words: list[str], options: Options, since_s: float
) -> int:
    screen, author = Screen(options.format), Author(me(), options.reason)
    value = _value(words[2]) if action in ("set", "append") else None
    async with connected_to_app(config, "context") as broker:
        edits = ContextEdits(broker, route)
        match action:
            case "full":
                return await _show_all(edits, route, screen, options)
            case "export":
                return await _export(edits, words[0] if words else None)
            case "import":
                return await _import(edits, route, words[0], author, options)
            case "history":
                return await _show_history(edits, words[0], screen, options, since_s)
            case "get" if len(words) == 1:
                return _show(words[0], await edits.items(words[0]), screen, options)
            case "get":
                screen.document(_shown(await edits.get(*words), options))
                return EXIT_OK
            case "set":
                edit = await edits.set(words[0], words[1], value, author)
            case "append":
                edit = await edits.append(words[0], words[1], value, author)
            case "pop":
                edit = await edits.pop(words[0], words[1], author, is_first=options.is_first)
            case "delete":
                if len(words) == 1 and not _may_delete(words[0], options):
                    return EXIT_FAILED
                edit = await edits.delete(words[0], "".join(words[1:]), author)
    _tell(edit, action, screen, options)
    return EXIT_OK


def _may_delete(key: str, options: Options) -> bool:
    question = f"Delete the whole context of key {printable(key)!r}?"
    if options.is_sure or is_confirmed(question, "this deletes a whole context"):
        return True
    say("nothing was deleted")
    return False


def _value(text: str) -> Any:
    try:
        return value_of(sys.stdin.buffer.read() if text == "-" else text)
    except ValueError as err:
        hint = "" if text == "-" else """; a text needs its quotes: '"text"'"""
        raise typer.BadParameter(f"the value {err}{hint}", param_hint="VALUE") from None


# look


def _shown(value: Any, options: Options) -> Any:
    return orjson.Fragment(encode(value)) if options.is_typed else value


def _show(key: str, items: Mapping[str, bytes], screen: Screen, options: Options) -> int:
    code, context = EXIT_OK, {}
    for name, value in items.items():
        try:
            if value != TOMBSTONE:
                context[name] = _shown(decode(value), options)
        except ValueError as err:
            complain(f"E366 context[{name!r}] of key {key!r} cannot be read: {err}.")
            code = EXIT_FAILED
    screen.document({"key": key, "context": context})
    return code


async def _show_all(edits: ContextEdits, route: Route, screen: Screen, options: Options) -> int:
    found, code = 0, EXIT_OK
    async for key, items in edits.full():
        found += 1
        if options.is_keys_only:
            screen.line(printable(key))
        else:
            code = _show(key, items, screen, options) or code
    if not found:
        say(f"route {route.name} has kept nothing")
    return code


async def _show_history(
    edits: ContextEdits, key: str, screen: Screen, options: Options, since_s: float
) -> int:
    records = await edits.history(key, limit=options.limit, since_s=since_s)
    for record in records:
        if screen.is_json:
            screen.document(_facts(record, options))
        else:
            _show_record(record, screen)
    if not records:
        say(f"there is no record of key {printable(key)!r}")
        return EXIT_FAILED
    return EXIT_OK


def _facts(record: Record, options: Options) -> dict[str, Any]:
    who = (
        {"action": record.action, "by": record.by, "reason": record.reason}
        if record.action
        else {"first": record.first, "last": record.last}
    )
    facts: dict[str, Any] = {"key": record.key, "id": record.id, "at": record.at, **who}
    facts["items"] = {name: _shown(decode(value), options) for name, value in record.items.items()}
    facts |= {"removed": list(record.removed), "bytes": record.bytes}
    flags = {"whole": record.is_whole, "deleted": record.is_gone, "abridged": record.is_abridged}
    facts |= {name: True for name, is_so in flags.items() if is_so}
    return {**facts, "sizes": dict(record.sizes)} if record.is_abridged else facts


def _show_record(record: Record, screen: Screen) -> None:
    if record.action:
        why = f" ({record.reason})" if record.reason else ""
        who = f"{record.action} by {record.by}{why}"
    elif record.last:
        who = f"messages {record.first} to {record.last}"
    else:
        who = "messages that had waited"
    screen.heading(printable(f"{record.at}  {record.id}  {who}"))
    if record.is_gone:
        screen.line("  the context was deleted")
    if record.is_abridged:
        screen.line(f"  {len(record.sizes) or 'too many'} items changed, too large to be recorded")
    screen.items({name: decode(value) for name, value in record.items.items()})
    for name in record.removed:
        screen.line(f"  {printable(name)} was removed")


# change


def _tell(edit: Edit, action: str, screen: Screen, options: Options) -> None:
    if screen.is_json:
        taken = {"value": _shown(edit.value, options)} if action == "pop" else {}
        screen.document({**edit.facts(), **taken})
    elif action == "pop":
        screen.document(_shown(edit.value, options))
    if not edit.id:
        say("it was so already: nothing was changed")
        return
    what = [f"changed {name}" for name in edit.changed] + [f"removed {name}" for name in edit.removed]
    say(printable(f"{', '.join(what) or 'deleted the context'}; key {edit.key!r} has {edit.bytes} bytes now"))


async def _export(edits: ContextEdits, key: str | None) -> int:
    if key is not None:
        _export_one(key, await edits.items(key))
        return EXIT_OK
    count = 0
    async for name, items in edits.full():
        _export_one(name, items)
        count += 1
    say(f"exported {_counted(count)}")
    return EXIT_OK


def _export_one(key: str, items: Mapping[str, bytes]) -> None:
    line = {"key": key, "context": {name: orjson.Fragment(value) for name, value in items.items()}}
    sys.stdout.write(printable_json(orjson.dumps(line).decode()) + "\n")


async def _import(edits: ContextEdits, route: Route, file: str, author: Author, options: Options) -> int:
    """Bring in the lines of a file: all are looked at before the first is stored."""
    with _spooled(file) as lines:
        count, faults = 0, 0
        for place, line in _lines(lines, file):
            count += 1
            try:
                key, items = _read(line)
                edits.check(key, items)
            except (ProcessorError, ValueError) as err:
                fault = err if isinstance(err, ProcessorError) else ConfigError("E104", str(err))
                complain(ConfigError(fault.code, fault.what, place=place, remedy=fault.remedy))
                faults += 1
        if faults:
            say("nothing was imported")
            return EXIT_FAILED
        how = "replacing what their keys have" if options.is_whole else "laid over what their keys have"
        question = f"Import {_counted(count)} into route {route.name}, {how}?"
        if not options.is_dry and not options.is_sure and not is_confirmed(question, "this changes contexts"):
            say("nothing was imported")
            return EXIT_FAILED
        lines.seek(0)
        done, changed = 0, 0
        async for place, stored in _put_all(edits, lines, file, author, options):
            if isinstance(stored, ProcessorError):
                complain(ConfigError(stored.code, stored.what, place=place, remedy=stored.remedy))
                say(f"{done} of {_counted(count)} were imported before it")
                return exit_code_of(stored)
            done += len(stored)
            changed += sum(bool(edit.id) for edit in stored)
    would = "would be" if options.is_dry else "were"
    say(f"{_counted(count)}: {changed} {would} changed, {count - changed} are so already")
    return EXIT_OK


def _spooled(file: str) -> IO[bytes]:
    """The file, or standard input in a file of its own: it is read twice."""
    if file != "-":
        try:
            return Path(file).open("rb")
        except OSError as err:
            raise ConfigError("E107", f"cannot be read: {err.strerror}", place=file) from err
    spool: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_SPOOLED_BYTES)  # noqa: SIM115
    while block := sys.stdin.buffer.read(1 << 20):
        spool.write(block)
    spool.seek(0)
    return spool


def _lines(lines: IO[bytes], file: str) -> Iterator[tuple[str, bytes]]:
    name = "stdin" if file == "-" else file
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{name}:{number}:1", line


def _read(line: bytes) -> tuple[str, dict[str, bytes]]:
    document = plain_of(line)
    if not isinstance(document, dict) or set(document) != {"key", "context"}:
        raise ValueError('is not {"key": ..., "context": {...}}')
    key, context = document["key"], document["context"]
    if not isinstance(key, str) or not isinstance(context, dict):
        raise ValueError('has a "key" that is not a text, or a "context" that is not an object')
    return key, {name: orjson.dumps(value) for name, value in context.items()}


async def _put_all(
    edits: ContextEdits, lines: IO[bytes], file: str, author: Author, options: Options
) -> AsyncIterator[tuple[str, list[Edit] | ProcessorError]]:
    """What became of the lines, a commit's worth at a time; ends with the first that could not be stored."""
    chunk: dict[str, _Line] = {}
    for place, text in _lines(lines, file):
        key, items = _read(text)
        line = _Line(place, items, len(text))
        if chunk and (key in chunk or not _fits(chunk.values(), line)):
            async for result in _put(edits, chunk, author, options):
                yield result
            chunk = {}
        chunk[key] = line
    async for result in _put(edits, chunk, author, options):
        yield result


@dataclass(frozen=True, slots=True)
class _Line:
    place: str
    items: dict[str, bytes]
    bytes: int


def _fits(chunk: Collection[_Line], line: _Line) -> bool:
    return (
        len(chunk) < _CHUNK_KEYS
        and sum(len(each.items) for each in chunk) + len(line.items) <= _CHUNK_ITEMS
        and sum(each.bytes for each in chunk) + line.bytes <= _CHUNK_BYTES
    )


async def _put(
    edits: ContextEdits, chunk: Mapping[str, _Line], author: Author, options: Options
) -> AsyncIterator[tuple[str, list[Edit] | ProcessorError]]:
    contexts = {key: line.items for key, line in chunk.items()}
    try:
        yield "", await edits.put(contexts, author, is_whole=options.is_whole, is_dry=options.is_dry)
    except ProcessorError as err:
        [first, *others] = chunk
        if not others or isinstance(err, BrokerError):
            yield chunk[first].place, err
            return
        for key, line in chunk.items():  # one of them cannot be stored: find out which
            try:
                only = {key: line.items}
                yield "", await edits.put(only, author, is_whole=options.is_whole, is_dry=options.is_dry)
            except ProcessorError as alone:
                yield line.place, alone
                return


def _counted(count: int) -> str:
    return f"{count} context{'' if count == 1 else 's'}"
