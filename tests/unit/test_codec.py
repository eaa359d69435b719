"""Codecs: what a Runnable is given for a message, and what others are given for what it returns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.config import load
from processor.delivery.codec import (
    MAX_KEY_BYTES,
    Codec,
    Publication,
    Unreadable,
    codec_for,
    content_of,
    session_of,
)
from processor.errors import ProcessorError
from processor.model import Delivery, Emit, Failure, Output, RawHeaders

SELECTORS = {
    "code/executor/python/python-executor-1.0": "processor.executor.python",
    "processor/state": "processor.state.{state_id}",
    "processor/monitor": "processor.monitor",
    "processor/usage": "processor.usage",
    "processor/state/sync": "processor.state.sync",
    "processor/state/router": "processor.state.router",
}
ISM = {
    "routing_file": "routing.yaml",
    "project_id": "proj1",
    "outputs": [{"route_id": "s_out:p1", "next": ["s_out:p2", "s_out:p3"]}],
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def codec(tmp_path: Path, kind: str = "json", **keys: Any) -> Codec:
    """The codec of a route that reads `ticks.*` (or, for ISM, what the routing file says)."""
    source = {"codec": kind} if kind == "ism" else {"subject": "ticks.*", "codec": kind}
    route = {"input": source, "code": "class Runnable: pass", **keys}
    entries = [{"selector": name, "name": "n", "subject": subject} for name, subject in SELECTORS.items()]
    (tmp_path / "routing.yaml").write_text(yaml.safe_dump({"messageConfig": {"routes": entries}}))
    (tmp_path / "app.yaml").write_text(yaml.safe_dump({"app": "market", "routes": {"stats": route}}))
    return codec_for(load(tmp_path / "app.yaml", {}).routes["stats"])


def ism(tmp_path: Path, mode: str = "batch", **keys: Any) -> Codec:
    return codec(tmp_path, "ism", mode=mode, ism={**ISM, **keys})


# One codec for all examples of a property: hypothesis does not make a folder for each.


@pytest.fixture(scope="module")
def raw_codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return codec(tmp_path_factory.mktemp("raw"), "raw", output="out")


@pytest.fixture(scope="module")
def ism_codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return ism(tmp_path_factory.mktemp("ism"))


def message(payload: Any, headers: Any = None, subject: str = "ticks.MSFT") -> Delivery:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return Delivery(subject, body, RawHeaders.of(headers or {}), "TICKS", 7, 1_767_225_600.5)


def envelope(**changes: Any) -> dict[str, Any]:
    whole = {"type": "query_state", "route_id": "s_in:p1", "query_state": [{"a": 1}, {"a": 2}], **changes}
    return {key: value for key, value in whole.items() if value is not ...}


def refused(codec: Codec, delivery: Delivery) -> Failure:
    with pytest.raises(Unreadable) as caught:
        codec.read(delivery)
    return caught.value.failure


def decoded(publications: list[Publication]) -> list[tuple[str, Any]]:
    return [(each.subject, json.loads(each.payload)) for each in publications]


# Keys


@pytest.mark.parametrize(
    ("key", "delivery", "found"),
    [
        ("none", message({}), ""),
        ("subject.2", message({}), "MSFT"),
        ("header.Symbol", message({}, {"Symbol": "IBM"}), "IBM"),
        ("header.Symbol", message({}, [("Symbol", "A"), ("Symbol", "Bö"), ("symbol", "C")]), "Bö"),
        ("json./a/1/b~1c", message({"a": [0, {"b/c": "deep"}]}), "deep"),
        ("json./0/id", message([{"id": 12345678901234567890}]), "12345678901234567890"),
        ("json./id", message({"id": 2**64, "x": 1.5}), str(2**64)),
        ("json./id", message({"id": -(2**200)}), str(-(2**200))),
    ],
)
def test_a_key_is_found_where_the_route_says(
    tmp_path: Path, key: str, delivery: Delivery, found: str
) -> None:
    """Text and whole numbers are keys."""
    assert codec(tmp_path, key=key).key(delivery) == found


@pytest.mark.parametrize(
    ("key", "delivery", "code", "said"),
    [
        ("header.Symbol", message({}), "E303", "the key is header.Symbol, and the message has none"),
        ("header.Symbol", message({}, {"Symbol": ""}), "E303", "has '' there"),
        (
            "header.Symbol",
            message({}, {"Symbol": b"\xff"}),
            "E303",
            r"has '\\udcff' there, which is not UTF-8",
        ),
        ("subject.2", message({}, subject="t.\udce9"), "E303", r"has '\\udce9' there, which is not UTF-8"),
        ("json./a", message({"a": 1.5}), "E303", "has 1.5 there"),
        ("json./a", message({"a": True}), "E303", "has True there"),
        ("json./a", message({"a": {}}), "E303", "has an object there"),
        ("json./a/b", message({"a": 1}), "E303", "has none"),
        ("json./1", message([1]), "E303", "has none"),
        ("json./a", message({"a": "x" * (MAX_KEY_BYTES + 1)}), "E303", f"longer than {MAX_KEY_BYTES} bytes"),
        ("json./a", message(b"{"), "E301", "not JSON"),
    ],
)
def test_a_message_without_a_usable_key_says_why(
    tmp_path: Path, key: str, delivery: Delivery, code: str, said: str
) -> None:
    """It cannot be ordered among others, so it is dead-lettered rather than given a key of our own."""
    with pytest.raises(Unreadable, match=said) as caught:
        codec(tmp_path, key=key).key(delivery)
    assert caught.value.failure.code == code
    assert len(caught.value.failure.text) < 300


# json


def test_json_passes_the_host_unparsed(tmp_path: Path) -> None:
    """The guest decodes it, and says so where it is not JSON."""
    json_codec = codec(tmp_path, output="stats.{name}.{subject.2}")
    assert json_codec.read(message(b"not JSON {")) == b"not JSON {"
    outputs = [Output(0, b'{"name":"x"}', ("x",)), Output(0, b"[1, 2]", ("y",))]
    assert json_codec.outputs([message({})], "", outputs) == [
        Publication("stats.x.MSFT", b'{"name":"x"}', "stats.*.*"),
        Publication("stats.y.MSFT", b"[1, 2]", "stats.*.*"),
    ]


def test_outputs_of_a_route_without_output_are_dropped(tmp_path: Path) -> None:
    """A route may exist for its context and events alone."""
    json_codec = codec(tmp_path)
    assert json_codec.outputs([message({})], "", [Output(0, b"1")]) == []
    assert json_codec.topics == {}
    assert json_codec.chunk_subject(message({}), "", b"{}") is None


def test_an_output_whose_subject_cannot_be_made_stops_all_of_them(tmp_path: Path) -> None:
    """All or nothing: no output of a group goes out if one cannot."""
    with pytest.raises(ProcessorError, match="E308"):
        codec(tmp_path, output="stats.{name}").outputs([message({})], "", [Output(0, b"1", ("a b",))])


@pytest.mark.parametrize("durable", [True, False])
def test_a_topic_says_whether_a_stream_keeps_it(tmp_path: Path, durable: bool) -> None:
    """So that the streams can be made before the first message."""
    made = codec(tmp_path, output={"subject": "stats.{subject.2}", "durable": durable})
    assert made.topics == {"stats.*": durable}


def test_what_is_emitted_is_kept_by_the_stream_of_its_pattern(tmp_path: Path) -> None:
    """It is written as an output is; the Runnable's own headers come first."""
    made = codec(tmp_path, output="stats", emits=["orders.*", "alerts"])
    assert made.topics == {"stats": True, "orders.*": True, "alerts": True}
    emit = Emit(0, "orders.x", b"1", 5.0, {"kind": "late"})
    published = made.emitted(message({}), 0, emit)
    assert published == Publication("orders.x", b"1", "orders.*", {"kind": "late"})
    raw = codec(tmp_path, "raw", emits=["alerts"])
    assert raw.emitted(message({}), 0, Emit(0, "alerts", b'"text"')).payload == b"text"


