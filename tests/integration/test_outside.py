"""A route that asks the outside: what it may reach, what becomes of refusals, and where a secret never is."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from processor.config import load
from processor.operate.control import Control
from tests.running import Running, Start
from tests.web import answer, fed, serving

CANARY = "K3Y-canary-1"

ASK = """
import requests

class Runnable:
    def process(self, queries):
        for query in queries:
            key = self.secrets["key"]
            said = requests.post(
                query["url"],
                headers={"Authorization": f"Bearer {key}"},
                json={"key": key},
                params={"key": key},
            )
            text = f"{said.text} {said.headers} {said.url} {said.reason}"
            self.context["said"] = [text, str(key)]
            self.event("asked", [text, repr(key)])
            self.logger.info(f"heard {text} with {key!r} {key}")
            print(text)
            if query.get("fail"):
                raise ValueError(f"{text} {key}")
            if query.get("put") == "output":
                yield {"key": key}
            if query.get("put") == "context":
                self.context["key"] = key
            if query.get("elsewhere"):
                requests.get(query["elsewhere"], headers={"key": str(key)})
            yield {"said": text, "mark": str(key)}
"""
ROUTE = """
r:
  input: {{subject: "in.*", create: true}}
  runnable: ask.py
  output: out
  events: {{subject: events, level: all}}
  retry: {{attempts: 1}}
  secrets: [key]
  outbound: {{allowed_domains: ["{host}", "{other}"]}}
"""


async def everything(running: Running) -> list[bytes]:
    """All that the server stores, with its headers."""
    kept = []
    for name in (await running.broker.api("STREAM.NAMES"))["streams"]:
        async for stored in running.broker.history(name, [">"]):
            kept.append(f"{stored.subject} {stored.headers!r} ".encode() + stored.payload)
    return kept


async def test_a_secret_is_nowhere_but_in_its_request(
    processor: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """No stream, dead letter, event, context, log, metric or live message holds its value."""
    caplog.set_level(logging.DEBUG)
    (tmp_path / "key").write_text(f"{CANARY}\n")
    say = lambda asked: answer(asked.raw + asked.body, X_Key=asked.headers["authorization"])  # noqa: E731
    async with serving(say) as web, serving() as other:
        top = f'secrets: {{key: {{file: key, hosts: ["{web.host}"]}}}}'
        routes = ROUTE.format(host=web.host, other=other.host)
        async with processor(routes, top, ask=ASK) as running:
            heard = await running.listen(">")
            await running.publish(
                "in.a",
                {"url": web.url},
                {"url": web.url, "fail": 1},
                {"url": web.url, "put": "output"},
                {"url": web.url, "put": "context"},
                {"url": web.url, "elsewhere": other.url},
                {"url": other.url},
                {"url": "http://evil.example/"},
            )
            letters = await running.dead_letters("r", 6)
            [output] = await running.documents("out", 1)
            assert {letter.headers["x-error-code"] for letter in letters} == {
                "E304", "E306", "E309", "E326", "E325",
            }  # fmt: skip
            assert running.metric("processor_requests_total", route="r", reason="2xx") >= 5
            assert running.metric("processor_requests_total", route="r", reason="E326") >= 1
            assert running.metric("processor_requests_total", route="r", reason="E325") >= 1
            contexts = await running.contexts("r")
            kept = await everything(running)
            metrics = running.telemetry.page()
            mark = output["mark"].encode()
    assert {CANARY in asked.target and CANARY in asked.body.decode() for asked in web.asked} == {True}
    assert {asked.headers["authorization"] for asked in web.asked} == {f"Bearer {CANARY}"}
    assert not [asked for asked in other.asked if CANARY.encode() in asked.raw + asked.body]
    assert any(mark in message for message in kept)  # the search finds what is there
    shown = capfd.readouterr()
    places = [
        *kept,
        *(f"{d.headers!r}".encode() + d.payload for d in heard),
        json.dumps(contexts).encode(),
        caplog.text.encode(),
        repr([vars(record) for record in caplog.records]).encode(),
        metrics,
        shown.out.encode(),
        shown.err.encode(),
        repr(running.telemetry.readiness.blocks).encode(),
    ]
    assert not [place[:300] for place in places if b"canary" in place.lower()]
    assert "***" in output["said"]


async def test_a_denial_tells_how_to_allow_it(processor: Start) -> None:
    """The dead letter of an uncaught denial has its code and the line for the configuration."""
    source = (
        "class Runnable:\n    def process(self, queries):\n        self.requests.get(queries[0]['url'])\n"
    )
    routes = 'r:\n  input: {subject: "in", create: true}\n  runnable: ask.py\n  retry: {attempts: 1}\n'
    async with serving() as web, processor(routes, ask=source) as running:
        await running.publish("in", {"url": web.url})
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == "E325"
        line = f"routes.r.outbound.allowed_domains: [{web.host}]"
        assert line in letter.headers["x-dead-letter-reason"]
        assert not web.asked


async def test_a_new_secret_is_used_after_a_reload(processor: Start, tmp_path: Path) -> None:
    """A file that changed is read at the reload, and starts the routes anew that use it, and no other."""
    (tmp_path / "key").write_text("first-value")
    source = """
