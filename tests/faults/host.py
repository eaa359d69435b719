"""A host that ends at a named point: by SIGKILL as a program, or by falling silent inside of a test.

    host.py CONFIG URL POINT NTH [run | redrive | reset]

A point is a gap between two steps of `Settler.settle`, or a place around one kind of write; `POINTS` has them
all. The faults wrap the surface of the broker and the reader; everything between them is the real code. POINT
`none` never ends. `redrive` and `reset` are what a person does with the app: to each dead letter, to route r.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import orjson

import processor.delivery.repartition
import processor.model
import processor.service
from processor.config import Config, load
from processor.jetstream import Broker, Outgoing, Reader, Unknown
from processor.model import Delivery
from processor.operate.control import Control
from processor.operate.dead_letters import DeadLetters, Filter
from processor.service import Service
from processor.telemetry import Telemetry, configure_logging

STEPS = (
    "before step 1",
    "between steps 1 and 2",
    "inside step 2, half of the batch sent",
    "inside step 2, stored but not answered",
    "between steps 2 and 3",
    "between steps 3 and 4",
    "between steps 4 and 5",
)
# What a commit is for, told by what it writes.
KINDS = (
    "claim",
    "release",  # positions without an owner: what a route ends with, and a reset
    "dead letter",
    "wait",  # a try is counted, and the key waits in memory
    "schedule",
    "done schedule",  # a message that the server had sent on is done
    "hold",  # a message is kept because its key is blocked
    "done hold",
    "unblock",
    "redrive",
    "reset mark",
)
# Of the engine of graphs and its pools, told by what a commit leaves behind.
GRAPH_KINDS = (
    "record",  # a run ended
    "dispatch",  # an execution goes to its pool
    "result",  # a pool gives one back
    "slice",  # a part of a fan-out begins, between commits that begin the others
    "cut",  # a run goes on in another batch
    "timer",
    "child",  # a run tells the one that began it
    "revival",  # a run that failed is tried again
)
PLACES = ("half of a {} sent", "a {} stored but not answered")
RESET = ("before a purge", "after a purge", "before the word of a reset")
# Of a hop that deals an input to the partitions of its route.
HOP = (
    "before a hop commits",
    "inside a hop's commit, stored but not answered",
    "between a hop's commit and its acknowledgements",
    "before a hop's removal of what is processed",
)
# Around a call of a route whose `audit.intent` covers it.
CALL = (
    "before an intent is stored",
    "between an intent and its call",
    "between a call and its commit",
    "a commit with entries stored but not answered",
)
_PLACED = (place.format(kind) for kind in (*KINDS, *GRAPH_KINDS) for place in PLACES)
POINTS = (*STEPS, *_PLACED, *RESET, *HOP, *CALL)


class Crash:
    """Ends its host when `point` is reached for the `nth` time."""

    def __init__(self, point: str = "none", nth: int = 1) -> None:
        self.is_committed = False
        self.arm(point, nth)

    def arm(self, point: str, nth: int) -> None:
        assert point in (*POINTS, "none"), point
        self.point = point
        self._left = nth

    def at(self, point: str) -> None:
        if self.will(point):
            self.end()
        elif point == self.point:
            self._left -= 1

    def will(self, point: str) -> bool:
        return point == self.point and self._left <= 1

    def end(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def check(self) -> None:
        """Raise Unknown for a host that has ended and does not know it; a process cannot get here."""


class Silence(Crash):
    """The crash of a host inside of a test: from that point on nothing that it says leaves it.

    The server cannot tell it from a process that was killed: what was sent before is there, be it half of a
    batch, and nothing follows. Answers that come later reach a host that can do nothing with them.
    """

    def __init__(self, point: str = "none", nth: int = 1) -> None:
        super().__init__(point, nth)
        self.ended = asyncio.Event()

    def end(self) -> None:
        self.ended.set()
        self.check()

    def check(self) -> None:
        if self.ended.is_set():
            raise Unknown("this host has ended")


# The crash of the brokers that are connected in this context.
CRASH: ContextVar[Crash] = ContextVar("crash")


def _graph_kinds(kind: str, route: str, state: str, payload: bytes) -> Iterator[str]:
    """What a message of a commit says of it, where it is of a graph."""
    if kind == "run" and state != "running":
        yield "record" if payload else "revival"
    elif kind == "timer" and payload:
        yield "timer"
    elif kind == "in" and route != "graphs":
        yield "dispatch"
    elif kind == "in":
        said = orjson.loads(payload)["t"]
        yield {"go": "cut", "slice_done": "result"}.get(said, said)


def is_of_hop(messages: Sequence[Outgoing]) -> bool:
    """Whether a commit is of a hop that deals; its claim is not."""
    return ".hop." in messages[-1].subject and b'"cid":"claim"' not in messages[-1].payload


class CrashingBroker(Broker):
    """A broker whose host can end before, in and after what it writes."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.crash = CRASH.get()
        self._has_blocked: set[str] = set()  # positions that we wrote last with blocked keys

    def post(self, frames: Sequence[bytes]) -> Any:
        self.crash.check()
        return super().post(frames)

    async def publish_stored(self, message: Outgoing) -> int:
        is_ours = message.subject.startswith("p.")
        if not is_ours:
            self.crash.at("before step 1")
        elif ".late." in message.subject:
            self.crash.at("before an intent is stored")
        elif ".ctl." in message.subject:
            self.crash.at("before the word of a reset")
        stored = await super().publish_stored(message)
        if not is_ours:
            self.crash.at("between steps 1 and 2")
        elif ".late." in message.subject:
            self.crash.at("between an intent and its call")
        return stored

    async def commit(self, messages: Sequence[Outgoing], *, batch: str = "") -> int:
        if is_of_hop(messages):
            self.crash.at("before a hop commits")
            stored = await super().commit(messages, batch=batch)
            self.crash.at("inside a hop's commit, stored but not answered")
            return stored
        has_entries = any(".audit.r." in message.subject for message in messages)
        if has_entries:
            self.crash.at("between a call and its commit")
        kinds = set(self._kinds(messages))
        is_settling = not kinds & {"claim", "release", "redrive", "reset mark"}
        halves = [PLACES[0].format(kind) for kind in kinds]
        answers = [PLACES[1].format(kind) for kind in kinds]
        if is_settling:
            halves.append("inside step 2, half of the batch sent")
            answers.append("inside step 2, stored but not answered")
        if any(map(self.crash.will, halves)):
            await self._send_half(messages)
        for point in halves:
            self.crash.at(point)
        stored = await super().commit(messages, batch=batch)
        for point in answers:
            self.crash.at(point)
        if has_entries:
            self.crash.at("a commit with entries stored but not answered")
        if is_settling:
            self.crash.is_committed = True
            self.crash.at("between steps 2 and 3")
        return stored

    async def _send_half(self, messages: Sequence[Outgoing]) -> None:
        batch = secrets.token_hex(8)
        for number, message in enumerate(messages[: len(messages) // 2 or 1], 1):
            place = {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
            await self.publish(Outgoing(message.subject, message.payload, {**message.headers, **place}))
        await self.arrived()

    async def arrived(self) -> None:
        """Return when the server has what was sent."""
        await super().api("INFO")

    def _kinds(self, messages: Sequence[Outgoing]) -> Iterator[str]:
        """What a commit is for; nothing of this where it settles runs that succeeded at once."""
        is_redrive = any(".due." in m.subject and m.payload for m in messages)
        for message in messages:
            _, _, kind, route, *rest = *message.subject.split("."), "", ""
            if kind in ("in", "run", "timer"):
                yield from _graph_kinds(kind, route, rest[0], message.payload)
            if kind == "pos":
                yield from self._kinds_of_position(message)
            elif kind == "dlq":
                yield "redrive" if is_redrive else "dead letter"
            elif kind == "later":
                yield "schedule"
            elif kind == "due" and not message.payload:
                yield "done schedule"
            elif kind == "held":
                yield "hold" if message.payload else "done hold"

    def _kinds_of_position(self, message: Outgoing) -> Iterator[str]:
        position = orjson.loads(message.payload)
        if "resetting" in position:
            yield "reset mark"
        elif position["cid"] == "claim":
            yield "claim"
        elif not position["owner"]:
            yield "release"
        elif any(position.get("open", {}).values()):
            yield "wait"
        if position.get("blocked"):
            self._has_blocked.add(message.subject)
        elif message.subject in self._has_blocked:
            self._has_blocked.discard(message.subject)
            yield "unblock"

    async def publish(self, *messages: Outgoing) -> None:
        await super().publish(*messages)
        if messages and self.crash.is_committed:
            await self.arrived()
            self.crash.at("between steps 3 and 4")

    async def api(self, name: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        is_purge = name.startswith("STREAM.PURGE.")
        if is_purge and ".in." in (body or {}).get("filter", ""):
            self.crash.at("before a hop's removal of what is processed")
        elif is_purge:
            self.crash.at("before a purge")
        answer = await super().api(name, body)
        if is_purge:
            self.crash.at("after a purge")
        return answer


class CrashingReader(Reader):
    """A reader whose host can end before and after what it acknowledges."""

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        assert isinstance(self._broker, CrashingBroker)
        crash = self._broker.crash
        if crash.is_committed:
            crash.at("between steps 3 and 4")
        await super().ack(deliveries)
        if crash.is_committed and deliveries:
            await self._broker.arrived()
            crash.at("between steps 4 and 5")
        crash.is_committed = False


class CrashingHopReader(Reader):
    """A hop's reader, whose host can end before it acknowledges what was dealt."""

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        assert isinstance(self._broker, CrashingBroker)
        self._broker.crash.at("between a hop's commit and its acknowledgements")
        await super().ack(deliveries)


def start(
    config: Path, url: str, point: str = "none", nth: int = 1, what: str = "run", stderr: int | None = None
) -> subprocess.Popen[bytes]:
    """This program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, __file__, str(config), url, point, str(nth), what],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=stderr,
    )


def install(crash: Crash) -> None:
    """Have every service that is made from now on end with this crash."""
    CRASH.set(crash)
    processor.delivery.repartition.Reader = CrashingHopReader  # type: ignore[attr-defined]
    processor.service.Broker = CrashingBroker  # type: ignore[misc]
    processor.service.Reader = CrashingReader  # type: ignore[misc]


async def run(config: Config) -> int:
    service = Service(config, Telemetry())
    loop, told = asyncio.get_running_loop(), asyncio.Queue[signal.Signals]()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, told.put_nowait, number)
    await service.start()
    while await told.get() == signal.SIGHUP:
        await service.reload(load(config.path, {"NATS_URL": ",".join(config.nats.url)}))
    return 0 if await service.stop() else 4


async def redrive(broker: Broker, app: str) -> None:
    letters = DeadLetters(broker, app)
    async for letter in letters.find(Filter()):
        await letters.redrive(letter)


async def main(path: str, url: str, point: str, nth: int, what: str) -> int:
    install(Crash(point, nth))
    configure_logging("human", os.environ.get("SOAK_LOG") or "warning")
    if wait := os.environ.get("SHORT_WAIT_S"):  # the server is to keep messages that wait longer than this
        processor.model.SHORT_WAIT_S = float(wait)
    config = load(path, {"NATS_URL": url})
    if what == "run":
        return await run(config)
    broker = await CrashingBroker.connect({"servers": url.split(",")}, name=what)
    try:
        if what == "redrive":
            await redrive(broker, config.app)
        else:
            await Control(broker, config.app).reset("r", 1, keep_context=False)
    finally:
        await broker.close()
    return 0


if __name__ == "__main__":
    _, path, url, point, nth, what = sys.argv
    sys.exit(asyncio.run(main(path, url, point, int(nth), what)))