def test_what_is_emitted_is_an_event_of_its_own(tmp_path: Path) -> None:
    """No id is that of an output or of another message, and the Runnable may say what it is."""
    made = codec(tmp_path, "cloudevents", output="stats", emits=["alerts"])
    emits = [Emit(0, "alerts", b"1"), Emit(0, "alerts", b"2", 0, {"CE-Type": "com.example.alert"})]
    published = [made.emitted(message({}), number, emit) for number, emit in enumerate(emits)]
    published += made.outputs([message({})], "", [Output(0, b"3"), Output(0, b"4")])
    assert len({each.headers["ce-id"] for each in published}) == 4
    kinds = [{k.lower(): v for k, v in each.headers.items()}["ce-type"] for each in published]
    assert kinds == ["processor.stats.output", "com.example.alert", *["processor.stats.output"] * 2]
    assert "ce-type" not in published[1].headers


# raw


@given(payload=st.binary(max_size=64))
@settings(max_examples=50)
def test_raw_bytes_come_back_as_they_went_in(raw_codec: Codec, payload: bytes) -> None:
    """Text is given as text and other bytes as base64; returning either one restores them."""
    document = json.loads(raw_codec.read(message(payload)))
    assert document["subject"] == "ticks.MSFT"
    body = document["data"] if "data" in document else {"base64": document["base64"]}
    (publication,) = raw_codec.outputs([message(payload)], "", [Output(0, json.dumps(body).encode())])
    assert publication.payload == payload


