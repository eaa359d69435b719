"""Text as a log or a terminal may be given it: every character that is not printable is shown, not obeyed.

What users, messages and servers write reaches logs and the command line. A terminal obeys U+009B as it does
an escape, readers of lines end one at U+2028, and U+202E turns around what follows it. All of that, and
whatever else `str.isprintable` does not count as printable, is escaped: as Python writes it, and in JSON as
JSON does, where it stays the same document.
"""

from __future__ import annotations

import re

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str) -> str:
    """`text` on one line, with every character visible that could do something to a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _SHORT.get(c) or _escaped(ord(c)) for c in text)


def printable_lines(text: str, *, may_colour: bool = False) -> str:
    """The same for a text of several lines; `may_colour` leaves the colours that are in it."""
    if may_colour and "\x1b[" in text:
        parts = _COLOUR.split(text)
        parts[::2] = [printable_lines(part) for part in parts[::2]]
        return "".join(parts)
    return "\n".join(map(printable, text.split("\n")))


def printable_json(text: str) -> str:
    """The same for JSON, of one line or indented: an equal document."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else _escaped_in_json(ord(c)) for c in text)


_COLOUR = re.compile("(\x1b\\[[0-9;]*m)")


def _escaped(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _escaped_in_json(code: int) -> str:
    if code < 0x10000:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
