"""Which streams hold a subject, by what they say of themselves.

`streams` asks before a route starts and while it runs, `check --server` asks without a start, and both get
the same answers in the same words. Nothing is made or changed here.

What must stay true: a stream counts for what it covers, not for what it touches. A route reads one stream,
which is the only one that holds a part of its input; an output goes to the stream that holds its subject.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson

from processor.context.subjects import app_stream, committed_subject
from processor.errors import BrokerError
from processor.jetstream import ApiError, Broker
from processor.route import Route
from processor.subject import SubjectIndex, covers, intersection

_LISTED_S = 15.0  # a list of all streams serves all routes that find none
_SHOWN_MAX = 5
_LOOKED_INTO_MAX = 20


class KnownStream:
    """A stream as the server described it at one moment: what it takes and copies is found by subject.

    Thousands of routes may share one, with a subject and a source for each.
    """

    def __init__(self, info: Mapping[str, Any]) -> None:
        self.info = info

    @property
    def config(self) -> Mapping[str, Any]:
        config: Mapping[str, Any] = self.info["config"]
        return config

    @cached_property
    def identity(self) -> bytes:
        """The same for two descriptions of one stream with the same settings."""
        described = orjson.dumps([self.info["created"], self.config], option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(described).digest()

    def taken(self, patterns: Iterable[str]) -> tuple[str, ...]:
        """What the stream takes of these patterns."""
        shared = (
            intersection(subject, pattern)
            for pattern in patterns
            for subject in self._subjects.meeting(pattern)
        )
        return tuple(dict.fromkeys(each for each in shared if each))

    def source(self, app: str, subject: str) -> dict[str, Any] | None:
        """The source by which it copies a public subject from the app's stream; None where it does not."""
        committed = committed_subject(app, subject)
        for taken, source in self._sources.meeting(committed):
            if source["name"] == app_stream(app) and covers(taken, committed):
                return dict(source)
        return None

    @cached_property
    def _subjects(self) -> SubjectIndex[str]:
        return SubjectIndex((subject, subject) for subject in self.config.get("subjects") or [])

    @cached_property
    def _sources(self) -> SubjectIndex[tuple[str, dict[str, Any]]]:
        return SubjectIndex(
            (each["src"], (each["src"], source))
            for source in self.config.get("sources") or []
            for each in source.get("subject_transforms") or []
        )


@dataclass(frozen=True, slots=True)
class Holding:
    """A stream, and what it takes of the subjects that were looked for."""

    stream: KnownStream
    subjects: tuple[str, ...]

    @property
    def info(self) -> Mapping[str, Any]:
        return self.stream.info

    @property
    def name(self) -> str:
        return str(self.info["config"]["name"])

    def __str__(self) -> str:
        return f"{self.name} holds {listed(self.subjects)}"

    def covers(self, pattern: str) -> bool:
        """Whether the stream takes all of a pattern."""
        return any(covers(subject, pattern) for subject in self.subjects)


@dataclass(slots=True)
class _Reading:
    """The requests for what one stream is, one after the other, and who waits for them."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    begun: int = 0
    answered: int = 0
    answer: KnownStream | None = None
    waiting: int = 0


class Holdings:
    """Looks up what the streams of one server hold."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._readings: dict[str, _Reading] = {}
        self._all: list[dict[str, Any]] = []
        self._listed_s = -_LISTED_S

    async def stream(self, name: str) -> KnownStream | None:
        """The stream as it was at some moment after this call; None if there is none.

        Those who wait for the same stream share a request that was sent after all of them had called.
        """
        reading = self._readings.setdefault(name, _Reading())
        wanted = reading.begun + 1
        reading.waiting += 1
        try:
            async with reading.lock:
                if reading.answered < wanted:
                    reading.begun += 1
                    info = await self._broker.stream(name)
                    reading.answer = None if info is None else KnownStream(info)
                    reading.answered = reading.begun
                return reading.answer
        finally:
            reading.waiting -= 1
            if not reading.waiting:
                del self._readings[name]

    async def names(self, pattern: str) -> list[str]:
        """The streams that take messages of a pattern, or of a part of it."""
        return await self._broker.find_streams(pattern)

    async def of(self, patterns: Sequence[str]) -> list[Holding]:
        """Every stream that takes messages of one of these patterns, or of a part of it."""
        names = {name: None for pattern in patterns for name in await self.names(pattern)}
        found = [await self.stream(name) for name in names]
        return [Holding(stream, stream.taken(patterns)) for stream in found if stream is not None]

    async def input(self, route: Route) -> Mapping[str, Any] | None:
        """The stream that holds a route's input; None where none does.

        Raises BrokerError E417 where the input is in several streams, or in none of them under its subject.
        """
        patterns = route.input.subjects
        found = await self.of(patterns)
        if len(found) > 1:
            raise BrokerError(
                "E417",
                f"the input {listed(patterns)} of route {route.name} is in several streams: "
                f"{'; '.join(map(str, found[:_SHOWN_MAX]))}{_more(found)}",
                remedy="A route reads one stream: make a route for each, or one stream that sources them.",
            )
        if found:
            check_stored_as(found[0].info["config"], route)
            return found[0].info
        # A stream that stores what it takes under other subjects is not found by those.
        for config in (info["config"] for info in await self._list()):
            if any(intersection(stored, each) for stored in _transformed(config) for each in patterns):
                stream = await self.stream(config["name"])
                return None if stream is None else stream.info
        return None

    async def check_elsewhere(self, route: Route) -> None:
        """Raise BrokerError E417 where a stream without the subjects of a route's input has such messages.

        A mirror has no subjects, and a stream that only sources others needs none.
        """
        infos = [info for info in await self._list() if _copies_others(info["config"])]
        for info in infos[:_LOOKED_INTO_MAX]:
            config = info["config"]
            name, kind = config["name"], "a mirror" if config.get("mirror") else "filled from other streams"
            for pattern in route.input.subjects:
                asked = {"subjects_filter": pattern}
                state = (await self._broker.api(f"STREAM.INFO.{name}", asked))["state"]
                if state.get("subjects"):
                    origins = [config["mirror"]] if config.get("mirror") else config["sources"]
                    raise BrokerError(
                        "E417",
                        f"no stream takes {pattern!r}, the input of route {route.name}; stream {name} holds "
                        f"such messages, but it is {kind} and has no subjects to be found by",
                        remedy=f"Let the route read where {listed(origin['name'] for origin in origins)} "
                        f"is, or give the subject to {name} if it can have subjects.",
                    )

    async def _list(self) -> list[dict[str, Any]]:
        """All streams, as they were a moment ago; none where they may not be listed."""
        if time.monotonic() - self._listed_s >= _LISTED_S:
            self._listed_s = time.monotonic()
            try:
                self._all = await self._broker.streams()
            except (BrokerError, ApiError):
                self._all = []
        return self._all


