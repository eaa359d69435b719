"""`self.requests` on the host: who may be asked, what is dialled, and what of it comes back.

Every server here is a real one on this machine. `names` stands in for the DNS, which is hostile, too.
"""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import ssl
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.address import Allowed, is_public, parse_url
from processor.capability.client import Client, resolve
from processor.capability.registry import HostCalls
from processor.errors import ProcessorError
from processor.reach import Outbound, Reach
from tests.web import PLACE, RouteCalls, answer, call, outside, refusal, serving, to


async def get(calls: RouteCalls, url: str, **args: Any) -> tuple[dict[str, Any], bytes]:
    said = await calls.perform("requests", call("GET", url, **args))
    return said.value, said.body


# Who may be asked.


async def test_an_allowed_host_is_asked_and_answers() -> None:
    """The request arrives as it was written, and the answer comes back whole."""
    async with serving() as web, outside(web.host) as calls:
        said = await calls.perform(
            "requests",
            call(
                "POST",
                f"{web.url}/a?b=c",
                body=b"body",
                params=[["d", "e f"], ["g", "&"]],
                headers=[["X-Own", "ü"], ["User-Agent", "mine"]],
            ),
        )
    [asked] = web.asked
    assert (asked.method, asked.target, asked.body) == ("POST", "/a?b=c&d=e+f&g=%26", b"body")
    assert asked.headers == {
        "host": web.host, "x-own": "ü".encode().decode("latin-1"), "user-agent": "mine", "accept": "*/*",
        "accept-encoding": "identity", "content-length": "4",
    }  # fmt: skip
    assert said.value["status"] == 200
    assert said.value["reason"] == "Said"
    assert said.value["url"] == f"{web.url}/a?b=c&d=e+f&g=%26"
    assert said.body == asked.raw + b"body"


async def test_nothing_is_allowed_by_default() -> None:
    """Without allowed_domains there is no outside; the refusal is the line that would change that."""
    async with serving() as web, outside() as calls:
        text = await refusal("E325", get(calls, web.url))
        assert text == f"requests E325 {web.host} is not an allowed host. To allow it: {PLACE}: [{web.host}]"
        assert not web.connections


@pytest.mark.parametrize(
    "url, line",
    [
        ("http://evil.example/", "evil.example"),
        ("https://evil.example:8443/", "evil.example:8443"),
        ("http://10.0.0.1/", "10.0.0.1"),
        ("http://[::1]:8080/", "'[::1]:8080'"),
    ],
)
async def test_a_refused_host_is_named_with_the_line_that_allows_it(url: str, line: str) -> None:
    """What is written there can be put into the configuration, and then allows it."""
    async with outside("good.example", names={}) as calls:
        text = await refusal("E325", get(calls, url))
        assert text.endswith(f"To allow it: {PLACE}: [{line}]")
    assert Allowed.of([line.strip("'")]).permits(parse_url(url))


async def test_a_name_that_leads_to_a_private_address_is_refused() -> None:
    """A listed name is not enough: the address has to be listed, and the refusal names both."""
    async with serving() as web:
        name = f"inside.example:{web.port}"
        async with outside(name, names={"inside.example": "127.0.0.1"}) as calls:
            text = await refusal("E325", get(calls, f"http://{name}/"))
            assert "inside.example is at 127.0.0.1, which is not a public address" in text
            assert text.endswith(f"{PLACE}: [{name}, {web.host}]")
            assert not web.connections
        async with outside(name, web.host, names={"inside.example": "127.0.0.1"}) as calls:
            await get(calls, f"http://{name}/")
            assert web.asked[0].headers["host"] == name


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
        "fe80::1%1", "fd00::1", "0.0.0.0", "224.0.0.1", "100.64.0.1",
    ],
)  # fmt: skip
async def test_star_is_for_public_hosts_only(address: str) -> None:
    """`*` names no address of this machine or its networks, in whatever form the DNS gives it."""
    async with outside("*", names={"any.example": [address]}) as calls:
        assert "any.example is at" in await refusal("E325", get(calls, "http://any.example/"))


