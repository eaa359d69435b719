"""Which streams hold a subject, by what they say of themselves.

`streams` asks before a route starts and while it runs, `check --server` asks without a start, and both get
the same answers in the same words. Nothing is made or changed here.

What must stay true: a stream counts for what it covers, not for what it touches. A route reads one stream,
which is the only one that holds a part of its input; an output goes to the stream that holds its subject.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from processor.errors import BrokerError
from processor.jetstream import ApiError, Broker
from processor.route import Route
from processor.subject import covers, intersection

_LISTED_S = 15.0  # a list of all streams serves all routes that find none
_SHOWN_MAX = 5
_LOOKED_INTO_MAX = 20


@dataclass(frozen=True, slots=True)
class Holding:
    """A stream as the server describes it, and what it takes of the subjects that were looked for."""

    info: Mapping[str, Any]
    subjects: tuple[str, ...]

    @property
    def name(self) -> str:
        return str(self.info["config"]["name"])

    def __str__(self) -> str:
        return f"{self.name} holds {_listed(self.subjects)}"

    def covers(self, pattern: str) -> bool:
        """Whether the stream takes all of a pattern."""
        return any(covers(subject, pattern) for subject in self.subjects)


class Holdings:
    """Looks up what the streams of one server hold."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._all: list[dict[str, Any]] = []
        self._listed_s = -_LISTED_S

    async def of(self, patterns: Sequence[str]) -> list[Holding]:
        """Every stream that takes messages of one of these patterns, or of a part of it."""
        names = {name: None for pattern in patterns for name in await self._broker.find_streams(pattern)}
        infos = [await self._broker.stream(name) for name in names]
        return [Holding(info, _taken(info["config"], patterns)) for info in infos if info is not None]

    async def input(self, route: Route) -> Mapping[str, Any] | None:
        """The stream that holds a route's input; None where none does.

        Raises BrokerError E417 where the input is in several streams, or in none of them under its subject.
        """
        patterns = route.input.subjects
        found = await self.of(patterns)
        if len(found) > 1:
            raise BrokerError(
                "E417",
                f"the input {_listed(patterns)} of route {route.name} is in several streams: "
                f"{'; '.join(map(str, found[:_SHOWN_MAX]))}{_more(found)}",
                remedy="A route reads one stream: make a route for each, or one stream that sources them.",
            )
        if found:
            check_stored_as(found[0].info["config"], route)
            return found[0].info
        # A stream that stores what it takes under other subjects is not found by those.
        for config in (info["config"] for info in await self._list()):
            if any(intersection(stored, each) for stored in _transformed(config) for each in patterns):
                return await self._broker.stream(config["name"])
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
                        remedy=f"Let the route read where {_listed(origin['name'] for origin in origins)} "
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


def check_stored_as(config: Mapping[str, Any], route: Route) -> None:
    """Raise BrokerError E417 where a stream stores a route's input under another subject."""
    transform = config.get("subject_transform") or {}
    for taken in _taken(config, route.input.subjects):
        changed = intersection(transform["src"] or ">", taken) if transform else None
        stored = _pattern(transform["dest"]) if transform else ""
        if changed and not any(covers(each, stored) for each in route.input.subjects):
            raise BrokerError(
                "E417",
                f"stream {config['name']} stores what it takes as {changed!r}, the input of route "
                f"{route.name}, under {transform['dest']!r} (subject_transform)",
                remedy=f"Set the input to {stored!r}, or remove the subject_transform of the stream.",
            )


def _taken(config: Mapping[str, Any], patterns: Iterable[str]) -> tuple[str, ...]:
    subjects = config.get("subjects") or []
    shared = (intersection(subject, pattern) for pattern in patterns for subject in subjects)
    return tuple(dict.fromkeys(each for each in shared if each))


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


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - _SHOWN_MAX} more" if len(shown) > _SHOWN_MAX else ""
    return ", ".join(shown[:_SHOWN_MAX]) + more


def _more(found: Sequence[Holding]) -> str:
    return f"; and {len(found) - _SHOWN_MAX} more" if len(found) > _SHOWN_MAX else ""
