"""`self.tools`: tools of a route, under its policy and in its audit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from processor.audit import AuditRecord, document_of
from processor.config import load
from processor.errors import Faults
from processor.service import Service
from processor.telemetry import Telemetry
from tests.conftest import waited
from tests.running import Running, Start

WASI = "wasi_snapshot_preview1"
# Writes back what it was given, as it was given.
ECHO = f"""(module
  (import "{WASI}" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "{WASI}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const 60000))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
    (i32.store (i32.const 4) (i32.load (i32.const 8)))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"""
SPIN = '(module (memory (export "memory") 1) (func (export "_start") (loop br 0)))'
SILENT = '(module (memory (export "memory") 1) (func (export "_start")))'
PIVOT = """
count = 0


def pivot(a, by=1):
    print("turning", a)
    return {"turned": a[::-1], "by": by}


def wait():
    while True:
        pass


def fail():
    raise ValueError("no such table")


def fill():
    kept = []
    while True:
        kept.append("x" * 1_000_000 + str(len(kept)))
"""
CALLS = """
class Runnable:
    def process(self, queries):
        for query in queries:
            try:
                if "list" in query:
                    yield {"made": [self.tools.names, self.tools.list()]}
                else:
                    yield {"made": self.tools.call(query["name"], **query.get("with", {}))}
            except AuthorityKernelError as err:
                if query.get("raise"):
                    raise
                yield {"code": err.code, "kind": type(err).__name__, "said": str(err)}
"""
TOP = """
tools:
  echo: {wasm: echo.wat, input: object.json, description: says it again}
  spin: {wasm: spin.wat, fuel: 50_000}
  late: {wasm: spin.wat, fuel: 9_000_000_000_000, timeout_ms: 200}
  silent: silent.wat
  strict: {wasm: echo.wat, output: number.json}
  pivot: {python: tool_pivot.py}
  wait: {python: tool_pivot.py, timeout_ms: 300}
  fail: {python: tool_pivot.py}
  fill: {python: tool_pivot.py, memory_mb: 32, timeout_ms: 20_000}
"""
ALL = "[echo, spin, late, silent, strict, pivot, wait, fail, fill]"
ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: calls.py
  output: out
  tools: %s
  retry: {attempts: 1}
"""


@pytest.fixture
def top(tmp_path: Path) -> str:
    for name, text in (("echo", ECHO), ("spin", SPIN), ("silent", SILENT)):
        (tmp_path / f"{name}.wat").write_text(text)
    (tmp_path / "object.json").write_text(
        '{"properties": {"n": {"type": "integer"}}, "additionalProperties": false}'
    )
    (tmp_path / "number.json").write_text('{"type": "number"}')
    (tmp_path / "tool_pivot.py").write_text(PIVOT)
    return TOP


async def made(running: Running, *queries: dict[str, Any]) -> list[dict[str, Any]]:
    """What the route makes of these."""
    before = len(await running.stored("out"))
    await running.publish("in.a", *queries)
    found: list[dict[str, Any]] = await running.documents("out", before + len(queries))
    return found[before:]


async def entries_of(running: Running, tools: int) -> list[dict[str, Any]]:
    """The entries of the route's chain, as soon as there are so many about tools."""

    async def enough() -> list[dict[str, Any]] | None:
        found = []
        async for stored in running.broker.history("P_app", ["p.app.audit.r.*"]):
            found += map(document_of, AuditRecord.decode(stored.payload).lines)
        return found if sum(entry["e"] == "tool" for entry in found) >= tools else None

    entries: list[dict[str, Any]] = await waited(enough, f"{tools} entries about tools")
    return entries


def call(name: str, **given: Any) -> dict[str, Any]:
    return {"name": name, "with": given}


async def test_a_runnable_calls_the_tools_of_its_route(
    processor: Start, top: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Modules and functions by the same verb; what a function prints is in the route's log."""
    caplog.set_level("INFO", "processor")
    async with processor(ROUTE % "[echo, pivot]", top, calls=CALLS) as running:
        echoed, pivoted, listed = await made(
            running, call("echo", n=7), call("pivot", a="abc", by=2), {"list": True}
        )
    assert echoed == {"made": {"n": 7}}
    assert pivoted == {"made": {"turned": "cba", "by": 2}}
    names, tools = listed["made"]
    assert names == ["echo", "pivot"]
    schema = {"properties": {"n": {"type": "integer"}}, "additionalProperties": False}
    assert tools[0] == {"name": "echo", "description": "says it again", "input": schema}
    assert "tool pivot: turning abc" in caplog.messages


async def test_a_tool_that_fails_fails_its_own_call(processor: Start, top: str) -> None:
    """Each way to fail has its sentence with the key to turn, and the next message is processed."""
    async with processor(ROUTE % ALL, top, calls=CALLS) as running:
        said = await made(
            running, call("spin"), call("late"), call("silent"), call("strict", n=1), call("wait"),
            call("fail"), call("fill"), call("pivot"), call("echo", m=1), call("other"), call("echo", n=2),
        )  # fmt: skip
    assert [one.get("code") for one in said] == ["E333"] * 8 + ["E337", "E335", None]
    assert [one.get("kind") for one in said[7:]] == [
        "CapabilityError", "InvalidArgumentError", "NotFoundError", None,
    ]  # fmt: skip
    texts = [one.get("said", "") for one in said]
    assert texts[0] == "E333 tool spin: trap: out of fuel (limit 50,000, tools.spin.fuel)."
    assert texts[1] == "E333 tool late: it did not end within 0.2 s (tools.late.timeout_ms)."
    assert texts[2] == "E333 tool silent: it has written no result to stdout."
    assert texts[3].startswith("E333 tool strict: its result does not fit tools.strict.output: the value:")
    assert texts[4] == "E333 tool wait: it did not end within 0.3 s (tools.wait.timeout_ms)."
    assert texts[5] == "E333 tool fail: ValueError: no such table."
    assert texts[6] == "E333 tool fill: it used more memory than 32 MB (tools.fill.memory_mb)."
    assert "E333 tool pivot: TypeError: pivot() missing 1 required positional argument: 'a'" in texts[7]
    assert texts[8].startswith("E337 the arguments of the tool echo do not fit its schema: the value:")
    assert "E335 there is no tool 'other'" in texts[9]
    assert "echo, spin, late, silent" in texts[9]
    assert said[10] == {"made": {"n": 2}}


async def test_an_uncaught_failure_is_a_dead_letter_with_its_code(processor: Start, top: str) -> None:
    """A tool's failure is the message's, after its tries."""
    async with processor(ROUTE % "fail", top, calls=CALLS) as running:
        await running.publish("in.a", {**call("fail"), "raise": True})
        [letter] = await running.dead_letters("r")
    assert letter.headers["x-error-code"] == "E333"
    assert "tool fail: ValueError: no such table" in letter.headers["x-dead-letter-reason"]


POLICY = """
[[capability]]
name = "echo"
resource = "*"
methods = ["execute"]

[[budget]]
name = "few"
kind = "tool_calls"
limit = 2
window = "life"
"""


async def test_the_policy_decides_and_the_audit_knows(processor: Start, top: str, tmp_path: Path) -> None:
    """A tool without a line is denied with the lines that would allow it; each call has an entry with the
    hash of its module and its fuel, and counts in the budget.
    """
    (tmp_path / "policy.toml").write_text(POLICY)
    async with processor(ROUTE % "[echo, spin]", f"{top}\npolicy: policy.toml", calls=CALLS) as running:
        said = await made(
            running, {"list": True}, call("echo", n=1), call("spin"), call("echo", n=2), call("echo", n=3)
        )
        listed, first, denied, _, spent = said
        assert listed["made"][0] == ["echo"]
        assert first == {"made": {"n": 1}}
        assert (denied["code"], denied["kind"]) == ("E330", "OperationDeniedError")
        lines = denied["said"].partition("To allow it, add:\n")[2]
        assert 'name = "tool"\nresource = "spin"\nmethods = ["execute"]\nroutes = ["r"]' in lines
        assert (spent["code"], spent["kind"]) == ("E332", "BudgetExceededError")
        assert "2 of 2 calls of tools used" in spent["said"]
        entries = await entries_of(running, 4)
    tools = [entry for entry in entries if entry["e"] == "tool"]
    assert [(entry["d"], entry["on"], entry.get("code")) for entry in tools] == [
        ("allow", "echo", None), ("deny", "spin", "E330"), ("allow", "echo", None), ("deny", "echo", "E332"),
    ]  # fmt: skip
    assert tools[0]["op"] == "execute"
    assert tools[0]["rule"] == "policy.toml:2"
    assert tools[0]["sha"] == hashlib.sha256(ECHO.encode()).hexdigest()
    assert 0 < tools[0]["fuel"] < 1000
    assert tools[0]["res"] == hashlib.sha256(b'0\n{"n":1}').hexdigest()[:32]
    assert "sha" not in tools[1]


async def test_a_tool_that_cannot_be_called_is_a_fault_of_the_configuration(
    top: str, tmp_path: Path, nats_server: Any
) -> None:
    """The service does not start with it, and says at which key."""
    (tmp_path / "calls.py").write_text(CALLS)
    (tmp_path / "echo.wat").write_text('(module (import "env" "now" (func)))')
    head = f"app: t\nnats: {{url: '{nats_server.url}'}}\n{top}\nroutes:\n"
    route = "\n".join(f"  {line}" for line in (ROUTE % "echo").splitlines())
    (tmp_path / "c.yaml").write_text(head + route)
    service = Service(load(tmp_path / "c.yaml"), Telemetry())
    try:
        with pytest.raises(Faults) as found:
            await service.start()
    finally:
        await service.stop()
    [fault] = found.value.faults
    assert (fault.code, fault.line) == ("E506", 5)
    assert "tools.echo: the tool echo is unusable: it exports no function `_start`" in fault.text