class Runnable:
    def process(self, queries):
        for query in queries:
            self.requests.get(query["url"], headers={"key": self.secrets["key"]})
            yield query
    """
    async with serving() as web:
        top = f'outbound: ["{web.host}"]\nsecrets: {{key: {{file: key, hosts: ["{web.host}"]}}}}'
        routes = (
            'r: {input: {subject: "in", create: true}, runnable: ask.py, output: out, secrets: [key]}\n'
            's: {input: {subject: "in2", create: true}, runnable: ask.py}\n'
        )
        async with processor(routes, top, ask=source) as running:
            await running.publish("in", {"url": web.url})
            await running.documents("out", 1)
            (tmp_path / "key").write_text("second-value")
            assert (tmp_path / "key") in load(running.path, {}).files
            assert await running.reload() == ["r"]
            await running.publish("in", {"url": web.url})
            await running.documents("out", 2)
    assert [asked.headers["key"] for asked in web.asked] == ["first-value", "second-value"]


async def test_limits_and_defaults_of_a_route_are_its_own(processor: Start) -> None:
    """`outbound` at the top is every route's default, key by key."""
    source = """
class Runnable:
    def process(self, queries):
        return [self.requests.get(queries[0]["url"]).text]
    """
    async with serving(lambda _: answer(b"x" * 100)) as web:
        top = f'outbound: {{allowed_domains: ["{web.host}"], response_bytes: 1000}}'
        routes = (
            'r: {input: {subject: "in", create: true}, runnable: ask.py, output: out}\n'
            's: {input: {subject: "in2", create: true}, runnable: ask.py, retry: {attempts: 1},\n'
            "    outbound: {response_bytes: 10}}\n"
        )
        async with processor(routes, top, ask=source) as running:
            await running.publish("in", {"url": web.url})
            await running.publish("in2", {"url": web.url})
            assert await running.documents("out", 1) == ["x" * 100]
            [letter] = await running.dead_letters("s")
            assert letter.headers["x-error-code"] == "E323"


POST = """
import requests

class Runnable:
    def process(self, queries):
        for query in queries:
            said = requests.post(query["url"], json={"n": query["n"]})
            self.context["sum"] = self.context.get("sum", 0) + query["n"]
            if query["n"] == 37:
                raise ValueError("no")
            yield {"n": query["n"], "said": said.json()}
"""


