"""The jail as a library: the original interface, over real guests."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from processor.errors import Faults, ProcessorError
from processor.library import (
    Emitted,
    RunFailed,
    SecureRunnable,
    SecureRunnableBuilder,
    SecurityConfig,
)

COUNTER = """
class Runnable(BaseSecureRunnable):
    def init(self):
        self.context['counter'] = 0

    def process(self, queries: List[Any]) -> List[Any]:
        self.context['counter'] = self.context['counter'] + 1
        return [{'index': self.context['counter'], **query} for query in queries]

    def process_stream(self, query: Dict) -> Any:
        for n in range(query['n']):
            self.context['counter'] += 1
            yield json.dumps({'n': n})
"""

STOCK = """
class Runnable(BaseSecureRunnable):
    def process(self, queries: List[Any]) -> List[Any]:
        return [{**self.query_stock(query), **query} for query in queries]
"""

ANSWER = (
    b'{"Meta Data": {}, "Time Series (5min)": {"2024-01-02 19:55:00": {"1. open": "160.1", "2. high": "161", '
    b'"3. low": "159", "4. close": "160.5", "5. volume": "42"}}}'
)


EMITS = """
class Runnable:
    def process(self, queries):
        for query in queries:
            self.emit(query["to"], query, delay_s=60, headers={"kind": "late"})
        if query.get("fails"):
            raise ValueError("no")
"""


PLAIN = """
import sqlite3
from pydantic import BaseModel

class Query(BaseModel):
    n: int

class Runnable:
    def process(self, queries):
        return [Query.model_validate(query).n for query in queries]
"""


@pytest.fixture
def stock_url() -> Iterator[str]:
    """A server that answers like Alpha Vantage."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(ANSWER)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def compiled(code: str, **settings: Any) -> SecureRunnable:
    return SecureRunnableBuilder(SecurityConfig(**settings)).compile(code)


def test_queries_in_documents_out() -> None:
    """process takes queries and returns documents; the context goes on from call to call."""
    with compiled(COUNTER) as runnable:
        assert runnable.process(queries=[{"a": 1}, {"a": 2}]) == [{"index": 1, "a": 1}, {"index": 1, "a": 2}]
        assert runnable.process([{"a": 3}]) == [{"index": 2, "a": 3}]
        assert dict(runnable.context) == {"counter": 2}


def test_the_original_example_runs_unchanged(stock_url: str) -> None:
    """The example with a SecurityConfig, a builder and a stock query works, and shows the prices."""
    config = SecurityConfig(
        max_memory_mb=100,
        max_cpu_time_seconds=5,
        max_requests=50,
        allowed_domains=["*"],
        execution_timeout=10,
        enable_resource_limits=False,
        stock_url=stock_url,
    )
    with SecureRunnableBuilder(config).compile(STOCK) as runnable:
        result = runnable.process(queries=[{"is_stock_question": "true", "ticker": "AAPL"}])
    assert result == [
        {
            "ticker": "AAPL",
            "ticker_open": "160.1",
            "ticker_high": "161",
            "ticker_low": "159",
            "ticker_close": "160.5",
            "ticker_volume": "42",
            "is_stock_question": "true",
        }
    ]


@pytest.mark.parametrize("allowed", [(), None, ["example.org"], ["10.0.0.0/8"], ["*.example.org"]])
def test_a_host_that_is_not_allowed_is_not_asked(stock_url: str, allowed: Any) -> None:
    """The stock helpers fail with E325 and the line to add, unless the server is an allowed domain."""
    with (
        compiled(STOCK, allowed_domains=allowed, stock_url=stock_url) as runnable,
        pytest.raises(RunFailed, match=r"E325 .*is not an allowed domain\. Add '") as caught,
    ):
        runnable.process([{"ticker": "AAPL"}])
    assert caught.value.failure.code == "E325"


def test_requests_are_counted(stock_url: str) -> None:
    """max_requests is the number of requests that one call may make."""
    settings = {"allowed_domains": ["127.0.0.1"], "stock_url": stock_url, "max_requests": 2}
    with compiled(STOCK, **settings) as runnable:
        assert len(runnable.process([{"ticker": "A"}, {"ticker": "B"}])) == 2
        with pytest.raises(RunFailed, match="more than 2 requests"):
            runnable.process([{"ticker": "A"}] * 3)


