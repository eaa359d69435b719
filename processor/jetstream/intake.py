"""What a server sends, taken apart: nats-py's parser, with a short way for the messages that are many.

nats-py makes an object of every message, parses its headers, and has it wait in a queue for the task of its
subscription; and one subject that is not UTF-8 ends its reading for good. Messages are cut out of the bytes
here and handed over at once, those of all our subscriptions. All else (PING, INFO, errors) is its own.

What must stay true:
- No byte of a message ends the reading: a subject may hold any byte but a space and a line's end, text or not
  (MQTT clients send such), and is handed over as `surrogateescape` has it.
- However the bytes are cut into pieces, what comes of them is the same, in the same order.
- A new connection starts from nothing: half a message of the old one is forgotten.

Source: the NATS client protocol (MSG, HMSG).
"""

from __future__ import annotations

import asyncio
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
    """The parser of one client; `hand` says who takes the messages of a subscription."""

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
        try:
            await self._parse(data)
        except (ProtocolError, asyncio.CancelledError):
            raise
        except Exception as err:
            # The reading loop of nats-py ends for good on errors that it does not know; on this one it
            # connects again.
            log.exception("what the NATS server sent could not be taken apart; please report it")
            raise ProtocolError(f"nats: {type(err).__name__}") from err

    async def _parse(self, data: bytes) -> None:
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
                # An error names subjects as they are; nats-py takes it to be text.
                await super().parse(line.decode(errors="replace").encode() if line[:1] == b"-" else line)
                continue
            try:
                words = data[at:line_end].split(b" ")
                if b"" in words or len(words) < 4:
                    words = _words(data[at:line_end])
                name, subject, sid, *reply, size = words
                body, head_bytes = line_end + 2, 0
                if name == b"HMSG":
                    *reply, head_size = reply
                    head_bytes = int(head_size)
                elif name != b"MSG":
                    raise ProtocolError(f"nats: unknown command {name.decode(errors='replace')}")
                next_at = body + int(size) + 2
            except ValueError as err:
                raise ProtocolError("nats: not a message line") from err
            if next_at > end:
                self._begin(data[at:], next_at - at)
                return
            at = next_at
            taker = self._takers.get(sid)
            head, payload = data[body : body + head_bytes], data[body + head_bytes : next_at - 2]
            try:
                if taker is None:  # of a subscription that is gone, or is not ours
                    await self.nc._process_msg(int(sid), subject, reply[0] if reply else b"", payload, head)
                    continue
                self.nc.stats["in_msgs"] += 1
                reply_subject = reply[0].decode("utf-8", "surrogateescape") if reply else ""
                taker(subject.decode("utf-8", "surrogateescape"), reply_subject, head, payload)
            except Exception:  # it is a fault of ours, and must not end the connection of all others
                log.exception("a message of %s could not be taken", subject.decode(errors="replace"))

    def _begin(self, rest: bytes, needed: int) -> None:
        self._begun, self._needed = bytearray(rest), needed


def _words(line: bytes) -> list[bytes]:
    """The words of a line not written as servers write it: with several spaces between words, or tabs."""
    return [word for word in line.replace(b"\t", b" ").split(b" ") if word]
