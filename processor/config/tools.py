"""The keys of tools: programs that Runnables call by name, and what one call may take.

`keys` places the model in the configuration. A tool is of one of three kinds; a key that another kind has is
a fault, and not left out.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from processor.config.forms import File, Listed, Place, Settings, Text, sequence
from processor.config.outside import check_base_url
from processor.model import Program
from processor.reach import BoundSecret, FunctionTool, Tool, ToolServer, WasmTool
from processor.sandbox.toolwire import MODULE_BYTES
from processor.schema import Schema

Problem = tuple[Place, str, str]  # where below the tool, a code, and a sentence

KINDS = ("wasm", "python", "mcp")
CALL_TIMEOUT_MS = 1000.0  # where it is not set
SERVER_TIMEOUT_MS = 5000.0  # of an MCP server
_MEMORY_MB = {"wasm": 64, "python": 128}
# The keys that are of some kinds only.
_ONLY: Mapping[str, tuple[str, ...]] = {
    "fuel": ("wasm",),
    "memory_mb": ("wasm", "python"),
    "function": ("python",),
    "packages": ("python",),
    "input": ("wasm", "python"),
    "output": ("wasm", "python"),
    "description": ("wasm", "python"),
    "secret": ("mcp",),
    "names": ("mcp",),
}
_CALLING = """


class _CalledTool:
    def process(self, queries):
        return [[_called_tool(**queries[0])]]