@pytest.mark.parametrize("body", [b'{"base64": "AA==", "x": 1}', b'{"base64": 5}', b"[1]", b"1.50"])
def test_other_raw_outputs_are_written_as_json(tmp_path: Path, body: bytes) -> None:
    """Only text and `{"base64": text}` mean bytes."""
    raw = codec(tmp_path, "raw", output="out")
    assert raw.outputs([message(b"")], "", [Output(0, body)])[0].payload == body


@pytest.mark.parametrize("body", [b'{"base64": "A"}', b'{"base64": "A A="}', b"{"])
def test_a_raw_output_that_cannot_be_written_is_e306(tmp_path: Path, body: bytes) -> None:
    """Neither guessed nor cut."""
    with pytest.raises(ProcessorError, match="E306"):
        codec(tmp_path, "raw", output="out").outputs([message(b"")], "", [Output(0, body)])


# CloudEvents

BINARY = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/x", "ce-type": "t"}
EVENT = {"specversion": "1.0", "id": "1", "source": "/x", "type": "t"}


@pytest.mark.parametrize(
    ("content_type", "payload", "data"),
    [
        ("application/json", b'{"a": 1}', {"data": {"a": 1}}),
        ("application/vnd.x+json; charset=utf-8", b"[1]", {"data": [1]}),
        ("text/plain", b"[1]", {"data": "[1]"}),
        ("image/png", b"\xff\x00", {"data_base64": "/wA="}),
        ("", b"5", {"data": 5}),
        ("", b"five", {"data": "five"}),
        ("application/json", b"", {}),
    ],
)
@pytest.mark.parametrize("header", ["ce-datacontenttype", "Content-Type"])
def test_a_binary_event_becomes_one_document(
    tmp_path: Path, header: str, content_type: str, payload: bytes, data: dict[str, Any]
) -> None:
    """Attributes from the headers; data as JSON, text or base64, as its content type says."""
    headers = {**BINARY, **({header: content_type} if content_type else {})}
    document = json.loads(codec(tmp_path, "cloudevents").read(message(payload, headers)))
    wanted = {**EVENT, **data, **({"datacontenttype": content_type} if content_type else {})}
    assert document == wanted


def test_attributes_are_unquoted_and_percent_decoded_once(tmp_path: Path) -> None:
    """Header names are read in any case."""
    headers = {**BINARY, "CE-Subject": "Euro%20%E2%82%AC %2525", "ce-ext": '"a \\"b\\" %41"'}
    document = json.loads(codec(tmp_path, "cloudevents").read(message(b"", headers)))
    assert (document["subject"], document["ext"]) == ("Euro € %25", 'a "b" A')


@pytest.mark.parametrize(
    "content_type", ["application/cloudevents+json", "Application/CloudEvents+JSON; charset=UTF-8"]
)
def test_a_structured_event_passes_as_it_is(tmp_path: Path, content_type: str) -> None:
    """It is a document already; a client without headers can send nothing else."""
    event = message({**EVENT, "data": {"a": 1}}, {"Content-Type": content_type})
    cloudevents = codec(tmp_path, "cloudevents")
    assert cloudevents.read(event) == event.payload
    assert cloudevents.read(message(event.payload)) == event.payload
    batch = message([EVENT, EVENT], {"content-type": "application/cloudevents-batch+json"})
    assert cloudevents.read(batch) == batch.payload


