"""What the app's stream says of a graph, its head, and how long its versions stay there.

A version that no head names and no run has is stored again in a form that goes away in a week: so it stays
readable meanwhile, and one that is needed again is simply stored again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

from processor.context.subjects import GraphSubjects, app_stream, names_of
from processor.graphs.checks import Problem
from processor.jetstream import EXPECTED, KEPT, Broker, Outgoing, Stored, WrongLastSequence

Status = Literal["VALID", "PENDING", "INVALID"]
_ERRORS_MAX = 100
_TEXT_CHARS = 500
_RUNS_READ = 10_000  # a graph with more open runs keeps its versions
_UNUSED = "Graph-Unused"
_UNUSED_S = 7 * 86_400


@dataclass(frozen=True, slots=True)
class GraphHead:
    """What is said of a graph: its newest version, whether that is valid, and which version runs begin with.

    `version` may be another than `valid`, which is empty where none ever was. `errors` are what keeps the
    newest from being valid.
    """

    name: str
    version: str
    status: Status
    valid: str = ""
    errors: tuple[Mapping[str, str], ...] = ()
    by: str = ""
    at: str = ""  # when, in UTC
    source: Literal["config", "request"] = "request"
    sequence: int = field(default=0, compare=False)  # of its message, which fences the next

    @property
    def document(self) -> bytes:
        """As it is stored."""
        return orjson.dumps(self.said)

    @property
    def said(self) -> dict[str, Any]:
        """As requests and command lines show it."""
        return {
            "v": 1,
            "name": self.name,
            "version": self.version,
            "status": self.status,
            "errors": list(self.errors),
            "valid": self.valid or None,
            "by": self.by,
            "at": self.at,
            "from": self.source,
        }

    @classmethod
    def read(cls, name: str, stored: Stored) -> GraphHead | None:
        """What a message says of a graph; None where it does not."""
        try:
            said = orjson.loads(stored.payload)
            status, source = said["status"], said["from"]
            if status not in ("VALID", "PENDING", "INVALID") or source not in ("config", "request"):
                return None
            errors = tuple({str(key): str(each[key]) for key in each} for each in said["errors"])
            version, valid = str(said["version"]), str(said["valid"] or "")
            by, at = str(said["by"]), str(said["at"])
        except (ValueError, KeyError, TypeError):
            return None
        return cls(name, version, status, valid, errors, by, at, source, stored.sequence)


def sentence_of(error: Mapping[str, str]) -> str:
    """One of the `errors` of a head as people read it."""
    return f"{error.get('code', '')} {error.get('text', '')}"


def errors_of(problems: Sequence[Problem]) -> tuple[Mapping[str, str], ...]:
    """What a head says of the problems of a graph."""
    return tuple(
        {"place": problem.path[:_TEXT_CHARS], "code": problem.code, "text": problem.text[:_TEXT_CHARS]}
        for problem in problems[:_ERRORS_MAX]
    )


def now() -> str:
    """The time in UTC, as heads and kinds have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def let_unused_go(
    broker: Broker, app: str, head_of: Callable[[str], Awaitable[GraphHead | None]]
) -> None:
    """Let the versions that no head names and no run has go in a week, and keep those that one has.

    `head_of` reads a head as it is now. Raises what the broker raises.
    """
    subjects = GraphSubjects(app)
    found: dict[str, dict[str, bool]] = {}
    async for stored in broker.history(app_stream(app), [subjects.versions()], headers_only=True):
        name, version = names_of(stored.subject)
        found.setdefault(name, {})[version] = _UNUSED in stored.headers
    for name, versions in found.items():
        head = await head_of(name)
        named = {head.version, head.valid} if head else set[str]()
        doubtful = versions.keys() - named
        if not doubtful and not any(versions.values()):
            continue
        used = named | await _used_versions(broker, app, name, doubtful)
        for version, is_unused in versions.items():
            if (version in used) == is_unused:
                await _mark(broker, app, subjects.graph(name, version), is_unused=not is_unused)


async def _used_versions(broker: Broker, app: str, graph: str, doubtful: Set[str]) -> Set[str]:
    """Those of some versions that an open run may have."""
    stream, pattern = app_stream(app), GraphSubjects(app).runs(graph, "running")
    if await broker.count(stream, [pattern], 1) > _RUNS_READ:
        return doubtful
    found: set[str] = set()
    async for stored in broker.history(stream, [pattern]):
        with suppress(ValueError, TypeError, KeyError):
            found.add(str(orjson.loads(stored.payload)["version"]))
    return found


async def _mark(broker: Broker, app: str, subject: str, *, is_unused: bool) -> None:
    stored = await broker.last_from_leader(app_stream(app), subject)
    if stored is None or not stored.payload:
        return
    headers = {"Nats-Rollup": "sub", "Nats-TTL": f"{_UNUSED_S}s", _UNUSED: "1"} if is_unused else KEPT
    with suppress(WrongLastSequence):  # somebody stored it again
        await broker.commit([Outgoing(subject, stored.payload, {**headers, EXPECTED: str(stored.sequence)})])
