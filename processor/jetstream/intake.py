"""What a server sends, taken apart: nats-py's parser, with a short way for the messages that are many.

nats-py makes an object of every message, parses its headers, and has it wait in a queue for the task of its
subscription. Input messages, answers and what is read from streams come in thousands a second; they are cut
out of the bytes here and handed over at once. All else (PING, INFO, errors, other subscriptions) is its own.

What must stay true:
- However the bytes are cut into pieces, what comes of them is the same, in the same order.
- A connection that was made anew starts from nothing: half a message of the old one is forgotten.

Source: the NATS client protocol (MSG, HMSG).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

log = logging.getLogger("processor")

# Subject, reply subject, headers as they came (`NATS/1.0` line first; empty without any) and payload. It must
# return soon, for nothing else is read meanwhile.
Taker = Callable[[str, str, bytes, bytes], None]

_CRLF = b"\r\n"
_M, _H = b"MH"


class Intake(Parser):
    """The parser of one client; `hand` has the messages of a subscription go the short way."""

    def __init__(self, client: Client) -> None:
        self._takers: dict[bytes, Taker] = {}
        self._begun = bytearray()  # the beginning of a command that has not come as a whole
        self._needed = 0  # bytes that there must be before it is worth a look
        self._resets = 0
        super().__init__(client)

    def hand(self, subscription: Subscription, taker: Taker) -> None:
        """Give the messages of a subscription that was made without a callback to `taker`, in order."""
        self._takers[b"%d" % subscription._id] = taker

    def leave(self, subscription: Subscription) -> None:
        """Give no more of its messages to anybody."""
        self._takers.pop(b"%d" % subscription._id, None)

    def reset(self) -> None:
        """Forget what has come of a command: the connection is another one."""
        super().reset()
        self._begun = bytearray()
        self._resets += 1

    async def parse(self, data: bytes = b"") -> None:
        """Take apart what has arrived. Raises ProtocolError for what is none of the protocol's commands."""
        if self._begun:
            self._begun += data
            if len(self._begun) < self._needed:
                return
            data, self._begun = bytes(self._begun), bytearray()
        at, end, resets = 0, len(data), self._resets
        while at < end and resets == self._resets:
            line_end = data.find(_CRLF, at)
            if line_end < 0:
                self._begin(data[at:], 0)
                return
            if data[at] != _M and data[at] != _H:
                line, at = data[at : line_end + 2], line_end + 2
                await super().parse(line)
                continue
            try:
                name, subject, sid, *reply, size = data[at:line_end].split()
                body, head_bytes = line_end + 2, 0
                if name == b"HMSG":
                    *reply, head_size = reply
                    head_bytes = int(head_size)
                elif name != b"MSG":
                    raise ProtocolError(f"nats: unknown command {name.decode(errors='replace')}")
                next_at = body + int(size) + 2
            except ValueError as err:
                raise ProtocolError("nats: a message line that is none") from err
            if next_at > end:
                self._begin(data[at:], next_at - at)
                return
            at = next_at
            taker = self._takers.get(sid)
            head, payload = data[body : body + head_bytes], data[body + head_bytes : next_at - 2]
            if taker is None:
                await self.nc._process_msg(int(sid), subject, reply[0] if reply else b"", payload, head)
                continue
            self.nc.stats["in_msgs"] += 1
            try:
                taker(subject.decode(), reply[0].decode() if reply else "", head, payload)
            except Exception:  # it is a fault of ours, and must not end the connection of all others
                log.exception("a message of %s could not be taken", subject.decode(errors="replace"))

    def _begin(self, rest: bytes, needed: int) -> None:
        self._begun, self._needed = bytearray(rest), needed
