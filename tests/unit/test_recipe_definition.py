"""Recipes as people write them: both ways to write a step, and every fault at once, where it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from processor.config import load_recipe
from processor.errors import Faults
from processor.graphs.definition import NodeRetryDefinition
from processor.recipes.definition import Recipe, Step, Success

SEED = """\
test_meta:
  test_id: DEMO1
  tester: user
steps:
  - idx: 2
    name: sample_shell
    type: shell
    cmd: orchestrator/scriptlets/shell/sample.sh --times 3 "two words"
    args:
      ECHO_TEXT: "World"
      COUNT: 3
  - idx: 1
    name: sample_python
    type: python
    module: orchestrator.scriptlets.python.steps.sample_step
    class: SampleStep
    params:
      message: "Hello"
"""
LATER = """\
name: later
steps:
  - name: load
    type: python
    script: steps/load.py
    args: {path: "${{ not.a.reference }}"}
    retry: 2
    success: {ctx_has_keys: rows, files_exist: [Data/rows.csv]}
  - name: count
    type: shell
    script: steps/count.sh
    args: [-l, 3, x y]
    depends_on: load
    timeout_s: 5
    writes: [Data]
  - name: report
    type: python
    module: steps.report
    function: write
    depends_on: [load, count]
    retry: {max_retries: 1, strategy: FIXED, backoff_factor: 100}
"""


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
        (root / name).chmod(0o755)


def read(root: Path, text: str, name: str = "recipe.yaml") -> Recipe:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    return load_recipe(root / name)


def faults(root: Path, text: str) -> list[str]:
    """The faults of a recipe without the path of its file, and each of them is E713."""
    with pytest.raises(Faults) as caught:
        read(root, text)
    assert {fault.code for fault in caught.value.faults} == {"E713"}
    return [f"{fault.line}:{fault.column} {fault.text}" for fault in caught.value.faults]


def steps(*written: str) -> str:
    return "steps:\n" + "\n".join(f"  - {each}" for each in written)


def test_a_recipe_as_the_guide_has_it(tmp_path: Path) -> None:
    """Steps are in the order of `idx`, the root is the folder with `orchestrator/`, numbers become texts."""
    script, step = "scriptlets/shell/sample.sh", "scriptlets/python/steps/sample_step.py"
    put(tmp_path, f"orchestrator/{script}", f"orchestrator/{step}")
    recipe = read(tmp_path, SEED, "orchestrator/recipes/example.yaml")
    assert (recipe.name, recipe.root, recipe.test_meta) == (
        "example", tmp_path, {"test_id": "DEMO1", "tester": "user"},
    )  # fmt: skip
    assert recipe.steps == (
        Step(
            1, "sample_python", "python",
            module="orchestrator.scriptlets.python.steps.sample_step", class_name="SampleStep",
            params={"message": "Hello"},
        ),
        Step(
            2, "sample_shell", "shell",
            cmd=(f"orchestrator/{script}", "--times", "3", "two words"),
            args={"ECHO_TEXT": "World", "COUNT": "3"},
        ),
    )  # fmt: skip
    assert recipe.steps[0].file == f"orchestrator/{step}"
    assert recipe.before == {"sample_python": (), "sample_shell": ("sample_python",)}


def test_a_recipe_with_the_other_words(tmp_path: Path) -> None:
    """`script` names the file, `args` are parameters or arguments, and a text or number stands for a list."""
    put(tmp_path, "steps/load.py", "steps/count.sh", "steps/report.py")
    recipe = read(tmp_path, LATER)
    assert (recipe.name, recipe.root) == ("later", tmp_path)
    assert recipe.steps == (
        Step(
            1, "load", "python", module="steps.load", function="run",
            params={"path": "${{ not.a.reference }}"}, retry=NodeRetryDefinition(max_retries=2),
            success=Success(("rows",), ("Data/rows.csv",)),
        ),
        Step(
            2, "count", "shell", cmd=("steps/count.sh", "-l", "3", "x y"), depends_on=("load",),
            timeout_s=5.0, writes=("Data",),
        ),
        Step(
            3, "report", "python", module="steps.report", function="write", depends_on=("load", "count"),
            retry=NodeRetryDefinition(max_retries=1, strategy="FIXED", backoff_factor=100),
        ),
    )  # fmt: skip
    assert recipe.before == {"load": (), "count": ("load",), "report": ("load", "count")}
    assert recipe.order == ("load", "count", "report")


def test_the_order_follows_depends_on_first_and_idx_then(tmp_path: Path) -> None:
    """A step comes after what it waits for, whatever its number; of two that could come, the lower one."""
    text = steps(
        "{idx: 1, name: last, type: shell, cmd: 'true', depends_on: [b, a]}",
        "{idx: 9, name: a, type: shell, cmd: 'true'}",
        "{idx: 5, name: b, type: shell, cmd: 'true'}",
    )
    assert read(tmp_path, text).order == ("b", "a", "last")


def test_all_faults_of_a_recipe_at_once(tmp_path: Path) -> None:
    """Each is named with its line and column, the nearest word, and what to do."""
    text = """\
