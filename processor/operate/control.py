"""What people tell a running app: pause, resume, read from elsewhere; and what they ask of it.

What was said of a route last is one message (kind `ctl`), a document with `paused`, `by`, `reason`, `at`,
`reset` and `edited`.

A reset moves positions behind the back of their owners: the fence refuses their next commit, and they
claim again where the reset put them. It takes two commits, with a purge between them; the first marks the
positions, and nobody can claim a marked one (E412), so half a reset is never run on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from processor.context.history import me
from processor.context.parked import timestamp
from processor.context.placement import Partition
from processor.context.position import (
    InputStream,
    Position,
    by_partition,
)
from processor.context.subjects import Kind, PositionKind, RouteSubjects, SubjectParts, app_stream
from processor.delivery.backlog import Backlog
from processor.delivery.holdings import Holdings
from processor.delivery.members import Member, ask
from processor.errors import BrokerError
from processor.jetstream import (
    EXPECTED,
    KEPT,
    Again,
    Broker,
    Outgoing,
    Stored,
    WrongLastSequence,
    create_consumer,
)
from processor.route import Route

log = logging.getLogger("processor")

_TRIES = 5


@dataclass(frozen=True, slots=True)
class Pause:
    """Whether a route is to stand still, and who said so; `reset` names the reset that was said with it.

    `edited` has the epochs of partitions whose contexts were changed from outside (`edits`).
    """

    is_paused: bool
    by: str = ""
    reason: str = ""
    at: str = ""
    reset: str = ""
    edited: Mapping[int, int] = field(default_factory=dict)

    def words(self) -> dict[str, Any]:
        """As `read_pause` reads it, but for the edits."""
        said = {"paused": self.is_paused, "by": self.by, "reason": self.reason}
        return {**said, "at": self.at, "reset": self.reset}


UNSAID = Pause(False)


@dataclass(frozen=True, slots=True)
class Part:
    """One partition of a route, as its last commit left it."""

    partition: int
    owner: str
    epoch: int
    position: int
    open: int
    blocked: tuple[str, ...]  # keys
    input: InputStream


@dataclass(frozen=True, slots=True)
class ResetStep:
    """What one commit of a reset does to every position of a route."""

    sequence: int | None = None
    source: InputStream | None = None  # what is counted in from then on; None: what was
    resetting: int | None = None

    def apply(self, partition: Partition, partitions: int, *, keep_context: bool) -> None:
        """Move the position of a partition, of so many; also one that could not be read."""
        position = partition.position.restarted(secrets.token_hex(8), keep_contexts=keep_context)
        position.of = position.of or partitions
        position.input = self.source or position.input
        position.sequence = position.sequence if self.sequence is None else self.sequence
        position.resetting = self.resetting
        partition.take(position, partition.fence)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a reset puts a route: before message `sequence` of `source`; `lowest` is where it stands now."""

    route: str
    source: InputStream
    sequence: int
    lowest: int | None
    is_dealt: bool  # by a hop, which then is what is moved
    can_read_again: bool  # the source still has what was read of it

    def facts(self) -> dict[str, Any]:
        """Where it leads, for those who read of it later."""
        return {"stream": self.source.stream, "position": self.sequence - 1, "from": self.lowest}


def read_pause(payload: bytes) -> Pause:
    """What the message of a route (kind `ctl`) says; nothing, where it was not written here."""
    try:
        body = orjson.loads(payload)
        by, reason, at, reset = (str(body[name]) for name in ("by", "reason", "at", "reset"))
        edited = {int(partition): int(epoch) for partition, epoch in body.get("edited", {}).items()}
        return Pause(bool(body["paused"]), by, reason, at, reset, edited)
    except (ValueError, KeyError, TypeError, AttributeError):
        log.warning("a message that should say whether a route is paused cannot be read: it is ignored")
        return UNSAID


