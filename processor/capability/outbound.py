"""What a call of `self.requests` becomes: one request, its redirects, and the answer a guest may see.

`Outside.request` takes what guest-side code (sandbox/requests.py) sent, and believes none of it. Secrets are
marks until the hop that sends them, and are taken out of everything that comes back.
"""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import quote_plus, urlencode

from processor.address import Url
from processor.capability.answers import Answer, Unanswered
from processor.capability.arguments import Argument, Binary, Choice, Flag, Listed, Number, Text
from processor.capability.client import Client, Streamed
from processor.capability.connections import Connections
from processor.capability.permit import Permit, Show
from processor.capability.row import Arguments, Capability
from processor.capability.secrets import STEP_BYTES, Located, ScrubbedStream, Vault
from processor.capability.streams import StreamEntry
from processor.errors import ProcessorError
from processor.policy import Ask, url_target
from processor.reach import Outbound
from processor.sandbox.wire import Attached

UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})  # what they do may be done twice
METHODS = frozenset({"GET", "HEAD", "OPTIONS"}) | UNSAFE
KINDS = frozenset({"none", "json", "form", "raw"})
PAIRS = 1000  # of headers, and of params
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,200}\Z")
_LINE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*\Z")  # what a header's value may hold
# The connection is the host's: where it goes, and where a message on it ends.
_RESERVED = frozenset(
    {
        "connection", "content-length", "expect", "host", "http2-settings", "keep-alive",
        "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade",
    }
)  # fmt: skip
_CREDENTIALS = frozenset({"authorization", "cookie"})
_OF_A_BODY = frozenset(
    {"content-type", "content-encoding", "content-language", "content-location", "idempotency-key"}
)

Pairs = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class _Hop:
    """One request of a call, with marks where its secrets will stand."""

    method: str
    url: Url
    located: Located  # the URL of the call, from which redirects may have led
    headers: Pairs
    auth: tuple[str, str] | None
    kind: str
    body: bytes

    def redirected(self, status: int, url: Url) -> _Hop:
        """The request that follows an answer with this status, without what belongs to the server before."""
        method, kind, body, dropped = self.method, self.kind, self.body, frozenset[str]()
        becomes_get = (status == 303 and method != "HEAD") or (status in (301, 302) and method == "POST")
        if becomes_get:
            method, kind, body, dropped = "GET", "none", b"", _OF_A_BODY
        headers = [pair for pair in self.headers if pair[0].lower() not in dropped]
        return replace(self, method=method, url=url, kind=kind, body=body, headers=headers)

    def without_credentials(self, vault: Vault) -> _Hop:
        kept = [
            (name, value)
            for name, value in self.headers
            if name.lower() not in _CREDENTIALS and not vault.holds_mark(value)
        ]
        return replace(self, headers=kept, auth=None)


