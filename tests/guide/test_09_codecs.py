"""Chapter 9: messages that are not JSON documents."""

from __future__ import annotations

from tests.running import Start


async def test_raw_takes_any_bytes(processor: Start) -> None:
    """Text is `data`, other bytes are `base64`; outputs go the same way back."""
    program = """
    import base64

    class Runnable:
        def process(self, queries):
            for query in queries:
                if "data" in query:
                    yield query["data"].upper()
                else:
                    turned = base64.b64decode(query["base64"])[::-1]
                    yield {"base64": base64.b64encode(turned).decode()}
    """
    route = """
    r:
      input: {subject: "in", create: true, codec: raw}
      runnable: program.py
      output: out
    """
    async with processor(route, program=program) as running:
        await running.publish("in", b"hello", b"\x00\xff", b"end")
        assert await running.payloads("out", 3) == [b"HELLO", b"\xff\x00", b"END"]


async def test_cloudevents_come_with_their_attributes(processor: Start) -> None:
    """In binary mode attributes are headers; outputs are events with ids of their own."""
    program = """
    class Runnable:
        def process(self, queries):
            return [{"of": event["id"], "double": 2 * event["data"]["n"]} for event in queries]
    """
    route = """
    r:
      input: {subject: "in", create: true, codec: cloudevents}
      runnable: program.py
      output: out
      cloudevents: {type: com.example.doubled, source: /doubler}
    """
    attributes = {"ce-specversion": "1.0", "ce-id": "7", "ce-source": "/x", "ce-type": "number"}
    async with processor(route, program=program) as running:
        await running.publish("in", {"n": 21}, headers=attributes)
        assert await running.documents("out", 1) == [{"of": "7", "double": 42}]
        [output] = await running.stored("out")
        assert (output.headers["ce-type"], output.headers["ce-source"]) == ("com.example.doubled", "/doubler")
        assert output.headers["ce-id"] == "r-app-in-1-0"


async def test_structured_cloudevents_are_read_too(processor: Start) -> None:
    """A whole event as one JSON object; one without its id is a dead letter."""
    program = """
    class Runnable:
        def process(self, queries):
            return [event["data"] for event in queries]
    """
    route = """
    r:
      input: {subject: "in", create: true, codec: cloudevents}
      runnable: program.py
      output: out
    """
    event = {"specversion": "1.0", "id": "7", "source": "/x", "type": "number", "data": {"n": 21}}
    async with processor(route, program=program) as running:
        await running.publish("in", event, {**event, "id": ""})
        assert await running.documents("out", 1) == [{"n": 21}]
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == "E302"
