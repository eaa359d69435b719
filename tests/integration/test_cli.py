"""The command line as it is used: real processes, a real server, real guests.

`command` starts a process of `processor` and keeps what it writes; `done` is one that has ended.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from processor.cli import VERBS
from processor.cli.terminal import (
    EXIT_BROKER,
    EXIT_CONFIG,
    EXIT_DIRTY,
    EXIT_FAILED,
    EXIT_OK,
    EXITS,
)
from processor.embedded import EmbeddedServer, find_binary
from processor.errors import ERRORS
from tests.conftest import waited

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 30.0

COUNT = """
class Runnable:
    def init(self):
        self.context["n"] = 0

    def process(self, queries):
        outputs = []
        for query in queries:
            if query.get("fail"):
                raise ValueError(query["fail"])
            self.context["n"] += 1
            outputs.append({"i": query["i"], "n": self.context["n"]})
        if self.context["n"] == 3:
            self.event("third", {"n": 3})
            self.logger.info("three of them")
        return outputs
"""
ROUTE = """\
app: app
routes:
  r:
    input: {subject: "in.*", create: true}
    runnable: count.py
    output: out
    events: events
"""


class Process:
    """A process of the command line; what it wrote so far is `out` and `err`."""

    def __init__(self, arguments: tuple[object, ...], folder: Path, env: dict[str, str]) -> None:
        number = len(list(folder.glob("out-*")))
        self._out, self._err = folder / f"out-{number}", folder / f"err-{number}"
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "processor", *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                cwd=folder,
                env=env,
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def documents(self) -> list[Any]:
        """Standard output as JSON lines; the last may not be whole yet."""
        return [json.loads(line) for line in self.out.splitlines(keepends=True) if line.endswith("\n")]

    def says(self, text: str) -> None:
        """Wait until it has written `text` to standard error."""
        waited(lambda: text in self.err or self.process.poll() is not None, f"{text!r} is said", DEADLINE_S)
        assert text in self.err

    def ends(self, how: signal.Signals | None = None) -> int:
        """Its exit code, after a signal."""
        if how is not None:
            self.process.send_signal(how)
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(DEADLINE_S)


Start = Callable[..., Process]


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Start]:
    """`command("run", path, url=...)` starts `processor run`; killed after the test if it still runs."""
    started: list[Process] = []

    def start(*arguments: object, url: str = "", given: str | None = None, **more: str) -> Process:
        own = {
            name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "PROCESSOR_"))
        }
        env = {**own, "PYTHONPATH": str(ROOT), "PROCESSOR_HTTP_PORT": "0", "NO_COLOR": "1", **more}
        process = Process(arguments, tmp_path, {**env, "NATS_URL": url} if url else env)
        started.append(process)
        if given is not None:
            assert process.process.stdin is not None
            process.process.stdin.write(given.encode())
            process.process.stdin.close()
        return process

    yield start
    for each in started:
        if each.process.stdin is not None:
            each.process.stdin.close()
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


@pytest.fixture
def done(command: Start) -> Callable[..., Process]:
    """`done("check", path)` runs a command to its end."""

    def run(*arguments: object, **options: Any) -> Process:
        process = command(*arguments, **options)
        process.ends()
        return process

    return run


@pytest.fixture
def route(tmp_path: Path) -> Path:
    """A configuration with one route that counts."""
    (tmp_path / "count.py").write_text(COUNT)
    path = tmp_path / "app.yaml"
    path.write_text(ROUTE)
    return path


@pytest.fixture
def quickstart(tmp_path: Path) -> Path:
    """The shipped tour, in a folder of its own."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs", ignore=shutil.ignore_patterns(".processor"))
    return tmp_path / "configs" / "quickstart.yaml"


def code(process: Process) -> int:
    return int(process.process.returncode)


def faults(process: Process) -> list[str]:
    """What it wrote to standard error but for the last line, which names the page of exactly these codes."""
    *lines, page = process.err.splitlines()
    codes = sorted({found for line in lines for found in re.findall(r"\bE\d{3}\b", line)})
    place = f"#{codes[0].lower()}" if len(codes) == 1 else ""
    assert page == f"reference/errors/{place} has more, and so has: processor explain {' '.join(codes)}"
    return lines


# help


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_ends_with_examples(verb: str, done: Start) -> None:
    """The last thing that `--help` says is how the verb is used, line by line as it would be typed."""
    shown = done(verb, "--help")
    assert code(shown) == EXIT_OK
    examples = shown.out.rpartition("\nExamples:\n")[2].splitlines()
    assert examples
    assert all(line.startswith("  ") and f"processor {verb}" in line for line in examples)


def test_help_names_every_verb_and_exit_code(done: Start) -> None:
    """`processor --help` is the whole list of verbs and exit codes."""
    shown = done("--help").out
    for verb in VERBS:
        assert re.search(rf"^│ {verb} ", shown, re.MULTILINE)
    for number, (name, meaning) in EXITS.items():
        assert f"{number:3}  {name:16}  {meaning}" in shown


@pytest.mark.parametrize("verb", ["dlq", "status"])
def test_an_argument_that_may_be_left_out_has_one_pair_of_brackets(verb: str, done: Start) -> None:
    """`[ROUTE]`, as every other such argument."""
    shown = done(verb, "--help").out
    assert "[ROUTE]" in shown
    assert "[[ROUTE" not in shown


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("dlq", "list", "app.yaml"), "Invalid value for 'ACTION': 'list' is not one of 'ls', 'show',"),
        (
            ("check", "--format", "yaml"),
            "Invalid value for '--format': 'yaml' is not one of 'human', 'json'.",
        ),
    ],
    ids=["argument", "option"],
)
def test_a_choice_that_there_is_not_is_named_beside_those_there_are(
    arguments: tuple[str, ...], said: str, done: Start
) -> None:
    """In words for who typed it."""
    shown = done(*arguments)
    assert code(shown) == EXIT_CONFIG
    assert f"│ {said} " in re.sub(r"\s*│\n│ ", " ", shown.err)


@pytest.mark.parametrize("verb", ["pub", "tail"])
def test_a_server_is_named_once(verb: str, route: Path, done: Start) -> None:
    """`--url` beside a configuration, which names the server too, is refused."""
    shown = done(verb, "in.a", "-c", route, "--url", "nats://127.0.0.1:1", given="")
    assert code(shown) == EXIT_CONFIG
    assert "--config and --url exclude each other" in shown.err


