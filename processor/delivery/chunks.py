"""What one run in stream mode sends to its listeners: its chunks, and the marker behind them.

A worker has one of these for each run. Chunks go straight to their subject, and no answer is awaited.

What must stay true: what the stream of that subject would refuse is not sent. The server would drop it
without a word, and readers of the stream would get the chunks around it.
"""

from __future__ import annotations

from collections.abc import Mapping

from processor.delivery.codec import Publication
from processor.delivery.effects import Outlet
from processor.errors import ProcessorError
from processor.jetstream import Broker, Outgoing


class Unsendable(Exception):
    """A chunk that no message, or the stream of its subject, can hold; the sentence says which (E307)."""


class Chunks:
    """The chunks of one run, numbered from 1."""

    def __init__(
        self, broker: Broker, outlet: Outlet, subject: str | None, headers: Mapping[str, str]
    ) -> None:
        """`subject` is None where no output is configured; `headers` are put on each of them.

        Raises ProcessorError E307 where the stream of the subject would not even take a marker.
        """
        self._broker = broker
        self._headers = headers
        self._subject = subject
        self._outlet = outlet if subject is None else _part(outlet, subject)
        self._count = 0
        self.marker(is_error=True, payload=b"")

    async def send_chunk(self, chunk: bytes) -> None:
        """Send the next chunk. Raises Unsendable."""
        self._count += 1
        if self._subject is None:
            return
        headers = {**self._headers, "Processor-Chunk": str(self._count)}
        try:
            await self._broker.publish(self._message(self._subject, chunk, headers))
        except ProcessorError as err:
            raise Unsendable(err.what) from err

    def marker(self, *, is_error: bool, payload: bytes) -> Outgoing | None:
        """What says that the run has ended, and how."""
        if self._subject is None:
            return None
        headers = {**self._headers, "Processor-Stream": "error" if is_error else "end"}
        return self._message(self._subject, payload, headers)

    def _message(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> Outgoing:
        self._outlet.check_size(Publication(subject, payload, subject, headers))
        return Outgoing(subject, payload, headers)


def _part(outlet: Outlet, subject: str) -> Outlet:
    try:
        return outlet.to(subject)
    except ProcessorError:  # no stream holds it: listeners get what they would get anyway
        return Outlet(live=True)
