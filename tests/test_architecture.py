"""The shape of the package, checked by reading its source: who may import whom, and what no file may hold.

Every rule is a function from a parsed source tree to sentences about what breaks it, and is tried twice:
on our tree, where it must find nothing, and on a small tree that breaks it, where it must not be silent.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the top, in the words of the picture in docs/contributing.md: a room imports from those below it. In a
# room, a module imports from the rows below its own, and from no other module of its row. A package without
# rows of its own is one module to the others; what is inside of it may not import in a circle.
ROOMS: list[tuple[str, str, list[list[str]]]] = [
    ("cli/", "reads a command line, calls a room below, and shows the answer; no rule is made here", []),
    ("bench/", "measures, beside programs that others would write", []),
    ("service.py", "composes and supervises one process: connection, routes, reload", []),
    ("authority.py", "the SDK of the Authority Kernel for scripts, in memory or on an app", []),
    (
        "operate/",
        "what people and programs ask of an app: status, control, dead letters, edits, requests over NATS",
        [
            ["api", "mcp"],
            ["verbs"],
            ["audit_export", "lag", "route_board", "runs"],
            ["graphs"],
            ["forms"],
            ["audits", "budgets", "edits", "notary", "retention", "status"],
            ["control", "dead_letters", "journal", "proof"],
        ],
    ),
    (
        "recipes/",
        "steps over one context: what a recipe is, the graph that it becomes, and runs without a broker",
        [
            ["bridge", "local", "pools"],
            ["shell", "snapshots"],
            ["authoring", "context", "scriptlets", "selection", "tree"],
        ],
    ),
    (
        "graphs/",
        "graphs of typed nodes: definitions and checks, the state machine of runs, and what drives it",
        [
            ["runtime"],
            ["client"],
            ["keeper", "local"],
            ["triggers"],
            ["engine"],
            ["inline", "pools", "shelf"],
            ["outbox", "steps"],
            ["nodes", "registry", "vault"],
            ["known"],
            ["runs"],
            ["machine"],
            ["retrying"],
            ["advance"],
            ["slices"],
            ["outcomes"],
            ["branches"],
            ["sizes"],
            ["progress"],
            ["history", "versions"],
        ],
    ),
    (
        "delivery/",
        "the life of a message: from its stream through a guest into one commit; `worker.py` is the path",
        [
            ["lanes", "repartition", "watch"],
            ["worker", "streams"],
            ["retrying"],
            ["plan"],
            ["auditing", "guests"],
            ["settle"],
            ["chunks", "gate"],
            ["effects"],
            ["backlog", "hand", "holdings", "key_change", "memory"],
            ["audit_copy", "breaker", "codec", "due", "members", "observe", "pace", "work_queue"],
            ["publisher", "replay", "runner", "source", "store", "waiting"],
        ],
    ),
    ("library.py release.py", "the jail without a broker; whether a release is what was signed", []),
    (
        "capability/",
        "everything that a guest may ask of its host, and how the host does it: calls, HTTP, secrets",
        [
            ["registry"],
            ["monitor"],
            [
                "allowance",
                "authorization",
                "files",
                "heap",
                "inference",
                "outbound",
                "remarks",
                "services",
                "tools",
            ],
            ["pulls"],
            ["row"],
            ["arguments", "connections"],
            ["completions", "mcp"],
            ["secrets", "toolbox"],
            ["budgets", "client", "declared", "permit", "roots", "streams"],
            ["dialer"],
            ["answers", "events"],
        ],
    ),
    ("health.py", "the HTTP server of a process: metrics, health, and what is mounted beside them", []),
    ("telemetry.py", "what operators see: metrics, readiness, the log", []),
    (
        "context/",
        "what a route keeps in the app's stream: positions, contexts, their history, parked messages",
        [
            ["store", "visit"],
            ["committer"],
            ["late", "reading", "route_chains"],
            ["placement"],
            ["chains", "history", "ledger", "position", "sightings"],
            ["parked"],
            ["subjects"],
        ],
    ),
    ("jetstream/", "everything that speaks NATS", []),
    ("config/", "from YAML to routes: keys, rules, texts", []),
    (
        "sandbox/",
        "the wall: `host.py` | `wire.py` | `guest.py`, the language, and the jail",
        [
            ["host", "guest", "shell", "shellbox", "toolbox", "workers"],
            ["steps"],
            ["loop", "nodes", "plain_nodes", "turns"],
            ["locks"],
            ["cells", "channel", "nursery", "wasi"],
            ["entrypoints", "modules", "reasons", "results", "shellwire", "toolwire"],
            ["plain", "restricted"],
            ["httpx"],
            ["requests"],
            ["pulls"],
            ["capabilities"],
            ["calls", "clock", "inference"],
            ["link", "tally"],
            ["endings", "shell_jail"],
            ["dialect", "heap", "jail", "packages", "wire", "launch"],
            ["syscalls"],
            ["objects"],
            ["facades", "values"],
            ["kernel"],
            ["documents"],
            ["blackboard", "bounds", "languages", "messages", "offer", "processes", "remedies", "usage"],
        ],
    ),
    ("embedded.py", "the nats-server of `dev` and of tests", []),
    ("route.py", "the ground: a route as it runs, whether or not a file has it", []),
    ("policy/", "the ground: what the lines of policy files say about one call", []),
    ("audit.py", "the ground: what an audit record is, and the chain that binds its entries", []),
    ("notes.py", "the ground: the tree over a log, signed notes about it, and their keys", []),
    ("reach.py", "the ground: what a route may reach outside: hosts, servers, secrets", []),
    ("schema.py", "the ground: what values fit a JSON Schema", []),
    ("subject.py schedule.py address.py printable.py", "the ground: texts with rules of their own", []),
    ("model.py", "the ground: the values that pass between rooms, and the rule for a message's fate", []),
    ("errors.py", "the ground: every code, with its remedy", []),
    ("runnable.py", "what users import: the base class, as editors and unit tests see it", []),
]


def entries_of(rooms: str, rows: list[list[str]]) -> list[list[str]]:
    """The rows of a line of ROOMS, by the names of its modules."""
    names = [name.removesuffix("/").removesuffix(".py") for name in rooms.split()]
    return [[f"{names[0]}.{name}" for name in row] for row in rows] or [names]


# The old address of `library`, which people import from, lies above what it stands for.
LAYERS = [["__main__"], *chain.from_iterable(entries_of(rooms, rows) for rooms, _, rows in ROOMS)]
LAYERS.insert(LAYERS.index(["library", "release"]), ["sandbox.library"])
# What a graph or a recipe is, as people write it, is ground: the configuration holds them, and finds their
# faults.
LAYERS[LAYERS.index(["config"]) + 1 : 0] = [
    ["recipes.graph", "recipes.programs", "recipes.success"],
    ["recipes.definition"],
    ["graphs.checks", "graphs.pictures"],
    ["graphs.plan"],
    ["graphs.definition"],
    ["graphs.template"],
]
# A package with rows is a word on what belongs there, and imports nothing.
FACES = {"", *(rooms.removesuffix("/") for rooms, _, rows in ROOMS if rows)}
LAYERS.append(sorted(FACES))
WORDS = {
    name.removesuffix("/").removesuffix(".py"): words for rooms, words, _ in ROOMS for name in rooms.split()
}

OWNERS = {
    "nats": {"jetstream", "bench"},  # the bench's hand-written programs to compare with
    "faststream": {"bench"},
    "natsio": {"bench"},
    "RestrictedPython": {"sandbox.dialect"},
    "prometheus_client": {"telemetry"},
    "aiohttp": {"capability.dialer", "health", "jetstream"},  # the last keeps it from nats-py
    "aiohappyeyeballs": {"capability.dialer"},
    "yarl": {"capability.dialer"},
    "certifi": {"capability.client"},
    "idna": {"address"},
    "nacl": {"graphs.vault", "notes"},
    "jsonschema_rs": {"schema"},
    "greenlet": {"sandbox.turns"},
    "wasmtime": {"sandbox.toolbox", "sandbox.wasi"},
    "jsonpatch": {"sandbox.heap"},
    "jsonpointer": {"sandbox.heap"},
    "typer": {"cli"},
    "click": {"cli"},
    "rich": {"cli"},
    "ruamel": {"config"},
    "pydantic": {
        "config",
        "graphs.checks",
        "graphs.client",
        "graphs.definition",
        "graphs.nodes",
        "recipes.definition",
        "sandbox.plain_nodes",
    },
    "pydantic_core": {"config"},
}
SHARED = {"orjson"}

# A guest is hostile ground, and is forked in a millisecond: it holds neither credentials nor big libraries.
GUEST = "sandbox.guest"
IN_A_GUEST = {"RestrictedPython", "greenlet", "jsonpatch", "jsonpointer"}
NOT_IN_A_GUEST = {"asyncio", "ssl", "socketserver", *OWNERS} - IN_A_GUEST

# Folders of programs that tests feed to the sandbox: data, not code of ours.
PROGRAMS = {"allowed", "denied", "hostile"}

NO_NOUN = {"utils", "helpers", "types", "base", "interfaces", "common", "misc"}
LINES = 1000

# Nothing is known about what these catch: code of a user, a lane, a task of the service, a request,
# what takes messages.
WALLS = {
    "sandbox.calls", "sandbox.guest", "sandbox.host", "sandbox.dialect", "sandbox.packages", "service",
    "delivery.codec", "delivery.effects", "delivery.plan", "delivery.repartition", "delivery.worker",
    "graphs.engine", "graphs.nodes", "jetstream.intake", "jetstream.micro", "jetstream.reader",
    "jetstream.subscription", "operate.mcp",
}  # fmt: skip


METHODS = 25
# Classes with more methods, and why they are not several.
MANY_METHODS = {
    "context.store.ContextStore": "a method for each thing that a worker asks of what its route keeps",
    "delivery.memory.MemoryStore": "as ContextStore, in memory",
    "sandbox.dialect.Transformer": "the standard visitor finds its method for each kind of node by name",
    "service.Service": "the wiring of one process: what starts, stops and tells each other; rules are below",
    "telemetry.RouteTelemetry": "a method for each fact that a worker reports, in the words of the metric",
}


@dataclass(frozen=True)
class Module:
    name: str  # below the package: "sandbox.host"; the package itself is ""
    path: Path
    text: str
    tree: ast.Module


@functools.cache
def modules_of(package: Path) -> dict[str, Module]:
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if PROGRAMS & set(parts):
            continue
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text()
        found[name] = Module(name, path, text, ast.parse(text))
    return found


def imports_of(module: Module, modules: dict[str, Module]) -> Iterator[tuple[str, bool]]:
    """What a module imports at any depth: (name below the package, True) or (top-level name, False)."""
    is_package = module.path.name == "__init__.py"
    for node in ast.walk(module.tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                here = ["processor", *module.name.split(".")] if module.name else ["processor"]
                base = here[: len(here) - node.level + is_package]
                source = ".".join([*base, *filter(None, [node.module])])
            names = [f"{source}.{alias.name}" for alias in node.names]
        for name in names:
            top, _, rest = name.partition(".")
            if top != "processor":
                yield top, False
            elif rest in modules:
                yield rest, True
            else:  # a name inside a module
                yield rest.rpartition(".")[0], True


def part_of(name: str) -> str:
    """The entry of LAYERS that a module belongs to: its own, or that of the package it is inside of."""
    entries = {entry for row in LAYERS for entry in row}
    parent = name.rpartition(".")[0]
    return name if name in entries or parent not in entries - FACES else parent


def told(name: str) -> str:
    """What ROOMS says of the room that a module lies in."""
    room = name.partition(".")[0]
    return f" ({room}: {WORDS[room]})" if room in WORDS else ""


def upward_imports(modules: dict[str, Module]) -> Iterator[str]:
    depth = {name: row for row, names in enumerate(LAYERS) for name in names}
    for module in modules.values():
        part = part_of(module.name)
        if part not in depth:
            yield f"{module.name} has no place in LAYERS"
            continue
        for name, ours in dict.fromkeys(imports_of(module, modules)):
            if not ours or part_of(name) == part:
                continue
            if depth.get(part_of(name), 0) <= depth[part]:
                yield f"{module.name} imports {name}, which is not below it{told(name)}"
            elif part_of(name) != name:
                yield f"{module.name} imports {name}, which is inside of {part_of(name)}"


def circles(modules: dict[str, Module]) -> Iterator[str]:
    below = {
        module.name: {name for name, ours in imports_of(module, modules) if ours}
        for module in modules.values()
    }
    while free := [name for name, imported in below.items() if not imported & below.keys()]:
        for name in free:
            del below[name]
    if below:
        yield f"{', '.join(below)} import each other"


def second_owners(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        for name, ours in imports_of(module, modules):
            if ours or name in sys.stdlib_module_names or name in SHARED:
                continue
            if part_of(module.name) not in OWNERS.get(name, set()):
                owners = ", ".join(sorted(OWNERS.get(name, ()))) or "nobody"
                yield f"{module.name} imports {name}, which belongs to {owners}"


def reach_of_a_guest(modules: dict[str, Module]) -> Iterator[str]:
    """Follow a guest's imports, and those of the packages that hold them, to what must not be in a guest."""
    chains = {GUEST: GUEST}
    waiting = [GUEST]
    while waiting:
        name = waiting.pop()
        packages = [(parent, True) for parent in ("", "sandbox") if parent in modules]
        for imported, ours in [*imports_of(modules[name], modules), *packages]:
            chain = f"{chains[name]} > {imported or 'processor'}"
            if (ours and part_of(imported) in ("config", "jetstream", "http")) or (
                not ours and imported in NOT_IN_A_GUEST
            ):
                yield f"a guest reaches {chain}"
            if ours and imported in modules and imported not in chains:
                chains[imported] = chain
                waiting.append(imported)


