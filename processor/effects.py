"""What a run leaves behind: outputs, events, dead letters, context changes, and the position behind them.

A worker plans a `Batch`, has a guest run it, and gets the run's `Effects` here, as messages that are ready
to be committed. Nothing here publishes, waits or remembers: the same batch and outcome always have the same
effects, but for the clock in events and dead letters.

What must stay true: effects are complete. A message that was taken is in `deliveries`, in `positions`, and
either its run succeeded or its dead letter is among `stored`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import orjson

from processor.codec import Codec, Publication
from processor.config import Route
from processor.errors import ProcessorError
from processor.jetstream import BATCH_MAX, Message, own_headers
from processor.model import ContextChange, Delivery, Event, Failed, Failure, Group, Outcome, Output, Ran

log = logging.getLogger("processor")

# Idle partitions are taken along in what a commit has left.
COMMIT_BUDGET = BATCH_MAX - 50
_HEADER_BYTES = 16 << 10  # room that a message keeps for its headers, and a position for its own fields
_REASON_CHARS = 500


@dataclass(frozen=True, slots=True)
class Outlet:
    """How messages reach one public subject.

    Durable ones are part of the commit, under the app's own subject, and a stream of the public subject
    copies them from there (`live` and `foreign` false). `live` ones go to whoever listens right after the
    commit. `foreign` ones go to a stream that cannot copy from ours, before the commit and deduplicated.
    """

    live: bool = False
    foreign: bool = False
    ttl: Mapping[str, str] = field(default_factory=lambda: {"Nats-TTL": "24h"})


@dataclass(slots=True)
class Batch:
    """Deliveries as the guest will get them: `members[i]` are the deliveries of `groups[i]`."""

    deliveries: list[Delivery]
    groups: list[Group] = field(default_factory=list)
    members: list[list[Delivery]] = field(default_factory=list)
    rejected: list[tuple[Delivery, Failure]] = field(default_factory=list)
    positions: dict[int, int] = field(default_factory=dict)
    done: list[Delivery] = field(default_factory=list)  # settled before a restart; only to be acknowledged
    markers: list[Message] = field(default_factory=list)  # endings of stream-mode runs


@dataclass(slots=True)
class Effects:
    """All that one or several runs leave behind, until it is settled."""

    deliveries: list[Delivery] = field(default_factory=list)
    foreign: list[Message] = field(default_factory=list)
    stored: list[Message] = field(default_factory=list)
    live: list[Message] = field(default_factory=list)
    markers: list[Message] = field(default_factory=list)
    contexts: dict[str, ContextChange] = field(default_factory=dict)
    positions: dict[int, int] = field(default_factory=dict)
    outputs: int = 0
    events: int = 0
    dead_letters: list[str] = field(default_factory=list)

    def add(self, later: Effects) -> None:
        """Append the effects of a run that came after these."""
        self.deliveries += later.deliveries
        self.foreign += later.foreign
        self.stored += later.stored
        self.live += later.live
        self.markers += later.markers
        for key, change in later.contexts.items():
            earlier = self.contexts.get(key)
            if earlier is not None and not earlier.whole and not change.whole:
                change = replace(change, items={**earlier.items, **change.items})
            self.contexts[key] = change
        for partition, sequence in later.positions.items():
            self.positions[partition] = max(sequence, self.positions.get(partition, 0))
        self.outputs += later.outputs
        self.events += later.events
        self.dead_letters += later.dead_letters

    @property
    def size(self) -> int:
        """At most how many messages a commit of this needs."""
        contexts = sum(1 if c.whole else len(c.items) + 1 for c in self.contexts.values())
        return len(self.stored) + contexts + len(self.positions)

    @property
    def weight(self) -> float:
        """Messages of a commit that one input message needs, positions aside."""
        return (self.size - len(self.positions)) / len(self.deliveries)


class EffectsOf:
    """Makes the effects of the runs of one route."""

    def __init__(self, route: Route, codec: Codec, outlets: Mapping[str, Outlet], max_payload: int) -> None:
        self._route = route
        self._codec = codec
        self._outlets = outlets
        self._max_payload = max_payload
        self._out = f"p.{route.app}.out."
        self._dead_letters = f"p.{route.app}.dlq.{route.name}"
        self._events_level = route.events.level if route.events else ""

    def run(self, batch: Batch, outcome: Outcome, attempt: int) -> Effects | Failure:
        """The effects of a run, or why they cannot be had."""
        if isinstance(outcome, Failed):
            return outcome.failure
        effects = Effects(
            deliveries=batch.deliveries,
            contexts=dict(outcome.contexts),
            positions=batch.positions,
            live=list(batch.markers),
            markers=batch.markers,
        )
        try:
            self._add_outputs(effects, batch, outcome)
        except ProcessorError as err:
            return Failure(err.code, err.what)
        for event in outcome.events:
            self._add_user_event(effects, batch, event)
        rejected = [(batch.members[group][index], why) for group, index, why in outcome.rejected]
        for delivery, failure in [*batch.rejected, *rejected]:
            self._add_dead_letter(effects, delivery, failure, attempt)
        if self._events_level == "all":
            failed = {id(delivery) for delivery, _ in [*batch.rejected, *rejected]}
            for delivery in batch.deliveries:
                if id(delivery) not in failed:
                    self._add_event(effects, "completed", delivery, attempt=attempt)
        return effects

    def _add_outputs(self, effects: Effects, batch: Batch, outcome: Ran) -> None:
        by_group: dict[int, list[Output]] = {}
        for output in outcome.outputs:
            by_group.setdefault(output.group, []).append(output)
        for index, outputs in by_group.items():
            made = self._codec.outputs(batch.members[index], batch.groups[index].key, outputs)
            effects.outputs += len(made)
            for publication in made:
                self._add(effects, publication, batch.members[index][0])
        if self._codec.alone:
            unread = {group for group, _, _ in outcome.rejected}
            for index, members in enumerate(batch.members):
                if index not in unread:
                    for publication in self._codec.completed(members[0]):
                        self._add(effects, publication, members[0])

    def _add(self, effects: Effects, publication: Publication, origin: Delivery) -> None:
        outlet = self._outlets[publication.pattern]
        if outlet.live:
            effects.live.append(Message(publication.subject, publication.payload, publication.headers))
        elif outlet.foreign:
            # Such routes run message by message, so a second try makes the same ids.
            prefix = f"{self._route.name}:{origin.stream}:{origin.sequence}:"
            number = sum(1 for m in effects.foreign if m.headers["Nats-Msg-Id"].startswith(prefix))
            headers = {**publication.headers, "Nats-Msg-Id": f"{prefix}{number}"}
            effects.foreign.append(Message(publication.subject, publication.payload, headers))
        else:
            subject = f"{self._out}{publication.subject}"
            kept = {**publication.headers, **outlet.ttl} if publication.headers else outlet.ttl
            effects.stored.append(Message(subject, publication.payload, kept))

    def _add_user_event(self, effects: Effects, batch: Batch, event: Event) -> None:
        delivery = batch.members[event.group][0]
        data = orjson.loads(event.body)
        self._add_event(
            effects, "user", delivery, name=event.name, key=batch.groups[event.group].key, data=data
        )

    def _add_event(self, effects: Effects, kind: str, delivery: Delivery, **more: object) -> None:
        subject = self._route.events_subject
        if subject is None:
            return
        body = {
            "event": kind,
            "route": self._route.name,
            "stream": delivery.stream,
            "sequence": delivery.sequence,
            "time": _now(),
            **more,
        }
        effects.events += 1
        self._add(effects, Publication(subject, orjson.dumps(body), subject), delivery)

    def _add_dead_letter(self, effects: Effects, delivery: Delivery, failure: Failure, attempt: int) -> None:
        reason = failure.text[:_REASON_CHARS]
        effects.dead_letters.append(failure.code)
        effects.stored += dead_letter(
            self._dead_letters, self._route.name, delivery, failure, attempt, self._max_payload
        )
        for publication in self._codec.failed(delivery, failure):
            self._add(effects, publication, delivery)
        if self._events_level in ("failures", "all"):
            self._add_event(
                effects, "dead_lettered", delivery, attempt=attempt, code=failure.code, text=reason
            )
        log.warning(
            "dead letter: %s %s%s",
            failure.code,
            reason,
            f"\n{failure.traceback}" if failure.traceback else "",
            extra={
                "route": self._route.name,
                "seq": delivery.sequence,
                "attempt": attempt,
                "code": failure.code,
            },
        )

    def misfit(self, effects: Effects) -> Failure | None:
        """Why these effects cannot be one commit, if they cannot."""
        if effects.size > COMMIT_BUDGET:
            return Failure(
                "E324",
                f"outputs, events and context changes need {effects.size} messages of a commit, "
                f"which takes {COMMIT_BUDGET}",
            )
        room = self._max_payload - _HEADER_BYTES
        for message in (*effects.stored, *effects.foreign, *effects.live):
            if len(message.payload) > room and "x-error-code" not in message.headers:
                return Failure(
                    "E307",
                    f"an output or event has {len(message.payload)} bytes; a message takes {room}",
                )
        for change in effects.contexts.values():
            for name, value in change.items.items():
                if value is not None and len(value) > room:
                    return Failure(
                        "E310",
                        f"context[{name[:80]!r}] has {len(value)} bytes; one item may have {room}, so "
                        "spread it over several top-level keys",
                    )
        return None

    def milestone(self, what: str, more: Mapping[str, str]) -> Message | None:
        """The event that the route started, stopped, or has its breaker open, for those who want it."""
        subject = self._route.events_subject
        levels = ("all",) if what in ("started", "stopped") else ("failures", "all")
        if subject is None or self._events_level not in levels:
            return None
        body = {
            "event": what,
            "route": self._route.name,
            "program": self._route.program.id,
            "time": _now(),
            **more,
        }
        outlet = self._outlets[subject]
        if outlet.foreign:
            return Message(subject, orjson.dumps(body))
        return Message(f"{self._out}{subject}", orjson.dumps(body), outlet.ttl)


def dead_letter(
    subject: str, route: str, delivery: Delivery, failure: Failure, attempt: int, max_bytes: int
) -> list[Message]:
    """The dead letter of a message: its payload and headers, and in `x-` headers what happened to it.

    More than one message where payload and headers together exceed `max_bytes`: parts of the payload in
    order, numbered in `x-part` (`1/2`).
    """
    headers = {
        **own_headers(delivery.headers),
        "x-dead-letter-reason": failure.text[:_REASON_CHARS],
        "x-error-code": failure.code,
        "x-original-subject": delivery.subject,
        "x-original-stream": delivery.stream,
        "x-original-sequence": str(delivery.sequence),
        "x-failed-at": _now(),
        "x-delivery-count": str(attempt),
        "x-route": route,
    }
    if failure.traceback:
        headers["x-error-traceback"] = orjson.dumps(failure.traceback[-2000:]).decode()
    room = max_bytes - sum(len(k.encode()) + len(v.encode()) + 4 for k, v in headers.items()) - 512
    if room < max_bytes // 2:
        # Headers of that size are the sender's own: keep ours, and move theirs into the payload's parts.
        theirs = orjson.dumps(own_headers(delivery.headers))
        headers = {k: v for k, v in headers.items() if k.startswith("x-")}
        headers["x-original-headers-bytes"] = str(len(theirs))
        return _in_parts(subject, theirs + delivery.payload, headers, max_bytes // 2)
    return _in_parts(subject, delivery.payload, headers, room)


def _in_parts(subject: str, payload: bytes, headers: dict[str, str], room: int) -> list[Message]:
    if len(payload) <= room:
        return [Message(subject, payload, headers)]
    parts = [payload[start : start + room] for start in range(0, len(payload), room)]
    return [
        Message(subject, part, {**headers, "x-part": f"{number}/{len(parts)}"})
        for number, part in enumerate(parts, 1)
    ]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