def test_help_of_reset_says_what_becomes_of_what_waits(done: Start) -> None:
    """Which is not always read again; and in which zone a time is."""
    shown = " ".join(re.sub("[│\n]", " ", done("reset", "--help").out).split())
    assert "What waited for another try is given up: it is read again only where it comes after" in shown
    assert "Dead letters stay." in shown
    assert "one without a zone is local" in shown


def test_a_fault_of_ours_asks_for_a_report() -> None:
    """An exception that nobody foresaw shows its traceback and one sentence, and exits 1."""
    program = (
        "import sys\nfrom processor import cli\n"
        "def broken() -> int:\n    'Break.\\n\\nExamples:\\nprocessor broken'\n    return {}['nothing']\n"
        "cli.VERBS['broken'] = broken\nsys.exit(cli.main(['broken']))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert ended.returncode == EXIT_FAILED
    assert "KeyError: 'nothing'" in ended.stderr
    assert "This is a fault in Processor" in ended.stderr.splitlines()[-1]


# check


def test_check_shows_what_will_happen(route: Path, done: Start) -> None:
    """A sound configuration is shown as it is used, with the jail's layers and each route's guarantees."""
    shown = done("check", route, "--full")
    assert code(shown) == EXIT_OK
    assert "  app: app\n" in shown.out
    assert "attempts: 3" in shown.out
    assert re.search(r"^sandbox level (isolated|confined|process)$", shown.out, re.MULTILINE)
    assert "Outputs to out: exactly once" in shown.out


def test_check_for_programs_is_one_json_object(route: Path, done: Start) -> None:
    """With `--format json` the report is one line, whatever it says."""
    [report] = done("check", route, "--format", "json").documents
    assert report["faults"] == report["problems"] == []
    assert report["config"]["routes"]["r"]["output"]["subject"] == "out"
    assert report["routes"]["r"]["guarantee"]


def test_a_method_that_nothing_calls_is_a_warning_of_check_and_try(
    tmp_path: Path, route: Path, done: Start
) -> None:
    """A Runnable that works is not refused for a method that may be a slip, but the slip is named."""
    source = (
        "class Runnable:\n    def process(self, queries): return queries\n    def on_timer(self, t): pass\n"
    )
    (tmp_path / "slip.py").write_text(source)
    (tmp_path / "in.jsonl").write_text('{"a":1}\n')
    route.write_text(ROUTE + "  s: {input: s, runnable: slip.py, output: t}\n")
    warning = "slip.py:3:5 E207 Processor does not call `on_timer` of Runnable; it calls init, process, "
    for verb in (["check", route], ["try", route, "s", tmp_path / "in.jsonl"]):
        shown = done(*verb)
        assert code(shown) == EXIT_OK
        assert [line for line in shown.err.splitlines() if warning in line and line.startswith("warning: ")]
    [report] = done("check", route, "--format", "json").documents
    assert [(w["line"], w["code"]) for w in report["warnings"]] == [(3, "E207")]


def test_a_runnable_that_would_do_nothing_is_refused(tmp_path: Path, route: Path, done: Start) -> None:
    """`check`, `try` and `run` know the mode of the route, and stop before a message is taken."""
    (tmp_path / "stream.py").write_text("class Runnable:\n    def process_stream(self, query): yield query\n")
    (tmp_path / "in.jsonl").write_text('{"a":1}\n')
    route.write_text(ROUTE + "  s: {input: s, runnable: stream.py, output: t}\n")
    for verb in (["check", route], ["try", route, "s", tmp_path / "in.jsonl"]):
        shown = done(*verb)
        assert code(shown) == EXIT_CONFIG
        assert "stream.py:2:5 E207 Runnable has no `process`, which mode batch calls" in shown.err
    route.write_text(ROUTE + "  s: {input: s, mode: stream, runnable: stream.py, output: t}\n")
    assert code(done("check", route)) == EXIT_OK


def test_check_finds_all_faults_of_a_configuration_at_once(route: Path, done: Start) -> None:
    """Each fault is one line with file, line, column and code; the exit code is EXIT_CONFIG."""
    route.write_text(
        "ap: x\n" + ROUTE.replace("output: out", "outptu: out") + "  s: {input: a, runnable: no.py}\n"
    )
    shown = done("check", route)
    assert code(shown) == EXIT_CONFIG
    assert shown.out == ""
    places = [line.removeprefix(f"{route}:").split()[:2] for line in faults(shown)]
    assert places == [["1:1", "E103"], ["7:5", "E103"], ["9:17", "E107"]]


def test_check_finds_the_faults_of_all_runnables_at_once(tmp_path: Path, route: Path, done: Start) -> None:
    """Every Runnable is compiled in a real guest, and what the language refuses is named at its line."""
    (tmp_path / "open.py").write_text("class Runnable:\n    def process(self, queries):\n        return (\n")
    (tmp_path / "os.py").write_text(
        "import os\n\n\nclass Runnable:\n    def process(self, queries):\n        pass\n"
    )
    route.write_text(ROUTE + "  a: {input: a, runnable: open.py}\n  b: {input: b, runnable: os.py}\n")
    shown = done("check", route, "--format", "json")
    assert code(shown) == EXIT_CONFIG
    [report] = shown.documents
    found = [(Path(f["file"]).name, f["line"], f["code"]) for f in report["faults"]]
    assert found == [("open.py", 3, "E201"), ("os.py", 1, "E203")]


def test_a_faulty_configuration_hides_no_fault_of_its_runnables(
    tmp_path: Path, route: Path, done: Start
) -> None:
    """Both are shown together, also for the route whose keys are wrong."""
    (tmp_path / "count.py").write_text(
        "class Runnable:\n    def process(self, queries):\n        open('x')\n"
    )
    route.write_text(ROUTE.replace("output: out", "outptu: out"))
    shown = done("check", route)
    assert code(shown) == EXIT_CONFIG
    places = [" ".join(Path(line).name.split()[:2]) for line in faults(shown)]
    assert places == ["app.yaml:6:5 E103", "count.py:3:9 E202"], shown.err


def plain(route: Path, *packages: str) -> None:
    """Make the route one in plain Python."""
    names = "".join(f"\n      - {name}" for name in packages)
    route.write_text(f"{ROUTE}    language: python\n    packages:{names}\n")
    (route.parent / "count.py").write_text(f"import os, {packages[-1]}\n{COUNT}")


def test_check_and_try_know_plain_python_and_its_packages(route: Path, done: Start) -> None:
    """Both load the route with its packages, and `check` says that only the jail holds it."""
    plain(route, "pydantic")
    shown = done("check", route, "--full")
    assert code(shown) == EXIT_OK, shown.err
    assert "  - Language: plain Python with pydantic; only the jail holds it." in shown.out
    tried = done("try", route, "r", "-", given='{"i": 1}\n')
    assert code(tried) == EXIT_OK, tried.err
    assert '{"i":1,"n":1}' in tried.out


@pytest.mark.parametrize("verb", [("check",), ("try", "r", "-")], ids=lambda verb: verb[0])
def test_a_package_that_is_not_installed_is_a_fault_at_its_place(
    verb: tuple[str, ...], route: Path, done: Start
) -> None:
    """File, line and column of the name, and the nearest one that is installed."""
    plain(route, "pydantic", "orjsn")
    first, *rest = verb
    shown = done(first, route, *rest, given='{"i": 1}\n')
    assert code(shown) == EXIT_CONFIG
    assert faults(shown) == [
        f"{route}:11:9 E505 routes.r.packages.1: the package 'orjsn' is not installed beside Processor. "
        "Did you mean 'orjson'?"
    ]


def test_check_prints_the_schema(done: Start) -> None:
    """`--schema` needs no configuration."""
    [schema] = done("check", "--schema").documents
    assert schema["properties"]["routes"]


@pytest.mark.parametrize("arguments", [("check", "app.yaml"), ("run", "app.yaml"), ("pub", "x")])
def test_a_seed_that_nobody_can_log_in_with_is_a_fault_of_the_environment(
    arguments: tuple[str, ...], route: Path, done: Start
) -> None:
    """Said before anything is connected, without the value."""
    shown = done(*arguments, NATS_NKEY_SEED="c4n4ry", given="")
    assert code(shown) == EXIT_CONFIG
    [line] = faults(shown)
    assert line.startswith("$NATS_NKEY_SEED:1:1 E108 nats.nkey_seed is no nkey seed of a user")
    assert "c4n4ry" not in shown.out + shown.err


def test_check_of_a_server_names_what_is_missing(
    route: Path, done: Start, nats_server: EmbeddedServer
) -> None:
    """An input that no stream holds is a problem of the server, and nothing is created on it."""
    route.write_text(ROUTE.replace(", create: true", ""))
    shown = done("check", route, "--server", url=nats_server.url)
    assert code(shown) == EXIT_BROKER
    assert "E401 no stream holds 'in.*', the input of route r." in shown.err
    created = "stream app-out will be created (max_age 7d, max_bytes 10GiB)"
    assert f"out: {created} and copies committed outputs: exactly once" in shown.out
    assert done("tail", ">", "--no-follow", url=nats_server.url).err.startswith("E401 no stream holds >")


def test_check_of_a_server_names_missing_permissions(
    route: Path, done: Start, tmp_path: Path, free_port: int
) -> None:
    """A user who may not commit is told which subjects are closed to him, before anything runs."""
    conf = tmp_path / "server.conf"
    conf.write_text(
        f'listen: "127.0.0.1:{free_port}"\njetstream {{store_dir: "{tmp_path / "store"}"}}\n'
        "authorization {users = [{user: u, password: p, permissions: {publish: {"
        'allow: ["$JS.API.>", "$SYS.REQ.USER.INFO", "p.app.pos.>"]}}}]}\n'
    )
    server = subprocess.Popen([str(find_binary()), "-c", str(conf), "-l", str(tmp_path / "log")])
    try:
        waited(lambda: listens(free_port), "the server listens")
        shown = done("check", route, "--server", url=f"nats://u:p@127.0.0.1:{free_port}")
    finally:
        server.kill()
        server.wait()
    assert code(shown) == EXIT_BROKER
    assert any(
        line.startswith("E403 the user may not publish to p.app.ctx.r.0.1.=all, p.app.dlq.r.0.1, ")
        for line in faults(shown)
    )
    assert "p.app.pos" not in shown.err
    assert "JS.API" not in shown.err


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


# try


def test_try_shows_all_that_a_route_does(route: Path, done: Start) -> None:
    """Outputs, events, logs and contexts of a run in the real guest, without any server."""
    shown = done("try", route, "r", "-", given="".join(f'{{"i": {i}}}\n' for i in range(3)))
    assert code(shown) == EXIT_OK
    *outputs, event, context = shown.documents
    assert [output["data"] for output in outputs] == [{"i": i, "n": i + 1} for i in range(3)]
    assert {output["subject"] for output in outputs} == {"out"}
    assert (event["kind"], event["subject"], event["data"]["data"]) == ("event", "events", {"n": 3})
    assert context == {"kind": "context", "key": "", "items": {"n": 3}}
    assert "three of them" in shown.err
    assert shown.err.endswith("3 messages: 3 outputs, 1 event\n")


def test_check_and_try_know_the_outside(route: Path, done: Start) -> None:
    """`check` says what a route may reach and with which secrets; `try` asks like a running route."""
    source = "        self.requests.get('http://b.example/', headers={'key': self.secrets['key']})"
    (route.parent / "count.py").write_text(f"class Runnable:\n    def process(self, queries):\n{source}\n")
    text = route.read_text() + "    outbound: [a.example]\n    secrets: [key]\n"
    route.write_text(text + "secrets: {key: {env: OUR_KEY, hosts: [a.example]}}\n")
    missing = done("check", route)
    assert code(missing) == EXIT_CONFIG
    assert "E108 secrets.key.env is OUR_KEY, which is not set" in missing.err
    shown = done("check", route, "--full", OUR_KEY="CANARY-1").out
    assert "  - Outside: a.example; 50 calls a message, 5 s each, 5 redirects.\n" in shown
    assert "  - Secret key: for a.example.\n" in shown
    tried = done("try", route, "r", "-", given="{}\n", OUR_KEY="CANARY-1")
    assert code(tried) == EXIT_FAILED
    [letter] = [document for document in tried.documents if document["kind"] == "dead letter"]
    assert letter["code"] == "E325"
    assert "To allow it: routes.r.outbound.allowed_domains: [b.example]" in letter["reason"]
    assert "CANARY" not in shown + tried.out + tried.err


def test_try_says_what_calls_are_made_again(route: Path, done: Start) -> None:
    """A message that calls is tried three times; what `calls.replay` does not keep is called three times."""
    source = "        self.requests.post('http://127.0.0.1:1/')"
    (route.parent / "count.py").write_text(f"class Runnable:\n    def process(self, queries):\n{source}\n")
    route.write_text(route.read_text() + "    outbound: ['127.0.0.1:1']\n")
    tried = done("try", route, "r", "-", given="{}\n")
    assert code(tried) == EXIT_FAILED
    assert "2 calls were made again in a later try of a message; `calls.replay` says which" in tried.err


def test_try_names_the_line_that_fails(route: Path, tmp_path: Path, done: Start) -> None:
    """A message that fails is shown with its place, code and the user's traceback; the others go through."""
    (tmp_path / "in.jsonl").write_text('{"i": 1}\n\n{"fail": "badly"}\nno json\n{"i": 2}\n')
    shown = done("try", route, "r", "in.jsonl")
    assert code(shown) == EXIT_FAILED
    letters = [document for document in shown.documents if document["kind"] == "dead letter"]
    assert [(d["place"], d["code"], d["attempts"]) for d in letters] == [
        ("in.jsonl:3:1", "E304", 3),
        ("in.jsonl:4:1", "E301", 1),
    ]
    assert letters[0]["reason"] == "ValueError: badly"
    assert 'raise ValueError(query["fail"])' in letters[0]["traceback"]
    assert [d["data"]["n"] for d in shown.documents if d["kind"] == "output"] == [1, 2]


def test_try_shows_what_is_dropped(route: Path, tmp_path: Path, done: Start) -> None:
    """Like a dead letter, in its place among the outputs; only its kind says that nothing is kept."""
    route.write_text(ROUTE.replace("events: events", "events: events\n    retry: {attempts: 2, then: drop}"))
    (tmp_path / "in.jsonl").write_text('{"i": 1}\n{"fail": "badly"}\nno json\n{"i": 2}\n')
    shown = done("try", route, "r", "in.jsonl")
    assert code(shown) == EXIT_FAILED
    dropped = next(document for document in shown.documents if document["kind"] == "dropped")
    assert 'raise ValueError(query["fail"])' in dropped.pop("traceback")
    assert dropped == {
        "kind": "dropped",
        "subject": "in.x",
        "place": "in.jsonl:2:1",
        "code": "E304",
        "reason": "ValueError: badly",
        "attempts": 2,
    }
    events = [document["data"]["event"] for document in shown.documents if document["kind"] == "event"]
    assert sorted(events) == ["dead_lettered", "dropped"]
    kinds = [document["kind"] for document in shown.documents if document["kind"] != "event"]
    assert sorted(kinds) == ["context", "dead letter", "dropped", "output", "output"]
    assert kinds.index("output") < kinds.index("dropped")
    assert shown.err.endswith("4 messages: 2 outputs, 2 events, 1 dead letter, 1 dropped\n")


def test_try_does_not_wait_for_the_breaker(route: Path, tmp_path: Path, done: Start) -> None:
    """Guests that die one after the other cost tries, and no pause."""
    (tmp_path / "count.py").write_text(COUNT.replace("raise ValueError", "self.all = 'x' * (1 << 40)\n#"))
    route.write_text(ROUTE + "    breaker: {deaths: 2, pause_s: 3600}\n")
    shown = done("try", route, "r", "-", given='{"fail": 1}\n{"fail": 2}\n{"i": 1}\n')
    assert code(shown) == EXIT_FAILED
    letters = [d for d in shown.documents if d["kind"] == "dead letter"]
    assert [d["code"] for d in letters] == ["E313", "E313"]
    assert [d["data"] for d in shown.documents if d["kind"] == "output"] == [{"i": 1, "n": 1}]
    assert "E503" not in shown.err


def test_try_takes_envelopes(route: Path, done: Start) -> None:
    """With `--envelope` each line brings its own subject and headers, as `tail` writes them."""
    route.write_text(ROUTE.replace("output: out", "output: 'out.{subject.2}'\n    key: header.who"))
    line = {"subject": "in.b", "headers": {"who": "ann"}, "data": {"i": 7}}
    shown = done("try", route, "r", "-", "--envelope", given=json.dumps(line) + "\n")
    assert [(d["subject"], d["data"]) for d in shown.documents[:1]] == [("out.b", {"i": 7, "n": 1})]
    assert shown.documents[1] == {"kind": "context", "key": "ann", "items": {"n": 1}}


def test_try_tells_which_line_a_message_is(route: Path, done: Start) -> None:
    """What `try` gives a Runnable as its messages: subject and headers of the line, its number, its tries."""
    (route.parent / "count.py").write_text(
        "class Runnable:\n    def process(self, queries):\n"
        "        message = self.message\n"
        "        if message.attempt == 1:\n            raise Retry()\n"
        "        place = [message.subject, message.sequence, message.attempt]\n"
        "        return [[self.key, *place, dict(message.headers)]]\n"
    )
    route.write_text(ROUTE + "    key: subject.2\n    retry: {attempts: 2}\n")
    line = {"subject": "in.b", "headers": {"who": "ann"}, "data": {"i": 7}}
    shown = done("try", route, "r", "-", "--envelope", given=json.dumps(line) + "\n")
    assert [d["data"] for d in shown.documents if d.get("subject") == "out"] == [
        ["b", "in.b", 1, 2, {"who": "ann"}]
    ]


def test_integers_of_any_size_stay_what_they_are(tmp_path: Path, done: Start) -> None:
    """As key, token of a subject, output, event and kept value, and in an envelope, no digit is lost."""
    config = tmp_path / "big.yaml"
    config.write_text(
        "app: app\nroutes:\n  r:\n    input: in.*\n    key: json./id\n    output: out.{id}\n"
        "    events: ev\n    code: |\n"
        "      class Runnable:\n"
        "          def process(self, queries):\n"
        "              self.context['last'] = queries[0]['id']\n"
        "              self.event('seen', queries[0])\n"
        "              return queries\n"
    )
    numbers = [2**64 - 1, 2**64, 2**128, -(2**63) - 1, 2**700]
    lines = "".join(json.dumps({"data": {"id": number}}) + "\n" for number in numbers)
    shown = done("try", config, "r", "-", "--envelope", "--format", "json", given=lines)
    assert code(shown) == EXIT_OK
    found = [json.loads(line) for line in shown.out.splitlines()]
    outputs = [(line["subject"], line["data"]) for line in found if line["kind"] == "output"]
    assert outputs == [(f"out.{number}", {"id": number}) for number in numbers]
    assert [line["data"]["data"] for line in found if line["kind"] == "event"] == [{"id": n} for n in numbers]
    contexts = {line["key"]: line["items"]["last"] for line in found if line["kind"] == "context"}
    assert contexts == {str(number): number for number in numbers}


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("rr", "-"), "E110 has no route 'rr'. Did you mean r?"),
        (
            ("r", "no.jsonl"),
            f"no.jsonl E107 cannot be read: No such file or directory. {ERRORS['E107'].remedy}",
        ),
    ],
)
def test_try_refuses_what_it_cannot_use(
    arguments: tuple[str, ...], sentence: str, route: Path, done: Start
) -> None:
    """What is wrong with the command line is one line, without a traceback."""
    shown = done("try", route, *arguments, given="")
    assert code(shown) == EXIT_CONFIG
    [line] = faults(shown)
    assert line.endswith(sentence)


