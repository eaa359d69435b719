"""Chapter 4: a message that cannot be processed is set aside with its reason; nothing else notices."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.running import Start

ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: work.py
  output: out
"""
WORK = """
class Runnable:
    def init(self):
        self.context["n"] = 0

    def process(self, queries):
        outputs = []
        for query in queries:
            self.context["n"] += 1
            outputs.append({"n": self.context["n"], "half": 10 / query["by"]})
        return outputs
"""


async def test_the_poison_message_fails_alone(processor: Start) -> None:
    """The others of its batch succeed, in order, and the context does not know that it ever came."""
    async with processor(ROUTE, work=WORK) as running:
        await running.publish("in.a", {"by": 1}, {"by": 0}, {"by": 2})
        assert await running.documents("out", 2) == [{"n": 1, "half": 10.0}, {"n": 2, "half": 5.0}]
        await running.dead_letters("r")
        assert await running.contexts("r") == {"": {"n": 2}}


async def test_a_dead_letter_says_what_where_and_why(processor: Start) -> None:
    """Payload and headers are those of the message; `x-` headers tell the rest, the user's line included."""
    async with processor(ROUTE, work=WORK) as running:
        await running.publish("in.a", b'{"by": 0}', headers={"Trace": "t-1"})
        [letter] = await running.dead_letters("r")
        headers = letter.headers
        assert letter.payload == b'{"by": 0}'
        assert headers["Trace"] == "t-1"
        assert headers["x-error-code"] == "E304"
        assert headers["x-dead-letter-reason"] == "ZeroDivisionError: division by zero"
        assert (headers["x-original-subject"], headers["x-original-sequence"]) == ("in.a", "1")
        assert (headers["x-route"], headers["x-delivery-count"]) == ("r", "3")
        traceback = orjson.loads(headers["x-error-traceback"])
        assert 'work.py", line 10, in process' in traceback
        assert 'outputs.append({"n": self.context["n"], "half": 10 / query["by"]})' in traceback


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"not json", "E301"),
        (b'{"by": NaN}', "E301"),
        (b"", "E301"),
        (b'{"no": "by"}', "E304"),
        (b'"text"', "E304"),
    ],
)
async def test_bad_input_is_a_dead_letter_and_never_a_crash(
    processor: Start, payload: bytes, code: str
) -> None:
    """Whatever arrives, the route says what was wrong with it and goes on."""
    async with processor(ROUTE, work=WORK) as running:
        await running.publish("in.a", payload, {"by": 1})
        assert await running.documents("out", 1) == [{"n": 1, "half": 10.0}]
        [letter] = await running.dead_letters("r")
        assert (letter.payload, letter.headers["x-error-code"]) == (payload, code)


async def test_a_runnable_may_reject_a_message(processor: Start) -> None:
    """`Reject` is final: there is no second try, and `except Exception` does not swallow it."""
    work = """
    class Runnable:
        def process(self, queries):
            self.context["runs"] = self.context.get("runs", 0) + 1
            try:
                raise Reject("no price")
            except Exception:
                return "swallowed"
    """
    async with processor(ROUTE, work=work) as running:
        await running.publish("in.a", {})
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == "E305"
        assert letter.headers["x-dead-letter-reason"] == "no price"
        assert letter.headers["x-delivery-count"] == "1"
        assert await running.contexts("r") == {}


async def test_a_runnable_may_ask_for_a_later_try(processor: Start, wait_until: Any) -> None:
    """`Retry(after_s)` counts as one of `retry.attempts`; what an attempt did to the context is undone."""
    work = """
    class Runnable:
        def process(self, queries):
            self.context["tries"] = self.context.get("tries", 0) + 1
            raise Retry(after_s=0.01)
    """
    async with processor(ROUTE + "  retry: {attempts: 4}\n", work=work) as running:
        await running.publish("in.a", {})
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-delivery-count"] == "4"
        assert await running.contexts("r") == {}
        await wait_until(
            lambda: running.metric("processor_failures_total", route="r", reason="E304") == 4,
            "four failures are counted",
        )


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("return float('nan')", "E306"),
        ("return [{'at': {1, 2}}]", "E306"),
        ("return b'bytes'", "E306"),
        ("x = []; x.append(x); return {'x': x}", "E306"),
        ("return ['x' * 1000] * 20", "E307"),
        ("return list(range(1000))", "E324"),
        ("return {'text': 'x' * 1001}", "E318"),
        ("return {'list': [0] * 101}", "E319"),
        ("return {'a': {'b': {'c': {}}}}", "E320"),
    ],
)
async def test_an_output_that_cannot_be_sent_is_refused(processor: Start, body: str, code: str) -> None:
    """Outputs are JSON documents within the limits; nothing is rounded, cut or turned into text."""
    work = f"""
    class Runnable:
        def process(self, queries):
            {body}
    """
    limits = "{output_bytes: 10KiB, max_string_length: 1000, max_container_length: 100, max_depth: 3}"
    async with processor(ROUTE + f"  limits: {limits}\n", work=work) as running:
        await running.publish("in.a", {})
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == code
        assert await running.stored("out") == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("while True: pass", "E311"),
        ("import time; time.sleep(60)", "E312"),
        ("x = [0] * 400_000_000", "E313"),
    ],
)
async def test_a_runnable_that_uses_too_much_is_stopped(processor: Start, body: str, code: str) -> None:
    """Time and memory are limits by name; the next message finds a new guest and the committed context."""
    work = f"""
    class Runnable:
        def process(self, queries):
            if queries[0].get("bad"):
                {body}
            self.context["n"] = self.context.get("n", 0) + len(queries)
            return self.context["n"]
    """
    route = ROUTE + "  retry: {attempts: 1}\n  limits: {cpu_s: 0.2, wall_s: 1, memory_mb: 64}\n"
    route += "  batch: {max_messages: 1}\n"
    async with processor(route, work=work) as running:
        await running.publish("in.a", {}, {"bad": True}, {})
        assert await running.documents("out", 2) == [1, 2]
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == code
