"""How the process of a zygote is started, and the descriptors that it and its guests take."""

from __future__ import annotations

import contextlib
import errno
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import orjson

import processor
from processor.sandbox.languages import Footing

_BOOT = """
import sys
sys.path += sys.argv[3:]
import orjson
from processor.sandbox.{module} import {function}
{function}(int(sys.argv[1]), *orjson.loads(sys.argv[2]))
"""


def execute(control_fd: int, footing: Footing, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the process that guests of this footing are forked from. Raises OSError."""
    boot = _BOOT.format(module="guest", function="zygote")
    return _started(boot, [footing.language, footing.packages], control_fd, errors)


def execute_toolbox(control_fd: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the process that workers of tools are forked from. Raises OSError."""
    return _started(_BOOT.format(module="toolbox", function="toolbox"), [], control_fd, errors)


def execute_shellbox(control_fd: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the process that watchers over shell steps are forked from. Raises OSError."""
    return _started(_BOOT.format(module="shellbox", function="shellbox"), [], control_fd, errors)


def _started(
    boot: str, arguments: Sequence[object], control_fd: int, errors: IO[bytes]
) -> subprocess.Popen[bytes]:
    """A process with nothing of ours but our import path."""
    # -I and -S: no environment, no user's site, no .pth file that runs code.
    given = orjson.dumps(arguments).decode()
    command = [sys.executable, "-I", "-S", "-c", boot, str(control_fd), given, *_import_path()]
    return subprocess.Popen(
        command,
        env={},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        pass_fds=[control_fd],
        start_new_session=True,  # a Ctrl-C at the terminal is the host's to handle
    )


def out_of_descriptors(err: OSError) -> str:
    """Why a descriptor could not be opened, and which limit to raise where there are too many."""
    if err.errno != errno.EMFILE:
        return err.strerror or str(err)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"all {limit} descriptors of this process are in use (two per guest; raise `ulimit -Hn`)"


def raise_descriptor_limit() -> None:
    """Raise the limit on descriptors of this process as far as it may go: every guest takes two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems refuse what they call unlimited
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _import_path() -> list[str]:
    """Where the zygote finds what we found: our own path, and the directory that holds this package."""
    found = [str(Path(entry).absolute()) for entry in sys.path if not entry or Path(entry).exists()]
    home = str(Path(processor.__path__[0]).absolute().parent)
    return found if home in found else [*found, home]
