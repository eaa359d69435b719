"""Chapter 8: a route in an existing Alethic ISM installation, by its own routing file and envelopes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.running import Running, Start

ROUTING = """
messageConfig:
  routes:
    - selector: "code/executor/python/python-executor-1.0"
      name: "processor_executor_python"
      queue: "processor_executor_python_queue"
      subject: "processor.executor.python"
      url: nats://127.0.0.1:4222
    - {selector: "processor/state", name: "processor_state_state", jetstream_enabled: false,
       subject: "processor.state.{state_id}", url: "nats://127.0.0.1:4222"}
    - {selector: "processor/monitor", name: "processor_monitor", subject: "processor.monitor",
       url: "nats://127.0.0.1:4222"}
    - {selector: "processor/usage", name: "processor_usage", subject: "processor.usage",
       url: "nats://127.0.0.1:4222"}
    - {selector: "processor/state/sync", name: "processor_state_sync", subject: "processor.state.sync",
       url: "nats://127.0.0.1:4222"}
    - {selector: "processor/state/router", name: "processor_state_router", subject: "processor.state.router",
       url: "nats://127.0.0.1:4222"}
"""
ROUTE = """
python:
  input: {codec: ism, create: true}
  runnable: program.py
  ism:
    routing_file: .routing.yaml
    project_id: project-1
    outputs: [{route_id: "s_out:p1", next: ["s_out:p2"]}]
"""
PROGRAM = """
class Runnable(BaseSecureRunnable):
    def init(self):
        self.context['counter'] = 0

    def process(self, queries: List[Any]) -> List[Any]:
        self.context['counter'] += 1
        return [{'index': self.context['counter'], 'val': 10 / query['a']} for query in queries]

    def process_stream(self, query: Dict) -> Any:
        for word in query['words']:
            yield word
"""
INPUT = "processor.executor.python"


@pytest.fixture(autouse=True)
def routing_file(tmp_path: Path) -> None:
    (tmp_path / ".routing.yaml").write_text(ROUTING)


def message(*entries: Any, kind: str = "query_state") -> dict[str, Any]:
    return {"type": kind, "route_id": "s_in:p1", "input_route_id": None, "query_state": list(entries)}


async def statuses(running: Running, count: int) -> list[tuple[str, str]]:
    return [(e["route_id"], e["status"]) for e in await running.documents("processor.monitor", count)]


@pytest.mark.parametrize("kind", ["query_state", "query_state_entry"])
async def test_outputs_go_to_the_state_and_to_the_routes_behind_it(processor: Start, kind: str) -> None:
    """`query_state_route` to be stored, `query_state_entry` for each route that reads the state."""
    async with processor(ROUTE, program=PROGRAM) as running:
        await running.publish(INPUT, message({"a": 1}, {"a": 2}, kind=kind))
        rows = [{"index": 1, "val": 10.0}, {"index": 1, "val": 5.0}]
        assert await running.documents("processor.state.sync", 1) == [
            {
                "route_id": "s_out:p1",
                "input_route_id": "s_in:p1",
                "type": "query_state_route",
                "input_query_state": [{"a": 1}, {"a": 2}],
                "query_state": rows,
            }
        ]
        assert await running.documents("processor.state.router", 1) == [
            {
                "type": "query_state_entry",
                "route_id": "s_out:p2",
                "input_route_id": "s_in:p1",
                "query_state": rows,
            }
        ]


async def test_each_route_ends_with_exactly_one_status(processor: Start) -> None:
    """QUEUED and RUNNING when a message is taken up, then one COMPLETED for each route, in the commit."""
    async with processor(ROUTE, program=PROGRAM) as running:
        await running.publish(INPUT, message({"a": 1}))
        assert await statuses(running, 5) == [
            ("s_in:p1", "QUEUED"),
            ("s_in:p1", "RUNNING"),
            ("s_out:p1", "RUNNING"),
            ("s_out:p1", "COMPLETED"),
            ("s_in:p1", "COMPLETED"),
        ]


async def test_a_failure_is_failed_and_never_completed(processor: Start) -> None:
    """One FAILED for each route with the user's exception, and a dead letter; the next message runs."""
    async with processor(ROUTE, program=PROGRAM) as running:
        await running.publish(INPUT, message({"a": 0}), message({"a": 1}))
        [letter] = await running.dead_letters("python")
        assert letter.headers["x-error-code"] == "E304"
        told = await statuses(running, 10)
        assert told.count(("s_in:p1", "QUEUED")) == 2
        ended = [s for s in told if s[1] in ("FAILED", "COMPLETED")]
        assert ended == [
            ("s_out:p1", "FAILED"),
            ("s_in:p1", "FAILED"),
            ("s_out:p1", "COMPLETED"),
            ("s_in:p1", "COMPLETED"),
        ]
        failed = [e for e in await running.documents("processor.monitor", 10) if e["status"] == "FAILED"]
        assert failed[0]["exception"] == "ZeroDivisionError: division by zero"
        assert failed[0]["data"] == {"a": 0}
        [stored] = await running.documents("processor.state.sync", 1)
        assert stored["query_state"] == [{"index": 1, "val": 10.0}]


