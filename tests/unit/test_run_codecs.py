"""The codecs of graphs: messages to runs, and what nodes give and fail with, as results for their runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.context.position import Move
from processor.context.subjects import GraphSubjects, RouteSubjects
from processor.delivery.codec import MAX_RUN_BYTES, Codec, Publication, TriggerCodec, Unreadable, codec_for
from processor.delivery.effects import Batch, Effects, EffectsBuilder, Outlet
from processor.errors import ProcessorError
from processor.jetstream import KEPT, Outgoing
from processor.model import (
    NO_HEADERS,
    ContextChange,
    Delivery,
    Emit,
    Failure,
    Group,
    Output,
    Program,
    Ran,
    partition_of,
)
from processor.route import Route, RouteInput, RoutePool, RouteTrigger

RUNS, POOL = RouteSubjects("shop", "graphs"), RouteSubjects("shop", "nodes-api")
ENGINE = Route(
    app="shop",
    name="graphs",
    program=Program("", "graphs"),
    input=RouteInput((RUNS.inbox(),), codec="run", is_inner=True),
    partitions=64,
    inner=(RUNS.inbox(), POOL.inbox(), "p.shop.run.>", "p.shop.timer.graphs.>"),
    emits=("results.*",),
)
NODES = Route(
    app="shop",
    name="nodes-api",
    program=Program("", "nodes"),
    input=RouteInput((POOL.inbox(),), codec="node", is_inner=True),
    partitions=64,
    inner=(RUNS.inbox(),),
    pool=RoutePool(partitions=32, settings={"endpoint": "https://api"}),
    is_stateless=True,
)
EXECUTION = {
    "v": 1, "t": "exec", "run": "r.1", "x": "pay/split.3", "a": 2, "kind": "shop/PayNode", "graph": "refunds",
    "inputs": {"n": 1}, "store": {"k": "v"}, "sent_ms": 5,
}  # fmt: skip
TO = RUNS.inbox(partition_of("r.1", 32))


def sent(message: Any, subject: str = POOL.inbox(3), sequence: int = 7) -> Delivery:
    payload = message if isinstance(message, bytes) else orjson.dumps(message)
    return Delivery(subject, payload, NO_HEADERS, "P_shop", sequence, 0.0, dealt=3)


def results(codec: Codec, *bodies: bytes) -> list[Mapping[str, Any]]:
    """What the execution gets for these outputs of its guest."""
    made = codec.outputs([sent(EXECUTION)], "", [Output(0, body) for body in bodies])
    assert [(each.subject, each.pattern) for each in made] == [(TO, RUNS.inbox())]
    return [orjson.loads(each.payload) for each in made]


def test_a_node_gets_its_execution_and_the_settings_of_its_group() -> None:
    """Under the name that its source has, without what is nobody's business there."""
    document = orjson.loads(codec_for(NODES).read(sent(EXECUTION)))
    assert document == {
        "kind": "PayNode", "run": "r.1", "x": "pay/split.3", "a": 2, "inputs": {"n": 1}, "store": {"k": "v"},
        "settings": {"endpoint": "https://api"},
    }  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        b'{"outputs":{"total":1.10},"sets":[["k",1]]}',
        b'{"outputs":[]}',
        b'{"outputs":null}',
        b' {"prune":{"why":"x"}}\n',
        b'{"requeue_ms":5,"inputs":{"n":2}}',
    ],
)
def test_what_a_node_gives_is_the_result_of_its_execution(body: bytes) -> None:
    """Whose result it is comes from the execution; what it is is as the node gave it."""
    [result] = results(codec_for(NODES), body)
    whose = {"v": 1, "t": "result", "run": "r.1", "x": "pay/split.3", "a": 2}
    assert result == {**whose, **orjson.loads(body)}


