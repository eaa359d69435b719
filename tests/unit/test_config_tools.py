"""The keys of tools: what they come to, and what is said about the wrong ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from processor.config import Config, load
from processor.errors import Faults
from processor.reach import FunctionTool, ToolServer, WasmTool

BASE = """\
app: market
routes:
  stats:
    input: ticks.*
    code: "class Runnable: pass"
"""
WASM = b"(module)"


def read(folder: Path, text: str, env: Mapping[str, str] = {}) -> Config:
    (folder / "app.yaml").write_text(BASE + text)
    (folder / "add.wasm").write_bytes(WASM)
    (folder / "pivot.py").write_text("def pivot(**given):\n    return given\n")
    (folder / "bad.py").write_text("a = 1\ndef f(:\n")
    (folder / "number.json").write_text('{"type": "number"}')
    return load(folder / "app.yaml", env)


def faults(folder: Path, text: str, env: Mapping[str, str] = {}) -> list[str]:
    with pytest.raises(Faults) as found:
        read(folder, text, env)
    return [f"{f.line} {f.code} {f.text}" for f in found.value.faults]


def test_a_route_has_the_tools_that_it_lists(tmp_path: Path) -> None:
    """Each with its defaults, by kind; a plain path is a module, and patterns choose tools of a server."""
    text = """\
    tools: [add, pivot, calc/add*, calc/mul]
tools:
  add: add.wasm
  pivot: {python: pivot.py, packages: [json], memory_mb: 32, timeout_ms: 250, description: turns}
  calc: {mcp: 'https://tools.example.com/mcp/', secret: key, names: [add*, mul]}
  other: {wasm: add.wasm, fuel: 5000}
secrets: {key: {env: KEY, hosts: [tools.example.com]}}
"""
    add, pivot, calc = read(tmp_path, text, {"KEY": "12345678"}).routes["stats"].reach.tools
    assert isinstance(add, WasmTool)
    assert (add.name, add.module, add.sha256) == ("add", WASM, hashlib.sha256(WASM).hexdigest())
    assert (add.timeout_s, add.fuel, add.memory_mb) == (1.0, 100_000_000, 64)
    assert isinstance(pivot, FunctionTool)
    assert (pivot.timeout_s, pivot.memory_mb, pivot.description) == (0.25, 32, "turns")
    assert (pivot.program.language, pivot.program.packages) == ("python", ("json",))
    assert pivot.sha256 == hashlib.sha256((tmp_path / "pivot.py").read_bytes()).hexdigest()
    assert isinstance(calc, ToolServer)
    assert (calc.url, calc.timeout_s) == ("https://tools.example.com/mcp", 5.0)
    assert calc.secret is not None
    assert calc.secret.value == "12345678"
    granted = {name: calc.grants(name) for name in ("add", "add2", "mul", "mul2", "sub")}
    assert granted == {"add": True, "add2": True, "mul": True, "mul2": False, "sub": False}


def test_a_change_of_a_module_or_a_schema_changes_the_route(tmp_path: Path) -> None:
    """All files of tools are watched, and a route with another module is another route."""
    text = "    tools: add\ntools: {add: {wasm: add.wasm, input: number.json}}\n"
    before = read(tmp_path, text)
    assert {tmp_path / "add.wasm", tmp_path / "number.json"} <= set(before.files)
    assert load(tmp_path / "app.yaml").routes == before.routes
    (tmp_path / "add.wasm").write_bytes(b"(module (memory 1))")
    changed = load(tmp_path / "app.yaml")
    assert changed.routes != before.routes
    (tmp_path / "number.json").write_text('{"type": "string"}')
    assert load(tmp_path / "app.yaml").routes != changed.routes


WRONG = {
    "{}": "tools.add: it has none of wasm, python, mcp, which say what it is",
    "{wasm: add.wasm, mcp: 'http://x/'}": "tools.add.mcp: wasm and mcp are both set; a tool is one of them",
    "{wasm: add.wasm, function: f}": "tools.add.function: function is for python, and this is wasm",
    "{python: pivot.py, function: pivot, fuel: 5000}": "tools.add.fuel: fuel is for wasm, and this is python",
    "{mcp: 'http://x/', input: number.json}": "input is for wasm and python, and this is mcp",
    "{python: pivot.py}": "pivot.py has no function add; the functions that it has: pivot",
    "{wasm: none.wasm}": "none.wasm cannot be read: No such file or directory",
    "{wasm: add.wasm, output: pivot.py}": "pivot.py is not a JSON Schema: it is not JSON",
    "{python: number.json, function: add}": "number.json has no function add",
    "{python: bad.py}": "bad.py, line 2: invalid syntax",
    "{python: pivot.py, function: pivot, memory_mb: 8}": "memory_mb is 8; a Python function takes 16 or more",
    "{mcp: 'http://x/?a=1'}": "it must have no query",
    "{mcp: 'http://x/', secret: key}": "tools.add.secret is key, which is not bound to http://x",
    "{mcp: 'http://x/', secret: lock}": "tools.add.secret names 'lock', which is not a secret",
}


@pytest.mark.parametrize("keys", WRONG)
def test_a_key_that_cannot_be_meant_is_a_fault(tmp_path: Path, keys: str) -> None:
    """At its place, with what to write; a key of another kind is not left out in silence."""
    text = f"tools: {{add: {keys}}}\nsecrets: {{key: {{env: KEY, hosts: [other.example]}}}}\n"
    [fault] = faults(tmp_path, text, {"KEY": "12345678"})
    assert fault.startswith(("6 E1", "6 E506", "6 E201"))
    assert WRONG[keys] in fault


def test_a_route_can_list_only_tools_that_there_are(tmp_path: Path) -> None:
    """And those of a server by a pattern behind its name."""
    text = """\
    tools: [ad, calc, add/x]
tools: {add: add.wasm, calc: {mcp: 'http://x/'}}
"""
    assert faults(tmp_path, text) == [
        "6 E106 routes.stats.tools names 'ad', which is no tool of `tools`: add, calc",
        "6 E106 routes.stats.tools names 'add/x', which is no MCP server",
        "6 E106 routes.stats.tools names 'calc', which is a server: write calc/*",
    ]


def test_a_module_that_is_too_large_is_a_fault(tmp_path: Path) -> None:
    """It is not read into every process that starts."""
    (tmp_path / "big.wasm").write_bytes(b"\0" * ((8 << 20) + 1))
    [fault] = faults(tmp_path, "tools: {big: big.wasm}\n")
    assert "E506" in fault
    assert "has 8,388,609 bytes, more than 8,388,608" in fault
