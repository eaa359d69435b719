"""The connection to NATS: it outlives the server, sends frames, and brings answers and messages.

It knows the protocol and nothing of JetStream. A request has one answer, or says why there is none: nothing
was done and it may be tried again (`Again`), a person must act (BrokerError), or nobody knows (`Unknown`).
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Self

import nats.errors
from nats.aio.client import Client

from processor.errors import BrokerError, ProcessorError
from processor.jetstream.intake import Intake, Taker
from processor.jetstream.login import BadLogin
from processor.jetstream.protocol import Again, Unknown, asked_subject, status_of
from processor.jetstream.subscription import FrameTap, Subscription
from processor.jetstream.ticks import Ticks
from processor.model import Delivery

log = logging.getLogger("processor")

_REQUEST_TIMEOUT_S = 5.0
_DENIAL = re.compile(r'permissions violation for (publish|subscri)\w* to "(.+?)"', re.IGNORECASE)
_DENIALS_MAX = 100
_NAME_CHARS = 80
TICK_S = 5.0
# nats-py gives errors in lower case; these words of a subject are known not to be.
_API_WORDS = re.compile(
    r"^\$js(\.(api|ack|info|stream|consumer|direct|msg|names|list|get|next|create|update|delete|purge))*"
)

_Answer = tuple[bytes, bytes]  # headers as they came, and payload
_Arrived = tuple[str, str, bytes, bytes]  # what a `Taker` gets


class Denials:
    """What the server did not let us do lately, such as `publish to x`, in the order in which it said so."""

    def __init__(self) -> None:
        self._actions: collections.OrderedDict[str, None] = collections.OrderedDict()

    def add(self, action: str) -> None:
        """Note that `action` was denied just now."""
        self._actions.pop(action, None)
        self._actions[action] = None
        if len(self._actions) > _DENIALS_MAX:
            self._actions.popitem(last=False)

    @property
    def actions(self) -> Collection[str]:
        """Each action once."""
        return self._actions.keys()

    @property
    def last(self) -> str:
        """The latest action; empty if nothing was denied."""
        return next(reversed(self._actions), "")


class Mailbox:
    """A subject of ours, and the messages that have arrived there; `asked` is where answers come from."""

    def __init__(self, subject: str, asked: str = "") -> None:
        self.subject = subject
        self.asked = asked
        self._arrived: asyncio.Queue[_Arrived | BrokerError] = asyncio.Queue()

    def take(self, subject: str, reply: str, head: bytes, payload: bytes) -> None:
        self._arrived.put_nowait((subject, reply, head, payload))

    def refuse(self, why: BrokerError) -> None:
        """Whoever waits, or will, gets this error in place of a message."""
        self._arrived.put_nowait(why)

    async def next(self, what: str, timeout_s: float | None = None) -> _Arrived:
        """The next message. Raises Unknown where none comes in `timeout_s`, or in that of a request, and
        BrokerError E403 where the server does not let us ask.
        """
        if not self._arrived.empty():
            found = self._arrived.get_nowait()
        else:
            try:
                async with asyncio.timeout(_REQUEST_TIMEOUT_S if timeout_s is None else timeout_s):
                    found = await self._arrived.get()
            except TimeoutError as err:
                raise Unknown(what) from err
        if isinstance(found, BrokerError):
            raise found
        return found


class Gathered:
    """Frames that are small and need not go at once: one write for all that come before the loop turns."""

    def __init__(self, post: Callable[[Sequence[bytes]], object]) -> None:
        self._post = post
        self._frames: list[bytes] = []

    def post(self, frame: bytes) -> None:
        """Send it soon; it is lost where the connection is closed."""
        if not self._frames:
            asyncio.get_running_loop().call_soon(self._write)
        self._frames.append(frame)

    def _write(self) -> None:
        frames, self._frames = self._frames, []
        with contextlib.suppress(Unknown):
            self._post(frames)


class Connection:
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
        self._denied = Denials()
        self._mailboxes: set[Mailbox] = set()
        # Requests under way by the last token of where their answer comes, and what was sent for each.
        self._unanswered: dict[str, tuple[asyncio.Future[_Answer], Sequence[bytes]]] = {}
        self._answers_at = ""  # the subject of all answers, less that token; of this client
        self._requests = 0
        self.waking: set[Callable[[], None]] = set()  # called when the connection is up again
        self.gathered = Gathered(self.post)
        self.ticks = Ticks(TICK_S)
        self.silent: set[object] = set()  # readers that had heard nothing for too long at the last tick
        self._subscriptions: set[Subscription] = set()

    @classmethod
    async def connect(
        cls,
        options: Mapping[str, Any],
        *,
        name: str,
        on_connected: Callable[[bool], None] = lambda _: None,
        on_denied: Callable[[str], None] = lambda _: None,
        wait: bool = True,
    ) -> Self:
        """A connection to a server that answers.

        Waits for a server that is not there yet, for ever unless `wait` is false (then E404). Raises
        BrokerError E403 for refused credentials. `on_denied` is called with each action that the server does
        not allow, such as `publish to p.app.pos.r.0`.
        """
        connection = cls(options, name=name, on_connected=on_connected, on_denied=on_denied)
        said = False
        while True:
            try:
                await connection._open()
                break
            except BrokerError as err:
                if err.code != "E404" or not wait:
                    raise
                if not said:
                    where = connection.address
                    log.warning("E404 no NATS server answers at %s; trying until one does", where)
                    said = True
                on_connected(False)
                await asyncio.sleep(0.5)
        return connection

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
        return self._denied.actions

    @property
    def last_denial(self) -> str:
        """What the server did not let this user do most lately, such as `publish to x`; empty if nothing."""
        return self._denied.last

    async def connected(self) -> None:
        """Return when the connection is up."""
        await self._up.wait()

    async def close(self) -> None:
        """Send what is buffered and close; never raises."""
        self._closing = True
        if self._rebuilding is not None:
            self._rebuilding.cancel()
            await asyncio.gather(self._rebuilding, return_exceptions=True)
        for subscription in list(self._subscriptions):
            await subscription.unsubscribe()
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
            if isinstance(err, BadLogin):
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
            if isinstance(cause, BadLogin) and isinstance(cause.__cause__, ProcessorError):
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
        # A client reconnects with its subscriptions; another client has none of them.
        for subscription in list(self._subscriptions):
            await subscription.open(client)
        self._is_up()

    def _note_denial(self, is_publish: bool, subject: str) -> None:
        """The server dropped something: what waits for an answer to it will get none."""
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
        refused = [box for box in self._mailboxes if is_publish and box.asked.lower() == subject]
        shown = refused[0].asked if refused else shown
        action = f"{'publish' if is_publish else 'subscribe'} to {shown}"
        self._denied.add(action)
        for answer in concerned:
            answer.set_exception(denied(action))
        for box in refused:
            box.refuse(denied(action))
        self._on_denied(action)

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

    async def answer(
        self, parts: tuple[bytes, bytes], before: Sequence[bytes] = (), timeout_s: float = _REQUEST_TIMEOUT_S
    ) -> tuple[bytes, bytes]:
        """What comes back for a request (as `encode_parts` makes it): headers as they came, and payload.

        The frames in `before` are sent with it. Raises Again where nobody answers to that subject, Unknown
        where no answer came in time, and BrokerError E403 without permission.
        """
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
            async with asyncio.timeout(timeout_s):
                headers, payload = await answer
        except (TimeoutError, nats.errors.Error, OSError) as err:
            raise Unknown(head.decode(errors="replace").strip()) from err
        finally:
            self._unanswered.pop(token, None)
        if status_of(headers)[0] == "503":
            raise Again(f"nobody answers to {asked_subject(head)}")
        return headers, payload

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

    @contextlib.asynccontextmanager
    async def _inbox(self, asked: str = "") -> AsyncIterator[Mailbox]:
        """A subject of its own, and what is sent there, until it is left; `asked` as a mailbox has it."""
        # Not `Subscription.next_msg`: in Python 3.11 it loses a cancellation to a message that comes in the
        # same moment, and what waits for the cancelled task waits for ever.
        inbox = Mailbox(self.client.new_inbox(), asked)
        try:
            tap = await self.tap(inbox.subject, inbox.take)
        except nats.errors.Error as err:
            raise Unknown("the connection was lost") from err
        self._mailboxes.add(inbox)
        try:
            yield inbox
        finally:
            self._mailboxes.discard(inbox)
            await tap.close()

    async def listen(
        self, subject: str, callback: Callable[[Delivery], Awaitable[None]], *, queue: str = ""
    ) -> Subscription:
        """Call `callback` with every message published to `subject` from now on (core NATS), until closed.

        `Delivery.ack` is where an answer is expected, if one is. Of all who listen with the same `queue` one
        hears each message. Whether the server allows it is known after `flush`: see `denials`.
        """
        subscription = Subscription(subject, callback, queue, self._subscriptions.discard)
        self._subscriptions.add(subscription)
        with contextlib.suppress(nats.errors.ConnectionClosedError):  # the next connection begins with it
            await subscription.open(self.client)
        return subscription

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


def denied(action: str) -> BrokerError:
    """The error of an action that the server does not let this user take."""
    return BrokerError(
        "E403",
        f"the NATS server does not let this user {action}",
        remedy="Give the user that permission; `processor check --server` lists what is needed.",
    )