@pytest.mark.parametrize(
    "option, given, sentence",
    [
        (["--subject", "in.{i}"], '{"who": 1}\n{"i": 2}\n', "stdin:1:1 E104 {i} of 'in.{i}' has no value."),
        (
            ["--envelope"],
            '{"i": 1}\n{"subject": "in.2", "data": {"i": 2}}\n',
            "stdin:1:1 E104 is not an envelope: one of `data`",
        ),
    ],
)
def test_try_leaves_out_a_line_that_it_cannot_use(
    option: list[str], given: str, sentence: str, route: Path, done: Start
) -> None:
    """The line is named, those after it are tried, and the exit code says that not all were."""
    shown = done("try", route, "r", "-", *option, "--format", "json", given=given)
    assert code(shown) == EXIT_FAILED
    assert sentence in shown.err
    outputs = [line for line in map(json.loads, shown.out.splitlines()) if line["kind"] == "output"]
    assert [(line["subject"], line["data"]["i"]) for line in outputs] == [("out", 2)]


def test_try_on_the_quickstart_makes_subjects_from_its_feed(quickstart: Path, done: Start) -> None:
    """Without `--subject` a line gets the subject that `dev` would publish it to."""
    shown = done("try", quickstart, "stats", quickstart.parent / "ticks.jsonl")
    contexts = {d["key"]: d["items"]["count"] for d in shown.documents if d["kind"] == "context"}
    assert contexts == {"AAPL": 123, "AMZN": 123, "GOOG": 68, "IBM": 123, "MSFT": 123}


