"""Write what pages take from the code, and build the site that goes into the wheel.

    python docs/build.py --pages    write the generated parts of pages, the tutorial, the index and llms.txt
    python docs/build.py            build the site into processor/site; needs the extra `docs`, and no network

Pages are plain Markdown, so that any generator can read them, and people where they lie. What stands between
`<!-- generated: NAME -->` and `<!-- end of NAME -->` is written here; `tests/test_docs.py` fails where it is
not what the code says. `zensical.toml` has the order of the pages.

The site is built from a copy: pages that live elsewhere (SECURITY.md, the runbook, the changes) get a place
of their own, and other files that a page links to are put beside the pages. A link or a heading that leads
nowhere in what was built ends this with exit code 1. The same pages make the same site, byte for byte.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_origin
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
sys.path[:0] = [str(ROOT), str(DOCS)]  # the code beside these pages, whatever is installed
limits = importlib.import_module("limits")  # docs/limits.py
SITE = ROOT / "processor" / "site"
GUIDE = ROOT / "tests" / "guide"
ERRORS_PAGE = DOCS / "reference" / "errors.md"
Files = dict[Path, str]
# Pages that are not below docs/, and their place in the site.
ELSEWHERE = {
    "SECURITY.md": "security/index.md",
    "deploy/runbook.md": "operate/runbook.md",
    "CHANGELOG.md": "changes.md",
    "tests/bench/RESULTS.md": "results.md",
}
_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
_LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(#[^)\s]*)?(?=\))")
_FENCE = re.compile(r"(^ *```.*?^ *```)", re.MULTILINE | re.DOTALL)
_GROUPS = {
    "E1": "The configuration",
    "E2": "The source of a Runnable",
    "E3": "A message and its run",
    "E4": "The NATS server and its streams",
    "E5": "The jail, and releases",
    "E6": "Requests to a running app",
    "E7": "Graphs of nodes",
}


def generated() -> Files:
    """Every file that is generated, wholly or in part, and what it has to hold."""
    files = {path: path.read_text() for path in sorted(DOCS.rglob("*.md"))}
    files |= {DOCS / "tutorial" / name: text for name, text in tutorial()}
    # The page of errors comes last: it names the others that speak of a code.
    for path in sorted(files, key=lambda path: path == ERRORS_PAGE):
        files[path] = _PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]](files)}\n{part[3]}", files[path])
    files[DOCS / "index.md"] = index(files)
    files[DOCS / "llms.txt"] = llms_txt(files)
    return files


# What pages take from the code


def errors(files: Files) -> str:
    """A section for each code, so that each has an anchor, with the pages that speak of it."""
    from processor.errors import ERRORS

    texts = {path: text for path, text in files.items() if path.parent.name != "tutorial"}
    texts |= {ROOT / name: (ROOT / name).read_text() for name in ("SECURITY.md", "deploy/runbook.md")}
    del texts[ERRORS_PAGE]
    lines: list[str] = []
    for row in ERRORS.values():
        group = _GROUPS[row.code[:2]]
        if f"## {group}" not in lines:
            lines += [f"## {group}", ""]
        meaning = row.meaning[0].upper() + row.meaning[1:]
        lines += [f"### {row.code}", "", f"{meaning}.", "", f"*What to do*: {row.remedy}", ""]
        if row.is_final:
            what = "An execution" if row.code.startswith("E7") else "A message"
            lines += [f"{what} that fails with it is not tried again.", ""]
        found = [
            f"[{text.partition(chr(10))[0].removeprefix('# ')}]({os.path.relpath(path, ERRORS_PAGE.parent)})"
            for path, text in texts.items()
            if row.code in text
        ]
        if found:
            lines += [f"*More*: {', '.join(found)}", ""]
    return "\n".join(lines)


def metrics(_: Files) -> str:
    from processor.telemetry import METRICS

    rows = [(f"`{m.name}`", str(m.kind), ", ".join(m.labels), m.help) for m in METRICS.values()]
    return _table(("metric", "kind", "labels", "meaning"), rows)


def environment(_: Files) -> str:
    from processor.config import ENVIRONMENT

    rows = [(f"`{name}`", f"`{'.'.join(key)}`", text) for name, (key, text) in ENVIRONMENT.items()]
    return _table(("variable", "replaces", "meaning"), rows)


def keys(_: Files) -> str:
    """A table for each block of the configuration: its keys, their defaults and meanings."""
    from processor.config import Config

    return "\n".join(_keys_of(Config, ""))


def _keys_of(model: Any, prefix: str) -> Iterator[str]:
    from processor.config.forms import alias_of, default_text, inner_model

    blocks, rows = [], []
    for name, info in model.model_fields.items():
        key, inner = alias_of(name, info), inner_model(info.annotation)
        if inner is not None:
            named = "<name>." if get_origin(info.annotation) is dict else ""
            blocks.append((inner, f"{prefix}{key}.{named}"))
        default = "required" if info.is_required() else "" if inner else _value(default_text(info))
        rows.append((f"`{key}`", default, _cell(info.description or "")))
    yield f"### {f'`{prefix.removesuffix(chr(46))}`' if prefix else 'The top'}\n"
    yield _table(("key", "default", "meaning"), rows)
    for inner, place in blocks:
        yield from _keys_of(inner, place)


def _value(value: object) -> str:
    return "" if value is None or value == {} else f"`{json.dumps(value)}`".replace('"', "")


def exits(_: Files) -> str:
    from processor.cli.terminal import EXITS

    rows = [(str(code), f"`{name}`", meaning) for code, (name, meaning) in EXITS.items()]
    return _table(("exit code", "name", "meaning"), rows)


def verbs(_: Files) -> str:
    """Each verb as its help has it."""
    from processor.cli import program

    lines: list[str] = []
    for name, command in program().commands.items():
        about, _, examples = inspect.cleandoc(command.help).partition("\nExamples:\n")
        rows = [
            (
                ", ".join(f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts))
                if parameter.param_type_name == "option"
                else f"`{parameter.metavar or parameter.name.upper()}`",
                _cell(parameter.help or ""),
            )
            for parameter in command.params
        ]
        lines += [
            f"### `processor {name}`",
            "",
            about.strip(),
            "",
            _table(("argument or option", "meaning"), rows),
        ]
        lines += ["```text", examples.strip(), "```", ""]
    return "\n".join(lines)


def importable(_: Files) -> str:
    from processor.sandbox.facades import MODULES, RUNTIME_MODULES

    names = ", ".join(f"`{name}`" for name in sorted({*MODULES, *RUNTIME_MODULES}))
    return textwrap.fill(f"{names}.", 120, break_on_hyphens=False) + "\n"


def steps(_: Files) -> str:
    from processor.delivery.settle import Settler

    found = re.findall(r"^(\d\. .*)$", inspect.getdoc(Settler.settle) or "", re.MULTILINE)
    return "\n".join(found) + "\n"


def rooms(_: Files) -> str:
    """The picture of the package, in the words of its architecture test."""
    shown = importlib.import_module("tests.test_architecture").ROOMS
    lines = [f"  {room:<32} {words}" for room, words, _ in shown]
    return "\n".join(["```text", "processor/", *lines, "```", ""])


def limits_of(page: str, _: Files) -> str:
    """The tables of a page of limits, each below its heading."""
    tables = limits.tables_of(page)
    return "\n".join(f"## {heading}\n\n{_table(limits.HEAD, rows)}" for heading, rows in tables)


PARTS: dict[str, Callable[[Files], str]] = {
    each.__name__: each
    for each in (errors, metrics, environment, keys, exits, verbs, importable, steps, rooms)
}
PARTS |= {page: partial(limits_of, page) for page in limits.PAGES}


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines: list[tuple[str, ...]] = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# The tutorial, which is tests/guide


def tutorial() -> Iterator[tuple[str, str]]:
    """A page for each chapter of the guide, and one that lists them."""
    chapters = []
    for path in sorted(GUIDE.glob("test_*.py")):
        number, _, words = path.stem.removeprefix("test_").partition("_")
        tree = ast.parse(path.read_text())
        lead = (ast.get_docstring(tree) or "").partition("\n")[0].partition(": ")[2]
        title = f"{int(number)}. {words.replace('_', ' ').capitalize()}"
        name = f"{number}-{words.replace('_', '-')}.md"
        chapters.append(f"- [{title}]({name}): {lead}")
        lead = lead[0].upper() + lead[1:]
        yield name, "\n".join([f"# {title}", "", lead, "", *_chapter(path, tree)])
    yield "index.md", _TUTORIAL + "\n".join(chapters) + "\n"


_TUTORIAL = """# Tutorial

