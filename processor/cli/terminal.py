"""What the command line says, to whom, and how it ends.

Every verb writes through this module. Standard output carries what was asked for and nothing else: lines for
people on a terminal, one JSON object per line otherwise (or as `--format` says). Everything about the work
itself, such as errors, progress and summaries, goes to standard error. A verb ends with one of the exit codes
below.

Payloads are hostile: nothing in them may start a line of its own or steer the terminal.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import sys
import unicodedata
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TextIO

import orjson

from processor.delivery.codec import content_of, headers_shown
from processor.errors import ERRORS, ERRORS_PAGE, Fault, Faults, ProcessorError, page_of
from processor.model import subject_text
from processor.printable import printable, printable_json, printable_lines

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_BROKER = 3
EXIT_DIRTY = 4
EXIT_INTERRUPTED = 130

EXITS: dict[int, tuple[str, str]] = {
    EXIT_OK: ("EXIT_OK", "done; for run, dev and tail also: stopped by Ctrl-C or SIGTERM"),
    EXIT_FAILED: (
        "EXIT_FAILED",
        "a message failed, a route does not run, what was asked for is not there, or a jail is too weak",
    ),
    EXIT_CONFIG: (
        "EXIT_CONFIG",
        "the command line, the configuration, a Runnable or a recipe has a fault (E1xx, E2xx, E713, E715)",
    ),
    EXIT_BROKER: ("EXIT_BROKER", "the NATS server or a stream cannot be used (E4xx)"),
    EXIT_DIRTY: ("EXIT_DIRTY", "stopped before everything in hand was settled; it is done again later"),
    EXIT_INTERRUPTED: ("EXIT_INTERRUPTED", "Ctrl-C ended a command that was not finished"),
}

_TEXT_MAX = 1000  # characters of one message or value on a terminal
# Of a table on a terminal: rows that are shown at least, lines of a screen that are left for what goes with
# it, and the narrowest column.
_ROWS_MIN = 6
_LINES_BESIDE_ROWS = 10
_COLUMN_MIN = 6
_COLOURS = (36, 32, 35, 34, 33, 96, 92, 95, 94)
_RED, _YELLOW, _DIM = 31, 33, 2
# What is wrong before a recipe runs: its file, an option, or that its steps may not run here.
_OF_RECIPES = ("E713", "E715", "E719")
_CODE = re.compile(r"\bE\d{3}\b")


def exit_code_of(error: ProcessorError | Faults) -> int:
    """The exit code that belongs to an error."""
    if isinstance(error, Faults):
        return EXIT_CONFIG
    if error.code in _OF_RECIPES:
        return EXIT_CONFIG
    by_kind = {"1": EXIT_CONFIG, "2": EXIT_CONFIG, "4": EXIT_BROKER}
    return by_kind.get(error.code[1], EXIT_FAILED)


def complain(error: ProcessorError | Faults | str) -> None:
    """One line on standard error for each thing that is wrong."""
    if isinstance(error, Faults):
        lines = [str(fault) for fault in error.faults]
    else:
        lines = [error if isinstance(error, str) else with_remedy(error)]
    for line in lines:
        say(_painted(printable(line), _RED, sys.stderr))


def with_remedy(error: ProcessorError) -> str:
    """The line of an error, with the remedy of its code where the error has none of its own."""
    return str(error) if error.remedy else f"{error} {ERRORS[error.code].remedy}"


def name_pages(*lines: str) -> None:
    """Say last, on standard error, where to read about the codes in `lines`; nothing where there are none."""
    codes = sorted({code for line in lines for code in _CODE.findall(line)} & ERRORS.keys())
    if codes:
        page = page_of(codes[0]) if len(codes) == 1 else ERRORS_PAGE
        say(_painted(f"{page} has more, and so has: processor explain {' '.join(codes)}", _DIM, sys.stderr))


def warn(found: Iterable[Fault]) -> None:
    """One line on standard error for each thing that may be wrong."""
    for fault in found:
        say(_painted(printable(f"warning: {fault}"), _YELLOW, sys.stderr))


def say(text: str) -> None:
    """A line about the work, on standard error."""
    sys.stderr.write(printable_lines(text, may_colour=has_colour(sys.stderr)) + "\n")
    sys.stderr.flush()


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at `stream`."""
    return stream.isatty()


