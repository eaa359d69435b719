"""Stores a batch that ends in a position, surely or not at all.

What must stay true: after `commit` returns a sequence, the batch is stored, once; after it returns None, it
is not and never will be. In between it tries for as long as that takes: while the server is down, and while
it refuses to store.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence

from processor.context.position import Position
from processor.context.reading import newest
from processor.errors import BrokerError
from processor.jetstream import Again, ApiError, Broker, Outgoing, Unknown, WrongLastSequence

_PATIENCE_S = 5.0  # how long a commit may be refused as premature before somebody is told
_PAUSE_MAX_S = 2.0


class Committer:
    """Commits what one owner writes to an app's stream."""

    def __init__(self, broker: Broker, stream: str, refused: Callable[[str | None], None]) -> None:
        """`refused` is called with why the server stores no commits, and with None when it does."""
        self._broker = broker
        self._stream = stream
        self._refused = refused

    async def commit(self, batch: Sequence[Outgoing], commit_id: str, after: int) -> int | None:
        """The sequence of the last message of `batch`, a position of this `commit_id`; None where another
        position is there. Members of the batch that were stored lie behind the sequence `after`.
        """
        position = batch[-1].subject
        pause_s, given_up = 0.05, ""
        began_s = time.monotonic()
        while True:
            await self._broker.connected()
            attempt = secrets.token_hex(12)
            try:
                last: int | None = await self._broker.commit(batch, batch=attempt)
                break
            except WrongLastSequence:
                # Ours, when an earlier try was stored and only its answer was lost.
                last = await self._stored_at(position, commit_id)
                if last is None:
                    return None
                break
            except Unknown:
                await self._broker.connected()
                last = await self._stored_at(position, commit_id)
                if last is None:
                    batch = await self._not_stored(batch, attempt, after)
                if not batch:  # it was stored only now, between the two looks
                    last = await self._stored_at(position, commit_id)
                    if last is None:
                        return None
                if last is not None:
                    break
            except Again as err:
                # A member that is refused for good looks like this too: the server only says "incomplete".
                if time.monotonic() - began_s > _PATIENCE_S:
                    given_up = (
                        f"E406 the server stores no commit: {err}. Nothing is skipped; it is tried again."
                    )
            except BrokerError as err:
                given_up = str(err)
                batch = await self._not_stored(batch, attempt, after)
            if given_up:
                self._refused(given_up)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)
        if given_up:
            self._refused(None)
        return last

    async def _stored_at(self, subject: str, commit_id: str) -> int | None:
        """The sequence of a position, where it is of this commit."""
        stored = await newest(self._broker, self._stream, subject)
        is_ours = stored is not None and Position.read(stored).commit_id == commit_id
        return stored.sequence if stored is not None and is_ours else None

    async def _not_stored(self, batch: Sequence[Outgoing], attempt: str, after: int) -> Sequence[Outgoing]:
        """What is left to be stored of a batch that was refused.

        nats-server 2.15 looks at limits (account, server, disk) message by message while it stores a batch:
        one that comes to a limit in the middle keeps what went before. The position is last: it is among that
        only where all of it is, because a commit that was not answered was stored meanwhile.
        """
        if len(batch) == 1:
            return batch
        while True:
            try:
                stored = await self._broker.stored_of_batch(self._stream, attempt, batch, after + 1)
                break
            except (Unknown, Again, ApiError):
                await self._broker.connected()
                await asyncio.sleep(0.1)
            except BrokerError:  # without permission to look, nothing can be known
                return batch
        return [message for number, message in enumerate(batch, 1) if number not in stored]