@pytest.mark.parametrize(
    ("payload", "headers", "code", "said"),
    [
        (
            b"{",
            BINARY | {"ce-datacontenttype": "application/json"},
            "E301",
            "the data of the event is not JSON",
        ),
        (b'1,"type":"other"', BINARY | {"Content-Type": "application/json"}, "E301", "not JSON"),
        (b"", {**BINARY, "ce-id": ""}, "E302", "the attribute id of the event is ''"),
        (b"", {"ce-id": "1"}, "E302", "the attribute specversion of the event is missing"),
        (b"", {**BINARY, "ce-specversion": "0.3"}, "E302", "specversion of the event is '0.3'; 1.0 is read"),
        (b"", {**BINARY, "ce-x": "%C0%A0"}, "E302", "the header ce-x is '%C0%A0'"),
        (b"", {**BINARY, "ce-x": b"\xff"}, "E302", "the header ce-x"),
        (b"{}", {}, "E302", "the attribute specversion of the event is missing"),
        (b"[]", {}, "E302", "the event is a list, not an object"),
        (b"x", {}, "E301", "not JSON"),
        (b"x", {"Content-Type": "application/cloudevents+avro"}, "E302", "read as JSON only"),
        (b"x", {"Content-Type": "text/plain"}, "E302", "read as JSON only"),
    ],
)
def test_what_is_no_event_says_why(
    tmp_path: Path, payload: bytes, headers: dict[str, str], code: str, said: str
) -> None:
    """The reason goes into the dead letter's header."""
    failure = refused(codec(tmp_path, "cloudevents"), message(payload, headers))
    assert failure.code == code
    assert said in failure.text


def test_an_output_is_a_binary_event_with_an_id_of_its_input(tmp_path: Path) -> None:
    """A second try of the same message makes the same ids, so that a receiver can tell."""
    cloudevents = codec(tmp_path, "cloudevents", output="out")
    outputs = [Output(0, b'{"n":1}'), Output(0, b'"two"')]
    first, second = cloudevents.outputs([message(b"", BINARY)], "", outputs)
    assert first.payload == b'{"n":1}'
    assert first.headers == {
        "ce-specversion": "1.0",
        "ce-id": "stats-TICKS-7-0",
        "ce-source": "/processor/market/stats",
        "ce-type": "processor.stats.output",
        "ce-datacontenttype": "application/json",
    }
    assert second.headers["ce-id"] == "stats-TICKS-7-1"
    again = codec(tmp_path, "cloudevents").read(message(first.payload, first.headers))
    assert json.loads(again)["data"] == {"n": 1}


def test_type_and_source_of_outputs_can_be_chosen(tmp_path: Path) -> None:
    """They are percent-encoded where a header needs it."""
    own = codec(tmp_path, "cloudevents", output="out", cloudevents={"type": "a b", "source": "/€"})
    (publication,) = own.outputs([message(b"", BINARY)], "", [Output(0, b"1")])
    assert (publication.headers["ce-type"], publication.headers["ce-source"]) == ("a%20b", "/%E2%82%AC")
    document = json.loads(own.read(message(publication.payload, publication.headers)))
    assert (document["type"], document["source"]) == ("a b", "/€")


# ISM


@pytest.mark.parametrize("kind", ["query_state", "query_state_entry"])
@pytest.mark.parametrize("entries", [{"a": 1}, [{"a": 1}], [{"n": 10**40, "t": "\ud800 é"}]])
def test_an_envelope_gives_its_entries(tmp_path: Path, kind: str, entries: Any) -> None:
    """One object is a list of one; keys that are not ours to know are ignored."""
    delivery = message(envelope(type=kind, query_state=entries, priority="high", context={"user_id": "u"}))
    read = ism(tmp_path).read(delivery)
    assert json.loads(read) == (entries if isinstance(entries, list) else [entries])