def names_without_a_noun(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        if module.path.stem in NO_NOUN:
            yield f"{module.path.name} says nothing about what it holds"


def overlong_modules(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        if (lines := module.text.count("\n")) > LINES:
            yield f"{module.name} has {lines} lines; {LINES} are the most"


def class_names_used_twice(modules: dict[str, Module]) -> Iterator[str]:
    places: dict[str, list[str]] = {}
    for module in modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(module.name)
    for name, found in places.items():
        if found[1:]:
            yield f"{name} is a class of {' and of '.join(found)}"


def many_methods(modules: dict[str, Module]) -> dict[str, int]:
    """How many methods each class has that has more than METHODS."""
    found = {}
    for module in modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                count = sum(isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) for part in node.body)
                if count > METHODS:
                    found[f"{module.name}.{node.name}"] = count
    return found


def methods_beyond_the_bound(modules: dict[str, Module]) -> Iterator[str]:
    for name, count in many_methods(modules).items():
        if name not in MANY_METHODS:
            yield f"{name} has {count} methods; {METHODS} are the most"


def modules_without_a_word(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        if not ast.get_docstring(module.tree):
            yield f"{module.name} has no docstring"


def walls_of_others(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = (
                {item.id if isinstance(item, ast.Name) else None for item in caught} if node.type else {None}
            )
            too_much = node.type is None or names & {"Exception", "BaseException"}
            passed_on = any(isinstance(part, ast.Raise) for part in ast.walk(node))
            if too_much and not passed_on and module.name not in WALLS:
                yield f"{module.name}:{node.lineno} catches everything"


def lost_cancellations(modules: dict[str, Module]) -> Iterator[str]:
    """In Python 3.11 `wait_for` swallows a cancellation that meets its answer; `asyncio.timeout` does not."""
    for module in modules.values():
        for node in ast.walk(module.tree):
            name = node.func if isinstance(node, ast.Call) else None
            if isinstance(name, ast.Attribute) and ast.unparse(name) == "asyncio.wait_for":
                yield f"{module.name}:{node.lineno} waits with what can lose a cancellation"


def sleeping_tests(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        # A measurement paces itself, and so does a storm; nothing is asserted there.
        if module.name.startswith("bench.") or module.name in ("faults.soak", "faults.runs"):
            continue
        allowed = {
            id(call)
            for function in ast.walk(module.tree)
            if module.name == "conftest"
            and isinstance(function, ast.FunctionDef)
            and function.name == "waited"
            for call in ast.walk(function)
        }
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and id(node) not in allowed:
                called = (
                    node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                )
                if called == "sleep":
                    yield f"{module.name}:{node.lineno} sleeps; wait_until waits for what is meant"


def untold_rules(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        for node in module.tree.body:
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if is_function and node.name.startswith("test_") and not ast.get_docstring(node):
                yield f"{module.name}:{node.lineno} {node.name} does not say its rule"


# Where the subjects of an app's stream, and its name, are put together.
SUBJECTS = {"subject", "context.subjects"}


def subjects_built_elsewhere(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        for node in ast.walk(module.tree):
            text = node.value if isinstance(node, ast.Constant) else None
            if (
                isinstance(text, str)
                and re.search(r"\A(p\.|P_)|\bP_\Z", text)
                and module.name not in SUBJECTS
            ):
                yield f"{module.name}:{node.lineno} has {text[:20]!r}, which context.subjects builds"


Rule = Callable[[dict[str, Module]], Iterator[str]]

PACKAGE_RULES: list[tuple[Rule, dict[str, str], str]] = [
    (
        upward_imports,
        {
            "model.py": "def f():\n    from processor.delivery.worker import Worker",
            "delivery/worker.py": "",
        },
        f"model imports delivery.worker, which is not below it{told('delivery')}",
    ),
    (
        upward_imports,
        {"jetstream.py": "from . import telemetry", "telemetry.py": ""},
        "jetstream imports telemetry, which is not below it (telemetry: what operators see: metrics,"
        " readiness, the log)",
    ),
    (
        upward_imports,
        {"delivery/codec.py": "from . import worker", "delivery/worker.py": ""},
        f"delivery.codec imports delivery.worker, which is not below it{told('delivery')}",
    ),
    (
        upward_imports,
        {"sandbox/wire.py": "from .. import service", "service.py": ""},
        f"sandbox.wire imports service, which is not below it{told('service')}",
    ),
    (upward_imports, {"novelty.py": ""}, "novelty has no place in LAYERS"),
    (
        upward_imports,
        {
            "service.py": "from processor.config.keys import Nats",
            "config/keys.py": "",
            "config/__init__.py": "",
        },
        "service imports config.keys, which is inside of config",
    ),
    (
        circles,
        {"config/__init__.py": "from .keys import Key", "config/keys.py": "from . import load"},
        "config, config.keys import each other",
    ),
    (
        second_owners,
        {"worker.py": "import aiohttp"},
        "worker imports aiohttp, which belongs to capability.dialer, health, jetstream",
    ),
    (second_owners, {"worker.py": "import numpy"}, "worker imports numpy, which belongs to nobody"),
    (
        reach_of_a_guest,
        {
            "sandbox/guest.py": "from processor import model",
            "model.py": "import processor.config",
            "config.py": "",
        },
        "a guest reaches sandbox.guest > model > config",
    ),
    (
        reach_of_a_guest,
        {"sandbox/guest.py": "", "__init__.py": "import nats"},
        "a guest reaches sandbox.guest > processor > nats",
    ),
    (
        reach_of_a_guest,
        {"sandbox/guest.py": "from . import wire", "sandbox/wire.py": "import asyncio"},
        "a guest reaches sandbox.guest > sandbox.wire > asyncio",
    ),
    (names_without_a_noun, {"utils.py": ""}, "utils.py says nothing about what it holds"),
    (
        overlong_modules,
        {"worker.py": "\n" * (LINES + 1)},
        f"worker has {LINES + 1} lines; {LINES} are the most",
    ),
    (
        class_names_used_twice,
        {"model.py": "class Batch: pass", "config.py": "class Batch: pass"},
        "Batch is a class of config and of model",
    ),
    (
        methods_beyond_the_bound,
        {"model.py": "class Batch:\n" + "".join(f"    def f{n}(self): pass\n" for n in range(METHODS + 1))},
        f"model.Batch has {METHODS + 1} methods; {METHODS} are the most",
    ),
    (
        subjects_built_elsewhere,
        {"worker.py": 'def f(app):\n    return f"p.{app}.pos", app.removeprefix("p"), "up.", f"{app}.p"'},
        "worker:2 has 'p.', which context.subjects builds",
    ),
    (
        subjects_built_elsewhere,
        {"worker.py": 'STREAM = "P_app"', "subject.py": 'ROOT = "p.app"'},
        "worker:1 has 'P_app', which context.subjects builds",
    ),
    (modules_without_a_word, {"worker.py": "import os"}, "worker has no docstring"),
    (
        walls_of_others,
        {"model.py": "try:\n    pass\nexcept (KeyError, Exception):\n    pass"},
        "model:3 catches everything",
    ),
    (walls_of_others, {"model.py": "try:\n    pass\nexcept:\n    pass"}, "model:3 catches everything"),
    (
        lost_cancellations,
        {"worker.py": "async def f():\n    await asyncio.wait_for(g(), 1)"},
        "worker:2 waits with what can lose a cancellation",
    ),
]
TEST_RULES: list[tuple[Rule, dict[str, str], str]] = [
    (
        sleeping_tests,
        {"test_x.py": "async def test():\n    await asyncio.sleep(0)"},
        "test_x:2 sleeps; wait_until waits for what is meant",
    ),
    (sleeping_tests, {"conftest.py": "sleep(1)"}, "conftest:1 sleeps; wait_until waits for what is meant"),
    (untold_rules, {"test_x.py": "def test_it(): pass"}, "test_x:1 test_it does not say its rule"),
]


def rules_of(table: list[tuple[Rule, dict[str, str], str]]) -> list[Rule]:
    return list(dict.fromkeys(rule for rule, _, _ in table))


@pytest.mark.parametrize("rule", rules_of(PACKAGE_RULES), ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Rule) -> None:
    """No module of the package breaks a rule of its shape."""
    assert list(rule(modules_of(ROOT / "processor"))) == []


@pytest.mark.parametrize(
    "rule", [*rules_of(TEST_RULES), names_without_a_noun], ids=lambda rule: rule.__name__
)
def test_the_tests_keep_the_rule(rule: Rule) -> None:
    """No test breaks a rule for tests."""
    assert list(rule(modules_of(ROOT / "tests"))) == []


@pytest.mark.parametrize("rule, files, finding", [*PACKAGE_RULES, *TEST_RULES])
def test_a_rule_finds_what_breaks_it(rule: Rule, files: dict[str, str], finding: str, tmp_path: Path) -> None:
    """Each rule names the one thing that is wrong with a small tree that breaks it."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert list(rule(modules_of(tmp_path))) == [finding]


def test_the_layout_shows_the_rooms() -> None:
    """docs/contributing.md shows ROOMS, line by line: the rooms, their order, and their words."""
    page = (ROOT / "docs" / "contributing.md").read_text()
    picture = re.search(r"```text\nprocessor/\n(.*?)```", page, re.DOTALL)
    assert picture, "the page has no picture that begins with processor/"
    shown = picture[1].splitlines()[: len(ROOMS)]
    assert [" ".join(line.split()) for line in shown] == [f"{rooms} {words}" for rooms, words, _ in ROOMS]
    written = {
        path.name + "/" * path.is_dir()
        for path in (ROOT / "processor").iterdir()
        if path.name not in ("__pycache__", "site")  # which docs/build.py writes
    }
    assert written - {"__init__.py", "__main__.py", "py.typed", "runnable.pyi"} == {
        room for rooms, _, _ in ROOMS for room in rooms.split()
    }


def test_a_reason_stands_for_a_class_that_needs_it() -> None:
    """MANY_METHODS names classes that are there and beyond the bound, each with a sentence."""
    assert many_methods(modules_of(ROOT / "processor")).keys() == MANY_METHODS.keys()


def test_a_guest_process_really_holds_no_more() -> None:
    """A fresh interpreter that imports the guest has loaded nothing that a guest must not hold."""
    program = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport processor.{GUEST}\nprint(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False
    )
    assert loaded.returncode == 0, loaded.stderr
    assert not NOT_IN_A_GUEST & {name.partition(".")[0] for name in loaded.stdout.split()}


def test_no_two_files_of_tests_have_one_name() -> None:
    """pytest takes the second for the first, and runs neither."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
