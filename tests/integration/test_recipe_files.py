"""`processor recipe check`, `show` and `steps`: what is said of files, and with which exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from processor.cli import main

RECIPE = """\
steps:
  - {name: load, type: python, module: steps.load, class: Load, retry: 2}
  - {name: count, type: shell, cmd: wc -l data.csv, timeout_s: 3, success: {ctx_has_keys: [n]}}
  - {name: report, type: python, script: steps/report.py, depends_on: [load, count]}
"""
LOAD = '''\
"""
NAME: load.py
DESCRIPTION: Loads rows.
"""
from orchestrator.scriptlets.python.core.base import BaseScriptlet
class Load(BaseScriptlet):
    def run(self, ctx, params): return {"status": "ok"}
class LoadMore(Load):
    """Loads more rows.

    And more.
    """
class Other: pass
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps/load.py").write_text(LOAD)
    (tmp_path / "steps/report.py").write_text("def run(ctx, params): return 0\n")
    (tmp_path / "nightly.yaml").write_text(RECIPE)
    return tmp_path


def test_show_lists_the_steps_in_their_order(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With what each runs, what it waits for, and what else is said of it."""
    assert main(["recipe", "show", "nightly.yaml", "--format", "text"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "idx  step    type    runs              after        notes",
        "1    load    python  steps.load:Load   -            3 tries",
        "2    count   shell   wc -l data.csv    -            3 s a try, leaves n",
        "3    report  python  steps.report:run  load, count",
    ]
    assert main(["recipe", "show", "nightly.yaml", "--format", "json"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {
        "idx": 3, "name": "report", "type": "python", "runs": "steps.report:run",
        "depends_on": ["load", "count"],
    }  # fmt: skip


def test_show_draws_the_steps(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The node that a graph needs before several steps is not among them."""
    assert main(["recipe", "show", "nightly.yaml", "--format", "mermaid"]) == 0
    assert capsys.readouterr().out == (
        "flowchart TD\n"
        '    n0["load<br/>steps.load:Load"]\n'
        '    n1["count<br/>wc -l data.csv"]\n'
        '    n2["report<br/>steps.report:run"]\n'
        "    n0 --> n2\n"
        "    n1 --> n2\n"
    )
    assert main(["recipe", "show", "nightly.yaml", "--format", "svg"]) == 0
    image = capsys.readouterr().out
    assert image.startswith("<svg ")
    assert "recipe nightly" in image
    assert "_root" not in image


def test_check_says_all_that_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recipe with faults ends with exit code 2, and one without with 0."""
    assert main(["recipe", "check", "nightly.yaml"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "faults": [], "recipe": "nightly", "steps": ["load", "count", "report"],
    }  # fmt: skip
    (folder / "steps/report.py").unlink()
    (folder / "nightly.yaml").write_text(RECIPE.replace("timeout_s", "timeuot_s"))
    assert main(["recipe", "check", "nightly.yaml", "--format", "text"]) == 2
    assert capsys.readouterr().err.splitlines()[:-1] == [
        "nightly.yaml:3:53 E713 steps[1].timeuot_s is no key; did you mean 'timeout_s'?"
    ]


def test_steps_lists_what_lies_in_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Classes that derive from BaseScriptlet, and scripts; what is not Python is warned of."""
    (folder / "steps/bad.py").write_text("def")
    (folder / "steps/count.sh").write_text("#!/bin/sh\n# DESC: Count lines.\n")
    (folder / "steps/count.sh").chmod(0o755)
    (folder / "steps/notes.sh").write_text("not to be executed")
    (folder / ".venv/lib").mkdir(parents=True)
    (folder / ".venv/lib/other.py").write_text(LOAD)
    assert main(["recipe", "steps", str(folder)]) == 0
    said = capsys.readouterr()
    python = {"type": "python", "file": "steps/load.py", "module": "steps.load"}
    assert [json.loads(line) for line in said.out.splitlines()] == [
        {"type": "shell", "file": "steps/count.sh", "description": "Count lines."},
        {**python, "class_name": "Load", "description": "Loads rows."},
        {**python, "class_name": "LoadMore", "description": "Loads more rows."},
    ]
    assert said.err == f"warning: {folder}/steps/bad.py:1 E201 is not Python: invalid syntax\n".replace(
        ":1 E", ":1:1 E"
    )
    assert main(["recipe", "steps", "nightly.yaml"]) == 2
