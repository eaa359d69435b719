"""Ordinary programs in a real guest: its jail, its tripwire and its limits are in nobody's way."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from test_dialect import ALLOWED, plainly

from processor.model import Group, Limits, Program, Ran
from processor.sandbox.host import Zygote

# Makes a result one text, as the wire takes fewer types than a program may have.
SHOWN = """

_process = Runnable.process


def _shown(self, queries):
    return [json.dumps(_process(self, []), default=repr)]


Runnable.process = _shown
"""


async def _in_a_guest(zygote: Zygote, program: Program) -> Any:
    guest = await zygote.spawn(program, Limits())
    try:
        ran = await guest.run([Group("", [b"{}"], {})])
    finally:
        await guest.close()
    assert isinstance(ran, Ran), (program.filename, ran)
    return json.loads(ran.outputs[0].body)


async def test_they_give_what_they_give_in_plain_python() -> None:
    """Every allowed program does in a sealed guest what it does in plain Python."""
    zygote = await Zygote.start()
    try:
        for path in ALLOWED:
            source = path.read_text()
            given = await _in_a_guest(zygote, Program(source + SHOWN, path.name))
            plain = await asyncio.to_thread(plainly, source)  # some begin an event loop of their own
            assert given == json.dumps(plain, default=repr), path.name
    finally:
        await zygote.close()
