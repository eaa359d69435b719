"""Who else runs this app, and which partitions are whose.

Every processor of an app says on one core NATS subject that it is there, and hears the others. From the same
members all compute the same shares, without asking each other. Views may differ for a moment; then two
claim the same partition, and the fence of its position lets only one commit. Nothing here is stored, and
nothing that is wrong here can lose a message.

    ctl.<app>.members     {"id", "what", "routes", "blocks", "config", "programs"}

`what` is "hello" (everyone answers), "here" (with the routes), "beat" (without), "bye", or "who" (from
somebody who only asks; the "here" that answers it has `blocks`: what stops this processor, as /readyz says,
and in `config` and `programs` which version of the configuration and of each route's Runnable it runs).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from processor.jetstream import Broker, Outgoing, Unknown
from processor.model import Delivery

log = logging.getLogger("processor")

HEARTBEAT_S = 0.5
# Four heartbeats: a host under load must not look dead. Until then no other takes its partitions.
LOST_S = 2.0
# How long a newcomer listens before it begins. Who answers later is only known later.
_HELLO_S = 0.05
_LISTEN_S = 0.3
# A thousand routes that are stopped must still fit into one message.
_BLOCKS_MAX = 500
_WHY_CHARS = 400


def share(members: Collection[str], member: str, route: str, partitions: int) -> list[int]:
    """The partitions of a route that belong to `member`, so that all members have as many, give or take one.

    Rendezvous hashing with a bound on the load: a partition goes to the member that ranks highest for it
    and has room, so that few move when a member comes or goes (D. Thaler and C. Ravishankar, 1998).
    """
    if member not in members:
        return []
    room = dict.fromkeys(members, -(-partitions // len(members)))
    mine = []
    for partition in range(partitions):
        place = f"{route}:{partition}".encode()
        ranked = sorted(members, key=lambda m: hashlib.blake2b(m.encode(), key=place[:64]).digest())
        owner = next(m for m in ranked if room[m])
        room[owner] -= 1
        if owner == member:
            mine.append(partition)
    return mine


@dataclass(frozen=True, slots=True)
class StopReason:
    """What stops a processor or one of its routes: a sentence, and since when (RFC 3339)."""

    why: str
    since: str


@dataclass(frozen=True, slots=True)
class Version:
    """What a processor runs: names of its configuration and of each route's program."""

    config: str = ""
    programs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Member:
    """A processor as it describes itself; `blocks` by what they are about, such as `route stats`.

    Its `version` is empty where it is of a release that does not say it.
    """

    routes: tuple[str, ...]
    blocks: Mapping[str, StopReason]
    version: Version


async def ask(broker: Broker, app: str) -> dict[str, Member]:
    """The processors of an app that answer now, by id."""
    found: dict[str, Member] = {}

    async def hear(delivery: Delivery) -> None:
        try:
            body = orjson.loads(delivery.payload)
            if body["what"] == "here":
                blocks = {
                    str(name): StopReason(*map(str, block)) for name, block in body.get("blocks", {}).items()
                }
                routes = tuple(map(str, body["routes"]))
                programs = {str(route): str(id) for route, id in body.get("programs", {}).items()}
                member = Member(routes, blocks, Version(str(body.get("config", "")), programs))
                # One that only introduces itself to a newcomer says nothing beside its routes.
                known = found.get(body["id"])
                if known is not None and "blocks" not in body:
                    member = replace(known, routes=routes)
                found[str(body["id"])] = member
        except (ValueError, KeyError, TypeError, AttributeError):
            log.debug("a message on %s is not from a processor", delivery.subject)

    subject = f"ctl.{app}.members"
    ear = await broker.listen(subject, hear)
    try:
        await broker.publish(Outgoing(subject, b'{"id":"","what":"who","routes":[]}'))
        await asyncio.sleep(_LISTEN_S)
    finally:
        await ear.unsubscribe()
    return found


@dataclass(slots=True)
class _Peer:
    heard_s: float
    routes: frozenset[str] = field(default_factory=frozenset)


