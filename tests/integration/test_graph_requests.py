"""Requests about graphs: what programs ask of an app over NATS, and what they are told."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from processor.config import Config, load
from processor.context.subjects import GraphSubjects, RouteSubjects, app_stream, committed_subject
from processor.delivery.streams import Streams
from processor.delivery.work_queue import prepare_work_queue
from processor.embedded import EmbeddedServer
from processor.errors import BrokerError
from processor.graphs.definition import GraphDefinition
from processor.graphs.vault import Recipient, new_key
from processor.jetstream import KEPT, Broker, Outgoing, create_consumer
from processor.operate.api import OperateApi
from tests.conftest import waited
from tests.integration.test_api import done, refused
from tests.running import connected

CONFIG = "app: app\nengine: {partitions: 4, secrets_key: {env: KEY}}\n"
KIND = {"name": "Api", "inputs": {"type": "object"}, "outputs": {"type": "object"}, "secrets": ["api_key"]}
NODES = [
    {"identifier": "api", "node_name": "Api", "inputs": {"user": "u", "n": 1}, "next_nodes": ["end"]},
    {"identifier": "end", "node_name": "Api", "inputs": {"user": "${{ api.outputs.user }}"}},
]
SUBJECTS, INBOX = GraphSubjects("app"), RouteSubjects("app", "graphs").inbox()


@dataclass
class App:
    """An app whose requests are answered, and which runs nothing."""

    broker: Broker
    config: Config

    async def define(self, name: str, *, status: str = "VALID", **keys: Any) -> str:
        """Keep a graph as one that was applied; its version."""
        graph, errors = GraphDefinition.read(name, {"nodes": NODES, **keys}, "app")
        assert graph is not None, errors
        head = {"v": 1, "name": name, "version": graph.version, "status": status, "errors": [], "by": "ann"}
        head |= {"valid": graph.version if status == "VALID" else None, "at": "now", "from": "request"}
        await self.broker.publish_stored(Outgoing(SUBJECTS.graph(name), orjson.dumps(head), KEPT))
        version = SUBJECTS.graph(name, graph.version)
        await self.broker.publish_stored(Outgoing(version, graph.document, KEPT))
        return graph.version

    async def sent(self) -> list[dict[str, Any]]:
        """The messages to runs."""
        return [orjson.loads(s.payload) async for s in self.broker.history(app_stream("app"), [INBOX])]

    async def keep(self, run: str, state: str, graph: str = "g", **more: Any) -> None:
        """Keep the record of a run."""
        record = {"v": 1, "run": run, "graph": graph, "state": state.upper(), **more}
        subject = SUBJECTS.run(graph, state, run)
        await self.broker.publish_stored(Outgoing(subject, orjson.dumps(record), {"Nats-Rollup": "sub"}))


def answering(server: EmbeddedServer, folder: Path, text: str = CONFIG) -> AbstractAsyncContextManager[App]:
    return answering_at(server.url, folder, text)


@asynccontextmanager
async def answering_at(url: str, folder: Path, text: str = CONFIG) -> AsyncIterator[App]:
    (folder / "config.yaml").write_text(text)
    config = load(folder / "config.yaml", {"NATS_URL": url, "KEY": new_key()})
    async with connected(url) as broker:
        await Streams(broker, config).prepare()
        if config.has_engine:
            await prepare_work_queue(broker, config)
        api = OperateApi(broker, config, "member")
        await api.start()
        try:
            yield App(broker, config)
        finally:
            await api.stop()


async def test_a_worker_says_what_it_has(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """Its kinds are kept and listed; said again, nothing is written; each fault is named with its place."""
    async with answering(nats_server, tmp_path) as app:
        told = {
            "runtime": "r",
            "namespace": "ns",
            "kinds": [KIND, {**KIND, "name": "Other", "doc": "Words."}],
        }
        answer = await done(app.broker, "graph.register", **told)
        assert answer == {"registered": ["ns/Api", "ns/Other"], "faults": [], "partitions": 4}
        before = await app.broker.stream(app_stream("app"))
        assert (await done(app.broker, "graph.register", **told))["registered"] == ["ns/Api", "ns/Other"]
        after = await app.broker.stream(app_stream("app"))
        assert before is not None
        assert after is not None
        assert after["state"]["last_seq"] == before["state"]["last_seq"]
        listed = await done(app.broker, "graph.kinds")
        assert [kind["kind"] for kind in listed["kinds"]] == ["ns/Api", "ns/Other"]
        assert listed["kinds"][0]["where"] == "external"
        assert (listed["kinds"][1]["doc"], listed["kinds"][0]["secrets"]) == ("Words.", ["api_key"])
        assert (await done(app.broker, "graph.kinds", after="ns/Api"))["kinds"][0]["kind"] == "ns/Other"
        own = orjson.dumps({"v": 1, **KIND, "where": "pool", "group": "api", "doc": ""})
        await app.broker.publish_stored(Outgoing(SUBJECTS.kind("ns", "Own"), own, KEPT))
        bad = [{**KIND, "name": "Own"}, {**KIND, "name": "a b"}, {"name": "X", "inputs": 1}, 7]
        answer = await done(app.broker, "graph.register", runtime="r", namespace="ns", kinds=bad)
        assert answer["registered"] == []
        assert [f"{fault['code']} {fault['text']}" for fault in answer["faults"]] == [
            "E708 ns/Own is a kind of group 'api' of the configuration",
            "E701 kinds[1].name 'a b' is not a name: letters, digits, - and _",
            "E701 kinds[2].inputs is not a JSON Schema",
            "E701 kinds[3] is not an object",
        ]


async def test_a_run_is_started_once_however_often_it_is_asked_for(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """With one run id there is one message; inputs that the first node has not are named as ignored."""
    async with answering(nats_server, tmp_path) as app:
        await app.define("g")
        inputs = {"user": "ann", "colour": "red"}
        for _ in range(3):
            answer = await done(app.broker, "graph.trigger", name="g", inputs=inputs, run_id="r1", delay_ms=5)
            assert answer == {"status": "CREATED", "run_id": "r1", "ignored": ["colour"]}
        made = await done(app.broker, "graph.trigger", name="g", store={"cursor": "0"})
        first, second = await app.sent()
        assert first == {
            "v": 1, "t": "start", "run": "r1", "graph": "g", "version": None, "inputs": {"user": "ann"},
            "store": {}, "delay_ms": 5, "by": "api", "check": True, "up": None,
        }  # fmt: skip
        assert (second["run"], second["check"], second["store"]) == (made["run_id"], False, {"cursor": "0"})
        assert (await done(app.broker, "graph.run", run="r1"))["state"] == "CREATED"


async def test_many_runs_are_started_with_one_request(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """Up to 500; each that cannot be started says why, and does not keep the others from it."""
    async with answering(nats_server, tmp_path) as app:
        await app.define("g", store_config={"required_keys": ["cursor", "n"], "default_values": {"n": 1}})
        runs: list[Any] = [{"name": "g", "run_id": f"r{n}", "store": {"cursor": "0"}} for n in range(498)]
        runs += [{"name": "h"}, {"name": "g", "run_id": "bad", "store": {}}]
        answer = (await done(app.broker, "graph.trigger", runs=runs))["runs"]
        assert [each["run_id"] for each in answer[:498]] == [f"r{n}" for n in range(498)]
        assert {each["status"] for each in answer[:498]} == {"CREATED"}
        assert (answer[498]["code"], answer[498]["text"]) == (
            "E602",
            "there is no graph 'h'; graphs here are g.",
        )
        assert answer[499] == {
            "run_id": "bad",
            "code": "E707",
            "text": "store keys 'cursor' are missing and have no default",
        }
        assert len(await app.sent()) == 498
        many = await refused(app.broker, "graph.trigger", {"runs": [{"name": "g"}] * 501})
        assert many == "E601 `runs` has 501 runs; 500 are the most of a request"
        odd = await refused(app.broker, "graph.trigger", {"runs": [{"name": "g"}, {"nam": "g"}]})
        assert odd == "E601 `runs[1]`: 'nam' is not a field of this request; did you mean 'name'?"


@pytest.mark.parametrize(
    "request_, said",
    [
        ({}, "E601 `name` is missing: the graph; or `runs`, up to 500 of them"),
        ({"name": "gg"}, "E602 there is no graph 'gg'; did you mean 'g'?"),
        ({"name": "broken"}, "E706 graph 'broken' is INVALID (0 faults). `processor graph show` lists them."),
        ({"name": "g", "run_id": "a/b"}, "E601 run_id 'a/b': at most 128 characters without space, / and ~"),
        ({"name": "g", "run_id": "x" * 129}, "E601 run_id 'xxx"),
        ({"name": "g", "inputs": []}, "E601 `inputs` must be an object: inputs of its first node"),
        ({"name": "g", "delay_ms": -1}, "E601 `delay_ms` is -1; it must be from 0 to 31622400000"),
    ],
)
async def test_a_start_that_cannot_be_says_why(
    nats_server: EmbeddedServer, tmp_path: Path, request_: Any, said: str
) -> None:
    """Nothing is stored, and the answer names what is wrong and what there is."""
    async with answering(nats_server, tmp_path) as app:
        await app.define("g")
        await app.define("broken", status="INVALID")
        assert (await refused(app.broker, "graph.trigger", request_)).startswith(said)
        assert await app.sent() == []


async def test_orders_are_messages_to_runs(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """What is asked with one id is stored once; a run that has ended can only be retried."""
    async with answering(nats_server, tmp_path) as app:
        await app.keep("r1", "running")
        await app.keep("r2", "failed")
        await app.keep("r3", "success")
        await done(app.broker, "graph.cancel", run="r1", by="ann", reason="wrong")
        await done(app.broker, "graph.pause", run="r1", by="ann")
        await done(app.broker, "graph.signal", run="r1", by="ann", signal="ok", value={"yes": True})
        for _ in range(2):
            answer = await done(
                app.broker, "graph.retry", run="r2", by="ann", id="i1", execution="a", after=True
            )
            assert answer == {"run": "r2", "accepted": True, "id": "i1"}
        cancel, pause, signal, retry = await app.sent()
        assert (cancel["what"], cancel["by"], cancel["reason"], cancel["x"]) == (
            "cancel",
            "ann",
            "wrong",
            None,
        )
        assert (pause["t"], pause["what"]) == ("control", "pause")
        assert (signal["x"], signal["value"]) == ("ok", {"yes": True})
        assert (retry["id"], retry["x"], retry["after"]) == ("i1", "a", True)
        for verb, run, said in (
            ("retry", "r3", "E708 run r3 is SUCCESS: there is nothing to retry."),
            ("cancel", "r2", "E708 run r2 is FAILED: there is nothing to cancel."),
            ("resume", "r9", "E602 there is no run 'r9'; the records of runs expire."),
        ):
            assert (await refused(app.broker, f"graph.{verb}", {"run": run, "by": "ann"})).startswith(said)


async def test_runs_are_listed_newest_first(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """By graph, by state, since a time, and page by page, each run once."""
    async with answering(nats_server, tmp_path) as app:
        for n in range(30):
            state = "failed" if n % 3 == 0 else "success"
            await app.keep(f"r{n:02}", state, "a" if n < 20 else "b")
        found: list[str] = []
        after: int | None = 0
        while after is not None:
            page = await done(app.broker, "graph.runs", limit=7, after=after)
            found += [run["run"] for run in page["runs"]]
            after = page["next"]
        assert found == [f"r{n:02}" for n in reversed(range(30))]
        failed = await done(app.broker, "graph.runs", graph="a", state="FAILED", since="1h")
        assert [run["run"] for run in failed["runs"]] == ["r18", "r15", "r12", "r09", "r06", "r03", "r00"]
        assert failed["next"] is None
        assert (await done(app.broker, "graph.runs", since="2199-01-01T00:00:00Z"))["runs"] == []
        odd = await refused(app.broker, "graph.runs", {"state": "broken"})
        assert odd.startswith("E601 `state` is 'broken'; it is one of running, success, failed, cancelled")


async def test_the_newest_runs_are_found_among_many_other_messages(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """However far apart they lie in the stream, and however many of another graph lie between."""
    async with answering(nats_server, tmp_path) as app:
        for n in range(5):
            await app.keep(f"old{n}", "success", "rare")
        body = orjson.dumps({"v": 1, "run": "x", "graph": "common", "state": "SUCCESS"})
        await app.broker.publish(
            *(Outgoing(SUBJECTS.run("common", "success", f"c{n}"), body) for n in range(12_000))
        )
        await app.broker.flush()
        await app.keep("new", "success", "rare")
        rare = await done(app.broker, "graph.runs", graph="rare", limit=3)
        assert [run["run"] for run in rare["runs"]] == ["new", "old4", "old3"]
        rest = await done(app.broker, "graph.runs", graph="rare", limit=3, after=rare["next"])
        assert [run["run"] for run in rest["runs"]] == ["old2", "old1", "old0"]
        assert rest["next"] is None
        assert len((await done(app.broker, "graph.runs", limit=1000))["runs"]) == 1000


async def test_an_app_without_graphs_says_so(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """Every request about graphs names what its configuration lacks."""
    (tmp_path / "r.py").write_text(
        "class Runnable:\n    def process(self, queries):\n        return queries\n"
    )
    text = "app: app\nroutes: {r: {input: in, runnable: r.py}}\n"
    async with answering(nats_server, tmp_path, text) as app:
        for verb, request in (("ls", {}), ("trigger", {"name": "g"}), ("run", {"run": "r"})):
            said = await refused(app.broker, f"graph.{verb}", request)
            assert said.startswith("E602 app app runs no graphs. Give its configuration `graphs`")


async def test_work_for_others_is_in_a_queue_that_nobody_else_fills(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """It is what the app commits and nothing else; a stream of that name that is not one is named."""
    async with answering(nats_server, tmp_path) as app:
        await prepare_work_queue(app.broker, app.config)  # again: it is there
        info = await app.broker.stream(SUBJECTS.work_stream)
        assert info is not None
        assert (info["config"]["retention"], info["config"].get("subjects")) == ("workqueue", None)
        work = SUBJECTS.work("ns.1", "Api")
        await app.broker.publish_stored(Outgoing(committed_subject("app", work), b"{}"))
        consumer = {"ack_policy": "explicit", "filter_subject": work}
        await waited(lambda: has_one(app.broker, SUBJECTS.work_stream), "it is copied")
        made = await create_consumer(app.broker.api, SUBJECTS.work_stream, consumer)
        assert made["num_pending"] == 1
        await app.broker.api(f"STREAM.DELETE.{SUBJECTS.work_stream}")
        await app.broker.create_stream({"name": SUBJECTS.work_stream, "subjects": ["work.app.>"]})
        with pytest.raises(BrokerError, match="E408 stream app-work is not a work queue that copies"):
            await prepare_work_queue(app.broker, app.config)


async def has_one(broker: Broker, stream: str) -> bool:
    info = await broker.stream(stream)
    return info is not None and info["state"]["messages"] == 1


async def test_what_a_stranger_stored_is_not_shown(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """Heads, kinds and records that say nothing are passed over, and hide none of the others."""
    async with answering(nats_server, tmp_path) as app:
        await app.define("g")
        await done(app.broker, "graph.register", runtime="r", namespace="app", kinds=[KIND])
        for body in (b"", b"[]", b"{}", b'{"status": 7}', b"\xff"):
            for subject in (
                SUBJECTS.graph("odd"),
                SUBJECTS.kind("app", "Odd"),
                SUBJECTS.run("g", "failed", "odd"),
            ):
                await app.broker.publish_stored(Outgoing(subject, body))
            listed = await done(app.broker, "graph.ls")
            assert [head["name"] for head in listed["graphs"]] == ["g"]
            assert [kind["kind"] for kind in (await done(app.broker, "graph.kinds"))["kinds"]] == ["app/Api"]
            assert (await done(app.broker, "graph.trigger", name="g"))["status"] == "CREATED"
            assert (await done(app.broker, "graph.runs"))["runs"] == []
            assert (await refused(app.broker, "graph.run", {"run": "odd"})).startswith("E602")


async def test_secrets_of_a_graph_with_faults_are_not_kept(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """Those of the version that runs stay as they were."""
    async with answering(nats_server, tmp_path) as app:
        odd = [{"identifier": "a", "nodename": "Api"}]
        answer = await done(
            app.broker, "graph.apply", name="g", nodes=odd, by="ann", secrets={"api_key": "sk-live-4711"}
        )
        assert (answer["status"], answer["version"]) == ("INVALID", "")
        assert "E701" in answer["errors"][0]["code"]
        kept = await app.broker.last_of(app_stream("app"), [SUBJECTS.secrets("g")])
        assert kept == []


async def test_secrets_go_to_nobody_without_an_execution(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """A run that is not there, or has no such execution open, gives none away."""
    async with answering(nats_server, tmp_path) as app:
        await app.keep("r1", "success", executions=[{"x": "api", "state": "SUCCESS", "kind": "ns/Api"}])
        key = Recipient().key
        said = await refused(app.broker, "graph.secrets", {"run": "r1", "x": "api", "key": key})
        assert said.startswith("E708 execution 'api' of run 'r1' is with no worker")
        said = await refused(app.broker, "graph.secrets", {"run": "r2", "x": "api", "key": key})
        assert said.startswith("E602 there is no run 'r2'")


async def test_a_worker_gets_the_secrets_of_its_execution(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """Those that its kind declares, sealed to its key, while it has the execution."""
    async with answering(nats_server, tmp_path) as app:
        kinds = [KIND]
        await done(app.broker, "graph.register", runtime="r", namespace="app", kinds=kinds)
        secrets = {"api_key": "sk-live-4711", "other": "not yours"}
        await done(app.broker, "graph.apply", name="g", nodes=NODES, by="ann", secrets=secrets)
        assert (await done(app.broker, "graph.get", name="g"))["secrets"] == ["api_key", "other"]
        execution = {"x": "api", "state": "QUEUED", "kind": "app/Api", "sent": 1, "created": 1}
        await app.keep("r1", "running", executions=[execution])
        worker = Recipient()
        answer = await done(app.broker, "graph.secrets", run="r1", x="api", key=worker.key)
        assert worker.open(answer["sealed"]) == {"api_key": "sk-live-4711"}
        stored = [s async for s in app.broker.history(app_stream("app"), [SUBJECTS.secrets("g")])]
        kept = b"".join(s.payload for s in stored)
        for value in secrets.values():
            assert value.encode() not in kept
            assert base64.b64encode(value.encode()) not in kept
        said = await refused(app.broker, "graph.secrets", {"run": "r1", "x": "api", "key": "no key"})
        assert said.startswith("E601 `key`: it is not an X25519 public key in base64")
