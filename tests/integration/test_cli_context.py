"""`processor context` as people use it, on contexts that a route left behind."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from processor.cli import main
from processor.cli.terminal import EXIT_CONFIG, EXIT_FAILED, EXIT_OK
from processor.context.position import Move
from processor.context.store import ContextStore
from processor.embedded import EmbeddedServer
from processor.model import ContextChange
from processor.sandbox.values import TOMBSTONE, encode
from tests.properties.test_context import SOURCE, stream_of

KEPT = {"n": encode(1), "seen": encode({2, 1}), "notes": encode(["a", "b"]), "gone": TOMBSTONE}


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def documents(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Context = Callable[..., Said]


@pytest.fixture
def context(
    nats_server: EmbeddedServer,
    tmp_path: Path,
    run_async: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Context:
    """`context("get", ..., stdin=text)`: what it says of route r, whose keys ann and bob have contexts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NATS_URL", nats_server.url)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    limits = "{context_bytes: 300}"
    route = f"{{input: in.*, code: 'class Runnable: ...', key: subject.2, partitions: 2, limits: {limits}}}"
    Path("app.yaml").write_text(f"app: app\nroutes: {{r: {route}}}")

    async def prepare() -> None:
        async with stream_of("app", nats_server) as broker:
            store = ContextStore(broker, "app", "r", 2, "gone")
            await store.claim(SOURCE, 0)
            change = ContextChange(KEPT, True, 80)
            await store.commit([], {"ann": change, "bob": change}, {0: Move(1), 1: Move(1)})

    run_async(prepare())

    def say(action: str, *words: str, stdin: str = "") -> Said:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        code = main(["context", action, "app.yaml", "r", *words])
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return say


def test_what_is_kept_can_be_looked_at_and_changed(context: Context) -> None:
    """Values on the way in and out: JSON, the nearest that it has, and exactly with --typed."""
    assert context("get", "ann", "/notes/1").documents == ["b"]
    assert context("get", "ann", "seen").documents == [[1, 2]]
    assert context("get", "ann", "seen", "--typed").documents == [{"$set": [1, 2]}]
    assert context("set", "ann", "n", "-5", "--reason", "ticket 7").code == EXIT_OK
    assert context("set", "ann", "price", '{"$decimal": "1.50"}').code == EXIT_OK
    assert context("set", "ann", "big", "-", stdin=str(2**70)).code == EXIT_OK
    appended = context("append", "ann", "notes", '"c"')
    assert appended.documents[0]["changed"] == ["notes"]
    assert "changed notes; key 'ann' has" in appended.err
    assert context("pop", "ann", "notes").documents[0]["value"] == "c"
    assert context("pop", "ann", "notes", "--first", "--format", "human").out == '"a"\n'
    assert context("delete", "ann", "/notes/0").code == EXIT_OK
    [shown] = context("get", "ann").documents
    assert shown["context"] == {"n": -5, "seen": [1, 2], "notes": [], "price": "1.50", "big": 2**70}
    assert context("full", "--keys-only").out.split() == ["ann", "bob"]
    records = context("history", "ann").documents
    actions = ["set", "set", "set", "append", "pop", "pop", "delete"]
    assert [record["action"] for record in records] == actions
    assert (records[0]["reason"], records[0]["items"], "@" in records[0]["by"]) == (
        "ticket 7",
        {"n": -5},
        True,
    )
    assert "set by" in context("history", "ann", "--format", "human", "--limit", "7").out
    assert context("delete", "ann", "--yes").code == EXIT_OK
    assert context("full", "--keys-only").out.split() == ["bob"]
    assert context("history", "ann", "--limit", "1").documents[0]["deleted"] is True


def test_an_export_comes_back_as_it_was(context: Context, tmp_path: Path) -> None:
    """Types and deleted items included; over other content with --replace, and laid over it without."""
    exported = context("export").out
    assert exported.count("\n") == 2
    assert '"gone":{"$gone":1}' in exported
    assert (
        context("import", "-", "--dry-run", stdin=exported).err
        == "2 contexts: 0 would be changed, 2 are so already\n"
    )
    for key in ("ann", "bob"):
        context("set", key, "more", "1")
        context("delete", key, "seen")
    before = context("export").out
    assert "2 would be changed" in context("import", "-", "--dry-run", stdin=exported).err
    assert context("export").out == before
    assert (
        context("import", "-", "--yes", stdin=exported).err
        == "2 contexts: 2 were changed, 0 are so already\n"
    )
    assert all(line["context"]["more"] == 1 for line in map(json.loads, context("export").out.splitlines()))
    (tmp_path / "all.jsonl").write_text(exported)
    assert context("import", "all.jsonl", "--yes", "--replace").code == EXIT_OK
    assert context("export").out == exported
    assert context("export", "bob").out == exported.splitlines(keepends=True)[1]
    assert context("import", "all.jsonl").code == EXIT_CONFIG  # nobody can be asked


def test_a_file_with_a_fault_changes_nothing(context: Context) -> None:
    """Every line that cannot be kept is named, with what is wrong with it."""
    lines = [
        '{"key": "ann", "context": {"n": 2}}',
        "nonsense",
        '{"key": "eve", "context": {"n": 1e999}}',
        '{"key": "eve", "context": {"n": {"$what": 1}}}',
        '{"key": 5, "context": {}}',
        '{"key": "eve"}',
        json.dumps({"key": "eve", "context": {"n": "x" * 400}}),
    ]
    said = context("import", "-", "--yes", stdin="\n".join(lines))
    assert (said.code, said.out) == (EXIT_FAILED, "")
    *faults, summary = said.err.splitlines()
    assert [fault.split()[:2] for fault in faults] == [
        ["stdin:2:1", "E104"], ["stdin:3:1", "E104"], ["stdin:4:1", "E309"], ["stdin:5:1", "E104"],
        ["stdin:6:1", "E104"], ["stdin:7:1", "E310"],
    ]  # fmt: skip
    assert summary == "nothing was imported"
    assert context("get", "ann", "n").documents == [1]
    # What a line makes of a context that is there is known only then.
    late = ['{"key": "ann", "context": {"n": 2}}', json.dumps({"key": "bob", "context": {"n": "x" * 260}})]
    said = context("import", "-", "--yes", stdin="\n".join(late))
    assert said.code == EXIT_FAILED
    assert "stdin:2:1 E310 the context of key 'bob' would hold" in said.err
    assert "1 of 2 contexts were imported before it" in said.err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("get", "eve"), EXIT_FAILED, "E328 route r has kept nothing for key 'eve'"),
        (("get", "ann", "/notes/9"), EXIT_FAILED, "the length of the list is 2"),
        (("set", "ann", "n"), EXIT_CONFIG, "context set CONFIG ROUTE KEY PATH VALUE"),
        (("set", "ann", "n", "text"), EXIT_CONFIG, "needs its quotes"),
        (("set", "ann", "n", "5", "--yess"), EXIT_CONFIG, "there is no option --yess"),
        (("change", "ann"), EXIT_CONFIG, "is not an action"),
        (("delete", "ann"), EXIT_CONFIG, "say --yes"),
        (("history", "eve"), EXIT_FAILED, "there is no record of key 'eve'"),
        (("import", "none.jsonl"), EXIT_CONFIG, "none.jsonl E107"),
    ],
)
def test_what_cannot_be_done_is_said(words: tuple[str, ...], code: int, says: str, context: Context) -> None:
    """With the exit code of what is wrong: the command line, or what is kept."""
    said = context(*words)
    assert says in " ".join(said.err.replace("│", "").split())
    assert said.code == code
