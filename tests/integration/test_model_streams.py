"""Answers of models as they come: through `process_stream` to listeners, and in code that awaits."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from tests.llm import event, said, streamed
from tests.running import Start
from tests.web import Asked, Paused, serving

TOP = 'inference: {local: {base_url: "%s/v1", models: tiny, max_tokens: 50}}\n'
TALK = """
class Runnable:
    def process_stream(self, query):
        answer = self.infer("tiny", prompt=query["ask"], stream=True)
        for piece in answer:
            yield piece
        self.context["tokens"] = self.context.get("tokens", 0) + answer.usage["total_tokens"]
        self.context["said"] = answer.text
        yield {"finish_reason": answer.finish_reason}
"""
AWAITED_TALK = """
class Runnable:
    async def process_stream(self, query):
        answer = await self.ainfer("tiny", prompt=query["ask"], stream=True)
        async for piece in answer:
            yield piece
        self.context["tokens"] = self.context.get("tokens", 0) + answer.usage["total_tokens"]
        self.context["said"] = answer.text
        yield {"finish_reason": answer.finish_reason}
"""
STREAM = """
r:
  input: {subject: "ask.*", create: true}
  runnable: talk.py
  mode: stream
  language: %s
  output: {subject: "talk", durable: false}
  inference: local
"""
PIECES = [event({"content": "Yes"}), event({"content": ", 12."}), event({}, finish_reason="stop")]


@pytest.mark.parametrize(
    ("language", "talk"), [("restricted", TALK), ("python", TALK), ("python", AWAITED_TALK)]
)
async def test_listeners_hear_a_model_before_it_has_ended(
    processor: Start, wait_until: Any, language: str, talk: str
) -> None:
    """Piece by piece; what the answer used is known behind the last one, and kept with the message."""
    more = asyncio.Event()
    spoken = streamed(*PIECES, event(usage=(7, 3)), pause=(1, more))
    async with (
        serving(lambda asked: spoken) as web,
        processor(STREAM % language, TOP % web.url, talk=talk) as running,
    ):
        heard = await running.listen("talk")
        await running.publish("ask.1", {"ask": "How much?"})
        await wait_until(lambda: len(heard) == 1, "the first piece was heard")
        assert heard[0].payload == b"Yes"
        more.set()
        await wait_until(lambda: len(heard) == 4, "the others, and the marker")
        assert [each.payload for each in heard[1:]] == [b", 12.", b'{"finish_reason":"stop"}', b""]
        assert (await running.contexts("r"))[""] == {"tokens": 10, "said": "Yes, 12."}
        assert running.metric("processor_first_token_seconds_count", route="r", endpoint="local") == 1
    assert len(web.asked) == 1


CALLS = """
import asyncio

class Runnable:
    async def process(self, queries):
        made = []
        for query in queries:
            one, other = await asyncio.gather(
                self.ainfer("tiny", prompt="a"), self.ainfer("tiny", prompt="b", max_tokens=5)
            )
            text = []
            async for piece in await self.ainfer("tiny", prompt="c", stream=True):
                text.append(piece)
            vectors = await self.aembed("tiny", ["x"])
            given_up = self.infer("tiny", prompt="d", stream=True)
            first = next(iter(given_up))
            with given_up:
                pass
            tokens = self.infer("tiny", prompt="e", stream=True).usage["prompt_tokens"]
            made.append([one.text, other.text, text, vectors, first, list(given_up), tokens])
        return made
"""


@pytest.mark.parametrize("language", ["restricted", "python"])
async def test_the_same_code_awaits_in_both_languages(processor: Start, language: str) -> None:
    """In plain Python calls that are awaited together are made together."""

    def say(asked: Asked) -> bytes | Paused:
        request = orjson.loads(asked.body)
        if "input" in request:
            return said_vectors
        if request.get("stream"):
            return streamed(*PIECES, event(usage=(7, 3)))
        return said(request["messages"][0]["content"].upper())

    body = orjson.dumps({"data": [{"index": 0, "embedding": [0.5]}]})
    said_vectors = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    route = f"""
r:
  input: {{subject: "in.*", create: true}}
  runnable: calls.py
  language: {language}
  output: out
  inference: local
"""
    async with serving(say) as web, processor(route, TOP % web.url, calls=CALLS) as running:
        await running.publish("in.a", {})
        [made] = await running.documents("out", 1)
    assert made == ["A", "B", ["Yes", ", 12."], [[0.5]], "Yes", [], 7]


AGAIN = """
class Runnable:
    def process(self, queries):
        answer = self.infer("tiny", prompt="a")
        if self.message.attempt == 1:
            raise ValueError("not yet")
        return [answer.text]
"""


async def test_a_message_that_is_tried_again_has_the_answer_that_it_had(processor: Start) -> None:
    """A model is not asked, and paid, twice for it, while the process goes on."""
    route = """
r:
  input: {subject: "in.*", create: true}
  runnable: again.py
  output: out
  inference: local
  calls: {replay: writes}
  retry: {base_ms: 1}
"""
    async with (
        serving(lambda asked: said("yes")) as web,
        processor(route, TOP % web.url, again=AGAIN) as running,
    ):
        await running.publish("in.a", {})
        assert await running.documents("out", 1) == ["yes"]
    assert len(web.asked) == 1


FOUR = """
class Runnable:
    def process(self, queries):
        kept = []
        try:
            for number in range(6):
                kept.append(self.infer("tiny", prompt=str(number), stream=True))
        except BudgetExceededError as err:
            yield {"open": len(kept), "code": err.code}
"""


async def test_a_run_has_few_streams_open_and_leaves_none(processor: Start, wait_until: Any) -> None:
    """The fifth is refused; with the run all of them end, and the next run has as many."""
    never = asyncio.Event()

    async def say(asked: Asked) -> Paused:
        return Paused(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", never, b"")

    route = """
r:
  input: {subject: "in.*", create: true}
  runnable: four.py
  output: out
  inference: local
  batch: {max_messages: 1}
"""
    async with serving(say) as web, processor(route, TOP % web.url, four=FOUR) as running:
        await running.publish("in.a", {}, {})
        assert await running.documents("out", 2) == [{"open": 4, "code": "E322"}] * 2
        assert running.metric("processor_tokens_total", route="r", direction="in") > 0
        never.set()
    assert len(web.asked) == 8