class Outside:
    """The `requests` capability of one route."""

    def __init__(
        self, settings: Outbound, client: Callable[[], Client], vault: Vault, permit: Permit
    ) -> None:
        self._settings = settings
        self._permit = permit
        self._client = client
        self._vault = vault

    async def request(self, arguments: Arguments) -> Attached:
        """The answer to one call: its head as JSON, its body beside it.

        An unsafe method gets the header Idempotency-Key from `idempotency_key`, where the host gave one and
        the call has none. A call that was allowed and brought no answer gives
        `{"failed": kind, "text": why}`. Raises ProcessorError with E317, E323, E325 or E326.
        """
        asked = await self._asked(arguments, is_stream=False)
        if isinstance(asked, Attached):
            return asked
        answer, hop, head = asked
        assert isinstance(answer, Answer)
        scrubber = self._vault.scrubber(hop.url)
        if len(answer.body) > STEP_BYTES:
            return Attached(head, await asyncio.to_thread(scrubber.body, answer.body))
        return Attached(head, scrubber.body(answer.body))

    async def open(self, arguments: Arguments, connections: Connections) -> Attached:
        """As `request`, but that the body comes by the pulls of a stream, whose number is in the head."""
        with connections.streams.room():
            asked = await self._asked(arguments, is_stream=True)
            if isinstance(asked, Attached):
                return asked
            answer, hop, head = asked
            assert isinstance(answer, Streamed)
            body = _Body(
                answer,
                self._vault.scrubber(hop.url).stream(),
                self._shown(hop),
                partial(connections.tab.reserve, ask=_ask_of(hop.method, hop.url)),
                connections.defer(answer.status),
            )
            return Attached({**head, "stream": connections.streams.open(body, body.close)}, b"")

    async def _asked(
        self, arguments: Arguments, *, is_stream: bool
    ) -> tuple[Answer | Streamed, _Hop, dict[str, Any]] | Attached:
        """What a call brought, by the hop that it ended with, and its head as the guest may know it."""
        hop, deadline_s, follow = self._read(arguments)
        started = time.monotonic()
        try:
            async with asyncio.timeout(deadline_s):
                answer, hop = await self._follow(hop, follow, deadline_s if is_stream else None)
        except TimeoutError:
            where = hop.located.hide(hop.url.authority)
            what = "head of an answer" if is_stream else "complete answer"
            return _failed("timeout", f"{where}: no {what} within {deadline_s:g} s")
        except Unanswered as err:
            return _failed(err.kind, err.what)
        text = self._vault.scrubber(hop.url).text
        head = {
            "status": answer.status,
            "reason": text(answer.reason),
            "url": text(hop.located.shown(hop.url)),
            "headers": [[text(name), text(value)] for name, value in answer.headers],
            "elapsed_s": time.monotonic() - started,
        }
        return answer, hop, head

    async def _follow(self, hop: _Hop, follow: bool, idle_s: float | None) -> tuple[Answer | Streamed, _Hop]:
        """The last answer, and the hop that brought it; with `idle_s` its body is still to come."""
        for number in range(self._settings.redirects + 1):
            text = self._shown(hop)
            try:
                answer = await self._send(hop, idle_s)
                location = answer.header("location")
                if not follow or answer.status not in (301, 302, 303, 307, 308) or not location:
                    return answer, hop
                if isinstance(answer, Streamed):
                    await answer.close()
                if number < self._settings.redirects:
                    hop = self._next(hop, answer.status, location)
            except ProcessorError as err:  # a redirect can put what a server said into any sentence
                raise _said_by(err, text, hop.located.name) from None
        raise Unanswered("redirects", f"more than {self._settings.redirects} redirects (outbound.redirects)")

    def _shown(self, hop: _Hop) -> Show:
        """What takes out of a sentence about a hop what nobody may read."""
        scrubbed, hide = self._vault.scrubber(hop.url).text, hop.located.hide
        return lambda text: scrubbed(hide(text))

    def _next(self, hop: _Hop, status: int, location: str) -> _Hop:
        text, scrubbed = self._shown(hop), self._vault.scrubber(hop.url).text
        try:
            # Header bytes came in as Latin-1; a URL that is not ASCII is UTF-8 in practice.
            url = hop.url.joined(location.encode("latin-1").decode("utf-8", "replace"))
        except ValueError as err:
            raise _refused(f"a redirect to {text(location)[:200]!r}: {err}") from None
        following = hop.redirected(status, url)
        if url.origin != hop.url.origin:
            following = following.without_credentials(self._vault)
            if scrubbed(str(url)) != str(url):
                raise ProcessorError(
                    "E326", f"a redirect to {url.authority} would take a secret with it", place="requests"
                )
        self._permit(_ask_of(following.method, url), text)
        return following

    async def _send(self, hop: _Hop, idle_s: float | None) -> Answer | Streamed:
        """One exchange, with the secrets that its server may have in place; `idle_s` as in `_follow`."""
        vault, url, client = self._vault, hop.url, self._client()
        client.check(url)  # before a secret is looked at: what is not allowed is that, whatever it carries
        if url.origin == hop.located.url.origin:
            vault.use(hop.located)
        self._check_size(hop)
        query = vault.fill(url.query, url, quote_plus)
        headers = [(name, _header(name, vault.fill(value, url))) for name, value in hop.headers]
        if hop.auth is not None:
            user, password = (vault.fill(text, url) for text in hop.auth)
            token = base64.b64encode(f"{user}:{password}".encode()).decode()
            headers.append(("Authorization", f"Basic {token}"))
        body = vault.fill_body(hop.body, hop.kind, url)
        filled = replace(url, query=query)
        most = self._settings.response_bytes
        if idle_s is None:
            return await client.exchange(hop.method, filled, headers, body, most)
        return await client.stream(hop.method, filled, headers, body, most, idle_s)

    def _check_size(self, hop: _Hop) -> None:
        """Raise ProcessorError E323 for a request that is too large.

        It is measured with the marks of secrets in it: with their values it would tell how long these are.
        """
        url, located = hop.url, hop.located
        parts = [located.shown(url)] if located.name else [url.path, url.query]
        parts += hop.auth or ()
        parts += [part for pair in hop.headers for part in pair]
        size, limit = sum(map(len, parts)) + len(hop.body), self._settings.request_bytes
        if size > limit:
            raise ProcessorError(
                "E323",
                f"the request has {size} bytes (limit {limit}, outbound.request_bytes)",
                place="requests",
            )

    # Reading the call.

    def _read(self, arguments: Arguments) -> tuple[_Hop, float, bool]:
        method, params, auth = arguments["method"], _pairs(arguments["params"]), arguments["auth"]
        located: Located = arguments["located"]
        if not located.name:
            self._vault.refuse_marks(arguments["url"].partition("?")[0], "the host or the path of a URL")
        try:
            url = located.url.with_query(params)
        except ValueError as err:
            raise _refused(f"the query of the URL: {err}") from None
        headers = _pairs(arguments["headers"])
        for name, value in headers:
            self._vault.refuse_marks(name, "the name of a header")
            if not _TOKEN.match(name):
                raise _refused(f"{name[:60]!r} is no name of a header")
            if name.lower() in _RESERVED:
                raise _refused(f"the header {name} is for the host to set")
            _header(name, value)
        key = arguments["idempotency_key"]
        if method in UNSAFE and key and not any(name.lower() == "idempotency-key" for name, _ in headers):
            headers.append(("Idempotency-Key", key))
        for name, _ in params:
            self._vault.refuse_marks(name, "the name of a parameter")
        if auth is not None:
            headers = [pair for pair in headers if pair[0].lower() != "authorization"]
            auth = (auth[0], auth[1])
        asked_s, most_s = arguments["timeout"], self._settings.timeout_s
        return (
            _Hop(method, url, located, headers, auth, arguments["kind"], arguments["body"]),
            most_s if asked_s is None else min(float(asked_s), most_s),
            arguments["redirects"],
        )


