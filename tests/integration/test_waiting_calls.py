"""Messages of a batch whose calls wait for a slow server: they wait together, and each asks once."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.integration.test_outside import POST
from tests.running import Start
from tests.web import Asked, answer, serving

ROUTE = """
r:
  input: {{subject: "in.*", create: true}}
  runnable: post.py
  output: out
  key: json./n
  retry: {{attempts: 1}}
  outbound: {{allowed_domains: ["{host}"]}}
"""


async def test_messages_of_different_keys_wait_for_their_answers_together(
    processor: Start, wait_until: Any
) -> None:
    """A server that answers nobody before twelve have asked is no obstacle, nor is one of them that fails:
    the others are not asked for again, and their outputs are in order.
    """
    first_asked, all_asked, hold = asyncio.Event(), asyncio.Barrier(12), asyncio.Event()

    async def say(asked: Asked) -> bytes:
        if b'"n":0' in asked.body.replace(b" ", b""):
            first_asked.set()
            await hold.wait()  # so that the rest makes one batch
        else:
            await all_asked.wait()
        return answer(asked.body)

    async def is_taken() -> bool:
        stream = await running.broker.find_stream("in.a")
        [consumer] = (await running.broker.api(f"CONSUMER.LIST.{stream}"))["consumers"]
        return bool(consumer["num_pending"] == 0)

    async with (
        serving(say) as web,
        processor(ROUTE.format(host=web.host), post=POST) as running,
    ):
        await running.publish("in.a", {"url": web.url, "n": 0})
        await asyncio.wait_for(first_asked.wait(), 20)
        await running.publish("in.a", *({"url": web.url, "n": n} for n in range(30, 42)))
        await wait_until(is_taken, "the rest is in the hands of the route")
        hold.set()
        outputs = await running.documents("out", 12)
        [letter] = await running.dead_letters("r", 1)
        assert letter.headers["x-error-code"] == "E304"
        assert running.metric("processor_repeated_requests_total", route="r") == 0
        contexts = await running.contexts("r")
    assert [output["n"] for output in outputs] == [0, *(n for n in range(30, 42) if n != 37)]
    assert len(web.asked) == 13
    assert contexts == {str(n): {"sum": n} for n in [0, *range(30, 42)] if n != 37}