What a route can do, one rule after the other, each shown by a test that runs with a real server and a real guest.

In each chapter the configuration of the routes and the Runnables come first. Below, each section is one rule, and
the code that shows it: `processor(ROUTE, name=SOURCE)` runs the routes with the Runnable in the file `name.py`,
`running.publish` publishes JSON documents, and `running.documents(subject, n)` reads the first `n` outputs. All
of this is what any NATS client can do. The pages are made from `tests/guide`, whose tests must pass.

"""  # noqa: E501 - a paragraph of a page


def _chapter(path: Path, tree: ast.Module) -> Iterator[str]:
    source = path.read_text()
    yield f"From [`tests/guide/{path.name}`](../../tests/guide/{path.name}).\n"
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                name = node.targets[0].id  # type: ignore[attr-defined]
                yield from _shown(name, node.value.value)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            title = node.name.removeprefix("test_").replace("_", " ")
            yield f"## {title[0].upper()}{title[1:]}\n"
            yield f"{inspect.cleandoc(ast.get_docstring(node) or '')}\n"
            lines = source.splitlines()[node.body[1].lineno - 1 : node.end_lineno]
            yield f"```python\n{textwrap.dedent(chr(10).join(lines))}\n```\n"


def _shown(name: str, text: str) -> Iterator[str]:
    """A configuration or a Runnable that the chapter's tests share."""
    text = textwrap.dedent(text).strip()
    is_python = bool(re.search(r"^(class|import|from|def) ", text, re.MULTILINE))
    yield f"`{name}`:\n\n```{'python' if is_python else 'yaml'}\n{text}\n```\n"


