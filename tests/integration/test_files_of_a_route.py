"""`self.files`: what a Runnable reads and writes under the directories of its route."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from processor.config import load
from processor.errors import Faults
from processor.library import SecureRunnableBuilder
from tests.running import Running, Start

FILING = """
class Runnable:
    def process(self, queries):
        for query in queries:
            try:
                made = getattr(self.files, query["do"])(*query["with"])
                yield {"made": made.decode() if isinstance(made, bytes) else made}
            except AuthorityKernelError as err:
                if query.get("raise"):
                    raise
                yield {"code": err.code, "kind": type(err).__name__, "said": str(err)}
"""
PLAIN = FILING.replace("except AuthorityKernelError", "except self_errors.AuthorityKernelError").replace(
    "class Runnable:",
    "import processor.runnable as self_errors\n\n\nclass Runnable(self_errors.BaseSecureRunnable):",
)
ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: filing.py
  output: out
  files: [data, lists]
  retry: {attempts: 1}
"""


def top(tmp_path: Path) -> str:
    for name in ("data", "lists"):
        (tmp_path / name).mkdir()
    (tmp_path / "lists" / "known.txt").write_text("a\nb\n")
    return "files:\n  data: {path: data, write: true, max_bytes: 10}\n  lists: lists"


async def made(running: Running, *queries: dict[str, Any]) -> list[dict[str, Any]]:
    """What the route makes of these."""
    before = len(await running.stored("out"))
    await running.publish("in.a", *queries)
    found: list[dict[str, Any]] = await running.documents("out", before + len(queries))
    return found[before:]


def do(name: str, *args: Any) -> dict[str, Any]:
    return {"do": name, "with": args}


async def test_a_runnable_uses_the_files_of_its_route(processor: Start, tmp_path: Path) -> None:
    """It reads and writes as the configuration says, and each refusal has its class and its code."""
    async with processor(ROUTE, top(tmp_path), filing=FILING) as running:
        assert await made(
            running,
            do("text", "lists:/known.txt"),
            do("write", "data:/a.csv", "1,2"),
            do("read", "data:/a.csv"),
            do("list", "data:/"),
            do("delete", "data:/a.csv"),
            do("list", "data:/"),
        ) == [
            {"made": "a\nb\n"}, {"made": None}, {"made": "1,2"},
            {"made": ["a.csv"]}, {"made": None}, {"made": []},
        ]  # fmt: skip
        refused = await made(
            running,
            do("read", "data:/a.csv"),
            do("write", "lists:/known.txt", "mine"),
            do("read", "other:/x"),
            do("read", "data:/../lists/known.txt"),
            do("write", "data:/a.csv", "x" * 11),
        )
        assert [(each["code"], each["kind"]) for each in refused] == [
            ("E335", "NotFoundError"),
            ("E330", "OperationDeniedError"),
            ("E330", "OperationDeniedError"),
            ("E337", "InvalidArgumentError"),
            ("E338", "BufferOverflowError"),
        ]
        assert "Set files.lists.write: true" in refused[1]["said"]
        await running.publish("in.a", {**do("read", "data:/gone"), "raise": True})
        [letter] = await running.dead_letters("r")
    assert letter.headers["x-error-code"] == "E335"
    assert (tmp_path / "lists" / "known.txt").read_text() == "a\nb\n"


async def test_a_policy_decides_about_each_path(processor: Start, tmp_path: Path) -> None:
    """A line for one path allows that path, in each of its spellings, and no other."""
    (tmp_path / "policy.toml").write_text(
        '[[capability]]\nname = "file"\nresource = "data:/in/**"\nmethods = ["read", "write"]\n'
        '[[capability]]\neffect = "deny"\nname = "file"\nresource = "data:/in/secret/**"\nmethods = ["*"]\n'
    )
    settings = top(tmp_path) + "\npolicy: policy.toml"
    for folder in ("in", "in/secret"):
        (tmp_path / "data" / folder).mkdir()
    async with processor(ROUTE, settings, filing=FILING) as running:
        allowed, spelled, denied, twice, listed = await made(
            running,
            do("write", "data:/in/a", "1"),
            do("read", "data://in//a"),
            do("write", "data:/in/secret/a", "1"),
            do("read", "data://in/secret//a"),
            do("list", "data:/in"),
        )
    assert (allowed, spelled) == ({"made": None}, {"made": "1"})
    assert denied["code"] == twice["code"] == listed["code"] == "E330"
    assert "is denied to route r by policy.toml:5" in twice["said"]
    assert 'resource = "data:/in"\nmethods = ["list"]\nroutes = ["r"]' in listed["said"]
    assert list((tmp_path / "data" / "in" / "secret").iterdir()) == []


async def test_plain_python_has_the_same_files(processor: Start, tmp_path: Path) -> None:
    """In the jail it has no other."""
    routes = ROUTE.replace("runnable: filing.py", "runnable: filing.py\n  language: python")
    async with processor(routes, top(tmp_path), filing=PLAIN) as running:
        written, read, refused = await made(
            running,
            do("write", "data:/a", "1"),
            do("read", "data:/a"),
            do("read", "data:/b"),
        )
    assert (written, read, refused["code"]) == ({"made": None}, {"made": "1"}, "E335")


def test_a_directory_that_is_not_there_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    """So is a name that stands for none."""
    (tmp_path / "filing.py").write_text(FILING)
    (tmp_path / "c.yaml").write_text(
        "app: a\nfiles:\n  data: {path: gone}\nroutes:\n  r:\n    input: in.*\n    output: out\n"
        "    runnable: filing.py\n    files: [dta]\n"
    )
    with pytest.raises(Faults) as caught:
        load(tmp_path / "c.yaml")
    said = [(fault.code, fault.line, fault.text) for fault in caught.value.faults]
    assert [(code, line) for code, line, _ in said] == [("E107", 3), ("E106", 9)]
    assert "'dta'" in said[1][2]
    assert "data" in said[1][2]


def test_without_directories_a_library_guest_has_no_files() -> None:
    """Every path is refused, with the key that would give it one."""
    with SecureRunnableBuilder().compile(FILING) as runnable:
        [refused] = runnable.process([do("read", "data:/a")])
    assert refused["code"] == "E330"
