"""What becomes of messages that fail: tried in time, in order where that is promised, never lost."""

from __future__ import annotations

from typing import Any

import orjson

from tests.conftest import waited
from tests.running import COUNT, REPAIRED, Running, Start

ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: work.py
  key: subject.2
  output: out.{key}
"""


def retry(**keys: object) -> str:
    inner = ", ".join(f"{name}: {value}" for name, value in keys.items())
    return f"{ROUTE}  retry: {{{inner}}}\n"


async def test_only_the_key_of_a_failed_message_waits(processor: Start, wait_until: Any) -> None:
    """Other keys go on; the messages behind it come after it, in order, however it ends."""
    route = retry(attempts=2, strategy="fixed", base_ms=1500)
    async with processor(route, work=COUNT) as running:
        await running.publish("in.a", {"i": 0}, {"i": 1, "fails": True}, {"i": 2}, {"i": 3})
        await running.publish("in.b", {"i": 4}, {"i": 5})
        assert await running.documents("out.b", 2) == [{"i": 4, "n": 1}, {"i": 5, "n": 2}]
        assert await running.documents("out.a", 1) == [{"i": 0, "n": 1}]
        assert running.metric("processor_dead_letters_total", reason="E304") == 0
        await wait_until(lambda: running.metric("processor_waiting_messages") > 0, "some wait")
        assert await running.documents("out.a", 3) == [{"i": i, "n": n} for i, n in ((0, 1), (2, 2), (3, 3))]
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-delivery-count"] == "2"
        await wait_until(lambda: running.metric("processor_waiting_messages") == 0, "nobody waits")
        assert running.metric("processor_retries_total") == 1


async def test_tries_are_counted_over_a_restart(processor: Start) -> None:
    """One try before it, two after it: with three attempts that is the end, and the order is kept."""
    route = retry(attempts=3, strategy="fixed", base_ms=1000)
    async with processor(route, work=COUNT) as running:
        await running.publish("in.a", {"i": 0, "fails": True}, {"i": 1})
        await running.publish("in.b", {"i": 2})
        await running.documents("out.b", 1)
        assert await running.service.stop()
        assert await running.stored("out.a") == []
    async with processor(route, work=COUNT) as running:
        assert await running.documents("out.a", 1) == [{"i": 1, "n": 1}]
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-delivery-count"] == "3"
        assert await running.documents("out.b", 1) == [{"i": 2, "n": 1}]


async def test_a_long_wait_is_kept_by_the_server(processor: Start) -> None:
    """The key goes on without the message; it comes when it is due, also over a restart, and only once."""
    route = retry(attempts=3, strategy="fixed", base_ms=2500)
    async with processor(route, work=COUNT) as running:
        await running.publish("in.a", {"i": 0, "fails": True}, {"i": 1})
        assert await running.documents("out.a", 1) == [{"i": 1, "n": 1}]
        assert [s.subject for s in await running.stored("p.app.later.r.>")]
    async with processor(route, work=REPAIRED) as running:
        assert await running.documents("out.a", 2) == [{"i": 1, "n": 1}, {"i": 0, "n": 2}]
        await running.publish("in.a", {"i": 2})
        assert await running.documents("out.a", 3) == [{"i": i, "n": n} for i, n in ((1, 1), (0, 2), (2, 3))]
        assert not [s for s in await running.stored("p.app.due.r.>") if s.payload]


async def test_a_message_that_is_scheduled_again_and_again_ends(processor: Start) -> None:
    """Its tries travel with it."""
    route = retry(attempts=2, strategy="fixed", base_ms=2100)
    async with processor(route, work=COUNT) as running:
        await running.publish("in.a", {"i": 0, "fails": True}, headers={"Trace": "t-1"})
        [letter] = await running.dead_letters("r")
        found = {name: letter.headers[name] for name in ("Trace", "x-delivery-count", "x-original-subject")}
        assert found == {"Trace": "t-1", "x-delivery-count": "2", "x-original-subject": "in.a"}
        assert letter.payload == b'{"i":0,"fails":true}'


async def test_a_message_can_be_dropped(processor: Start) -> None:
    """Nothing is kept of it but a count."""
    async with processor(retry(attempts=1, then="drop"), work=COUNT) as running:
        await running.publish("in.a", {"i": 0, "fails": True}, {"i": 1})
        assert await running.documents("out.a", 1) == [{"i": 1, "n": 1}]
        assert running.metric("processor_dropped_messages_total", reason="E304") == 1
        assert await running.stored("p.app.dlq.r.>") == []


async def test_a_blocked_key_keeps_its_order_and_others_go_on(processor: Start, wait_until: Any) -> None:
    """Blocked over a restart, seen in the metrics; once it succeeds, all that came behind it follows."""
    route = retry(attempts=1, max_ms=200, then="block")
    async with processor(route, work=COUNT) as running:
        await running.publish("in.a", {"i": 0}, {"i": 1, "fails": True}, *({"i": i} for i in range(2, 40)))
        await running.publish("in.b", {"i": 100})
        assert await running.documents("out.b", 1) == [{"i": 100, "n": 1}]
        await wait_until(lambda: running.metric("processor_blocked_keys") == 1, "the key is blocked")
        assert await running.documents("out.a", 1) == [{"i": 0, "n": 1}]
    async with processor(route, work=COUNT) as running:
        await running.publish("in.a", *({"i": i} for i in range(40, 50)))
        await running.publish("in.b", {"i": 101})
        await running.documents("out.b", 2)
        await wait_until(lambda: running.metric("processor_blocked_keys") == 1, "the key is still blocked")
        assert await running.reload(work=REPAIRED) == ["r"]
        assert await running.documents("out.a", 50) == [{"i": i, "n": i + 1} for i in range(50)]
        await wait_until(lambda: running.metric("processor_blocked_keys") == 0, "the key goes on")
        await running.publish("in.a", {"i": 50})
        assert (await running.documents("out.a", 51))[-1] == {"i": 50, "n": 51}
        assert await running.stored("p.app.dlq.r.>") == []


async def test_a_block_ends_when_the_route_gives_messages_up_instead(processor: Start) -> None:
    """After a reload with `then: dead_letter` the first is a dead letter, and those behind it follow."""
    route = retry(attempts=1, max_ms=200, then="block")
    async with processor(route, work=COUNT) as running:
        await running.publish("in.a", {"i": 0, "fails": "no"}, {"i": 1}, {"i": 2})
        await waited(lambda: running.metric("processor_blocked_keys") == 1, "the key is blocked")
        running.path.write_text(running.path.read_text().replace("then: block", "then: dead_letter"))
        assert await running.reload() == ["r"]
        await running.dead_letters("r")
        assert await running.documents("out.a", 2) == [{"i": 1, "n": 1}, {"i": 2, "n": 2}]
        assert [s for s in await running.stored("p.app.held.r.>") if s.payload] == []


async def test_the_one_key_of_a_route_can_block_it(processor: Start, wait_until: Any) -> None:
    """Without `key`, everything waits behind the message that has to succeed."""
    route = retry(attempts=1, max_ms=200, then="block").replace("  key: subject.2\n", "")
    async with processor(route.replace("out.{key}", "out.all"), work=COUNT) as running:
        await running.publish("in.a", {"i": 0, "fails": True}, {"i": 1}, {"i": 2})
        await wait_until(lambda: running.metric("processor_failures_total", reason="E304") > 2, "tried on")
        await running.reload(work=REPAIRED)
        assert await running.documents("out.all", 3) == [{"i": i, "n": i + 1} for i in range(3)]


async def ends(running: Running, count: int) -> list[tuple[int, str]]:
    """How messages ended, by sequence, as soon as there are `count` events that say so."""

    async def enough() -> list[tuple[int, str]] | None:
        events = [orjson.loads(stored.payload) for stored in await running.stored("events.r")]
        found = [(event["sequence"], event["event"]) for event in events if "sequence" in event]
        return found if len(found) >= count else None

    return sorted(await waited(enough, f"{count} messages have ended"))


EVENTS = "  events: {subject: events.r, level: all}\n"
ENDED = "processor_committed_messages_total"


async def test_a_message_that_the_server_keeps_ends_once(processor: Start, wait_until: Any) -> None:
    """It has not ended before its last try: there is one event and one count for it."""
    route = retry(attempts=2, strategy="fixed", base_ms=2100) + EVENTS
    async with processor(route, work=COUNT) as running:
        await running.publish("in.a", {"i": 0, "fails": "no"}, {"i": 1})
        await running.dead_letters("r")
        assert await ends(running, 2) == [(1, "dead_lettered"), (2, "completed")]
        await wait_until(lambda: running.metric(ENDED) == 2, "both are counted once")


async def test_what_is_held_behind_a_blocked_key_ends_when_it_has_run(
    processor: Start, wait_until: Any
) -> None:
    """Until then it is neither completed nor counted."""
    route = retry(attempts=1, max_ms=200, then="block") + EVENTS
    async with processor(route, work=COUNT) as running:
        await running.publish("in.a", {"i": 0, "fails": "no"}, {"i": 1}, {"i": 2})
        await running.publish("in.b", {"i": 3})
        await wait_until(lambda: running.metric("processor_retries_total") > 2, "it is tried on")
        assert await ends(running, 1) == [(4, "completed")]
        assert running.metric(ENDED) == 1
        assert await running.reload(work=REPAIRED) == ["r"]
        assert await ends(running, 4) == [(n, "completed") for n in (1, 2, 3, 4)]


async def test_hundreds_of_tries_without_a_wait_end_in_a_dead_letter(processor: Start) -> None:
    """They are a loop: what they need does not grow with their number, and the next message comes after."""
    async with processor(retry(attempts=400, base_ms=0), work=COUNT) as running:
        await running.publish("in.a", {"i": 0, "fails": True}, {"i": 1})
        [letter] = await running.dead_letters("r")
        assert (letter.headers["x-error-code"], letter.headers["x-delivery-count"]) == ("E304", "400")
        assert await running.documents("out.a", 1) == [{"i": 1, "n": 1}]


async def test_a_stop_ends_tries_without_a_wait(processor: Start, wait_until: Any) -> None:
    """A message that is tried again at once is left to the next start, with its tries counted."""
    slow = COUNT.replace("outputs = []", "outputs = [sum(range(2_000_000))][1:]")
    async with processor(retry(attempts=1000, base_ms=0), work=slow) as running:
        await running.publish("in.a", {"i": 0, "fails": True})
        await wait_until(lambda: running.metric("processor_retries_total") > 3, "it is tried")
        assert await running.service.stop()
    async with processor(retry(attempts=2, base_ms=0), work=COUNT) as running:
        [letter] = await running.dead_letters("r")
        assert int(letter.headers["x-delivery-count"]) > 3
