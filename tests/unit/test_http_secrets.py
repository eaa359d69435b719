"""Secrets on the host: a value reaches the hosts that it is bound to, and nothing else ever has it."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.address import Binding, parse_url
from processor.capability.secrets import STEP_BYTES, Scrubber, Vault
from processor.errors import ProcessorError
from processor.reach import BoundSecret
from tests.web import RouteCalls, answer, call, outside, refusal, serving, to

CANARY = 'K3Y/canary+1 "ü<&>\\'


async def perform(
    calls: RouteCalls, url: str, method: str = "POST", **args: Any
) -> tuple[dict[str, Any], bytes]:
    said = await calls.perform("requests", call(method, url, **args))
    return said.value, said.body


async def withheld(calls: RouteCalls, url: str, **args: Any) -> str:
    """What is said where a secret may not be sent (E326), which is never the secret."""
    text = await refusal("E326", perform(calls, url, **args))
    assert "K3Y" not in text
    return text


async def test_a_mark_becomes_the_value_where_it_may_stand() -> None:
    """Headers, parameters, JSON values, form fields and `auth` carry it, each in its own writing."""
    value = CANARY.replace("\\", "")
    async with serving() as web, outside(web.host, secrets={"k": (value, [web.host])}) as calls:
        mark = calls.secrets["k"]
        headers = [["Authorization", f"Bearer {mark}"]]
        params = [["q", mark], ["r", f"a{mark}b"]]
        await perform(calls, web.url, method="GET", params=params, headers=headers)
        await perform(calls, f"{web.url}/?key={mark}", method="GET", auth=["me", mark])
        body = json.dumps({"a": [mark, {"b": f"<{mark}>"}], "n": 12345678901234567890123}).encode()
        await perform(calls, web.url, kind="json", body=body)
        await perform(calls, web.url, kind="form", body=f"a={mark}&b=c".encode())
    first, second, third, fourth = web.asked
    assert first.target == f"/?q={quote_plus(value)}&r=a{quote_plus(value)}b"
    assert first.headers["authorization"].encode("latin-1") == f"Bearer {value}".encode()
    assert second.target == f"/?key={quote_plus(value)}"
    token = base64.b64decode(second.headers["authorization"].removeprefix("Basic ")).decode()
    assert token == f"me:{value}"
    assert json.loads(third.body) == {"a": [value, {"b": f"<{value}>"}], "n": 12345678901234567890123}
    assert fourth.body == f"a={quote_plus(value)}&b=c".encode()


async def test_a_body_without_a_secret_is_sent_as_it_is() -> None:
    """JSON is read and written anew only where a mark stands in it."""
    async with serving() as web, outside(web.host, secrets={"k": ("value", [web.host])}) as calls:
        await perform(calls, web.url, kind="json", body=b'{"a" : 1.50}')
        assert web.asked[0].body == b'{"a" : 1.50}'


async def test_a_host_that_a_secret_is_not_bound_to_never_gets_it() -> None:
    """That a host is allowed says nothing about secrets; the refusal says what would change it."""
    async with serving() as web:
        secrets = {"k": (CANARY, ["api.example.com", "*.example.org"])}
        async with outside(web.host, secrets=secrets) as calls:
            mark = calls.secrets["k"]
            for args in (
                {"headers": [["X", mark]]},
                {"params": [["a", mark]]},
                {"auth": ["a", mark]},
                {"kind": "json", "body": json.dumps([mark]).encode()},
                {"kind": "form", "body": f"a={mark}".encode()},
            ):
                text = await withheld(calls, web.url, **args)
                assert f"the secret 'k' may not be sent to {web.url}. To allow it: add the host to" in text
            with pytest.raises(ProcessorError, match="E325"):  # the first thing to be said
                await perform(calls, "http://evil.example/", headers=[["X", mark]])
        assert not web.connections


@pytest.mark.parametrize(
    "args, where",
    [
        ({"headers": [["{mark}", "x"]]}, "the name of a header"),
        ({"params": [["{mark}", "x"]]}, "the name of a parameter"),
        ({"kind": "raw", "body": b"{mark}"}, "a body that is neither"),
        ({"kind": "json", "body": b'{"{mark}": 1}'}, "a key of JSON"),
        ({"url": "{url}/{mark}"}, "the host or the path of a URL"),
        ({"url": "http://{mark}.example/"}, "the host or the path of a URL"),
    ],
)
async def test_a_mark_anywhere_else_is_refused(args: dict[str, Any], where: str) -> None:
    """Where a value would be written into what servers log and other parties read, it is not written."""
    async with serving() as web, outside(web.host, "*", secrets={"k": (CANARY, [web.host])}) as calls:

        def filled(value: Any) -> Any:
            if isinstance(value, bytes):
                return value.replace(b"{mark}", calls.secrets["k"].encode())
            if isinstance(value, list):
                return [filled(item) for item in value]
            return value.replace("{mark}", calls.secrets["k"]).replace("{url}", web.url)

        whole = {"url": web.url, **{name: filled(value) for name, value in args.items()}}
        assert f"'k' cannot be used in {where}" in await withheld(calls, **whole)
        assert not web.connections


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("CANARY\nX-Other: y", "holds a line break"),
        ("CANARY\r", "a line break"),
    ],
)
async def test_a_value_that_a_header_cannot_hold_is_not_quoted(value: str, why: str) -> None:
    """The refusal names the header and keeps the value to itself."""
    async with serving() as web, outside(web.host, secrets={"k": (value, [web.host])}) as calls:
        with pytest.raises(ProcessorError, match=f"the value of the header X .*{why}") as refused:
            await perform(calls, web.url, headers=[["X", calls.secrets["k"]]])
        assert "CANARY" not in str(refused.value)


async def test_a_mark_cannot_be_guessed_or_used_elsewhere() -> None:
    """Marks are random, made anew for each life of a route, and mean nothing to another one."""
    async with serving() as web:
        secrets = {"k": (CANARY, [web.host])}
        async with outside(web.host, secrets=secrets) as calls, outside(web.host, secrets=secrets) as others:
            assert len({calls.secrets["k"], others.secrets["k"]}) == 2
            assert len(calls.secrets["k"].rpartition(".")[2]) == 32
            for mark in (others.secrets["k"], "secret.k." + "0" * 32, "secret.k.", "k"):
                await perform(calls, web.url, method="GET", headers=[["X", mark]])
                assert web.asked[-1].headers["x"] == mark


ECHOES: dict[str, Callable[[str], bytes]] = {
    "as it is": str.encode,
    "in a URL": lambda value: quote(value, safe="").encode(),
    "in a query": lambda value: quote_plus(value).encode(),
    "in a URL, in small letters": lambda value: (
        quote(value, safe="").lower().encode().replace(b"k3y", b"K3Y")
    ),
    "in JSON": lambda value: json.dumps(value).encode(),
    "in JSON, not ASCII": lambda value: json.dumps(value, ensure_ascii=False).encode(),
    "in JSON of other writers": lambda value: (
        json.dumps(value).replace("/", "\\/").replace("+", "\\u002B").encode()
    ),
    "in HTML": lambda value: html.escape(value).encode(),
    "in HTML by number": lambda value: "".join(f"&#{ord(char)};" for char in value).encode(),
    "in base64": lambda value: base64.b64encode(value.encode()),
    "in base64, with more": lambda value: base64.b64encode(f"me:{value}:more".encode()),
    "in base64, with other": lambda value: base64.urlsafe_b64encode(f"me2:{value}".encode()),
    "in hexadecimal": lambda value: value.encode().hex().encode(),
    "in UTF-16": lambda value: value.encode("utf-16"),
}


@pytest.mark.parametrize("writing", ECHOES)
async def test_a_server_that_repeats_a_value_is_not_heard(writing: str) -> None:
    """However a server writes it, into the body or a header, the guest reads ***."""
    value = CANARY.replace("ü", "u")
    echoed = ECHOES[writing](value)
    header = echoed.decode("latin-1") if writing != "in UTF-16" else "x"
    say = lambda _: answer(b"<" + echoed + b">" + echoed, X_Echo=header)  # noqa: E731
    async with serving(say) as web, outside(web.host, secrets={"k": (value, [web.host])}) as calls:
        head, body = await perform(calls, web.url)
    assert body.count(b"***") == 2
    for form in ECHOES.values():
        assert form(value) not in body
        assert form(value).decode("latin-1") not in json.dumps(head, ensure_ascii=False)


async def test_a_value_that_is_not_ascii_is_taken_out_of_headers_too() -> None:
    """A header is written as UTF-8, and the answer's headers are read as Latin-1: the value looks another."""
    echo = lambda asked: answer(X_Echo=asked.headers["x-key"].encode("latin-1").decode())  # noqa: E731
    async with serving(echo) as web, outside(web.host, secrets={"k": (CANARY, [web.host])}) as calls:
        head, _ = await perform(calls, web.url, headers=[["X-Key", calls.secrets["k"]]])
    assert ["x-echo", "***"] in head["headers"]


