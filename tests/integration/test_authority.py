"""The SDK of the Authority Kernel: its examples as written, and what a kernel does beyond them.

As scripts against a kernel in memory, in a guest (`processor authority run`), and as Runnables.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from processor import authority, runnable
from processor.audit import AuditRecord
from processor.authority import (
    AuthorityKernel,
    AuthorityKernelError,
    BudgetExceededError,
    BufferOverflowError,
    CapabilityError,
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    OperationDeniedError,
)
from tests.running import Start
from tests.web import serving

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "configs" / "examples" / "authority"
COMPAT = ROOT / "deploy" / "compat"
CONFIG = """
app: a
routes:
  r:
    input: x
    code: |
      class Runnable(BaseSecureRunnable):
          def process(self, queries):
              return []
"""
HEAP = [
    "✅ Connected to Authority Kernel",
    "✅ Allocated counter with handle: 0x1",
    "✅ Read counter: {'value': 0, 'name': 'counter'}",
    "✅ Updated counter to version: 1",
    "✅ Updated counter: {'value': 42, 'name': 'counter'}",
    "✅ Deleted counter handle",
]
TOOLS = [
    "✅ Connected to Authority Kernel",
    "✅ add: {'result': 8}",
    "✅ concat: {'result': 'Hello, World!'}",
    "✅ echo: {'result': [1, {'two': None}]}",
    "ℹ️  E335 there is no tool 'my_custom_tool'. Add it to `tools`, and to the route's `tools`;"
    " the tools of the route are add, concat, echo.",
]
AUDIT = [
    "✅ Connected to Authority Kernel",
    "✅ Retrieved 4 audit log entries",
    "   1: heap alloc 0x1 allow",
    "   2: heap read 0x1 allow",
    "   3: heap delete 0x1 allow",
    "   4: user note custom_event allow",
    "✅ Audit query returned 1 entry for alloc",
    "✅ Hash chain verified: True",
    "✅ Budget exceeded - operation denied",
    "   heap alloc deny E332",
]


def ran(*command: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{COMPAT}", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env, check=False)


def program(*words: str) -> subprocess.CompletedProcess[str]:
    return ran("-m", "processor", *words)


@pytest.fixture
def kernel() -> Iterator[AuthorityKernel]:
    with AuthorityKernel() as opened:
        yield opened


def line(name: str, resource: str, *methods: str, more: str = "") -> str:
    listed = ", ".join(f'"{method}"' for method in methods)
    return f'[[capability]]\nname = "{name}"\nresource = "{resource}"\nmethods = [{listed}]\n{more}\n'


# The examples


@pytest.mark.parametrize(
    "name, expected",
    [("01_heap_operations", HEAP), ("03_tool_execution", TOOLS), ("05_audit_logging", AUDIT)],
)
def test_an_example_prints_what_the_sdk_says(name: str, expected: list[str]) -> None:
    """As a script of its own, with the module by the name that the SDK has."""
    done = ran(str(EXAMPLES / f"{name}.py"))
    assert (done.stdout.splitlines(), done.stderr, done.returncode) == (expected, "", 0)


def test_the_example_of_authorization_prints_what_would_allow_it() -> None:
    """Denials are no exceptions of `authorize`, and a request that nothing allows does not leave."""
    done = ran(str(EXAMPLES / "02_authorization.py"))
    lines = done.stdout.splitlines()
    assert (lines[0], done.stderr, done.returncode) == (HEAP[0], "", 0)
    assert "ℹ️  Denied: E330 file read /etc/config.json: it is not declared" in lines
    assert 'resource = "https://api.example.com/v1/pay"' in lines
    assert lines[-1].startswith("ℹ️  Not posted: requests E325 api.example.com is not an allowed host")


def test_the_example_of_tools_runs_in_a_guest_with_modules() -> None:
    """The tools of the route are WebAssembly modules, from C, AssemblyScript and Zig; it prints the same."""
    script, config = str(EXAMPLES / "03_tool_execution.py"), str(EXAMPLES / "authority.yaml")
    done = program("authority", "run", script, "--config", config, "--route", "tools")
    assert (done.stdout.splitlines(), done.returncode) == (TOOLS, 0), done.stderr


def test_the_policy_of_the_sdk_names_a_tool(tmp_path: Path) -> None:
    """With its example the tool example_tool runs, and add is denied with the lines that would allow it."""
    tools = EXAMPLES / "tools"
    (tmp_path / "policy.toml").write_text(line("example_tool", "*", "execute", more="expires_minutes = 60"))
    (tmp_path / "app.yaml").write_text(
        f"tools: {{add: '{tools}/add.wasm', example_tool: '{tools}/echo.wasm'}}\npolicy: policy.toml"
        f"{CONFIG}    tools: [add, example_tool]\n"
    )
    (tmp_path / "script.py").write_text(
        "from authority_nanos import AuthorityKernel\nak = AuthorityKernel()\n"
        "print(ak.tool_call('example_tool', b'{\"message\": \"hi\"}').decode())\nak.tool_call('add', b'{}')\n"
    )
    done = program("authority", "run", str(tmp_path / "script.py"), "-c", str(tmp_path / "app.yaml"))
    assert (done.stdout, done.returncode) == ('{"result":"hi"}\n', 1)
    assert "E330 tool execute add is not allowed to route r" in done.stderr
    assert '[[capability]]\nname = "tool"\nresource = "add"\nmethods = ["execute"]' in done.stderr


def test_an_example_runs_in_a_guest(tmp_path: Path) -> None:
    """`processor authority run` prints the same, under the rules of a route."""
    config = tmp_path / "app.yaml"
    config.write_text(CONFIG)
    script = str(EXAMPLES / "01_heap_operations.py")
    done = program("authority", "run", script, "--config", str(config))
    assert (done.stdout.splitlines(), done.returncode) == (HEAP, 0)
    (tmp_path / "policy.toml").write_text(line("heap", "counter", "read"))
    config.write_text(CONFIG.replace("app: a", "app: a\npolicy: policy.toml"))
    done = program("authority", "run", script, "--config", str(config), "--route", "r")
    assert (done.stdout.splitlines(), done.returncode) == (HEAP[:1], 1)
    assert "E330 heap alloc counter is not allowed to route r" in done.stderr
    assert '01_heap_operations.py", line 10' in done.stderr


@pytest.mark.parametrize(
    "source, said, code",
    [
        ("import sys\nprint('a')\nsys.exit(3)", "ended with 3", 1),
        ("import sys\nsys.exit()", "", 0),
        ("open('/etc/passwd')", "E304 PermissionError", 1),
        ("raise KeyError('x')", "KeyError: 'x'", 1),
        ("AuthorityKernel = 1\nfrom authority_nanos import AuthorityKernel\nAuthorityKernel(policy='x')",
         "in a guest the policy and the configuration are those of its route", 1),
        ("from authority_nanos import AuthorityKernel\nAuthorityKernel().tool_call('add', b'{}')",
         "E335 there is no tool 'add'", 1),
        ("from authority_nanos import AuthorityKernel\nak = AuthorityKernel()\n"
         "assert ak.audit_log('said') is False\nak.set_budget('requests', 0)\nak.http_get('http://a.example')",
         "E332", 1),
    ],
)  # fmt: skip
def test_a_script_in_a_guest_ends_with_its_own_status(
    tmp_path: Path, source: str, said: str, code: int
) -> None:
    """It has the jail of a guest; what it raises is shown with its own lines."""
    (tmp_path / "app.yaml").write_text(CONFIG)
    (tmp_path / "script.py").write_text(source)
    done = program("authority", "run", str(tmp_path / "script.py"), "-c", str(tmp_path / "app.yaml"))
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert '"authority"' not in done.stderr


def test_the_examples_as_runnables(tmp_path: Path) -> None:
    """`processor try` of their configuration logs what the scripts print."""
    config, sample = str(EXAMPLES / "authority.yaml"), str(EXAMPLES / "sample.jsonl")
    done = program("try", config, "heap", sample)
    assert done.returncode == 0
    assert re.findall(r"INFO +heap +(.*)", done.stderr) == HEAP
    done = program("try", config, "audit", sample)
    assert re.findall(r"INFO +audit +(.*)", done.stderr) == [HEAP[0], "✅ Logged custom audit event"]
    done = program("try", config, "authorization", sample)
    found = [json.loads(text)["data"] for text in done.stdout.splitlines()]
    assert [each["authorized"] for each in found] == [False, True, False]
    assert found[1]["capability"] == "policy.toml:6"
    assert 'resource = "/etc/config.json"' in found[0]["remedy"]


# A kernel in memory


def test_each_error_is_one_class() -> None:
    """Of the library, of `processor.runnable` and of the module by the name of the SDK."""
    assert authority.BudgetExceededError is runnable.BudgetExceededError
    same = "a.BudgetExceededError is r.BudgetExceededError, a.TimeoutError is r.TimeoutError"
    done = ran("-c", f"import authority_nanos as a, processor.runnable as r; print({same})")
    assert done.stdout.split() == ["True", "True"]


def test_an_operation_that_fails_changes_nothing(kernel: AuthorityKernel) -> None:
    """A `test` that fails, a stale version, and what is no patch leave the object; what is gone is gone."""
    handle = kernel.alloc("counter", b'{"value": 42}')
    steps = [{"op": "replace", "path": "/value", "value": 1}, {"op": "test", "path": "/value", "value": 2}]
    with pytest.raises(ConflictError, match="E336"):
        kernel.write(handle, json.dumps(steps).encode())
    assert kernel.write(handle, b"[]") == 1
    with pytest.raises(ConflictError, match="E336 the object 0x1 has version 1, not 0"):
        kernel.write(handle, b"[]", expected_version=0)
    for patch in (b"{", b"{}", b'[{"op": "jump"}]', "[]"):
        with pytest.raises(InvalidArgumentError, match="E337"):
            kernel.write(handle, patch)  # type: ignore[arg-type]
    assert (kernel.read(handle), kernel.version(handle)) == (b'{"value":42}', 1)
    kernel.delete(handle)
    for use in (kernel.read, kernel.delete, kernel.version):
        with pytest.raises(NotFoundError, match="E335"):
            use(handle)
    assert kernel.alloc("counter", b"1") == "0x2"


def test_objects_in_a_batch(kernel: AuthorityKernel) -> None:
    """A hundred are made, read and deleted; bytes that are not JSON come back as they went in."""
    handles = [kernel.alloc(f"item_{i}", json.dumps({"id": i}).encode()) for i in range(100)]
    assert [json.loads(kernel.read(handle))["id"] for handle in handles] == list(range(100))
    raw = kernel.alloc("raw", b"\x00not JSON\xff")
    assert kernel.read(raw) == b"\x00not JSON\xff"
    assert kernel.list("item_7") == ["0x8"]
    for handle in handles:
        kernel.delete(handle)
    assert kernel.list() == [raw]
    with pytest.raises(BufferOverflowError, match="E338"):
        kernel.alloc("big", b'"' + b"x" * 70_000 + b'"')


def test_a_budget_is_only_lowered_and_ends_in_a_denial(kernel: AuthorityKernel) -> None:
    """Memory, objects and compute are counted; what would be over a budget is not done, and is an entry."""
    kernel.set_budget("heap_objects", 2)
    kernel.set_budget("memory", 10_000)
    for kind, limit in (("heap_objects", 3), ("heap_objects", -1), ("heap_objects", True), ("gold", 1)):
        with pytest.raises(InvalidArgumentError, match="E337"):
            kernel.set_budget(kind, limit)
    for _ in range(2):
        kernel.alloc("obj", b"data")
    why = "E332 budget heap_objects: 2 of 2 objects used this run, and this call may need 1"
    with pytest.raises(BudgetExceededError, match=why):
        kernel.alloc("obj", b"data")
    assert len(kernel.list()) == 2
    last = json.loads(kernel.audit_logs()[-2])
    assert (last["e"], last["op"], last["on"], last["d"], last["code"]) == (
        "heap", "alloc", "obj", "deny", "E332",
    )  # fmt: skip
    kernel.set_budget("compute", 0)
    with pytest.raises(BudgetExceededError, match="us of CPU"):
        kernel.list()


def test_the_audit_is_read_queried_and_verified(kernel: AuthorityKernel) -> None:
    """By event, actor, decision and time; a byte that was changed is found, and its entry named."""
    handle = kernel.alloc("a", b"1")
    kernel.read(handle)
    assert not kernel.authorize("tool", "sub")
    kernel.audit_log("approved", {"case": 7})
    entries = [json.loads(entry) for entry in kernel.audit_logs()]
    assert [entry["n"] for entry in entries] == [1, 2, 3, 4]
    assert [(entry["e"], entry["op"], entry["d"]) for entry in entries] == [
        ("heap", "alloc", "allow"), ("heap", "read", "allow"),
        ("authorize", "execute", "deny"), ("user", "note", "allow"),
    ]  # fmt: skip
    assert entries[3]["data"] == {"case": 7}
    actor, moment_s = entries[0]["actor"], entries[1]["t"] / 1e6

    def asked(**query: Any) -> list[int]:
        return [json.loads(entry)["n"] for entry in kernel.audit_query(json.dumps(query).encode())]

    assert asked(event="heap") == asked(event="heap", actor=actor) == [1, 2]
    assert asked(event="approved") == [4]
    assert asked(event_type="alloc") == asked(event="heap.alloc") == [1]
    assert asked(actor="by:nobody") == asked(until=1) == asked(since="2999-01-01T00:00:00Z") == []
    assert asked(decision="deny") == [3]
    assert asked(since=moment_s, limit=2) == [3, 4]
    for wrong in ({"evnet": 1}, {"since": "soon"}, [1]):
        with pytest.raises(InvalidArgumentError, match="E337"):
            kernel.audit_query(json.dumps(wrong).encode())
    with pytest.raises(BufferOverflowError, match="E338"):
        kernel.audit_log("big", "x" * 5000)
    assert kernel.audit_verify() is True
    records = kernel._store.records  # type: ignore[attr-defined]
    records[1] = AuditRecord("kernel.0", records[1].before, (records[1].lines[0].replace(b"read", b"reed"),))
    with pytest.raises(AuthorityKernelError, match=r"chain kernel\.0 breaks at entry 3"):
        kernel.audit_verify()


async def test_a_policy_allows_what_a_denial_says(tmp_path: Path) -> None:
    """Its lines, pasted and loaded, let exactly that request leave; a line that has ended is no denial."""
    policy = tmp_path / "policy.toml"
    policy.write_text("")

    def use(url: str) -> None:
        with AuthorityKernel(policy=policy) as kernel:
            details = kernel.authorize_details("http.post", f"{url}/v1/pay")
            assert (details["authorized"], kernel.authorize("read", "/etc/config.json")) == (False, False)
            with pytest.raises(OperationDeniedError) as caught:
                kernel.http_post(f"{url}/v1/pay", b"x")
            assert caught.value.remedy == details["remedy"]
            policy.write_text(details["remedy"].partition("add:\n")[2])
            kernel.load_policy(policy)
            assert kernel.authorize("http.post", f"{url}/v1/pay")
            assert kernel.http_post(f"{url}/v1/pay", b"hello").endswith(b"hello")
            for denied in (lambda: kernel.http_get(f"{url}/v1/pay"), lambda: kernel.alloc("a", b"1")):
                with pytest.raises(OperationDeniedError):
                    denied()
            policy.write_text(line("heap", "a", "alloc", more="expires_at = 2020-01-01T00:00:00Z"))
            kernel.load_policy(policy)
            with pytest.raises(CapabilityError, match="E331") as ended:
                kernel.alloc("a", b"1")
            assert not isinstance(ended.value, OperationDeniedError)
            policy.write_text("[[capabilty]]\n")
            with pytest.raises(InvalidArgumentError, match="E111"):
                kernel.load_policy(policy)
            decisions = [json.loads(entry)["d"] for entry in kernel.audit_query({"event": "http"})]
            assert decisions == ["deny", "allow", "deny"]

    async with serving() as web:
        await asyncio.to_thread(use, web.url)
    assert [(asked.method, asked.target, asked.body) for asked in web.asked] == [
        ("POST", "/v1/pay", b"hello")
    ]


# A kernel on an app


ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: total.py
  key: subject.2
  output: out
  heap: {total: total.json}
"""
TOTAL = """
class Runnable:
    def process(self, queries):
        for query in queries:
            for handle in self.heap.list("total"):
                yield self.heap.read(handle)
            if query.get("alloc"):
                self.heap.alloc("total", {"sum": query["alloc"]})
"""