# pub, tail, context


def test_messages_go_in_and_what_became_of_them_comes_out(
    route: Path, command: Start, done: Start, nats_server: EmbeddedServer
) -> None:
    """`pub` feeds a running route; `tail` shows its outputs and dead letters, `context` what it keeps."""
    run = command("run", route, url=nats_server.url)
    run.says("route started")
    lines = '{"i": 1, "who": "a"}\n{"fail": "no", "who": "b"}\n{"i": 2, "who": "c"}\n'
    published = done("pub", "in.{who}", "-H", "source: test", url=nats_server.url, given=lines)
    assert (code(published), published.err) == (EXIT_OK, "3 messages to in.{who}: 3 stored in app-in-any\n")

    shown = command("tail", "r", "-c", route, "--from-start", "--count", "4", url=nats_server.url)
    assert shown.ends() == EXIT_OK
    found = {(d.get("kind", "output"), d["subject"]) for d in shown.documents}
    assert found == {("output", "out"), ("event", "events"), ("dead letter", "in.b")}
    [letter] = [d for d in shown.documents if d.get("kind") == "dead letter"]
    assert (letter["code"], letter["reason"]) == ("E304", "ValueError: no")
    people = command("tail", "r", "-c", route, "--format", "human", "--count", "4", url=nats_server.url)
    assert people.ends() == EXIT_OK
    assert " dead letter r.0.2 in.b E304 ValueError: no {" in people.out

    assert done("context", route, "r", url=nats_server.url).documents == [{"key": "", "context": {"n": 2}}]
    [inputs] = [done("tail", "in.b", "--no-follow", url=nats_server.url).documents]
    assert [(d["subject"], d["headers"], d["data"]["fail"]) for d in inputs] == [
        ("in.b", {"source": "test"}, "no")
    ]
    assert run.ends(signal.SIGTERM) == EXIT_OK


