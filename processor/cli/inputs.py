"""What a verb is given: lines of a file as messages with a subject made from each, a route's name, and a yes.

The feed of `dev`, `pub` and `try` read their input here, so that a line means the same to each of them. What
cannot be used is a ConfigError at its place.
"""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from processor.cli.terminal import is_terminal
from processor.config import Config
from processor.context.parked import moment
from processor.errors import ConfigError, ProcessorError
from processor.route import Route
from processor.sandbox import documents
from processor.subject import Template

# What Windows programs write in front of UTF-8 text; it belongs to no line.
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of input without its end, where it stood, and its number, counted from 1."""

    text: bytes
    place: str
    number: int = 1


def route_of(config: Config, name: str) -> Route:
    """The route of that name. Raises ConfigError E110 with the nearest one there is."""
    if name in config.routes:
        return config.routes[name]
    if config.has_engine and (name == "graphs" or name.startswith("nodes-")):
        raise ConfigError(
            "E110",
            f"route {name!r} runs graphs: nobody but the engine changes what it keeps",
            place=str(config.path),
            remedy="`processor graph` shows runs and steers them.",
        )
    near = difflib.get_close_matches(name, config.routes, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Its routes are {', '.join(config.routes)}."
    raise ConfigError("E110", f"has no route {name!r}", place=str(config.path), remedy=hint)


def is_confirmed(question: str, why: str) -> bool:
    """What a person answers. Where nobody can be asked, `--yes` has to be given, because of `why`."""
    if not is_terminal(sys.stdin):
        raise typer.BadParameter(f"{why}; say --yes", param_hint="--yes")
    return typer.confirm(question, err=True)


def moment_s(text: str) -> float:
    """What `--since` says, as seconds since 1970: so long ago (30s, 10m, 2h, 7d), or a time."""
    try:
        return moment(text).timestamp()
    except (ValueError, OverflowError):
        hint = f"{text!r} is neither a span such as 2h nor a time such as 2026-01-31T08:00"
        raise typer.BadParameter(hint, param_hint="--since") from None


def read_all(file: str) -> bytes:
    """The content of a file, or of standard input for `-`. Raises ConfigError E107."""
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as err:
        raise ConfigError("E107", f"cannot be read: {err.strerror}", place=file) from err


def lines_of(content: bytes, file: str, *, keep_empty: bool = False) -> list[Line]:
    """The lines of `content`; empty ones are left out unless they are asked for."""
    name = "stdin" if file == "-" else file
    found = content.removeprefix(BOM).split(b"\n")
    if not found[-1]:
        found.pop()
    return [
        Line(text, f"{name}:{number}:1", number)
        for number, text in enumerate((line.removesuffix(b"\r") for line in found), 1)
        if keep_empty or text.strip()
    ]


def parse_template(text: str) -> Template:
    """A subject whose placeholders are fields of each line. Raises ConfigError E104."""
    try:
        template = Template.parse(text)
        if template.needs_key or template.needs_session or template.subject_tokens:
            raise ValueError("only fields of the line can be placeholders here, such as ticks.{symbol}")
    except ValueError as err:
        raise ConfigError("E104", f"the subject cannot be used: {err}") from err
    return template


def subject_of(template: Template, line: Line) -> str:
    """The subject of a line. Raises ConfigError E104 at the line's place where it gives none."""
    if not template.fields:
        return template.text
    try:
        document = documents.loads(line.text)
    except ValueError as err:
        raise ConfigError(
            "E104", f"is not JSON ({err}), and '{template.text}' needs fields of it", place=line.place
        ) from err
    try:
        return template.render(fields=[_field(document, name) for name in template.fields])
    except ProcessorError as err:
        raise ConfigError("E104", err.what, place=line.place, remedy=err.remedy) from err


def _field(document: Any, dotted: str) -> str:
    for name in dotted.split("."):
        document = document.get(name) if isinstance(document, dict) else None
    is_token = isinstance(document, str | int) and not isinstance(document, bool)
    return str(document) if is_token else ""