class _Body:
    """The body of an answer as its guest gets it: without secrets, charged, and with an entry at its end."""

    def __init__(
        self,
        streamed: Streamed,
        scrubbed: ScrubbedStream,
        shown: Show,
        reserve: Callable[[Mapping[str, int]], Awaitable[None]],
        entry: StreamEntry,
    ) -> None:
        self._streamed = streamed
        self._scrubbed = scrubbed
        self._shown = shown
        self._reserve = reserve
        self._entry = entry
        self._is_over = False

    def __aiter__(self) -> _Body:
        return self

    async def __anext__(self) -> bytes:
        try:
            while not self._is_over:
                if piece := await self._piece():
                    await self._reserve({"bytes": len(piece)})
                    self._entry.add(piece)
                    return piece
        except ProcessorError as err:
            self._is_over = True
            self._entry.end(err.code)
            raise _said_by(err, self._shown) from None
        self._entry.end()
        raise StopAsyncIteration

    async def close(self) -> None:
        self._entry.end()
        await self._streamed.close()

    async def _piece(self) -> bytes:
        try:
            return self._scrubbed.feed(await anext(self._streamed))
        except StopAsyncIteration:
            self._is_over = True
            return self._scrubbed.finish()


def _said_by(err: ProcessorError, text: Show, secret: str = "") -> ProcessorError:
    """An error in words that a guest may read; `secret` names that which its URL begins with."""
    if isinstance(err, Unanswered):
        return Unanswered(err.kind, text(err.what))
    about = replace(err.about, target=text(err.about.target)) if err.about else None
    remedy = text(err.remedy)
    if err.code == "E325" and secret:  # the line to write would have to name it
        remedy = f"Add the server that the secret {secret!r} names to `outbound`."
    return ProcessorError(err.code, text(err.what), place=err.place, remedy=remedy, about=about)


def _pairs(value: list[list[str]]) -> Pairs:
    return [(name, text) for name, text in value]


def _header(name: str, value: str) -> str:
    """`value` for the wire. Raises ProcessorError E317; the value, which may hold a secret, is not quoted."""
    if not _LINE.match(value) or value != value.strip(" \t"):
        raise _refused(f"the value of the header {name[:60]} holds a line break, or white space at an end")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _refused(f"the value of the header {name[:60]} holds a lone surrogate") from None
    return value


