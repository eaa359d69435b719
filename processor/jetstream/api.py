"""The requests to JetStream: what streams and consumers there are, how they are made and changed."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import orjson

from processor.errors import BrokerError
from processor.jetstream.connection import Connection
from processor.jetstream.protocol import Again, ApiError, Outgoing, Unknown, asked_subject, encode_parts
from processor.model import NO_HEADERS

SERVER_MIN = (2, 12)  # atomic batch publish
STREAM_NOT_FOUND = 10059
NAME_IN_USE = 10058
# The server, the account or their storage have too little of it left for what a stream may come to need.
NO_ROOM = frozenset({10023, 10028, 10047})
_CONSUMER_NOT_FOUND = 10014
_ELECTION_S = 10.0


class JetStreamApi(Connection):
    """A connection to a server with JetStream, and what it says of its streams and consumers."""

    @classmethod
    async def connect(
        cls,
        options: Mapping[str, Any],
        *,
        name: str,
        on_connected: Callable[[bool], None] = lambda _: None,
        on_denied: Callable[[str], None] = lambda _: None,
        wait: bool = True,
        needs_jetstream: bool = True,
    ) -> Self:
        """A connection to a server that can do what we need; waits for one as `Connection.connect` does.

        Raises BrokerError E402 for a server that is too old or without JetStream, where that is needed, and
        E403 for refused credentials or a permission without which nothing works.
        """
        broker = await super().connect(
            options, name=name, on_connected=on_connected, on_denied=on_denied, wait=wait
        )
        try:
            if needs_jetstream:
                await broker._require_jetstream()
        except BaseException:
            await broker.close()
            raise
        return broker

    async def _require_jetstream(self) -> None:
        version = self.server_version
        found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
        if found < SERVER_MIN:
            raise BrokerError(
                "E402",
                f"the NATS server at {self.address} is version {version}",
                remedy="Processor needs 2.12 or later: it commits with atomic batches.",
            )
        if not await self.has_jetstream():
            raise BrokerError(
                "E402",
                f"the NATS server {version} at {self.address} has JetStream switched off for this account",
                remedy="Start it with -js, or enable JetStream for the account.",
            )

    async def has_jetstream(self) -> bool:
        """Whether JetStream answers this account. Raises BrokerError E403 where it may not be asked."""
        until_s = time.monotonic() + _ELECTION_S
        while True:
            try:
                await self.api("INFO")
                return True
            except (ApiError, Again, Unknown) as err:
                # A cluster that has just started has nobody to answer yet.
                is_early = not isinstance(err, ApiError) and time.monotonic() < until_s
                if not is_early or not self.client._server_info.get("jetstream"):
                    return False
                await asyncio.sleep(0.2)

    async def api(self, name: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The reply of one `$JS.API` request.

        Raises ApiError, Again where nobody can answer now, Unknown where no answer came, and BrokerError E403
        without permission.
        """
        request = Outgoing(f"$JS.API.{name}", orjson.dumps(body) if body is not None else b"")
        return await self._exchange(encode_parts(request, NO_HEADERS), ())

    async def find_stream(self, subject: str) -> str | None:
        """The name of a stream that stores messages of `subject` (or of a part of that pattern)."""
        names = await self.find_streams(subject)
        return names[0] if names else None

    async def find_streams(self, subject: str) -> list[str]:
        """The names of all streams that take messages of `subject`, or of a part of that pattern."""
        return [str(name) for name in await self._pages("STREAM.NAMES", "streams", {"subject": subject})]

    async def streams(self) -> list[dict[str, Any]]:
        """What the server says of every stream of the account."""
        return await self._pages("STREAM.LIST", "streams", {})

    async def _pages(self, name: str, what: str, asked: Mapping[str, Any]) -> list[Any]:
        """All that a request for a list brings, page by page."""
        listed: list[Any] = []
        while True:
            page = await self.api(name, {**asked, "offset": len(listed)})
            found = page.get(what) or []
            listed += found
            if not found or len(listed) >= page.get("total", 0):
                return listed

    async def stream(self, name: str) -> dict[str, Any] | None:
        """The server's information on a stream: `config`, `state`, `created`; None if there is none."""
        try:
            return await self.api(f"STREAM.INFO.{name}")
        except ApiError as err:
            if err.err_code == STREAM_NOT_FOUND:
                return None
            raise

    async def stream_of(self, subject: str) -> dict[str, Any] | None:
        """As `stream`, of the one that `find_stream` names."""
        name = await self.find_stream(subject)
        return await self.stream(name) if name else None

    async def create_stream(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Create a stream, or return it if it exists with this configuration. Raises BrokerError E408."""
        name = config["name"]
        try:
            return await self.api(f"STREAM.CREATE.{name}", config)
        except ApiError as err:
            raise BrokerError(
                "E408",
                f"stream {name} with subjects {', '.join(config.get('subjects', []))} cannot be created: "
                f"{err.description} ({err.err_code})",
                remedy="Make room, or lower max_bytes: the server reserves all of it."
                if err.err_code in NO_ROOM
                else "Change the subject, or remove the stream that is in the way.",
            ) from err

    async def update_stream(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Change a stream's configuration. Raises ApiError where the server refuses."""
        return await self.api(f"STREAM.UPDATE.{config['name']}", config)

    async def delete_consumer(self, stream: str, consumer: str) -> None:
        """Delete a consumer; one that is gone already is fine."""
        try:
            await self.api(f"CONSUMER.DELETE.{stream}.{consumer}")
        except ApiError as err:
            if err.err_code != _CONSUMER_NOT_FOUND:
                raise

    async def consumers(self, stream: str) -> list[dict[str, Any]]:
        """What the server says of every consumer of a stream."""
        return await self._pages(f"CONSUMER.LIST.{stream}", "consumers", {})

    async def _exchange(self, parts: tuple[bytes, bytes], before: Sequence[bytes]) -> dict[str, Any]:
        _, payload = await self.answer(parts, before)
        result: dict[str, Any] = orjson.loads(payload)
        if "error" in result:
            raise ApiError(asked_subject(parts[0]), result["error"])
        return result

    async def _request(self, message: Outgoing) -> dict[str, Any]:
        return await self._exchange(encode_parts(message, {}), ())

    async def permissions(self) -> dict[str, Any] | None:
        """What the server lets this user do: `allow` and `deny` of `publish` and of `subscribe`.

        Empty where everything is allowed; None where the server does not say.
        """
        try:
            answer = await self._request(Outgoing("$SYS.REQ.USER.INFO", b""))
            return dict(answer["data"].get("permissions") or {})
        except (BrokerError, ApiError, Again, Unknown, orjson.JSONDecodeError, KeyError):
            return None