@pytest.mark.parametrize(
    "bodies, why",
    [
        ([b'{"outputs":{},"run":"other"}'], "the result of the node has 'run'"),
        ([b'{"outputs":{},"x":"other"}'], "the result of the node has 'x'"),
        ([b'{"outputs":{},"a":1}'], "the result of the node has 'a'"),
        ([b'{"outputs":{},"error":{"code":"E716"}}'], "the result of the node has 2 of"),
        (
            [b'{"error":{"code":"E304","text":"no"}}'],
            "the result of the node has an error that no step has, with the code 'E304'",
        ),
        (
            [b'{"error":{"code":"E716","text":1}}'],
            "the result of the node has an error that no step has, with the code 'E716'",
        ),
        ([b'{"error":{"code":[],"text":"no"}}'], "the result of the node has an error that no step has"),
        ([b'{"error":"E716"}'], "the result of the node has an error that no step has"),
        ([b'{"outputs":{},"prune":{}}'], "the result of the node has 2 of"),
        ([b'{"sets":[]}'], "the result of the node has 0 of"),
        ([b"[1]"], "the node gave no result"),
        ([b'{"outputs":'], "the node gave no result"),
        ([], "the node gave no result"),
        ([b'{"outputs":{}}', b'{"outputs":{}}'], "the node gave no result"),
    ],
)
def test_a_result_cannot_be_forged(bodies: list[bytes], why: str) -> None:
    """A guest that names another execution, gives two results, or none, has failed its own for good."""
    [result] = results(codec_for(NODES), *bodies)
    assert (result["run"], result["x"], result["a"]) == ("r.1", "pay/split.3", 2)
    assert result["final"] is True
    assert result["error"]["code"] == "E709"
    assert result["error"]["text"].startswith(why)
    assert "outputs" not in result


@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.dictionaries(
        st.sampled_from(["run", "x", "a", "t", "outputs", "prune", "sets", "error", "code", "text"]),
        inner,
        max_size=4,
    ),
).map(orjson.dumps))  # fmt: skip
def test_any_bytes_of_a_guest_are_about_its_execution_alone(body: bytes) -> None:
    """Whatever it gives becomes one result, of the execution that it was given."""
    [result] = results(codec_for(NODES), body)
    assert (result["t"], result["run"], result["x"], result["a"]) == ("result", "r.1", "pay/split.3", 2)


def test_a_step_may_say_itself_that_it_failed() -> None:
    """Bounded, and with what it returned where that is small; what it has set meanwhile does not count."""
    error = {"code": "E716", "text": "n" * 9000, "traceback": "t" * 90_000}
    said = {"error": error, "returned": {"status": "error"}, "sets": [["k", 1]]}
    [result] = results(codec_for(NODES), orjson.dumps(said))
    assert result["returned"] == {"status": "error"}
    assert (result["error"]["code"], result["final"], "sets" in result) == ("E716", False, False)
    assert len(orjson.dumps(result)) < 12_000
    [result] = results(codec_for(NODES), orjson.dumps({**said, "returned": ["x" * 3000]}))
    assert "returned" not in result


@pytest.mark.parametrize("code, is_final", [("E304", False), ("E311", False), ("E709", True)])
def test_a_node_that_fails_has_an_error_for_its_result(code: str, is_final: bool) -> None:
    """With its code, text and traceback, bounded; a model that refused its inputs is not tried again."""
    failure = Failure(code, "no price\udc80" + "x" * 9000, "t" * 90_000)
    [made] = codec_for(NODES).failed(sent(EXECUTION), failure)
    result = orjson.loads(made.payload)
    assert (made.subject, made.pattern) == (TO, RUNS.inbox())
    assert (result["run"], result["x"], result["a"], result["final"]) == ("r.1", "pay/split.3", 2, is_final)
    assert result["error"]["code"] == code
    assert result["error"]["text"].startswith("no price?xxx")
    assert len(made.payload) < 12_000


@pytest.mark.parametrize("message", [b"", b"{", [], {**EXECUTION, "run": 1}, {**EXECUTION, "inputs": []}])
def test_what_is_no_execution_is_unreadable_and_nobody_s(message: Any) -> None:
    """It is told to no run, so it becomes a dead letter, as any message that cannot be read."""
    codec = codec_for(NODES)
    with pytest.raises(Unreadable):
        codec.read(sent(message))
    assert codec.failed(sent(message), Failure("E302", "x")) == []
    assert not codec_for(NODES, {"r.1": 9}).is_skipped(sent(message))


def test_executions_of_a_cancelled_run_are_skipped() -> None:
    """They are settled without a run of the guest; those of other runs, and later ones, are not."""
    gone = {"r.1": 5}
    codec = codec_for(NODES, gone)
    assert codec.is_skipped(sent(EXECUTION))
    assert not codec.is_skipped(sent({**EXECUTION, "run": "r.2"}))
    assert not codec.is_skipped(sent({**EXECUTION, "sent_ms": 6}))
    gone.clear()
    assert not codec.is_skipped(sent(EXECUTION))


def test_a_message_to_a_run_belongs_to_it() -> None:
    """Its key is the run, and it is read as it is."""
    codec, message = codec_for(ENGINE), sent({"t": "go", "run": "r1/split.64"}, RUNS.inbox(1))
    assert codec.key(message) == "r1/split.64"
    assert codec.read(message) == message.payload


