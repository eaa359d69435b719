"""What one request over HTTP brings: an answer, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from processor.errors import ProcessorError

HEADERS = 200
HEADER_BYTES = 64 << 10

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said. `headers` are in its order, names in lower case; `body` is unpacked."""

    status: int
    reason: str
    headers: Headers
    body: bytes

    def header(self, name: str) -> str:
        return joined(self.headers, name)


class Unanswered(ProcessorError):
    """A request that was allowed brought no answer; `kind` is connection, tls, timeout or redirects."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__("E317", what, place="requests")
        self.kind = kind


def joined(headers: Headers, name: str) -> str:
    """The value of a header, of which there may be several lines or none."""
    return ", ".join(value for own, value in headers if own == name)


def too_long(what: str) -> ProcessorError:
    """E323 for the headers of an answer."""
    return ProcessorError("E323", f"{what} (limits {HEADERS} and {HEADER_BYTES})", place="requests")


def one_line(text: str, most: int = 500) -> str:
    """What a server says, for a log or an error: on one line, and cut behind so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
