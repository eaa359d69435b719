"""What is measured: the Runnables, the configurations and the sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

COUNTER = """
class Runnable:
    def init(self):
        self.context["counter"] = 0

    def process(self, queries):
        outputs = []
        for query in queries:
            self.context["counter"] += 1
            outputs.append({"index": self.context["counter"], **query})
        return outputs
"""
STATELESS = """
class Runnable:
    def process(self, queries):
        return [{"index": 0, **query} for query in queries]
"""
STREAM = """
class Runnable:
    def init(self):
        self.context["counter"] = 0

    def process_stream(self, query):
        self.context["counter"] += 1
        yield {"index": self.context["counter"], **query}
"""
EVENTS = """
class Runnable:
    def init(self):
        self.context["counter"] = 0

    def process(self, queries):
        outputs = []
        for query in queries:
            self.context["counter"] += 1
            self.event("counted", {"index": self.context["counter"]})
            outputs.append({"index": self.context["counter"], **query})
        return outputs
"""
CALLS = """
import requests


class Runnable:
    def init(self):
        self.context["counter"] = 0

    def process(self, queries):
        outputs = []
        for query in queries:
            self.context["counter"] += requests.get("http://127.0.0.1:$http/").json()["one"]
            outputs.append({"index": self.context["counter"], **query})
        return outputs
"""
KEEPER = """
class Runnable:
    def init(self):
        self.context["counter"] = 0

    def process(self, queries):
        outputs = []
        for query in queries:
            if "keep" in query:
                self.context[query["keep"]] = query["pad"]
            else:
                self.context["counter"] += 1
                outputs.append({"index": self.context["counter"], **query})
        return outputs
"""

# A hundred lines about other hosts, and the one that allows.
POLICY = "".join(
    f'[[capability]]\nname = "http"\nresource = "{host}"\nmethods = ["get"]\n'
    for host in (*(f"host-{number}.example.com" for number in range(100)), "127.0.0.1:$http")
)

Kind = Literal["baseline", "route", "redrive", "idle", "crowd", "endurance"]
_KEYED = {"key": "subject.2", "output": "$out.{key}"}


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure. `messages` is for one round at scale 1; sizes are in bytes."""

    name: str
    about: str
    kind: Kind = "route"
    source: str = COUNTER
    lines: Mapping[str, Any] = field(default_factory=dict)  # of the route's configuration
    app_lines: Mapping[str, Any] = field(default_factory=dict)  # of the configuration above its routes
    policy: str = ""  # the text of its file
    messages: int = 40_000
    size: int = 200
    keys: int = 1
    kept: int = 0  # bytes that the context holds before the measurement
    routes: int = 1
    processes: int = 1
    storage: Literal["file", "memory"] = "file"
    servers: int = 1
    has_latency: bool = True
    seconds: float = 0.0  # of `endurance`, which is measured in the first round only


def _kept(name: str, size: int, messages: int) -> Case:
    return Case(
        f"kept_{name}",
        f"counter beside {name} of kept context, a small change per batch",
        source=KEEPER,
        messages=messages,
        kept=size,
        lines={
            "limits": {"context_bytes": 2 * size + (1 << 20), "memory_mb": 1024, "wall_s": 60, "cpu_s": 60}
        },
        has_latency=False,
    )


