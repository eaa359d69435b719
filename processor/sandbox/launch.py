"""How the process of a zygote is started, and the descriptors that it and its guests take."""

from __future__ import annotations

import contextlib
import errno
import resource
import subprocess
import sys
from pathlib import Path
from typing import IO

import orjson

import processor
from processor.sandbox.languages import Footing

_BOOT = """
import sys
sys.path += sys.argv[3:]
import orjson
from processor.sandbox.guest import zygote
zygote(int(sys.argv[1]), *orjson.loads(sys.argv[2]))
"""


def execute(control_fd: int, footing: Footing, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a zygote's process with nothing of ours but our import path. Raises OSError."""
    # -I and -S: no environment, no user's site, no .pth file that runs code.
    names = orjson.dumps([footing.language, footing.packages]).decode()
    command = [sys.executable, "-I", "-S", "-c", _BOOT, str(control_fd), names, *_import_path()]
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