def test_tail_begins_where_it_is_told(
    done: Start, command: Start, nats_server: EmbeddedServer, route: Path
) -> None:
    """The last N of a subject are found behind others, and new messages follow without a gap."""
    run = command("run", route, url=nats_server.url)
    run.says("route started")
    assert run.ends(signal.SIGINT) == EXIT_OK
    done("pub", "in.rare", given="1\n2\n3\n", url=nats_server.url)
    done("pub", "in.other", "--count", "300", given="0\n", url=nats_server.url)
    last = done("tail", "in.rare", "--last", "2", "--no-follow", url=nats_server.url)
    assert [d["data"] for d in last.documents] == [2, 3]
    following = command("tail", "in.rare", "--last", "1", url=nats_server.url)
    waited(lambda: following.documents, "the last one is shown", DEADLINE_S)
    done("pub", "in.rare", given="4\n5\n", url=nats_server.url)
    waited(lambda: len(following.documents) == 3, "new ones are shown", DEADLINE_S)
    assert [d["data"] for d in following.documents] == [3, 4, 5]
    assert following.ends(signal.SIGINT) == EXIT_OK


def test_dead_letters_are_listed_sent_back_and_dropped(
    route: Path, command: Start, done: Start, nats_server: EmbeddedServer
) -> None:
    """`dlq` finds the letters that are meant, by each of its options, and changes only these."""
    route.write_text(ROUTE + "    retry: {attempts: 1}\n")

    def dlq(action: str, *options: str) -> Process:
        return done("dlq", action, route, *options, url=nats_server.url, given="")

    def ids(*options: str) -> list[str]:
        return [letter["id"] for letter in dlq("ls", *options).documents]

    run = command("run", route, url=nats_server.url)
    run.says("route started")
    lines = '{"fail": "one"}\n{"i": 1}\n{"fail": "two"}\nno JSON\n'
    done("pub", "in.a", url=nats_server.url, given=lines)
    waited(lambda: len(ids()) == 3, "three letters", DEADLINE_S)
    assert run.ends(signal.SIGTERM) == EXIT_OK

    one, two, three = ids("r")
    assert (one, two, three) == ("r.0.1", "r.0.3", "r.0.4")
    assert ids("--limit", "1") == [one]
    assert ids("--id", two) == [two]
    assert ids("--reason", "E301") == [three]
    assert ids("--since", "1h") == [one, two, three]
    assert ids("--since", "2999-01-31") == []
    [shown] = dlq("show", "--id", two).documents
    assert (shown["code"], shown["reason"], shown["subject"]) == ("E304", "ValueError: two", "in.a")
    assert shown["data"] == {"fail": "two"}
    lines_of_people = dlq("show", "--id", two, "--format", "human").out
    assert "r.0.3 E304 ValueError: two" in lines_of_people
    assert "count.py" in lines_of_people

    for options in (["--reason", "E999"], ["--since", "soon"]):
        assert code(dlq("ls", *options)) == EXIT_CONFIG
    assert code(dlq("ls", "--id", "r.0.2")) == EXIT_FAILED
    unasked = dlq("drop", "r")
    assert (code(unasked), len(ids())) == (EXIT_CONFIG, 3)
    assert "dropping is for good; say --yes" in " ".join(unasked.err.split())

    assert dlq("drop", "--yes", "--limit", "1").documents == [{"id": one, "done": True, "action": "drop"}]
    sent = dlq("redrive", "--id", two)
    assert sent.err == "1 of 1 sent back to its route\n"
    assert ids() == [three]

    route.write_text(ROUTE.replace("  r:", "  other:"))
    lost = dlq("redrive")
    assert (code(lost), ids()) == (EXIT_FAILED, [three])
    assert "r.0.4 stays: the configuration has no route r to process it" in lost.err


