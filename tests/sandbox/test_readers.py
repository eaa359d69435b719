"""The readers of the wire at their bounds: the last thing that is taken, and the first that is not.

Every pair is one rule. The good twin shows that the rule refuses no honest peer, and that what is wrong with
the bad one is the rule's business alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest

from processor.model import Failure, Group, Limits, Program
from processor.sandbox import wire
from processor.sandbox.offer import HeapGrant, HeapOffer, Offer, Signature
from processor.sandbox.values import DEPTH, NAME_BYTES

LIMITS = Limits(outputs=2, output_bytes=10, context_bytes=20_000, log_lines=2, log_bytes=8)
REQUEST = wire.RunRequest([Group("k", [b"1", b"2"]), Group("l", [b"3"])], ["f"], [], stream=False)
PROGRAM = Program("", "f")
NOTHING: dict[str, Any] = {
    "outputs": [0, 0], "tokens": [], "emits": [], "events": [], "contexts": [], "rejected": [], "heap": [],
    "logs": [],
}  # fmt: skip


@dataclass(frozen=True)
class Twins:
    """A frame that is taken, and one that is not, by the same reader."""

    read: Callable[[wire.Frame], object]
    good: tuple[dict[str, Any], Sequence[bytes]]
    bad: tuple[dict[str, Any], Sequence[bytes]]


def of_run(good: Any, bad: Any, limits: Limits = LIMITS) -> Twins:
    """Two results of a run: what is not given is empty."""

    def whole(given: Any) -> tuple[dict[str, Any], Sequence[bytes]]:
        changes, *blobs = given
        return {**NOTHING, **changes}, blobs

    read = partial(wire.read_ran, request=REQUEST, limits=limits, emits=["e.*"])
    return Twins(read, whole(good), whole(bad))


def of_failure(good: Sequence[Any], bad: Sequence[Any]) -> Twins:
    whole = ["E304", "t", "", None, None]
    good, bad = ([*of, *whole[len(of) :]] for of in (good, bad))
    read = partial(wire.read_failed, request=REQUEST, limits=LIMITS)
    return Twins(read, ({"failed": good, "logs": []}, []), ({"failed": bad, "logs": []}, []))


def of_logs(good: Sequence[Any], bad: Sequence[Any]) -> Twins:
    return of_run(({"logs": good},), ({"logs": bad},))


def of_call(good: Any, bad: Any) -> Twins:
    """Two calls of a run with two groups: changes of the header, and blobs."""
    header = {"call": "stock", "id": 1, "group": 0}
    (of_good, *good_blobs), (of_bad, *bad_blobs) = good, bad
    read = partial(wire.read_call, call=1, groups=2)
    return Twins(read, ({**header, **of_good}, good_blobs), ({**header, **of_bad}, bad_blobs))


def of_cancel(good: Any, bad: Any) -> Twins:
    """Two cancellations in a run that has made two calls: a header, and blobs."""
    (of_good, *good_blobs), (of_bad, *bad_blobs) = good, bad
    return Twins(partial(wire.read_cancel, calls=2), (of_good, good_blobs), (of_bad, bad_blobs))


def of_faults(good: Any, bad: Any) -> Twins:
    read = partial(wire.read_loaded, program=PROGRAM)
    return Twins(read, ({"loaded": good, "warnings": []}, []), ({"loaded": bad, "warnings": []}, []))


def of_manifest(good: Any, bad: Any) -> Twins:
    read = partial(wire.read_manifest, program=Program("", "f", mode="nodes"))
    return Twins(read, ({"nodes": good}, []), ({"nodes": bad}, []))


NODE: dict[str, Any] = {"inputs": {}, "outputs": {}, "secrets": {}, "doc": ""}


def large_manifest(size: int) -> dict[str, Any]:
    """A manifest of that many bytes."""
    rest = len(b'{"A":{"inputs":{},"outputs":{},"secrets":{},"doc":""}}')
    return {"A": {**NODE, "doc": "x" * (size - rest)}}


def deep_manifest(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels - 3):
        schema = {"a": schema}
    return {"A": {**NODE, "inputs": schema}}


UNDONE = [0, "E304", "t", "", None]


def of_undone(good: Any, bad: Any) -> Twins:
    """Two results of a run whose groups are undone alone."""
    request = replace(REQUEST, fields=[], isolate=True)

    def whole(given: Any) -> tuple[dict[str, Any], Sequence[bytes]]:
        changes, *blobs = given
        return {**NOTHING, "undone": [], **changes}, blobs

    return Twins(
        partial(wire.read_ran, request=request, limits=LIMITS, emits=["e.*"]), whole(good), whole(bad)
    )


def of_context(good: Sequence[Any], *blobs: bytes, bad: Sequence[Any], bad_blobs: Any = None) -> Twins:
    return of_run(
        ({"contexts": [["k", *good]]}, *blobs),
        ({"contexts": [["k", *bad]]}, *(blobs if bad_blobs is None else bad_blobs)),
    )


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def arguments(size: int) -> bytes:
    return b'{"a":"' + b"x" * (size - 8) + b'"}'


LAYERS = {str(number): "on" for number in range(32)}
EMIT = [0, "e.x", 0, {}]
WIDE = b'"' + b"x" * 19_991 + b'"'  # with a name of seven bytes, all that a context may hold

TWINS = {
    # What every reader is made of.
    "a field more": of_run(({},), ({"more": 1},)),
    "a count that is a bool": of_run(
        ({"outputs": [0, 1], "tokens": ["t"]}, b"1"), ({"outputs": [0, True], "tokens": ["t"]}, b"1")
    ),
    "a blob too few": of_run(({"events": [[0, "e"]]}, b"1"), ({"events": [[0, "e"]]},)),
    "a blob too many": of_run(({"events": [[0, "e"]]}, b"1"), ({"events": [[0, "e"]]}, b"1", b"")),
    # The jail's report.
    "33 layers": Twins(wire.read_sealed, ({"sealed": LAYERS}, []), ({"sealed": {**LAYERS, "x": "on"}}, [])),
    "layers with a blob": Twins(wire.read_sealed, ({"sealed": {}}, []), ({"sealed": {}}, [b"x"])),
    "a layer's name": Twins(
        wire.read_sealed, ({"sealed": {"x" * 64: ""}}, []), ({"sealed": {"x" * 65: ""}}, [])
    ),
    "a layer's state": Twins(
        wire.read_sealed, ({"sealed": {"x": "x" * 300}}, []), ({"sealed": {"x": "x" * 301}}, [])
    ),
    # Faults of a program.
    "a fault's code": of_faults([[0, 1, 1, "E201", ""]], [[0, 1, 1, "E304", ""]]),
    "a fault's file": of_faults([[0, 1, 1, "E201", ""]], [[1, 1, 1, "E201", ""]]),
    "a fault's line": of_faults([[0, 0, 1, "E201", ""]], [[0, -1, 1, "E201", ""]]),
    "a fault's column": of_faults([[0, 0, 0, "E201", ""]], [[0, 0, (1 << 31) + 1, "E201", ""]]),
    "a fault's text": of_faults([[0, 1, 1, "E201", "x" * 4000]], [[0, 1, 1, "E201", "x" * 4001]]),
    "a fault's width": of_faults([[0, 1, 1, "E201", ""]], [[0, 1, 1, "E201", "", 1]]),
    "many faults": of_faults([[0, 1, 1, "E201", ""]] * 1000, [[0, 1, 1, "E201", ""]] * 1001),
    "code of a program": Twins(
        lambda frame: wire.read_compiled(frame, 10),
        ({"loaded": []}, [bytes(10)]),
        ({"loaded": []}, [bytes(11)]),
    ),
    # The nodes of a program.
    "bytes of a manifest": of_manifest(
        large_manifest(wire.MANIFEST_BYTES), large_manifest(wire.MANIFEST_BYTES + 1)
    ),
    "depth of a manifest": of_manifest(deep_manifest(DEPTH), deep_manifest(DEPTH + 1)),
    "the name of a node": of_manifest({"x" * 128: NODE}, {"x" * 129: NODE}),
    "a name that is no name": of_manifest({"a_b": NODE}, {"a.b": NODE}),
    "a node that is none": of_manifest({"A": NODE}, {"A": []}),
    "a field of a node": of_manifest({"A": NODE}, {"A": {**NODE, "where": "inline"}}),
    "a schema": of_manifest({"A": NODE}, {"A": {**NODE, "outputs": True}}),
    "words on a node": of_manifest({"A": NODE}, {"A": {**NODE, "doc": None}}),
    "a manifest that is a list": of_manifest({}, []),
    # Groups that are undone alone.
    "a group undone twice": of_undone(
        ({"undone": [UNDONE, [1, *UNDONE[1:]]]},), ({"undone": [UNDONE, UNDONE]},)
    ),
    "the group that is undone": of_undone(
        ({"undone": [[1, *UNDONE[1:]]]},), ({"undone": [[2, *UNDONE[1:]]]},)
    ),
    "why it is undone": of_undone(({"undone": [UNDONE]},), ({"undone": [[0, "E314", "", "", None]]},)),
    "the width of that": of_undone(({"undone": [UNDONE]},), ({"undone": [UNDONE[1:]]},)),
    "the text of that": of_undone(
        ({"undone": [[0, "E304", "x" * 4000, "", None]]},), ({"undone": [[0, "E304", "x" * 4001, "", None]]},)
    ),
    "an output of what is undone": of_undone(
        ({"undone": [UNDONE], "outputs": [0, 1]}, b"1"), ({"undone": [UNDONE], "outputs": [1, 0]}, b"1")
    ),
    "an emit of what is undone": of_undone(
        ({"undone": [UNDONE], "emits": [[1, "e.x", 0, {}]]}, b"1"),
        ({"undone": [UNDONE], "emits": [EMIT]}, b"1"),
    ),
    "an event of what is undone": of_undone(
        ({"undone": [UNDONE], "events": [[1, "e"]]}, b"1"), ({"undone": [UNDONE], "events": [[0, "e"]]}, b"1")
    ),
    "an object of groups that keep nothing": of_undone(
        ({"heap": []},), ({"heap": [[0, "read", "a", "0x1", 0]]},)
    ),
    "a context of groups that keep nothing": of_undone(
        ({"contexts": []},), ({"contexts": [["k", False, 0, 0, 0]]},)
    ),
    # Calls.
    "bytes of arguments": of_call(({}, arguments(wire.CALL_BYTES)), ({}, arguments(wire.CALL_BYTES + 1))),
    "bytes beside them": of_call(
        ({}, b"{}", bytes(wire.BODY_BYTES - 2)), ({}, b"{}", bytes(wire.BODY_BYTES - 1))
    ),
    "three blobs": of_call(({}, b"{}", b""), ({}, b"{}", b"", b"")),
    "no blob": of_call(({}, b"{}"), ({},)),
    "depth of arguments": of_call(
        ({}, b'{"a":' + nested(DEPTH - 1) + b"}"), ({}, b'{"a":' + nested(DEPTH) + b"}")
    ),
    "arguments that are a list": of_call(({}, b"{}"), ({}, b"[]")),
    "arguments that are not JSON": of_call(({}, b"{}"), ({}, b"{")),
    "the group of a call": of_call(({"group": 1}, b"{}"), ({"group": 2}, b"{}")),
    "a group below the first": of_call(({"group": 0}, b"{}"), ({"group": -1}, b"{}")),
    "the name of a call": of_call(({"call": "x" * 64}, b"{}"), ({"call": "x" * 65}, b"{}")),
    "a name that is no text": of_call(({"call": "1"}, b"{}"), ({"call": 1}, b"{}")),
    "a call's fields": of_call(({}, b"{}"), ({"ids": 1}, b"{}")),
    "the id of a call": of_call(({"id": 1}, b"{}"), ({"id": 2}, b"{}")),
    "an id that is no number": of_call(({"id": 1}, b"{}"), ({"id": True}, b"{}")),
    "the id of a cancellation": of_cancel(({"cancel": 2},), ({"cancel": 3},)),
    "an id below the first": of_cancel(({"cancel": 1},), ({"cancel": 0},)),
    "a cancellation with a blob": of_cancel(({"cancel": 1},), ({"cancel": 1}, b"")),
    "a cancellation's fields": of_cancel(({"cancel": 1},), ({"cancel": 1, "id": 1},)),
    # Chunks, and the guest's own end.
    "two chunks": Twins(wire.read_chunk, ({"chunk": True}, [b"a"]), ({"chunk": True}, [b"a", b"b"])),
    "no chunk": Twins(wire.read_chunk, ({"chunk": True}, [b""]), ({"chunk": True}, [])),
    "the trace of a fault of ours": Twins(
        wire.read_broken, ({"broken": "x" * 16_000}, []), ({"broken": "x" * 16_001}, [])
    ),
    # Failures.
    "a failure's code": of_failure(["E365"], ["E314"]),
    "a failure's text": of_failure(["E304", "x" * 4000], ["E304", "x" * 4001]),
    "a failure's trace": of_failure(["E304", "", "x" * 16_000], ["E304", "", "x" * 16_001]),
    "a delay": of_failure(["E304", "", "", 1e9], ["E304", "", "", 1e9 + 1]),
    "a delay below none": of_failure(["E304", "", "", 0], ["E304", "", "", -0.1]),
    "a delay that is a bool": of_failure(["E304", "", "", 1], ["E304", "", "", True]),
    "the group of a failure": of_failure(["E304", "", "", None, 1], ["E304", "", "", None, 2]),
    "a failure with a blob": Twins(
        lambda frame: wire.read_failed(frame, REQUEST, LIMITS),
        ({"failed": ["E304", "", "", None, None], "logs": []}, []),
        ({"failed": ["E304", "", "", None, None], "logs": []}, [b""]),
    ),
    # The log.
    "lines": of_logs([["info", "", 0]] * 2 + [["warning", "", 1]], [["info", "", 0]] * 4),
    "bytes of lines": of_logs([["info", "12345678", 0]], [["info", "123456789", 0]]),
    "bytes, not characters": of_logs([["info", "üüüü", 0]], [["info", "üüüüü", 0]]),
    "a line's length": of_run(
        ({"logs": [["info", "x" * 1000, 0]]},),
        ({"logs": [["info", "x" * 1001, 0]]},),
        replace(LIMITS, log_bytes=5000),
    ),
    "dropped lines": of_logs([["warning", "", 1]], [["warning", "", 1], ["warning", "", 1]]),
    "fewer than no dropped lines": of_logs([["warning", "", 0]], [["warning", "", -1]]),
    "a level": of_logs([["debug", "", 0]], [["fatal", "", 0]]),
    # Outputs and what is emitted.
    "outputs": of_run(
        ({"outputs": [1, 1], "tokens": ["a", "b"]}, b"1", b"2"),
        ({"outputs": [1, 2], "tokens": ["a", "b", "c"]}, b"1", b"2", b"3"),
    ),
    "bytes of outputs": of_run(
        ({"outputs": [1, 0], "tokens": ["a"]}, b"1" * 10), ({"outputs": [1, 0], "tokens": ["a"]}, b"1" * 11)
    ),
    "a count below none": of_run(
        ({"outputs": [0, 1], "tokens": ["a"]}, b"1"), ({"outputs": [-1, 2], "tokens": ["a"]}, b"1")
    ),
    "tokens of outputs": of_run(
        ({"outputs": [1, 0], "tokens": ["a"]}, b"1"), ({"outputs": [1, 0], "tokens": ["a", "b"]}, b"1")
    ),
    "a token": of_run(
        ({"outputs": [1, 0], "tokens": ["a"]}, b"1"), ({"outputs": [1, 0], "tokens": ["a.b"]}, b"1")
    ),
    "outputs with emits": of_run(
        ({"outputs": [1, 0], "tokens": ["a"], "emits": [EMIT]}, b"1", b"2"),
        ({"outputs": [1, 0], "tokens": ["a"], "emits": [EMIT, EMIT]}, b"1", b"2", b"3"),
    ),
    "bytes of outputs with emits": of_run(
        ({"outputs": [1, 0], "tokens": ["a"], "emits": [EMIT]}, b"1" * 5, b"2" * 5),
        ({"outputs": [1, 0], "tokens": ["a"], "emits": [EMIT]}, b"1" * 5, b"2" * 6),
    ),
    "a subject": of_run(({"emits": [EMIT]}, b"1"), ({"emits": [[0, "f.x", 0, {}]]}, b"1")),
    "the group of an emit": of_run(
        ({"emits": [[1, "e.x", 0, {}]]}, b"1"), ({"emits": [[2, "e.x", 0, {}]]}, b"1")
    ),
    "the delay of an emit": of_run(
        ({"emits": [[0, "e.x", wire.EMIT_DELAY_S, {}]]}, b"1"),
        ({"emits": [[0, "e.x", wire.EMIT_DELAY_S + 1, {}]]}, b"1"),
    ),
    "the headers of an emit": of_run(
        ({"emits": [[0, "e.x", 0, {f"a{n}": "" for n in range(32)}]]}, b"1"),
        ({"emits": [[0, "e.x", 0, {f"a{n}": "" for n in range(33)}]]}, b"1"),
    ),
    "bytes of headers": of_run(
        ({"emits": [[0, "e.x", 0, {"a": "x" * 4095}]]}, b"1"),
        ({"emits": [[0, "e.x", 0, {"a": "x" * 4096}]]}, b"1"),
    ),
    # Events.
    "events": of_run(
        ({"events": [[0, "e"]] * 2}, b"1", b"1"), ({"events": [[0, "e"]] * 3}, b"1", b"1", b"1")
    ),
    "bytes of events": of_run(({"events": [[0, "e"]]}, b"1" * 10), ({"events": [[0, "e"]]}, b"1" * 11)),
    "the group of an event": of_run(({"events": [[1, "e"]]}, b"1"), ({"events": [[2, "e"]]}, b"1")),
    "the name of an event": of_run(
        ({"events": [[0, "e" * 256]]}, b"1"), ({"events": [[0, "e" * 257]]}, b"1")
    ),
    "an event that is not JSON": of_run(({"events": [[0, "e"]]}, b"1"), ({"events": [[0, "e"]]}, b"x")),
    "depth of an event": of_run(
        ({"events": [[0, "e"]]}, nested(DEPTH)),
        ({"events": [[0, "e"]]}, nested(DEPTH + 1)),
        replace(LIMITS, output_bytes=5000),
    ),
    # Contexts: whether whole, its size, how many items are there, and how many are gone.
    "a key": of_run(({"contexts": [["k", False, 0, 0, 0]]},), ({"contexts": [["m", False, 0, 0, 0]]},)),
    "a key twice": of_run(
        ({"contexts": [["k", False, 0, 0, 0], ["l", False, 0, 0, 0]]},),
        ({"contexts": [["k", False, 0, 0, 0], ["k", False, 0, 0, 0]]},),
    ),
    "more contexts than groups": of_run(
        ({"contexts": [["k", False, 0, 0, 0]]},), ({"contexts": [["k", False, 0, 0, 0]] * 3},)
    ),
    "whole or not": of_context([False, 0, 0, 0], bad=[0, 0, 0, 0]),
    "the size of a context": of_context([False, 20_000, 0, 0], bad=[False, 20_001, 0, 0]),
    "a size below none": of_context([False, 0, 0, 0], bad=[False, -1, 0, 0]),
    "what a context holds": of_context(
        [True, 1, 1, 0], b"x" * 7, WIDE, bad=[True, 1, 1, 0], bad_blobs=[b"x" * 8, WIDE]
    ),
    "a whole one with items gone": of_context([False, 0, 0, 1], b"a", bad=[True, 0, 0, 1]),
    "an item twice": of_context(
        [False, 9, 2, 0], b"a", b"b", b"1", b"1", bad=[False, 9, 2, 0], bad_blobs=[b"a", b"a", b"1", b"1"]
    ),
    "an item that is there and gone": of_context(
        [False, 9, 1, 1], b"a", b"1", b"b", bad=[False, 9, 1, 1], bad_blobs=[b"a", b"1", b"a"]
    ),
    "a name": of_context(
        [False, 9999, 1, 0],
        b"n" * NAME_BYTES,
        b"1",
        bad=[False, 9999, 1, 0],
        bad_blobs=[b"n" * (NAME_BYTES + 1), b"1"],
    ),
    "an item that is not JSON": of_context(
        [False, 9, 1, 0], b"a", b"1", bad=[False, 9, 1, 0], bad_blobs=[b"a", b"x"]
    ),
    "a name that is not UTF-8": of_context(
        [False, 9, 1, 0], b"a", b"1", bad=[False, 9, 1, 0], bad_blobs=[b"\xff", b"1"]
    ),
    # Messages that could not be read.
    "the index of a message": of_run(
        ({"rejected": [[0, 1, "E301", ""]]},), ({"rejected": [[0, 2, "E301", ""]]},)
    ),
    "the group of a message": of_run(
        ({"rejected": [[1, 0, "E301", ""]]},), ({"rejected": [[2, 0, "E301", ""]]},)
    ),
    "why it could not": of_run(({"rejected": [[0, 0, "E318", ""]]},), ({"rejected": [[0, 0, "E304", ""]]},)),
    "the same message twice": of_run(
        ({"rejected": [[0, 0, "E301", ""], [0, 1, "E301", ""]]},),
        ({"rejected": [[0, 1, "E301", ""], [0, 1, "E301", ""]]},),
    ),
}


def frame_of(of: tuple[dict[str, Any], Sequence[bytes]]) -> wire.Frame:
    header, blobs = of
    [frame] = wire.Splitter(1 << 24).feed(wire.pack(1, header, blobs))
    return frame


@pytest.mark.parametrize("rule", TWINS)
def test_a_reader_takes_the_last_and_refuses_the_first_beyond(rule: str) -> None:
    """What a guest sends is taken up to each bound, and not one step further."""
    twins = TWINS[rule]
    twins.read(frame_of(twins.good))
    with pytest.raises(wire.Violation):
        twins.read(frame_of(twins.bad))


def test_a_manifest_that_is_too_deep_to_be_written_is_refused() -> None:
    """What can be read from JSON is nested deeper than what can be written again."""
    with pytest.raises(wire.Violation):
        wire.read_manifest(wire.Frame(1, {"nodes": deep_manifest(500)}, []), Program("", "f", mode="nodes"))


def test_the_size_of_a_whole_context_is_measured_and_not_believed() -> None:
    """What a guest says of its size counts only for the part that the host does not see."""
    header = {**NOTHING, "contexts": [["k", True, 1, 1, 0]]}
    ran = wire.read_ran(frame_of((header, [b"name", b'"value"'])), REQUEST, LIMITS)
    assert ran.contexts["k"].size == len('name"value"')


# Frames.


def test_a_frame_may_be_as_large_as_is_said() -> None:
    """And no byte larger; it is refused when its size is known."""
    data = wire.pack(1, {"chunk": True}, [bytes(100)])
    size = len(data) - 4
    assert len(wire.Splitter(size).feed(data)) == 1
    with pytest.raises(wire.Violation, match="a frame of"):
        wire.Splitter(size - 1).feed(data[:4])


def test_a_frame_may_have_as_many_parts_as_is_said() -> None:
    """Every comma, bracket and blob is one."""
    data = wire.pack(1, {"a": [1, 2], "b": {}}, [b"", b""])  # "{", "[", ",", ",", "{", and two blobs
    assert len(wire.Splitter(1 << 20, 7).feed(data)) == 1
    with pytest.raises(wire.Violation, match="more values"):
        wire.Splitter(1 << 20, 6).feed(data)


def test_a_header_may_be_as_large_as_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """By whoever writes it, and by whoever reads it."""
    data = wire.pack(1, {"a": "x" * 100})
    head = len(data) - 20
    monkeypatch.setattr(wire, "HEADER_BYTES", head)
    assert len(wire.Splitter(1 << 20).feed(data)) == 1
    assert wire.pack(1, {"a": "x" * 100}) == data
    monkeypatch.setattr(wire, "HEADER_BYTES", head - 1)
    with pytest.raises(wire.Violation, match="a header"):
        wire.Splitter(1 << 20).feed(data)
    with pytest.raises(ValueError, match="a header of"):
        wire.pack(1, {"a": "x" * 100})


def test_what_is_left_of_a_frame_is_pending() -> None:
    """The host tells by it that something came behind an answer."""
    data = wire.pack(1, {})
    splitter = wire.Splitter(1 << 20)
    assert len(splitter.feed(data + data[:3])) == 1
    assert splitter.pending == 3
    assert len(splitter.feed(data[3:])) == 1
    assert splitter.pending == 0


# From the host to the guest.


def test_each_figure_of_the_limits_arrives_in_its_place() -> None:
    """No two are alike here, so that one in another's place would show."""
    limits = Limits(
        memory_mb=1,
        outputs=2,
        output_bytes=3,
        context_bytes=4,
        log_lines=5,
        log_bytes=6,
        max_string_length=7,
        max_container_length=8,
        max_depth=9,
        wall_s=10.5,
        cpu_s=11.5,
    )
    _, read = wire.read_load(frame_of_bytes(wire.write_load(1, PROGRAM, limits)))
    assert read == limits