@pytest.mark.parametrize(
    ("payload", "code", "said"),
    [
        (b"{", "E301", "the message is not JSON"),
        (b'{"type": NaN}', "E301", "NaN is not a JSON value"),
        (b'{"type": 1e400}', "E301", "the message has a number beyond the range of 64-bit floats"),
        (b"\xff", "E301", "the message is not JSON"),
        (b"[" * 100_000, "E320", "the message is nested too deeply"),
        ([], "E302", "the envelope is a list, not an object"),
        (envelope(type=...), "E302", "type is missing; query_state and query_state_entry are read"),
        (envelope(type="query_state_route"), "E302", "type is 'query_state_route'"),
        (envelope(type=["query_state"]), "E302", "type is a list"),
        (envelope(route_id=...), "E302", "route_id is missing; it must be text"),
        (envelope(route_id=5), "E302", "route_id is 5"),
        (envelope(query_state=...), "E302", "query_state is missing or null; it must be an object or a list"),
        (envelope(query_state="x"), "E302", "query_state is text"),
        (envelope(query_state=[]), "E302", "query_state is empty"),
        (envelope(query_state={}), "E302", "query_state is empty"),
        (envelope(processor_id="p9"), "E302", "the message is for processor 'p9', this is 'p1'"),
        (envelope(route_id="s_in:p9"), "E302", "the message is for processor 'p9', this is 'p1'"),
    ],
)
def test_a_wrong_envelope_says_exactly_what_is_wrong(
    tmp_path: Path, payload: Any, code: str, said: str
) -> None:
    """The reason is the same in the dead letter and in the FAILED event."""
    codec = ism(tmp_path, processor_id="p1")
    failure = refused(codec, message(payload))
    assert failure.code == code
    assert said in failure.text
    (event,) = decoded(codec.failed(message(payload), failure))
    assert event[0] == "processor.monitor"
    assert (event[1]["status"], event[1]["exception"]) == ("FAILED", failure.text)
    assert isinstance(event[1]["data"], str)


def test_outputs_go_to_the_store_and_to_every_route_that_reads_the_state(tmp_path: Path) -> None:
    """One message each with all rows; text becomes a row with `result`."""
    outputs = [Output(0, b'{"index":1,"val":2}'), Output(0, b'"text"')]
    rows = [{"index": 1, "val": 2}, {"result": "text"}]
    made = decoded(ism(tmp_path, usage=False).outputs([message(envelope())], "", outputs))
    assert made == [
        (
            "processor.state.sync",
            {
                "route_id": "s_out:p1",
                "input_route_id": "s_in:p1",
                "type": "query_state_route",
                "input_query_state": [{"a": 1}, {"a": 2}],
                "query_state": rows,
            },
        ),
        *(
            (
                "processor.state.router",
                {
                    "type": "query_state_entry",
                    "route_id": route_id,
                    "input_route_id": "s_in:p1",
                    "query_state": rows,
                },
            )
            for route_id in ("s_out:p2", "s_out:p3")
        ),
    ]


def test_a_message_without_outputs_publishes_nothing_but_its_status(tmp_path: Path) -> None:
    """A falsy result is no failure."""
    codec = ism(tmp_path)
    assert codec.outputs([message(envelope())], "", []) == []
    assert [
        event["status"]
        for subject, event in decoded(codec.completed(message(envelope())))
        if "status" in event
    ]


@pytest.mark.parametrize(
    "body", [b"1", b"[{}]", b"null", b"true", b"{", b'{"a": NaN}', b'{"a":1}],"route_id":["x"']
)
def test_an_output_that_is_no_row_is_e306(tmp_path: Path, body: bytes) -> None:
    """What a guest returns is parsed before it becomes part of a message of ours."""
    with pytest.raises(ProcessorError, match="E306"):
        ism(tmp_path).outputs([message(envelope())], "", [Output(0, body)])


@given(value=JSON)
@settings(max_examples=50)
def test_what_a_message_holds_is_passed_on_exactly(ism_codec: Codec, value: Any) -> None:
    """Integers of any size, unusual text and floats are the same behind the processor as before it."""
    delivery = message(envelope(query_state=[{"v": value}]))
    assert json.loads(ism_codec.read(delivery)) == [{"v": value}]
    stored = decoded(ism_codec.outputs([delivery], "", [Output(0, json.dumps({"w": value}).encode())]))[0][1]
    assert (stored["input_query_state"], stored["query_state"]) == ([{"v": value}], [{"w": value}])


def statuses(publications: list[Publication]) -> list[tuple[str, str]]:
    events = [event for _, event in decoded(publications)]
    return (
        [(event["route_id"], event["status"]) for event in events if event["type"] == "processor_state"]
        if events
        else []
    )


