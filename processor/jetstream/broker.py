"""The connection to NATS: it outlives the server, looks things up, publishes, and commits.

`commit` is the one write of Processor: all of its messages or none. Everything that fails says which of
three things it means: nothing was stored and a person must act (BrokerError), nothing was stored and it may
be tried again (`Again`, `WrongLastSequence`), or nobody knows (`Unknown`).
"""

from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
import logging
import re
import secrets
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import nats.errors
import orjson
from nats.aio.client import Client

from processor.config import Nats, read_login
from processor.errors import BrokerError, ProcessorError
from processor.jetstream.consumers import create_consumer
from processor.jetstream.intake import Intake, Taker
from processor.jetstream.protocol import (
    NS,
    Again,
    ApiError,
    Outgoing,
    Stored,
    Unknown,
    WrongLastSequence,
    encode,
    encode_batch,
    encode_parts,
    is_status,
    own_headers,
    parse_ack,
    parse_head,
    status_of,
)
from processor.jetstream.subscription import FrameTap, Subscription
from processor.model import NO_HEADERS, Delivery, RawHeaders

log = logging.getLogger("processor")

SERVER_MIN = (2, 12)  # atomic batch publish
BATCH_MAX = 1000  # messages in one atomic batch: the server's default limit
EXPECTED = "Nats-Expected-Last-Subject-Sequence"
# The only message of its subject, for ever.
KEPT = {"Nats-Rollup": "sub", "Nats-TTL": "never"}
# What takes such a message away: with an empty payload it replaces it, and goes away by itself.
GONE = {"Nats-Rollup": "sub", "Nats-TTL": "1h"}
_ELECTION_S = 10.0
_REQUEST_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 10.0
# A server drops a client that is 64 MB behind with what was sent to it, by default.
_PAGE_BYTES = 8 << 20

_WRONG_LAST_SEQUENCE = 10071
_CONFLICT = frozenset({10164, 10176, 10210, 10008, 10074, 503})  # in flight, gap, too many open: send again
STREAM_NOT_FOUND = 10059
NAME_IN_USE = 10058
# The server, the account or their storage have too little of it left for what a stream may come to need.
NO_ROOM = frozenset({10023, 10028, 10047})
_CONSUMER_NOT_FOUND = 10014
_MESSAGE_NOT_FOUND = 10037
_DENIAL = re.compile(r'permissions violation for (publish|subscri)\w* to "(.+?)"', re.IGNORECASE)
_DENIALS_MAX = 100
_NAME_CHARS = 80
# nats-py gives errors in lower case; these words of a subject are known not to be.
_API_WORDS = re.compile(
    r"^\$js(\.(api|ack|info|stream|consumer|direct|msg|names|list|get|next|create|update|delete|purge))*"
)


_Answer = tuple[bytes, bytes]  # headers as they came, and payload
_Arrived = tuple[str, str, bytes, bytes]  # what a `Taker` gets


def connect_options(nats: Nats) -> dict[str, Any]:
    """What `Broker.connect` needs to reach and convince the configured server. Reads secret files now.

    Raises ProcessorError E107 for a file that cannot be read.
    """
    own = nats.credentials
    options: dict[str, Any] = {"servers": list(nats.url)}
    if own.creds_file:
        options["user_credentials"] = _CredsFile(own.creds_file)
    elif own.nkey_seed:
        options["nkeys_seed_str"] = own.nkey_seed
    elif own.token:
        options["token"] = own.token
    elif own.user:
        options |= {"user": own.user, "password": own.password}
    if nats.tls is not None or any(url.startswith("tls://") for url in nats.url):
        tls = nats.tls
        try:
            context = ssl.create_default_context(cafile=tls.ca if tls else None)
            if tls and tls.cert:
                context.load_cert_chain(tls.cert, tls.key)
        except (OSError, ssl.SSLError) as err:
            raise ProcessorError(
                "E107",
                f"the certificates of nats.tls cannot be used: {err}",
                remedy="nats.tls.ca, cert and key are PEM files that this user must be able to read.",
            ) from err
        options |= {"tls": context, "tls_handshake_first": bool(tls and tls.handshake_first)}
    return options