@pytest.mark.parametrize(
    ("key", "more", "calls"),
    [
        ("none", "", 62),  # the message that fails is tried three times
        ("json./n", "", 62),
        ("none", "calls: {replay: writes}", 60),
        ("json./n", "calls: {replay: writes}", 60),
    ],
)
async def test_a_message_that_fails_repeats_no_call_of_another(
    processor: Start, key: str, more: str, calls: int
) -> None:
    """Sixty messages make sixty calls, whichever of a batch fails; what is made again is counted."""
    route = f"""
r:
  input: {{{{subject: "in.*", create: true}}}}
  runnable: post.py
  output: out
  key: {key}
  {more.replace("{", "{{").replace("}", "}}")}
  retry: {{{{base_ms: 0}}}}
  outbound: {{{{allowed_domains: ["{{host}}"]}}}}
"""
    async with (
        serving(lambda asked: answer(asked.body)) as web,
        processor(route.format(host=web.host), post=POST) as running,
    ):
        await running.publish("in.a", *({"url": web.url, "n": n} for n in range(60)))
        outputs = await running.documents("out", 59)
        await running.dead_letters("r", 1)
        repeated = running.metric("processor_repeated_requests_total", route="r")
        assert running.metric("processor_requests_total", route="r", reason="2xx") == calls
    assert [output["n"] for output in outputs] == [n for n in range(60) if n != 37]
    assert all(output["said"] == {"n": output["n"]} for output in outputs)
    assert (len(web.asked), repeated) == (calls, calls - 60)
    keys = {asked.headers["idempotency-key"] for asked in web.asked}
    assert len(keys) == 60
    of_37 = {asked.headers["idempotency-key"] for asked in web.asked if b"37" in asked.body}
    assert len(of_37) == 1


async def test_calls_are_not_made_again_when_a_guest_is_killed(processor: Start) -> None:
    """What the messages of a batch were answered outlives the guest that one of them kills."""
    program = POST.replace("raise ValueError", "while True: pass\n                raise ValueError")
    route = """
r:
  input: {{subject: "in.*", create: true}}
  runnable: post.py
  output: out
  key: json./n
  limits: {{cpu_s: 0.5}}
  retry: {{attempts: 1}}
  outbound: {{allowed_domains: ["{host}"]}}
"""
    async with (
        serving(lambda asked: answer(asked.body)) as web,
        processor(route.format(host=web.host), post=program) as running,
    ):
        await running.publish("in.a", *({"url": web.url, "n": n} for n in range(30, 45)))
        await running.documents("out", 14)
        [letter] = await running.dead_letters("r", 1)
        assert letter.headers["x-error-code"] == "E311"
    assert sorted(json.loads(asked.body)["n"] for asked in web.asked) == list(range(30, 45))


async def test_an_idempotency_key_goes_with_unsafe_calls(processor: Start) -> None:
    """It is given to POST, PUT, PATCH and DELETE unless the program gives one, and not to what is safe."""
    program = """
import requests

class Runnable:
    def process(self, queries):
        for query in queries:
            for method in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"):
                requests.request(method, query["url"])
            requests.post(query["url"], headers={"idempotency-key": "mine"})
            yield 1
"""
    async with serving() as web:
        route = ROUTE.format(host=web.host, other="b.example").replace("  secrets: [key]\n", "")
        async with processor(route, ask=program) as running:
            await running.publish("in.a", {"url": web.url})
            await running.documents("out", 1)
    given = [asked.headers.get("idempotency-key") for asked in web.asked]
    assert given[:3] + given[7:] == [None, None, None, "mine"]
    assert all(key is not None and len(key) == 32 for key in given[3:7])
    assert len(set(given[3:7])) == 4


async def test_a_batch_may_make_the_calls_of_all_of_its_messages(processor: Start) -> None:
    """`limits.requests` is of a message: a batch of a hundred makes no call twice for want of more."""
    route = """
r:
  input: {{subject: "in.*", create: true}}
  runnable: post.py
  output: out
  limits: {{requests: 1}}
  outbound: {{allowed_domains: ["{host}"]}}
"""
    async with (
        serving(lambda asked: answer(asked.body)) as web,
        processor(route.format(host=web.host), post=POST) as running,
    ):
        await running.publish("in.a", *({"url": web.url, "n": n} for n in range(100, 200)))
        await running.documents("out", 100)
        assert running.metric("processor_failures_total", route="r", reason="E322") == 0
    assert len(web.asked) == 100