_called_tool = {function}
"""


class ToolSettings(Settings):
    """A WebAssembly module, a Python function, or the tools of an MCP server. A plain path is a module."""

    short = "wasm"

    wasm: File | None = Field(
        default=None,
        description="A WebAssembly module (.wasm, or .wat): a WASI command that reads its arguments, a JSON"
        " object, from stdin and writes its result, a JSON value, to stdout. Needs the extra `tools`.",
        examples=["tools/add.wasm"],
    )
    python: File | None = Field(
        default=None,
        description="A Python file with the function, which is called with the arguments by name, in a guest"
        " of its own.",
        examples=["tools/pivot.py"],
    )
    function: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = Field(
        default=None,
        description="The function in `python`; without it the tool's own name.",
        examples=["pivot"],
    )
    packages: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")], ...],
        BeforeValidator(sequence),
    ] = Field(default=(), description="Packages that `python` may import, as those of a route.")
    mcp: Annotated[str, AfterValidator(check_base_url)] | None = Field(
        default=None,
        description="URL of an MCP server (streamable HTTP). Its tools are called `name/tool`.",
        examples=["https://tools.example.com/mcp"],
    )
    secret: Text | None = Field(
        default=None,
        description="Name of the secret that is sent to `mcp` as `Authorization: Bearer`; it must be bound to"
        " the host.",
        examples=["mcp_key"],
    )
    names: Listed[Text] = Field(
        default=("*",),
        description="Which tools of `mcp` there are, by patterns of their own names; * is any text.",
    )
    input: File | None = Field(
        default=None,
        description="JSON Schema (a file) that the arguments must fit (E337).",
        examples=["schemas/add.json"],
    )
    output: File | None = Field(
        default=None,
        description="JSON Schema (a file) that the result must fit (E333).",
        examples=["schemas/sum.json"],
    )
    description: str = Field(
        default="", max_length=500, description="What the tool does, for `self.tools.list()`."
    )
    timeout_ms: float | None = Field(
        default=None,
        ge=1,
        le=300_000,
        description="Milliseconds that one call may take (E333): 1000, and 5000 with `mcp`, where it is not"
        " set.",
        examples=[1000],
    )
    fuel: int = Field(
        default=100_000_000,
        ge=1000,
        le=1 << 53,
        description="Fuel of one call of `wasm`, which is about one for each instruction.",
    )
    memory_mb: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Memory of one call in MB: 64 with `wasm`, and 128 with `python`, where it is not set. C"
        " and Zig link a stack of 16 MB.",
        examples=[64],
    )

    @property
    def kind(self) -> str:
        """wasm, python or mcp; empty where it is none of them, or several."""
        found = [kind for kind in KINDS if getattr(self, kind) is not None]
        return found[0] if len(found) == 1 else ""

    @property
    def files(self) -> list[Path]:
        """The files that a change of is a change of the tool."""
        return [Path(file) for file in (self.wasm, self.python, self.input, self.output) if file]

    @property
    def timeout_s(self) -> float:
        """What one call may take."""
        return (self.timeout_ms or (SERVER_TIMEOUT_MS if self.kind == "mcp" else CALL_TIMEOUT_MS)) / 1000

    def contradictions(self, name: str) -> Iterator[Problem]:
        """What its keys say against each other."""
        found = [kind for kind in KINDS if getattr(self, kind) is not None]
        if not found:
            yield (), "E105", f"it has none of {', '.join(KINDS)}, which say what it is"
        if len(found) > 1:
            yield (found[1],), "E106", f"{' and '.join(found)} are both set; a tool is one of them"
        for key, kinds in _ONLY.items() if len(found) == 1 else ():
            if key in self.model_fields_set and found[0] not in kinds:
                yield (key,), "E106", f"{key} is for {' and '.join(kinds)}, and this is {found[0]}"
        if self.python is not None and self.function is None and not name.isidentifier():
            yield (), "E105", f"{name!r} is no name of a function; set `function`"
        if self.python is not None and (self.memory_mb or 128) < 16:
            yield ("memory_mb",), "E104", f"memory_mb is {self.memory_mb}; a Python function takes 16 or more"


def read_tool(name: str, settings: ToolSettings) -> tuple[WasmTool | FunctionTool | None, list[Problem]]:
    """The tool that these keys stand for, and why it cannot be read; None for one of a server."""
    problems: list[Problem] = []
    schemas: dict[str, Schema | None] = {"input": None, "output": None}
    for key in schemas:
        file = getattr(settings, key)
        if file and (text := _content(file, key, problems)) is not None:
            try:
                schemas[key] = Schema(text)
            except ValueError as err:
                problems.append(((key,), "E104", f"{file} is not a JSON Schema: {err}"))
    if settings.kind == "wasm" and settings.wasm:
        module = _content(settings.wasm, "wasm", problems)
        if module is None:
            return None, problems
        if len(module) > MODULE_BYTES:
            what = f"{settings.wasm} has {len(module):,} bytes, more than {MODULE_BYTES:,}"
            return None, [*problems, (("wasm",), "E506", what)]
        return WasmTool(name, module, **_common(settings, schemas), fuel=settings.fuel), problems
    if settings.kind == "python" and settings.python:
        text = _content(settings.python, "python", problems)
        program = None if text is None else _program(name, settings, text, problems)
        if program is None or text is None:
            return None, problems
        sha256 = hashlib.sha256(text).hexdigest()
        return FunctionTool(name, program, sha256, **_common(settings, schemas)), problems
    return None, problems


def _common(settings: ToolSettings, schemas: Mapping[str, Schema | None]) -> dict[str, Any]:
    """The fields that tools have, of which kind they ever are."""
    return {
        **schemas,
        "timeout_s": settings.timeout_s,
        "memory_mb": settings.memory_mb or _MEMORY_MB[settings.kind],
        "description": settings.description,
    }


def tool_server(name: str, settings: ToolSettings, secrets: Mapping[str, BoundSecret]) -> ToolServer:
    """The server that these keys, of kind mcp, stand for."""
    assert settings.mcp is not None
    secret = secrets[settings.secret] if settings.secret else None
    return ToolServer(name, settings.mcp, secret, settings.names, timeout_s=settings.timeout_s)


def granted(listed: Sequence[str], tools: Mapping[str, Tool]) -> Iterator[Tool]:
    """The tools that a route lists; of a server those whose names match one of its patterns."""
    for name in dict.fromkeys(used.partition("/")[0] for used in listed):
        tool = tools[name]
        if isinstance(tool, ToolServer):
            patterns = [used.partition("/")[2] for used in listed if used.startswith(f"{name}/")]
            tool = replace(tool, granted=tuple(patterns))
        yield tool


def _content(file: str, key: str, problems: list[Problem]) -> bytes | None:
    try:
        return Path(file).read_bytes()
    except OSError as err:
        problems.append(((key,), "E107", f"{file} cannot be read: {err.strerror}"))
        return None


def _program(name: str, settings: ToolSettings, text: bytes, problems: list[Problem]) -> Program | None:
    """A program whose Runnable calls the function."""
    file, function = settings.python or "", settings.function or name
    try:
        source = text.decode("utf-8-sig")
        tree = ast.parse(source, file)
    except UnicodeDecodeError:
        problems.append((("python",), "E107", f"{file} is not UTF-8 text"))
        return None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as err:
        line = f", line {err.lineno}" if isinstance(err, SyntaxError) else ""
        problems.append((("python",), "E201", f"{file}{line}: {getattr(err, 'msg', None) or err}"))
        return None
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    bound = {
        target.id
        for node in tree.body
        for target in (node.targets if isinstance(node, ast.Assign) else ())
        if isinstance(target, ast.Name)
    }
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    if function not in defined | bound | imported:
        known = ", ".join(sorted(defined)) or "none"
        what = f"{file} has no function {function}; the functions that it has: {known}"
        problems.append((("python",), "E506", what))
        return None
    return calling(source, function, file, settings.packages)


def calling(source: str, function: str, filename: str, packages: tuple[str, ...] = ()) -> Program:
    """A program in plain Python whose Runnable calls this function of the source, with what it is given."""
    called = source + _CALLING.format(function=function)
    return Program(called, filename, "python", packages, "batch", "_CalledTool")
