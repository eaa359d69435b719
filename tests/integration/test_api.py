"""Requests over NATS: what any client may ask of running processors, and what it is told."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any

import orjson
import pytest
from nats.errors import NoRespondersError

from processor.config import load
from processor.context.subjects import app_stream
from processor.embedded import EmbeddedServer
from processor.errors import Refusal
from processor.jetstream import Broker, Endpoint, MicroService
from processor.operate.control import Control
from processor.operate.forms import RouteOrder, StatusQuery
from processor.operate.verbs import VERBS, OperatedApp, perform
from processor.service import Service
from processor.telemetry import Telemetry
from tests.conftest import waited
from tests.running import COUNT, REPAIRED, Start, connected

ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: count.py
  key: subject.2
  partitions: 4
  output: out.{key}
  retry: {attempts: 1}
"""
BLOCKING = """
b:
  input: {subject: "in.*"}
  runnable: count.py
  key: subject.2
  retry: {attempts: 1, max_ms: 3600000, then: block}
late:
  input: {subject: "in.*"}
  runnable: late.py
lost: {input: nowhere, runnable: count.py}
"""
LATE = """
class Runnable:
    def process(self, queries):
        raise Retry(after_s=3600)
"""


async def asked(broker: Broker, subject: str, request: Any = None) -> tuple[dict[str, str], Any]:
    """The headers and the document of the answer to a request, as any client gets them."""
    payload = request if isinstance(request, bytes) else orjson.dumps(request) if request else b""
    reply = await broker.client.request(subject, payload, timeout=10)
    return dict(reply.headers or {}), orjson.loads(reply.data)


async def done(broker: Broker, verb: str, **request: Any) -> Any:
    """The answer to a request that is not refused."""
    headers, document = await asked(broker, f"ctl.app.api.{verb}", request)
    assert headers == {}, document
    return document


async def refused(broker: Broker, verb: str, request: Any) -> str:
    """The code and the sentence of a request that is refused; headers and payload say the same."""
    headers, document = await asked(broker, f"ctl.app.api.{verb}", request)
    code, text = headers["Nats-Service-Error-Code"], headers["Nats-Service-Error"]
    assert document == {"error": {"code": code, "text": text}}
    return f"{code} {text}"


async def members(broker: Broker) -> list[dict[str, Any]]:
    status = await done(broker, "status")
    found: list[dict[str, Any]] = status["members"]
    return found


async def test_a_processor_is_a_micro_service(processor: Start) -> None:
    """It is found by ping, tells its endpoints, and counts requests and refusals."""
    async with processor(ROUTE, count=COUNT) as running:
        broker = running.broker
        _, ping = await asked(broker, "$SRV.PING")
        assert (ping["type"], ping["name"]) == ("io.nats.micro.v1.ping_response", "processor-app")
        assert ping["metadata"] == {"app": "app"}
        _, info = await asked(broker, f"$SRV.INFO.processor-app.{ping['id']}")
        assert [each["subject"] for each in info["endpoints"]] == [f"ctl.app.api.{v.name}" for v in VERBS]
        assert "route: text" in info["endpoints"][1]["metadata"]["summary"]
        await done(broker, "status")
        await refused(broker, "status", {"route": "x"})
        _, stats = await asked(broker, "$SRV.STATS.processor-app")
        [status, *others] = stats["endpoints"]
        assert (status["num_requests"], status["num_errors"]) == (2, 1)
        assert status["last_error"] == "E602:there is no route 'x'; routes here are r"
        assert status["processing_time"] >= status["average_processing_time"] > 0
        assert all(each["num_requests"] == 0 for each in others)
        [member] = await members(broker)
        assert member["member"] == ping["id"]


async def test_routes_are_paused_and_reset(processor: Start, wait_until: Any) -> None:
    """By whom and why is kept; the route stands still, goes on, and reads again."""
    async with processor(ROUTE, count=COUNT) as running:
        broker = running.broker
        await running.publish("in.a", {"i": 0}, {"i": 1})
        await running.documents("out.a", 2)
        paused = await done(broker, "pause", route="r", by="ann", reason="database moves")
        assert paused == {"route": "r", "paused": True}
        await wait_until(lambda: running.metric("processor_route_paused") == 1, "the route is paused")
        await running.publish("in.a", {"i": 2})
        [shown] = (await done(broker, "status"))["routes"]
        assert (shown["paused_by"], shown["reason"]) == ("ann", "database moves")
        assert (shown["behind"], shown["behind_at_most"]) == (1, 1)
        lag = "processor_lag_messages"
        await wait_until(lambda: running.metric(lag, route="r") == 1, "the metric tells what waits", 20)
        await done(broker, "resume", route="r", by="ann")
        await running.documents("out.a", 3)
        moved = await done(broker, "reset", route="r", to=2, by="ann", keep_context=True)
        assert moved == {"route": "r", "stream": "app-in-any", "position": 1, "partitions": 4}
        found = await running.documents("out.a", 5)
        assert [(o["i"], o["n"]) for o in found] == [(0, 1), (1, 2), (2, 3), (1, 4), (2, 5)]
        assert "must" not in await refused(broker, "reset", {"route": "r", "to": 99, "by": "ann"})
        await done(broker, "reset", route="r", to="start", by="ann")
        assert (await running.documents("out.a", 8))[5:] == [{"i": i, "n": i + 1} for i in range(3)]