async def test_a_value_in_a_reason_or_a_failure_is_taken_out() -> None:
    """The status line and the sentences that are made of what a server said are searched, too."""
    async with serving() as web, outside(web.host, secrets={"k": ("CANARY-1", [web.host])}) as calls:
        web.say = lambda _: b"HTTP/1.1 500 CANARY-1\r\nContent-Length: 0\r\n\r\n"
        assert (await perform(calls, web.url))[0]["reason"] == "***"
        web.say = lambda _: answer(b"x", Content_Encoding="CANARY-1")
        assert "CANARY" not in (await perform(calls, web.url))[0]["text"].upper()
        for location in ("http://CANARY-1.evil.example/", "http://a.example:1/CANARY-1"):
            web.say = lambda _, location=location: to(location)
            assert "canary" not in (await refusal("E326", perform(calls, web.url))).lower()
        web.say = lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nCANARY-1: x\r\n\r\n"
        assert ["***", "x"] in (await perform(calls, web.url))[0]["headers"]
        web.say = lambda _: to("ftp://CANARY-1/")
        with pytest.raises(ProcessorError, match=r"a redirect to 'ftp://\*\*\*/'"):
            await perform(calls, web.url)


async def test_secrets_are_left_behind_at_a_redirect_to_another_host() -> None:
    """A header that carried one is not sent on; a body that carries one is not sent at all."""
    async with serving() as other, serving() as web:
        web.say = lambda _: to(f"{other.url}/", 307)
        async with outside(web.host, other.host, secrets={"k": (CANARY, [web.host])}) as calls:
            mark = calls.secrets["k"]
            await perform(calls, web.url, headers=[["X-Key", mark], ["X-Other", "o"]])
            assert web.asked[0].headers["x-key"] == CANARY.encode().decode("latin-1")
            assert "x-key" not in other.asked[0].headers
            assert other.asked[0].headers["x-other"] == "o"
            await withheld(calls, web.url, kind="form", body=f"a={mark}".encode())
            assert len(other.asked) == 1
            web.say = lambda asked: to(f"{other.url}{asked.target}")
            text = await withheld(calls, web.url, method="GET", params=[["key", mark]])
            assert "would take a secret with it" in text
            assert len(other.asked) == 1