@pytest.mark.parametrize(
    ("payload", "code", "reason"),
    [
        (message(), "E302", "query_state is empty"),
        (message(kind="query_template"), "E302", "type is 'query_template'"),
        ({"type": "query_state", "query_state": [{"a": 1}]}, "E302", "route_id is missing"),
        ([1], "E302", "the envelope is a list"),
        (b"not json", "E301", "the message is not JSON"),
    ],
)
async def test_a_wrong_envelope_fails_once(processor: Start, payload: Any, code: str, reason: str) -> None:
    """One FAILED status with the reason, one dead letter, no QUEUED, no COMPLETED; the next message runs."""
    async with processor(ROUTE, program=PROGRAM) as running:
        await running.publish(INPUT, payload, message({"a": 1}))
        [letter] = await running.dead_letters("python")
        assert letter.headers["x-error-code"] == code
        assert reason in letter.headers["x-dead-letter-reason"]
        events = await running.documents("processor.monitor", 6)
        assert [e["status"] for e in events].count("FAILED") == 1
        [failed] = [e for e in events if e["status"] == "FAILED"]
        assert reason in failed["exception"]
        assert [e["status"] for e in events].count("COMPLETED") == 2


async def test_usage_is_counted_in_the_commit(processor: Start) -> None:
    """Entries in and rows out, under the project and the processor of the envelope."""
    async with processor(ROUTE, program=PROGRAM) as running:
        await running.publish(INPUT, message({"a": 1}, {"a": 2}))
        usage = await running.documents("processor.usage", 2)
        assert {(u["unit_subtype"], u["unit_count"]) for u in usage} == {("INPUT", 2), ("OUTPUT", 2)}
        assert {(u["project_id"], u["resource_id"], u["unit_type"]) for u in usage} == {
            ("project-1", "p1", "COMPUTE")
        }


async def test_a_stream_has_the_markers_that_its_listeners_know(processor: Start, wait_until: Any) -> None:
    """Source and input, the chunks, and the marker that ends them, on the subject of state and session."""
    route = ROUTE.replace('{route_id: "s_out:p1", next: ["s_out:p2"]}', '"s_out:p1"') + "  mode: stream\n"
    async with processor(route, program=PROGRAM) as running:
        heard = await running.listen("processor.state.s_out.S1")
        entry = {"session_id": "S1", "source": "Ada", "input": "hi", "words": ["well ", "met"]}
        await running.publish(INPUT, message(entry))
        await wait_until(lambda: len(heard) == 7, "everything was heard")
        assert [d.payload.decode() for d in heard] == [
            "Ada",
            "<<>>SOURCE<<>>",
            "hi",
            "<<>>INPUT<<>>",
            "well ",
            "met",
            "<<>>ASSISTANT<<>>",
        ]
