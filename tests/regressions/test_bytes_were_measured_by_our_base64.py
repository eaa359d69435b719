"""A binary message of 800 kB was refused for the size of the base64 that its codec made of it.

`max_string_length` (a million characters) was compared with the text that a Runnable gets, which is a third
longer than the message; so was that of an output in base64. Now the bytes are what counts.
"""

from __future__ import annotations

from tests.running import Start

RAW = "r: {input: {subject: in, create: true, codec: raw}, runnable: echo.py, output: out}"
ECHO = """
class Runnable:
    def process(self, queries):
        return [{"base64": query["base64"]} for query in queries]
"""
SIZE_OF_DATA = """
class Runnable:
    def process(self, queries):
        yield len(queries[0]["data_base64"])
"""
CE = {
    "ce-specversion": "1.0",
    "ce-id": "7",
    "ce-source": "/x",
    "ce-type": "image",
    "content-type": "image/png",
}


async def test_bytes_up_to_the_limit_go_in_and_out(processor: Start) -> None:
    """One more is a dead letter."""
    async with processor(RAW, echo=ECHO) as running:
        images = [b"\xff\xd8" + bytes(size - 2) for size in (800_000, 1_000_000)]
        await running.publish("in", *images, b"\xff" * 1_000_003)
        assert await running.payloads("out", 2) == images
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == "E318"
        assert "max_string_length" in letter.headers["x-dead-letter-reason"]


async def test_bytes_of_an_event_count_as_bytes(processor: Start) -> None:
    """Binary CloudEvents have them in `data_base64`."""
    async with processor(RAW.replace("raw", "cloudevents"), echo=SIZE_OF_DATA) as running:
        await running.publish("in", b"\xff" * 900_000, headers=CE)
        assert await running.documents("out", 1) == [1_200_000]
