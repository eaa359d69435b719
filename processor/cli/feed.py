"""The feed of `dev`: a file is published line by line, and again at each start once all of it was.

A feed that was cut off anywhere goes on with the next line. A time window for duplicates would not do for
that, so every message of the feed carries its line's number and a digest of the file up to there
(`Processor-Feed`), and the app's stream keeps, under `p.<app>.feed`, how far a whole window of lines got. A
start reads that record and then what the input stream holds beyond it. A file whose first lines have changed
is another feed.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import orjson

from processor.cli.inputs import Line, lines_of, read_all, subject_of
from processor.config import Config, Dev
from processor.context.subjects import app_stream, feed_record
from processor.errors import ConfigError
from processor.jetstream import Again, Broker, Outgoing, Unknown
from processor.subject import overlaps

log = logging.getLogger("processor")

_HEADER = "Processor-Feed"
_WINDOW = 500  # lines that are under way at once
_PAUSE_S = 0.05
_SAID_MAX = 20


def check_feed(config: Config) -> None:
    """Raise ConfigError E106 for a feed that no route would read."""
    dev = config.dev
    if dev is None:
        return
    inputs = [subject for route in config.routes.values() for subject in route.input.subjects]
    if not any(overlaps(dev.template.pattern, subject) for subject in inputs):
        raise ConfigError(
            "E106",
            f"dev.subject '{dev.subject}' is the input of no route; inputs are {', '.join(inputs)}",
            place=str(config.path),
        )


async def feed(broker: Broker, config: Config, dev: Dev) -> None:
    """Publish the rest of a feed that was cut off, or all of it; lines without a subject are left out.

    Waits until a stream holds the subject. Nothing is published where that stream acknowledges nothing.
    """
    lines = lines_of(await asyncio.to_thread(read_all, dev.feed), dev.feed)
    marks = _marks(lines)
    stream = await _stream_of(broker, dev.template.pattern)
    if stream["config"].get("no_ack"):
        log.error(
            "feed: E408 stream %s acknowledges nothing (no_ack), so nobody would know how far the feed is: "
            "nothing was published. Set `no_ack: false` on it (nats stream edit), or publish the file with "
            "`processor pub`.",
            stream["config"]["name"],
            extra={"code": "E408"},
        )
        return
    done = await _progress(broker, config.app, dev.template.pattern, stream, marks)
    if done == len(lines):
        done = 0
    log.info("feed: publishing lines %d to %d of %s", done + 1, len(lines), dev.feed)
    left_out, last = 0, int(stream["state"]["last_seq"])
    for start in range(done, len(lines), _WINDOW):
        end = min(start + _WINDOW, len(lines))
        messages = []
        for line, mark in zip(lines[start:end], marks[start:end], strict=True):
            try:
                messages.append(Outgoing(subject_of(dev.template, line), line.text, {_HEADER: mark}))
            except ConfigError as err:
                left_out += 1
                if left_out <= _SAID_MAX:
                    log.warning("feed: left out: %s", err, extra={"code": err.code})
        sequences = await asyncio.gather(*(_stored(broker, message) for message in messages))
        last = max(sequences, default=last)
        await _keep_record(broker, config.app, stream, marks[end - 1], last)
    log.info("feed: done%s", f"; {left_out} of its lines were left out" if left_out else "")


def _marks(lines: Sequence[Line]) -> list[str]:
    """Per line its number and a digest of everything up to it."""
    digest = hashlib.sha256()
    marks = []
    for number, line in enumerate(lines, 1):
        digest.update(line.text + b"\n")
        marks.append(f"{number} {digest.hexdigest()[:16]}")
    return marks


async def _stream_of(broker: Broker, pattern: str) -> dict[str, Any]:
    while True:
        try:
            info = await broker.stream_of(pattern)
            if info is not None:
                return info
        except (Unknown, Again):
            await broker.connected()
        await asyncio.sleep(_PAUSE_S)


async def _progress(
    broker: Broker, app: str, pattern: str, stream: dict[str, Any], marks: Sequence[str]
) -> int:
    """Up to which line the latest feed got: what the record says, or the last message behind it."""
    numbers = {mark: number for number, mark in enumerate(marks, 1)}
    done, sequence = 0, 0
    for stored in await broker.last_of(app_stream(app), [feed_record(app)]):
        record = orjson.loads(stored.payload)
        if record["created"] == stream["created"]:
            done, sequence = numbers.get(record["mark"], 0), record["sequence"]
    if stream["config"].get("retention", "limits") == "limits" and stream["state"]["last_seq"] > sequence:
        name = stream["config"]["name"]
        async for stored in broker.history(name, [pattern], start_sequence=sequence + 1):
            done = numbers.get(stored.headers.get(_HEADER, ""), done)
    return done


async def _keep_record(broker: Broker, app: str, stream: dict[str, Any], mark: str, sequence: int) -> None:
    record = {"mark": mark, "created": stream["created"], "sequence": sequence}
    headers = {"Nats-Rollup": "sub", "Nats-TTL": "never"}
    await _stored(broker, Outgoing(feed_record(app), orjson.dumps(record), headers))


async def _stored(broker: Broker, message: Outgoing) -> int:
    """Store the message, once the server can; only one whose answer was lost may be stored twice."""
    while True:
        await broker.connected()
        try:
            return await broker.publish_stored(message)
        except (Unknown, Again):
            await asyncio.sleep(_PAUSE_S)
