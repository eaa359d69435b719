"""Answers that a Runnable reads as they come, by `requests` and `httpx`, in both languages.

Real guests and the real host side; the server says its next piece only when the one before has been seen.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from textwrap import dedent, indent
from typing import Any

import pytest

from processor.model import Failed, Group, Limits, Outcome, Program, Ran
from processor.sandbox.host import Zygote
from tests.web import Feed, fed, outside

CANARY = "K3Y/canary+1"
EVENTS = ["data: one\n\n", "data: zwölf\r\n\r\n", "data: [DONE]\n\n"]


def program(body: str) -> str:
    lines = indent(dedent(body).strip(), " " * 8)
    word = "async def" if "await" in body or "async" in body else "def"
    return f"import httpx, json, requests\nclass Runnable:\n    {word} process(self, queries):\n{lines}\n"


Run = Callable[..., Awaitable[Outcome]]


@asynccontextmanager
async def runs(feed: Feed, language: str) -> AsyncIterator[Run]:
    """`await run(body, **settings)`: what a program does with the URL of the server as its only query."""
    zygote = await Zygote.start()

    async def run(body: str, **settings: Any) -> Outcome:
        async with outside(feed.host, names={}, secrets={"k": (CANARY, [feed.host])}, **settings) as calls:
            loaded = Program(program(body), "runnable.py", language)
            guest = await zygote.spawn(loaded, Limits(), perform=calls.perform, secrets=calls.secrets)
            query = json.dumps(f"http://{feed.host}").encode()
            return await asyncio.wait_for(guest.run([Group("", [query], {})]), 30)

    try:
        yield run
    finally:
        await zygote.close()


def output(outcome: Outcome) -> Any:
    assert isinstance(outcome, Ran), outcome
    [said] = outcome.outputs
    return json.loads(said.body)


LANGUAGES = pytest.mark.parametrize("language", ["restricted", "python"])
READERS = {
    "requests": """
        with requests.get(queries[0] + "/seen", stream=True) as r:
            for piece in r.iter_content(None):
                requests.post(queries[0], data=piece)
        return [r.status_code]
    """,
    "lines of requests": """
        said = []
        for line in requests.get(queries[0] + "/lines", stream=True).iter_lines(decode_unicode=True):
            said.append(line)
        return [said]
    """,
    "httpx": """
        with httpx.stream("GET", queries[0] + "/seen") as r:
            for piece in r.iter_bytes():
                httpx.post(queries[0], content=piece)
        return [r.status_code]
    """,
    "httpx, awaited": """
        async with httpx.AsyncClient(base_url=queries[0]) as client:
            async with client.stream("GET", "/seen") as r:
                async for piece in r.aiter_bytes():
                    await client.post("/", content=piece)
        return [r.status_code]
    """,
    "lines of httpx, awaited": """
        async with httpx.AsyncClient() as client, client.stream("GET", queries[0] + "/lines") as r:
            return [[line async for line in r.aiter_lines()]]
    """,
    "text of httpx, awaited": """
        async with httpx.AsyncClient() as client, client.stream("GET", queries[0] + "/lines") as r:
            return ["".join([text async for text in r.aiter_text(3)]).splitlines()]
    """,
    "text of requests": """
        r = requests.get(queries[0], stream=True)
        return ["".join([text for text in r.iter_content(2, decode_unicode=True)]).splitlines()]
    """,
}


@LANGUAGES
async def test_an_answer_is_read_as_it_comes(language: str) -> None:
    """Each piece is there before the server says the next one, as bytes, as text and as lines."""
    async with fed([event.encode() for event in EVENTS]) as feed, runs(feed, language) as run:
        for name, body in READERS.items():
            said = output(await run(body))
            if said == 200:
                assert feed.seen.decode() == "".join(EVENTS), name
            else:
                assert said == ["data: one", "", "data: zwölf", "", "data: [DONE]", ""], name


@LANGUAGES
async def test_a_stream_that_is_read_whole_is_an_answer_as_any(language: str) -> None:
    """`content`, `text` and `json` read what has not come yet, once; then it can be read again."""
    body = """
        r = requests.get(queries[0], stream=True)
        said = [r.json(), r.text, list(r.iter_lines()) == r.content.splitlines(), len(r.content)]
        with httpx.stream("GET", queries[0]) as h:
            try:
                h.text
            except httpx.ResponseNotRead as err:
                said.append(str(err))
            said += [h.read().decode(), h.json(), list(h.iter_lines())]
        with httpx.stream("GET", queries[0]) as h:
            list(h.iter_bytes())
            try:
                list(h.iter_bytes())
            except RuntimeError as err:
                said.append(str(err))
        return [said]
    """
    async with fed([b'{"a"', b": 1}"]) as feed, runs(feed, language) as run:
        said = output(await run(body))
    assert said == [
        {"a": 1}, '{"a": 1}', True, 8,
        "the body of this answer is a stream, which was not read: call `read()`, or `await aread()`, first",
        '{"a": 1}', {"a": 1}, ['{"a": 1}'],
        "the body of this answer was read already, or is closed",
    ]  # fmt: skip


@LANGUAGES
async def test_a_stream_that_breaks_off_is_one_error(language: str) -> None:
    """What came before it is given, then the library's exception with its code, and the run goes on."""
    body = """
        said = []
        try:
            for piece in requests.get(queries[0] + "/seen", stream=True).iter_content(None):
                said.append(piece.decode())
                requests.post(queries[0], data=piece)
        except requests.ConnectionError as err:
            said.append([type(err).__name__, err.code])
        try:
            with httpx.stream("GET", queries[0] + "/seen") as r:
                for text in r.iter_text():
                    said.append(text)
                    httpx.post(queries[0], content=text)
        except httpx.ReadError as err:
            said.append([type(err).__name__, err.code])
        return [said]
    """
    async with fed([b"one\ntw"], is_cut=True) as feed, runs(feed, language) as run:
        said = output(await run(body))
    assert said == ["one\ntw", ["ConnectionError", "E317"], "one\ntw", ["ReadError", "E317"]]


