"""What crosses the wall: that both sides understand each other, and that no bytes harm the host.

The last tests put a guest behind a real socket that says what no honest guest would.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import socket
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.errors import Fault, Faults
from processor.model import (
    ContextChange,
    Emit,
    Failed,
    Failure,
    Group,
    Limits,
    LogLine,
    Outcome,
    Program,
    Ran,
)
from processor.sandbox import calls as calls_module
from processor.sandbox import documents, wire
from processor.sandbox.host import Guest, Zygote
from processor.sandbox.link import READ_BYTES, UNREAD_BYTES
from processor.subject import matches

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
BLOBS = st.binary(max_size=50)
NONCES = st.integers(0, 2**64 - 1)


def only(frames: list[wire.Frame]) -> wire.Frame:
    (frame,) = frames
    return frame


def arrived(data: bytes) -> wire.Frame:
    return only(wire.Splitter(1 << 24).feed(data))


# Both sides understand each other.


@given(NONCES, st.dictionaries(NAMES, st.integers(-5, 5)), st.lists(BLOBS), st.data())
def test_a_frame_arrives_however_it_is_cut(nonce: int, header: Any, blobs: list[bytes], data: Any) -> None:
    """Frames come out as they went in, whatever pieces the socket makes of them."""
    stream = wire.pack(nonce, header, blobs) * 3
    splitter, frames, at = wire.Splitter(1 << 20), [], 0
    while at < len(stream):
        step = data.draw(st.integers(1, len(stream) - at))
        frames += splitter.feed(stream[at : at + step])
        at += step
    assert frames == [wire.Frame(nonce, header, blobs)] * 3
    assert splitter.pending == 0


@given(
    st.lists(
        st.tuples(NAMES, st.lists(BLOBS, max_size=3), st.none() | st.dictionaries(NAMES, BLOBS, max_size=3)),
        max_size=4,
    ),
    st.lists(NAMES, max_size=2),
    st.booleans(),
    BLOBS,
)
def test_a_request_is_understood(groups: list[Any], names: list[str], stream: bool, messages: bytes) -> None:
    """A guest reads the very groups, documents, contexts and messages that the host wrote."""
    for isolate in (False, True):
        request = wire.RunRequest(
            [Group(*group) for group in groups], names, names, stream, messages, isolate
        )
        assert wire.read_run(arrived(wire.write_run(5, request))) == request


def test_a_program_is_understood() -> None:
    """A guest reads the program and the limits that are its business; no limit stays no limit."""
    program = Program("class Runnable: 'ü'\n", "a/b.py")
    limits = Limits(outputs=3, output_bytes=4, context_bytes=5, log_lines=6, wall_s=0.5, cpu_s=math.inf)
    frame = arrived(wire.write_load(1, program, limits, code=b"compiled"))
    assert wire.read_load(frame) == (program, limits)
    assert wire.read_code(frame) == b"compiled"
    assert wire.read_code(arrived(wire.write_load(1, program, limits))) == b""


def test_code_of_a_guest_is_one_piece_of_a_bounded_size() -> None:
    """What a guest has compiled is taken as it is, or not at all."""
    assert wire.read_compiled(arrived(wire.write_loaded(1, [], b"compiled"))) == b"compiled"
    assert wire.read_compiled(arrived(wire.write_loaded(1, []))) == b""
    for blobs in ([b"a", b"b"], [b"x" * (wire.CODE_BYTES + 1)]):
        with pytest.raises(wire.Violation):
            wire.read_compiled(arrived(wire.pack(1, {"loaded": []}, blobs)))


MANIFEST = {"Api": {"inputs": {"type": "object"}, "outputs": {}, "secrets": {}, "doc": "Asks."}}


def test_a_manifest_is_of_a_program_of_nodes_alone() -> None:
    """The host reads the nodes that the guest wrote, and takes none from a program that is a Runnable."""
    nodes, runnable = Program("", "f", mode="nodes"), Program("", "f")
    with_nodes, without = wire.write_loaded(1, [], manifest=MANIFEST), wire.write_loaded(1, [])
    assert wire.read_loaded(arrived(with_nodes), nodes) == ([], [])
    assert wire.read_manifest(arrived(with_nodes), nodes) == MANIFEST
    assert wire.read_manifest(arrived(without), runnable) == {}
    for frame, program in ((with_nodes, runnable), (without, nodes)):
        with pytest.raises(wire.Violation):
            wire.read_loaded(arrived(frame), program)


REQUEST = wire.RunRequest([Group("k", [b"1", b"2"]), Group("l", [b"3"])], ["f"], [], stream=False)
EMITS = ["orders.*"]


def brought() -> wire.Yield:
    return replace(
        wire.Yield.of(2),
        counts=[1, 1],
        bodies=[b"{}", b"[]"],
        tokens=["a", "b"],
        emits=[(1, "orders.x", 1.5, {"kind": "late"})],
        emit_bodies=[b"1"],
        events=[(0, "e")],
        event_bodies=[b"null"],
        rejected=[(0, 1, "E301", "not JSON")],
    )


def outputs(token: str) -> wire.Yield:
    return replace(wire.Yield.of(1), counts=[1], bodies=[b"{}"], tokens=[token])


def ran(**changes: Any) -> bytes:
    contexts = {"k": ContextChange({"a": b"1", "b": None}, False, 2)}
    return wire.write_ran(7, replace(brought(), **changes), contexts, [LogLine("info", "hello")])


def test_a_result_is_understood() -> None:
    """The host reads the outputs, emits, events, contexts, rejections and logs that the guest wrote."""
    result = wire.read_ran(arrived(ran()), REQUEST, Limits(), EMITS)
    assert result.emits == [Emit(1, "orders.x", b"1", 1.5, {"kind": "late"})]
    assert [(output.group, output.body, output.fields) for output in result.outputs] == [
        (0, b"{}", ("a",)),
        (1, b"[]", ("b",)),
    ]
    assert [(event.group, event.name, event.body) for event in result.events] == [(0, "e", b"null")]
    assert result.contexts == {"k": ContextChange({"a": b"1", "b": None}, False, 2)}
    assert result.rejected == [(0, 1, Failure("E301", "not JSON"))]
    assert result.logs == [LogLine("info", "hello")]


def undone(*failed: tuple[int, Failure], **changes: Any) -> bytes:
    """What a run of two groups brought whose groups are undone alone."""
    brought = replace(wire.Yield.of(2, isolate=True), failed=list(failed), **changes)
    return wire.write_ran(7, brought, {}, [])


ISOLATED = replace(REQUEST, fields=[], isolate=True)


def test_a_group_that_was_undone_alone_is_told_beside_the_others() -> None:
    """The host reads why each of them failed, and what the others brought."""
    failure = Failure("E304", "ValueError: no", "Traceback", retry_after_s=2.0)
    frame = undone((0, failure), counts=[0, 1], bodies=[b"{}"])
    result = wire.read_ran(arrived(frame), ISOLATED, Limits())
    assert result.failed == ((0, failure),)
    assert [(output.group, output.body) for output in result.outputs] == [(1, b"{}")]


def test_groups_are_undone_alone_only_where_that_was_asked_for() -> None:
    """A guest that undoes a group without being asked, or does not say which, breaks the protocol."""
    for frame, request in ((undone(), replace(ISOLATED, isolate=False)), (ran(tokens=[]), ISOLATED)):
        with pytest.raises(wire.Violation):
            wire.read_ran(arrived(frame), request, Limits(), EMITS)


def test_texts_are_bounded_and_clean() -> None:
    """Texts from user code are cut to what the host accepts, and lone surrogates do not stop a frame."""
    failure = Failure("E304", "x" * 10_000 + "\ud800", "y" * 50_000 + "last\ud800")
    failed = wire.read_failed(
        arrived(wire.write_failed(1, failure, [LogLine("info", "z" * 5000)])), REQUEST, Limits()
    )
    assert len(failed.failure.text) == wire.TEXT_CHARS
    assert failed.failure.traceback.endswith("last?")
    assert len(failed.logs[0].text) == wire.LOG_CHARS
    faults = [Fault("f", 1, 2, "E202", "v" * 10_000)] * 5000
    loaded, _ = wire.read_loaded(arrived(wire.write_loaded(1, faults)), Program("", "f"))
    assert len(loaded) == wire.MAX_FAULTS


# Documents.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_a_document_survives_the_way_in_and_out(document: Any) -> None:
    """Every JSON document is read and written without loss, integers of any length included."""
    text = documents.encode(document, "output")
    assert documents.decoder([text])(text) == document
    assert json.loads(text) == document


@given(JSON)
def test_documents_are_written_like_json_dumps(document: Any) -> None:
    """What json.dumps takes, keys that are numbers included, is written with the same meaning."""
    odd = {1: document, None: (document,), 2.5: True, False: [document]}
    assert json.loads(documents.encode(odd, "output")) == json.loads(json.dumps(odd))


@pytest.mark.parametrize(
    "value", [math.nan, b"x", {1, 2}, object(), {(1,): 2}, {math.inf: 1}, {"a": "\ud800"}]
)
def test_what_is_not_json_is_refused(value: Any) -> None:
    """Nothing is rounded, replaced or dropped to make a document of it."""
    for document in (value, [value], {"a": [value]}):
        with pytest.raises(documents.Unwritable, match="output"):
            documents.encode(document, "output")


# Nothing that a guest sends harms the host.

Reader = Callable[[wire.Frame], object]
READERS: list[Reader] = [
    wire.read_sealed,
    lambda frame: wire.read_loaded(frame, Program("", "f")),
    wire.read_compiled,
    lambda frame: wire.read_call(frame, 1, 2),
    lambda frame: wire.read_cancel(frame, 2),
    wire.read_chunk,
    wire.read_broken,
    lambda frame: wire.read_failed(frame, REQUEST, Limits()),
    lambda frame: wire.read_ran(frame, REQUEST, Limits()),
]


@given(st.binary(max_size=300))
def test_any_bytes_are_frames_or_a_violation(data: bytes) -> None:
    """No bytes make the splitter do anything but wait, give frames, or refuse."""
    try:
        frames = wire.Splitter(200).feed(data)
    except wire.Violation:
        return
    assert all(isinstance(frame.header, dict) for frame in frames)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | NAMES,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=15,
)
FIELDS = ["outputs", "tokens", "emits", "events", "contexts", "rejected", "heap", "logs", "failed",
          "sealed", "loaded", "call", "cancel", "chunk", "broken"]  # fmt: skip


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING), st.lists(BLOBS, max_size=4))
def test_any_frame_is_understood_or_a_violation(header: dict[str, Any], blobs: list[bytes]) -> None:
    """Whatever stands in a frame, reading it gives a value or a Violation, and no other exception."""
    frame = arrived(wire.pack(1, json.loads(orjson.dumps(header)), blobs))
    for read in READERS:
        try:
            read(frame)
        except wire.Violation:
            pass


@settings(max_examples=300)
@given(st.data())
def test_a_bent_result_is_understood_or_a_violation(data: Any) -> None:
    """A good result with one place bent gives a value within the limits, or a Violation."""
    header = arrived(ran()).header
    place: Any = header
    while isinstance(place, (dict, list)) and place:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(list(keys)))
        if not isinstance(place[key], (dict, list)) or data.draw(st.booleans()):
            place[key] = data.draw(ANYTHING)
            break
        place = place[key]
    blobs = data.draw(st.permutations(arrived(ran()).blobs))
    limits = Limits(outputs=3, output_bytes=50, context_bytes=50, log_lines=2)
    try:
        result = wire.read_ran(arrived(wire.pack(7, header, blobs)), REQUEST, limits, EMITS)
    except wire.Violation:
        return
    assert len(result.outputs) + len(result.emits) <= 3
    for emit in result.emits:
        assert emit.group in (0, 1)
        assert matches("orders.*", emit.subject)
        assert 0 <= emit.delay_s <= wire.EMIT_DELAY_S
    assert all(output.group in (0, 1) and type(output.body) is bytes for output in result.outputs)
    assert result.contexts.keys() <= {"k", "l"}
    assert len(result.logs) <= 3


# What a guest that was broken into may claim to have emitted.
FORGED: list[Any] = [
    [1, "p.app.pos.r.0", 0, {}],
    [1, "orders.x.y", 0, {}],
    [1, "orders.*", 0, {}],
    [1, "orders.x\r\nPUB y 1", 0, {}],
    [1, 5, 0, {}],
    [1, "orders.x", -1, {}],
    [1, "orders.x", 1e300, {}],
    [1, "orders.x", True, {}],
    [1, "orders.x", "1", {}],
    [1, "orders.x", None, {}],
    [1, "orders.x", 0, []],
    [1, "orders.x", 0, {"a": 1}],
    [1, "orders.x", 0, {"a": "1\r\nNats-Rollup: all"}],
    [1, "orders.x", 0, {"a\r\nNats-Rollup": "all"}],
    [1, "orders.x", 0, {"nats-rollup": "all"}],
    [1, "orders.x", 0, {"Nats-Schedule-Target": "p.app.ctl.r"}],
    [1, "orders.x", 0, {"Processor-Stream": "end"}],
    [1, "orders.x", 0, {"a": "x" * 5000}],
    [1, "orders.x", 0, {f"a{n}": "" for n in range(100)}],
    [2, "orders.x", 0, {}],
    [True, "orders.x", 0, {}],
    [1, "orders.x", 0],
    {},
]


def bent(**changes: Any) -> bytes:
    return wire.pack(7, {**arrived(ran()).header, **changes}, arrived(ran()).blobs)


@pytest.mark.parametrize(
    "data",
    [
        bent(outputs=[2, 1]),
        bent(outputs=[True, 1]),
        bent(outputs=[-1, 3]),
        bent(outputs=[2]),
        bent(tokens=["a", "b c"]),
        bent(tokens=["a", ">"]),
        bent(tokens=["a", 1]),
        bent(tokens=["a"]),
        *(bent(emits=[emit]) for emit in FORGED),
        bent(emits=[[1, "orders.x", 0, {}]] * 2),
        ran(emits=[(1, "orders.x", 0.0, {})] * 899, emit_bodies=[b"1"] * 899),
        ran(emit_bodies=[b"1" * (8 << 20)]),
        bent(events=[[2, "e"]]),
        bent(events=[[0, "e" * 1000]]),
        bent(contexts=[["other", False, 2, 1, 1]]),
        bent(contexts=[["k", False, 2, 1, 1], ["k", False, 0, 0, 0]]),
        bent(contexts=[["k", True, 2, 1, 1]]),
        bent(contexts=[["k", False, 1 << 40, 1, 1]]),
        bent(contexts=[["k", False, 2, 0, 0]]),
        bent(rejected=[[0, 2, "E301", "no such message"]]),
        bent(rejected=[[0, 1, "E301", "twice"], [0, 1, "E301", "twice"]]),
        bent(rejected=[[0, 1, "E305", "no reason to be unreadable"]]),
        bent(logs=[["fatal", "x", 0]]),
        bent(logs=[["info", "x" * 2000, 0]]),
        bent(logs=[["info", "x", 0]] * 102),
        bent(logs=[["info", "x" * 1000, 0]] * 66),
        bent(logs=[["info", "x", -1]]),
        bent(logs=[["info", "x", 1], ["info", "x", 1]]),
        bent(more=1),
        ran(events=[(0, "e")], event_bodies=[b"{"]),
        wire.write_ran(7, brought(), {"k": ContextChange({"a": b'1,"b":2'}, True, 2)}, []),
    ],
)
def test_a_lie_in_a_result_is_a_violation(data: bytes) -> None:
    """Counts, names, tokens and places that do not fit the request are refused."""
    with pytest.raises(wire.Violation):
        wire.read_ran(arrived(data), REQUEST, Limits(), EMITS)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<I", 1 << 31),
        struct.pack("<I", 3),
        struct.pack("<IQII", 16, 1, 100, 0),
        struct.pack("<IQII", 18, 1, 2, 0) + b"[]",
        struct.pack("<IQII", 18, 1, 2, 0) + b"{]",
        struct.pack("<IQII", 16, 1, 0, 0xFFFFFFFF),
        struct.pack("<IQIII", 22, 1, 2, 1, 5) + b"{}",
        struct.pack("<IQII", 16 + 100_000, 1, 100_000, 0) + b"[" * 100_000,
    ],
)
def test_a_frame_that_contradicts_itself_is_a_violation(data: bytes) -> None:
    """Sizes that do not add up, and headers that are no objects, are refused as soon as they are seen."""
    with pytest.raises(wire.Violation):
        wire.Splitter(1 << 20).feed(data)


def damaged(data: Any, frames: bytes) -> bytes:
    """Good frames after what noise, a cut, or somebody who knows the format would make of them."""
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(frames)))
        other = data.draw(st.integers(0, len(frames)))
        match data.draw(st.sampled_from(["flip", "cut", "splice", "swap", "insert", "count"])):
            case "flip" if at < len(frames):
                frames = (
                    frames[:at] + bytes([frames[at] ^ 1 << data.draw(st.integers(0, 7))]) + frames[at + 1 :]
                )
            case "cut":
                frames = frames[:at]
            case "splice":
                frames = frames[:at] + frames[other:]
            case "swap":
                frames = frames[at:] + frames[:at]
            case "insert":
                frames = (
                    frames[:at]
                    + data.draw(st.binary(max_size=20) | st.sampled_from(JSON_TROUBLE))
                    + frames[at:]
                )
            case "count":
                number = data.draw(st.sampled_from([0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
                frames = frames[:at] + struct.pack("<I", number) + frames[at + 4 :]
    return frames


JSON_TROUBLE = [
    b"NaN",
    b"1e999",
    b"-0",
    b'"\\ud800"',
    b'{"a":1,"a":2}',
    b"[" * 2000,
    b"\xff",
    b"\x00",
    b'"logs":0,',
]
GOOD = [
    wire.write_sealed({"seccomp": "on"}),
    wire.write_loaded(1, [Fault("f", 1, 2, "E202", "v")]),
    wire.write_call(1, 1, 0, "stock", b'{"ticker":"A"}'),
    wire.write_cancel(1, 1),
    wire.write_chunk(1, b"piece"),
    wire.write_broken(1, "Traceback"),
    wire.write_failed(1, Failure("E304", "t", "trace", retry_after_s=1), [LogLine("info", "hello")]),
    ran(),
]


@settings(max_examples=400)
@given(st.lists(st.sampled_from(GOOD), min_size=1, max_size=3), st.data())
def test_damaged_frames_are_understood_or_a_violation(frames: list[bytes], data: Any) -> None:
    """Noise, cuts, splices, wrong counts and troublesome JSON end in values or in a Violation."""
    splitter = wire.Splitter(1 << 20, 10_000)
    try:
        arrivals = splitter.feed(damaged(data, b"".join(frames)))
    except wire.Violation:
        return
    for frame in arrivals:
        for read in READERS:
            try:
                read(frame)
            except wire.Violation:
                pass


@pytest.mark.parametrize("text", JSON_TROUBLE)
def test_troublesome_json_is_no_header(text: bytes) -> None:
    """What Python's json would take, or would fall over, is not a header with a value in it."""
    head = b'{"sealed":' + text + b"}"
    try:
        frame = arrived(struct.pack("<IQII", 16 + len(head), 1, len(head), 0) + head)
        wire.read_sealed(frame)
    except wire.Violation:
        return
    pytest.fail("taken for a report of layers")