class _BadLogin(nats.errors.Error):
    """The credentials file is not one now. An error of theirs, or a reconnect would end with it for good."""


class _CredsFile(collections.UserString):
    """A credentials file for nats-py, which asks for its content whenever it connects.

    It is read here and checked each time: nats-py itself reads a file without a JWT for ever, and with it
    stands still whatever runs in the event loop.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    @property
    def data(self) -> str:  # type: ignore[override]
        try:
            jwt, seed = read_login(self._path)
        except ProcessorError as err:
            raise _BadLogin(str(err)) from err
        return f"BEGIN NATS USER JWT\n{jwt}\nBEGIN USER NKEY SEED\n{seed}\n"

    def __bool__(self) -> bool:
        return True  # without reading it

    def __repr__(self) -> str:
        return f"<credentials in {self._path}>"


class Broker:
    """A connection to NATS that outlives the server: it reconnects for ever, and says when it is down."""

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        name: str,
        on_connected: Callable[[bool], None] = lambda _: None,
        on_denied: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._options = {**options, "name": name}
        self._on_connected = on_connected
        self._on_denied = on_denied
        self._client: Client | None = None
        self._up = asyncio.Event()
        self._closing = False
        self._rebuilding: asyncio.Task[None] | None = None
        self.generation = 0  # changes when subscriptions of the old connection are gone
        # What the server did not let us do, such as `publish to x`, and when; in the order of its saying so.
        self._denials: collections.OrderedDict[str, float] = collections.OrderedDict()
        # Requests under way by the last token of where their answer comes, and what was sent for each.
        self._unanswered: dict[str, tuple[asyncio.Future[_Answer], Sequence[bytes]]] = {}
        self._answers_at = ""  # the subject of all answers, less that token; of this client
        self._requests = 0
        self.committed = 0  # the highest sequence of a commit of ours
        self.waking: set[Callable[[], None]] = set()  # called when the connection is up again
        self._ears: set[Subscription] = set()

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
    ) -> Broker:
        """A connected broker of a server that can do what we need.

        Waits for a server that is not there yet, for ever unless `wait` is false (then E404). Raises
        BrokerError E402 for a server that is too old or without JetStream, where that is needed, and E403 for
        refused credentials or a permission without which nothing works. `on_denied` is called with each
        action that the server does not allow, such as `publish to p.app.pos.r.0`.
        """
        broker = cls(options, name=name, on_connected=on_connected, on_denied=on_denied)
        said = False
        while True:
            try:
                await broker._open()
                break
            except BrokerError as err:
                if err.code != "E404" or not wait:
                    raise
                if not said:
                    log.warning("E404 no NATS server answers at %s; trying until one does", broker.address)
                    said = True
                on_connected(False)
                await asyncio.sleep(0.5)
        try:
            if needs_jetstream:
                await broker._require_jetstream()
        except BaseException:
            await broker.close()
            raise
        return broker

    @property
    def address(self) -> str:
        """The configured server addresses, without credentials."""
        servers = self._options.get("servers", [])
        listed = [servers] if isinstance(servers, str) else list(servers)
        return ", ".join(re.sub(r"//[^@/]*@", "//", url) for url in listed)

    @property
    def max_payload(self) -> int:
        """The largest message, headers included, that the server takes, in bytes."""
        return self.client.max_payload

    @property
    def server_version(self) -> str:
        return str(self.client._server_info.get("version", "unknown"))

    @property
    def server(self) -> str:
        """The server that answers now: its version and address, and by what name it goes. No credentials."""
        info, url = self.client._server_info, self.client.connected_url
        address = f"{url.scheme}://{url.netloc.rpartition('@')[2]}" if url else self.address
        names = [f"server {str(info.get('server_name') or 'without a name')[:_NAME_CHARS]}"]
        names += [f"cluster {str(info['cluster'])[:_NAME_CHARS]}"] if info.get("cluster") else []
        return f"NATS {self.server_version} at {address} ({', '.join(names)})"

    @property
    def is_connected(self) -> bool:
        return self._up.is_set()

    @property
    def client(self) -> Client:
        """The client of the present connection; it is another one after a rebuild."""
        assert self._client is not None, "not connected"
        return self._client

    @property
    def denials(self) -> Collection[str]:
        """What the server did not let us do lately, such as `publish to x`."""
        return self._denials.keys()

    @property
    def last_denial(self) -> str:
        """What the server did not let this user do most lately, such as `publish to x`; empty if nothing."""
        return next(reversed(self._denials), "")

    async def connected(self) -> None:
        """Return when the connection is up."""
        await self._up.wait()

    async def close(self) -> None:
        """Send what is buffered and close; never raises."""
        self._closing = True
        if self._rebuilding is not None:
            self._rebuilding.cancel()
            await asyncio.gather(self._rebuilding, return_exceptions=True)
        for ear in list(self._ears):
            await ear.unsubscribe()
        if self._client is not None:
            with contextlib.suppress(Unknown):
                await self._ping(2)
            with contextlib.suppress(nats.errors.Error, OSError):
                await self._client.close()
        self._up.clear()

    async def _open(self) -> None:
        async def disconnected() -> None:
            self._up.clear()
            # nats-py says this of an attempt that never connected, too.
            if not self._closing and client is self._client:
                self._on_connected(False)
                # The answers went down with the connection; asking what happened must not wait for them.
                for answer, _ in self._unanswered.values():
                    if not answer.done():
                        answer.set_exception(Unknown("the connection was lost"))
                log.warning("lost the connection to NATS at %s; reconnecting until it is back", self.address)

        async def reconnected() -> None:
            self._is_up()
            log.info("connected to %s again", self.server)

        async def closed() -> None:
            # nats-py gives up for good on errors that it does not know; we do not.
            self._up.clear()
            if not self._closing and client is self._client:
                self._rebuilding = asyncio.create_task(self._rebuild(), name="broker-rebuild")

        failures: list[Exception] = []

        async def failed(err: Exception) -> None:
            if isinstance(err, _BadLogin):
                if [str(err)] != list(map(str, failures)):
                    log.warning("%s Trying again.", err)
                # nats-py forgets the connection that it made for this login, and leaves it open.
                if client._transport is not None:
                    client._transport.close()  # type: ignore[no-untyped-call]
            failures[:] = [err]
            if denial := _DENIAL.search(str(err)):
                self._note_denial(denial[1].lower() == "publish", denial[2].lower())
            log.debug("NATS client: %s", err)

        client = Client()
        client._ps = Intake(client)
        try:
            await client.connect(
                **self._options,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=2,
                ping_interval=10,
                max_outstanding_pings=2,
                # A commit is written as one buffer; what waits in an outage is bounded by the workers.
                pending_size=64 << 20,
                skip_subject_validation=True,  # subjects are checked where they are made
                disconnected_cb=disconnected,
                reconnected_cb=reconnected,
                closed_cb=closed,
                error_cb=failed,
            )
        except (nats.errors.Error, OSError, TimeoutError) as err:
            cause = failures[-1] if failures else err
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                async with asyncio.timeout(1):  # a failed TLS handshake is never closed by the other side
                    await client.close()  # a refused login leaves its socket open
            if isinstance(cause, _BadLogin) and isinstance(cause.__cause__, ProcessorError):
                found = cause.__cause__
                raise BrokerError(found.code, found.what, place=found.place) from err
            if "authori" in str(cause).lower() or "authenti" in str(cause).lower():
                raise BrokerError(
                    "E403",
                    f"the NATS server at {self.address} refused the credentials",
                    remedy="Set NATS_CREDS, NATS_NKEY_SEED, NATS_TOKEN, or NATS_USER and NATS_PASSWORD.",
                ) from err
            raise BrokerError(
                "E404",
                f"no NATS server answers at {self.address} ({str(cause) or type(cause).__name__})",
                remedy="Start one, or set nats.url or NATS_URL.",
            ) from err
        # The first connection fails at once so that the caller can say why; from here on never give up.
        client.options.update(allow_reconnect=True, max_reconnect_attempts=-1, reconnect_time_wait=0.25)
        self._client, self._answers_at = client, ""
        for ear in list(self._ears):  # the client reconnects with its subscriptions; another one has none
            await ear.open(client)
        self._is_up()

    def _note_denial(self, is_publish: bool, subject: str) -> None:
        """The server dropped something: whoever waits for an answer to it will get none."""
        inbox = self._answers_at.lower()
        shown = _API_WORDS.sub(lambda words: words[0].upper(), subject)
        concerned: list[asyncio.Future[_Answer]] = []
        for answer, frames in self._unanswered.values():
            if is_publish:
                sent = (frame.split(b" ", 2)[1].decode(errors="replace") for frame in frames)
                found = next((name for name in sent if name.lower() == subject), "")
                shown = found or shown
            else:
                found = inbox if inbox and subject.startswith(inbox) else ""
                shown = "_INBOX.>" if found else shown
            if found and not answer.done():
                concerned.append(answer)
        action = f"{'publish' if is_publish else 'subscribe'} to {shown}"
        self._denials.pop(action, None)
        self._denials[action] = time.monotonic()
        if len(self._denials) > _DENIALS_MAX:
            self._denials.popitem(last=False)
        for answer in concerned:
            answer.set_exception(_denied(action))
        self._on_denied(action)

    def _was_denied(self, subject: str, since_s: float) -> bool:
        action = f"publish to {subject}".lower()
        return any(said.lower() == action and at_s >= since_s for said, at_s in self._denials.items())

    def _is_up(self) -> None:
        self.generation += 1
        self._up.set()
        self._on_connected(True)
        for wake in self.waking:
            wake()

    async def _rebuild(self) -> None:
        self._on_connected(False)
        while not self._closing:
            try:
                await self._open()
                log.info("connected to %s again", self.server)
                return
            except BrokerError as err:
                log.warning("%s Trying again.", err)
                await asyncio.sleep(1)

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

    # JetStream API

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

    # publish and commit

    async def publish(self, *messages: Outgoing) -> None:
        """Send messages to whoever listens now (core NATS)."""
        if messages:
            await self.send([encode(message, "") for message in messages])

    async def publish_stored(self, message: Outgoing) -> int:
        """Store one message and return its sequence.

        Raises ApiError, Unknown on a timeout, and BrokerError E403 without permission.
        """
        reply = await self._request(message)
        return int(reply["seq"])

    async def commit(self, messages: Sequence[Outgoing], *, batch: str = "") -> int:
        """Store all of `messages` in order, or none, and return the stream sequence of the last.

        They must belong to one stream and be at most BATCH_MAX; `batch` is an id that no other commit has.
        One message is stored by itself, which the server does faster. A server that comes to a limit within a
        commit refuses it, and may have stored a part: see `stored_of_batch`. Raises WrongLastSequence when a
        fence in their headers is stale, Unknown when no answer came, Conflict-like refusals as `Again`, and
        BrokerError E403 or E406 for what a person must mend.
        """
        if len(messages) == 1:
            reply = await self._commit_request(encode_parts(messages[0], {}), messages[0].subject)
            self.committed = max(self.committed, int(reply["seq"]))
            return int(reply["seq"])
        batch = batch or secrets.token_hex(12)
        parts = encode_batch(messages[:-1], batch)
        last = encode_parts(
            messages[-1],
            {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(len(messages)), "Nats-Batch-Commit": "1"},
        )
        reply = await self._commit_request(last, messages[-1].subject, before=parts)
        self.committed = max(self.committed, int(reply["seq"]))
        return int(reply["seq"])

    async def _commit_request(
        self, parts: tuple[bytes, bytes], subject: str, before: Sequence[bytes] = ()
    ) -> dict[str, Any]:
        try:
            return await self._exchange(parts, before)
        except ApiError as err:
            if err.err_code == _WRONG_LAST_SEQUENCE:
                raise WrongLastSequence(subject) from err
            if err.err_code in _CONFLICT:
                raise Again(str(err)) from err
            raise BrokerError(
                "E406",
                f"the server refused to store a commit: {err.description} ({err.err_code})",
                remedy="Nothing is skipped or doubled; the route goes on when the cause is gone.",
            ) from err

    async def _request(self, message: Outgoing) -> dict[str, Any]:
        return await self._exchange(encode_parts(message, {}), ())

    async def _exchange(self, parts: tuple[bytes, bytes], before: Sequence[bytes]) -> dict[str, Any]:
        # `head` ends where the reply subject belongs: `HPUB <subject> ` + reply + ` <sizes>...`.
        head, rest = parts
        self._requests += 1
        token = str(self._requests)
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._unanswered[token] = answer, [*before, head]
        try:
            if not self._answers_at:
                await self._listen_for_answers()
            await self.send([*before, b"%b%b%b %b" % (head, self._answers_at.encode(), token.encode(), rest)])
            async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                headers, payload = await answer
        except (TimeoutError, nats.errors.Error, OSError) as err:
            raise Unknown(head.decode(errors="replace").strip()) from err
        finally:
            self._unanswered.pop(token, None)
        name = head.split(b" ")[1].decode(errors="replace")
        if status_of(headers)[0] == "503":
            raise Again(f"nobody answers to {name}")
        result: dict[str, Any] = orjson.loads(payload)
        if "error" in result:
            raise ApiError(name, result["error"])
        return result

    async def _listen_for_answers(self) -> None:
        at = self._answers_at = self.client.new_inbox() + "."

        def take(subject: str, reply: str, head: bytes, payload: bytes) -> None:
            answer, _ = self._unanswered.get(subject[len(at) :], (None, ()))
            if answer is not None and not answer.done():
                answer.set_result((head, payload))

        try:
            await self.tap(at + "*", take)
        except nats.errors.Error:
            self._answers_at = ""
            raise

    async def tap(self, subject: str, taker: Taker) -> FrameTap:
        """Give every message of `subject` from now on to `taker`; what it may do, see `intake`.

        Before it returns nothing must be asked to be sent there.
        """
        return await FrameTap.open(self.client, subject, taker)

    async def send(self, frames: Sequence[bytes]) -> None:
        """Write protocol frames, and wait while the server does not take what was written.

        Raises BrokerError E406 for a message above the server's max_payload, and Unknown where the connection
        is lost meanwhile.
        """
        transport = self.post(frames)
        if transport is not None:
            try:
                await transport.drain()
            except (OSError, RuntimeError) as err:
                raise Unknown("the connection was lost") from err

    def post(self, frames: Sequence[bytes]) -> Any:
        """As `send`, for what is small: it does not wait. Returns what to wait for, None while it is down."""
        # One buffer and one write for a whole commit: `Client.publish` formats and checks every header of
        # every message, which costs more than storing it (9 of 12 us a message measured with nats-py 2.16).
        client = self.client
        limit = client.max_payload
        for frame in frames:
            # Header plus payload above max_payload makes the server drop the connection, and nats-py with it.
            # Most frames are shorter than that with everything that is not counted.
            if len(frame) <= limit:
                continue
            size = len(frame) - frame.index(b"\r\n") - 4
            if size > limit:
                raise BrokerError(
                    "E406",
                    f"a message of {size} bytes exceeds the server's max_payload of {limit}",
                    remedy="Raise max_payload on the server, or keep smaller values.",
                )
        if client.is_closed:
            raise Unknown("connection closed")
        data = b"".join(frames)
        transport = client._transport
        if transport is None or not client.is_connected:
            client._pending.append(data)  # nats-py sends it when it has connected again
            client._pending_data_size += len(data)
            return None
        if client._pending:
            transport.writelines(client._pending)
            client._pending, client._pending_data_size = [], 0
        transport.write(data)
        return transport

    # read

    async def last_of(self, stream: str, subjects: Sequence[str]) -> list[Stored]:
        """The last message of every subject that matches one of `subjects`, from one consistent view.

        Falls back to a scan where more than 1,024 match. Raises Unknown when the server does not answer, and
        Again where something changed between two parts of a large answer.
        """
        # The server ends an answer at so many bytes; by itself it does at what it lets a client be behind.
        asked: dict[str, Any] = {"multi_last": list(subjects), "max_bytes": self._page_bytes}
        found: list[Stored] = []
        left = None
        while left != 0:
            part = await self._direct_get(stream, asked)
            if part is None:
                return await self._scan(stream, subjects)
            messages, end = part
            still_left = int(end.get("Nats-Num-Pending", 0))
            if left is not None and left != len(messages) + still_left:
                raise Again(f"{stream} changed while it was read")
            if still_left and not messages:
                raise Again(f"{stream} has a message of more than {self._page_bytes} bytes")
            found += messages
            left = still_left
            if left:
                up_to = int(end["Nats-UpTo-Sequence"])
                asked |= {"seq": messages[-1].sequence + 1, "up_to_seq": up_to}
        return found

    @property
    def _page_bytes(self) -> int:
        return max(_PAGE_BYTES, 2 * self.max_payload)

    async def page_of(self, stream: str, subject: str, sequence: int, max_messages: int) -> list[Stored]:
        """The first messages of a subject or pattern from `sequence` on, in order, without their times.

        At least one where the replica that answers has one. It may lag behind the stream's leader, and then
        lacks the newest. Raises Unknown when the server does not answer, and Again where it cannot now.
        """
        asked = {
            "seq": sequence,
            "next_by_subj": subject,
            "batch": max_messages,
            "max_bytes": self._page_bytes,
        }
        page = await self._direct_get(stream, asked)
        assert page is not None  # only what is asked for by many subjects can be too much
        return page[0]

    async def last_from_leader(self, stream: str, subject: str) -> Stored | None:
        """The last message of one subject as the stream's leader has it: never behind an answered commit."""
        return await self._message(stream, {"last_by_subj": subject})

    async def next_of(self, stream: str, subject: str, sequence: int) -> Stored | None:
        """The first message of a subject or pattern from `sequence` on, with the server's headers too."""
        return await self._message(stream, {"seq": sequence, "next_by_subj": subject})

    async def stored_of_batch(
        self, stream: str, batch: str, messages: Sequence[Outgoing], start: int
    ) -> set[int]:
        """The numbers, from 1, of those messages of a commit that a stream holds, as its leader has it.

        They are looked for from the sequence `start` on. Without the first there is none.
        """
        stored = await self.next_of(stream, messages[0].subject, start)
        while stored is not None and stored.headers.get("Nats-Batch-Id") != batch:
            stored = await self.next_of(stream, messages[0].subject, stored.sequence + 1)
        found: set[int] = set()
        while stored is not None and len(found) < len(messages):
            if stored.headers.get("Nats-Batch-Id") != batch:
                break
            found.add(int(stored.headers["Nats-Batch-Sequence"]))
            stored = await self.next_of(stream, ">", stored.sequence + 1)
        return found

    async def _message(self, stream: str, which: Mapping[str, Any]) -> Stored | None:
        try:
            reply = await self.api(f"STREAM.MSG.GET.{stream}", which)
        except ApiError as err:
            if err.err_code == _MESSAGE_NOT_FOUND:
                return None
            raise Again(str(err)) from err
        message = reply["message"]
        payload, head = (base64.b64decode(message.get(part, "")) for part in ("data", "hdrs"))
        stored_s = datetime.fromisoformat(message["time"]).timestamp()
        return Stored(message["subject"], int(message["seq"]), payload, parse_head(head), stored_s)

    async def _direct_get(
        self, stream: str, body: Mapping[str, Any]
    ) -> tuple[list[Stored], RawHeaders] | None:
        """What the server sends, and the headers that end it; None for too many subjects."""
        subject = f"$JS.API.DIRECT.GET.{stream}"
        found: list[Stored] = []
        began_s = time.monotonic()
        async with self._inbox() as (inbox, arrived):
            await self.send([encode(Outgoing(subject, orjson.dumps(body)), inbox)])
            while True:
                try:
                    what = f"direct get from {stream}"
                    _, _, head, payload = await _next(arrived, _REQUEST_TIMEOUT_S, what)
                except Unknown:
                    if self._was_denied(subject, began_s):
                        raise _denied(f"publish to {subject}") from None
                    raise
                headers = parse_head(head)
                status, description = status_of(head)
                if status in ("204", "404"):
                    return found, headers
                if status == "413":
                    return None
                if status:
                    raise Again(f"direct get from {stream}: {status} {description}")
                found.append(
                    Stored(
                        headers["Nats-Subject"],
                        int(headers["Nats-Sequence"]),
                        payload,
                        own_headers(headers),
                    )
                )

    @contextlib.asynccontextmanager
    async def _inbox(self) -> AsyncIterator[tuple[str, asyncio.Queue[_Arrived]]]:
        """A subject of its own, and what is sent there."""
        # Not `Subscription.next_msg`: in Python 3.11 it loses a cancellation to a message that comes in the
        # same moment, and whoever waits for the cancelled task waits for ever.
        inbox = self.client.new_inbox()
        arrived: asyncio.Queue[_Arrived] = asyncio.Queue()

        def take(subject: str, reply: str, head: bytes, payload: bytes) -> None:
            arrived.put_nowait((subject, reply, head, payload))

        try:
            tap = await self.tap(inbox, take)
        except nats.errors.Error as err:
            raise Unknown("the connection was lost") from err
        try:
            yield inbox, arrived
        finally:
            await tap.close()

    async def _scan(self, stream: str, subjects: Sequence[str]) -> list[Stored]:
        last: dict[str, Stored] = {}
        async for stored in self.history(stream, subjects, last_per_subject=True):
            last[stored.subject] = stored
        return list(last.values())

    async def count(self, stream: str, subjects: Sequence[str], start_sequence: int) -> int:
        """How many messages of these subjects the stream holds from a sequence on."""
        config = {
            "ack_policy": "none",
            "filter_subjects": list(subjects),
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": max(1, start_sequence),
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": 5 * NS,
        }
        info = await create_consumer(self.api, stream, config)
        with contextlib.suppress(ApiError, Again, BrokerError, Unknown, nats.errors.Error):
            await self.delete_consumer(stream, info["name"])  # it would go by itself, later
        return int(info["num_pending"])

    async def history(
        self,
        stream: str,
        subjects: Sequence[str],
        *,
        last_per_subject: bool = False,
        start_sequence: int = 1,
        headers_only: bool = False,
    ) -> AsyncGenerator[Stored, None]:
        """What `stream` holds of `subjects` now, in order; ends at the last message there was at the call.

        Messages that are removed while it reads may be left out. With `headers_only` payloads are, and the
        headers include those of the server.
        """
        config: dict[str, Any] = {
            "ack_policy": "none",
            "filter_subjects": list(subjects),
            "deliver_policy": "last_per_subject" if last_per_subject else "by_start_sequence",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": 30 * NS,
        }
        if not last_per_subject:
            config["opt_start_seq"] = max(1, start_sequence)
        if headers_only:
            config["headers_only"] = True
        info = await create_consumer(self.api, stream, config)
        name, waiting = info["name"], int(info["num_pending"])
        most = info["config"].get("max_batch") or 1000
        try:
            async with self._inbox() as (inbox, arrived):
                unanswered = asked = 0
                request = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}"
                while waiting:
                    if not asked:
                        asked = min(waiting, most)
                        ask = {"batch": asked, "no_wait": True, "max_bytes": self._page_bytes}
                        await self.send([encode(Outgoing(request, orjson.dumps(ask)), inbox)])
                    message = await _next(arrived, _READ_TIMEOUT_S, f"reading {stream}")
                    subject, reply, head, payload = message
                    if reply or not is_status(head):
                        _, sequence, _, timestamp_s, waiting = parse_ack(reply)
                        asked -= 1
                        headers = parse_head(head)
                        headers = headers if headers_only else own_headers(headers)
                        yield Stored(subject, sequence, payload, headers, timestamp_s)
                        continue
                    match status_of(head):
                        case (("404" | "408"), _):
                            return  # what was left to read has been removed meanwhile
                        case "409", "Batch Completed":
                            pass  # which was counted
                        case "409", said if "MaxBytes" in said:
                            asked = 0
                        case "503", _ if unanswered < 20:
                            # Right after its creation a consumer may have nobody to answer yet.
                            unanswered, asked = unanswered + 1, 0
                            await asyncio.sleep(0.05)
                        case _, said:
                            raise Again(f"reading {stream}: {said}")
        finally:
            with contextlib.suppress(ApiError, Again, BrokerError, Unknown, nats.errors.Error):
                await self.delete_consumer(stream, name)

    async def listen(
        self, subject: str, callback: Callable[[Delivery], Awaitable[None]], *, queue: str = ""
    ) -> Subscription:
        """Call `callback` with every message published to `subject` from now on (core NATS), until closed.

        `Delivery.ack` is where an answer is expected, if one is. Of all who listen with the same `queue` one
        hears each message. Whether the server allows it is known after `flush`: see `denials`.
        """
        ear = Subscription(subject, callback, queue, self._ears.discard)
        self._ears.add(ear)
        with contextlib.suppress(nats.errors.ConnectionClosedError):  # the next connection begins with it
            await ear.open(self.client)
        return ear

    async def permissions(self) -> dict[str, Any] | None:
        """What the server lets this user do: `allow` and `deny` of `publish` and of `subscribe`.

        Empty where everything is allowed; None where the server does not say.
        """
        try:
            answer = await self._request(Outgoing("$SYS.REQ.USER.INFO", b""))
            return dict(answer["data"].get("permissions") or {})
        except (BrokerError, ApiError, Again, Unknown, orjson.JSONDecodeError, KeyError):
            return None

    async def flush(self) -> None:
        """Return when the server has seen everything sent so far; streams may store it a moment later.

        Raises Unknown when the server does not answer.
        """
        await self._ping(_REQUEST_TIMEOUT_S)

    async def _ping(self, timeout_s: float) -> None:
        client = self.client
        if not client.is_connected:
            raise Unknown("the connection was lost")
        # Not `Client.flush`: given up, it leaves a cancelled future behind, over which the reader of nats-py
        # ends at the next pong; and it waits with what can lose a cancellation.
        pong: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        client._pongs.append(pong)
        self.post([b"PING\r\n"])
        await asyncio.wait([pong], timeout=timeout_s)
        if not pong.done():
            raise Unknown("flush")


def _denied(action: str) -> BrokerError:
    return BrokerError(
        "E403",
        f"the NATS server does not let this user {action}",
        remedy="Give the user that permission; `processor check --server` lists what is needed.",
    )


async def _next(arrived: asyncio.Queue[_Arrived], timeout_s: float, what: str) -> _Arrived:
    """The next message of an inbox. Raises Unknown where none comes in time."""
    if not arrived.empty():
        return arrived.get_nowait()
    try:
        async with asyncio.timeout(timeout_s):
            return await arrived.get()
    except TimeoutError as err:
        raise Unknown(what) from err
