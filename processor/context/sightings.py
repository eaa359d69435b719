"""When the lines of an app's policies were first seen: what their `expires_minutes` counts from.

    p.<app>.policy    {"v": 1, "seen": {<digest of a line>: microseconds since 1970}}

One record for the app, written with a fence, so that processors that start together agree. What must stay
true: a line is never seen a second time, however often processes start or files move.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import orjson

from processor.context.subjects import app_stream, policy_record
from processor.jetstream import EXPECTED, KEPT, Broker, Outgoing, WrongLastSequence

VERSION = 1
# Lines that are gone are kept so long that a file which comes back is no way to begin again.
_RECORDS_MAX = 10_000
_PAUSE_S = 0.1


async def first_seen(broker: Broker, app: str, digests: Collection[str], now_us: int) -> dict[str, int]:
    """When each of these lines was first seen, in microseconds; now, and from now on, for a new one.

    Raises what the broker raises where the server refuses or does not answer: whoever supervises the route
    names it, and begins again.
    """
    if not digests:
        return {}
    subject = policy_record(app)
    while True:
        try:
            stored = await broker.last_of(app_stream(app), [subject])
            seen, fence = (_read(stored[0].payload), stored[0].sequence) if stored else ({}, 0)
            unseen = [digest for digest in digests if digest not in seen]
            if not unseen:
                return {digest: seen[digest] for digest in digests}
            seen |= dict.fromkeys(unseen, now_us)
            await _write(broker, subject, seen, fence)
        except WrongLastSequence:  # another processor was first: it is read again
            await asyncio.sleep(_PAUSE_S)
        else:
            return {digest: seen[digest] for digest in digests}


async def renew(broker: Broker, app: str, digests: Collection[str], now_us: int) -> None:
    """Let the time of these lines begin again, as if first seen now. Raises what the broker raises."""
    subject = policy_record(app)
    while True:
        try:
            stored = await broker.last_of(app_stream(app), [subject])
            seen, fence = (_read(stored[0].payload), stored[0].sequence) if stored else ({}, 0)
            await _write(broker, subject, seen | dict.fromkeys(digests, now_us), fence)
        except WrongLastSequence:
            await asyncio.sleep(_PAUSE_S)
        else:
            return


async def _write(broker: Broker, subject: str, seen: dict[str, int], fence: int) -> None:
    newest = dict(sorted(seen.items(), key=lambda each: each[1])[-_RECORDS_MAX:])
    body = orjson.dumps({"v": VERSION, "seen": newest})
    await broker.commit([Outgoing(subject, body, {**KEPT, EXPECTED: str(fence)})])


def _read(payload: bytes) -> dict[str, int]:
    """The record; what cannot be read in it was not seen."""
    try:
        seen = orjson.loads(payload)["seen"]
        return {str(digest): moment for digest, moment in seen.items() if type(moment) is int}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
