"""How an app does: who runs it, what stops them, and how far each route is.

`Survey.take` asks the processors once; `Survey.route` looks at what one route has in its streams. The command
line shows the documents made here, the desk sends them, and the service keeps its lag metric true with
`behind`. Nothing here changes anything.

Every number is as of one moment, of several requests: while messages flow they need not add up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from processor.context.parked import timestamp
from processor.context.position import InputStream
from processor.context.subjects import Kind, RouteSubjects, SubjectParts, app_stream
from processor.delivery.backlog import Backlog
from processor.delivery.holdings import Holdings
from processor.delivery.members import Member
from processor.errors import BrokerError
from processor.jetstream import Broker, Stored
from processor.model import key_from_token
from processor.operate.control import UNSAID, Control, Part, Pause
from processor.route import Route

# What a route keeps aside is counted by reading headers; nobody waits for a million of them.
COUNTED_MAX = 5000
_KEYS_SHOWN = 5


@dataclass(slots=True)
class _Aside:
    """What lies aside in the app's stream for one route; not all of it, unless `is_complete`."""

    dead_letters: int = 0
    held: Counter[str] = field(default_factory=Counter)  # messages by blocked key
    later: int = 0
    next_due: datetime | None = None
    due: int = 0
    is_complete: bool = True


class Survey:
    """One look at an app."""

    def __init__(
        self, broker: Broker, app: str, members: Mapping[str, Member], pauses: Mapping[str, Pause]
    ) -> None:
        self._broker = broker
        self._app = app
        self._members = members
        self._pauses = pauses

    @classmethod
    async def take(cls, broker: Broker, app: str) -> Survey:
        """Ask who is there, and what was said about routes."""
        control = Control(broker, app)
        return cls(broker, app, await control.members(), await control.pauses())

    def members(self) -> list[dict[str, Any]]:
        """A document for each processor that answered: its routes, its version, what stops it or a route."""
        return [
            {
                "member": name,
                "routes": list(member.routes),
                "config": member.version.config,
                "stops": [
                    {"what": what, "why": block.why, "since": block.since}
                    for what, block in sorted(member.blocks.items())
                ],
            }
            for name, member in sorted(self._members.items())
        ]

    async def route(self, route: Route) -> dict[str, Any]:
        """The document of one route: position, lag, owners, and what is paused, stopped, held or given up."""
        try:
            info = await Holdings(self._broker).input(route)
        except BrokerError as err:
            if err.code != "E417":  # which is among what stops the route
                raise
            info = None
        control = Control(self._broker, self._app)
        parts = counted = await control.parts(route.name)
        kept = await self._kept(route.name)
        pause = self._pauses.get(route.name, UNSAID)
        positions = [part.position for part in parts]
        dealt = None
        if route.input.repartition:
            counted = await control.parts(route.name, kind="hop")
            dealt = max((part.position for part in counted), default=0)
        least, most = await behind(self._broker, route, info, counted)
        last = int(info["state"]["last_seq"]) if info else 0
        return {
            "route": route.name,
            "input": info["config"]["name"] if info else None,
            "last_sequence": None if route.input.is_all_own else last,
            "dealt": dealt,
            "lowest_position": min(positions, default=0),
            "highest_position": max(positions, default=0),
            "behind": least,
            "behind_at_most": most,
            "paused": pause.is_paused,
            "paused_by": pause.by if pause.is_paused else "",
            "paused_at": pause.at if pause.is_paused else "",
            "reason": pause.reason,
            "stops": self._stops(route.name),
            "programs": self._programs(route.name),
            "orphaned": sum(part.owner not in self._members for part in parts),
            "dead_letters": kept.dead_letters,
            "held": {
                "messages": kept.held.total(),
                "keys": [{"key": key, "messages": n} for key, n in kept.held.most_common(_KEYS_SHOWN)],
            },
            "later": {"messages": kept.later, "next": timestamp(kept.next_due) if kept.next_due else None},
            "due": kept.due,
            "counted_all": kept.is_complete,
            "partitions": [
                {
                    "partition": part.partition,
                    "owner": part.owner,
                    "epoch": part.epoch,
                    "position": part.position,
                    "waiting": part.open,
                    "blocked_keys": len(part.blocked),
                }
                for part in parts
            ],
        }

    def _stops(self, route: str) -> list[dict[str, str]]:
        """Why the route does not run, by each member that says so."""
        return [
            {"member": name, "why": block.why, "since": block.since}
            for name, member in sorted(self._members.items())
            for what, block in member.blocks.items()
            if what.partition(" ")[2] == route
        ]

    def _programs(self, route: str) -> list[dict[str, Any]]:
        """The programs that members run for the route, each with those members; one, if all is well."""
        found: dict[str, list[str]] = {}
        for name, member in sorted(self._members.items()):
            if program := member.version.programs.get(route):
                found.setdefault(program, []).append(name)
        return [{"program": program, "members": names} for program, names in sorted(found.items())]

    async def _kept(self, route: str) -> _Aside:
        kept = _Aside()
        # One after the other: read through one consumer with four filters, each message that a redrive takes
        # away meanwhile would cost the server 30 times as much.
        kinds: tuple[Kind, ...] = ("dlq", "held", "later", "due")
        for kind in kinds:
            subject = RouteSubjects(self._app, route).every(kind)
            history = self._broker.history(app_stream(self._app), [subject], headers_only=True)
            seen = 0
            async with aclosing(history):
                async for stored in history:
                    seen += 1
                    if seen > COUNTED_MAX:
                        kept.is_complete = False
                        break
                    _count(kept, stored)
        return kept


