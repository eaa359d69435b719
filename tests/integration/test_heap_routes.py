"""The heap of a running route: what is committed, what a policy and schemas allow, and edits from outside.

`self.authorize` is here as well, with and without a policy.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from processor.cli import main
from processor.config import load
from processor.context.history import Author
from processor.embedded import EmbeddedServer
from processor.errors import Faults, ProcessorError
from processor.operate.edits import ContextEdits
from tests.conftest import waited
from tests.running import Running, Start, connected

COUNT = """
class Runnable:
    def process(self, queries):
        for query in queries:
            kind = query.get("type", "counter")
            try:
                if "heap" not in self.context:
                    self.context["heap"] = self.heap.alloc(kind, {"value": 0})
                handle = self.context["heap"]
                patch = [{"op": "replace", "path": "/value", "value": query["value"]}]
                version = self.heap.write(handle, patch, query.get("version"))
                yield {"version": version, "value": self.heap.read(handle)["value"]}
            except AuthorityKernelError as err:
                yield {"code": err.code, "said": str(err), "remedy": err.remedy, "operation": err.operation}
"""
ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: count.py
  key: subject.2
  output: out
  history: 1d
"""
SCHEMA = {"type": "object", "properties": {"value": {"type": "integer", "minimum": 0}}, "required": ["value"]}


def line(name: str, resource: str, *methods: str, more: str = "") -> str:
    listed = ", ".join(f'"{method}"' for method in methods)
    return f'[[capability]]\nname = "{name}"\nresource = "{resource}"\nmethods = [{listed}]\n{more}\n'


async def said(running: Running, *queries: dict[str, Any]) -> list[dict[str, Any]]:
    """What the route made of these queries."""
    before = len(await running.stored("out"))
    await running.publish("in.a", *queries)
    return (await running.documents("out", before + len(queries)))[before:]


async def test_objects_outlive_their_processor(processor: Start) -> None:
    """They are in the context, committed with the outputs, whatever guest has it next."""
    async with processor(ROUTE, count=COUNT) as running:
        assert await said(running, {"value": 5}) == [{"version": 1, "value": 5}]
        assert (await running.contexts("r"))["a"] == {
            "heap": "0x1",
            "=heap": 2,
            "=heap.0x1": {"type": "counter", "version": 1, "value": {"value": 5}},
        }
    async with processor(ROUTE, count=COUNT) as running:
        assert await said(running, {"value": 6}, {"value": 7, "version": 2}) == [
            {"version": 2, "value": 6}, {"version": 3, "value": 7},
        ]  # fmt: skip
        [stale] = await said(running, {"value": 8, "version": 1})
        assert (stale["code"], stale["operation"]) == ("E336", "heap.write")
        assert (await running.contexts("r"))["a"]["=heap.0x1"]["value"] == {"value": 7}


async def test_an_object_of_a_route_that_was_killed_is_there(
    tmp_path: Path, nats_server: EmbeddedServer
) -> None:
    """kill -9 of `processor run` leaves what was committed; the next one counts on."""
    (tmp_path / "count.py").write_text(COUNT)
    config = tmp_path / "app.yaml"
    config.write_text(f"app: app\nhttp: off\nroutes:\n  {ROUTE.strip().replace(chr(10), chr(10) + '  ')}\n")
    command = [sys.executable, "-m", "processor", "run", str(config)]
    env = {"NATS_URL": nats_server.url, "PATH": "/usr/bin:/bin"}
    async with connected(nats_server.url) as broker:
        running = Running(None, None, broker, config)  # type: ignore[arg-type]
        for number in (1, 2):
            process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)  # noqa: ASYNC220
            try:
                await waited(partial(broker.find_stream, "in.a"), "the route made its stream", 30)
                assert await said(running, {"value": number}) == [{"version": number, "value": number}]
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait()
        assert (await running.contexts("r"))["a"]["=heap.0x1"]["version"] == 2


async def test_a_type_without_a_line_is_refused_with_the_line(processor: Start, tmp_path: Path) -> None:
    """The lines of the denial, pasted, allow that method of that type; the rest is denied still."""
    policy = tmp_path / "policy.toml"
    policy.write_text("")
    async with processor(ROUTE, "policy: policy.toml", count=COUNT) as running:
        [denied] = await said(running, {"value": 1})
        assert (denied["code"], denied["operation"]) == ("E330", "heap.alloc")
        lines = denied["said"].partition("To allow it, add:\n")[2]
        assert lines == (
            '[[capability]]\nname = "heap"\nresource = "counter"\nmethods = ["alloc"]\nroutes = ["r"]'
        )
        assert running.metric("processor_decisions_total", route="r", reason="heap_deny") == 1
        policy.write_text(lines)
        assert await running.reload() == ["r"]
        await running.until_ready()
        [denied] = await said(running, {"value": 1})
        assert (denied["code"], denied["operation"]) == ("E330", "heap.write")
        assert (await running.contexts("r"))["a"]["=heap"] == 2
        policy.write_text(line("heap", "count*", "alloc", "read", "write", more="expires_minutes = 60"))
        assert await running.reload() == ["r"]
        await running.until_ready()
        assert await said(running, {"value": 1}) == [{"version": 1, "value": 1}]
        assert running.metric("processor_decisions_total", route="r", reason="heap_allow") > 0