# The index


def nav() -> list[tuple[str, list[str]]]:
    """The headings of the site, and the pages below each as the site names them."""
    project = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    return [
        (title, [below] if isinstance(below, str) else below)
        for entry in project["nav"]
        for title, below in entry.items()
    ]


def source_of(page: str) -> Path:
    """The file of a page of the site."""
    by_page = {page: name for name, page in ELSEWHERE.items()}
    return ROOT / by_page[page] if page in by_page else DOCS / page


def _listed(files: Files) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """By heading, the title, the page of the site and the first sentence of each."""
    for heading, pages in nav():
        below = []
        for page in pages:
            path = source_of(page)
            if page != "index.md":
                title, _, lead = (files.get(path) or path.read_text()).partition("\n\n")
                first = " ".join(lead.partition("\n\n")[0].split())
                below.append((title.removeprefix("# "), page, re.split(r"(?<=[.?]) ", first)[0]))
        if below:
            yield heading, below


def index(files: Files) -> str:
    lines = [
        "# Processor",
        "",
        "Which pages there are, and what each answers. New here? Begin with [Start](start.md).",
        "",
    ]
    for heading, pages in _listed(files):
        lines += [f"## {heading}", ""]
        lines += [
            f"- [{title}]({os.path.relpath(source_of(page), DOCS)}): {lead}" for title, page, lead in pages
        ]
        lines.append("")
    return "\n".join(lines)


