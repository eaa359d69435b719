"""What a run leaves behind: outputs, events, dead letters, context changes, and the position behind them.

A worker plans a `Batch`, has a guest run it, and gets the run's `Effects` here, as messages that are ready
to be committed. Nothing here publishes, waits or remembers: the same batch and outcome always have the same
effects, but for the clock in events, dead letters and delays, and the names of delayed messages.

What must stay true: effects are complete. A message that was taken is behind the position that `moves` sets,
and its run succeeded, or its dead letter or what keeps it for later is among `stored`, or it is open there.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

import orjson

from processor.audit import AuditEntry
from processor.capability.permit import Permit, allow_all
from processor.context import parked
from processor.context.parked import REASON_CHARS, ParkedMessages
from processor.context.position import Move
from processor.context.subjects import RouteSubjects, committed_subject
from processor.delivery.codec import Codec, Publication, key_of
from processor.errors import ProcessorError
from processor.jetstream import BATCH_MAX, Outgoing
from processor.model import (
    ContextChange,
    Delivery,
    Emit,
    Event,
    Failed,
    Failure,
    GivenUp,
    Group,
    Outcome,
    Output,
    Ran,
    RunRecord,
)
from processor.policy import Ask
from processor.route import Route
from processor.subject import matches

log = logging.getLogger("processor")

# Idle partitions are taken along in what a commit has left.
COMMIT_BUDGET = BATCH_MAX - 50
_SCHEDULED_BYTES = 256  # of the headers that the server gives a message that it sends when it is due
_ENTRIES = 100  # of an audit, at most ENTRY_MAX_BYTES each, that one message holds
_HEADER_BYTES = 16 << 10  # room that a message keeps for its headers, and a position for its own fields


@dataclass(frozen=True, slots=True)
class Outlet:
    """How messages reach one public subject.

    Durable ones are part of the commit, under the app's own subject, and a stream of the public subject
    copies them from there (`live` and `foreign` false). `live` ones go to whoever listens right after the
    commit. `foreign` ones go to a stream that cannot copy from ours, before the commit and deduplicated.
    `inner` ones are for a subject of the app's own, and part of the commit as they are: with the headers that
    they have, which may say how long they are kept or when they are sent on.

    With `parts` each message goes the way of the pattern there that its subject matches, and one that matches
    none has no stream; `foreign` then says whether that is the way of any.
    """

    live: bool = False
    foreign: bool = False
    inner: bool = False
    ttl: Mapping[str, str] = field(default_factory=lambda: {"Nats-TTL": "24h"})
    stream: str = ""
    max_bytes: int | None = None  # the largest message that the stream takes, headers included
    copy_bytes: int = 0  # of the headers that a copy has more, but for the message's subject
    parts: Mapping[str, Outlet] = field(default_factory=dict)

    def to(self, subject: str) -> Outlet:
        """The way to one subject. Raises ProcessorError E417 where no stream holds it."""
        if not self.parts:
            return self
        for pattern, part in self.parts.items():
            if matches(pattern, subject):
                return part
        held = "; ".join(f"{part.stream} holds {pattern}" for pattern, part in [*self.parts.items()][:5])
        raise ProcessorError("E417", f"no stream holds {subject!r}, the subject of an output: {held}")

    def check_size(self, publication: Publication, more_bytes: int = 0) -> None:
        """Raise ProcessorError E307 for a message that, with `more_bytes`, the stream would refuse."""
        if self.max_bytes is None:
            return
        headers = more_bytes + sum(
            len(n.encode()) + len(v.encode()) + 4 for n, v in publication.headers.items()
        )
        if self.inner:
            headers += _HEADER_BYTES
        elif not self.live and not self.foreign:
            headers += self.copy_bytes + len(publication.subject.encode())
        elif headers:
            headers += len("NATS/1.0\r\n\r\n")
        size = len(publication.payload) + headers
        if size > self.max_bytes:
            takes = "a message takes" if self.inner else f"stream {self.stream} takes"
            limit = "max_payload" if self.inner else "max_msg_size"
            raise ProcessorError(
                "E307",
                f"an output or event for {publication.subject} has {size} bytes with its headers; "
                f"{takes} {self.max_bytes} ({limit})",
            )


@dataclass(slots=True)
class Batch:
    """Deliveries as the guest will get them: `members[i]` are the deliveries of `groups[i]`."""

    deliveries: list[Delivery]
    groups: list[Group] = field(default_factory=list)
    members: list[list[Delivery]] = field(default_factory=list)
    rejected: list[tuple[Delivery, Failure]] = field(default_factory=list)
    partitions: dict[int, int] = field(default_factory=dict)  # by delivery sequence
    moves: dict[int, Move] = field(default_factory=dict)
    dropped: list[tuple[Delivery, Failure]] = field(default_factory=list)
    stored: list[Outgoing] = field(default_factory=list)  # what keeps deliveries for later
    skipped: list[Delivery] = field(default_factory=list)  # settled without a run
    followers: list[tuple[str, Delivery]] = field(default_factory=list)  # by key, behind one that waits
    done: list[Delivery] = field(default_factory=list)  # settled before a restart; only to be acknowledged
    markers: list[Outgoing] = field(default_factory=list)  # endings of stream-mode runs

    @property
    def home(self) -> int:
        """The partition whose audit chain gets the entries of the run."""
        return min(self.moves)

    def split(
        self, taken: Sequence[Delivery], failed: int | None, place: Callable[[Delivery], int]
    ) -> list[Sequence[Delivery]]:
        """The deliveries that this batch was planned from, as smaller batches to be run in this order.

        `failed` is the group that failed, where that is known: the parts are what ran well before it, it, and
        what lies behind. `place` says whose position counts a delivery: within a partition every part has
        later ones than those before it, since a position only moves on.
        """
        if failed is None:
            return _halved(taken)
        group_of = {d.sequence: number for number, members in enumerate(self.members) for d in members}
        first, last = self.members[failed][0].sequence, self.members[failed][-1].sequence
        partition = place(self.members[failed][0])
        parts: tuple[list[Delivery], list[Delivery], list[Delivery]] = ([], [], [])
        reached: dict[int, int] = {}  # by partition, the last part that one of its deliveries is in
        stage = 0  # of that group's partition: before it, at it, behind it
        for delivery in taken:
            here = place(delivery)
            if here == partition:
                stage = max(stage, 1) if delivery.sequence == first else stage
                part = stage
                stage = 2 if delivery.sequence == last else stage
            else:
                part = 0 if group_of.get(delivery.sequence, 0) < failed else 2
            reached[here] = max(reached.get(here, 0), part)
            parts[reached[here]].append(delivery)
        before, failing, behind = parts
        if len(failing) == len(taken):
            return _halved(taken)
        # Where much fails, what lies behind would be run again and again as a whole.
        rest = _halved(behind) if 4 * len(before) < len(taken) else [behind]
        return [part for part in (before, failing, *rest) if part]


@dataclass(slots=True)
class Effects:
    """All that one or several runs leave behind, until it is settled."""

    deliveries: list[Delivery] = field(default_factory=list)
    ended: list[Delivery] = field(default_factory=list)  # but for those that are kept to be tried again
    foreign: list[Outgoing] = field(default_factory=list)
    stored: list[Outgoing] = field(default_factory=list)
    # By subject, those that are the only ones of theirs: of one commit the last counts, for the server takes
    # one alone.
    kept: dict[str, Outgoing] = field(default_factory=dict)
    live: list[Outgoing] = field(default_factory=list)
    markers: list[Outgoing] = field(default_factory=list)
    contexts: dict[str, ContextChange] = field(default_factory=dict)
    moves: dict[int, Move] = field(default_factory=dict)
    records: list[RunRecord] = field(default_factory=list)  # of these runs, to be read once all is committed
    scattered: int = 0  # messages of contexts that come whole and are kept by item
    is_recorded: bool = False  # the commit has a record of each context that it changes
    first_left: int | None = None  # the lowest sequence in hand that is to be processed after these
    # What the audit gets: each entry with the partition whose chain it is for.
    audit: list[tuple[int, AuditEntry]] = field(default_factory=list)
    marks: dict[int, int] = field(default_factory=dict)  # by partition, how far a look at late messages came

    def add(self, later: Effects) -> None:
        """Append the effects of a run that came after these."""
        self.deliveries += later.deliveries
        self.ended += later.ended
        self.foreign += later.foreign
        self.stored += later.stored
        self.kept |= later.kept
        self.live += later.live
        self.markers += later.markers
        for key, change in later.contexts.items():
            earlier = self.contexts.get(key)
            if earlier is not None and not change.whole:
                items = {**earlier.items, **change.items}
                if earlier.whole:  # it stays so, without what is gone
                    items = {name: value for name, value in items.items() if value is not None}
                change = replace(change, items=items, whole=earlier.whole)
            self.contexts[key] = change
        for partition, move in later.moves.items():
            self.moves.setdefault(partition, Move()).add(move)
        self.records += later.records
        self.scattered += later.scattered
        self.is_recorded |= later.is_recorded
        self.first_left = later.first_left
        self.audit += later.audit
        self.marks |= later.marks

    @property
    def entries(self) -> dict[int, list[AuditEntry]]:
        """What the audit gets, by partition."""
        found: dict[int, list[AuditEntry]] = {}
        for partition, entry in self.audit:
            found.setdefault(partition, []).append(entry)
        return found

    @property
    def digest(self) -> str:
        """The SHA-256 of all messages that these store, subjects and payloads, in hex."""
        parts: list[bytes] = []
        subject, head = "", b"\0"
        for message in chain(self.stored, self.kept.values(), self.foreign):
            if message.subject != subject:  # mostly it is the one before
                subject = message.subject
                head = subject.encode("utf-8", "surrogateescape") + b"\0"
            parts += (head, message.payload)
        return hashlib.sha256(b"".join(parts)).hexdigest()

    @property
    def size(self) -> int:
        """At most how many messages a commit of this needs."""
        return self.size_with(Effects())

    def size_with(self, later: Effects) -> int:
        """At most the size of these once those are added."""
        both = {**self.contexts, **later.contexts}
        items = sum(map(_messages_of, both.values()))
        for key in self.contexts.keys() & later.contexts.keys():
            if not later.contexts[key].whole:  # it is laid over the earlier one
                items += len(self.contexts[key].items) + 1
        records = len(both) if self.is_recorded or later.is_recorded else 0
        stored = len(self.stored) + len(later.stored) + self.scattered + later.scattered
        stored += len(self.kept.keys() | later.kept.keys())
        chains = _records_of(self.audit, later.audit)
        return stored + items + records + chains + len(self._written_with(later))

    def _written_with(self, later: Effects) -> set[int]:
        """The partitions whose positions a commit of both writes."""
        chained = (
            {partition for partition, _ in (*self.audit, *later.audit)}
            | self.marks.keys()
            | later.marks.keys()
        )
        return chained | self.moves.keys() | later.moves.keys()

    @property
    def weight(self) -> float:
        """Messages of a commit that one input message needs, positions and audit aside."""
        beside = len(self._written_with(Effects())) + _records_of(self.audit, [])
        return (self.size - beside) / max(1, len(self.deliveries))


def _records_of(*audits: Sequence[tuple[int, AuditEntry]]) -> int:
    """At most how many messages hold these entries."""
    counts: dict[int, int] = {}
    for audit in audits:
        for partition, _ in audit:
            counts[partition] = counts.get(partition, 0) + 1
    return sum(-(-count // _ENTRIES) for count in counts.values())


def _messages_of(change: ContextChange) -> int:
    return 1 if change.is_small else len(change.items) + 1


@dataclass(slots=True)
class _Draft:
    """The effects of one run while they are made, and what its record will say of them."""

    effects: Effects
    outputs: int = 0
    output_bytes: int = 0
    emits: int = 0
    events: int = 0
    given_up: list[GivenUp] = field(default_factory=list)
    unsent: list[tuple[int, str]] = field(default_factory=list)


class EffectsBuilder:
    """Makes the effects of the runs of one route."""

    def __init__(
        self,
        route: Route,
        codec: Codec,
        outlets: Mapping[str, Outlet],
        max_payload: int,
        permit: Permit = allow_all,
    ) -> None:
        self._route = route
        self._permit = permit
        self._codec = codec
        self._outlets = outlets
        self._max_payload = max_payload
        self._out = committed_subject(route.app, "")
        self._emit = RouteSubjects(route.app, route.name).emit("")
        self._letters = ParkedMessages(route.app, route.name, max_payload, route.dead_letters_keep_s)
        self._events_level = route.events.level if route.events else ""

    def run(self, batch: Batch, outcome: Outcome, tries: Mapping[int, int]) -> Effects | Failure:
        """The effects of a run, or why they cannot be had.

        `tries` says, by sequence, how often a delivery failed before.
        """
        if isinstance(outcome, Failed):
            return outcome.failure
        effects = Effects(
            deliveries=batch.deliveries,
            stored=[*batch.stored, *(parked.gone(d) for d in batch.deliveries if d.kept)],
            contexts={} if self._route.is_stateless else dict(outcome.contexts),
            moves=batch.moves,
            live=list(batch.markers),
            markers=batch.markers,
            is_recorded=self._route.history_keep_s > 0,
        )
        draft = _Draft(effects)
        try:
            self._add_outputs(draft, batch, outcome)
            for event in outcome.events:
                self._add_user_event(draft, batch, event)
        except ProcessorError as err:
            return Failure(err.code, f"{err.what}. {err.remedy}" if err.remedy else err.what)
        rejected = [(batch.members[group][index], why) for group, index, why in outcome.rejected]
        rejected += [(batch.members[group][0], why) for group, why in outcome.failed]
        for delivery, failure in [*batch.rejected, *rejected]:
            attempt = tries.get(delivery.sequence, 0) + 1
            if self._codec.answers and self._codec.failed(delivery, failure):
                self._give_up(draft, "dropped", delivery, failure, attempt)
            else:
                self._add_dead_letter(draft, batch, delivery, failure, attempt)
        for delivery, failure in batch.dropped:
            self._give_up(draft, "dropped", delivery, failure, tries.get(delivery.sequence, 0) + 1)
        ran = [delivery for members in batch.members for delivery in members]
        given_up = (delivery for delivery, _ in [*batch.rejected, *batch.dropped])
        effects.ended = [*ran, *batch.skipped, *given_up]
        if self._events_level == "all":
            failed = {id(delivery) for delivery, _ in rejected}
            for delivery in ran:
                if id(delivery) not in failed:
                    attempt = tries.get(delivery.sequence, 0) + 1
                    self._add_event(draft, "completed", delivery, attempt=attempt)
        effects.records = [
            replace(
                RunRecord.of(batch.deliveries, outcome),
                outputs=draft.outputs,
                output_bytes=draft.output_bytes,
                emits=draft.emits,
                events=draft.events,
                given_up=draft.given_up,
                unsent=draft.unsent,
            )
        ]
        return effects

    def _add_outputs(self, draft: _Draft, batch: Batch, outcome: Ran) -> None:
        effects = draft.effects
        emits: dict[int, list[Emit]] = {}
        for emit in outcome.emits:
            emits.setdefault(emit.group, []).append(emit)
        outputs: dict[int, list[Output]] = {}
        for output in outcome.outputs:
            outputs.setdefault(output.group, []).append(output)
        every: Iterable[int] = sorted({*emits, *outputs})
        if self._codec.answers:  # those that have no result have a failure
            without = {*(group for group, _, _ in outcome.rejected), *(group for group, _ in outcome.failed)}
            every = (group for group in range(len(batch.groups)) if group not in without)
        for index in every:
            members = batch.members[index]
            for number, emit in enumerate(emits.get(index, ())):  # made before `process` returned
                self._permit(Ask("emit", "publish", emit.subject))
                publication = self._codec.emitted(members[0], number, emit)
                draft.emits += 1
                draft.output_bytes += len(publication.payload)
                self._add(effects, publication, members[0], emit.delay_s)
            made = self._codec.outputs(members, batch.groups[index].key, outputs.get(index, ()))
            draft.outputs += len(made)
            for publication in made:
                draft.output_bytes += len(publication.payload)
                self._add(effects, publication, members[0])
        if self._codec.alone:
            unread = {group for group, _, _ in outcome.rejected}
            for index, members in enumerate(batch.members):
                if index not in unread:
                    for publication in self._codec.completed(members[0]):
                        self._add(effects, publication, members[0])

    def _add(
        self, effects: Effects, publication: Publication, origin: Delivery, delay_s: float = 0.0
    ) -> None:
        outlet = self._outlets[publication.pattern].to(publication.subject)
        if outlet.foreign and not delay_s:
            # Such routes run message by message, so a second try makes the same ids.
            # What is sent back or tried later is new: a stream may still know what was said of it before.
            life = f"@{origin.kept_at}" if origin.kept else ""
            prefix = f"{self._route.name}:{origin.stream}:{origin.sequence}{life}:"
            number = sum(1 for m in effects.foreign if m.headers["Nats-Msg-Id"].startswith(prefix))
            headers = {**publication.headers, "Nats-Msg-Id": f"{prefix}{number}"}
            publication = publication._replace(headers=headers)
        outlet.check_size(publication, _SCHEDULED_BYTES if delay_s else 0)
        if delay_s:
            effects.stored.append(self._delayed(publication, outlet, delay_s))
        elif outlet.live:
            effects.live.append(Outgoing(publication.subject, publication.payload, publication.headers))
        elif outlet.foreign:
            effects.foreign.append(Outgoing(publication.subject, publication.payload, publication.headers))
        elif outlet.inner:
            message = Outgoing(publication.subject, publication.payload, publication.headers)
            if "Nats-Rollup" in publication.headers:
                effects.kept[message.subject] = message
            else:
                effects.stored.append(message)
        else:
            subject = f"{self._out}{publication.subject}"
            kept = {**publication.headers, **outlet.ttl} if publication.headers else outlet.ttl
            effects.stored.append(Outgoing(subject, publication.payload, kept))

    def _add_if_taken(self, draft: _Draft, publication: Publication, origin: Delivery) -> None:
        """Add what only reports a fate, which stands even where the report fits into no stream."""
        try:
            self._add(draft.effects, publication, origin)
        except ProcessorError as err:
            draft.unsent.append((origin.sequence, str(err)))

    def _delayed(self, publication: Publication, outlet: Outlet, delay_s: float) -> Outgoing:
        """What has the server send a message to its place among the outputs when it is due."""
        if outlet.live or outlet.foreign:
            raise ProcessorError(
                "E327",
                f"a message for {publication.subject} cannot be delayed: the stream of that subject does not "
                "copy from the app's",
            )
        schedule = {
            "Nats-Schedule": f"@at {parked.timestamp(datetime.now(UTC) + timedelta(seconds=delay_s))}",
            "Nats-Schedule-Target": f"{self._out}{publication.subject}",
            "Nats-Schedule-TTL": outlet.ttl["Nats-TTL"],
            "Nats-TTL": "never",
        }
        # Not named after its origin: a stream that is made anew counts its messages from 1 again, and what is
        # still to come of the old one must not be replaced.
        subject = f"{self._emit}{secrets.token_hex(12)}"
        return Outgoing(subject, publication.payload, {**publication.headers, **schedule})

    def _add_user_event(self, draft: _Draft, batch: Batch, event: Event) -> None:
        delivery = batch.members[event.group][0]
        # As the guest wrote it, which `wire` has vetted: read and written again, its numbers could be others.
        data, key = orjson.Fragment(event.body), batch.groups[event.group].key
        self._add_event(draft, "user", delivery, name=event.name, key=key, data=data)

    def _add_event(self, draft: _Draft, kind: str, delivery: Delivery, **more: object) -> None:
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
        draft.events += 1
        publication = Publication(subject, orjson.dumps(body), subject)
        if kind == "user":
            self._add(draft.effects, publication, delivery)
        else:
            self._add_if_taken(draft, publication, delivery)

    def _add_dead_letter(
        self, draft: _Draft, batch: Batch, delivery: Delivery, failure: Failure, attempt: int
    ) -> None:
        partition = batch.partitions[delivery.sequence]
        draft.effects.stored += self._letters.dead(delivery, partition, failure, attempt, datetime.now(UTC))
        id_ = f"{self._route.name}.{partition}.{delivery.sequence}"
        self._give_up(draft, "dead_lettered", delivery, failure, attempt, id_)

    def _give_up(
        self, draft: _Draft, what: str, delivery: Delivery, failure: Failure, attempt: int, id_: str = ""
    ) -> None:
        """Tell the sender's system and listeners that a message was given up, and leave it to the record."""
        try:
            said = self._codec.failed(delivery, failure)
        except Exception:  # a wall: the message is given up, whatever it holds
            log.exception("an unexpected error while telling of a message; please report it")
            said = []
        is_answered = self._codec.answers and bool(said)
        key = key_of(delivery, self._codec)
        draft.given_up.append(GivenUp(delivery, failure, attempt, key, id_, is_answered))
        for publication in said:
            self._add_if_taken(draft, publication, delivery)
        if self._events_level in ("failures", "all"):
            reason = failure.text[:REASON_CHARS]
            self._add_event(draft, what, delivery, attempt=attempt, code=failure.code, text=reason)

    def misfit(self, effects: Effects) -> Failure | None:
        """Why these effects cannot be one commit, if they cannot."""
        if effects.size > COMMIT_BUDGET:
            return Failure(
                "E324",
                f"outputs, events and context changes need {effects.size} messages of a commit, "
                f"which takes {COMMIT_BUDGET}",
            )
        room = self._max_payload - _HEADER_BYTES
        # Letters have seen to their size themselves.
        made = [m for m in effects.stored if m.subject.startswith((self._out, self._emit))]
        for message in (*made, *effects.foreign, *effects.live):
            if len(message.payload) > room:
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

    def milestone(self, what: str, more: Mapping[str, str]) -> Outgoing | None:
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
            return Outgoing(subject, orjson.dumps(body))
        return Outgoing(f"{self._out}{subject}", orjson.dumps(body), outlet.ttl)


