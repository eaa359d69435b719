"""`processor scriptlet`: one step from its file, with one JSON object on standard output whatever happens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from processor.cli import main
from processor.recipes.context import read
from processor.recipes.tree import write_tree
from tests.integration.test_recipe_tree import LOG_LINE, STEPS, block

SOURCE = """\
from lib.words import WORD
from orchestrator.scriptlets.python.core.base import BaseScriptlet
class Base(BaseScriptlet):
    pass
class Counts(Base):
    def run(self, ctx, params):
        print("a line")
        ctx.set("n", ctx.get("n", 0) + params.get("by", 1))
        whos = [entry["who"] for entry in ctx.get_history("n")]
        return {"status": params.get("status", "ok"), "n": ctx.get("n"), "whos": whos, "word": WORD}
class Loops(Base):
    def run(self, ctx, params):
        while True:
            pass
def flat(params):
    return 0
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of `recipe init` with the step of section 8 of the guide, and a file with several steps."""
    write_tree(tmp_path)
    (tmp_path / STEPS / "compute_message_length.py").write_text(block(8, "python"))
    (tmp_path / "several.py").write_text(SOURCE)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/words.py").write_text("WORD = 'é'\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Ran:
    """What the verb printed, and its exit code."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        self.code = main(["scriptlet", *arguments])
        said = capsys.readouterr()
        [line] = said.out.splitlines()
        self.returned: Any = json.loads(line)
        self.log = said.err


def test_a_step_of_the_guide_gives_its_result_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As run with Python itself: its result on standard output, and its log in the same form beside it."""
    done = Ran(capsys, f"{STEPS}/compute_message_length.py", "--params", '{"message": "Hello"}')
    assert (done.code, done.returned) == (
        0,
        {"status": "ok", "key": "metrics.message_length_v1", "length": 5},
    )
    [line] = done.log.splitlines()
    found = LOG_LINE.fullmatch(line)
    assert found
    assert found[1] == "orchestrator.scriptlets.python.core.resource"
    done = Ran(capsys, f"{STEPS}/compute_message_length.py", "--params", '{"message": 5}')
    assert (done.code, done.returned) == (1, {"status": "error", "reason": "message must be string"})
    assert "E716 step compute_message_length: message must be string" in done.log
    assert f'File "{STEPS}/compute_message_length.py", line 25, in validate' in done.log


def test_the_context_is_kept_where_the_step_ends_well(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each run goes on from the file, with the history; one that fails leaves it as it was."""
    step = ["several.py", "Counts", "--context", "c.json", "--params"]
    for n, by in enumerate((1, 2)):
        done = Ran(capsys, *step, json.dumps({"by": by}))
        assert (done.returned["n"], done.returned["whos"]) == (2 * n + 1, ["several"] * (n + 1))
    before = (folder / "c.json").read_bytes()
    done = Ran(capsys, *step, '{"status": "error"}')
    assert (done.code, done.returned["n"]) == (1, 4)
    assert (folder / "c.json").read_bytes() == before
    assert [entry["new"] for entry in read(folder / "c.json").context.get_history("n")] == [1, 3]


def test_what_a_step_prints_goes_to_standard_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the module that printed it; the result may have any text."""
    done = Ran(capsys, "several.py", "Counts")
    assert done.returned["word"] == "é"
    assert re.fullmatch(r"\S+ \| INFO \| several \| a line\n", done.log)
    assert Ran(capsys, "several.py", "flat").returned == {"status": "ok"}


def test_a_step_in_plain_python_may_import_what_that_has(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The restricted language refuses a module that it does not have; `--language python` runs the file."""
    source = "import sysconfig\ndef run(params):\n    return {'status': 'ok', 'n': len(params)}\n"
    (folder / "plain.py").write_text(source)
    done = Ran(capsys, "plain.py")
    assert done.code == 2
    assert "plain.py:1:1 E203 'import sysconfig' is not allowed." in done.returned["reason"]
    done = Ran(capsys, "plain.py", "--language", "python")
    assert (done.code, done.returned) == (0, {"status": "ok", "n": 0})
    assert main(["scriptlet", "plain.py", "--package", "numpy"]) == 2


@pytest.mark.parametrize(
    "arguments, code, reason",
    [
        (["several.py"], 2, r"which step is meant\? it has Counts, Loops; say which\."),
        (["several.py", "Count"], 2, r"no class Count, which step several names; did you mean 'Counts'\?"),
        (["none.py"], 2, "none.py:1:1 E713 the file cannot be read: No such file or directory"),
        (["test.sh"], 2, "test.sh cannot be imported"),
        (["several.py", "Loops", "--timeout", "0.3"], 1, r"0\.3 s of (CPU|wall) time|limit 0\.3 s"),
        (["several.py", "Counts", "--context", "pytest.ini"], 2, "E719 it is no context"),
    ],
)
def test_what_cannot_be_done_is_said_in_the_same_form(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, reason: str
) -> None:
    """A fault of the file, of an option, or of time: one JSON object with the reason, and an exit code."""
    done = Ran(capsys, *arguments)
    assert done.returned["status"] == "error"
    assert re.search(reason, done.returned["reason"])
    assert (done.code, set(done.returned)) == (code, {"status", "reason"})


@pytest.mark.parametrize("params", ["{", "[1]", "@none.json"])
def test_parameters_that_are_no_object_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], params: str
) -> None:
    """They are an option, which is refused with its name before anything runs."""
    assert main(["scriptlet", "several.py", "Counts", "--params", params]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "--params" in said.err or "none.json E107" in said.err