@LANGUAGES
async def test_silence_and_too_many_bytes_end_a_stream(language: str) -> None:
    """`timeout` bounds each wait, `outbound.response_bytes` all of it, and each has its exception."""
    body = """
        said = []
        r = requests.get(queries[0] + "/idle", stream=True, timeout=1.5)
        try:
            for piece in r.iter_content(None):
                said.append(piece.decode())
        except requests.Timeout as err:
            said.append(type(err).__name__)
        try:
            with httpx.stream("GET", queries[0] + "/idle", timeout=1.5) as r:
                list(r.iter_bytes())
        except httpx.ReadTimeout as err:
            said.append(type(err).__name__)
        return [said]
    """
    async with fed([b"12345678"]) as feed, runs(feed, language) as run:
        assert output(await run(body)) == ["12345678", "Timeout", "ReadTimeout"]
        too_large = """
            try:
                requests.get(queries[0], stream=True).content
            except requests.TooLarge as err:
                return [err.code]
        """
        assert output(await run(too_large, response_bytes=7)) == "E323"
        outcome = await run("requests.get(queries[0], stream=True).content", response_bytes=7)
    assert isinstance(outcome, Failed)
    assert outcome.failure.code == "E323"


@LANGUAGES
async def test_a_stream_is_given_up_by_its_block_and_there_are_only_so_many(language: str) -> None:
    """What a `with` block leaves unread is given up with it, so that others can be opened: four at a time."""
    body = """
        url = queries[0] + "/idle"
        for n in range(6):
            with requests.get(url, stream=True) as r:
                next(r.iter_content(None))
        for n in range(6):
            with httpx.stream("GET", url) as r:
                next(r.iter_bytes())
        open = [requests.get(url, stream=True) for n in range(4)]
        try:
            requests.get(url, stream=True)
        except requests.BudgetExceeded as err:
            said = str(err)
        open[0].close()
        open[0].close()
        requests.get(url, stream=True)
        return [said]
    """
    async with fed([b"x"]) as feed, runs(feed, language) as run:
        said = output(await run(body))
    assert said.startswith("E322 a call of `process` has at most 4 streams open. Read one to its end")


async def test_streams_are_awaited_together() -> None:
    """In plain Python two answers come at the same time, and a deadline ends a wait for more of one."""
    body = """
        import asyncio
        async def read(client, name):
            async with client.stream("GET", queries[0] + name) as r:
                return [line async for line in r.aiter_lines()]
        async with httpx.AsyncClient() as client:
            said = list(await asyncio.gather(read(client, "/a"), read(client, "/b")))
            async with client.stream("GET", queries[0] + "/idle") as r:
                lines = r.aiter_lines()
                said += [await anext(lines), await anext(lines)]
                try:
                    async with asyncio.timeout(0.1):
                        await anext(lines)
                except TimeoutError:
                    said.append("late")
        return [said]
    """
    async with fed([b"1\n", b"2\n"]) as feed, runs(feed, "python") as run:
        assert output(await run(body)) == [["1", "2"], ["1", "2"], "1", "2", "late"]


async def test_a_deadline_of_the_restricted_language_bounds_a_pull() -> None:
    """`asyncio.timeout` ends a wait for more."""
    body = """
        import asyncio
        said = []
        async with httpx.AsyncClient() as client, client.stream("GET", queries[0] + "/idle") as r:
            pieces = r.aiter_bytes()
            said.append((await anext(pieces)).decode())
            try:
                async with asyncio.timeout(0.1):
                    await anext(pieces)
            except TimeoutError:
                said.append("late")
        return [said]
    """
    async with fed([b"x"]) as feed, runs(feed, "restricted") as run:
        assert output(await run(body)) == ["x", "late"]


@LANGUAGES
async def test_a_secret_in_a_stream_is_taken_out(language: str) -> None:
    """Also where two pieces divide it; the rest of an event does not wait for the next one."""
    body = """
        said = []
        key = self.secrets["k"]
        for piece in requests.get(queries[0], stream=True, headers={"X": key}).iter_content(None):
            said.append(piece.decode())
        return ["".join(said)]
    """
    async with (
        fed([b"key " + CANARY[:5].encode(), CANARY[5:].encode() + b" end"]) as feed,
        runs(feed, language) as run,
    ):
        assert output(await run(body)) == "key *** end"
