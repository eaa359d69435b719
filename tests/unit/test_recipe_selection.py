"""Some steps of a recipe: which of them run, after what, and what is refused; and what they are to leave."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from processor.errors import ProcessorError
from processor.recipes.definition import Recipe, read_recipe, with_params
from processor.recipes.selection import Selection
from processor.recipes.success import unmet


def recipe(*steps: Mapping[str, Any]) -> Recipe:
    written = [{"type": "python", "module": "m", "class": "C", **step} for step in steps]
    made, problems = read_recipe(Path("r.yaml"), {"steps": written})
    assert made is not None, problems
    return made


CHAIN = recipe({"name": "a"}, {"name": "b"}, {"name": "c"}, {"name": "d"})
#   load -> clean -> report
#   scan ----------/    \-> mail      side
DAG = recipe(
    {"name": "load"},
    {"name": "scan"},
    {"name": "clean", "depends_on": ["load"]},
    {"name": "report", "depends_on": ["clean", "scan"]},
    {"name": "mail", "depends_on": ["clean"]},
    {"name": "side"},
)


def left(of: Recipe, selection: Selection, done: Collection[str] = ()) -> dict[str, tuple[str, ...]]:
    """The steps that are left, in their order, each with what it waits for."""
    chosen = selection.of(of, done)
    return {name: chosen.before[name] for name in chosen.order}


def refusal(of: Recipe, selection: Selection, done: Collection[str] = ()) -> str:
    with pytest.raises(ProcessorError) as caught:
        selection.of(of, done)
    assert caught.value.code == "E713"
    return str(caught.value)


@pytest.mark.parametrize(
    ("selection", "steps"),
    [
        (Selection(), "abcd"),
        (Selection(only=("c", "a")), "ac"),
        (Selection(skip=("b", "d")), "ac"),
        (Selection(resume_from="c"), "cd"),
        (Selection(resume_from="b", skip=("c",)), "bd"),
        (Selection(resume_from="b", only=("c",)), "c"),
    ],
)
def test_some_steps_of_a_chain_are_a_chain(selection: Selection, steps: str) -> None:
    """They keep their order, whatever has run before."""
    pairs = zip(steps, ["", *steps], strict=False)
    assert left(CHAIN, selection) == {name: tuple(before) for name, before in pairs}


@pytest.mark.parametrize(
    ("selection", "done", "steps"),
    [
        (Selection(skip=("clean",)), (), {
            "load": (), "scan": (), "report": ("load", "scan"), "mail": ("load",), "side": (),
        }),
        (Selection(only=("clean",)), ("load",), {"clean": ()}),
        (Selection(only=("load", "clean")), (), {"load": (), "clean": ("load",)}),
        (Selection(only=("load", "side")), (), {"load": (), "side": ()}),
        (Selection(resume_from="clean"), ("load", "scan"), {
            "clean": (), "report": ("clean",), "mail": ("clean",), "side": (),
        }),
        (Selection(resume_from="report"), ("load", "scan", "clean", "side"), {"report": (), "mail": ()}),
        (Selection(resume_from="load"), DAG.order, {
            "load": (), "clean": ("load",), "report": ("clean",), "mail": ("clean",),
        }),
    ],
)  # fmt: skip
def test_some_steps_of_others_wait_for_what_is_left_before_them(
    selection: Selection, done: Collection[str], steps: dict[str, tuple[str, ...]]
) -> None:
    """What runs no more counts as done; what an earlier run has not come to runs with what is resumed."""
    assert left(DAG, selection, done) == steps


def test_what_is_refused() -> None:
    """A step that would run without what it depends on, a name that no step has, and nothing."""
    assert refusal(DAG, Selection(only=("clean",))) == (
        "--only clean E713 'clean' depends on 'load', which has not run in this context. Add it, or use"
        " --resume-from."
    )
    assert refusal(DAG, Selection(resume_from="report"), ["scan"]) == (
        "--resume-from report E713 'report' depends on 'clean', which has not run in this context. Resume"
        " from 'clean', or use --skip."
    )
    assert refusal(DAG, Selection(skip=("laod",))) == (
        "--skip E713 there is no step 'laod'. Did you mean 'load'?"
    )
    assert refusal(CHAIN, Selection(resume_from="x")) == (
        "--resume-from E713 there is no step 'x'. Steps are a, b, c, d."
    )
    assert "no step is left to run" in refusal(CHAIN, Selection(only=("a",), skip=("a",)))


def test_other_parameters() -> None:
    """They replace those of the file by name, and those of a program are texts."""
    shell = {"name": "b", "type": "shell", "cmd": "true", "module": None, "class": None}
    of = recipe({"name": "a", "params": {"x": 1, "y": 2}}, {**shell, "args": {"X": "1", "Y": "2"}})
    changed = with_params(of, {"a": {"y": [3]}, "b": {"Y": 3, "Z": {"k": None}}})
    assert changed.by_name["a"].params == {"x": 1, "y": [3]}
    assert changed.by_name["b"].args == {"X": "1", "Y": "3", "Z": '{"k":null}'}
    assert of.by_name["a"].params == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("params", "what"),
    [
        ({"aa": {}}, "there is no step 'aa'. Did you mean 'a'?"),
        ({"a": 1}, "a must have an object of parameters."),
        ({"a": {"x": float("nan")}}, "a has x, which is nan"),
        ({"s": {"1x": 1}}, "s has '1x', which is no name of an environment variable."),
        ({"s": {"X": "\0"}}, "s has a NUL character in X"),
    ],
)
def test_parameters_that_no_step_could_have(params: dict[str, Any], what: str) -> None:
    """They are refused as they would be in the file."""
    shell = {"name": "s", "type": "shell", "cmd": "true", "module": None, "class": None}
    with pytest.raises(ProcessorError) as caught:
        with_params(recipe({"name": "a"}, shell), params)
    assert str(caught.value).startswith(f"--params E713 {what}")


def test_what_a_step_has_to_leave(tmp_path: Path) -> None:
    """Each key and each path that is not there is named."""
    success = {"ctx_has_keys": ["m.x", "m.y"], "files_exist": ["out", "out/rows.csv"]}
    [step] = recipe({"name": "s", "success": success}).steps
    (tmp_path / "out").mkdir()
    failure = unmet(step, ["m.y"], tmp_path)
    assert failure is not None
    assert (failure.code, failure.text) == (
        "E714",
        "step 's' ended well, but the context has no 'm.x' (success.ctx_has_keys), and there is no"
        " 'out/rows.csv' (success.files_exist)",
    )
    (tmp_path / "out/rows.csv").write_text("")
    assert unmet(step, ["m.x", "m.y"], tmp_path) is None
