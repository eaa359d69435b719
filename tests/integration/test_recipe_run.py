"""`processor recipe run`: real guests and cells, one context, and what is left when something goes wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from processor.cli import main
from tests.conftest import waited
from tests.terminal import at_a_terminal

ROOT = Path(__file__).parents[2]
HEAD = """\
from orchestrator.scriptlets.python.core.base import BaseScriptlet
from orchestrator.scriptlets.python.core.logging import get_logger
logger = get_logger(__name__)
"""
STEPS = """\
class Load(BaseScriptlet):
    def validate(self, ctx, params):
        assert isinstance(params["n"], int), "n must be an integer"
    def run(self, ctx, params):
        logger.info("loading %s", params["n"])
        ctx.set("rows.count_v1", params["n"], who="load")
        return {"status": "ok", "key": "rows.count_v1"}

def double(ctx, params):
    ctx.set("rows.double_v1", ctx.get("rows.count_v1") * 2, who="double")
    ctx.set("rows.times_v1", len(ctx.get_history("rows.count_v1")), who="double")
    return 0

def hang(params):
    while True:
        pass

def bad(ctx, params):
    ctx.set("rows.count_v1", -1)
    return {"status": "error", "reason": "no rows"}

def boom(ctx, params):
    return {}["key"]

def nan(ctx, params):
    ctx.set("rows.mean_v1", float("nan"))

def large(ctx, params):
    ctx.set("rows.text_v1", "x" * 30000)
    return {"status": "ok"}
"""


class Bench:
    """A folder with recipes and steps, and what the command says of them."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys
        self.errors: list[str] = []
        self.put("steps/one.py", HEAD + STEPS)

    def put(self, name: str, text: str, mode: int = 0o644) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def recipe(self, *steps: str) -> None:
        self.put("r.yaml", "steps:\n" + "\n".join(f"  - {{{step}}}" for step in steps))

    def script(self, name: str, text: str) -> None:
        self.put(f"steps/{name}.sh", "#!/bin/sh\n" + dedent(text), 0o755)

    def run(self, *options: str, code: int = 0) -> dict[str, Any]:
        """What the command says on standard output; `errors` are its lines on standard error."""
        found = main(["recipe", "run", "r.yaml", *options])
        said = self._capsys.readouterr()
        self.errors = said.err.splitlines()
        assert found == code, said.err
        document: dict[str, Any] = json.loads(said.out) if said.out else {}
        return document

    def states(self, document: dict[str, Any]) -> dict[str, str]:
        return {name: each["state"] for name, each in document["steps"].items()}

    def snapshots(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("Data/context_*.json"))]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    # A step of the cell is another user, who has to get here.
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder.stat().st_uid == os.getuid():
            folder.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, capsys)


LOAD = "name: load, type: python, module: steps.one, class: Load, params: {n: 4}"
DOUBLE = "name: double, type: python, module: steps.one, function: double"


def python(name: str, more: str = "") -> str:
    return f"name: {name}, type: python, module: steps.one, function: {name}{more}"


def shell(name: str, more: str = "") -> str:
    return f"name: {name}, type: shell, script: steps/{name}.sh{more}"