@pytest.mark.parametrize(
    "head, count",
    [(b'{"a":[' + b"[]," * 50_000 + b"[]]}", 0), (b"{" * 60_000, 0), (b"{}", 60_000)],
    ids=["lists", "depth", "blobs"],
)
def test_a_frame_of_many_small_parts_is_refused_unread(head: bytes, count: int) -> None:
    """A few bytes per value would cost the host a hundred times as many, so their number has a limit."""
    body = struct.pack("<QII", 1, len(head), count) + head + bytes(4 * count)
    data = struct.pack("<I", len(body)) + body
    with pytest.raises(wire.Violation, match="more values"):
        wire.Splitter(1 << 20, 50_000).feed(data)


def test_a_large_frame_is_not_held_twice_over() -> None:
    """While a frame arrives the host holds its bytes, and then those of its blobs, and nothing else."""
    data = wire.write_chunk(1, bytes(32 << 20))
    splitter = wire.Splitter(1 << 26)
    tracemalloc.start()
    try:
        frames = [
            frame for at in range(0, len(data), 1 << 18) for frame in splitter.feed(data[at : at + (1 << 18)])
        ]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(only(frames).blobs[0]) == 32 << 20
    assert peak < 2.5 * (32 << 20)


def test_more_changes_than_a_frame_may_carry_are_the_users_fault() -> None:
    """The guest says so itself, before the host would take the frame for an attack."""
    change = ContextChange({str(number): b"1" for number in range(wire.MAX_CHANGES + 1)}, False, 5)
    with pytest.raises(ValueError, match=f"more than {wire.MAX_CHANGES} items"):
        wire.write_ran(1, wire.Yield.of(0), {"k": change}, [])


