"""What runs in stream mode send to their listeners: their chunks, and the marker behind them.

Chunks go straight to their subject, and nobody waits for an answer. The marker of a run that succeeded is
committed with its effects; that of one that failed is sent at once.

What must stay true: what the stream of that subject would refuse is not sent. The server would drop it
without a word, and readers of the stream would get the chunks around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from processor.delivery.codec import Codec, Publication
from processor.delivery.effects import Batch, Outlet
from processor.delivery.publisher import Publisher
from processor.errors import ProcessorError
from processor.jetstream import Outgoing
from processor.model import Delivery, Failed, Failure, Group, Outcome
from processor.sandbox.calls import Answer
from processor.sandbox.host import Guest


class Unsendable(Exception):
    """A chunk that no message, or the stream of its subject, can hold; the sentence says which (E307)."""


class Chunks:
    """The chunks of one run, numbered from 1."""

    def __init__(
        self, broker: Publisher, outlet: Outlet, subject: str | None, headers: Mapping[str, str]
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


class Streaming:
    """The runs of a stream-mode route: one message each, and what it yields goes to its listeners at once."""

    def __init__(self, route: str, codec: Codec, broker: Publisher, outlet: Outlet) -> None:
        self._route = route
        self._codec = codec
        self._broker = broker
        self._outlet = outlet

    async def run(
        self,
        guest: Guest,
        batch: Batch,
        group: Group,
        attempt: int,
        *,
        forget: Sequence[str],
        messages: bytes,
        answer: Answer,
    ) -> Outcome:
        """What comes of one message; the marker of a run that succeeded is among those of the batch then."""
        delivery = batch.members[0][0]
        try:
            subject = self._codec.chunk_subject(delivery, group.key, group.documents[0])
            chunks = Chunks(self._broker, self._outlet, subject, self._headers(delivery, attempt))
        except ProcessorError as err:
            return Failed(Failure(err.code, err.what))
        try:
            for opening in self._codec.opening(group.documents[0]):
                await chunks.send_chunk(opening)
            outcome = await guest.stream(
                group, chunks.send_chunk, forget=forget, messages=messages, answer=answer
            )
        except Unsendable as err:  # nobody knows how far the guest is
            await guest.close()
            outcome = Failed(Failure("E307", f"a chunk cannot be sent: {err}", lethal=True))
        failure = outcome.failure if isinstance(outcome, Failed) else None
        marker = chunks.marker(is_error=failure is not None, payload=self._codec.marker(failure))
        if marker is not None and failure is None:
            batch.markers.append(marker)
        elif marker is not None:
            await self._broker.publish(marker)
        return outcome

    def _headers(self, delivery: Delivery, attempt: int) -> dict[str, str]:
        return {
            "Processor-Route": self._route,
            "Processor-Sequence": str(delivery.sequence),
            "Processor-Attempt": str(attempt),
        }
