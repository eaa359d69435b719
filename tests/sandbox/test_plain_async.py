"""Coroutines in plain Python: a loop without descriptors, whose tasks call the host at the same time.

Real guests, the real host side, and a server here that counts what is asked of it at a time.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from textwrap import dedent
from typing import Any

import pytest

from processor.model import Failed, Group, Limits, Outcome, Program, Ran
from processor.sandbox.host import Guest, Zygote
from tests.web import Asked, Web, answer, outside, serving, to

CANARY = "K3Y/canary+1"
Open = Callable[..., Awaitable[Guest]]


class Crowd:
    """Answers once so many ask at the same time."""

    def __init__(self, size: int) -> None:
        self.now = self.most = 0
        self._size = size
        self._all_here = asyncio.Event()

    async def __call__(self, asked: Asked) -> bytes:
        self.now += 1
        self.most = max(self.most, self.now)
        if self.now == self._size:
            self._all_here.set()
        await self._all_here.wait()
        self.now -= 1
        return answer(asked.target.encode())


@asynccontextmanager
async def opened(web: Web | None = None) -> AsyncIterator[Open]:
    """`await load(source, **limits)` is a guest that may ask `web`."""
    zygote = await Zygote.start()
    host = web.host if web is not None else "127.0.0.1"
    try:
        async with outside(host, names={}, secrets={"k": (CANARY, [host])}) as calls:

            async def load(source: str, **limits: Any) -> Guest:
                program = Program(dedent(source), "plain.py", "python")
                return await zygote.spawn(
                    program, Limits(**limits), perform=calls.perform, secrets=calls.secrets
                )

            yield load
    finally:
        await zygote.close()


async def run(guest: Guest, query: Any = None, context: dict[str, bytes] | None = {}) -> Outcome:  # noqa: B006
    return await asyncio.wait_for(guest.run([Group("", [json.dumps(query).encode()], context)]), 30)


def outputs(outcome: Outcome) -> list[Any]:
    assert isinstance(outcome, Ran), outcome
    return [json.loads(output.body) for output in outcome.outputs]


GATHER = """
import asyncio, httpx
class Runnable:
    async def process(self, queries):
        async with httpx.AsyncClient(base_url=queries[0]) as client:
            answers = await asyncio.gather(*(client.get(f"/{n}") for n in range(10)))
        return [[answer.status_code, answer.text] for answer in answers]
"""


async def test_calls_that_are_awaited_together_are_made_together() -> None:
    """Ten requests of one `gather` are at the server at the same time, and each has its own answer."""
    crowd = Crowd(10)
    async with serving(crowd) as web, opened(web) as load:
        outcome = await run(await load(GATHER), web.url)
    assert outputs(outcome) == [[200, f"/{n}"] for n in range(10)]
    assert crowd.most == 10
    assert isinstance(outcome, Ran)
    assert [call.code for call in outcome.calls] == [""] * 10


async def test_what_is_more_than_may_be_open_waits_in_the_guest() -> None:
    """With `calls_at_once: 3` ten requests arrive three at a time, and the guest goes on."""
    crowd = Crowd(3)
    async with serving(crowd) as web, opened(web) as load:
        guest = await load(GATHER, calls_at_once=3)
        assert len(outputs(await run(guest, web.url))) == 10
        assert crowd.most == 3
        assert guest.alive


MIXED = """
import asyncio, httpx, requests
class Runnable:
    async def process(self, queries):
        async def plain():
            await asyncio.sleep(0)  # the others are on their way
            return requests.get(queries[0] + "/sync").text
        async with httpx.AsyncClient(base_url=queries[0]) as client:
            asked = client.get("/a"), client.get("/b"), plain(), asyncio.to_thread(str, 5)
            return [str(made) for made in await asyncio.gather(*asked)]
"""


async def test_plain_calls_and_awaited_ones_go_together() -> None:
    """A call that waits takes in what comes for the others."""
    crowd = Crowd(3)
    async with serving(crowd) as web, opened(web) as load:
        said = outputs(await run(await load(MIXED), web.url))
    assert said == ["<Response [200 Said]>", "<Response [200 Said]>", "/sync", "5"]
    assert crowd.most == 3


LEFT_OPEN = """
import asyncio, httpx
class Runnable:
    async def process(self, queries):
        client = httpx.AsyncClient(base_url=queries[0]["url"])
        task = asyncio.create_task(client.get("/never"))
        told = []
        try:
            async with asyncio.timeout(0.05):
                await client.get("/never")
        except TimeoutError:
            told.append("late")
        if queries[0]["fails"]:
            raise ValueError("with a call open")
        return [*told, task.done()]