@pytest.mark.parametrize(
    "failed",
    [
        ["E501", "t", "", None, None],
        ["E301", "t", "", None, None],
        ["E304", 5, "", None, None],
        ["E304", "t", "", -1, None],
        ["E304", "t", "", True, None],
        ["E304", "t", "x" * 20_000, None, None],
        ["E304", "t"],
        [["E304"], "t", "", None, None],
        ["E304", "t", "", None, -1],
        ["E304", "t", "", None, len(REQUEST.groups)],
        ["E304", "t", "", None, True],
        ["E304", "t", "", None, "0"],
    ],
)
def test_a_lie_in_a_failure_is_a_violation(failed: Any) -> None:
    """A guest can only report the failures that are a guest's, in bounded texts."""
    with pytest.raises(wire.Violation):
        wire.read_failed(arrived(wire.pack(1, {"failed": failed, "logs": []})), REQUEST, Limits())


# A guest that has been taken over.

HONEST = "class Runnable:\n    def process(self, queries):\n        return queries\n"


@contextmanager
def taken_over(guest: Guest) -> Iterator[socket.socket]:
    """The guest's end of the channel, in our hands; the host cannot tell the difference."""
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    loop.remove_reader(guest._link._channel)
    kept = os.dup(guest._link._channel.fileno())  # or the real guest would see its channel close, and end
    os.dup2(ours.fileno(), guest._link._channel.fileno())
    ours.close()
    guest._link._channel.setblocking(False)
    theirs.setblocking(False)
    loop.add_reader(guest._link._channel, guest._link._readable)
    try:
        with theirs:
            yield theirs
    finally:
        os.close(kept)