@pytest.mark.parametrize(
    "message", [b"", b"{", [], {"t": "go"}, {"run": ""}, {"run": 1}, {"run": "x" * (MAX_RUN_BYTES + 1)}]
)
def test_a_message_to_no_run_is_unreadable(message: Any) -> None:
    """Anybody who may publish to an inbox may send anything."""
    with pytest.raises(Unreadable):
        codec_for(ENGINE).key(sent(message, RUNS.inbox(1)))


def test_an_external_worker_sends_results_of_its_namespace_alone() -> None:
    """Its results say which namespace they were sent for, whatever they say of that themselves."""
    codec, subject = codec_for(ENGINE), GraphSubjects("shop").external("a.b", 3)
    result = {"t": "result", "run": "r1", "x": "pay", "a": 1, "outputs": {}, "ns": "other"}
    assert orjson.loads(codec.read(sent(result, subject))) == {**result, "ns": "a.b"}
    for forged in ("start", "control", "go", "tick", "child", "slice_done", None):
        with pytest.raises(Unreadable, match="an external worker sends results"):
            codec.read(sent({"t": forged, "run": "r1"}, subject))


TRIGGER = Route(
    app="shop",
    name="=trigger-refunds-0",
    program=Program("", "trigger"),
    input=RouteInput(("orders.*",), codec="trigger", repartition=True),
    trigger=RouteTrigger("refunds", {}, 32),
)


def started(payload: bytes, inputs: Any = None) -> Any:
    """The run that a message starts, with these inputs in its trigger."""
    route = replace(TRIGGER, trigger=RouteTrigger("refunds", inputs or {}, 32))
    codec = codec_for(route)
    assert isinstance(codec, TriggerCodec)
    delivery = Delivery("orders.eu", payload, NO_HEADERS, "ORDERS", 9, 0.0)
    made = codec.start(delivery)
    assert made.subject == RUNS.inbox(partition_of("ORDERS-9", 32))
    message = orjson.loads(made.payload)
    assert (message["t"], message["run"], message["graph"], message["by"]) == (
        "start", "ORDERS-9", "refunds", "subject",
    )  # fmt: skip
    assert message["check"] is True
    return message["inputs"]


def test_a_message_of_a_trigger_starts_the_run_that_is_named_after_it() -> None:
    """Its inputs are the fields of the document, or what the trigger takes of it, as far as it is there."""
    document = orjson.dumps({"id": 7, "to": {"city": "Rome"}, "x": [1]})
    assert started(document) == {"id": 7, "to": {"city": "Rome"}, "x": [1]}
    inputs = {
        "all": "${{ document }}", "city": " ${{document.to.city}} ", "none": "${{ document.to.street }}",
        "from": "${{ subject }}", "as_is": 3, "deep": {"x": ["${{ document.id }}", "${{ document.no }}"]},
    }  # fmt: skip
    assert started(document, inputs) == {
        "all": orjson.loads(document), "city": "Rome", "from": "orders.eu", "as_is": 3,
        "deep": {"x": [7, None]},
    }  # fmt: skip
    assert started(b"\xff", {"from": "${{ subject }}"}) == {"from": "orders.eu"}


@pytest.mark.parametrize("payload", [b"", b"{", b"[1]", b"7"])
def test_a_message_that_is_no_inputs_starts_nothing(payload: bytes) -> None:
    """It is unreadable, as to any route."""
    with pytest.raises(Unreadable):
        started(payload)


def test_a_due_time_starts_the_run_that_is_named_after_it() -> None:
    """The server sends the same to the same place each time; the time makes it another run."""
    route = replace(TRIGGER, trigger=RouteTrigger("refunds", {"n": 1}, 32))
    codec = codec_for(route)
    assert isinstance(codec, TriggerCodec)
    subject, payload = codec.scheduled
    assert subject == RUNS.inbox(partition_of(TRIGGER.name, 32))
    due = payload.replace(b'"{time}"', b'"2030-01-01T00:00:00Z"')
    message = sent(due, "p.shop.sched.=trigger-refunds-0")
    assert codec_for(ENGINE).key(message) == "refunds-2030-01-01T00:00:00Z"
    start = orjson.loads(codec_for(ENGINE).read(message))
    assert (start["run"], start["inputs"], start["by"]) == (
        "refunds-2030-01-01T00:00:00Z",
        {"n": 1},
        "schedule",
    )


def effects_of(route: Route, batch: Batch, outcome: Ran, **outlets: Outlet) -> Effects:
    ways = {pattern: Outlet(inner=True, max_bytes=100_000) for pattern in route.inner}
    ways["live.shop.graphs.>"] = Outlet(live=True)
    made = EffectsBuilder(route, codec_for(route), {**ways, **outlets}, 1 << 20).run(batch, outcome, {})
    assert isinstance(made, Effects), made
    return made