class Members:
    """This processor among the others of its app. Start it before claiming anything."""

    def __init__(
        self,
        broker: Broker,
        app: str,
        member: str,
        changed: Callable[[], None],
        blocks: Callable[[], Mapping[str, StopReason]] = dict,
        version: Callable[[], Version] = Version,
    ) -> None:
        self._broker = broker
        self._blocks = blocks
        self._version = version
        self._subject = f"ctl.{app}.members"
        self._member = member
        self._changed = changed
        self._routes: Sequence[str] = ()
        self._peers: dict[str, _Peer] = {}
        self._beating: asyncio.Task[None] | None = None

    @property
    def all(self) -> list[str]:
        """Everyone who is there, in order, this processor included."""
        return sorted({self._member, *self._peers})

    def share(self, route: str, partitions: int, *, whole: bool = False, with_: str = "") -> list[int]:
        """The partitions of a route that are ours, among the members that have the route, or the one `with_`.

        With `whole` one member has all of them.
        """
        having = [peer for peer, known in self._peers.items() if (with_ or route) in known.routes]
        members = sorted({self._member, *having})
        if whole:
            return list(range(partitions)) if share(members, self._member, route, 1) else []
        return share(members, self._member, route, partitions)

    def is_first(self, what: str) -> bool:
        """Whether we are the one member that does something for all of the app."""
        return bool(share(self.all, self._member, what, 1))

    def has_others(self, route: str) -> bool:
        """Whether another member has the route."""
        return any(route in known.routes for known in self._peers.values())

    def is_there(self, member: str) -> bool:
        """Whether a member was heard of lately."""
        return member in self._peers

    async def start(self, routes: Sequence[str]) -> None:
        """Join with these routes, and return when the others have had time to answer."""
        self._routes = routes
        await self._broker.listen(self._subject, self._hear)
        await self._say("hello")
        await asyncio.sleep(_HELLO_S)
        self._beating = asyncio.create_task(self._beat(), name="members")

    async def change(self, routes: Sequence[str]) -> None:
        """Tell the others that our routes are different now."""
        self._routes = routes
        await self._say("here")

    async def stop(self) -> None:
        """Leave; call it when nothing is owned any more."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
            await self._say("bye")

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self._broker.connected()
            await self._say("beat")
            now_s = time.monotonic()
            lost = [peer for peer, known in self._peers.items() if now_s - known.heard_s > LOST_S]
            for peer in lost:
                del self._peers[peer]
                log.info("processor %s has not been heard from for 2 s and is taken for gone", peer)
            if lost:
                self._changed()

    async def _say(self, what: str, *, is_full: bool = False) -> None:
        body: dict[str, Any] = {"id": self._member, "what": what}
        body["routes"] = [] if what == "beat" else list(self._routes)
        if is_full:
            first = list(self._blocks().items())[:_BLOCKS_MAX]
            body["blocks"] = {name: (block.why[:_WHY_CHARS], block.since) for name, block in first}
            version = self._version()
            body |= {"config": version.config, "programs": version.programs}
        try:
            await self._broker.publish(Outgoing(self._subject, orjson.dumps(body)))
        except Unknown as err:  # the connection is down, and so is everyone's view of us
            log.debug("members: %s", err)

    async def _hear(self, delivery: Delivery) -> None:
        try:
            body = orjson.loads(delivery.payload)
            member, what, routes = str(body["id"]), body["what"], frozenset(map(str, body["routes"]))
        except (ValueError, KeyError, TypeError):
            log.warning("a message on %s is not from a processor", self._subject)
            return
        if member == self._member:
            return
        if what == "who":
            await self._say("here", is_full=True)
            return
        if what == "bye":
            if self._peers.pop(member, None) is not None:
                log.info("processor %s has left", member)
                self._changed()
            return
        known = self._peers.get(member)
        if what == "beat":
            if known is None:
                await self._say("hello")  # for its routes
            else:
                known.heard_s = time.monotonic()
            return
        if what == "hello":
            await self._say("here")
        self._peers[member] = _Peer(time.monotonic(), routes)
        if known is None or known.routes != routes:
            log.info("processor %s has joined", member)
            self._changed()