async def test_a_batch_with_too_many_bytes_of_answers_is_run_in_parts(
    processor: Start, wait_until: Callable[..., Any]
) -> None:
    """More than is kept in memory comes in parts, and then no call of it is made twice either."""
    route = """
r:
  input: {{subject: "in.*", create: true}}
  runnable: post.py
  output: out
  retry: {{attempts: 1}}
  limits: {{wall_s: 120, cpu_s: 60, memory_mb: 256}}
  outbound: {{allowed_domains: ["{host}"], response_bytes: 2MiB}}
"""
    program = POST.replace("said.json()", "len(said.content)").replace("== 37", "== 79")
    async with (
        serving(lambda asked: answer(b"x" * (1 << 20))) as web,
        processor(route.format(host=web.host), post=program) as running,
    ):
        control = Control(running.broker, "app")
        await control.pause("r", is_paused=True)
        await wait_until(lambda: running.metric("processor_route_paused", route="r"), "it is paused")
        await running.publish("in.a", *({"url": web.url, "n": n} for n in range(80)))
        await control.pause("r", is_paused=False)
        outputs = await running.documents("out", 79)
        await running.dead_letters("r", 1)
        assert running.metric("processor_processed_messages_total", route="r") > 80
        assert running.metric("processor_repeated_requests_total", route="r") == 0
        contexts = await running.contexts("r")
    assert outputs == [{"n": n, "said": 1 << 20} for n in range(79)]
    assert contexts == {"": {"sum": sum(range(79))}}
    assert [json.loads(asked.body)["n"] for asked in web.asked] == list(range(80))


async def test_a_streamed_answer_goes_on_to_listeners_as_it_comes(processor: Start, wait_until: Any) -> None:
    """Each line is a chunk before the server says the next one, and what is left open ends with the run."""
    source = """
    import json
    import requests

    class Runnable:
        def process_stream(self, query):
            requests.get(query["url"] + "/idle", stream=True)
            lines = requests.get(query["url"] + "/seen", stream=True).iter_lines(decode_unicode=True)
            for line in lines:
                if line.startswith("data: "):
                    yield json.loads(line[6:])
    """
    route = """
    r:
      input: {{subject: "in.*", create: true}}
      runnable: talk.py
      mode: stream
      output: {{subject: talk, durable: false}}
      outbound: {{allowed_domains: ["{host}"]}}
    """
    pieces = [b'data: {"n": %d}\n\n' % n for n in range(3)]
    async with fed(pieces) as feed, processor(route.format(host=feed.host), talk=source) as running:
        heard = await running.listen("talk")
        await running.publish("in.a", {"url": f"http://{feed.host}"})
        for number, piece in enumerate(pieces):
            await wait_until(lambda number=number: len(heard) == number + 1, "the chunk was heard")
            assert json.loads(heard[number].payload) == {"n": number}
            feed.see(piece)
        await wait_until(lambda: len(heard) == 4, "the end was heard")
        assert heard[3].headers["Processor-Stream"] == "end"
        await wait_until(feed.gone.is_set, "the other answer was given up")


async def test_a_stream_ends_with_a_run_that_is_killed(processor: Start, wait_until: Any) -> None:
    """A guest that is killed with an answer half read leaves no connection behind."""
    source = """
    import requests

    class Runnable:
        def process(self, queries):
            answer = requests.get(queries[0]["url"] + "/idle", stream=True)
            next(answer.iter_content(None))
            while True:
                pass
    """
    route = """
    r:
      input: {{subject: "in.*", create: true}}
      runnable: wait.py
      output: out
      retry: {{attempts: 1}}
      limits: {{cpu_s: 0.5}}
      outbound: {{allowed_domains: ["{host}"], timeout_s: 60}}
    """
    async with fed([b"x"]) as feed, processor(route.format(host=feed.host), wait=source) as running:
        await running.publish("in.a", {"url": f"http://{feed.host}"})
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == "E311"
        await wait_until(feed.gone.is_set, "the answer was given up")
