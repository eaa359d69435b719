"""`processor.runnable` outside of a guest: what type checkers read, and what unit tests of user code use."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from processor import runnable
from processor.runnable import BaseSecureRunnable, Headers, Message
from processor.sandbox import capabilities, dialect

ROOT = Path(__file__).parents[2]
USER = """
from typing import Any

from processor.runnable import BaseSecureRunnable, Message, Reject, Retry


class Runnable(BaseSecureRunnable):
    def process(self, queries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        outputs = []
        for query, message in zip(queries, self.messages):
            if message.attempt > 3:
                raise Reject(f"{message.subject} {message.headers.get('trace', '')}")
            if not query:
                raise Retry(after_s=message.time.timestamp())
            self.emit("orders.late", query, delay_s=5)
            outputs.append({**query, "key": self.key, "all": message.headers.get_list("trace")})
        self.context["seen"] = len(outputs)
        return outputs
"""
# Each of these in place of what is right, and what mypy is to say of it.
SLIPS = {
    ("self.emit(", "self.emitt("): '"Runnable" has no attribute "emitt"',
    ("self.messages)", "self.mesages)"): '"Runnable" has no attribute "mesages"',
    ("message.attempt", "message.atempt"): '"Message" has no attribute "atempt"',
    ("after_s=message", "after=message"): 'Unexpected keyword argument "after" for "Retry"',
    ("message.subject", "message.subject.name"): '"str" has no attribute "name"',
    ('self.context["seen"] =', "self.messages[0].key ="): 'Property "key" defined in "Message" is read-only',
}


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # mypy does not follow an editable installation; an ordinary one it finds by py.typed.
    env = {**os.environ, "MYPYPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=env, capture_output=True, text=True, timeout=110
    )


def test_a_type_checker_finds_what_is_misspelt(tmp_path: Path) -> None:
    """mypy --strict passes a right Runnable, and names each misspelt method, attribute and argument."""
    sources = {"right.py": USER}
    sources |= {f"wrong_{n}.py": USER.replace(*slip) for n, slip in enumerate(SLIPS)}
    for name, source in sources.items():
        (tmp_path / name).write_text(source)
    done = run("mypy", "--strict", "--no-incremental", *sources, folder=tmp_path)
    said = done.stdout.splitlines()
    assert [line for line in said if line.startswith("right.py")] == []
    for number, expected in enumerate(SLIPS.values()):
        assert any(line.startswith(f"wrong_{number}.py") and expected in line for line in said), done.stdout


def test_the_stub_says_what_is_there(tmp_path: Path) -> None:
    """Every name, parameter and default in runnable.pyi is that of the classes, and none is missing."""
    done = run("mypy.stubtest", "processor.runnable", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "ours, guests",
    [
        (BaseSecureRunnable, capabilities.GuestRunnable),
        (runnable.Reject, dialect.Reject),
        (runnable.Retry, dialect.Retry),
    ],
)
def test_a_guest_has_the_same_names(ours: type, guests: type) -> None:
    """What user code may call outside of a guest is there inside with the same parameters, and all of it."""

    def surface(kind: type) -> dict[str, list[Any]]:
        bases = [base for base in reversed(kind.__mro__) if base.__module__.startswith("processor.")]
        held = {name: value for base in bases for name, value in vars(base).items()}
        names = {*held, *(name for base in bases for name in inspect.get_annotations(base))} - {"code"}
        methods = [name for name in names if callable(held.get(name))]
        found: dict[str, list[Any]] = {name: [] for name in names if not name.startswith("_")}
        for name in methods:
            parameters = inspect.signature(held[name]).parameters.values()
            found[name] = [(each.name, each.default, each.kind) for each in parameters]
        return found

    assert surface(ours) == surface(guests)


class Counting(BaseSecureRunnable):
    def init(self) -> None:
        self.context = {"seen": 0}

    def process(self, queries: list[Any]) -> Any:
        self.context["seen"] += len(queries)
        self.emit("orders.late", queries)
        return [self.message.attempt, self.key, self.context["seen"], self.pivot_list_of_dicts(None)]


def test_a_unit_test_needs_no_guest() -> None:
    """A context, the messages that the test sets and the plain helpers work; what needs the host says so."""
    counting = Counting()
    counting.init()
    assert counting.messages == ()
    counting.messages = [Message(key="k", attempt=2)]
    assert counting.process([1, 2]) == [2, "k", 2, []]
    assert Counting().context == {}
    with pytest.raises(ValueError, match="no message is in hand"):
        Counting().message  # noqa: B018
    counting.messages = [Message(), Message()]
    with pytest.raises(ValueError, match="2 messages are in hand"):
        counting.message  # noqa: B018
    with pytest.raises(RuntimeError, match="replace it in a unit test"):
        counting.get_stock_data("IBM")


def test_headers_are_equal_by_what_was_sent() -> None:
    """Two of them are equal with the same pairs in the same order; a mapping, with the same last values."""
    headers = Headers([("a", "1"), ("b", "2"), ("a", "3")])
    assert headers == {"a": "3", "b": "2"}
    assert headers != Headers({"a": "3", "b": "2"})
    assert len({Headers({"a": "1"}), Headers([("a", "1")])}) == 1
    assert eval(repr(headers)) == headers