def has_colour(stream: TextIO) -> bool:
    return is_terminal(stream) and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _painted(text: str, colour: int, stream: TextIO) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if has_colour(stream) else text


@dataclass(frozen=True, slots=True)
class Shown:
    """One message to show; `kind` is what it is to the person who looks (`output`, `event`, ...).

    A dead letter also has its id, and the code and the reason of its failure.
    """

    subject: str
    payload: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    time_s: float = 0.0
    sequence: int = 0
    kind: str = ""
    code: str = ""
    reason: str = ""
    id: str = ""


class Screen:
    """Standard output as a place for messages and documents, for people or for programs.

    For people a message is one line: time, subject in its own colour, why it failed, and its content, of
    which a terminal is shown the beginning where it is very long. For programs it is a JSON object with
    `subject`, `headers` where it has any, and `data` (a JSON document), `text`, or `base64` for other bytes;
    `processor try --envelope` reads the same.
    """

    def __init__(self, format: str | None) -> None:
        self.is_json = format == "json" or (format is None and not is_terminal(sys.stdout))
        self._has_colour = has_colour(sys.stdout)

    def message(self, shown: Shown) -> None:
        """Show a message; see `flush`."""
        if self.is_json:
            self.document(envelope(shown))
            return
        moment = datetime.fromtimestamp(shown.time_s).strftime("%H:%M:%S.%f")[:-3] if shown.time_s else ""
        content = printable(_text(shown.payload))
        if _is_chunk(shown):
            content = repr(content)
        why = printable(f"{shown.code} {shown.reason}".strip())
        subject = printable(subject_text(shown.subject))
        colour = _COLOURS[zlib.crc32(subject.encode()) % len(_COLOURS)]
        parts = [
            self._paint(moment, _DIM),
            self._paint(shown.kind, _RED if shown.kind == "dead letter" else _DIM),
            shown.id,
            self._paint(subject, colour),
            self._paint(why, _RED),
            self._beginning(content),
        ]
        self.line(" ".join(part for part in parts if part))

    def document(self, document: Any) -> None:
        """A JSON document: on one line for programs, indented for people."""
        options = orjson.OPT_NON_STR_KEYS | (0 if self.is_json else orjson.OPT_INDENT_2)
        try:
            text = orjson.dumps(document, default=plain, option=options).decode()
        except orjson.JSONEncodeError:  # an integer beyond 64 bits
            text = json.dumps(document, default=plain, ensure_ascii=False, indent=None if self.is_json else 2)
        self.line(printable_json(text))

    def line(self, text: str) -> None:
        sys.stdout.write(printable_lines(text, may_colour=self._has_colour) + "\n")

    def piece(self, text: str) -> None:
        """A piece of a text that comes, at once."""
        sys.stdout.write(printable_lines(text))
        sys.stdout.flush()

    def heading(self, text: str) -> None:
        self.line(self._paint(text, 1))

    def items(self, items: Mapping[str, Any]) -> None:
        """Names with their values, indented, each on a line of its own."""
        for name, value in items.items():
            text = printable_json(json.dumps(value, default=plain, ensure_ascii=False))
            self.line(f"  {printable(name)}: {self._beginning(text)}")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], *, elastic: int) -> None:
        """Rows in columns. A terminal's width is kept by the first `elastic` ones, which may be cut.

        A terminal is shown only as many rows as leave room for other lines.
        """
        room = self._width()
        shown = list(rows)
        if is_terminal(sys.stdout):
            lines = max(_ROWS_MIN, shutil.get_terminal_size().lines - _LINES_BESIDE_ROWS)
            shown = shown[: lines - 1] if len(shown) > lines else shown
        cells = [[printable(cell) for cell in row] for row in (head, *shown)]
        widths = [max(map(_cells, column)) for column in zip(*cells, strict=True)]
        while sum(widths) + 2 * (len(widths) - 1) > room and max(widths[:elastic]) > _COLUMN_MIN:
            widths[widths.index(max(widths[:elastic]))] -= 1
        for number, row in enumerate(cells):
            fitted = [shortened(cell, width) for cell, width in zip(row, widths, strict=True)]
            padded = [cell + " " * (width - _cells(cell)) for cell, width in zip(fitted, widths, strict=True)]
            line = "  ".join(padded).rstrip()
            self.heading(line) if number == 0 else self.line(line)
        if len(shown) < len(rows):
            self.line(f"... and {len(rows) - len(shown)} more")

    def problem(self, what: str, details: str = "") -> None:
        """A line that stands out, and indented below it what belongs to it."""
        self.line(self._paint(printable(what), _RED))
        for detail in details.splitlines():
            self.line(f"    {printable(detail)}")

    def flush(self) -> None:
        """Flush what was written: readers of a pipe wait for it."""
        sys.stdout.flush()

    def _paint(self, text: str, colour: int) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if text and self._has_colour else text

    def _beginning(self, text: str) -> str:
        """All of a text, unless it would fill a terminal."""
        if len(text) <= _TEXT_MAX or not is_terminal(sys.stdout):
            return text
        return f"{text[:_TEXT_MAX]}… {self._paint(f'({len(text):,} characters; a pipe gets all)', _DIM)}"

    def _width(self) -> int:
        # Who redirects lines for people into a file wants all of them.
        return shutil.get_terminal_size().columns if is_terminal(sys.stdout) else 1 << 30


