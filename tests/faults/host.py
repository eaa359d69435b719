"""A processor that kills itself with SIGKILL at a named point of a commit: `host.py CONFIG URL POINT NTH`.

The points are the gaps between the steps of `Worker.settle`, and places inside step 2. The faults wrap the
surface of the broker and the reader; the worker between them is the real one. POINT `none` never crashes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import processor.service
from processor.config import load
from processor.jetstream import Broker, Message, Reader
from processor.model import Delivery
from processor.service import Service
from processor.telemetry import Telemetry, configure_logging

POINTS = (
    "before step 1",
    "between steps 1 and 2",
    "inside step 2, half of the batch sent",
    "inside step 2, stored but not answered",
    "between steps 2 and 3",
    "between steps 3 and 4",
    "between steps 4 and 5",
)


class Crash:
    """Kills this process when `point` is reached for the `nth` time."""

    def __init__(self, point: str, nth: int) -> None:
        self._point = point
        self._left = nth
        self.is_committed = False

    def at(self, point: str) -> None:
        if point == self._point:
            self._left -= 1
            if self._left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def will(self, point: str) -> bool:
        return point == self._point and self._left <= 1


def is_claim(messages: Sequence[Message]) -> bool:
    return all(".pos." in message.subject and b'"cid":"claim"' in message.payload for message in messages)


def install(crash: Crash) -> None:
    """Put the faults between the service and NATS."""

    class CrashingBroker(Broker):
        async def publish_stored(self, message: Message) -> int:
            crash.at("before step 1")
            stored = await super().publish_stored(message)
            crash.at("between steps 1 and 2")
            return stored

        async def commit(self, messages: Sequence[Message]) -> int:
            if is_claim(messages):
                return await super().commit(messages)
            crash.at("before step 1")
            crash.at("between steps 1 and 2")
            if crash.will("inside step 2, half of the batch sent"):
                for number, message in enumerate(messages[: len(messages) // 2 or 1], 1):
                    batch = {"Nats-Batch-Id": "half", "Nats-Batch-Sequence": str(number)}
                    headers = {**message.headers, **batch}
                    await self.publish(Message(message.subject, message.payload, headers))
                await self.flush()
            crash.at("inside step 2, half of the batch sent")
            stored = await super().commit(messages)
            crash.at("inside step 2, stored but not answered")
            crash.is_committed = True
            crash.at("between steps 2 and 3")
            return stored

        async def publish(self, message: Message) -> None:
            await super().publish(message)
            if crash.is_committed:
                await self.flush()
                crash.at("between steps 3 and 4")

    class CrashingReader(Reader):
        async def ack(self, deliveries: Sequence[Delivery]) -> None:
            if crash.is_committed:
                crash.at("between steps 3 and 4")
            await super().ack(deliveries)
            if crash.is_committed and deliveries:
                crash.at("between steps 4 and 5")
            crash.is_committed = False

    processor.service.Broker = CrashingBroker  # type: ignore[misc]
    processor.service.Reader = CrashingReader  # type: ignore[misc]


def start(
    config: Path, url: str, point: str = "none", nth: int = 1, stderr: int | None = None
) -> subprocess.Popen[bytes]:
    """This program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, __file__, str(config), url, point, str(nth)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=stderr,
    )


async def main(path: str, url: str, point: str, nth: int) -> None:
    install(Crash(point, nth))
    configure_logging("human", os.environ.get("SOAK_LOG") or "warning")
    service = Service(load(path, {"NATS_URL": url}), Telemetry())
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await service.start()
    await stop.wait()
    sys.exit(0 if await service.stop() else 4)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