class Control:
    """What can be done with an app from outside of its processors."""

    def __init__(self, broker: Broker, app: str) -> None:
        self._broker = broker
        self._app = app

    async def pauses(self) -> dict[str, Pause]:
        """What was said last about each route."""
        stored = await self._broker.last_of(app_stream(self._app), [RouteSubjects(self._app, "*").pause])
        return {SubjectParts.of(s.subject).route: read_pause(s.payload) for s in stored}

    async def pause(self, route: str, *, is_paused: bool, reason: str = "", by: str = "") -> None:
        """Make every processor stop the route after what it has in hand, or go on; kept over restarts.

        `by` is who wants it: this user on this host, where nobody is named.
        """
        await self._say(route, {"paused": is_paused, "reason": reason, "reset": ""}, by)

    async def repeat(self, pauses: Mapping[str, Pause]) -> None:
        """Say again what was said, where the stream that kept it is gone and nothing was said since."""
        for route, pause in pauses.items():
            first = {**KEPT, EXPECTED: "0"}
            with contextlib.suppress(WrongLastSequence):
                await self._broker.commit(
                    [Outgoing(RouteSubjects(self._app, route).pause, orjson.dumps(pause.words()), first)]
                )

    async def _say(self, route: str, words: Mapping[str, Any], by: str) -> None:
        body = {**words, "by": by or me(), "at": timestamp(datetime.now(UTC))}
        message = Outgoing(RouteSubjects(self._app, route).pause, orjson.dumps(body), KEPT)
        await self._broker.publish_stored(message)

    async def parts(self, route: str, *, kind: PositionKind = "pos") -> list[Part]:
        """The partitions of a route that have a position, in order; with `kind` hop, its hop's position."""
        found = []
        for number, stored in by_partition(await self._positions(route, kind)).items():
            position = Position.remains(stored)
            found.append(
                Part(
                    number,
                    position.owner,
                    position.epoch,
                    position.sequence,
                    len(position.open),
                    tuple(position.blocked),
                    position.input,
                )
            )
        return sorted(found, key=lambda part: part.partition)

    async def members(self) -> dict[str, Member]:
        """The processors that answer now, by id."""
        return await ask(self._broker, self._app)

    async def target(self, route: Route, to: int | datetime) -> Target:
        """Where a reset of `route` to a sequence or a time would put it.

        Raises ValueError for a sequence behind the end of the input, and BrokerError E401 where no stream
        holds it, E417 where several do, E407 while messages wait that another way of reading brought, E413
        where it is gone.
        """
        subject = route.input.subjects[0]
        info = await Holdings(self._broker).input(route)
        if info is None:
            raise BrokerError("E401", f"no stream holds {subject!r}, the input of route {route.name}")
        stream = info["config"]["name"]
        source = InputStream(stream, info["created"])
        can_read_again = info["config"].get("retention", "limits") == "limits" and not route.input.is_all_own
        await self._check_target(route, to, source, can_read_again=can_read_again)
        end = info["state"]["last_seq"] + 1
        if isinstance(to, int) and to > end:
            raise ValueError(f"{to} is behind the end of stream {stream}: its next message is {end}")
        sequence = to if isinstance(to, int) else await self.sequence_at(stream, subject, to)
        is_dealt = route.input.repartition
        parts = await self.parts(route.name, kind="hop" if is_dealt else "pos")
        lowest = min((part.position for part in parts), default=None)
        return Target(route.name, source, sequence, lowest, is_dealt, can_read_again)

    async def _check_target(
        self, route: Route, to: int | datetime, source: InputStream, *, can_read_again: bool
    ) -> None:
        """Raise BrokerError E407 for what would be missed, and E413 for what is gone."""
        waiting = 0 if route.input.is_own else await Backlog(self._broker, route).waiting()
        if waiting:
            raise BrokerError(
                "E407",
                f"{waiting} message{' waits' if waiting == 1 else 's wait'} in the app's stream for route "
                f"{route.name}, from when its input was dealt or it had a schedule",
                remedy="Set it back until they are processed, or remove them: nats stream purge "
                f"{app_stream(route.app)} --subject '{RouteSubjects(route.app, route.name).inbox()}'.",
            )
        if can_read_again:
            return
        # What was never read from there can still be read, from its start: when the route was given its
        # messages in another way until now, or its hop had another stream.
        counted = await self.inputs(route.name, kind="hop" if route.input.repartition else "pos")
        was_own = {each.stream for each in counted} == {app_stream(route.app)}
        if to == 1 and counted != {source} and (route.input.is_own or was_own):
            return
        what = "the app's stream" if route.input.is_all_own else f"stream {source.stream}"
        raise BrokerError(
            "E413",
            f"{what} deletes what was processed, so route {route.name} cannot read it again",
            remedy="Publish its messages again; its dead letters can be redriven.",
        )

    async def reset_to(self, target: Target, *, keep_context: bool, by: str = "") -> int:
        """Make a route read from a target on; see `reset`, and `reset_dealt` for one with a hop."""
        if target.is_dealt:
            return await self.reset_dealt(
                target.route,
                target.sequence,
                keep_context=keep_context,
                source=target.source,
                can_read_again=target.can_read_again,
                by=by,
            )
        return await self.reset(
            target.route, target.sequence, keep_context=keep_context, source=target.source, by=by
        )

    async def reset(
        self,
        route: str,
        sequence: int,
        *,
        keep_context: bool,
        source: InputStream | None = None,
        by: str = "",
    ) -> int:
        """Make the route read from `sequence` on; the number of partitions that were moved.

        `source` is the stream that it counts in from then on, where that is not the one it did before.
        Without `keep_context` its contexts are removed. What waited for another try is given up either way:
        it is read again where it still is in the input. Raises BrokerError E401 where the route has no
        position yet, and E405 where its owners keep committing.
        """
        await self._move(route, ResetStep(resetting=sequence - 1), keep_context=True)
        await self._purge(route, ("held", "later", "due", *(() if keep_context else ("ctx",))))
        moved = await self._move(route, ResetStep(sequence - 1, source), keep_context=keep_context)
        await self._tell_of_reset(route, by)
        return moved

    async def reset_dealt(
        self,
        route: str,
        sequence: int,
        *,
        keep_context: bool,
        source: InputStream,
        can_read_again: bool,
        by: str = "",
    ) -> int:
        """As `reset`, for a route whose messages are dealt to it: its hop reads `source` from `sequence` on.

        What was dealt and not processed is removed, for it is read again, unless the source lacks what was
        read of it. Then it stays, and so do the positions that count it.
        """
        own = await self._own()
        is_dealt = await self.inputs(route) == {own}
        await self._move(route, ResetStep(resetting=sequence - 1), keep_context=True)
        await self._move(route, ResetStep(resetting=sequence - 1), keep_context=True, kind="hop")
        gone: list[Kind] = ["held", "later", "due"] if can_read_again or not is_dealt else []
        gone += ["in"] if can_read_again else []
        await self._purge(route, (*gone, *(() if keep_context else ("ctx",))))
        await self._move(route, ResetStep(sequence - 1, source), keep_context=True, kind="hop")
        step = ResetStep(None if is_dealt and not can_read_again else 0, own)
        moved = await self._move(route, step, keep_context=keep_context)
        await self._tell_of_reset(route, by)
        return moved

    async def inputs(self, route: str, *, kind: PositionKind = "pos") -> set[InputStream]:
        """The streams that a route's positions count in; with `kind` hop, that of its hop."""
        stored = by_partition(await self._positions(route, kind)).values()
        return {Position.remains(each).input for each in stored}

    async def _own(self) -> InputStream:
        name = app_stream(self._app)
        info = await self._broker.stream(name)
        if info is None:
            raise BrokerError("E401", f"stream {name} is gone", remedy="The app has not run yet.")
        return InputStream(name, info["created"])

    async def _tell_of_reset(self, route: str, by: str) -> None:
        # An owner without messages would notice it only with its next commit.
        before = (await self.pauses()).get(route, UNSAID)
        words = {"paused": before.is_paused, "reason": before.reason, "reset": secrets.token_hex(8)}
        await self._say(route, words, by if not before.is_paused else before.by)

    async def _move(
        self, route: str, step: ResetStep, *, keep_context: bool, kind: PositionKind = "pos"
    ) -> int:
        for _ in range(_TRIES):
            stored = by_partition(await self._positions(route, kind))
            found = {n: Partition(n, Position.remains(each), each.sequence) for n, each in stored.items()}
            if not found and kind == "hop":  # the route's messages were not dealt before
                found = {0: Partition(0, Position(of=1))}
            if not found:
                raise BrokerError(
                    "E401",
                    f"route {route} has no position in {app_stream(self._app)}",
                    remedy="It has not run yet; `input.start` says where it begins.",
                )
            messages = []
            for number, partition in found.items():
                step.apply(partition, len(found), keep_context=keep_context)
                messages.append(
                    partition.message(RouteSubjects(self._app, route).position(number, kind=kind))
                )
            try:
                await self._broker.commit(messages)
            except (WrongLastSequence, Again):
                await asyncio.sleep(0.05)
            else:
                return len(messages)
        raise BrokerError(
            "E405",
            f"the owners of route {route} commit faster than this could",
            remedy=f"Pause it first: processor pause CONFIG {route}",
        )

    async def _positions(self, route: str, kind: PositionKind = "pos") -> list[Stored]:
        subject = RouteSubjects(self._app, route).position(kind=kind)
        return await self._broker.last_of(app_stream(self._app), [subject])

    async def _purge(self, route: str, kinds: Sequence[Kind]) -> None:
        for kind in kinds:
            subject = RouteSubjects(self._app, route).every(kind)
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
        info = await create_consumer(self._broker.api, stream, config)
        try:
            return int(info["delivered"]["stream_seq"]) + 1
        finally:
            await self._broker.delete_consumer(stream, info["name"])