async def answered(guest: Guest, group: Group, answer: Callable[[int], bytes]) -> Outcome:
    """What `run` returns when the guest says `answer(nonce)`."""
    loop = asyncio.get_running_loop()
    with taken_over(guest) as channel:
        running = asyncio.create_task(guest.run([group], fields=["f"]))
        request = arrived(await loop.sock_recv(channel, 1 << 16))
        await loop.sock_sendall(channel, answer(request.nonce))
        return await asyncio.wait_for(running, 10)


def good(nonce: int) -> bytes:
    return wire.write_ran(nonce, outputs("x"), {}, [])


async def test_an_honest_answer_is_taken(spawned, one) -> None:
    """The twin of the next test: the same way in, with an answer that fits."""
    async with spawned(HONEST) as guest:
        assert isinstance(await answered(guest, one({"f": "x"}), good), Ran)
        assert guest.alive


@pytest.mark.parametrize(
    "answer",
    [
        lambda nonce: wire.write_ran(
            nonce, replace(outputs("x"), emits=[(0, "orders.x", 0.0, {})], emit_bodies=[b"1"]), {}, []
        ),
        lambda nonce: good(nonce ^ 1),
        lambda nonce: good(nonce ^ 1 << 63),
        lambda nonce: good(nonce) + b"x",
        lambda nonce: good(nonce) + good(nonce),
        lambda nonce: wire.pack(nonce, {}),
        lambda nonce: wire.pack(nonce, {"outputs": "lies"}),
        lambda nonce: wire.write_ran(nonce, outputs("a.b"), {}, []),
        lambda nonce: wire.write_chunk(nonce, b"unasked"),
        lambda nonce: wire.write_call(nonce, 1, 0, "x" * 100, b"{}"),
        lambda nonce: wire.write_call(nonce, 1, 1, "stock", b"{}"),
        lambda nonce: wire.write_call(nonce, 1, -1, "stock", b"{}"),
        lambda nonce: wire.write_loaded(nonce, []),
        lambda nonce: struct.pack("<I", 0xFFFFFFFF),
    ],
)
async def test_a_lying_guest_is_killed(spawned, one, answer: Callable[[int], bytes]) -> None:
    """Any answer that an honest guest would not give is E315, and the guest is dead."""
    async with spawned(HONEST) as guest:
        outcome = await answered(guest, one({"f": "x"}), answer)
        assert not guest.alive
    assert isinstance(outcome, Failed)
    assert (outcome.failure.code, outcome.failure.lethal) == ("E315", True)