def test_steps_share_a_context_and_leave_a_snapshot(bench: Bench) -> None:
    """Each step sees what earlier ones set, who set it, and the file has it all with its history."""
    bench.script("count", 'echo "looking" >&2; echo "{\\"status\\":\\"ok\\",\\"n\\":$N}"')
    bench.recipe(LOAD, DOUBLE, shell("count", ", args: {N: 7}"))
    said = bench.run("--shell")
    lines = [re.sub(r"^[\d-]{10}T[\d:]{8}", "TIME", line) for line in bench.errors]
    assert lines == [
        "INFO | Running python step load ...",
        "TIME | INFO | steps.one | loading 4",
        "INFO | Step load output: {'status': 'ok', 'key': 'rows.count_v1'}",
        "INFO | Running python step double ...",
        "INFO | Step double output: {'status': 'ok'}",
        "INFO | Running shell step count ...",
        "TIME | INFO | count | looking",
        "INFO | Step count output: {'status': 'ok', 'n': 7}",
        "INFO | Pipeline complete",
    ]
    [snapshot] = bench.snapshots()
    assert snapshot["values"] == {"rows.count_v1": 4, "rows.double_v1": 8, "rows.times_v1": 1}
    [entry] = snapshot["history"]["rows.count_v1"]
    assert entry.pop("ts") > 1e9
    assert entry == {"who": "load", "old": None, "new": 4}
    assert said["state"] == snapshot["run"]["state"] == "SUCCESS"
    assert said["context"] == f"{bench.folder}/Data/context_{said['run']}.json"
    assert bench.states(said) == bench.states(snapshot["run"]) == dict.fromkeys(
        ("load", "double", "count"), "SUCCESS"
    )  # fmt: skip
    assert said["steps"]["count"]["returned"] == {"status": "ok", "n": 7}


def test_steps_that_wait_for_nothing_run_at_the_same_time(bench: Bench) -> None:
    """Two that wait for each other's file both end well, and so does what depends on both."""
    for own, other in (("left", "right"), ("right", "left")):
        bench.script(
            own,
            f"""\
            touch Data/{own}
            until [ -e Data/{other} ]; do :; done
            echo '{{"status": "ok"}}'
            """,
        )
    (bench.folder / "Data").mkdir(mode=0o777)
    (bench.folder / "Data").chmod(0o777)
    bench.recipe(
        shell("left", ", writes: Data, timeout_s: 60"),
        shell("right", ", writes: Data, timeout_s: 60"),
        f"{LOAD}, depends_on: [left, right], success: {{files_exist: [Data/left, Data/right]}}",
    )
    assert bench.states(bench.run("--shell")) == dict.fromkeys(("left", "right", "load"), "SUCCESS")


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (python("bad"), "E716 step bad: no rows"),
        (python("boom"), "E716 step boom: KeyError: 'key'"),
        (python("nan"), "E716 step nan: ValueError: Value for rows.mean_v1 not JSON-serializable: nan"),
        (python("hang", ", timeout_s: 0.5"), "E710 no result within 0.5 s (timeout_s of hang)"),
        ("name: load2, type: python, module: steps.one, class: Load, params: {n: x}",
         "E716 step load2: n must be an integer"),
        (shell("text"), "E716 step text: non-json stdout"),
        (shell("exits"), "E716 step exits: it ended with exit code 3: out of paper"),
        (shell("sleeps", ", timeout_s: 0.5"), "E710 no result within 0.5 s (timeout_s of sleeps)"),
        (f"{DOUBLE}, success: {{ctx_has_keys: [rows.triple_v1], files_exist: out.csv}}",
         "E714 step 'double' ended well, but the context has no 'rows.triple_v1' (success.ctx_has_keys), and"
         " there is no 'out.csv' (success.files_exist)"),
    ],
)  # fmt: skip
def test_a_step_that_fails_stops_the_run(bench: Bench, step: str, said: str) -> None:
    """The context is as it was after the last good step, what follows is not run, and the exit code is 1."""
    bench.script("text", "echo hello")
    bench.script("exits", "echo out of paper >&2; exit 3")
    bench.script("sleeps", "exec sleep 600")
    bench.recipe(LOAD, step, "name: after, type: python, module: steps.one, function: double")
    document = bench.run("--shell", code=1)
    assert f"ERROR | Pipeline stopped: {said}" in bench.errors
    name = re.search(r"name: (\w+)", step)
    assert name
    assert bench.states(document) == {"load": "SUCCESS", name[1]: "ERRORED"}
    [snapshot] = bench.snapshots()
    assert snapshot["values"] == {"rows.count_v1": 4}
    assert snapshot["run"]["state"] == "FAILED"
    assert snapshot["run"]["steps"][name[1]]["error"] == dict(
        zip(("code", "text"), said.split(" ", 1), strict=True)
    )