async def test_a_verb_needs_no_request_over_nats(processor: Start) -> None:
    """A request that is a value is answered as one over NATS is, within the caller's room."""
    verbs = {verb.name: verb for verb in VERBS}
    async with processor(ROUTE, count=COUNT) as running:
        config = load(running.path, {"NATS_URL": running.broker.address})
        app = OperatedApp(running.broker, config, "a-console", 1 << 20)
        paused = await perform(verbs["pause"], app, RouteOrder("r", "ann"))
        assert orjson.loads(paused) == {"route": "r", "paused": True}
        [shown] = (await done(running.broker, "status"))["routes"]
        assert shown["paused_by"] == "ann"
        status = orjson.loads(await perform(verbs["status"], app, StatusQuery()))
        assert status["answered_by"] == "a-console"
        [shown] = status["routes"]
        assert shown["paused_by"] == "ann"
        with pytest.raises(Refusal, match="E602 there is no route 'x'; routes here are r"):
            await perform(verbs["pause"], app, RouteOrder("x", "ann"))
        with pytest.raises(Refusal, match="E606 the answer has 28 bytes; a message takes 27"):
            await perform(verbs["resume"], replace(app, room_bytes=27), RouteOrder("r", "ann"))


async def test_dead_letters_are_listed_sent_back_and_let_go(processor: Start) -> None:
    """In pages; a letter goes back once, whoever asks and however often."""
    async with processor(ROUTE, count=COUNT) as running:
        broker = running.broker
        bad = [{"i": i, "fails": "no"} for i in range(3)]
        await running.publish("in.a", *bad, b"\x00" * 800_000, headers={"Trace": "t-1"})
        await running.dead_letters("r", 4)
        first = await done(broker, "dlq.ls", route="r", limit=2)
        second = await done(broker, "dlq.ls", route="r", limit=2, after=first["next"])
        assert second["next"] is None
        letters = [*first["dead_letters"], *second["dead_letters"]]
        assert [letter["sequence"] for letter in letters] == [1, 2, 3, 4]
        assert [letter["code"] for letter in letters] == ["E304", "E304", "E304", "E301"]
        assert (await done(broker, "dlq.ls", code="E301", since="1h"))["dead_letters"] == letters[3:]
        shown = await done(broker, "dlq.show", id=letters[0]["id"])
        assert (shown["data"], shown["headers"]) == (bad[0], {"Trace": "t-1"})
        assert "ValueError: no" in shown["traceback"]
        large = await done(broker, "dlq.show", id=letters[3]["id"])
        assert (large["omitted_bytes"], "base64" in large) == (800_000, False)

        await running.reload(count=REPAIRED)
        one = {"id": letters[0]["id"], "by": "ann", "reason": "repaired"}
        answers = await asyncio.gather(*(asked(broker, "ctl.app.api.dlq.redrive", one) for _ in range(4)))
        assert sum(len(answer.get("done", ())) for _, answer in answers) == 1
        assert await running.documents("out.a", 1) == [{"i": 0, "n": 1}]
        rest = await done(broker, "dlq.redrive", route="r", code="E304", by="ann")
        assert rest == {
            "done": [letters[1]["id"], letters[2]["id"]],
            "missed": [],
            "failed": [],
            "more": False,
        }
        await running.documents("out.a", 3)
        assert (await refused(broker, "dlq.show", {"id": letters[1]["id"]})).startswith(
            "E602 there is no dead"
        )
        dropped = await done(broker, "dlq.drop", id=letters[3]["id"], by="ann")
        assert dropped["done"] == [letters[3]["id"]]
        assert await done(broker, "dlq.ls") == {"dead_letters": [], "next": None}


