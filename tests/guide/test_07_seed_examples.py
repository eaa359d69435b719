"""Chapter 7: the programs that this system was first described with run as they were written.

`TEMPLATE` to `BUILDER` are those programs to the letter. The only thing that differs is where they find the
stock service, which is configuration, and for `BUILDER` the name of the module to import from.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from processor.library import SecureRunnableBuilder, SecurityConfig
from tests.running import Start

TEMPLATE = """\
## Template to customize a python state
class Runnable(BaseSecureRunnable):
    ## any initialization parameters you want to save (on a per event basis)
    def init(self):
        self.context['counter'] = 0

    ## if the state is using a python state type
    def process(self, queries: List[Any]) -> List[Any]:
        logger.info(queries)
        return [{
            **self.query_stock(query),
            **query
        } for query in queries]

    ## if the state is using a stream state type
    def process_stream(self, query: Dict) -> Any:
        yield json.dumps({
            **query,
            **self.query_stock(query)
        }, indent=2)
"""
COUNTER = """\
class Runnable(BaseSecureRunnable):
    def init(self):
        self.context['counter'] = 0

    def process(self, queries: List[Any]) -> List[Any]:
        # Get current counter value
        c = self.context['counter']

        # Increment counter and store additional state
        self.context['counter'] = c + 1
        self.context['other'] = f"other_{c}"

        # Return processed queries with counter added
        return [{
            'index': self.context['counter'],
            **query
        } for query in queries]

    def process_stream(self, queries: List[Any]) -> Any:
        # Stream processing implementation
        # yield from (self.process(query) for query in queries)
        pass
"""
STOCK_DATA = """\
class Runnable(BaseSecureRunnable):
    def init(self):
        self.context['counter'] = 0

    def process(self, queries: List[Any]) -> List[Any]:
        # Log message for debugging
        self.logger.info("Processing stock data request")

        # Get stock data for Apple
        ticker = "AAPL"
        stock_data = self.get_stock_data(ticker)

        # Process the stock data if available
        if stock_data:
            stock_data = stock_data['Time Series (5min)']
            stock_data = list(stock_data.items())[0]
            stock_data = stock_data[1]

        # Return processed results
        return [{
            'ticker': ticker,
            **stock_data,
            **query
        } for query in queries]

    def process_stream(self, query: Dict) -> Any:
        # Stream JSON response
        yield json.dumps(query, indent=2)
"""
PASS_THROUGH = """\
class Runnable(BaseSecureRunnable):
    def init(self):
        self.context['counter'] = 0

    def process(self, queries: List[Any]) -> List[Any]:
        # Process each query and add stock data if applicable
        return [{
            **self.query_stock(query),
            **query
        } for query in queries]

    def process_stream(self, query: Dict) -> Any:
        # Stream result as formatted JSON with query and stock data
        yield json.dumps({
            **query,
            **self.query_stock(query)
        }, indent=2)
"""
BUILDER = '''\
from ismcore.compiler.secure_runnable import SecurityConfig, SecureRunnableBuilder

# Define security configuration
config = SecurityConfig(
    max_memory_mb=100,              # Limit memory usage to 100MB
    max_cpu_time_seconds=5,         # Limit CPU time to 5 seconds
    max_requests=50,                # Limit to 50 external requests
    allowed_domains=["*"],          # Allow all domains for HTTP requests
    execution_timeout=10,           # Timeout after 10 seconds
    enable_resource_limits=False    # Disable resource limiting for testing
)

# Your Runnable class code
user_code = """
class Runnable(BaseSecureRunnable):
    def init(self):
        self.context['counter'] = 0

    def process(self, queries: List[Any]) -> List[Any]:
        return [{
            **self.query_stock(query),
            **query
        } for query in queries]
"""

try:
    # Create builder with security config
    builder = SecureRunnableBuilder(config)

    # Compile and instantiate the runnable
    runnable = builder.compile(user_code)

    # Process a single query
    result = runnable.process(queries=[{'is_stock_question': 'true', 'ticker': 'AAPL'}])
    print(f"Query result: {result}")

    # Process multiple queries asynchronously
    # batch_result = runnable.process_async([
    #     {'test': 'data1'},
    #     {'test': 'data2'}
    # ])
    # print(f"Batch result: {batch_result}")
except Exception as e:
    print(f"Error: {str(e)}")
'''

SERIES = {
    "2024-01-02 19:55:00": {
        "1. open": "184.9900",
        "2. high": "185.0700",
        "3. low": "184.9500",
        "4. close": "185.0000",
        "5. volume": "3054",
    },
    "2024-01-02 19:50:00": {
        "1. open": "184.9000",
        "2. high": "185.0000",
        "3. low": "184.9000",
        "4. close": "184.9900",
        "5. volume": "1200",
    },
}
PRICES = {
    "ticker": "AAPL",
    "ticker_open": "184.9900",
    "ticker_high": "185.0700",
    "ticker_low": "184.9500",
    "ticker_close": "185.0000",
    "ticker_volume": "3054",
}
QUERY = {"is_stock_question": "true", "ticker": "AAPL"}


def answer_to(symbol: str) -> dict[str, Any]:
    """What Alpha Vantage answers to TIME_SERIES_INTRADAY, in its own words."""
    if symbol == "LIMIT":
        return {"Information": "Thank you for using Alpha Vantage! Our standard API rate limit is 25 a day."}
    return {
        "Meta Data": {
            "1. Information": "Intraday (5min) open, high, low, close prices and volume",
            "2. Symbol": symbol,
            "3. Last Refreshed": "2024-01-02 19:55:00",
            "4. Interval": "5min",
            "5. Output Size": "Compact",
            "6. Time Zone": "US/Eastern",
        },
        "Time Series (5min)": SERIES,
    }


@pytest.fixture
def stock_url() -> Iterator[str]:
    """A server in place of https://www.alphavantage.co."""

    class StockServer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            asked = {name: values[0] for name, values in parse_qs(address.query).items()}
            assert address.path == "/query"
            assert (asked["function"], asked["interval"]) == ("TIME_SERIES_INTRADAY", "5min")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer_to(asked["symbol"])).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), StockServer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def route_to(stock_url: str, **keys: str) -> str:
    lines = {
        "input": '{subject: "in", create: true}',
        "runnable": "program.py",
        "output": "out",
        "stock": f'{{base_url: "{stock_url}"}}',
        **keys,
    }
    return "r:\n" + "".join(f"  {key}: {value}\n" for key, value in lines.items())