async def test_a_policy_in_shadow_mode_denies_no_object(processor: Start, tmp_path: Path) -> None:
    """What it would deny is done, and counted."""
    (tmp_path / "policy.toml").write_text('[settings]\nmode = "shadow"\n')
    async with processor(ROUTE, "policy: policy.toml", count=COUNT) as running:
        assert await said(running, {"value": 1}) == [{"version": 1, "value": 1}]
        assert running.metric("processor_decisions_total", route="r", reason="heap_shadow") >= 3


async def test_values_fit_the_schema_of_their_type(processor: Start, tmp_path: Path) -> None:
    """In a run and in an edit; a schema that changed holds from its reload on."""
    (tmp_path / "counter.json").write_text(json.dumps(SCHEMA))
    routes = ROUTE + "  heap: {counter: counter.json}\n"
    async with processor(routes, count=COUNT) as running:
        assert await said(running, {"value": 1}) == [{"version": 1, "value": 1}]
        [unfit] = await said(running, {"value": "x"})
        assert unfit["code"] == "E337"
        assert "does not fit its schema: /value" in unfit["said"]
        edits = ContextEdits(running.broker, load(running.path).routes["r"])
        with pytest.raises(ProcessorError, match=r"E309 .*does not fit its schema: /value: -1 is less than"):
            await edits.set("a", "/=heap.0x1/value/value", -1, Author("me", ""))
        wider = {**SCHEMA, "properties": {"value": {}}}
        (tmp_path / "counter.json").write_text(json.dumps(wider))
        assert await running.reload() == ["r"]
        await running.until_ready()
        assert await said(running, {"value": "x"}) == [{"version": 2, "value": "x"}]