def run_details(outcome: Outcome, effects: Effects | Failure) -> dict[str, Any]:
    """What the audit has of a run itself: counts, sizes, and a digest of what it stored."""
    details: dict[str, Any] = {"cpu_us": int(outcome.cpu_s * 1e6)}
    if isinstance(outcome, Failed) or isinstance(effects, Failure):
        return details
    [record] = effects.records
    changes = outcome.contexts.values()
    return {
        "out": record.outputs,
        "out_bytes": sum([len(output.body) for output in outcome.outputs]),
        "emits": record.emits,
        "events": record.events,
        "ctx": [len(changes), sum(change.size for change in changes)],
        **details,
        "digest": effects.digest,
    }


def fault_of_ours(when: str, route: str) -> Failure:
    """An error of Processor's own that is being handled, as the failure of the message that it was about."""
    log.exception(
        "an unexpected error while %s; please report it", when, extra={"route": route, "code": "E365"}
    )
    return Failure("E365", f"an error of Processor's own while {when}; its log has it, please report it")


def _now() -> str:
    return parked.timestamp(datetime.now(UTC))


def _halved(deliveries: Sequence[Delivery]) -> list[Sequence[Delivery]]:
    middle = len(deliveries) // 2
    return [deliveries[:middle], deliveries[middle:]]