def batch_of(*deliveries: Delivery, key: str = "") -> Batch:
    documents = [delivery.payload for delivery in deliveries]
    batch = Batch(list(deliveries), [Group(key, documents)], [list(deliveries)], moves={3: Move(7)})
    batch.partitions = {delivery.sequence: 3 for delivery in deliveries}
    return batch


def test_what_is_for_the_app_itself_is_committed_as_it_is() -> None:
    """Messages to other routes, timers, and records with a life are committed under their own subjects."""
    emits = [
        Emit(0, POOL.inbox(5), b"1"),
        Emit(0, "p.shop.run.refunds.success.r1", b"2", headers={"Nats-TTL": "7d"}),
        Emit(0, "p.shop.timer.graphs.3.r1.late", b"3", headers={"Nats-Schedule": "@at 2030-01-01T00:00:00Z"}),
        Emit(0, GraphSubjects("shop").live_record("refunds", "r1"), b"4"),
    ]
    effects = effects_of(ENGINE, batch_of(sent({"t": "go", "run": "r1"}), key="r1"), Ran(emits=emits))
    assert effects.stored == [
        Outgoing(emits[0].subject, b"1", {}),
        Outgoing(emits[1].subject, b"2", {"Nats-TTL": "7d"}),
        Outgoing(emits[2].subject, b"3", {"Nats-Schedule": "@at 2030-01-01T00:00:00Z"}),
    ]
    assert effects.live == [Outgoing("live.shop.graphs.refunds.r1", b"4", {})]
    assert effects.size == 3 + 1


def test_the_only_message_of_a_subject_is_there_once_in_a_commit() -> None:
    """The server takes no second one that replaces the first in the same commit: the last one counts."""
    subject = "p.shop.timer.graphs.3.r1.late"
    made = [
        effects_of(
            ENGINE,
            batch_of(sent({"t": "go", "run": "r1"})),
            Ran(emits=[Emit(0, subject, body, headers=KEPT)]),
        )
        for body in (b"1", b"", b"2")
    ]
    first, *others = made
    assert first.size == 1 + 1
    for later in others:
        assert first.size_with(later) == 1 + 1
        first.add(later)
    assert first.stored == []
    assert [*first.kept.values()] == [Outgoing(subject, b"2", KEPT)]


def test_what_no_message_holds_is_refused_before_it_is_committed() -> None:
    """An inner message that the server would refuse fails its run, as an output does."""
    with pytest.raises(ProcessorError, match="a message takes 100000"):
        Outlet(inner=True, max_bytes=100_000).check_size(Publication(POOL.inbox(5), b"x" * 90_000, "p"))


def test_a_pool_answers_every_execution_once_and_keeps_nothing() -> None:
    """What failed is answered, too, in place of a dead letter; contexts of a stateless route are nothing."""
    failure = Failure("E709", "n: Field required")
    rejected = Batch([sent(EXECUTION)], rejected=[(sent(EXECUTION), failure)], moves={3: Move(7)})
    rejected.partitions = {7: 3}
    for batch, outcome, code in (
        (batch_of(sent(EXECUTION)), Ran([Output(0, b'{"outputs":{}}')]), None),
        (batch_of(sent(EXECUTION)), Ran(contexts={"": ContextChange({"n": b"1"}, True, 2)}), "E709"),
        (rejected, Ran(), "E709"),
    ):
        effects = effects_of(NODES, batch, outcome)
        assert [message.subject for message in effects.stored] == [TO]
        assert orjson.loads(effects.stored[0].payload).get("error", {}).get("code") == code
        assert effects.contexts == {}
    beside = batch_of(sent(EXECUTION), sent(EXECUTION, sequence=8))
    beside.groups = [Group("", [delivery.payload]) for delivery in beside.deliveries]
    beside.members = [[delivery] for delivery in beside.deliveries]
    effects = effects_of(NODES, beside, Ran([Output(0, b'{"outputs":{}}')], failed=[(1, failure)]))
    answers = [orjson.loads(message.payload) for message in effects.stored]
    assert [answer.get("error", {}).get("code") for answer in answers] == [None, "E709"]
    unreadable = Batch([sent(b"{")], rejected=[(sent(b"{"), failure)], moves={3: Move(7)}, partitions={7: 3})
    effects = effects_of(NODES, unreadable, Ran())
    assert [message.subject for message in effects.stored] == ["p.shop.dlq.nodes-api.3.7"]
