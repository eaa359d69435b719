"""The tools that are shipped as examples, and `processor tool`, which calls tools by hand."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from processor.cli import main
from tests.web import Asked, answer, serving

EXAMPLES = Path(__file__).parents[2] / "configs" / "examples" / "authority"
CONFIG = str(EXAMPLES / "authority.yaml")
TOOLS = EXAMPLES / "tools"
CALLS = {
    "add": ('{"a": 5, "b": 3}', '{"result":8}'),
    "concat": ('{"str1": "Hello, ", "str2": "W\\"ö!"}', '{"result":"Hello, W\\"ö!"}'),
    "echo": ('{"message": [1, {"two": null}]}', '{"result":[1,{"two":null}]}'),
}
HAS_ZIG = importlib.util.find_spec("ziglang") is not None
SHIM = Path("node_modules/@assemblyscript/wasi-shim/asconfig.json")


def tool(*words: str) -> int:
    return main(["tool", *words])


@pytest.mark.parametrize("name", CALLS)
def test_a_tool_that_is_shipped_does_what_its_source_says(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`tool run` prints its result, and its fuel on standard error."""
    given, result = CALLS[name]
    assert tool("run", CONFIG, name, given, "--format", "json") == 0
    out, err = capsys.readouterr()
    assert out.strip() == result
    assert " of 100,000,000" in err


def test_the_modules_that_are_shipped_are_those_that_are_listed() -> None:
    """SHA256SUMS has each of them."""
    listed = dict(reversed(line.split()) for line in (TOOLS / "SHA256SUMS").read_text().splitlines())
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in TOOLS.glob("*.wasm")}
    assert found == listed


@pytest.mark.parametrize(
    "name, compiler",
    [
        pytest.param("add", "cc", marks=pytest.mark.skipif(not HAS_ZIG, reason="pip install ziglang")),
        pytest.param("echo", "zig", marks=pytest.mark.skipif(not HAS_ZIG, reason="pip install ziglang")),
        pytest.param(
            "concat",
            "asc",
            marks=pytest.mark.skipif(
                not shutil.which("npx") or not SHIM.exists(),
                reason="npm install assemblyscript @assemblyscript/wasi-shim",
            ),
        ),
    ],
)
@pytest.mark.timeout(900)
def test_a_tool_that_is_built_again_does_the_same(
    name: str, compiler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the commands of the how-to, where the compiler is installed."""
    made = str(tmp_path / f"{name}.wasm")
    zig = [sys.executable, "-m", "ziglang"]
    commands = {
        "cc": [*zig, "cc", "-target", "wasm32-wasi", "-Os", "-s", str(TOOLS / "add.c"), "-o", made],
        "zig": [*zig, "build-exe", str(TOOLS / "echo.zig"), "-target", "wasm32-wasi", "-O", "ReleaseSmall",
                "-fstrip", f"-femit-bin={made}"],
        "asc": ["npx", "asc", str(TOOLS / "concat.ts"), "--config", str(SHIM), "-O3", "-o", made],
    }  # fmt: skip
    subprocess.run(commands[compiler], check=True)
    (tmp_path / "app.yaml").write_text(
        f"app: a\ntools: {{{name}: {made}}}\n"
        "routes: {r: {input: x, code: 'class Runnable: process = list'}}\n"
    )
    given, result = CALLS[name]
    assert tool("run", str(tmp_path / "app.yaml"), name, given, "--format", "json") == 0
    assert capsys.readouterr().out.strip() == result


def test_a_tool_that_fails_says_why_and_what_it_took(capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is 1; what is wrong with the command line is 2."""
    assert tool("run", CONFIG, "concat", '{"str1": "x"}') == 1
    err = capsys.readouterr().err
    assert "E333 tool concat: exit 2: there is no str2." in err
    assert tool("run", CONFIG, "add", '{"a": "x"}') == 1
    assert "E337 the arguments of the tool add do not fit its schema" in capsys.readouterr().err
    assert tool("run", CONFIG, "echo", json.dumps({"message": "x" * (1 << 20)})) == 1
    assert "its arguments have 1,048,590 bytes, more than 1,048,576" in capsys.readouterr().err
    assert tool("run", CONFIG, "sub") == 1
    assert "there is no tool 'sub'" in capsys.readouterr().err
    for words in ("run {} add [1]", "run {} add {{", "run {}", "ls {} add"):
        assert tool(*words.format(CONFIG).split()) == 2
        assert capsys.readouterr().err


def test_tools_are_listed_and_those_that_cannot_be_called_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ls` shows what each may take, and `check` names each that is unusable at its line."""
    (tmp_path / "bad.wat").write_text("(module)")
    (tmp_path / "f.py").write_text("import no_such_module\ndef f(): ...\n")
    (tmp_path / "app.yaml").write_text(
        f"""app: a
tools:
  good: {TOOLS / "add.wasm"}
  bad: bad.wat
  f: {{python: f.py, timeout_ms: 2500}}
  calc: {{mcp: 'http://127.0.0.1:1/mcp', names: [add]}}
routes:
  r: {{input: x, code: 'class Runnable: process = list', tools: [good, calc/*]}}
"""
    )
    config = str(tmp_path / "app.yaml")
    assert tool("ls", config, "--format", "human") == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert shown[0] == ["tool", "kind", "routes", "timeout", "sha256", "or", "url"]
    assert [(row[0], row[1], row[2]) for row in shown[1:]] == [
        ("good", "module", "r"), ("bad", "module", "none"),
        ("f", "function", "none"), ("calc", "server", "r"),
    ]  # fmt: skip
    assert tool("check", config, "--format", "human") == 1
    out, err = capsys.readouterr()
    assert out == "good: module can be called\n"
    lines = err.splitlines()
    assert "app.yaml:4:3 E506 tools.bad: the tool bad is unusable: it exports no function `_start`" in err
    assert "app.yaml:5:3 E506 tools.f: the tool f is unusable" in err
    assert "No module named 'no_such_module'" in err
    assert any("app.yaml:6:3 E333 tools.calc" in line for line in lines)


async def test_a_tool_of_a_server_is_called_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `server/tool`, after its list was asked for."""

    def say(asked: Asked) -> bytes:
        message = json.loads(asked.body)
        results = {
            "tools/list": {"tools": [{"name": "add"}]},
            "tools/call": {"content": [{"type": "text", "text": "8"}]},
        }
        body = {"jsonrpc": "2.0", "id": message["id"], "result": results[message["method"]]}
        return answer(json.dumps(body).encode(), content_type="application/json")

    async with serving(say) as web:
        (tmp_path / "app.yaml").write_text(
            f"app: a\ntools: {{calc: {{mcp: '{web.url}/mcp'}}}}\n"
            "routes: {r: {input: x, code: 'class Runnable: process = list'}}\n"
        )
        config = str(tmp_path / "app.yaml")
        assert await asyncio.to_thread(tool, "check", config, "--format", "human") == 0
        assert capsys.readouterr().out == f"calc: 1 tools of {web.url}/mcp\n"
        assert await asyncio.to_thread(tool, "run", config, "calc/add", '{"a": 1}', "--format", "json") == 0
        assert capsys.readouterr().out == '"8"\n'