def test_requests_and_secrets_are_those_of_a_route(stock_url: str) -> None:
    """allowed_domains is what `requests` may reach, and a secret is sent to its hosts without being seen."""
    code = """
import requests
class Runnable:
    def process(self, queries):
        answer = requests.get(queries[0], headers={"key": self.secrets["k"]})
        return [[answer.status_code, len(answer.json())]]
"""
    host = stock_url.removeprefix("http://")
    secrets = {"k": ("CANARY-1", [host])}
    with compiled(code, allowed_domains=[host], secrets=secrets) as runnable:
        assert runnable.process([stock_url]) == [[200, 2]]
        line = r"To allow it: SecurityConfig.allowed_domains: \[localhost\]"
        with pytest.raises(RunFailed, match=f"E325 .*{line}"):
            runnable.process(["http://localhost/"])
    with (
        compiled(code, allowed_domains=["*", host], secrets={"k": ("CANARY-1", ["a.example"])}) as runnable,
        pytest.raises(RunFailed, match=r"E326 .*the secret 'k' may not be sent to"),
    ):
        runnable.process([stock_url])
    assert "CANARY" not in repr(SecurityConfig(secrets=secrets))


def test_a_stream_is_an_iterator() -> None:
    """process_stream gives the chunks one by one, and keeps the context when it was read to its end."""
    with compiled(COUNTER) as runnable:
        assert list(runnable.process_stream({"n": 3})) == ['{"n": 0}', '{"n": 1}', '{"n": 2}']
        assert runnable.context["counter"] == 3


def test_a_stream_that_is_given_up_changes_nothing() -> None:
    """A caller that stops reading leaves the context as it was, and the Runnable usable."""
    with compiled(COUNTER) as runnable:
        runnable.process([{}])
        for _ in runnable.process_stream({"n": 10**6}):
            break
        assert runnable.context["counter"] == 1
        assert runnable.process([{}]) == [{"index": 2}]


async def test_it_can_be_awaited() -> None:
    """process_async is process for callers in an event loop; calls of one Runnable take turns."""
    runnable = compiled(COUNTER)
    results = await asyncio.gather(*(runnable.process_async([{}]) for _ in range(5)))
    assert sorted(result[0]["index"] for result in results) == [1, 2, 3, 4, 5]
    runnable.close()


def test_a_failure_is_raised_with_the_users_traceback() -> None:
    """What the Runnable raises comes out as RunFailed, and the next call finds the context as before."""
    code = COUNTER.replace("return [", "1 / len(queries)\n        return [")
    with compiled(code) as runnable:
        runnable.process([{}])
        with pytest.raises(RunFailed, match="E304 KeyError") as caught:
            list(runnable.process_stream({}))
        assert "process_stream" in caught.value.failure.traceback
        assert runnable.process([{}]) == [{"index": 2}]


LOOP = "class Runnable:\n    def process(self, queries):\n        while queries[0]: pass\n        return 1\n"
BIG = "class Runnable:\n    def process(self, queries):\n        return len(bytearray(queries[0] << 20))\n"


@pytest.mark.parametrize(
    "code, settings, query, error",
    [
        (LOOP, {"execution_timeout": 0.3}, 1, "E312"),
        (LOOP, {"execution_timeout": 0.3, "enable_resource_limits": False}, 1, "E312"),
        (LOOP, {"max_cpu_time_seconds": 0.2}, 1, "E311"),
        (BIG, {"max_memory_mb": 50}, 400, "E313"),
    ],
)
def test_limits_hold_and_the_runnable_survives(code: str, settings: Any, query: int, error: str) -> None:
    """A call that exceeds a limit fails with its code; the next call works, in a new guest."""
    with compiled(code, **settings) as runnable:
        with pytest.raises(RunFailed, match=error):
            runnable.process([query])
        assert runnable.process([0]) in ([1], [])


@pytest.mark.parametrize(
    ("settings", "queries", "error"),
    [
        ({}, [{}] * 10_001, r"E319 queries holds 10001 items; limits\.max_container_length is 10000"),
        ({"max_string_length": 5}, [{"n": "x" * 6}], r"E318 queries\[0\]\['n'\] is 6 characters long"),
        ({"max_string_length": 7}, [{}], "E318 a key of output 0 is 8 characters long"),
        ({"max_container_length": 1}, [{"n": 1}], "E319 output 0 holds 2 items"),
    ],
)
def test_the_shape_of_values_is_limited(settings: Any, queries: Any, error: str) -> None:
    """max_string_length and max_container_length hold for what goes in and for what comes out."""
    code = COUNTER.replace("'index'", "'position'")
    with compiled(code, **settings) as runnable, pytest.raises(RunFailed, match=error):
        runnable.process(queries)


def test_lifted_limits_are_lifted() -> None:
    """enable_resource_limits=False lifts the memory and CPU limits."""
    settings = {"max_memory_mb": 50, "max_cpu_time_seconds": 0.01, "enable_resource_limits": False}
    with compiled(BIG, **settings) as runnable:
        assert runnable.process([400]) == [400 << 20]


def test_code_that_does_not_compile_is_refused() -> None:
    """compile raises every fault of the code with its line, and leaves nothing behind."""
    with pytest.raises(Faults, match=r"runnable\.py:1:\d+ E203"):
        compiled("import os\nclass Runnable:\n    pass\n")