async def test_each_run_has_a_nonce_that_cannot_be_guessed(spawned, one) -> None:
    """Sixty-four random bits, so that nothing a guest says counts before it is asked, or for another run."""
    loop, nonces = asyncio.get_running_loop(), []
    async with spawned(HONEST, wall_s=30.0) as guest:
        with taken_over(guest) as channel:
            for _ in range(40):
                running = asyncio.create_task(guest.run([one({"f": "x"})], fields=["f"]))
                nonces.append(arrived(await loop.sock_recv(channel, 1 << 16)).nonce)
                await loop.sock_sendall(channel, good(nonces[-1]))
                assert isinstance(await asyncio.wait_for(running, 10), Ran)
    assert len(set(nonces)) == 40
    assert len({later - earlier for earlier, later in pairwise(nonces)}) == 39
    # A bit that is the same in all of them: once in eight thousand million runs of this test.
    assert all(0 < sum(nonce >> bit & 1 for nonce in nonces) < 40 for bit in range(64))


async def test_the_load_of_a_program_has_a_nonce_of_its_own(one, monkeypatch) -> None:
    """What a guest says of its program is held against it, too: it may not say so ahead."""
    asked: list[int] = []
    written = wire.write_load

    def write_load(nonce: int, *rest: Any) -> bytes:
        asked.append(nonce)
        return written(nonce ^ 1, *rest)  # the guest answers to another one

    monkeypatch.setattr(wire, "write_load", write_load)
    zygote = await Zygote.start()
    try:
        for _ in range(2):
            with pytest.raises(Faults, match="answers nothing that was asked"):
                await zygote.spawn(Program(HONEST, "a.py"), Limits())
    finally:
        await zygote.close()
    first, second = asked
    assert first != second
    assert 0 not in asked


