"""The one program of the python steps of a recipe: which files are in it, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import orjson
import pytest

from processor.errors import Faults
from processor.model import Group, Limits, Ran
from processor.recipes.definition import Recipe, read_recipe
from processor.recipes.programs import program_of
from processor.sandbox.host import Zygote


def recipe(root: Path, *steps: dict[str, Any], **files: str) -> Recipe:
    """A recipe in a tree with these files; `__` in their names is a slash."""
    (root / "orchestrator").mkdir(exist_ok=True)
    for name, text in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    keys = {"steps": [{"name": f"s{n}", "type": "python", **step} for n, step in enumerate(steps)]}
    found, problems = read_recipe(root / "r.yaml", keys)
    assert found is not None, problems
    return found


def faults(found: Recipe) -> list[str]:
    with pytest.raises(Faults) as refused:
        program_of(found)
    return [str(fault) for fault in refused.value.faults]


async def test_a_program_has_what_its_steps_import_below_the_root(tmp_path: Path) -> None:
    """Modules that a step names or imports, at any depth, and no others; it runs as one program."""
    found = recipe(
        tmp_path,
        {"module": "steps.first", "class": "First", "params": {"n": 2}},
        {"module": "steps.second"},
        {"module": "steps.first", "class": "First"},
        {"type": "shell", "cmd": "true"},
        steps__first="""
            from lib.sums import doubled
            from orchestrator.context import Context
            from orchestrator.scriptlets.python.core.base import BaseScriptlet
            class First(BaseScriptlet):
                def run(self, ctx, params):
                    import lib.deep.more
                    ctx.set("n", doubled(params["n"]))
                    return {"status": "ok", "more": lib.deep.more.WORD}
            """,
        steps__second="""
            from lib import sums
            def run(ctx, params):
                return {"status": "ok", "n": sums.doubled(ctx.get("n"))}
            """,
        lib__sums="import math\ndef doubled(n):\n    return 2 * n\n",
        lib__deep__more="WORD = 'more'\n",
        lib__unused="raise ValueError\n",
        orchestrator__context="raise ValueError('this is not what steps import')\n",
    )
    program = program_of(found)
    assert [module.name for module in program.modules] == [
        "lib.deep.more", "lib.sums", "steps.first", "steps.second",
    ]  # fmt: skip
    assert [module.filename for module in program.modules][:2] == ["lib/deep/more.py", "lib/sums.py"]
    assert (program.mode, program.language, program.filename) == (
        "steps",
        "restricted",
        str(tmp_path / "r.yaml"),
    )
    zygote = await Zygote.start()
    try:
        guest = await zygote.spawn(program, Limits())
        assert list(guest.manifest) == ["s0", "s1", "s2"]
        store: dict[str, Any] = {}
        for name, inputs, wanted in (
            ("s0", {"n": 2}, {"status": "ok", "more": "more"}),
            ("s1", {}, {"status": "ok", "n": 8}),
        ):
            said = {"kind": name, "run": "r", "x": name, "a": 1, "inputs": inputs, "store": store}
            ran = await guest.run([Group("", [orjson.dumps(said)], {})], isolate=True)
            assert isinstance(ran, Ran), ran
            result = orjson.loads(ran.outputs[0].body)
            assert result["outputs"] == wanted, result
            store |= {key: value for key, value, *_ in result["sets"]}
    finally:
        await zygote.close()


def test_a_package_with_a_source_is_brought(tmp_path: Path) -> None:
    """An `__init__.py` is a module, and so is a file with nothing in it; a relative import leads to one."""
    found = recipe(
        tmp_path,
        {"module": "steps.one"},
        steps__one="from .two import x\nfrom lib import *\nimport lib.any\ndef run(params): return 0\n",
        steps__two="x = 1\n",
        lib__any="",
    )
    (tmp_path / "steps/__init__.py").write_text('"""Words."""\n')
    (tmp_path / "lib/__init__.py").write_text("y = 2\n")
    program = program_of(found)
    assert [(module.name, module.filename) for module in program.modules] == [
        ("lib", "lib/__init__.py"),
        ("lib.any", "lib/any.py"),
        ("steps", "steps/__init__.py"),
        ("steps.one", "steps/one.py"),
        ("steps.two", "steps/two.py"),
    ]


def test_a_class_or_function_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Each fault has the file of the module, the step, and what was probably meant."""
    source = """
        class SampleStep:
            def run(self, ctx, params):
                return 0
        def other(params):
            return 0
        def _own(params):
            return 0
        """
    found = recipe(
        tmp_path,
        {"module": "steps.one", "class": "SamplStep"},
        {"module": "steps.one", "function": "anything"},
        {"module": "steps.two"},
        {"module": "steps.one", "function": "_own"},
        {"module": "steps.three", "class": "Any"},
        {"module": "orchestrator.context", "class": "Context"},
        {"module": "steps.import"},
        steps__one=source,
        steps__two="class Two:\n    pass\n",
        steps__import="def run(params):\n    return 0\n",
        steps__three="from lib import *\n",
    )
    assert faults(found) == [
        "steps/one.py:2:1 E713 there is no class SamplStep, which step s0 names; did you mean 'SampleStep'?",
        "steps/one.py:1:1 E713 there is no function anything, which step s1 names; it has other.",
        "steps/two.py:1:1 E713 there is no function run, which step s2 names. Name a class: the module has"
        " Two.",
        "steps/one.py:7:1 E713 _own of step s3 begins with _, and so is the module's own. Rename it.",
        "orchestrator/context.py:1:1 E713 orchestrator.context is what steps import, and no step itself,"
        " which step s5 says.",
        "steps/import.py:1:1 E713 step s6 names a module that no import can: 'import' is a word of Python.",
    ]


def test_a_module_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Bytes that are no text, and a link that leads out of the root, are faults with their file."""
    outside = tmp_path / "outside.py"
    outside.write_text("x = 1\n")
    root = tmp_path / "root"
    root.mkdir()
    found = recipe(
        root,
        {"module": "steps.one"},
        steps__one="import steps.bytes\nimport steps.link\ndef run(params): return 0\n",
    )
    (root / "steps/bytes.py").write_bytes(b"x = '\xff'\n")
    (root / "steps/link.py").symlink_to(outside)
    assert faults(found) == [
        "steps/link.py:1:1 E713 the module steps.link cannot be read: it leads out of the root of the"
        " recipe.",
        "steps/bytes.py:1:1 E713 the module steps.bytes cannot be read: 'utf-8' codec can't decode byte 0xff"
        " in position 5: invalid start byte.",
    ]


def test_a_source_that_is_no_python_is_for_the_guest(tmp_path: Path) -> None:
    """What is wrong within a source is told where it is compiled, with its line."""
    found = recipe(tmp_path, {"module": "steps.one"}, steps__one="def run(params:\n")
    assert [module.name for module in program_of(found).modules] == ["steps.one"]
