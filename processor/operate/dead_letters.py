"""Dead letters, for people: list them, send them back to their route, or let go of them.

Each is one message of the app stream (or several parts), written by the commit that gave the message up. To
redrive one is one atomic write: the message is due for its route again, and its letter is gone. Two who
redrive the same letter are told apart by the sequence of its subject, so it goes back exactly once. One write
takes many letters; where another process was faster with one of them, each of them gets its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from processor.context.parked import ParkedMessages, Unfit, joined
from processor.context.subjects import RouteSubjects, SubjectParts, app_stream, dead_letter_id
from processor.errors import BrokerError
from processor.jetstream import (
    EXPECTED,
    GONE,
    Again,
    Broker,
    Outgoing,
    Stored,
    Unknown,
    WrongLastSequence,
)
from processor.model import Delivery, subject_text

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\.\d{1,9}\.\d{1,20}\Z")
_AGAIN_S = 0.1
# Of one write for several letters: a commit costs the server 2.4 ms however little is in it.
_GROUP_MESSAGES = 500
_GROUP_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class StoredDeadLetter:
    """One message that was given up. `id` is `<route>.<partition>.<sequence>`, and names it."""

    id: str
    route: str
    code: str
    reason: str
    traceback: str
    failed_at: str
    stored_s: float
    tries: int
    delivery: Delivery
    parts: tuple[Stored, ...]

    @property
    def sequence(self) -> int:
        """Its place in the app's stream: letters are found in this order."""
        return self.parts[-1].sequence

    def facts(self) -> dict[str, Any]:
        """What is known of it apart from its content."""
        return {
            "id": self.id,
            "route": self.route,
            "code": self.code,
            "reason": self.reason,
            "failed_at": self.failed_at,
            "tries": self.tries,
            "subject": subject_text(self.delivery.subject),
            "stream": self.delivery.stream,
            "sequence": self.delivery.sequence,
        }


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters are meant; what is empty or zero says nothing."""

    route: str = ""
    id: str = ""
    code: str = ""
    since_s: float = 0.0  # stored at this time or later, seconds since 1970
    after: int = 0  # behind this place in the app's stream

    def takes(self, letter: StoredDeadLetter) -> bool:
        """Whether a letter is meant."""
        return (
            (not self.route or letter.route == self.route)
            and (not self.id or letter.id == self.id)
            and (not self.code or letter.code == self.code)
            and letter.stored_s >= self.since_s
        )


class DeadLetters:
    """The dead letters of an app."""

    def __init__(self, broker: Broker, app: str) -> None:
        self._broker = broker
        self._app = app

    async def find(self, which: Filter) -> AsyncGenerator[StoredDeadLetter, None]:
        """Those that are meant, oldest first, as they are now."""
        parts: list[Stored] = []
        subjects = [RouteSubjects(self._app, which.route or "*").every("dlq")]
        if which.id:
            if not _ID.match(which.id):
                return
            route, partition, sequence = which.id.split(".")
            letter_subject = RouteSubjects(self._app, route).dead_letter(partition, sequence)
            subjects = [letter_subject, f"{letter_subject}.*"]
        history = self._broker.history(app_stream(self._app), subjects, start_sequence=which.after + 1)
        async with aclosing(history):
            async for stored in history:
                number, _, count = stored.headers.get("x-part", "1/1").partition("/")
                parts = [*parts, stored] if number != "1" else [stored]
                if number == count == str(len(parts)):
                    letter = _read(tuple(parts))
                    if letter is not None and which.takes(letter):
                        yield letter

    async def redrive(self, letter: StoredDeadLetter) -> bool:
        """Send it back to its route, with no tries counted; False where another process was faster.

        Raises BrokerError E408 for a message that leaves no room for where it came from.
        """
        return await self._write([self._due(letter), *_removals(letter)])

    async def drop(self, letter: StoredDeadLetter) -> bool:
        """Delete it for good; False where another process was faster."""
        return await self._write(_removals(letter))

    async def redrive_all(self, letters: Iterable[StoredDeadLetter]) -> list[bool | BrokerError]:
        """What `redrive` says of each, or raises, in order; it takes many letters with one write."""
        return await self._write_all(letters, lambda letter: [self._due(letter), *_removals(letter)])

    async def drop_all(self, letters: Iterable[StoredDeadLetter]) -> list[bool | BrokerError]:
        """What `drop` says of each, or raises, in order; it takes many letters with one write."""
        return await self._write_all(letters, _removals)

    def _due(self, letter: StoredDeadLetter) -> Outgoing:
        writer = ParkedMessages(self._app, letter.route, self._broker.max_payload)
        partition = int(letter.id.split(".")[1])
        try:
            return writer.due(
                letter.delivery, partition, f"{letter.delivery.sequence}-{secrets.token_hex(4)}"
            )
        except Unfit as err:
            raise BrokerError(
                "E408",
                f"dead letter {letter.id} cannot be sent back: {err}",
                remedy=f"Publish its payload to {subject_text(letter.delivery.subject)}, then drop it.",
            ) from err

    async def _write_all(
        self, letters: Iterable[StoredDeadLetter], made: Callable[[StoredDeadLetter], list[Outgoing]]
    ) -> list[bool | BrokerError]:
        outcomes: list[bool | BrokerError] = []
        group: list[list[Outgoing]] = []  # by letter
        places: list[int] = []  # in `outcomes`
        messages = size = 0

        async def write() -> None:
            for place, outcome in zip(places, await self._write_group(group), strict=True):
                outcomes[place] = outcome

        for letter in letters:
            outcomes.append(False)
            try:
                each = made(letter)
            except BrokerError as err:
                outcomes[-1] = err
                continue
            each_bytes = sum(len(message.payload) for message in each)
            if group and (messages + len(each) > _GROUP_MESSAGES or size + each_bytes > _GROUP_BYTES):
                await write()
                group, places, messages, size = [], [], 0, 0
            group.append(each)
            places.append(len(outcomes) - 1)
            messages += len(each)
            size += each_bytes
        if group:
            await write()
        return outcomes

    async def _write_group(self, group: Sequence[list[Outgoing]]) -> Sequence[bool | BrokerError]:
        """Write the messages of several letters at once; each by itself where that is refused."""
        if len(group) > 1:
            with contextlib.suppress(BrokerError):
                if await self._write([message for each in group for message in each]):
                    return [True] * len(group)
        outcomes: list[bool | BrokerError] = []
        for each in group:
            try:
                outcomes.append(await self._write(each))
            except BrokerError as err:
                outcomes.append(err)
        return outcomes

    async def _write(self, messages: Sequence[Outgoing]) -> bool:
        """Whether these were stored: by us, and all of them."""
        is_in_doubt = False
        while True:
            try:
                await self._broker.commit(messages)
            except Again:  # in a cluster, while another process's write to the letter is under way
                await asyncio.sleep(_AGAIN_S)
            except Unknown:
                is_in_doubt = True
                await self._broker.connected()
            except WrongLastSequence:
                return is_in_doubt and await self._are_stored(
                    [m for m in messages if EXPECTED not in m.headers]
                )
            else:
                return True

    async def _are_stored(self, messages: Sequence[Outgoing]) -> bool:
        """Whether a commit without an answer was ours; no other commit has the subjects of its messages."""
        while True:
            try:
                found = [
                    await self._broker.last_from_leader(app_stream(self._app), m.subject) for m in messages
                ]
            except (Again, Unknown):
                await self._broker.connected()
                await asyncio.sleep(_AGAIN_S)
            else:
                return None not in found


def _removals(letter: StoredDeadLetter) -> list[Outgoing]:
    """What takes a letter away, and is refused where it is not there any more."""
    return [Outgoing(part.subject, b"", {**GONE, EXPECTED: str(part.sequence)}) for part in letter.parts]


def _read(parts: tuple[Stored, ...]) -> StoredDeadLetter | None:
    kept, letter_id = joined(parts), dead_letter_id(parts[0].subject)
    if kept is None or letter_id is None:
        return None
    headers = parts[0].headers
    return StoredDeadLetter(
        letter_id,
        SubjectParts.of(parts[0].subject).route,
        headers.get("x-error-code", ""),
        headers.get("x-dead-letter-reason", ""),
        headers.get("x-error-traceback", ""),
        headers.get("x-failed-at", ""),
        parts[0].timestamp_s,
        kept.tries,
        kept.delivery,
        parts,
    )