async def test_the_counter_counts_between_messages_and_lives(processor: Start, stock_url: str) -> None:
    """Each call of `process` adds one, over messages and restarts; `other` is kept beside it."""
    route = route_to(stock_url, batch="{max_messages: 1}")
    async with processor(route, program=COUNTER) as running:
        await running.publish("in", {"a": 1}, [{"b": 1}, {"b": 2}])
        assert await running.documents("out", 3) == [
            {"index": 1, "a": 1},
            {"index": 2, "b": 1},
            {"index": 2, "b": 2},
        ]
    async with processor(route, program=COUNTER) as running:
        await running.publish("in", {"c": 1})
        assert (await running.documents("out", 4))[3] == {"index": 3, "c": 1}
        assert await running.contexts("r") == {"": {"counter": 3, "other": "other_2"}}


async def test_a_stream_method_may_have_no_body(processor: Start, stock_url: str, wait_until: Any) -> None:
    """The counter's `process_stream(self, queries)` is `pass`: nothing is said, and the message is done."""
    async with processor(route_to(stock_url, mode="stream"), program=COUNTER) as running:
        await running.publish("in", {"a": 1})
        await wait_until(
            lambda: running.metric("processor_committed_messages_total", route="r") == 1, "it is done"
        )
        assert await running.stored("p.app.dlq.r.>") == []


async def test_stock_data_is_asked_for_by_the_host(processor: Start, stock_url: str) -> None:
    """`self.get_stock_data` gives the service's document; the guest itself has no network."""
    async with processor(route_to(stock_url), program=STOCK_DATA) as running:
        await running.publish("in", {"q": 1})
        newest = SERIES["2024-01-02 19:55:00"]
        assert await running.documents("out", 1) == [{"ticker": "AAPL", **newest, "q": 1}]


@pytest.mark.parametrize("program", [TEMPLATE, PASS_THROUGH], ids=["template", "pass_through"])
async def test_prices_are_added_to_each_query(processor: Start, stock_url: str, program: str) -> None:
    """`self.query_stock` gives the newest prices under their short names."""
    async with processor(route_to(stock_url), program=program) as running:
        await running.publish("in", QUERY)
        assert await running.documents("out", 1) == [{**PRICES, **QUERY}]


@pytest.mark.parametrize("program", [TEMPLATE, PASS_THROUGH], ids=["template", "pass_through"])
async def test_prices_are_streamed_as_text(
    processor: Start, stock_url: str, wait_until: Any, program: str
) -> None:
    """The same in stream mode: what is yielded goes out as it is, indented."""
    route = route_to(stock_url, mode="stream", output="{subject: out, durable: false}")
    async with processor(route, program=program) as running:
        heard = await running.listen("out")
        await running.publish("in", QUERY)
        await wait_until(lambda: len(heard) == 2, "the chunk and the marker were heard")
        assert heard[0].payload.decode() == json.dumps({**QUERY, **PRICES}, indent=2)


async def test_a_stock_service_without_prices_fails_the_message(processor: Start, stock_url: str) -> None:
    """The service's limit is reached: E317 says what is missing, and the message can be sent again later."""
    async with processor(route_to(stock_url), program=PASS_THROUGH) as running:
        await running.publish("in", {"ticker": "LIMIT"})
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == "E317"
        assert "'Time Series (5min)'" in letter.headers["x-dead-letter-reason"]


def test_the_builder_runs_a_runnable_without_a_broker(stock_url: str, capsys: Any) -> None:
    """The example of `SecurityConfig` and `SecureRunnableBuilder` prints its result."""
    first, _, program = BUILDER.partition("\n")
    assert first == "from ismcore.compiler.secure_runnable import SecurityConfig, SecureRunnableBuilder"
    names: dict[str, Any] = {
        "SecureRunnableBuilder": SecureRunnableBuilder,
        "SecurityConfig": partial(SecurityConfig, stock_url=stock_url),
    }
    exec(program, names)
    names["runnable"].close()
    assert capsys.readouterr().out == f"Query result: {[{**PRICES, **QUERY}]}\n"