def llms_txt(files: Files) -> str:
    """The pages for language models, in the form of llms.txt; the site has each as Markdown, too."""
    readme = (ROOT / "README.md").read_text()
    about = " ".join(readme.split("\n\n")[1].replace("**", "").split())
    lines = ["# Processor", "", f"> {about}", ""]
    for heading, pages in _listed(files):
        lines += [f"## {heading}", ""]
        lines += [f"- [{title}]({page}): {lead}" for title, page, lead in pages]
        lines.append("")
    return "\n".join(lines)


# The site


def build(site: Path) -> list[str]:
    """Build the site into `site`, which is replaced; what leads nowhere in it."""
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder)
        pages = {path: path.relative_to(DOCS).as_posix() for path in sorted(DOCS.rglob("*.md"))}
        pages |= {ROOT / name: place for name, place in ELSEWHERE.items()}
        for path, place in pages.items():
            _put(stage / "pages" / place, _relinked(path, place, pages, stage / "beside"))
        shutil.copy(ROOT / "zensical.toml", stage)
        done = subprocess.run(
            [sys.executable, "-m", "zensical", "build"],
            cwd=stage,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"zensical ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        built = stage / "site"
        shutil.copytree(stage / "beside", built, dirs_exist_ok=True)
        for place in pages.values():  # for whoever reads Markdown: llms.txt names these
            _put(built / place, (stage / "pages" / place).read_text())
        shutil.copy(DOCS / "llms.txt", built)
        problems = list(broken(built))
        shutil.rmtree(site, ignore_errors=True)
        shutil.copytree(built, site)
    return problems


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _relinked(path: Path, place: str, pages: dict[Path, str], beside: Path) -> str:
    """A page with its links as they are in the site; other files that it links to go to `beside`."""

    def link(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(path.parent / found[1]))
        if target == ROOT / "README.md":
            place_of = "index.md"
        elif target in pages:
            place_of = pages[target]
        else:
            # As text, which a browser shows; and no module of the package that holds the site.
            listing = (
                "".join(f"{each.name}\n" for each in sorted(target.iterdir())) if target.is_dir() else ""
            )
            # A folder whose name begins with a dot would be left out of the wheel.
            place_of = f"files/{target.relative_to(ROOT).as_posix().removeprefix('.')}.txt"
            _put(beside / place_of, listing or target.read_text())
        return os.path.relpath(place_of, Path(place).parent) + (found[2] or "")

    parts = _FENCE.split(path.read_text())
    return "".join(part if part.lstrip().startswith("```") else _LINK.sub(link, part) for part in parts)


class _Page(HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.add(unquote(value))
            elif name == "id" and value:
                self.ids.add(value)


def broken(site: Path) -> Iterator[str]:
    """Each link of a built page that leads nowhere, or out of the site to fetch something."""
    pages = {path: _Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # its links are absolute: it is served at any address
        for target in sorted(page.links):
            if target.startswith(("http:", "https:", "data:")):
                continue
            file, _, anchor = target.partition("#")
            found = Path(os.path.normpath(path.parent / file)) if file else path
            found = found / "index.html" if found.is_dir() else found
            if not found.exists() or (anchor and found in pages and anchor not in pages[found].ids):
                yield f"{path.relative_to(site)}: {target} leads nowhere"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", action="store_true", help="write the generated parts of pages, and stop")
    parser.add_argument("--into", type=Path, default=SITE, metavar="FOLDER", help="where the site goes")
    options = parser.parse_args()
    if options.pages:
        for path, text in generated().items():
            if not path.exists() or path.read_text() != text:
                _put(path, text)
                sys.stdout.write(f"{path.relative_to(ROOT)}\n")
        return 0
    problems = build(options.into)
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