def test_what_a_guest_is_offered_arrives() -> None:
    """Its capabilities with their arguments in order, the marks of its secrets, and where it may emit to."""
    signatures = [Signature("a", ("x", "y"), ("z",)), Signature("b", (), (), is_method=False)]
    lines = ([HeapGrant(False, "a.*", ("read", "write")), HeapGrant(True, "ab", ("*",))], [])
    offer = Offer(signatures, {"key": "mark"}, ("e.*",), HeapOffer(lines, frozenset({"a"})))
    assert wire.read_offer(frame_of_bytes(wire.write_load(1, PROGRAM, LIMITS, offer))) == offer
    assert wire.read_offer(frame_of_bytes(wire.write_load(1, PROGRAM, LIMITS))) == Offer([], {}, ())


def test_an_empty_context_is_not_none() -> None:
    """The first begins a context anew, the second goes on with the one that the guest has."""
    groups = [Group("a", [b"1"], {}), Group("b", [b"2"], None)]
    request = wire.RunRequest(groups, ["field"], ["gone"], stream=True, messages=b"columns")
    assert wire.read_run(frame_of_bytes(wire.write_run(1, request))) == request


def test_a_request_with_a_blob_too_many_is_not_one() -> None:
    """The guest reads exactly what the host has written, or nothing."""
    [frame] = wire.Splitter(1 << 20).feed(wire.write_run(1, REQUEST))
    with pytest.raises(wire.Violation):
        wire.read_run(replace(frame, blobs=[*frame.blobs, b""]))


