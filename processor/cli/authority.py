"""`authority`: a script for the Authority Kernel SDK, run in a guest under the rules of a route."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

from processor.capability.monitor import Mandate
from processor.capability.registry import HostCalls
from processor.cli.inputs import route_of
from processor.cli.terminal import EXIT_FAILED, EXIT_OK, complain
from processor.config import load
from processor.errors import ConfigError
from processor.model import Failed, Group, Module, Outcome, Program
from processor.printable import printable, printable_lines
from processor.route import Route
from processor.sandbox.host import Zygote

_SCRIPT = "script"  # the module that the script is
_FILE = "authority"  # what runs it
_OURS = re.compile(rf'^  File "{_FILE}".*\n(?:    .*\n)*', re.MULTILINE)
_LINES = 10_000
_LOG_BYTES = 4 << 20
# Runs the script as a program, within a call: until then nothing may be asked of the host.
_RUN = f"""
import runpy

class Runnable(BaseSecureRunnable):
    def process(self, queries):
        try:
            runpy.run_module("{_SCRIPT}", run_name="__main__")
        except SystemExit as end:
            if end.code not in (None, 0):
                raise Reject(str(end.code))
"""


def run(script: Path, file: Path, name: str | None) -> int:
    """Run a script; EXIT_FAILED where it ends with an exception, or with another status than 0."""
    config = load(file)
    if name is None and len(config.routes) > 1:
        what = f"has several routes: {', '.join(config.routes)}"
        raise ConfigError("E110", what, place=str(file), remedy="Name one: --route.")
    route = route_of(config, name or next(iter(config.routes)))
    try:
        source = script.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as err:
        why = err.strerror if isinstance(err, OSError) else "it is not UTF-8 text"
        raise ConfigError("E107", f"cannot be read: {why}", place=str(script)) from err
    outcome = asyncio.run(_run(route, script, source))
    for line in outcome.logs:
        print(printable(line.text), file=sys.stdout if line.level == "info" else sys.stderr)
    if isinstance(outcome, Failed):
        failure = outcome.failure
        if failure.code == "E305":  # the script's own status
            complain(f"{script} ended with {failure.text}")
            return EXIT_FAILED
        print(printable_lines(_OURS.sub("", failure.traceback)), file=sys.stderr)  # noqa: T201
        complain(f"{failure.code} {failure.text}")
        return EXIT_FAILED
    return EXIT_OK


async def _run(route: Route, script: Path, source: str) -> Outcome:
    own = route.program
    modules = own.modules if own.language == "python" else ()
    packages = own.packages if own.language == "python" else ()
    program = Program(
        _RUN, _FILE, "python", packages, modules=(*modules, Module(_SCRIPT, str(script), source))
    )
    limits = replace(route.limits, log_lines=_LINES, log_bytes=_LOG_BYTES)
    calls, zygote = HostCalls(), await Zygote.start()
    try:
        governor = calls.for_route(route.reach, Mandate.of(route))
        governor.see(dict.fromkeys(route.policy.expiring, time.time_ns() // 1000))
        monitor = governor.lane()
        guest = await zygote.spawn(
            program,
            limits,
            perform=monitor.perform,
            capabilities=governor.signatures,
            secrets=governor.secrets,
            emits=route.emits,
            heap=governor.heap,
        )
        monitor.begin()
        try:
            return await guest.run([Group("", [b"null"], {})])
        finally:
            await monitor.finish()
    finally:
        await zygote.close()
        await calls.close()
