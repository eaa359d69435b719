"""`processor graph` on an app: what it prints, for people and for programs, and how it ends."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest

from processor.cli.terminal import EXIT_CONFIG, EXIT_FAILED, EXIT_OK
from processor.embedded import EmbeddedServer
from tests.conftest import waited
from tests.integration.test_graph_requests import CONFIG, KIND, App, answering

GRAPH = """\
name: pay
nodes:
  - {identifier: api, node_name: Api, inputs: {user: u}}
outputs: {who: "${{ api.outputs.user }}"}
"""


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def documents(self) -> list[Any]:
        return [orjson.loads(line) for line in self.out.splitlines()]


async def ran(app: App, *words: str, stdin: bytes = b"") -> Ended:
    """`processor graph` with these words."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "processor", "graph", *words),
        cwd=app.config.path.parent,
        env={"PATH": "/usr/bin:/bin", "NATS_URL": app.broker.address, "KEY": "00" * 32, "COLUMNS": "200"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


def record(state: str, **more: Any) -> dict[str, Any]:
    """What else there is of a run."""
    base = {"by": "api", "created": 1000, "started": 1000, "ended": 3500, "errors": [], "outputs": {}}
    return {**base, "executions": [], "counts": {}, **more}


async def test_graphs_and_kinds_are_applied_and_listed(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """A graph that lacks a kind is PENDING until it is there; one with a fault exits with 2 and says why."""
    async with answering(nats_server, tmp_path) as app:
        (tmp_path / "pay.yaml").write_text(GRAPH)
        applied = await ran(app, "apply", "config.yaml", "pay.yaml")
        assert (applied.code, applied.documents[0]["status"]) == (EXIT_OK, "PENDING")
        assert "pay.yaml: nodes[0].node_name: E704 no kind 'app/Api' is registered" in applied.err
        late = await ran(app, "apply", "config.yaml", "pay.yaml", "--wait", "100ms")
        assert late.code == EXIT_FAILED
        user = {"type": "object", "properties": {"user": {"type": "string"}}}
        kind = {"name": "Api", "inputs": user, "outputs": user}
        told = {"runtime": "r", "namespace": "app", "kinds": [kind]}
        await app.broker.client.request("ctl.app.api.graph.register", orjson.dumps(told), timeout=10)
        applied = await ran(app, "apply", "config.yaml", "pay.yaml", "--format", "human")
        assert applied.code == EXIT_OK, applied.err
        assert applied.out.startswith("graph pay, version ")
        assert applied.out.endswith(": VALID\n")
        (tmp_path / "bad.yaml").write_text(
            GRAPH.replace("api.outputs", "apy.outputs").replace("node_name", "nodename")
        )
        bad = await ran(app, "apply", "config.yaml", "bad.yaml")
        assert bad.code == EXIT_CONFIG
        assert "bad.yaml:3:23 E701 nodes[0].nodename is no key; did you mean 'node_name'?" in bad.err
        (tmp_path / "bad.yaml").write_text(GRAPH.replace("outputs.user", "outputs.usr"))
        bad = await ran(app, "apply", "config.yaml", "bad.yaml")
        assert bad.code == EXIT_CONFIG
        assert "E703 api has no output 'usr'; did you mean 'user'?" in bad.err
        assert "which is valid, goes on to run" in bad.err
        listed = (await ran(app, "ls", "config.yaml")).documents
        assert [(head["name"], head["status"]) for head in listed] == [("pay", "INVALID")]
        assert listed[0]["valid"] in applied.out
        kinds = await ran(app, "kinds", "config.yaml", "--format", "human")
        assert kinds.out.splitlines()[1].split()[:2] == ["app/Api", "external"]
        again = await ran(app, "apply", "config.yaml", "pay.yaml")
        assert again.code == EXIT_OK
        shown = (await ran(app, "ls", "config.yaml", "--format", "human")).out
        assert shown.splitlines()[1].split()[1] == "VALID"


async def test_runs_are_triggered_with_inputs_of_every_form(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """Pairs, an object, a file, and lines, each of which is a run; with a fault nothing is sent."""
    async with answering(nats_server, tmp_path) as app:
        await app.define("g")
        one = await ran(
            app, "trigger", "config.yaml", "g", "-i", "user=ann", "-i", "n=7", "-i", 'x={"a":1}',
            "--store", "cursor=a=b", "--delay", "1.5s", "--run-id", "r1",
        )  # fmt: skip
        assert one.documents == [{"status": "CREATED", "run_id": "r1", "ignored": ["x"]}]
        assert "ignored, as the first node declares no such input: x" in one.err
        (tmp_path / "in.json").write_text('{"user": "bob",\n "n": 1}')
        person = await ran(app, "trigger", "config.yaml", "g", "--inputs", "@in.json", "--format", "human")
        many = await ran(app, "trigger", "config.yaml", "g", "--inputs", "-", stdin=b'{"n":1}\n\n{"n":2}\n')
        assert [len(each.out.splitlines()) for each in (person, many)] == [1, 2]
        first, second, *others = await app.sent()
        assert (first["inputs"], first["store"]) == ({"user": "ann", "n": 7}, {"cursor": "a=b"})
        assert (first["delay_ms"], first["by"]) == (1500, "api")
        assert second["run"] == person.out.strip()
        assert second["inputs"] == {"user": "bob", "n": 1}
        assert [each["inputs"] for each in others] == [{"n": 1}, {"n": 2}]
        for words, said in (
            (["g", "-i", "user"], "'user' is not NAME=VALUE"),
            (["g", "--inputs", "[1]"], "inputs are a JSON object"),
            (["g", "--inputs", "{"], "it is not a JSON object"),
            (["g", "--delay", "soon"], "'soon' is not a span such as 500ms, 30s or 2h"),
            (["g", "--inputs", '{"n":1}\n{"n":2}', "--wait", "1s"], "several runs have no --run-id and no"),
            ([], "trigger needs GRAPH"),
        ):
            wrong = await ran(app, "trigger", "config.yaml", *words)
            assert wrong.code == EXIT_CONFIG
            assert said in " ".join(wrong.err.replace("│", " ").split())
        none = await ran(app, "trigger", "config.yaml", "h")
        assert (none.code, none.out) == (EXIT_FAILED, "")
        assert "E602 there is no graph 'h'; graphs here are g." in none.err
        assert len(await app.sent()) == 4


@pytest.mark.parametrize(
    "state, code", [("success", EXIT_OK), ("failed", EXIT_FAILED), ("cancelled", EXIT_FAILED)]
)
async def test_trigger_waits_for_the_end(
    nats_server: EmbeddedServer, tmp_path: Path, state: str, code: int
) -> None:
    """It shows what the run returns, and what failed of it; one that goes on after the time exits with 1."""
    async with answering(nats_server, tmp_path) as app:
        await app.define("g")
        late = await ran(app, "trigger", "config.yaml", "g", "--wait", "50ms")
        assert late.code == EXIT_FAILED
        assert "has not ended within 0.05 s; it goes on" in late.err
        words = ("trigger", "config.yaml", "g", "--run-id", "r1", "--wait", "30s", "--format", "human")
        waiting = asyncio.create_task(ran(app, *words))

        async def is_sent() -> bool:
            return any(message["run"] == "r1" for message in await app.sent())

        await waited(is_sent, "the run is asked for")
        errors = [] if state == "success" else [{"x": "api", "code": "E304", "text": "ValueError: no"}]
        await app.keep("r1", state, **record(state, outputs={"total": 3}, errors=errors))
        ended = await waiting
        assert ended.code == code
        assert orjson.loads(ended.out) == {"total": 3}
        assert f"run r1 is {state.upper()}" in ended.err
        assert ("api: E304 ValueError: no" in ended.err) == bool(errors)


async def test_runs_are_listed_and_shown(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """As a table and as documents; a run says why what is open is open, and one that failed exits with 1."""
    async with answering(nats_server, tmp_path) as app:
        executions = [
            {"x": "a", "state": "WAITING", "kind": "app/Api", "sent": 1, "created": 1000,
             "due": 4_000_000_000_000, "why": [{"a": 1, "code": "E304", "text": "ValueError: no", "at": 1}]},
            {"x": "w", "state": "WAITING", "kind": "Wait", "sent": 1, "created": 1000,
             "inputs": {"signal": "ok"}},
            {"x": "q", "state": "QUEUED", "kind": "app/Gone", "sent": 1000, "created": 1000},
            {"x": "e", "state": "QUEUED", "kind": "app/Api", "sent": 1000, "created": 1000},
            {"x": "n", "state": "QUEUED", "kind": "graph:h", "sent": 1000, "created": 1000},
            {"x": "f", "state": "QUEUED", "kind": "app/Api", "sent": 1, "created": 1, "width": 128,
             "slices": {"sent": 2, "unsent": 0, "open": 2}},
        ]  # fmt: skip
        told = {"runtime": "r", "namespace": "app", "kinds": [KIND]}
        await app.broker.client.request("ctl.app.api.graph.register", orjson.dumps(told), timeout=10)
        await app.keep("r1", "running", **record("running", ended=0, executions=executions))
        why = {"code": "E709", "text": "inputs of Api: n: Field required", "a": 1, "at": 1}
        failed = [{"x": "a", "state": "ERRORED", "kind": "app/Api", "sent": 1, "created": 1, "why": [why]}]
        await app.keep("r2", "failed", **record("failed", executions=failed, counts={"ERRORED": 1}))
        shown = await ran(app, "run", "config.yaml", "r1", "--format", "human")
        assert shown.code == EXIT_OK
        assert [line.strip().split(": ", 1)[1] for line in shown.out.splitlines() if " since " in line] == [
            "E304 ValueError: no; it goes on at 2096-10-02T07:06:40.000Z",
            "it waits for the signal 'ok'",
            "E704 no kind 'app/Gone' is registered",
            "no Runtime with app/Api has asked for work yet",
            "run r1~n has not ended",
            "2 slices of its 128 branches have not ended",
        ]
        lost = await ran(app, "run", "config.yaml", "r2", "--format", "human", "--watch")
        assert lost.code == EXIT_FAILED
        assert "a ERRORED: E709 inputs of Api: n: Field required" in lost.out
        assert [run["run"] for run in (await ran(app, "runs", "config.yaml")).documents] == ["r2", "r1"]
        table = await ran(app, "runs", "config.yaml", "g", "--state", "failed", "--format", "human")
        head, row = table.out.splitlines()
        assert head.split() == ["graph", "executions", "state", "created", "took", "run"]
        assert (row.split()[0], row.split()[-1], "FAILED" in row) == ("g", "r2", True)
        assert "2.500 s" in table.out
        none = await ran(app, "run", "config.yaml", "r9")
        assert (none.code, none.out) == (EXIT_FAILED, "")
        assert "E602 there is no run 'r9'" in none.err


async def test_runs_are_steered_one_by_one_and_many_at_a_time(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """What cannot be done to one is said, and the others are done; many are asked for first."""
    async with answering(nats_server, tmp_path) as app:
        for n in range(5):
            await app.keep(f"f{n}", "failed", **record("failed"))
        await app.keep("done", "success", **record("success"))
        two = await ran(
            app, "retry", "config.yaml", "done", "f0", "--id", "i1", "--execution", "a", "--and-after"
        )
        assert two.code == EXIT_FAILED
        assert "E708 run done is SUCCESS: there is nothing to retry." in two.err
        [told] = await app.sent()
        assert (told["run"], told["id"], told["x"], told["after"]) == ("f0", "i1", "a", True)
        unsure = await ran(app, "retry", "config.yaml", "--graph", "g")
        assert unsure.code == EXIT_CONFIG
        assert "5 runs would be retried; say --yes" in unsure.err.replace("│", "")
        words = (
            "--graph",
            "g",
            "--state",
            "failed",
            "--since",
            "1h",
            "--rate",
            "1000",
            "--yes",
            "--id",
            "i2",
        )
        for _ in range(2):  # with one id it is done once
            many = await ran(app, "retry", "config.yaml", *words)
            assert many.code == EXIT_OK, many.err
            assert [each["run"] for each in many.documents] == ["f4", "f3", "f2", "f1", "f0"]
        assert [each["run"] for each in (await app.sent())[1:]] == ["f4", "f3", "f2", "f1", "f0"]
        await app.keep("open", "running", **record("running"))
        told_one = await ran(
            app, "signal", "config.yaml", "open", "ok", "--value", '{"yes": true}', "--reason", "x"
        )
        assert told_one.code == EXIT_OK
        assert told_one.documents[0]["state"] == "RUNNING"
        last = (await app.sent())[-1]
        assert (last["what"], last["x"], last["value"], last["reason"]) == (
            "signal",
            "ok",
            {"yes": True},
            "x",
        )


async def test_the_engine_s_routes_are_nobody_s_to_change(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """`context` and `reset` say which verb is for runs."""
    async with answering(nats_server, tmp_path, CONFIG) as app:
        for words in (
            ("context", "set", "config.yaml", "graphs", "r1", "run", "{}"),
            ("reset", "config.yaml", "graphs", "--to", "start", "--yes"),
            ("reset", "config.yaml", "nodes-api", "--to", "start", "--yes"),
        ):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "processor", *words),
                cwd=tmp_path,
                env={"PATH": "/usr/bin:/bin", "NATS_URL": app.broker.address, "KEY": "00" * 32},
                stderr=asyncio.subprocess.PIPE,
            )
            _, err = await process.communicate()
            assert process.returncode == EXIT_CONFIG
            assert b"runs graphs: nobody but the engine changes what it keeps" in err
            assert b"`processor graph` shows runs and steers them" in err