def test_every_route_of_a_message_has_exactly_one_terminal_event(tmp_path: Path) -> None:
    """The inbound route and each output route: COMPLETED or FAILED, never both, and last."""
    codec = ism(tmp_path, usage=False)
    delivery = message(envelope())
    assert statuses(codec.started(delivery)) == [
        ("s_in:p1", "QUEUED"),
        ("s_in:p1", "RUNNING"),
        ("s_out:p1", "RUNNING"),
    ]
    assert statuses(codec.completed(delivery)) == [("s_out:p1", "COMPLETED"), ("s_in:p1", "COMPLETED")]
    failed = codec.failed(delivery, Failure("E304", "ZeroDivisionError: division by zero"))
    assert statuses(failed) == [("s_out:p1", "FAILED"), ("s_in:p1", "FAILED")]


def test_status_events_have_the_fields_of_the_ism_system(tmp_path: Path) -> None:
    """Nothing added and nothing left out; a failure carries the user's exception and the entry."""
    codec = ism(tmp_path)
    delivery = message(envelope(query_state={"a": 1}))
    assert decoded(codec.started(delivery))[0] == (
        "processor.monitor",
        {
            "type": "processor_state",
            "route_id": "s_in:p1",
            "status": "QUEUED",
            "exception": None,
            "data": None,
        },
    )
    assert decoded(codec.failed(delivery, Failure("E304", "ValueError: no")))[-1][1] == {
        "type": "processor_state",
        "route_id": "s_in:p1",
        "status": "FAILED",
        "exception": "ValueError: no",
        "data": {"a": 1},
    }


@pytest.mark.parametrize("payload", [b"\xff" * 1_000_000, envelope(query_state={"a": "é" * 1_000_000})])
def test_a_status_event_is_small_whatever_it_reports(tmp_path: Path, payload: Any) -> None:
    """A message near the server's limit can be dead-lettered without exceeding it."""
    made = ism(tmp_path).failed(message(payload), Failure("E304", "x" * 1_000_000))
    assert made
    assert all(len(each.payload) < 400_000 for each in made)


def test_the_route_of_an_unreadable_envelope_is_named_where_it_can_be(tmp_path: Path) -> None:
    """Somebody waits for that route's terminal event."""
    codec = ism(tmp_path)
    failure = Failure("E302", "query_state is empty")
    assert statuses(codec.failed(message(envelope(query_state=[])), failure)) == [("s_in:p1", "FAILED")]
    assert statuses(codec.failed(message(b"\xff{"), failure)) == [(None, "FAILED")]


def test_usage_events_count_entries_in_and_rows_out(tmp_path: Path) -> None:
    """The time is that of the message, so that a second try says the same."""
    codec = ism(tmp_path)
    usage = {
        "id": None,
        "transaction_time": "2026-01-01T00:00:00Z",
        "project_id": "proj1",
        "resource_id": "p1",
        "resource_type": "code/executor/python/python-executor-1.0",
        "unit_type": "COMPUTE",
        "metadata": None,
    }
    outputs = [Output(0, b"{}")] * 3
    assert decoded(codec.completed(message(envelope())))[-1] == (
        "processor.usage",
        {**usage, "unit_subtype": "INPUT", "unit_count": 2},
    )
    assert decoded(codec.outputs([message(envelope())], "", outputs))[-1] == (
        "processor.usage",
        {**usage, "unit_subtype": "OUTPUT", "unit_count": 3},
    )
    silent = ism(tmp_path, usage=False)
    published = silent.completed(message(envelope())) + silent.outputs([message(envelope())], "", outputs)
    assert "processor.usage" not in {each.subject for each in published}


@pytest.mark.parametrize("mode", ["batch", "stream"])
def test_everything_ism_publishes_belongs_to_one_of_its_topics(tmp_path: Path, mode: str) -> None:
    """The worker looks up how each is kept before there is a message."""
    keys: dict[str, Any] = {} if mode == "batch" else {"outputs": ["s_out:p1"]}
    codec = ism(tmp_path, mode, **keys)
    delivery = message(envelope())
    published = (
        codec.started(delivery) + codec.completed(delivery) + codec.failed(delivery, Failure("E304", ""))
    )
    if mode == "batch":
        published += codec.outputs([delivery], "", [Output(0, b"{}")])
    assert {each.pattern for each in published} == set(codec.topics)
    assert all(each.pattern == each.subject for each in published)


# Stream mode