@pytest.mark.parametrize(
    "text, why",
    [
        ("{", "is not a JSON Schema: it is not JSON"),
        ("[]", "is not a JSON Schema: a schema is an object, or true or false"),
        ('{"type": "integr"}', 'is not a JSON Schema: /type: "integr" is not'),
        (
            '{"$ref": "http://127.0.0.1:9/x.json"}',
            "it refers to http://127.0.0.1:9/x.json, and nothing but the document",
        ),
        (
            '{"$ref": "file:///etc/passwd"}',
            "it refers to file:///etc/passwd, and nothing but the document",
        ),
        ('{"$ref": "other.json"}', "it refers to other.json, and nothing but the document itself is read"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_schema_that_is_none_is_a_fault_of_the_configuration(
    tmp_path: Path, text: str | None, why: str
) -> None:
    """It is named by file, line and column, and nothing is fetched for it."""
    if text is not None:
        (tmp_path / "counter.json").write_text(text)
    (tmp_path / "count.py").write_text(COUNT)
    path = tmp_path / "app.yaml"
    path.write_text(
        "app: a\nroutes:\n  r:\n    input: x\n    runnable: count.py\n    heap: {c: counter.json}\n"
    )
    with pytest.raises(Faults) as caught:
        load(path, {})
    [fault] = caught.value.faults
    assert (fault.line, fault.code) == (6, "E107" if text is None else "E104")
    assert "routes.r.heap.c is " in fault.text
    assert why in fault.text


async def test_an_edit_leaves_objects_and_counts_their_version(
    processor: Start, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`processor context` shows them as items; what could be no object is refused, and a Runnable notices."""
    async with processor(ROUTE, count=COUNT) as running:
        await said(running, {"value": 1})
        edits, me = ContextEdits(running.broker, load(running.path).routes["r"]), Author("me", "why")
        assert await edits.get("a", "/=heap.0x1/value") == {"value": 1}
        await edits.set("a", "/=heap.0x1/value/value", 9, me)
        assert await said(running, {"value": 5, "version": 2}) == [{"version": 3, "value": 5}]
        for path, value in (
            ("/=heap.0x1", 7),
            ("/=heap.0x1/type", ""),
            ("/=heap.0x1/version", -1),
            ("=heap", "x"),
            ("=heaps", 1),
            ("=heap.0x01", {"type": "a", "version": 0, "value": 1}),
            ("=heap.0x2", {"type": "a", "version": 0, "value": "x" * 70_000}),
        ):
            with pytest.raises(ProcessorError, match="E309"):
                await edits.set("a", path, value, me)
        await edits.set("a", "=heap.0x5", {"type": "counter", "version": 0, "value": {"value": 3}}, me)
        await edits.set("a", "heap", "0x5", me)
        assert await said(running, {"value": 4}) == [{"version": 1, "value": 4}]
        await edits.delete("a", "=heap.0x5", me)
        [gone] = await said(running, {"value": 4})
        assert gone["code"] == "E335"
        await edits.delete("a", "heap", me)
        assert await said(running, {"value": 4}) == [{"version": 1, "value": 4}]
        assert (await running.contexts("r"))["a"]["heap"] == "0x6"
        [record, *_] = await edits.history("a", limit=1)
        assert "=heap.0x6" in record.items
        monkeypatch.setenv("NATS_URL", running.broker.address)
        command = [sys.executable, "-m", "processor", "context", "export", str(running.path), "r"]
        env = {"NATS_URL": running.broker.address, "PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, capture_output=True, check=True, env=env)  # noqa: ASYNC221
        shown = json.loads(done.stdout)["context"]
        assert shown["=heap.0x6"] == {"type": "counter", "version": 1, "value": {"value": 4}}


def test_objects_are_shown_by_try(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`processor try` runs a Runnable with a heap, and shows what its context becomes."""
    (tmp_path / "count.py").write_text(COUNT)
    path, given = tmp_path / "app.yaml", tmp_path / "in.jsonl"
    path.write_text("app: a\nroutes:\n  r:\n    input: x\n    runnable: count.py\n    output: out\n")
    given.write_text('{"value": 3}\n{"value": 4, "version": 0}\n')
    assert main(["try", str(path), "r", str(given)]) == 0
    out = capsys.readouterr().out
    assert '"version":1,"value":3' in out.replace(" ", "")
    assert "E336" in out
    assert "=heap.0x1" in out


# authorize


ASKS = """
class Runnable:
    def process(self, queries):
        for query in queries:
            try:
                details = self.authorize_details(query["op"], query["target"])
                assert self.authorize(query["op"], query["target"]) == details["authorized"]
                yield details
            except InvalidArgumentError as err:
                yield {"code": err.code, "said": str(err)}
"""
ASKING = """
r:
  input: {subject: "in.*", create: true}
  runnable: asks.py
  language: LANGUAGE
  output: out
  outbound: {allowed_domains: [api.example.com]}
  emits: [alerts.*]
"""


def ask(op: str, target: str) -> dict[str, str]:
    return {"op": op, "target": target}


@pytest.mark.parametrize("language", ["restricted", "python"])
async def test_without_a_policy_what_is_declared_is_authorized(processor: Start, language: str) -> None:
    """The answer has what to add to the configuration for the rest; an operation that is none is an error."""
    routes = ASKING.replace("LANGUAGE", language)
    async with processor(routes, asks=ASKS) as running:
        allowed, denied, alert, other, secret, heap, file, wrong, no_url = await said(
            running,
            ask("http.post", "https://API.example.com/v1/a/../pay?x=1"), ask("http", "https://other.example/"),
            ask("emit", "alerts.high"), ask("emit", "orders"), ask("secret.use", "key"),
            ask("alloc", "counter"), ask("read", "/etc/config.json"), ask("jump", "x"), ask("http.get", "x"),
        )  # fmt: skip
    assert allowed == {
        "operation": "http.post", "target": "https://api.example.com/v1/pay", "authorized": True,
        "capability": "config", "expires_s": None, "reason": "", "remedy": "",
    }  # fmt: skip
    assert (denied["authorized"], denied["capability"]) == (False, "")
    assert denied["reason"] == "E330 http get https://other.example/: it is not declared"
    assert denied["remedy"] == "Add to routes.r.outbound.allowed_domains: [other.example]"
    assert (alert["authorized"], other["authorized"]) == (True, False)
    assert other["remedy"] == 'Add to emits: ["orders"]'
    assert (secret["authorized"], heap["authorized"], file["authorized"]) == (False, True, False)
    assert (file["operation"], file["target"]) == ("file.read", "/etc/config.json")
    assert wrong["code"] == no_url["code"] == "E337"
    assert "there is no operation 'jump'" in wrong["said"]


async def test_policy_and_configuration_must_both_allow(processor: Start, tmp_path: Path) -> None:
    """Which of the two does not is said, with what to add there; nothing is done and nothing is counted."""
    text = line("http", "https://api.example.com/v1/*", "get", more="expires_minutes = 60")
    text += line("http", "https://other.example/**", "get")
    (tmp_path / "policy.toml").write_text(text)
    routes = ASKING.replace("LANGUAGE", "restricted")
    async with processor(routes, "policy: policy.toml", asks=ASKS) as running:
        allowed, method, host = await said(
            running, ask("http.get", "https://api.example.com/v1/pay"),
            ask("http.post", "https://api.example.com/v1/pay"), ask("http.get", "https://other.example/x"),
        )  # fmt: skip
        assert (allowed["authorized"], allowed["capability"]) == (True, "policy.toml:1")
        assert 0 < allowed["expires_s"] <= 3600
        assert (method["authorized"], method["capability"]) == (False, "")
        assert method["reason"] == (
            "E330 http post https://api.example.com/v1/pay is not allowed to route r: "
            "policy.toml has no line for it"
        )
        assert method["remedy"].startswith("To allow it, add:\n[[capability]]\n")
        assert (host["authorized"], host["capability"]) == (False, "policy.toml:6")
        assert host["reason"] == (
            "E330 http get https://other.example/x: the policy allows it (policy.toml:6) "
            "and the configuration does not"
        )
        assert running.metric("processor_decisions_total", route="r") == 0