def test_a_traceback_names_the_users_lines(bench: Bench) -> None:
    """And none of ours."""
    bench.recipe(python("boom"))
    bench.run(code=1)
    at = next(number for number, line in enumerate(bench.errors) if "Traceback" in line)
    number = (HEAD + STEPS).splitlines().index('    return {}["key"]') + 1
    assert bench.errors[at + 1].strip() == f'File "steps/one.py", line {number}, in boom'
    assert not any("processor" in line for line in bench.errors[at:-2])


def test_a_step_is_tried_again(bench: Bench) -> None:
    """As often as its `retry` says, and each try is said."""
    bench.script(
        "flaky",
        """\
        echo x >> out/tries
        [ $(wc -l < out/tries) -ge 3 ] || exit 1
        echo '{"status": "ok"}'
        """,
    )
    (bench.folder / "out").mkdir()
    (bench.folder / "out").chmod(0o777)
    retry = "retry: {max_retries: 2, strategy: FIXED, backoff_factor: 1}"
    bench.recipe(shell("flaky", f", writes: out, {retry}"))
    document = bench.run("--shell")
    assert (document["state"], document["steps"]["flaky"]["tries"]) == ("SUCCESS", 3)
    assert bench.errors.count("INFO | Running shell step flaky ... (try 3)") == 1


def test_some_steps_only(bench: Bench) -> None:
    """--only, --skip and --params choose; --list-steps shows what would run, and runs nothing."""
    bench.recipe(LOAD, DOUBLE, python("bad"))
    assert bench.states(bench.run("--only", "load")) == {"load": "SUCCESS"}
    assert bench.states(bench.run("--skip", "bad,double")) == {"load": "SUCCESS"}
    bench.run("--skip", "bad", "--params", '{"load": {"n": 5}}')
    assert bench.snapshots()[-1]["values"]["rows.double_v1"] == 10
    count = len(bench.snapshots())
    assert bench.run("--list-steps", "--only", "double")["runs"] == "steps.one:double"
    assert len(bench.snapshots()) == count
    assert not any("Running" in line for line in bench.errors)


def test_a_run_goes_on_in_the_context_of_an_earlier_one(bench: Bench) -> None:
    """From the last, or a named one; what ran there counts as done, and is in the next snapshot, too."""
    bench.recipe(LOAD, f"{DOUBLE}, depends_on: load", f"{python('bad')}, depends_on: double")
    first = bench.run(code=1)
    bench.run("--params", '{"load": {"n": 100}}', code=1)
    bench.put("steps/one.py", (HEAD + STEPS).replace('"status": "error"', '"status": "ok"'))
    named = bench.run("--resume-from", "bad", "--run", first["run"])
    assert bench.states(named) == dict.fromkeys(("load", "double", "bad"), "SUCCESS")
    assert not any("load" in line for line in bench.errors)
    assert bench.snapshots()[-1]["values"] == {"rows.count_v1": -1, "rows.double_v1": 8, "rows.times_v1": 1}
    bench.run("--resume-from", "double", "--only", "double")
    assert bench.snapshots()[-1]["values"] == {"rows.count_v1": -1, "rows.double_v1": -2, "rows.times_v1": 2}


