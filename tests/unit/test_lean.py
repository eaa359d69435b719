"""What a command imports on its way to NATS, and what it leaves out until it is needed."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import processor.cli.checking, processor.service
assert "aiohttp" not in sys.modules, "a start pays for it"
import nats.aio.transport
assert nats.aio.transport.aiohttp.ClientSession.__module__ == "aiohttp.client"
assert "aiohttp" in sys.modules
"""


def test_no_command_imports_the_http_client_before_it_makes_a_request() -> None:
    """It is a sixth of what a start takes; nats-py has it still where it is asked for."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
