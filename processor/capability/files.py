"""`self.files` in a Runnable: files below the roots of its route, which the host opens (`roots`).

A write happens at once and not with the commit: a message that is tried again writes again.
"""

from __future__ import annotations

from collections.abc import Mapping

from processor.capability.arguments import Argument, Binary, Choice, Text
from processor.capability.connections import Connections
from processor.capability.roots import target_of
from processor.capability.row import Arguments, Capability
from processor.policy import Ask
from processor.sandbox.wire import Attached

PATH_CHARS = 4096


async def _perform(connections: Connections, arguments: Arguments) -> Attached:
    target = target_of(arguments["path"])
    found = await connections.files.run(arguments["op"], target, arguments["body"])
    return Attached({}, found) if isinstance(found, bytes) else Attached({"names": found}, b"")


def _bytes(arguments: Arguments) -> Mapping[str, int]:
    return {"file_bytes": len(arguments["body"])}


def _read_bytes(answer: Attached) -> Mapping[str, int]:
    return {"file_bytes": len(answer.body)}


FILE = Capability(
    "file",
    (
        Argument("op", Choice(("read", "list", "write", "delete"))),
        Argument("path", Text(1, PATH_CHARS)),
        Argument("body", Binary(), required=False, default=b""),
    ),
    perform=_perform,
    ask=lambda arguments: Ask("file", arguments["op"], target_of(arguments["path"])),
    event="file",
    cost=_bytes,
    answer_cost=_read_bytes,
    is_request=False,
    is_method=False,
)