async def test_all_addresses_of_a_name_must_be_allowed() -> None:
    """One private address among public ones is enough to refuse: it could be the one that is dialled."""
    async with serving() as web:
        names = {"mixed.example": ["8.8.8.8", "127.0.0.1"]}
        async with outside(f"mixed.example:{web.port}", names=names) as calls:
            await refusal("E325", get(calls, f"http://mixed.example:{web.port}/"))
        assert not web.connections


async def test_the_address_that_was_checked_is_the_one_that_is_dialled() -> None:
    """A name is looked up once for a connection; a second answer of the DNS is never asked for."""
    answers = [["127.0.0.1"], ["127.0.0.2"], ["10.0.0.1"]]
    looked_up: list[str] = []

    def rebinding(host: str) -> list[str]:
        looked_up.append(host)
        return answers[len(looked_up) - 1]

    async with serving(lambda _: answer(b"x", Connection="close")) as web:
        name = f"rebind.example:{web.port}"
        async with outside(name, web.host, names=rebinding) as calls:
            await get(calls, f"http://{name}/")
            assert looked_up == ["rebind.example"]
            await refusal("E325", get(calls, f"http://{name}/"))
            await refusal("E325", get(calls, f"http://{name}/"))
        assert web.connections == 1


async def test_the_next_address_is_tried_where_one_does_not_answer() -> None:
    """A name with several allowed addresses works while one of them does."""
    async with serving() as web:
        name = f"two.example:{web.port}"
        async with outside(
            name, f"127.0.0.0/8:{web.port}", names={"two.example": ["127.0.0.9", "127.0.0.1"]}
        ) as c:
            assert (await get(c, f"http://{name}/"))[0]["status"] == 200


async def test_connections_are_kept_and_used_again() -> None:
    """Two calls to one host use one connection, and another route's calls one of their own."""
    async with serving() as web, outside(web.host) as calls, outside(web.host) as others:
        for _ in range(3):
            await get(calls, web.url)
        assert web.connections == 1
        await get(others, web.url)
        assert web.connections == 2


async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither proxies nor logins that the host's environment has are part of a guest's request."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password CANARY\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    async with serving() as web, serving() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        async with outside(web.host) as calls:
            await get(calls, web.url)
        assert not proxy.connections
        assert "authorization" not in web.asked[0].headers