async def test_a_redirect_on_the_same_host_keeps_its_secrets() -> None:
    """What the host may have, it may have again; the guest sees marks and stars, and no value."""
    async with serving() as web:
        web.say = lambda asked: to(f"/b{asked.target[2:]}") if asked.target[:2] == "/a" else answer(asked.raw)
        async with outside(web.host, secrets={"k": ("CANARY/1", [web.host])}) as calls:
            mark = calls.secrets["k"]
            head, body = await perform(
                calls, f"{web.url}/a", method="GET", params=[["q", mark]], headers=[["X", mark]]
            )
        assert web.asked[1].target == "/b?q=CANARY%2F1"
        assert web.asked[1].headers["x"] == "CANARY/1"
        assert head["url"] == f"{web.url}/b?q=***"
        assert b"CANARY" not in body


VALUES = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"]), min_size=4, max_size=20)


@settings(max_examples=150)
@given(VALUES, st.sampled_from([w for w in ECHOES if not w.endswith("small letters")]), st.text(max_size=5))
def test_no_value_survives_in_any_writing(value: str, writing: str, around: str) -> None:
    """What is left of a text that held the value in some writing does not hold it in that writing."""
    echoed = ECHOES[writing](value)
    around_bytes = around.encode("utf-8", "replace")
    scrubbed = Scrubber([value]).body(around_bytes + echoed + around_bytes)
    core = echoed.strip(b'"=') if "base64" not in writing else echoed
    assert core not in scrubbed