def _count(kept: _Aside, stored: Stored) -> None:
    if "x-original-subject" not in stored.headers:  # it was taken away
        return
    kind, _, _, rest = SubjectParts.of(stored.subject)
    if kind == "dlq":
        kept.dead_letters += stored.headers.get("x-part", "1/1").startswith("1/")
    elif kind == "held":
        kept.held[key_from_token(rest[0])] += 1
    elif kind == "due":
        kept.due += 1
    else:
        kept.later += 1
        at = _scheduled(stored.headers.get("Nats-Schedule", ""))
        if at is not None and (kept.next_due is None or at < kept.next_due):
            kept.next_due = at


def _scheduled(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text.removeprefix("@at "))
    except ValueError:
        return None


async def behind(
    broker: Broker, route: Route, info: Mapping[str, Any] | None, parts: Sequence[Part] | None = None
) -> tuple[int, int]:
    """Input messages of a route that nobody has processed: at least, and at most.

    `info` is its stream's, None where there is none. The first is counted behind the owner that is furthest,
    the second behind the one that is least far; an owner that only passes over messages says so with each
    10,000th, so the second may be that much too high. Of a stream that deletes what was processed both are
    what its consumer has not acknowledged, or all that it holds where it has no consumer yet. What waits in
    the app's own stream, where a hop or a schedule put it, is counted with either. `parts` are those of
    the route that count in that stream: its hop's, where it has one.
    """
    if info is None:
        return 0, 0
    if route.input.is_own:
        own = await Backlog(broker, route).waiting()
        if route.input.is_all_own:
            return own, own
        if parts is None:
            parts = await Control(broker, route.app).parts(route.name, kind="hop")
        least, most = await _unread(broker, route, info, parts)
        return least + own, most + own
    return await _unread(broker, route, info, parts)


async def _unread(
    broker: Broker, route: Route, info: Mapping[str, Any], parts: Sequence[Part] | None
) -> tuple[int, int]:
    stream, state = info["config"]["name"], info["state"]
    if info["config"].get("retention", "limits") != "limits":
        reader = f"{app_stream(route.app)}-{route.name}"
        own = [
            int(consumer["num_pending"] + consumer["num_ack_pending"])
            for consumer in await broker.consumers(stream)
            if (consumer["config"].get("metadata") or {}).get("processor.reader") == reader
        ]
        found = min(own, default=int(state["messages"]))
        return found, found
    if parts is None:
        parts = await Control(broker, route.app).parts(route.name)
    if not parts and route.input.start == "new":
        return 0, 0
    read = _read_by_owner(info, parts)
    first, last = min(read, default=0), max(read, default=0)
    if first >= state["last_seq"]:
        return 0, 0
    most = await broker.count(stream, route.input.subjects, first + 1)
    least = most if first == last else await broker.count(stream, route.input.subjects, last + 1)
    return least, most


def first_unread(info: Mapping[str, Any], parts: Sequence[Part]) -> int:
    """The sequence of a route's input from which messages may wait, by the positions of its partitions."""
    if info["config"].get("retention", "limits") != "limits":
        return 1  # what was processed is gone
    return min(_read_by_owner(info, parts), default=0) + 1


def _read_by_owner(info: Mapping[str, Any], parts: Sequence[Part]) -> list[int]:
    """Up to where each owner has read: its partitions without messages lag behind that."""
    source = InputStream(info["config"]["name"], info["created"])
    read: dict[str, int] = {}
    for part in parts:
        position = part.position if part.input == source else 0
        read[part.owner] = max(position, read.get(part.owner, 0))
    return list(read.values())