def test_a_route_is_looked_at_paused_resumed_and_reset(
    route: Path, command: Start, done: Start, nats_server: EmbeddedServer
) -> None:
    """`status` says what `pause`, `resume` and `reset` have done, and fails where nobody runs a route."""

    def tell(*arguments: object) -> Process:
        return done(*arguments, url=nats_server.url, given="")

    def counts(n: int) -> None:
        kept = [{"key": "", "context": {"n": n}}]
        waited(lambda: tell("context", route, "r").documents == kept, f"{n} are counted", DEADLINE_S)

    never = tell("status", route)
    assert (code(never), never.err[:5]) == (EXIT_BROKER, "E401 ")
    run = command("run", route, url=nats_server.url)
    run.says("route started")
    done("pub", "in.a", url=nats_server.url, given='{"i": 1}\n{"i": 2}\n{"i": 3}\n')
    counts(3)
    shown = tell("status", route, "r")
    member, state = shown.documents
    assert (code(shown), member["routes"]) == (EXIT_OK, ["r"])
    assert (state["input"], state["last_sequence"], state["paused"]) == ("app-in-any", 3, False)
    assert [(p["owner"], p["position"]) for p in state["partitions"]] == [(member["member"], 3)]

    assert tell("pause", route, "r", "--reason", "moving").err == "route r is paused, also over restarts\n"
    run.says(": moving")
    _, state = tell("status", route).documents
    assert (state["paused"], state["reason"]) == (True, "moving")
    assert ": moving" in tell("status", route, "--format", "human").out
    assert tell("resume", route, "r").err == "route r goes on\n"
    _, state = tell("status", route).documents
    assert (state["paused"], state["reason"]) == (False, "")

    unasked = tell("reset", route, "r", "--to", "start")
    assert code(unasked) == EXIT_CONFIG
    assert "outputs will be made again; say --yes" in " ".join(unasked.err.split())
    assert code(tell("reset", route, "r", "--to", "0", "--yes")) == EXIT_CONFIG
    beyond = tell("reset", route, "r", "--to", "5", "--yes")
    assert code(beyond) == EXIT_CONFIG
    assert "its next message is 4" in " ".join(re.sub("[│\n]", " ", beyond.err).split())
    again = tell("reset", route, "r", "--to", "start", "--keep-context", "--yes")
    assert again.err == "route r: from position 3 to 0 of app-in-any, with its contexts (1 partition)\n"
    counts(6)
    assert code(tell("reset", route, "r", "--to", "2", "--yes")) == EXIT_OK
    counts(2)
    assert code(tell("reset", route, "r", "--to", "2020-01-31T08:00", "--yes")) == EXIT_OK
    counts(3)

    assert run.ends(signal.SIGTERM) == EXIT_OK
    alone = tell("status", route)
    assert (code(alone), alone.err) == (EXIT_FAILED, "no processor of this app answers\n")


def test_a_subject_without_a_stream_is_live(command: Start, done: Start, nats_server: EmbeddedServer) -> None:
    """`pub` says that nobody keeps the messages, and `tail` shows them to whoever looks on."""
    shown = command("tail", "news", "--count", "1", url=nats_server.url)
    shown.says("no stream holds news; showing messages as they pass")

    def heard() -> bool:
        published = done("pub", "news", given="hello\n", url=nats_server.url)
        assert published.err == "1 message to news: 1 sent to live subscribers (no stream holds them)\n"
        return shown.process.poll() is not None

    waited(heard, "the message is shown", DEADLINE_S)
    assert [(d["subject"], d["text"]) for d in shown.documents] == [("news", "hello")]


def test_a_route_that_there_is_not_is_answered_with_those_there_are(
    route: Path, command: Start, done: Start, nats_server: EmbeddedServer
) -> None:
    """A name that is neither a route of the configuration nor a subject of a stream was meant to be one."""
    shown = done("tail", "nope", "-c", route, "--no-follow", url=nats_server.url)
    assert code(shown) == EXIT_BROKER
    assert faults(shown) == ["E401 no stream holds nope. The routes of app are r."]
    following = command("tail", "nope", "-c", route, url=nats_server.url)
    following.says("no stream holds nope; showing messages as they pass. The routes of app are r.\n")


def test_messages_are_not_lost_at_a_server_of_their_own(route: Path, command: Start, done: Start) -> None:
    """`pub` fails where nobody can be there to hear; where a stream is left from a start, it keeps them."""
    route.write_text(ROUTE + "nats: embedded\n")
    lost = done("pub", "in.a", "-c", route, given='{"i": 1}\n')
    assert code(lost) == EXIT_FAILED
    [line] = faults(lost)
    assert line.startswith(
        "stdin:1:1 E401 no stream holds in.a, and the embedded server runs for this command"
    )
    assert line.endswith("Start the app first (processor dev CONFIG), or create the stream.")
    run = command("run", route)
    run.says("route started")
    heard = done("pub", "news", "-c", route, given="hello\n")
    assert (code(heard), heard.err[:40]) == (EXIT_OK, "1 message to news: 1 sent to live subscr")
    assert run.ends(signal.SIGTERM) == EXIT_OK
    kept = done("pub", "in.a", "-c", route, given='{"i": 1}\n')
    assert (code(kept), kept.err) == (EXIT_OK, "1 message to in.a: 1 stored in app-in-any\n")