def test_a_large_body_is_searched_without_gaps() -> None:
    """A value in an escaped form is found wherever the steps of the search meet."""
    value, written = "CANARY-é/1", b"&#0000067;ANARY-%C3%A9\\u002f1"
    scrubber = Scrubber([value])
    for start in (0, 5, STEP_BYTES - 40, STEP_BYTES - 1, STEP_BYTES, 2 * STEP_BYTES - 7):
        body = b"x" * start + written + b"y" * (3 * STEP_BYTES - start)
        assert scrubber.body(body) == b"x" * start + b"***" + b"y" * (3 * STEP_BYTES - start)
        assert scrubber.body(body + written).count(b"***") == 2


async def test_a_large_answer_is_searched_too() -> None:
    """One that is searched beside the event loop loses its secrets like any other."""
    async with serving() as web, outside(web.host, secrets={"k": (CANARY, [web.host])}) as calls:
        web.say = lambda _: answer(b"x" * STEP_BYTES + json.dumps(CANARY).encode() + b"&")
        _, body = await perform(calls, web.url)
        assert body == b"x" * STEP_BYTES + b'"***"&'


def test_a_text_without_secrets_is_not_changed() -> None:
    """Searching costs nothing where there is nothing to search for."""
    assert Scrubber([]).body(b"a%41\\u0041&") == b"a%41\\u0041&"
    assert Scrubber(["secret"]).text("nothing here \ud800") == "nothing here \ud800"
    assert Vault([]).fill("secret.k.00", parse_url("http://a.example/")) == "secret.k.00"


def test_a_value_is_in_no_repr() -> None:
    """What holds a value can be logged by mistake, and says nothing."""
    secret = BoundSecret("k", CANARY, (Binding.parse("a.example"),))
    assert CANARY not in f"{secret!r} {Vault([secret])!r} {vars(Vault([secret]))['marks']}"


@pytest.mark.parametrize(
    "body",
    [b"[" * 600 + b"%s" + b"]" * 600, b'{"a":' * 990 + b"%s" + b"}" * 990, b"[%s", b"%s\xff"],
)
async def test_a_body_that_is_too_deep_or_no_json_is_refused(body: bytes) -> None:
    """A secret is filled in where it can be; where not, that is this call's refusal and no error of ours."""
    async with serving() as web, outside(web.host, secrets={"k": ("K3Y-abcdef", [web.host])}) as calls:
        filled = body.replace(b"%s", f'"{calls.secrets["k"]}"'.encode())
        text = await refusal("E317", perform(calls, web.url, kind="json", body=filled))
        assert "a body that is not JSON, or has more than 100 levels" in text
        assert not web.asked
        await perform(calls, web.url, kind="json", body=f'["{calls.secrets["k"]}"]'.encode())
        assert web.asked[0].body == b'["K3Y-abcdef"]'