def test_show_says_how_far_a_run_came(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """With the state of each step, in lines and in pictures."""
    bench.recipe(LOAD, python("bad"), DOUBLE)
    id = bench.run(code=1)["run"]
    assert main(["recipe", "show", "r.yaml", "--run", id, "--format", "text"]) == 0
    assert [line.split()[-7:] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["1", "load", "python", "steps.one:Load", "-", "SUCCESS"],
        ["load", "ERRORED", "E716", "step", "bad:", "no", "rows"],
        ["3", "double", "python", "steps.one:double", "bad", "-"],
    ]
    assert main(["recipe", "show", "r.yaml", "--run", id, "--format", "svg"]) == 0
    image = capsys.readouterr().out
    assert "recipe r: FAILED" in image
    assert [image.count(word) for word in ("SUCCESS", "ERRORED")] == [1, 1]
    assert main(["recipe", "show", "r.yaml", "--run", "x"]) == 2


def test_a_context_in_a_file_of_ones_own(bench: Bench) -> None:
    """It is begun with, kept there, and may be written by hand."""
    bench.recipe(DOUBLE)
    bench.put("ctx.json", '{"rows.count_v1": 21}')
    bench.run("--context", "ctx.json")
    kept = json.loads((bench.folder / "ctx.json").read_text())
    assert kept["values"] == {"rows.count_v1": 21, "rows.double_v1": 42, "rows.times_v1": 0}
    assert bench.snapshots() == []
    bench.recipe(LOAD, f"{DOUBLE}, depends_on: load")
    bench.run("--context", "new.json", "--only", "load")
    bench.run("--context", "new.json", "--only", "double")
    assert json.loads((bench.folder / "new.json").read_text())["values"]["rows.double_v1"] == 8
    bench.put("ctx.json", "[1]")
    bench.run("--context", "ctx.json", code=2)
    assert "E719" in bench.errors[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--only", "double"], "'double' depends on 'load', which has not run in this context"),
        (["--skip", "laod"], "there is no step 'laod'. Did you mean 'load'?"),
        (["--resume-from", "load"], "no run of recipe 'r' has left a snapshot in"),
        (["--resume-from", "load", "--run", "x"], "run 'x' has left no snapshot of recipe 'r'"),
        (["--run", "x"], "it goes with --resume-from"),
        (["--params", "{"], "it is not JSON"),
        (["--params", "[]"], "it must be a JSON object"),
        (["--params", '{"x": {}}'], "there is no step 'x'"),
        ([], "E715 step 'count' is a shell step. Allow it with --shell; it runs in a cell without network."),
    ],
)
def test_what_is_refused_before_anything_runs(bench: Bench, options: list[str], said: str) -> None:
    """With the option that it is about, and exit code 2."""
    bench.script("count", "echo '{}'")
    bench.recipe(LOAD, f"{DOUBLE}, depends_on: load", f"{shell('count')}, depends_on: double")
    bench.run(*options, code=2)
    assert said in re.sub(r"[\s│]+", " ", " ".join(bench.errors))
    assert bench.snapshots() == []


def test_faults_of_a_step_are_faults_of_the_recipe(bench: Bench) -> None:
    """Whatever the language does not take is said with its place, and nothing runs."""
    bench.put("steps/one.py", "import socket\ndef double(ctx, params): return 0\n")
    bench.recipe(DOUBLE)
    bench.run(code=2)
    assert bench.errors[0].startswith("steps/one.py:1:1 E203 'import socket' is not allowed")
    assert main(["recipe", "check", "r.yaml"]) == 2
    assert bench.snapshots() == []


def test_steps_in_plain_python(bench: Bench) -> None:
    """With a package that was named, in the jail all the same."""
    bench.put(
        "steps/one.py",
        'import csv, orjson\ndef double(ctx, params):\n    return orjson.loads(\'{"status":"ok"}\')\n',
    )
    bench.recipe(DOUBLE)
    bench.run(code=2)
    document = bench.run("--language", "python", "--package", "orjson")
    assert document["steps"]["double"]["returned"] == {"status": "ok"}
    assert main(["recipe", "check", "r.yaml", "--language", "python", "--package", "orjson"]) == 0
    bench.run("--package", "orjson", code=2)