async def test_an_answer_to_the_run_before_is_not_taken(spawned, one) -> None:
    """The same words again, in the next run: E315."""
    loop = asyncio.get_running_loop()
    async with spawned(HONEST, wall_s=30.0) as guest:
        with taken_over(guest) as channel:
            running = asyncio.create_task(guest.run([one({"f": "x"})], fields=["f"]))
            said = good(arrived(await loop.sock_recv(channel, 1 << 16)).nonce)
            await loop.sock_sendall(channel, said)
            assert isinstance(await asyncio.wait_for(running, 10), Ran)
            running = asyncio.create_task(guest.run([one({"f": "x"})], fields=["f"]))
            await loop.sock_recv(channel, 1 << 16)
            await loop.sock_sendall(channel, said)
            outcome = await asyncio.wait_for(running, 10)
    assert isinstance(outcome, Failed)
    assert outcome.failure.code == "E315"


async def test_a_call_before_the_last_one_was_answered_ends_the_guest(spawned, one) -> None:
    """An honest guest waits; one that calls on and on would have the host keep its answers."""
    loop = asyncio.get_running_loop()

    async def perform(name: str, arguments: dict[str, Any]) -> Any:
        return "x" * (8 << 20)

    async with spawned(HONEST, perform, wall_s=30.0, requests=5, calls_at_once=1) as guest:
        with taken_over(guest) as channel:
            running = asyncio.create_task(guest.run([one({"f": "x"})], fields=["f"]))
            nonce = arrived(await loop.sock_recv(channel, 1 << 16)).nonce
            await loop.sock_sendall(channel, wire.write_call(nonce, 1, 0, "stock", b"{}"))
            await loop.sock_recv(channel, 1)  # it has begun to answer, and cannot go on
            await loop.sock_sendall(channel, wire.write_call(nonce, 2, 0, "stock", b"{}"))
            outcome = await asyncio.wait_for(running, 10)
    assert isinstance(outcome, Failed)
    assert outcome.failure.code == "E315"
    assert "more calls at once than it may have open" in outcome.failure.text