STAR = Client(Allowed.of(["*"]), PLACE, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), resolve)
RESOLVED = st.lists(
    st.one_of(
        st.ip_addresses().map(str),
        st.ip_addresses(network="10.0.0.0/8").map(str),
        st.ip_addresses(v=4).map(lambda a: f"::ffff:{a}"),
        st.sampled_from(["127.0.0.1", "::1", "169.254.169.254", "64:ff9b::7f00:1", "fe80::1%1", "nonsense"]),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=150)
@given(RESOLVED)
def test_whatever_the_dns_says_no_private_address_is_dialled(found: list[str]) -> None:
    """The addresses to dial are all public, or there are none."""
    if not all(map(_is_public, found)):
        with pytest.raises(ProcessorError, match="E325"):
            STAR.addresses("any.example", 443, found)
        return
    dialled = STAR.addresses("any.example", 443, found)
    assert [str(address) for address in dialled] == [str(ipaddress.ip_address(text)) for text in found]


def _is_public(text: str) -> bool:
    try:
        return is_public(ipaddress.ip_address(text))
    except ValueError:
        return False


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls_of(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


async def test_tls_is_verified_for_the_name_in_the_url(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The address that is dialled is another thing than the name that the certificate has to have."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    seen: list[str | None] = []
    context = tls_of(authority, "secure.example")
    context.sni_callback = lambda _, name, __: seen.append(name)
    async with serving(tls=context) as web:
        names = {"secure.example": "127.0.0.1", "other.example": "127.0.0.1"}
        listed = (f"secure.example:{web.port}", f"other.example:{web.port}", web.host)
        async with outside(*listed, names=names) as calls:
            head, _ = await get(calls, f"https://secure.example:{web.port}/")
            assert head["failed"] == "tls"  # an authority that this machine does not know
            assert "certificate cannot be verified" in head["text"]
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        async with outside(*listed, names=names) as calls:
            head, _ = await get(calls, f"https://secure.example:{web.port}/")
            assert head["status"] == 200
            assert web.asked[0].headers["host"] == f"secure.example:{web.port}"
            for url in (f"https://other.example:{web.port}/", web.url):
                assert (await get(calls, url))[0]["failed"] == "tls"
        assert seen[:3] == ["secure.example", "secure.example", "other.example"]


# Redirects.


@pytest.mark.parametrize(
    "status, method, after",
    [
        (301, "GET", "GET"), (301, "POST", "GET"), (301, "PUT", "PUT"), (302, "POST", "GET"),
        (302, "HEAD", "HEAD"), (303, "PUT", "GET"), (303, "HEAD", "HEAD"), (307, "POST", "POST"),
        (308, "DELETE", "DELETE"),
    ],
)  # fmt: skip
async def test_a_redirect_changes_the_method_as_browsers_do(status: int, method: str, after: str) -> None:
    """303, and POST at 301 and 302, become GET without a body; everything else is sent again."""

    def say(asked: Any) -> bytes:
        return to("/b?c=d", status) if asked.target == "/a" else answer(b"" if after == "HEAD" else b"done")

    async with serving(say) as web, outside(web.host) as calls:
        args = call(method, f"{web.url}/a", body=b"x=1", headers=[["Content-Type", "text/x"]])
        said = await calls.perform("requests", args)
        assert said.value["url"] == f"{web.url}/b?c=d"
        assert web.asked[1].method == after
        is_same = after == method != "HEAD" or status in (307, 308)
        if after == "GET" and method != "GET":
            assert web.asked[1].body == b""
            assert "content-type" not in web.asked[1].headers
        elif is_same:
            assert web.asked[1].body == b"x=1"


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data", "http://[::1]/", "http://evil.example/", "//evil.example/",
        "http://private.example/",
    ],
)  # fmt: skip
async def test_each_hop_is_checked(location: str) -> None:
    """A redirect leads nowhere that a request could not have gone."""
    async with serving(lambda _: to(location)) as web:
        names = {"private.example": "10.0.0.1", "evil.example": "8.8.8.8"}
        async with outside(web.host, "private.example", names=names) as calls:
            await refusal("E325", get(calls, web.url))
        assert len(web.asked) == 1


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "http://2130706433/", "http://a@b/", "gopher://x/", "\\\\x"]
)
async def test_a_redirect_to_what_is_no_url_is_refused(location: str) -> None:
    """The rules for URLs hold for those of servers, too."""
    async with serving(lambda _: to(location)) as web, outside("*", web.host) as calls:
        assert "a redirect to" in await refusal("E317", get(calls, web.url))


async def test_redirects_end() -> None:
    """One more than `redirects` is a failure of its own kind; with allow_redirects=False none is followed."""
    async with serving(lambda _: to("/again")) as web, outside(web.host, redirects=3) as calls:
        head, _ = await get(calls, web.url)
        assert head == {"failed": "redirects", "text": "more than 3 redirects (outbound.redirects)"}
        assert len(web.asked) == 4
        head, _ = await get(calls, web.url, redirects=False)
        assert (head["status"], head["headers"][1]) == (302, ["location", "/again"])


async def test_credentials_stay_with_the_server_that_they_were_for() -> None:
    """Authorization and Cookie go along to the same server, and not to another."""
    async with serving() as second, serving() as first:
        first.say = lambda asked: to("/b" if asked.target == "/a" else f"{second.url}/c")
        async with outside(first.host, second.host) as calls:
            headers = [["Authorization", "Bearer mine"], ["cookie", "a=b"], ["X-Other", "kept"]]
            await get(calls, f"{first.url}/a", headers=headers)
            await get(calls, f"{first.url}/a", headers=headers[:1], auth=["user", "pw"])
        assert [asked.headers.get("authorization") for asked in first.asked[:2]] == ["Bearer mine"] * 2
        assert first.asked[3].headers["authorization"] == "Basic dXNlcjpwdw=="
        assert first.asked[3].raw.lower().count(b"authorization:") == 1  # in place of the header
        for asked in second.asked:
            assert not {"authorization", "cookie"} & asked.headers.keys()
        assert second.asked[0].headers["x-other"] == "kept"


# Bounds.


async def test_a_request_that_is_too_large_is_not_sent() -> None:
    """request_bytes is for all that a guest puts into a request."""
    async with serving() as web, outside(web.host, request_bytes=1000) as calls:
        for args in (
            {"body": b"x" * 1001},
            {"headers": [["X", "x" * 1001]]},
            {"params": [["x", "y" * 1001]]},
        ):
            text = await refusal("E323", get(calls, web.url, **args))
            assert "limit 1000, outbound.request_bytes" in text
        assert not web.connections
        await get(calls, web.url, body=b"x" * 900)


