"""What is measured: the Runnables, the configurations and the sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
            self.context["counter"] += requests.get("http://127.0.0.1:$http/$ms").json()["one"]
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

# One of the five routes that are what a graph of five nodes would be without graphs.
STEP = """
class Runnable:
    def process(self, queries):
        self.context["v"] = queries[-1]["v"]
        self.context["seen"] = self.context.get("seen", 0) + len(queries)
        return [{**query, "v": query["v"] + 1} for query in queries]
"""
NODES = """
from exospherehost import BaseNode
from pydantic import BaseModel


class Step(BaseNode):
    class Inputs(BaseModel):
        v: int

    class Outputs(BaseModel):
        v: int

    async def execute(self) -> Outputs:
        return self.Outputs(v=self.inputs.v + 1)


class Split(BaseNode):
    class Inputs(BaseModel):
        v: int
        count: int

    class Outputs(BaseModel):
        v: int

    async def execute(self):
        return [self.Outputs(v=number) for number in range(self.inputs.count)]


class Join(BaseNode):
    class Inputs(BaseModel):
        b: int
        c: int
        d: int

    class Outputs(BaseModel):
        v: int

    async def execute(self) -> Outputs:
        return self.Outputs(v=self.inputs.b + self.inputs.c + self.inputs.d)


class Sum(BaseNode):
    class Inputs(BaseModel):
        values: list

    class Outputs(BaseModel):
        v: int

    async def execute(self) -> Outputs:
        return self.Outputs(v=sum(self.inputs.values))
"""

# A hundred lines about other hosts, and the one that allows.
POLICY = "".join(
    f'[[capability]]\nname = "http"\nresource = "{host}"\nmethods = ["get"]\n'
    for host in (*(f"host-{number}.example.com" for number in range(100)), "127.0.0.1:$http")
)

Kind = Literal["baseline", "route", "redrive", "idle", "crowd", "endurance", "graph", "waiting", "step"]
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
    seconds: float = 0.0  # of `endurance`
    graph: Sequence[Mapping[str, Any]] = ()  # its nodes; a message is then what starts a run of it
    is_outbound: bool = False  # its nodes may call outside, which makes them run in a pool
    is_chain: bool = False  # each route reads what the one before it sends
    server_ms: int = 0  # after which its HTTP server answers
    single: int = 0  # messages that come one at a time, each once the one before it is done

    @property
    def is_long(self) -> bool:
        """Whether it is measured in the first round only."""
        return self.kind in ("endurance", "waiting")

    @property
    def done_metric(self) -> str:
        """The metric that counts what is done."""
        return "processor_runs_total" if self.kind == "graph" else "processor_committed_messages_total"

    @property
    def commits_per_message(self) -> int:
        """How often that metric counts one message."""
        return self.routes if self.is_chain else 1


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


def _node(
    name: str, identifier: str, inputs: Mapping[str, Any], *after: str, unites: str = ""
) -> Mapping[str, Any]:
    united = {"unites": {"identifier": unites}} if unites else {}
    return {"node_name": name, "identifier": identifier, "inputs": inputs, "next_nodes": after, **united}


def _step(identifier: str, before: str, *after: str) -> Mapping[str, Any]:
    source = f"${{{{ {before}.outputs.v }}}}" if before else 0
    return _node("Step", identifier, {"v": source}, *after)


_FIVE = [
    _step("a", "", "b"),
    _step("b", "a", "c"),
    _step("c", "b", "d"),
    _step("d", "c", "e"),
    _step("e", "d"),
]
_UNITE = [
    _step("a", "", "b", "c", "d"),
    *(_step(each, "a", "e") for each in "bcd"),
    _node("Join", "e", {each: f"${{{{ {each}.outputs.v }}}}" for each in "bcd"}, unites="a"),
]
_FAN = [
    _node("Split", "split", {"v": 0, "count": 10_000}, "work"),
    _step("work", "split", "sum"),
    _node("Sum", "sum", {"values": "${{ work.outputs.v }}"}, unites="split"),
]


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
        Case("http", "counter with one HTTP call a message", source=CALLS, messages=4_000),
        Case("http_64", "the same with 64 keys", source=CALLS, messages=8_000, keys=64, lines=_KEYED),
        Case(
            "http_late",
            "the same with 64 keys, of a server that answers after 20 ms",
            source=CALLS,
            messages=1_500,
            keys=64,
            lines=_KEYED,
            server_ms=20,
        ),
        Case(
            "governed",
            "the same under a policy of 101 lines, with an entry of the audit a call",
            source=CALLS,
            messages=4_000,
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
            "graph_routes",
            "a chain of five routes, each with a context for each run",
            source=STEP,
            messages=6_000,
            keys=6_000,
            routes=5,
            lines={"key": "json./run"},
            is_chain=True,
            has_latency=False,
        ),
        Case(
            "graph_chain",
            "a graph of five pure nodes, one behind another",
            "graph",
            graph=_FIVE,
            messages=20_000,
            single=200,
        ),
        Case(
            "graph_unite",
            "the same, three of them side by side",
            "graph",
            graph=_UNITE,
            messages=20_000,
            single=200,
        ),
        Case(
            "graph_pooled",
            "a chain of five nodes that may call outside",
            "graph",
            graph=_FIVE,
            is_outbound=True,
            messages=3_000,
            single=100,
        ),
        Case(
            "graph_pooled_2",
            "the same, two processors",
            "graph",
            graph=_FIVE,
            is_outbound=True,
            messages=3_000,
            processes=2,
        ),
        Case(
            "graph_fan",
            "10,000 pure executions from one, and one from them",
            "graph",
            graph=_FAN,
            messages=0,
            single=5,
        ),
        Case(
            "graph_fan_pooled",
            "the same of nodes that may call outside",
            "graph",
            graph=_FAN,
            is_outbound=True,
            messages=0,
            single=3,
        ),
        Case(
            "graph_waiting",
            "a processor starts where 1,000,000 runs wait for a signal",
            "waiting",
            graph=[_node("Wait", "wait", {"signal": "go"})],
            messages=1_000_000,
        ),
        Case("shell_step", "a shell step of a recipe, one after the other", "step", messages=200),
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
    ("http", "messages_per_s", "at least", 1_500),
    ("http_64", "messages_per_s", "at least", 3_500),
    ("http_late", "messages_per_s", "at least", 600),
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
    ("graph_chain", "messages_per_s", "at least", 2_500),
    ("graph_unite", "messages_per_s", "at least", 2_500),
    ("graph_chain / graph_routes", "messages_per_s", "at least", 2.0),
    ("graph_unite", "p50_ms", "at most", 9.0),
    ("graph_unite", "p99_ms", "at most", 25.0),
    ("graph_pooled", "messages_per_s", "at least", 600),
    ("graph_pooled", "p50_ms", "at most", 60.0),
    ("graph_pooled_2 / graph_pooled", "messages_per_s", "at least", 1.6),
    ("graph_fan", "p50_ms", "at most", 800),
    ("graph_fan_pooled", "p50_ms", "at most", 3_000),
    ("graph_waiting", "start_s", "at most", 15.0),
    ("graph_waiting", "host_mb_over_empty", "at most", 300),
    ("shell_step", "over_ms", "at most", 20),
    ("endurance", "memory_growth", "at most", 1.1),
)
