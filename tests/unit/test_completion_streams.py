"""`infer_stream`: an answer that comes in pieces, however these divide it, and however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from processor.capability.events import EventSplitter, TooLong
from processor.capability.monitor import Monitor
from processor.errors import ProcessorError
from tests.llm import event, refused, streamed
from tests.unit.test_completions import AT_ONCE, BUDGET, CANARY, asking, policy, used
from tests.web import Asked, Cut, refusal, serving

PIECES = [
    event({"role": "assistant", "content": None}),
    event({"content": "Yes"}),
    event({"content": ", 12."}),
]
END = [event({}, finish_reason="stop"), event(usage=(7, 3))]


async def opened(lane: Monitor, **arguments: Any) -> int:
    asked = {"model": "tiny-1", "prompt": "How much?", **arguments}
    return int((await lane.perform("infer_stream", asked))["stream"])


async def pulled(lane: Monitor, number: int) -> list[dict[str, Any]]:
    """All items of a stream, which has its end then."""
    items: list[dict[str, Any]] = []
    while True:
        found = await lane.perform("stream_next", {"stream": number})
        items += found["items"]
        if found["end"]:
            return items


def text_of(items: Sequence[dict[str, Any]]) -> str:
    return "".join(item.get("text", "") for item in items)


async def test_a_stream_is_the_text_as_it_comes_and_then_all_of_the_answer() -> None:
    """One request, which asks for the usage; one entry, one charge, and the time of the first piece."""
    heard: list[tuple[Any, ...]] = []
    async with (
        serving(lambda asked: streamed(*PIECES, *END)) as web,
        asking(web, heard=lambda *each: heard.append(each)) as lane,
    ):
        items = await pulled(lane, await opened(lane))
        found = {kind: await used(lane, kind) for kind in ("tokens_in", "tokens_out", "infer_calls", "cost")}
        [entry] = lane.end()
    asked = orjson.loads(web.asked[0].body)
    assert (asked["stream"], asked["stream_options"]) == (True, {"include_usage": True})
    assert [item["text"] for item in items[:-1]] == ["Yes", ", 12."]
    assert items[-1] == {
        "message": {"role": "assistant", "content": "Yes, 12."},
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        "model": "said-9",
    }
    assert found == {"tokens_in": 7, "tokens_out": 3, "infer_calls": 1, "cost": 8}
    assert (entry.event, entry.operation, entry.decision, entry.status) == ("infer", "chat", "allow", 200)
    assert entry.details == {"model_said": "said-9", "name": "local", "tokens": [7, 3]}
    assert entry.sizes is not None
    assert entry.sizes[1] == len(b"".join([*PIECES, *END, b"data: [DONE]\n\n"]))
    assert len(entry.answer_digest) == 32
    [(name, seconds, tokens_in, tokens_out, first_s)] = heard
    assert (name, tokens_in, tokens_out) == ("local", 7, 3)
    assert 0 < first_s <= seconds


async def test_a_piece_is_there_before_the_next_one_has_come() -> None:
    """And the connection serves the next call, since the answer was read to its end."""
    more = asyncio.Event()

    async with serving(lambda asked: streamed(*PIECES, *END, pause=(2, more))) as web, asking(web) as lane:
        number = await opened(lane)
        first = await lane.perform("stream_next", {"stream": number})
        assert first == {"items": [{"text": "Yes"}], "end": False}
        more.set()
        assert text_of(await pulled(lane, number)) == ", 12."
        await pulled(lane, await opened(lane))
    assert (len(web.asked), web.connections) == (2, 1)


async def test_calls_of_tools_are_put_together() -> None:
    """From the parts of their arguments, each at its index."""
    parts: list[dict[str, Any]] = [
        {
            "tool_calls": [
                {"index": 0, "id": "a", "type": "function", "function": {"name": "vat", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"net"'}}]},
        {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "add", "arguments": "{}"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 5}"}}]},
    ]
    spoken = streamed(*map(event, parts), event({}, finish_reason="tool_calls"))
    async with serving(lambda asked: spoken) as web, asking(web) as lane:
        [end] = await pulled(lane, await opened(lane))
    assert end["message"]["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "vat", "arguments": '{"net": 5}'}},
        {"id": "b", "type": "function", "function": {"name": "add", "arguments": "{}"}},
    ]
    assert end["usage"]["estimated"] is True


async def test_a_stream_that_is_cut_at_any_byte_is_one_error() -> None:
    """Until its last event has said that it ended; what had come before is what was sent."""
    whole = streamed(*PIECES, *END)
    begun = whole.index(b"\r\n\r\n") + 4
    finished = whole.index(END[0]) + len(END[0])

    def say(asked: Asked) -> bytes:
        return Cut(whole[: int(orjson.loads(asked.body)["messages"][0]["content"])])

    async def one(lane: Monitor, at: int) -> tuple[str, str]:
        number, text = await opened(lane, prompt=str(at)), ""
        try:
            while True:
                found = await lane.perform("stream_next", {"stream": number})
                text += text_of(found["items"])
                if found["end"]:
                    return "", text
        except ProcessorError as err:
            with pytest.raises(ProcessorError, match="is closed"):
                await lane.perform("stream_next", {"stream": number})
            return err.code, text

    async with serving(say) as web, asking(web) as first:

        async def cut(at: int) -> None:
            lane = first._governor.lane()  # a stream of its own, over connections that are shared
            lane.begin(first._scope)
            code, text = await one(lane, at)
            [entry] = lane.end()
            assert code == "E334", at
            assert "Yes, 12.".startswith(text)
            assert (entry.decision, entry.code) == ("error", "E334")
            assert at >= finished or entry.details["estimated"] is True

        await asyncio.gather(*map(cut, range(begun, len(whole))))


ODD = {
    "no JSON": b"data: <html>\n\n",
    "no object": b"data: [1]\n\n",
    "deep": b'data: {"x": ' + b"[" * 200 + b"]" * 200 + b"}\n\n",
    "an error": b'data: {"error": {"message": "overloaded"}}\n\n',
    "no end": event({"content": "a"}),
    "nothing": b"",
}


@pytest.mark.parametrize("case", ODD)
async def test_an_odd_stream_is_one_error(case: str) -> None:
    """The first that is not as it should be ends it, and the next call is as good as ever."""
    answers = [streamed(ODD[case], done=False), streamed(*PIECES, *END)]
    async with serving(lambda asked: answers[len(web.asked) - 1]) as web, asking(web) as lane:
        text = await refusal("E334", pulled(lane, await opened(lane)))
        assert ("overloaded" in text) is (case == "an error")
        assert text_of(await pulled(lane, await opened(lane))) == "Yes, 12."


async def test_what_is_no_stream_is_an_error_of_its_call() -> None:
    """An answer of another type, or a status that says no; a server that is busy is asked again."""
    async with serving(lambda asked: refused(400, "no stream")) as web, asking(web) as lane:
        assert "status 400: no stream" in await refusal("E334", opened(lane))
        assert await used(lane, "tokens") == 0
    answers = [refused(503, **AT_ONCE), refused(200, "plain")]
    async with serving(lambda asked: answers[len(web.asked) - 1]) as web, asking(web) as lane:
        assert "the server's answer is no stream of events" in await refusal("E334", opened(lane))
        assert len(web.asked) == 2


async def test_a_stream_may_not_be_silent_for_long() -> None:
    """`idle_s` bounds the wait for each piece, and `timeout_s` all of them."""
    never = asyncio.Event()

    async with serving(lambda asked: streamed(*PIECES, pause=(2, never))) as web:
        async with asking(web, idle_s=0.2) as lane:
            number = await opened(lane)
            await lane.perform("stream_next", {"stream": number})
            assert "came for 0.2 s" in await refusal("E334", lane.perform("stream_next", {"stream": number}))
        async with asking(web, timeout_s=0.3) as lane:
            number = await opened(lane)
            await lane.perform("stream_next", {"stream": number})
            text = await refusal("E334", lane.perform("stream_next", {"stream": number}))
            assert "no complete answer within 0.3 s (inference.local.timeout_s)" in text
        never.set()


async def test_a_stream_has_no_more_bytes_than_an_answer() -> None:
    """Beyond them it is E323."""
    spoken = streamed(*[event({"content": "x" * 100}) for _ in range(50)])
    async with serving(lambda asked: spoken) as web, asking(web, response_bytes=4000) as lane:
        await refusal("E323", pulled(lane, await opened(lane)))


@pytest.mark.parametrize("how", ["stream_close", "end of the run"])
async def test_a_stream_that_is_given_up_is_charged_what_had_come(tmp_path: Path, how: str) -> None:
    """Its entry says what is known; what it had reserved beyond that is free again."""
    never = asyncio.Event()

    rules = policy(tmp_path, BUDGET % (1000, "day"))
    async with (
        serving(lambda asked: streamed(*PIECES, *END, pause=(2, never))) as web,
        asking(web, rules=rules) as lane,
    ):
        number = await opened(lane)
        await lane.perform("stream_next", {"stream": number})
        if how == "stream_close":
            await lane.perform("stream_close", {"stream": number})
        else:
            await lane.finish()
        tokens = -(-len(web.asked[0].body) // 4), 1  # "Yes" is one
        assert await used(lane, "tokens") == sum(tokens)
        [entry] = lane.end()
        never.set()
    assert entry.details["tokens"] == [*tokens]
    assert (entry.decision, entry.details["estimated"]) == ("allow", True)


async def test_the_key_comes_back_in_no_piece() -> None:
    """Wherever the server divides it: between bytes, and between events."""
    for at in range(len(CANARY) + 1):
        parts = [event({"content": part}) for part in (f"key {CANARY[:at]}", CANARY[at:], " and on")]
        async with serving(lambda asked, parts=parts: streamed(*parts, *END)) as web, asking(web) as lane:
            items = await pulled(lane, await opened(lane))
        assert text_of(items) == "key *** and on"
        assert items[-1]["message"]["content"] == "key *** and on"


def test_events_are_the_same_however_they_are_divided() -> None:
    """Lines end in CR, LF or both; comments and other fields are passed over; data has many lines."""
    text = b": hi\ndata: 1\n\nevent: x\r\ndata:2\r\ndata: 3\r\n\r\ndata\rid: 4\rdata: 5\r\rdata: cut"
    wanted = [b"1", b"2\n3", b"5"]
    for at in range(len(text) + 1):
        splitter = EventSplitter()
        assert [*splitter.feed(text[:at]), *splitter.feed(text[at:])] == wanted, at
    bytewise = EventSplitter()
    assert [each for at in range(len(text)) for each in bytewise.feed(text[at : at + 1])] == wanted
    with pytest.raises(TooLong):
        list(EventSplitter(100).feed(b"data: " + b"x" * 100))