async def test_an_answer_that_is_too_large_is_cut_off() -> None:
    """The size that a server announces is not believed, and reading stops at the first byte too many."""
    async with serving() as web, outside(web.host, response_bytes=1000) as calls:
        web.say = lambda _: answer(b"x" * 1000)
        assert len((await get(calls, web.url))[1]) == 1000
        chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
        endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 1000
        for said in (answer(b"x" * 1001), endless, b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000):
            web.say = lambda _, said=said: said
            assert "more than 1000 bytes" in await refusal("E323", get(calls, web.url))


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "raw deflate"])
async def test_a_packed_answer_is_unpacked_within_its_bound(coding: str) -> None:
    """A small packed body that is large inside is E323; one that fits arrives unpacked."""

    def packed(data: bytes) -> bytes:
        if "gzip" in coding:
            return gzip.compress(data)
        pack = zlib.compressobj(wbits=-15 if coding.startswith("raw") else 15)
        return pack.compress(data) + pack.flush()

    async with serving() as web, outside(web.host, response_bytes=1 << 20) as calls:
        name = coding.removeprefix("raw ")
        web.say = lambda _: answer(packed(b"hello " * 1000), Content_Encoding=name)
        assert (await get(calls, web.url))[1] == b"hello " * 1000
        web.say = lambda _: answer(packed(b"\0" * (64 << 20)), Content_Encoding=name)
        assert "more than 1048576 bytes" in await refusal("E323", get(calls, web.url))
        web.say = lambda _: answer(packed(b"hello " * 1000)[:-4], Content_Encoding=name)
        assert (await get(calls, web.url))[0]["text"].endswith("broke off")


async def test_an_answer_packed_in_another_way_is_refused() -> None:
    """What cannot be unpacked cannot be searched for secrets."""
    async with serving(lambda _: answer(b"x", Content_Encoding="br")) as web, outside(web.host) as calls:
        assert "packed as 'br'" in (await get(calls, web.url))[0]["text"]


async def test_headers_are_bounded() -> None:
    """Neither many headers nor long ones reach a guest."""
    async with serving() as web, outside(web.host) as calls:
        web.say = lambda _: b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 201 + b"\r\n"
        assert "201 headers" in await refusal("E323", get(calls, web.url))
        web.say = lambda _: b"HTTP/1.1 200 OK\r\nX: " + b"y" * (65 << 10) + b"\r\n\r\n"
        await refusal("E323", get(calls, web.url))
        web.say = lambda _: b"HTTP/1.1 200 OK\r\nX: " + b"y" * (1 << 20)
        assert "a line of more than 65536 bytes" in await refusal("E323", get(calls, web.url))
        web.say = lambda _: b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000
        assert "too many header bytes" in (await get(calls, web.url))[0]["text"]


async def test_one_deadline_is_for_the_whole_call() -> None:
    """A server that says nothing, or stops in its body, does not hold a call up."""
    async with asyncio.timeout(4), serving(lambda _: None) as web:
        async with outside(web.host, timeout_s=0.2) as calls:
            for more in ({}, {"timeout": 1e9}):  # a guest can shorten it, and no more
                head, _ = await get(calls, web.url, **more)
                assert head == {"failed": "timeout", "text": f"{web.host}: no complete answer within 0.2 s"}
        web.say = lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx"
        async with outside(web.host, timeout_s=30) as calls:
            assert (await get(calls, web.url, timeout=0.2))[0]["failed"] == "timeout"
            assert "is none" in await refusal("E317", get(calls, web.url, timeout=-1))


async def test_a_slow_look_up_is_part_of_the_deadline() -> None:
    """A name server that does not answer is given up with the call."""

    async def never(host: str, port: int) -> list[str]:
        await asyncio.get_running_loop().create_future()
        return []

    calls = HostCalls(never)
    governor = calls.for_route(Reach(PLACE, Outbound(allowed_domains=("a.example",), timeout_s=0.1)))
    assert (await get(RouteCalls(governor.lane().perform, governor.secrets), "http://a.example/"))[0][
        "failed"
    ] == "timeout"
    await calls.close()


