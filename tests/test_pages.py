"""Every command that a page shows is run as it is written, beside an app that runs, or says why it is not.

A block of commands is run line by line at a terminal, in a folder with the files that its page shows (the
configuration, the Runnable, the policy), or those of the page Start where it shows none. Each page has an
account of its own on one server. Its app runs, has taken three messages, and has one dead letter.

- A command ends with 0, or with the code that the page shows below `$ echo $?`.
- What a page shows of its output is what comes. `...` stands for anything, and times, durations, ports and
  the ids of configurations may be others.
- What goes on until Ctrl-C goes on while the rest of the page is run, and then ends with 0.
- `<!-- not run: REASON -->` before a block leaves it out, for a reason in `REASONS`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nats
import pytest
import yaml
from nats.js.errors import NotFoundError

from processor.embedded import find_binary
from tests.conftest import waited
from tests.running import listens
from tests.terminal import Terminal, at_a_terminal

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (
        ROOT / "README.md",
        ROOT / "SECURITY.md",
        ROOT / "deploy" / "runbook.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    )
}
REASONS = {
    "installs packages",
    "is this suite",
    "takes minutes",
    "needs a release",
    "needs an app with an audit",
    "needs an app with graphs",
    "needs a server of models",
    "needs a recipe",
    "needs the wheel",
    "needs the nats command line",
}
TICKS = "".join(f'{{"symbol": "IBM", "price": {price}}}\n' for price in (3, 5.5, 4))
_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>.*?) -->\n)?(?P<in> *)```(?:console|sh|bash|shell)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
_GOES_ON = re.compile(r"processor (run|dev|tail(?!.* --no-follow))\b")
_NEEDS_APP = re.compile(
    r"processor (?:status|pause|resume|reset|dlq|context|tail|pub)\b|nats (?:pub|request)\b|--server\b"
)
_NOT_STORES = shutil.ignore_patterns(".processor")
# What differs from run to run, and may stand in a page as it was once.
_VARIES = re.compile(
    r"\d{4}-\d\d-\d\d(?=[T ])|\d\d:\d\d:\d\d(?:\.\d+)?Z?|(?<=127\.0\.0\.1:)\d+"
    r"|\b\d+(?:\.\d+)?(?= m?s\b)|\b[0-9a-f]{12}\b"
)


@dataclass(frozen=True)
class Command:
    text: str
    shown: str  # below it, on the page
    exit_code: int = 0


@dataclass(frozen=True)
class Block:
    line: int
    reason: str | None
    commands: list[Command]


def blocks(page: str) -> Iterator[Block]:
    for found in _BLOCK.finditer(page):
        text = re.sub(rf"^{found['in']}", "", found["text"], flags=re.MULTILINE)
        yield Block(page[: found.start()].count("\n") + 1, found["reason"], list(commands(text)))


def commands(text: str) -> Iterator[Command]:
    """The commands of a block with what is shown of each; without a prompt each line is one."""
    if not re.search(r"^\$ ", text, re.MULTILINE):
        yield from (Command(line, "") for line in text.splitlines())
        return
    parts = [part.partition("\n") for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]]
    for (line, _, shown), (following, _, code) in zip(parts, [*parts[1:], ("", "", "")], strict=True):
        if line != "echo $?":
            yield Command(line, shown, int(code) if following == "echo $?" else 0)


def differs(shown: str, came: str) -> bool:
    """Whether what a page shows is not what came."""
    if not shown.strip():
        return False
    pattern = ""
    for line in shown.rstrip().splitlines():
        known = r"\S+".join(re.escape(part) for part in _VARIES.split(line.rstrip()))
        pattern += r"(?:.*\n)*" if line == "..." else known.replace(r"\.\.\.", ".*") + r"\n"
    lines = [line.rstrip() for line in came.rstrip().splitlines()]
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in lines)) is None


class Reader:
    """A person at a terminal who types what a page shows."""

    def __init__(self, folder: Path, url: str, left_open: ExitStack) -> None:
        self._folder = folder
        self._left_open = left_open
        self._going_on: list[tuple[Command, Terminal]] = []
        programs = folder / "bin"
        programs.mkdir(parents=True)
        for name, module in (("processor", "processor"), ("nats", "tests.natscli")):
            (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {module} "$@"\n')
            (programs / name).chmod(0o755)
        own = {n: v for n, v in os.environ.items() if not n.startswith(("NATS_", "PROCESSOR_"))}
        self._env = {**own, "NATS_URL": url, "PYTHONPATH": str(ROOT), "PATH": f"{programs}:{own['PATH']}"}

    def types(self, command: Command) -> None:
        """Run a command until it has ended, or goes on."""
        goes_on = _GOES_ON.search(command.text) is not None
        words = ["sh", "-c", f"exec {command.text}" if goes_on else command.text]
        with ExitStack() as opened:
            terminal = opened.enter_context(at_a_terminal(self._folder, words, self._env, columns=200))
            if goes_on:
                terminal.sees("\n" if " tail " in command.text else "connected to NATS")
                self._going_on.append((command, terminal))
                self._left_open.push(opened.pop_all())
                return
            code = terminal.end()
            said = f"$ {command.text}\n{terminal.text}"
            assert code == command.exit_code, f"{said}[ended with {code}, not with {command.exit_code}]"
            assert not differs(command.shown, terminal.text), (
                f"{said}[is not what is shown:]\n{command.shown}"
            )

    def leaves(self) -> None:
        """Press Ctrl-C for what goes on."""
        for command, terminal in reversed(self._going_on):
            terminal.process.send_signal(signal.SIGINT)
            assert terminal.end() == 0, f"$ {command.text}\n{terminal.text}"

    def begins(self, url: str) -> None:
        """Start the app, and wait until it has taken its messages."""
        self.types(Command("processor run market.yaml", ""))
        asyncio.run(feed(url))


async def feed(url: str) -> None:
    """Publish the messages of an app that is starting, and wait for what becomes of the last one."""
    client = await nats.connect(url)
    stream = client.jetstream()

    async def is_known(subject: str) -> bool:
        with suppress(NotFoundError):
            return bool(await stream.find_stream_name_by_subject(subject))
        return False

    async def is_a_dead_letter() -> bool:
        with suppress(NotFoundError):
            return bool(await stream.get_last_msg("P_market", "p.market.dlq.stats.>"))
        return False

    await waited(partial(is_known, "ticks.IBM"), "the app has made its input", 30)
    for line in [*TICKS.splitlines(), '{"price": "x"}']:
        await stream.publish("ticks.IBM", line.encode())
    await waited(is_a_dead_letter, "the message that cannot be processed is a dead letter", 30)
    await client.close()


def files(page: str) -> dict[str, str]:
    """The configuration and what it names, as a page shows them; those of Start where it shows none."""
    [config, *_] = [*fenced(page, "yaml", r"^app: "), *fenced(PAGES["docs/start.md"], "yaml", r"^app: ")]
    found = {"market.yaml": config, "ticks.jsonl": TICKS}
    data = yaml.safe_load(config)
    programs = fenced(page if config in page else PAGES["docs/start.md"], "python", r"^class Runnable")
    for route in data["routes"].values():
        # A page that is about something else may leave the Runnable to its reader.
        found[route["runnable"]] = programs.pop(0) if programs else "class Runnable:\n    process = list\n"
    found |= dict(zip(data.get("policy", ()), fenced(page, "toml", ""), strict=False))
    return found


def fenced(page: str, language: str, having: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [text for text in found if re.search(having, text, re.MULTILINE)]


RUN = [name for name, text in PAGES.items() if any(block.reason is None for block in blocks(text))]


def user_of(page: str) -> str:
    return re.sub(r"\W", "-", page)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that has an account for each page."""
    folder = tmp_path_factory.mktemp("server")
    accounts = {
        page: {"jetstream": True, "users": [{"user": user_of(page), "password": "secret"}]} for page in RUN
    }
    config = {"jetstream": {"store_dir": str(folder / "store")}, "accounts": accounts}
    (folder / "server.conf").write_text(json.dumps(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(find_binary()), "-a", "127.0.0.1", "-p", str(port), "-c", str(folder / "server.conf")]
    process = subprocess.Popen([*command, "-l", str(folder / "server.log")])
    try:
        waited(lambda: listens(port), "the server listens")
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_do_what_is_said(page: str, server: str, tmp_path: Path) -> None:
    """Run in their order by somebody who has followed the page so far, each does what the page shows."""
    found = [command for block in blocks(PAGES[page]) if block.reason is None for command in block.commands]
    url = f"nats://{user_of(page)}:secret@{server}"
    with ExitStack() as left_open:
        reader = Reader(tmp_path, url, left_open)
        for name, text in files(PAGES[page]).items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        if any("configs/" in command.text for command in found):
            shutil.copytree(ROOT / "configs", tmp_path / "configs", ignore=_NOT_STORES)
        if any(_NEEDS_APP.search(command.text) for command in found):
            reader.begins(url)
        for command in found:
            reader.types(command)
        reader.leaves()


@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_run_has_a_reason(page: str) -> None:
    """Each comment that leaves something out has a reason of the list, and a block right below it."""
    said = re.findall(r"^ *<!-- not run: (.*?) -->$", PAGES[page], re.MULTILINE)
    assert said == [block.reason for block in blocks(PAGES[page]) if block.reason is not None]
    assert set(said) <= REASONS


def test_every_reason_is_in_use() -> None:
    """No reason waits for a command that somebody would rather not run."""
    assert {block.reason for text in PAGES.values() for block in blocks(text)} - {None} == REASONS


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("$ echo one\none\n$ echo two\ntwo\n", None),
        ("$ echo 'at 08:00:00, took 3 ms'\nat 12:34:56.789, took 41.5 ms\n", None),
        ("$ printf 'one\\ntwo\\nthree\\nfour\\n'\none\n...\nf...r\n", None),
        ("$ exit 3\n$ echo $?\n3\n", None),
        ("$ echo one\ntwo\n", "is not what is shown"),
        ("$ echo one; echo two\none\n", "is not what is shown"),
        ("$ exit 3\n", "ended with 3, not with 0"),
        ("$ true\n$ echo $?\n1\n", "ended with 0, not with 1"),
    ],
)
def test_what_a_page_gets_wrong_is_found(lines: str, said: str | None, tmp_path: Path) -> None:
    """The reader of these tests sees an output, and an end, that is not as the page has it."""
    [block] = blocks(f"```console\n{lines}```\n")
    with ExitStack() as left_open:
        reader = Reader(tmp_path, "nats://127.0.0.1:1", left_open)
        with nullcontext() if said is None else pytest.raises(AssertionError, match=said):
            for command in block.commands:
                reader.types(command)