@pytest.mark.parametrize(
    "settings",
    [
        {"max_memory_mb": 10},
        {"max_memory_mb": "100"},
        {"max_memory_mb": True},
        {"max_cpu_time_seconds": 0},
        {"execution_timeout": float("inf")},
        {"max_requests": -1},
        {"max_string_length": 0},
        {"max_container_length": 0.5},
        {"allowed_domains": "example.org"},
        {"allowed_domains": ["*example.org"]},
        {"allowed_domains": [""]},
        {"allowed_domains": ["http://example.org"]},
        {"enable_resource_limits": 1},
        {"stock_url": "nowhere"},
        {"secrets": {"k": ("short", ["a.example"])}},
        {"secrets": {"k": ("long enough", ["*"])}},
        {"secrets": {"k": "long enough"}},
        {"allowed_domains": ["127.1"]},
    ],
)
def test_a_setting_without_a_meaning_is_refused(settings: Any) -> None:
    """Every setting has an effect or is refused by name, with what it may be."""
    (name,) = settings
    with pytest.raises(ProcessorError, match=rf"E104 SecurityConfig\.{name} is .*\. (It|An entry) is "):
        SecurityConfig(**settings)


def test_runnables_of_one_builder_are_apart() -> None:
    """Each compiled Runnable has its own guest and context; closing one leaves the other."""
    builder = SecureRunnableBuilder()
    first, second = builder.compile(COUNTER), builder.compile(COUNTER)
    first.process([{}])
    first.close()
    first.close()
    assert second.process([{}]) == [{"index": 1}]
    second.close()
    with builder.compile(COUNTER) as third:
        assert third.process([{}]) == [{"index": 1}]


def test_a_forgotten_runnable_ends_with_its_object() -> None:
    """Without close, guest, zygote and thread end when the Runnable is collected."""
    compiled(COUNTER).process([{}])
    gc.collect()
    assert "sandbox-library" not in {thread.name for thread in threading.enumerate()}


def test_plain_python_with_its_packages() -> None:
    """`language` and `packages` as in a route; both are checked, and the dialect stays the default."""
    builder = SecureRunnableBuilder(SecurityConfig(language="python", packages=["pydantic"]))
    with builder.compile(PLAIN) as runnable:
        assert runnable.process([{"n": "3"}]) == [3]
    with pytest.raises(Faults, match="E203"):
        SecureRunnableBuilder().compile(PLAIN)
    with pytest.raises(ProcessorError, match="E505 the package 'nosuch'"):
        SecureRunnableBuilder(SecurityConfig(language="python", packages=["nosuch"])).compile(PLAIN)
    for wrong in ({"language": "perl"}, {"packages": ["numpy"]}, {"language": "python", "packages": "numpy"}):
        with pytest.raises(ProcessorError, match="E104 SecurityConfig"):
            SecurityConfig(**wrong)  # type: ignore[arg-type]


def test_what_is_emitted_can_be_looked_at() -> None:
    """It goes nowhere: `emitted` has what the last call that succeeded sent, in order."""
    with SecureRunnableBuilder().compile(EMITS) as runnable:
        assert runnable.emitted == []
        assert runnable.process([{"to": "a"}, {"to": "b.c"}]) == []
        sent = [Emitted(to, {"to": to}, 60.0, {"kind": "late"}) for to in ("a", "b.c")]
        assert runnable.emitted == sent
        with pytest.raises(RunFailed):
            runnable.process([{"to": "d", "fails": True}])
        assert runnable.emitted == sent
        runnable.process([{"to": "e"}])
        assert [each.subject for each in runnable.emitted] == ["e"]


def test_what_may_be_emitted_can_be_limited() -> None:
    """As a route does it; the refusal has the line that would allow it."""
    config = SecurityConfig(emits=["a", "b.*"])
    with SecureRunnableBuilder(config).compile(EMITS) as runnable:
        runnable.process([{"to": "b.c"}])
        with pytest.raises(RunFailed, match="E327 the route may not emit to 'c'"):
            runnable.process([{"to": "c"}])
    for wrong in ("a", ["a b"], [5]):
        with pytest.raises(ProcessorError, match=r"E104 SecurityConfig\.emits"):
            SecurityConfig(emits=wrong)


def test_the_number_of_outputs_can_be_raised() -> None:
    """max_outputs is what one call may return, 900 where nothing is said."""
    code = "class Runnable:\n    def process(self, queries):\n        return [1] * queries[0]\n"
    with compiled(code) as runnable:
        assert len(runnable.process([900])) == 900
        with pytest.raises(RunFailed, match="E324 more than 900 outputs"):
            runnable.process([901])
    with compiled(code, max_outputs=2000) as runnable:
        assert len(runnable.process([2000])) == 2000
    with pytest.raises(ProcessorError, match=r"E104 SecurityConfig\.max_outputs is '0'"):
        SecurityConfig(max_outputs=0)