@pytest.mark.parametrize("code", ["", "E315"])
async def test_refused_calls_have_an_end(spawned, one, monkeypatch, code: str) -> None:
    """Each costs the host time; a guest that does not stop is ended with the call after the last of them."""
    monkeypatch.setattr(calls_module, "REFUSED_CALLS", 3)
    loop = asyncio.get_running_loop()
    async with spawned(HONEST, wall_s=30.0, requests=0) as guest:
        with taken_over(guest) as channel:
            running = asyncio.create_task(guest.run([one({"f": "x"})], fields=["f"]))
            nonce = arrived(await loop.sock_recv(channel, 1 << 16)).nonce
            for number in range(1, 5):
                await loop.sock_sendall(channel, wire.write_call(nonce, number, 0, "stock", b"{}"))
                assert arrived(await loop.sock_recv(channel, 1 << 16)).header["code"] == "E322"
            last = wire.write_call(nonce, 5, 0, "stock", b"{}") if code else good(nonce)
            await loop.sock_sendall(channel, last)
            outcome = await asyncio.wait_for(running, 10)
    assert (outcome.failure.code if isinstance(outcome, Failed) else "") == code


@pytest.mark.parametrize(
    ("chunks", "code"),
    [([b""] * 100, ""), ([b""] * 101, "E315"), ([b"12345"] * 2, ""), ([b"12345", b"123456"], "E315")],
    ids=["number", "one more", "bytes", "a byte more"],
)
async def test_the_chunks_of_a_stream_have_a_bound(spawned, chunks: list[bytes], code: str) -> None:
    """A hundred for each output that a run may have, and its bytes; what is beyond is not passed on."""
    loop, passed = asyncio.get_running_loop(), []

    async def emit(chunk: bytes) -> None:
        passed.append(chunk)

    async with spawned(HONEST, wall_s=30.0, outputs=1, output_bytes=10) as guest:
        with taken_over(guest) as channel:
            running = asyncio.create_task(guest.stream(Group("", [b"1"], {}), emit))
            nonce = arrived(await loop.sock_recv(channel, 1 << 16)).nonce
            said = [wire.write_chunk(nonce, chunk) for chunk in chunks]
            await loop.sock_sendall(channel, b"".join(said) + wire.write_ran(nonce, wire.Yield.of(1), {}, []))
            outcome = await asyncio.wait_for(running, 10)
    assert (outcome.failure.code if isinstance(outcome, Failed) else "") == code
    assert passed == (chunks[:-1] if code else chunks)