@pytest.mark.parametrize(
    "said",
    [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nx"],
)
async def test_what_is_no_answer_is_a_failure_of_the_connection(said: bytes) -> None:
    """A server that is none, or goes away, gives one sentence that says so."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with outside(host) as calls:
        head, _ = await get(calls, f"http://{host}/")
        assert (head["failed"], head["text"].startswith(host)) == ("connection", True)
    server.close()
    await server.wait_closed()


async def test_a_server_that_is_not_there_is_said_to_be_so(free_port: int) -> None:
    """A refused connection and a name without an address are failures of the connection."""
    async with outside(f"127.0.0.1:{free_port}", "none.example", names={}) as calls:
        head, _ = await get(calls, f"http://127.0.0.1:{free_port}/")
        assert head["failed"] == "connection"
        head, _ = await get(calls, "http://none.example/")
        assert head["text"] == "none.example: the name has no address"


# What a hostile guest writes.


@pytest.mark.parametrize(
    "args",
    [
        {}, {"method": "GET"}, {"method": "CONNECT"}, {"method": "get"}, {"method": ["GET"]}, {"url": None},
        {"url": 7}, {"url": "http://[::1"}, {"url": "ws://x"}, {"kind": "multipart"}, {"kind": None},
        {"body": "text"}, {"params": {"a": "b"}}, {"params": [["a"]]}, {"params": [["a", 1]]},
        {"params": [["a", "b"]] * 1001}, {"headers": [["a", "b", "c"]]}, {"headers": [["a b", "c"]]},
        {"headers": [["a", "b\r\nc: d"]]}, {"headers": [["a", "b\n"]]}, {"headers": [["a", " b"]]},
        {"headers": [["", "b"]]}, {"headers": [["a", "b\x00"]]}, {"headers": [["a", "\ud800"]]},
        {"headers": [["Host", "evil"]]}, {"headers": [["content-length", "1"]]},
        {"headers": [["Transfer-Encoding", "chunked"]]}, {"headers": [["Proxy-Authorization", "x"]]},
        {"auth": ["a"]}, {"auth": "ab"}, {"auth": ["a\r\nb", 1]}, {"timeout": "1"}, {"timeout": True},
        {"timeout": 0}, {"timeout": 1e999},
    ],
)  # fmt: skip
async def test_a_call_that_is_not_well_formed_is_refused(args: dict[str, Any]) -> None:
    """The host takes nothing for granted that guest-side code should have written."""
    async with serving() as web, outside(web.host) as calls:
        whole = {} if args in ({}, {"method": "GET"}) else {"method": "GET", "kind": "none", "url": web.url}
        await refusal("E317", calls.perform("requests", {**whole, **args}))
        assert not web.connections


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["method", "url", "kind", "body", "params", "headers", "auth", "timeout", "redirects"])


@settings(max_examples=200)
@given(st.dictionaries(KEYS, JSON | st.sampled_from(["GET", "none", "http://allowed.example/"]), max_size=9))
def test_no_call_breaks_the_host(args: dict[str, Any]) -> None:
    """Whatever the arguments are, they end in a refusal or in a request to an allowed host."""

    async def ask() -> None:
        async with outside("allowed.example", names={}) as calls:
            with suppress(ProcessorError):
                said = await calls.perform("requests", args)
                assert said.value["failed"] in ("connection", "timeout")

    asyncio.run(ask())


async def test_calls_are_counted_with_their_result() -> None:
    """Each call is reported once: the class of its answer, or the code of why there is none."""
    heard: list[tuple[str, bool]] = []
    async with (
        serving(lambda asked: answer(status=int(asked.target[1:] or 200))) as web,
        outside(
            web.host, "127.0.0.1:1", observe=lambda result, seconds: heard.append((result, seconds > 0))
        ) as calls,
    ):
        for status in (200, 304, 404, 500):
            await get(calls, f"{web.url}/{status}")
        await refusal("E325", get(calls, "http://evil.example/"))
        await get(calls, "http://127.0.0.1:1/")
        await refusal("E317", calls.perform("shell", {}))
    assert heard == [(result, True) for result in ("2xx", "3xx", "4xx", "5xx", "E325", "E317", "E317")]
