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
    shown = done("check", route)
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


def test_check_finds_all_faults_of_a_configuration_at_once(route: Path, done: Start) -> None:
    """Each fault is one line with file, line, column and code; the exit code is EXIT_CONFIG."""
    route.write_text(
        "ap: x\n" + ROUTE.replace("output: out", "outptu: out") + "  s: {input: a, runnable: no.py}\n"
    )
    shown = done("check", route)
    assert code(shown) == EXIT_CONFIG
    assert shown.out == ""
    places = [line.removeprefix(f"{route}:").split()[:2] for line in shown.err.splitlines()]
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
    places = [" ".join(Path(line).name.split()[:2]) for line in shown.err.splitlines()]
    assert places == ["app.yaml:6:5 E103", "count.py:3:9 E202"], shown.err


def plain(route: Path, *packages: str) -> None:
    """Make the route one in plain Python."""
    names = "".join(f"\n      - {name}" for name in packages)
    route.write_text(f"{ROUTE}    language: python\n    packages:{names}\n")
    (route.parent / "count.py").write_text(f"import os, {packages[-1]}\n{COUNT}")


def test_check_and_try_know_plain_python_and_its_packages(route: Path, done: Start) -> None:
    """Both load the route with its packages, and `check` says that only the jail holds it."""
    plain(route, "pydantic")
    shown = done("check", route)
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
    assert shown.err.strip() == (
        f"{route}:11:9 E505 routes.r.packages.1: the package 'orjsn' is not installed beside Processor. "
        "Did you mean 'orjson'?"
    )


def test_check_prints_the_schema(done: Start) -> None:
    """`--schema` needs no configuration."""
    [schema] = done("check", "--schema").documents
    assert schema["properties"]["routes"]


def test_check_of_a_server_names_what_is_missing(
    route: Path, done: Start, nats_server: EmbeddedServer
) -> None:
    """An input that no stream holds is a problem of the server, and nothing is created on it."""
    route.write_text(ROUTE.replace(", create: true", ""))
    shown = done("check", route, "--server", url=nats_server.url)
    assert code(shown) == EXIT_BROKER
    assert "E401 no stream holds 'in.*', the input of route r." in shown.err
    assert "out: stream app-out will be created and copies committed outputs: exactly once" in shown.out
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
    assert "E403 the user may not publish to p.app.ctx.r.0.1, p.app.dlq.r.0.1, " in shown.err
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
    shown = done("check", route, OUR_KEY="CANARY-1").out
    assert "  - Outside: a.example; 50 calls a run, 5 s each, 5 redirects.\n" in shown
    assert "  - Secret key: for a.example.\n" in shown
    tried = done("try", route, "r", "-", given="{}\n", OUR_KEY="CANARY-1")
    assert code(tried) == EXIT_FAILED
    [letter] = [document for document in tried.documents if document["kind"] == "dead letter"]
    assert letter["code"] == "E325"
    assert "To allow it: routes.r.outbound.allowed_domains: [b.example]" in letter["reason"]
    assert "CANARY" not in shown + tried.out + tried.err


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


def test_try_takes_envelopes(route: Path, done: Start) -> None:
    """With `--envelope` each line brings its own subject and headers, as `tail` writes them."""
    route.write_text(ROUTE.replace("output: out", "output: 'out.{subject.2}'\n    key: header.who"))
    line = {"subject": "in.b", "headers": {"who": "ann"}, "data": {"i": 7}}
    shown = done("try", route, "r", "-", "--envelope", given=json.dumps(line) + "\n")
    assert [(d["subject"], d["data"]) for d in shown.documents[:1]] == [("out.b", {"i": 7, "n": 1})]
    assert shown.documents[1] == {"kind": "context", "key": "ann", "items": {"n": 1}}


@pytest.mark.parametrize(
    "arguments, given, sentence",
    [
        (("rr", "-"), "", "has no route 'rr'. Did you mean r?"),
        (("r", "no.jsonl"), "", "no.jsonl E107 cannot be read: No such file or directory."),
        (
            ("r", "-", "--subject", "in.{who}"),
            '{"i": 1}\n',
            "stdin:1:1 E104 {who} of 'in.{who}' has no value.",
        ),
        (("r", "-", "--envelope"), '{"i": 1}\n', "stdin:1:1 E104 is no envelope: one of `data`"),
    ],
)
def test_try_refuses_what_it_cannot_use(
    arguments: tuple[str, ...], given: str, sentence: str, route: Path, done: Start
) -> None:
    """What is wrong with the command line or its input is one line, without a traceback."""
    shown = done("try", route, *arguments, given=given)
    assert code(shown) == EXIT_CONFIG
    [line] = shown.err.splitlines()
    assert sentence in line


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
    assert found == {("output", "out"), ("event", "events"), ("dead letter E304 ValueError: no", "in.b")}

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


@pytest.mark.parametrize(
    "arguments",
    [("tail", "x"), ("pub", "x"), ("context", "app.yaml", "r"), ("check", "app.yaml", "--server")],
)
def test_a_server_that_is_not_there_is_said_in_one_line(
    arguments: tuple[str, ...], route: Path, done: Start, free_port: int
) -> None:
    """Commands other than `run` and `dev` do not wait for a server."""
    shown = done(*arguments, url=f"nats://127.0.0.1:{free_port}", given="")
    assert code(shown) == EXIT_BROKER
    [line] = shown.err.splitlines()
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
    assert f"{tmp_path / 'count.py'}:2:16 E201" in refused.err.splitlines()[-1]


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
    run.says("reloaded; started anew: r")
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
    run.says("reloaded; started anew: r")
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


def test_dev_shows_the_tour_and_goes_on_at_the_second_start(
    quickstart: Path, command: Start, done: Start
) -> None:
    """Outputs, events and chunks appear; Ctrl-C is a clean end; the next start counts on."""
    first = command("dev", quickstart)
    waited(lambda: "counted" in first.out, "there is a first output", DEADLINE_S)
    waited(lambda: first.out.count(" counted ") == 560, "the whole feed is counted", DEADLINE_S)
    waited(lambda: first.out.count(" stats.") == 560, "and kept per symbol", DEADLINE_S)
    waited(lambda: " event events.stats " in first.out, "events are shown", DEADLINE_S)
    waited(lambda: " stories." in first.out, "chunks are shown", DEADLINE_S)
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