class Runs:
    """Tells which endings of stream-mode runs say something: most runs of many routes send nothing."""

    def __init__(self) -> None:
        self._speaking: set[tuple[str, ...]] = set()

    def is_silent_end(self, headers: Mapping[str, str]) -> bool:
        """Whether a message with these headers ends a run that sent no chunk; asked of every message."""
        names = ("Route", "Sequence", "Attempt")
        run = tuple(headers.get(f"Processor-{name}", "") for name in names)
        if "Processor-Chunk" in headers:
            self._speaking.add(run)
            return False
        ending = headers.get("Processor-Stream")
        if run in self._speaking and ending:
            self._speaking.remove(run)
            return False
        return ending == "end"


def shortened(text: str, cells: int) -> str:
    """`text` cut to at most `cells` columns of a terminal."""
    if len(text) * 2 <= cells or _cells(text) <= cells:
        return text
    used, kept = 1, []
    for character in text:
        used += _cells(character)
        if used > cells:
            break
        kept.append(character)
    return "".join(kept) + "…"


def _cells(text: str) -> int:
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def _is_chunk(shown: Shown) -> bool:
    return "Processor-Chunk" in shown.headers


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return f"base64 {base64.b64encode(payload).decode()}"


def envelope(shown: Shown) -> dict[str, Any]:
    """A message as programs see it, but for its line."""
    envelope: dict[str, Any] = {"kind": shown.kind} if shown.kind else {}
    envelope["subject"] = subject_text(shown.subject)
    if shown.code:
        envelope |= {"id": shown.id, "code": shown.code, "reason": shown.reason}
    if shown.sequence:
        envelope["sequence"] = shown.sequence
    if shown.time_s:
        envelope["time"] = (
            datetime.fromtimestamp(shown.time_s).astimezone().isoformat(timespec="milliseconds")
        )
    if shown.headers:
        envelope["headers"] = headers_shown(shown.headers)
    return envelope | content_of(shown.payload)


def plain(value: Any) -> Any:
    """What JSON has nearest to a kept value that JSON does not have."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, Mapping):
        return dict(value)
    try:
        return list(value)
    except TypeError:
        return str(value)
