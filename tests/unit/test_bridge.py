"""What a line asks of a context: paths into it, and requests that are none."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from processor.recipes.bridge import (
    Alien,
    NotDone,
    append_at,
    delete_at,
    found_at,
    pop_at,
    read_request,
    set_at,
    steps_of,
)

KEPT = {"data": {"user": {"name": "Al"}, "numbers": [1, 2, 3]}, "sample.message_v1": "Hi", "n": 4}


@pytest.mark.parametrize(
    ("path", "steps"),
    [
        ("n", ("n",)),
        ("data.user.name", ("data", "user", "name")),
        ("sample.message_v1", ("sample.message_v1",)),
        ("sample.message_v1.0", ("sample.message_v1", "0")),
        ("sample.other", ("sample", "other")),
    ],
)
def test_the_longest_name_that_is_there_is_meant(path: str, steps: tuple[str, ...]) -> None:
    """Names of a context may have dots; where none begins the path, its first part is the name."""
    assert steps_of(path, KEPT) == steps


@pytest.mark.parametrize("path", ["", ".", "a.", ".a", "a..b", "x" * 1025, ".".join("a" * 65)])
def test_a_path_has_a_name_between_its_dots(path: str) -> None:
    """And it is not longer than people write."""
    with pytest.raises(NotDone, match="is no path"):
        steps_of(path, KEPT)


@pytest.mark.parametrize(
    ("path", "value"),
    [("data.numbers.0", 1), ("data.numbers.-1", 3), ("data.user", {"name": "Al"}), ("n", 4)],
)
def test_a_number_is_an_index_in_a_list(path: str, value: Any) -> None:
    """Counted from its end where it is negative."""
    assert found_at(KEPT, steps_of(path, KEPT)) == value


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("none", "none is not there"),
        ("data.numbers.3", "data.numbers.3 is not there: the length of the list is 3"),
        ("data.numbers.-4", "the length of the list is 3"),
        ("data.numbers.01", "what is around it is a list"),
        ("data.numbers.first", "what is around it is a list"),
        ("n.x", "n.x is not there: what is around it is a number"),
        ("data.user.name.x", "what is around it is a text"),
    ],
)
def test_what_is_not_there_is_named(path: str, why: str) -> None:
    """To read it, to remove it and to take from it: the sentence has the path, and nothing changes."""
    kept = copy.deepcopy(KEPT)
    steps = steps_of(path, kept)
    for act in (found_at, delete_at, lambda root, steps: pop_at(root, steps, -1)):
        with pytest.raises(NotDone) as refused:
            act(kept, steps)
        assert why in str(refused.value)
    assert kept == KEPT


def test_what_is_missing_on_the_way_is_made() -> None:
    """By set and by append, of objects; an element of a list has to be there."""
    kept: dict[str, Any] = {}
    set_at(kept, ("a", "b", "c"), 1)
    append_at(kept, ("a", "list"), "x")
    append_at(kept, ("a", "list"), "y")
    set_at(kept, ("a", "list", "-1"), "z")
    set_at(kept, ("a", "list", "0"), {"k": 1})
    append_at(kept, ("a", "list", "0", "deep"), 2)
    assert kept == {"a": {"b": {"c": 1}, "list": [{"k": 1, "deep": [2]}, "z"]}}
    with pytest.raises(NotDone, match="the length of the list is 2"):
        set_at(kept, ("a", "list", "2"), 0)
    with pytest.raises(NotDone, match=r"a\.b is an object, not a list"):
        append_at(kept, ("a", "b"), 0)
    with pytest.raises(NotDone, match="what is around it is a number"):
        set_at(kept, ("a", "b", "c", "d"), 0)


def test_an_element_is_taken_and_a_value_removed() -> None:
    """The last element unless another index is given."""
    kept = copy.deepcopy(KEPT)
    assert pop_at(kept, ("data", "numbers"), -1) == 3
    assert pop_at(kept, ("data", "numbers"), 0) == 1
    with pytest.raises(NotDone, match="the length of the list is 1"):
        pop_at(kept, ("data", "numbers"), 1)
    delete_at(kept, ("data", "numbers", "0"))
    with pytest.raises(NotDone, match="the length of the list is 0"):
        pop_at(kept, ("data", "numbers"), -1)
    delete_at(kept, ("data", "user"))
    delete_at(kept, ("n",))
    assert kept == {"data": {"numbers": []}, "sample.message_v1": "Hi"}


def test_a_request_is_read() -> None:
    """With who asks where the line says so."""
    assert read_request(b'{"op":"full"}\n', "me").op == "full"
    asked = read_request(b'{"op": "pop", "path": "a", "index": 0, "who": "ann"}\r\n', "me")
    assert (asked.op, asked.path, asked.index, asked.who) == ("pop", "a", 0, "ann")
    asked = read_request(b'{"op":"set","path":"a","value":null}', "me")
    assert (asked.value, asked.index, asked.who) == (None, -1, "me")


@pytest.mark.parametrize("line", [b"GET / HTTP/1.1\r\n", b"\n", b"\xff\n", b"[1]\n", b"3", b'{"op":"full"'])
def test_what_is_no_request_is_told_apart(line: bytes) -> None:
    """Whoever sends it is not listened to any further: a browser would send its headers first."""
    with pytest.raises(Alien):
        read_request(line, "me")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"op":"drop"}', "there is no op 'drop'; there are full, get, set"),
        ('{"op":["get"]}', "there is no op"),
        ("{}", "there is no op"),
        ('{"op":"get"}', "get needs path"),
        ('{"op":"set","path":"a"}', "set needs value"),
        ('{"op":"full","path":"a"}', "full does not take path"),
        ('{"op":"get","path":"a","who":"x"}', "get does not take who"),
        ('{"op":"get","path":1}', "path is a number, not a text"),
        ('{"op":"pop","path":"a","index":"0"}', "index is a text, not a number"),
        ('{"op":"pop","path":"a","index":true}', "index is a truth value, not a number"),
        ('{"op":"set","path":"a","value":NaN}', "NaN is no number"),
        ('{"op":"set","path":"a","value":[1e999]}', "1e999 is no number"),
        ('{"op":"set","path":"a","value":18446744073709551616}', "integer of more than 64 bits"),
        ('{"op":"set","path":"a","value":"\\ud800"}', "cannot be kept"),
        ('{"op":"set","path":"a","value":' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    ],
)
def test_a_request_that_asks_for_nothing_is_refused(line: str, why: str) -> None:
    """No such op, too few or too many keys, another type, or a value that cannot be kept."""
    with pytest.raises(NotDone) as refused:
        read_request(line.encode(), "me")
    assert why in str(refused.value)
