"""What a run gets: deliveries decoded, keyed and grouped, as a `Batch`; see `Planner.plan`.

Planning changes no message's fate but what the message itself settles: one that is not ours is left out, one
that cannot be read is rejected, one behind a key that waits or is blocked is kept there, and one that was
given to a partition that is not its own goes to that. In a stateless route every key is that partition's.

What must stay true:
- Every delivery of an owned partition is in the batch: run, or settled without a run, or kept; or it is done.
- A message of a key that waits, or is blocked, is not run.
"""

from __future__ import annotations

from collections.abc import Sequence

from processor.context.parked import ParkedMessages, Unfit, is_held, is_held_for_another
from processor.context.position import Move
from processor.delivery.codec import Codec, Unreadable, key_of
from processor.delivery.effects import Batch, fault_of_ours
from processor.delivery.hand import Hand
from processor.delivery.store import Store
from processor.model import Delivery, Failure, Group
from processor.route import Route


class Planner:
    """Plans the batches of one worker."""

    def __init__(
        self,
        route: Route,
        codec: Codec,
        store: Store,
        letters: ParkedMessages,
        hand: Hand,
        *,
        is_alone: bool,
    ) -> None:
        """`is_alone` says that each message is a group of its own, also where the next has the same key."""
        self._route = route
        self._codec = codec
        self._store = store
        self._letters = letters
        self._hand = hand
        self._is_alone = is_alone
        template = route.output_template
        self._tokens = template.subject_tokens if template else ()

    def plan(self, deliveries: Sequence[Delivery]) -> Batch:
        """The batch of these deliveries, in their order. It has no moves where nothing is to be done."""
        batch = Batch([])
        documents: list[list[bytes]] = []
        open_groups: dict[str, tuple[int, tuple[str, ...]]] = {}
        waiting = self._hand.waiting
        for delivery in deliveries:
            key, document, unreadable = "", b"", None
            try:
                key = self._codec.key(delivery)
            except Unreadable as err:
                unreadable = err.failure
            except Exception:  # a wall: any bytes
                unreadable = fault_of_ours("the key of a message was looked for", self._route.name)
            partition = self._store.place(delivery, key)
            if partition not in self._store.owned:
                continue
            if not delivery.kept and self._store.is_done(partition, delivery.sequence):
                batch.done.append(delivery)
                continue
            if self._route.is_stateless:
                key = ""
            elif partition != self._store.partition(key) or is_held_for_another(delivery, key):
                self._deal_again(batch, key, partition, delivery)
                continue
            if waiting and self._is_behind(batch, key, partition, delivery):
                continue
            self._settle(batch, partition, delivery)
            if self._codec.is_skipped(delivery):
                batch.skipped.append(delivery)
                continue
            if unreadable is None:
                try:
                    document = self._codec.read(delivery)
                except Unreadable as err:
                    unreadable = err.failure
                except Exception:  # a wall, as above
                    unreadable = fault_of_ours("a message was read", self._route.name)
            if unreadable is not None:
                batch.rejected.append((delivery, unreadable))
                continue
            parts = delivery.subject.split(".") if self._tokens else []
            chosen = tuple(parts[n - 1] for n in self._tokens if n <= len(parts))
            index, same = open_groups.get(key, (-1, ()))
            if index < 0 or same != chosen or self._is_alone:
                index = len(documents)
                documents.append([])
                batch.members.append([])
                batch.groups.append(Group(key, documents[index]))
                open_groups[key] = (index, chosen)
            documents[index].append(document)
            batch.members[index].append(delivery)
        return batch

    def place(self, delivery: Delivery) -> int:
        """The partition whose position counts a delivery."""
        return self._store.place(delivery, key_of(delivery, self._codec))

    def _settle(self, batch: Batch, partition: int, delivery: Delivery) -> None:
        """Add a delivery that is settled by this batch; the position of its partition goes behind it."""
        batch.deliveries.append(delivery)
        batch.partitions[delivery.sequence] = partition
        move = batch.moves.get(partition)
        if move is None:
            move = batch.moves[partition] = Move()
        if not delivery.kept:
            move.sequence = max(move.sequence, delivery.sequence)
            if delivery.sequence in self._hand.tries:
                move.closed.add(delivery.sequence)

    def _deal_again(self, batch: Batch, key: str, partition: int, delivery: Delivery) -> None:
        """Give a delivery that was dealt, or kept, by another `key` to the partition of the present one."""
        self._settle(batch, partition, delivery)
        try:
            tries = self._hand.tries.get(delivery.sequence, 0)
            batch.stored.append(self._letters.dealt(delivery, self._store.partition(key), tries))
        except Unfit as err:
            failure = Failure("E307", f"the message cannot be given to its partition: {err}")
            batch.rejected.append((delivery, failure))

    def _is_behind(self, batch: Batch, key: str, partition: int, delivery: Delivery) -> bool:
        """Whether an earlier message of the key is in the way; then the batch keeps this one behind it."""
        tries = self._hand.tries.get(delivery.sequence, 0)
        if self._hand.waiting.waits(key):
            batch.followers.append((key, delivery))
            move = batch.moves.setdefault(partition, Move())
            if not delivery.kept:
                self._hand.tries[delivery.sequence] = tries
                move.add(Move(delivery.sequence, opened={delivery.sequence: tries}))
            return True
        if not self._hand.waiting.is_blocked(key) or key == self._hand.unblocking:
            return False
        if not is_held(delivery):  # those that are held already stay as they are
            self._settle(batch, partition, delivery)
            try:
                batch.stored.append(self._letters.held(delivery, partition, key, tries))
            except Unfit as err:
                failure = Failure("E307", f"the message cannot be kept behind its blocked key: {err}")
                batch.rejected.append((delivery, failure))
        return True
