"""What people tell a running app: pause, resume, read from elsewhere; and what they ask of it.

    p.<app>.ctl.<route>      {"paused", "by", "reason", "at", "reset"}, kept until it is said again

A reset moves positions behind the back of whoever owns them: the fence refuses their next commit, and they
claim anew where the reset put them. It takes two commits, with a purge between them; the first marks the
positions, and nobody can claim a marked one (E412), so half a reset is never run on.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from processor.context import VERSION, Input, app_stream
from processor.errors import BrokerError
from processor.jetstream import EXPECTED, KEPT, Broker, Message, Stored, WrongLastSequence
from processor.letters import timestamp
from processor.model import Delivery

log = logging.getLogger("processor")

_LISTEN_S = 0.3
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Pause:
    """Whether a route is to stand still, and who said so; `reset` names the reset that was said with it."""

    is_paused: bool
    by: str = ""
    reason: str = ""
    at: str = ""
    reset: str = ""


UNSAID = Pause(False)


@dataclass(frozen=True, slots=True)
class Part:
    """One partition of a route, as its last commit left it."""

    partition: int
    owner: str
    epoch: int
    position: int
    open: int
    blocked: int


def pause_subject(app: str, route: str) -> str:
    """Where a route's pause is kept."""
    return f"p.{app}.ctl.{route}"


def read_pause(payload: bytes) -> Pause:
    """What a message of `pause_subject` says; nothing, where it was not written here."""
    try:
        body = orjson.loads(payload)
        words = [str(body[name]) for name in ("by", "reason", "at", "reset")]
        return Pause(bool(body["paused"]), *words)
    except (ValueError, KeyError, TypeError):
        log.warning("a message that should say whether a route is paused cannot be read: it is ignored")
        return UNSAID


class Control:
    """What can be done with an app from outside of its processors."""

    def __init__(self, broker: Broker, app: str) -> None:
        self._broker = broker
        self._app = app

    async def pauses(self) -> dict[str, Pause]:
        """What was said last about each route."""
        stored = await self._broker.last_of(app_stream(self._app), [pause_subject(self._app, "*")])
        return {s.subject.rsplit(".", 1)[1]: read_pause(s.payload) for s in stored}

    async def pause(self, route: str, *, is_paused: bool, reason: str = "") -> None:
        """Have every processor stop the route after what it has in hand, or go on; kept over restarts."""
        await self._say(route, {"paused": is_paused, "reason": reason, "reset": ""})

    async def _say(self, route: str, words: Mapping[str, Any]) -> None:
        body = {**words, "by": _me(), "at": timestamp(datetime.now(UTC))}
        message = Message(pause_subject(self._app, route), orjson.dumps(body), KEPT)
        await self._broker.publish_stored(message)

    async def parts(self, route: str) -> list[Part]:
        """The partitions of a route that have a position, in order."""
        found = []
        for stored in await self._positions(route):
            body = orjson.loads(stored.payload)
            found.append(
                Part(
                    int(stored.subject.rsplit(".", 1)[1]),
                    body["owner"],
                    body["epoch"],
                    body["seq"],
                    len(body.get("open", {})),
                    len(body.get("blocked", {})),
                )
            )
        return sorted(found, key=lambda part: part.partition)

    async def members(self) -> dict[str, list[str]]:
        """The processors that answer now, with their routes."""
        found: dict[str, list[str]] = {}

        async def hear(delivery: Delivery) -> None:
            body = orjson.loads(delivery.payload)
            if body.get("what") == "here":
                found[body["id"]] = body["routes"]

        subject = f"ctl.{self._app}.members"
        subscription = await self._broker.listen(subject, hear)
        await self._broker.publish(Message(subject, b'{"id":"","what":"who","routes":[]}'))
        await asyncio.sleep(_LISTEN_S)
        await subscription.unsubscribe()
        return found

    async def reset(
        self, route: str, sequence: int, *, keep_context: bool, source: Input | None = None
    ) -> int:
        """Have the route read from `sequence` on; the number of partitions that were moved.

        `source` is the stream that it counts in from then on, where that is not the one it did before.
        Without `keep_context` its contexts are removed. What waited for another try is given up either way:
        it is read again where it still is in the input. Raises BrokerError E401 where the route has no
        position yet, and E405 where its owners keep committing.
        """
        await self._move(route, {"resetting": sequence - 1}, keep_context=True)
        await self._purge(route, ("held", "later", "due", *(() if keep_context else ("ctx",))))
        change: dict[str, Any] = {"seq": sequence - 1}
        if source is not None:
            change |= {"stream": source.stream, "created": source.created}
        moved = await self._move(route, change, keep_context=keep_context)
        # An owner without messages would notice it only with its next commit.
        before = (await self.pauses()).get(route, UNSAID)
        words = {"paused": before.is_paused, "reason": before.reason, "reset": secrets.token_hex(8)}
        await self._say(route, words)
        return moved

    async def _move(self, route: str, change: Mapping[str, Any], *, keep_context: bool) -> int:
        for _ in range(_TRIES):
            positions = await self._positions(route)
            if not positions:
                raise BrokerError(
                    "E401",
                    f"route {route} has no position in {app_stream(self._app)}",
                    remedy="It has not run yet; `input.start` says where it begins.",
                )
            messages = [self._moved(stored, change, keep_context=keep_context) for stored in positions]
            try:
                await self._broker.commit(messages)
            except WrongLastSequence:
                await asyncio.sleep(0.05)
            else:
                return len(messages)
        raise BrokerError(
            "E405",
            f"the owners of route {route} commit faster than this could",
            remedy=f"Pause it first: processor pause CONFIG {route}",
        )

    def _moved(self, stored: Stored, change: Mapping[str, Any], *, keep_context: bool) -> Message:
        body = orjson.loads(stored.payload)
        kept = {name: body[name] for name in ("stream", "created", "of", "seq", "resetting") if name in body}
        if "seq" in change:
            kept.pop("resetting", None)
        if keep_context:
            kept |= {name: body[name] for name in ("ctx", "spread") if name in body}
        body = {
            **kept,
            **change,
            "v": VERSION,
            "epoch": body["epoch"] + 1,
            "owner": "",
            "cid": secrets.token_hex(8),
        }
        return Message(stored.subject, orjson.dumps(body), {**KEPT, EXPECTED: str(stored.sequence)})

    async def _positions(self, route: str) -> list[Stored]:
        return await self._broker.last_of(app_stream(self._app), [f"p.{self._app}.pos.{route}.*"])

    async def _purge(self, route: str, kinds: Sequence[str]) -> None:
        for kind in kinds:
            subject = f"p.{self._app}.{kind}.{route}.>"
            await self._broker.api(f"STREAM.PURGE.{app_stream(self._app)}", {"filter": subject})

    async def sequence_at(self, stream: str, subject: str, at: datetime) -> int:
        """The sequence of the first message of a subject that was stored at `at` or later."""
        config = {
            "ack_policy": "none",
            "filter_subject": subject,
            "deliver_policy": "by_start_time",
            "opt_start_time": timestamp(at),
            "mem_storage": True,
            "num_replicas": 1,
        }
        info = await self._broker.api(
            f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config, "action": "create"}
        )
        try:
            return int(info["delivered"]["stream_seq"]) + 1
        finally:
            await self._broker.delete_consumer(stream, info["name"])


def _me() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a user id without a name
        return socket.gethostname()