def noisy(noise: random.Random, nonce: int) -> bytes:
    """A good answer, or two, with some bytes wrong, missing or too many."""
    frames = bytearray(good(nonce) * noise.randint(1, 2))
    for _ in range(noise.randint(1, 3)):
        at = noise.randrange(len(frames))
        match noise.randrange(4):
            case 0:
                frames[at] ^= 1 << noise.randrange(8)
            case 1:
                del frames[at : at + noise.randrange(20)]
            case 2:
                frames[at:at] = noise.randbytes(noise.randrange(20))
            case 3:
                frames += noise.randbytes(noise.randrange(1 << 16))
    return bytes(frames)


async def test_noise_from_a_guest_ends_in_an_outcome(one) -> None:
    """Whatever a guest makes of its answer: a result, a protocol failure, or the end of its time."""
    zygote = await Zygote.start()
    codes = set()
    try:
        for seed in range(40, 80):  # among which there are some of each
            noise = random.Random(seed)
            guest = await zygote.spawn(Program(HONEST, "a.py"), Limits(wall_s=0.1))
            outcome = await answered(guest, one({"f": "x"}), lambda nonce, noise=noise: noisy(noise, nonce))
            assert guest.alive == isinstance(outcome, Ran)
            codes.add(outcome.failure.code if isinstance(outcome, Failed) else "")
            await guest.close()
    finally:
        await zygote.close()
    assert {"E315"} < codes <= {"", "E312", "E315"}


async def test_a_guest_that_answers_before_it_has_read_is_killed(spawned) -> None:
    """An answer to a request that is still on its way cannot be about it."""
    async with spawned(HONEST, wall_s=5.0) as guest:
        request = Group("", [b'"' + b"x" * 1000 + b'"'] * 4000, {})
        with taken_over(guest) as channel:
            running = asyncio.create_task(guest.run([request], fields=["f"]))
            start = await asyncio.get_running_loop().sock_recv(channel, 12)
            channel.send(good(struct.unpack("<IQ", start)[1]))
            outcome = await asyncio.wait_for(running, 10)
        assert isinstance(outcome, Failed)
        assert outcome.failure.code == "E315"


async def test_a_flood_is_left_unread(spawned, wait_until) -> None:
    """While nobody takes its chunks, a guest can send no more than what the host is ready to hold."""
    loop, gate = asyncio.get_running_loop(), asyncio.Event()

    async def emit(_: bytes) -> None:
        await gate.wait()

    async def pour(channel: socket.socket, flood: bytes) -> None:
        while True:
            await loop.sock_sendall(channel, flood)

    async with spawned(HONEST, wall_s=60.0) as guest:
        with taken_over(guest) as channel:
            running = asyncio.create_task(guest.stream(Group("", [b"1"], {}), emit))
            request = arrived(await loop.sock_recv(channel, 1 << 16))
            pouring = asyncio.create_task(pour(channel, wire.write_chunk(request.nonce, b"") * 1000))
            await wait_until(lambda: not guest._link._is_reading, "the host has had enough")
            await asyncio.wait([pouring], timeout=0.1)
            assert guest._link._unread_bytes <= UNREAD_BYTES + READ_BYTES
            for task in (pouring, running):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task


async def test_descriptors_from_a_guest_are_not_taken(spawned, one) -> None:
    """What a guest attaches to its answer never becomes a descriptor of the host."""
    async with spawned(HONEST, wall_s=5.0) as guest:
        loop = asyncio.get_running_loop()
        with taken_over(guest) as channel:
            running = asyncio.create_task(guest.run([one({"f": "x"})], fields=["f"]))
            request = arrived(await loop.sock_recv(channel, 1 << 16))
            before = os.listdir("/proc/self/fd")
            socket.send_fds(channel, [good(request.nonce)], [0, 1, 2])
            outcome = await asyncio.wait_for(running, 10)
            assert len(os.listdir("/proc/self/fd")) == len(before)
        assert isinstance(outcome, Ran)


async def test_a_guest_that_hangs_up_is_killed(spawned, wait_until) -> None:
    """A guest without a channel can never answer again; it does not stay until somebody asks it."""
    async with spawned(HONEST, wall_s=5.0) as guest:
        with taken_over(guest) as channel:
            channel.close()
            await wait_until(lambda: not guest.alive, "the guest is dead")
        assert (await guest._link.obituary()).code == "E315"


async def test_a_guest_that_speaks_unasked_is_killed(spawned, wait_until) -> None:
    """Bytes that nobody asked for cost the guest its life before the next request."""
    async with spawned(HONEST) as guest:
        with taken_over(guest) as channel:
            channel.sendall(b"x")
            await wait_until(lambda: not guest.alive, "the guest is dead")