def test_status_says_how_far_a_route_is(
    route: Path, command: Start, done: Start, nats_server: EmbeddedServer
) -> None:
    """By the partition that is furthest: others may never have had a message."""
    route.write_text(ROUTE + "    key: subject.2\n    partitions: 3\n")
    run = command("run", route, url=nats_server.url)
    run.says("route started")
    done("pub", "in.a", given='{"i": 1}\n{"i": 2}\n', url=nats_server.url)

    def caught_up() -> bool:
        return "nothing behind" in done("status", route, "--format", "human", url=nats_server.url).out

    waited(caught_up, "the route has caught up", DEADLINE_S)
    shown = done("status", route, "--format", "human", url=nats_server.url).out.splitlines()
    assert shown[2] == "route r"
    assert shown[4] == "  input app-in-any: at 2 of 2, nothing behind"
    assert re.fullmatch(r"  3 of 3 partitions: \S+, at 2", shown[5])
    assert run.ends(signal.SIGTERM) == EXIT_OK
    done("pub", "in.a", given='{"i": 3}\n', url=nats_server.url)
    [document] = done("status", route, "--format", "json", url=nats_server.url).documents
    assert (document["behind"], document["highest_position"], document["last_sequence"]) == (1, 2, 3)
    assert document["lowest_position"] == min(part["position"] for part in document["partitions"])
    stopped = done("status", route, "--format", "human", url=nats_server.url)
    assert code(stopped) == EXIT_FAILED
    assert "  input app-in-any: at 2 of 3, 1 message behind\n" in stopped.out


def test_status_counts_one_as_one(
    route: Path, command: Start, done: Start, nats_server: EmbeddedServer
) -> None:
    """One partition, one key that is blocked with its message; and a route that says why it is stopped."""
    route.write_text(
        ROUTE
        + "    key: subject.2\n    retry: {attempts: 1, max_ms: 3600000, then: block}\n    partitions: 1\n"
        + "  lost: {input: nowhere, runnable: count.py}\n"
    )
    run = command("run", route, url=nats_server.url)
    run.says("route started")
    done("pub", "in.a", given='{"fail": "no"}\n', url=nats_server.url)

    def status() -> str:
        return done("status", route, "--format", "human", url=nats_server.url).out

    held = "  1 key blocked, with 1 message held: 'a' (1)\n"
    waited(lambda: held in status(), "the key is blocked", DEADLINE_S)
    assert " 1 of 1 partition: " in status()
    assert re.search(r"route lost\n  since \S+Z: E401 no stream holds 'nowhere'.* \(\S+\)\n", status())
    assert run.ends(signal.SIGKILL) != EXIT_OK
    waited(lambda: "1 partition has no processor" in status(), "the processor is gone", DEADLINE_S)


@pytest.mark.parametrize(
    "arguments",
    [
        ("tail", "x"), ("pub", "x"), ("context", "app.yaml", "r"), ("check", "app.yaml", "--server"),
        ("dlq", "ls", "app.yaml"), ("status", "app.yaml"), ("pause", "app.yaml", "r"),
        ("resume", "app.yaml", "r"), ("reset", "app.yaml", "r", "--to", "start"),
    ],
)  # fmt: skip
def test_a_server_that_is_not_there_is_said_in_one_line(
    arguments: tuple[str, ...], route: Path, done: Start, free_port: int
) -> None:
    """Commands other than `run` and `dev` do not wait for a server."""
    shown = done(*arguments, url=f"nats://127.0.0.1:{free_port}", given="")
    assert code(shown) == EXIT_BROKER
    [line] = faults(shown)
    assert line.startswith(f"E404 no NATS server answers at nats://127.0.0.1:{free_port}")


def test_a_reader_that_goes_away_is_no_error(route: Path, tmp_path: Path) -> None:
    """A pipe that is closed early ends a command in silence."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    lines = "".join(f'{{"i": {i}}}\n' for i in range(20_000))
    (tmp_path / "many.jsonl").write_text(lines)
    trying = subprocess.Popen(
        [sys.executable, "-m", "processor", "try", str(route), "r", str(tmp_path / "many.jsonl")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
    )
    assert trying.stdout is not None
    assert trying.stdout.readline()
    trying.stdout.close()
    _, said = trying.communicate(timeout=DEADLINE_S)
    assert b"Traceback" not in said
    assert b"BrokenPipe" not in said


# run


def test_run_refuses_to_start_with_a_fault(
    route: Path, tmp_path: Path, done: Start, nats_server: EmbeddedServer
) -> None:
    """A Runnable that does not compile is named at its line, and nothing runs."""
    (tmp_path / "count.py").write_text("class Runnable:\n    def process(self:\n")
    refused = done("run", route, url=nats_server.url)
    assert code(refused) == EXIT_CONFIG
    assert f"{tmp_path / 'count.py'}:2:16 E201" in faults(refused)[-1]


def test_run_waits_for_its_server_and_can_be_stopped_meanwhile(
    route: Path, command: Start, free_port: int
) -> None:
    """A server that is not there yet is waited for; a stop is clean all the same."""
    run = command("run", route, url=f"nats://127.0.0.1:{free_port}")
    run.says("E404 no NATS server answers")
    assert run.ends(signal.SIGTERM) == EXIT_OK


def test_a_reload_takes_what_is_sound_and_refuses_the_rest(
    route: Path, tmp_path: Path, command: Start, done: Start, nats_server: EmbeddedServer
) -> None:
    """SIGHUP brings a changed Runnable in, keeps the context, and leaves the old one running at a fault."""
    run = command("run", route, url=nats_server.url)
    run.says("route started")
    done("pub", "in.a", given='{"i": 1}\n', url=nats_server.url)
    (tmp_path / "count.py").write_text("class Runnable:\n    def process(self:\n")
    run.process.send_signal(signal.SIGHUP)
    run.says(f"not reloaded: {tmp_path / 'count.py'}:2:16 E201")
    done("pub", "in.a", given='{"i": 2}\n', url=nats_server.url)
    (tmp_path / "count.py").write_text(COUNT.replace('{"i": query["i"]', '{"new": query["i"]'))
    run.process.send_signal(signal.SIGHUP)
    run.says("reloaded; started: r")
    done("pub", "in.a", given='{"i": 3}\n', url=nats_server.url)
    outputs = command("tail", "out", "--from-start", "--count", "3", url=nats_server.url)
    assert outputs.ends() == EXIT_OK
    assert [d["data"] for d in outputs.documents] == [{"i": 1, "n": 1}, {"i": 2, "n": 2}, {"new": 3, "n": 3}]
    assert run.ends(signal.SIGTERM) == EXIT_OK


def test_watch_reloads_by_itself(
    route: Path, tmp_path: Path, command: Start, nats_server: EmbeddedServer
) -> None:
    """With `--watch` a changed Runnable or configuration needs no signal."""
    run = command("run", route, "--watch", url=nats_server.url)
    run.says("route started")
    (tmp_path / "count.py").write_text(COUNT + "\n# changed\n")
    run.says("reloaded; started: r")
    route.write_text(ROUTE.replace("output:", "outptu:"))
    run.says(f"not reloaded: {route}:6:5 E103")
    assert run.ends(signal.SIGTERM) == EXIT_OK


BUSY = """
class Runnable:
    def process(self, queries):
        print("begun")
        while True:
            pass