async def test_a_kernel_works_on_the_context_of_a_route(
    processor: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Runnable and the script see each other's objects, under one policy and one schema."""
    (tmp_path / "total.json").write_text('{"properties": {"sum": {"type": "integer"}}}')
    (tmp_path / "policy.toml").write_text(line("heap", "total", "alloc", "read", "write"))
    async with processor(ROUTE, "policy: policy.toml", total=TOTAL) as running:
        monkeypatch.setenv("NATS_URL", running.broker.address)
        await running.publish("in.a", {"alloc": 5})

        def use() -> str:
            with AuthorityKernel(config=running.path, route="r", key="a") as kernel:
                assert json.loads(kernel.read("0x1")) == {"sum": 5}
                patch = [{"op": "replace", "path": "/sum", "value": 6}]
                assert kernel.write("0x1", json.dumps(patch).encode(), expected_version=0) == 1
                for denied in (lambda: kernel.alloc("other", b"1"), lambda: kernel.delete("0x1")):
                    with pytest.raises(OperationDeniedError, match="E330"):
                        denied()
                with pytest.raises(InvalidArgumentError, match="does not fit its schema"):
                    kernel.alloc("total", b'{"sum": "x"}')
                assert kernel.authorize("alloc", "total")
                assert not kernel.authorize("http.get", "https://a.example/")
                assert kernel.audit_log("approved", {"case": 7})
                assert kernel.audit_verify()
                [mine] = kernel.audit_query({"event": "approved"})
                assert (json.loads(mine)["chain"], json.loads(mine)["data"]) == ("=ctl.0", {"case": 7})
                return kernel.alloc("total", b'{"sum": 1}')

        assert await asyncio.to_thread(until_read, use) == "0x2"
        await running.publish("in.a", {})
        assert await running.documents("out", 2) == [{"sum": 6}, {"sum": 1}]
        contexts = await running.contexts("r")
        assert contexts["a"]["=heap"] == 3


def until_read(use: Any) -> Any:
    """What `use` gives, as soon as the message that was published before is committed."""
    for _ in range(600):
        try:
            return use()
        except NotFoundError:
            continue
    raise AssertionError("the object never came")


async def test_a_kernel_that_reaches_no_app_says_where_and_what_to_do(
    processor: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: int, nats_server: Any
) -> None:
    """The address of the server, or the app that has not run there; so does one without a configuration."""
    config = tmp_path / "app.yaml"
    config.write_text(CONFIG)
    monkeypatch.setenv("NATS_URL", f"nats://127.0.0.1:{free_port}")
    with pytest.raises(
        AuthorityKernelError, match=f"Kernel connection failed: .*127.0.0.1:{free_port}.*E404"
    ):
        await asyncio.to_thread(AuthorityKernel, config=config, route="r")
    monkeypatch.setenv("NATS_URL", nats_server.url)
    why = (
        "Kernel connection failed: there is no stream P_a at .*, for the app a has not run there. Start it: "
    )
    with pytest.raises(AuthorityKernelError, match=rf"{why}processor run {config}"):
        await asyncio.to_thread(AuthorityKernel, config=config)
    with pytest.raises(InvalidArgumentError, match="there is no route 'x'"):
        AuthorityKernel(config=config, route="x")
    with pytest.raises(InvalidArgumentError, match="a route is one of a configuration"):
        AuthorityKernel(route="x")
    with pytest.raises(AuthorityKernelError, match=r"Kernel connection failed: .*E101"):
        AuthorityKernel(config=tmp_path / "no.yaml")