def test_chunks_of_a_session_have_a_subject_of_their_own(tmp_path: Path) -> None:
    """The session is the query's; one that is no token of a subject is E308, never an escape."""
    streaming = codec(tmp_path, mode="stream", output="chat.{session}")
    assert streaming.chunk_subject(message({}), "", b'{"session_id": "S1"}') == "chat.S1"
    for document in (b"{}", b'{"session_id": "a.b"}', b'{"session_id": ">"}'):
        with pytest.raises(ProcessorError, match="E308"):
            streaming.chunk_subject(message({}), "", document)
    assert streaming.opening(b"{}") == []
    assert streaming.marker(None) == streaming.marker(Failure("E304", "")) == b""


def test_ism_chunks_go_to_the_state_with_its_markers(tmp_path: Path) -> None:
    """With a session below the state's subject; listeners get source and input first, and one end marker."""
    codec = ism(tmp_path, "stream", outputs=["s_out:p1"])
    query = {"session_id": "S1", "source": "user", "input": "hello"}
    document = codec.read(message(envelope(query_state=query)))
    assert codec.chunk_subject(message({}), "", document) == "processor.state.s_out.S1"
    assert codec.chunk_subject(message({}), "", b"[{}]") == "processor.state.s_out"
    with pytest.raises(ProcessorError, match="E308"):
        codec.chunk_subject(message({}), "", b'[{"session_id": "*"}]')
    assert codec.opening(document) == [b"user", b"<<>>SOURCE<<>>", b"hello", b"<<>>INPUT<<>>"]
    assert codec.opening(b"[{}]") == []
    assert codec.marker(None) == b"<<>>ASSISTANT<<>>"
    assert codec.marker(Failure("E304", "")) == b"<<>>ERROR<<>>"


@pytest.mark.parametrize(
    ("document", "session"),
    [
        (b'{"session_id": "S1"}', "S1"),
        (b'[{"session_id": 7}, {"session_id": "S2"}]', "7"),
        (b"{}", ""),
        (b"[]", ""),
        (b"5", ""),
        (b"{", ""),
        (b'{"session_id": null}', ""),
        (b'{"session_id": true}', ""),
    ],
)
def test_the_session_is_that_of_the_first_query(document: bytes, session: str) -> None:
    """Anything else has none; what is wrong with a document is for the guest to say."""
    assert session_of(document) == session


@given(payload=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=200)
def test_no_message_whatsoever_raises_anything_but_unreadable(
    raw_codec: Codec, ism_codec: Codec, payload: bytes
) -> None:
    """A hostile message is judged, and never stops a route."""
    delivery = message(payload, {"ce-specversion": "1.0", "ce-id": "1"})
    for made in (ism_codec, raw_codec):
        try:
            made.read(delivery)
        except Unreadable:
            made.failed(delivery, Failure("E302", "x"))


@pytest.mark.parametrize("levels", [249, 600, 900, 960, 985, 999, 1000, 1009, 1030, 5000])
def test_an_ism_message_of_any_depth_is_read_or_refused(tmp_path: Path, levels: int) -> None:
    """What could not be written again is E320, wherever it is in the message, and can be told of."""
    deep = "[" * levels + "]" * levels
    for text in (
        f'{{"type": "query_state", "route_id": "s:p1", "query_state": {deep}}}',
        f'{{"type": "query_state", "route_id": "s:p1", "query_state": {{"a": 1}}, "more": {deep}}}',
        f'{{"type": "query_state", "route_id": {deep}}}',
    ):
        delivery = Delivery("ism.x", text.encode(), {}, "ISM", 1, 0.0)
        reader = ism(tmp_path)
        if levels < 250 and 'route_id": "' in text:
            assert json.loads(reader.read(delivery))
        else:
            with pytest.raises(Unreadable) as refused:
                reader.read(delivery)
            assert refused.value.failure.code == ("E320" if levels > 250 else "E302")
        failure = Failure("E320", "deep")
        assert all(
            json.loads(said.payload)["status"] == "FAILED" for said in reader.failed(delivery, failure)
        )


@pytest.mark.parametrize(
    "payload", [b'{"a":\n[1.0,\r\n100000000000000000000]}\n', b"[" * 900 + b"\n" + b"]" * 900]
)
def test_content_is_shown_in_one_line_with_its_numbers(payload: bytes) -> None:
    """However it is laid out, and however deep it is."""
    shown = orjson.dumps(content_of(payload))
    assert b"\n" not in shown
    assert shown == b'{"data":' + payload.replace(b"\n", b" ").replace(b"\r", b" ") + b"}"