def test_logs_and_pictures_lie_where_the_recipe_has_folders_for_them(bench: Bench) -> None:
    """A log for each step in the order of the run, and a picture with the states."""
    for folder in ("recipes", "Logs", "Assets"):
        (bench.folder / "orchestrator" / folder).mkdir(parents=True)
    bench.recipe(LOAD, python("bad"), DOUBLE)
    bench.run(code=1)
    home = bench.folder / "orchestrator"
    assert sorted(path.name for path in home.glob("Logs/*")) == ["01_load.log", "02_bad.log"]
    log = re.sub(r"^[\d-]{10}T[\d:]{8}", "TIME", (home / "Logs/01_load.log").read_text(), flags=re.MULTILINE)
    assert log == (
        "TIME | INFO | recipe | Running python step load ...\n"
        "TIME | INFO | steps.one | loading 4\n"
        "TIME | INFO | recipe | Step load output: {'status': 'ok', 'key': 'rows.count_v1'}\n"
    )
    picture = (home / "Assets/r.svg").read_text()
    assert picture.startswith("<svg ")
    assert [picture.count(word) for word in ("SUCCESS", "ERRORED")] == [1, 1]
    assert len(list(home.glob("Data/context_*.json"))) == 1
    bench.run("--logs", "mine", "--only", "load")
    assert [path.name for path in (bench.folder / "mine").iterdir()] == ["01_load.log"]


COMMAND = [sys.executable, "-m", "processor", "recipe", "run", "r.yaml"]


@contextmanager
def running(folder: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([*COMMAND, *options], cwd=folder, env=env, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_run_that_is_killed_goes_on_where_it_was(bench: Bench) -> None:
    """The file has what the last good step left, and --resume-from begins with that."""
    bench.recipe(LOAD, python("hang"), DOUBLE)
    with running(bench.folder) as process:

        def is_in_second_step() -> bool:
            files = [path for path in bench.folder.glob("Data/context_*.json") if path.stat().st_size]
            return any(json.loads(path.read_text())["run"]["steps"] for path in files)

        waited(is_in_second_step, "the first step is in the snapshot", 60)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    [snapshot] = bench.snapshots()
    assert (snapshot["run"]["state"], snapshot["values"]) == ("RUNNING", {"rows.count_v1": 4})
    bench.put("steps/one.py", (HEAD + STEPS).replace("    while True:\n        pass", "    return 0"))
    document = bench.run("--resume-from", "hang")
    assert bench.states(document) == dict.fromkeys(("load", "hang", "double"), "SUCCESS")
    assert bench.snapshots()[-1]["values"]["rows.double_v1"] == 8


def test_what_killed_runs_had_half_written_is_removed(bench: Bench) -> None:
    """But nothing that another run may be writing."""
    bench.recipe(LOAD)
    for name in ("old", "new"):
        bench.put(f"Data/.context_1.json.{name}", "{")
    os.utime(bench.folder / "Data/.context_1.json.old", (0, 0))
    document = bench.run()
    names = {".context_1.json.new", f"context_{document['run']}.json"}
    assert {path.name for path in (bench.folder / "Data").iterdir()} == names


def test_a_context_that_cannot_be_written_stops_the_run(bench: Bench) -> None:
    """On a full disk the file is as it was after the last good step, whole."""
    bench.recipe(LOAD, python("large"), DOUBLE)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = " ".join(map(str, COMMAND))
    ended = subprocess.run(
        ["bash", "-c", f"ulimit -f 16; exec {words}"],
        cwd=bench.folder, env=env, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    assert "E717 the context cannot be written: File too large" in ended.stderr
    [snapshot] = bench.snapshots()
    assert snapshot["values"] == {"rows.count_v1": 4}
    assert [path.name for path in (bench.folder / "Data").iterdir()] == [
        f"context_{snapshot['run']['id']}.json"
    ]


def test_a_person_sees_a_bar(bench: Bench) -> None:
    """At a terminal there is a bar while steps run, and their lines stay."""
    bench.recipe(LOAD, python("hang"))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    with at_a_terminal(bench.folder, COMMAND, env, columns=100) as terminal:
        terminal.sees("1/2", 60)
        terminal.sees("hang", 60)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130
        assert "Step load output: {'status': 'ok', 'key': 'rows.count_v1'}" in terminal.text
    assert bench.snapshots()[0]["run"]["state"] == "CANCELLED"