test_metta: {}
steps:
  - name: one
    type: pyhton
  - {name: two, type: python, modul: a.b, class: A}
  - name: three
    type: python
    module: a.b
    class: A
    depends_on: [fuor]
  - {name: four, type: python, module: a.b, class: A, function: f, params: [1], args: {}}
  - {name: four, type: shell, cmd: 'x "y', idx: 4}
  - {name: store, type: shell, class: A, args: {"1a": x}}
  - {name: eight, type: python, script: ../x.py, cmd: x, retry: {strategy: FIXED}}
  - {name: nine, type: shell, cmd: ../../bin/x, writes: [/etc, a/../..], success: {files_exist: [../x]}}
  - {name: ten, type: python, module: a-b, function: 1x, params: {x: 1, y: 2020-01-01}}
"""
    found = faults(tmp_path, text)
    assert found == [
        "1:1 test_metta is no key; did you mean 'test_meta'?",
        "4:5 steps[0].type is 'pyhton': it must be 'python' or 'shell'.",
        "5:31 steps[1].modul is no key; did you mean 'module'?",
        "10:18 steps[2].depends_on names 'fuor', and there is no such step; did you mean 'four'?",
        "11:55 steps[3].function and `class` are both given. Remove one.",
        "11:81 steps[3].args is another word for `params`, and both are given. Remove one.",
        "12:6 steps[4].name is 'four', as that of steps[3]. Rename one of them.",
        "12:31 steps[4].cmd is 'x \"y': No closing quotation.",
        "13:5 steps[5].cmd is missing: which program, or which `script`, is the step?",
        "13:6 steps[5].name is 'store', which has a meaning of its own. Rename the step.",
        "13:32 steps[5].class has no effect in a shell step. Remove it, or change `type`.",
        "13:42 steps[5].args has '1a', which is no name of an environment variable.",
        "14:33 steps[6].script is '../x.py', which cannot be imported: name a file a/b/c.py below the root.",
        "14:50 steps[6].cmd has no effect in a python step. Remove it, or change `type`.",
        "14:58 steps[6].retry has no `max_retries`, so that the step would be tried once.",
        "15:31 steps[7].cmd is '../../bin/x', which is not below the root of the recipe.",
        "15:49 steps[7].writes has the path '/etc', which is not below the root of the recipe.",
        "15:49 steps[7].writes has the path 'a/../..', which is not below the root of the recipe.",
        "15:74 steps[7].success has the path '../x', which is not below the root of the recipe.",
        "16:31 steps[8].module is 'a-b', which is no name of a module, such as a.b.c.",
        "16:44 steps[8].function is '1x', which is no name in Python.",
        "16:58 steps[8].params has y, which is a date, which is not JSON. Quote it.",
    ]


def test_steps_that_wait_for_each_other(tmp_path: Path) -> None:
    """A circle is shown as one; two steps with one number are named, too."""
    text = steps(
        "{name: a, type: shell, cmd: x, depends_on: c}",
        "{name: b, type: shell, cmd: x, depends_on: a}",
        "{name: c, type: shell, cmd: x, depends_on: b, idx: 2}",
    )
    assert faults(tmp_path, text) == [
        "3:36 'a' -> 'b' -> 'c' -> 'a' is a circle: each of them waits for the one before it.",
        "4:51 steps[2].idx is 2, as that of steps[1]. Give each step one of its own.",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("steps: []", "1:1 steps has 0 steps; 1 to 900 can be run."),
        ("test_meta: {}", "1:1 steps is missing."),
        ("steps: [x]", "1:9 steps[0] is 'x': it must be a mapping."),
        ("steps: {a: {}}", "1:1 steps: it must be a list."),
        ("- a", "1:1 must be a mapping of keys to values"),
        ("steps: [", "1:9 is not YAML"),
        ("a: 1\na: 2", "2:1 the key 'a' is given twice"),
        (steps("{name: a b, type: shell, cmd: x}"), "2:6 steps[0].name is 'a b': it must be 1 to 64 letters"),
        (steps("{name: a, type: shell, cmd: []}"), "2:28 steps[0].cmd names no program."),
        (steps('{name: a, type: shell, cmd: "x\\0"}'), "2:28 steps[0].cmd has a NUL character"),
        (steps("{name: a, type: shell, cmd: x, args: 3}"), "2:36 steps[0].args must be a mapping of env"),
        (
            steps("{name: a, type: python, module: m, params: {x: .nan}}"),
            "2:40 steps[0].params has x, which is nan",
        ),
        (
            steps("{name: a, type: shell, cmd: x, timeout_s: 0}"),
            "2:36 steps[0].timeout_s is 0: it must be more",
        ),
        (steps("{name: a, type: shell, cmd: x, idx: yes}"), "2:36 steps[0].idx is 'yes': it must be a whole"),
        (
            steps("{name: a, type: python, module: m, params: {d: 2024-01-01}}"),
            "2:40 steps[0].params has d, which is a date",
        ),
    ],
)
def test_a_fault_of_a_recipe(tmp_path: Path, text: str, fault: str) -> None:
    """Whatever is in the file, it is a fault at a place, and never an error of ours."""
    found = faults(tmp_path, text)
    assert len(found) == 1, found
    assert found[0].startswith(fault), found


def test_a_recipe_whose_files_are_not_there(tmp_path: Path) -> None:
    """They are looked for before anything runs; a program of the system is found when it runs."""
    put(tmp_path, "steps/here.py", "steps/here.sh")
    (tmp_path / "steps/here.sh").chmod(0o644)
    text = steps(
        "{name: a, type: python, module: steps.gone, class: A}",
        "{name: b, type: python, script: steps/here.py}",
        "{name: c, type: shell, cmd: steps/here.sh -x}",
        "{name: d, type: shell, script: steps/gone.sh}",
        "{name: e, type: shell, cmd: wc -l}",
    )
    assert faults(tmp_path, text) == [
        "2:29 steps[0].module: no module named 'steps.gone': there is no file steps/gone.py below"
        f" {tmp_path}.",
        "4:28 steps[2].cmd: steps/here.sh may not be executed. Change that with `chmod +x steps/here.sh`.",
        f"5:28 steps[3].script: there is no file steps/gone.sh below {tmp_path}.",
    ]


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    """The file itself is named."""
    with pytest.raises(Faults, match=r"none\.yaml:1:1 E713 cannot be read: No such file or directory"):
        load_recipe(tmp_path / "none.yaml")


def test_a_name_that_no_graph_could_have(tmp_path: Path) -> None:
    """The name of the file serves only where it is one."""
    text = steps("{name: a, type: shell, cmd: x}")
    (tmp_path / "my recipe.yaml").write_text(text)
    with pytest.raises(Faults, match="name is missing, and that of the file, 'my recipe', is not 1 to 64"):
        load_recipe(tmp_path / "my recipe.yaml")
