"""The folder that a recipe begins in, and the programs of the guide to the letter, beside the wheel.

`tests/recipes.md` is the guide.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from processor.cli import main
from processor.recipes.context import read
from processor.recipes.tree import write_tree
from tests.integration.test_compat import installed, wheel

__all__ = ["installed", "wheel"]

SECTIONS = re.split(r"^## \d+\. ", (Path(__file__).parents[1] / "recipes.md").read_text(), flags=re.MULTILINE)
STEPS = "orchestrator/scriptlets/python/steps"
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d \| INFO \| (\S+) \| (.*)")


def block(section: int, language: str, number: int = 0) -> str:
    """A block of code of a section of the guide."""
    return re.findall(rf"```{language}\n(.*?)```", SECTIONS[section], re.DOTALL)[number]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder, with the step of section 8 and the script of section 9 in it."""
    root = tmp_path / "project"
    write_tree(root)
    (root / STEPS / "compute_message_length.py").write_text(block(8, "python"))
    script = root / "orchestrator/scriptlets/shell/count-lines.sh"
    script.write_text(block(9, "bash"))
    script.chmod(0o755)
    return root


def ran(folder: Path, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **env}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


def python(folder: Path, installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return ran(folder, sys.executable, *arguments, PYTHONPATH=str(installed))


@pytest.mark.parametrize(
    "name, params, returned",
    [
        (
            "sample_step",
            {"message": "CLI hello"},
            {"status": "ok", "recorded_key": "sample.message_v1"},
        ),
        (
            "compute_message_length",
            {"message": "Test"},
            {"status": "ok", "key": "metrics.message_length_v1", "length": 4},
        ),
    ],
)
def test_a_step_is_a_program_of_its_own(
    folder: Path, installed: Path, name: str, params: Any, returned: Any
) -> None:
    """Standard output has its result alone; its lines of log, with what it took, go to standard error."""
    done = python(folder, installed, f"{STEPS}/{name}.py", "--params", json.dumps(params))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == returned
    lines = [LOG_LINE.fullmatch(line) for line in done.stderr.splitlines()]
    assert lines
    assert all(lines)
    modules, texts = zip(*(line.groups() for line in lines if line), strict=True)
    assert modules[-1] == "orchestrator.scriptlets.python.core.resource"
    usage = json.loads(texts[-1])
    assert (usage["metric"], usage["function"]) == ("resource_usage", "run")
    assert set(usage) == {"metric", "function", "seconds", "rss_delta", "heap_current", "heap_peak"}


def test_a_step_whose_parameters_are_wrong_says_so(folder: Path, installed: Path) -> None:
    """The assertion of `validate` ends the program, and nothing is on standard output."""
    done = python(folder, installed, f"{STEPS}/compute_message_length.py", "--params", '{"message": 3}')
    assert (done.returncode, done.stdout) == (1, "")
    assert "AssertionError: message must be string" in done.stderr


def test_the_tests_of_the_folder_pass(folder: Path, installed: Path) -> None:
    """`pytest -q` runs the test of the sample and those of section 11, as the guide has them."""
    steps = "from orchestrator.scriptlets.python.steps.sample_step import SampleStep\n"
    imports = f"from orchestrator.context import Context\n{steps}"
    (folder / "tests/test_guide.py").write_text(imports + block(11, "python") + block(11, "python", 1))
    done = python(folder, installed, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_the_context_of_the_guide_prints_what_it_says(folder: Path, installed: Path) -> None:
    """Section 4: the value, and a history of one entry with its time, author, old and new value."""
    (folder / "program.py").write_text(block(4, "python"))
    done = python(folder, installed, "program.py")
    value, history = done.stdout.splitlines()
    assert value == "1.23"
    assert re.fullmatch(
        r"\[\{'ts': \d+\.\d+, 'who': 'compute_metrics', 'old': None, 'new': 1\.23\}\]", history
    )


def test_a_module_of_the_folder_comes_before_that_of_the_wheel(folder: Path, installed: Path) -> None:
    """Whoever has the file of the guide itself, such as a Context of their own, keeps it."""
    (folder / "orchestrator/context.py").write_text("class Context:\n    mine = True\n")
    done = ran(
        folder,
        sys.executable,
        "-c",
        "from orchestrator.context import Context; from orchestrator.scriptlets.python.core.base import"
        " BaseScriptlet; print(Context.mine, BaseScriptlet.__module__)",
        PYTHONPATH=str(installed),
    )
    assert done.stdout == "True processor.recipes.authoring\n", done.stderr


@pytest.mark.parametrize("text", ["World", 'a "b" \\ c', "two\nlines\tand é"])
def test_the_sample_script_gives_any_text_back(folder: Path, text: str) -> None:
    """What it prints is JSON, whatever characters the text has."""
    done = ran(folder, "orchestrator/scriptlets/shell/sample.sh", ECHO_TEXT=text)
    assert json.loads(done.stdout) == {"status": "ok", "echo": text}


def test_nothing_is_written_over_what_is_there(tmp_path: Path) -> None:
    """A file that is there is named, and then no other one is written."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_sample_step.py").write_text("mine")
    with pytest.raises(FileExistsError, match=r"test_sample_step\.py is there already"):
        write_tree(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tests"]


def test_init_makes_a_folder_without_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `recipe init` writes passes `recipe check`; asked again, it names what is there and exits 2."""
    folder = tmp_path / "new"
    assert main(["recipe", "init", str(folder), "--format", "human"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert line.endswith(
        f"begin with `processor recipe run {folder}/orchestrator/recipes/example.yaml --shell`"
    )
    assert main(["recipe", "check", str(folder / "orchestrator/recipes/example.yaml")]) == 0
    assert os.access(folder / "update_state.sh", os.X_OK)
    capsys.readouterr()
    assert main(["recipe", "init", str(folder)]) == 2
    assert "is there already; nothing was written" in " ".join(capsys.readouterr().err.split())


def test_the_runner_of_the_guide_runs_its_recipes(folder: Path, installed: Path) -> None:
    """Sections 5 and 10: the lines that the guide shows, exit code 0, and each step's log in its folder."""
    recipes = folder / "orchestrator/recipes"
    (recipes / "guide.yaml").write_text(block(5, "yaml"))
    (recipes / "demo_metrics.yaml").write_text(block(10, "yaml"))
    done = python(folder, installed, "orchestrator/runner.py", "--recipe", "orchestrator/recipes/guide.yaml")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("INFO")] == [
        "INFO | Running python step sample_python ...",
        "INFO | Step sample_python output: {'status': 'ok', 'recorded_key': 'sample.message_v1'}",
        "INFO | Running shell step sample_shell ...",
        "INFO | Step sample_shell output: {'status': 'ok', 'echo': 'World'}",
        "INFO | Pipeline complete",
    ]
    assert "sample.message_v1" in (folder / "orchestrator/Logs/01_sample_python.log").read_text()
    done = python(
        folder, installed, "orchestrator/runner.py", "--recipe=orchestrator/recipes/demo_metrics.yaml"
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["steps"]["compute_msg_len"]["returned"]["length"] == 11
    assert read(Path(said["context"])).context.to_dict() == {
        "sample.message_v1": "Hello World",
        "metrics.message_length_v1": 11,
    }


def test_the_scenario_of_the_guide_runs_against_the_server(
    folder: Path, installed: Path, free_port: int
) -> None:
    """Section 13 by its scripts: a change is answered with a value, and the file has it with its history."""
    port = str(free_port)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(installed), "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(
        [sys.executable, "run_context_server.py", "--port", port],
        cwd=folder, env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stderr is not None
        assert port in server.stderr.readline()
        done = ran(folder, "./test.sh", CONTEXT_PORT=port)
        assert done.returncode == 0, done.stderr
        refused = [
            ran(folder, "./update_state.sh", *words, CONTEXT_PORT=port)
            for words in (["set", "data.user", "Alice"], ["get", "data.none"], ["pop"])
        ]
    finally:
        server.terminate()
        server.communicate(timeout=20)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers == [
        None, {"name": "Alice"}, None, None, [1, 2], 2, None, {"data": {"numbers": [1]}},
    ]  # fmt: skip
    assert [(each.returncode, each.stdout) for each in refused] == [(1, "")] * 3
    assert "Alice is not JSON; a text has quotes" in refused[0].stderr
    assert not any("Traceback" in each.stderr for each in refused)
    context = read(folder / "orchestrator/Data/context.json").context
    assert context.to_dict() == {"data": {"numbers": [1]}}
    assert len(context.get_history("data")) == 5
    late = ran(folder, "./update_state.sh", "full", CONTEXT_PORT=port)
    assert (late.returncode, late.stdout) == (1, "")
    assert "does run_context_server.py run?" in late.stderr
