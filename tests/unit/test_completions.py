"""`infer` and `embed`: what goes to a server of models, what comes back of it, and what is believed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from processor.address import Binding
from processor.audit import AuditEntry
from processor.capability.monitor import Mandate, Monitor, RunScope
from processor.capability.registry import HostCalls
from processor.context.late import Intent
from processor.errors import ProcessorError
from processor.policy import NO_POLICY, Rules, load
from processor.reach import BoundSecret, InferenceEndpoint, Outbound, Reach
from processor.route import RouteAudit
from tests.llm import refused, said
from tests.web import Asked, Cut, Web, answer, refusal, serving

CANARY = "canary-key-0123456789"
AT_ONCE = {"Retry-After": "0"}


@asynccontextmanager
async def asking(
    web: Web,
    *,
    rules: Rules = NO_POLICY,
    heard: Callable[..., None] = lambda *each: None,
    response_bytes: int = 4 << 20,
    **settings: Any,
) -> AsyncIterator[Monitor]:
    """The calls of a route with the endpoint `local`, which is that server, in a run that is audited."""

    async def announce(partition: int, intent: Intent) -> None:
        assert (intent.event, intent.operation) == ("infer", "chat")

    secret = BoundSecret("llm_key", CANARY, (Binding.parse(web.url),))
    keys: dict[str, Any] = {"models": ("tiny-*",), "secret": secret, "max_tokens": 64, "price": (0.5, 1.5)}
    endpoint = InferenceEndpoint("local", f"{web.url}/v1", **{**keys, **settings})
    other = InferenceEndpoint("other", "http://127.0.0.1:9/v1", ("gpt-*", "tiny-*"))
    outbound = Outbound(response_bytes=response_bytes)
    reach = Reach("here", outbound, secrets=(secret,), inference=(endpoint, other))
    calls = HostCalls()
    try:
        mandate = Mandate("r", rules, audit=RouteAudit("calls", "unsafe"))
        lane = calls.for_route(reach, mandate, inferred=heard).lane()
        lane.begin(RunScope(0, (1, 1), announce))
        yield lane
    finally:
        await calls.close()


def policy(folder: Path, text: str) -> Rules:
    (folder / "policy.toml").write_text(text)
    return load([folder / "policy.toml"])


async def infer(lane: Monitor, model: str = "tiny-1", **arguments: Any) -> dict[str, Any]:
    asked = arguments if "messages" in arguments else {"prompt": "How much?", **arguments}
    found: dict[str, Any] = await lane.perform("infer", {"model": model, **asked})
    return found


async def used(lane: Monitor, kind: str) -> int:
    return int((await lane.perform("budget", {"kind": kind}))["used"])


async def test_a_request_has_what_was_asked_and_the_bounds_of_the_endpoint() -> None:
    """With its secret as a bearer token; nothing else of the route or the guest goes along."""
    messages = [{"role": "system", "content": "Short."}, {"role": "user", "content": "How much?"}]
    async with serving(lambda asked: said("12")) as web, asking(web) as lane:
        document = await infer(lane, messages=messages, options={"temperature": 0, "stop": ["\n"]})
        await infer(lane, max_tokens=5)
    first, second = web.asked
    assert (first.method, first.target) == ("POST", "/v1/chat/completions")
    assert first.headers["authorization"] == f"Bearer {CANARY}"
    assert orjson.loads(first.body) == {
        "model": "tiny-1",
        "messages": messages,
        "max_tokens": 64,
        "temperature": 0,
        "stop": ["\n"],
    }
    assert orjson.loads(second.body) == {
        "model": "tiny-1",
        "messages": [{"role": "user", "content": "How much?"}],
        "max_tokens": 5,
    }
    assert document["choices"][0]["message"]["content"] == "12"
    assert document["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({"prompt": None}, "it takes either messages=[...] or prompt=..."),
    "both": ({"messages": [{}], "prompt": "x"}, "it takes either messages=[...] or prompt=..."),
    "unknown option": ({"options": {"n": 3}}, "there is no option 'n'; there are temperature, top_p"),
    "its value": ({"options": {"seed": "x"}}, "seed is 'x', not a whole number from -9223372036854775808"),
    "true is no number": ({"options": {"temperature": True}}, "temperature is True, not a number above -1"),
    "tool choice": ({"options": {"tool_choice": "all"}}, "not one of auto, none, required, or an object"),
    "no character": ({"prompt": "a\udcff"}, "it holds a surrogate, which is no character"),
    "too much": (
        {"max_tokens": 65},
        "max_tokens is 65, and an answer has at most 64 (inference.local.max_tok",
    ),
}


@pytest.mark.parametrize("case", WRONG)
async def test_what_cannot_be_asked_is_refused_here(case: str) -> None:
    """Nothing of it reaches the server, and no budget counts it."""
    arguments, sentence = WRONG[case]
    async with serving() as web, asking(web) as lane:
        assert sentence in await refusal("E337", infer(lane, **arguments))
        assert await used(lane, "infer_calls") == await used(lane, "tokens") == 0
    assert not web.asked


async def test_the_name_of_a_model_says_which_endpoint_is_asked() -> None:
    """The first of the route that serves it; where none does, both lists are named."""
    async with serving(lambda asked: said()) as web, asking(web) as lane:
        await infer(lane, "tiny-2")
        text = await refusal("E330", infer(lane, "claude-3"))
        [_, entry] = lane.end()
    assert len(web.asked) == 1
    assert "infer chat claude-3: no endpoint of the route serves that model" in text
    assert "those of the route are local (tiny-*), other (gpt-*, tiny-*)" in text
    assert (entry.decision, entry.code, entry.rule, entry.target) == ("deny", "E330", "config", "claude-3")


async def test_a_server_that_asks_for_another_try_gets_it() -> None:
    """As soon as it says; three times in all, and then its last word is the error."""
    answers = [refused(429, **AT_ONCE), refused(503, **AT_ONCE), said("at last")]
    async with serving(lambda asked: answers[len(web.asked) - 1]) as web, asking(web) as lane:
        document = await infer(lane)
        assert document["choices"][0]["message"]["content"] == "at last"
        answers[:] = [refused(500, "out of\nmemory", **AT_ONCE)] * 6
        text = await refusal("E334", infer(lane))
    assert len(web.asked) == 6
    assert "tiny-1 of local: status 500: out of memory." in text


@pytest.mark.parametrize("status", [400, 401, 404, 301])
async def test_what_another_try_cannot_change_is_an_error_at_once(status: int) -> None:
    """It has the status and the sentence of the server; a call without an answer has used no tokens."""
    async with serving(lambda asked: refused(status, f"no such {CANARY}")) as web, asking(web) as lane:
        text = await refusal("E334", infer(lane))
        assert (await used(lane, "infer_calls"), await used(lane, "tokens")) == (1, 0)
    assert len(web.asked) == 1
    assert f"tiny-1 of local: status {status}: no such ***" in text


async def test_a_try_that_would_come_too_late_is_not_waited_for() -> None:
    """A server may ask for any pause; what is left of the deadline decides."""
    busy = refused(429, "busy", **{"Retry-After": "3600"})
    async with serving(lambda asked: busy) as web, asking(web) as lane:
        text = await refusal("E334", infer(lane))
    assert len(web.asked) == 1
    assert "status 429: busy; the next try would be in 3600 s, which is too late" in text


@pytest.mark.parametrize("said_s", ["9" * 400, "Fri, 31 Dec 99999999999 23:59:59 GMT", "soon", "-1", "0.1"])
async def test_an_odd_pause_is_none(said_s: str) -> None:
    """What cannot be read as a number of seconds or a moment is not kept."""
    answers = [refused(429, **{"Retry-After": said_s}), said("at last")]
    async with serving(lambda asked: answers[len(web.asked) - 1]) as web, asking(web) as lane:
        assert (await infer(lane))["choices"][0]["message"]["content"] == "at last"


async def test_a_server_that_is_silent_or_not_there_is_an_error() -> None:
    """Within the deadline of the endpoint, which is named."""
    async with serving(lambda asked: None) as web:
        async with asking(web, timeout_s=0.2) as lane:
            text = await refusal("E334", infer(lane))
        assert "no complete answer within 0.2 s (inference.local.timeout_s)" in text
    async with asking(web) as lane:  # which has ended
        assert f"tiny-1 of local: {web.host}: " in await refusal("E334", infer(lane))


ODD: dict[str, bytes] = {
    "no JSON": b"<html>",
    "no object": b"[1]",
    "no choices": b"{}",
    "choices of another kind": b'{"choices": {"message": {}}}',
    "none": b'{"choices": []}',
    "null": b'{"choices": [null]}',
    "a message of another kind": b'{"choices": [{"message": "hi"}]}',
    "deep": b'{"choices": [{"message": {}}], "x": ' + b"[" * 200 + b"]" * 200 + b"}",
    "an error in an answer": b'{"error": "overloaded"}',
}


@pytest.mark.parametrize("case", ODD)
async def test_an_odd_answer_is_one_error(case: str) -> None:
    """Whatever a server says, the call ends with E334, and the next one is as good as ever."""
    answers = [answer(ODD[case]), said("fine")]
    async with serving(lambda asked: answers[len(web.asked) - 1]) as web, asking(web) as lane:
        await refusal("E334", infer(lane))
        assert (await infer(lane))["choices"][0]["message"]["content"] == "fine"


async def test_an_answer_has_a_bound() -> None:
    """That of all answers of the route."""
    async with serving(lambda asked: said("x" * 5000)) as web, asking(web, response_bytes=4000) as lane:
        await refusal("E323", infer(lane))


@pytest.mark.parametrize(
    "usage",
    [
        None, [], {}, {"prompt_tokens": 1, "completion_tokens": -1}, {"prompt_tokens": True},
        {"prompt_tokens": 1.5, "completion_tokens": 1}, {"prompt_tokens": 1 << 60, "completion_tokens": 1},
        {"prompt_tokens": 1, "completion_tokens": None},
    ],
)  # fmt: skip
async def test_tokens_that_nobody_has_counted_are_estimated(usage: Any) -> None:
    """By four bytes a token of what was sent and said; the answer and the audit say so."""
    message = {"role": "assistant", "content": "x" * 100}
    body = orjson.dumps({"choices": [{"message": message}], "usage": usage})
    async with serving(lambda asked: answer(body)) as web, asking(web) as lane:
        document = await infer(lane)
        [entry] = lane.end()
    tokens_in = -(-len(web.asked[0].body) // 4)
    tokens_out = -(-len(orjson.dumps(message)) // 4)
    assert document["usage"]["estimated"] is True
    assert (document["usage"]["prompt_tokens"], document["usage"]["completion_tokens"]) == (
        tokens_in,
        tokens_out,
    )
    assert entry.details["tokens"] == [tokens_in, tokens_out]
    assert entry.details["estimated"] is True


async def test_budgets_count_what_a_call_used_and_not_what_it_might_have() -> None:
    """Tokens, those in and out, their cost in millionths, calls; what was reserved for more is free again."""
    heard: list[tuple[str, int, int]] = []
    async with (
        serving(lambda asked: said()) as web,
        asking(web, heard=lambda name, _, *tokens: heard.append((name, *tokens[:2]))) as lane,
    ):
        await infer(lane)
        await infer(lane)
        found = {kind: await used(lane, kind) for kind in ("tokens_in", "tokens_out", "tokens", "cost")}
        calls = await used(lane, "infer_calls"), await used(lane, "requests")
    assert found == {"tokens_in": 14, "tokens_out": 6, "tokens": 20, "cost": 2 * 8}  # 7 * 0.5 + 3 * 1.5
    assert calls == (2, 2)
    assert heard == [("local", 7, 3)] * 2


BUDGET = """
[[capability]]
name = "infer"
resource = "tiny-*"
methods = ["chat"]
[[capability]]
name = "secret"
resource = "llm_key"
methods = ["use"]
[[budget]]
name = "team"
kind = "tokens"
limit = %d
window = "%s"
"""


@pytest.mark.parametrize("window", ["run", "day"])
async def test_a_call_that_might_use_more_than_is_left_is_not_made(tmp_path: Path, window: str) -> None:
    """The reservation is the estimate of the prompt and all tokens of the answer."""
    async with serving(lambda asked: said()) as web:
        async with asking(web, rules=policy(tmp_path, BUDGET % (100, window))) as lane:
            await infer(lane, max_tokens=50)  # may use 50 and those of its request, and uses 10
            await infer(lane, max_tokens=50)
            text = await refusal("E332", infer(lane, max_tokens=64))
            [_, _, entry] = lane.end()
        size = -(-len(web.asked[0].body) // 4)
        assert len(web.asked) == 2
    when = "in this run" if window == "run" else "this day"
    assert f"budget team: 20 of 100 tokens used {when}, and this call needs {size + 64}" in text
    assert (entry.decision, entry.code) == ("deny", "E332")


LINES = """
[[capability]]
name = "infer"
resource = "tiny-*"
methods = ["chat"]
max_tokens = 20
"""


async def test_the_policy_bounds_the_tokens_of_an_answer(tmp_path: Path) -> None:
    """Who names no number gets no more; who asks for more is denied, and told by which line."""
    rules = policy(tmp_path, LINES)
    async with serving(lambda asked: said()) as web, asking(web, rules=rules, secret=None) as lane:
        await infer(lane)
        text = await refusal("E330", infer(lane, max_tokens=21))
        denied = await refusal("E330", lane.perform("embed", {"model": "tiny-1", "texts": ["a"]}))
        [_, entry, other] = lane.end()
    assert [orjson.loads(each.body)["max_tokens"] for each in web.asked] == [20]
    assert "infer chat tiny-1: max_tokens is 21, and policy.toml:2 allows 20" in text
    assert 'methods = ["embed"]' in denied
    assert (entry.decision, entry.code, entry.rule) == ("deny", "E330", "policy.toml:2")
    assert (other.decision, other.operation) == ("deny", "embed")


async def test_a_policy_that_only_watches_bounds_nothing(tmp_path: Path) -> None:
    """Of a file in shadow mode neither a line nor its bound denies."""
    rules = policy(tmp_path, f'[settings]\nmode = "shadow"\n{LINES}')
    async with serving(lambda asked: said()) as web, asking(web, rules=rules, secret=None) as lane:
        await infer(lane, max_tokens=21)
        await infer(lane)
    assert [orjson.loads(each.body)["max_tokens"] for each in web.asked] == [21, 64]


async def test_the_secret_of_an_endpoint_needs_leave_of_its_own(tmp_path: Path) -> None:
    """Without it nothing is sent, and what the call had reserved is free again."""
    async with serving(lambda asked: said()) as web, asking(web, rules=policy(tmp_path, LINES)) as lane:
        assert "secret use llm_key is not allowed" in await refusal("E330", infer(lane))
        assert await used(lane, "tokens") == 0
    assert not web.asked


async def test_an_entry_has_hashes_and_tokens_and_no_word_of_the_prompt() -> None:
    """And the secret by its name."""
    async with serving(lambda asked: said()) as web, asking(web) as lane:
        await infer(lane)
        [entry] = lane.end()
    assert (entry.event, entry.operation, entry.target, entry.decision) == (
        "infer",
        "chat",
        "tiny-1",
        "allow",
    )
    assert entry.secrets == ("llm_key",)
    assert entry.details == {"model_said": "said-9", "name": "local", "tokens": [7, 3]}
    assert entry.intent
    assert len(entry.request_digest) == len(entry.answer_digest) == 32
    assert entry.sizes is not None
    assert entry.sizes[0] == len(web.asked[0].body)
    assert b"How much" not in entry.line(1)


async def test_the_key_comes_back_from_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """Not in an answer, an error, an entry or the log, whatever a server repeats."""
    caplog.set_level(logging.DEBUG)
    echo = said(f"your key is {CANARY}", name=CANARY[::1].upper())
    answers = [echo, refused(400, CANARY), answer(CANARY.encode()), refused(400, CANARY.encode().hex())]
    found: list[Any] = []
    entries: list[AuditEntry] = []
    async with serving(lambda asked: answers[len(web.asked) - 1]) as web, asking(web) as lane:
        for _ in answers:
            try:
                found.append(await infer(lane))
            except ProcessorError as err:
                found.append(str(err))
        entries = lane.end()
    shown = repr([found, [entry.line(1) for entry in entries], caplog.text]).lower()
    assert "your key is ***" in shown
    for form in (CANARY, CANARY.encode().hex()):
        assert form not in shown


async def test_a_secret_has_no_business_in_a_prompt() -> None:
    """A mark is refused there, and not sent as it is or with its value."""
    async with serving() as web, asking(web) as lane:
        mark = lane._governor.secrets["llm_key"]
        text = await refusal("E326", infer(lane, prompt=f"say {mark}"))
    assert "the secret 'llm_key' cannot be used in a request to a model" in text
    assert not web.asked


async def test_a_cut_at_any_byte_is_one_error() -> None:
    """Never a part of an answer, and never a call that does not end."""
    whole = said("yes")

    def say(asked: Asked) -> bytes:
        at = int(orjson.loads(asked.body)["messages"][0]["content"])
        return Cut(whole[:at])

    async with serving(say) as web, asking(web, timeout_s=30) as lane:
        found = await asyncio.gather(
            *(infer(lane, prompt=str(at)) for at in range(len(whole) + 1)), return_exceptions=True
        )
    assert isinstance(found.pop(), dict)
    assert {getattr(each, "code", each) for each in found} == {"E334"}


def embedded(*pairs: tuple[Any, Any], **more: Any) -> bytes:
    data = [{"index": index, "embedding": vector} for index, vector in pairs]
    return answer(orjson.dumps({"data": data, "model": "e", **more}))


async def test_embeddings_are_in_the_order_of_their_texts() -> None:
    """Whatever order the server has them in; a server counts no tokens out."""
    spoken = embedded((1, [2, 3.5]), (0, [0.5, -1]), usage={"prompt_tokens": 4, "total_tokens": 4})
    async with serving(lambda asked: spoken) as web, asking(web) as lane:
        found = await lane.perform("embed", {"model": "tiny-e", "texts": ["a", "b"]})
        [entry] = lane.end()
    assert (web.asked[0].target, orjson.loads(web.asked[0].body)["input"]) == ("/v1/embeddings", ["a", "b"])
    assert found["data"] == [[0.5, -1], [2, 3.5]]
    assert found["usage"] == {"prompt_tokens": 4, "completion_tokens": 0, "total_tokens": 4}
    assert (entry.operation, entry.details["tokens"]) == ("embed", [4, 0])


@pytest.mark.parametrize(
    "spoken",
    [
        embedded((0, [1])), embedded((0, [1]), (0, [2])), embedded((0, [1]), (2, [2])),
        embedded((0, [1]), (1, "text")), embedded((0, [1]), (1, [True])), embedded((0, [1]), (1, [None])),
        embedded((0, [1]), ("1", [1])), answer(b'{"data": {}}'), answer(b'{"data": [1, 2]}'),
    ],
)  # fmt: skip
async def test_odd_embeddings_are_an_error(spoken: bytes) -> None:
    """There is one list of numbers for each text, or none is believed."""
    async with serving(lambda asked: spoken) as web, asking(web) as lane:
        text = await refusal("E334", lane.perform("embed", {"model": "tiny-e", "texts": ["a", "b"]}))
    assert "not one list of numbers for each of 2 texts" in text


def test_what_is_told_of_a_model_is_what_it_is_asked_for(tmp_path: Path, run_async: Any) -> None:
    """`authorize` knows a model by the endpoints and by the policy, and does not ask it."""

    async def asked(rules: Rules, op: str, model: str) -> Mapping[str, Any]:
        async with serving() as web, asking(web, rules=rules) as lane:
            found: Mapping[str, Any] = await lane.perform("authorize", {"op": op, "target": model})
            assert not web.asked
            return found

    rules = policy(tmp_path, LINES)
    assert run_async(asked(rules, "infer", "tiny-1"))["authorized"] is True
    assert run_async(asked(NO_POLICY, "embed", "tiny-1"))["authorized"] is True
    missing = run_async(asked(NO_POLICY, "infer", "claude"))
    assert (missing["authorized"], missing["remedy"].partition(" whose")[0]) == (
        False,
        "Add to the route's inference an endpoint",
    )