async def test_contexts_are_read_and_changed(processor: Start) -> None:
    """What is set is what the next message finds; the history has who did it and why."""
    async with processor(ROUTE, count=COUNT) as running:
        broker = running.broker
        await running.publish("in.a", {"i": 0})
        await running.publish("in.b", {"i": 1})
        await running.documents("out.*", 2)
        at = {"route": "r", "key": "a", "by": "ann"}
        assert (await done(broker, "context.get", route="r", key="a"))["value"] == {"n": 1}
        changed = await done(broker, "context.set", **at, path="n", value=40, reason="counted anew")
        assert changed["changed"] == ["n"]
        await running.publish("in.a", {"i": 2})
        assert (await running.documents("out.a", 2))[-1] == {"i": 2, "n": 41}
        for value in (1, {"$set": [2]}):
            await done(broker, "context.append", **at, path="seen", value=value)
        popped = await done(broker, "context.pop", **at, path="/seen", first=True)
        assert popped["value"] == 1
        assert (await done(broker, "context.get", route="r", key="a", path="/seen"))["value"] == [
            {"$set": [2]}
        ]
        await done(broker, "context.delete", **at, path="seen")
        [_, _, *last] = (await done(broker, "context.history", route="r", key="a"))["records"][-4:]
        assert [(record["action"], record["by"]) for record in last] == [("pop", "ann"), ("delete", "ann")]
        first = await done(broker, "context.full", route="r", limit=1)
        second = await done(broker, "context.full", route="r", limit=1, after=first["next"])
        contexts = [*first["contexts"], *second["contexts"]]
        found = {each["key"]: each["context"] for each in contexts}
        assert (found, second["next"]) == ({"a": {"n": 41}, "b": {"n": 1}}, None)
        gone = {"route": "r", "key": "a", "path": "/x/y"}
        assert (await refused(broker, "context.get", gone)).startswith("E328")


async def test_what_is_not_understood_changes_nothing(processor: Start) -> None:
    """Each request is refused with a sentence about the field that is wrong."""
    async with processor(ROUTE, count=COUNT) as running:
        for verb, request, said in (
            ("pause", b"{", "E601 the request is not JSON"),
            ("pause", b"[1]", "E601 the request must be a JSON object, not list"),
            ("pause", {"route": "r"}, "E601 `by` is missing: who wants it"),
            ("pause", {"route": "r", "by": ""}, "E601 `by` is empty"),
            ("pause", {"route": "r", "by": 1}, "E601 `by` must be text"),
            ("pause", {"route": "r", "by": "x" * 501}, "E601 `by` has 501 characters"),
            (
                "pause",
                {"route": "r", "by": "ann", "reson": ""},
                "E601 'reson' is not a field of this request; did",
            ),
            ("pause", {"route": "s", "by": "ann"}, "E602 there is no route 's'; routes here are r"),
            ("pause", {"route": "r.>", "by": "ann"}, "E601 `route` is 'r.>'"),
            ("reset", {"route": "r", "to": 0, "by": "ann"}, "E601 `to`: 0 is not a sequence"),
            ("reset", {"route": "r", "to": True, "by": "ann"}, "E601 `to` must be text or a whole number"),
            ("reset", {"route": "r", "to": "2026-01-31", "by": "ann"}, "E601 `to`: '2026-01-31' is neither"),
            ("reset", {"route": "r", "to": 7, "by": "ann"}, "E601 `to`: 7 is behind the end of stream"),
            ("dlq.ls", {"limit": 1001}, "E601 `limit` is 1001; it must be from 1 to 1000"),
            ("dlq.ls", {"since": "yesterday"}, "E601 `since` is 'yesterday'"),
            ("dlq.ls", {"code": "E999"}, "E601 `code` is 'E999'"),
            ("dlq.show", {"id": "r.*.>"}, "E602 there is no dead letter 'r.*.>'"),
            ("dlq.drop", {"by": "ann"}, "E601 which ones: dlq.drop needs `id` or `route`"),
            ("context.set", {"route": "r", "by": "ann", "path": "n"}, "E601 `value` is missing"),
            ("context.set", {"route": "r", "by": "a", "value": {"$x": 1}, "path": "n"}, "E601 `value`: "),
        ):
            found = await refused(running.broker, verb, request)
            assert found.startswith(said), f"{verb} {request!r}: {found}"
        assert await running.broker.last_of(app_stream("app"), ["p.app.ctl.>"]) == []