"""
BUSY_ROUTE = ROUTE + "    limits: {cpu_s: 300, wall_s: 300}\n"


def test_a_second_signal_ends_at_once(
    route: Path, tmp_path: Path, command: Start, done: Start, nats_server: EmbeddedServer
) -> None:
    """The first signal waits for what is in hand; the second does not, and the exit code says so."""
    (tmp_path / "count.py").write_text(BUSY)
    route.write_text(BUSY_ROUTE + "drain_s: 300\n")
    run = command("run", route, url=nats_server.url)
    run.says("route started")
    done("pub", "in.a", given="{}\n", url=nats_server.url)
    waited(lambda: is_working(nats_server, done, route), "the message is in hand", DEADLINE_S)
    run.process.send_signal(signal.SIGINT)
    run.says("SIGINT: stopping")
    assert run.ends(signal.SIGINT) == EXIT_DIRTY


def test_a_drain_that_takes_too_long_is_dirty(
    route: Path, tmp_path: Path, command: Start, done: Start, nats_server: EmbeddedServer
) -> None:
    """What is in hand after `drain_s` is given up, and the exit code says so."""
    (tmp_path / "count.py").write_text(BUSY)
    route.write_text(BUSY_ROUTE + "drain_s: 0.1\n")
    run = command("run", route, url=nats_server.url)
    run.says("route started")
    done("pub", "in.a", given="{}\n", url=nats_server.url)
    waited(lambda: is_working(nats_server, done, route), "the message is in hand", DEADLINE_S)
    assert run.ends(signal.SIGTERM) == EXIT_DIRTY
    assert "were not drained within 0.1 s" in run.err


def is_working(server: EmbeddedServer, done: Start, route: Path) -> bool:
    return "(limits, 1 messages)" in done("check", route, "--server", url=server.url).out


# dev


def came(out: str, subject: str) -> int:
    """The messages of a subject that `dev` has shown or counted."""
    counted = re.findall(rf"^\S+ \.\.\. (\d+) more, the last: {subject}", out, re.MULTILINE)
    return len(re.findall(rf"^\S+ {subject}", out, re.MULTILINE)) + sum(map(int, counted))


def test_dev_shows_the_tour_and_goes_on_at_the_second_start(
    quickstart: Path, command: Start, done: Start
) -> None:
    """Outputs, events and chunks appear; Ctrl-C is a clean end; the next start counts on."""
    first = command("dev", quickstart)
    waited(lambda: "counted" in first.out, "there is a first output", DEADLINE_S)
    waited(lambda: came(first.out, "counted") == 560, "the whole feed is counted", DEADLINE_S)
    waited(lambda: came(first.out, "stats.") == 560, "and kept per symbol", DEADLINE_S)
    waited(lambda: " event events.stats " in first.out, "events are shown", DEADLINE_S)
    waited(lambda: " stories." in first.out, "chunks are shown", DEADLINE_S)
    assert 20 < first.out.count("\n") < 400  # of 1,600 messages, as many as a person can look at
    assert re.search(r"^NATS     nats://127\.0\.0\.1:\d+  \(data in .*\)$", first.err, re.MULTILINE)
    assert re.search(r"^metrics  http://127\.0\.0\.1:\d+/metrics$", first.err, re.MULTILINE)
    # While it runs, other commands find its server.
    assert done("context", quickstart, "counter").documents == [{"key": "", "context": {"counter": 560}}]
    assert first.ends(signal.SIGINT) == EXIT_OK
    assert "Traceback" not in first.err

    second = command("dev", quickstart, "--no-feed")
    second.says("route started")
    done("pub", "ticks.{symbol}", "-c", quickstart, given='{"symbol": "NEW", "date": "x", "price": 1}\n')
    waited(lambda: '"index":561,' in second.out, "the count goes on", DEADLINE_S)
    assert second.ends(signal.SIGTERM) == EXIT_OK
    assert second.out.count(" counted ") == 1

    again = command("dev", quickstart)
    waited(lambda: '"index":1121,' in again.out, "the feed is published again and counted on", DEADLINE_S)
    assert again.ends(signal.SIGINT) == EXIT_OK


def test_a_feed_that_was_cut_off_goes_on_with_the_next_line(
    quickstart: Path, command: Start, done: Start
) -> None:
    """After kill -9 in the middle of the feed, every line is in the stream once."""
    feed = quickstart.parent / "ticks.jsonl"
    lines = feed.read_text() * 20
    feed.write_text(lines)
    count = lines.count("\n")
    first = command("dev", quickstart)
    waited(lambda: "counted" in first.out, "there is a first output", DEADLINE_S)
    first.ends(signal.SIGKILL)
    second = command("dev", quickstart)
    second.says("feed: done")
    waited(lambda: f'"index":{count},' in second.out, "every line is counted", DEADLINE_S)
    assert second.ends(signal.SIGINT) == EXIT_OK
    fed = done("tail", "ticks.*", "-c", quickstart, "--from-start", "--no-follow")
    assert [d["data"] for d in fed.documents] == [json.loads(line) for line in lines.splitlines()]


def test_dev_refuses_a_feed_that_no_route_reads(quickstart: Path, done: Start) -> None:
    """A feed whose subject is the input of no route would show nothing, so it is a fault."""
    quickstart.write_text(quickstart.read_text().replace("ticks.{symbol}", "prices.{symbol}"))
    refused = done("dev", quickstart)
    assert code(refused) == EXIT_CONFIG
    assert "E106 dev.subject 'prices.{symbol}' is the input of no route" in refused.err