async def test_the_limit_of_a_request_tells_nothing_of_a_secret() -> None:
    """What is too large is so whatever the secret's length, and the refusal says the same."""
    said: list[list[str]] = []
    for value in ("K3Y-abcd", "K3Y-" + "e" * 60):
        async with serving() as web:
            secrets = {"k": (value, [web.host])}
            async with outside(web.host, secrets=secrets, request_bytes=1000) as calls:
                mark = calls.secrets["k"]
                told = []
                for pad in range(880, 1000):
                    try:
                        await perform(calls, web.url, kind="json", body=f'["{mark}{"x" * pad}"]'.encode())
                    except ProcessorError as err:
                        told.append(f"{pad} {err}")
                said.append(told)
    assert said[0] == said[1]
    assert 0 < len(said[0]) < 120


async def test_only_a_secrets_own_hosts_have_it_taken_out() -> None:
    """What another server says is not touched: else it would tell who guesses that the guess is right."""
    guesses = b"K3Y-aaaa K3Y-canary K3Y-bbbb"
    async with serving(lambda asked: answer(guesses)) as own, serving(lambda asked: answer(guesses)) as other:
        secrets = {"k": ("K3Y-canary", [own.host])}
        async with outside(own.host, other.host, secrets=secrets) as calls:
            _, body = await perform(calls, own.url, method="GET")
            assert body == b"K3Y-aaaa *** K3Y-bbbb"
            _, body = await perform(calls, other.url, method="GET")
            assert body == guesses


async def test_a_redirect_from_a_secrets_host_leaves_the_others_answer_alone() -> None:
    """It is who has answered in the end that decides."""
    async with (
        serving(lambda asked: answer(b"K3Y-canary")) as other,
        serving(lambda asked: to(other.url)) as own,
        outside(own.host, other.host, secrets={"k": ("K3Y-canary", [own.host])}) as calls,
    ):
        _, body = await perform(calls, own.url, method="GET")
    assert body == b"K3Y-canary"


# What comes in pieces.


def in_pieces(scrubber: Scrubber, body: bytes, cuts: list[int]) -> bytes:
    stream = scrubber.stream()
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    pieces = [stream.feed(body[start:end]) for start, end in pairwise(places)]
    return b"".join([*pieces, stream.finish()])


@settings(max_examples=300, deadline=None)
@given(
    value=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=8, max_size=20),
    writing=st.sampled_from(sorted(ECHOES)),
    around=st.text(max_size=20),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_no_value_survives_where_pieces_divide_it(
    value: str, writing: str, around: str, cuts: list[int]
) -> None:
    """What comes in pieces is scrubbed as it would be in one."""
    body = around.encode() + ECHOES[writing](value) + around.encode()
    scrubber = Scrubber([value])
    assert in_pieces(scrubber, body, cuts) == scrubber.body(body)


def test_every_way_to_divide_a_value_is_covered() -> None:
    """In whatever writing, a value that is cut in two is *** all the same, and so are two that overlap."""
    scrubber = Scrubber([CANARY, "abcabcab", "abcabcabxyz"])
    for body in [b"<%b>" % echo(CANARY) for echo in ECHOES.values()] + [b"abcabcabcab", b"abcabcabxyz"]:
        for cut in range(len(body) + 1):
            assert in_pieces(scrubber, body, [cut]) == scrubber.body(body), (body, cut)
        assert in_pieces(scrubber, body, [*range(len(body))]) == scrubber.body(body), body


def test_only_what_may_be_a_value_is_held_back() -> None:
    """An event goes on whole as soon as it is there, unless a value may have begun in it."""
    stream = Scrubber(["K3Y/canary"]).stream()
    assert stream.feed(b'data: {"a": "b%20c"}\n\n') == b'data: {"a": "b%20c"}\n\n'
    assert stream.feed(b"data: K3Y") == b"data: "
    assert stream.feed(b"!\n") == b"K3Y!\n"
    assert stream.feed(b"data: K3Y/can") == b"data: "
    assert stream.feed(b"ary\n") == b"***\n"
    assert stream.finish() == b""
