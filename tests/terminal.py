"""A command on a terminal, of 80 columns and 24 lines unless said otherwise, and what a person sees there."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
COLUMNS, LINES = 80, 24


class Terminal:
    """What one process shows; `end` reads until it has ended."""

    def __init__(self, screen: int, process: subprocess.Popen[bytes]) -> None:
        self._screen = screen
        self._seen = b""
        self.process = process

    @property
    def text(self) -> str:
        """All that was shown so far."""
        return self._seen.decode(errors="replace").replace("\r\n", "\n")

    def sees(self, text: str, deadline_s: float = 30) -> None:
        """Wait until `text` is shown."""
        until_s = time.monotonic() + deadline_s
        while text not in self.text:
            assert self._read(until_s - time.monotonic()), f"{text!r} is not shown, but:\n{self.text}"

    def end(self) -> int:
        """The exit code, once everything was read."""
        while self._read(30):
            pass
        return self.process.wait(30)

    def _read(self, wait_s: float) -> bool:
        if not select.select([self._screen], [], [], max(0.0, wait_s))[0]:
            return False
        try:
            part = os.read(self._screen, 4096)
        except OSError:  # how a terminal says that nobody is at the other end
            return False
        self._seen += part
        return bool(part)


@contextmanager
def on_a_terminal(folder: Path, *arguments: object, **env: str) -> Iterator[Terminal]:
    """Run a command of ours at the terminal; it is killed if it still runs when the block ends."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "PROCESSOR_"))}
    command = [sys.executable, "-m", "processor", *map(str, arguments)]
    with at_a_terminal(folder, command, {**own, "PYTHONPATH": str(ROOT), **env}, columns=COLUMNS) as terminal:
        yield terminal


@contextmanager
def at_a_terminal(
    folder: Path, command: Sequence[str], env: dict[str, str], *, columns: int
) -> Iterator[Terminal]:
    """Run any command at a terminal; it is killed if it still runs when the block ends."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env={"PROCESSOR_HTTP_PORT": "0", "NO_COLOR": "1", **env},
    )
    os.close(theirs)
    try:
        yield Terminal(ours, process)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
