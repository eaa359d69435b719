"""How guests read answers that come in pieces: `stream_next` and `stream_close`, by a stream's number."""

from __future__ import annotations

import asyncio
from typing import Any

from processor.capability.answers import Unanswered
from processor.capability.arguments import Argument, Binary, Number
from processor.capability.connections import Connections
from processor.capability.row import Arguments, Capability
from processor.sandbox.wire import Attached


async def _next(connections: Connections, arguments: Arguments) -> Any:
    """`{"end": ...}` with bytes beside it, or with `items` in it, of a stream of JSON values.

    A stream that broke off gives `{"failed": kind, "text": why}`. Raises what `OpenStreams.next` raises.
    """
    try:
        async with asyncio.timeout(arguments["timeout"]):
            pulled = await connections.streams.next(int(arguments["stream"]))
    except TimeoutError:
        return Attached({"failed": "timeout", "text": "nothing more of the answer came in time"}, b"")
    except Unanswered as err:
        return Attached({"failed": err.kind, "text": err.what}, b"")
    if not pulled.are_bytes:
        return {"items": pulled.items, "end": pulled.is_end}
    return Attached({"end": pulled.is_end}, b"".join(pulled.items))


async def _close(connections: Connections, arguments: Arguments) -> Any:
    await connections.streams.close(int(arguments["stream"]))
    return Attached({}, b"")


_STREAM = Argument("stream", Number(above=0), refusal="a stream is named by the number that its call gave")
# A guest reads bytes beside an answer where it sent some, be they none.
_BODY = Argument("body", Binary(), required=False, default=b"")

STREAM_NEXT = Capability(
    "stream_next",
    (_STREAM, _BODY, Argument("timeout", Number(above=0), required=False)),
    perform=_next,
    ask=lambda arguments: None,
    event=None,
    cost=lambda arguments: {},
    is_outside=False,
    is_request=False,
    is_counted=False,
    is_method=False,
)
STREAM_CLOSE = Capability(
    "stream_close",
    (_STREAM, _BODY),
    perform=_close,
    ask=lambda arguments: None,
    event=None,
    cost=lambda arguments: {},
    is_outside=False,
    is_request=False,
    is_method=False,
)