async def test_one_of_two_answers_for_both(processor: Start, wait_until: Any) -> None:
    """A request is done once; status has what stops each of them, and what lies aside."""
    async with processor(ROUTE + BLOCKING, count=COUNT, late=LATE) as running:
        broker = running.broker
        other = Service(load(running.path, {"NATS_URL": broker.address}), Telemetry())
        await other.start(wait=False)
        try:
            answers = await running.listen("_INBOX.here")
            for _ in range(20):
                await broker.client.publish("ctl.app.api.dlq.ls", b"", reply="_INBOX.here")
            await wait_until(lambda: len(answers) >= 20, "every request has an answer")
            await running.publish("in.a", {"i": 0, "fails": "no"}, {"i": 1})
            await running.dead_letters("r")

            async def is_held() -> Any:
                status = await done(broker, "status")
                routes = {route["route"]: route for route in status["routes"]}
                aside = routes["b"]["held"]["messages"], routes["late"]["later"]["messages"]
                return (status, routes) if aside == (2, 2) else None

            status, routes = await waited(is_held, "messages are held and scheduled")
            assert len(answers) == 20
            assert len(status["members"]) == 2
            assert routes["b"]["held"] == {"messages": 2, "keys": [{"key": "a", "messages": 2}]}
            assert sum(part["blocked_keys"] for part in routes["b"]["partitions"]) == 1
            assert routes["late"]["later"]["next"] > status["members"][0]["stops"][0]["since"]
            assert (routes["r"]["dead_letters"], routes["r"]["stops"]) == (1, [])
            stops = routes["lost"]["stops"]
            assert [stop["member"] for stop in stops] == [each["member"] for each in status["members"]]
            assert all(stop["why"].startswith("E401 no stream holds 'nowhere'") for stop in stops)
            page = await done(broker, "status", after="late")
            assert [route["route"] for route in page["routes"]] == ["lost", "r"]
        finally:
            await other.stop()
        [alone] = await members(broker)
        assert alone["routes"] == ["r", "b", "late", "lost"]


async def test_requests_are_answered_after_every_kind_of_outage(
    processor: Start, nats_server: EmbeddedServer, wait_until: Any
) -> None:
    """Whether the client finds the server again or had to be made anew; so do members hear each other."""
    async with processor(ROUTE, count=COUNT) as running:
        broker = running.service._broker
        assert broker is not None
        for end in (partial(asyncio.to_thread, nats_server.restart), broker.client.close):
            before = broker.generation
            await end()
            await wait_until(lambda before=before: broker.generation > before, "it is connected again")
            await running.broker.connected()
            await broker.flush()
            [member] = await members(running.broker)
            assert member["routes"] == ["r"]
            _, ping = await asked(running.broker, "$SRV.PING.processor-app")
            assert ping["id"] == member["member"]


async def test_control_can_be_switched_off(processor: Start) -> None:
    """Then nobody answers; the command line does not need it."""
    async with processor(ROUTE, top="control: off", count=COUNT) as running:
        for subject in ("ctl.app.api.status", "$SRV.PING"):
            with pytest.raises(NoRespondersError):
                await running.broker.client.request(subject, b"", timeout=5)
        assert len(await Control(running.broker, "app").members()) == 1


async def test_a_flood_of_requests_is_bounded(run_async: Any, nats_server: Any) -> None:
    """Four are worked on, 64 wait, the rest is refused at once; none is left without an answer."""
    async with connected(nats_server.url) as broker:
        release, working, most = asyncio.Event(), 0, 0

        async def answer(payload: bytes) -> bytes:
            nonlocal working, most
            working, most = working + 1, max(most, working + 1)
            await release.wait()
            working -= 1
            if payload == b"9":
                raise ZeroDivisionError
            return payload

        endpoint = Endpoint("slow", "slow", "Waits.", answer)
        busy = Refusal("E603", "later")
        service = MicroService(
            broker,
            "s",
            "i",
            "1.0.0",
            "",
            {},
            [endpoint],
            busy,
            lambda err: Refusal("E604", type(err).__name__),
        )
        assert await service.start() == []
        answers: list[tuple[str, bytes]] = []

        async def hear(delivery: Any) -> None:
            answers.append((delivery.headers.get("Nats-Service-Error-Code", ""), delivery.payload))

        await broker.listen("_INBOX.flood", hear)
        for number in range(100):
            await broker.client.publish("slow", b"%d" % number, reply="_INBOX.flood")
        await waited(lambda: len(answers) == 32, "what cannot wait is refused")
        assert {code for code, _ in answers} == {"E603"}
        release.set()
        await waited(lambda: len(answers) == 100, "the others are answered")
        assert (most, working) == (4, 0)
        assert sorted(int(payload) for code, payload in answers if not code) == [
            n for n in range(68) if n != 9
        ]
        assert [payload for code, payload in answers if code == "E604"] == [
            b'{"error":{"code":"E604","text":"ZeroDivisionError"}}'
        ]
        await service.stop()