class Round(Holdings):
    """What streams hold, each read once for all who look in the same round."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker)
        self._read: dict[str, KnownStream | None] = {}
        self._by_subject: SubjectIndex[str] | None = None

    async def stream(self, name: str) -> KnownStream | None:
        """The stream as it was when somebody asked for it first in this round."""
        if name not in self._read:
            self._read[name] = await super().stream(name)
        return self._read[name]

    async def names(self, pattern: str) -> list[str]:
        """As `Holdings.names`, of the streams that `only` names where it was called."""
        if self._by_subject is None:
            return await super().names(pattern)
        return list(dict.fromkeys(self._by_subject.meeting(pattern)))

    def only(self, names: Iterable[str]) -> None:
        """Take these streams, all of which were read, for all that there are: no others are asked for."""
        self._by_subject = SubjectIndex(
            (subject, name)
            for name in names
            if (stream := self._read[name]) is not None
            for subject in stream.config.get("subjects") or []
        )


def check_stored_as(config: Mapping[str, Any], route: Route) -> None:
    """Raise BrokerError E417 where a stream stores a route's input under another subject."""
    transform = config.get("subject_transform")
    if not transform:
        return
    for taken in KnownStream({"config": config}).taken(route.input.subjects):
        changed = intersection(transform["src"] or ">", taken)
        stored = _pattern(transform["dest"])
        if changed and not any(covers(each, stored) for each in route.input.subjects):
            raise BrokerError(
                "E417",
                f"stream {config['name']} stores what it takes as {changed!r}, the input of route "
                f"{route.name}, under {transform['dest']!r} (subject_transform)",
                remedy=f"Set the input to {stored!r}, or remove the subject_transform of the stream.",
            )


def _transformed(config: Mapping[str, Any]) -> list[str]:
    """The pattern under which a stream stores what it renames, if it does."""
    transform = config.get("subject_transform") or {}
    return [_pattern(transform["dest"])] if transform.get("dest") else []


def _pattern(dest: str) -> str:
    """The subjects that a transform makes: `orders.{{wildcard(1)}}` makes `orders.*`."""
    tokens: list[str] = []
    # Spaces and commas may stand between the braces, dots may not.
    for token in dest.split("."):
        if any(name in token.lower() for name in ("split", "slice")):  # these make several tokens
            return ".".join([*tokens, ">"])
        tokens.append("*" if "{{" in token or token.startswith("$") else token)
    return ".".join(tokens)


def _copies_others(config: Mapping[str, Any]) -> bool:
    return bool(config.get("mirror") or config.get("sources"))


def listed(names: Iterable[str]) -> str:
    """The first of these names, and how many more there are."""
    shown = list(names)
    more = f" and {len(shown) - _SHOWN_MAX} more" if len(shown) > _SHOWN_MAX else ""
    return ", ".join(shown[:_SHOWN_MAX]) + more


def _more(found: Sequence[Holding]) -> str:
    return f"; and {len(found) - _SHOWN_MAX} more" if len(found) > _SHOWN_MAX else ""
