"""What a log or a terminal is given: nothing in it that it would obey."""

from __future__ import annotations

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.cli.terminal import Screen, Shown, complain, say, warn
from processor.errors import Fault, ProcessorError
from processor.printable import printable, printable_json, printable_lines
from processor.telemetry import configure_logging

HOSTILE = "a\x9b2Jb\u2028c\u202ed\x7fe\x1b[31mf\U000e0001g"
SHOWN = r"a\x9b2Jb\u2028c\u202ed\x7fe\x1b[31mf\U000e0001g"


@given(st.text())
def test_every_character_that_is_left_is_printable(text: str) -> None:
    """Whatever is escaped, one printable line is what remains, and printable text stays as it is."""
    assert printable(text).isprintable()
    assert (printable(text) == text) is text.isprintable()


@given(
    st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_json_stays_the_same_document(document: object) -> None:
    """What JSON escapes reads as before, on one line and indented."""
    for indent in (None, 2):
        text = printable_json(json.dumps(document, ensure_ascii=False, indent=indent))
        assert text.replace("\n", "").isprintable()
        assert json.loads(text) == json.loads(json.dumps(document))


def test_colours_are_left_only_where_they_may_be() -> None:
    """Our own colours pass to a terminal; other codes, and all of them elsewhere, are shown."""
    assert printable_lines("\x1b[31mred\x1b[0m\x1b[2J\nnext", may_colour=True) == (
        "\x1b[31mred\x1b[0m\\x1b[2J\nnext"
    )
    assert printable_lines("\x1b[31mred") == "\\x1b[31mred"


@pytest.mark.parametrize("format", ["human", "json"])
def test_a_log_line_holds_nothing_that_is_not_printable(format: str) -> None:
    """A sentence, a field and a traceback with control characters stay lines of printable text."""
    log = io.StringIO()
    configure_logging("human" if format == "human" else "json", "info", stream=log)
    extra = {"key": HOSTILE, "traceback": HOSTILE}
    logging.getLogger("processor").info(HOSTILE, extra=extra)
    lines = log.getvalue().split("\n")
    assert all(line.isprintable() for line in lines)
    if format == "human":
        assert [line.count(SHOWN) for line in lines] == [2, 1, 0]
    else:
        said = json.loads(lines[0])
        assert (said["message"], said["key"], said["traceback"]) == (HOSTILE, HOSTILE, HOSTILE)


@pytest.mark.parametrize("format", ["human", "json"])
def test_the_command_line_prints_nothing_that_is_not_printable(
    format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Messages, documents, tables, problems and complaints show control characters to whoever looks."""
    text = HOSTILE
    screen = Screen(format)
    screen.message(Shown(text, text.encode(), {"H": text}, kind="dead letter", code="E304", reason=text))
    screen.message(Shown("a", json.dumps({"t": text}, ensure_ascii=False).encode()))
    screen.document({"a": text, "b": [text]})
    screen.items({text: text})
    screen.table([text], [[text]], elastic=1)
    screen.problem(text, text)
    screen.heading(text)
    screen.line(text)
    say(text)
    complain(text)
    warn([Fault("f", 1, 1, "E201", text)])
    out, err = capsys.readouterr()
    assert out.replace("\n", "").isprintable()
    assert err.replace("\n", "").isprintable()
    assert err.count("\n") == 3


def test_a_remedy_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """An error is one line that ends with what to do: its own remedy, or else that of its code."""
    complain(ProcessorError("E110", "has no route 'x'", remedy="Did you mean y?"))
    complain(ProcessorError("E110", "has no route 'x'"))
    assert capsys.readouterr().err.splitlines() == [
        "E110 has no route 'x'. Did you mean y?",
        "E110 has no route 'x'. Use the name that is suggested.",
    ]