CASES = {
    case.name: case
    for case in (
        Case("sequential", "(a) nats-py: fetch 100, publish and ack one by one", "baseline", messages=4_000),
        Case("pipelined", "(b) nats-py: fetch 100, publish_async, then ack", "baseline"),
        Case("faststream", "(c) FastStream's pull subscriber with a publisher", "baseline", messages=4_000),
        Case("natsio", "(f) natsio: as (b), with JetStream's requests by hand", "baseline", messages=4_000),
        Case("ceiling", "(d) our prefetch and windowed publish, without any work", "baseline"),
        Case("plain", "(e) the counter's work in a plain Python loop, no broker", "baseline"),
        Case("counter", "one context per route"),
        Case("stateless", "no context", source=STATELESS),
        Case("keys_64", "64 keys", keys=64, lines=_KEYED),
        Case("keys_100000", "100,000 keys", keys=100_000, lines=_KEYED),
        Case(
            "stream",
            "stream mode, one chunk a message",
            source=STREAM,
            messages=8_000,
            lines={"mode": "stream"},
        ),
        Case(
            "events",
            "counter with one event a message",
            source=EVENTS,
            messages=20_000,
            lines={"events": "$out-events"},
        ),
        Case("audited", "counter with an entry of the audit a run", app_lines={"audit": {"level": "runs"}}),
        Case("http", "counter with one HTTP call a message", source=CALLS, messages=1_000),
        Case(
            "governed",
            "the same under a policy of 101 lines, with an entry of the audit a call",
            source=CALLS,
            messages=1_000,
            policy=POLICY,
        ),
        Case("size_100", "messages of 100 bytes", size=100),
        Case("size_1k", "messages of 1 KB", size=1_000, messages=30_000),
        Case("size_10k", "messages of 10 KB", size=10_000, messages=8_000),
        Case("size_100k", "messages of 100 KB", size=100_000, messages=1_000),
        _kept("1KB", 1_000, 20_000),
        _kept("100KB", 100_000, 20_000),
        _kept("1MB", 1_000_000, 20_000),
        _kept("10MB", 10_000_000, 20_000),
        _kept("100MB", 100_000_000, 20_000),
        Case("memory", "counter, memory store", storage="memory"),
        Case("r3", "counter, three servers, three replicas of every stream", servers=3, messages=20_000),
        Case("replicas_2", "64 keys, two processors", keys=64, lines=_KEYED, processes=2),
        Case("lanes_2", "64 keys, two guests in one processor", keys=64, lines={**_KEYED, "concurrency": 2}),
        Case(
            "redrive",
            "40,000 dead letters of 64 keys, sent back while the route runs",
            "redrive",
            keys=64,
            lines=_KEYED,
            has_latency=False,
        ),
        Case("idle_file", "one message at a time through an idle route, file store", "idle", messages=300),
        Case("idle_memory", "the same, memory store", "idle", messages=300, storage="memory"),
        Case("routes_10", "10 routes in one processor", "crowd", routes=10, has_latency=False),
        Case("routes_100", "100 routes in one processor", "crowd", routes=100, has_latency=False),
        Case("routes_1000", "1,000 routes in one processor", "crowd", routes=1_000, has_latency=False),
        Case(
            "endurance",
            "64 keys, ten minutes with as much input as the route takes; outputs are kept for a minute",
            "endurance",
            keys=64,
            lines={**_KEYED, "output": {"subject": "$out.{key}", "ttl": "60s", "max_age": "60s"}},
            seconds=600,
        ),
    )
}

# The promises of a release: a figure, or a ratio of two, with its bound.
GOALS: tuple[tuple[str, str, str, float], ...] = (
    ("counter / pipelined", "messages_per_s", "at least", 2.0),
    ("counter / faststream", "messages_per_s", "at least", 8.0),
    ("counter / ceiling", "messages_per_s", "at least", 0.5),
    ("audited / counter", "messages_per_s", "at least", 0.97),
    ("governed / http", "messages_per_s", "at least", 0.95),
    ("keys_64 / keys_100000", "messages_per_s", "at most", 1.5),
    ("kept_100MB / kept_1KB", "commit_ms", "at most", 1.3),
    ("redrive", "messages_per_s", "at least", 3_000),
    ("redrive", "server_cpu_s_per_million", "at most", 100),
    ("idle_file", "p50_ms", "at most", 6.0),
    ("idle_file", "p99_ms", "at most", 15.0),
    ("idle_memory", "p50_ms", "at most", 2.0),
    ("routes_1000", "start_s", "at most", 15.0),
    ("routes_1000", "idle_cpu_percent", "at most", 1.0),
    ("routes_1000", "mb_per_route", "at most", 4.0),
    ("endurance", "memory_growth", "at most", 1.1),
)
