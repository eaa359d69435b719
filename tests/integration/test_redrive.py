"""A redrive of very many dead letters: all of them, once, in order, and in few commits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

import orjson

from processor.context.parked import ParkedMessages
from processor.jetstream import Broker, Outgoing
from processor.model import NO_HEADERS, Delivery, Failure, partition_of
from processor.operate.control import Control
from processor.operate.dead_letters import DeadLetters, Filter, StoredDeadLetter
from tests.conftest import waited
from tests.running import Running, Start

COUNT = 40_000
KEYS = 500
ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: work.py
  key: subject.2
  output: out.{key}
"""
# What it is given, with its number among those of its key.
WORK = """
class Runnable:
    def process(self, queries):
        outputs = []
        for query in queries:
            self.context["n"] = self.context.get("n", 0) + 1
            outputs.append({"i": query["i"], "n": self.context["n"]})
        return outputs
"""


async def give_up(broker: Broker, count: int) -> None:
    """Dead letters of messages 0, 1, 2, ... of the keys in turn."""
    letters = ParkedMessages("app", "r", broker.max_payload)
    failure = Failure("E304", "ValueError: not now")
    for first in range(0, count, 500):
        written: list[Outgoing] = []
        for i in range(first, min(count, first + 500)):
            key = f"k{i % KEYS}"
            delivery = Delivery(f"in.{key}", b'{"i":%d}' % i, NO_HEADERS, "app-in-any", i + 1, 1e9)
            written += letters.dead(delivery, partition_of(key, 64), failure, 1, datetime.now(UTC))
        await broker.commit(written)


class Counting(Broker):
    """A client that counts what it asks to be stored, and how often."""

    sizes: list[int]

    async def commit(self, messages: Sequence[Outgoing], *, batch: str = "") -> int:
        self.sizes.append(len(messages))
        return await super().commit(messages, batch=batch)


async def send_back(running: Running) -> list[int]:
    """Redrive all that there is; how many messages each write had."""
    broker = await Counting.connect({"servers": [running.broker.address]}, name="test", wait=False)
    assert isinstance(broker, Counting)
    broker.sizes = []
    letters = DeadLetters(broker, "app")
    group: list[StoredDeadLetter] = [letter async for letter in letters.find(Filter(route="r"))]
    for first in range(0, len(group), 1000):
        outcomes = await letters.redrive_all(group[first : first + 1000])
        assert all(outcome is True for outcome in outcomes)
    await broker.close()
    return broker.sizes


def by_key(documents: Sequence[tuple[str, bytes]]) -> dict[str, list[tuple[int, int]]]:
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for subject, payload in documents:
        document = orjson.loads(payload)
        found[subject].append((document["i"], document["n"]))
    return found


async def test_forty_thousand_letters_go_back_in_few_commits(processor: Start) -> None:
    """Each once, in the order of its key; in batches, read with one filter, and nothing is left of them."""
    async with processor(ROUTE, work=WORK) as running:
        await give_up(running.broker, COUNT)
        sizes = await send_back(running)
        assert sum(sizes) == 2 * COUNT
        assert len(sizes) <= 2 * COUNT / 400

        # The server's work for each message that is removed is 30 times as much with a second filter.
        consumers = await running.broker.consumers("P_app")
        filters = [c["config"].get("filter_subjects") or [c["config"]["filter_subject"]] for c in consumers]
        assert sorted(filters) == [["p.app.ctl.*"], ["p.app.due.>"]]

        ended = partial(running.metric, "processor_committed_messages_total")
        await waited(lambda: ended() >= COUNT, "all have run", 120)
        assert ended() == COUNT
        for what in ("processor_commit_seconds_count", "processor_batch_messages_count"):
            assert COUNT / running.metric(what) >= 50, f"{running.metric(what):g} {what}"

        outputs = [(s.subject, s.payload) for s in await running.stored("out.*")]
        assert len(outputs) == COUNT
        expected = {
            f"out.k{k}": [(i, n) for n, i in enumerate(range(k, COUNT, KEYS), 1)] for k in range(KEYS)
        }
        assert by_key(outputs) == expected
        for pattern in ("p.app.due.r.>", "p.app.dlq.r.>"):
            assert not [s.subject for s in await running.stored(pattern) if s.payload]


async def test_new_input_does_not_wait_for_the_end_of_a_redrive(processor: Start) -> None:
    """They take turns, also in a route that was started with all of it due."""
    async with processor(ROUTE, work=WORK) as running:
        control = Control(running.broker, "app")
        await control.pause("r", is_paused=True)
        await give_up(running.broker, 6_000)
        await send_back(running)
        await running.publish("in.new", {"i": -1})
        await control.pause("r", is_paused=False)
        ended = partial(running.metric, "processor_committed_messages_total")
        await waited(lambda: ended() == 6_001, "all have run", 60)
        outputs = [s.subject for s in await running.stored("out.*")]
        assert len(outputs) == 6_001
        assert outputs.index("out.new") < 5_000


async def test_one_letter_that_is_gone_does_not_keep_the_others(processor: Start) -> None:
    """Somebody else was faster with it: it alone is not ours, and goes back once."""
    async with processor(ROUTE, work=WORK) as running:
        await give_up(running.broker, 10)
        letters = DeadLetters(running.broker, "app")
        found = [letter async for letter in letters.find(Filter(route="r"))]
        assert await letters.redrive(found[3])
        assert await letters.redrive_all(found) == [number != 3 for number in range(10)]
        assert await letters.drop_all(found) == [False] * 10
        assert sorted(d["i"] for d in await running.documents("out.*", 10)) == list(range(10))
        assert running.metric("processor_committed_messages_total") == 10