def _refused(what: str) -> ProcessorError:
    return ProcessorError("E317", what, place="requests")


def _failed(kind: str, text: str) -> Attached:
    return Attached({"failed": kind, "text": text}, b"")


# The row.


async def _request(connections: Connections, arguments: Arguments) -> Attached:
    reach = connections.reach
    client = partial(connections.client, "outbound", reach.outbound.allowed, reach.place)
    outside = Outside(reach.outbound, client, connections.vault, connections.permit)
    if arguments["stream"]:
        return await outside.open(arguments, connections)
    return await outside.request(arguments)


def _locate(connections: Connections, arguments: Arguments) -> Arguments:
    """Where the call goes. Raises ProcessorError E317 and E326."""
    try:
        return {"located": connections.vault.locate(arguments["url"])}
    except ValueError as err:
        raise _refused(f"the URL {arguments['url'][:200]!r}: {err}") from None


def _ask(arguments: Arguments) -> Ask:
    """Of the first hop; where a redirect leads is asked for when it does."""
    return _ask_of(arguments["method"], arguments["located"].url)


def _show(arguments: Arguments) -> Show:
    hide: Show = arguments["located"].hide
    return hide


def _ask_of(method: str, url: Url) -> Ask:
    return Ask("http", method.lower(), url_target(str(url)))


def _cost(arguments: Arguments) -> dict[str, int]:
    """The bytes of the request, with marks for its secrets; those of the answer come with it."""
    texts = [arguments["url"], *(arguments["auth"] or ())]
    texts += [text for pair in (*arguments["params"], *arguments["headers"]) for text in pair]
    return {"requests": 1, "bytes": sum(map(len, texts)) + len(arguments["body"])}


def _sent(arguments: Arguments) -> bytes:
    """As the head of a request and its body are written; a host's own headers are not among them."""
    url, params = arguments["url"], arguments["params"]
    if params:
        url += ("&" if "?" in url else "?") + urlencode(params)
    headers = _pairs(arguments["headers"])
    if arguments["auth"] is not None:
        headers.append(("auth", ":".join(arguments["auth"])))
    lines = [f"{arguments['method']} {url}", *(f"{name}: {value}" for name, value in headers), "", ""]
    body: bytes = arguments["body"]
    return "\n".join(lines).encode("utf-8", "surrogatepass") + body


def _received(answer: Attached) -> tuple[int, bytes]:
    return answer.value.get("status", 0), answer.body


def _result(answer: Attached) -> str:
    return "E317" if "failed" in answer.value else f"{answer.value['status'] // 100}xx"


_NOT_A_CALL = "the call is not in the form that `requests` gives it"
_PAIR = Listed(Text(), 2, 2)


def _pairs_refused(value: Any) -> str:
    if type(value) is not list or len(value) > PAIRS:
        return f"not a list of pairs, or one of more than {PAIRS}"
    return "a pair that is not two texts"


REQUESTS = Capability(
    "requests",
    (
        Argument(
            "method",
            Choice(METHODS),
            refusal=lambda value: f"the method {str(value)[:40]!r} is none of {', '.join(sorted(METHODS))}",
        ),
        Argument("url", Text(), refusal=_NOT_A_CALL),
        Argument("kind", Choice(KINDS), refusal=_NOT_A_CALL),
        Argument("params", Listed(_PAIR, most=PAIRS), required=False, default=[], refusal=_pairs_refused),
        Argument("headers", Listed(_PAIR, most=PAIRS), required=False, default=[], refusal=_pairs_refused),
        Argument("body", Binary(), required=False, default=b"", refusal=_NOT_A_CALL),
        Argument("stream", Flag(), required=False, default=False, refusal=_NOT_A_CALL),
        Argument("redirects", Flag(), required=False, default=True, refusal=_NOT_A_CALL),
        Argument(
            "timeout",
            Number(above=0),
            required=False,
            refusal=lambda value: f"a timeout of {str(value)[:40]} is none",
        ),
        Argument("auth", _PAIR, required=False, refusal="a pair that is not two texts"),
        Argument("idempotency_key", Text(), required=False),  # set by the host
    ),
    perform=_request,
    ask=_ask,
    added=_locate,
    show=_show,
    event="http",
    cost=_cost,
    sent=_sent,
    received=_received,
    answer_cost=lambda answer: {"bytes": len(answer.body)},
    result=_result,
    is_method=False,
)