@pytest.mark.parametrize("code", sorted(wire.REFUSAL_CODES))
def test_a_refusal_has_a_code_that_a_refusal_may_have(code: str) -> None:
    """Any other is E317: a guest is not told what went wrong in the host; and its text is bounded."""
    header = frame_of_bytes(wire.write_refusal(1, 1, code, "x" * 5000)).header
    assert header == {"answer": 1, "refused": "x" * wire.TEXT_CHARS, "code": code}
    for other in ("E502", "E314", "E401"):
        refused = frame_of_bytes(wire.write_refusal(1, 1, other, "x")).header
        assert refused == {"answer": 1, "refused": "x", "code": "E317"}


def test_an_empty_body_is_still_a_body() -> None:
    """A call that has bytes beside its arguments waits for an answer that has some, too."""
    assert len(frame_of_bytes(wire.write_call(1, 1, 0, "requests", b"{}", b"")).blobs) == 2
    assert len(frame_of_bytes(wire.write_call(1, 1, 0, "stock", b"{}")).blobs) == 1


def test_a_failure_of_a_guest_keeps_its_delay_and_group() -> None:
    """Both come back as they were written."""
    written = wire.write_failed(1, Failure("E304", "t", "trace", retry_after_s=2.5), [], 1)
    failed = wire.read_failed(frame_of_bytes(written), REQUEST, LIMITS)
    assert (failed.failure, failed.group) == (Failure("E304", "t", "trace", retry_after_s=2.5), 1)


def frame_of_bytes(data: bytes) -> wire.Frame:
    [frame] = wire.Splitter(1 << 24).feed(data)
    return frame