"""


async def test_what_nobody_waits_for_is_cut_off(wait_until) -> None:
    """A timeout and the end of a run take calls back; the run ends at once, and the next one is clean."""
    never = asyncio.Event()

    async def say(asked: Asked) -> bytes:
        if asked.target == "/never":
            await never.wait()
        return answer(b"here")

    async with serving(say) as web, opened(web) as load:
        guest = await load(LEFT_OPEN)
        outcome = await run(guest, {"url": web.url, "fails": False})
        assert outputs(outcome) == ["late", False]
        assert isinstance(outcome, Ran)
        assert [call.code for call in outcome.calls] == ["E314", "E314"]
        failed = await run(guest, {"url": web.url, "fails": True}, None)
        assert isinstance(failed, Failed)
        assert failed.failure.text == "ValueError: with a call open"
        assert 'File "plain.py", line 14, in process' in failed.failure.traceback
        assert outputs(await run(guest, {"url": web.url, "fails": False}, None)) == ["late", False]
        never.set()


async def test_what_a_coroutine_leaves_behind_ends_with_it() -> None:
    """Tasks are cancelled and generators closed before the next message; a kept lock stays of use."""
    source = """
    import asyncio
    class Runnable:
        async def init(self):
            self.context["told"] = []
            self.lock = asyncio.Lock()
        async def behind(self):
            try:
                await asyncio.sleep(3600)
            finally:
                self.context["told"].append("cancelled")
        async def numbers(self):
            try:
                yield 1
                yield 2
            finally:
                await asyncio.sleep(0)
                self.context["told"].append("closed")
        async def hold(self):
            async with self.lock:
                await asyncio.sleep(0)
        async def process(self, queries):
            asyncio.create_task(self.behind())
            self.kept = self.numbers()
            await anext(self.kept)
            await asyncio.gather(self.hold(), self.hold())
            return list(self.context["told"])
    """
    async with opened() as load:
        guest = await load(source)
        assert outputs(await run(guest)) == []
        assert outputs(await run(guest, context=None)) == ["cancelled", "closed"]


async def test_all_entry_points_may_be_asynchronous() -> None:
    """What an asynchronous generator yields comes one by one, as from a plain one."""
    source = """
    import asyncio
    class Runnable:
        async def init(self):
            await asyncio.sleep(0)
            self.context["n"] = 40
        async def process(self, queries):
            for query in queries:
                await asyncio.sleep(0)
                yield {"n": self.context["n"] + query}
        async def process_stream(self, query):
            for n in range(query):
                await asyncio.sleep(0)
                yield {"chunk": n}
    """
    chunks: list[bytes] = []

    async def emit(chunk: bytes) -> None:
        chunks.append(chunk)

    async with opened() as load:
        guest = await load(source)
        assert outputs(await run(guest, 2)) == [{"n": 42}]
        assert isinstance(await guest.stream(Group("", [b"3"]), emit), Ran)
    assert chunks == [b'{"chunk":0}', b'{"chunk":1}', b'{"chunk":2}']


async def test_a_loop_that_nothing_can_wake_fails_its_run() -> None:
    """It says so at once, and does not wait for the end of its time."""
    source = """
    import asyncio
    class Runnable:
        async def process(self, queries):
            await asyncio.get_running_loop().create_future()
    """
    async with opened() as load:
        outcome = await run(await load(source))
    assert isinstance(outcome, Failed)
    assert outcome.failure.text == (
        "RuntimeError: the event loop has nothing left to do, and nothing can wake it"
    )


async def test_a_coroutine_that_waits_too_long_is_told_its_line() -> None:
    """The time of a run is that of a run, whatever waits in it."""
    source = """
    import asyncio, httpx
    class Runnable:
        async def process(self, queries):
            async with httpx.AsyncClient() as client:
                await client.get(queries[0])
    """
    async with serving(lambda asked: None) as web, opened(web) as load:
        outcome = await run(await load(source, wall_s=0.5), web.url)
    assert isinstance(outcome, Failed)
    assert outcome.failure.code == "E312"
    assert [call.code for call in outcome.calls] == ["E314"]


# httpx.


def of_httpx(body: str) -> str:
    lines = "\n".join(f"        {line}" for line in dedent(body).strip().splitlines())
    return f"import asyncio, httpx, json\nclass Runnable:\n    async def process(self, queries):\n{lines}\n"


async def test_the_requests_of_a_client() -> None:
    """Each method sends what people know it to send, with what the client adds."""
    body = """
    url = queries[0]
    headers = {"X-A": "client", "X-B": "client"}
    async with httpx.AsyncClient(base_url=url + "/api/", headers=headers, params={"v": 1, "a": 0}) as client:
        await client.get("/g", params={"a": [1, "x y"]}, headers={"x-a": "own"})
        await client.post("p", json={"k": str(self.secrets["k"])})
        await client.put(url + "/abs", content=b"\\x00raw", params="q=1")
        await client.patch("", data={"f": "b c"}, auth=httpx.BasicAuth("u", self.secrets["k"]))
        await client.request("DELETE", "d")
        await client.head("h"), await client.options("o")
    with httpx.Client(base_url=url) as sync:
        sync.get("/sync", timeout=httpx.Timeout(3.0, connect=1.0))
    httpx.post(url + "/function", content="text")
    return []
    """
    async with serving() as web, opened(web) as load:
        assert outputs(await run(await load(of_httpx(body)), web.url)) == []
    asked = [(each.method, each.target, each.body) for each in web.asked]
    assert asked == [
        ("GET", "/api/g?v=1&a=1&a=x+y", b""),
        ("POST", "/api/p?v=1&a=0", b'{"k":"K3Y/canary+1"}'),
        ("PUT", "/abs?q=1&v=1&a=0", b"\x00raw"),
        ("PATCH", "/api/?v=1&a=0", b"f=b+c"),
        ("DELETE", "/api/d?v=1&a=0", b""),
        ("HEAD", "/api/h?v=1&a=0", b""),
        ("OPTIONS", "/api/o?v=1&a=0", b""),
        ("GET", "/sync", b""),
        ("POST", "/function", b"text"),
    ]
    first = web.asked[0].headers
    assert (first["x-a"], first["x-b"]) == ("own", "client")
    assert web.asked[3].headers["authorization"].startswith("Basic ")


async def test_the_answers_and_exceptions_of_a_client() -> None:
    """A status is no exception until it is raised; redirects are followed where that is asked for."""

    def say(asked: Asked) -> bytes | None:
        if asked.target == "/away":
            return to("/there")
        if asked.target == "/gone":
            return answer(b'{"why": "gone"}', 410, content_type="application/json")
        return None if asked.target == "/late" else answer(b'{"a": 1}')

    body = """
    seen = []
    async with httpx.AsyncClient(base_url=queries[0]) as client:
        found = await client.get("/")
        seen.append([found.json(), found.is_success, bool(found), found.raise_for_status() is found])
        gone = await client.get("/gone")
        seen.append([gone.status_code == httpx.codes.GONE, gone.is_client_error, gone.json(), gone.is_error])
        try:
            gone.raise_for_status()
        except httpx.HTTPStatusError as err:
            seen.append([str(err), err.response is gone, isinstance(err, httpx.HTTPError)])
        away = await client.get("/away")
        there = await client.get("/away", follow_redirects=True)
        seen.append([away.status_code, away.is_redirect, there.text])
        for url, options, kind in (("/late", {"timeout": 0.2}, httpx.TimeoutException),
                                   ("http://127.0.0.1:1/", {}, httpx.RequestError),
                                   ("ftp://x/", {}, httpx.RequestError)):
            try:
                await client.get(url, **options)
            except kind as err:
                seen.append(type(err).__name__)
    for wrong in (lambda: httpx.AsyncClient(verify=False),
                  lambda: httpx.Client(proxy="x"), lambda: httpx.get("/", stream=True)):
        try:
            wrong()
        except TypeError as err:
            seen.append(str(err).partition(":")[0])
    try:
        await client.get("/")
    except RuntimeError as err:
        seen.append(str(err))
    return [seen]
    """
    async with serving(say) as web, opened(web) as load:
        [seen] = outputs(await run(await load(of_httpx(body)), web.url))
    assert seen == [
        [{"a": 1}, True, True, True],
        [True, True, {"why": "gone"}, True],
        [f"Client error '410 Said' for url '{web.url}/gone'", True, True],
        [302, True, '{"a": 1}'],
        "ReadTimeout",
        "RequestError",
        "RequestError",
        "httpx does not take 'verify' in a Runnable",
        "httpx does not take 'proxy' in a Runnable",
        "httpx does not take 'stream' in a Runnable",
        "Cannot send a request, as the client has been closed.",
    ]


@pytest.mark.parametrize("awaited", [True, False])
async def test_what_the_host_refuses_keeps_its_code(awaited: bool) -> None:
    """One that nobody catches fails the run with it, whichever client asked."""
    ask = "await httpx.AsyncClient().get('http://10.0.0.1/')" if awaited else "httpx.get('http://10.0.0.1/')"
    async with opened() as load:
        outcome = await run(await load(of_httpx(ask)))
    assert isinstance(outcome, Failed)
    assert outcome.failure.code == "E325"
    assert outcome.failure.text.startswith("RequestError: requests E325 10.0.0.1 is not an allowed host")
